"""Blocks of queries in attention on CPU, and rows that end before them. Without jax, which no plan loads."""

import dataclasses
import math
from collections.abc import Sequence

CAUSAL_BLOCKS, SMALLEST_BLOCK = 4, 16
"""Blocks of queries in attention on CPU, and the fewest queries of one."""


def blocks(length: int, most: int = CAUSAL_BLOCKS, smallest: int = SMALLEST_BLOCK) -> list[slice]:
    """Queries of each block. More of them compute less and take longer to compile."""
    count = next(n for n in (most, 2, 1) if n == 1 or (length % n == 0 and length // n >= smallest))
    return [slice(i, i + length // count) for i in range(0, length, length // count)]


@dataclasses.dataclass(frozen=True)
class Idle:
    """Of each of the `blocks` of queries how many of the first rows, shorter ones, end before it: there nobody
    looks, and on CPU attention leaves them out. Part of the compiled shape."""

    rows: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], rows: int, length: int) -> "Idle | None":
        """For the first of so many rows, which read `lengths` tokens of `length`, in quarters of the rows; None
        where less than an eighth of attention is spared: a program for it would have to be compiled."""
        parts, lengths = blocks(length), [*lengths, length]  # what comes behind is no shorter row
        ended = [next(i for i, own in enumerate(lengths) if own > part.start) for part in parts]
        idle = tuple(first - first % math.ceil(rows / 4) for first in ended)
        spared = sum(first * part.stop for first, part in zip(idle, parts, strict=True))
        return cls(idle) if 8 * spared >= rows * sum(part.stop for part in parts) else None
