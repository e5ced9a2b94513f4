"""Likelihood of given answers: the log-probability of every answer token after its prompt.

    logps = score(params, config, [(prompt_ids, answer_ids)])        # one float32 array an answer
    perplexity = np.exp(-np.mean(np.concatenate(logps)))

Pairs of like length share a batch, right-padded to a few static shapes. Only the positions that predict an answer
token go through the head. `all_logps` is the plain form.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common import model, runtime
from common.buckets import bucket
from common.config import ModelConfig
from common.errors import UserError
from common.losses import token_logps
from common.model import Params

Pair = tuple[Sequence[int], Sequence[int]]

SHORTEST = 64
"""Smallest compiled length of prompt and answer together."""


def score(
    params: Params,
    config: ModelConfig,
    pairs: Sequence[Pair],
    batch_size: int = 32,
    *,
    dtype: Any = None,
) -> list[np.ndarray]:
    """Log-probabilities, float32, of each answer's tokens given its prompt and the answer before them.

    An answer scores what it would under the model itself: temperature 1, no cuts. `dtype` is that of the
    activations (default: `runtime.compute_dtype`).

    Raises UserError, naming the pair by its index, for an empty prompt or one too long together with its answer.
    """
    for index, (prompt, answer) in enumerate(pairs):
        if not len(prompt):
            raise UserError(f"pair {index} has an empty prompt: give at least one token before the answer")
        if len(prompt) + len(answer) > config.max_positions:
            raise UserError(
                f"pair {index} of {len(prompt) + len(answer)} tokens exceeds the model's "
                f"{config.max_positions} positions: shorten it"
            )
    dtype = jnp.dtype(dtype or runtime.compute_dtype())
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    logps: list[Any] = [None] * len(pairs)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = _batch([pairs[i] for i in rows], batch_size)
        for i, values in zip(rows, np.asarray(_score_batch(params, config, dtype, *batch)), strict=False):
            logps[i] = values[: len(pairs[i][1])]
    return logps


def _batch(pairs: Sequence[Pair], size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right-padded inputs (size, T), and for each answer token (size, A) the position before it and the token."""
    inputs = np.zeros((size, bucket(max(len(p) + len(a) for p, a in pairs) - 1, SHORTEST)), np.int32)
    positions = np.zeros((size, bucket(max(len(a) for _, a in pairs))), np.int32)
    targets = np.zeros_like(positions)
    for row, (prompt, answer) in enumerate(pairs):
        inputs[row, : len(prompt) + len(answer) - 1] = [*prompt, *answer][:-1]
        positions[row, : len(answer)] = np.arange(len(answer)) + len(prompt) - 1
        targets[row, : len(answer)] = answer
    return inputs, positions, targets


@functools.partial(jax.jit, static_argnums=(1, 2))
def _score_batch(
    params: Params,
    config: ModelConfig,
    dtype: Any,
    inputs: Int[Array, "B T"],
    positions: Int[Array, "B A"],
    targets: Int[Array, "B A"],
) -> Float[Array, "B A"]:
    h = model.hidden(params, config, inputs, dtype=dtype)
    h = jnp.take_along_axis(h, positions[..., None], axis=1)
    return token_logps(params, config, h.reshape(-1, h.shape[-1]), targets.reshape(-1)).reshape(targets.shape)


def all_logps(params: Params, config: ModelConfig, tokens: Int[Array, " T"]) -> Float[Array, "T V"]:
    """The plain form that `score` agrees with: row t has the log-probabilities of every token to follow t."""
    h = model.hidden(params, config, tokens[None])[0]
    return jax.nn.log_softmax(model.unembed(params, config, h))
