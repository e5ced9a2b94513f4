"""Log-probabilities of chosen tokens from hidden states, without keeping logits of the whole vocabulary.

    logps = token_logps(params, config, h, targets)        # h (A, D), targets (A,) -> (A,)
    total = weighted_logps(params, config, h, targets, weight)

Preference losses start with the first, the supervised loss with the second. `h` holds only the positions that
count.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common import runtime
from common.config import ModelConfig
from common.model.decoder import Params, head_of, unembed

LOGITS = {"cpu": 2**25, "accelerator": 2**28}
"""Logits that may exist at one time. On accelerators 1 GiB, or 2048 positions of a vocabulary of 131,072; on CPU,
where large products are no faster, an eighth."""


def logits_at_once() -> int:
    """Those of `LOGITS` for this machine."""
    return LOGITS["accelerator" if runtime.on_accelerator() else "cpu"]


def token_logps_reference(
    params: Params, config: ModelConfig, h: Float[Array, "A D"], targets: Int[Array | np.ndarray, " A"]
) -> Float[Array, " A"]:
    """The readable form of `token_logps`: all logits at once."""
    logps = jax.nn.log_softmax(unembed(params, config, h))
    return jnp.take_along_axis(logps, targets[:, None], axis=-1)[:, 0]


def token_logps(
    params: Params,
    config: ModelConfig,
    h: Float[Array, "A D"],
    targets: Int[Array | np.ndarray, " A"],
    chunk: int | None = None,
) -> Float[Array, " A"]:
    """log p(target) in float32 at each position, `chunk` positions at a time (default: as `LOGITS` allows).

    Logits of a chunk are recomputed in the backward pass, so memory stays at (chunk, V).
    """
    chunk = chunk or max(1, logits_at_once() // config.vocab_size)
    count = h.shape[0]
    if count <= chunk:
        return token_logps_reference(params, config, h, targets)
    one = jax.checkpoint(lambda pair: token_logps_reference(params, config, *pair))
    return jax.lax.map(one, (_cut(h, chunk), _cut(targets, chunk))).reshape(-1)[:count]


def weighted_logps(
    params: Params,
    config: ModelConfig,
    h: Float[Array, "A D"],
    targets: Int[Array | np.ndarray, " A"],
    weight: Float[Array | np.ndarray, " A"],
    chunk: int | None = None,
) -> Float[Array, ""]:
    """The sum of weight * `token_logps`. Logits of a chunk are there once: as the derivative of a sum is known
    before the sum is, gradients are computed beside it, and the backward pass only multiplies them."""
    chunk = chunk or max(1, logits_at_once() // config.vocab_size)
    if h.shape[0] <= chunk:
        return jnp.sum(weight * token_logps_reference(params, config, h, targets))

    def one(head: Params, h: jax.Array, targets: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum(weight * token_logps_reference(head, config, h, targets))

    @jax.custom_vjp
    def total(head: Params, h: jax.Array, targets: jax.Array, weight: jax.Array) -> jax.Array:
        return jax.lax.map(lambda part: one(head, *part), (h, targets, weight)).sum()

    def forward(head: Params, *parts: jax.Array) -> tuple[jax.Array, Any]:
        def step(sums: Any, part: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
            value, (d_head, d_h) = jax.value_and_grad(one, (0, 1))(head, *part)
            return jax.tree.map(jnp.add, sums, (value, d_head)), d_h

        zero = jnp.zeros(()), jax.tree.map(lambda x: jnp.zeros(x.shape), head)
        (value, d_head), d_h = jax.lax.scan(step, zero, parts)
        return value, (jax.tree.map(lambda d, x: d.astype(x.dtype), d_head, head), d_h)

    def backward(kept: Any, by: jax.Array) -> tuple[Any, ...]:
        # Of targets and weights nothing is learned.
        return *jax.tree.map(lambda d: (by * d).astype(d.dtype), kept), None, None

    total.defvjp(forward, backward)
    return total(head_of(params, config), *(_cut(x, chunk) for x in (h, targets, weight)))


def _cut(x: Any, chunk: int) -> jax.Array:
    """The rows of `x`, padded with zeros, in chunks of at most so many, all of about one size: the last one would
    be padded to theirs."""
    count = x.shape[0]
    chunk = -(-count // -(-count // chunk))
    return jnp.pad(x, [(0, -count % chunk)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, chunk, *x.shape[1:])
