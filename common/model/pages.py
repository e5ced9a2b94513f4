"""A cache in pages of a few tokens, of which each row has as many as it needs, so that attention does not read for
every row as far as the longest. P is the number of pages here.

    cache = empty_cache(config, P, PAGE)                           # P pages, in whichever order
    look = pages.look(positions, window)
    cache_of_layer = write(cache_of_layer, k, v, look)
    out = paged_attention(q, *cache_of_layer, look)                # (B, 1, N, H)

The plain form is `attention.cached_attention`, on a cache with a row of equal length for each row.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from common.model.attention import capped

PAGE = 32
"""Tokens of a page. On CPU a product with 32 keys at a time keeps its sums in registers."""

Numbers = Int[Array | np.ndarray, "..."]


class Pages(NamedTuple):
    """Which of P pages are whose, for B rows.

    owner: (P,) the row that a page belongs to, or B where it is free.
    start: (P,) the position of a page's first token.
    order: (P,) the pages by row and start: so they are added up, wherever they lie.
    near: (B, n) the pages of a row from its `first` on, in which it writes next; P where it has none.
    first: (B,) the number of that page among those of its row.
    """

    owner: Numbers
    start: Numbers
    order: Numbers
    near: Numbers
    first: Numbers

    def look(self, positions: Int[Array, " B"], window: int = 0) -> "Looking":
        """For rows that read a token at `positions`, no farther back than `window` (0: no limit)."""
        near, owner = jnp.asarray(self.near), jnp.asarray(self.owner)
        nth = jnp.clip(positions // PAGE - self.first, 0, near.shape[1] - 1)
        place = jnp.take_along_axis(near, nth[:, None], axis=1)[:, 0]
        reader = jnp.minimum(owner, len(positions) - 1)
        distance = positions[reader][:, None] - (jnp.asarray(self.start)[:, None] + jnp.arange(PAGE))
        seen = (distance >= 0) & (distance < window) if window else distance >= 0
        order = jnp.asarray(self.order)
        return Looking(reader, owner, order, owner[order], place, positions % PAGE, seen)


class Looking(NamedTuple):
    """What one step of decoding needs of `Pages`: who reads each page, whose it is, in which order they are added
    up and whose they then are, where each row writes, and what may be seen."""

    reader: Int[Array, " P"]
    owner: Int[Array, " P"]
    order: Int[Array, " P"]
    owner_in_order: Int[Array, " P"]
    place: Int[Array, " B"]
    offset: Int[Array, " B"]
    seen: Bool[Array, "P page"]


def write(
    cache: tuple[Float[Array, "P K H page"], Float[Array, "P K page H"]],
    k: Float[Array, "B 1 K H"],
    v: Float[Array, "B 1 K H"],
    look: Looking,
) -> tuple[Float[Array, "P K H page"], Float[Array, "P K page H"]]:
    """The cache with each row's new key and value; a row without a page writes nothing."""
    keys = cache[0].at[look.place, :, :, look.offset].set(k[:, 0], mode="drop")
    return keys, cache[1].at[look.place, :, look.offset].set(v[:, 0], mode="drop")


def paged_attention(
    q: Float[Array, "B 1 N H"],
    keys: Float[Array, "P K H page"],
    values: Float[Array, "P K page H"],
    look: Looking,
    *,
    scale: float | None = None,
    cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B 1 N H"]:
    """Attention of a new token of each row over its pages; softmax in float32. Zeros for a row without pages.

    Each page is a softmax of its own, of which the largest score, the sum and the sum of values are kept; those of
    a row are then weighed against each other (as by Milakov and Gimelshein 2018, arXiv 1805.02867, section 3).
    """
    (B, _, N, H), (P, K) = q.shape, keys.shape[:2]
    # Query heads that share a key/value head stand side by side: one product serves them all.
    queries = q.reshape(B, K, N // K, H)[look.reader]
    scores = jnp.matmul(queries, keys, preferred_element_type=jnp.float32)
    scores = capped(scores * (H**-0.5 if scale is None else scale), cap)
    scores = jnp.where(look.seen[:, None, None], scores, jnp.finfo(jnp.float32).min)
    top = scores.max(axis=-1)
    weights = jnp.exp(scores - top[..., None])
    found = jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    top, total, found = top.reshape(P, N), weights.sum(axis=-1).reshape(P, N), found.reshape(P, N, H)

    lowest = jnp.finfo(jnp.float32).min
    highest = jnp.full((B, N), lowest).at[look.owner].max(top, mode="drop")
    if sinks is not None:
        highest = jnp.maximum(highest, sinks.astype(jnp.float32))
    share = jnp.exp(top - highest[look.reader])
    parts = jnp.concatenate([share[..., None] * found, (share * total)[..., None]], axis=-1)
    parts = parts[look.order]
    sums = jnp.zeros((B, N, H + 1)).at[look.owner_in_order].add(parts, mode="drop", indices_are_sorted=True)
    total = sums[..., H:]
    if sinks is not None:
        total = total + jnp.exp(sinks.astype(jnp.float32) - highest)[..., None]
    out = sums[..., :H] / jnp.where(total > 0, total, 1.0)
    return out.astype(q.dtype)[:, None]
