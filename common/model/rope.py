"""Rotary position embeddings in all the forms of `common.config.Rope`.

turns = turns_of(positions, rope, config.head_dim)
q = rotate(q, turns, rope)
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common import runtime
from common.config import Rope, RopeScaling


class Turns(NamedTuple):
    """How far the numbers of a head are turned at each position, by cosine and sine, both times the attention
    factor of `RopeScaling` where there is one."""

    cos: Float[Array, "B T half"]
    sin: Float[Array, "B T half"]


def turns_of(positions: Int[Array | np.ndarray, "B T"], rope: Rope, head_dim: int) -> Turns:
    """The cosine and sine of each position times each frequency, in float32."""
    angles = jnp.asarray(positions)[..., None] * frequencies(rope, head_dim)
    both = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    if rope.scaling and rope.scaling.attention_factor != 1:
        both = both * rope.scaling.attention_factor
    if not runtime.on_accelerator():
        # XLA on CPU would compute them anew in every layer for every head, longer than it takes to turn them, and
        # knows of no barrier. A product it computes once; that with the unit matrix is exact.
        both = both @ jnp.eye(both.shape[-1], dtype=both.dtype)
    cos, sin = jnp.split(both, 2, axis=-1)
    return Turns(cos, sin)


def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Inverse frequencies (half,) of the numbers of a head that are rotated, scaled as the checkpoint says."""
    size = rope.size or head_dim
    # In float64, and rounded once at the end.
    half = np.arange(0, size, 2, dtype=np.float64) / size
    freq = 1.0 / rope.theta**half
    scaling = rope.scaling
    if scaling is None:
        return freq.astype(np.float32)
    if scaling.kind == "longrope":
        return (freq / np.array(scaling.short_factors)).astype(np.float32)
    slow = freq / scaling.factor
    if scaling.kind == "linear":
        return slow.astype(np.float32)
    if scaling.kind == "yarn":
        keep = _yarn_kept(scaling, rope.theta, size)
    else:
        full = scaling.original_max_positions * freq / (2 * np.pi)  # turns within the original context
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = np.clip((full - low) / (high - low), 0.0, 1.0)
    return ((1 - keep) * slow + keep * freq).astype(np.float32)


def _yarn_kept(scaling: RopeScaling, theta: float, size: int) -> np.ndarray:
    """How much of each frequency is kept: a ramp between the two that turn `beta_fast` and `beta_slow` times."""

    def place(turns: float) -> float:
        return size * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = place(scaling.beta_fast), place(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 if low == high else 0  # as in the paper's code: no division by zero
    return 1 - np.clip((np.arange(size // 2) - low) / (high - low), 0.0, 1.0)


def rotate(x: Float[Array, "B T N H"], turns: Turns, rope: Rope) -> jax.Array:
    """Rotate pairs of numbers of every head, in float32: (i, i + half), or neighbours where `rope` says so."""
    part = x[..., : rope.size].astype(jnp.float32)
    x1, x2 = (part[..., ::2], part[..., 1::2]) if rope.interleaved else jnp.split(part, 2, axis=-1)
    cos, sin = turns.cos[:, :, None], turns.sin[:, :, None]
    first, second = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    if rope.interleaved:
        turned = jnp.stack([first, second], axis=-1).reshape(part.shape)
    else:
        turned = jnp.concatenate([first, second], axis=-1)
    turned = turned.astype(x.dtype)
    return turned if rope.size is None else jnp.concatenate([turned, x[..., rope.size :]], axis=-1)
