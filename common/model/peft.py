"""Adapters in PEFT's files: adapter_config.json and adapter_model.safetensors, as far as they are plain LoRA.

factors = read(folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS, "llama")["model.layers.0.self_attn.q_proj"]
factors.product(slice(None), slice(None))                 # what is added to that module's matrix
"""

import dataclasses
import json
import math
import pathlib
import re
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from common.errors import UserError
from common.model.families import TRANSPOSED

PREFIX = "base_model.model."
"""What PEFT puts in front of a module's name."""
_READ = (
    *("peft_type", "r", "lora_alpha", "init_lora_weights"),
    *("use_rslora", "rank_pattern", "alpha_pattern"),
)
_WITHOUT_EFFECT = (
    # Where it comes from, and how it was trained.
    *("peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout"),
    # Which matrices have an adapter: the tensors themselves say it, and have to fit.
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying"),
    # PEFT reads these only for another kind of layer, or beside a setting that is refused.
    *("megatron_core", "qalora_group_size", "runtime_config"),
    *("eva_config", "loftq_config", "corda_config", "lora_ga_config"),
    # Set right by PEFT wherever it does not say what the base's matrices are.
    "fan_in_fan_out",
)
"""Fields of `adapter_config.json` that change nothing in what a stored adapter computes. Every other one has to be
off: a field not known here may mean anything."""
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the weights of the base alone. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change them, so
that the stored A and B belong to weights which are not those of the base model."""
_TRANSPOSED = ("c_attn", "c_proj", "c_fc")
"""The matrices of families that keep theirs the other way round (`common.model.families.TRANSPOSED`)."""


@dataclasses.dataclass(frozen=True)
class Factors:
    """The adapter of one matrix: scale * B @ A is added to it, A (R, in) and B (out, R) in float32; to a
    `transposed` one, that transposed."""

    file: pathlib.Path
    a: np.ndarray
    b: np.ndarray
    scale: float
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The matrix's."""
        shape = (self.b.shape[0], self.a.shape[1])
        return shape[::-1] if self.transposed else shape

    def product(self, rows: slice, columns: slice) -> np.ndarray:
        """A part of what is added."""
        if self.transposed:
            return np.float32(self.scale) * (self.b[columns] @ self.a[:, rows]).T
        return np.float32(self.scale) * (self.b[rows] @ self.a[:, columns])


def read(config: pathlib.Path, weights: pathlib.Path, family: str) -> dict[str, Factors]:
    """The adapters in PEFT's two files by the name of their module, `model.layers.0.self_attn.q_proj`, for a base
    of the `family`.

    Raises UserError when the files are missing or damaged, or are more than a plain LoRA adapter, naming the
    fields that say so.
    """
    folder = config.parent
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        _check_plain(folder, settings["peft_type"], settings)
        rank, alpha = settings["r"], settings["lora_alpha"]
        ranks, alphas = (dict(settings.get(name) or {}) for name in ("rank_pattern", "alpha_pattern"))
        _check_numbers(folder, [rank, *ranks.values()], [alpha, *alphas.values()])
        for pattern in (*ranks, *alphas):
            re.compile(pattern)
        with safe_open(weights, framework="numpy") as file:
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, TypeError, re.error, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder} is not a readable adapter in PEFT's format: {error!r}") from None
    found = {}
    for name in tensors:
        parts = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", name)
        other = None if parts is None else f"{PREFIX}{parts[1]}.lora_{'B' if parts[2] == 'A' else 'A'}.weight"
        if parts is None or other not in tensors:
            raise UserError(f"{folder} is not a plain LoRA adapter: tensor {name} is not one of a pair of A and B")
        if parts[2] == "B":
            continue
        module, a, b = parts[1], tensors[name], tensors[other]
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise UserError(f"{folder}: the adapter of {module} holds NaN or infinity: it was not trained well")
        r, its_alpha = _matching(ranks, module, rank), _matching(alphas, module, alpha)
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != r or b.shape[1] != r:
            raise UserError(f"{folder}: the adapter of {module} has shapes {a.shape} and {b.shape}, and rank {r}")
        scale = its_alpha / (math.sqrt(r) if settings.get("use_rslora") else r)
        transposed = family in TRANSPOSED and module.rpartition(".")[2] in _TRANSPOSED
        found[module] = Factors(folder, a, b, scale, transposed)
    return found


def base_of(config: pathlib.Path) -> str | None:
    """The model that an adapter was trained on, as its settings name it."""
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None


def _matching(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first key that is a suffix of the module's name, as a regular expression."""
    keys = (key for key in pattern if re.match(rf"(.*\.)?({key})$", module))
    return pattern.get(next(keys, ""), default)


def _check_numbers(folder: pathlib.Path, ranks: list[Any], alphas: list[Any]) -> None:
    for rank in ranks:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise UserError(f"{folder}: {rank!r} is no rank of an adapter, which is a whole number above zero")
    for alpha in alphas:
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise UserError(f"{folder}: {alpha!r} is no lora_alpha of an adapter, which is a number")


def _check_plain(folder: pathlib.Path, kind: str, settings: dict[str, Any]) -> None:
    """Refuse an adapter that is more than x @ A @ B * scale beside unchanged weights, by the fields in it."""
    if kind != "LORA":
        raise UserError(f"{folder} is not a plain LoRA adapter ({kind}): no other kind is read")
    init_weights = settings.get("init_lora_weights")
    odd = [
        name
        for name, value in settings.items()
        if value and name not in (*_READ, *_WITHOUT_EFFECT) and (name, value) != ("bias", "none")
    ]
    if init_weights not in _PLAIN_INITS:
        odd.append(f"init_lora_weights {init_weights!r}")
    if odd:
        raise UserError(
            f"{folder} is not a plain LoRA adapter ({', '.join(odd)}): merge it into its base with PEFT, or, if "
            "its init_lora_weights changed the base, convert it with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
