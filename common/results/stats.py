"""Figures with their uncertainty: what goes into `summary.json` and the tables.

Every interval covers 95% and comes as (value, low, high).

    share_estimate([0.61, 0.64, 0.60], n=500)   # one arm, three repeats on 500 held-out problems
    paired_difference(llm2llm, matched)         # gain over another arm run with the same seeds
    paired_bootstrap_ci95(right_a, right_b)     # the same from every answer: (repeats, questions) of 0 and 1
"""

import collections
import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from common.results.estimate import Estimate, Gain, wide

Interval = tuple[float, float, float]
"""(value, low, high)"""

_Z = 1.959963984540054  # the 97.5% quantile of the standard normal distribution


def mean_ci95(values: Sequence[float]) -> Interval:
    """Mean with Student's t interval: mean ± t(n - 1, 97.5%) · s / √n.

    For independent repeats of one experiment; of equal values without width (see `wide`). Raises ValueError for
    fewer than two values, which say nothing about their spread.
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

    For values over items whose distribution is far from normal; of equal ones without width (see `wide`). The
    same seed gives the same interval.
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        raise ValueError("no values")
    rng = np.random.default_rng(seed)
    return _percentiles(x.mean(), [x[rng.integers(len(x), size=len(x))].mean() for _ in range(samples)])


def _percentiles(value: np.floating, resampled: Sequence[np.floating]) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(value), float(low), float(high)


def accuracy_ci95(correct: int, total: int) -> Interval:
    """Share of correct items with Wilson's score interval (Wilson 1927, JASA 22:209-212).

    Unlike the textbook p ± z·√(p(1-p)/n) it stays within [0, 1] and keeps its coverage near 0 and 1.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} correct of {total} items")
    return _wilson(correct / total, total)


def _wilson(p: float, total: float) -> Interval:
    z2 = _Z * _Z / total
    centre = (p + z2 / 2) / (1 + z2)
    half = math.sqrt(p * (1 - p) * z2 + z2 * z2 / 4) / (1 + z2)
    return p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))  # p itself despite rounding


def paired_shares_ci95(both: float, first: float, second: float, neither: float) -> Interval:
    """Difference of two shares of the same items, with Newcombe's square-and-add interval (Newcombe 1998,
    Statistics in Medicine 17:2635-2650, method 10), from the numbers of items that both arms, the first alone, the
    second alone, and neither have right.

    Each share has Wilson's interval; their distances to its ends are added as squares, less what is expected of
    the correlation φ of the two, corrected for continuity. It keeps a width where all items are alike, and only
    there this project uses it. Raises ValueError without items.
    """
    n = both + first + second + neither
    if n <= 0:
        raise ValueError("no items")
    p, low_p, high_p = _wilson((both + first) / n, n)
    q, low_q, high_q = _wilson((both + second) / n, n)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    lead = both * neither - first * second
    phi = (max(lead - n / 2, 0.0) if lead > 0 else lead) / math.sqrt(margins) if margins > 0 else 0.0
    away = lambda x, y: math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))
    value = (first - second) / n
    return value, max(-1.0, value - away(p - low_p, high_q - q)), min(1.0, value + away(high_p - p, q - low_q))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Mean of a - b with Student's t interval, pair by pair: repeat i of both arms had the same seed.

    Raises ValueError for fewer than two pairs.
    """
    return mean_ci95([x - y for x, y in zip(a, b, strict=True)])


def paired_bootstrap_ci95(a: ArrayLike, b: ArrayLike, seed: int = 0, samples: int = 2000) -> Interval:
    """Mean of a - b with a percentile bootstrap interval over repeats and questions (Efron and Tibshirani 1993).

    `a` and `b` say which answers of two arms were right: (repeats, questions) of 0 and 1, or (questions,) for one
    repeat; column q is one question in every repeat of both. A sample draws repeats and, apart from them,
    questions with replacement, the same for both arms (Owen 2007, the pigeonhole bootstrap). All drawn repeats
    answer the drawn questions, as in the experiment. The nested (hierarchical) bootstrap, which draws questions
    anew within each repeat, counts one question answered in three repeats as three: in simulations its intervals
    covered the truth in 87 to 92% of cases, these in 95 to 99%.

    The interval is for other repeats on other questions of the same kind; with one repeat for other questions
    only, which says nothing about other seeds. With few repeats it is still too narrow: drawing from R of them
    shows a share (R - 1) / R of their variance. `paired_difference` has no such bias, but ignores the questions.
    Where all answers differ alike, or none does, every sample is the same: the interval is then that of
    `paired_shares_ci95` over the questions. The same seed gives the same interval. Raises ValueError for unequal
    or empty matrices.
    """
    first, second = (np.atleast_2d(np.asarray(x, np.float64)) for x in (a, b))
    if first.shape != second.shape or not first.size or first.ndim != 2:
        raise ValueError(f"two equal matrices of repeats and questions, not {first.shape} and {second.shape}")
    difference = first - second
    R, Q = difference.shape
    rng = np.random.default_rng(seed)
    means = [
        difference[rng.integers(R, size=R)].mean(axis=0)[rng.integers(Q, size=Q)].mean() for _ in range(samples)
    ]
    found = _percentiles(difference.mean(), means)
    if wide(found[1:]):
        return found
    # Every question once, however many repeats answered it.
    counts = ((first * second), first * (1 - second), (1 - first) * second, (1 - first) * (1 - second))
    return found[0], *paired_shares_ci95(*(float(count.mean(axis=0).sum()) for count in counts))[1:]


def share_estimate(per_repeat: Sequence[float], n: int) -> Estimate:
    """A share of `n` items in every repeat, such as an arm's accuracy.

    One repeat: Wilson's interval over the items. Several: Student's t interval over the repeats, cut to [0, 1]; if
    they all gave the same, as a model does that is not trained, Wilson's over the items of one.
    """
    if len(per_repeat) == 1:
        value, low, high = accuracy_ci95(round(per_repeat[0] * n), n)
    else:
        value, low, high = mean_ci95(per_repeat)
        if not wide((low, high)):
            _, low, high = _wilson(value, n)
    interval = (max(0.0, low), min(1.0, high))
    return Estimate(value=value, ci95=interval, n=n, per_repeat=tuple(float(x) for x in per_repeat))


def repeats_estimate(per_repeat: Sequence[float]) -> Estimate:
    """The mean over repeats with Student's t interval; of one repeat, or of equal ones, its value without one."""
    value, *interval = mean_ci95(per_repeat) if len(per_repeat) > 1 else per_repeat
    return Estimate(value=value, ci95=_pair(interval), per_repeat=tuple(per_repeat))


def _pair(interval: Sequence[float]) -> tuple[float, float] | None:
    return (interval[0], interval[1]) if interval and wide(interval) else None


def gain(
    a: Sequence[float],
    b: Sequence[float],
    correct_a: Sequence[Sequence[float]],
    correct_b: Sequence[Sequence[float]],
) -> Gain:
    """The lead of arm `a` over `b`.

    `a` and `b`: one figure a repeat; `correct_a` and `correct_b`: the graded answers of every repeat. `ci95` is
    Student's t interval over repeats (None for one), `bootstrap95` the paired bootstrap over repeats and questions
    (None where the repeats asked different numbers of them). If the lead is the same in all repeats, `ci95` is
    `bootstrap95` too, or that of the bootstrap over the questions of all repeats.
    """
    value, *interval = paired_difference(a, b) if len(a) > 1 else (a[0] - b[0],)
    bootstrap: list[float] = []
    sizes = {len(rows) for rows in (*correct_a, *correct_b)}
    if len(sizes) == 1:
        _, *bootstrap = paired_bootstrap_ci95(correct_a, correct_b)
    if interval and not wide(interval):
        ours, theirs = ([right for rows in own for right in rows] for own in (correct_a, correct_b))
        interval = bootstrap or list(paired_bootstrap_ci95(ours, theirs)[1:])
    return Gain(value=value, ci95=_pair(interval), bootstrap95=_pair(bootstrap), items=min(sizes))


def macro_f1(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Mean over the labels in `gold` of F1 = 2·TP / (2·TP + FP + FN).

    A prediction that is no gold label (such as None, nothing could be parsed) counts as a miss; it does not add
    a class.
    """
    classes = per_class(gold, predicted).values()
    # fsum is exact, so the result does not depend on the order of the labels.
    return math.fsum(found["f1"] for found in classes) / len(classes)


def per_class(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> dict[Hashable, dict[str, float]]:
    """For each label in `gold`, in order of its name: precision, recall, F1 and support (how often it is gold).

    precision = TP / (TP + FP), 0 if the label is never predicted; recall = TP / (TP + FN); F1 as in `macro_f1`,
    whose mean it is. A prediction that is no gold label counts as a miss of the gold one and adds no class.
    """
    if not gold:
        raise ValueError("no items")
    hits = collections.Counter(g for g, p in zip(gold, predicted, strict=True) if g == p)
    support, given = collections.Counter(gold), collections.Counter(predicted)
    return {
        label: {
            "precision": hits[label] / given[label] if given[label] else 0.0,
            "recall": hits[label] / support[label],
            "f1": 2 * hits[label] / (support[label] + given[label]),
            "support": support[label],
        }
        # By its name, as labels may be of several types.
        for label in sorted(support, key=str)
    }


def average_precision(correct: Sequence[bool], confidence: Sequence[float]) -> float:
    """Area under the steps of precision over recall when items are ranked by falling confidence; from 0 to 1.

    AP = Σ (R_k - R_{k-1}) · P_k over the distinct confidences c_1 > c_2 > …, with R_0 = 0. Of the items with a
    confidence of at least c_k, the share P_k is correct (precision), and these are the share R_k of all correct
    items (recall). Items of equal confidence count together, so their order does not matter. For distinct
    confidences this is the average precision of Manning, Raghavan and Schütze 2008 (chapter 8.4); ties are treated
    as in scikit-learn.

    Raises ValueError if no item is correct (there is no recall), if a confidence is not a number, and for unequal
    lengths.
    """
    right, ranks = np.asarray(correct, bool), np.asarray(confidence, np.float64)
    if right.shape != ranks.shape or right.ndim != 1:
        raise ValueError(f"one confidence for each item, not {ranks.shape} for {right.shape}")
    if not right.any() or np.isnan(ranks).any():
        raise ValueError("average precision needs a correct item, and numbers as confidences")
    order = np.argsort(-ranks)
    last = np.flatnonzero(np.append(np.diff(ranks[order]) != 0, True))  # of the items of one confidence
    hits = np.cumsum(right[order])[last]
    return float((np.diff(hits, prepend=0) * (hits / (last + 1))).sum() / hits[-1])


def entropy_nats(counts: Iterable[int]) -> float:
    """Shannon entropy (1948) of how often each outcome was counted: H = -Σ p ln p with p = count / total, in nats.

    0 where all outcomes are the same, ln k for k outcomes equally often. Divide by ln 2 for bits. This is the
    plug-in estimate: from few counts it is too low on average. Raises ValueError without counts or for a negative
    one.
    """
    counts = list(counts)
    total = sum(counts)
    if total <= 0 or min(counts) < 0:
        raise ValueError(f"no entropy of the counts {counts}")
    return math.fsum(count / total * math.log(total / count) for count in counts if count)
