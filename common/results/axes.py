"""Axes of all drawings: ends and marks that a reader can count by, and no small difference drawn large.

low, high, step = axis([71.3, 71.9], SHARE)               # 65, 75, 2.5
marks(low, high, step)                                    # ["65", "67.5", "70", …] beside their values
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

TICKS = 5
"""About how many marks an axis has."""
STEPS = (1, 2, 2.5, 5, 10)
"""Of marks, times a power of 10."""
NARROW = 0.1
"""An axis is at least so long, as a share of the largest value on it."""


class Kind(NamedTuple):
    """What is drawn. `least`: length of the axis, None where it follows the values; `within`: ends that no value
    lies beyond; `whole`: whether it is counted, so that marks are whole numbers."""

    least: float | None = None
    within: tuple[float, float] = (-math.inf, math.inf)
    whole: bool = False


ANY, COUNT = Kind(), Kind(whole=True)
SHARE, POINTS = Kind(10.0, (0.0, 100.0)), Kind(10.0)
"""In per cent, and differences of such."""


def axis(values: Iterable[float], kind: Kind = ANY) -> tuple[float, float, float]:
    """Ends of an axis that holds the values, and the step of its marks, which both ends are a multiple of."""
    known = [float(value) for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    size = max(abs(low), abs(high))
    least = (NARROW * size or 1.0) if kind.least is None else kind.least
    if kind.whole:
        least = max(least, 1.0)
    if (short := least - (high - low)) > 0:
        # No further than 0 or an end that the values cannot pass: what lies beyond would mean nothing.
        bottom = max(kind.within[0], 0.0 if low >= 0 else -math.inf)
        top = min(kind.within[1], 0.0 if high <= 0 > low else math.inf)
        low = max(low - short / 2, bottom)
        high = min(low + least, top)
        low = max(high - least, bottom)
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in STEPS if power * m >= rough * 0.999)
    if kind.whole and not step.is_integer():
        step = float(math.ceil(step))
    return step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9), step


def marks(low: float, high: float, step: float) -> list[tuple[float, str]]:
    """Values of the marks with their numbers, all with as many decimals as the step has."""
    places = next((n for n in range(12) if math.isclose(round(step, n), step, rel_tol=1e-6)), 12)
    found = [low + i * step for i in range(round((high - low) / step) + 1)]
    # Neither a row of zeros nor one of hundreds of digits.
    plain = 1e-5 <= step < 1e7
    return [(value, _number(value, places) if plain else f"{value:.3g}") for value in found]


def _number(value: float, places: int) -> str:
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text
