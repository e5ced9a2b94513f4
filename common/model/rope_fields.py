"""How `config.json` states rotary embeddings. Loads no jax."""

import math
from collections.abc import Mapping
from typing import Any

from common.config import Rope, RopeScaling
from common.errors import UserError

Fields = Mapping[str, Any]


def read_ropes(
    hf: Fields, head_dim: int, positions: int, layers: int, *, partial: bool, interleaved: bool, by_type: bool
) -> list[Rope]:
    """Rotary embedding of each layer, from `rope_parameters` (v5) or `rope_theta` + `rope_scaling` (before).

    partial: `partial_rotary_factor` counts; by_type: parameters are stated by layer type.

    Raises UserError for a rope type that the model does not have, and for a value that is no number.
    """
    given = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    nested = [kind for kind, value in given.items() if isinstance(value, dict)]
    if nested and not by_type:
        raise UserError(f"unsupported rope_parameters by layer type in config.json ({', '.join(nested)})")

    def read(rope: Fields) -> Rope:
        theta = number("rope_theta", rope.get("rope_theta", hf.get("rope_theta", 10_000.0)))
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind == "yarn" and theta == 1:  # its ramp lies between frequencies, and there is one alone
            raise UserError("rope_theta 1 beside rope_type 'yarn' in config.json: it has to be above 1")
        part = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
        part = 1.0 if part is None else part
        if not partial:
            # Without scaling, transformers ignores the field in these families.
            if part != 1 and kind != "default":
                raise UserError(f"unsupported partial_rotary_factor beside rope_type {kind!r} in config.json")
            part = 1.0
        size = int(head_dim * number("partial_rotary_factor", part))
        if size % 2 or not 0 < size <= head_dim:
            raise UserError(
                f"partial_rotary_factor {part} in config.json rotates {size} of a head's {head_dim} numbers: that "
                "has to be an even part"
            )
        # Within the model's positions `dynamic` is the default: it begins beyond, where nothing is computed here.
        plain = kind in ("default", "dynamic")
        scaling = None if plain else _scaling(kind, hf, rope, positions, size, nested=by_type)
        return Rope(theta, scaling, None if size == head_dim else size, interleaved)

    if not by_type:
        return [read(given)] * layers
    of_type = {kind: read(given[kind]) for kind in nested}
    return [of_type[kind] for kind in hf["layer_types"][:layers]]


def number(name: str, value: Any) -> float:
    """A setting that is a number above zero; raises UserError for anything else."""
    if isinstance(value, (int, float)) and value > 0:
        return float(value)
    raise UserError(f"{name} {value!r} in config.json is not a positive number")


def _scaling(kind: str, hf: Fields, rope: Fields, positions: int, size: int, *, nested: bool) -> RopeScaling:
    if kind == "linear":
        return RopeScaling("linear", number("factor", rope["factor"]))
    if kind not in ("llama3", "yarn", "longrope"):
        known = "default, linear, dynamic, llama3, yarn and longrope are"
        raise UserError(f"unsupported rope_type {kind!r} in config.json: {known}")
    before = None if nested else hf.get("original_max_position_embeddings")
    original = before or rope.get("original_max_position_embeddings") or positions
    original = int(number("original_max_position_embeddings", original))
    if kind == "llama3":
        factor, low, high = (
            number(name, rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")
        )
        return RopeScaling("llama3", factor, low, high, original)
    factor = rope.get("factor")
    factor = positions / original if factor is None else number("factor", factor)
    attention = rope.get("attention_factor")
    if attention is not None:
        attention = number("attention_factor", attention)
    if kind == "yarn":
        if attention is None:
            attention = _mscale(factor)
            if rope.get("mscale") and rope.get("mscale_all_dim"):
                scale, over = (number(name, rope[name]) for name in ("mscale", "mscale_all_dim"))
                attention = _mscale(factor, scale) / _mscale(factor, over)
        return RopeScaling(
            "yarn",
            factor,
            original_max_positions=original,
            beta_fast=number("beta_fast", rope.get("beta_fast") or 32.0),
            beta_slow=number("beta_slow", rope.get("beta_slow") or 1.0),
            # Transformers looks for it beside the layer types, and there never finds it.
            truncate=bool(nested or rope.get("truncate", True)),
            attention_factor=attention,
        )
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short = tuple(number("short_factor", value) for value in rope["short_factor"])
    if len(short) != size // 2:
        raise UserError(f"short_factor in config.json has {len(short)} numbers, {size // 2} are needed")
    return RopeScaling(
        "longrope", factor, original_max_positions=original, attention_factor=attention, short_factors=short
    )


def _mscale(factor: float, scale: float = 1.0) -> float:
    """How much longer contexts sharpen attention, by YaRN (arXiv 2309.00071, equation 22)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
