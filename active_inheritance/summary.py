"""The figures of a selection: what `summary.json` holds, and what to know before believing them."""

from typing import Any

from active_inheritance.config import Config
from active_inheritance.forecast import forecast
from active_inheritance.scores import versions
from active_inheritance.stage import Selection

SCHEMA = 1


def summarise(config: Config, selection: Selection, hashes: dict[str, str]) -> dict[str, Any]:
    """The documented, versioned figures of a run. `hashes`: of the files it read."""
    rule = config.rule()
    return {
        "schema": SCHEMA,
        "method": "active-inheritance",
        "status": "selected",
        "pool": selection.pool | {"file": config.pool, "sha256": hashes[config.pool], "k": config.k},
        "rule": {
            "objectives": [str(objective) for objective in rule.objectives],
            "constraints": [str(constraint) for constraint in rule.constraints],
            "combine": rule.combine if len(rule.objectives) > 1 else None,
            "fallback": rule.fallback,
            "temperature": rule.temperature,
            "top": rule.top,
        },
        "scorers": versions(config.scores(), hashes),
        "data": forecast(config, selection.tally),
    }


def warnings(config: Config, summary: dict[str, Any]) -> list[str]:
    """What a reader of the tables should know before believing them, a line each."""
    data, pool, lines = summary["data"], summary["pool"], []
    if data["infeasible_share"]:
        what = {
            "baseline": "they keep the answer of the random control",
            "violation": "they take the answer that violates the constraints least",
            "drop": "they are in no arm",
        }[config.fallback]
        count = data["reasons"].get("dropped", 0) or round(data["infeasible_share"] * data["prompts"])
        lines.append(f"{count} prompts have no answer that meets the constraints: {what}")
    elif count := data["reasons"].get("dropped"):
        lines.append(f"{count} prompts have no answer that meets the constraints: they are in no arm")
    if count := data["reasons"].get("nothing usable"):
        lines.append(f"{count} prompts have no usable answer and are in no arm")
    if config.k is not None:
        short = sum(count for size, count in pool["answers_of_a_prompt"].items() if int(size) < config.k)
        if short:
            lines.append(
                f"{short} of {pool['prompts']} prompts have fewer than --k {config.k} answers from the sources in "
                "use: do not compare it with a pool that has them all"
            )
    for name, entry in data["objectives"].items():
        if entry["without_spread_share"] > 0.2:
            lines.append(
                f"{name}: {100 * entry['without_spread_share']:.0f}% of the prompts leave nothing to choose"
            )
    for name, entry in data["scores"].items():
        if entry["pool"] is None:
            lines.append(f"{name}: no answer has this score")
    words = data["scores"]["words"]["selected - random"]
    if not any(name.startswith(("words:", "characters:", "tokens:")) for name in data["objectives"]):
        low, high = words["ci95"]
        if low > 0 or high < 0:
            lines.append(
                f"selected answers are {abs(words['value']):.1f} words {'longer' if low > 0 else 'shorter'} than "
                "random ones: compare with the matched arm, whose answers are about as long"
            )
    return lines
