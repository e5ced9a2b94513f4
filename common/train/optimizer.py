"""From gradients to new weights: optax's optimizers up to the rate, the rate of each update, and the step itself.

state = initial_state(settings, params)
rate = learning_rate(settings, step, steps)
direction, moments = make_optimizer(settings).update(grads, state["optimizer"], params)
params = stepped(params, direction, rate, state["updates"])
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from common.config import TrainConfig
from common.model import sharding
from common.model.decoder import Params


def learning_rate(settings: TrainConfig, step: int, steps: int) -> float:
    """Rate of update `step` (from 0) of `steps`: linear warm-up that starts above zero (or at it, see
    `zero_start`), then decay to zero just after the last update (cosine or linear), or constant."""
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = int(np.ceil(settings.warmup_ratio * steps))
    if step < warmup:
        part = step / warmup if settings.zero_start else (step + 1) / (warmup + 1)
        return settings.learning_rate * part
    progress = (step - warmup) / max(1, steps - warmup)
    factor = {
        "cosine": 0.5 * (1 + np.cos(np.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }[settings.schedule]
    return float(settings.learning_rate * factor)


def _decays(path: tuple, leaf: jax.Array) -> bool:
    """Weight decay applies to matrices, not to norms and biases."""
    name = path[-1].key
    return not ("norm" in name or name.endswith("bias"))


@functools.lru_cache
def make_optimizer(settings: TrainConfig) -> optax.GradientTransformation:
    """What is done with clipped gradients in float32, up to the factor -learning_rate, which `update` takes as an
    argument."""
    mask = functools.partial(jax.tree_util.tree_map_with_path, _decays)
    decay = optax.add_decayed_weights(settings.weight_decay, mask)
    if settings.optimizer == "adamw":
        return optax.chain(optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon), decay)
    if settings.optimizer == "adafactor":
        # The parts of optax.adafactor; the decay is times the rate, as in the others.
        parts = optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
        return optax.chain(_by_matrix(optax.chain(*parts)), decay)
    if settings.optimizer == "lion":
        return optax.chain(optax.scale_by_lion(), decay)
    # PyTorch's form with its default decay, as in the program of ReverseGen's authors.
    return optax.chain(optax.scale_by_rms(decay=0.99, eps=settings.epsilon, eps_in_sqrt=False), decay)


def _by_matrix(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on weights as the matrices that they are to a token: heads and their size are one dimension."""

    def flat(path: tuple, leaf: jax.Array) -> jax.Array:
        name = path[-1].key
        if leaf.ndim != 3 or name[0] not in "qkvo":
            return leaf
        # What comes in stands first, but for the output projection and its adapter, which take heads in.
        joined = name == "o" or name == "o_a"
        return leaf.reshape(-1, leaf.shape[-1]) if joined else leaf.reshape(leaf.shape[0], -1)

    matrices = functools.partial(jax.tree_util.tree_map_with_path, flat)

    def step(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new, state = inner.update(matrices(updates), state, matrices(params))
        return jax.tree.map(lambda x, like: x.reshape(like.shape), new, updates), state

    return optax.GradientTransformation(lambda params: inner.init(matrices(params)), step)


@functools.partial(jax.jit, static_argnums=(0, 2))
def initial_state(settings: TrainConfig, params: Params, mesh: Mesh | None = None) -> dict[str, Any]:
    """What `update` carries beside the parameters: the optimizer's state, whether all was finite so far, and how
    many updates there were."""
    # In float32 whatever the parameters are. Of the cast weights only the shapes are left once compiled.
    moments = make_optimizer(settings).init(jax.tree.map(lambda p: p.astype(jnp.float32), params))
    state = {"optimizer": moments, "finite": jnp.bool_(True), "updates": jnp.int32(0)}
    # Made where it lies: on a mesh no device could hold the whole of it.
    return (
        state if mesh is None else jax.lax.with_sharding_constraint(state, sharding.param_shardings(mesh, state))
    )


def clipped(grads: Any, norm: Array, most: float) -> Any:
    """`grads` scaled down to a norm of `most` where theirs is larger: optax's `clip_by_global_norm`, to the bit,
    for a norm that is known."""
    return jax.tree.map(lambda g: jnp.where(norm < most, g, g / norm.astype(g.dtype) * most), grads)


def _scattered(shape: tuple[int, ...], number: int, count: Array) -> Array:
    """32 bits for each place of an array, which depend on its place, the array's number and the update alone: a
    hash (murmur3's), which is compiled into the loop that uses it, where jax's generator would be a program of its
    own."""
    place = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape) * jnp.uint32(0x9E3779B1)
    h = place ^ (count.astype(jnp.uint32) * jnp.uint32(0x85EBCA77) + jnp.uint32(number * 0xC2B2AE3D % 2**32))
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def stepped(params: Params, direction: Any, rate: Array, count: Array) -> Params:
    """`params` - `rate` * `direction`, in their dtype. To bfloat16 it is rounded at random, to either neighbour
    with odds by distance: rounded to the nearest one, the small updates of fine-tuning would mostly come to
    nothing."""
    leaves, treedef = jax.tree.flatten(params)
    stepped = []
    for number, (p, d) in enumerate(zip(leaves, jax.tree.leaves(direction), strict=True)):
        x = p.astype(jnp.float32) - rate * d
        if p.dtype == jnp.bfloat16:
            # Sixteen random bits are added to those that bfloat16 cuts off: the carry rounds up.
            bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (_scattered(p.shape, number, count) >> 16)
            x = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
        stepped.append(x.astype(p.dtype))
    return jax.tree.unflatten(treedef, stepped)
