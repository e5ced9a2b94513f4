"""The decoder against transformers' logits, and its fast paths against the full forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.config import Rope, RopeScaling
from common.model import decoder, hf
from common.model.rope import frequencies

FIXTURES = ("llama2", "llama3", "llama_linear", "llama_sharded", "mistral", "qwen2", "qwen2_windows", "qwen3")
TOLERANCE = 1e-4


@functools.cache
def _load(folder):
    config = hf.load_config(folder)
    golden = np.load(folder / "golden.npz")
    return config, hf.load_params(folder, config), golden["tokens"], golden["logits"]


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, config, tokens):
    return decoder.unembed(params, config, decoder.hidden(params, config, tokens))


# Each family compiles its own; cached decoding runs as unoptimised code, the full forward pass as in earnest.
_quick = {"xla_backend_optimization_level": 0}
_prefill = jax.jit(decoder.prefill, static_argnums=1, compiler_options=_quick)


@functools.partial(jax.jit, static_argnums=1, compiler_options=_quick)
def _step(params, config, cache, tokens, positions):
    h, cache = decoder.decode(params, config, cache, tokens, positions)
    return decoder.unembed(params, config, h), cache


@pytest.mark.parametrize("name", FIXTURES)
def test_full_forward_gives_the_logits_of_transformers(fixtures, name):
    config, params, tokens, golden = _load(fixtures / name)
    np.testing.assert_allclose(_logits(params, config, tokens), golden, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", FIXTURES)
def test_decoding_token_by_token_gives_the_logits_of_transformers(fixtures, name):
    config, params, tokens, golden = _load(fixtures / name)
    rows, length = tokens.shape
    cache = decoder.empty_cache(config, rows, length)
    for t in range(length):
        logits, cache = _step(params, config, cache, tokens[:, t : t + 1], jnp.full((rows, 1), t))
        np.testing.assert_allclose(logits[:, 0], golden[:, t], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama3", {"rope": Rope()}),
        ("llama_linear", {"rope": Rope()}),
        ("mistral", {"windows": None}),
        ("mistral", {"windows": (8, 8)}),
        ("qwen2_windows", {"windows": None}),
        ("qwen2_windows", {"windows": (5, 5, 5)}),
    ],
)
def test_golden_logits_depend_on_the_setting(fixtures, quick_jit, name, change):
    """Otherwise agreement with them would not show that the setting is honoured."""
    config, params, tokens, golden = _load(fixtures / name)
    other = dataclasses.replace(config, **change)
    logits = quick_jit(lambda p: decoder.unembed(p, other, decoder.hidden(p, other, tokens)))(params)
    assert np.abs(logits - golden).max() > 0.05


@pytest.mark.parametrize("name", ["llama3", "mistral"])
def test_decoding_continues_a_prefilled_cache_at_each_rows_own_position(fixtures, name):
    config, params, tokens, golden = _load(fixtures / name)
    lengths, size = np.array([9, 14]), tokens.shape[1]
    prompts = np.where(np.arange(16) < lengths[:, None], tokens[:, :16], 0)  # right-padded
    cache = [
        (keys.at[..., :16].set(k), values.at[:, :, :16].set(v))
        for (keys, values), (k, v) in zip(
            decoder.empty_cache(config, 2, size), _prefill(params, config, prompts), strict=True
        )
    ]
    rows = np.arange(2)
    for step in range(6):
        positions = lengths + step
        logits, cache = _step(params, config, cache, tokens[rows, positions][:, None], positions[:, None])
        np.testing.assert_allclose(logits[:, 0], golden[rows, positions], atol=TOLERANCE, rtol=0)


def test_decoding_several_tokens_at_once_equals_the_full_forward(fixtures):
    config, params, tokens, golden = _load(fixtures / "qwen2_windows")
    cache = decoder.empty_cache(config, 2, 24)
    positions = jnp.broadcast_to(jnp.arange(24), (2, 24))
    for piece in (slice(0, 12), slice(12, 24)):
        logits, cache = _step(params, config, cache, tokens[:, piece], positions[:, piece])
        np.testing.assert_allclose(logits, golden[:, piece], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["llama2", "qwen2_windows"])
def test_no_gradient_flows_from_later_tokens_nor_from_beyond_the_window(fixtures, quick_jit, name):
    config, params, tokens, _ = _load(fixtures / name)
    if config.windows:  # every layer slides, so that the reach is known
        config = dataclasses.replace(config, windows=(4,) * config.num_layers)
    T, at = 16, 14
    reach = config.num_layers * 3 if config.windows else T
    inputs = jnp.arange(T)[None]  # one embedding row for each position, so that gradients stay apart

    @quick_jit
    @jax.grad
    def influence_of(table):
        return decoder.hidden(params | {"embed": table}, config, inputs)[0, at].sum()

    influence = np.abs(influence_of(params["embed"][tokens[0, :T]])).max(axis=-1)
    seen = (np.arange(T) <= at) & (np.arange(T) >= at - reach)
    assert (influence[seen] > 0).all()
    assert (influence[~seen] == 0).all()


def test_padding_on_the_right_changes_nothing(fixtures):
    config, params, tokens, _ = _load(fixtures / "qwen3")
    padded = np.where(np.arange(24) < 11, tokens, 0)
    full, cut = _logits(params, config, tokens), _logits(params, config, padded)
    np.testing.assert_array_equal(full[:, :11], cut[:, :11])


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialising_changes_no_gradient(fixtures, quick_jit, remat):
    config, params, tokens, _ = _load(fixtures / "llama2")

    def gradient(remat):
        loss = lambda p: jnp.square(decoder.hidden(p, config, tokens, remat=remat)).mean()
        return quick_jit(jax.grad(loss))(params)

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-4), gradient("none"), gradient(remat)
    )


def test_bfloat16_stays_near_float32(fixtures, quick_jit):
    config, params, tokens, golden = _load(fixtures / "llama2")
    h = quick_jit(lambda p: decoder.hidden(p, config, tokens, dtype=jnp.bfloat16))(params)
    assert h.dtype == jnp.bfloat16
    assert np.abs(decoder.unembed(params, config, h) - golden).mean() < 0.03


def test_llama3_frequencies_have_a_kept_a_smooth_and_a_divided_band():
    ratio = frequencies(Rope(), 16) / frequencies(Rope(scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32)), 16)
    assert ratio[0] == 1
    assert 1 < ratio[1] < 8
    np.testing.assert_allclose(ratio[2:], 8, rtol=1e-6)


def test_init_has_the_abstract_shapes_and_counts_its_parameters(fixtures, quick_jit):
    config = hf.load_config(fixtures / "qwen2")
    params = quick_jit(decoder.init, static_argnums=0)(config, jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), decoder.abstract_params(config))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == shapes
    assert decoder.count_params(params) == 18688  # what PyTorch counts
