"""Multiple choice: a text, lettered options, and the letter of the right one. CaseHOLD, and tasks of that form.

A question is the text followed by one line for each option, "A. …", so that it can be split again.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from common.generate import Message
from common.tasks.base import NO_HINTS, Example, Hints, Kind, NewExample, RowTask, user_turn
from common.tasks.files import Row, require, row_id
from common.tasks.hub import Hub
from common.tasks.replies import read_fields, with_hints, write_fields

LETTERS = "ABCDEFGHIJ"


@dataclasses.dataclass(frozen=True)
class Columns:
    """One way in which rows are written. `options`: a column each, or one column that holds a list of them, or
    lists of their texts and names as {"text": [...], "label": [...]}. `label`: the number of the right option,
    counted from 0, its letter, or its name."""

    context: str
    options: tuple[str, ...]
    label: str


@dataclasses.dataclass(frozen=True)
class MultipleChoice(RowTask):
    """Implements `common.tasks.base.Task`. `columns`: the first whose context and label columns a row has is read.

    `blank`: what stands in the text for the missing part; a new text must hold it if the one shown does.
    `other_counts`: rows with another number of options are left out, instead of being a mistake.
    """

    name: str
    instruction: str
    noun: str
    columns: tuple[Columns, ...]
    count: int = 5
    blank: str = ""
    other_counts: bool = False
    hub: Hub | None = None
    kind: Kind = "class"
    answer_tokens: int = 32
    example_tokens: int = 1024
    near_duplicate: float = 0.7

    @property
    def letters(self) -> str:
        return LETTERS[: self.count]

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(self.letters)

    @property
    def reply_fields(self) -> tuple[str, ...]:
        return ("Text", *(f"Option {letter}" for letter in self.letters), "Answer")

    def load(self, split: str, file: pathlib.Path | None, seed: int) -> list[Example]:
        examples = super().load(split, file, seed)
        if not examples and (file is not None or split != "dev"):  # there need be no dev rows
            raise UserError(f"task {self.name}: no {split} row has {self.count} options")
        return examples

    def _from_row(self, row: Row, place: str, name: str) -> Example | None:
        known = next((c for c in self.columns if c.context in row and c.label in row), self.columns[0])
        context, label = require(row, known.context, place), require(row, known.label, place)
        # Where some labels are missing, tables store whole numbers as 2.0.
        options, number = self._options(row, known, place), label.removesuffix(".0")
        if isinstance(options, dict):
            names = [str(option) for option in options["label"]]
            if label not in names:
                raise UserError(f"{place}: label {label!r} is none of the options' names {', '.join(names)}")
            options, number = options["text"], str(names.index(label))
        if len(options) != self.count:
            if self.other_counts:
                return None
            raise UserError(f"{place}: {len(options)} options; task {self.name} has {self.count}")
        letter = self.letters[int(number)] if number in map(str, range(self.count)) else label.upper()
        if letter not in self.letters or len(letter) != 1:
            wanted = f"0 to {self.count - 1} or {self.letters[0]} to {self.letters[-1]}"
            raise UserError(f"{place}: label {label!r} is none of the options: it must be {wanted}")
        question = self.with_options(context, [str(option) for option in options])
        identity = row_id(row, str(row.get("example_id", name)))
        return Example(identity, question, letter, letter, letter, place)

    def _options(self, row: Row, known: Columns, place: str) -> Any:
        column, *more = known.options
        if more:
            return [require(row, name, place) for name in known.options]
        options = row.get(column)
        if isinstance(options, dict) and all(isinstance(options.get(k), list | tuple) for k in ("text", "label")):
            return options
        if not isinstance(options, list | tuple):
            raise UserError(f"{place}: field {column!r} is no list of options")
        return options

    def with_options(self, context: str, options: Sequence[str]) -> str:
        """The question as models see it."""
        lines = [f"{letter}. {' '.join(o.split())}" for letter, o in zip(self.letters, options, strict=True)]
        return "\n".join([" ".join(context.split()), *lines])

    def messages(self, question: str) -> tuple[Message, ...]:
        return user_turn(f"{self.instruction}\n\n{question}")

    def solve_messages(self, question: str) -> tuple[Message, ...]:
        form = f"Reply with one letter, {self.letters[0]} to {self.letters[-1]}, and nothing else."
        return user_turn(f"{self.instruction} {form}\n\n{question}")

    def parse(self, text: str) -> str | None:
        line, letter = text.strip().partition("\n")[0], f"[{self.letters}]"
        # A letter alone or before a punctuation mark; "A court …" is a sentence, not an answer.
        first = re.match(rf"[\W_]*(?:boxed{{)?({letter})(?:[\W_]*$|[.):,\]*}}]|\s+[-–—:=]\s)", line)
        if first is None and len(bare := line.strip("*_`()[]. ")) == 1:
            first = re.match(rf"({letter})", bare.upper())
        if first:
            return first[1]
        said = rf"\W*(?i:(?:is|option|choice|holding)\b\W*)*\b({letter})\b"
        if answers := re.findall(rf"(?i:answer|boxed|correct)\b{said}", text):
            return answers[-1]
        options = set(re.findall(rf"(?i:option|choice)\b{said}", text))
        return options.pop() if len(options) == 1 else None

    def teacher_messages(self, example: Example, hints: Hints = NO_HINTS) -> tuple[Message, ...]:
        needs = [
            "Change the facts, the names and the subject; keep length and style.",
            f"Give {self.count} options of similar form, all different, and all plausible at first sight.",
            "Exactly one option is right, and the text shows which.",
            f"Let the right option be any of A to {self.letters[-1]}, not always the same.",
        ]
        if self.blank and self.blank in example.question:
            needs.append(f"Write {self.blank} in the text where the right option is missing.")
        numbered = "\n".join(f"{i}. {need}" for i, need in enumerate(needs, start=1))
        form = write_fields(self.reply_fields, "…" * len(self.reply_fields))
        request = (
            f"You write exam questions. Below is a {self.noun}, with {self.count} options and the letter of "
            f"the right one. Write a new one that tests the same skill.\n{numbered}\n"
            f"Reply in exactly these lines, with nothing before or after:\n{form}\n\n{self.write_example(example)}"
        )
        return user_turn(with_hints(request, hints))

    def rephrase_messages(self, example: Example) -> tuple[Message, ...]:
        request = (
            "Say the text below, but not its options, in other words. Keep its meaning, its names"
            f"{f', the sign {self.blank}' if self.blank in example.question and self.blank else ''}, the options "
            "in their order, and the answer. Reply in the same lines."
        )
        return user_turn(f"{request}\n\n{self.write_example(example)}")

    def write_example(self, example: Example) -> str:
        context, *options = example.question.rsplit("\n", self.count)
        texts = [context, *(option[3:] for option in options), example.label]
        return write_fields(self.reply_fields, texts)

    def parse_example(self, text: str, parent: Example) -> NewExample:
        fields = read_fields(text, self.reply_fields)
        if fields is None or not all(fields.values()):
            return NewExample(refused="format")
        context, *options, answer = fields.values()
        options = [re.sub(rf"^{letter}[.)] ", "", o) for letter, o in zip(self.letters, options, strict=True)]
        if len({" ".join(option.lower().split()) for option in options}) < self.count:
            return NewExample(refused="options not all different")
        letter = self.parse(answer)
        if letter is None or "\n" in answer:
            return NewExample(refused="answer is not one of the letters")
        if self.blank and self.blank in parent.question and self.blank not in context:
            return NewExample(refused="nothing left blank")
        return NewExample(self.with_options(context, options), letter, letter, letter)


CASEHOLD = MultipleChoice(
    name="casehold",
    instruction="Which holding belongs where the text says <HOLDING>? Reply with its letter.",
    noun="passage of a court's opinion that cites another case",
    blank="<HOLDING>",
    columns=(
        Columns("citing_prompt", tuple(f"holding_{i}" for i in range(5)), "label"),
        Columns("context", ("endings",), "label"),
        Columns("0", tuple("12345"), "11"),  # the authors' own CSV files have numbers for a header
    ),
    # The authors' repository on the hub is a loading script, which current `datasets` refuses to run.
    hub=Hub("coastalcph/lex_glue", "case_hold"),
)

ARC_EASY = MultipleChoice(
    name="arc-easy",
    instruction="Which option answers this question? Reply with its letter.",
    noun="question of a school test in science",
    count=4,
    other_counts=True,
    columns=(Columns("question", ("choices",), "answerKey"), Columns("question", ("choices",), "answer")),
    hub=Hub("allenai/ai2_arc", "ARC-Easy"),
)
