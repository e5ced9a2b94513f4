"""Filters for new examples. Near-duplicates are found by ROUGE-L against everything known, fast enough for
thousands: the longest common subsequence is counted in whole words of bits, and most pairs are ruled out by
their word counts alone.

    known = KnownTexts(texts)
    score, where = known.nearest("How many ...")
"""

import collections
import re
from collections.abc import Iterable

Words = tuple[str, ...]


def words_of(text: str) -> Words:
    """Lower-case words and numbers, as ROUGE counts them."""
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))


def lcs_length_reference(a: Words, b: Words) -> int:
    """Length of the longest common subsequence, by the textbook table."""
    row = [0] * (len(b) + 1)
    for word in a:
        previous = 0
        for j, other in enumerate(b, start=1):
            previous, row[j] = row[j], previous + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def lcs_length(a: Words, b: Words) -> int:
    """The same by bits (Hyyrö 2004): one addition of long integers for each word of `b`."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        match = row & places.get(word, 0)
        row = (row + match | row - match) & full
    return len(a) - row.bit_count()


def rouge_l(a: Words, b: Words) -> float:
    """ROUGE-L F1 of two word sequences (Lin 2004): 2 LCS / (len a + len b); 0 if both are empty."""
    total = len(a) + len(b)
    return 2 * lcs_length(a, b) / total if total else 0.0


class KnownTexts:
    """The texts that a new one must not repeat; grows as new ones are accepted."""

    def __init__(self, texts: Iterable[str] = ()):
        self._known: list[tuple[Words, collections.Counter[str]]] = []
        self._names: list[str] = []
        for text in texts:
            self.add(text)

    def add(self, text: str, name: str = "") -> None:
        words = words_of(text)
        self._known.append((words, collections.Counter(words)))
        self._names.append(name)

    def nearest(self, text: str) -> tuple[float, str]:
        """The highest ROUGE-L F1 against any known text, and that text's name (0 and "" if none is known)."""
        words = words_of(text)
        counts = collections.Counter(words)
        best, name = 0.0, ""
        for (other, other_counts), other_name in zip(self._known, self._names, strict=True):
            total = len(words) + len(other)
            if not total or 2 * min(len(words), len(other)) / total <= best:
                continue
            if 2 * (counts & other_counts).total() / total <= best:
                continue
            score = rouge_l(words, other)
            if score > best:
                best, name = score, other_name
        return best, name
