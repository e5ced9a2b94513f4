"""The questions that a new example must not repeat, by words and by meaning.

known = Known(limit=0.7, texts=[("test-1", "How many ..."), ...])
(found,) = known.repeats(["How many ..."])      # None, or why it is a repetition and of what
"""

from collections.abc import Iterable, Sequence

import numpy as np

from common.sample.embed import KnownVectors, centred
from common.text.filters import KnownTexts, NGrams
from common.text.novelty import Embed, Repeat
from common.text.same import normal_form

SHARED_WORDS = 13
"""A run of so many words shared with a test question means that the question leaked (Brown et al. 2020,
arXiv 2005.14165, appendix C)."""


class Known:
    """Grows as examples are accepted. `embed` turns questions into unit vectors; without it only words count."""

    def __init__(
        self,
        limit: float,
        texts: Iterable[tuple[str, str]],
        test: Iterable[str] = (),
        held_out: Iterable[str] = (),
        *,
        semantic: float | None = None,
        embed: Embed | None = None,
    ):
        """`texts`: names and questions; `test`: questions that must not even be quoted; `held_out`: questions that
        must not be asked, however they are written."""
        self._texts = KnownTexts(limit)
        # A longer question may quote a test question whole and still be unlike it by ROUGE-L.
        self._quotes = NGrams(SHARED_WORDS)
        for question in test:
            self._quotes.add(question)
        self._held_out = {normal_form(question) for question in held_out}
        named = list(texts)
        for name, question in named:
            self._texts.add(question, name)
        self._embed = None
        # Without any text there is no mean to centre on.
        if embed is not None and semantic is not None and named:
            self._embed = embed
            # Hidden states of any two texts point in much the same direction: what they share is taken off.
            raw = embed([question for _, question in named])
            self._mean = raw.mean(axis=0)
            self._vectors = KnownVectors(semantic)
            self._vectors.add(centred(raw, self._mean), [name for name, _ in named])
            self._latest: dict[str, np.ndarray] = {}

    def repeats(self, questions: Sequence[str | None]) -> list[Repeat | None]:
        """For each question (None: nothing to look at) what it repeats, if anything."""
        # Words first, which is cheap: only what passes is embedded.
        found = [None if question is None else self._by_words(question) for question in questions]
        if self._embed is None:
            return found
        left = {i: question for i, question in enumerate(questions) if question is not None and found[i] is None}
        for i, vector in zip(left, self._vectors_of(self._embed, list(left.values())), strict=True):
            near = self._vectors.near(vector)
            if near is not None:
                found[i] = Repeat("near-duplicate in meaning", near[1], near[0])
        return found

    def _by_words(self, question: str) -> Repeat | None:
        near = self._texts.near(question)
        if near is not None:
            return Repeat("near-duplicate", near[1], near[0])
        quoted = self._quotes.overlaps(question)
        if quoted is not None:
            return Repeat("quotes a test question", quoted, 1.0)
        held_out = normal_form(question) in self._held_out
        return Repeat("is a test or development question", question, 1.0) if held_out else None

    def add(self, question: str, name: str) -> None:
        """A question that was accepted."""
        self._texts.add(question, name)
        if self._embed is not None:
            self._vectors.add(self._vectors_of(self._embed, [question]), [name])

    def _vectors_of(self, embed: Embed, questions: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, D). A round asks for its questions together, then again one by one: they are kept."""
        if any(question not in self._latest for question in questions):
            vectors = centred(embed(questions), self._mean)
            self._latest = dict(zip(questions, vectors, strict=True))
        return np.array([self._latest[question] for question in questions])
