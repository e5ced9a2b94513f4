"""The figures of a finished run: what `summary.json` holds, and what to know before believing them."""

from collections.abc import Sequence
from typing import Any

from common.results.rundir import RunDir, read_jsonl
from common.results.stats import arm_summary, gain, mean_ci95
from reversegen.applications.base import Application, Row
from reversegen.config import Config

SCHEMA = 1
MAIN = "failures"
"""The set whose figures stand at the top of an arm's entry: failing queries of an independent proposer."""


def summarise(run: RunDir, config: Config, app: Application, repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The documented, versioned figures of a run (see README, "summary.json")."""
    names = [arm for arm in config.arms if all(arm in repeat["files"] for repeat in repeats)]
    kinds = list(repeats[0]["files"]["target-before"])
    graded = {
        arm: {kind: [read_jsonl(run.path / repeat["files"][arm][kind]) for repeat in repeats] for kind in kinds}
        for arm in names
    }
    arms = {}
    for arm in names:
        sets = {kind: _set_figures(app, graded[arm][kind]) for kind in kinds}
        arms[arm] = sets[MAIN] | {
            "sets": sets,
            "examples": [repeat["examples"][arm] for repeat in repeats],
            "updates": [repeat["updates"][arm] for repeat in repeats],
            "answers": {kind: [repeat["files"][arm][kind] for repeat in repeats] for kind in kinds},
        }
    rounds = [entry for repeat in repeats for entry in repeat["rounds"]]
    return {
        "schema": SCHEMA,
        "method": "reversegen",
        "status": "complete",
        "task": app.name,
        "arms": arms,
        "gains": {
            f"target-after - {arm}": _gain(arms, graded, arm, MAIN)
            | {"sets": {kind: _gain(arms, graded, arm, kind) for kind in kinds}}
            for arm in names
            if arm != "target-after"
        },
        "rounds": rounds,
        "exploration": exploration(rounds),
        "labels": _labels(repeats),
        "seeds_shared": max(repeat["seeds_shared"] for repeat in repeats),
        "transfer": [entry for repeat in repeats for entry in repeat["transfer"]],
        "accounting": _accounting(run, config, repeats, names),
    }


def _set_figures(app: Application, of_repeats: Sequence[list[Row]]) -> dict[str, Any]:
    """An arm on one set; `items` are its questions in each repeat, `n` their mean."""
    items = [len(rows) for rows in of_repeats]
    shares = [sum(row["correct"] for row in rows) / len(rows) for rows in of_repeats]
    more = [app.figures(rows) for rows in of_repeats]
    entry = arm_summary(shares, round(sum(items) / len(items))) | {"metric": app.metric, "items": items}
    return entry | {name: [figures[name] for figures in more] for name in more[0]}


def _gain(arms: dict[str, Any], graded: dict[str, Any], other: str, kind: str) -> dict[str, Any]:
    """Held-out failures are other questions in every repeat, so the bootstrap over both is for one repeat only."""
    ours, theirs = (arms[arm]["sets"][kind]["per_repeat"] for arm in ("target-after", other))
    correct = lambda arm: [[row["correct"] for row in rows] for rows in graded[arm][kind]]
    found = gain(ours, theirs, correct("target-after"), correct(other))
    return found | {"bootstrap95": None} if kind == MAIN and len(ours) > 1 else found


def exploration(rounds: Sequence[Row]) -> dict[str, Any]:
    """Valid, new failures of all queries sampled: by the warm-up proposer, by the best one at last, and how many
    times as many; means over repeats with Student's t interval where there are several."""
    own = [entry for entry in rounds if entry["explorer"] == "explore"]
    first = [entry["new_failure_rate"] for entry in own if entry["round"] == 0]
    last = [entry["new_failure_rate"] for entry in own if entry["round"] == "final"]
    ratios = [b / a for a, b in zip(first, last, strict=True) if a]
    return {
        "warm_up": _interval(first),
        "final": _interval(last),
        "ratio": _interval(ratios) if len(ratios) == len(first) else None,
    }


def _interval(values: Sequence[float]) -> dict[str, Any]:
    if len(values) == 1:
        return {"value": values[0], "ci95": None, "per_repeat": list(values)}
    value, *interval = mean_ci95(values)
    return {"value": value, "ci95": interval, "per_repeat": list(values)}


def _labels(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What labelling came to, by the set that was labelled, summed over repeats. `wrong` counts labels that differ
    from the truth, before any were refused, among the `known` ones for which a program has the truth."""
    table = {}
    for name in repeats[0]["labelled"]:
        all_of = [repeat["labelled"][name] for repeat in repeats if name in repeat["labelled"]]
        reasons = sorted({reason for found in all_of for reason in found.refused})
        table[name] = {
            "asked": sum(found.asked for found in all_of),
            "accepted": sum(len(found.rows) for found in all_of),
            "refused": {reason: sum(found.refused.get(reason, 0) for found in all_of) for reason in reasons},
            "known": sum(found.labels_known for found in all_of),
            "wrong": sum(found.labels_wrong for found in all_of),
        }
    return table


def _accounting(
    run: RunDir, config: Config, repeats: Sequence[dict[str, Any]], names: Sequence[str]
) -> dict[str, Any]:
    """What every arm cost, summed over repeats: queries sampled, target answers while judging, labels asked for,
    optimizer updates of the target. The warm-up arms choose from one pool, which both are charged with."""
    pools = {"warm-up": "warm_up", "warm-up-failures": "warm_up", "few-shot": "few_shot"}
    table = {}
    for name in names:
        queries = answers = 0
        for number, repeat in enumerate(repeats):
            if name == "target-after":
                own = [entry for entry in repeat["rounds"] if entry["explorer"] == "explore"]
                queries += sum(entry["queries"] for entry in own)
                answers += sum(entry["target_calls"] for entry in own)
            elif name in pools:
                rows = read_jsonl(run.path / f"repeat_{number}/controls/{pools[name]}/queries.jsonl")
                queries += len(rows)
                answers += config.target_samples * sum(bool(row.get("answers")) for row in rows)
        labelled = [repeat["labelled"][name] for repeat in repeats if name in repeat["labelled"]]
        table[name] = {
            "queries": queries,
            "target_calls": answers,
            "labels_asked": sum(found.asked for found in labelled),
            "optimizer_updates": sum(repeat["updates"][name] for repeat in repeats),
        }
    return table


def warnings(config: Config, summary: dict[str, Any]) -> list[str]:
    """What a reader of the table should know before believing it, a line each."""
    lines = []
    if config.validity == "none" and config.task in ("math", "honesty"):
        lines.append("note: no validity gate (--validity none): failures may be nonsense queries")
    if config.jaccard == 1 and config.semantic == 1:
        lines.append("note: no deduplication: failures may be one query many times")
    lines += _alarms(summary["rounds"])
    for entry in summary["rounds"]:
        if entry["stopped"]:
            lines.append(f"note: {_place(entry)}: no preference training, {entry['stopped']}")
    if summary["seeds_shared"]:
        lines.append(
            f"note: the two proposers share {summary['seeds_shared']} seeds in a repeat: give twice "
            "--seed-instructions for an independent one"
        )
    size = min(summary["arms"]["target-after"]["examples"])
    for name in config.arms:
        arm = summary["arms"].get(name)
        if arm is None:
            lines.append(f"note: {name} had nothing to learn from and is left out")
        elif name not in ("target-before", "seed-only") and min(arm["examples"]) < size:
            lines.append(f"note: {name} had {min(arm['examples'])} examples, fewer than target-after's {size}")
    few = min(summary["arms"]["target-before"]["items"])
    if few < 50:
        lines.append(f"note: only {few} held-out failures in a repeat: raise --final-prompts")
    return lines and ["", *lines]


def _place(entry: Row) -> str:
    return f"{entry['explorer']} round {entry['round']}, repeat {entry['repeat']}"


def _alarms(rounds: Sequence[Row]) -> list[str]:
    """Signs of collapse, one by one where they are few, else counted."""
    raised = [(entry, sign) for entry in rounds for sign in entry["alarm"]]
    if len(raised) <= 4:
        return [f"note: collapse? {_place(entry)}: {sign}" for entry, sign in raised]
    count = lambda name: sum(entry["explorer"] == name and bool(entry["alarm"]) for entry in rounds)
    return [
        f"note: collapse? the alarm went off in {count('explore')} rounds of the proposer and in "
        f'{count("independent")} of the independent one, of {len(rounds) // 2} each: see "alarm" in summary.json'
    ]
