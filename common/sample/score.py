"""Likelihood of given answers: the log-probability of every answer token after its prompt.

    logps = score(params, config, [(prompt_ids, answer_ids)])        # one float32 array an answer
    perplexity = np.exp(-np.mean(np.concatenate(logps)))
    [(logps, likeliest)] = score_greedy(params, config, [(prompt_ids, answer_ids)])
    [[a, b]] = score_shared(params, config, [(prompt_ids, [answer_ids, other_ids])])

Pairs of like length share a batch, right-padded to a few static shapes. Only the positions that predict an answer
token go through the head. `all_logps` is the plain form. `score_shared` reads a prompt once for all its answers,
and what all prompts begin with once for all; `score` on every pair is its plain form.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from common import runtime
from common.buckets import PREFIX, SHORTEST, beginning, bucket, finer, power_of_two
from common.config import ModelConfig
from common.errors import UserError
from common.model.decoder import Params, Tree, hidden, prefill, unembed
from common.model.losses import logits_at_once, token_logps
from common.model.sharding import ROWS, fetch, place_data
from common.sample.numbers import numbers

Pair = tuple[Sequence[int], Sequence[int]]
Group = tuple[Sequence[int], Sequence[Sequence[int]]]
Greedy = tuple[np.ndarray, np.ndarray]
"""Of each token of an answer its log-probability, and whether it is the likeliest one."""

TOKENS = {"cpu": 512, "accelerator": 2**14}
"""Tokens of a batch, padding included. On CPU more of them are no faster, and a last batch is half padding on
average."""
ROW = 512
"""Tokens of several answers in one row behind their prompt: each is compared with all others of its row."""


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
    activations (default: `runtime.compute_dtype`). Where the parameters lie on a mesh, so do the rows of a batch.

    A batch holds at most `batch_size` pairs, and as many of their length as `TOKENS` says, all of one compiled
    shape: a pair's numbers do not depend on which others there are.

    Raises UserError, naming the pair by its index, for an empty prompt or one too long together with its answer.
    """
    return [logps for logps, _ in _scored(params, config, pairs, batch_size, dtype, greedy=False)]


def score_greedy(
    params: Params,
    config: ModelConfig,
    pairs: Sequence[Pair],
    batch_size: int = 32,
    *,
    dtype: Any = None,
) -> list[Greedy]:
    """As `score`, and beside each log-probability whether its token is the likeliest one (bool), as which greedy
    decoding would choose it.

    A pair may have one token more than the model has positions: the last one is predicted and not read.
    """
    return _scored(params, config, pairs, batch_size, dtype, greedy=True)


def _scored(
    params: Params, config: ModelConfig, pairs: Sequence[Pair], batch_size: int, dtype: Any, *, greedy: bool
) -> list[Greedy]:
    _check(pairs, config.max_positions + greedy, config)
    dtype = jnp.dtype(dtype or runtime.compute_dtype())
    found: list[Any] = [None] * len(pairs)
    for rows, *shape in _batches([_padded(pair) for pair in pairs], batch_size):
        batch = place_data(_batch([pairs[i] for i in rows], *shape), params, ROWS)
        both = fetch(_score_batch(params, config, dtype, greedy, *batch))
        for i, logps, likeliest in zip(rows, *both, strict=False):
            count = len(pairs[i][1])
            found[i] = numbers(logps[:count], f"log-probabilities of answer {i}"), likeliest[:count]
    return found


def score_shared(
    params: Params, config: ModelConfig, groups: Sequence[Group], batch_size: int = 32, *, dtype: Any = None
) -> list[list[np.ndarray]]:
    """As `score`, for (prompt, answers): of every group its answers' token log-probabilities, in order. A prompt
    is read once, whatever the number of its answers, and what all prompts begin with once for all.

    Batches are those of `score`; a group's numbers depend on the others only by what all prompts have in common.
    """
    found = _scored_shared(params, config, groups, batch_size, dtype, greedy=False)
    return [[logps for logps, _ in own] for own in found]


def score_shared_greedy(
    params: Params, config: ModelConfig, groups: Sequence[Group], batch_size: int = 32, *, dtype: Any = None
) -> list[list[Greedy]]:
    """As `score_shared`, with what `score_greedy` adds."""
    return _scored_shared(params, config, groups, batch_size, dtype, greedy=True)


def _scored_shared(
    params: Params, config: ModelConfig, groups: Sequence[Group], batch_size: int, dtype: Any, *, greedy: bool
) -> list[list[Greedy]]:
    longest = [(prompt, max(answers, key=len)) for prompt, answers in groups]
    _check(longest, config.max_positions + greedy, config)
    dtype = jnp.dtype(dtype or runtime.compute_dtype())
    prefix = beginning([prompt for prompt, _ in groups])
    cut = [(prompt[len(prefix) :], answers) for prompt, answers in groups]
    parts = [(i, prompt, own) for i, (prompt, answers) in enumerate(cut) for own in _parts(answers)]
    scored: list[Any] = [None] * len(parts)

    def shape(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> tuple[int, int]:
        read = len(prompt) + sum(max(len(answer) - 1, 0) for answer in answers)
        # Labels are short, and so is what is left of a prompt.
        length = bucket(read, PREFIX) if len(prefix) else finer(read, SHORTEST)
        return length, power_of_two(sum(map(len, answers)), 4)

    for rows, *shapes in _batches([shape(prompt, own) for _, prompt, own in parts], batch_size):
        batch = place_data(_shared_batch([parts[row][1:] for row in rows], *shapes), params, ROWS)
        both = fetch(_score_shared_batch(params, config, dtype, greedy, np.array(prefix, np.int32), *batch))
        for row, logps, likeliest in zip(rows, *both, strict=False):
            group, _, answers = parts[row]
            *ends, end = np.cumsum([len(answer) for answer in answers])
            logps = np.split(numbers(logps[:end], f"log-probabilities of answers {group}"), ends)
            scored[row] = list(zip(logps, np.split(likeliest[:end], ends), strict=True))
    found: list[list[Greedy]] = [[] for _ in groups]
    for (group, *_), values in zip(parts, scored, strict=True):
        found[group] += values
    return found


def _parts(answers: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Answers to one prompt, at most `ROW` tokens of them or one at a time."""
    part: list[Sequence[int]] = []
    for answer in answers:
        if part and sum(map(len, part)) + len(answer) > ROW:
            yield part
            part = []
        part.append(answer)
    yield part


def _check(pairs: Sequence[Pair], longest: int, config: ModelConfig) -> None:
    for index, (prompt, answer) in enumerate(pairs):
        if not len(prompt):
            raise UserError(f"pair {index} has an empty prompt: give at least one token before the answer")
        if len(prompt) + len(answer) > longest:
            raise UserError(
                f"pair {index} of {len(prompt) + len(answer)} tokens exceeds the model's "
                f"{config.max_positions} positions: shorten it"
            )


def _batches(shapes: Sequence[tuple[int, int]], most: int) -> Iterator[tuple[list[int], int, int, int]]:
    """Places of equal shapes (length, answer tokens), and the batch's: rows, length, answer tokens.

    All rows also for a last, smaller batch: it compiles nothing new, and no row depends on how many there are.
    """
    tokens = TOKENS["accelerator" if runtime.on_accelerator() else "cpu"]
    for shape, alike in itertools.groupby(sorted(range(len(shapes)), key=shapes.__getitem__), shapes.__getitem__):
        places, size = list(alike), min(most, 1 << max(0, (tokens // shape[0]).bit_length() - 1))
        for start in range(0, len(places), size):
            yield places[start : start + size], size, *shape


def _padded(pair: Pair) -> tuple[int, int]:
    """Length to which prompt and answer are padded, and the number of answer tokens."""
    prompt, answer = pair
    return finer(len(prompt) + len(answer) - 1, SHORTEST), power_of_two(len(answer), 8)


def _batch(pairs: Sequence[Pair], size: int, length: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right-padded inputs (size, length), and for each answer token (size, count) the position before it and the
    token."""
    inputs = np.zeros((size, length), np.int32)
    positions, targets = np.zeros((2, size, count), np.int32)
    for row, (prompt, answer) in enumerate(pairs):
        inputs[row, : len(prompt) + len(answer) - 1] = [*prompt, *answer][:-1]
        positions[row, : len(answer)] = np.arange(len(answer)) + len(prompt) - 1
        targets[row, : len(answer)] = answer
    return inputs, positions, targets


def _shared_batch(groups: Sequence[Group], size: int, length: int, count: int) -> tuple[np.ndarray, ...]:
    """Prompts, each with its answers one behind the other, right-padded: tokens, positions (without what all
    prompts begin with) and branches (size, length), as in `Tree`; for each token of an answer the place of the one
    before it, and the token (size, count)."""
    tokens, positions, branches = np.zeros((3, size, length), np.int32)
    index, targets = np.zeros((2, size, count), np.int32)
    for row, (prompt, answers) in enumerate(groups):
        end, filled = len(prompt), 0
        tokens[row, :end], positions[row, :end] = prompt, np.arange(end)
        for branch, answer in enumerate(answers, 1):
            # The last token of an answer is predicted and not read.
            read, to = max(len(answer) - 1, 0), filled + len(answer)
            tokens[row, end : end + read], branches[row, end : end + read] = answer[:read], branch
            positions[row, end : end + read] = len(prompt) + np.arange(read)
            index[row, filled:to] = [len(prompt) - 1, *range(end, end + read)][: len(answer)]
            targets[row, filled:to] = answer
            end, filled = end + read, to
        branches[row, end:] = -1
    return tokens, positions, branches, index, targets


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _score_shared_batch(
    params: Params,
    config: ModelConfig,
    dtype: Any,
    greedy: bool,
    prefix: Int[Array, " P"],
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    branches: Int[Array, "B T"],
    index: Int[Array, "B A"],
    targets: Int[Array, "B A"],
) -> tuple[Float[Array, "B A"], Bool[Array, "B A"]]:
    begun = prefill(params, config, prefix[None], dtype=dtype) if len(prefix) else None
    h = hidden(params, config, tokens, Tree(positions + len(prefix), branches), begun, dtype=dtype)
    return _logps(params, config, h, index, targets, greedy)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _score_batch(
    params: Params,
    config: ModelConfig,
    dtype: Any,
    greedy: bool,
    inputs: Int[Array, "B T"],
    positions: Int[Array, "B A"],
    targets: Int[Array, "B A"],
) -> tuple[Float[Array, "B A"], Bool[Array, "B A"]]:
    h = hidden(params, config, inputs, dtype=dtype)
    return _logps(params, config, h, positions, targets, greedy)


def _logps(
    params: Params,
    config: ModelConfig,
    h: Float[Array, "B T D"],
    positions: Int[Array, "B A"],
    targets: Int[Array, "B A"],
    greedy: bool,
) -> tuple[Float[Array, "B A"], Bool[Array, "B A"]]:
    """Log-probabilities of the tokens that follow the given positions, and whether each is the likeliest one: all
    False unless `greedy`, as that takes another look at the logits."""
    at = jnp.take_along_axis(h, positions[..., None], axis=1).reshape(-1, h.shape[-1])
    if not greedy:
        logps = token_logps(params, config, at, targets.reshape(-1)).reshape(targets.shape)
        return logps, jnp.zeros(targets.shape, bool)

    def one(pair):
        logps = jax.nn.log_softmax(unembed(params, config, pair[0]))
        return logps[pair[1]], jnp.argmax(logps) == pair[1]

    # A few positions at a time: the logits of all would not fit for a large vocabulary.
    both = jax.lax.map(one, (at, targets.reshape(-1)), batch_size=max(1, logits_at_once() // config.vocab_size))
    return jax.tree.map(lambda values: values.reshape(targets.shape), both)


def all_logps(params: Params, config: ModelConfig, tokens: Int[Array | np.ndarray, " T"]) -> Float[Array, "T V"]:
    """The plain form that `score` agrees with: row t has the log-probabilities of every token to follow t."""
    h = hidden(params, config, tokens[None])[0]
    return jax.nn.log_softmax(unembed(params, config, h))
