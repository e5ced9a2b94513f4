"""Which texts ask the same, however they are written, and what a reader is told where a file asks twice.

    normal_form("Who  wrote “Emma” ?") == normal_form("WHO WROTE EMMA?")      # True
    rest = apart(train, test)                                                  # without what the test asks
    repeats("test.csv", [("who wrote emma", "austen"), ...], TESTED)           # [], or one line

Loads no numpy: data are checked before anything is loaded.
"""

import functools
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
# A point, comma or colon before a digit belongs to a number. Signs that calculations and code are made of stay:
# "3 - 4" is not "3 + 4".
_MARKS = re.compile("[.,:](?!\\d)|[;!?\"'`]")


def normal_form(text: str) -> str:
    """The text but for case, white space between words and around signs, marks of a sentence, quotes, and the ways
    of Unicode (NFKC) to write the same characters. Texts that differ in letters, digits or signs of a calculation
    keep different forms."""
    if not text.isascii():
        # Before NFKC, which would make 52 of 5², and a blank with an accent of an acute.
        text = "".join(map(_on_the_line, _UNSEEN.sub("", text).replace("´", "'")))
        text = unicodedata.normalize("NFKC", text)
    folded = text.casefold()
    if not folded.isascii():
        folded = "".join(map(_in_ascii, unicodedata.normalize("NFKC", folded)))
    first, *words = _MARKS.sub(" ", folded).split() or folded.split() or [""]
    form = first
    for word in words:
        form += word if _is_sign(form[-1]) or _is_sign(word[0]) else f" {word}"
    return form


def _on_the_line(character: str) -> str:
    """A raised or lowered character with a sign for that: "^2" for ²."""
    kind, _, _ = unicodedata.decomposition(character).partition(" ")
    return {"<super>": "^", "<sub>": "_"}.get(kind, "") + character


@functools.lru_cache(10_000)
def _in_ascii(character: str) -> str:
    """A mark of a sentence, of any script, as one that `_MARKS` knows; a dash as "-"; all else as it is."""
    kind, direction = unicodedata.category(character), unicodedata.bidirectional(character)
    if character.isascii() or kind[0] not in "PS":
        return character
    if kind == "Pd" or character == "\N{MINUS SIGN}":
        return "-"
    if kind in ("Ps", "Pe"):  # quotes; those of formulas, such as ⌈, are narrow and have a mirror image
        is_mark = not unicodedata.mirrored(character) or unicodedata.east_asian_width(character) == "W"
    else:  # a sign of a percentage or a decimal point (ET, AN) belongs to its number
        is_mark = kind in ("Po", "Pi", "Pf") and direction not in ("ET", "AN")
    return character if not is_mark else "," if direction == "CS" else ";"


@functools.lru_cache(10_000)
def _is_sign(character: str) -> bool:
    """Whether blanks beside it say nothing: "2+3" is "2 + 3". Those beside a point do: "3 .5" is not "3.5"."""
    return unicodedata.category(character)[0] in "PS" and character not in ".,:_"


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
    several labels (see `torn`)."""
    keys = _keys(examples)
    return repeats(where, keys, so) + torn(where, examples, keys)


def _keys(examples: Sequence[Example]) -> list[tuple[str, str]]:
    """Questions and labels in normal form."""
    return [(normal_form(example.question), normal_form(example.label)) for example in examples]


def torn(where: str, examples: Sequence[Example], keys: Sequence[tuple[str, str]] | None = None) -> list[str]:
    """A warning where questions stand under several labels, none elsewhere. `keys`: both in normal form."""
    labels: dict[str, dict[str, Example]] = {}
    for (question, label), example in zip(keys or _keys(examples), examples, strict=True):
        labels.setdefault(question, {}).setdefault(label, example)
    found = [list(under.values()) for under in labels.values() if len(under) > 1]
    if not found:
        return []
    stand = "question stands" if len(found) == 1 else "questions stand"
    named = " and ".join(quoted(example.label) for example in found[0][:3])
    return [
        f"{where}: {len(found)} {stand} under different labels, such as {quoted(found[0][0].question)} under "
        f"{named}: correct them"
    ]
