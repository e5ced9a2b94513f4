"""Checkpoints in and out: every form that is read, what is written, and every way a checkpoint can be broken."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.errors import UserError
from common.model import checkpoint, decoder, hf

FIXTURES = ("llama2", "llama3", "llama_linear", "llama_sharded", "mistral", "qwen2", "qwen2_windows", "qwen3")
# What transformers (PyTorch, float32, greedy) writes after "Once upon a time" with stories260K.
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she "
    "saw a big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to "
    "the park.\" Lily was sad and didn't know what to do"
)
# What it writes after the token ids (7 * [3 .. 18]) mod 512 with executorch_demo_random_llama.
RANDOM_LLAMA = [411, 259, 317, 383, 223, 191, 80, 228, 195, 130, 433, 61, 435, 97, 58, 497]


def _same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def _all_tensors(folder):
    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


@pytest.fixture
def copy(fixtures, tmp_path):
    """Copies a fixture, so that a test may break it."""

    def copy(name):
        return pathlib.Path(shutil.copytree(fixtures / name, tmp_path / name))

    return copy


def _rewrite(folder, change, name="model.safetensors"):
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


def _rename(folder, rename, name="model.safetensors"):
    save_file({rename(key): tensor for key, tensor in load_file(folder / name).items()}, folder / name)


@pytest.mark.parametrize("name", FIXTURES)
def test_saving_gives_back_the_same_names_shapes_and_bits(fixtures, tmp_path, name):
    source = fixtures / name
    config = hf.load_config(source)
    params = hf.load_params(source, config)
    folder = hf.save(tmp_path / "saved", params, source)
    assert hf.load_config(folder) == config
    _same_bits(hf.load_params(folder, config), params)
    ours, theirs = _all_tensors(folder), _all_tensors(source)
    assert ours.keys() == theirs.keys()
    for tensor, array in theirs.items():
        np.testing.assert_array_equal(ours[tensor], array.astype(np.float32))


def test_a_saved_folder_has_config_tokenizer_and_metadata(fixtures, tmp_path):
    source = fixtures / "qwen2"
    config = hf.load_config(source)
    folder = hf.save(tmp_path / "a" / "saved", hf.load_params(source, config), source, dtype=jnp.bfloat16)
    names = {file.name for file in folder.iterdir()}
    assert names == {file.name for file in source.iterdir()} - {"golden.npz"}
    assert [file.name for file in folder.parent.iterdir()] == ["saved"]  # nothing temporary is left
    written = json.loads((folder / "config.json").read_text())
    assert written.pop("dtype") == "bfloat16"
    original = json.loads((source / "config.json").read_text())
    assert original.pop("dtype") == "float32"
    assert written == original
    header = (folder / "model.safetensors").read_bytes()[8:].split(b"}")[0]
    assert json.loads(header.split(b'"__metadata__":')[1] + b"}") == {"format": "pt"}
    assert all(array.dtype == ml_dtypes.bfloat16 for array in _all_tensors(folder).values())


def test_old_configs_keep_their_own_name_for_the_dtype(fixtures, tmp_path):
    source = fixtures / "llama3"
    params = hf.load_params(source, hf.load_config(source))
    written = json.loads((hf.save(tmp_path / "saved", params, source) / "config.json").read_text())
    assert written["torch_dtype"] == "float32"
    assert "dtype" not in written


def test_large_checkpoints_are_written_in_several_files(fixtures, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 30_000)
    source = fixtures / "llama2"
    config = hf.load_config(source)
    params = hf.load_params(source, config)
    folder = hf.save(tmp_path / "saved", params, source)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((folder / hf.INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * decoder.count_params(params)
    assert sorted(set(index["weight_map"].values())) == files
    assert all((folder / file).stat().st_size < 33_000 for file in files)
    _same_bits(hf.load_params(folder, config), params)


def test_saving_replaces_an_older_folder_and_survives_a_leftover(fixtures, tmp_path):
    source = fixtures / "llama2"
    config = hf.load_config(source)
    params = hf.load_params(source, config)
    for leftover in (".saved.partial", "saved", ".saved.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "old.txt").write_text("from a run that was killed")
    hf.save(tmp_path / "saved", params, source)
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]
    assert not (tmp_path / "saved" / "old.txt").exists()


def test_a_failed_save_leaves_the_older_folder_and_nothing_half_written(fixtures, tmp_path, monkeypatch):
    source = fixtures / "llama2"
    params = hf.load_params(source, hf.load_config(source))
    before = (hf.save(tmp_path / "saved", params, source) / "model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*saved: .*No space left"):
        hf.save(tmp_path / "saved", params, source)
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]
    assert (tmp_path / "saved" / "model.safetensors").read_bytes() == before


def test_saving_parameters_of_another_shape_is_an_error(fixtures, tmp_path):
    params = hf.load_params(fixtures / "llama2", hf.load_config(fixtures / "llama2"))
    with pytest.raises(ValueError, match="shape"):
        hf.save(tmp_path / "saved", params, fixtures / "qwen2")


def test_weights_are_read_in_the_dtype_asked_for(fixtures):
    config = hf.load_config(fixtures / "llama_sharded")
    params = hf.load_params(fixtures / "llama_sharded", config, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    full = hf.load_params(fixtures / "llama_sharded", config)
    _same_bits(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), full)  # stored as bfloat16


def test_rotary_buffers_and_a_head_equal_to_the_embedding_it_is_tied_to_are_ignored(copy):
    folder = copy("qwen2")
    config = hf.load_config(folder)
    before = hf.load_params(folder, config)
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "lm_head.weight": np.asarray(before["embed"]),
    }
    _rewrite(folder, lambda tensors: tensors.update(extra))
    _same_bits(hf.load_params(folder, config), before)


@pytest.mark.parametrize("row", [0, 127])
def test_a_head_unlike_the_embedding_it_is_tied_to_is_refused(copy, row):
    """transformers warns and keeps both: with the embedding as the head, every logit would be another."""
    folder = copy("qwen2")

    def differ(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["lm_head.weight"][row, 3] += 1

    _rewrite(folder, differ)
    with pytest.raises(UserError, match=r"model.safetensors holds a lm_head.weight that differs .*tie_word_embed"):
        hf.load_params(folder, hf.load_config(folder))


def test_a_single_file_goes_before_an_index_of_shards_that_was_left_over(copy):
    """As in transformers: a model saved anew, as one file, into the folder of an older one."""
    folder = copy("llama_sharded")
    config = hf.load_config(folder)
    tensors = {name: array + np.ones_like(array) for name, array in _all_tensors(folder).items()}
    older = hf.load_params(folder, config)
    save_file(tensors, folder / "model.safetensors")
    newer = hf.load_params(folder, config)
    norm = tensors["model.norm.weight"].astype(np.float32)
    np.testing.assert_array_equal(np.asarray(newer["norm"]), norm)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), older, newer)))
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()
    _same_bits(hf.load_params(folder, config), newer)


def test_names_without_the_outer_models_prefix_are_read(fixtures, copy):
    """As transformers does: a model that was saved without its head, or one whose head goes by its own name."""
    folder = copy("qwen2")
    config = hf.load_config(folder)
    _rename(folder, lambda name: name.removeprefix("model."))
    _same_bits(hf.load_params(folder, config), hf.load_params(fixtures / "qwen2", config))


def test_a_tied_embedding_may_go_by_the_name_of_the_head(fixtures, copy):
    folder = copy("qwen2")
    config = hf.load_config(folder)
    _rename(folder, lambda name: name.replace("model.embed_tokens", "lm_head"))
    _same_bits(hf.load_params(folder, config), hf.load_params(fixtures / "qwen2", config))


def test_an_unknown_tensor_is_refused(copy):
    folder = copy("llama2")
    extra = {"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}
    _rewrite(folder, lambda tensors: tensors.update(extra))
    with pytest.raises(UserError, match=r"model.safetensors holds a tensor .*q_proj.bias, which a llama model"):
        hf.load_params(folder, hf.load_config(folder))


@pytest.mark.parametrize("tensor", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_missing_tensor_is_named(copy, tensor):
    folder = copy("llama2")
    _rewrite(folder, lambda tensors: tensors.pop(tensor))
    with pytest.raises(UserError, match=f"llama2 lacks the tensor {tensor}"):
        hf.load_params(folder, hf.load_config(folder))


def test_a_tensor_of_another_shape_is_named(copy):
    folder = copy("llama2")
    name = "model.layers.1.self_attn.o_proj.weight"
    _rewrite(folder, lambda tensors: tensors.update({name: np.zeros((32, 31), np.float32)}))
    with pytest.raises(UserError, match=r"o_proj.weight has shape \(32, 31\), config.json implies \(32, 32\)"):
        hf.load_params(folder, hf.load_config(folder))


def test_a_quantized_tensor_is_named(copy):
    folder = copy("llama2")
    name = "model.layers.1.self_attn.o_proj.weight"
    _rewrite(folder, lambda tensors: tensors.update({name: np.zeros((32, 32), np.int8)}))
    with pytest.raises(UserError, match=r"o_proj.weight has dtype I8"):
        hf.load_params(folder, hf.load_config(folder))


@pytest.mark.parametrize("size", [0, 5, 600, 60_000])
def test_a_truncated_file_is_named(copy, size):
    folder = copy("llama2")
    config = hf.load_config(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(size)
    with pytest.raises(UserError, match=r"llama2/model.safetensors is truncated"):
        hf.load_params(folder, config)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(copy, value):
    """Every answer of such a model would be nonsense, without a word."""
    folder = copy("llama2")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model.safetensors: tensor model.norm.weight holds NaN or infinity"):
        hf.load_params(folder, hf.load_config(folder))


def test_a_missing_part_of_several_files_is_named(copy):
    folder = copy("llama_sharded")
    config = hf.load_config(folder)
    part = sorted(folder.glob("model-*.safetensors"))[1]
    part.unlink()
    with pytest.raises(UserError, match=f"{part.name} is missing, though"):
        hf.load_params(folder, config)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {}}'])
def test_a_broken_index_is_named(copy, content):
    folder = copy("llama_sharded")
    config = hf.load_config(folder)
    (folder / hf.INDEX).write_text(content)
    with pytest.raises(UserError, match="llama_sharded"):
        hf.load_params(folder, config)


def test_pickled_and_absent_weights_are_refused(copy):
    folder = copy("llama2")
    config = hf.load_config(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no model.safetensors"):
        hf.load_params(folder, config)
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(UserError, match=r"holds pickled weights only: .* safetensors"):
        hf.load_params(folder, config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no such file: .*config.json"),
        ("{", r"config.json is not readable JSON"),
        ("[1]", r"config.json is not a JSON object"),
        ("{}", r"config.json names no model_type"),
        ('{"model_type": {"a": 1}}', r"config.json names no model_type"),
        ('{"model_type": "bloom"}', r"unsupported architecture 'bloom'"),
        ('{"model_type": "nonesuch", "auto_map": {"AutoConfig": "x.Y"}}', r"unsupported architecture 'nonesuch'"),
        ('{"model_type": "llama", "rope_scaling": {"rope_type": "ntk", "factor": 4.0}}', r"rope_type 'ntk'"),
        ('{"model_type": "llama", "hidden_size": "wide"}', r"cannot read .*config.json: .*hidden_size"),
    ],
)
def test_a_bad_config_is_refused_in_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        hf.load_config(tmp_path)
    assert "\n" not in str(caught.value)


SCALED = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama2", {"is_causal": False}, "is_causal"),
        ("qwen3", {"is_causal": None}, "is_causal"),
        ("llama2", {"per_layer_config": {"0": {"intermediate_size": 24}}}, "per_layer_config"),
        ("llama2", {"transformers_weights": "other.safetensors"}, "transformers_weights"),
        ("mistral", {"sliding_window": 0}, "sliding_window 0"),
        ("qwen2_windows", {"sliding_window": 0}, "sliding_window 0"),
        ("qwen2_windows", {"layer_types": ["full_attention"] * 2 + ["chunked_attention"]}, "chunked_attention"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "sliding_attention with a window of None",
        ),
        ("llama2", {"rope_parameters": SCALED | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("qwen3", {"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}, r"by layer type .*full_attention"),
        ("llama2", {"rope_parameters": {"rope_theta": None}}, "rope_theta None"),
        ("llama2", {"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta '1e4'"),
        ("llama2", {"rope_parameters": SCALED | {"factor": None}}, "factor None"),
        ("llama2", {"num_attention_heads": 8, "num_key_value_heads": 3}, "num_key_value_heads 3"),
        ("llama2", {"head_dim": 3}, "head_dim 3"),
        ("llama2", {"head_dim": 7}, "even rotary dimension"),
        ("llama2", {"quantization_config": {"quant_method": "gptq"}}, "quantized"),
    ],
)
def test_a_field_that_changes_the_computation_is_refused_with_the_folder(copy, name, change, message):
    """Each field is one that transformers reads, or refuses, in this family."""
    folder = copy(name)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=f"{folder}.*{message}") as caught:
        hf.load_config(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["llama2", "mistral", "qwen2", "qwen3"])
def test_fields_that_transformers_ignores_in_a_family_change_nothing(copy, name):
    folder = copy(name)
    before = hf.load_config(folder)
    ignored = {
        "is_causal": True,
        "use_bidirectional_attention": True,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 256,
        "logits_scaling": 8.0,
        "no_rope_layers": [1, 0],
        "partial_rotary_factor": 0.5,
        "num_experts": 8,
        "quantization_config": None,
    }
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | ignored))
    assert hf.load_config(folder) == before


@pytest.mark.parametrize("beside", [True, False], ids=["beside a model", "alone"])
def test_a_folder_with_an_adapter_is_refused(fixtures, copy, beside):
    """transformers with PEFT would apply it; read as a model, the folder would be its base, or nothing."""
    folder = copy("qwen2") if beside else copy("adapter_qwen2")
    if beside:
        shutil.copy(fixtures / "adapter_qwen2" / "adapter_config.json", folder)
    with pytest.raises(UserError, match=rf"{folder} holds an adapter .*, .*qwen2\+{folder}"):
        hf.load_config(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.model", "merges.txt", "vocab.txt"])
def test_a_changed_template_or_tokenizer_is_another_checkpoint(copy, name):
    """A run must not go on with prompts that are written or cut into tokens in another way."""
    folder = copy("qwen2")
    found = {checkpoint.fingerprint(folder)}
    for text in ("one", "two"):
        (folder / name).write_text(text)
        found.add(checkpoint.fingerprint(folder))
    assert len(found) == 3
    (folder / "README.md").write_text("notes")
    (folder / "tokenizer_files").mkdir()
    assert checkpoint.fingerprint(folder) in found


def test_resolve_takes_folders_as_they_are(tmp_path):
    assert checkpoint.resolve(tmp_path) == tmp_path
    assert checkpoint.resolve(str(tmp_path)) == tmp_path


def test_resolve_finds_embedded_models_and_lists_them_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EMBEDDED", tmp_path)
    with pytest.raises(UserError, match="no embedded model 'student': there are none"):
        checkpoint.resolve("embedded:student")
    for name in ("student", "teacher", "notes"):
        (tmp_path / name).mkdir()
    for name in ("student", "teacher"):
        (tmp_path / name / "model.safetensors").touch()
    assert checkpoint.resolve("embedded:student") == tmp_path / "student"
    for name in ("notes", "", "../x", "."):
        with pytest.raises(UserError, match="there are student, teacher"):
            checkpoint.resolve(f"embedded:{name}")


def test_resolve_refuses_files_and_folders_that_do_not_exist(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UserError, match="is a file: name the checkpoint's folder"):
        checkpoint.resolve(file)
    for name in (tmp_path / "nonesuch", "./nonesuch", "a/b/c", "~/nonesuch-folder"):
        with pytest.raises(UserError, match="no such folder"):
            checkpoint.resolve(name)


def test_resolve_fetches_hub_models_without_pickles(tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    def snapshot_download(repo, allow_patterns, local_files_only):
        calls.append((repo, allow_patterns, local_files_only))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert checkpoint.resolve("some-owner/Some.Model-1B") == tmp_path
    ((repo, patterns, local),) = calls
    assert (repo, local) == ("some-owner/Some.Model-1B", False)
    assert not any(pathlib.PurePath(name).match(p) for p in patterns for name in ("pytorch_model.bin", "model.py"))


def test_an_unreachable_hub_is_said_in_one_line(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def fails(error):
        def snapshot_download(*args, **kwargs):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    fails(ConnectionError("name not resolved\nand much more"))
    with pytest.raises(UserError, match=r"cannot fetch some/model from the hub \(name not resolved and") as caught:
        checkpoint.resolve("some/model")
    assert "\n" not in str(caught.value)
    fails(errors.LocalEntryNotFoundError("offline"))
    with pytest.raises(UserError, match=r"check the network, or name a local folder"):
        checkpoint.resolve("some/model")


def _greedy(folder, prompt, length):
    config = hf.load_config(folder)
    params = hf.load_params(folder, config)
    tokens = np.zeros((1, length), np.int32)
    tokens[0, : len(prompt)] = prompt
    logits = jax.jit(lambda tokens: decoder.unembed(params, config, decoder.hidden(params, config, tokens)))
    for t in range(len(prompt), length):
        tokens[0, t] = np.argmax(logits(tokens)[0, t - 1])
    return tokens[0].tolist()


def test_stories260k_tells_the_known_story(shared_data):
    from common.model.tokenizer import Tokenizer

    folder = shared_data / "weights" / "stories260K" / "hf"
    ids = _greedy(folder, [1, 403, 407, 261, 378], 105)
    assert Tokenizer.load(folder).decode(ids) == STORY


def test_executorch_demo_continues_as_in_transformers(shared_data):
    prompt = [7 * i % 512 for i in range(3, 19)]
    folder = shared_data / "weights" / "executorch_demo_random_llama" / "hf"
    assert _greedy(folder, prompt, 32)[16:] == RANDOM_LLAMA


def test_the_licence_of_a_base_is_what_its_card_or_file_states(tmp_path):
    assert checkpoint.licence("embedded:student") == "apache-2.0"
    assert checkpoint.licence("smollm2") == "apache-2.0", "known without the file"
    for name, card, stated in (
        ("stated", "---\nlicense: mit\n---\n# A model\n", "mit"),
        ("other", "---\ntags: [x]\n---\n", None),
        ("broken", "---\n: [\n---\n", None),
        ("several", "---\nlicense: [mit, gpl]\n---\n", None),
        ("plain", "# A model under the MIT licence\n", None),
        ("none", None, None),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        if card is not None:
            (tmp_path / name / "README.md").write_text(card)
        assert checkpoint.licence(str(tmp_path / name)) == stated, name


def test_what_a_base_is_called_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "folder").mkdir(parents=True)
    for name, known in (
        ("some-owner/Some.Model-1B", "some-owner/Some.Model-1B"),
        ("some-owner/model+runs/x/adapter", "some-owner/model"),
        ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("my/folder", None),
        ("./model", None),
        ("embedded:student", None),
    ):
        assert checkpoint.hub_id(name) == known, name
