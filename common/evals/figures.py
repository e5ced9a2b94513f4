"""A figure of a measure: value, interval, number of items, and what it was measured with; and the change from one
model's figure to another's.

    before = mean_figure([0.2, 0.4], Scorer("common.text.textstats.ttr", "clean, seedloop 0.2.0"))
    before.value, before.ci95, before.n                     # 0.3, (0.2, 0.4), 2
    changes({"ttr": before}, {"ttr": after})["ttr"]         # Change(absolute=0.1, ci95=(0.0, 0.2), …, n=2)

Intervals cover 95%: of what its measure declares a share of items Wilson's, of other figures by the percentile
bootstrap over items (Efron and Tibshirani 1993, chapter 13), which has no width where all items are alike; those
of a change draw the same items for both models.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

import numpy as np

from common import VERSION
from common.results.estimate import UNSTORED, Estimate
from common.results.stats import accuracy_ci95, bootstrap_ci95

DIGITS = 4
"""Decimals of a figure: with another batch size it may differ in the eighth."""
SAMPLES = 1000
"""Bootstrap samples of a figure that is not a mean, and of a change."""

Measurement = Callable[[np.ndarray], dict[str, float]]
"""Figures by name of the units at the given places, which may come several times."""


@dataclasses.dataclass(frozen=True)
class Scorer:
    """What gave the scores behind a figure, stored with it."""

    name: str
    version: str = f"seedloop {VERSION}"


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """What figures were measured on, to measure them again on a part: the names of the units (prompts, questions,
    target terms, …; the same for every model), and the measurement of units by their places in that order."""

    units: tuple[Hashable, ...]
    measure: Measurement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure(Estimate):
    """An estimate, rounded to `DIGITS`, and the name and version of what measured it.

    `short`: items with too few words for the metric to say much. `terms`: target terms that the interval is over.
    `sample` is None for a figure that cannot be measured on drawn units; `key` is the figure's name within it.
    """

    n: int = dataclasses.field()  # stored when it is 0 too, and so without a default
    scorer: str
    version: str
    short: int | None = None
    terms: int | None = None
    sample: Sample | None = dataclasses.field(default=None, compare=False, repr=False, metadata=UNSTORED)
    key: str = dataclasses.field(default="", compare=False, repr=False, metadata=UNSTORED)


def figure(value: float | None, ci95: Sequence[float] | None, n: int, scorer: Scorer) -> Figure:
    """A figure without a sample. `n`: items that the value is of; a value that is not finite becomes None."""
    finite = value if value is not None and math.isfinite(value) else None
    return Figure(
        value=None if finite is None else round(float(finite), DIGITS),
        ci95=None if finite is None else _rounded(ci95),
        n=n,
        scorer=scorer.name,
        version=scorer.version,
    )


def _rounded(ci95: Sequence[float] | None) -> tuple[float, float] | None:
    """As it is stored; None for an interval with an end that is not finite."""
    if ci95 is None or not all(map(math.isfinite, ci95)):
        return None
    low, high = ci95
    return round(float(low), DIGITS), round(float(high), DIGITS)


def mean_figure(
    values: Sequence[float | None],
    scorer: Scorer,
    seed: int = 0,
    scale: float = 1.0,
    units: Sequence[Hashable] | None = None,
    share: bool = False,
) -> Figure:
    """`scale` times the mean of those of `values` that are finite; None of none, and no interval of one.

    `units`: the name of the item of each value, by default its place. `share`: whether a value says that an item
    is one of those counted, or not. Its interval is Wilson's, but for values between 0 and 1, such as the half of
    a tie, of which the mean is no share.
    """
    named = [
        (unit, float(value))
        for unit, value in zip(range(len(values)) if units is None else units, values, strict=True)
        if value is not None and math.isfinite(value)
    ]
    if not named:
        return figure(None, None, 0, scorer)
    finite = [value for _, value in named]
    column = scale * np.array(finite, np.float64)
    if len(finite) == 1:
        interval = None
    elif share and set(finite) <= {0.0, 1.0}:
        interval = _wilson(sum(finite), len(finite), scale)
    else:
        interval = bootstrap_ci95(column.tolist(), seed)[1:]
    value = column.mean()
    sample = Sample(tuple(unit for unit, _ in named), lambda drawn: {"": float(column[drawn].mean())})
    return dataclasses.replace(figure(value, interval, len(column), scorer), sample=sample)


def _wilson(right: float, n: int, scale: float) -> tuple[float, float]:
    _, low, high = accuracy_ci95(round(right), n)
    return scale * low, scale * high


def drawn_figures(
    measure: Measurement,
    units: int | Sequence[Hashable],
    n: int | Mapping[str, int],
    scorer: Scorer,
    seed: int = 0,
    shares: Collection[str] = (),
    distances: Collection[str] = (),
) -> dict[str, Figure]:
    """Several figures of the same `units`, by name, with intervals from one bootstrap over the units, but for
    `shares` of them, from 0 to 1, which have Wilson's. Those of `distances`, from 0 to 1, are turned round (see
    `_turned`).

    `measure` takes the places of the units that were drawn, all of them in order for the value itself. NaN in a
    sample (a share of nothing) is left out of the interval; one unit has none. `units`: their names, or how many
    there are. `n`: items that the units are of, or those behind each figure.
    """
    names = tuple(range(units) if isinstance(units, int) else units)
    if not names:
        return {}
    sample = Sample(names, measure)
    values, columns = _bootstrap(measure, len(names), seed)
    counts = dict.fromkeys(values, n) if isinstance(n, int) else n
    intervals = {name: _interval(column) for name, column in columns.items()}
    intervals |= {name: _turned(values[name], intervals[name]) for name in distances}
    if len(names) > 1:
        intervals |= {name: _wilson(values[name] * counts[name], counts[name], 1) for name in shares}
    return {
        name: dataclasses.replace(figure(value, intervals[name], counts[name], scorer), sample=sample, key=name)
        for name, value in values.items()
    }


def _bootstrap(measure: Measurement, units: int, seed: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The figures of all units, and those of every sample; of one unit there are no samples."""
    values = measure(np.arange(units))
    rng = np.random.default_rng(seed)
    samples = [measure(rng.integers(units, size=units)) for _ in range(SAMPLES if units > 1 else 0)]
    return values, {name: np.array([sample[name] for sample in samples], np.float64) for name in values}


def _interval(column: np.ndarray) -> Sequence[float] | None:
    column = column[np.isfinite(column)]
    return np.quantile(column, [0.025, 0.975]).tolist() if len(column) else None


def _turned(value: float, interval: Sequence[float] | None) -> Sequence[float] | None:
    """The basic bootstrap interval from the percentile one, [2 value - high, 2 value - low] (Davison and Hinkley
    1997, section 5.2), cut to [0, 1] and drawn out to the value where it does not reach it.

    A distance is 0 at least, so chance adds to it, and a sample of a sample adds that once more: the percentile
    interval lies too high, and may leave out the value itself.
    """
    if interval is None:
        return None
    low, high = interval
    return max(0.0, min(value, 2 * value - high)), min(1.0, max(value, 2 * value - low))


def relative_change(before: float, after: float) -> float:
    """(after - before) / before in per cent; NaN where `before` is 0."""
    return 100 * (after - before) / before if before else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """From one model's figure to another's: `absolute` in the figure's unit, with its 95% interval; `relative` in
    per cent; `n` units that were compared. None where they are not defined."""

    absolute: float | None
    ci95: tuple[float, float] | None
    relative: float | None
    n: int | None
    per_repeat: tuple[float | None, ...] | None = None


def changes(before: Mapping[str, Figure], after: Mapping[str, Figure], seed: int = 0) -> dict[str, Change]:
    """The change of every figure that both have, over the units that both were measured on.

    A unit that one model has no value of (a prompt too long for it, a text without sentences) is left out for the
    other as well. The interval is from a bootstrap that draws the same units for both. A figure without a sample
    has the plain difference, and neither interval nor `n`.
    """
    # Figures of one measurement are drawn together: those of all terms or questions cost one bootstrap, not ten.
    alike: dict[tuple[Sample, Sample], list[str]] = {}
    found: dict[str, Change] = {}
    for key in before:
        if key in after:
            one, two = before[key].sample, after[key].sample
            if one is not None and two is not None:
                alike.setdefault((one, two), []).append(key)
            # Stays where one of them has no sample; the others are replaced below.
            found[key] = _change(before[key].value, after[key].value, None, None)
    for (one, two), keys in alike.items():
        names = {key: (before[key].key, after[key].key) for key in keys}
        found |= _paired(one, two, names, seed)
    return found


def _paired(one: Sample, two: Sample, keys: Mapping[str, tuple[str, str]], seed: int) -> dict[str, Change]:
    """The changes of figures that share their samples, from one bootstrap. `keys`: what each figure is called in
    either sample."""
    at = {unit: place for place, unit in enumerate(two.units)}
    common = [(place, at[unit]) for place, unit in enumerate(one.units) if unit in at]
    if not common:
        return {key: _change(None, None, None, 0) for key in keys}
    ours, theirs = (np.array(places) for places in zip(*common, strict=True))
    old, new = one.measure(ours), two.measure(theirs)

    def gains(drawn: np.ndarray) -> dict[str, float]:
        was, became = one.measure(ours[drawn]), two.measure(theirs[drawn])
        return {key: became[to] - was[of] for key, (of, to) in keys.items()}

    _, columns = _bootstrap(gains, len(common), seed)
    return {key: _change(old[of], new[to], _interval(columns[key]), len(common)) for key, (of, to) in keys.items()}


def _change(old: float | None, new: float | None, ci95: Sequence[float] | None, n: int | None) -> Change:
    if old is None or new is None or not math.isfinite(new - old):
        return Change(absolute=None, ci95=None, relative=None, n=n)
    relative = relative_change(round(old, DIGITS), round(new, DIGITS))  # of what is shown, however small it is
    return Change(
        absolute=round(new - old, DIGITS),
        ci95=_rounded(ci95),
        relative=round(relative, DIGITS) if math.isfinite(relative) else None,
        n=n,
    )
