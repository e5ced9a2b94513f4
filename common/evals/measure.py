"""What all measures have in common: one call, what it gives, and where its rows are kept.

    from common.evals.bias import CrowSPairs
    from common.lm import LanguageModel

    model = LanguageModel.load("embedded:student")
    found = CrowSPairs.load("crows.jsonl").measure(model)      # or measure(model, Store(run, "before"))
    found.figures["overall/stereotype"].value

A measure is a frozen dataclass of its data and settings. To add one, derive it from `Measure`, or from
`likelihood.LikelihoodMeasure` where it compares the likelihoods of texts.
"""

import abc
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.config import SampleConfig
from common.errors import UserError
from common.evals.figures import Figure
from common.generate import Generator, Record, Request
from common.results.files import Journal, read_jsonl
from common.results.rundir import RunDir
from common.tasks.prompts import Prompt
from common.tasks.replies import without_thoughts

if TYPE_CHECKING:
    from common.lm import LanguageModel

Row = dict[str, Any]
"""One line of an artifact."""
Counts = dict[str, int | float | None]
"""What became of the items, by name; stored beside the figures."""

MOST_TOKENS = 512
"""Longest answer where none is given and the model has room for it."""
SLOTS = 128
"""Most samples that decode together."""


@dataclasses.dataclass(frozen=True)
class Store:
    """Where the rows behind figures are kept: `folder` of a run, so that a killed one continues; without a run
    they are in memory alone. Rows are found again by the name of their measure: other data want another folder."""

    run: RunDir | None = None
    folder: str = "."

    def _at(self, name: str) -> str:
        return str(pathlib.PurePosixPath(self.folder, name))

    def rows(self, name: str, batches: Callable[[int], Iterable[list[Row]]]) -> list[Row]:
        """All rows of the file `name`. `batches(n)` yields those after the first n, and each batch is stored as it
        comes (see `RunDir.collect`)."""
        if self.run is None:
            return [row for batch in batches(0) for row in batch]  # nothing is there to go on from
        return self.run.collect(self._at(name), batches)

    def records(
        self,
        name: str,
        generator: Generator | Callable[[], Generator],
        requests: Sequence[Request],
        sampling: SampleConfig,
        seed: int,
    ) -> list[Record]:
        """What was generated for `requests`, stored as `name` (see `stages.collect`)."""
        from common.stages import collect

        if self.run is not None:
            return collect(self.run, self._at(name), generator, requests, sampling, seed)
        source = generator() if callable(generator) else generator
        return [record for batch in source.generate(requests, sampling, seed) for record in batch]

    def file(self, name: str) -> pathlib.Path | None:
        """The file that holds the rows of `name`, or those so far; None in memory."""
        if self.run is None:
            return None
        whole = self.run.path / self._at(name)
        return whole if whole.exists() else whole.with_name(f"{whole.name}.part")

    def stored(self, name: str) -> list[Row]:
        """The rows of `name` that are stored so far."""
        file = self.file(name)
        if file is None:
            return []
        # The part of a killed process may end in a torn line, which a journal leaves out.
        return Journal(file).rows() if file.suffix == ".part" else read_jsonl(file)

    def timed(self, stage: str) -> contextlib.AbstractContextManager[None]:
        """Adds the seconds spent in the block to the run's timing."""
        return contextlib.nullcontext() if self.run is None else self.run.timed(self._at(stage))


MEMORY = Store()
"""For a measure on its own: nothing is written."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a measure says of one model.

    `figures`: by name. `counts`: what was asked, and what was left out. `series`: the values behind the figures
    that drawings show, in the order of the items, None where one has no value. `answers`: texts that the model
    wrote, by the id of their prompt, None where one was left out.
    """

    figures: Mapping[str, Figure]
    counts: Counts
    series: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    answers: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure(abc.ABC):
    """`name`: what its figures and files are called. `seed`: of samples and intervals. `batch_size`: texts
    computed together, which changes no figure."""

    name: str
    seed: int = 0
    batch_size: int = 32

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many items (prompts, questions, pairs) the model is asked for."""

    @abc.abstractmethod
    def measure(self, model: "LanguageModel", store: Store = MEMORY) -> Measured:
        """Ask `model`, and measure what it gives. What `store` already holds is read back."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WritingMeasure(Measure):
    """A measure for which the model writes what `prompts` ask for. `tokens`: most in a text; 512, or half of the
    model's positions if that is less."""

    prompts: tuple[Prompt, ...]
    tokens: int | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def longest(self, model: "LanguageModel") -> int:
        """Most tokens in a text of `model`."""
        return self.tokens or default_tokens(model.config.max_positions)

    def slots(self) -> int:
        """The power of two at or below `batch_size`, at most `SLOTS`: so many samples decode together."""
        return min(SLOTS, 1 << (self.batch_size.bit_length() - 1))

    def written(
        self, name: str, model: "LanguageModel", requests: Sequence[Request], sampling: SampleConfig, store: Store
    ) -> list[Record]:
        """What the model writes, stored as `name`, without its thoughts. A prompt that leaves no room within its
        positions gives failed records."""
        from common.sample.local import LocalGenerator

        # Not the model's own generator: how many samples decode together is set here.
        make = lambda: LocalGenerator(model.name, model.params, model.config, model.tokenizer, slots=self.slots())
        records = store.records(name, make, requests, sampling, self.seed)
        return [r if r.text is None else dataclasses.replace(r, text=without_thoughts(r.text)) for r in records]


def default_tokens(positions: int) -> int:
    """Longest answer of a model with so many positions, where the user does not say."""
    return min(MOST_TOKENS, positions // 2)


@dataclasses.dataclass(frozen=True)
class Profile:
    """A model by several measures. `of`: what each of them says, by its name."""

    of: Mapping[str, Measured]

    @property
    def figures(self) -> dict[str, Figure]:
        """All figures by "MEASURE/NAME", such as "stereoset/gender/ss"."""
        return {f"{name}/{key}": entry for name, own in self.of.items() for key, entry in own.figures.items()}

    @property
    def answers(self) -> Mapping[str, str | None]:
        """The texts of all measures by the id of their prompt."""
        return {name: text for own in self.of.values() for name, text in own.answers.items()}


def profile_model(model: "LanguageModel", measures: Iterable[Measure], store: Store = MEMORY) -> Profile:
    """Measure `model` by all `measures`, one after another. Raises UserError for a scorer that fails, and for two
    measures of one name, of which the second would take the first one's place."""
    found: dict[str, Measured] = {}
    for measure in measures:
        if measure.name in found:
            raise UserError(f"two measures are called {measure.name!r}: give one of them another name")
        with store.timed(measure.name):
            found[measure.name] = measure.measure(model, store)
    return Profile(found)
