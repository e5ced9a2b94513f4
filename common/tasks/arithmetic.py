"""The embedded task: short word problems of twelve skills, data written by rule, every answer exactly known."""

import dataclasses
import itertools
import pathlib
import random

from common.errors import UserError
from common.generate import Message
from common.tasks.base import NO_HINTS, Example, Hints, Kind, NewExample, RowTask, user_turn
from common.tasks.embedded_text import similar_prompt, similar_reply
from common.tasks.files import Row, require, row_id
from common.tasks.grading import MARK, final_answer, same_number
from common.tasks.hub import require_any
from common.tasks.problems import SKILLS, recognise, write
from common.tasks.replies import read_worked, with_hints

SIZES = {"test": 480, "dev": 192, "train": 2400}


@dataclasses.dataclass(frozen=True)
class Arithmetic(RowTask):
    """Implements `common.tasks.base.Task`."""

    name: str = "arithmetic"
    kind: Kind = "number"
    reply_fields: tuple[str, ...] = ("Problem", "Solution")
    answer_tokens: int = 40
    example_tokens: int = 96
    near_duplicate: float = 0.85

    def load(self, split: str, file: pathlib.Path | None, seed: int) -> list[Example]:
        if file is not None:
            return super().load(split, file, seed)
        # Splits come from one stream without repetition, so that no test problem can be a training one.
        rng = random.Random(f"arithmetic {seed}")
        found: dict[str, Example] = {}  # by question, of all splits
        for name, size in SIZES.items():
            for i, skill in zip(range(size), itertools.cycle(SKILLS), strict=False):
                problem = write(rng, skill)
                while problem.question in found:
                    problem = write(rng, skill)
                example = Example(f"{name}-{i}", problem.question, problem.solution, str(problem.answer), skill)
                found[example.question] = example
            if name == split:
                break
        return list(found.values())[-SIZES[split] :]

    def _from_row(self, row: Row, place: str, name: str) -> Example:
        # "query" is what ReverseGen's data sets call it.
        question, answer = require_any(row, ("question", "query"), place), require(row, "answer", place)
        label = final_answer(answer)
        if label is None:
            raise UserError(f"{place}: the answer holds no number: end it with '#### NUMBER'")
        solution = answer if MARK in answer else f"{answer} {MARK} {label}"
        known = recognise(question)
        group = known.skill if known else "other"
        return Example(row_id(row, place), question, solution, label, group, place)

    def messages(self, question: str) -> tuple[Message, ...]:
        return user_turn(question)

    def parse(self, text: str) -> str | None:
        return final_answer(text)

    def correct(self, text: str, label: str) -> bool:
        return same_number(final_answer(text), label)

    def teacher_messages(self, example: Example, hints: Hints = NO_HINTS) -> tuple[Message, ...]:
        # Without hints nothing but the one line that the embedded teacher was trained on.
        request = similar_prompt(example.question, example.answer)
        return user_turn(with_hints(request, hints))

    def rephrase_messages(self, example: Example) -> tuple[Message, ...]:
        request = "Write this problem in other words, with the same numbers and the same solution."
        return user_turn(f"{request}\n{self.write_example(example)}")

    def write_example(self, example: Example) -> str:
        return similar_reply(example.question, example.answer)

    def parse_example(self, text: str, parent: Example) -> NewExample:
        return read_worked(text, self.reply_fields, parent.group, joiner=" ", asks=True)

    def truth(self, question: str) -> str | None:
        problem = recognise(question)
        return None if problem is None else str(problem.answer)
