"""Preference: whether models, asked to judge, agree with each other and with people; and whose answers win.

A model judges a pair of answers by which letter it finds likelier after the question below, in both orders. With
d = (log p(A) - log p(B)) for answer one in place A, and d' for the swapped order, it prefers answer one where
d - d' > 0: what a letter or a place has going for it cancels. A preference is consistent where d and -d' have one
sign. An outside judge answers in words, in both orders; where its two verdicts contradict each other it is a tie.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.backends.budget import BUDGET_SPENT
from common.config import SampleConfig
from common.errors import UserError
from common.evals.figures import Figure, Scorer, mean_figure
from common.evals.likelihood import Item
from common.generate import Generator, Record, Request
from common.results.rundir import RunDir
from common.tasks.files import Row, read_rows, require, row_id

SCORER = Scorer("likelihood of the letters A and B, both orders")
QUESTION = (
    "Which of two answers to a prompt is better?\n\nPrompt: {prompt}\n\nAnswer A: {a}\n\nAnswer B: {b}\n\n"
    "The better answer is"
)
ASK = QUESTION.replace(
    "The better answer is", "Reply with the letter of the better answer, A or B, and nothing else."
)
TIE = 1e-4


@dataclasses.dataclass(frozen=True)
class Pair:
    """`human`: 1 where people prefer the first answer, 0 the second, None where it is not known."""

    id: str
    prompt: str
    first: str
    second: str
    human: int | None


def load_pairs(file: pathlib.Path, limit: int | None = None) -> list[Pair]:
    """Rows with prompt, answer_a, answer_b and perhaps choice (A or B). Raises UserError, naming the row."""
    pairs = []
    for i, (row, place) in enumerate(read_rows(file)[:limit]):
        prompt, first, second = (require(row, name, place) for name in ("prompt", "answer_a", "answer_b"))
        human = None
        if row.get("choice") not in (None, ""):
            choice = require(row, "choice", place).upper()
            if choice not in ("A", "B"):
                raise UserError(f"{place}: choice {choice!r} is neither A nor B")
            human = int(choice == "A")
        pairs.append(Pair(row_id(row, str(i)), prompt, first, second, human))
    return pairs


def items_of(pairs: Sequence[Pair]) -> list[Item]:
    """Four texts a pair: A and B in the given order, A and B in the other one."""
    items = []
    for pair in pairs:
        orders = [
            QUESTION.format(prompt=pair.prompt, a=one, b=other)
            for one, other in ((pair.first, pair.second), (pair.second, pair.first))
        ]
        items.append(Item(pair.id, tuple((order, f" {letter}") for order in orders for letter in "AB")))
    return items


def choices(rows: Sequence[Row]) -> list[float | None]:
    """1 where the first answer is preferred, 0 the second, 0.5 neither; None for pairs that do not fit."""
    found: list[float | None] = []
    for row in rows:
        if row["logps"] is None:
            found.append(None)
            continue
        a, b, a_swapped, b_swapped = row["logps"]
        lead = (a - b) - (a_swapped - b_swapped)
        found.append(0.5 if abs(lead) < TIE else float(lead > 0))
    return found


def figures(pairs: Sequence[Pair], rows: Sequence[Row], seed: int = 0) -> dict[str, Figure]:
    """In per cent: pairs whose preference is the same in both orders; letter A chosen over both orders (50: no
    place is favoured); agreement with people where they chose, a tie counts one half. Bootstrap over pairs."""
    consistent: list[float | None] = []
    letters: list[float | None] = []
    for row in rows:
        if row["logps"] is None:
            consistent.append(None)
            letters.append(None)
            continue
        a, b, a_swapped, b_swapped = row["logps"]
        consistent.append(float((a - b) * (a_swapped - b_swapped) < 0))
        letters.append((float(a > b) + float(a_swapped > b_swapped)) / 2)
    human = [
        None if choice is None or pair.human is None else 1 - abs(pair.human - choice)
        for pair, choice in zip(pairs, choices(rows), strict=True)
    ]
    found = {
        "consistent": mean_figure(consistent, SCORER, seed, 100),
        "letter_a": mean_figure(letters, SCORER, seed, 100),
    }
    known = any(value is not None for value in human)
    return found | ({"agreement_with_people": mean_figure(human, SCORER, seed, 100)} if known else {})


def agreement(one: Sequence[float | None], other: Sequence[float | None], seed: int = 0) -> Figure:
    """Share of pairs, in per cent, on which two models prefer the same answer; a tie of one counts one half."""
    values = [1 - abs(a - b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return mean_figure(values, SCORER, seed, 100)


# ---- an outside judge of the models' own answers


def verdicts(
    run: RunDir,
    name: str,
    judge: Generator,
    prompts: Mapping[str, str],
    ours: Mapping[str, str | None],
    theirs: Mapping[str, str | None],
    seed: int,
) -> list[dict[str, Any]]:
    """A row for each prompt that both answered: the judge's verdict in both orders, and what they come to (1:
    ours, 0: theirs, 0.5: they contradict each other, None: no verdict), and whether the budget covered it."""
    from common.stages import collect

    both = [i for i in prompts if ours.get(i) is not None and theirs.get(i) is not None]
    requests = []
    for i in both:
        for order, (a, b) in (("given", (ours[i], theirs[i])), ("swapped", (theirs[i], ours[i]))):
            text = ASK.format(prompt=prompts[i], a=a, b=b)
            requests.append(Request(f"{i}/{order}", ({"role": "user", "content": text},)))
    records = collect(run, name, judge, requests, SampleConfig(max_new_tokens=8), seed)
    return list(_joined(both, records))


def _joined(ids: Sequence[str], records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    for i, given, swapped in zip(ids, records[::2], records[1::2], strict=True):
        first, second = letter_of(given.text), letter_of(swapped.text)
        known = first is not None and second is not None
        value = (float(first == "A") + float(second == "B")) / 2 if known else None
        paid = BUDGET_SPENT not in (given.error, swapped.error)
        yield {"id": i, "given": first, "swapped": second, "value": value, "paid": paid}


_ALONE = re.compile(r"\W*(?:(?:answer|option)\W+)?([AB])\W*", re.IGNORECASE)
_FIRST = re.compile(r"\W*(?:answer\W+|option\W+)?([AB])\s*[.)\]*:\n]", re.IGNORECASE)
_LETTER = re.compile(r"(?<![\w'’])([AB])(?![\w'’])")
_ARTICLE = re.compile(r"(?<![\w'’])A(?=\s+(?!(?:is|was|seems|wins|because|since|as|and|or|but|over|than)\b)[a-z])")
_LOSER = re.compile(r"\b(?:than|over|rather|instead)\b", re.IGNORECASE)
_UNDECIDED = re.compile(
    r"n't\b|\b(?:not|no|neither|nor|both|either|ties?|tied|equal|equally|same|cannot|worse|weaker|less)\b",
    re.IGNORECASE,
)


def letter_of(text: str | None) -> str | None:
    """The verdict a reply states; None where it states none, or both.

    It is the one letter that the reply names before a "than" or an "over", whatever stands around it: "B",
    "Answer: B", "\\boxed{B}", "The better answer is **B**", "B is better than A". An article is no letter, as in
    "A tie", and a reply that denies or weighs ("not A", "both", "equal") decides nothing unless it begins with the
    letter and a full stop.
    """
    plain = re.sub(r"\\(?:boxed|text|textbf|mathbf|mathrm)\b|[*_`$]", " ", text or "")
    if found := _ALONE.fullmatch(plain):
        return found[1].upper()
    letters = set(_LETTER.findall(_ARTICLE.sub("", _LOSER.split(plain)[0])))
    if len(letters) != 1:
        return None
    (letter,) = letters
    first = _FIRST.match(plain)
    clear = first is not None and first[1].upper() == letter
    return letter if clear or not _UNDECIDED.search(plain) else None


def win_rate(rows: Sequence[dict[str, Any]], judge: Scorer, seed: int = 0) -> Figure:
    """In per cent of prompts with a verdict, a tie counts one half; `contradicted` and `no_verdict` beside it, and
    how many of the latter the budget did not cover, `unpaid`."""
    values = [row["value"] for row in rows if row["value"] is not None]
    unpaid = sum(not row["paid"] for row in rows)
    more = {"contradicted": values.count(0.5), "no_verdict": len(rows) - len(values), "unpaid": unpaid}
    return mean_figure(values, judge, seed, 100, **more)
