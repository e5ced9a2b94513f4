"""Hugging Face checkpoints in and out, by the table of names in `common.model.names`.

    config = load_config(folder)                              # see `common.model.checkpoint.resolve`
    params = load_params(folder, config)
    save("out", params, source=folder)                        # a folder that transformers loads

Only safetensors are read: pickled `*.bin` files can run code. Tensors are read one by one, with a mesh only the
slices that each device needs, so that the host never holds a second copy of the model.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from safetensors import SafetensorError
from safetensors.numpy import save_file

from common.config import ModelConfig
from common.errors import UserError, in_one_line
from common.mapping import read_object
from common.model import layout
from common.model.checkpoint import ADAPTER_CONFIG, INDEX
from common.model.decoder import Params, abstract_params
from common.model.families import FAMILIES, read_config
from common.model.names import IGNORED, Rule, layer_rules, prefix, top_rules
from common.model.peft import base_of
from common.model.sharding import param_shardings
from common.model.tensors import DTYPES, OVERFLOWN, Tensor, finite, open_tensors
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
    raw = read_object(file)
    if not isinstance(raw.get("model_type"), str):
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
        return read_config(content)
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
    files = _by_rule_names(open_tensors(pathlib.Path(folder)), config)
    abstract = abstract_params(config)
    _check_names(files, config, abstract)
    if config.tied_head and _head(config).name in files:
        _check_tied_head(files, config)
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, abstract)
    else:
        shardings = param_shardings(mesh, abstract)

    def load(rules: list[Rule], shapes: Params, shardings: Params) -> Params:
        return {rule.key: load_one(rule, shapes[rule.key].shape, shardings[rule.key]) for rule in rules}

    def load_one(rule: Rule, shape: tuple[int, ...], sharding: Any) -> jax.Array:
        tensors = _open(files, rule, shape)
        where = f"{tensors[0].file}: tensor {rule.name} holds NaN or infinity as {np.dtype(dtype)}"
        named = f"{where}: fetch or train the model again"  # every answer would be nonsense, without a word
        read = lambda index: np.ascontiguousarray(finite(layout.read(tensors, rule, shape, index, dtype), named))
        return jax.make_array_from_callback(shape, sharding, read)

    layers = zip(abstract["layers"], shardings["layers"], strict=True)
    return load(top_rules(config), abstract, shardings) | {
        "layers": [load(layer_rules(config, i), *layer) for i, layer in enumerate(layers)]
    }


def save(
    folder: str | os.PathLike, params: Params, source: str | os.PathLike, *, dtype: Any = None
) -> pathlib.Path:
    """Write `params` as a folder that transformers loads, in `dtype` (by default the parameters' own).

    config.json and the tokenizer come from the folder `source`, whose shape the parameters must have. The
    folder appears in one rename when it is complete; an older one of that name is replaced.
    """
    folder, source = pathlib.Path(folder), pathlib.Path(source)
    config = load_config(source)
    expected = abstract_params(config)
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
        raw = read_object(source / "config.json")
        # Under the name that is there: older versions of transformers know torch_dtype alone.
        raw["torch_dtype" if "torch_dtype" in raw else "dtype"] = dtype.name
        (partial / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        _write_tensors(partial, params, config, dtype)
        _replace(partial, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"cannot write {folder}: {in_one_line(error)}") from None
    return folder


def _by_rule_names(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The same tensors by the names of `common.model.names`, as far as transformers takes others for them."""
    head, before = _head(config).name, prefix(config)
    found = {head if name == "lm_head.weight" else name: tensor for name, tensor in tensors.items()}
    if not any(name.startswith(before) for name in found):  # saved without the head around it
        outside = (head, head.replace("weight", "bias"))
        found = {name if name in outside else before + name: tensor for name, tensor in found.items()}
    embed = top_rules(config)[0].name
    if config.tied_head and embed not in found and head in found:
        found[embed] = found.pop(head)
    return {name: tensor for name, tensor in found.items() if not name.endswith(IGNORED)}


def _head(config: ModelConfig) -> Rule:
    return next(rule for rule in top_rules(dataclasses.replace(config, tied_head=False)) if rule.key == "head")


def _check_names(files: dict[str, Tensor], config: ModelConfig, abstract: Params) -> None:
    """Refuse a checkpoint with tensors that the model does not have: the logits would be wrong."""
    known = {name for name, _, _ in layout.to_write(_pairs(abstract, config))}
    for name, tensor in files.items():
        if name not in known and not (name == _head(config).name and config.tied_head):
            raise UserError(f"{tensor.file} holds a tensor {name}, which a {config.family} model does not have")


def _check_tied_head(files: dict[str, Tensor], config: ModelConfig) -> None:
    """Refuse a head unlike the embedding: transformers keeps it, untied, whatever config.json says."""
    embed_rule, head_rule = top_rules(config)[0], _head(config)
    V, D = config.vocab_size, config.hidden_size
    (embed,), (head,) = _open(files, embed_rule, (V, D)), _open(files, head_rule, (D, V))
    for start in range(0, V, 4096):  # by blocks, so that no second copy lies in memory
        index = (slice(start, min(start + 4096, V)), slice(0, D))
        a, b = (tensor.read(index, np.float32) for tensor in (embed, head))
        if not np.array_equal(a, b, equal_nan=True):
            raise UserError(
                f"{head.file} holds a {head_rule.name} that differs from the embedding, though "
                "config.json ties them: set tie_word_embeddings to false there, or remove the tensor"
            )


def _open(files: dict[str, Tensor], rule: Rule, shape: tuple[int, ...]) -> list[Tensor]:
    """The tensor of an array of our `shape`, or those that the rule stands for."""
    if "{}" in rule.name:
        one = layout.one_of(rule)
        each = (_open(files, one._replace(name=rule.name.format(i)), shape[1:]) for i in range(shape[0]))
        return [tensor for tensors in each for tensor in tensors]
    if rule.name not in files:
        where = next(iter(files.values())).file.parent if files else "the checkpoint"
        raise UserError(f"{where} lacks the tensor {rule.name}: fetch the checkpoint again")
    tensor, expected = files[rule.name], layout.stored_shape(rule, shape)
    if tensor.dtype is None:
        known = ", ".join(DTYPES)
        raise UserError(f"{tensor.file}: tensor {rule.name} has dtype {tensor.kind}, read are {known}")
    if tensor.shape != expected:
        raise UserError(
            f"{tensor.file}: tensor {rule.name} has shape {tensor.shape}, config.json implies {expected}"
        )
    return [tensor]


def _pairs(params: Params, config: ModelConfig) -> Iterator[tuple[Rule, Any]]:
    """Every array of ours and its rule."""
    for rule in top_rules(config):
        yield rule, params[rule.key]
    for i, layer in enumerate(params["layers"]):
        for rule in layer_rules(config, i):
            yield rule, layer[rule.key]


def _write_tensors(folder: pathlib.Path, params: Params, config: ModelConfig, dtype: np.dtype) -> None:
    shards: list[list[layout.Made]] = [[]]
    sizes = [0]
    for made in layout.to_write(_pairs(params, config)):
        size = dtype.itemsize * made[1]
        if shards[-1] and sizes[-1] + size > SHARD_BYTES:
            shards.append([])
            sizes.append(0)
        shards[-1].append(made)
        sizes[-1] += size
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        arrays = {name: finite(make(dtype), OVERFLOWN.format(name)) for name, _, make in shard}
        # As transformers marks its own files: older versions refuse one that names no format.
        save_file(arrays, folder / file, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / file)  # safetensors lets nobody else read its files
        weight_map |= dict.fromkeys(arrays, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _replace(new: pathlib.Path, folder: pathlib.Path) -> None:
    """Put `new` in the place of `folder`. A folder cannot be renamed over a full one: the old steps aside."""
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
