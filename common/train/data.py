"""From token sequences to static-shape training batches, in an order fixed by the seed.

    example = Encoded(tokens, prompt_length)
    for parts in batches(examples, settings, pad_id=0, first_step=0, last_step=100): ...

An update's examples come in micro-batches, over which gradients are accumulated, each as long as it has to be.
Lengths and answer counts are rounded up to few buckets; examples of like length share a micro-batch, so little of
it is padding. What all examples begin with, such as a task's instruction, is read once a micro-batch.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from common.buckets import PREFIX, SHORTEST, beginning, bucket, finer, in_common
from common.config import TrainConfig
from common.model.blocks import Idle

READ, LEARNED = 16, 8
"""Of all positions of a micro-batch, those that are computed are rounded up to sixteenths and those of answers to
eighths: with sixteenths for both GSM8K has 43 programs instead of 35."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of prompt and answer; the loss covers tokens from `prompt_length` on, the end token included.
    `weight` multiplies the loss of each of them."""

    tokens: tuple[int, ...]
    prompt_length: int
    weight: float = 1.0


class MicroBatch(NamedTuple):
    """A part of an optimizer update: what `answer_loss` takes.

    All rows go on from the tokens of `prefix`. `real` are the positions in the flattened rows x T that have to be
    computed, all different, and some of padding where their number is rounded up; None: all. What is computed at
    one of them stands also at its place in `again`, or nowhere else where that is rows * T; None: for all of them.
    `idle` says which rows end early, if any does.
    `places` are those whose next token is predicted, `targets` these tokens, `weight` their examples' weights, 0
    for padding. By `total` the sum of losses is divided: the weights of the whole update, or the number of its
    examples with `TrainConfig.sum_loss`.
    """

    prefix: Int[np.ndarray, "1 P"]
    tokens: Int[np.ndarray, "rows T"]
    real: Int[np.ndarray, " N"] | None
    again: Int[np.ndarray, " N"] | None
    idle: Idle | None
    places: Int[np.ndarray, " A"]
    targets: Int[np.ndarray, " A"]
    weight: Float[np.ndarray, " A"]
    total: Float[np.ndarray, ""]


def shared_prefix(examples: Sequence[Encoded]) -> tuple[int, ...]:
    """What the prompts of all examples begin with, if it is a quarter or more of their tokens: a program that
    reads it apart takes longer to compile."""
    found = tuple(beginning([e.tokens[: e.prompt_length] for e in examples]))
    return found if 4 * len(found) * len(examples) >= sum(len(e.tokens) for e in examples) else ()


def rounded(length: int, prefix: int) -> int:
    """To what the tokens of an example behind a prefix of so many are padded."""
    # Behind an instruction little is left.
    return bucket(length - prefix, PREFIX) if prefix else finer(length, SHORTEST)


def epoch_plan(lengths: Sequence[int], settings: TrainConfig, epoch: int) -> list[np.ndarray]:
    """Which examples form each batch of an epoch: shuffled, sorted by their lengths, which are `rounded` ones, and
    the batches shuffled again.

    Every example appears exactly once, save what `drop_last` leaves out; only one batch may hold fewer than
    `batch_size`.
    """
    # Of seed and epoch alone: a training that starts again in mid-epoch makes the same plan.
    rng = np.random.default_rng([settings.seed, epoch])
    order = rng.permutation(len(lengths))
    if settings.drop_last:
        # Before the sort, or it would always be the longest examples that are dropped.
        order = order[: settings.steps_per_epoch(len(lengths)) * settings.batch_size]
    # A stable sort: of those of one length the shuffle decides who shares a batch.
    order = order[np.argsort([lengths[i] for i in order], kind="stable")]
    parts = [order[i : i + settings.batch_size] for i in range(0, len(order), settings.batch_size)]
    # Or every epoch would go from short examples to long ones.
    return [parts[i] for i in rng.permutation(len(parts))]


def collate(
    examples: Sequence[Encoded],
    settings: TrainConfig,
    pad_id: int,
    prefix: Sequence[int] = (),
    *,
    twins: bool = False,
) -> list[MicroBatch]:
    """One update in right-padded micro-batches; missing rows of the last one are padding with weight zero. All
    prompts begin with `prefix`, and go on. With `twins`, what examples 2 i and 2 i + 1 both begin with is computed
    once, as far as positions are spared by it; micro-batches are then of an even number of rows."""
    rows = min(settings.micro_batch_size, settings.batch_size)
    weights = sum(e.weight * _answer_length(e) for e in examples)
    total = np.array(len(examples) if settings.sum_loss else max(weights, 1.0), np.float32)
    return [
        _micro_batch(examples[i : i + rows], rows, pad_id, total, prefix, twins)
        for i in range(0, len(examples), rows)
    ]


def _answer_length(example: Encoded) -> int:
    # Without a prompt the first token has nothing before it that could predict it.
    return len(example.tokens) - max(example.prompt_length, 1)


def _micro_batch(
    examples: Sequence[Encoded], rows: int, pad_id: int, total: np.ndarray, prefix: Sequence[int], twins: bool
) -> MicroBatch:
    T = rounded(max(len(e.tokens) for e in examples), len(prefix))
    A = _up(max(1, sum(map(_answer_length, examples))), rows * T, LEARNED)
    tokens = np.full((rows, T), pad_id, np.int32)
    order = np.ones((rows, T), int)  # 0: what is read, 1: padding, 2: what is read in another row
    again = np.full((rows, T), rows * T, np.int32)
    places, targets = np.zeros((2, A), np.int32)
    weight = np.zeros(A, np.float32)
    filled = 0
    for row, example in enumerate(examples):
        ids, answer = np.array(example.tokens[len(prefix) :]), _answer_length(example)
        tokens[row, : len(ids)] = ids
        order[row, : len(ids) - 1] = 0  # the last token is predicted alone
        learned = slice(filled, filled + answer)
        places[learned] = row * T + np.arange(len(ids) - answer - 1, len(ids) - 1)
        targets[learned] = ids[len(ids) - answer :]
        weight[learned] = example.weight
        filled += answer
    for row in range(1, len(examples), 2) if twins else ():
        same = in_common([example.tokens[len(prefix) : -1] for example in examples[row - 1 : row + 1]])
        order[row, :same] = 2
        again[row - 1, :same] = row * T + np.arange(same)
    count = min(_up(int((order == 0).sum()), rows * T, READ), rows * T)
    real = np.argsort(order, axis=None, kind="stable")[:count].astype(np.int32)
    again[np.isin(again, real)] = rows * T  # there is no padding left: read twice after all
    if count == rows * T and not prefix:
        real = None  # nothing is spared
    second = again.reshape(-1)[real] if twins and real is not None else None
    # Of each example the last token is not read.
    idle = None if real is None else Idle.of([len(e.tokens) - 1 - len(prefix) for e in examples], rows, T)
    return MicroBatch(np.array([prefix], np.int32), tokens, real, second, idle, places, targets, weight, total)


def _up(count: int, of: int, parts: int) -> int:
    """`count` rounded up to whole parts of `of`."""
    part = -(-of // parts)
    return -(-count // part) * part


def plan(
    lengths: Sequence[int], settings: TrainConfig, *, first_step: int, last_step: int
) -> Iterator[np.ndarray]:
    """Which examples, of these `rounded` lengths, form the batches of updates first_step … last_step - 1. Each
    depends on the seed and its step alone, so a training that starts again in the middle sees the same data as one
    that was never stopped."""
    size = settings.steps_per_epoch(len(lengths))
    parts: list[np.ndarray] = []
    for step in range(first_step, last_step):
        epoch, offset = divmod(step, size)
        if offset == 0 or not parts:  # also where a training starts again in the middle of an epoch
            parts = epoch_plan(lengths, settings, epoch)
        yield parts[offset]


def batches(
    examples: Sequence[Encoded], settings: TrainConfig, *, pad_id: int, first_step: int, last_step: int
) -> Iterator[list[MicroBatch]]:
    """The micro-batches of updates first_step … last_step - 1, in the order of `plan`."""
    prefix = shared_prefix(examples)
    lengths = [rounded(len(e.tokens), len(prefix)) for e in examples]
    for rows in plan(lengths, settings, first_step=first_step, last_step=last_step):
        yield collate([examples[i] for i in rows], settings, pad_id, prefix)
