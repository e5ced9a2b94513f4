"""Mixtures of experts: a token goes through the few of a layer's MLPs that its router chooses.

    y = mixture(h, weights, config)          # h (B, T, D); the arrays of a layer by name, see `shapes`

`mixture_reference` puts every token through every expert and adds up what was chosen. `mixture_sorted` sorts the
tokens by expert, so that each expert sees its own alone. On CPU, where XLA computes a product over such groups as
one over all experts, and more slowly, the first is also the faster one (3 to 12 times).
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from common import runtime
from common.config import ModelConfig

Weights = Mapping[str, jax.Array]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}
"""By `ModelConfig.activation`."""


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The arrays of a layer with experts: the router, and all experts' matrices side by side."""
    experts = config.experts
    assert experts is not None, "without experts a layer has an MLP"
    E, D, F = experts.count, config.hidden_size, experts.intermediate_size
    found = {
        "router": (D, E),
        "experts_gate": (E, D, F),
        "experts_up": (E, D, F),
        "experts_down": (E, F, D),
    }
    if experts.biases:
        found |= {"router_bias": (E,), "experts_gate_bias": (E, F), "experts_up_bias": (E, F)}
        found |= {"experts_down_bias": (E, D)}
    return found


def mixture(h: Float[Array, "B T D"], weights: Weights, config: ModelConfig) -> Float[Array, "B T D"]:
    """What the chosen experts make of `h`."""
    one = mixture_sorted if runtime.on_accelerator() else mixture_reference
    return one(h.reshape(-1, h.shape[-1]), weights, config).reshape(h.shape)


def route(
    h: Float[Array, "M D"], weights: Weights, config: ModelConfig
) -> tuple[Float[Array, "M k"], Int[Array, "M k"]]:
    """The experts that each token goes through, and how their outputs are weighed, in float32."""
    experts = config.experts
    assert experts is not None, "without experts there is nothing to choose"
    logits = (h @ weights["router"].astype(h.dtype)).astype(jnp.float32)
    if experts.biases:
        logits = logits + weights["router_bias"].astype(jnp.float32)
    if experts.weights == "chosen":
        top, chosen = jax.lax.top_k(logits, experts.per_token)
        return jax.nn.softmax(top), chosen
    top, chosen = jax.lax.top_k(jax.nn.softmax(logits), experts.per_token)
    if experts.weights == "renormalised":
        top = top / top.sum(axis=-1, keepdims=True)
    return top, chosen


def mixture_reference(h: Float[Array, "M D"], weights: Weights, config: ModelConfig) -> Float[Array, "M D"]:
    """The readable form: every expert computes every token."""
    assert config.experts is not None
    top, chosen = route(h, weights, config)
    share = jnp.zeros((h.shape[0], config.experts.count)).at[jnp.arange(h.shape[0])[:, None], chosen].set(top)

    def product(x: jax.Array, name: str) -> jax.Array:
        y = jnp.matmul(x, weights[name].astype(x.dtype))
        bias = weights.get(f"{name}_bias")
        return y if bias is None else y + bias.astype(y.dtype)[:, None]

    out = product(_activated(product(h, "experts_gate"), product(h, "experts_up"), config), "experts_down")
    return jnp.einsum("emd,me->md", out, share.astype(h.dtype))


def mixture_sorted(h: Float[Array, "M D"], weights: Weights, config: ModelConfig) -> Float[Array, "M D"]:
    """The same with one product over groups of tokens, which are sorted by expert."""
    assert config.experts is not None
    top, chosen = route(h, weights, config)
    count = chosen.shape[1]
    order = jnp.argsort(chosen.reshape(-1))
    expert, token = chosen.reshape(-1)[order], order // count
    sizes = jnp.bincount(expert, length=config.experts.count).astype(jnp.int32)

    def product(x: jax.Array, name: str) -> jax.Array:
        y = jax.lax.ragged_dot(x, weights[name].astype(x.dtype), sizes)
        bias = weights.get(f"{name}_bias")
        return y if bias is None else y + bias.astype(y.dtype)[expert]

    x = h[token]
    out = product(_activated(product(x, "experts_gate"), product(x, "experts_up"), config), "experts_down")
    out = out * top.reshape(-1)[order, None].astype(h.dtype)
    return jnp.zeros_like(h).at[token].add(out)


def _activated(gate: jax.Array, up: jax.Array, config: ModelConfig) -> jax.Array:
    assert config.experts is not None
    clamp = config.experts.clamp
    if clamp is None:
        return ACTIVATIONS[config.activation](gate) * up
    gate, up = jnp.minimum(gate, clamp), jnp.clip(up, -clamp, clamp)
    return (up + 1) * gate * jax.nn.sigmoid(config.experts.alpha * gate)
