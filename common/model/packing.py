"""Texts packed one behind the other, without the padding of rows, and attention over them, which alone has rows.

packing = Packing.of(real, again, rows, length)
out = packed_attention(q, k, v, packing, window)       # (R, C, N, H): all tokens, cut into rows of any length
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common.model.attention import attention, attention_mask, tree_mask
from common.model.blocks import Idle, blocks

TREE_BLOCKS, SMALLEST_TREE_BLOCK = 2, 48
"""Blocks of queries in packed trees, and the fewest queries of one: they compute what they mask out in other
branches all the same."""


class Tree(NamedTuple):
    """Texts of a row that go on from one beginning, one behind the other: the `positions` (B, T) of their tokens,
    each text's as if it alone followed the beginning, and the `branches` (B, T) that they are in, 0 for the
    beginning. A token sees what stands before it there and in its own branch."""

    positions: Int[Array | np.ndarray, "B T"]
    branches: Int[Array | np.ndarray, "B T"]


class Packing(NamedTuple):
    """Texts of unlike lengths one behind the other, without the padding that (rows, T) would have, and in front of
    them what all of them go on from, P tokens. Outside of attention these P + N tokens may be cut into rows of any
    length: it works on each by itself.

    real: of token P + n the place in the flattened (rows, T); no place comes twice.
    again: of some of these tokens a second place, in the row of another text that begins alike, or a number of
        rows * T and more where there is none; None: all have one place.
    own: of each place the n that has it in `real`, or N where there is none, as with padding.
    slots: of each place n, also where it is a token's second one, or N.
    tree: what (rows, T) hold, with positions behind what all of them go on from; None: a text each.
    idle: which rows end early, where that is known.
    """

    real: Int[Array | np.ndarray, " N"]
    again: Int[Array | np.ndarray, " N"] | None
    own: Int[Array, "rows T"]
    slots: Int[Array, "rows T"]
    tree: Tree | None = None
    idle: Idle | None = None

    @classmethod
    def of(
        cls,
        real: Int[Array | np.ndarray, " N"],
        again: Int[Array | np.ndarray, " N"] | None,
        rows: int,
        length: int,
        tree: Tree | None = None,
        idle: Idle | None = None,
    ) -> "Packing":
        numbers = jnp.arange(len(real), dtype=jnp.int32)
        own = jnp.full(rows * length, len(real), jnp.int32).at[real].set(numbers)
        slots = own if again is None else own.at[again].set(numbers, mode="drop")
        return cls(real, again, own.reshape(rows, length), slots.reshape(rows, length), tree, idle)

    def positions(self, count: int) -> Int[Array, " S"]:
        """Of `count` tokens, S = P + N, in their own texts."""
        before = count - len(self.real)
        own = self.real % self.slots.shape[1]
        if self.tree is not None:
            own = jnp.asarray(self.tree.positions).reshape(-1)[self.real]
        return jnp.concatenate([jnp.arange(before), before + own])


def packed_attention(
    q: Float[Array, "R C heads H"],
    k: Float[Array, "R C K H"],
    v: Float[Array, "R C K H"],
    packing: Packing,
    window: int,
    before: tuple[Float[Array, "1 P K H"], Float[Array, "1 P K H"]] | None = None,
    *,
    scale: float | None = None,
    cap: float | None = None,
    sinks: Float[Array, " heads"] | None = None,
) -> Float[Array, "R C heads H"]:
    """Causal attention of packed texts: each to itself, or to what its tree says, and to what all of them go on
    from, no farther back than `window` (0: no limit). Of all R * C tokens those that are packed come last; where
    all are, `before` may have the keys and values of what they go on from. Only here each text has a row."""
    shape = q.shape
    q, k, v = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))
    (rows, T), P = packing.slots.shape, q.shape[1] - len(packing.real)
    more = {"scale": scale, "cap": cap, "sinks": sinks}
    mask = lambda first, S: attention_mask(jnp.arange(first, S)[None], S, window) if 0 < window < S else None
    queries, keys, values = (to(x[0, P:], packing) for to, x in ((_placed, q), (spread, k), (spread, v)))
    begun = before or (k[:, :P], v[:, :P])
    S = begun[0].shape[1]
    if S:
        keys, values = (
            jnp.concatenate([jnp.broadcast_to(x, (rows, *x.shape[1:])), own], axis=1)
            for x, own in zip(begun, (keys, values), strict=True)
        )
    tree = packing.tree
    if tree is None:
        out = attention(queries, keys, values, mask(S, S + T), idle=packing.idle, **more)
    else:
        seen = tree_mask(S + tree.positions, tree.branches, S, window)
        parts = []
        for block in blocks(T, TREE_BLOCKS, SMALLEST_TREE_BLOCK):
            end = S + block.stop  # no token sees what comes after it
            found = attention(queries[:, block], keys[:, :end], values[:, :end], seen[:, :, block, :end], **more)
            parts.append(found)
        out = jnp.concatenate(parts, axis=1)
    out = _gathered(out, packing)[None]
    if P:
        first = attention(q[:, :P], k[:, :P], v[:, :P], mask(0, P), **more)
        out = jnp.concatenate([first, out], axis=1)
    return out.reshape(shape)


@jax.custom_vjp
def _placed(x: jax.Array, packing: Packing) -> jax.Array:
    """(N, ...) as (rows, T, ...), each token in its first place alone, and zero where none is."""
    return jnp.take(x, packing.own, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def spread(x: jax.Array, packing: Packing) -> jax.Array:
    """(N, ...) as (rows, T, ...), each token in all its places, and zero where none is."""
    return jnp.take(x, packing.slots, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def _gathered(x: jax.Array, packing: Packing) -> jax.Array:
    """(rows, T, ...) as (N, ...), from each token's first place."""
    return x.reshape(-1, *x.shape[2:])[packing.real]


def _summed(x: jax.Array, packing: Packing) -> jax.Array:
    """(rows, T, ...) as (N, ...), over all places of a token."""
    first = _gathered(x, packing)
    if packing.again is None:
        return first
    return first + jnp.take(x.reshape(-1, *x.shape[2:]), packing.again, axis=0, mode="fill", fill_value=0)


# Transposes are gathers too, as a token has two places at most. Autodiff would add up row by row.
for forth, back in ((_placed, _gathered), (_gathered, _placed), (spread, _summed)):
    forth.defvjp(
        lambda x, packing, forth=forth: (forth(x, packing), packing),
        lambda packing, d, back=back: (back(d, packing), None),
    )
