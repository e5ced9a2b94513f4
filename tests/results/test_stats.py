"""Intervals against scipy, average precision against scikit-learn, and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats

from common.results.stats import (
    accuracy_ci95,
    average_precision,
    bootstrap_ci95,
    entropy_nats,
    gain,
    macro_f1,
    mean_ci95,
    paired_bootstrap_ci95,
    paired_difference,
    paired_shares_ci95,
    per_class,
    repeats_estimate,
    share_estimate,
)


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_mean_interval_is_students(n):
    values = np.random.default_rng(n).normal(3.0, 2.0, n)
    mean, low, high = mean_ci95(values)
    assert mean == pytest.approx(values.mean())
    expected = scipy.stats.t.interval(0.95, n - 1, values.mean(), scipy.stats.sem(values))
    assert (low, high) == pytest.approx(expected)


def test_mean_interval_by_hand():
    # mean 2, s = 1, n = 3: half width 4.302653 / sqrt(3)
    assert mean_ci95([1, 2, 3]) == pytest.approx((2, 2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert mean_ci95([0.5, 0.5]) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="at least two"):
        mean_ci95([1.0])


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (1, 10), (5, 10), (10, 10), (437, 500), (1, 1)])
def test_accuracy_interval_is_wilsons(correct, total):
    expected = scipy.stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    value, low, high = accuracy_ci95(correct, total)
    assert value == correct / total
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= value <= high <= 1


def test_accuracy_interval_refuses_impossible_counts():
    for correct, total in (-1, 5), (6, 5), (0, 0):
        with pytest.raises(ValueError, match="items"):
            accuracy_ci95(correct, total)


def test_bootstrap_agrees_with_scipy_and_repeats():
    values = np.random.default_rng(0).exponential(1.0, 200)
    ours = bootstrap_ci95(values)
    assert ours == bootstrap_ci95(values)
    assert ours != bootstrap_ci95(values, seed=1)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours[0] == pytest.approx(values.mean())
    assert ours[1:] == pytest.approx((expected.low, expected.high), abs=0.02)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_ci95([])


def test_paired_difference_is_the_paired_t_interval():
    a, b = [0.71, 0.69, 0.74, 0.66], [0.65, 0.66, 0.70, 0.61]
    expected = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    assert paired_difference(a, b) == pytest.approx((0.045, expected.low, expected.high))
    with pytest.raises(ValueError, match="zip"):
        paired_difference(a, b[:3])


def test_paired_bootstrap_of_one_repeat_agrees_with_scipy_and_repeats():
    rng = np.random.default_rng(3)
    a, b = rng.random(300) < 0.7, rng.random(300) < 0.6
    ours = paired_bootstrap_ci95(a, b)
    assert ours == paired_bootstrap_ci95([a], [b])
    assert ours != paired_bootstrap_ci95(a, b, seed=1)
    expected = scipy.stats.bootstrap(
        (a * 1.0, b * 1.0),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        paired=True,
        n_resamples=5000,
        method="percentile",
        rng=rng,
    ).confidence_interval
    assert ours[0] == pytest.approx(a.mean() - b.mean())
    assert ours[1:] == pytest.approx((expected.low, expected.high), abs=0.015)


def test_paired_bootstrap_draws_repeats_and_questions_apart():
    # Only questions differ: three equal repeats say no more than one. Only repeats differ: R of them are drawn.
    rng = np.random.default_rng(4)
    one = rng.random(400) < 0.5
    single, triple = (paired_bootstrap_ci95([one] * n, np.zeros((n, 400))) for n in (1, 3))
    assert triple[1:] == pytest.approx(single[1:], abs=0.01)
    assert triple[2] - triple[1] == pytest.approx(2 * 1.96 * one.std() / 20, rel=0.1)
    levels = np.array([[0.0], [1.0]]) @ np.ones((1, 50))
    assert paired_bootstrap_ci95(levels, np.zeros((2, 50))) == (0.5, 0.0, 1.0)


def test_paired_bootstrap_covers_the_truth():
    """Two arms on shared hard and easy questions, with luck of their own in each of five repeats."""
    rng, inside = np.random.default_rng(5), 0
    for trial in range(100):
        question = rng.normal(0, 0.15, (1, 150))
        a = rng.random((5, 150)) < 0.55 + rng.normal(0, 0.03, (5, 1)) + question
        b = rng.random((5, 150)) < 0.50 + rng.normal(0, 0.03, (5, 1)) - question
        _, low, high = paired_bootstrap_ci95(a, b, trial, samples=300)
        inside += low <= 0.05 <= high
    assert inside >= 92


def test_paired_bootstrap_refuses_what_is_not_paired():
    for a, b in (([0, 1], [0, 1, 1]), (np.zeros((2, 0)), np.zeros((2, 0))), (np.zeros((1, 2, 3)),) * 2):
        with pytest.raises(ValueError, match="repeats and questions"):
            paired_bootstrap_ci95(a, b)


def test_a_share_of_one_and_of_several_repeats():
    """One repeat has Wilson's interval over items, several have Student's, cut to what a share can be."""
    one = share_estimate([0.874], 500)
    assert (one.value, *one.ci95) == accuracy_ci95(437, 500)
    assert (one.n, one.per_repeat) == (500, (0.874,))
    several = share_estimate([0.98, 1.0, 0.9], 50)
    value, low, _ = mean_ci95([0.98, 1.0, 0.9])
    assert (several.value, several.ci95) == (value, (low, 1.0))


def test_a_share_that_is_the_same_in_all_repeats_is_not_certain():
    """A model that is not trained answers alike in every repeat: its interval is that over items, at least."""
    for repeats in (2, 3):
        same = share_estimate([0.656] * repeats, 500)
        assert same.value == pytest.approx(0.656)
        assert same.ci95 == pytest.approx(accuracy_ci95(328, 500)[1:])
    assert share_estimate([0.0, 0.0], 1).ci95 == pytest.approx((0.0, accuracy_ci95(0, 1)[2]))


@pytest.mark.parametrize(
    ("counts", "value", "low", "high"),
    [
        # Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33:2850-2875: airway hyper-responsiveness.
        ((1, 1, 7, 12), -0.286, -0.507, -0.026),
        # All alike, where a bootstrap and Wald's interval have no width; by hand from Wilson's of 0 and 4 of 4.
        ((0, 4, 0, 0), 1.0, 1 - math.sqrt(2) * (1 - 0.510109), 1.0),
        ((4, 0, 0, 0), 0.0, -(1 - 0.510109), 1 - 0.510109),
    ],
)
def test_paired_shares_are_newcombes(counts, value, low, high):
    assert paired_shares_ci95(*counts) == pytest.approx((value, low, high), abs=6e-4)
    both, first, second, neither = counts
    assert paired_shares_ci95(both, second, first, neither) == pytest.approx((-value, -high, -low), abs=6e-4)
    with pytest.raises(ValueError, match="no items"):
        paired_shares_ci95(0, 0, 0, 0)


@pytest.mark.parametrize("true", [(0.05, 0.85, 0.02, 0.08), (0.9, 0.02, 0.02, 0.06), (0.3, 0.3, 0.2, 0.2)])
def test_paired_shares_cover_the_truth_of_few_items(true):
    for n in (5, 20):
        drawn = np.random.default_rng(n).multinomial(n, true, 2000)
        intervals = [paired_shares_ci95(*counts)[1:] for counts in drawn]
        assert np.mean([low <= true[1] - true[2] <= high for low, high in intervals]) > 0.93


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 4, 30])
@pytest.mark.parametrize("right", [True, False])
def test_a_lead_of_items_that_are_all_alike_has_a_width(repeats, count, right):
    """The bootstrap draws the same lead every time, and so do equal repeats."""
    ours, theirs = [[right] * count] * repeats, [[False] * count] * repeats
    found = gain([float(right)] * repeats, [0.0] * repeats, ours, theirs)
    expected = paired_shares_ci95(0, count, 0, 0) if right else paired_shares_ci95(0, 0, 0, count)
    assert (found.value, found.items) == (float(right), count)
    assert found.bootstrap95 == pytest.approx(expected[1:])
    assert found.ci95 == (None if repeats == 1 else found.bootstrap95)


def test_equal_leads_of_repeats_with_other_questions_have_a_width():
    found = gain([1.0, 1.0], [0.0, 0.0], [[1] * 3, [1] * 4], [[0] * 3, [0] * 4])
    assert found.bootstrap95 is None
    assert found.ci95 == pytest.approx(paired_shares_ci95(0, 7, 0, 0)[1:])


def test_an_estimate_over_repeats_has_an_interval_if_there_are_several():
    assert repeats_estimate([2.0]).ci95 is None
    assert repeats_estimate([2.0, 2.0]).ci95 is None
    several = repeats_estimate([1.0, 2.0, 4.0])
    assert (several.value, *several.ci95) == mean_ci95([1.0, 2.0, 4.0])


def test_macro_f1_by_hand():
    gold = ["a", "a", "a", "b", "b", "c"]
    predicted = ["a", "a", "b", "b", "a", None]
    # a: 2 hits, 1 missed, 1 wrong: 4/6; b: 1, 1, 1: 2/4; c: 0
    assert macro_f1(gold, predicted) == pytest.approx((4 / 6 + 2 / 4 + 0) / 3)
    assert macro_f1(gold, gold) == 1.0
    with pytest.raises(ValueError, match="no items"):
        macro_f1([], [])


def test_per_class_by_hand():
    gold = ["b", "a", "a", "a", "b", "c"]
    predicted = ["b", "a", "a", "b", "a", None]
    table = per_class(gold, predicted)
    assert list(table) == ["a", "b", "c"]
    assert table["a"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert table["b"] == pytest.approx({"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "support": 2})
    assert table["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    with pytest.raises(ValueError, match="no items"):
        per_class([], [])
    with pytest.raises(ValueError, match="zip"):
        per_class(["a"], ["a", "b"])


def test_per_class_agrees_with_macro_f1():
    rng = np.random.default_rng(6)
    gold, predicted = rng.integers(5, size=200).tolist(), rng.integers(7, size=200).tolist()
    table = per_class(gold, predicted)
    assert np.mean([row["f1"] for row in table.values()]) == pytest.approx(macro_f1(gold, predicted))
    assert sum(row["support"] for row in table.values()) == 200
    right = sum(row["recall"] * row["support"] for row in table.values())
    assert right == pytest.approx(sum(g == p for g, p in zip(gold, predicted, strict=True)))


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_average_precision_is_scikit_learns(levels):
    """With many equal confidences, some, and hardly any."""
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(levels)
    for n in (1, 2, 10, 300):
        for share in (0.1, 0.5, 1.0):
            correct, confidence = rng.random(n) < share, rng.integers(levels, size=n) / levels
            correct[rng.integers(n)] = True
            expected = average_precision_score(correct, confidence)
            assert average_precision(correct.tolist(), confidence.tolist()) == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand():
    # right at ranks 1 and 3 of 4: (1/1 + 2/3) / 2; all equal: the share that is right
    assert average_precision([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([1, 0, 1, 0], [0.5] * 4) == 0.5
    assert average_precision([0, 1, 0], [0.9, 0.9, 0.1]) == average_precision([1, 0, 0], [0.9, 0.9, 0.1]) == 0.5
    for correct, confidence in (([0, 0], [1, 2]), ([], []), ([1], [math.nan]), ([1, 0], [1]), ([[1]], [[1]])):
        with pytest.raises(ValueError, match=r"correct item|one confidence"):
            average_precision(correct, confidence)


CUT = 1.193  # nats; with 10 answers over 5 classes a question at or above it counts as one the model is unsure of


@pytest.mark.parametrize(
    ("counts", "expected", "unsure"),
    [
        ((5, 3, 1, 1), 1.1683, False),
        ((4, 4, 1, 1), 1.1935, True),
        ((5, 2, 2, 1), 1.2206, True),
        ((6, 1, 1, 1, 1), 1.2275, True),
        ((4, 3, 2, 1), 1.2799, True),
        ((5, 2, 1, 1, 1), 1.3592, True),
        ((4, 3, 3), 1.0889, False),
        ((6, 2, 1, 1), 1.0889, False),
        ((2, 2, 2, 2, 2), 1.6094, True),
        ((2, 2, 2, 2, 1, 1), 1.7481, True),
        ((6, 3, 1), 0.8979, False),
        ((10,), 0.0, False),
    ],
)
def test_entropy_of_ten_answers(counts, expected, unsure):
    entropy = entropy_nats(counts)
    assert entropy == pytest.approx(expected, abs=5e-5)
    assert entropy == pytest.approx(scipy.stats.entropy(counts), abs=1e-12)
    assert entropy_nats([0, *reversed(counts), 0]) == pytest.approx(entropy, abs=1e-12)
    assert (entropy >= CUT) == unsure


def partitions(total, classes, largest=None):
    """All ways to write `total` as a falling sum of at most `classes` terms."""
    if total == 0:
        yield ()
    elif classes:
        for first in range(min(total, largest or total), 0, -1):
            for rest in partitions(total - first, classes - 1, first):
                yield (first, *rest)


def test_entropy_of_all_patterns_of_ten_answers():
    patterns = list(partitions(10, 5))
    assert len(patterns) == 30
    unsure = [pattern for pattern in patterns if entropy_nats(pattern) >= CUT]
    assert len(unsure) == 13
    assert min(map(len, unsure)) == 4
    three = [pattern for pattern in patterns if len(pattern) <= 3]
    assert max(three, key=entropy_nats) == (4, 3, 3)
    assert entropy_nats((4, 3, 3)) == pytest.approx(entropy_nats((6, 2, 1, 1)), abs=1e-15)


def test_entropy_of_one_outcome_and_of_none():
    assert entropy_nats({"a": 7}.values()) == 0.0
    assert entropy_nats([1] * 4) == pytest.approx(math.log(4))
    assert entropy_nats([6, 3, 1]) / math.log(2) == pytest.approx(1.2955, abs=1e-4)  # bits
    for counts in ([], [0, 0], [3, -1]):
        with pytest.raises(ValueError, match="no entropy"):
            entropy_nats(counts)
