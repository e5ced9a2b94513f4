"""Filters for new examples: near-duplicates by ROUGE-L against all that is known, n-grams shared with a test set.

    known = KnownTexts(limit=0.7)
    known.add("How many apples does Ada have?", "seed-1")
    known.near("How many pears does Ada have?")         # (0.833, "seed-1"), or None

`KnownTexts` is exact and never looks at most of what it knows. `near_reference` is the plain search through all.
"""

import array
import bisect
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
      need = need(n + m) items. The shorter has that many words only if m >= least(n), the least m with
      need(n + m) <= m; and need(n + m) >= need(n + least(n)) = least(n).
    - The items of every text stand in one order; the rest of an item is how many of its text stand from there to
      the end, itself included. Of the items that two texts share, the first k = few(need) have a rest of at least
      need - k + 1 in both. So items with less do not count, and the others must include k shared ones. One shared
      item would do (k = 1), but a few are hardly ever shared by chance (Wang, Li and Feng 2012).
    - An item is indexed if its rest is enough for some m, and so for m = least(n), as need - few(need) + 1 grows
      with need. Its texts are sorted by length: for an item of a new text, only those lengths are read for which
      its rest there is enough.

    Any order will do if all texts have it in common; rare items in front make it fast. Frequencies change as texts
    are added, so they are frozen until there are four times as many texts, then counted again and the index is
    built anew; in total that costs no more than adding every text another 4/3 times. In between, an item that was
    not counted has its fixed place as well: before all counted ones.

    Memory: 4 bytes a word, 8 an indexed item (about half of the words at limit 0.7), 8 a text, the names, and some
    300 a distinct item.
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
        self._longest = 0
        self._need, self._rest = [0], [1]  # by n + m: the shared items, the rest that counts
        self._ranks: dict[int, int] = {}  # item -> its place in the order, from the rarest
        # place -> its texts, as length << 32 | number, ascending
        self._postings = collections.defaultdict[int, array.array](lambda: array.array("Q"))
        self._rebuild_at = 64

    def __len__(self) -> int:
        return len(self._names)

    def add(self, text: str, name: str = "") -> None:
        """Know `text`, to be reported by `name`."""
        numbers = [self._numbers.setdefault(word, len(self._numbers)) for word in words_of(text)]
        self._names.append(name)
        self._words.extend(numbers)
        self._starts.append(len(self._words))
        self._longest = max(self._longest, len(numbers))
        if len(self) < self._rebuild_at:
            self._post(len(self) - 1)
        else:
            self._rebuild_at *= 4
            self._rebuild()

    def near(self, text: str) -> tuple[float, str] | None:
        """The highest ROUGE-L F1 over all known texts and the name of the first that has it; None where none
        exceeds the limit."""
        words = words_of(text)
        numbers = [self._numbers.get(word, -1) for word in words]
        places = _places(numbers)
        best, found = self._limit, None
        for other in self._candidates(numbers):
            theirs = self._words_of(other)
            total = len(numbers) + len(theirs)
            # Cheap, and rules out most: at best, all of their words that occur here are in the subsequence.
            if 2 * sum(map(places.__contains__, theirs)) / total > best:
                score = 2 * _lcs_with(places, len(numbers), theirs) / total
                if score > best:
                    best, found = score, (score, self._names[other])
        return found

    def _words_of(self, text: int) -> array.array:
        return self._words[self._starts[text] : self._starts[text + 1]]

    def _candidates(self, numbers: Sequence[int]) -> list[int]:
        """In the order they were added, the texts that share enough items early enough with this one."""
        n = len(numbers)
        least, found = self._least(n), array.array("Q")
        longest = bisect.bisect_right(self._need, n) - n  # from here on, more must be shared than there are words
        # Words that no known text has stand first.
        for rest, place in self._front([number for number in numbers if number >= 0], least):
            texts = self._postings.get(place)
            if texts is not None:
                end = min(longest, bisect.bisect_right(self._rest, rest) - n)
                found += texts[bisect.bisect_left(texts, least << 32) : bisect.bisect_left(texts, end << 32)]
        texts, enough = np.frombuffer(found, np.uint64).astype(np.uint32), _few(least)
        # What comes often enough is found by sorting, and there is little to sort once the texts are gone that do
        # not even come often enough together with those of the same last bits.
        bits = texts & ((4 << len(texts).bit_length()) - 1)
        texts = np.sort(texts[np.bincount(bits)[bits] >= enough])
        often = texts[enough - 1 :] == texts[: len(texts) - enough + 1]
        return list(dict.fromkeys(texts[enough - 1 :][often].tolist()))

    def _front(self, numbers: Sequence[int], least: int) -> Iterator[tuple[int, int]]:
        """Of the items whose rest counts for some text of `least` or more words: their rest and place."""
        places = sorted([self._ranks.get(item, ~item) for item in _items(numbers)])
        return zip(range(len(places), least - _few(least), -1), places, strict=False)

    def _least(self, n: int) -> int:
        """The fewest words of a text that can be near one of `n` words."""
        while len(self._need) <= n + max(n, self._longest) + 1:
            # In the same floating-point terms as the score, so that both agree at the limit itself.
            total, need = len(self._need), self._need[-1]
            need += 2 * need / total <= self._limit
            self._need.append(need)
            self._rest.append(need - _few(need) + 1)
        return bisect.bisect_left(range(n + 1), 0, key=lambda m: m - self._need[n + m])

    def _post(self, text: int) -> None:
        numbers = self._words_of(text)
        for _, place in self._front(numbers, self._least(len(numbers))):
            bisect.insort(self._postings[place], len(numbers) << 32 | text)

    def _rebuild(self) -> None:
        counts = collections.Counter(item for text in range(len(self)) for item in _items(self._words_of(text)))
        by_count = sorted(counts, key=lambda item: (counts[item], item))
        self._ranks = {item: place for place, item in enumerate(by_count)}
        self._postings.clear()
        # The shortest first, so that every list grows at its end.
        for text in sorted(range(len(self)), key=lambda text: self._starts[text + 1] - self._starts[text]):
            self._post(text)


def _few(need: int) -> int:
    """Of `need` shared items, how many are looked for: the longer texts are, the more they share by chance."""
    return min(need, 3 + need // 24)


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
