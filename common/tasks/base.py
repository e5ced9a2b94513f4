"""What a task is: one template for training and evaluation, a reader and grader of answers, and what a teacher
is told. Ready classes: `arithmetic.Arithmetic`, `labelled.LabelledText`, `worked.WorkedAnswer`,
`choice.MultipleChoice`, `free.FreeAnswer`. How to bring your own: README.md in this folder."""

import abc
import dataclasses
import pathlib
from typing import Literal, Protocol

from common.generate import Message
from common.tasks.files import Row
from common.tasks.hub import Hub, load_rows

Kind = Literal["class", "number", "text"]


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


@dataclasses.dataclass(frozen=True)
class Hints:
    """What else a teacher is told: the student's wrong answer to the example, and questions written earlier
    for it, which the new one must not resemble."""

    wrong_answer: str | None = None
    earlier: tuple[str, ...] = ()


NO_HINTS = Hints()


def user_turn(text: str) -> tuple[Message, ...]:
    """A chat of one turn, the user's."""
    return ({"role": "user", "content": text},)


class Task(Protocol):
    """The one protocol between data, models and methods. All texts of a task are behind it."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind:
        """Of the answer. "class" gets macro-F1 and results by class."""
        ...

    @property
    def reply_fields(self) -> tuple[str, ...]:
        """Names of the labelled lines of `write_example`, in order."""
        ...

    @property
    def choices(self) -> tuple[str, ...]:
        """All answers there are, as a model writes them and `parse` gives them; () where they are open. Their
        likelihoods can be compared in place of reading what is written."""
        ...

    @property
    def answer_tokens(self) -> int:
        """Limit of new tokens for an answer."""
        ...

    @property
    def example_tokens(self) -> int:
        """Limit of new tokens for a new example written by a teacher."""
        ...

    @property
    def near_duplicate(self) -> float:
        """ROUGE-L F1 above which two questions count as the same."""
        ...

    def load(self, split: str, file: pathlib.Path | None, seed: int) -> list[Example]:
        """Examples of "train", "dev" or "test", from a file or from the task's own source ([]: it has none).

        Raises UserError naming file and row for anything that does not fit the schema.
        """
        ...

    def messages(self, question: str) -> tuple[Message, ...]:
        """The prompt of the student, the same in training and evaluation."""
        ...

    def solve_messages(self, question: str) -> tuple[Message, ...]:
        """The prompt for a teacher that has not been trained on the task: it also says what answers there are."""
        ...

    def parse(self, text: str) -> str | None:
        """The final answer stated in a reply, None if there is none."""
        ...

    def correct(self, text: str, label: str) -> bool:
        """Whether a reply states the answer `label`."""
        ...

    def teacher_messages(self, example: Example, hints: Hints = NO_HINTS) -> tuple[Message, ...]:
        """The request for one new example like `example`. Every hint that is given must be in it."""
        ...

    def rephrase_messages(self, example: Example) -> tuple[Message, ...]:
        """The request to rephrase the question of `example`, with the same answer."""
        ...

    def write_example(self, example: Example) -> str:
        """`example` in the form that a teacher is asked to reply in."""
        ...

    def parse_example(self, text: str, parent: Example) -> NewExample:
        """A teacher's reply read strictly; `refused` names what is wrong with it."""
        ...

    def truth(self, question: str) -> str | None:
        """The exact answer to any question where a program can know it, else None."""
        ...


MEMBERS = tuple(name for name in vars(Task) if not name.startswith("_"))
"""Everything that `Task` asks for, in order."""


class RowTask(abc.ABC):
    """The part of `Task` that is alike where examples are rows of a file or of a data set on the hub. A subclass
    reads a row in `_from_row` and overrides what differs."""

    name: str
    hub: Hub | None = None

    @property
    def choices(self) -> tuple[str, ...]:
        return ()

    def load(self, split: str, file: pathlib.Path | None, seed: int) -> list[Example]:
        rows = load_rows(self.name, self.hub, split, file)
        examples = (self._from_row(row, place, f"{split}-{i}") for i, (row, place) in enumerate(rows))
        return [example for example in examples if example is not None]

    @abc.abstractmethod
    def _from_row(self, row: Row, place: str, name: str) -> Example | None:
        """The example of one row, None to leave it out. `name`: its id where the row has none."""

    @abc.abstractmethod
    def messages(self, question: str) -> tuple[Message, ...]:
        """See `Task`."""

    @abc.abstractmethod
    def parse(self, text: str) -> str | None:
        """See `Task`."""

    def solve_messages(self, question: str) -> tuple[Message, ...]:
        return self.messages(question)

    def correct(self, text: str, label: str) -> bool:
        return self.parse(text) == label

    def truth(self, question: str) -> str | None:
        return None
