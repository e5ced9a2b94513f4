"""A figure of a profile: value, interval, number of items, and what it was measured with.

    mean_figure([0.2, 0.4], Scorer("common.textstats.ttr", "clean, seedloop 0.1.0"))
    # {"value": 0.3, "ci95": [0.2, 0.4], "n": 2, "scorer": "common.textstats.ttr", "version": …}

Intervals cover 95%, by the percentile bootstrap over items (Efron and Tibshirani 1993, chapter 13).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common.rundir import VERSION
from common.stats import bootstrap_ci95

Figure = dict[str, Any]
DIGITS = 5
"""Decimals of a figure: with another batch size it may differ in the eighth."""
SAMPLES = 1000
"""Bootstrap samples of a figure that is not a mean."""


@dataclasses.dataclass(frozen=True)
class Scorer:
    """What gave the scores behind a figure, stored with it."""

    name: str
    version: str = f"seedloop {VERSION}"


def figure(value: float | None, ci95: Sequence[float] | None, n: int, scorer: Scorer, **more: Any) -> Figure:
    """An entry of `summary.json`. `n`: items that the value is of; a value that is not defined is None."""
    defined = value is not None and math.isfinite(value)
    interval = None if not defined or ci95 is None else [round(float(x), DIGITS) for x in ci95]
    if interval is not None and not all(map(math.isfinite, interval)):
        interval = None
    about = {"scorer": scorer.name, "version": scorer.version}
    return {"value": round(float(value), DIGITS) if defined else None, "ci95": interval, "n": n} | about | more


def mean_figure(values: Sequence[float], scorer: Scorer, seed: int = 0, scale: float = 1.0, **more: Any) -> Figure:
    """`scale` times the mean of those of `values` that are finite; None of none, and no interval of one."""
    finite = [scale * value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return figure(None, None, 0, scorer, **more)
    value, *interval = bootstrap_ci95(finite, seed) if len(finite) > 1 else finite
    return figure(value, interval or None, len(finite), scorer, **more)


def drawn_figures(
    measure: Callable[[np.ndarray], dict[str, float]], units: int, n: int, scorer: Scorer, seed: int = 0
) -> dict[str, Figure]:
    """Several figures of the same `units`, by name, with intervals from one bootstrap over the units.

    `measure` takes the places of the units that were drawn, all of them in order for the value itself. NaN in a
    sample (a share of nothing) is left out of the interval; one unit has none. `n`: items that the units are of.
    """
    if not units:
        return {}
    values = measure(np.arange(units))
    rng = np.random.default_rng(seed)
    samples = [measure(rng.integers(units, size=units)) for _ in range(SAMPLES if units > 1 else 0)]
    found = {}
    for name, value in values.items():
        column = np.array([sample[name] for sample in samples], np.float64)
        column = column[np.isfinite(column)]
        interval = np.quantile(column, [0.025, 0.975]).tolist() if len(column) else None
        found[name] = figure(value, interval, n, scorer)
    return found


def relative_change(before: float, after: float) -> float:
    """(after - before) / before in per cent; NaN where `before` is 0."""
    return 100 * (after - before) / before if before else math.nan
