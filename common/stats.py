"""Figures with their uncertainty: what goes into `summary.json` and the tables.

Every interval covers 95% and comes as (value, low, high).

    arm_summary([0.61, 0.64, 0.60], n=500)      # one arm, three repeats on 500 held-out problems
    paired_difference(llm2llm, matched)         # gain over another arm run with the same seeds
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

Interval = tuple[float, float, float]
"""(value, low, high)"""

_Z = 1.959963984540054  # the 97.5% quantile of the standard normal distribution


def mean_ci95(values: Sequence[float]) -> Interval:
    """Mean with Student's t interval: mean ± t(n - 1, 97.5%) · s / √n.

    For independent repeats of one experiment. Raises ValueError for fewer than two values, which say nothing
    about their spread.
    """
    if len(values) < 2:
        raise ValueError("an interval over repeats needs at least two of them")
    from scipy.special import stdtrit  # scipy is a dependency of jax

    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    half = float(stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / math.sqrt(len(x)))
    return mean, mean - half, mean + half


def bootstrap_ci95(values: Sequence[float], seed: int = 0, samples: int = 2000) -> Interval:
    """Mean with the percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    For values over items whose distribution is far from normal. The same seed gives the same interval.
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        raise ValueError("no values")
    rng = np.random.default_rng(seed)
    means = [x[rng.integers(len(x), size=len(x))].mean() for _ in range(samples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(x.mean()), float(low), float(high)


def accuracy_ci95(correct: int, total: int) -> Interval:
    """Share of correct items with Wilson's score interval (Wilson 1927, JASA 22:209-212).

    Unlike the textbook p ± z·√(p(1-p)/n) it stays within [0, 1] and keeps its coverage near 0 and 1.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} correct of {total} items")
    p, z2 = correct / total, _Z * _Z / total
    centre = (p + z2 / 2) / (1 + z2)
    half = math.sqrt(p * (1 - p) * z2 + z2 * z2 / 4) / (1 + z2)
    return p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))  # p itself despite rounding


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Mean of a - b with Student's t interval, pair by pair: repeat i of both arms had the same seed.

    Raises ValueError for fewer than two pairs.
    """
    pairs = list(zip(a, b, strict=True))
    return mean_ci95([x - y for x, y in pairs])


def arm_summary(per_repeat: Sequence[float], n: int) -> dict[str, Any]:
    """The entry of one arm in `summary.json`, from its accuracy on `n` held-out items in every repeat.

    One repeat: Wilson's interval over the items. Several: Student's t interval over the repeats, cut to [0, 1].
    """
    if len(per_repeat) == 1:
        value, low, high = accuracy_ci95(round(per_repeat[0] * n), n)
    else:
        value, low, high = mean_ci95(per_repeat)
    return {
        "metric": "accuracy",
        "value": value,
        "ci95": [max(0.0, low), min(1.0, high)],
        "n": n,
        "per_repeat": [float(x) for x in per_repeat],
    }


def macro_f1(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Mean over the labels in `gold` of F1 = 2·TP / (2·TP + FP + FN).

    A prediction that is no gold label (such as None, nothing could be parsed) counts as a miss; it does not add
    a class.
    """
    if not gold:
        raise ValueError("no items")
    pairs = list(zip(gold, predicted, strict=True))
    scores = []
    for label in set(gold):
        hits = sum(g == label and p == label for g, p in pairs)
        wrong = sum((g == label) != (p == label) for g, p in pairs)
        scores.append(2 * hits / (2 * hits + wrong))
    return math.fsum(scores) / len(scores)  # fsum: the same whatever the order of the set
