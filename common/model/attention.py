"""Attention over full sequences and over a cache: one function each, the fastest form of a back end behind it.

    out = attention(q, k, v, mask)                    # (B, T, N, H); causal when mask is None
    out = cached_attention(q, keys, values, mask)

On accelerators the first is jax's fused attention. On CPU XLA is several times faster when heads are folded into
the batch of plain matrix products. `reference_attention` is the readable form that all are tested against.

What some families add: `scale`, instead of 1 / root of the head size, `cap`, so that a score x becomes cap *
tanh(x / cap), and `sinks`, a score (N,) a head whose share of the softmax is dropped.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from common import runtime


def attention_mask(
    query_pos: Int[Array | np.ndarray, "B T"], keys: int, window: int = 0
) -> Bool[Array, "B 1 T {keys}"]:
    """True where a query may look: itself and earlier, no farther back than `window` (0: no limit), for keys at
    positions 0 .. keys - 1."""
    distance = jnp.asarray(query_pos)[:, :, None] - jnp.arange(keys)[None, None, :]
    seen = (distance >= 0) & (distance < window) if window else distance >= 0
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
    scores = jnp.where(mask, _capped(scores, cap), -jnp.inf)
    if sinks is not None:
        own = jnp.broadcast_to(sinks.astype(jnp.float32)[None, :, None, None], (*scores.shape[:3], 1))
        scores = jnp.concatenate([scores, own], axis=-1)
    weights = jax.nn.softmax(scores)[..., : k.shape[1]]
    return jnp.einsum("bnts,bsnh->btnh", weights.astype(v.dtype), v)


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Bool[Array, "#B 1 T T"] | None = None,
    *,
    scale: float | None = None,
    cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of a sequence to itself; without `mask`, each position sees itself and what came before."""
    if runtime.on_accelerator() and cap is None and sinks is None:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=mask is None, scale=scale)
    return _folded_attention(q, k, v, mask, scale, cap, sinks)


def _folded_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    scale: float | None = None,
    cap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """`attention` as batched products of matrices, heads beside rows in the batch."""
    B, T, N, H = q.shape
    if mask is None:
        mask = jnp.tril(jnp.ones((T, T), bool))[None]
    else:
        mask = jnp.repeat(mask[:, 0], N, axis=0) if mask.shape[0] > 1 else mask[:, 0]
    k, v = (jnp.repeat(x, N // x.shape[2], axis=2) for x in (k, v))
    q, k, v = (x.transpose(0, 2, 1, 3).reshape(B * N, T, H) for x in (q, k, v))
    scores = jax.lax.dot_general(q, k, (((2,), (2,)), ((0,), (0,)))).astype(jnp.float32)
    scores = scores / H**0.5 if scale is None else scores * scale
    # Finite, so that a row with nothing to see stays finite too; such rows are padding.
    scores = jnp.where(mask, _capped(scores, cap), jnp.finfo(jnp.float32).min)
    top = scores.max(axis=-1, keepdims=True)
    own = None if sinks is None else jnp.tile(sinks.astype(jnp.float32), B)[:, None, None]
    top = jax.lax.stop_gradient(top if own is None else jnp.maximum(top, own))
    weights = jnp.exp(scores - top)
    out = jax.lax.dot_general(weights.astype(v.dtype), v, (((2,), (1,)), ((0,), (0,))))
    total = weights.sum(axis=-1, keepdims=True)
    total = total if own is None else total + jnp.exp(own - top)
    out = out / total.astype(v.dtype)
    return out.reshape(B, N, T, H).transpose(0, 2, 1, 3)


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
    scores = _capped(scores * (H**-0.5 if scale is None else scale), cap)
    scores = jnp.where(mask[:, :, :, None], scores, jnp.finfo(jnp.float32).min)
    if sinks is not None:
        own = sinks.astype(jnp.float32).reshape(K, 1, N // K, 1)
        scores = jnp.concatenate([scores, jnp.broadcast_to(own, (*scores.shape[:4], 1))], axis=-1)
    weights = jax.nn.softmax(scores)[..., :S].astype(values.dtype).reshape(*q.shape[:3], S)
    attended = jnp.matmul(weights, values).reshape(B, K, T, N // K, H)
    return attended.swapaxes(1, 2).reshape(B, T, N, H)


def _capped(scores: jax.Array, cap: float | None) -> jax.Array:
    return scores if cap is None else cap * jnp.tanh(scores / cap)
