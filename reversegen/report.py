"""What a run leaves behind: summary.json, the labelled failures, target and proposer, the page and the tables."""

from typing import Any

from common.report import percent_interval, terminal_table
from common.rundir import RunDir, write_json
from reversegen.summary import summarise, warnings


def finish(run: RunDir, config, app, data, repeats) -> dict[str, Any]:
    summary = summarise(run, config, app, repeats)
    write_json(run.path / "summary.json", summary)
    keys = [
        "explorer",
        "round",
        "queries",
        "invalid_share",
        "repeated",
        "valid_failure_rate",
        "new_failure_rate",
        "self_bleu",
        "within",
        "across",
        "pairs",
    ]
    print(terminal_table(keys, [[e.get(k) for k in keys] for e in summary["rounds"]]))
    rows = []
    for a, arm in summary["arms"].items():
        rows.append(
            [
                a,
                *(percent_interval(arm["sets"][k]) for k in arm["sets"]),
                arm["examples"][0],
                arm["updates"][0],
                *(
                    percent_interval(summary["gains"][f"target-after - {a}"]["sets"][k], signed=True)
                    if a != "target-after"
                    else ""
                    for k in arm["sets"]
                ),
            ]
        )
    print(terminal_table(["arm", *arm["sets"], "examples", "updates", *arm["sets"]], rows))
    print(summary["exploration"])
    print(summary["labels"])
    print("\n".join(warnings(config, summary)))
    return summary
