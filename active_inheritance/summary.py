"""The figures of a run: what `summary.json` holds, and what to know before relying on those of the data."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from active_inheritance.config import Config
from active_inheritance.forecast import Forecast, forecast
from active_inheritance.metrics import versions
from active_inheritance.outcome import Outcome, Row, folder_of
from active_inheritance.student_figures import Arm, ArmChange, RoundFigures, Transfer, student_figures
from active_inheritance.switches import Switches
from common.results.conclusion import counted
from common.results.rundir import RunDir
from common.text.same import TESTED, repeated
from common.text.textstats import METRICS

if TYPE_CHECKING:
    from active_inheritance.student_profile import Profiles

SCHEMA = 1
MANY_CUT = 1 / 5
"""Share of a source's answers that were cut off above which a reader is told."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """How the students were measured. `held_out_too_long`: held-out prompts that were not asked, for they leave
    the student no room; `left_out_too_long`: by repeat the most answers that a round left out of all arms."""

    name: str
    repeats: int
    rounds: int
    held_out_prompts: int
    held_out_too_long: int
    answers_of_a_prompt: int
    temperature: float
    new_tokens: int
    left_out_too_long: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The documented, versioned figures of a selection (see README, "summary.json"). `pool` and `data` are those
    of the first repeat's first round; `sampling`: how the pool was made, None for a file."""

    schema: int
    method: str
    status: str
    pool: Row
    sampling: Row | None
    rule: Row
    scorers: dict[str, str]
    data: Forecast
    student: Measured | None
    profile: "Profiles | None"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentSummary(Summary):
    """Those of a run with a student; `profile` is None where nothing was measured before and after."""

    student: Measured
    arms: dict[str, Arm]
    gains: dict[str, ArmChange]
    transfer: dict[str, Transfer]
    rounds: list[RoundFigures]


def summarise(
    run: RunDir,
    config: Config,
    switches: Switches,
    outcomes: Sequence[Outcome],
    hashes: Mapping[str, str],
    too_long: int,
) -> Summary:
    """The figures of all repeats. `hashes`: of the files the run read; `too_long`: held-out prompts that were not
    asked."""
    rule, selection, trained = switches.rule, outcomes[0].selection, bool(outcomes[0].rounds)
    of_data = {
        "schema": SCHEMA,
        "method": "active-inheritance",
        "status": "complete" if trained else "selected",
        "pool": selection.pool
        | {"file": config.pool, "sha256": hashes.get(config.pool) if config.pool else None, "k": config.k},
        "sampling": _sampling(run, switches, config.source) if config.source else None,
        "rule": {
            "objectives": [str(objective) for objective in rule.objectives],
            "constraints": [str(constraint) for constraint in rule.constraints],
            "combine": rule.combine if len(rule.objectives) > 1 else None,
            "fallback": rule.fallback,
            "temperature": rule.temperature,
            "top": rule.top,
            "rejected": rule.rejected,
        },
        "scorers": versions(switches.scoring.names, hashes, switches.scoring.toxicity),
        "data": forecast(rule, selection.tally, switches.answering.penalty is None),
    }
    if not trained:
        return Summary(**of_data, student=None, profile=None)
    from active_inheritance.student_profile import profiles  # loads jax, which a selection does without

    testing = switches.testing
    measured = Measured(
        name=config.student,
        repeats=len(outcomes),
        rounds=switches.rounds,
        held_out_prompts=len(outcomes[0].held_out),
        held_out_too_long=too_long,
        answers_of_a_prompt=testing.samples,
        temperature=testing.sampling.temperature,
        new_tokens=testing.sampling.max_new_tokens,
        left_out_too_long=[max(found.left_out for found in outcome.rounds) for outcome in outcomes],
    )
    profile = profiles(config.profile or (), switches.arms, outcomes, rule.seed)
    figures = student_figures(switches, outcomes)
    return StudentSummary(**of_data, student=measured, profile=profile, **vars(figures))


def _sampling(run: RunDir, switches: Switches, sources: Sequence[str]) -> Row:
    """How the pool was made, so that it is not compared with one made otherwise."""
    from active_inheritance.sampling import accounts

    answering, by_chance = switches.answering, switches.answering.penalty is None
    folders = [folder_of(repeat, 0) for repeat in range(switches.repeats)]
    return {
        "method": "sample" if by_chance else "diverse-beam",
        "temperature": answering.sampling.temperature if by_chance else None,
        "top_p": answering.sampling.top_p if by_chance else None,
        "diversity_penalty": answering.penalty,
        "new_tokens": answering.sampling.max_new_tokens,
        "seed": switches.rule.seed,
        "k": answering.k,
        "sources": accounts(run, sources, folders),
    }


def unmatched(summary: Summary) -> str:
    """What to add on the arm matched where prompts have too few answers for other ones."""
    least = min(map(int, summary.pool["answers_of_a_prompt"]), default=0)
    return "" if least >= 2 * summary.rule["top"] else "; where no other is left, a selected one itself"


def warnings(switches: Switches, summary: Summary, first: Outcome) -> list[str]:
    """What a reader should know before relying on the figures of the data, a line each. `first`: the first repeat,
    whose answers tell how long they are."""
    data, pool, k = summary.data, summary.pool, summary.pool["k"]
    lines: list[str] = []
    if count := pool.get("repeated_prompts"):
        lines += [repeated(pool["file"] or "the prompts", count, pool["prompts"], TESTED)]
    without = data.reasons.get("dropped", 0) or round(data.infeasible_share * data.prompts)
    if without:
        what = {
            "baseline": "they keep the answer of the random control",
            "violation": "they take the answer that violates the constraints least",
            "drop": "they are in no arm",
        }[switches.rule.fallback]
        lines.append(f"no answer that meets the constraints: {counted(without, 'prompt')}; {what}")
    if count := data.reasons.get("nothing usable"):
        lines.append(f"no usable answer: {counted(count, 'prompt')}, in no arm")
    for source, count in pool["sources"].items():
        share = count.get("truncated", 0) / count["answers"]
        if share > MANY_CUT:
            limit = (summary.sampling or {}).get("new_tokens")
            advice = f"raise --answer-tokens above {limit}" if limit else "sample them anew with a higher limit"
            used = "not used" if switches.scoring.drops(["truncated"]) else "learned without an end"
            lines.append(
                f"{100 * share:.0f}% of the answers of {source} were cut off and are {used}: {advice}, or ask for "
                "short answers in the prompts"
            )
    if k is not None:
        short = sum(count for size, count in pool["answers_of_a_prompt"].items() if int(size) < k)
        if short:
            lines.append(
                f"{short} of {pool['prompts']} prompts have fewer than --k {k} answers from the sources in "
                "use: do not compare it with a pool that has them all"
            )
    for name, entry in data.objectives.items():
        if entry.without_spread_share > 0.2:
            lines.append(f"{name}: {100 * entry.without_spread_share:.0f}% of the prompts leave nothing to choose")
    for name, scores in data.scores.items():
        count = sum(source.get(f"without {name}", 0) for source in pool["sources"].values())
        if scores["pool"] is None:
            lines.append(f"{name}: no answer has this score")
        elif count and name not in METRICS:
            lines.append(f"{name}: {count} of {pool['answers']} answers have no such score, and never win by it")
    return lines + _too_short(switches, first) + _longer(data)


def _too_short(switches: Switches, first: Outcome) -> list[str]:
    """Objectives that say little of texts as short as the median answer: of those that may be selected, and of the
    students'."""
    tally = first.selection.tally
    limits = [limit for limit in switches.rule.constraints if limit.name == "words"]
    words = tally.sample[:, tally.metrics.index("words")].tolist()
    lengths = {"among the answers to select from": [n for n in words if not any(c.violation(n) for c in limits)]}
    if first.rounds:
        answers = [row for arm in switches.arms for row in first.last(arm).answers]
        lengths["among the students' answers"] = [row["scores"]["words"] for row in answers]
    medians = {whose: statistics.median(found) for whose, found in lengths.items() if found}
    lines = []
    for name in dict.fromkeys(
        objective.name for objective in switches.rule.objectives if objective.name in METRICS
    ):
        least = METRICS[name].least_words
        if short := [f"{median:g} {whose}" for whose, median in medians.items() if median < least]:
            lines.append(
                f"{name} says little of texts below {least} words; the median is {' and '.join(short)}: ask for "
                f"longer answers, and select from those of --min-words {least}"
            )
    return lines


def _longer(data: Forecast) -> list[str]:
    """Whether length, which is not selected for, may explain a gain."""
    if any(name.startswith(("words:", "characters:", "tokens:")) for name in data.objectives):
        return []
    words = data.scores["words"]["selected - random"]
    low, high = words["ci95"] or (0.0, 0.0)
    if low <= 0 <= high:
        return []
    return [
        f"selected answers are {abs(words['value']):.1f} words {'longer' if low > 0 else 'shorter'} than random "
        "ones, which may explain a gain: --arms base,random,matched,selected has a student of equally long answers"
    ]
