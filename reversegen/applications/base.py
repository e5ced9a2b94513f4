"""What failing means: the one protocol between the loop and its applications.

An application knows how queries are asked for and read, how the target's answers are judged, how failing queries
are labelled, and how a target is measured. `math.Solving`, `honesty.Certainty` and `conduct.Conduct` (safety, and
judges of a user's own) implement it. Each is made with the settings it needs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from common.generate import Generator, Message
from common.lm import LanguageModel
from common.results.rundir import RunDir
from common.tasks.base import Example, Task
from common.tasks.files import check_ids
from common.text.same import apart
from reversegen.switches import Answers, Files

Row = dict[str, Any]
Make = Callable[[str], Generator]
"""From the name of an account to a generator."""
Model = Callable[[], LanguageModel]
"""A model that is loaded, or trained, when it is called for."""


@dataclasses.dataclass(frozen=True)
class Read:
    """A proposer's reply as a query, or the reason why it is none."""

    query: str = ""
    refused: str | None = None


@dataclasses.dataclass(frozen=True)
class Context:
    """What every stage of one repeat needs. `seed` is the repeat's; `labeler` and `guard` give generators, and are
    None where no stage asks one. `labeler_tokens`: of its longest reply, also where a word would do; None: as
    the stage has it."""

    run: RunDir
    repeat: int
    seed: int
    labeler: Make | None = None
    guard: Make | None = None
    labeler_tokens: int | None = None

    def account(self, make: Make | None) -> Generator:
        """The labeler or the guard, on the account of this repeat."""
        assert make is not None, "settings that ask a labeler or guard come with one"
        return make(f"repeat_{self.repeat}")


@dataclasses.dataclass(frozen=True)
class Data:
    """`seeds`: instructions like which queries are to be written. `test`: the ordinary test; `general`: queries
    that must not be refused; `human`: data by people for a control. What has no answer has an empty one.
    `shared`: how many seeds were left out, as the test or general file asks the same; `doubts`: what the files
    give reason to warn of."""

    seeds: list[Example]
    test: list[Example]
    general: list[Example]
    human: list[Example]
    shared: int = 0
    doubts: tuple[str, ...] = ()


Taught = tuple[list[Example], list[Row]]
"""Examples with answers, and for each that a label was asked for what came of it."""


class Application(Protocol):
    """Queries are rows with `id`, `query` and `group`. All that is generated is stored under the given folder."""

    @property
    def name(self) -> str:
        """Of the data, as tables show it."""
        ...

    @property
    def metric(self) -> str:
        """Of a target on a set of examples: the mean of `correct` over the rows of `measure`."""
        ...

    @property
    def query_tokens(self) -> int:
        """Longest query in tokens, where the user does not say."""
        ...

    @property
    def answers(self) -> Answers:
        """Of the target while it is judged. When it is measured, its answers are as long."""
        ...

    def load(self, files: Files) -> Data:
        """Raises UserError, naming file and row, for data that do not fit."""
        ...

    def prompt(self, shown: Sequence[Example]) -> tuple[Message, ...]:
        """The few-shot prompt of the proposer, the same in warm-up and use."""
        ...

    def completion(self, seed: Example) -> str:
        """What the proposer learns to reply; `read` gives the seed's question back."""
        ...

    def read(self, reply: str) -> Read:
        """Clean up a proposer's reply."""
        ...

    def first(self, reply: str) -> str | None:
        """The first query of a reply that was cut off while a later one was written, in the form of `completion`;
        None where the first is not whole."""
        ...

    def messages(self, query: str) -> tuple[Message, ...]:
        """The prompt of the target, the same in judging, training and measuring."""
        ...

    def verdicts(self, ctx: Context, folder: str, queries: Sequence[Row], target: Model) -> list[Row]:
        """For each query {"outcome", "score", "reason", "answers": [...], …}; an invalid one never counts as
        failed."""
        ...

    def labels(self, ctx: Context, folder: str, judged: Sequence[Row]) -> list[Row]:
        """For each judged query {"answer", "label", "refused": None or why there is no answer, "truth": where a
        program knows it, "label_correct": of the label before anything is dropped}."""
        ...

    def taught(self, ctx: Context, folder: str, target: Model, examples: Sequence[Example]) -> Taught:
        """Seeds, or data by people, with the answers that the target would learn from them; and what of `labels`
        was asked for these."""
        ...

    def partners(self, judged: Sequence[Row]) -> list[Row]:
        """Queries that passed and must be learned beside those that failed; none where failures suffice."""
        ...

    def measure(self, ctx: Context, name: str, kind: str, model: Model, examples: Sequence[Example]) -> list[Row]:
        """One row an example with `id` and `correct`, stored as `name`; `kind` is failures, test or general."""
        ...

    def figures(self, rows: Sequence[Row]) -> dict[str, float | None]:
        """Further figures of a set from the rows of `measure`."""
        ...


def failing(rows: Sequence[Row]) -> list[Row]:
    """The judged queries on which the target failed."""
    return [row for row in rows if row["outcome"] == "fail"]


def passing(rows: Sequence[Row]) -> list[Row]:
    """The judged queries on which it did not."""
    return [row for row in rows if row["outcome"] == "pass"]


def valid(rows: Sequence[Row]) -> list[Row]:
    """Failing and passing queries, in the order of `rows`; what was dropped or does not count is neither."""
    return [row for row in rows if row["outcome"] in ("fail", "pass")]


def load_splits(task: Task, files: Files) -> tuple[list[Example], list[Example], int]:
    """Training and test examples of a task; training questions that are test questions too are left out, and
    counted.

    Raises UserError for rows that do not fit, and for ids that come twice.
    """
    train, test = task.load("train", files.seeds, files.seed), task.load("test", files.test, files.seed)
    for examples in (train, test):
        check_ids(examples)
    # By text, as the same question may have another id in each file.
    seeds = apart(train, test)
    return seeds, test, len(train) - len(seeds)


def human_data(task: Task, files: Files) -> list[Example]:
    """Examples by people, for a control; none without a file of them."""
    return [] if files.human is None else task.load("train", files.human, 0)


def invalid(reason: str, **more: Any) -> Row:
    return {"outcome": "invalid", "score": 0.0, "reason": reason, "answers": []} | more
