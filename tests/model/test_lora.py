"""Adapters: against PEFT's forward pass and files, merged and not, and training them beside frozen weights."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.config import LoraConfig, ModelConfig, TrainConfig
from common.errors import UserError
from common.model import decoder, hf, lora
from common.train import state as stored_state
from common.train.data import Encoded
from common.train.loop import fine_tune, gradients

CONFIG = ModelConfig("llama", 64, 32, 48, 2, 4, 2, 8, 128, tied_head=True)
LORA = LoraConfig(rank=3, alpha=7.0)
ADAPTED = dataclasses.replace(CONFIG, lora=LORA)
SETTINGS = TrainConfig(learning_rate=1e-2, batch_size=4, micro_batch_size=2, max_length=64, lora=LORA)
ADAPTERS = {"adapter_qwen2": "qwen2", "adapter_mistral": "mistral"}


@jax.jit
def _random(tree):
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    normal = lambda key, leaf: 0.2 * jax.random.normal(key, leaf.shape)
    return jax.tree.unflatten(treedef, list(map(normal, keys, leaves)))


@pytest.fixture(scope="module")
def params():
    return jax.jit(decoder.init, static_argnums=0)(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def adapters():
    """Adapters whose B is not zero."""
    return _random(lora.init(ADAPTED, jax.random.key(1)))


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    return [Encoded(tuple(rng.integers(1, 64, size=n).tolist()), int(n) // 2) for n in rng.integers(3, 60, 9)]


TOKENS = np.random.default_rng(5).integers(1, 64, (2, 20)).astype(np.int32)


def logits(params, config, tokens=TOKENS):
    forward = lambda p, t: decoder.unembed(p, config, decoder.hidden(p, config, t))
    return np.asarray(jax.jit(forward)(params, tokens))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_of_peft_give_the_logits_of_peft(fixtures, name):
    config = hf.load_config(fixtures / ADAPTERS[name])
    golden = np.load(fixtures / name / "golden.npz")
    plain = hf.load_params(fixtures / ADAPTERS[name], config)
    params, adapted = lora.load_adapter(fixtures / name, plain, config)
    np.testing.assert_allclose(logits(params, adapted, golden["tokens"]), golden["logits"], atol=1e-4, rtol=0)
    merged = lora.merge(params, adapted)
    np.testing.assert_allclose(logits(merged, config, golden["tokens"]), golden["logits"], atol=1e-4, rtol=0)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, plain)
    assert np.abs(logits(plain, config, golden["tokens"]) - golden["logits"]).max() > 1


@pytest.mark.parametrize("name", ADAPTERS)
def test_saved_adapters_have_the_names_and_numbers_of_peft(fixtures, tmp_path, name):
    config = hf.load_config(fixtures / ADAPTERS[name])
    plain = hf.load_params(fixtures / ADAPTERS[name], config)
    params, adapted = lora.load_adapter(fixtures / name, plain, config)
    lora.save_adapter(tmp_path, params, adapted, ADAPTERS[name])
    theirs, ours = (load_file(folder / lora.WEIGHTS) for folder in (fixtures / name, tmp_path))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key], tensor)
    theirs, ours = (json.loads((folder / lora.CONFIG).read_text()) for folder in (fixtures / name, tmp_path))
    assert sorted(ours.pop("target_modules")) == sorted(theirs["target_modules"])
    assert all(theirs[key] == value for key, value in ours.items())


def test_adapters_come_back_from_their_files(params, adapters, tmp_path):
    joined = lora.join(params, adapters)
    lora.save_adapter(tmp_path / "new" / "folder", joined, ADAPTED, "base")
    again, config = lora.load_adapter(tmp_path / "new" / "folder", params, CONFIG)
    assert config == ADAPTED
    assert_same(again, joined)


def test_new_adapters_change_nothing(params):
    fresh = lora.init(ADAPTED, jax.random.key(2))
    assert np.array_equal(logits(lora.join(params, fresh), ADAPTED), logits(params, CONFIG))
    assert_same(lora.merge(lora.join(params, fresh), ADAPTED), params)
    for name, inner in (("q_a", 32), ("o_a", 32), ("down_a", 48)):
        a = np.stack([layer[name] for layer in fresh["layers"]])
        bound = inner**-0.5
        assert np.abs(a).max() <= bound
        assert np.std(a) == pytest.approx(bound / 3**0.5, rel=0.2)
    assert not np.array_equal(fresh["layers"][0]["q_a"], fresh["layers"][1]["q_a"])


def test_merged_weights_give_the_logits_of_the_adapters_beside(params, adapters):
    joined = lora.join(params, adapters)
    merged = logits(lora.merge(joined, ADAPTED), CONFIG)
    np.testing.assert_allclose(logits(joined, ADAPTED), merged, atol=1e-5)
    assert np.abs(merged - logits(params, CONFIG)).max() > 0.1


def test_merging_keeps_the_dtype_and_adds_in_float32(params, adapters):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    merged = lora.merge(lora.join(half, adapters), ADAPTED)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    for beside, start, end in zip(adapters["layers"], half["layers"], merged["layers"], strict=True):
        exact = np.asarray(start["up"], np.float32) + 7 / 3 * (beside["up_a"] @ beside["up_b"])
        np.testing.assert_allclose(np.asarray(end["up"], np.float32), exact, rtol=2**-8, atol=1e-6)


def test_splitting_and_joining_are_inverse(params, adapters):
    plain, apart = lora.split(lora.join(params, adapters))
    assert_same(plain, params)
    assert_same(apart, adapters)


def test_training_moves_the_adapters_alone(params, examples):
    """What is returned differs from the base by a product of rank 3 in each target, and by nothing elsewhere."""
    before = jax.tree.map(np.array, params)
    settings = dataclasses.replace(SETTINGS, learning_rate=0.1, lora=LoraConfig(3, 7.0, ("q", "down")))
    losses = []
    log = lambda first: lambda step, **values: losses.append(values["loss"])
    adapted = dataclasses.replace(CONFIG, lora=settings.lora)
    after = lora.merge(fine_tune(params, CONFIG, examples[:4], settings, pad_id=0, steps=20, log=log), adapted)
    assert losses[-1] < losses[0] - 0.2
    assert_same(before, params)
    for layer, start in zip(after["layers"], before["layers"], strict=True):
        for name, leaf in layer.items():
            change = np.asarray(leaf - start[name]).reshape(leaf.shape[0], -1)
            rank = np.linalg.matrix_rank(change, tol=1e-4 * max(1.0, np.abs(change).max()))
            assert rank == (3 if name in ("q", "down") else 0)
    assert_same(after["embed"], before["embed"])


def test_state_is_kept_of_adapters_alone_and_the_base_in_its_dtype(params, examples, tmp_path, monkeypatch):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    folder = tmp_path / "state"
    saved = []
    save = stored_state.save
    monkeypatch.setattr(stored_state, "save", lambda *args: saved.append(args[1:3]) or save(*args))

    def stop(first):
        def log(step, **values):
            if step == 2:
                raise KeyboardInterrupt

        return log

    settings = dataclasses.replace(SETTINGS, checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(half, CONFIG, examples, settings, pad_id=0, steps=6, checkpoint=folder, log=stop)
    counters = 3  # Adam's, that of updates, and whether all was finite
    size = decoder.count_params(lora.init(ADAPTED, jax.random.key(0)))
    assert decoder.count_params(saved[0]) == 3 * size + counters
    assert {leaf.dtype for leaf in jax.tree.leaves(saved[0][0])} == {jnp.dtype(jnp.float32)}
    resumed = fine_tune(half, CONFIG, examples, settings, pad_id=0, steps=6, checkpoint=folder)
    whole = fine_tune(half, CONFIG, examples, SETTINGS, pad_id=0, steps=6)
    assert {leaf.dtype for leaf in jax.tree.leaves(lora.split(whole)[0])} == {jnp.dtype(jnp.bfloat16)}
    assert_same(resumed, whole)


def test_training_adapters_again_does_not_compile_again(params, examples):
    fine_tune(params, CONFIG, examples, SETTINGS, pad_id=0, steps=4)
    compiled = gradients._cache_size(), lora._uniform._cache_size()
    other = dataclasses.replace(SETTINGS, learning_rate=1e-3, epochs=1.0)
    fine_tune(params, CONFIG, examples, other, pad_id=0, steps=4)
    assert (gradients._cache_size(), lora._uniform._cache_size()) == compiled


def test_gradients_of_the_weights_are_not_formed(params, adapters):
    """The backward pass has no product of the shape of the MLP's matrices; that of the frozen weights has."""

    def loss(trained, frozen):
        return decoder.hidden(lora.join(frozen, trained), ADAPTED, TOKENS).sum()

    def full_products(argument):
        text = str(jax.make_jaxpr(jax.grad(loss, argument))(adapters, params))
        products = [line for line in text.splitlines() if "= dot_general" in line]
        return [line for line in products if ":f32[32,48]" in line or ":f32[48,32]" in line]

    assert len(full_products(1)) == 3 * CONFIG.num_layers
    assert not full_products(0)


@pytest.mark.parametrize(
    ("rank", "targets"), [(0, ("q",)), (4, ()), (4, ("q", "query"))], ids=["rank", "nothing", "unknown"]
)
def test_settings_that_fit_no_adapter_are_refused(rank, targets):
    with pytest.raises(UserError, match="targets are among q, k, v, o, gate, up, down"):
        LoraConfig(rank, 16.0, targets)


def _edit_config(folder, **values):
    file = folder / lora.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def _transpose_tensor(folder):
    tensors = load_file(folder / lora.WEIGHTS)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(tensors | {name: np.ascontiguousarray(tensors[name].T)}, folder / lora.WEIGHTS)


def _drop_tensor(folder):
    tensors = load_file(folder / lora.WEIGHTS)
    tensors.pop(next(name for name in tensors if "layers.1" in name))
    save_file(tensors, folder / lora.WEIGHTS)


def _drop_module(folder):
    tensors = load_file(folder / lora.WEIGHTS)
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.down_proj" not in name}
    save_file(kept, folder / lora.WEIGHTS)


def _spoil_tensor(folder):
    tensors = load_file(folder / lora.WEIGHTS)
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, folder / lora.WEIGHTS)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_spoil_tensor, "holds NaN or infinity"),
        (lambda folder: _edit_config(folder, rank_pattern={"q_proj": 8}), "q_proj has shapes .* and rank 8"),
        (lambda folder: _edit_config(folder, alpha_pattern={"q_proj": 8}), "not an adapter of one rank and scale"),
        (lambda folder: _edit_config(folder, peft_type="IA3"), r"not a plain LoRA adapter \(IA3\)"),
        (lambda folder: _edit_config(folder, use_dora=True, lora_bias=True), r"\(lora_bias, use_dora\): merge it"),
        (lambda folder: _edit_config(folder, bias="all"), r"\(bias\)"),
        (lambda folder: _edit_config(folder, modules_to_save=["lm_head"]), "modules_to_save"),
        (lambda folder: _edit_config(folder, arrow_config={"top_k": 3}), "arrow_config"),
        (lambda folder: _edit_config(folder, megatron_config={"a": 1}), "megatron_config"),
        (lambda folder: _edit_config(folder, of_a_later_peft=0.5), "of_a_later_peft"),
        (_transpose_tensor, r"q_proj has shapes \(32, 3\) and .*, and rank 3"),
        (lambda folder: _edit_config(folder, r=4), "and rank 4"),
        (lambda folder: _edit_config(folder, r=3.5), "3.5 is no rank of an adapter"),
        (lambda folder: _edit_config(folder, rank_pattern={"q_proj": "3"}), "'3' is no rank of an adapter"),
        (lambda folder: _edit_config(folder, alpha_pattern={"q_proj": None}), "None is no lora_alpha"),
        (lambda folder: _edit_config(folder, alpha_pattern={"(": 3}), "not a readable adapter"),
        (_drop_tensor, "layers.1.+ is not one of a pair of A and B"),
        (_drop_module, "an adapter of model.layers.1.+ is in one of them alone"),
        (lambda folder: (folder / lora.CONFIG).unlink(), "no such file: .+adapter_config.json"),
        (lambda folder: (folder / lora.WEIGHTS).write_bytes(b"{}"), "not a readable adapter"),
    ],
)
def test_adapters_that_are_not_understood_are_refused(fixtures, tmp_path, params, harm, message):
    folder = tmp_path / "adapter"
    shutil.copytree(fixtures / "adapter_qwen2", folder)
    harm(folder)
    config = hf.load_config(fixtures / "qwen2")
    with pytest.raises(UserError, match=message) as raised:
        lora.load_adapter(folder, params, config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "value", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq", "some_later_one"]
)
def test_adapters_whose_initialisation_changed_the_base_are_refused(fixtures, tmp_path, params, value):
    """PEFT subtracts the first A and B from the weights, so they do not belong to those in the base's folder."""
    folder = shutil.copytree(fixtures / "adapter_qwen2", tmp_path / "adapter")
    _edit_config(folder, init_lora_weights=value)
    message = f"adapter .init_lora_weights '{value}'.*merge it .*path_initial_model_for_weight_conversion"
    with pytest.raises(UserError, match=message):
        lora.load_adapter(folder, params, hf.load_config(fixtures / "qwen2"))


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False, "lora_dropout": 0.1, "inference_mode": False},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers", "fan_in_fan_out": True},
    ],
)
def test_settings_without_effect_on_a_stored_adapter_are_ignored(fixtures, tmp_path, settings):
    config = hf.load_config(fixtures / "qwen2")
    plain = hf.load_params(fixtures / "qwen2", config)
    folder = shutil.copytree(fixtures / "adapter_qwen2", tmp_path / "adapter")
    before = lora.load_adapter(folder, plain, config)
    _edit_config(folder, **settings)
    after = lora.load_adapter(folder, plain, config)
    assert after[1] == before[1]
    assert_same(after[0], before[0])


def test_an_adapter_of_another_model_is_refused(fixtures, params):
    with pytest.raises(UserError, match="does not fit the model"):
        lora.load_adapter(fixtures / "adapter_mistral", params, CONFIG)
