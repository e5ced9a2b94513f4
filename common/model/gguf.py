"""GGUF files, as llama.cpp and Ollama keep them: one file with settings, tokenizer and (quantized) weights.

    file = read(path)                                         # the header alone; every part of a split file
    config = config_json(file)                                # what config.json would say
    tensors = open_tensors(file)                              # by Hugging Face's names, dequantized when read

An architecture is one entry of `ARCHITECTURES`: what its settings and tensors are called on the other side, and
how llama.cpp's converter rearranged them. What an entry does not name is refused, setting or tensor.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Its own package reads it too, but takes
seconds for the header of a large vocabulary, and trusts the counts in it; here it dequantizes.
"""

import dataclasses
import json
import math
import mmap
import pathlib
import re
import struct
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from common.errors import UserError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ELEMENTS = 2**22
"""Elements dequantized at once: 16 MB in float32."""
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_READ = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4"),
)
_EXACT = {"F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
"""The types of numbers that need less than float32."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file. `shape` has the outermost dimension first, unlike the file."""

    file: pathlib.Path
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class GGUF:
    """What a file's header says: its settings, and where its tensors lie."""

    path: pathlib.Path
    fields: dict[str, Any]
    tensors: dict[str, Stored]

    def get(self, key: str, default: Any = None) -> Any:
        """A setting of the model's architecture, without the architecture's name."""
        return self.fields.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: Any = None) -> Any:
        """A setting that is a number above zero; raises UserError where it is missing, or something else."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            what = "lacks the setting" if value is None else f"has {value!r} as"
            raise UserError(f"{self.path} {what} {self.architecture}.{key}: fetch the file again")
        return value

    @property
    def heads(self) -> tuple[int, int]:
        """Heads of queries, and of keys and values."""
        heads = self.number("attention.head_count")
        return heads, self.number("attention.head_count_kv", heads)

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture"))


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How one of llama.cpp's architectures is written on Hugging Face's side.

    model_type: there. settings: names of settings in GGUF and in config.json, beside `_SETTINGS`. constants: what
    config.json has to say that a GGUF file takes for granted. names: parts of tensor names, beside `_NAMES`.
    rotated: the tensors whose rows the converter interleaved, so that the two halves of a rotary pair lie side by
    side. shifted: those to which it added 1 (norms that multiply by 1 + w).
    """

    model_type: str
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rotated: tuple[str, ...] = ()
    shifted: tuple[str, ...] = ()


_SETTINGS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""Numbers of every architecture in GGUF and in config.json."""
_HANDLED = (
    *("vocab_size", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    "attention.causal",
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
)
"""Settings of an architecture that `config_json` reads by itself. One more, unless it is off, is refused."""
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Parts of tensor names in GGUF and on Hugging Face's side; those of layers stand behind `blk.N.`."""
_FREQUENCIES = "rope_freqs.weight"
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

ARCHITECTURES = {
    "llama": Architecture("llama", rotated=("attn_q", "attn_k")),  # Mistral's too
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", names=_QK_NORMS),
}


def parts(path: pathlib.Path) -> list[pathlib.Path]:
    """The file alone, or all parts of the split file that it belongs to. Raises UserError where one is missing."""
    named = _PART.fullmatch(path.name)
    if named is None:
        return [path]
    count = int(named[3])
    found = [path.with_name(f"{named[1]}-{number:05}-of-{named[3]}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in found if not part.is_file()]
    if missing:
        raise UserError(f"{path} is one part of {count}, and {missing[0]} is not beside it: fetch all of them")
    return found


def read(path: pathlib.Path) -> GGUF:
    """The header of a GGUF file, with the tensors of all parts where it is split.

    Raises UserError when it is truncated, damaged, of a version or byte order that is not read, or lacks a part.
    """
    files = [_read_file(part) for part in parts(path)]
    count = len(files)
    for number, file in enumerate(files):
        if (file.fields.get("split.no", 0), file.fields.get("split.count", 1)) != (number, count):
            raise UserError(
                f"{file.path} is not part {number + 1} of {count}: name it as it was, NAME-00001-of-0000N.gguf, "
                "or fetch all parts again"
            )
    if count == 1:
        return files[0]
    tensors = {name: stored for file in files for name, stored in file.tensors.items()}
    if len(tensors) != files[0].fields.get("split.tensors.count"):
        raise UserError(
            f"{path}: the parts hold {len(tensors)} tensors and not as many as they say: fetch them again"
        )
    return GGUF(files[0].path, files[0].fields, tensors)


def _read_file(path: pathlib.Path) -> GGUF:
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).header()
    except (struct.error, UnicodeDecodeError):
        raise UserError(f"{path} is truncated or damaged: fetch it again") from None
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a readable GGUF file ({error})") from None


class _Reader:
    """Walks through a header. A count or length that points behind the end of the file ends in struct.error,
    before anything of that size is made."""

    def __init__(self, path: pathlib.Path, data: mmap.mmap):
        self._path, self._data, self._at = path, data, 0

    def header(self) -> GGUF:
        if self._data[:4] != b"GGUF":
            raise UserError(f"{self._path} is not a GGUF file")
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            raise UserError(
                f"{self._path} is a GGUF file of version {version}, read are 2 and 3 (little-endian): "
                "convert the model again with a current llama.cpp"
            )
        tensor_count, field_count = self._number("Q"), self._number("Q")
        fields = {}
        for _ in range(field_count):
            key = self._string()
            fields[key] = self._value(self._number("I"))
        stored = [self._tensor() for _ in range(tensor_count)]
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise UserError(f"{self._path}: general.alignment is {alignment!r}: fetch the file again")
        start = -(-self._at // alignment) * alignment
        tensors = {name: dataclasses.replace(tensor, start=tensor.start + start) for name, tensor in stored}
        for name, tensor in tensors.items():
            if tensor.start + tensor.size > len(self._data):
                raise UserError(f"{self._path} is truncated: tensor {name} ends behind it; fetch it again")
        if len(tensors) != len(stored):
            raise UserError(f"{self._path} names a tensor twice: fetch it again")
        return GGUF(self._path, fields, tensors)

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise struct.error
        self._at += size
        return self._data[self._at - size : self._at]

    def _string(self) -> str:
        return self._take(self._number("Q")).decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            kind, count = self._number("I"), self._number("Q")
            if kind == _STRING:
                return [self._string() for _ in range(count)]
            return list(struct.unpack(f"<{count}{self._code(kind)}", self._take(count * self._width(kind))))
        return self._number(self._code(kind))

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise UserError(f"{self._path} holds a value of unknown type {kind}: it is damaged, fetch it again")
        return _SCALARS[kind]

    def _width(self, kind: int) -> int:
        return struct.calcsize(f"<{self._code(kind)}")

    def _tensor(self) -> tuple[str, Stored]:
        """A tensor's name and place, from where the data begin."""
        name = self._string()
        shape = tuple(self._number("Q") for _ in range(self._number("I")))[::-1]
        number, start = self._number("I"), self._number("Q")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise UserError(f"{self._path}: tensor {name} is of an unknown type, number {number}") from None
        block, width = GGML_QUANT_SIZES[kind]
        if not shape or not all(shape) or shape[-1] % block:
            raise UserError(f"{self._path}: tensor {name} has the impossible shape {shape}: fetch the file again")
        return name, Stored(self._path, kind, shape, start, math.prod(shape) // block * width)


def config_json(file: GGUF) -> dict[str, Any]:
    """What the config.json of this model says.

    Raises UserError, naming it, for an architecture or setting that is not understood or is missing.
    """
    known = _architecture(file)
    names = _SETTINGS | dict(known.settings)
    own = f"{file.architecture}."
    for key, value in file.fields.items():
        if key.startswith(own) and value and key.removeprefix(own) not in (*names, *_HANDLED):
            raise UserError(f"{file.path}: the setting {key} ({value!r}) is not understood: use another file")
    if not file.get("attention.causal", True):  # the one setting that is on where a file does not say so
        raise UserError(
            f"{file.path}: the setting {own}attention.causal (False) is not understood: only causal attention is "
            "covered, and this model sees what follows too"
        )
    heads, kv_heads = file.heads
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"{file.path} lacks the tensor token_embd.weight: fetch the file again")
    head_dim = file.get("attention.key_length") or file.number("embedding_length") // heads
    for key, rest in (
        ("attention.value_length", ""),
        ("rope.dimension_count", " (a part of each head is rotated)"),
    ):
        if file.get(key, head_dim) != head_dim:
            raise UserError(f"{file.path}: {own}{key} is {file.get(key)}, and heads have {head_dim}{rest}")
    config = {
        "model_type": known.model_type,
        **{theirs: _shortest(file.number(key)) for key, theirs in names.items()},
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0],
        "rope_parameters": _rope(file, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "dtype": {"F32": "float32", "F16": "float16"}.get(embedding.kind.name, "bfloat16"),
    }
    return config | dict(known.constants) | _special_ids(file)


def write_config(file: GGUF, folder: pathlib.Path) -> None:
    """Write config.json into `folder`; raises UserError as `config_json` and `open_tensors` do."""
    open_tensors(file)
    (folder / "config.json").write_text(json.dumps(config_json(file), indent=2) + "\n", encoding="utf-8")


def _architecture(file: GGUF) -> Architecture:
    if file.architecture not in ARCHITECTURES:
        raise UserError(
            f"{file.path}: architecture {file.architecture!r} is not read from GGUF files: read are "
            f"{', '.join(ARCHITECTURES)}; a folder with safetensors may be"
        )
    return ARCHITECTURES[file.architecture]


def _shortest(value: Any) -> Any:
    """1e-05 and not 9.999999747378752e-06, as which the 32 bits of the file read in 64."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope(file: GGUF, head_dim: int) -> dict[str, Any]:
    theta = _shortest(file.number("rope.freq_base", 10_000.0))
    rope: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    # As llama.cpp, which scales by a factor that stands alone.
    kind = file.get("rope.scaling.type", "linear" if file.get("rope.scaling.factor") else "none")
    if kind != "none":
        rope |= {"rope_type": kind, "factor": _shortest(file.number("rope.scaling.factor"))}
        if file.get("rope.scaling.original_context_length"):
            rope["original_max_position_embeddings"] = file.number("rope.scaling.original_context_length")
    if _FREQUENCIES in file.tensors:
        if kind != "none":
            raise UserError(f"{file.path} holds {_FREQUENCIES} beside scaling {kind!r}: they are not understood")
        rope |= _llama3_scaling(file, theta, head_dim)
    return rope


def _llama3_scaling(file: GGUF, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling, of which a GGUF file keeps the result alone: what each frequency is divided by.

    The numbers that all Llama 3 models share give it back; raises UserError if they do not.
    """
    divided = GGUFTensor(file.tensors[_FREQUENCIES]).read((slice(None),), np.float32)
    low, high, original, factor = 1.0, 4.0, 8192, float(divided.max())
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if divided.shape != expected.shape or not np.allclose(divided, expected, rtol=1e-4):
        raise UserError(f"{file.path}: {_FREQUENCIES} is not the scaling of Llama 3, and not understood")
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "factor")
    return {"rope_type": "llama3", **dict(zip(names, (low, high, original, factor), strict=True))}


def _special_ids(file: GGUF) -> dict[str, Any]:
    """Ids of the start, of all ends (of a text, of a turn, of a message) and of the padding, as far as they are
    named."""
    ids = {
        name: file.fields.get(f"tokenizer.ggml.{name}_token_id")
        for name in ("bos", "eos", "eot", "eom", "padding")
    }
    ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None))
    found = {"bos_token_id": ids["bos"], "eos_token_id": ends or None, "pad_token_id": ids["padding"]}
    return {name: value for name, value in found.items() if value is not None}


class GGUFTensor:
    """A tensor that is dequantized when it is read, and as far as it is read.

    order: which row of the file each of its rows is; None where they are the same. add: added to every number.
    """

    def __init__(self, stored: Stored, order: np.ndarray | None = None, add: float = 0.0):
        self.file, self.shape, self.kind = stored.file, stored.shape, stored.kind.name
        self.dtype = _EXACT.get(self.kind, np.dtype(np.float32))
        self._stored, self._order, self._add = stored, order, add
        block, width = GGML_QUANT_SIZES[stored.kind]
        self._width = stored.shape[-1] // block * width

    def read(self, index: tuple[slice, ...], dtype: Any) -> np.ndarray:
        """The part `index` as `dtype`. No more than a few megabytes are held in float32 at a time."""
        *outer, last = index
        stored = self._stored
        if not outer and self._order is not None:  # a bias, whose rows lie side by side
            return GGUFTensor(stored, add=self._add).read((slice(None),), dtype)[self._order][last]
        rows = np.arange(stored.size // self._width).reshape(stored.shape[:-1])
        if self._order is not None:
            rows = rows[self._order]
        rows = rows[tuple(outer)]
        columns = range(*last.indices(stored.shape[-1]))
        out = np.empty((rows.size, len(columns)), dtype)
        data = np.memmap(stored.file, np.uint8, "r", stored.start, (stored.size // self._width, self._width))
        flat, step = rows.reshape(-1), max(1, _ELEMENTS // stored.shape[-1])
        for at in range(0, flat.size, step):
            part = dequantize(data[flat[at : at + step]], stored.kind)[:, last]
            out[at : at + step] = part + np.float32(self._add) if self._add else part
        return out.reshape(*rows.shape, len(columns))


def open_tensors(file: GGUF) -> dict[str, GGUFTensor]:
    """Every tensor under the name that it has in a Hugging Face folder.

    Raises UserError, naming it, for a tensor that is not understood.
    """
    known = _architecture(file)
    names = _NAMES | dict(known.names)
    heads, kv_heads = file.heads
    opened = {}
    for name, stored in file.tensors.items():
        if name == _FREQUENCIES:  # in the settings, see `_llama3_scaling`
            continue
        found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        if found is None or found[2] not in names:
            raise UserError(f"{file.path}: the tensor {name} is not understood in a model of {file.architecture}")
        if stored.kind.name not in _READ:
            raise UserError(
                f"{file.path}: tensor {name} is kept as {stored.kind.name}, read are {', '.join(_READ)}"
            )
        layer, part, which = found.groups()
        order = None
        if part in known.rotated:
            count = heads if part == "attn_q" else kv_heads
            if stored.shape[0] % (2 * count):
                raise UserError(f"{file.path}: tensor {name} has {stored.shape[0]} rows, and {count} heads")
            order = _rotated_rows(stored.shape[0], count)
        prefix = "" if layer is None else f"model.layers.{layer}."
        add = -1.0 if part in known.shifted else 0.0
        opened[f"{prefix}{names[part]}.{which}"] = GGUFTensor(stored, order, add)
    return opened


def _rotated_rows(rows: int, heads: int) -> np.ndarray:
    """Where the rows of a matrix lie in the file: there, head by head, row i of the first half of a head is
    followed by row i of its second half."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
