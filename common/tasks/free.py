"""Questions with a free answer in a few words. By itself it compares without case and punctuation; to grade in
another way, change `parse` and `correct`:

    class Dates(FreeAnswer):
        def parse(self, text): return read_date(text)
        def correct(self, text, label): return read_date(text) == read_date(label)
"""

import dataclasses
import re

from common.errors import UserError
from common.generate import Message
from common.tasks.base import NO_HINTS, Example, Hints, Kind, NewExample, RowTask, user_turn
from common.tasks.files import Row, one_way, require, row_id
from common.tasks.hub import Hub, require_any
from common.tasks.labelled import normalise
from common.tasks.replies import read_fields, with_hints, write_fields


@dataclasses.dataclass(frozen=True)
class FreeAnswer(RowTask):
    """Implements `common.tasks.base.Task`. Of each tuple of columns the first that a row has is read.

    `group_column`: by what results are told apart and seeds are balanced; without it all rows are one group.
    """

    name: str
    instruction: str
    noun: str = "question"
    question_columns: tuple[str, ...] = ("question",)
    answer_columns: tuple[str, ...] = ("answer",)
    group_column: str | None = None
    hub: Hub | None = None
    kind: Kind = "text"
    reply_fields: tuple[str, ...] = ("Question", "Answer")
    answer_tokens: int = 64
    example_tokens: int = 256
    near_duplicate: float = 0.7

    def _from_row(self, row: Row, place: str, name: str) -> Example:
        question = require_any(row, self.question_columns, place)
        answer = require_any(row, self.answer_columns, place)
        label = self.parse(answer)
        if label is None:
            raise UserError(f"{place}: task {self.name} cannot read the answer {answer!r}")
        group = one_way(require(row, self.group_column, place)) if self.group_column else "all"
        return Example(row_id(row, name), " ".join(question.split()), answer, label, group, place)

    def messages(self, question: str) -> tuple[Message, ...]:
        return user_turn(f"{self.instruction}\n{question}")

    def parse(self, text: str) -> str | None:
        """The reply without "Answer:" before it and without Markdown and full stop around it."""
        said = re.sub(r"^[\s*_#]*answer[*_]*\s*:[*_]*", "", text.strip(), flags=re.IGNORECASE)
        return said.strip("*_` \n\t").removesuffix(".").strip() or None

    def correct(self, text: str, label: str) -> bool:
        stated = self.parse(text)
        return stated is not None and normalise(stated) == normalise(label)

    def teacher_messages(self, example: Example, hints: Hints = NO_HINTS) -> tuple[Message, ...]:
        request = (
            f"You write examples that train a language model. Below is a {self.noun} with its answer. The model "
            f'is told: "{self.instruction}"\nWrite one new {self.noun} that needs the same knowledge or skill:\n'
            "1. Its subject and wording differ from those below.\n"
            "2. It can be understood by itself and has one right answer.\n"
            "3. The answer is right, and in the same form as the one below.\n"
            f"4. Reply in just these lines: {self._form()}\n\n{self.write_example(example)}"
        )
        return user_turn(with_hints(request, hints))

    def rephrase_messages(self, example: Example) -> tuple[Message, ...]:
        request = (
            f"Say this {self.noun} in other words, so that its answer stays the same.\n"
            f"Reply in just these lines: {self._form()}"
        )
        return user_turn(f"{request}\n\n{self.write_example(example)}")

    def _form(self) -> str:
        return ", then ".join(f"{field}: …" for field in self.reply_fields)

    def write_example(self, example: Example) -> str:
        return write_fields(self.reply_fields, (example.question, example.answer))

    def parse_example(self, text: str, parent: Example) -> NewExample:
        fields = read_fields(text, self.reply_fields)
        if fields is None or not all(fields.values()):
            return NewExample(refused="format")
        question, answer = fields.values()
        label = self.parse(answer)
        if label is None:
            return NewExample(refused="answer cannot be read")
        return NewExample(" ".join(question.split()), answer, label, parent.group)
