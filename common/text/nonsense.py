"""What no reader would take for text: words that turn in circles, heaps of signs, and, with a model at hand, what
is far less likely than the texts it should be like.

    gate = Gate.of(seed_texts, base.text_logps, deviations=4.0)
    gate.reasons(["What is the capital of the capital of the capital of …"])     # ["nonsense: repetition"]
"""

import dataclasses
import math
import re
import statistics
import unicodedata
from collections.abc import Callable, Iterable, Sequence

REPETITION, NO_TEXT, SCRIPT, UNLIKELY = (
    f"nonsense: {why}" for why in ("repetition", "not text", "another script", "unlikely")
)
MOST_REPEATS = 0.5
"""Share of runs of four words that came before: songs reach 0.4, texts that turn in circles 0.6 and more."""
LEAST_LETTERS = 0.3
"""Share of the visible characters that are letters, marks or digits; formulas and code have a third and more."""
FEWEST = 5
"""Seeds below which their spread says nothing of what is likely."""
_LOOP = re.compile(r"(?<!\S)(\S+(?:\s+\S+){0,3})(?:\s+\1(?!\S)){5,}")
_RUN = re.compile(r"((?:[^\W\d_]|[-_./,&]){1,12}?)\1{7,}|[!?,;:]{16,}")


def repeats(text: str) -> float:
    """The share of a text's runs of four words that stood in it before; 0 for fewer than twelve words, where one
    repeated phrase would count for much."""
    words = text.split()
    if len(words) < 12:
        return 0.0
    runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 1 - len(set(runs)) / len(runs)


def nonsense(text: str, most_repeats: float = MOST_REPEATS) -> str | None:
    """Why `text` is no text that anybody would write; None if nothing speaks against it. Sums and code are text.

    REPETITION: up to four words six times in succession, letters that go round eight times, or `repeats` above
    `most_repeats`. NO_TEXT: nothing visible, a replacement or control character, or mostly signs.
    """
    visible = [c for c in text if not c.isspace()]
    kinds = [unicodedata.category(c) for c in visible]
    # U+FFFD is what bytes are decoded to that form no character.
    if "\ufffd" in text or any(kind in ("Cc", "Co", "Cn", "Cs") for kind in kinds):
        return NO_TEXT
    if not visible or sum(kind[0] in "LMN" for kind in kinds) < LEAST_LETTERS * len(visible):
        return NO_TEXT
    # Rows of equal numbers are no loop, and neither is a line of dots or dashes.
    loops = [found[1] for kind in (_LOOP, _RUN) for found in kind.finditer(text)]
    if any(loop is None or re.search(r"[^\W\d_]", loop) for loop in loops) or repeats(text) > most_repeats:
        return REPETITION
    return None


def scripts(text: str) -> set[str]:
    """The scripts of a text's letters, by the first word of their Unicode names: LATIN, CYRILLIC, CJK, …"""
    return {unicodedata.name(c, "").partition(" ")[0] for c in text if c.isalpha()} - {""}


@dataclasses.dataclass(frozen=True)
class Gate:
    """Refuses nonsense among new texts that should be like some known ones. `scripts`: of those. `floor`: of the
    mean log-probability a token, in nats, by `logps`; None: likelihood is not looked at."""

    scripts: frozenset[str] = frozenset()
    floor: float | None = None
    logps: Callable[[Sequence[str]], Iterable[float]] | None = None

    @classmethod
    def of(
        cls, known: Sequence[str], logps: Callable[[Sequence[str]], Iterable[float]], deviations: float
    ) -> "Gate":
        """From known texts: `deviations` standard deviations below their mean lies the floor."""
        there = frozenset().union(*map(scripts, known))
        values = [float(v) for v in logps(known) if math.isfinite(v)] if len(known) >= FEWEST else []
        if len(values) < FEWEST:
            return cls(there)
        # Never above the least likely of them, which are texts after all; rounded like what is compared with it.
        floor = min(statistics.fmean(values) - deviations * statistics.stdev(values), *values)
        return cls(there, round(floor, 4), logps)

    def reasons(self, texts: Sequence[str | None]) -> list[str | None]:
        """Why each text is refused; None for a good one, and where there is none."""
        found = [None if text is None else self._reason(text) for text in texts]
        if self.logps is None or self.floor is None:
            return found
        good = [i for i, text in enumerate(texts) if text is not None and found[i] is None]
        for i, value in zip(good, self.logps([texts[i] or "" for i in good]) if good else [], strict=True):
            if math.isfinite(value) and round(float(value), 4) < self.floor:
                found[i] = UNLIKELY
        return found

    def _reason(self, text: str) -> str | None:
        if (why := nonsense(text)) is not None:
            return why
        # Names from elsewhere are no reason: a text must be mostly of scripts that none of the known ones has.
        letters = [c for c in text if c.isalpha()]
        if self.scripts and not letters:
            return NO_TEXT
        foreign = sum(unicodedata.name(c, "").partition(" ")[0] not in self.scripts for c in letters)
        return SCRIPT if self.scripts and foreign > len(letters) / 3 else None
