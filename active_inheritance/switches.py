"""The switches of the method, grouped by the stage that reads them.

`Config.switches` makes them from flags; the loop hands each stage its own group and no more. How an answer is
chosen is a `Rule` (`active_inheritance.select`). Importing this loads no jax and no numpy.
"""

import dataclasses
from collections.abc import Iterable

from active_inheritance.select import Rule
from common.config import SampleConfig, TrainConfig

COLUMN = "column:"
"""Begins the name of a score that came with a pool."""


def measurable(scores: Iterable[str]) -> tuple[str, ...]:
    """Those of the scores that can be made of new answers: the ones that came with a pool cannot."""
    return tuple(name for name in scores if not name.startswith(COLUMN))


@dataclasses.dataclass(frozen=True)
class Answering:
    """How every prompt is answered, by sources and in later rounds by students: `k` times in total. `penalty`: of
    diverse beam search, for a token that an earlier group took; None: answers are sampled. `likelihood_guard`:
    standard deviations below a source's mean log-probability a token at which an answer is unlikely; 0: none."""

    k: int
    sampling: SampleConfig
    penalty: float | None = None
    likelihood_guard: float = 0.0


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What is scored of an answer, and which answers are not used.

    `names`: all scores, "words" among them. `toxicity`: the scorer behind the score of that name. `drop`: flags of
    `pools.guard` that make an answer unusable, one of which means a share of repeated runs of four words above
    `max_repeats`. `workers`: processes, which change no result.
    """

    names: tuple[str, ...]
    toxicity: str | None = None
    drop: tuple[str, ...] = ("empty", "truncated", "repeating", "duplicate")
    max_repeats: float = 0.5
    workers: int = 1

    def drops(self, flags: Iterable[str]) -> bool:
        """Whether an answer with these flags is unusable. What the likelihood guard finds unlikely always is: it
        has a switch of its own."""
        return any(flag in self.drop or flag == "unlikely" for flag in flags)


@dataclasses.dataclass(frozen=True)
class Learning:
    """How students learn; the seed of `train` is that of the first repeat. `cut`: of a sequence longer than
    `train.max_length` the beginning is learned, otherwise its prompt is in no arm."""

    train: TrainConfig
    cut: bool = True


@dataclasses.dataclass(frozen=True)
class Testing:
    """How students are measured: `samples` answers to each held-out prompt. `prompts`: how many are held out where
    no file holds them."""

    prompts: int
    samples: int
    sampling: SampleConfig


@dataclasses.dataclass(frozen=True)
class Switches:
    """All of them; the seed of the first repeat is that of the rule."""

    rule: Rule
    answering: Answering
    scoring: Scoring
    learning: Learning
    testing: Testing
    arms: tuple[str, ...]
    rounds: int
    repeats: int

    @property
    def measured(self) -> tuple[str, ...]:
        """Scores of objectives that students are compared by, the main one first."""
        return measurable(objective.name for objective in self.rule.objectives)
