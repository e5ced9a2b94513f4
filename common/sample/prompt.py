"""What is asked of a sampler, and what it gives."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

from common.config import ModelConfig, SampleConfig
from common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids, how to sample, and one seed (0 to 2**64 - 1) for each sample wanted.

    `stop_at` finds the end of an answer in the text: given all new tokens of a sample, it returns how many of
    them to keep, or None to go on. It must give the same end when it is shown more tokens. `shared`: how many of
    the first tokens are read once for all prompts that have them in common (`common.buckets.beginning`).
    """

    tokens: Sequence[int]
    sampling: SampleConfig
    seeds: tuple[int, ...] = (0,)
    stop_at: Callable[[list[int]], int | None] | None = None
    shared: int = 0


@dataclasses.dataclass(frozen=True)
class Completion:
    """New tokens, the end token included, and the log-probability of each under the model at temperature 1.

    `finish`: "stop" after an end token or where `stop_at` said so, "length" at the limit of new tokens.
    """

    tokens: list[int]
    logps: list[float]
    finish: Literal["stop", "length"]


def check(prompt: Prompt, config: ModelConfig, name: str) -> None:
    """Raise UserError when a prompt cannot be sampled from: `name` says which it is."""
    count, sampling = len(prompt.tokens), prompt.sampling
    if not count:
        raise UserError(f"{name} is empty: give at least one token")
    if sampling.max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, not {sampling.max_new_tokens}")
    if not 0 <= sampling.temperature < math.inf:
        raise UserError(f"temperature must be 0 (greedy) or more, not {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, not {sampling.top_p}")
    if not 0 <= sampling.top_k < 2**31:
        raise UserError(f"top_k must be 0 (off) or more and below 2**31, not {sampling.top_k}")
    if "" in sampling.stop:
        raise UserError("an empty stop string would end every answer: leave it out")
    if count + sampling.max_new_tokens > config.max_positions:
        raise UserError(
            f"{name} of {count} tokens leaves no room for {sampling.max_new_tokens} new ones within the model's "
            f"{config.max_positions} positions: shorten it or lower max_new_tokens"
        )
