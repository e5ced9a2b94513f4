"""Hugging Face checkpoints in and out: one table of names, read in both directions.

    config = load_config(folder)                              # see `common.model.checkpoint.resolve`
    params = load_params(folder, config)
    save("out", params, source=folder)                        # a folder that transformers loads

Only safetensors are read: pickled `*.bin` files can run code. Tensors are read one by one, with a mesh only the
slices that each device needs, so that the host never holds a second copy of the model.
"""

import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from safetensors import SafetensorError
from safetensors.numpy import save_file

from common.config import FAMILIES, ModelConfig
from common.errors import UserError
from common.model.checkpoint import ADAPTER_CONFIG, first_line
from common.model.decoder import Params, abstract_params
from common.model.peft import base_of
from common.model.sharding import fetch, param_shardings
from common.model.tensors import DTYPES, INDEX, Tensor, open_tensors
from common.model.tokenizer import import_transformers

SHARD_BYTES = 5 * 10**9
"""Size above which `save` starts another file."""

_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


class Rule(NamedTuple):
    """One tensor: its name in the file, its key in our tree, and the dimensions of both, in the letters of
    `common.model.decoder`. A Hugging Face dimension may merge several of ours ("NH D": head by head, then D)."""

    name: str
    key: str
    theirs: str
    ours: str


TOP_RULES = (
    Rule("model.embed_tokens.weight", "embed", "V D", "V D"),
    Rule("model.norm.weight", "norm", "D", "D"),
    Rule("lm_head.weight", "head", "V D", "D V"),
)
LAYER_RULES = (
    Rule("input_layernorm.weight", "norm1", "D", "D"),
    Rule("self_attn.q_proj.weight", "q", "NH D", "D N H"),
    Rule("self_attn.k_proj.weight", "k", "KH D", "D K H"),
    Rule("self_attn.v_proj.weight", "v", "KH D", "D K H"),
    Rule("self_attn.q_proj.bias", "q_bias", "NH", "N H"),
    Rule("self_attn.k_proj.bias", "k_bias", "KH", "K H"),
    Rule("self_attn.v_proj.bias", "v_bias", "KH", "K H"),
    Rule("self_attn.q_norm.weight", "q_norm", "H", "H"),
    Rule("self_attn.k_norm.weight", "k_norm", "H", "H"),
    Rule("self_attn.o_proj.weight", "o", "D NH", "N H D"),
    Rule("post_attention_layernorm.weight", "norm2", "D", "D"),
    Rule("mlp.gate_proj.weight", "gate", "F D", "D F"),
    Rule("mlp.up_proj.weight", "up", "F D", "D F"),
    Rule("mlp.down_proj.weight", "down", "D F", "F D"),
)


def load_config(folder: str | os.PathLike) -> ModelConfig:
    """Read a checkpoint's config.json. Raises UserError, naming the folder, when it is missing, broken or of an
    unknown model, or when the folder holds an adapter."""
    file = pathlib.Path(folder) / "config.json"
    if (file.parent / ADAPTER_CONFIG).exists():  # transformers with PEFT loads it, even beside a whole model
        base = base_of(file.parent / ADAPTER_CONFIG) or "BASE"
        raise UserError(
            f"{file.parent} holds an adapter ({ADAPTER_CONFIG}): name it behind the model that it belongs to, "
            f"{base}+{file.parent}"
        )
    raw = _read_json(file)
    if "model_type" not in raw:
        raise UserError(f"{file} names no model_type: is this a language model's folder?")
    if raw["model_type"] not in FAMILIES:
        _from_hf(file, raw)  # raises, before transformers says in its own words that it knows no such model
    transformers = import_transformers()
    try:
        normalised = transformers.AutoConfig.from_pretrained(file.parent, trust_remote_code=False).to_dict()
    except Exception as error:  # validation errors of transformers have many classes
        reason = " ".join(str(error).split())  # the first line of its messages names a check, not what failed
        raise UserError(f"cannot read {file}: {reason}") from None
    return _from_hf(file, normalised)


def _from_hf(file: pathlib.Path, content: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.from_hf(content)
    except UserError as error:
        raise UserError(f"{file.parent}: {error}") from None


def load_params(
    folder: str | os.PathLike, config: ModelConfig, *, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> Params:
    """Read a checkpoint's weights as `dtype` into the tree of `common.model.decoder`, placed on `mesh` if given.

    Raises UserError, naming file and tensor, when a file is missing, truncated or pickled, when a tensor is
    missing, unknown or of another shape than config.json says, or when a head differs from the embedding that
    config.json ties it to.
    """
    files = open_tensors(pathlib.Path(folder))
    embed, _, head = (rule.name for rule in TOP_RULES)
    if embed.removeprefix("model.") in files:  # saved without the head, by the names of the model inside
        files = {name if name == head else f"model.{name}": tensor for name, tensor in files.items()}
    _check_names(files, config)
    if config.tied_head and embed not in files and head in files:  # one matrix, under its other name
        files[embed] = files[head]
    if config.tied_head and "lm_head.weight" in files:
        _check_tied_head(files, config)
    abstract = abstract_params(config)
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, abstract)
    else:
        shardings = param_shardings(mesh, abstract)

    def load(prefix: str, rules: tuple[Rule, ...], shapes: Params, shardings: Params) -> Params:
        return {
            rule.key: load_one(prefix + rule.name, rule, shapes[rule.key].shape, shardings[rule.key])
            for rule in rules
            if rule.key in shapes
        }

    def load_one(name: str, rule: Rule, shape: tuple[int, ...], sharding: Any) -> jax.Array:
        tensor = _open_tensor(files, name, rule, shape)
        read = lambda index: np.ascontiguousarray(_read(tensor, rule, shape, index, dtype))
        return jax.make_array_from_callback(shape, sharding, read)

    layers = zip(abstract["layers"], shardings["layers"], strict=True)
    return load("", TOP_RULES, abstract, shardings) | {
        "layers": [load(f"model.layers.{i}.", LAYER_RULES, *layer) for i, layer in enumerate(layers)]
    }


def save(
    folder: str | os.PathLike, params: Params, source: str | os.PathLike, *, dtype: Any = None
) -> pathlib.Path:
    """Write `params` as a folder that transformers loads, in `dtype` (by default the parameters' own).

    config.json and the tokenizer come from the folder `source`, whose shape the parameters must have. The
    folder appears in one rename when it is complete; an older one of that name is replaced.
    """
    folder, source = pathlib.Path(folder), pathlib.Path(source)
    expected = abstract_params(load_config(source))
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
        raise ValueError(f"the parameters do not have the shape that {source / 'config.json'} states")
    dtype = np.dtype(dtype or params["embed"].dtype)
    partial = folder.parent / f".{folder.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, partial / name)
        raw = _read_json(source / "config.json")
        # Under the name that is there: older versions of transformers know torch_dtype alone.
        raw["torch_dtype" if "torch_dtype" in raw else "dtype"] = dtype.name
        (partial / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        _write_tensors(partial, params, dtype)
        _replace(partial, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"cannot write {folder}: {first_line(error)}") from None
    return folder


def _check_names(files: dict[str, Tensor], config: ModelConfig) -> None:
    """Refuse a checkpoint with tensors that the model does not have: the logits would be wrong."""
    known = {rule.name for rule, _ in _tensors(abstract_params(config))}
    for name, tensor in files.items():
        # Older checkpoints store the frequencies, which are computed here.
        if name in known or name.endswith("rotary_emb.inv_freq"):
            continue
        if name == "lm_head.weight" and config.tied_head:
            continue
        raise UserError(f"{tensor.file} holds a tensor {name}, which a {config.family} model does not have")


def _check_tied_head(files: dict[str, Tensor], config: ModelConfig) -> None:
    """Refuse a head unlike the embedding: transformers keeps it, untied, whatever config.json says."""
    embed_rule, _, head_rule = TOP_RULES
    V, D = config.vocab_size, config.hidden_size
    embed = _open_tensor(files, embed_rule.name, embed_rule, (V, D))
    head = _open_tensor(files, head_rule.name, head_rule, (D, V))
    for start in range(0, V, 4096):  # by blocks, so that no second copy lies in memory
        index = (slice(start, min(start + 4096, V)), slice(0, D))
        a, b = (tensor.read(index, np.float32) for tensor in (embed, head))
        if not np.array_equal(a, b, equal_nan=True):
            raise UserError(
                f"{head.file} holds a {head_rule.name} that differs from the embedding, though "
                "config.json ties them: set tie_word_embeddings to false there, or remove the tensor"
            )


def _open_tensor(files: dict[str, Tensor], name: str, rule: Rule, shape: tuple[int, ...]) -> Tensor:
    if name not in files:
        where = next(iter(files.values())).file.parent if files else "the checkpoint"
        raise UserError(f"{where} lacks the tensor {name}: fetch the checkpoint again")
    tensor, expected = files[name], _their_shape(rule, shape)
    if tensor.dtype is None:
        raise UserError(f"{tensor.file}: tensor {name} has dtype {tensor.kind}, read are {', '.join(DTYPES)}")
    if tensor.shape != expected:
        raise UserError(f"{tensor.file}: tensor {name} has shape {tensor.shape}, config.json implies {expected}")
    return tensor


def _their_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = dict(zip(rule.ours.split(), shape, strict=True))
    return tuple(math.prod(sizes[letter] for letter in group) for group in rule.theirs.split())


def _read(tensor: Tensor, rule: Rule, shape: tuple[int, ...], index: tuple[slice, ...], dtype: Any) -> np.ndarray:
    """The part `index` of a tensor of our `shape`, as `dtype`. Of merged dimensions the outermost alone is cut."""
    letters = rule.ours.split()
    sizes = dict(zip(letters, shape, strict=True))
    cuts = dict(zip(letters, (slice(*i.indices(n)) for i, n in zip(index, shape, strict=True)), strict=True))
    on_disk, view = [], []
    for outer, *inner in rule.theirs.split():
        cut, stride = cuts[outer], math.prod(sizes[letter] for letter in inner)
        on_disk.append(slice(cut.start * stride, cut.stop * stride))
        view += [cut.stop - cut.start, *(sizes[letter] for letter in inner)]
        cuts[outer] = slice(None)
    order = [rule.theirs.replace(" ", "").index(letter) for letter in letters]
    array = tensor.read(tuple(on_disk), dtype).reshape(view).transpose(order)
    return array[tuple(cuts[letter] for letter in letters)]


def _tensors(params: Params) -> Iterator[tuple[Rule, Any]]:
    """Every tensor of a checkpoint: its rule with the full name, and our leaf."""
    for rule in TOP_RULES:
        if rule.key in params:
            yield rule, params[rule.key]
    for rule in LAYER_RULES:
        for i, layer in enumerate(params["layers"]):
            if rule.key in layer:
                yield rule._replace(name=f"model.layers.{i}.{rule.name}"), layer[rule.key]


def _write_tensors(folder: pathlib.Path, params: Params, dtype: np.dtype) -> None:
    shards: list[list] = [[]]
    sizes = [0]
    for rule, leaf in _tensors(params):
        size = dtype.itemsize * leaf.size
        if shards[-1] and sizes[-1] + size > SHARD_BYTES:
            shards.append([])
            sizes.append(0)
        shards[-1].append((rule, leaf))
        sizes[-1] += size
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        arrays = {rule.name: _to_theirs(rule, leaf, dtype) for rule, leaf in shard}
        # As transformers marks its own files: older versions refuse one that names no format.
        save_file(arrays, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(arrays, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _to_theirs(rule: Rule, leaf: Any, dtype: np.dtype) -> np.ndarray:
    array = fetch(leaf)
    order = [rule.ours.split().index(letter) for letter in rule.theirs.replace(" ", "")]
    theirs = array.transpose(order).reshape(_their_shape(rule, array.shape))
    return np.ascontiguousarray(theirs, dtype=dtype)


def _replace(new: pathlib.Path, folder: pathlib.Path) -> None:
    """Put `new` in the place of `folder`. A folder cannot be renamed over a full one: the old steps aside."""
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such file: {file}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not readable JSON ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object")
    return content
