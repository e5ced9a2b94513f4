"""How similar the texts of a set are to each other.

    self_bleu(["How many apples has Ada?", "How many pears has Bo?", ...])      # 0.41; 1.0: all the same

`self_bleu_reference` is the readable form.
"""

import collections
import math
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence

Tokens = tuple[str, ...]

_TOKEN = re.compile(r"[^\W_]+|\S")

FLOOR = 0.1
"""Replaces a count of zero matches. sacrebleu: `smooth_method="floor"`; method 1 of Chen
and Cherry 2014 (doi 10.3115/v1/W14-3346)."""


def tokens_of(text: str) -> Tokens:
    """Lower-case words and numbers (runs of letters and digits of any script), and every other sign by itself;
    white space separates."""
    return tuple(_TOKEN.findall(unicodedata.normalize("NFC", text.lower())))


def self_bleu(
    texts: Sequence[str], orders: Sequence[int] = (2, 3, 4, 5), sample: int = 200, seed: int = 0
) -> float:
    """Self-BLEU (Zhu et al. 2018, Texygen, arXiv 1802.01886), from 0 to 1; lower is more diverse.

    `sample` texts are drawn by `seed`, all if there are fewer. Each is scored by sentence BLEU (Papineni et al.
    2002) with all other drawn ones as its references; the value is the mean over texts and `orders`. BLEU of order
    m is the geometric mean of the precisions of n-grams, n = 1 to m, times the brevity penalty for the closest
    reference length (of two, the shorter); see `FLOOR` for precisions of zero. A text shorter than m has the
    precisions that it has n-grams for, and one without a token in common with another scores 0. This equals
    sacrebleu's `BLEU(tokenize="none", smooth_method="floor", max_ngram_order=m, effective_order=True)`.

    The more texts, the more n-grams recur: **compare values of equally many texts only**, such as of
    sets that all have at least `sample`.

    Time and memory are linear in the drawn texts: whether an n-gram is in the others as often as in this one is
    known from its two highest counts in the whole set.

    Raises ValueError for fewer than two texts to compare and for orders below 1 or none.
    """
    drawn = _drawn(texts, orders, sample, seed)
    counts = [collections.Counter(g for n in range(1, max(orders) + 1) for g in _ngrams(t, n)) for t in drawn]
    highest: dict[Tokens, tuple[int, int, int]] = {}  # n-gram -> highest count, next one, text of the highest
    for i, own in enumerate(counts):
        for gram, count in own.items():
            most, next_most, where = highest.get(gram, (0, 0, -1))
            if count > most:
                highest[gram] = count, most, i
            elif count > next_most:
                highest[gram] = most, count, where
    lengths = collections.Counter(map(len, drawn))
    scores = []
    for i, (tokens, own) in enumerate(zip(drawn, counts, strict=True)):
        matches = [0] * max(orders)
        for gram, count in own.items():
            most, next_most, where = highest[gram]
            matches[len(gram) - 1] += min(count, next_most if where == i else most)
        # Without its own length, unless another text is as long.
        others = [length for length in lengths if length != len(tokens) or lengths[length] > 1]
        scores += [_bleu(matches[:order], len(tokens), _closest(len(tokens), others)) for order in orders]
    return math.fsum(scores) / len(scores)


def _drawn(texts: Sequence[str], orders: Sequence[int], sample: int, seed: int) -> list[Tokens]:
    if not orders or min(orders) < 1:
        raise ValueError(f"n-grams have orders of 1 and more, not {tuple(orders)}")
    if min(len(texts), sample) < 2:
        raise ValueError(f"self-BLEU compares two texts or more: {len(texts)} texts, a sample of {sample}")
    chosen = random.Random(seed).sample(range(len(texts)), min(len(texts), sample))
    return [tokens_of(texts[i]) for i in chosen]


def _ngrams(tokens: Tokens, n: int) -> Iterator[Tokens]:
    return (tokens[i : i + n] for i in range(len(tokens) - n + 1))


def _closest(length: int, others: Sequence[int]) -> int:
    """The one of `others` that is closest to `length`; of two equally close ones, the shorter."""
    return min(others, key=lambda other: (abs(other - length), other))


def _bleu(matches: Sequence[int], length: int, closest: int) -> float:
    """Sentence BLEU of a text of `length` tokens of which `matches[n - 1]` n-grams are in the references."""
    if not matches[0]:
        return 0.0
    totals = [length - n for n in range(min(len(matches), length))]
    logs = [math.log((found or FLOOR) / total) for found, total in zip(matches, totals, strict=False)]
    return math.exp(math.fsum(logs) / len(logs) + min(0.0, 1 - closest / length))


def self_bleu_reference(
    texts: Sequence[str], orders: Sequence[int] = (2, 3, 4, 5), sample: int = 200, seed: int = 0
) -> float:
    """The same as `self_bleu`: every text scored against all others."""
    drawn = _drawn(texts, orders, sample, seed)
    scores = [
        bleu_reference(tokens, [*drawn[:i], *drawn[i + 1 :]], order)
        for i, tokens in enumerate(drawn)
        for order in orders
    ]
    return sum(scores) / len(scores)


def bleu_reference(tokens: Tokens, references: Sequence[Tokens], order: int) -> float:
    """Sentence BLEU as `self_bleu` defines it: an n-gram matches as often as it is in the reference that has it
    most often."""
    precisions = []
    for n in range(1, min(order, len(tokens)) + 1):
        own, most = collections.Counter(_ngrams(tokens, n)), collections.Counter()
        for reference in references:
            most |= collections.Counter(_ngrams(reference, n))
        matches = (own & most).total()
        if not matches and n == 1:
            return 0.0
        precisions.append((matches or FLOOR) / own.total())
    if not precisions:
        return 0.0
    brevity = min(1.0, math.exp(1 - _closest(len(tokens), [len(r) for r in references]) / len(tokens)))
    return brevity * math.prod(precisions) ** (1 / len(precisions))
