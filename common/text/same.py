"""Which texts ask the same, however they are written, and what a reader is told where a file asks twice.

    normal_form("Who  wrote “Emma” ?") == normal_form("WHO WROTE EMMA?")      # True
    rest = apart(train, test)                                                  # without what the test asks
    repeats("test.csv", [("who wrote emma", "austen"), ...], TESTED)           # [], or one line

Loads no numpy: data are checked before anything is loaded.
"""

import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence

from common.errors import quoted
from common.tasks.base import Example

TESTED = "the interval is narrower than it should be"
LEARNED = "each counts as an example of its own"
CHOSEN_BY = "the round is chosen by them as if they were different"
"""What follows where rows of a file repeat one another."""

_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_DASHES = re.compile("[\u2010-\u2015\u2212]")
# A point, comma or colon before a digit belongs to a number. Signs that calculations and code are made of stay:
# "3 - 4" is not "3 + 4".
_MARKS = re.compile("[.,:](?!\\d)|[;!?\"'`´‘’‚“”„«»‹›…¿¡。、·]")


def normal_form(text: str) -> str:
    """The text but for case, white space, marks of a sentence, quotes, and the ways of Unicode (NFKC) to write the
    same characters. Texts that differ in letters, digits or signs of a calculation keep different forms."""
    if not text.isascii():
        # Before NFKC, which would make 52 of 5².
        text = "".join(map(_on_the_line, _UNSEEN.sub("", text)))
        text = _DASHES.sub("-", unicodedata.normalize("NFKC", text))
    folded = text.casefold()
    if not folded.isascii():
        folded = unicodedata.normalize("NFKC", folded)
    return " ".join(_MARKS.sub(" ", folded).split()) or " ".join(folded.split())


def _on_the_line(character: str) -> str:
    """A raised or lowered character with a sign for that: "^2" for ²."""
    kind, _, _ = unicodedata.decomposition(character).partition(" ")
    return {"<super>": "^", "<sub>": "_"}.get(kind, "") + character


def apart(examples: Iterable[Example], held_out: Iterable[Example]) -> list[Example]:
    """Those of `examples` whose question is none of `held_out`, in normal form."""
    known = {normal_form(example.question) for example in held_out}
    return [example for example in examples if normal_form(example.question) not in known]


def repeats(where: str, rows: Sequence[Hashable], so: str) -> list[str]:
    """A warning where rows repeat others, none elsewhere. `rows`: what each asks, in normal form; `so`: what
    follows."""
    count = len(rows) - len(set(rows))
    return [repeated(where, count, len(rows), so)] if count else []


def repeated(where: str, count: int, of: int, so: str) -> str:
    """That `count` rows of so many repeat others."""
    return (
        f"{where}: {count} of {of} rows {'repeats' if count == 1 else 'repeat'} another one: {so}; take them out"
    )


def doubts(where: str, examples: Sequence[Example], so: str) -> list[str]:
    """What the rows of a file give reason to doubt: repetitions (see `repeats`), and a question that stands under
    several labels."""
    keys = [(normal_form(e.question), normal_form(e.label)) for e in examples]
    labels: dict[str, dict[str, Example]] = {}
    for (question, label), example in zip(keys, examples, strict=True):
        labels.setdefault(question, {}).setdefault(label, example)
    torn = [list(found.values()) for found in labels.values() if len(found) > 1]
    told = repeats(where, keys, so)
    if torn:
        first = torn[0]
        stand = "question stands" if len(torn) == 1 else "questions stand"
        named = " and ".join(quoted(example.label) for example in first[:3])
        told.append(
            f"{where}: {len(torn)} {stand} under different labels, such as {quoted(first[0].question)} under "
            f"{named}: correct them"
        )
    return told
