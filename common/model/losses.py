"""Log-probabilities of chosen tokens from hidden states, without keeping logits of the whole vocabulary.

    logps = token_logps(params, config, h, targets)        # h (A, D), targets (A,) -> (A,)

Supervised loss, scoring and preference losses all start here. `h` holds only the positions that count.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common import runtime
from common.config import ModelConfig
from common.model.decoder import Params, unembed

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
    chunk = -(-count // -(-count // chunk))  # all of about one size: the last one would be padded to theirs
    padding = -count % chunk
    h = jnp.pad(h, ((0, padding), (0, 0))).reshape(-1, chunk, h.shape[1])
    targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk)
    one = jax.checkpoint(lambda pair: token_logps_reference(params, config, *pair))
    return jax.lax.map(one, (h, targets)).reshape(-1)[:count]
