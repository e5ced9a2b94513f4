"""Likelihood of given answers: the log-probability of every answer token after its prompt.

    logps = score(params, config, [(prompt_ids, answer_ids)])        # one float32 array an answer
    perplexity = np.exp(-np.mean(np.concatenate(logps)))
    [(logps, likeliest)] = score_greedy(params, config, [(prompt_ids, answer_ids)])
    [[a, b]] = score_shared(params, config, [(prompt_ids, [answer_ids, other_ids])])

Pairs of like length share a batch, right-padded to a few static lengths. Only the positions that predict an answer
token go through the head, those of all batches one behind the other. `all_logps` is the plain form. `score_shared`
reads a prompt once for all its answers, and what all prompts begin with once for all; `score` on every pair is its
plain form. On CPU they are packed, without most of the padding.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from common import runtime, streams
from common.buckets import PREFIX, SHORTEST, SMALL_MODEL, beginning, bucket, finer, power_of_two
from common.config import ModelConfig
from common.errors import UserError
from common.model.decoder import Cache, Params, count_params, head_of, hidden, hidden_at, prefill, unembed
from common.model.losses import logits_at_once, target_logps
from common.model.packing import Packing, Tree
from common.model.sharding import ROWS, fetch, mesh_of, place_data
from common.sample.batching import Batch, batches_of, packed_batches
from common.sample.numbers import numbers

Pair = tuple[Sequence[int], Sequence[int]]
Group = tuple[Sequence[int], Sequence[Sequence[int]]]
Greedy = tuple[np.ndarray, np.ndarray]
"""Of each token of an answer its log-probability, and whether it is the likeliest one."""

POSITIONS = {"cpu": 512, "accelerator": 2048}
"""Most positions that go through the head together."""
COMPILED = 2.7e10
"""Operations that are computed while a layer is compiled: 0.15 seconds at 180 GFLOP/s."""
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

    A batch holds at most `batch_size` pairs, and as many of their length as `batching.TOKENS` says, all of one
    compiled shape: a pair's numbers do not depend on which others there are.

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

    def states(rows: list[int], *shape: int) -> np.ndarray:
        batch = place_data(_batch([pairs[i] for i in rows], *shape), params, ROWS)
        return fetch(_states(params, config, dtype, *batch))

    lengths = [finer(len(prompt) + len(answer) - 1, SHORTEST) for prompt, answer in pairs]
    found = _states_of(states, batches_of(lengths, batch_size, params), params)
    targets = [answer for _, answer in pairs]
    return _through_head(params, config, found, targets, range(len(pairs)), dtype, greedy)


def score_shared(
    params: Params, config: ModelConfig, groups: Sequence[Group], batch_size: int = 32, *, dtype: Any = None
) -> list[list[np.ndarray]]:
    """As `score`, for (prompt, answers): of every group its answers' token log-probabilities, in order. A prompt
    is read once, whatever the number of its answers, and what all prompts begin with once for all.

    Batches are those of `score`, or on CPU, of more than `SMALL_MODEL` parameters, packed ones; a group's numbers
    depend on the others only by what all prompts have in common.
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

    begun = _begun(params, config, dtype, np.array([prefix], np.int32)) if len(prefix) else None
    reads = [len(prompt) + sum(max(len(answer) - 1, 0) for answer in own) for _, prompt, own in parts]
    asked = [sum(map(len, own)) for *_, own in parts]
    # Labels are short, and so is what is left of a prompt.
    lengths = [bucket(read, PREFIX) if len(prefix) else finer(read, SHORTEST) for read in reads]

    def states(rows: list[int], *shape: int) -> Iterable[np.ndarray]:
        batch = _shared_batch([parts[row][1:] for row in rows], *shape[:2])
        if len(shape) == 2:
            return fetch(_shared_states(params, config, dtype, begun, *place_data(batch, params, ROWS)))
        own = [asked[row] for row in rows]
        h = fetch(_packed_states(params, config, dtype, begun, *_packed(batch, own, *shape[2:])))
        return np.split(h, np.cumsum(own))[:-1]

    # Rows of packed texts could not be split over devices.
    if runtime.on_accelerator() or mesh_of(params) is not None or count_params(params) <= SMALL_MODEL:
        batches = batches_of(lengths, batch_size, params)
    else:
        programs = config, dtype, len(prefix), batch_size
        compiling = COMPILED * config.num_layers / (2 * count_params(params))
        batches = packed_batches(lengths, reads, asked, batch_size, programs, compiling)
    h = _states_of(states, batches, params)
    targets = [[token for answer in own for token in answer] for *_, own in parts]
    scored = _through_head(params, config, h, targets, [group for group, *_ in parts], dtype, greedy)
    found: list[list[Greedy]] = [[] for _ in groups]
    for (group, _, answers), (logps, likeliest) in zip(parts, scored, strict=True):
        ends = np.cumsum([len(answer) for answer in answers])[:-1]
        found[group] += zip(np.split(logps, ends), np.split(likeliest, ends), strict=True)
    return found


def _through_head(
    params: Params,
    config: ModelConfig,
    states: Iterable[tuple[int, np.ndarray]],
    targets: Sequence[Sequence[int]],
    names: Sequence[int],
    dtype: Any,
    greedy: bool,
) -> list[Greedy]:
    """Of each text's `targets` the log-probability, and whether it is the likeliest token; `states` are texts, by
    number, with the hidden states (A, D) from which their targets are predicted, of which the first ones count.
    `names`: the numbers by which a caller knows the texts.

    Positions of all texts go through the head together, of one compiled shape: their number differs from text to
    text far more than lengths do. Raises UserError where the model gives no numbers.
    """
    found = [(np.zeros(len(own), np.float32), np.zeros(len(own), bool)) for own in targets]
    # A power of two, so that the rows of a mesh divide it.
    size = 1 << (max(1, min(runtime.here(POSITIONS), logits_at_once() // config.vocab_size)).bit_length() - 1)
    head, spans = head_of(params, config), []
    chosen, rows = np.zeros(size, np.int32), np.zeros((size, config.hidden_size), dtype)

    def turn() -> None:
        logps, likeliest = fetch(_head(head, config, greedy, *place_data((rows, chosen), params, ROWS)))
        for text, start, at, count in spans:
            found[text][0][start : start + count] = logps[at : at + count]
            found[text][1][start : start + count] = likeliest[at : at + count]
            numbers(logps[at : at + count], f"log-probabilities of answer {names[text]}")
        spans.clear()

    filled = 0
    for text, h in states:
        start, end = 0, len(targets[text])
        while start < end:
            count = min(end - start, size - filled)
            rows[filled : filled + count] = h[start : start + count]
            chosen[filled : filled + count] = targets[text][start : start + count]
            spans.append((text, start, filled, count))
            start, filled = start + count, filled + count
            if filled == size:
                turn()
                filled = 0
    if filled:
        turn()
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


def _states_of(
    states: Callable[..., Iterable[np.ndarray]], batches: Iterable[Batch], params: Params
) -> Iterator[tuple[int, np.ndarray]]:
    """Places of texts, each with its own of what `states` makes of the places of a batch and its shape. Batches
    are computed side by side, and beside what is done with the last ones."""
    batches = list(batches)
    count = 1 if mesh_of(params) is not None else streams.most()
    found = streams.in_order(lambda batch: states(*batch), batches, count)
    for (rows, *_), own in zip(batches, found, strict=True):
        yield from zip(rows, own, strict=False)


def _batch(pairs: Sequence[Pair], size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded inputs, and for each answer token the position before it (size, length)."""
    inputs, before = np.zeros((2, size, length), np.int32)
    for row, (prompt, answer) in enumerate(pairs):
        inputs[row, : len(prompt) + len(answer) - 1] = [*prompt, *answer][:-1]
        before[row, : len(answer)] = np.arange(len(answer)) + len(prompt) - 1
    return inputs, before


def _shared_batch(groups: Sequence[Group], size: int, length: int) -> tuple[np.ndarray, ...]:
    """Prompts, each with its answers one behind the other, right-padded: tokens, positions (without what all
    prompts begin with) and branches (size, length), as in `Tree`, -1 where there is padding; for each token of an
    answer the place of the one before it (size, A)."""
    tokens, positions = np.zeros((2, size, length), np.int32)
    branches = np.full((size, length), -1, np.int32)
    # Answers of one token are predicted from their prompt alone, and there may be many: else `length` is enough.
    most = max(sum(map(len, answers)) for _, answers in groups)
    before = np.zeros((size, length if most <= length else power_of_two(most)), np.int32)
    for row, (prompt, answers) in enumerate(groups):
        end, filled = len(prompt), 0
        tokens[row, :end], positions[row, :end], branches[row, :end] = prompt, np.arange(end), 0
        for branch, answer in enumerate(answers, 1):
            # The last token of an answer is predicted and not read.
            read, to = max(len(answer) - 1, 0), filled + len(answer)
            tokens[row, end : end + read], branches[row, end : end + read] = answer[:read], branch
            positions[row, end : end + read] = len(prompt) + np.arange(read)
            before[row, filled:to] = [len(prompt) - 1, *range(end, end + read)][: len(answer)]
            end, filled = end + read, to
    return tokens, positions, branches, before


def _packed(
    batch: tuple[np.ndarray, ...], asked: Sequence[int], computed: int, predicted: int
) -> tuple[np.ndarray, ...]:
    """A batch of `_shared_batch` as `_packed_states` takes it: its tokens and some padding, `computed` of both,
    their places, positions and branches as they were, and the `predicted` tokens that answers' tokens come behind,
    of which each row has as many as `asked` says, and padding."""
    tokens, positions, branches, before = batch
    real = np.argsort(branches < 0, axis=None, kind="stable")[:computed].astype(np.int32)
    own = np.zeros(tokens.size, np.int32)
    own[real] = np.arange(computed)
    places = [row * tokens.shape[1] + before[row, :count] for row, count in enumerate(asked)]
    at = np.zeros(predicted, np.int32)
    at[: sum(asked)] = own[np.concatenate(places)]
    return tokens.reshape(-1)[real], real, positions, branches, at


@functools.partial(jax.jit, static_argnums=(1, 2))
def _begun(params: Params, config: ModelConfig, dtype: Any, prefix: Int[Array | np.ndarray, "1 P"]) -> Cache:
    return prefill(params, config, prefix, dtype=dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _shared_states(
    params: Params,
    config: ModelConfig,
    dtype: Any,
    begun: Cache | None,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    branches: Int[Array, "B T"],
    before: Int[Array, "B A"],
) -> Float[Array, "B A D"]:
    start = 0 if begun is None else begun[0][1].shape[2]
    h = hidden(params, config, tokens, Tree(positions + start, branches), begun, dtype=dtype)
    return jnp.take_along_axis(h, before[..., None], axis=1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _packed_states(
    params: Params,
    config: ModelConfig,
    dtype: Any,
    begun: Cache | None,
    tokens: Int[Array, " N"],
    real: Int[Array, " N"],
    positions: Int[Array, "B T"],
    branches: Int[Array, "B T"],
    at: Int[Array, " A"],
) -> Float[Array, "A D"]:
    """`_shared_states` without padding: of tokens at these places of (B, T) the states of those `at`."""
    rows, length = positions.shape
    packing = Packing.of(real, None, rows, length, Tree(positions, branches))
    return hidden_at(params, config, tokens[None], at, packing, begun, dtype=dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _states(
    params: Params, config: ModelConfig, dtype: Any, inputs: Int[Array, "B T"], before: Int[Array, "B A"]
) -> Float[Array, "B A D"]:
    h = hidden(params, config, inputs, dtype=dtype)
    return jnp.take_along_axis(h, before[..., None], axis=1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _head(
    head: Params, config: ModelConfig, greedy: bool, h: Float[Array, "A D"], targets: Int[Array, " A"]
) -> tuple[Float[Array, " A"], Bool[Array, " A"]]:
    """Log-probabilities of `targets`, and whether each is the likeliest token, of equals the first: all False
    unless `greedy`, as that takes another look at the logits."""
    logits = unembed(head, config, h)
    if not greedy:
        return target_logps(logits, targets), jnp.zeros(targets.shape, bool)
    # Not by argmax, for which XLA on CPU takes twice as long.
    places, at = jnp.arange(logits.shape[1]), targets[:, None]
    own = jnp.take_along_axis(logits, at, axis=1)
    ahead = jnp.where(places < at, logits >= own, (places > at) & (logits > own))
    return target_logps(logits, targets), ~jnp.any(ahead, axis=1)


def all_logps(params: Params, config: ModelConfig, tokens: Int[Array | np.ndarray, " T"]) -> Float[Array, "T V"]:
    """The plain form that `score` agrees with: row t has the log-probabilities of every token to follow t."""
    h = hidden(params, config, tokens[None])[0]
    return jax.nn.log_softmax(unembed(params, config, h))
