"""Log-probabilities of chosen tokens from hidden states, with no more logits at a time than there is room for.

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
from common.buckets import KEPT_LOGITS, LOGITS
from common.config import ModelConfig
from common.model.decoder import Params, head_of, unembed


def logits_at_once() -> int:
    """Those of `LOGITS` for this machine."""
    return runtime.here(LOGITS)


@jax.custom_vjp
def target_logps(logits: Float[Array, "A V"], targets: Int[Array, " A"]) -> Float[Array, " A"]:
    """log p(target) of each row of `logits`, without writing those of all tokens.

    Its derivative by hand, 1 at the target less the softmax, is one pass over the logits; autodiff first writes
    the ones among zeros, then sums them up and subtracts.
    """
    return _target_logps(logits, targets)[0]


def _target_logps(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any]:
    top = logits.max(axis=1, keepdims=True)
    total = jnp.log(jnp.exp(logits - top).sum(axis=1, keepdims=True))
    own = jnp.take_along_axis(logits, targets[:, None], axis=1)
    return (own - top - total)[:, 0], (logits, top, total, targets)


def _target_logps_backward(kept: Any, by: jax.Array) -> tuple[jax.Array, None]:
    logits, top, total, targets = kept
    at_target = jnp.arange(logits.shape[1]) == targets[:, None]
    # One after the other: their sum would be rounded at the size of the largest logit.
    return by[:, None] * (at_target - jnp.exp(logits - top - total)), None


target_logps.defvjp(_target_logps, _target_logps_backward)


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

    Where they are more than `KEPT_LOGITS`, or have a cap, whose derivative asks for three times as much again,
    logits of a chunk are recomputed in the backward pass, so that memory stays at (chunk, V).
    """
    chunk = chunk or max(1, logits_at_once() // config.vocab_size)
    count = h.shape[0]
    if count <= chunk:
        return token_logps_reference(params, config, h, targets)
    one = lambda pair: target_logps(unembed(params, config, pair[0]), pair[1])
    if count * config.vocab_size > runtime.here(KEPT_LOGITS) or config.logit_cap is not None:
        one = jax.checkpoint(one)
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
        return jnp.sum(weight * target_logps(unembed(head, config, h), targets))

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
