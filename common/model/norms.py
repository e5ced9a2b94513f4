"""The kinds of norms: over the last axis, computed in float32, in the dtype of what they are given."""

from typing import Any

import jax
import jax.numpy as jnp

from common.config import NormKind

WEIGHTLESS, BIASED = "ln_bare", "ln"
"""The kinds of norm without weights, and with biases."""


def norm(kind: NormKind, x: jax.Array, weight: Any, bias: Any, eps: float) -> jax.Array:
    """`x` normed as `common.config.ModelConfig` says of `kind`; weight and bias are None where it has none."""
    if kind == "rms":
        return rms_norm(x, weight, eps)
    y = x.astype(jnp.float32)
    if kind.startswith("ln"):
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    if weight is not None:
        y = y * (weight.astype(jnp.float32) + (1 if kind == "rms1p" else 0))
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    return y.astype(x.dtype)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm, scaled in the activations' dtype as in Llama."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return weight.astype(x.dtype) * y.astype(x.dtype)
