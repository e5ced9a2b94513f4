"""The figures of a finished run: what `summary.json` holds, and what to know before relying on them."""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from common.results.conclusion import coarse, flat
from common.results.estimate import ArmResult, Estimate, Gain, as_json
from common.results.files import read_jsonl
from common.results.rundir import RunDir
from common.results.stats import gain, repeats_estimate, share_estimate
from reversegen.applications.base import Application, Row
from reversegen.explore import target_calls
from reversegen.loop import Repeat
from reversegen.targets import TOO_LONG, LabelCount

SCHEMA = 1
MAIN = "failures"
"""The set whose figures stand at the top of an arm's entry: failing queries of an independent proposer."""
NOUNS = {MAIN: "held-out failure", "test": "test question", "general": "general question"}
"""What the sets hold."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetResult(ArmResult):
    """A target on one set. `items`: questions in each repeat, whose mean is `n`; `further`: what the application
    measures beside its metric, by repeat."""

    items: tuple[int, ...]
    further: Mapping[str, tuple[float | None, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetResult(SetResult):
    """An arm by its figures on the held-out failures, and on all `sets`. `examples` and `updates` of its training
    are by repeat, `answers` the files of graded answers by set."""

    sets: Mapping[str, SetResult]
    examples: tuple[int, ...]
    updates: tuple[int, ...]
    answers: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetGain(Gain):
    """By how much target-after is ahead on the held-out failures, and on all `sets`."""

    sets: Mapping[str, Gain]


@dataclasses.dataclass(frozen=True)
class Discovery:
    """Share of valid, new failures in all queries sampled: of the warm-up proposer, of the best one at last, and
    how many times as many those are (None where a warm-up proposer found none)."""

    warm_up: Estimate
    final: Estimate
    ratio: Estimate | None


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an arm cost, summed over repeats: queries sampled, target answers while judging, labels asked for, and
    optimizer updates of the target."""

    queries: int
    target_calls: int
    labels_asked: int
    optimizer_updates: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The documented, versioned figures of a run (see README, "summary.json")."""

    schema: int
    method: str
    status: str
    task: str
    arms: Mapping[str, TargetResult]
    gains: Mapping[str, TargetGain]
    rounds: Sequence[Row]
    exploration: Discovery
    labels: Mapping[str, LabelCount]
    seeds_shared: int
    transfer: Sequence[Row]
    accounting: Mapping[str, Cost]

    @property
    def repeats(self) -> int:
        return len(self.arms["target-after"].examples)

    @property
    def sets(self) -> Sequence[str]:
        """Names of what every arm is measured on."""
        return list(self.arms["target-after"].sets)

    def stored(self) -> dict[str, Any]:
        """As in summary.json, where the application's figures stand beside its metric."""
        told = as_json(self)
        for entry in told["arms"].values():
            for figures in (entry, *entry["sets"].values()):
                figures |= figures.pop("further")
        return told


def summarise(run: RunDir, app: Application, arms: Sequence[str], repeats: Sequence[Repeat]) -> Summary:
    """The figures of those of `arms` that had something to learn from in every repeat."""
    names = [arm for arm in arms if all(arm in repeat.files for repeat in repeats)]
    kinds = list(repeats[0].files["target-before"])
    graded = {
        arm: {kind: [read_jsonl(run.path / repeat.files[arm][kind]) for repeat in repeats] for kind in kinds}
        for arm in names
    }
    results, gains = {}, {}
    for arm in names:
        sets = {kind: _on_set(app, graded[arm][kind]) for kind in kinds}
        results[arm] = TargetResult(
            **vars(sets[MAIN]),
            sets=sets,
            examples=tuple(repeat.examples[arm] for repeat in repeats),
            updates=tuple(repeat.updates[arm] for repeat in repeats),
            answers={kind: tuple(repeat.files[arm][kind] for repeat in repeats) for kind in kinds},
        )
        if arm != "target-after":
            ahead = {kind: _gain(graded["target-after"][kind], graded[arm][kind], kind) for kind in kinds}
            gains[f"target-after - {arm}"] = TargetGain(**vars(ahead[MAIN]), sets=ahead)
    rounds = [entry for repeat in repeats for entry in repeat.rounds]
    labelled = lambda name: [repeat.labelled[name] for repeat in repeats if name in repeat.labelled]
    return Summary(
        schema=SCHEMA,
        method="reversegen",
        status="complete",
        task=app.name,
        arms=results,
        gains=gains,
        rounds=rounds,
        exploration=discovery(rounds),
        labels={name: functools.reduce(operator.add, labelled(name)).count for name in repeats[0].labelled},
        seeds_shared=max(repeat.seeds_shared for repeat in repeats),
        transfer=[entry for repeat in repeats for entry in repeat.transfer],
        accounting={name: _cost(run, repeats, name) for name in names},
    )


def _shares(of_repeats: Sequence[list[Row]]) -> list[float]:
    """Share of right answers in every repeat."""
    return [sum(row["correct"] for row in rows) / len(rows) for rows in of_repeats]


def _on_set(app: Application, of_repeats: Sequence[list[Row]]) -> SetResult:
    items = tuple(len(rows) for rows in of_repeats)
    share = share_estimate(_shares(of_repeats), round(sum(items) / len(items)))
    more = [app.figures(rows) for rows in of_repeats]
    further = {name: tuple(figures[name] for figures in more) for name in more[0]}
    return SetResult(**vars(share), metric=app.metric, items=items, further=further)


def _gain(ours: Sequence[list[Row]], theirs: Sequence[list[Row]], kind: str) -> Gain:
    """Held-out failures are other questions in every repeat, so the bootstrap over both is for one repeat only."""
    correct = lambda of_repeats: [[row["correct"] for row in rows] for rows in of_repeats]
    found = gain(_shares(ours), _shares(theirs), correct(ours), correct(theirs))
    if kind != MAIN or len(ours) == 1:
        return found
    return dataclasses.replace(found, bootstrap95=None, items=sum(map(len, ours)))


def discovery(rounds: Sequence[Row]) -> Discovery:
    """Means over repeats, with Student's t interval where there are several."""
    own = [entry for entry in rounds if entry["explorer"] == "explore"]
    first = [entry["new_failure_rate"] for entry in own if entry["round"] == 0]
    last = [entry["new_failure_rate"] for entry in own if entry["round"] == "final"]
    # A ratio to nothing found is not defined, and without it the mean would be of other repeats than the shares.
    ratios = [b / a for a, b in zip(first, last, strict=True) if a]
    ratio = repeats_estimate(ratios) if len(ratios) == len(first) else None
    return Discovery(repeats_estimate(first), repeats_estimate(last), ratio)


def _cost(run: RunDir, repeats: Sequence[Repeat], arm: str) -> Cost:
    """The warm-up arms choose from one pool, which both are charged with."""
    pools = {"warm-up": "warm_up", "warm-up-failures": "warm_up", "few-shot": "few_shot"}
    queries = answers = 0
    for number, repeat in enumerate(repeats):
        if arm == "target-after":
            own = [entry for entry in repeat.rounds if entry["explorer"] == "explore"]
            queries += sum(entry["queries"] for entry in own)
            answers += sum(entry["target_calls"] for entry in own)
        elif arm in pools:
            rows = read_jsonl(run.path / f"repeat_{number}/controls/{pools[arm]}/queries.jsonl")
            queries += len(rows)
            answers += target_calls(rows)
    asked = sum(len(repeat.labelled[arm].asked) for repeat in repeats if arm in repeat.labelled)
    return Cost(queries, answers, asked, sum(repeat.updates[arm] for repeat in repeats))


def warnings(summary: Summary, arms: Sequence[str]) -> list[str]:
    """What the figures themselves give reason to doubt. `arms`: those that were asked for."""
    found = _alarms(summary.rounds)
    for entry in summary.rounds:
        if entry["stopped"]:
            found.append(f"{_place(entry)}: no preference training, {entry['stopped']}")
    found += one_verdict(summary.rounds)
    if summary.seeds_shared:
        found.append(
            f"the two proposers share {summary.seeds_shared} seeds in a repeat: for an independent one give twice "
            "as many as --seed-instructions"
        )
    if long := summary.labels["target-after"].refused.get(TOO_LONG):
        found.append(
            f"{long} of {summary.labels['target-after'].asked} labelled queries are longer with their labels than "
            "--max-length, or than the target takes, and were left out"
        )
    size = min(summary.arms["target-after"].examples)
    for name in arms:
        examples = min(summary.arms[name].examples) if name in summary.arms else None
        if examples is None:
            found.append(f"{name} had nothing to learn from and is left out")
        elif name not in ("target-before", "seed-only") and examples < size:
            found.append(f"{name} had {examples} examples, fewer than the {size} of target-after")
    for kind, noun in NOUNS.items():
        if kind in summary.sets:
            found += coarse(min(summary.arms["target-before"].sets[kind].items), noun)
    return found + flat({name: arm.sets["test"] for name, arm in summary.arms.items()})


def one_verdict(rounds: Sequence[Row]) -> list[str]:
    """A warning where the judge never varied."""
    rates = {entry["new_failure_rate"] for entry in rounds}
    if rates not in ({0.0}, {1.0}):
        return []
    told = "no query failed in any" if rates == {0.0} else "every query failed in every"
    return [f"{told} round: what judges the answers tells nothing apart"]


def _place(entry: Row) -> str:
    proposer = "proposer" if entry["explorer"] == "explore" else "independent proposer"
    number = "final queries" if entry["round"] == "final" else f"round {entry['round']}"
    return f"{proposer}, {number} of repeat {entry['repeat'] + 1}"


def _alarms(rounds: Sequence[Row]) -> list[str]:
    """Signs of collapse, one by one where they are few, else counted."""
    raised = [(entry, sign) for entry in rounds for sign in entry["alarm"]]
    if len(raised) <= 4:
        return [f"{_place(entry)}: its queries may have collapsed to a few ({sign})" for entry, sign in raised]
    count = lambda name: sum(entry["explorer"] == name and bool(entry["alarm"]) for entry in rounds)
    return [
        f"queries may have collapsed to a few in {count('explore')} rounds of the proposer and in "
        f'{count("independent")} of the independent one, of {len(rounds) // 2} each: see "alarm" in summary.json'
    ]
