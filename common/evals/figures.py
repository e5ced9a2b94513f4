"""A figure of a profile: value, interval, number of items, and what it was measured with; and the change from one
model's figure to another's.

    before = mean_figure([0.2, 0.4], Scorer("common.text.textstats.ttr", "clean, seedloop 0.1.0"))
    # {"value": 0.3, "ci95": [0.2, 0.4], "n": 2, "scorer": "common.text.textstats.ttr", "version": …}
    changes({"ttr": before}, {"ttr": after})
    # {"ttr": {"absolute": 0.1, "ci95": [0.0, 0.2], "relative": 33.3333, "n": 2}}

Intervals cover 95%, by the percentile bootstrap over items (Efron and Tibshirani 1993, chapter 13); those of a
change draw the same items for both models.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from common.results.rundir import VERSION
from common.results.stats import bootstrap_ci95

DIGITS = 4
"""Decimals of a figure: with another batch size it may differ in the eighth."""
SAMPLES = 1000
"""Bootstrap samples of a figure that is not a mean, and of a change."""

Measure = Callable[[np.ndarray], dict[str, float]]
"""Figures by name of the units at the given places, which may come several times."""


@dataclasses.dataclass(frozen=True)
class Scorer:
    """What gave the scores behind a figure, stored with it."""

    name: str
    version: str = f"seedloop {VERSION}"


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """What figures were measured on, to measure them again on a part: the names of the units (prompts, questions,
    target terms, …; the same for every model), and the measure of units by their places in that order."""

    units: tuple[Hashable, ...]
    measure: Measure


class Figure(dict[str, Any]):
    """An entry of `summary.json`. Beside what is stored, `sample` and the `name` in its measure; None for a figure
    that cannot be measured on drawn units."""

    sample: Sample | None = None
    name: str = ""


def figure(value: float | None, ci95: Sequence[float] | None, n: int, scorer: Scorer, **more: Any) -> Figure:
    """A figure without a sample. `n`: items that the value is of; a value that is not defined is None."""
    defined = value is not None and math.isfinite(value)
    interval = None if not defined or ci95 is None else [round(float(x), DIGITS) for x in ci95]
    if interval is not None and not all(map(math.isfinite, interval)):
        interval = None
    about = {"scorer": scorer.name, "version": scorer.version}
    shown = round(float(value), DIGITS) if defined else None
    return Figure({"value": shown, "ci95": interval, "n": n} | about | more)


def mean_figure(
    values: Sequence[float | None],
    scorer: Scorer,
    seed: int = 0,
    scale: float = 1.0,
    units: Sequence[Hashable] | None = None,
    **more: Any,
) -> Figure:
    """`scale` times the mean of those of `values` that are finite; None of none, and no interval of one.

    `units`: the name of the item of each value, by default its place.
    """
    named = [
        (unit, scale * value)
        for unit, value in zip(range(len(values)) if units is None else units, values, strict=True)
        if value is not None and math.isfinite(value)
    ]
    if not named:
        return figure(None, None, 0, scorer, **more)
    names, finite = zip(*named, strict=True)
    column = np.asarray(finite, np.float64)
    value, *interval = bootstrap_ci95(finite, seed) if len(finite) > 1 else finite
    found = figure(value, interval or None, len(finite), scorer, **more)
    found.sample = Sample(names, lambda drawn: {"": float(column[drawn].mean())})
    return found


def drawn_figures(
    measure: Measure,
    units: int | Sequence[Hashable],
    n: int | Mapping[str, int],
    scorer: Scorer,
    seed: int = 0,
    **more: Any,
) -> dict[str, Figure]:
    """Several figures of the same `units`, by name, with intervals from one bootstrap over the units.

    `measure` takes the places of the units that were drawn, all of them in order for the value itself. NaN in a
    sample (a share of nothing) is left out of the interval; one unit has none. `units`: their names, or how many
    there are. `n`: items that the units are of, or those behind each figure.
    """
    names = tuple(range(units) if isinstance(units, int) else units)
    if not names:
        return {}
    sample, found = Sample(names, measure), {}
    values, columns = _bootstrap(measure, len(names), seed)
    for name, value in values.items():
        count = n if isinstance(n, int) else n[name]
        found[name] = figure(value, _interval(columns[name]), count, scorer, **more)
        found[name].sample, found[name].name = sample, name
    return found


def _bootstrap(measure: Measure, units: int, seed: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The figures of all units, and those of every sample; of one unit there are no samples."""
    values = measure(np.arange(units))
    rng = np.random.default_rng(seed)
    samples = [measure(rng.integers(units, size=units)) for _ in range(SAMPLES if units > 1 else 0)]
    return values, {name: np.array([sample[name] for sample in samples], np.float64) for name in values}


def _interval(column: np.ndarray) -> list[float] | None:
    column = column[np.isfinite(column)]
    return np.quantile(column, [0.025, 0.975]).tolist() if len(column) else None


def relative_change(before: float, after: float) -> float:
    """(after - before) / before in per cent; NaN where `before` is 0."""
    return 100 * (after - before) / before if before else math.nan


Change = dict[str, Any]
"""`absolute`, in the figure's unit, with `ci95`; `relative` in per cent; `n` units that were compared. None where
they are not defined."""


def changes(before: Mapping[str, Figure], after: Mapping[str, Figure], seed: int = 0) -> dict[str, Change]:
    """The change of every figure that both have, over the units that both were measured on.

    A unit that one model has no value of (a prompt too long for it, a text without sentences) is left out for the
    other as well. The interval is from a bootstrap that draws the same units for both. A figure without a sample
    has the plain difference, and neither interval nor `n`.
    """
    alike: dict[tuple[int, int], list[str]] = {}
    found: dict[str, Change] = {}
    for key in before:
        if key in after:
            one, two = before[key].sample, after[key].sample
            if one is not None and two is not None:
                alike.setdefault((id(one), id(two)), []).append(key)
            found[key] = _change(before[key]["value"], after[key]["value"], None, None)
    for keys in alike.values():
        found |= _paired(keys, before, after, seed)
    return found


def _paired(
    keys: Sequence[str], before: Mapping[str, Figure], after: Mapping[str, Figure], seed: int
) -> dict[str, Change]:
    """The changes of figures that share their samples, from one bootstrap."""
    one, two = before[keys[0]].sample, after[keys[0]].sample
    at = {unit: place for place, unit in enumerate(two.units)}
    common = [(place, at[unit]) for place, unit in enumerate(one.units) if unit in at]
    if not common:
        return {key: _change(None, None, None, 0) for key in keys}
    ours, theirs = (np.array(places) for places in zip(*common, strict=True))

    old, new = one.measure(ours), two.measure(theirs)

    def gains(drawn: np.ndarray) -> dict[str, float]:
        was, became = one.measure(ours[drawn]), two.measure(theirs[drawn])
        return {key: became[after[key].name] - was[before[key].name] for key in keys}

    _, columns = _bootstrap(gains, len(common), seed)
    return {
        key: _change(old[before[key].name], new[after[key].name], _interval(columns[key]), len(common))
        for key in keys
    }


def _change(old: float | None, new: float | None, ci95: Sequence[float] | None, n: int | None) -> Change:
    if old is None or new is None or not math.isfinite(new - old):
        return {"absolute": None, "ci95": None, "relative": None, "n": n}
    relative = relative_change(round(old, DIGITS), round(new, DIGITS))  # of what is shown, however small it is
    return {
        "absolute": round(new - old, DIGITS),
        "ci95": None if ci95 is None else [round(float(x), DIGITS) for x in ci95],
        "relative": round(relative, DIGITS) if math.isfinite(relative) else None,
        "n": n,
    }
