"""The settings of a run by the stage that reads them: frozen pieces without gaps, made by `Config.switches`.

A stage is handed its own piece, so its arguments say what it depends on. Importing this loads no jax.
"""

import dataclasses
import pathlib
from typing import Literal

from common.config import SampleConfig, TrainConfig

GuardedBy = Literal["warm-up", "seeds"]
"""Whose likelihoods say what is too odd: of the warm-up proposer's own queries, or of the seeds under the proposer
as it came."""
PairingRule = Literal["within", "fallback", "pooled"]
Knower = Literal["program", "labeler"]
"""Who is asked for what is true of a query."""


WORD = 8
"""Tokens of the labeler's reply where a word would do."""


@dataclasses.dataclass(frozen=True)
class Files:
    """Where data are read from, None for what was not given. `text_column` names the query, `seed` shuffles."""

    seeds: pathlib.Path | None
    test: pathlib.Path | None
    general: pathlib.Path | None
    human: pathlib.Path | None
    text_column: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Answers:
    """How a query is answered: `n` times, each in at most `tokens`. A single answer is greedy; several are sampled
    at `temperature`, as greedy ones would all be alike."""

    n: int
    tokens: int
    temperature: float

    @property
    def sampling(self) -> SampleConfig:
        return SampleConfig(self.tokens, temperature=self.temperature if self.n > 1 else 0.0)


@dataclasses.dataclass(frozen=True)
class Preferring:
    """DPO on the pairs of a round. `from_warm_up`: its reference is the warm-up proposer in every round, not the
    proposer at the start of the round."""

    train: TrainConfig
    beta: float
    length_normalised: bool
    from_warm_up: bool


@dataclasses.dataclass(frozen=True)
class Exploring:
    """One proposer's rounds. `samples`: queries for a prompt, of which the last proposing has one. A query is a
    near-duplicate from `jaccard` of its words on, and above the cosine `semantic` (1: off) of its hidden states.
    `likelihood_guard` is in standard deviations (0: off), below what `guarded_by` names; `collapse` is a rise of
    self-BLEU. `keep_first`: of a list of queries that was cut off the first counts."""

    shots: int
    rounds: int
    prompts: int
    samples: int
    final_prompts: int
    writing: SampleConfig
    keep_first: bool
    warm_up: TrainConfig
    preferring: Preferring
    pairing: PairingRule
    min_pairs: int
    max_pairs: int
    jaccard: float
    semantic: float
    likelihood_guard: float
    guarded_by: GuardedBy
    collapse: float

    @property
    def sizes(self) -> list[int]:
        """Prompts of every round, and of the last proposing."""
        return [self.prompts] * (self.rounds + 1) + [self.final_prompts]


@dataclasses.dataclass(frozen=True)
class Learning:
    """What the target learns from. `mix`: seeds mixed in for each failing query, of which there are at most
    `failures`."""

    train: TrainConfig
    mix: float
    failures: int

    def mixed(self, size: int, seeds: int) -> int:
        """Seeds beside `size` examples of an arm's own, of `seeds` that there are."""
        return min(seeds, round(self.mix * size))


@dataclasses.dataclass(frozen=True)
class Switches:
    """All stages of a repeat. `seeds`: seed instructions of each of the two proposers."""

    seeds: int
    exploring: Exploring
    learning: Learning
    arms: tuple[str, ...]
    co_train: bool
