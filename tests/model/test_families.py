"""Every model family against transformers: tiny checkpoints, logits and adapters that PyTorch and PEFT made
(`tests/make_family_fixtures.py`)."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.config import Experts, LoraConfig, ModelConfig, SampleConfig, TrainConfig
from common.errors import UserError
from common.model import checkpoint, decoder, hf, lora, moe, sharding
from common.model.attention import attention, attention_mask, cached_attention, reference_attention
from common.model.families import FAMILIES, read_config
from common.model.names import layer_rules
from common.model.packing import Packing
from common.model.turned import turned
from common.sample.prompt import Prompt
from common.sample.reference import sample_reference
from common.sample.sampler import Sampler
from common.train.data import Encoded
from common.train.loop import fine_tune

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures" / "families"
NAMES = sorted(folder.name for folder in FOLDER.iterdir())
ADAPTED = sorted(folder.parent.name for folder in FOLDER.glob("*/adapter"))
FUSED = ("phi3", "gpt2", "gpt_neox", "falcon")
TOLERANCE = 1e-4


@functools.cache
def _load(name):
    config = hf.load_config(FOLDER / name)
    golden = np.load(FOLDER / name / "golden.npz")
    return config, hf.load_params(FOLDER / name, config), golden["tokens"], golden["logits"]


# Each checkpoint compiles its own, so nothing is optimised.
_quick = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnums=(1, 3), compiler_options=_quick)
def _logits(params, config, tokens, dtype=jnp.float32):
    return decoder.unembed(params, config, decoder.hidden(params, config, tokens, dtype=dtype))


@functools.partial(jax.jit, static_argnums=1, compiler_options=_quick)
def _continued(params, config, tokens):
    """Logits of all but the first 8 tokens, from a cache that holds those."""
    count, length = tokens.shape
    cache = decoder.grow_cache(decoder.prefill(params, config, tokens[:, :8]), length)
    positions = jnp.broadcast_to(jnp.arange(8, length), (count, length - 8))
    return decoder.unembed(params, config, decoder.decode(params, config, cache, tokens[:, 8:], positions)[0])


def test_every_family_has_a_fixture(fixtures):
    older = {json.loads(file.read_text())["model_type"] for file in fixtures.glob("*/config.json")}
    assert (
        older | {name.rstrip("_0123456789") if name not in FAMILIES else name for name in NAMES} >= FAMILIES.keys()
    )


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers_whole_and_from_a_cache(name):
    config, params, tokens, golden = _load(name)
    np.testing.assert_allclose(_logits(params, config, tokens), golden, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(_continued(params, config, tokens), golden[:, 8:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("few", [0, 32])
@pytest.mark.parametrize("name", ["gpt2", "cohere", "mixtral", "phi", "gpt_oss"])
def test_turned_weights_decode_to_the_same_logits_also_beside_adapters(monkeypatch, name, few):
    """With biases and without, with a head of its own and without, with a gate, without, and with experts; also
    where logits are of too many rows for a matrix in front."""
    monkeypatch.setattr(decoder, "FEW_ROWS", few)
    plain, params, tokens, _ = _load(name)
    params, config = lora.load_adapter(FOLDER / name / "adapter", params, plain)
    golden = np.load(FOLDER / name / "adapter" / "golden.npz")["logits"]

    @functools.partial(jax.jit, compiler_options=_quick)
    def one(params, weights, tokens):
        cache = decoder.grow_cache(decoder.prefill(params, config, tokens[:, :8]), 9)
        positions = jnp.full((len(tokens), 1), 8)
        h, _ = decoder.decode(weights, config, cache, tokens[:, 8:9], positions, turned=True)
        return decoder.unembed(weights, config, h, turned=True)

    found = one(params, turned(params), tokens)
    np.testing.assert_allclose(found[:, 0], golden[:, 8], atol=2 * TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "phi", "cohere", "gpt_oss"])
def test_bfloat16_stays_near_float32(name):
    """One of each kind of norm."""
    config, params, tokens, golden = _load(name)
    error = np.abs(_logits(params, config, tokens, jnp.bfloat16) - golden).mean()
    assert error < 0.05 * max(1.0, golden.std())


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_checkpoint_has_the_same_tensors_bit_by_bit(tmp_path, name):
    config, params, _, _ = _load(name)
    folder = hf.save(tmp_path / "saved", params, FOLDER / name)
    ours, theirs = (load_file(at / "model.safetensors") for at in (folder, FOLDER / name))
    assert ours.keys() == theirs.keys()
    for tensor, array in theirs.items():
        np.testing.assert_array_equal(ours[tensor], array)
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(folder, config), params)


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_of_peft_give_its_logits_and_go_back_as_they_came(tmp_path, name):
    config, plain, tokens, golden = _load(name)
    folder = FOLDER / name / "adapter"
    params, adapted = lora.load_adapter(folder, plain, config)
    changed = np.load(folder / "golden.npz")["logits"]
    np.testing.assert_allclose(_logits(params, adapted, tokens), changed, atol=2 * TOLERANCE, rtol=0)
    np.testing.assert_allclose(_logits(lora.merge(params, adapted), config, tokens), changed, atol=2 * TOLERANCE)
    assert np.abs(changed - golden).max() > 0.02
    lora.save_adapter(tmp_path, params, adapted, name)
    theirs, ours = (load_file(at / lora.WEIGHTS) for at in (folder, tmp_path))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key], tensor)
    theirs, ours = (json.loads((at / lora.CONFIG).read_text()) for at in (folder, tmp_path))
    assert ours["fan_in_fan_out"] == theirs["fan_in_fan_out"]


@pytest.mark.parametrize(("name", "said"), [("gpt2", False), ("gpt2", True), ("starcoder2", True)])
def test_a_merged_adapter_lies_as_its_matrix_does_whatever_its_file_says(tmp_path, monkeypatch, name, said):
    """As in PEFT, which sets `fan_in_fan_out` right by the kind of the layer: a square matrix would not tell."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shutil.copytree(FOLDER / name / "adapter", tmp_path / "adapter")
    file = folder / lora.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fan_in_fan_out": said}))
    config, _, tokens, _ = _load(name)
    params = hf.load_params(checkpoint.resolve(f"{FOLDER / name}+{folder}"), config)
    golden = np.load(FOLDER / name / "adapter" / "golden.npz")["logits"]
    np.testing.assert_allclose(_logits(params, config, tokens), golden, atol=2 * TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", FUSED)
def test_adapters_of_matrices_that_a_file_fuses_become_one_block_matrix(tmp_path, name):
    """q, k and v are one module to PEFT; trained here, each has an A of its own."""
    config, plain, _, _ = _load(name)
    adapted = dataclasses.replace(config, lora=LoraConfig(2, 3.0))
    rng = np.random.default_rng(0)
    shapes = lora.split(decoder.abstract_params(adapted))[1]
    params = lora.join(plain, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes))
    lora.save_adapter(tmp_path, params, adapted, name)
    settings = json.loads((tmp_path / lora.CONFIG).read_text())
    fused = {"phi3": "qkv_proj", "gpt2": "c_attn"}.get(name, "query_key_value")
    assert settings["rank_pattern"][fused] == 3 * settings["r"] == 6
    assert settings["alpha_pattern"][fused] == 3 * settings["lora_alpha"] == 9
    # The module's weights change by what ours change by, wherever they lie in it.
    rule = next(rule for rule in layer_rules(config, 0) if rule.key == "k")
    a, b = (load_file(tmp_path / lora.WEIGHTS)[f"base_model.model.{_module(rule)}.lora_{x}.weight"] for x in "AB")
    merged = lora.merge(params, adapted)
    saved = hf.save(tmp_path / "merged", merged, FOLDER / name)
    change = (
        load_file(saved / "model.safetensors")[rule.name]
        - load_file(FOLDER / name / "model.safetensors")[rule.name]
    )
    np.testing.assert_allclose(change.T if name == "gpt2" else change, 1.5 * b @ a, atol=1e-5)
    back, again = lora.load_adapter(tmp_path, plain, config)
    assert (again.lora.rank, again.lora.alpha) == (2, 3.0)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def _module(rule):
    return rule.name.removesuffix(".weight")


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_gradients_are_those_of_pytorch(name):
    config, params, tokens, _ = _load(name)
    golden = hf.load_params(FOLDER / name / "gradients", config)

    @jax.jit
    @jax.grad
    def gradient(params):
        logps = jax.nn.log_softmax(decoder.unembed(params, config, decoder.hidden(params, config, tokens)))
        return -jnp.take_along_axis(logps[:, :-1], tokens[:, 1:, None], axis=-1).mean()

    compare = lambda ours, theirs: np.testing.assert_allclose(
        ours, theirs, atol=2e-5 + 1e-4 * np.abs(theirs).max()
    )
    jax.tree.map(compare, gradient(params), golden)


MIXTURE = ModelConfig(
    "mixtral", 16, 12, 0, 1, 1, 1, 4, 8, experts=Experts(5, 2, 20, "chosen", clamp=0.8, alpha=1.7, biases=True)
)


@pytest.mark.parametrize("weights", ["all", "renormalised", "chosen"])
@pytest.mark.parametrize("plain", [True, False])
def test_sorted_experts_agree_with_every_expert_computing_every_token(weights, plain):
    experts = dataclasses.replace(MIXTURE.experts, weights=weights)
    if plain:
        experts = dataclasses.replace(experts, clamp=None, biases=False)
    config = dataclasses.replace(MIXTURE, experts=experts)
    rng = np.random.default_rng(1)
    arrays = {name: 0.3 * rng.normal(size=shape).astype(np.float32) for name, shape in moe.shapes(config).items()}
    h = rng.normal(size=(23, 12)).astype(np.float32)

    def loss(form):
        return jax.jit(jax.value_and_grad(lambda h, arrays: jnp.sin(form(h, arrays, config)).sum(), (0, 1)))

    found, wanted = (loss(form)(h, arrays) for form in (moe.mixture_sorted, moe.mixture_reference))
    compare = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
    jax.tree.map(compare, found, wanted)


def test_capped_scores_and_sinks_are_those_of_the_reference():
    rng = np.random.default_rng(2)
    B, T, N, K, H = 2, 7, 4, 2, 8
    q, k, v = (jnp.asarray(rng.normal(size=(B, T, n, H)), jnp.float32) for n in (N, K, K))
    extras = {"scale": 0.7, "cap": 1.3, "sinks": jnp.asarray(rng.normal(size=N), jnp.float32)}
    mask = attention_mask(jnp.arange(T)[None], T, 3)
    wanted = reference_attention(q, k, v, mask, **extras)
    np.testing.assert_allclose(attention(q, k, v, mask, **extras), wanted, atol=1e-6)
    keys, values, masks = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), jnp.broadcast_to(mask, (B, 1, T, T))
    np.testing.assert_allclose(cached_attention(q, keys, values, masks, **extras), wanted, atol=1e-6)
    for name in extras:
        other = reference_attention(q, k, v, mask, **{key: x for key, x in extras.items() if key != name})
        assert np.abs(other - wanted).max() > 1e-2


def _edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "falcon", "olmo2"])
def test_names_without_the_models_prefix_and_older_buffers_are_read(tmp_path, name):
    """As transformers saves the model without its head, and as the first files of GPT-2 and Pythia are."""
    config, params, _, _ = _load(name)
    folder = shutil.copytree(FOLDER / name, tmp_path / name)
    buffers = {"0.attn.bias": np.ones(2, np.float32), "0.attention.masked_bias": np.ones(2, np.float32)}
    prefix = layer_rules(config, 0)[0].name.split(".")[0] + "."
    _edit(folder, lambda tensors: {key.removeprefix(prefix): x for key, x in tensors.items()} | buffers)
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(folder, config), params)


def test_a_tied_embedding_stored_as_the_head_alone_is_read(tmp_path):
    config, params, _, _ = _load("ernie4_5")
    folder = shutil.copytree(FOLDER / "ernie4_5", tmp_path / "copy")
    rename = {"model.embed_tokens.weight": "lm_head.weight"}
    _edit(folder, lambda tensors: {rename.get(key, key): x for key, x in tensors.items()})
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(folder, config), params)


@pytest.mark.parametrize("name", ["gpt2", "gpt_oss", "mixtral", "stablelm_1", "phi3"])
def test_a_part_of_a_fused_tensor_is_missing_with_the_whole(tmp_path, name):
    config, _, _, _ = _load(name)
    for tensor in load_file(FOLDER / name / "model.safetensors"):
        if "1." in tensor and not tensor.endswith("norm.weight") and ("attn" in tensor or "experts" in tensor):
            folder = shutil.copytree(FOLDER / name, tmp_path / "copy", dirs_exist_ok=True)
            _edit(folder, lambda tensors, tensor=tensor: {key: x for key, x in tensors.items() if key != tensor})
            with pytest.raises(UserError, match=f"lacks the tensor {tensor}"):
                hf.load_params(folder, config)


_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "gemma",
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention in config.json of a gemma model",
        ),
        ("falcon", {"alibi": True}, "alibi in config.json of a falcon model"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn 2"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"activation_function": "quick_gelu"}, r"'quick_gelu' in config.json \(activation_function\)"),
        ("cohere2", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        (
            "olmo",
            {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}},
            "rope_type 'proportional'",
        ),
        (
            "phi",
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.4}},
            "partial_rotary_factor 0.4",
        ),
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok 9 of 4"),
        ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}, r"quantized .*\(mxfp4\)"),
        ("stablelm", {"head_dim": 4}, "head_dim 4"),
        ("cohere", {"hidden_size": "32"}, "hidden_size '32' in config.json is not a whole number above zero"),
        ("gemma", {"head_dim": 0}, "head_dim 0 in config.json is not a whole number"),
        ("olmo", {"num_hidden_layers": 2.0}, "num_hidden_layers 2.0 "),
        ("mixtral", {"num_key_value_heads": -1}, "num_key_value_heads -1 "),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step 0 "),
        ("mixtral", {"num_local_experts": 4.0}, "num_experts_per_tok 2 of 4.0 experts"),
        ("gpt2", {"n_head": True}, "num_attention_heads True "),
        ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar -1 .* is not a positive number"),
        ("granite", {"logits_scaling": 0}, "logits_scaling 0 .* is not a positive number"),
        ("arcee", {"rope_parameters": _YARN | {"attention_factor": "x"}}, "attention_factor 'x' "),
        ("arcee", {"rope_parameters": _YARN | {"mscale": "x", "mscale_all_dim": 1.0}}, "mscale 'x' "),
        ("olmo", {"rope_parameters": "x"}, "a value of which no model can be made"),
        ("starcoder2", {"sliding_window": [1]}, "a value of which no model can be made"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers or layer_types in config.json name 1 of "),
        ("arcee", {"rope_parameters": _YARN | {"rope_theta": 1}}, "rope_theta 1 beside rope_type 'yarn'"),
        ("olmo", {"hidden_act": []}, "a value of which no model can be made"),
    ],
)
def test_what_a_family_does_not_do_here_is_refused_by_its_field(name, change, message):
    raw = json.loads((FOLDER / name / "config.json").read_text()) | change
    with pytest.raises(UserError, match=message) as caught:
        read_config(raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["llama4", "llama4_text", "qwen3_5", "qwen3_5_text", "gemma3", "gpt_bigcode", "mamba"]
)
def test_other_architectures_are_refused_by_name(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    with pytest.raises(UserError, match=f"unsupported architecture '{name}': supported are llama, mistral"):
        hf.load_config(tmp_path)


def test_frequencies_that_change_beyond_the_first_context_end_the_model_there():
    """transformers then turns the positions in its cache by other angles than those it computes next."""
    assert hf.load_config(FOLDER / "phi3_1").max_positions == 64
    assert json.loads((FOLDER / "phi3_1" / "config.json").read_text())["max_position_embeddings"] == 128


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices (JAX_NUM_CPU_DEVICES=8)")
@pytest.mark.parametrize("name", ["gpt_oss", "gpt2", "falcon_1", "mixtral", "phi"])
def test_checkpoints_are_read_onto_a_mesh_and_compute_the_same(name):
    config, whole, tokens, golden = _load(name)
    params = hf.load_params(FOLDER / name, config, mesh=sharding.make_mesh(1, 4, 2))
    jax.tree.map(np.testing.assert_array_equal, whole, params)
    batch = sharding.place_data(np.tile(tokens, (2, 1)), params, sharding.ROWS)
    np.testing.assert_allclose(_logits(params, config, batch)[:2], golden, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "gpt_oss"])
def test_sampling_agrees_with_a_full_forward_pass_a_token(name):
    """Padded prompts in one cache, slots at positions of their own: with learned positions, windows and sinks."""
    config, params, tokens, _ = _load(name)
    prompts = [
        Prompt(row[:count].tolist(), SampleConfig(max_new_tokens=9))
        for row, count in zip(tokens, (5, 11), strict=True)
    ]
    found = Sampler(params, config, eos_ids=[2], slots=2, block=4).sample(prompts)
    for prompt, (completion,) in zip(prompts, found, strict=True):
        (wanted,) = sample_reference(params, config, prompt, [2])
        assert completion.tokens == wanted.tokens
        np.testing.assert_allclose(completion.logps, wanted.logps, atol=1e-4)


@pytest.mark.parametrize(("shared", "same"), [(0, 0), (4, 0), (0, 5), (4, 3)])
@pytest.mark.parametrize("name", ["llama_1", "gpt2", "gpt_oss", "gemma2", "mixtral", "cohere2", "falcon_1"])
def test_packed_texts_compute_what_they_do_alone(name, shared, same):
    """Also with learned positions, windows, sinks, caps, experts and key heads for several query heads; `shared`
    tokens are what all texts go on from, and `same` ones behind them are computed for the first text alone."""
    config, params, tokens, _ = _load(name)
    counts, (rows, width) = (tokens.shape[1] - 3, tokens.shape[1]), (2, tokens.shape[1] - shared)
    tokens = tokens[:rows].copy()
    tokens[:, : shared + same] = tokens[0, : shared + same]
    places = np.arange(rows * width).reshape(rows, width)
    firsts = (0, same)
    own = [places[i, firsts[i] : counts[i] - shared] for i in range(rows)]
    real = np.concatenate([*own, places[0, -1:]]).astype(np.int32)  # padding, where their number is rounded up
    again = np.full(len(real), rows * width, np.int32)
    again[:same] = places[1, :same]
    row = np.concatenate([tokens[0, :shared], tokens[:, shared:].reshape(-1)[real]])[None]
    packing = Packing.of(real, again if same else None, rows, width)
    assert (np.asarray(packing.slots)[0, counts[0] - shared : -1] == len(real)).all()
    hidden = jax.jit(decoder.hidden, static_argnums=1, compiler_options=_quick)
    packed = np.asarray(hidden(params, config, row, packing))[0, shared:-1]
    alone = np.asarray(hidden(params, config, tokens))
    wanted = np.concatenate([alone[i, shared + firsts[i] : counts[i]] for i in range(rows)])
    np.testing.assert_allclose(packed, wanted, atol=TOLERANCE)


@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("name", ["llama_1", "gpt2", "gpt_oss", "gemma2", "mixtral", "cohere2", "falcon_1"])
def test_packed_trees_compute_what_they_do_in_rows(name, shared, monkeypatch):
    """Texts that share a beginning, with queries in one block and in two, behind `shared` tokens of all rows."""
    config, params, tokens, _ = _load(name)
    start, tokens, (rows, width) = tokens[:1, :shared], tokens[:2, shared : shared + 12], (2, 12)
    positions = np.array([[0, 1, 2, 3, 4, 4, 5, 6, 4, 5, 0, 0], [0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9]], np.int32)
    branches = np.array([[0, 0, 0, 0, 1, 2, 2, 2, 3, 3, -1, -1], [0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]], np.int32)
    jitted = lambda f: jax.jit(f, static_argnums=1, compiler_options=_quick)
    begun = jitted(decoder.prefill)(params, config, start) if shared else None
    tree = decoder.Tree(positions + shared, branches)
    wanted = np.asarray(jitted(decoder.hidden)(params, config, tokens, tree, begun)).reshape(rows * width, -1)
    real = np.argsort(branches < 0, axis=None, kind="stable")[: rows * width - 1].astype(np.int32)
    packing = Packing.of(real, None, rows, width, decoder.Tree(positions, branches))
    for smallest in (6, 7):
        monkeypatch.setattr("common.model.packing.SMALLEST_TREE_BLOCK", smallest)
        packed = jitted(decoder.hidden)(params, config, tokens.reshape(1, -1)[:, real], packing, begun)
        np.testing.assert_allclose(packed[0, :-1], wanted[real[:-1]], atol=TOLERANCE)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("name", ["llama_1", "gpt2", "gpt_oss", "gemma2", "mixtral", "cohere2", "falcon_1"])
def test_states_at_places_and_their_gradients_are_those_of_all_states(name, remat):
    """Also where a place is asked for twice, and where what is asked for does not fill rows."""
    config, params, tokens, _ = _load(name)
    tokens, at = tokens[:2, :12], np.array([3, 4, 4, 11, 12, 20, 23])
    by = np.random.default_rng(0).normal(size=(len(at), config.hidden_size)).astype(np.float32)

    def all_states(params):
        h = decoder.hidden(params, config, tokens).reshape(-1, config.hidden_size)[at]
        return jnp.sum(h * by), h

    def some(params):
        h = decoder.hidden_at(params, config, tokens, at, remat=remat)
        return jnp.sum(h * by), h

    gradients = lambda f: jax.jit(jax.value_and_grad(f, has_aux=True), compiler_options=_quick)(params)
    (_, wanted), wanted_grads = gradients(all_states)
    (_, found), grads = gradients(some)
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4, rtol=1e-3)


def test_adapters_of_matrices_that_no_layer_has_are_refused():
    config = dataclasses.replace(_load("mixtral")[0], lora=LoraConfig(2, 8.0, ("gate", "up")))
    with pytest.raises(UserError, match="mixtral model can have adapters beside gate, up"):
        lora.init(config, jax.random.key(0))


@pytest.mark.parametrize("settings", [None, LoraConfig(2, 8.0)], ids=["weights", "adapters"])
def test_a_model_with_experts_learns(settings):
    """Adapters stand beside the matrices that the layers have: here those of attention."""
    config, params, tokens, _ = _load("mixtral")
    rows = [Encoded(tuple(row.tolist()), 4) for row in tokens]
    training = TrainConfig(learning_rate=0.03, batch_size=2, micro_batch_size=2, max_length=32, lora=settings)
    losses = []
    log = lambda first: lambda step, **values: losses.append(values["loss"])
    trained = fine_tune(params, config, rows, training, pad_id=0, steps=8, log=log)
    assert losses[-1] < losses[0] - 0.1
    before, after = (tree["layers"][0] for tree in (params, trained))
    moved = {name for name, leaf in after.items() if name not in before or (leaf != before[name]).any()}
    assert moved == ({f"{name}_{part}" for name in "qkvo" for part in "ab"} if settings else before.keys())
