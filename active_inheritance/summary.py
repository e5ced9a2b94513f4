"""The figures of a selection: what `summary.json` holds, and what to know before believing them."""

from collections.abc import Sequence
from typing import Any

from active_inheritance.config import Config
from active_inheritance.forecast import forecast
from active_inheritance.loop import Outcome, folder_of
from active_inheritance.metrics import versions
from active_inheritance.student_figures import round_figures, student_figures
from active_inheritance.student_report import student_warnings
from common.results.rundir import RunDir
from common.text.textstats import METRICS

SCHEMA = 1


def summarise(
    run: RunDir, config: Config, outcomes: Sequence[Outcome], hashes: dict[str, str], unasked: int
) -> dict[str, Any]:
    """The documented, versioned figures of a run (see README, "summary.json"). `hashes`: of the files it read;
    `unasked`: held-out prompts too long for the student. "pool" and "data" are those of the first repeat's first
    round."""
    rule, selection, found = config.rule(), outcomes[0].selection, outcomes[0].rounds
    own = student_figures(config, outcomes) | {"rounds": round_figures(config, outcomes)} if found else {}
    return {
        "schema": SCHEMA,
        "method": "active-inheritance",
        "status": "complete" if found else "selected",
        **own,
        "student": _student(config, outcomes, unasked) if found else None,
        "profile": _profile(config, outcomes) if found else None,
        "pool": selection.pool | {"file": config.pool, "sha256": hashes.get(config.pool), "k": config.k},
        "sampling": _sampling(run, config) if config.source else None,
        "rule": {
            "objectives": [str(objective) for objective in rule.objectives],
            "constraints": [str(constraint) for constraint in rule.constraints],
            "combine": rule.combine if len(rule.objectives) > 1 else None,
            "fallback": rule.fallback,
            "temperature": rule.temperature,
            "top": rule.top,
        },
        "scorers": versions(config.scores(), hashes, config.toxicity_scorer),
        "data": forecast(config, selection.tally),
    }


def _profile(config: Config, outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    from active_inheritance.student_profile import profile_figures  # loads jax, which a selection does without

    return profile_figures(config, outcomes)


def _student(config: Config, outcomes: Sequence[Outcome], unasked: int) -> dict[str, Any]:
    return {
        "name": config.student,
        "repeats": len(outcomes),
        "rounds": config.rounds,
        "held_out_prompts": len(outcomes[0].held_out),
        "held_out_too_long": unasked,
        "answers_of_a_prompt": config.test_samples,
        "temperature": config.test_temperature,
        "new_tokens": config.answer_tokens,
        "left_out_too_long": [max(found["left_out"] for found in outcome.rounds) for outcome in outcomes],
    }


def _sampling(run: RunDir, config: Config) -> dict[str, Any]:
    """How the pool was made, so that it is not compared with one made otherwise."""
    from active_inheritance.sampling import accounts

    chance = config.sampling == "sample"
    return {
        "method": config.sampling,
        "temperature": config.source_temperature if chance else None,
        "top_p": config.source_top_p if chance else None,
        "diversity_penalty": None if chance else config.diversity_penalty,
        "new_tokens": config.answer_tokens,
        "seed": config.seed,
        "k": config.k,
        "sources": accounts(run, config.source, [folder_of(repeat, 0) for repeat in range(config.repeats)]),
    }


def warnings(config: Config, summary: dict[str, Any]) -> list[str]:
    """What a reader of the tables should know before believing them, a line each."""
    data, pool, lines = summary["data"], summary["pool"], []
    if summary["student"]:
        lines += student_warnings(config, summary)
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
        count = sum(source.get(f"without {name}", 0) for source in pool["sources"].values())
        if entry["pool"] is None:
            lines.append(f"{name}: no answer has this score")
        elif count and METRICS.keys().isdisjoint([name]):
            lines.append(f"{name}: {count} of {pool['answers']} answers have no such score, and never win by it")
    words = data["scores"]["words"]["selected - random"]
    if not any(name.startswith(("words:", "characters:", "tokens:")) for name in data["objectives"]):
        low, high = words["ci95"]
        if low > 0 or high < 0:
            lines.append(
                f"selected answers are {abs(words['value']):.1f} words {'longer' if low > 0 else 'shorter'} than "
                "random ones: compare with the matched arm, whose answers are about as long"
            )
    return lines
