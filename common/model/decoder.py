"""The decoder, a flax nnx module, and functions that run it on a pure dict of its arrays.

Llama 2/3, Mistral, Qwen2 and Qwen3 differ by a few switches of `ModelConfig`. `params["layers"]` is a list with a
dict of arrays for each layer. Training, scoring, prefill and decoding all unroll it: that runs faster than a scan
over stacked weights, and one layer may differ from another.

    params = init(config, jax.random.key(0))
    h = hidden(params, config, tokens)                       # (B, T, D)
    logits = unembed(params, config, h)                      # (B, T, V)

Outside this file parameters are always the dict: jax.jit takes it at a fraction of a module's cost, its paths map
onto names in files and onto places on devices, and adapters are split off and joined by key. Inside a compiled
function `module` makes it a `Decoder` again, which costs nothing at run time.

Dimensions, here and everywhere in common/:
    B batch rows · T query tokens · S key positions (cache length) · D hidden · N query heads · K key/value heads
    H head size · F intermediate · V vocabulary · L layers · R rank of an adapter
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from common import runtime
from common.config import ModelConfig, Remat
from common.model.attention import attention

Params = dict[str, Any]
PerToken = Int[Array | np.ndarray, "B T"]
"""Token ids or positions, also numpy's."""
Cache = list[tuple[jax.Array, jax.Array]]
"""Keys (B, K, H, S) and values (B, K, S, H) of each layer. With the axes in this order neither product of
decoding has to transpose the cache, which halves the time of a step."""


def _matrix(key: jax.Array, *shape: int) -> nnx.Param:
    return nnx.Param(0.02 * jax.random.normal(key, shape))


def _dot(x: jax.Array, w: nnx.Param, contract: int = 1) -> jax.Array:
    """Contract the last `contract` axes of `x` with the first of `w`, cast to the activations' dtype.

    Every product with a weight goes through here, as one plain matrix product: on CPU XLA is twice as slow on
    the equivalent einsum of higher rank.
    """
    w = w[...].astype(x.dtype)
    rows, inner, columns = x.shape[:-contract], w.shape[:contract], w.shape[contract:]
    size = math.prod(inner)
    return (x.reshape(-1, size) @ w.reshape(size, -1)).reshape(*rows, *columns)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return weight.astype(x.dtype) * y.astype(x.dtype)


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Inverse frequencies (H/2,) of the rotary embedding, scaled as the checkpoint says."""
    # In float64, and rounded once at the end.
    half = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    freq = 1.0 / config.rope_theta**half
    scaling = config.rope_scaling
    if scaling is None:
        return freq.astype(np.float32)
    slow = freq / scaling.factor
    if scaling.kind == "linear":
        return slow.astype(np.float32)
    turns = scaling.original_max_positions * freq / (2 * np.pi)  # full turns within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - keep) * slow + keep * freq).astype(np.float32)


def apply_rope(x: Float[Array, "B T N H"], angles: Float[Array, "B T half"]) -> jax.Array:
    """Rotate pairs (i, i + H/2) of every head, in float32."""
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def attention_mask(query_pos: PerToken, keys: int, window: int = 0) -> jax.Array:
    """True where a query may look: itself and earlier, no farther back than `window` (0: no limit).

    Shape (B, 1, T, keys), for keys at positions 0 .. keys - 1.
    """
    distance = jnp.asarray(query_pos)[:, :, None] - jnp.arange(keys)[None, None, :]
    seen = (distance >= 0) & (distance < window) if window else distance >= 0
    return seen[:, None]


def cached_attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B 1 T S"],
) -> Float[Array, "B T N H"]:
    """`jax.nn.dot_product_attention` over a cache in its own axis order; softmax in float32."""
    B, T, N, H = q.shape
    K, S = keys.shape[1], keys.shape[3]
    # Query heads that share a key/value head stand side by side: one product serves them all.
    q = q.reshape(B, T, K, N // K, H).swapaxes(1, 2).reshape(B, K, T * (N // K), H)
    scores = jnp.matmul(q, keys, preferred_element_type=jnp.float32).reshape(B, K, T, N // K, S)
    scores = jnp.where(mask[:, :, :, None], scores * H**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(values.dtype).reshape(*q.shape[:3], S)
    attended = jnp.matmul(weights, values).reshape(B, K, T, N // K, H)
    return attended.swapaxes(1, 2).reshape(B, T, N, H)


class Block(nnx.Module):
    """Layer number `layer`, from 0: pre-norm attention and gated MLP, with adapters beside the matrices that
    `config.lora` names."""

    def __init__(self, config: ModelConfig, layer: int, key: jax.Array):
        self.config = config
        self.window = config.windows[layer] if config.windows else 0
        D, F = config.hidden_size, config.intermediate_size
        N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
        keys = jax.random.split(key, 7)
        self.q, self.k, self.v = (_matrix(keys[i], D, n, H) for i, n in enumerate((N, K, K)))
        self.o = _matrix(keys[3], N, H, D)
        self.gate, self.up = _matrix(keys[4], D, F), _matrix(keys[5], D, F)
        self.down = _matrix(keys[6], F, D)
        self.norm1, self.norm2 = nnx.Param(jnp.ones(D)), nnx.Param(jnp.ones(D))
        if config.qkv_bias:
            self.q_bias = nnx.Param(jnp.zeros((N, H)))
            self.k_bias, self.v_bias = nnx.Param(jnp.zeros((K, H))), nnx.Param(jnp.zeros((K, H)))
        if config.qk_norm:
            self.q_norm, self.k_norm = nnx.Param(jnp.ones(H)), nnx.Param(jnp.ones(H))
        if config.lora:
            # Declared; `lora.init` gives them numbers.
            rank = config.lora.rank
            for name in config.lora.targets:
                shape = getattr(self, name).shape
                inner = 2 if name == "o" else 1
                setattr(self, f"{name}_a", nnx.Param(jnp.zeros((*shape[:inner], rank))))
                setattr(self, f"{name}_b", nnx.Param(jnp.zeros((rank, *shape[inner:]))))

    def _project(self, x: jax.Array, name: str, contract: int = 1) -> jax.Array:
        """`x` times the matrix `name`, and its adapter beside it: with A @ B added to the matrix instead, the
        backward pass would form a gradient of the matrix' full size."""
        y = _dot(x, getattr(self, name), contract)
        lora = self.config.lora
        if lora is None or name not in lora.targets:
            return y
        low = _dot(x, getattr(self, f"{name}_a"), contract)
        return y + lora.alpha / lora.rank * _dot(low, getattr(self, f"{name}_b"))

    def __call__(
        self, x: Float[Array, "B T D"], angles: Float[Array, "B T half"], mask: Bool[Array, "1 1 T T"] | None
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]]]:
        """The layer over whole sequences, causal where `mask` is None; beside its output its keys and values."""
        q, k, v = self._qkv(x, angles)
        return self._finish(x, attention(q, k, v, mask)), (k, v)

    def decode(
        self,
        x: Float[Array, "B T D"],
        angles: Float[Array, "B T half"],
        cache: tuple[Float[Array, "B K H S"], Float[Array, "B K S H"]],
        positions: PerToken,
        mask: Bool[Array, "B 1 T S"],
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B K H S"], Float[Array, "B K S H"]]]:
        """The layer over new tokens at `positions`: its output, and its cache with their keys and values."""
        q, k, v = self._qkv(x, angles)
        rows = jnp.arange(x.shape[0])[:, None]
        keys = cache[0].at[rows, :, :, positions].set(k)
        values = cache[1].at[rows, :, positions].set(v)
        return self._finish(x, cached_attention(q, keys, values, mask)), (keys, values)

    def _qkv(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        config = self.config
        h = rms_norm(x, self.norm1[...], config.norm_eps)
        q, k, v = (self._project(h, name) for name in "qkv")
        if config.qkv_bias:
            q, k, v = (
                y + b[...].astype(y.dtype) for y, b in ((q, self.q_bias), (k, self.k_bias), (v, self.v_bias))
            )
        if config.qk_norm:
            q = rms_norm(q, self.q_norm[...], config.norm_eps)
            k = rms_norm(k, self.k_norm[...], config.norm_eps)
        return apply_rope(q, angles), apply_rope(k, angles), v

    def _finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        x = x + self._project(attended, "o", contract=2)
        h = rms_norm(x, self.norm2[...], self.config.norm_eps)
        gated = jax.nn.silu(self._project(h, "gate")) * self._project(h, "up")
        return x + self._project(gated, "down")


def _recomputing(remat: Remat) -> Callable[..., Any]:
    """`Block.__call__` with a backward pass that computes again what `remat` says."""
    if remat == "none":
        return Block.__call__
    if remat == "dots":
        return jax.checkpoint(Block.__call__, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    return jax.checkpoint(Block.__call__) if runtime.on_accelerator() else _one_by_one


def _first(tree: Any) -> jax.Array:
    """The sum of the first number of every array."""
    return sum((leaf.ravel()[0].astype(jnp.float32) for leaf in jax.tree.leaves(tree)), jnp.float32(0))


def _one_by_one(
    block: Block, x: jax.Array, angles: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """`jax.checkpoint(Block.__call__)` for CPU, where the compiler's scheduler runs whatever it can at once, so
    that all layers would be computed again before the first of them is needed, and all gradients of weights last:
    with more memory than without recomputation. A zero made of what has to be there before holds both back."""
    after = lambda x, tree: x + (0 * _first(tree)).astype(x.dtype)
    trained = (lambda name: name.endswith(("_a", "_b"))) if block.config.lora else (lambda name: True)

    @jax.custom_vjp
    def run(x: jax.Array, block: Block) -> Any:
        return block(x, angles, mask)

    def backward(inputs: tuple[jax.Array, Block], cotangents: Any) -> tuple[jax.Array, Any]:
        x, block = inputs
        again = lambda x, block: block(x, angles, mask)
        dx, dblock = jax.vjp(again, after(x, cotangents[0]), block)[1](cotangents)
        # Frozen weights' gradients would be computed for this alone.
        needed = [leaf for path, leaf in jax.tree.leaves_with_path(dblock) if trained(_name(path))]
        return after(dx, needed), dblock

    run.defvjp(lambda x, block: (run(x, block), (x, block)), backward)
    return run(x, block)


def _name(path: tuple) -> str:
    """The name of a block's array by its path."""
    return next(key for part in path if isinstance(key := getattr(part, "name", getattr(part, "key", None)), str))


class Decoder(nnx.Module):
    """Token embedding, blocks, final norm, and a head unless it is tied to the embedding."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        self.config = config
        embed_key, head_key, layer_key = jax.random.split(key, 3)
        self.embed = _matrix(embed_key, config.vocab_size, config.hidden_size)
        self.norm = nnx.Param(jnp.ones(config.hidden_size))
        keys = jax.random.split(layer_key, config.num_layers)
        self.layers = nnx.List([Block(config, i, keys[i]) for i in range(config.num_layers)])
        if not config.tied_head:
            self.head = _matrix(head_key, config.hidden_size, config.vocab_size)

    def hidden(
        self, tokens: PerToken, *, dtype: Any = jnp.float32, remat: Remat = "none"
    ) -> Float[Array, "B T D"]:
        """See the function `hidden`."""
        return self._whole(tokens, dtype, remat=remat)[0]

    def prefill(self, tokens: PerToken, *, dtype: Any = jnp.float32) -> Cache:
        """See the function `prefill`."""
        _, made = self._whole(tokens, dtype, remat="none")
        return [(k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)) for k, v in made]

    def _whole(
        self, tokens: PerToken, dtype: Any, *, remat: Remat
    ) -> tuple[Float[Array, "B T D"], list[tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]]]]:
        """Final hidden states, and keys and values of every layer, which the compiler leaves out if unused."""
        config = self.config
        B, T = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        angles = positions[..., None] * rope_frequencies(config)
        # A window as long as the sequence hides nothing; without a mask attention takes its fastest form.
        windows = {block.window for block in self.layers}
        masks = {w: attention_mask(positions[:1], T, w) if 0 < w < T else None for w in windows}
        run = _recomputing(remat)
        x, made = self.embed[...][tokens].astype(dtype), []
        for block in self.layers:
            x, keys_and_values = run(block, x, angles, masks[block.window])
            made.append(keys_and_values)
        return rms_norm(x, self.norm[...], config.norm_eps), made

    def decode(
        self, cache: Cache, tokens: PerToken, positions: PerToken, *, dtype: Any = jnp.float32
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """See the function `decode`."""
        config, positions = self.config, jnp.asarray(positions)
        angles = positions[..., None] * rope_frequencies(config)
        S = cache[0][1].shape[2]
        masks = {w: attention_mask(positions, S, w) for w in {block.window for block in self.layers}}
        x, extended = self.embed[...][tokens].astype(dtype), []
        for block, layer_cache in zip(self.layers, cache, strict=True):
            x, layer_cache = block.decode(x, angles, layer_cache, positions, masks[block.window])
            extended.append(layer_cache)
        return rms_norm(x, self.norm[...], config.norm_eps), extended

    def unembed(self, h: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Logits in float32."""
        if self.config.tied_head:
            return jnp.einsum("...d,vd->...v", h, self.embed[...].astype(h.dtype)).astype(jnp.float32)
        return jnp.einsum("...d,dv->...v", h, self.head[...].astype(h.dtype)).astype(jnp.float32)


# --- The edges: from the dict of arrays to the module and back ------------------------------------------------


@functools.lru_cache
def _graphdef(config: ModelConfig) -> nnx.GraphDef:
    """All of a decoder but its arrays. `graph=False`: the module is a plain tree, whatever a user's own flax code
    has set for theirs."""
    return nnx.split(jax.eval_shape(functools.partial(Decoder, config), jax.random.key(0)), graph=False)[0]


def module(params: Params, config: ModelConfig) -> Decoder:
    """The decoder with these parameters, as `init` returns them."""
    # To flax the state of a list of modules is a dict by number.
    return nnx.merge(_graphdef(config), params | {"layers": dict(enumerate(params["layers"]))})


def abstract_params(config: ModelConfig) -> Params:
    """The parameter tree as shapes and dtypes (float32), without memory."""
    return jax.eval_shape(functools.partial(init, config), jax.random.key(0))


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Random float32 parameters: normal(0, 0.02) matrices, unit norms, zero biases."""
    params = nnx.to_pure_dict(nnx.split(Decoder(config, key), graph=False)[1])
    return params | {"layers": [params["layers"][i] for i in range(config.num_layers)]}


def hidden(
    params: Params,
    config: ModelConfig,
    tokens: PerToken,
    *,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
) -> Float[Array, "B T D"]:
    """Final hidden states of right-padded `tokens`. Under the causal mask padding never reaches a real token,
    so no mask is taken. `remat`: what of each layer is computed again in the backward pass, to save memory."""
    return module(params, config).hidden(tokens, dtype=dtype, remat=remat)


def prefill(params: Params, config: ModelConfig, tokens: PerToken, *, dtype: Any = jnp.float32) -> Cache:
    """Cache of length T that holds right-padded prompts."""
    return module(params, config).prefill(tokens, dtype=dtype)


def decode(
    params: Params,
    config: ModelConfig,
    cache: Cache,
    tokens: PerToken,
    positions: PerToken,
    *,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "B T D"], Cache]:
    """Hidden states of new `tokens` at per-row `positions`, reading and extending the cache.

    Rows are independent: each writes at its own positions.
    """
    return module(params, config).decode(cache, tokens, positions, dtype=dtype)


def unembed(params: Params, config: ModelConfig, h: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
    """Logits in float32."""
    return module(params, config).unembed(h)


def count_params(params: Any) -> int:
    """Number of scalars in a tree of parameters or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# --- The cache of keys and values -----------------------------------------------------------------------------


def empty_cache(config: ModelConfig, rows: int, length: int, *, dtype: Any = jnp.float32) -> Cache:
    """A cache of zeros for `rows` rows of at most `length` tokens."""
    K, H = config.num_kv_heads, config.head_dim
    return [
        (jnp.zeros((rows, K, H, length), dtype), jnp.zeros((rows, K, length, H), dtype))
        for _ in range(config.num_layers)
    ]


def grow_cache(cache: Cache, length: int) -> Cache:
    """The same cache with room for `length` tokens a row."""
    more = length - cache[0][1].shape[2]
    last, third = ((0, 0), (0, 0), (0, 0), (0, more)), ((0, 0), (0, 0), (0, more), (0, 0))
    return [(jnp.pad(keys, last), jnp.pad(values, third)) for keys, values in cache]


def copy_rows(cache: Cache, source: Cache, rows: Int[Array, " P"], to: Int[Array, " P"]) -> Cache:
    """Write each of `rows` of `source`, a shorter cache, over the start of the row `to` of `cache`.

    Where `to` is no row of `cache`, nothing is written.
    """
    T = source[0][1].shape[2]
    return [
        (
            keys.at[to, :, :, :T].set(new_keys[rows], mode="drop"),
            values.at[to, :, :T].set(new_values[rows], mode="drop"),
        )
        for (keys, values), (new_keys, new_values) in zip(cache, source, strict=True)
    ]
