"""Calibration against uncertainty-calibration (by fixtures and installed), scikit-learn, and by hand."""

import json
import math

import numpy as np
import pytest

from common.evals.calibration import brier, ece, multiple_choice, option_probabilities

RNG = np.random.default_rng


def test_ece_is_that_of_uncertainty_calibration(fixtures):
    rows = json.loads((fixtures / "text" / "ece.json").read_text(encoding="utf-8"))
    assert len(rows) > 20
    for row in rows:
        assert ece(row["confidence"], row["correct"], row["bins"]) == pytest.approx(row["ece"], abs=1e-9)


@pytest.mark.parametrize("levels", [2, 7, 10**9])
def test_ece_is_that_of_uncertainty_calibration_installed(levels):
    """With many equal confidences, some, and none."""
    library = pytest.importorskip("calibration", reason="the oracle uncertainty-calibration is not installed")
    rng = RNG(levels)
    for n in (1, 2, 9, 10, 11, 300):
        confidence, correct = rng.integers(levels + 1, size=n) / levels, rng.integers(2, size=n)
        for bins in (1, 3, 10):
            expected = library.get_ece_em(confidence, correct, num_bins=bins)
            assert ece(confidence, correct, bins) == pytest.approx(expected, abs=1e-9)


def test_ece_in_one_bin():
    assert ece([0.8] * 5, [1, 1, 1, 0, 0], bins=1) == pytest.approx(0.2, abs=1e-12)
    rng = RNG(0)
    for n in (1, 5, 400):
        confidence, correct = rng.random(n), rng.random(n) < 0.4
        expected = abs(confidence.mean() - correct.mean())
        assert ece(confidence, correct, 1) == pytest.approx(expected, abs=1e-12)
        assert expected - 1e-12 <= ece(confidence, correct) <= 1  # more bins never hide more


def test_ece_by_hand():
    # two bins: (0.2, 0.4), one of two right, and (0.6, 1.0), both right
    assert ece([1.0, 0.2, 0.6, 0.4], [1, 0, 1, 1], bins=2) == pytest.approx((0.2 + 0.2) / 2)
    assert ece([0.0, 1.0], [0, 1]) == 0.0
    assert ece([0.0, 1.0], [1, 0]) == 1.0
    assert ece([0.5] * 4, [1, 0, 1, 0], bins=10) == 0.0  # ties are one bin


def test_ece_does_not_depend_on_the_order():
    rng = RNG(1)
    confidence, correct = rng.integers(20, size=200) / 20, rng.integers(2, size=200)
    order = rng.permutation(200)
    assert ece(confidence[order], correct[order]) == pytest.approx(ece(confidence, correct), abs=1e-12)


def test_ece_of_a_calibrated_model_shrinks():
    rng = RNG(2)
    confidence = rng.random(200_000)
    assert ece(confidence, rng.random(200_000) < confidence) < 0.01
    assert ece(confidence, rng.random(200_000) < confidence**2) > 0.1


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "message"),
    [
        ([], [], 10, "one confidence"),
        ([0.5], [1, 0], 10, "one confidence"),
        ([[0.5]], [[1]], 10, "one confidence"),
        ([1.2], [1], 10, "from 0 to 1"),
        ([math.nan], [1], 10, "from 0 to 1"),
        ([0.5], [0.5], 10, "1 or 0"),
        ([0.5], [1], 0, "at least one bin"),
    ],
)
def test_ece_refuses(confidence, correct, bins, message):
    with pytest.raises(ValueError, match=message):
        ece(confidence, correct, bins)


def test_brier_is_scikit_learns():
    from sklearn.metrics import brier_score_loss

    for options in (2, 5):
        probabilities = RNG(options).dirichlet(np.ones(options), 60)
        gold = np.arange(60) % options
        expected = brier_score_loss(gold, probabilities, labels=list(range(options)), scale_by_half=False)
        assert brier(probabilities, gold) == pytest.approx(expected, abs=1e-12)


def test_brier_by_hand():
    assert brier([[0.7, 0.2, 0.1]], [0]) == pytest.approx(0.09 + 0.04 + 0.01)
    assert brier([[0.0, 1.0]], [0]) == 2.0
    assert brier([[1.0, 0.0], [0.25] * 4], [0, 3]) == pytest.approx((0 + 0.75) / 2)
    for probabilities, gold in (
        ([], []),
        ([[0.5, 0.6]], [0]),
        ([[1.5, -0.5]], [0]),
        ([[1.0]], [1]),
        ([[1.0]], [0, 0]),
    ):
        with pytest.raises(ValueError, match=r"no questions|sum to 1|gold"):
            brier(probabilities, gold)
    with pytest.raises(ValueError, match="sum to 1"):
        brier([[math.nan, 1.0]], [0])


def test_multiple_choice_by_hand():
    # per token -1, -2, -1.5; then -3 and -1
    logps, lengths = [[-4.0, -2.0, -3.0], [-3.0, -2.0]], [[4, 1, 2], [1, 2]]
    probabilities = option_probabilities(logps, lengths)
    first, second = np.exp([-1, -2, -1.5]), np.exp([-3, -1])
    assert probabilities == pytest.approx(np.array([first / first.sum(), [*(second / second.sum()), 0]]))
    confidence, correct = multiple_choice(logps, lengths, [0, 0])
    assert confidence == pytest.approx([first[0] / first.sum(), second[1] / second.sum()])
    assert correct.tolist() == [True, False]
    assert multiple_choice([[-1.0, -1.0]], [[1, 1]], [0])[1].tolist() == [True]  # the first of equal ones
    assert option_probabilities([[-1e9, -math.inf, -2e9]], [[1, 1, 1]]).tolist() == [[1, 0, 0]]


def test_multiple_choice_of_random_questions():
    rng = RNG(3)
    logps, lengths = -rng.random((100, 4)) * 50, rng.integers(1, 20, (100, 4))
    gold = rng.integers(4, size=100)
    confidence, correct = multiple_choice(logps, lengths, gold)
    assert (confidence >= 0.25).all()
    assert (confidence <= 1).all()
    assert correct.tolist() == ((logps / lengths).argmax(axis=1) == gold).tolist()
    rows = multiple_choice([list(row) for row in logps], [list(row) for row in lengths], gold.tolist())
    assert (rows[0] == confidence).all()
    moved = multiple_choice(logps + 3.0 * lengths, lengths, gold)  # the same for every token
    assert moved[0] == pytest.approx(confidence)
    assert 0 <= ece(confidence, correct) <= 1
    assert 0 <= brier(option_probabilities(logps, lengths), gold) <= 2


@pytest.mark.parametrize(
    ("logps", "lengths", "gold", "message"),
    [
        ([], [], [], "no questions"),
        ([[]], [[]], [0], "without options"),
        ([[-1.0, -2.0]], [[1]], [0], "one length"),
        ([[-1.0]], [[0]], [0], "positive"),
        ([[-1.0]], [[math.nan]], [0], "positive"),
        ([[math.nan]], [[1]], [0], "below infinity"),
        ([[math.inf]], [[1]], [0], "below infinity"),
        ([[-math.inf, -math.inf]], [[1, 1]], [0], "none has any"),
        ([[-1.0, -2.0]], [[1, 1]], [2], "no option"),
        ([[-1.0, -2.0], [-1.0]], [[1, 1], [1]], [0, 1], "no option"),
        ([[-1.0, -2.0]], [[1, 1]], [-1], "no option"),
        ([[-1.0, -2.0]], [[1, 1]], [0.5], "an integer"),
        ([[-1.0, -2.0]], [[1, 1]], [0, 1], "an integer"),
    ],
)
def test_multiple_choice_refuses(logps, lengths, gold, message):
    with pytest.raises(ValueError, match=message):
        multiple_choice(logps, lengths, gold)
