"""From token sequences to static-shape training batches, in an order fixed by the seed.

    example = Encoded(tokens, prompt_length)
    for batch in batches(examples, settings, pad_id=0, first_step=0, last_step=100): ...

A batch holds `micro` equal parts for gradient accumulation. Lengths and answer counts are rounded up to few
buckets; examples of like length share a batch, so little of it is padding.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from common.buckets import SHORTEST, finer
from common.config import TrainConfig

PARTS = 8
"""Of all positions of a micro-batch, the answers' are rounded up to so many parts."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of prompt and answer; the loss covers tokens from `prompt_length` on, the end token included.
    `weight` multiplies the loss of each of them."""

    tokens: tuple[int, ...]
    prompt_length: int
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Batch:
    """One optimizer update in `micro` parts.

    tokens (micro, rows, T); `index` (micro, A) are positions in the flattened rows × T whose next token is
    predicted, `target` (micro, A) those tokens, `weight` (micro, A) their examples' weights, 0 for padding. With
    `settings.sum_loss` the weights are divided by the number of examples in the update.
    """

    tokens: np.ndarray
    index: np.ndarray
    target: np.ndarray
    weight: np.ndarray


def epoch_plan(lengths: Sequence[int], settings: TrainConfig, epoch: int) -> list[np.ndarray]:
    """Which examples form each batch of an epoch: shuffled, sorted into like lengths, batches shuffled again.

    Every example appears exactly once, save what `drop_last` leaves out; only one batch may hold fewer than
    `batch_size`.
    """
    # Of seed and epoch alone: a training that starts again in mid-epoch makes the same plan.
    rng = np.random.default_rng([settings.seed, epoch])
    order = rng.permutation(len(lengths))
    if settings.drop_last:
        # Before the sort, or it would always be the longest examples that are dropped.
        order = order[: settings.steps_per_epoch(len(lengths)) * settings.batch_size]
    # A stable sort by bucket: within one, the shuffle decides who shares a batch.
    order = order[np.argsort([finer(lengths[i], SHORTEST) for i in order], kind="stable")]
    parts = [order[i : i + settings.batch_size] for i in range(0, len(order), settings.batch_size)]
    # Or every epoch would go from short examples to long ones.
    return [parts[i] for i in rng.permutation(len(parts))]


def collate(examples: Sequence[Encoded], settings: TrainConfig, pad_id: int) -> Batch:
    """Right-padded arrays for one update; missing rows are padding with weight zero."""
    rows = min(settings.micro_batch_size, settings.batch_size)
    micro = -(-settings.batch_size // rows)
    T = finer(max(len(e.tokens) for e in examples), SHORTEST)
    parts = [examples[i * rows : (i + 1) * rows] for i in range(micro)]
    answers = max(sum(len(e.tokens) - e.prompt_length for e in part) for part in parts)
    part_size = -(-rows * T // PARTS)
    A = -(-answers // part_size) * part_size
    tokens = np.full((micro, rows, T), pad_id, np.int32)
    index, target = np.zeros((2, micro, A), np.int32)
    weight = np.zeros((micro, A), np.float32)
    for m, part in enumerate(parts):
        filled = 0
        for r, example in enumerate(part):
            # Without a prompt the first token has nothing before it that could predict it.
            ids, start = np.array(example.tokens), max(example.prompt_length, 1)
            tokens[m, r, : len(ids)] = ids
            end = filled + len(ids) - start
            index[m, filled:end] = r * T + np.arange(start - 1, len(ids) - 1)
            target[m, filled:end] = ids[start:]
            weight[m, filled:end] = example.weight / (len(examples) if settings.sum_loss else 1)
            filled = end
    return Batch(tokens, index, target, weight)


def plan(
    lengths: Sequence[int], settings: TrainConfig, *, first_step: int, last_step: int
) -> Iterator[np.ndarray]:
    """Which examples form the batches of updates first_step … last_step - 1. Each depends on the seed and its step
    alone, so a training that starts again in the middle sees the same data as one that was never stopped."""
    size = settings.steps_per_epoch(len(lengths))
    parts: list[np.ndarray] = []
    for step in range(first_step, last_step):
        epoch, offset = divmod(step, size)
        if offset == 0 or not parts:  # also where a training starts again in the middle of an epoch
            parts = epoch_plan(lengths, settings, epoch)
        yield parts[offset]


def batches(
    examples: Sequence[Encoded], settings: TrainConfig, *, pad_id: int, first_step: int, last_step: int
) -> Iterator[Batch]:
    """The batches of updates first_step … last_step - 1, in the order of `plan`."""
    lengths = [len(e.tokens) for e in examples]
    for rows in plan(lengths, settings, first_step=first_step, last_step=last_step):
        yield collate([examples[i] for i in rows], settings, pad_id)
