"""Figures of the student: every metric of every arm on held-out prompts, changes, what of the data's came over.

figures = student_figures(switches, outcomes)       # one outcome a repeat, see `active_inheritance.outcome`
"""

import dataclasses
import math
import statistics
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from active_inheritance.outcome import Outcome, Round, Row, Student
from active_inheritance.select import Constraint
from active_inheritance.switches import Switches, measurable
from common.results.estimate import ArmResult, Estimate, wide
from common.results.stats import Interval, bootstrap_ci95, mean_ci95
from common.text.diversity import self_bleu

Table = NDArray[np.float64]
"""(repeats, prompts) of one metric; NaN where no answer has it."""

AGAINST = "random"
"""The arm that tells selection from distillation."""
LEAST = 0.1
"""Change of the data in their standard deviations below which a transfer ratio would be noise over noise."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """How much a set of texts resemble each other: self-BLEU of 200 of them, and bytes of all over their bytes
    after zlib. Both are higher the more alike they are; None for too few texts."""

    self_bleu: float | None
    compression_ratio: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm(ArmResult):
    """An arm by the main metric, after the last `round` that it has; lists hold a value a repeat.

    `metrics`: every score. `drift`: see `drift_figure`. `feasible_share`: of answers that meet the constraints.
    `examples`, `tokens`, `cut`: answers it learned, their tokens, and how many of them were cut.
    """

    metrics: dict[str, Estimate]
    drift: Estimate | None
    truncated_share: list[float]
    empty_share: list[float]
    feasible_share: list[float]
    corpus: list[Corpus]
    round: int | None
    updates: list[int]
    examples: list[int]
    tokens: list[int]
    cut: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change(Estimate):
    """One arm minus another, prompt by prompt; `relative` to the other's value."""

    relative: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmChange(Change):
    """In the main metric, and in all `metrics`."""

    metrics: dict[str, Change]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Selected minus random of what was learned (`data`) and of the students' answers, and `ratio`, the students'
    change over the data's; None where the data changed by less than `LEAST` of the spread of random answers."""

    data: float | None
    data_per_repeat: list[float | None]
    student: float | None
    ratio: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundArm(ArmResult):
    """A lineage after a round; lists hold a value a repeat. `pool`, `within_prompt_spread`, `prompts`: of the pool
    that was selected from; `learned`: the main metric of what was learned; `sampling`: what its answers cost."""

    drift: Estimate
    pool: list[float | None]
    within_prompt_spread: list[float | None]
    learned: list[float | None]
    prompts: list[int]
    data_corpus: list[Corpus]
    corpus: list[Corpus]
    sampling: list[Row | None]


@dataclasses.dataclass(frozen=True)
class RoundFigures:
    """`gain`: selected minus random in the main metric."""

    round: int
    arms: dict[str, RoundArm]
    gain: Estimate


@dataclasses.dataclass(frozen=True)
class StudentFigures:
    """What the students became; no rounds where there is one."""

    arms: dict[str, Arm]
    gains: dict[str, ArmChange]
    transfer: dict[str, Transfer]
    rounds: list[RoundFigures]


def student_figures(switches: Switches, outcomes: Sequence[Outcome]) -> StudentFigures:
    """The figures of all repeats, every arm after the last round that it has."""
    names, main = measurable(switches.scoring.names), switches.measured[0]
    limits = [limit for limit in switches.rule.constraints if limit.name in names]
    of_arms = {arm: [outcome.last(arm) for outcome in outcomes] for arm in switches.arms}
    tables = {
        arm: {name: _table([student.answers for student in found], name) for name in names}
        for arm, found in of_arms.items()
    }
    pairs = [("selected", arm) for arm in of_arms if arm != "selected"]
    pairs += [(arm, "base") for arm in of_arms if arm not in ("base", "selected")]
    # Arms of different rounds have not learned equally often and are not compared.
    rounds = {arm: found[0].round for arm, found in of_arms.items()}
    pairs = [(a, b) for a, b in pairs if b == "base" or rounds[a] == rounds[b]]
    gains = {f"{a} - {b}": _change(tables[a], tables[b], main) for a, b in pairs}
    learned = {arm: [student.learned for student in of_arms[arm]] for arm in ("selected", AGAINST)}
    return StudentFigures(
        arms={arm: _arm(main, tables[arm], found, limits) for arm, found in of_arms.items()},
        gains=gains,
        transfer={name: _transfer(learned, gains[f"selected - {AGAINST}"], name) for name in names},
        rounds=_rounds(main, outcomes) if switches.rounds > 1 else [],
    )


def _arm(main: str, tables: Mapping[str, Table], found: Sequence[Student], limits: Sequence[Constraint]) -> Arm:
    """An arm from its students, one a repeat."""
    metrics = {name: _estimate(table) for name, table in tables.items()}
    share = lambda test: [sum(map(test, student.answers)) / len(student.answers) for student in found]
    return Arm(
        metric=main,
        **vars(metrics[main]),
        metrics=metrics,
        drift=None if found[0].round is None else drift_figure([student.drift for student in found]),
        truncated_share=share(lambda row: row["truncated"]),
        empty_share=share(lambda row: not row["answer"].strip()),
        feasible_share=share(lambda row: all(not c.violation(row["scores"][c.name]) for c in limits)),
        corpus=[corpus_figures([row["answer"] for row in student.answers]) for student in found],
        round=found[0].round,
        updates=[student.updates for student in found],
        examples=[len(student.learned) for student in found],
        tokens=[sum(row["tokens"] for row in student.learned) for student in found],
        cut=[sum(row["cut"] for row in student.learned) for student in found],
    )


def drift_figure(of_repeats: Sequence[Sequence[Row]]) -> Estimate:
    """Nats a token by which the student finds its own answers likelier than the base does: Kullback-Leibler
    divergence where it answered at temperature 1. Over repeats; of one repeat a bootstrap over prompts."""
    values: list[float] = []
    for rows in of_repeats:
        tokens = sum(row["tokens"] for row in rows)
        values.append(sum(row["logp"] - row["base_logp"] for row in rows) / tokens if tokens else math.nan)

    def over_prompts() -> Interval:
        by_prompt: dict[str, list[float]] = {}
        for row in of_repeats[0]:
            total = by_prompt.setdefault(row["id"], [0.0, 0.0])
            total[0], total[1] = total[0] + row["logp"] - row["base_logp"], total[1] + row["tokens"]
        sums = np.array(list(by_prompt.values()))
        drawn = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
        ratios = sums[drawn].sum(axis=1)
        low, high = np.quantile(ratios[:, 0] / ratios[:, 1], [0.025, 0.975]).tolist()
        return values[0], low, high

    return _over_repeats(values, over_prompts)


def _over_repeats(values: Sequence[float], single: Callable[[], Interval], n: int | None = None) -> Estimate:
    """Student's t over repeats; of one repeat, or where all gave the same, what `single` gives of the first. No
    interval where that has no width, as of one prompt. Undefined where a value is NaN, or `n` is 0."""
    per_repeat = tuple(None if math.isnan(value) else value for value in values)
    if None in per_repeat or n == 0:
        return Estimate(value=None, ci95=None, n=n, per_repeat=per_repeat)
    value, *interval = mean_ci95(values) if len(values) > 1 else single()
    if not wide(interval):
        value, *interval = single()
    ci95 = (interval[0], interval[1]) if wide(interval) else None
    return Estimate(value=value, ci95=ci95, n=n, per_repeat=per_repeat)


def _rounds(main: str, outcomes: Sequence[Outcome]) -> list[RoundFigures]:
    """Round by round the lineages' main metric, drift and how alike answers are, so that a loop that feeds on
    itself is seen to narrow."""
    entries = []
    for number, found in enumerate(zip(*(outcome.rounds for outcome in outcomes), strict=True)):
        tables = {arm: _table([f.students[arm].answers for f in found], main) for arm in (AGAINST, "selected")}
        arms = {arm: _round_arm(main, table, arm, found) for arm, table in tables.items()}
        entries.append(RoundFigures(number, arms, _estimate(tables["selected"] - tables[AGAINST])))
    return entries


def _round_arm(main: str, table: Table, arm: str, found: Sequence[Round]) -> RoundArm:
    """`found`: the round in every repeat."""
    tallies = [f.selections[arm].tally for f in found]
    students = [f.students[arm] for f in found]
    place = tallies[0].metrics.index(main)
    mean = lambda x: float(np.nanmean(x)) if np.isfinite(x).any() else None
    return RoundArm(
        metric=main,
        **vars(_estimate(table)),
        drift=drift_figure([student.drift for student in students]),
        pool=[mean(tally.pool[:, place]) for tally in tallies],
        within_prompt_spread=[mean(tally.spread[:, place]) for tally in tallies],
        learned=[mean(np.array([r["scores"][main] for r in s.learned], np.float64)) for s in students],
        prompts=[len(tally.pool) for tally in tallies],
        data_corpus=[corpus_figures([row["answer"] for row in s.learned]) for s in students],
        corpus=[corpus_figures([row["answer"] for row in s.answers]) for s in students],
        sampling=[f.sampling.get(arm) for f in found],
    )


def _table(of_repeats: Sequence[Sequence[Row]], name: str) -> Table:
    """(repeats, prompts): the mean over a prompt's answers that have the score; NaN without any."""
    rows = []
    for answers in of_repeats:
        by_prompt: dict[str, list[float]] = {}
        for row in answers:
            values = by_prompt.setdefault(row["id"], [])
            if row["scores"][name] is not None:
                values.append(row["scores"][name])
        rows.append([statistics.fmean(values) if values else math.nan for values in by_prompt.values()])
    return np.array(rows, np.float64)


def _estimate(table: Table) -> Estimate:
    """Of a table, or a difference of two: Student's t over repeats; of one repeat the bootstrap over prompts."""
    values = [float(np.mean(row[np.isfinite(row)])) if np.isfinite(row).any() else math.nan for row in table]
    n = int(np.isfinite(table).all(axis=0).sum())
    return _over_repeats(values, lambda: bootstrap_ci95(table[0][np.isfinite(table[0])]), n)


def _change(ours: Mapping[str, Table], theirs: Mapping[str, Table], main: str) -> ArmChange:
    """Differences prompt by prompt in every metric."""
    metrics = {}
    for name in ours:
        entry, base = _estimate(ours[name] - theirs[name]), _estimate(theirs[name]).value
        relative = entry.value / abs(base) if base and entry.value is not None else None
        metrics[name] = Change(**vars(entry), relative=relative)
    return ArmChange(**vars(metrics[main]), metrics=metrics)


def _transfer(learned: Mapping[str, Sequence[Sequence[Row]]], gain: ArmChange, name: str) -> Transfer:
    """How much of the change of what was learned, selected against random, is in the students': means over
    repeats."""
    per_repeat: list[float | None] = []
    spreads = []
    for rows in zip(learned["selected"], learned[AGAINST], strict=True):
        ours, theirs = ([v for row in own if (v := row["scores"][name]) is not None] for own in rows)
        per_repeat.append(statistics.fmean(ours) - statistics.fmean(theirs) if ours and theirs else None)
        spreads.append(statistics.pstdev(theirs) if theirs else 0.0)
    defined = [value for value in per_repeat if value is not None]
    data = statistics.fmean(defined) if len(defined) == len(per_repeat) else None
    student = gain.metrics[name].value
    ratio = None
    if data is not None and student is not None and abs(data) > LEAST * statistics.fmean(spreads):
        ratio = student / data
    return Transfer(data, per_repeat, student, ratio)


def corpus_figures(texts: Sequence[str]) -> Corpus:
    """How much the texts resemble each other."""
    whole = "\n".join(texts).encode("utf-8", "replace")
    return Corpus(
        self_bleu=self_bleu(texts) if len(texts) > 1 else None,
        compression_ratio=len(whole) / len(zlib.compress(whole, 9)) if whole else None,
    )
