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
import shutil
from typing import Any

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
from common.model.families import TRANSPOSED
from common.model.names import Rule, layer_rules
from common.model.sharding import fetch
from common.model.tensors import OVERFLOWN, finite

CONFIG, WEIGHTS = ADAPTER_CONFIG, ADAPTER_WEIGHTS


def _settings(config: ModelConfig) -> LoraConfig:
    assert config.lora is not None, "without settings the configuration is that of a model without adapters"
    return config.lora


@functools.partial(jax.jit, static_argnums=1)
def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A (*inner, R), uniform within 1 / sqrt(size of inner) as in PEFT."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def init(config: ModelConfig, key: jax.Array) -> Params:
    """New adapters in float32 for `config.lora`: A random, B zero, together nothing at first.

    A layer without one of the matrices has no adapter of it, see also `ModelConfig.adapted`. Raises UserError
    where no layer has any.
    """
    _, shapes = split(decoder.abstract_params(config))
    if not any(shapes["layers"]):
        names = ", ".join(_settings(config).targets)
        raise UserError(
            f"no layer of this {config.family} model can have adapters beside {names}: name some of q, k, v, o"
        )
    # One by one: a program that drew those of all layers would take long to compile.
    keys = jax.random.split(jax.random.split(key, 3)[2], config.num_layers)  # as `Decoder` splits off its layers'
    adapters = []
    for layer, layer_key in zip(shapes["layers"], keys, strict=True):
        new = {name: jnp.zeros(leaf.shape) for name, leaf in layer.items()}
        for i, name in enumerate(_settings(config).targets):
            if f"{name}_a" in new:
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
        {
            name: _add_product(layer[name], layer[f"{name}_a"], layer[f"{name}_b"], scale)
            for name in lora.targets
            if f"{name}_a" in layer
        }
        for layer in params["layers"]
    ]
    return join(split(params)[0], {"layers": merged})


def _modules(config: ModelConfig) -> dict[str, tuple[int, list[Rule]]]:
    """Every module that has an adapter, as PEFT names it: its layer, and the rules of all our matrices in it."""
    found: dict[str, tuple[int, list[Rule]]] = {}
    for layer in range(config.num_layers):
        for rule in layer_rules(config, layer):
            if rule.key in PROJECTIONS:
                name = peft.PREFIX + rule.name.removesuffix(".weight")
                found.setdefault(name, (layer, []))[1].append(rule)
    return {name: at for name, at in found.items() if any(config.adapted(rule.key) for rule in at[1])}


def _short(module: str, config: ModelConfig) -> str:
    """What PEFT's settings call a module of all layers: the end of its name that no other module has."""
    ends = module.split(f".{_layer_of(module)}.", 1)[1]
    others = {rule.name.removesuffix(".weight") for rule in layer_rules(config, 0) if rule.key in PROJECTIONS}
    last = ends.split(".")[-1]
    return last if sum(name.endswith(f".{last}") for name in others) == 1 else ends


def _layer_of(module: str) -> int:
    return next(int(part) for part in module.split(".") if part.isdigit())


def _patterns(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """The settings of an adapter whose A differ among the matrices that lie in one module of the file: there it is
    a block matrix, whose rank and alpha are as many times higher as there are matrices."""
    lora, ranks, alphas = _settings(config), {}, {}
    for module, (_, rules) in _modules(config).items():
        if len(rules) > 1:
            name = _short(module, config)
            ranks[name], alphas[name] = len(rules) * lora.rank, len(rules) * lora.alpha
    return {"rank_pattern": ranks, "alpha_pattern": alphas}


def _stored(layer: Params, rules: list[Rule], rank: int, shared: bool) -> tuple[np.ndarray, np.ndarray]:
    """A (R, in) and B (out, R) of a module as PEFT stores them: both transposed."""
    factors = {}
    for rule in rules:
        if f"{rule.key}_a" in layer:
            both = (fetch(layer[f"{rule.key}_{part}"]).astype(np.float32) for part in "ab")
            a, b = (finite(array, OVERFLOWN.format(f"the adapter of {rule.key}")) for array in both)
            factors[rule.key] = a.reshape(-1, rank).T, b.reshape(rank, -1).T
    rows = rules[0].rows
    if rows is None:
        return factors[rules[0].key]
    size = next(iter(factors.values()))[0].shape[1]
    groups = next(
        len(factors[r.key][1]) // (r.rows.stop - r.rows.start) for r in rules if r.rows and r.key in factors
    )
    a = np.zeros((rank if shared else len(rules) * rank, size), np.float32)
    b = np.zeros((groups, rows.width, len(a)), np.float32)
    for i, rule in enumerate(rules):
        if rule.key in factors and rule.rows:
            block = slice(None) if shared else slice(i * rank, (i + 1) * rank)
            a[block] = factors[rule.key][0]
            b[:, rule.rows.start : rule.rows.stop, block] = factors[rule.key][1].reshape(groups, -1, rank)
    return a, b.reshape(-1, len(a))


def _ours(
    a: np.ndarray, b: np.ndarray, rules: list[Rule], rank: int
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """`_stored` taken back, one pair for each rule; None where the two are of another form."""
    if rules[0].rows is None:
        return [(a, b)] if len(a) == rank else None
    if len(b) % rules[0].rows.width:
        return None
    groups, found = b.reshape(-1, rules[0].rows.width, len(a)), []
    for i, rule in enumerate(rules):
        assert rule.rows
        own = groups[:, rule.rows.start : rule.rows.stop].reshape(-1, len(a))
        if len(a) == rank:
            found.append((a, own))
        elif len(a) == len(rules) * rank:
            block = slice(i * rank, (i + 1) * rank)
            if np.delete(own, np.arange(len(a))[block], axis=1).any():
                return None
            found.append((a[block], own[:, block]))
    return found or None


def save_adapter(folder: str | os.PathLike, params: Params, config: ModelConfig, base: str) -> pathlib.Path:
    """Write the adapters among `params` as a folder that PEFT loads onto the model `base` (a hub id or a folder).

    Raises UserError when the folder cannot be written.
    """
    folder, lora = pathlib.Path(folder), _settings(config)
    modules = _modules(config)
    shared = all(_same_a(params["layers"][layer], rules) for layer, rules in modules.values())
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": config.family in TRANSPOSED,
        "inference_mode": True,
        "target_modules": list(dict.fromkeys(_short(module, config) for module in modules)),
    } | ({} if shared else _patterns(config))
    tensors = {}
    for module, (layer, rules) in modules.items():
        a, b = _stored(params["layers"][layer], rules, lora.rank, shared)
        tensors |= {f"{module}.lora_{part}.weight": np.ascontiguousarray(x) for part, x in (("A", a), ("B", b))}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets nobody else read its files
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
    found = peft.read(folder / CONFIG, folder / WEIGHTS, config.family)
    everywhere = _modules(dataclasses.replace(config, lora=LoraConfig()))
    held = {module: everywhere[peft.PREFIX + module][1] for module in found if peft.PREFIX + module in everywhere}
    scales = {factors.scale for factors in found.values()}
    rank = _rank([(found[module], rules) for module, rules in held.items()])
    if len(scales) != 1 or rank is None:
        raise UserError(f"{folder} is not an adapter of one rank and scale: name the model as BASE+{folder}")
    (scale,) = scales
    targets = {rule.key for rules in held.values() for rule in rules}
    settings = LoraConfig(rank, scale * rank, tuple(name for name in PROJECTIONS if name in targets))
    config = dataclasses.replace(config, lora=settings)
    modules = {name.removeprefix(peft.PREFIX): at for name, at in _modules(config).items()}
    if modules.keys() != found.keys():
        wrong = min(modules.keys() ^ found.keys())
        raise UserError(f"{folder} does not fit the model: an adapter of {wrong} is in one of them alone")
    shapes = decoder.abstract_params(config)["layers"]
    adapters: list[Params] = [{} for _ in shapes]
    for module, (layer, rules) in modules.items():
        pairs = _ours(found[module].a, found[module].b, rules, rank)
        if pairs is None:
            raise UserError(f"{folder} is not an adapter of one rank and scale: name the model as BASE+{folder}")
        for rule, pair in zip(rules, pairs, strict=True):
            for part, tensor in zip("ab", pair, strict=True):
                shape = shapes[layer][f"{rule.key}_{part}"].shape
                if tensor.size != math.prod(shape):
                    raise UserError(
                        f"{folder} does not fit the model: the {part.upper()} of {module} has shape {tensor.shape}"
                    )
                # PEFT stores both factors transposed: A (R, in) and B (out, R).
                adapters[layer][f"{rule.key}_{part}"] = jnp.asarray(tensor.T.reshape(shape), jnp.float32)
    return join(params, {"layers": adapters}), config


def _rank(held: list[tuple[peft.Factors, list[Rule]]]) -> int | None:
    """The rank of the adapters, None where they differ in it: in a module of several matrices, it may be as many
    times higher as there are."""
    alone = {len(factors.a) for factors, rules in held if rules[0].rows is None}
    if alone or not held:
        return next(iter(alone)) if len(alone) == 1 else None
    ranks = {(len(factors.a), len(rules)) for factors, rules in held}
    if len(ranks) != 1:
        return None
    ((rank, count),) = ranks
    blocks = rank % count == 0 and all(
        _ours(factors.a, factors.b, rules, rank // count) and factors.b.any() for factors, rules in held
    )
    return rank // count if blocks else rank


def _same_a(layer: Params, rules: list[Rule]) -> bool:
    """Whether one A serves all matrices of a module."""
    held = [fetch(layer[f"{rule.key}_a"]) for rule in rules if f"{rule.key}_a" in layer]
    return all(np.array_equal(held[0], a) for a in held[1:])
