"""The decoder, a flax nnx module, and functions that run it on a pure dict of its arrays.

What tells one family from another are switches of `ModelConfig` (`common.model.families`). `params["layers"]` is a
list with a dict of arrays for each layer. Training, scoring, prefill and decoding all unroll it: that runs faster
than a scan over stacked weights, and one layer may differ from another.

    params = init(config, jax.random.key(0))
    h = hidden(params, config, tokens)                       # (B, T, D)
    logits = unembed(params, config, h)                      # (B, T, V)

Outside this file parameters are always the dict: jax.jit takes it at a fraction of a module's cost, its paths map
onto names in files and onto places on devices, and adapters are split off and joined by key. Inside a compiled
function `module` makes it a `Decoder` again, which costs nothing at run time.

Dimensions, here and everywhere in common/:
    B batch rows · T query tokens · S key positions (cache length) · D hidden · N query heads · K key/value heads
    H head size · F intermediate · V vocabulary · L layers · R rank of an adapter · E experts · P positions
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from common.config import ModelConfig, Remat, Rope
from common.model.attention import attention_mask, tree_mask
from common.model.block import Block, KeysValues, matrix, norm_params, normed
from common.model.packing import Packing, Tree, spread
from common.model.pages import PAGE, Pages
from common.model.remat import recomputing
from common.model.rope import Turns, turns_of
from common.model.turned import product

Params = dict[str, Any]
PerToken = Int[Array | np.ndarray, "B T"]
"""Token ids or positions, also numpy's."""
LayerCache = tuple[jax.Array, jax.Array]
Cache = list[LayerCache]
"""Keys (B, K, H, S) and values (B, K, S, H) of each layer. With the axes in this order neither product of
decoding has to transpose the cache, which halves the time of a step. In pages (`common.model.pages`) B is their
number and S that of a page's tokens."""


FEW_ROWS = 32
"""Up to which turned weights are put in front for logits, too: to turn back those of more rows takes too long."""


class Decoder(nnx.Module):
    """Token embedding, blocks, final norm, and a head unless it is tied to the embedding."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        self.config = config
        embed_key, head_key, layer_key = jax.random.split(key, 3)
        self.embed = matrix(embed_key, config.vocab_size, config.hidden_size)
        if config.learned_positions:
            self.positions = matrix(jax.random.fold_in(key, 0), config.max_positions, config.hidden_size)
        for part, value in norm_params(config, "norm", config.hidden_size).items():
            setattr(self, part, value)
        keys = jax.random.split(layer_key, config.num_layers)
        self.layers = nnx.List([Block(config, i, keys[i]) for i in range(config.num_layers)])
        if not config.tied_head:
            self.head = matrix(head_key, config.hidden_size, config.vocab_size)
        if "head" in config.biases:
            self.head_bias = nnx.Param(jnp.zeros(config.vocab_size))

    def hidden(
        self,
        tokens: PerToken,
        tree: Tree | Packing | None = None,
        after: Cache | None = None,
        *,
        dtype: Any = jnp.float32,
        remat: Remat = "none",
    ) -> Float[Array, "B T D"]:
        """See the function `hidden`."""
        return self._whole(tokens, dtype, tree, after, remat=remat)[0]

    def hidden_at(
        self,
        tokens: PerToken,
        at: Int[Array | np.ndarray, " A"],
        tree: Tree | Packing | None = None,
        after: Cache | None = None,
        *,
        dtype: Any = jnp.float32,
        remat: Remat = "none",
    ) -> Float[Array, "A D"]:
        """See the function `hidden_at`."""
        return self._whole(tokens, dtype, tree, after, at, remat=remat)[0].reshape(len(at), -1)

    def prefill(
        self,
        tokens: PerToken,
        packing: Packing | None = None,
        after: Cache | None = None,
        *,
        dtype: Any = jnp.float32,
        remat: Remat = "none",
    ) -> Cache:
        """See the function `prefill`."""
        _, made = self._whole(tokens, dtype, packing, after, remat=remat)
        if packing is None:
            return [(k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)) for k, v in made]
        rows = [tuple(spread(x.reshape(-1, *x.shape[2:]), packing) for x in both) for both in made]
        cache = [(k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)) for k, v in rows]
        return cache if after is None else [_joined(*both) for both in zip(after, cache, strict=True)]

    def _whole(
        self,
        tokens: PerToken,
        dtype: Any,
        tree: Tree | Packing | None,
        after: Cache | None,
        at: Int[Array | np.ndarray, " A"] | None = None,
        *,
        remat: Remat,
    ) -> tuple[Float[Array, "_ _ D"], list[KeysValues]]:
        """Final hidden states (B, T, D), or of the places `at` alone, and keys and values of every layer, which
        the compiler leaves out if unused."""
        B, T = tokens.shape
        P = 0 if after is None else after[0][1].shape[2]
        if isinstance(tree, Packing):
            positions = P + tree.positions(B * T).reshape(B, T)
        else:
            positions = (
                jnp.broadcast_to(P + jnp.arange(T), (B, T)) if tree is None else jnp.asarray(tree.positions)
            )
        turns = self._turns(positions)
        windows = {block.window for block in self.layers}
        masks: dict[int, Any]
        if isinstance(tree, Packing):
            masks = dict.fromkeys(windows, tree)
        elif tree is None:
            # A window as long as the sequence hides nothing; without a mask attention takes its fastest form.
            hiding = {w for w in windows if 0 < w < P + T}
            masks = {w: attention_mask(positions[:1], P + T, w) if w in hiding else None for w in windows}
        else:
            masks = {w: tree_mask(positions, tree.branches, P, w) for w in windows}
        run = recomputing(remat)
        x, made = self._embedded(tokens, positions, dtype), []
        begun = [None] * len(self.layers) if after is None else after
        wanted = [None] * (len(self.layers) - 1) + [at]
        for block, before, places in zip(self.layers, begun, wanted, strict=True):
            x, keys_and_values = run(block, x, turns[block.rope], masks[block.window], before, places)
            made.append(keys_and_values)
        return normed(self, "norm", x, self.config), made

    def decode(
        self,
        cache: Cache,
        tokens: PerToken,
        positions: PerToken,
        pages: Pages | None = None,
        *,
        dtype: Any = jnp.float32,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """See the function `decode`."""
        positions = jnp.asarray(positions)
        turns = self._turns(positions)
        windows = {block.window for block in self.layers}
        masks: dict[int, Any]
        if pages is None:
            masks = {w: attention_mask(positions, cache[0][1].shape[2], w) for w in windows}
        else:
            masks = {w: pages.look(positions[:, 0], w) for w in windows}
        x, extended = self._embedded(tokens, positions, dtype), []
        for block, layer_cache in zip(self.layers, cache, strict=True):
            x, layer_cache = block.decode(x, turns[block.rope], layer_cache, positions, masks[block.window])
            extended.append(layer_cache)
        return normed(self, "norm", x, self.config), extended

    def _turns(self, positions: PerToken) -> dict[Rope | None, Turns | None]:
        """By the layers' kinds of rotary embedding, how far each position is turned."""
        ropes = {block.rope for block in self.layers}
        return {rope: rope and turns_of(positions, rope, self.config.head_dim) for rope in ropes}

    def _embedded(self, tokens: PerToken, positions: PerToken, dtype: Any) -> Float[Array, "B T D"]:
        config = self.config
        x = self.embed[...][tokens].astype(dtype)
        if config.embedding_scale != 1:
            x = x * jnp.asarray(config.embedding_scale, dtype)
        if config.learned_positions:  # padding may lie beyond the last one
            x = x + self.positions[...][jnp.minimum(positions, config.max_positions - 1)].astype(dtype)
        return x


def _joined(before: LayerCache, own: LayerCache) -> LayerCache:
    """The cache of rows behind that of what all of them begin with, which has one row."""
    keys, values = (jnp.broadcast_to(x, (len(own[0]), *x.shape[1:])) for x in before)
    return jnp.concatenate([keys, own[0]], axis=3), jnp.concatenate([values, own[1]], axis=2)


# --- The edges: from the dict of arrays to the module and back ------------------------------------------------


@functools.lru_cache
def _graphdef(config: ModelConfig) -> nnx.GraphDef:
    """All of a decoder but its arrays. `graph=False`: the module is a plain tree, whatever a user's own flax code
    has set for theirs."""
    return nnx.split(jax.eval_shape(functools.partial(Decoder, config), jax.random.key(0)), graph=False)[0]


def module(params: Params, config: ModelConfig, *, turned: bool = False) -> Decoder:
    """The decoder with these parameters, as `init` returns them or as `common.model.turned` makes them."""
    # To flax the state of a list of modules is a dict by number.
    made = nnx.merge(_graphdef(config), params | {"layers": dict(enumerate(params["layers"]))})
    for block in made.layers:
        block.turned = turned
    return made


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
    tree: Tree | Packing | None = None,
    after: Cache | None = None,
    *,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
) -> Float[Array, "B T D"]:
    """Final hidden states of right-padded `tokens`. Under the causal mask padding never reaches a real token,
    so no mask is taken.

    tree: how the tokens of a row hang together where they are not one text. To packed texts rows mean nothing:
        those of tokens (B, T) follow each other.
    after: a cache of one row and length P, which holds what all rows go on from.
    remat: what of each layer is computed again in the backward pass, to save memory.
    """
    return module(params, config).hidden(tokens, tree, after, dtype=dtype, remat=remat)


def hidden_at(
    params: Params,
    config: ModelConfig,
    tokens: PerToken,
    at: Int[Array | np.ndarray, " A"],
    tree: Tree | Packing | None = None,
    after: Cache | None = None,
    *,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
) -> Float[Array, "A D"]:
    """`hidden` at these places of the flattened (B, T), which may come twice, without what the last layer would
    compute behind its attention for all others. Its plain form is `hidden(...).reshape(-1, D)[at]`."""
    return module(params, config).hidden_at(tokens, at, tree, after, dtype=dtype, remat=remat)


def prefill(
    params: Params,
    config: ModelConfig,
    tokens: PerToken,
    packing: Packing | None = None,
    *,
    dtype: Any = jnp.float32,
    after: Cache | None = None,
    remat: Remat = "none",
) -> Cache:
    """Cache of length T that holds right-padded prompts, or packed ones, whose `packing` says which rows and which
    length it has. `after`: a cache of one row and length P, which holds what all of them begin with; theirs is
    then of length P + T. `remat`: see `hidden`."""
    return module(params, config).prefill(tokens, packing, after, dtype=dtype, remat=remat)


def decode(
    params: Params,
    config: ModelConfig,
    cache: Cache,
    tokens: PerToken,
    positions: PerToken,
    pages: Pages | None = None,
    *,
    dtype: Any = jnp.float32,
    turned: bool = False,
) -> tuple[Float[Array, "B T D"], Cache]:
    """Hidden states of new `tokens` at per-row `positions`, reading and extending the cache.

    Rows are independent: each writes at its own positions. With `pages` the cache is in pages, which are these
    rows', and each row reads one token. `turned`: so are the parameters (`common.model.turned`).
    """
    return module(params, config, turned=turned).decode(cache, tokens, positions, pages, dtype=dtype)


def head_of(params: Params, config: ModelConfig) -> dict[str, jax.Array]:
    """The parameters that logits are computed with, which may be the embedding."""
    names = ["embed" if config.tied_head else "head"] + ["head_bias"] * ("head" in config.biases)
    return {name: params[name] for name in names}


def unembed(
    params: Params, config: ModelConfig, h: Float[Array, "*n D"], *, turned: bool = False
) -> Float[Array, "*n V"]:
    """Logits in float32. Of `params` those of `head_of` are enough. `turned`: see `decode`."""
    name = "embed" if config.tied_head else "head"
    w = params[name].astype(h.dtype)
    if turned and h.size <= FEW_ROWS * h.shape[-1]:
        logits = product(h, w).astype(jnp.float32)
    elif turned or config.tied_head:
        logits = jnp.einsum("...d,vd->...v", h, w).astype(jnp.float32)
    else:
        logits = jnp.einsum("...d,dv->...v", h, w).astype(jnp.float32)
    if "head" in config.biases:
        logits = logits + params["head_bias"].astype(jnp.float32)
    if config.logit_scale != 1:
        logits = logits * config.logit_scale
    return logits if config.logit_cap is None else config.logit_cap * jnp.tanh(logits / config.logit_cap)


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


def copy_to_pages(cache: Cache, source: Cache, rows: Int[Array, " P"], to: Int[Array, "P n"]) -> Cache:
    """Write each of `rows` of `source`, a cache of n * `PAGE` tokens, into the pages `to` of `cache`.

    Where `to` is no page of `cache`, nothing is written.
    """
    (count, n), flat, copied = to.shape, to.reshape(-1), []
    for (keys, values), (new_keys, new_values) in zip(cache, source, strict=True):
        K, H = keys.shape[1:3]
        new_keys = new_keys[rows].reshape(count, K, H, n, PAGE).transpose(0, 3, 1, 2, 4)
        new_values = new_values[rows].reshape(count, K, n, PAGE, H).transpose(0, 2, 1, 3, 4)
        copied.append(
            (
                keys.at[flat].set(new_keys.reshape(-1, K, H, PAGE), mode="drop"),
                values.at[flat].set(new_values.reshape(-1, K, PAGE, H), mode="drop"),
            )
        )
    return copied


def copy_rows(cache: Cache, source: Cache, rows: Int[Array, " P"], to: Int[Array, " P"]) -> Cache:
    """Write each of `rows` of `source`, a cache of shorter rows, over the start of the row `to` of `cache`.

    Where `to` is no row of `cache`, nothing is written.
    """
    T = min(source[0][1].shape[2], cache[0][1].shape[2])  # what a longer source has beyond is padding
    return [
        (
            keys.at[to, :, :, :T].set(new_keys[rows, :, :, :T], mode="drop"),
            values.at[to, :, :T].set(new_values[rows, :, :T], mode="drop"),
        )
        for (keys, values), (new_keys, new_values) in zip(cache, source, strict=True)
    ]
