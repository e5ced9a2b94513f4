"""A layer of the decoder, with everything that one family has and another has not: `ModelConfig` says which.

Dimensions are those of `common.model.decoder`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from common.config import ModelConfig
from common.model import moe
from common.model.attention import attention, cached_attention
from common.model.norms import BIASED, WEIGHTLESS, norm
from common.model.packing import Packing, packed_attention
from common.model.pages import Looking, paged_attention, write
from common.model.rope import Turns, rotate
from common.model.turned import product

KeysValues = tuple[Float[Array, "B _ K H"], Float[Array, "B _ K H"]]
LayerCache = tuple[Float[Array, "rows K H S"], Float[Array, "rows K S H"]]


def matrix(key: jax.Array, *shape: int) -> nnx.Param:
    """A random matrix, normal(0, 0.02)."""
    return nnx.Param(0.02 * jax.random.normal(key, shape))


def norm_params(config: ModelConfig, name: str, size: int) -> dict[str, nnx.Param]:
    """The weight of a norm that changes nothing, and its bias, where `config.norm` has them."""
    unit = jnp.zeros(size) if config.norm == "rms1p" else jnp.ones(size)
    found = {} if config.norm == WEIGHTLESS else {name: nnx.Param(unit)}
    return found | ({f"{name}_bias": nnx.Param(jnp.zeros(size))} if config.norm == BIASED else {})


def normed(module: nnx.Module, name: str, x: jax.Array, config: ModelConfig) -> jax.Array:
    """`x` through the norm whose parameters `module` holds by `name`."""
    weight, bias = (getattr(module, key, None) for key in (name, f"{name}_bias"))
    weight, bias = (None if w is None else w[...] for w in (weight, bias))
    return norm(config.norm, x, weight, bias, config.norm_eps)


def _dot(x: jax.Array, w: nnx.Param, contract: int = 1, *, turned: bool = False) -> jax.Array:
    """Contract the last `contract` axes of `x` with the first of `w`, or its last if it is `turned`, cast to the
    activations' dtype.

    Every product with a weight goes through here, as one plain matrix product: on CPU XLA is twice as slow on
    the equivalent einsum of higher rank.
    """
    w = w[...].astype(x.dtype)
    rows, size = x.shape[:-contract], math.prod(x.shape[-contract:])
    x = x.reshape(-1, size)
    if turned:
        return product(x, w.reshape(-1, size)).reshape(*rows, *w.shape[:-contract])
    return (x @ w.reshape(size, -1)).reshape(*rows, *w.shape[contract:])


def _taken(x: jax.Array, at: Int[Array | np.ndarray, " A"]) -> jax.Array:
    """(B, T, ...) at these places of the flattened (B, T), in 16 rows where they divide them: XLA on CPU takes an
    eighth longer for the gradient of one."""
    return x.reshape(-1, *x.shape[2:])[at].reshape(math.gcd(16, len(at)), -1, *x.shape[2:])


class Block(nnx.Module):
    """Layer number `layer`, from 0: attention and an MLP or experts, with adapters beside the matrices that
    `config.lora` names."""

    turned = False
    """Whether its matrices are as `common.model.turned` has them."""

    def __init__(self, config: ModelConfig, layer: int, key: jax.Array):
        self.config = config
        self.window, self.rope = config.window(layer), config.layer_rope(layer)
        self.mixture = config.has_experts(layer)
        scale = config.attention_scale
        self.scale = (scale or config.head_dim**-0.5) / (layer + 1) if config.scale_by_layer else scale
        D, F = config.hidden_size, config.intermediate_size
        N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
        keys = jax.random.split(key, 7)
        self.q, self.k, self.v = (matrix(keys[i], D, n, H) for i, n in enumerate((N, K, K)))
        self.o = matrix(keys[3], N, H, D)
        if self.mixture:
            more = jax.random.split(keys[4], 4)  # the matrices come first
            for i, (name, shape) in enumerate(moe.shapes(config).items()):
                bias = name.endswith("bias")
                setattr(self, name, nnx.Param(jnp.zeros(shape)) if bias else matrix(more[i], *shape))
        else:
            if config.gated:
                self.gate = matrix(keys[4], D, F)
            self.up, self.down = matrix(keys[5], D, F), matrix(keys[6], F, D)
        for name in config.norms:
            for part, value in norm_params(config, name, D).items():
                setattr(self, part, value)
        for name in config.biases:
            if hasattr(self, name):
                contract = 2 if name == "o" else 1
                setattr(self, f"{name}_bias", nnx.Param(jnp.zeros(getattr(self, name).shape[contract:])))
        self._add_qk_norms()
        if config.sinks:
            self.sinks = nnx.Param(jnp.zeros(N))
        lora = config.lora
        for name in lora.targets if lora else ():
            if lora and config.adapted(name) and hasattr(self, name):  # declared; `lora.init` gives them numbers
                shape, inner, rank = getattr(self, name).shape, 2 if name == "o" else 1, lora.rank
                setattr(self, f"{name}_a", nnx.Param(jnp.zeros((*shape[:inner], rank))))
                setattr(self, f"{name}_b", nnx.Param(jnp.zeros((rank, *shape[inner:]))))

    def _add_qk_norms(self) -> None:
        config = self.config
        for name, heads in (("q_norm", config.num_heads), ("k_norm", config.num_kv_heads)):
            if config.qk_norm == "head":
                for part, value in norm_params(config, name, config.head_dim).items():
                    setattr(self, part, value)
            elif config.qk_norm != "none":
                setattr(self, name, nnx.Param(jnp.ones((heads, config.head_dim))))

    def _project(self, x: jax.Array, name: str, contract: int = 1) -> jax.Array:
        """`x` times the matrix `name`, its adapter beside it, and its bias. With A @ B added to the matrix, the
        backward pass would form a gradient of the matrix' full size."""
        y = _dot(x, getattr(self, name), contract, turned=self.turned)
        lora = self.config.lora
        if lora is not None and self.config.adapted(name):
            # Scaled where it is small: behind the second product, y's gradient would be written twice as well.
            low = lora.alpha / lora.rank * _dot(x, getattr(self, f"{name}_a"), contract)
            y = y + _dot(low, getattr(self, f"{name}_b"))
        if name in self.config.biases:
            y = y + getattr(self, f"{name}_bias")[...].astype(y.dtype)
        return y

    def __call__(
        self,
        x: Float[Array, "B T D"],
        turns: Turns | None,
        mask: Bool[Array, "#B 1 T S"] | Packing | None,
        after: tuple[Float[Array, "1 K H P"], Float[Array, "1 K P H"]] | None = None,
        at: Int[Array | np.ndarray, " A"] | None = None,
    ) -> tuple[Float[Array, "_ _ D"], KeysValues]:
        """The layer over whole sequences, causal where `mask` is None or they are packed; beside its output its
        keys and values. `after`: a cache of one row, whose keys and values stand before those of every row. `at`:
        places of the flattened (B, T) whose output alone is asked for, (A, D) cut into rows."""
        h = self._normed("norm1", x)
        q, k, v = self._qkv(h, turns)
        before = after and (after[0].transpose(0, 3, 1, 2), after[1].transpose(0, 2, 1, 3))
        if isinstance(mask, Packing):
            found = packed_attention(q, k, v, mask, self.window, before, **self._scores())
        else:
            if before is not None:
                k, v = (
                    jnp.concatenate([jnp.broadcast_to(b, (len(x), *b.shape[1:])), own], axis=1)
                    for b, own in zip(before, (k, v), strict=True)
                )
            found = attention(q, k, v, mask, **self._scores())
        if at is not None:
            x, h, found = (_taken(y, at) for y in (x, h, found))
        return self._finish(x, h, found), (k, v)

    def decode(
        self,
        x: Float[Array, "B T D"],
        turns: Turns | None,
        cache: LayerCache,
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B 1 T S"] | Looking,
    ) -> tuple[Float[Array, "B T D"], LayerCache]:
        """The layer over new tokens at `positions`: its output, and its cache with their keys and values: a row
        for each of x, or pages where the mask is what they look at."""
        h = self._normed("norm1", x)
        q, k, v = self._qkv(h, turns)
        if isinstance(mask, Looking):
            cache = write(cache, k, v, mask)
            return self._finish(x, h, paged_attention(q, *cache, mask, **self._scores())), cache
        rows = jnp.arange(x.shape[0])[:, None]
        keys = cache[0].at[rows, :, :, positions].set(k)
        values = cache[1].at[rows, :, positions].set(v)
        return self._finish(x, h, cached_attention(q, keys, values, mask, **self._scores())), (keys, values)

    def _scores(self) -> dict[str, Any]:
        sinks = self.sinks[...] if self.config.sinks else None
        return {"scale": self.scale, "cap": self.config.score_cap, "sinks": sinks}

    def _normed(self, name: str, x: jax.Array) -> jax.Array:
        return normed(self, name, x, self.config) if name in self.config.norms else x

    def _qkv(self, h: jax.Array, turns: Turns | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        config = self.config
        q, k, v = (self._project(h, name) for name in "qkv")
        if config.qkv_clip is not None:
            q, k, v = (jnp.clip(y, -config.qkv_clip, config.qkv_clip) for y in (q, k, v))
        if config.qk_norm != "none":
            q, k = self._qk_normed("q_norm", q), self._qk_normed("k_norm", k)
        if self.rope is not None and turns is not None:
            q, k = rotate(q, turns, self.rope), rotate(k, turns, self.rope)
        return q, k, v

    def _qk_normed(self, name: str, x: jax.Array) -> jax.Array:
        config = self.config
        if config.qk_norm == "head":
            return normed(self, name, x, config)
        weight = getattr(self, name)[...]
        if config.qk_norm == "heads":
            return norm("ln_scale", x, weight, None, config.norm_eps)
        flat = norm(config.norm, x.reshape(*x.shape[:2], -1), weight.reshape(-1), None, config.norm_eps)
        return flat.reshape(x.shape)

    def _finish(self, x: jax.Array, h: jax.Array, attended: jax.Array) -> jax.Array:
        """The layer's output from its input, the normed input and what attention found."""
        config = self.config
        found = self._normed("post_norm1", self._project(attended, "o", contract=2))
        if config.parallel:
            return x + found + self._mlp(self._normed("norm2", x) if "norm2" in config.norms else h)
        x = x + self._scaled(found)
        return x + self._scaled(self._normed("post_norm2", self._mlp(self._normed("norm2", x))))

    def _scaled(self, x: jax.Array) -> jax.Array:
        return x if self.config.residual_scale == 1 else x * self.config.residual_scale

    def _mlp(self, h: jax.Array) -> jax.Array:
        config = self.config
        if self.mixture:
            return moe.mixture(h, {name: getattr(self, name)[...] for name in moe.shapes(config)}, config)
        activation = moe.ACTIVATIONS[config.activation]
        if config.gated:
            return self._project(activation(self._project(h, "gate")) * self._project(h, "up"), "down")
        return self._project(activation(self._project(h, "up")), "down")
