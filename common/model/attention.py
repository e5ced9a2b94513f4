"""Attention over full sequences and over a cache: one function each, the fastest form of a back end behind it.

    out = attention(q, k, v, mask)                    # (B, T, N, H); causal when mask is None
    out = cached_attention(q, keys, values, mask)

On accelerators the first is jax's fused attention. On CPU XLA is several times faster when heads are folded into
the batch of plain matrix products. `reference_attention` is the readable form that all are tested against.

What some families add: `scale`, instead of 1 / root of the head size, `cap`, so that a score x becomes cap *
tanh(x / cap), and `sinks`, a score (N,) a head whose share of the softmax is dropped.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from common import runtime

CAUSAL_BLOCKS, SMALLEST_BLOCK = 4, 16
"""Blocks of queries in attention on CPU, and the fewest queries of one."""
TREE_BLOCKS, SMALLEST_TREE_BLOCK = 2, 48
"""The same for packed trees, whose blocks compute what they mask out in other branches all the same."""


def attention_mask(
    query_pos: Int[Array | np.ndarray, "B T"], keys: int, window: int = 0
) -> Bool[Array, "B 1 T {keys}"]:
    """True where a query may look: itself and earlier, no farther back than `window` (0: no limit), for keys at
    positions 0 .. keys - 1."""
    distance = jnp.asarray(query_pos)[:, :, None] - jnp.arange(keys)[None, None, :]
    seen = (distance >= 0) & (distance < window) if window else distance >= 0
    return seen[:, None]


def tree_mask(
    positions: Int[Array | np.ndarray, "B T"],
    branches: Int[Array | np.ndarray, "B T"],
    before: int,
    window: int = 0,
) -> Bool[Array, "B 1 T {before}+T"]:
    """True where a token of a row that holds several texts (see `Tree`) may look: at the `before` tokens that all
    rows go on from, and at what stands in front of it in its own branch or in branch 0; `window` is counted in
    positions."""
    branches = jnp.asarray(branches)
    B, T = branches.shape
    own = (branches[:, None] == branches[..., None]) | (branches[:, None] == 0)
    seen = jnp.concatenate([jnp.ones((B, T, before), bool), own & jnp.tril(jnp.ones((T, T), bool))], axis=2)
    if window:
        keys = jnp.concatenate([jnp.broadcast_to(jnp.arange(before), (B, before)), positions], axis=1)
        seen &= positions[..., None] - keys[:, None] < window
    return seen[:, None]


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
    """

    real: Int[Array | np.ndarray, " N"]
    again: Int[Array | np.ndarray, " N"] | None
    own: Int[Array, "rows T"]
    slots: Int[Array, "rows T"]
    tree: Tree | None = None

    @classmethod
    def of(
        cls,
        real: Int[Array | np.ndarray, " N"],
        again: Int[Array | np.ndarray, " N"] | None,
        rows: int,
        length: int,
        tree: Tree | None = None,
    ) -> "Packing":
        numbers = jnp.arange(len(real), dtype=jnp.int32)
        own = jnp.full(rows * length, len(real), jnp.int32).at[real].set(numbers)
        slots = own if again is None else own.at[again].set(numbers, mode="drop")
        return cls(real, again, own.reshape(rows, length), slots.reshape(rows, length), tree)

    def positions(self, count: int) -> Int[Array, " S"]:
        """Of `count` tokens, S = P + N, in their own texts."""
        before = count - len(self.real)
        own = self.real % self.slots.shape[1]
        if self.tree is not None:
            own = jnp.asarray(self.tree.positions).reshape(-1)[self.real]
        return jnp.concatenate([jnp.arange(before), before + own])


def reference_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "#B 1 T S"],
    *,
    scale: float | None = None,
    cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(q k / √H) v with N / K query heads on each key head, softmax in float32."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k).astype(jnp.float32)
    scores = scores / q.shape[3] ** 0.5 if scale is None else scores * scale
    scores = jnp.where(mask, capped(scores, cap), -jnp.inf)
    if sinks is not None:
        own = jnp.broadcast_to(sinks.astype(jnp.float32)[None, :, None, None], (*scores.shape[:3], 1))
        scores = jnp.concatenate([scores, own], axis=-1)
    weights = jax.nn.softmax(scores)[..., : k.shape[1]]
    return jnp.einsum("bnts,bsnh->btnh", weights.astype(v.dtype), v)


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "#B 1 T S"] | None = None,
    *,
    scale: float | None = None,
    cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of the last T of S positions to all; without a `mask` each sees itself and what came before."""
    T, S = q.shape[1], k.shape[1]
    if cap is None and sinks is None:
        if mask is None and not runtime.on_accelerator():
            return _causal_attention(q, k, v, scale)
        if mask is None and S > T:  # jax's causal form has the first query see the first key alone
            mask = attention_mask(jnp.arange(S - T, S)[None], S)
        if runtime.on_accelerator():
            return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=mask is None, scale=scale)
    return _folded_attention(q, k, v, mask, scale, cap, sinks)


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
        out = attention(queries, keys, values, mask(S, S + T), **more)
    else:
        seen = tree_mask(S + tree.positions, tree.branches, S, window)
        parts = []
        for block in _blocks(T, TREE_BLOCKS, SMALLEST_TREE_BLOCK):
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


# --- On CPU ------------------------------------------------------------------------------------------------------


def _causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, scale: float | None) -> jax.Array:
    """`attention` without a mask: queries in a few blocks, each of which computes its scores with the keys up to
    its own end alone, so that of the half that is masked out little is computed."""
    B, T, N, H = q.shape
    out = _causal(*_folded(q, k, v), H**-0.5 if scale is None else scale)
    return out.reshape(B, N, T, H).transpose(0, 2, 1, 3)


def _folded(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q as (B * K, N / K, T, H), k and v as (B * K, S, H). Query heads of one key head stand side by side: a
    product serves them all, and no key is repeated."""
    (B, T, N, H), K = q.shape, k.shape[2]
    q = q.transpose(0, 2, 1, 3).reshape(B * K, N // K, T, H)
    k, v = (x.transpose(0, 2, 1, 3).reshape(B * K, -1, H) for x in (k, v))
    return q, k, v


def _blocks(length: int, most: int = CAUSAL_BLOCKS, smallest: int = SMALLEST_BLOCK) -> list[slice]:
    """Queries of each block. More of them compute less and take longer to compile."""
    count = next(n for n in (most, 2, 1) if n == 1 or (length % n == 0 and length // n >= smallest))
    return [slice(i, i + length // count) for i in range(0, length, length // count)]


def _product(x: jax.Array, y: jax.Array, over: tuple[int, int]) -> jax.Array:
    """Product of the matrices of x (M, ., .) and y (M, ., .), in float32, summed over these axes."""
    axes = (((over[0],), (over[1],)), ((0,), (0,)))
    return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def _causal_forward(q: jax.Array, k: jax.Array, v: jax.Array, scale: float) -> tuple[jax.Array, list[jax.Array]]:
    """Output (M, G, T, H) for q (M, G, T, H), k and v (M, P + T, H), and each block's softmax (M, G, t, S)."""
    M, G, T, H = q.shape
    P = k.shape[1] - T
    outs, weights = [], []
    for rows in _blocks(T):
        t, S = rows.stop - rows.start, P + rows.stop
        scores = _product(q[:, :, rows].reshape(M, G * t, H), k[:, :S], (2, 2)).reshape(M, G, t, S) * scale
        seen = jnp.arange(S) <= jnp.arange(P + rows.start, S)[:, None]
        scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        w = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        w = w / w.sum(axis=-1, keepdims=True)
        out = _product(w.astype(v.dtype).reshape(M, G * t, S), v[:, :S], (2, 1))
        outs.append(out.astype(q.dtype).reshape(M, G, t, H))
        weights.append(w)
    return jnp.concatenate(outs, axis=2), weights


def _causal_values(q: jax.Array, k: jax.Array, v: jax.Array, scale: float) -> jax.Array:
    return _causal_forward(q, k, v, scale)[0]


_causal = jax.custom_vjp(_causal_values, nondiff_argnums=(3,))


def _causal_kept(q: jax.Array, k: jax.Array, v: jax.Array, scale: float) -> tuple[jax.Array, Any]:
    out, weights = _causal_forward(q, k, v, scale)
    return out, (q, k, v, out, weights)


def _causal_backward(scale: float, kept: Any, d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v, by hand: autodiff goes through the maximum, the sum and the quotient of the softmax
    in passes of their own, where its derivative is w * (dw - sum of w dw), and that sum is out · d_out."""
    q, k, v, out, weights = kept
    M, G, T, H = q.shape
    P = k.shape[1] - T
    # As products: XLA on CPU takes eighteen times as long for their sum over so few numbers.
    own = jnp.einsum("mgth,mgth->mgt", d_out, out, preferred_element_type=jnp.float32)[..., None]
    # Those of keys and values turned: what is as wide as the keys stands behind in a product, where XLA on CPU is
    # up to twice as fast as with it in front.
    d_q, (d_k, d_v) = [], jnp.zeros((2, M, H, P + T), jnp.float32)
    for rows, w in zip(_blocks(T), weights, strict=True):
        t, S = rows.stop - rows.start, P + rows.stop
        to = d_out[:, :, rows].reshape(M, G * t, H)
        d_w = _product(to, v[:, :S], (2, 2)).reshape(M, G, t, S)
        d_scores = (w * (d_w - own[:, :, rows]) * scale).astype(q.dtype).reshape(M, G * t, S)
        d_q.append(_product(d_scores, k[:, :S], (2, 1)).astype(q.dtype).reshape(M, G, t, H))
        d_k = d_k.at[..., :S].add(_product(q[:, :, rows].reshape(M, G * t, H), d_scores, (1, 1)))
        d_v = d_v.at[..., :S].add(_product(to, w.astype(v.dtype).reshape(M, G * t, S), (1, 1)))
    d_k, d_v = (d.swapaxes(1, 2).astype(x.dtype) for d, x in ((d_k, k), (d_v, v)))
    return jnp.concatenate(d_q, axis=2), d_k, d_v


_causal.defvjp(_causal_kept, _causal_backward)


def _folded_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    scale: float | None = None,
    cap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """`attention` as batched products of matrices, key heads beside rows in the batch."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    if mask is None:
        mask = attention_mask(jnp.arange(S - T, S)[None], S)
    q, k, v = _folded(q, k, v)
    scores = _product(q.reshape(B * K, -1, H), k, (2, 2)).reshape(B, N, T, S)
    scores = capped(scores * (H**-0.5 if scale is None else scale), cap)
    # Finite, so that a row with nothing to see stays finite too; such rows are padding.
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    top = scores.max(axis=-1, keepdims=True)
    own = None if sinks is None else sinks.astype(jnp.float32)[:, None, None]
    top = jax.lax.stop_gradient(top if own is None else jnp.maximum(top, own))
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    total = total if own is None else total + jnp.exp(own - top)
    out = _product(weights.astype(v.dtype).reshape(B * K, -1, S), v, (2, 1)).reshape(B, N, T, H) / total
    return out.astype(q.dtype).transpose(0, 2, 1, 3)


def cached_attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B 1 T S"],
    *,
    scale: float | None = None,
    cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B T N H"]:
    """Attention over a cache in its own axis order; softmax in float32."""
    B, T, N, H = q.shape
    K, S = keys.shape[1], keys.shape[3]
    # Query heads that share a key/value head stand side by side: one product serves them all.
    q = q.reshape(B, T, K, N // K, H).swapaxes(1, 2).reshape(B, K, T * (N // K), H)
    scores = jnp.matmul(q, keys, preferred_element_type=jnp.float32).reshape(B, K, T, N // K, S)
    scores = capped(scores * (H**-0.5 if scale is None else scale), cap)
    scores = jnp.where(mask[:, :, :, None], scores, jnp.finfo(jnp.float32).min)
    if sinks is not None:
        own = sinks.astype(jnp.float32).reshape(K, 1, N // K, 1)
        scores = jnp.concatenate([scores, jnp.broadcast_to(own, (*scores.shape[:4], 1))], axis=-1)
    weights = jax.nn.softmax(scores)[..., :S].astype(values.dtype).reshape(*q.shape[:3], S)
    attended = jnp.matmul(weights, values).reshape(B, K, T, N // K, H)
    return attended.swapaxes(1, 2).reshape(B, T, N, H)


def capped(scores: jax.Array, cap: float | None) -> jax.Array:
    """Scores x as cap * tanh(x / cap), where there is a cap."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)
