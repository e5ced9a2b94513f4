"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): made, merged, and exchanged with PEFT.

    config = dataclasses.replace(config, lora=LoraConfig(rank=16))
    params = join(params, init(config, jax.random.key(0)))       # the same function as before: B is zero
    frozen, adapters = split(params)                             # train the second
    plain = merge(params, config)                                # for sampling, scoring, saving

The adapter of the matrix `q` of shape (D, N, H) is `q_a` (D, R) and `q_b` (R, N, H) in the dict of its layer. The
forward pass adds alpha / rank * (x @ A) @ B wherever `config.lora` says so (`common.model.decoder`).
"""

import dataclasses
import functools
import json
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import save_file

from common.config import PROJECTIONS, LoraConfig, ModelConfig
from common.errors import UserError
from common.model import decoder, peft
from common.model.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from common.model.decoder import Params
from common.model.hf import LAYER_RULES
from common.model.sharding import fetch

CONFIG, WEIGHTS = ADAPTER_CONFIG, ADAPTER_WEIGHTS
_MODULES = {rule.key: rule.name.removesuffix(".weight") for rule in LAYER_RULES if rule.key in PROJECTIONS}


def _settings(config: ModelConfig) -> LoraConfig:
    assert config.lora is not None, "without settings the configuration is that of a model without adapters"
    return config.lora


@functools.partial(jax.jit, static_argnums=1)
def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A (*inner, R), uniform within 1 / sqrt(size of inner) as in PEFT."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def init(config: ModelConfig, key: jax.Array) -> Params:
    """New adapters in float32 for `config.lora`: A random, B zero, together nothing at first."""
    # One by one: a program that drew those of all layers would take long to compile.
    _, shapes = split(decoder.abstract_params(config))
    keys = jax.random.split(jax.random.split(key, 3)[2], config.num_layers)  # as `Decoder` splits off its layers'
    adapters = []
    for layer, layer_key in zip(shapes["layers"], keys, strict=True):
        new = {name: jnp.zeros(leaf.shape) for name, leaf in layer.items()}
        for i, name in enumerate(_settings(config).targets):
            new[f"{name}_a"] = _uniform(jax.random.fold_in(layer_key, i), layer[f"{name}_a"].shape)
        adapters.append(new)
    return {"layers": adapters}


def split(params: Params) -> tuple[Params, Params]:
    """The tree without its adapters, and a tree of the adapters alone."""

    def layers(adapters: bool) -> list[Params]:
        belongs = lambda name: name.endswith(("_a", "_b")) == adapters
        return [{name: leaf for name, leaf in layer.items() if belongs(name)} for layer in params["layers"]]

    return params | {"layers": layers(adapters=False)}, {"layers": layers(adapters=True)}


def join(frozen: Params, adapters: Params) -> Params:
    """The tree that `split` took apart, or plain parameters with new adapters."""
    return frozen | {"layers": [a | b for a, b in zip(frozen["layers"], adapters["layers"], strict=True)]}


@jax.jit
def _add_product(w: jax.Array, a: jax.Array, b: jax.Array, scale: Float[Array, ""]) -> jax.Array:
    rank = a.shape[-1]
    # Merged once and for good: by default accelerators would round the factors.
    product = jnp.matmul(a.reshape(-1, rank), b.reshape(rank, -1), precision="highest")
    return (w.astype(jnp.float32) + scale * product.reshape(w.shape)).astype(w.dtype)


def merge(params: Params, config: ModelConfig) -> Params:
    """Parameters without adapters and with their effect: W + alpha / rank * A @ B, in float32, in W's dtype.

    They belong to the same configuration without `lora`.
    """
    lora = _settings(config)
    scale = lora.alpha / lora.rank
    merged = [
        {name: _add_product(layer[name], layer[f"{name}_a"], layer[f"{name}_b"], scale) for name in lora.targets}
        for layer in params["layers"]
    ]
    return join(split(params)[0], {"layers": merged})


def _names(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Every tensor of an adapter as PEFT names it: the key of our leaf, and the layer."""
    return {
        f"base_model.model.model.layers.{i}.{_MODULES[name]}.lora_{part}.weight": (f"{name}_{part.lower()}", i)
        for name in _settings(config).targets
        for i in range(config.num_layers)
        for part in "AB"
    }


def save_adapter(folder: str | os.PathLike, params: Params, config: ModelConfig, base: str) -> pathlib.Path:
    """Write the adapters among `params` as a folder that PEFT loads onto the model `base` (a hub id or a folder).

    Raises UserError when the folder cannot be written.
    """
    folder, lora = pathlib.Path(folder), _settings(config)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [_MODULES[name].split(".")[-1] for name in lora.targets],
    }
    tensors = {}
    for name, (key, layer) in _names(config).items():
        leaf = fetch(params["layers"][layer][key]).astype(np.float32)
        size = (-1, lora.rank) if key.endswith("_a") else (lora.rank, -1)
        # PEFT stores both factors transposed: A (R, in) and B (out, R).
        tensors[name] = np.ascontiguousarray(leaf.reshape(size).T)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the adapter {folder}: {error}") from None
    return folder


def load_adapter(folder: str | os.PathLike, params: Params, config: ModelConfig) -> tuple[Params, ModelConfig]:
    """Plain `params` joined with the adapter that PEFT or `save_adapter` wrote, and the configuration for both.

    To use a model with an adapter merged into it, name it BASE+ADAPTER (`common.model.checkpoint.resolve`).
    Raises UserError when the folder is no plain LoRA adapter, naming the fields that say so, that of another
    model, or one whose matrices differ in rank or scale.
    """
    folder = pathlib.Path(folder)
    found = peft.read(folder / CONFIG, folder / WEIGHTS)
    kinds = {(factors.a.shape[0], factors.scale) for factors in found.values()}
    if len(kinds) != 1:
        raise UserError(f"{folder} is not an adapter of one rank and scale: name the model as BASE+{folder}")
    ((rank, scale),) = kinds
    held = {module.split(".", 3)[-1] for module in found}
    targets = tuple(name for name in PROJECTIONS if _MODULES[name] in held)
    config = dataclasses.replace(config, lora=LoraConfig(rank, scale * rank, targets))
    names = _names(config)
    module = lambda name: name.removeprefix(peft.PREFIX).partition(".lora_")[0]
    expected = {module(name) for name in names}
    if expected != found.keys():
        wrong = min(expected ^ found.keys())
        raise UserError(f"{folder} does not fit the model: an adapter of {wrong} is in one of them alone")
    shapes = decoder.abstract_params(config)["layers"]
    adapters: list[Params] = [{} for _ in shapes]
    for name, (key, layer) in names.items():
        tensor = found[module(name)].a if key.endswith("_a") else found[module(name)].b
        shape = shapes[layer][key].shape
        # PEFT stores both factors transposed: A (R, in) and B (out, R).
        if tensor.size != math.prod(shape):
            raise UserError(f"{folder} does not fit the model: tensor {name} has shape {tensor.shape}")
        adapters[layer][key] = jnp.asarray(tensor.T.reshape(shape), jnp.float32)
    return join(params, {"layers": adapters}), config
