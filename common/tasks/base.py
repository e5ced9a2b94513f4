"""What a task is: one template for training and evaluation, a reader and grader of answers, and what a teacher
is told. `common.tasks.arithmetic` and `common.tasks.labelled` are the tasks there are."""

import dataclasses
import pathlib
from typing import Protocol

from common.generate import Message


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of data. `answer` is the full text to be learned, `label` the part that is graded, `group` the
    class or skill for balance and for results by group, `place` where it was read (file and row)."""

    id: str
    question: str
    answer: str
    label: str
    group: str
    place: str = ""


@dataclasses.dataclass(frozen=True)
class NewExample:
    """What was read from a teacher's reply: an example without identity yet, or the reason it was refused."""

    question: str = ""
    answer: str = ""
    label: str = ""
    group: str = ""
    refused: str | None = None


class Task(Protocol):
    """The one protocol between data, models and methods. All texts of a task live behind it."""

    name: str
    answer_tokens: int
    """Limit of new tokens for an answer."""
    example_tokens: int
    """Limit of new tokens for a new example written by a teacher."""
    near_duplicate: float
    """ROUGE-L F1 above which two questions count as the same."""

    def load(self, split: str, file: pathlib.Path | None, seed: int) -> list[Example]:
        """Examples of "train", "dev" or "test", from a file or from the task's own source ([]: it has none).

        Raises UserError naming file and row for anything that does not fit the schema.
        """

    def messages(self, question: str) -> tuple[Message, ...]:
        """The prompt, the same in training and evaluation, for student and teacher."""

    def parse(self, text: str) -> str | None:
        """The final answer stated in a reply, None if there is none."""

    def correct(self, text: str, label: str) -> bool:
        """Whether a reply states the answer `label`."""

    def teacher_messages(self, example: Example) -> tuple[Message, ...]:
        """The request for one new example like `example`."""

    def write_example(self, example: Example) -> str:
        """`example` in the form that a teacher is asked to reply in."""

    def parse_example(self, text: str, parent: Example) -> NewExample:
        """A teacher's reply read strictly; `refused` names what is wrong with it."""

    def truth(self, question: str) -> str | None:
        """The exact answer to any question where a program can know it, else None."""
