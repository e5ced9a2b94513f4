"""The cache of keys and values while samples are written: in pages on one CPU, else with a row for each slot.

    cache = PagedCache(config, slots, pages, dtype, params)     # or RowCache(config, slots, tokens, dtype, params)
    cache.fill(prefilled, rows, to, lengths, live)              # what prompts left, into slots
    pages = cache.room(live, positions, ends)                   # for the next tokens; None for rows
    cache.arrays = ...                                          # what decoding made of cache.arrays and pages
    cache.narrow(kept, live, ends)                              # pages alone: go on with these slots

Their size grows by the steps of `common.buckets.bucket`, each of which is a program of its own.
"""

import heapq
import math
from typing import Any

import jax
import numpy as np

from common.buckets import bucket, power_of_two
from common.config import ModelConfig
from common.model.decoder import Cache, Params, copy_rows, copy_to_pages, empty_cache, grow_cache
from common.model.pages import PAGE, Pages
from common.model.sharding import CACHE, place_data

SHORTEST_CACHE = 128
"""Smallest compiled length of rows. Finer steps would save little time and cost a compilation each."""
FEWEST_PAGES = 16
"""Smallest compiled number of pages."""

_copy_rows = jax.jit(copy_rows, donate_argnums=0)
_copy_to_pages = jax.jit(copy_to_pages, donate_argnums=0)
_grow = jax.jit(grow_cache, static_argnums=1)
_take = jax.jit(lambda cache, rows: jax.tree.map(lambda x: x[rows], cache))
_more_pages = jax.jit(
    lambda cache, count: jax.tree.map(
        lambda x: jax.numpy.pad(x, [(0, count - len(x)), (0, 0), (0, 0), (0, 0)]), cache
    ),
    static_argnums=1,
)


class RowCache:
    """A row of equal length for each slot."""

    multiple = 1
    """What the length of a prefilled cache has to be a multiple of."""

    def __init__(self, config: ModelConfig, slots: int, tokens: int, dtype: Any, params: Params):
        made = empty_cache(config, slots, bucket(tokens, SHORTEST_CACHE), dtype=dtype)
        self.arrays = place_data(made, params, CACHE)

    def fill(self, source: Cache, rows: np.ndarray, to: np.ndarray, lengths: np.ndarray, live: np.ndarray) -> None:
        """Write each of `rows` of `source`, of which the first `lengths` tokens count, into the slot `to`, or
        nowhere if that is none. `live`: the slots whose samples go on or begin."""
        self.arrays = _copy_rows(self.arrays, source, rows, to)

    def room(self, live: np.ndarray, positions: np.ndarray, ends: np.ndarray) -> None:
        """Have room for the tokens from `positions` to `ends` of the slots that are live."""
        length = int(np.max(ends, where=live, initial=1))
        if length > self.arrays[0][1].shape[2]:
            self.arrays = _grow(self.arrays, bucket(length, SHORTEST_CACHE))


class PagedCache:
    """As many pages for each slot as its tokens need, the first that are free."""

    multiple = PAGE

    def __init__(self, config: ModelConfig, slots: int, pages: int, dtype: Any, params: Params):
        self._own: list[list[int]] = [[] for _ in range(slots)]
        # Where each slot needs one, their number is seldom a shape more: that of the slots is as peculiar.
        self._free = list(range(max(pages, FEWEST_PAGES) if pages <= slots else bucket(pages, FEWEST_PAGES)))
        self.arrays = place_data(empty_cache(config, len(self._free), PAGE, dtype=dtype), params, CACHE)

    def fill(self, source: Cache, rows: np.ndarray, to: np.ndarray, lengths: np.ndarray, live: np.ndarray) -> None:
        """See `RowCache`."""
        slots = len(self._own)
        self._release(np.concatenate([to[to < slots], np.flatnonzero(~live)]))
        self._extend({int(slot): math.ceil(n / PAGE) for slot, n in zip(to, lengths, strict=True) if slot < slots})
        places = np.full((len(to), source[0][1].shape[2] // PAGE), self._count, np.int32)
        for row, slot in enumerate(to):
            own = self._own[slot] if slot < slots else []
            places[row, : len(own)] = own
        self.arrays = _copy_to_pages(self.arrays, source, rows, places)

    def room(self, live: np.ndarray, positions: np.ndarray, ends: np.ndarray) -> Pages:
        """See `RowCache`."""
        self._release(np.flatnonzero(~live))
        self._extend({int(slot): math.ceil(ends[slot] / PAGE) for slot in np.flatnonzero(live)})
        slots = len(self._own)
        owner, start = np.full(self._count, slots, np.int32), np.zeros(self._count, np.int32)
        first = np.where(live, positions // PAGE, 0).astype(np.int32)
        near = [own[at:] for own, at in zip(self._own, first, strict=True)]
        places = np.full((slots, power_of_two(max(map(len, near)), 2)), self._count, np.int32)
        for slot, own in enumerate(self._own):
            owner[own], start[own] = slot, PAGE * np.arange(len(own))
            places[slot, : len(near[slot])] = near[slot]
        order = np.lexsort((start, owner)).astype(np.int32)
        return Pages(owner, start, order, places, first)

    def narrow(self, kept: np.ndarray, live: np.ndarray, ends: np.ndarray) -> None:
        """Go on with the slots `kept` and their pages; these are `live` and next reach up to `ends`."""
        own = [self._own[slot] if here else [] for slot, here in zip(kept, live, strict=True)]
        moved = [page for pages in own for page in pages]
        count = bucket(max(len(moved), sum(math.ceil(end / PAGE) for end in ends[live])), FEWEST_PAGES)
        self.arrays = _take(self.arrays, np.pad(np.array(moved, np.int32), (0, count - len(moved))))
        numbers = iter(range(count))
        self._own = [[next(numbers) for _ in pages] for pages in own]
        self._free = list(numbers)

    @property
    def _count(self) -> int:
        return len(self.arrays[0][0])

    def _release(self, slots: np.ndarray) -> None:
        for slot in slots:
            for page in self._own[slot]:
                heapq.heappush(self._free, page)
            self._own[slot] = []

    def _extend(self, wanted: dict[int, int]) -> None:
        """Give each slot as many pages, in all."""
        missing = sum(max(0, count - len(self._own[slot])) for slot, count in wanted.items())
        if missing > len(self._free):
            count, more = self._count, bucket(self._count + missing - len(self._free), FEWEST_PAGES)
            self.arrays = _more_pages(self.arrays, more)
            self._free += range(count, more)
            heapq.heapify(self._free)
        for slot, count in wanted.items():
            while len(self._own[slot]) < count:
                self._own[slot].append(heapq.heappop(self._free))


SlotCache = RowCache | PagedCache
