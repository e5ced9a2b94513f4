"""Filters for new examples: near-duplicates by ROUGE-L against all that is known, n-grams shared with a test set.

    known = KnownTexts(limit=0.7)
    known.add("How many apples does Ada have?", "seed-1")
    known.near("How many pears does Ada have?")         # (0.833, "seed-1"), or None

`KnownTexts` is exact and never looks at most of what it knows. `near_reference` is the plain search through all.
"""

import array
import collections
import hashlib
import re
import unicodedata
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

Words = tuple[str, ...]

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> Words:
    """Lower-case words and numbers: runs of letters and digits of any script.

    On ASCII text these are the words that ROUGE counts. In a script without spaces every run is one word. A text
    of punctuation only has no words: it is near nothing, not even itself.
    """
    return tuple(_WORD.findall(unicodedata.normalize("NFC", text.lower())))


_REFUSAL = re.compile(
    r"\b(?:(?:I|we) (?:can ?not|can'?t|won'?t|will not|must not|am (?:not able|unable|sorry)|am not going)|I'm "
    r"(?:sorry|unable|not able|not going)|(?:I'd|I would|I had) rather not|I (?:must|have to) decline)\b",
    re.IGNORECASE,
)


def refuses(answer: str) -> bool:
    """Whether an English answer declines: one of the common phrases is in its first 200 characters."""
    # Who declines does so at the beginning; further on, such a phrase may be anybody's.
    return _REFUSAL.search(answer[:200].replace("’", "'")) is not None


def lcs_length_reference(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, by the textbook table."""
    row = [0] * (len(b) + 1)
    for word in a:
        previous = 0
        for j, other in enumerate(b, start=1):
            previous, row[j] = row[j], previous + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def lcs_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The same by bits (Hyyrö 2004): one addition of long integers for each word of `b`."""
    return _lcs_with(_places(a), len(a), b)


def _places(words: Sequence[Hashable]) -> dict[Hashable, int]:
    """For every word the set of its places, as bits."""
    places: dict[Hashable, int] = {}
    for i, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << i
    return places


def _lcs_with(places: dict[Hashable, int], length: int, b: Sequence[Hashable]) -> int:
    full = (1 << length) - 1
    row = full
    for word in b:
        match = row & places.get(word, 0)
        if match:
            row = (row + match | row - match) & full
    return length - row.bit_count()


def rouge_l(a: Words, b: Words) -> float:
    """ROUGE-L F1 of two word sequences (Lin 2004): 2 LCS / (len a + len b); 0 if both are empty."""
    total = len(a) + len(b)
    return 2 * lcs_length(a, b) / total if total else 0.0


def near_reference(known: Sequence[tuple[str, str]], text: str, limit: float) -> tuple[float, str] | None:
    """What `KnownTexts(limit).near(text)` finds after adding every (text, name) of `known`, by trying all."""
    best, found, words = limit, None, words_of(text)
    for other, name in known:
        score = rouge_l(words, words_of(other))
        if score > best:
            best, found = score, (score, name)
    return found


class KnownTexts:
    """The texts that a new one must not repeat. It grows as new ones are accepted.

    An inverted index by prefix filtering (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007), exact:

    - A text of n words is taken as a set of n items, the second "the" being another item than the first. A common
      subsequence is a common subset, so two texts of n and m words can only exceed `limit` if they share at least
      need(n + m) items, that is at least least(n) = min over m of need(n + m), whatever m is.
    - The items of every text stand in one order; its front is all but the last least(n) - 1. Of two texts, let the
      front of the first end no later in that order. Then each shared item is in both fronts or among the last
      least(n) - 1 of the first. So the fronts share at least need(n + m) - max(least(n), least(m)) + 1 items.
    - Only fronts are indexed and looked up; only texts whose fronts share enough items are compared word by word.

    Any order will do if all texts have it in common; rare items in front make it fast. Frequencies change as texts
    are added, so they are frozen until the number of texts has doubled, then counted again and the index is built
    anew; in total that costs no more than adding every text twice more. In between, an item that was not counted
    has its fixed place as well: before all counted ones, by its number.

    Memory: 4 bytes a word, 4 an item of the front (about half of the words at limit 0.7), 20 a text, the
    names, and some 300 a distinct item.
    """

    def __init__(self, limit: float):
        """`limit`: the ROUGE-L F1 that a near text exceeds, from 0 to 1. Raises ValueError for another."""
        if not 0 <= limit <= 1:
            raise ValueError(f"the limit of ROUGE-L is between 0 and 1, not {limit}")
        self._limit = limit
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}  # of words
        self._words = array.array("I")  # of all texts, one after another
        self._starts = array.array("Q", [0])
        self._lengths = array.array("I")
        self._bounds_known = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._frequency: collections.Counter[int] = collections.Counter()
        self._postings: dict[int, array.array] = {}  # item -> the texts that have it in front
        self._rebuild_at = 64

    def __len__(self) -> int:
        return len(self._names)

    def add(self, text: str, name: str = "") -> None:
        """Know `text`, to be reported by `name`."""
        numbers = [self._numbers.setdefault(word, len(self._numbers)) for word in words_of(text)]
        self._names.append(name)
        self._words.extend(numbers)
        self._starts.append(len(self._words))
        self._lengths.append(len(numbers))
        if len(self) < self._rebuild_at:
            self._post(len(self) - 1)
        else:
            self._rebuild_at *= 2
            self._rebuild()

    def near(self, text: str) -> tuple[float, str] | None:
        """The highest ROUGE-L F1 over all known texts and the name of the first that has it; None where none
        exceeds the limit."""
        words = words_of(text)
        numbers = [self._numbers.get(word, -1) for word in words]
        places = _places(numbers)
        best, found = self._limit, None
        for other in self._candidates(numbers):
            theirs = self._words[self._starts[other] : self._starts[other + 1]]
            total = len(numbers) + len(theirs)
            # Cheap, and rules out most: at best, all of their words that occur here are in the subsequence.
            if 2 * sum(map(places.__contains__, theirs)) / total > best:
                score = 2 * _lcs_with(places, len(numbers), theirs) / total
                if score > best:
                    best, found = score, (score, self._names[other])
        return found

    def _candidates(self, numbers: Sequence[int]) -> list[int]:
        """In the order they were added, the texts whose fronts share enough items with the front of this one."""
        n = len(numbers)
        known = [number for number in numbers if number >= 0]
        found = [self._postings[item] for item in self._front(known, n) if item in self._postings]
        if not found:
            return []
        texts, shared = np.unique(np.concatenate([np.frombuffer(p, np.uint32) for p in found]), return_counts=True)
        m = np.frombuffer(self._lengths, np.uint32)[texts].astype(np.int64)
        need, least = self._bounds(n + int(m.max()))
        needed = need[n + m]
        enough = (shared > needed - np.maximum(least[n], least[m])) & (np.minimum(n, m) >= needed)
        return texts[enough].tolist()

    def _front(self, numbers: Sequence[int], n: int) -> list[int]:
        """The front of a text of `n` words; `numbers` lacks those that no known text has, which stand first."""
        frequency, least = self._frequency, int(self._bounds(n)[1][n])
        items = sorted(_items(numbers), key=lambda item: (frequency.get(item, 0), item))
        return items[: max(0, len(items) - least + 1)]

    def _bounds(self, top: int) -> tuple[np.ndarray, np.ndarray]:
        """need(total) and least(n), see above, for arguments up to `top` or more."""
        if top >= len(self._bounds_known[0]):
            need, least, c, d = [], [], 0, 0
            for total in range(2 * top + 1):
                # In the same floating-point terms as the score, so that both agree at the limit itself.
                while total and 2 * c / total <= self._limit:
                    c += 1
                # Fewest where the other text is wholly contained: then it has as many words as are shared.
                while total and 2 * d / (total + d) <= self._limit and d <= total:
                    d += 1
                need.append(c)
                least.append(d)
            self._bounds_known = np.array(need), np.array(least)
        return self._bounds_known

    def _post(self, text: int) -> None:
        numbers = self._words[self._starts[text] : self._starts[text + 1]]
        for item in self._front(numbers, len(numbers)):
            self._postings.setdefault(item, array.array("I")).append(text)

    def _rebuild(self) -> None:
        self._postings.clear()
        self._frequency.clear()
        for text in range(len(self)):
            self._frequency.update(_items(self._words[self._starts[text] : self._starts[text + 1]]))
        for text in range(len(self)):
            self._post(text)


def _items(numbers: Sequence[int]) -> list[int]:
    """One distinct integer for every word of a text: its number, with how often it came before above 32 bits."""
    came: dict[int, int] = {}
    items = []
    for number in numbers:
        before = came.get(number, 0)
        came[number] = before + 1
        items.append(number | before << 32)
    return items


class NGrams:
    """Runs of `n` words of known texts, such as a test set, to report what a new text shares with it.

    Brown et al. 2020 (appendix C) use 13 words. A shorter text counts as one run, found only in an equal text.
    Runs are kept as 64-bit hashes, about 70 bytes each: in a billion comparisons with a million known runs the
    probability of a false match is below 1e-4.
    """

    def __init__(self, n: int = 13):
        """Raises ValueError for n below 1."""
        if n < 1:
            raise ValueError(f"a run has at least one word, not {n}")
        self._n = n
        self._hashes: set[int] = set()

    def add(self, text: str) -> None:
        self._hashes.update(_hash(run) for run in self._runs(text))

    def overlaps(self, text: str) -> str | None:
        """The first run of `text` that a known text has too, its words joined by spaces; None without one."""
        return next((run for run in self._runs(text) if _hash(run) in self._hashes), None)

    def _runs(self, text: str) -> Iterator[str]:
        words = words_of(text)
        for start in range(max(1, len(words) - self._n + 1) if words else 0):
            yield " ".join(words[start : start + self._n])


def _hash(run: str) -> int:
    return int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little")
