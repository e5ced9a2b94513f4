"""GGUF files: made here of the fixtures with the format's own package, and read as models."""

import contextlib
import json
import pathlib
import struct

import gguf as theirs
import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType as Kind

from common.config import RopeScaling
from common.errors import UserError
from common.lm import LanguageModel
from common.model import checkpoint, decoder, gguf, hf, tensors
from common.model.tokenizer import Tokenizer

NAMES = {theirs_: ours for ours, theirs_ in gguf._NAMES.items()}
QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
TOKENS = ["<u>", "<s>", "</s>", "t", *(str(i) for i in range(10)), *(f"t{i}" for i in range(200))]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache is a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _interleaved(weight, heads):
    """As llama.cpp's converter writes q and k of Llama: rotary pairs side by side."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _as_gguf(name):
    return QK_NORMS.get(name) or NAMES[name]


def convert(source, target, kind=None, drop=(), **fields):
    """Write the fixture `source` as a GGUF file, matrices as `kind`; `fields` come on top, None leaves one out."""
    config = hf.load_config(source)
    raw = json.loads((source / "config.json").read_text())
    arch = "llama" if config.family == "mistral" else config.family
    rope = raw.get("rope_parameters") or {}
    writer = theirs.GGUFWriter(None, arch)
    content = {
        f"{arch}.context_length": config.max_positions,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.block_count": config.num_layers,
        f"{arch}.attention.head_count": config.num_heads,
        f"{arch}.attention.head_count_kv": config.num_kv_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.value_length": config.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": config.norm_eps,
        f"{arch}.rope.freq_base": config.rope.theta,
        f"{arch}.rope.dimension_count": config.head_dim,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS[: config.vocab_size],
        "tokenizer.ggml.merges": ["t 1"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    if rope.get("rope_type") == "linear":
        content |= {f"{arch}.rope.scaling.type": "linear", f"{arch}.rope.scaling.factor": rope["factor"]}
    for key, value in (content | fields).items():
        if value is None:
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    full = (slice(None),)
    for name, tensor in tensors.open_tensors(source).items():
        parts = name.removeprefix("model.layers.").split(".")
        layer = f"blk.{parts[0]}." if name.startswith("model.layers.") else ""
        module = ".".join(parts[1:-1]) if layer else name.rpartition(".")[0]
        part = _as_gguf(module)
        if part in drop:
            continue
        weight = tensor.read(full * len(tensor.shape), np.float32)
        if arch == "llama" and part in ("attn_q", "attn_k"):
            weight = _interleaved(weight, config.num_heads if part == "attn_q" else config.num_kv_heads)
        fits = kind is not None and weight.ndim == 2 and weight.shape[-1] % theirs.GGML_QUANT_SIZES[kind][0] == 0
        its = kind if fits else Kind.F32
        data = weight if its == Kind.F32 else theirs.quants.quantize(weight, its)
        writer.add_tensor(f"{layer}{part}.{parts[-1]}", data, raw_dtype=its)
    if config.rope.scaling is not None and config.rope.scaling.kind == "llama3":
        writer.add_tensor("rope_freqs.weight", fields_of_llama3(config))
    writer.write_header_to_file(target)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def fields_of_llama3(config):
    """What llama.cpp's converter divides each frequency by."""
    scaling, dims = config.rope.scaling, np.arange(0, config.head_dim, 2) / config.head_dim
    factors = []
    for frequency in 1 / config.rope.theta**dims:
        wavelength = 2 * np.pi / frequency
        low = scaling.original_max_positions / scaling.low_freq_factor
        high = scaling.original_max_positions / scaling.high_freq_factor
        smooth = (scaling.original_max_positions / wavelength - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        between = 1 / ((1 - smooth) / scaling.factor + smooth)
        factors.append(1.0 if wavelength < high else scaling.factor if wavelength > low else between)
    return np.array(factors, np.float32)


def read_all(folder):
    found = tensors.open_tensors(pathlib.Path(folder))
    return {name: tensor.read((slice(None),) * len(tensor.shape), np.float32) for name, tensor in found.items()}


@pytest.mark.parametrize("name", ["llama2", "llama_linear", "llama_sharded", "qwen2", "qwen3"])
def test_a_gguf_file_is_the_model_that_it_was_made_of(fixtures, tmp_path, name):
    """Same shape, same numbers: q and k come back from the order in which rotary pairs lie side by side."""
    file = convert(fixtures / name, tmp_path / "model.gguf")
    folder = checkpoint.resolve(file)
    assert hf.load_config(folder) == hf.load_config(fixtures / name)
    expected, found = read_all(fixtures / name), read_all(folder)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor)


def test_a_factor_alone_scales_as_in_llama_cpp(fixtures, tmp_path):
    """Older files state no type of scaling; a type "none" switches the factor off."""
    of = lambda name, **fields: (
        hf.load_config(checkpoint.resolve(convert(fixtures / "llama2", tmp_path / name, **fields))).rope.scaling
    )
    assert of("a.gguf", **{"llama.rope.scaling.factor": 4.0}) == RopeScaling("linear", 4.0)
    assert of("b.gguf", **{"llama.rope.scaling.factor": 4.0, "llama.rope.scaling.type": "none"}) is None


def test_llama3_scaling_is_told_from_its_frequencies(fixtures, tmp_path):
    """The file holds what each frequency is divided by, and not the numbers that this came from."""
    folder = tmp_path / "llama3"
    folder.mkdir()
    config = json.loads((fixtures / "llama3" / "config.json").read_text())
    config["rope_scaling"] |= {"original_max_position_embeddings": 8192}
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 500000.0}))
    (folder / "model.safetensors").symlink_to(fixtures / "llama3" / "model.safetensors")
    found = checkpoint.resolve(convert(folder, tmp_path / "model.gguf"))
    assert hf.load_config(found).rope == hf.load_config(folder).rope
    with pytest.raises(UserError, match=r"rope_freqs.weight is not the scaling of Llama 3"):
        checkpoint.resolve(convert(fixtures / "llama3", tmp_path / "other.gguf"))


WITH_QUANTIZER = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


@pytest.mark.parametrize("kind", WITH_QUANTIZER)
def test_each_kind_is_read_as_the_package_reads_it(tmp_path, kind):
    """Whole and in parts, which are rows and columns of the whole; the error is that of so many bits."""
    weight = np.random.default_rng(0).normal(size=(96, 64)).astype(np.float32)
    stored = theirs.quants.quantize(weight, Kind[kind])
    found = one_tensor(tmp_path, stored, Kind[kind]).read((slice(None), slice(None)), np.float32)
    np.testing.assert_array_equal(found, theirs.quants.dequantize(stored, Kind[kind]))
    bits = {"F16": 11, "BF16": 8}.get(kind, int(kind[1]) if kind[0] == "Q" else 0)
    assert np.abs(found - weight).max() < 8 * 2.0**-bits


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ2_0", "MXFP4"])
def test_kinds_without_a_quantizer_are_read_block_by_block(tmp_path, kind):
    """Blocks of random bytes, with scales that are numbers, against the package's reading of the same bytes."""
    block, width = theirs.GGML_QUANT_SIZES[Kind[kind]]
    stored = np.random.default_rng(1).integers(0, 60, (24, 512 // block * width), np.uint8)
    tensor = one_tensor(tmp_path, stored, Kind[kind])
    expected = theirs.quants.dequantize(stored, Kind[kind])
    assert tensor.shape == expected.shape == (24, 512)
    np.testing.assert_array_equal(tensor.read((slice(3, 17), slice(32, 500)), np.float32), expected[3:17, 32:500])


def test_q4_k_and_q6_k_are_their_formula(tmp_path):
    """Against blocks made by hand: d * scale * q - dmin * min, and d * scale * (q - 32)."""
    d, least = np.float16(0.5), np.float16(0.25)
    # Q4_K: scale and minimum of all 8 parts in 6 bits (here 3 and 2), then 256 numbers in 4 bits.
    scales = bytes([3] * 4 + [2] * 4 + [3 | 2 << 4] * 4)
    block = d.tobytes() + least.tobytes() + scales + bytes([0x75] * 128)
    found = one_tensor(tmp_path, np.frombuffer(block, np.uint8)[None], Kind.Q4_K).read(
        (slice(None), slice(None)), np.float32
    )
    low, high = 0.5 * 3 * 5 - 0.25 * 2, 0.5 * 3 * 7 - 0.25 * 2
    np.testing.assert_array_equal(found, np.tile(np.repeat([low, high], 32), 4)[None])
    # Q6_K: the low 4 bits of 256 numbers, their high 2 bits, 16 scales in 8 bits, d.
    block = bytes([0x21] * 128) + bytes([0b10101010] * 64) + bytes([4] * 16) + d.tobytes()
    found = one_tensor(tmp_path, np.frombuffer(block, np.uint8)[None], Kind.Q6_K).read(
        (slice(None), slice(None)), np.float32
    )
    assert np.unique(found).tolist() == [0.5 * 4 * (32 + 1 - 32), 0.5 * 4 * (32 + 2 - 32)]


def one_tensor(tmp_path, stored, kind):
    """`stored` alone in a file, opened as the embedding."""
    writer = theirs.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_tensor("token_embd.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tensor,) = gguf.open_tensors(gguf.read(tmp_path / "one.gguf")).values()
    return tensor


def test_rows_of_rotated_matrices_can_be_read_alone(fixtures, tmp_path):
    """As a mesh reads them: each device its heads."""
    folder = checkpoint.resolve(convert(fixtures / "llama2", tmp_path / "model.gguf", Kind.Q8_0))
    tensor = tensors.open_tensors(folder)["model.layers.1.self_attn.q_proj.weight"]
    whole = tensor.read((slice(None), slice(None)), np.float32)
    for start in (0, 8, 16, 24):
        np.testing.assert_array_equal(
            tensor.read((slice(start, start + 8), slice(None)), np.float32), whole[start : start + 8]
        )


def test_many_rows_are_dequantized_a_few_at_a_time(fixtures, tmp_path, monkeypatch):
    file = convert(fixtures / "llama2", tmp_path / "model.gguf", Kind.Q4_0)
    whole = read_all(checkpoint.resolve(file))
    sizes = []
    dequantize = gguf.dequantize
    monkeypatch.setattr(gguf, "dequantize", lambda data, kind: sizes.append(len(data)) or dequantize(data, kind))
    monkeypatch.setattr(gguf, "_ELEMENTS", 5 * 32)
    parts = read_all(checkpoint.resolve(file))
    assert max(sizes) == 5
    for key, tensor in whole.items():
        np.testing.assert_array_equal(parts[key], tensor)


def test_a_quantized_model_is_loaded_sampled_and_saved_for_transformers(fixtures, tmp_path):
    model = LanguageModel.load(str(convert(fixtures / "qwen2", tmp_path / "model.gguf", Kind.Q8_0)))
    saved = model.save(tmp_path / "saved")
    again = LanguageModel.load(str(tmp_path / "saved"))
    assert again.config == model.config
    found, expected = read_all(saved.folder), read_all(model.folder)
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor)


def test_a_split_file_is_read_from_any_of_its_parts(fixtures, tmp_path):
    whole = convert(fixtures / "llama2", tmp_path / "whole.gguf")
    expected = read_all(checkpoint.resolve(whole))
    split(whole, tmp_path / "parts")
    for number in (1, 2):
        found = read_all(checkpoint.resolve(tmp_path / "parts" / f"m-0000{number}-of-00002.gguf"))
        assert found.keys() == expected.keys()
        np.testing.assert_array_equal(found["model.norm.weight"], expected["model.norm.weight"])
    assert read_all(checkpoint.resolve(tmp_path / "parts")).keys() == expected.keys()
    (tmp_path / "parts" / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(UserError, match=r"one part of 2, and m-00002-of-00002.gguf is not beside it"):
        checkpoint.resolve(tmp_path / "parts" / "m-00001-of-00002.gguf")
    (tmp_path / "parts" / "m-00001-of-00002.gguf").rename(tmp_path / "renamed.gguf")
    with pytest.raises(UserError, match=r"renamed.gguf is not part 1 of 1: name it as it was"):
        checkpoint.resolve(tmp_path / "renamed.gguf")


def split(file, folder):
    """Two parts, as llama.cpp's gguf-split makes them: settings in the first."""
    folder.mkdir()
    reader = theirs.GGUFReader(file)
    half = len(reader.tensors) // 2
    for number, part in enumerate((reader.tensors[:half], reader.tensors[half:])):
        writer = theirs.GGUFWriter(folder / f"m-0000{number + 1}-of-00002.gguf", "llama")
        for key, field in reader.fields.items() if number == 0 else ():
            if not key.startswith("GGUF.") and key != "general.architecture":
                kind = field.types[0]
                sub = field.types[1] if kind == theirs.GGUFValueType.ARRAY else None
                writer.add_key_value(key, field.contents(), kind, sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in part:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba' is not read from GGUF files: read are llama"),
        (
            {"llama.attention.sliding_window": 16},
            "setting llama.attention.sliding_window .16. is not understood",
        ),
        ({"llama.expert_count": 8}, "llama.expert_count"),
        ({"llama.attention.causal": False}, "llama.attention.causal .False. is not understood: only causal"),
        ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count is 4, and heads have 8"),
        ({"llama.attention.value_length": 4}, "llama.attention.value_length is 4, and heads have 8"),
        ({"llama.attention.head_count_kv": [4, 2]}, r"has \[4, 2\] as llama.attention.head_count_kv"),
        ({"llama.block_count": None}, "lacks the setting llama.block_count"),
        ({"tokenizer.ggml.model": "t5"}, "the tokenizer 't5' is not understood, read are gpt2 and llama"),
        ({"tokenizer.ggml.model": None}, "the tokenizer None is not understood"),
        ({"tokenizer.ggml.pre": "viking"}, "the rule 'viking' .* is not understood, known are gpt-2"),
        ({"tokenizer.ggml.merges": ["t1"]}, "the merge 't1' of its tokenizer is not a pair"),
        ({"tokenizer.ggml.merges": ["t1 t7777"]}, "its tokenizer is damaged"),
        ({"tokenizer.ggml.model": "llama"}, "no score for each token"),
        ({"tokenizer.ggml.merges": None}, "its tokenizer has no merges"),
        ({"tokenizer.ggml.token_type": [1]}, "its tokenizer has no type for each token"),
        ({"tokenizer.ggml.eos_token_id": 128}, "tokenizer.ggml.eos_token_id is 128, and there are 128 tokens"),
        ({"tokenizer.ggml.eot_token_id": "x"}, "tokenizer.ggml.eot_token_id is 'x', and"),
        ({"tokenizer.ggml.tokens": [1, 2, 3]}, "is damaged"),
        ({"tokenizer.ggml.merges": 5}, "is damaged: a setting has a value that it cannot have"),
        ({"tokenizer.chat_template": ["a"]}, "is damaged: a setting has a value that it cannot have"),
        ({"llama.attention.head_count": 4.0}, "is damaged: a setting has a value that it cannot have"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(fixtures, tmp_path, fields, message):
    file = convert(fixtures / "llama2", tmp_path / "model.gguf", **fields)
    with pytest.raises(UserError, match=message) as raised:
        checkpoint.resolve(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "cache").rglob("*.gguf")), "nothing half made is left"


def test_tensors_that_are_missing_or_not_understood_are_named(fixtures, tmp_path, monkeypatch):
    file = convert(fixtures / "llama2", tmp_path / "a.gguf", drop=("ffn_up",))
    folder = checkpoint.resolve(file)
    config = hf.load_config(folder)
    with pytest.raises(UserError, match=r"lacks the tensor model.layers.0.mlp.up_proj.weight"):
        hf.load_params(folder, config)
    monkeypatch.setitem(gguf.ARCHITECTURES, "qwen3", gguf.Architecture("qwen3"))
    file = convert(fixtures / "qwen3", tmp_path / "b.gguf")
    with pytest.raises(UserError, match=r"tensor blk.0.attn_k_norm.weight is not understood in a model of qwen3"):
        checkpoint.resolve(file)


def _cut(size):
    return lambda data: data[:size]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda data: b"", "not a readable GGUF file"),
        (lambda data: b"GGML" + data[4:], "is not a GGUF file"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "of version 1, read are 2 and 3"),
        (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "of version 50331648, read are 2 and 3"),
        (_cut(20), "truncated or damaged"),
        (_cut(1000), "truncated or damaged"),
        (lambda data: data[:-64], "is truncated: tensor .* ends behind it"),
        (lambda data: data[:8] + struct.pack("<QQ", 2**60, 2**60) + data[24:], "damaged|unknown type"),
        # A first key of 2^62 bytes, and a first value that is an array of as many numbers.
        (lambda data: data[:24] + struct.pack("<Q", 2**62) + data[32:], "truncated or damaged"),
        (
            lambda data: data[:24] + struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 2**60) + data[24:],
            "truncated or damaged",
        ),
        (lambda data: data.replace(b"gpt-2", b"g\xfft-2"), "truncated or damaged"),
    ],
)
def test_damaged_files_are_refused_in_one_line(fixtures, tmp_path, harm, message):
    """Whatever a header claims, nothing of that size is made."""
    file = convert(fixtures / "llama2", tmp_path / "model.gguf")
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(UserError, match=message) as raised:
        checkpoint.resolve(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_random_damage_never_ends_in_a_traceback(fixtures, tmp_path):
    file = convert(fixtures / "llama2", tmp_path / "model.gguf")
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, 4000, rng.integers(1, 6)):
            data[place] = rng.integers(0, 256)
        file.write_bytes(bytes(data))
        with contextlib.suppress(UserError):
            gguf.config_json(gguf.read(file))
            gguf.open_tensors(gguf.read(file))


def test_the_folder_is_made_once_and_anew_when_the_file_changes(fixtures, tmp_path):
    file = convert(fixtures / "llama2", tmp_path / "model.gguf")
    first = checkpoint.resolve(file)
    assert checkpoint.resolve(str(file)) == first
    fingerprint = checkpoint.fingerprint(first)
    changed = bytearray(file.read_bytes())
    changed[-5] ^= 1
    file.write_bytes(bytes(changed))
    second = checkpoint.resolve(file)
    assert second != first
    assert checkpoint.fingerprint(second) != fingerprint


def test_files_and_folders_that_name_no_model_are_said(fixtures, tmp_path):
    with pytest.raises(UserError, match=r"no such file: nowhere.gguf"):
        checkpoint.resolve("nowhere.gguf")
    for name in ("a", "b"):
        convert(fixtures / "llama2", tmp_path / f"{name}.gguf")
    with pytest.raises(UserError, match=r"holds several GGUF files: name one, .*a.gguf"):
        checkpoint.resolve(tmp_path)


def test_a_cache_that_cannot_be_written_is_said(fixtures, tmp_path, monkeypatch):
    file = convert(fixtures / "llama2", tmp_path / "model.gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(UserError, match=r"cannot write .* give XDG_CACHE_HOME a folder that can be written"):
        checkpoint.resolve(file)


TEXTS = (
    "Then, 12 of the 345 ones' — don't  stop:\n\n\t(3.14159) été 日本語 🙂 e\u0301",
    "  leading and trailing  \n",
    "x=12345678; y='it'S'\r\n\r\nEND",
)


def with_tokenizer(fixtures, tmp_path, raw, kinds=None, **fields):
    """A GGUF file with the vocabulary and the merges of a tokenizer.json."""
    content = json.loads(raw.read_text())
    vocab = content["model"]["vocab"] | {t["content"]: t["id"] for t in content["added_tokens"]}
    tokens = sorted(vocab, key=vocab.get)
    added = {t["content"] for t in content["added_tokens"]}
    merges = [" ".join(m) if isinstance(m, list) else m for m in content["model"]["merges"]]
    file = convert(
        fixtures / "llama2",
        tmp_path / "model.gguf",
        **{
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.token_type": [3 if token in added else 1 for token in tokens],
            "tokenizer.ggml.eos_token_id": len(tokens) - 1,
            "tokenizer.ggml.bos_token_id": None,
        }
        | fields,
    )
    return Tokenizer.load(checkpoint.resolve(file))


@pytest.mark.parametrize(("name", "rule"), [("tokenizer_gpt2", "gpt-2"), ("tokenizer_qwen2", "qwen2")])
def test_tokenizers_cut_text_as_the_original_does(fixtures, tmp_path, shared_data, name, rule):
    raw = shared_data / "weights" / name / "tokenizer.json"
    found = with_tokenizer(fixtures, tmp_path, raw, **{"tokenizer.ggml.pre": rule})
    expected = tokenizers.Tokenizer.from_file(str(raw))
    for text in TEXTS:
        assert found.encode_text(text) == expected.encode(text, add_special_tokens=False).ids
        assert found.decode(found.encode_text(text)) == expected.decode(found.encode_text(text))


@pytest.mark.parametrize(
    ("rule", "pieces"),
    [
        ("gpt-2", ["a", " 1234", "!'", "s"]),
        ("smollm", ["a", " ", "1", "2", "3", "4", "!'", "s"]),
        ("llama-bpe", ["a", " ", "123", "4", "!'", "s"]),
        ("qwen2", ["a", " ", "1", "2", "3", "4", "!'", "s"]),
        ("default", ["a", " ", "123", "4", "!'", "s"]),
    ],
)
def test_each_rule_cuts_numbers_in_its_way(fixtures, tmp_path, rule, pieces):
    file = convert(fixtures / "llama2", tmp_path / "model.gguf", **{"tokenizer.ggml.pre": rule})
    raw = tokenizers.Tokenizer.from_file(str(checkpoint.resolve(file) / "tokenizer.json"))
    cut = [piece.replace("Ġ", " ") for piece, _ in raw.pre_tokenizer.pre_tokenize_str("a 1234!'s")]
    assert cut == pieces


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
PIECES += ["▁", "a", "b", "c", "ab", "▁a", "▁ab", "abc", "▁▁", "bc"]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_merges_the_best_piece_first(fixtures, tmp_path, prefix):
    """Scores say which pair goes first: "bc" beats "ab" here. What is no piece is its bytes."""
    order = ["▁a", "bc", "ab", "abc", "▁ab", "▁▁"]
    scores = [-float(order.index(piece)) if piece in order else -100.0 for piece in PIECES]
    file = convert(
        fixtures / "llama2",
        tmp_path / "model.gguf",
        **{
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": PIECES,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 259),
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_space_prefix": prefix,
        },
    )
    tokenizer = Tokenizer.load(checkpoint.resolve(file))
    shown = lambda text: [PIECES[i] for i in tokenizer.encode_text(text)]
    assert shown("abc") == (["▁a", "bc"] if prefix else ["abc"])
    assert shown("a abc") == (["▁a"] if prefix else ["a"]) + ["▁a", "bc"]
    assert shown("é")[-2:] == ["<0xC3>", "<0xA9>"]
    for text in ("a abc  bc é", "abc"):
        assert tokenizer.decode(tokenizer.encode_text(text)) == text
    assert tokenizer.start_ids == [1], "SentencePiece begins a text with its token, unless the file says no"
    assert tokenizer.eos_ids == (2,)


def test_template_and_ends_come_from_the_file(fixtures, tmp_path):
    tokens = [*TOKENS[:126], "<|eot|>", "<|end|>"]
    file = convert(
        fixtures / "llama2",
        tmp_path / "model.gguf",
        **{
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * 126 + [3, 3],
            "tokenizer.ggml.eos_token_id": 127,
            "tokenizer.ggml.eot_token_id": 126,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}<|eot|>{% endfor %}",
        },
    )
    tokenizer = Tokenizer.load(checkpoint.resolve(file))
    assert tokenizer.eos_ids == (127, 126)
    assert tokenizer.has_template
    assert tokenizer.encode_prompt([{"role": "user", "content": "t7"}])[-1] == 126


@pytest.mark.filterwarnings("default")  # PyTorch and transformers warn of what is theirs
@pytest.mark.parametrize(("name", "kind"), [("llama2", "Q8_0"), ("qwen2", "Q4_1")])
def test_transformers_reads_the_same_logits_from_the_file(fixtures, tmp_path, name, kind):
    torch = pytest.importorskip("torch", reason="needs PyTorch, to read the file with transformers")
    import transformers

    file = convert(fixtures / name, tmp_path / "model.gguf", Kind[kind])
    model = LanguageModel.load(str(file), dtype=np.float32)
    tokens = np.random.default_rng(0).integers(3, 128, (2, 24)).astype(np.int32)
    found = decoder.unembed(model.params, model.config, decoder.hidden(model.params, model.config, tokens))
    reader = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    with torch.no_grad():
        expected = reader(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-3, rtol=0)
