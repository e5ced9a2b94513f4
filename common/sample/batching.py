"""Which texts go through a model together when their likelihood is asked for.

    for places, rows, length in batches_of(lengths, most, params): ...
    for places, rows, length, tokens, predicted in packed_batches(lengths, reads, asked, most, …): ...

The first are of few shapes, whatever the texts are, with padding. The second have shapes that fit their texts.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from common import runtime
from common.buckets import power_of_two
from common.model.decoder import Params, count_params

Batch = tuple[Any, ...]
"""Places of texts, and the numbers of their batch's shape."""
TOKENS = {"cpu": 512, "accelerator": 2**14}
"""Tokens of a batch, padding included. On CPU more of them are no faster, and a last batch is half padding on
average; above `LARGE` parameters half of them are as fast."""
LARGE = 100_000_000
ENOUGH = 64
"""Tokens from which on a product of matrices has the same numbers however many there are, to the bit: for fewer
XLA on CPU takes others."""
PACKED, EACH = 1024, 32
"""Tokens of a batch of packed texts, about, and as how many more its own cost counts."""
FEW = 4
"""Batches of a length up to which their number is chosen by how little padding they have."""


@dataclasses.dataclass
class Made:
    """Shapes that programs are compiled for, and the tokens that were computed since then for want of others. What
    is found does not depend on them, see `ENOUGH`."""

    shapes: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    padding: int = 0


_MADE: dict[Any, Made] = collections.defaultdict(Made)
"""Of packed batches, by their programs and lengths."""


def batches_of(lengths: Sequence[int], most: int, params: Params) -> Iterator[Batch]:
    """Places of equal lengths, and the batch's shape: rows, of which there are at most so many, and length.

    All rows also for a last, smaller batch: it compiles nothing new, and no row depends on how many there are.
    """
    tokens = runtime.here(TOKENS if count_params(params) <= LARGE else TOKENS | {"cpu": TOKENS["cpu"] // 2})
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for length, alike in itertools.groupby(order, lengths.__getitem__):
        places, size = list(alike), min(most, 1 << max(0, (tokens // length).bit_length() - 1))
        for start in range(0, len(places), size):
            yield places[start : start + size], size, length


def packed_batches(
    lengths: Sequence[int], reads: Sequence[int], asked: Sequence[int], most: int, programs: Any, compiling: float
) -> Iterator[Batch]:
    """As `batches_of`, for texts that are packed: behind rows and length a shape has how many tokens are computed,
    of which each text has as many as `reads` says, and how many are predicted, of which it has as many as `asked`.

    Texts of a length are dealt out evenly, so that all their batches have one shape: one that fits them, or one
    that there is from other texts, where to compile another takes longer than its padding.

    Arguments:
        programs: what shapes are remembered by: `most`, and all that they are compiled for.
        compiling: how many tokens could be computed meanwhile.
    """
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], reads[place]))
    for length, alike in itertools.groupby(order, lengths.__getitem__):
        places, made = list(alike), _MADE[programs, length]
        hands = _even(places, reads, min(most, max(1, PACKED // length)), most)
        size = max(max(map(len, hands)), -(-ENOUGH // length))
        tokens = min(size * length, _rounded(_fullest(hands, reads)))
        answers = max(1, _fullest(hands, asked))
        # There may be more answers than tokens, as where they are of one token each.
        part = -(-tokens // 16)
        predicted = -(-answers // part) * part if answers <= tokens else power_of_two(answers)
        shape, own = (size, tokens, predicted), len(hands) * (tokens + EACH)
        fitting = [(other, found) for other in made.shapes if (found := _dealt_into(places, reads, asked, other))]
        costs = [len(found) * (tokens + EACH) for (_, tokens, _), found in fitting]
        # What was spent on padding is not forgotten, or many small calls would never have a shape that fits.
        if costs and made.padding + min(costs) - own <= compiling:
            made.padding += max(0, min(costs) - own)
            shape, hands = fitting[costs.index(min(costs))]
        else:
            made.shapes.append(shape)
            made.padding = 0
        size, *numbers = shape
        for hand in hands:
            yield hand, size, length, *numbers


def _even(places: list[int], reads: Sequence[int], usual: int, most: int) -> list[list[int]]:
    """Hands of about `usual` and at most `most` places, as many as leave least padding; where there are many hands
    they do so anyway."""
    count = -(-len(places) // usual)
    counts = range(max(-(-len(places) // most), -(-count // 2)), min(len(places), count + 1) + 1)
    dealt = (_dealt(places, count) for count in (counts if count <= FEW else [count]))
    return min(dealt, key=lambda hands: len(hands) * _rounded(_fullest(hands, reads)))


def _dealt_into(
    places: list[int], reads: Sequence[int], asked: Sequence[int], shape: tuple[int, int, int]
) -> list[list[int]]:
    """Places in as few hands as each fit into this shape, or nothing where one alone is too large."""
    size, tokens, predicted = shape
    if any(reads[place] > tokens or asked[place] > predicted for place in places):
        return []
    for count in range(-(-len(places) // size), len(places) + 1):
        hands = _dealt(places, count)
        if _fullest(hands, reads) <= tokens and _fullest(hands, asked) <= predicted:
            return hands
    return []


def _dealt(places: list[int], count: int) -> list[list[int]]:
    """Places that are sorted by size in so many hands, there and back again, so that none gets all large ones."""
    hands: list[list[int]] = [[] for _ in range(count)]
    for turn, start in enumerate(range(0, len(places), count)):
        for hand, place in zip(hands[:: -1 if turn % 2 else 1], places[start : start + count], strict=False):
            hand.append(place)
    return hands


def _fullest(hands: list[list[int]], sizes: Sequence[int]) -> int:
    return max(sum(sizes[place] for place in hand) for hand in hands)


def _rounded(tokens: int) -> int:
    return max(ENOUGH, -(-tokens // 16) * 16)
