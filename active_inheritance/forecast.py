"""What a selection does to the data, known before a student is trained on it.

    found = tally(names, rule, rows, choices, stride=1)   # sums over a part of a pool
    figures = forecast(rule, Tally.joined([found, …]))    # lifts, side effects, correlations, a sweep over k

Answers of one prompt are compared with one another: a spread is the standard deviation within a prompt, averaged
over prompts, and so are correlations. Of a pool of any size this keeps some numbers a prompt and no text.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from active_inheritance.select import ARMS, Choice, Objective, Rule
from common.results.estimate import wide

Array = NDArray[np.float64]
Sums = collections.defaultdict[str, float]
"""Counts and sums by name; what was not counted is 0."""

LONGEST_SWEEP = 64
"""The largest k of the sweep."""


@functools.cache
def expected_max(k: int) -> float:
    """E[max] of k independent standard normals, ∫ x · k φ(x) Φ(x)^(k-1) dx: 1.539 for 10 (Tippett 1925)."""
    from scipy.special import log_ndtr  # scipy is a dependency of jax

    x = np.linspace(-12.0, 12.0, 24_001)
    # By way of logarithms, as a high power of Φ(x) is too small for a float on the left.
    density = k * np.exp(-x * x / 2 + (k - 1) * log_ndtr(x)) / math.sqrt(2 * math.pi)
    return float(np.trapezoid(x * density, x))


def kl_bound(k: float, one_score: bool = True) -> float:
    """Nats by which a choice of one of k drawn answers is at most further from what they were drawn from.

    `one_score`: the best by one score of k independent draws from one source, ln k - (k - 1) / k (Beirami et al.
    2024, arXiv 2401.01879). Otherwise ln k, whatever is chosen by: a chosen answer is one of the k, so that none
    is more than k times as likely as in the mean of their sources.
    """
    return math.log(k) - ((k - 1) / k if one_score else 0.0)


@functools.cache
def best_of(n: int, feasible: int, fallback: str, longest: int = LONGEST_SWEEP) -> Array:
    """The chance (longest, n) that of k = 1, 2, … answers drawn from n without replacement, the one of rank r is
    the best: C(n-1-r, k-1) / C(n, k). The first `feasible` ranks meet the constraints; a draw without any of them
    takes the next ("violation"), any ("baseline") or none: then rows sum to the chance of being kept ("drop"). k
    above n is n."""
    table = np.zeros((longest, n))
    for row, k in enumerate(min(k, n) for k in range(1, longest + 1)):
        table[row] = [math.comb(n - 1 - r, k - 1) / math.comb(n, k) for r in range(n)]
    rest = table[:, feasible:].sum(axis=1, keepdims=True)
    if fallback == "baseline" and feasible < n:
        table[:, feasible:] = rest / (n - feasible)
    elif fallback == "drop":
        table[:, feasible:] = 0
    return table


# --- sums over a part -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Tally:
    """Of P prompts that every arm has, M scores, the arms A of `select.ARMS` and J objectives."""

    metrics: tuple[str, ...]
    pool: Array  # (P, M) mean over the usable answers
    spread: Array  # (P, M) standard deviation over them; NaN for one answer
    feasible: Array  # (P, M) mean over the feasible ones; NaN without any
    feasible_spread: Array  # (P, M)
    sizes: Array  # (P, 3) usable, feasible, drawn
    best: Array  # (P, J) the best score of a usable answer by each objective alone
    arms: Array  # (P, A, M) mean over what an arm takes
    products: Array  # (M, M) products of deviations from the prompt's mean
    squares: Array  # (M, M) squares of the row's, where the column's score is there, too
    sweep: Array  # (2, LONGEST_SWEEP, M) expected scores of the best of k, and how many prompts have them
    sample: Array  # (S, M) answers of some prompts, for pictures
    sample_of: NDArray[np.int64]  # (S,) the prompt of each
    reasons: collections.Counter
    sources: dict[str, Sums]
    """By source: "usable", its picks by each arm, "chance" (expected picks of a uniform draw), sums of
    objectives."""

    @classmethod
    def joined(cls, parts: Sequence["Tally"]) -> "Tally":
        """The sums over all parts."""
        offsets = np.cumsum([0, *(len(part.pool) for part in parts)])
        sources: dict[str, Sums] = {}
        for part in parts:
            for source, count in part.sources.items():
                total = sources.setdefault(source, collections.defaultdict(int))
                for name, value in count.items():
                    total[name] += value
        of = lambda name: [getattr(part, name) for part in parts]
        stacked = ("pool", "spread", "feasible", "feasible_spread", "sizes", "best", "arms", "sample")
        return cls(
            metrics=parts[0].metrics,
            **{name: np.concatenate(of(name)) for name in stacked},
            **{name: functools.reduce(np.add, of(name)) for name in ("products", "squares", "sweep")},
            sample_of=np.concatenate([p.sample_of + o for p, o in zip(parts, offsets, strict=False)]),
            reasons=sum(of("reasons"), collections.Counter()),
            sources={source: sources[source] for source in sorted(sources)},
        )

    def arm(self, name: str) -> Array:
        """(P, M)"""
        return self.arms[:, ARMS.index(name)]


def tally(
    metrics: tuple[str, ...],
    rule: Rule,
    rows: Sequence[dict[str, Any]],
    choices: Sequence[Choice | None],
    stride: int,
) -> Tally:
    """The sums over some prompts by the scores `metrics`; every `stride`th prompt goes into the pictures."""
    reasons = collections.Counter("nothing usable" if choice is None else choice.reason for choice in choices)
    kept = [(row, choice) for row, choice in zip(rows, choices, strict=True) if choice and choice.selected]
    P, M, J = len(kept), len(metrics), len(rule.objectives)
    n_max = max((len(choice.order) for _, choice in kept), default=1)
    values = np.full((P, n_max, M), np.nan)  # best first
    sizes, arms = np.zeros((P, 3)), np.full((P, len(ARMS), M), np.nan)
    for p, (row, choice) in enumerate(kept):
        table = np.array([[a["scores"][name] for name in metrics] for a in row["answers"]], np.float64)
        values[p, : len(choice.order)] = table[list(choice.order)]
        sizes[p] = len(choice.order), choice.feasible, len(row["answers"])
        for a, name in enumerate(ARMS):
            arms[p, a] = _mean(table[list(choice.arm(name))], 0)
    is_feasible = np.arange(n_max) < sizes[:, 1:2]
    pool = _mean(values, 1)
    deviations = values - pool[:, None]
    there = np.isfinite(deviations).reshape(-1, M).astype(np.float64)
    flat = np.nan_to_num(deviations).reshape(-1, M)
    feasible = np.where(is_feasible[..., None], values, np.nan)
    columns = [metrics.index(o.name) for o in rule.objectives]
    best = np.stack([_best(o, values[:, :, c]) for o, c in zip(rule.objectives, columns, strict=True)], 1)
    picked = list(range(0, P, stride))
    return Tally(
        metrics=metrics,
        pool=pool,
        spread=_deviation(values),
        feasible=_mean(feasible, 1),
        feasible_spread=_deviation(feasible),
        sizes=sizes,
        best=best.reshape(P, J),
        arms=arms,
        products=flat.T @ flat,
        squares=(flat * flat).T @ there,
        sweep=_sweep(values, sizes[:, :2], rule.fallback),
        sample=np.concatenate([values[p, : int(sizes[p, 0])] for p in picked] or [np.zeros((0, M))]),
        sample_of=np.repeat(np.array(picked, np.int64), sizes[picked, 0].astype(int)),
        reasons=reasons,
        sources=_by_source(kept, rule.objectives),
    )


def _mean(values: Array, axis: int) -> Array:
    """Means of the numbers among `values`, NaN where there are none, without a warning."""
    there = np.isfinite(values)
    count = there.sum(axis)
    return np.where(count > 0, np.where(there, values, 0).sum(axis) / np.maximum(count, 1), np.nan)


def _deviation(values: Array) -> Array:
    """(P, n, M) to (P, M): standard deviations with n - 1; NaN for fewer than two numbers."""
    there = np.isfinite(values)
    count = there.sum(1)
    squares = np.where(there, values - _mean(values, 1)[:, None], 0.0) ** 2
    return np.where(count > 1, np.sqrt(squares.sum(1) / np.maximum(count - 1, 1)), np.nan)


def _best(objective: Objective, values: Array) -> Array:
    """(P, n) to (P,): the score of the answer that the objective alone would take."""
    gains = {"max": values, "min": -values}.get(objective.direction, -np.abs(values - objective.target))
    place = np.argmax(np.where(np.isfinite(gains), gains, -np.inf), axis=1)
    return np.take_along_axis(values, place[:, None], 1)[:, 0]


def _sweep(values: Array, sizes: Array, fallback: str) -> Array:
    total = np.zeros((2, LONGEST_SWEEP, values.shape[2]))
    # Prompts of equal sizes share one table of chances.
    for n, feasible in sorted({(int(n), int(f)) for n, f in sizes}):
        alike = values[(sizes == (n, feasible)).all(axis=1), :n]
        chances = best_of(n, feasible, fallback)
        total[0] += chances @ np.nan_to_num(alike).sum(axis=0)
        total[1] += chances @ np.isfinite(alike).sum(axis=0)
    return total


def _by_source(kept: Sequence[tuple[dict[str, Any], Choice]], objectives: Sequence[Objective]) -> dict[str, Sums]:
    sources: dict[str, Sums] = {}
    of = lambda source: sources.setdefault(source, collections.defaultdict(int))
    for row, choice in kept:
        for i in choice.order:
            answer = row["answers"][i]
            count = of(answer["source"])
            count["usable"] += 1
            count["chance"] += len(choice.selected) / len(choice.order)
            for objective in objectives:
                value = answer["scores"][objective.name]
                count[f"sum {objective.name}"] += value or 0.0
                count[f"scored {objective.name}"] += value is not None
        for arm in ARMS:
            for i in choice.arm(arm):
                of(row["answers"][i]["source"])[arm] += 1  # the first answer may be an unused twin of another
    return sources


# --- figures -----------------------------------------------------------------------------------------------------


def column_intervals(columns: ArrayLike, seed: int = 0, samples: int = 2000) -> list[tuple[float, float, float]]:
    """The mean of every column of (P, M) and its 95% percentile bootstrap interval over the P rows, as
    `bootstrap_ci95` gives it; one set of draws serves all columns. NaN is left out; a column of nothing else gives
    NaN."""
    x = np.asarray(columns, np.float64)
    there = np.isfinite(x).astype(np.float64)
    filled = np.where(there > 0, x, 0.0)
    rng = np.random.default_rng(seed)
    means = np.empty((samples, x.shape[1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        for i in range(samples):
            # How often each row is drawn, instead of the rows: one product then serves all columns.
            times = np.bincount(rng.integers(len(x), size=len(x)), minlength=len(x)).astype(np.float64)
            means[i] = (times @ filled) / (times @ there)
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
        mean = filled.sum(axis=0) / there.sum(axis=0)
    return [(float(m), float(lo), float(hi)) for m, lo, hi in zip(mean, low, high, strict=True)]


@dataclasses.dataclass(frozen=True)
class ObjectiveFigures:
    """What was to be expected of an objective alone, and what came of it; lifts are over the mean of the pool, in
    the score's unit. `without_spread_share`: of prompts. `headroom`: from the selected to the best of the pool."""

    pool: float | None
    within_prompt_spread: float | None
    without_spread_share: float
    lift_predicted: float | None
    lift_realised: float | None
    best_of_pool: float | None
    headroom: float | None


@dataclasses.dataclass(frozen=True)
class Forecast:
    """All figures about the data. A figure that is not defined is None.

    `scores`: by score its mean in the pool and in the arms, and by how much the selected answers differ.
    `correlations`: Pearson's, of scores of one prompt's usable answers. `sweep`: see `_sweep_figures`. `sources`:
    how often each arm takes answers of a source.
    """

    prompts: int
    answers_usable: int
    infeasible_share: float
    kl_bound_nats: float
    expected_max_sigma: float
    reasons: dict[str, int]
    objectives: dict[str, ObjectiveFigures]
    scores: dict[str, dict[str, Any]]
    correlations: dict[str, dict[str, float | None]]
    sweep: dict[str, Any]
    sources: dict[str, dict[str, Any]]


def forecast(rule: Rule, found: Tally, independent: bool = True) -> Forecast:
    """The figures of a selection by `rule`. `independent`: whether a source's answers were drawn independently of
    one another, not by one search."""
    usable = found.sizes[:, 0]
    # One score: every prompt has the best of independent draws from one source. Constraints and guards count as
    # the lowest score, but the pick of a combination depends on the other answers.
    one_score = len(found.sources) == 1 and len(rule.objectives) == 1 and independent
    return Forecast(
        prompts=len(found.pool),
        answers_usable=int(usable.sum()),
        infeasible_share=float((found.sizes[:, 1] == 0).mean()),
        kl_bound_nats=float(np.mean([kl_bound(n, one_score) for n in found.sizes[:, 2]])),
        expected_max_sigma=float(np.mean([expected_max(int(n)) for n in usable])),
        reasons=dict(sorted(found.reasons.items())),
        objectives={
            str(objective): _objective(objective, found, found.best[:, j])
            for j, objective in enumerate(rule.objectives)
        },
        scores=_scores(rule.seed, found),
        correlations=_correlations(found),
        sweep=_sweep_figures(found, len(rule.objectives) == 1, one_score),
        sources=_source_figures(rule.objectives, found),
    )


def _objective(objective: Objective, found: Tally, best: Array) -> ObjectiveFigures:
    """`best`: (P,) the best score of each prompt by this objective alone."""
    mean = lambda x: _plain(float(_mean(x, 0)))
    m = found.metrics.index(objective.name)
    pool, selected = found.pool[:, m], found.arm("selected")[:, m]
    sign = {"max": 1, "min": -1}.get(objective.direction)
    headroom = np.abs(best - selected)
    if sign is None:
        # Of a target the distances count, and the smaller one is the better.
        headroom = np.abs(selected - objective.target) - np.abs(best - objective.target)
    return ObjectiveFigures(
        pool=mean(pool),
        within_prompt_spread=mean(found.spread[:, m]),
        without_spread_share=float(np.mean(~(found.spread[:, m] > 0))),
        lift_predicted=None if sign is None else _plain(_predicted(found, m, sign)),
        lift_realised=mean(selected - pool),
        best_of_pool=mean(best),
        headroom=mean(headroom),
    )


def _predicted(found: Tally, m: int, sign: int) -> float:
    """The lift if scores of a prompt's feasible answers were normal: their mean plus E[max of so many] of their
    standard deviations, over the mean of the pool. The fallback's answers count as the mean."""
    feasible = found.sizes[:, 1].astype(int)
    sigmas = np.array([expected_max(n) if n > 1 else 0.0 for n in feasible])
    spread = np.where(feasible > 1, np.nan_to_num(found.feasible_spread[:, m]), 0.0)
    mean = np.where(feasible > 0, found.feasible[:, m], found.pool[:, m])
    return float(_mean(mean + sign * sigmas * spread - found.pool[:, m], 0))


def _scores(seed: int, found: Tally) -> dict[str, Any]:
    """By score: its mean in the pool and in the arms, and by how much the selected answers differ."""
    selected, against = found.arm("selected"), {arm: found.arm(arm) for arm in ARMS if arm != "selected"}
    intervals = {
        name: column_intervals(selected - other, seed) for name, other in {"pool": found.pool, **against}.items()
    }
    entries = {}
    for m, name in enumerate(found.metrics):
        mean = lambda x, m=m: np.mean(x[np.isfinite(x[:, m]), m]) if np.isfinite(x[:, m]).any() else None
        entry = {"pool": mean(found.pool), "feasible": mean(found.feasible), "spread": mean(found.spread)}
        entry |= {arm: mean(found.arm(arm)) for arm in ARMS}
        for other, of_columns in intervals.items():
            value, low, high = of_columns[m]
            base = entry[other]
            entry[f"selected - {other}"] = {
                "value": value,
                # Few prompts have the score, or one alone.
                "ci95": [low, high] if math.isfinite(low + high) and wide((low, high)) else None,
                "relative": value / abs(base) if base else None,
            }
        entries[name] = _plain(entry)
    return entries


def _correlations(found: Tally) -> dict[str, dict[str, float | None]]:
    """Pearson's, of scores of one prompt's usable answers."""
    with np.errstate(invalid="ignore", divide="ignore"):
        table = found.products / np.sqrt(found.squares * found.squares.T)
    names = found.metrics
    return _plain({a: {b: table[i, j] for j, b in enumerate(names)} for i, a in enumerate(names)})


def _sweep_figures(found: Tally, exact: bool, one_score: bool) -> dict[str, Any]:
    """Expected scores of the best of k = 1, 2, … answers, over all ways to draw k of each prompt's usable ones:
    what a smaller pool would have given. Prompts with fewer than k count with all they have.

    The best is that of the full pool's ranking: "exact" for one objective; a combination of several would rank
    the answers of a smaller pool anew. With a temperature or several answers taken it is still the one best.
    """
    longest = int(min(found.sizes[:, 0].max(), LONGEST_SWEEP))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (found.sweep[0] / found.sweep[1])[:longest]
    return _plain(
        {
            "k": list(range(1, longest + 1)),
            "scores": {name: list(means[:, m]) for m, name in enumerate(found.metrics)},
            "exact": exact,
            "kl_bound_nats": [kl_bound(k, one_score) for k in range(1, longest + 1)],
        }
    )


def _source_figures(objectives: Sequence[Objective], found: Tally) -> dict[str, Any]:
    """By source, how often each arm takes it, what a uniform draw would take, and the means of the objectives."""
    taken = {arm: sum(count[arm] for count in found.sources.values()) for arm in ARMS}
    chances = sum(count["chance"] for count in found.sources.values())
    entries = {}
    for source, count in found.sources.items():
        entries[source] = {
            "usable": count["usable"],
            "wins": count["selected"],
            **{f"{arm}_share": count[arm] / taken[arm] for arm in ARMS},
            "chance_share": count["chance"] / chances,
        }
        for name in (objective.name for objective in objectives):
            scored = count[f"scored {name}"]
            entries[source][f"mean {name}"] = count[f"sum {name}"] / scored if scored else None
    return _plain(entries)


def _plain(value: Any) -> Any:
    """Numbers of Python's own, None for what is none."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
