"""Attention over full sequences and over a cache: one function each, the fastest form of a back end behind it.

    out = attention(q, k, v, mask)                    # (B, T, N, H); causal when mask is None
    out = cached_attention(q, keys, values, mask)

On accelerators the first is jax's fused attention. On CPU XLA is several times faster when heads are folded into
the batch of plain matrix products. `reference_attention` is the readable form that all are tested against.

What some families add: `scale`, instead of 1 / root of the head size, `cap`, so that a score x becomes cap *
tanh(x / cap), and `sinks`, a score (N,) a head whose share of the softmax is dropped.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from common import runtime
from common.model.blocks import Idle, blocks

jax.tree_util.register_static(Idle)


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
    """True where a token of a row that holds several texts (see `common.model.packing.Tree`) may look: at the
    `before` tokens that all rows go on from, and at what stands in front of it in its own branch or in branch 0;
    `window` is counted in positions."""
    branches = jnp.asarray(branches)
    B, T = branches.shape
    own = (branches[:, None] == branches[..., None]) | (branches[:, None] == 0)
    seen = jnp.concatenate([jnp.ones((B, T, before), bool), own & jnp.tril(jnp.ones((T, T), bool))], axis=2)
    if window:
        keys = jnp.concatenate([jnp.broadcast_to(jnp.arange(before), (B, before)), positions], axis=1)
        seen &= positions[..., None] - keys[:, None] < window
    return seen[:, None]


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
    idle: Idle | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of the last T of S positions to all; without a `mask` each sees itself and what came before. For
    queries that are `idle` anything may come out that is a number."""
    T, S = q.shape[1], k.shape[1]
    if cap is None and sinks is None:
        if mask is None and not runtime.on_accelerator():
            return _causal_attention(q, k, v, scale, idle)
        if mask is None and S > T:  # jax's causal form has the first query see the first key alone
            mask = attention_mask(jnp.arange(S - T, S)[None], S)
        if runtime.on_accelerator():
            return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=mask is None, scale=scale)
    return _folded_attention(q, k, v, mask, scale, cap, sinks)


# --- On CPU ------------------------------------------------------------------------------------------------------


def _causal_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, scale: float | None, idle: Idle | None
) -> jax.Array:
    """`attention` without a mask: queries in a few blocks, each of which computes its scores with the keys up to
    its own end alone, so that of the half that is masked out little is computed, and leaves out idle rows."""
    B, T, N, H = q.shape
    out = _causal(*_folded(q, k, v), H**-0.5 if scale is None else scale, _first(idle, T, k.shape[2]))
    return out.reshape(B, N, T, H).transpose(0, 2, 1, 3)


def _folded(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q as (B * K, N / K, T, H), k and v as (B * K, S, H). Query heads of one key head stand side by side: a
    product serves them all, and no key is repeated."""
    (B, T, N, H), K = q.shape, k.shape[2]
    q = q.transpose(0, 2, 1, 3).reshape(B * K, N // K, T, H)
    k, v = (x.transpose(0, 2, 1, 3).reshape(B * K, -1, H) for x in (k, v))
    return q, k, v


def _first(idle: Idle | None, length: int, key_heads: int) -> tuple[int, ...]:
    """Of each block the first of its (B * K) rows that counts."""
    return tuple(key_heads * rows for rows in (idle.rows if idle else (0,) * len(blocks(length))))


def _product(x: jax.Array, y: jax.Array, over: tuple[int, int]) -> jax.Array:
    """Product of the matrices of x (M, ., .) and y (M, ., .), in float32, summed over these axes."""
    axes = (((over[0],), (over[1],)), ((0,), (0,)))
    return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def _causal_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, scale: float, firsts: tuple[int, ...]
) -> tuple[jax.Array, list[jax.Array]]:
    """Output (M, G, T, H) for q (M, G, T, H), k and v (M, P + T, H), and each block's softmax (m, G, t, S), of its
    rows from the first that counts."""
    M, G, T, H = q.shape
    P = k.shape[1] - T
    outs, weights = [], []
    for rows, first in zip(blocks(T), firsts, strict=True):
        t, S, m = rows.stop - rows.start, P + rows.stop, M - first
        scores = _product(q[first:, :, rows].reshape(m, G * t, H), k[first:, :S], (2, 2))
        scores = scores.reshape(m, G, t, S) * scale
        seen = jnp.arange(S) <= jnp.arange(P + rows.start, S)[:, None]
        scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        w = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        w = w / w.sum(axis=-1, keepdims=True)
        out = _product(w.astype(v.dtype).reshape(m, G * t, S), v[first:, :S], (2, 1))
        outs.append(_behind(out.astype(q.dtype).reshape(m, G, t, H), first))
        weights.append(w)
    return jnp.concatenate(outs, axis=2), weights


def _behind(x: jax.Array, first: int) -> jax.Array:
    """So many rows of zeros, and behind them those of x."""
    return jnp.pad(x, [(first, 0)] + [(0, 0)] * (x.ndim - 1)) if first else x


def _causal_values(q: jax.Array, k: jax.Array, v: jax.Array, scale: float, firsts: tuple[int, ...]) -> jax.Array:
    return _causal_forward(q, k, v, scale, firsts)[0]


_causal = jax.custom_vjp(_causal_values, nondiff_argnums=(3, 4))


def _causal_kept(
    q: jax.Array, k: jax.Array, v: jax.Array, scale: float, firsts: tuple[int, ...]
) -> tuple[jax.Array, Any]:
    out, weights = _causal_forward(q, k, v, scale, firsts)
    return out, (q, k, v, out, weights)


def _causal_backward(
    scale: float, firsts: tuple[int, ...], kept: Any, d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
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
    for rows, first, w in zip(blocks(T), firsts, weights, strict=True):
        t, S, m = rows.stop - rows.start, P + rows.stop, M - first
        to = d_out[first:, :, rows].reshape(m, G * t, H)
        d_w = _product(to, v[first:, :S], (2, 2)).reshape(m, G, t, S)
        d_scores = (w * (d_w - own[first:, :, rows]) * scale).astype(q.dtype).reshape(m, G * t, S)
        d_rows = _product(d_scores, k[first:, :S], (2, 1)).astype(q.dtype).reshape(m, G, t, H)
        d_q.append(_behind(d_rows, first))
        d_k = d_k.at[first:, :, :S].add(_product(q[first:, :, rows].reshape(m, G * t, H), d_scores, (1, 1)))
        d_v = d_v.at[first:, :, :S].add(_product(to, w.astype(v.dtype).reshape(m, G * t, S), (1, 1)))
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
