"""Preference: whether models, asked to judge, agree with each other and with people; and whose answers win.

A model judges a pair of answers by which letter it finds likelier after the question below, in both orders. With
d = (log p(A) - log p(B)) for answer one in place A, and d' for the swapped order, it prefers answer one where
d - d' > 0: what a letter or a place has going for it cancels. A preference is consistent where d and -d' have one
sign. An outside judge answers in words, in both orders; where its two verdicts contradict each other it is a tie.

    found = [PreferenceJudge.load("pairs.jsonl").measure(model) for model in (one, other)]
    agreement(*(own.series["choice"] for own in found)).value
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.backends.budget import unpaid
from common.config import SampleConfig
from common.errors import UserError
from common.evals.figures import Figure, Scorer, mean_figure
from common.evals.likelihood import Item, LikelihoodMeasure
from common.evals.measure import MEMORY, Store
from common.generate import Generator, Record, Request
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


def _pair(row: Row, place: str, name: str) -> Pair:
    prompt, first, second = (require(row, field, place) for field in ("prompt", "answer_a", "answer_b"))
    human = None
    if row.get("choice") not in (None, ""):
        choice = require(row, "choice", place).upper()
        if choice not in ("A", "B"):
            raise UserError(f"{place}: choice {choice!r} is neither A nor B")
        human = int(choice == "A")
    return Pair(row_id(row, name), prompt, first, second, human)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceJudge(LikelihoodMeasure):
    """The model as a judge of pairs of answers, asked in both orders."""

    pairs: tuple[Pair, ...]
    name: str = "pairs"

    @classmethod
    def load(cls, file: str | pathlib.Path, limit: int | None = None, **settings: Any) -> "PreferenceJudge":
        """From rows with prompt, answer_a, answer_b and perhaps choice (A or B). `settings`: other fields. Raises
        UserError, naming the row."""
        rows = read_rows(pathlib.Path(file))[:limit]
        return cls(pairs=tuple(_pair(row, place, str(i)) for i, (row, place) in enumerate(rows)), **settings)

    def items(self) -> list[Item]:
        """Four texts a pair: A and B in the given order, A and B in the other one."""
        items = []
        for pair in self.pairs:
            orders = [
                QUESTION.format(prompt=pair.prompt, a=one, b=other)
                for one, other in ((pair.first, pair.second), (pair.second, pair.first))
            ]
            items.append(Item(pair.id, tuple((order, f" {letter}") for order in orders for letter in "AB")))
        return items

    def series(self, rows: Sequence[Row]) -> Mapping[str, Sequence[float | None]]:
        """ "choice": 1 where the first answer is preferred, 0 the second, 0.5 neither; None for pairs that do not
        fit."""
        leads = [_leads(row) for row in rows]
        preferred = lambda lead: 0.5 if abs(lead) < TIE else float(lead > 0)
        return {"choice": [None if both is None else preferred(both[0] - both[1]) for both in leads]}

    def figures(self, rows: Sequence[Row]) -> dict[str, Figure]:
        """In per cent: pairs whose preference is the same in both orders; letter A chosen over both orders (50: no
        place is favoured); agreement with people where they chose, a tie counts one half. Intervals over pairs:
        Wilson's, with ties by bootstrap."""
        leads = [_leads(row) for row in rows]
        found: dict[str, list[float | None]] = {
            "consistent": [None if both is None else float(both[0] * both[1] < 0) for both in leads],
            "letter_a": [None if both is None else ((both[0] > 0) + (both[1] > 0)) / 2 for both in leads],
        }
        human = [
            None if choice is None or pair.human is None else 1 - abs(pair.human - choice)
            for pair, choice in zip(self.pairs, self.series(rows)["choice"], strict=True)
        ]
        if any(value is not None for value in human):
            found["agreement_with_people"] = human
        return {name: mean_figure(values, SCORER, self.seed, 100, share=True) for name, values in found.items()}


def _leads(row: Row) -> tuple[float, float] | None:
    """log p(A) - log p(B) in either order; None for a pair that does not fit."""
    if row["logps"] is None:
        return None
    a, b, a_swapped, b_swapped = row["logps"]
    return a - b, a_swapped - b_swapped


def agreement(one: Sequence[float | None], other: Sequence[float | None], seed: int = 0) -> Figure:
    """Share of pairs, in per cent, on which two models prefer the same answer; a tie of one counts one half."""
    values = [1 - abs(a - b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return mean_figure(values, SCORER, seed, 100, share=True)


# ---- an outside judge of the models' own answers


def verdicts(
    judge: Generator,
    prompts: Mapping[str, str],
    ours: Mapping[str, str | None],
    theirs: Mapping[str, str | None],
    seed: int = 0,
    store: Store = MEMORY,
    tokens: int = 8,
) -> list[Row]:
    """A row for each prompt that both answered: the judge's verdict in both orders, and what they come to (1:
    ours, 0: theirs, 0.5: they contradict each other, None: no verdict), and whether the budget covered it. Replies
    of at most `tokens` are stored as verdicts.jsonl."""
    both = [i for i in prompts if ours.get(i) is not None and theirs.get(i) is not None]
    requests = []
    for i in both:
        for order, (a, b) in (("given", (ours[i], theirs[i])), ("swapped", (theirs[i], ours[i]))):
            text = ASK.format(prompt=prompts[i], a=a, b=b)
            requests.append(Request(f"{i}/{order}", ({"role": "user", "content": text},)))
    records = store.records("verdicts.jsonl", judge, requests, SampleConfig(tokens), seed)
    return list(_joined(both, records))


def _joined(ids: Sequence[str], records: Sequence[Record]) -> Iterator[Row]:
    for i, given, swapped in zip(ids, records[::2], records[1::2], strict=True):
        first, second = letter_of(given.text), letter_of(swapped.text)
        known = first is not None and second is not None
        value = (float(first == "A") + float(second == "B")) / 2 if known else None
        paid = not (unpaid(given.error) or unpaid(swapped.error))
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wins(Figure):
    """`contradicted`: prompts on which the judge contradicts itself when the answers change places. `no_verdict`:
    prompts without one, of which the budget did not cover `unpaid`."""

    contradicted: int
    no_verdict: int
    unpaid: int


def win_rate(rows: Sequence[Row], judge: Scorer, seed: int = 0) -> Wins:
    """In per cent of prompts with a verdict; a tie counts one half."""
    values = [row["value"] for row in rows if row["value"] is not None]
    found = mean_figure(values, judge, seed, 100, share=True)
    return Wins(
        **{field.name: getattr(found, field.name) for field in dataclasses.fields(found)},
        contradicted=values.count(0.5),
        no_verdict=len(rows) - len(values),
        unpaid=sum(not row["paid"] for row in rows),
    )
