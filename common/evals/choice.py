"""Multiple choice by likelihood: accuracy and calibration.

    MultipleChoice.load("arc_easy.jsonl", layout="answer").measure(model).figures["accuracy"].value

The probability of an option is the softmax over a question's options of log-likelihood / tokens, zero-shot: it
decides "accuracy" and the calibration. Beside it "acc" and "acc_norm" choose the option of highest summed
log-likelihood, and of highest log-likelihood / characters, as EleutherAI's harness does.

Rows may be those of HellaSwag, ARC or OpenBookQA, as published, on the hub, or as flat lists:

    {"context" or "ctx": …, "endings": […], "label": 2}                        # HellaSwag
    {"question" or "question_stem": …, "choices": […], "answer": 2}            # or {"text": […], "label": […]}
    {"question": {"stem": …, "choices": [{"text": …, "label": "A"}]}, "answerKey": "A"}

Rows of HellaSwag as published (with `ctx` or `activity_label`) have the activity in front, and lose tags such as
"[step]", as in EleutherAI's harness.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from common.errors import UserError
from common.evals.calibration import brier, ece, multiple_choice, option_probabilities
from common.evals.figures import Figure, Scorer, drawn_figures, mean_figure
from common.evals.likelihood import Item, LikelihoodMeasure, Text
from common.tasks.files import Row, read_rows, require, row_id

SCORER = Scorer("likelihood of options, length-normalised by tokens")
HARNESS = {
    "acc": Scorer("likelihood of options, summed, as acc of EleutherAI's harness"),
    "acc_norm": Scorer("likelihood of options over their characters, as acc_norm of EleutherAI's harness"),
}
CONTEXTS = ("context", "ctx", "question", "question_stem")
OPTIONS = ("endings", "choices", "options")
BINS = 10
"""Parts of equal size in a reliability diagram."""
ANSWERS = ("label", "answer", "answerKey", "gold")


@dataclasses.dataclass(frozen=True)
class Question:
    """`gold`: the place of the right option."""

    id: str
    context: str
    options: tuple[str, ...]
    gold: int


def question_of(row: Row, place: str, name: str) -> Question:
    """One row. Raises UserError for what is missing, for fewer than two options, and for no right one."""
    if isinstance(row.get("question"), dict):  # as AI2 publishes them
        inner = row["question"]
        row = {**row, "question": inner.get("stem"), "choices": inner.get("choices")}
    field = next((name for name in CONTEXTS if row.get(name) is not None), None)
    if field is None:
        raise UserError(f"{place}: no question: it needs one of {', '.join(CONTEXTS)}")
    context = require(row, field, place)
    options, names = _options(row, place)
    if field == "ctx" and row.get("activity_label"):
        context = f"{require(row, 'activity_label', place)}: {context}"
    if field == "ctx" or row.get("activity_label"):
        context, options = untagged(context), tuple(map(untagged, options))
    answer = next((name for name in ANSWERS if row.get(name) not in (None, "")), None)
    if answer is None:
        raise UserError(f"{place}: no right option: it needs one of {', '.join(ANSWERS)}")
    return Question(row_id(row, name), context, options, _gold(require(row, answer, place), names, place))


def untagged(text: str) -> str:
    """A text of HellaSwag without "[header]", "[title]", "[step]" and the like."""
    return re.sub(r"\[.*?\]", "", text.replace(" [title]", ". ")).replace("  ", " ").strip()


def _options(row: Row, place: str) -> tuple[tuple[str, ...], list[str]]:
    """The texts of the options and, where they have names, those; else their numbers."""
    field = next((name for name in OPTIONS if row.get(name) is not None), None)
    given: Any = row.get(field) if field else None
    if isinstance(given, dict):
        columns: list[Any] = [given.get("text"), given.get("label")]
        if not all(isinstance(column, list | tuple) for column in columns) or len(set(map(len, columns))) > 1:
            raise UserError(f"{place}: {field}.text and {field}.label must be two lists of one length")
        given = [{"text": t, "label": n} for t, n in zip(*columns, strict=True)]
    if not isinstance(given, list | tuple) or len(given) < 2:
        raise UserError(f"{place}: no list of two options or more: it needs one of {', '.join(OPTIONS)}")
    named = all(isinstance(option, dict) for option in given)
    texts = [require(o if named else {"text": o}, "text", f"{place} option {i}") for i, o in enumerate(given)]
    names = [str(o.get("label", i)) for i, o in enumerate(given)] if named else [str(i) for i in range(len(given))]
    return tuple(texts), names


def _gold(answer: str, names: Sequence[str], place: str) -> int:
    # Tables with gaps store whole numbers as floats.
    answer = answer.removesuffix(".0")
    # The row's own names come first: they may be digits that count from 1.
    letters = [chr(ord("A") + i) for i in range(len(names))]
    for known in (names, letters):
        if answer in known:
            return list(known).index(answer)
    raise UserError(f"{place}: right option {answer!r} is none of {', '.join(names)}")


Layout = Literal["plain", "answer", "chat"]
_LAYOUTS: dict[Layout, Callable[[str, str], Text]] = {
    "plain": lambda question, option: (question, f" {option}"),
    "answer": lambda question, option: (f"Question: {question}\nAnswer:", f" {option}"),
    "chat": lambda question, option: (({"role": "user", "content": question},), option),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleChoice(LikelihoodMeasure):
    """Questions with several options, of which one is right.

    `layout` says how an option stands after its question. "plain": one blank between them, as in the toolbox of
    the paper's authors; "answer": "Question: … Answer:" in two lines, as in EleutherAI's harness for ARC; "chat":
    the option as the reply to the question under the model's chat template, or after "Answer:" without one.
    """

    questions: tuple[Question, ...]
    layout: Layout = "plain"
    name: str = "choice"

    @classmethod
    def load(cls, file: str | pathlib.Path, limit: int | None = None, **settings: Any) -> "MultipleChoice":
        """From a file of rows (see above). `settings`: other fields. Raises UserError, naming the row, for one
        that cannot be read."""
        rows = read_rows(pathlib.Path(file))[:limit]
        return cls(
            questions=tuple(question_of(row, place, str(i)) for i, (row, place) in enumerate(rows)), **settings
        )

    def items(self) -> list[Item]:
        """Every option after its question."""
        put = _LAYOUTS[self.layout]
        return [Item(q.id, tuple(put(q.context, option) for option in q.options)) for q in self.questions]

    def _fitting(self, rows: Sequence[Row]) -> tuple[list[int], tuple[Any, Any, list[int]]]:
        """The places of the questions that fit into the model, and of these what `multiple_choice` takes."""
        places = [i for i, row in enumerate(rows) if row["logps"] is not None]
        logps, lengths = ([rows[i][name] for i in places] for name in ("logps", "tokens"))
        return places, (logps, lengths, [self.questions[i].gold for i in places])

    def figures(self, rows: Sequence[Row]) -> dict[str, Figure]:
        """Accuracy by tokens, acc and acc_norm (see above), mean confidence, ECE with 10 and 1 bins of equal mass,
        all from 0 to 1; Brier score, 0 to 2.

        Intervals over questions: of the shares of right answers Wilson's, else by bootstrap. An ECE of a bootstrap
        sample is higher on average than that of the questions, so of both the basic bootstrap interval is taken,
        which makes up for that, cut to [0, 1] and drawn out to the value where it does not reach it.
        """
        places, (logps, lengths, gold) = self._fitting(rows)
        if not places:
            return {}
        confidence, correct = multiple_choice(logps, lengths, gold)
        probabilities = option_probabilities(logps, lengths)
        # The Brier score is a mean over questions, so that a bootstrap may draw theirs one by one.
        squares = np.array([brier(probabilities[i : i + 1], gold[i : i + 1]) for i in range(len(gold))])

        def measure(drawn: np.ndarray) -> dict[str, float]:
            return {
                "accuracy": float(correct[drawn].mean()),
                "confidence": float(confidence[drawn].mean()),
                "ece": ece(confidence[drawn], correct[drawn]),
                "ece_1_bin": ece(confidence[drawn], correct[drawn], bins=1),
                "brier": float(squares[drawn].mean()),
            }

        found = drawn_figures(measure, places, len(places), SCORER, self.seed, ("accuracy",), ("ece", "ece_1_bin"))
        for name, scorer in HARNESS.items():
            right = [self._right(rows[i], self.questions[i], name) for i in places]
            found[name] = mean_figure(right, scorer, self.seed, units=places, share=True)
        return found

    def _right(self, row: Row, question: Question, name: str) -> bool:
        """Whether the option that the harness chooses is right, the first of equal ones."""
        lengths = [len(option) if name == "acc_norm" else 1 for option in question.options]
        return int(np.argmax(np.divide(row["logps"], lengths))) == question.gold

    def series(self, rows: Sequence[Row]) -> Mapping[str, Sequence[float | None]]:
        """The reliability diagram: mean "confidence" and "accuracy" of questions in `BINS` parts of equal size,
        from least to most confident.

        To three decimals, which is what a drawing shows: it is then the same for other batch sizes, but where two
        questions about as confident as each other change parts.
        """
        places, given = self._fitting(rows)
        if not places:
            return {}
        confidence, correct = multiple_choice(*given)
        parts = np.array_split(np.argsort(confidence, kind="stable"), BINS)
        mean = lambda values: [round(float(values[part].mean()), 3) for part in parts if len(part)]
        return {"confidence": mean(confidence), "accuracy": mean(correct)}
