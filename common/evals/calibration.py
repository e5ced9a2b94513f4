"""Whether a model is as often right as it is confident, on multiple choice.

    probabilities = option_probabilities(logps, lengths)           # (questions, options)
    confidence, correct = multiple_choice(logps, lengths, gold)    # of the option chosen
    ece(confidence, correct), ece(confidence, correct, bins=1), brier(probabilities, gold)

All figures are errors: 0 is best.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

Options = Sequence[Sequence[float]] | np.ndarray
"""A figure of every option of every question; questions may have different numbers of options."""


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 10) -> float:
    """Top-label expected calibration error, L1, in bins of equal mass: Σ n_b / n · |mean confidence - accuracy|.

    `confidence`: the probability of the chosen option; `correct`: whether it is right. The sorted confidences are
    cut into `bins` parts whose sizes differ by 1 at most, larger ones first, fewer if there are fewer items; the
    edge of a bin is midway between the last of one part and the first of the next, and belongs to the lower bin.
    Equal confidences are always in one bin, so ties make bins unequal. With one bin this is |mean confidence -
    accuracy|. It equals `get_ece_em` of uncertainty-calibration 0.1.4 (Kumar, Liang and Ma 2019, arXiv
    1909.10155), as HELM (arXiv 2211.09110) does with 10 bins and 1. From few items it is too high on average:
    even a calibrated model has accuracies beside its confidences. Compare values of equally many items.

    Raises ValueError without items, for confidences outside [0, 1], for what is neither right nor wrong, and for
    fewer than one bin.
    """
    p, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if p.ndim != 1 or p.shape != right.shape or not p.size:
        raise ValueError(f"one confidence for every answer, not {p.shape} for {right.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("a confidence is a probability, from 0 to 1")
    if not np.isin(right, (0, 1)).all():
        raise ValueError("an answer is correct or not: 1 or 0")
    if bins < 1:
        raise ValueError(f"at least one bin, not {bins}")
    parts = np.array_split(np.sort(p), min(bins, p.size))
    edges = [(part[-1] + after[0]) / 2 for part, after in itertools.pairwise(parts)]
    bin_of = np.searchsorted(np.unique(edges), p, side="left")
    return float(np.abs(np.bincount(bin_of, p) - np.bincount(bin_of, right)).sum() / p.size)


def brier(probabilities: Options, gold: Sequence[int]) -> float:
    """Brier score (1950, Monthly Weather Review 78:1-3): mean over questions of Σ over options of (p - [gold])².

    From 0 to 2; the form for two outcomes that looks at one of them gives half of it. An option that a question
    does not have is the same as one with probability 0.

    Raises ValueError without questions, for probabilities that are negative or do not sum to 1, and for a gold
    answer that is no option.
    """
    table = _table(probabilities, 0.0)
    right = _gold(gold, [len(row) for row in probabilities])
    if not ((table >= 0) & (table <= 1)).all() or not np.allclose(table.sum(axis=1), 1, rtol=0, atol=1e-5):
        raise ValueError("the probabilities of the options of a question sum to 1")
    return float(np.square(table - np.eye(table.shape[1])[right]).sum(axis=1).mean())


def option_probabilities(logps: Options, lengths: Options) -> np.ndarray:
    """(questions, most options): softmax over the options of log-likelihood / length.

    `logps`: the summed log-likelihood of every option given its question; `lengths`: of how many tokens (or
    characters, or bytes). The length-normalised likelihood is that of Brown et al. 2020 (arXiv 2005.14165,
    section 2.4). A place where a question has no option has probability 0.

    Raises ValueError without questions, without options, for different numbers of them, for lengths that are not
    positive, for log-likelihoods that are NaN or infinite above, and where no option of a question has any
    likelihood.
    """
    score, length = _table(logps, -np.inf), _table(lengths, 1.0)
    if [len(row) for row in logps] != [len(row) for row in lengths]:
        raise ValueError("one length for every log-likelihood")
    if not (np.isfinite(length) & (length > 0)).all():
        raise ValueError("the length of an option is positive")
    if np.isnan(score).any() or (score == np.inf).any():
        raise ValueError("a log-likelihood is a number below infinity")
    score = score / length
    highest = score.max(axis=1, keepdims=True)
    if np.isneginf(highest).any():
        raise ValueError("a question of whose options none has any likelihood")
    weight = np.exp(score - highest)
    return weight / weight.sum(axis=1, keepdims=True)


def multiple_choice(logps: Options, lengths: Options, gold: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(confidence, correct) of every question: the highest of `option_probabilities`, and whether that option, the
    first of equal ones, is `gold`.

    Raises ValueError as `option_probabilities` does, and for a gold answer that is no option.
    """
    probabilities = option_probabilities(logps, lengths)
    right = _gold(gold, [len(row) for row in logps])
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == right


def _table(rows: Options, empty: float) -> np.ndarray:
    """As one array, with `empty` where a row is shorter than the longest."""
    if not len(rows) or not all(len(row) for row in rows):
        raise ValueError("no questions, or one without options")
    table = np.full((len(rows), max(map(len, rows))), empty, np.float64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def _gold(gold: Sequence[int], options: Sequence[int]) -> np.ndarray:
    right = np.asarray(gold)
    if right.shape != (len(options),) or not np.issubdtype(right.dtype, np.integer):
        raise ValueError(f"one gold option, an integer, for each of {len(options)} questions")
    if not ((right >= 0) & (right < np.asarray(options))).all():
        raise ValueError("a gold answer that is no option of its question")
    return right
