"""What is new against a growing history, by words and by meaning.

    history = History(jaccard=0.78, cosine=0.96, embed=embed)
    history.add_new(["How many apples has Ada?", ...], ["a", ...])      # [None, ...]: each None is now known
    history.repeats(["How many apples has Ada now?"])                   # [Repeat("near-duplicate", "a", 0.8125)]

By words, texts are sets: unlike `filters.KnownTexts`, which looks at their order, this finds the same words
rearranged. `near_words_reference` is the plain search through all.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from common.sample.embed import KnownVectors, centred
from common.text.filters import words_of

if TYPE_CHECKING:
    from datasketch import MinHash

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts to unit vectors (N, D)."""

PERMUTATIONS = 128
"""Hash values in a sketch. The estimate of a Jaccard index J has a standard error of √(J (1 - J) / 128), at 0.78
of 0.037."""


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Why a text counts as a repetition, the name of the nearest known one, and how near it is."""

    reason: str
    name: str
    score: float


class History:
    """Grows by every text that is new.

    Texts without words are near nothing. Memory: about 10 kB a text for the words; for the meaning see
    `KnownVectors`.
    """

    def __init__(
        self,
        jaccard: float = 0.78,
        cosine: float = 0.96,
        embed: Embed | None = None,
        reference: Sequence[str] = (),
    ):
        """`jaccard`: the estimated Jaccard index of two sets of words that makes them near-duplicates, above 0 and
        up to 1; `cosine`: the one that near vectors exceed; without `embed` only words count.

        The mean vector of the texts in `reference` is subtracted from every vector. Give them where `embed`
        averages the hidden states of a language model: those of any two texts point in much the same direction.

        Raises ValueError for a limit out of its range.
        """
        self._words = KnownWords(jaccard)
        self._vectors = KnownVectors(cosine)
        self._embed = embed
        self._mean = np.zeros((), np.float32)
        if embed is not None and reference:
            self._mean = np.asarray(embed(reference).mean(axis=0))

    def add_new(self, texts: Sequence[str], names: Sequence[str]) -> list[Repeat | None]:
        """For each text, in order, what known text it repeats; one that repeats none is known from there on.

        So the first of several near-duplicates in a batch is new, and the others repeat it. Raises ValueError,
        and adds nothing, if there are more texts than names or fewer.
        """
        if len(texts) != len(names):
            raise ValueError(f"{len(names)} names for {len(texts)} texts")
        found = []
        for (sketch, vector), name in zip(self._read(texts), names, strict=True):
            found.append(self._repeat(sketch, vector))
            # Without words it is near nothing, and would only fill the index.
            if found[-1] is None and not sketch.is_empty():
                self._words.add(sketch, name)
                if vector is not None:
                    self._vectors.add(vector[None], [name])
        return found

    def repeats(self, texts: Sequence[str]) -> list[Repeat | None]:
        """For each text alone what known text it repeats; none is added."""
        return [self._repeat(sketch, vector) for sketch, vector in self._read(texts)]

    def _read(self, texts: Sequence[str]) -> list[tuple["MinHash", np.ndarray | None]]:
        """Sketch and vector (D,) of each text. Vectors cost most, so a text whose words are known, or that
        has none, gets no vector."""
        sketched = sketches(texts)
        if self._embed is None:
            return [(sketch, None) for sketch in sketched]
        left = [i for i, s in enumerate(sketched) if not s.is_empty() and self._words.near(s) is None]
        vectors = centred(self._embed([texts[i] for i in left]), self._mean) if left else ()
        vector_of = dict(zip(left, vectors, strict=True))
        return [(sketch, vector_of.get(i)) for i, sketch in enumerate(sketched)]

    def _repeat(self, sketch: "MinHash", vector: np.ndarray | None) -> Repeat | None:
        near = self._words.near(sketch)
        if near is not None:
            return Repeat("near-duplicate", near[1], near[0])
        near = None if vector is None else self._vectors.near(vector)
        return None if near is None else Repeat("near-duplicate in meaning", near[1], near[0])


def sketches(texts: Sequence[str]) -> list["MinHash"]:
    """MinHash sketches (Broder 1997) of the sets of words of `texts`; a text without words has an empty one.

    Nothing in them is random: the permutations are those of one seed, words are hashed by CRC-32, and the scheme
    is named because another version of datasketch may have another default. With this scheme the estimates of 9
    to 50 words have no bias above 0.002 (2,000 pairs each).
    """
    from datasketch import MinHash  # half a second or more

    words = ([word.encode() for word in words_of(text)] for text in texts)
    return MinHash.bulk(words, num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32, scheme="affine32")


class KnownWords:
    """The sets of words, as sketches, that a new one must not come near.

    The estimate of a Jaccard index is the share of equal hash values in two sketches, so near sketches differ in
    at most d = 128 - ⌈128 · limit⌉ of them. The index (locality-sensitive hashing: Indyk and Motwani 1998) cuts
    each sketch into d + 1 bands, and only sketches with an equal band are compared. As d differences cannot be in
    d + 1 bands, none that is near is missed: what is found is what a search through all would find. The usual
    choice, fewer and longer bands, would miss some to compare fewer. At 0.78 there are 29 bands of 4 values.
    """

    def __init__(self, limit: float):
        """`limit`: the least estimate of a near sketch, above 0 and up to 1. Raises ValueError for another."""
        if not 0 < limit <= 1:
            raise ValueError(f"the limit of a Jaccard index is above 0 and at most 1, not {limit}")
        from datasketch import MinHashLSH

        self._limit = limit
        bands = max(2, PERMUTATIONS - math.ceil(PERMUTATIONS * limit) + 1)  # datasketch takes no single band
        self._index = MinHashLSH(num_perm=PERMUTATIONS, params=(bands, PERMUTATIONS // bands))
        self._sketches: list[np.ndarray] = []
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, sketch: "MinHash", name: str) -> None:
        """Know a sketch, not an empty one, by its name."""
        self._index.insert(len(self), sketch)
        self._sketches.append(sketch.hashvalues)
        self._names.append(name)

    def near(self, sketch: "MinHash") -> tuple[float, str] | None:
        """The highest estimate for `sketch` with any known one and the name of the first that has it; None where
        none reaches the limit."""
        # In the order of adding: of equal estimates the first known text is reported.
        candidates = sorted(cast("list[int]", self._index.query(sketch)))
        if not candidates:
            return None
        estimates = (np.array([self._sketches[i] for i in candidates]) == sketch.hashvalues).mean(axis=1)
        best = int(estimates.argmax())
        if estimates[best] < self._limit:
            return None
        return float(estimates[best]), self._names[candidates[best]]


def near_words_reference(known: Sequence[tuple[str, str]], text: str, limit: float) -> tuple[float, str] | None:
    """What `KnownWords(limit)` finds near `text` after adding every (text, name) of `known`, by trying all."""
    best, found = 0.0, None
    sketch, *others = sketches([text, *(other for other, _ in known)])
    for (other, name), theirs in zip(known, others, strict=True):
        estimate = sketch.jaccard(theirs) if words_of(text) and words_of(other) else 0.0
        if estimate >= limit and estimate > best:
            best, found = estimate, (estimate, name)
    return found
