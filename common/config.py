"""Frozen settings of the core: the model's shape, training, sampling.

Plain dataclasses without jax, so that command lines can be parsed and checked before jax is loaded.

    config = ModelConfig.from_hf(transformers.AutoConfig.from_pretrained(path).to_dict())
"""

import dataclasses
from typing import Any, Literal

from common.errors import UserError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
"""The matrices of a layer that adapters can stand beside."""

_UNSUPPORTED = {
    "per_layer_config": "every layer has the same shape here",
    "transformers_weights": "weights are read from model.safetensors or its shards alone",
}
"""Fields of config.json that transformers honours in every family, and what is so here instead."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary embeddings: `linear` divides every frequency by `factor`; `llama3` divides
    only those whose wavelength exceeds the original context, with a smooth band in between."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside `targets`: x @ W + alpha / rank * (x @ A) @ B, as Hu et al., arXiv 2106.09685."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = PROJECTIONS

    def __post_init__(self):
        unknown = [name for name in self.targets if name not in PROJECTIONS]
        if self.rank < 1 or unknown or not self.targets:
            raise UserError(
                f"adapters of rank {self.rank} beside {', '.join(self.targets) or 'nothing'}: "
                f"the rank is at least 1, targets are among {', '.join(PROJECTIONS)}"
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only model. One class covers Llama 2/3, Mistral, Qwen2 and Qwen3."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tied_head: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int, ...] | None = None
    """Sliding-window size of each layer (0: full attention), or None when every layer attends to all."""
    lora: LoraConfig | None = None
    """The adapters that the parameters hold beside the weights (`common.model.lora`): while training only."""

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> "ModelConfig":
        """Read a Hugging Face `config.json` as transformers v5 normalises it (`hf.load_config` does so first).

        Raises UserError for an architecture, activation, bias or rope type that the model does not have, and for
        every other field that changes what transformers computes and not what the model here does. Fields that
        transformers ignores in these families (Gemma's soft caps, Granite's multipliers) are ignored here too.
        """
        family = hf.get("model_type")
        if family not in FAMILIES:
            raise UserError(f"unsupported architecture {family!r}: supported are {', '.join(FAMILIES)}")
        if hf.get("hidden_act", "silu") != "silu":
            raise UserError(f"unsupported activation {hf['hidden_act']!r} in config.json: only silu")
        if hf.get("mlp_bias") or (family != "qwen2" and hf.get("attention_bias")):
            raise UserError(
                f"unsupported biases in config.json: {family} is covered without mlp_bias and attention_bias"
            )
        if hf.get("quantization_config"):
            raise UserError("quantized checkpoints are not supported: use the unquantized one")
        if not hf.get("is_causal", True):  # null too: transformers then lets every token see all others
            raise UserError("unsupported is_causal in config.json: only causal attention is covered")
        for field, meaning in _UNSUPPORTED.items():
            if hf.get(field):
                raise UserError(f"unsupported {field} in config.json: {meaning}")
        try:
            heads, layers = hf["num_attention_heads"], hf["num_hidden_layers"]
            max_positions = hf.get("max_position_embeddings") or 2048
            theta, scaling = _rope(hf, max_positions)
            kv_heads = hf.get("num_key_value_heads") or heads
            head_dim = hf.get("head_dim") or hf["hidden_size"] // heads
            if heads % kv_heads or head_dim % 2:
                raise UserError(
                    f"num_attention_heads {heads}, num_key_value_heads {kv_heads} and head_dim {head_dim} in "
                    "config.json: the first must be a multiple of the second, and the third even"
                )
            return cls(
                family=family,
                vocab_size=hf["vocab_size"],
                hidden_size=hf["hidden_size"],
                intermediate_size=hf["intermediate_size"],
                num_layers=layers,
                num_heads=heads,
                num_kv_heads=kv_heads,
                head_dim=head_dim,
                max_positions=max_positions,
                norm_eps=hf.get("rms_norm_eps", 1e-6),
                rope_theta=theta,
                rope_scaling=scaling,
                tied_head=bool(hf.get("tie_word_embeddings", False)),
                qkv_bias=family == "qwen2",
                qk_norm=family == "qwen3",
                windows=_windows(hf, family, layers),
            )
        except KeyError as missing:
            raise UserError(f"config.json lacks {missing}: is the checkpoint complete?") from None


def _rope(hf: dict[str, Any], max_positions: int) -> tuple[float, RopeScaling | None]:
    """rope_theta and scaling, from `rope_parameters` (v5) or `rope_theta` + `rope_scaling` (before).

    Raises UserError for a rope type that the model does not have, and for a value that is no number.
    """
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    if nested:
        raise UserError(f"unsupported rope_parameters by layer type in config.json ({', '.join(nested)})")

    def number(name: str, value: Any) -> float:
        if isinstance(value, (int, float)) and value > 0:
            return float(value)
        raise UserError(f"{name} {value!r} in config.json is not a positive number")

    theta = number("rope_theta", rope.get("rope_theta", hf.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    # Without scaling, transformers ignores the field in these families.
    if rope.get("partial_rotary_factor", 1) not in (1, None):
        raise UserError(f"unsupported partial_rotary_factor beside rope_type {kind!r} in config.json")
    if kind == "linear":
        return theta, RopeScaling("linear", number("factor", rope["factor"]))
    if kind == "llama3":
        original = rope.get("original_max_position_embeddings") or max_positions
        factor, low, high = (
            number(name, rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")
        )
        positions = int(number("original_max_position_embeddings", original))
        return theta, RopeScaling("llama3", factor, low, high, positions)
    raise UserError(f"unsupported rope_type {kind!r} in config.json: default, linear and llama3 are")


def _windows(hf: dict[str, Any], family: str, layers: int) -> tuple[int, ...] | None:
    """Sliding windows by layer. Qwen states per layer whether it slides; Mistral slides in all or none (with
    `layer_types` transformers takes it for a Ministral).

    Raises UserError for a window without a token, and for kinds of layers that are unknown or lack their window.
    """
    qwen = family.startswith("qwen")
    window = hf.get("sliding_window")
    if family == "llama" or (qwen and not hf.get("use_sliding_window")):
        window = None
    if window is not None and window < 1:  # 0 does not mean "no window": transformers masks every token
        raise UserError(f"sliding_window {window} in config.json hides every token: null is full attention")
    kinds = hf.get("layer_types") if qwen else None
    known = {"full_attention"} if window is None else {"full_attention", "sliding_attention"}
    unknown = sorted(set(kinds or ()) - known)
    if unknown:
        raise UserError(f"unsupported layer_types in config.json: {', '.join(unknown)} with a window of {window}")
    if window is None:
        return None
    if qwen and kinds is None:
        first = hf.get("max_window_layers", layers)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if kinds is None:
        return (window,) * layers
    sizes = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    return sizes if any(sizes) else None


def micro_batch(batch_size: int, most: int | None = None) -> int:
    """Examples of an update that are on the device at once: at most `most`, by default the largest divisor of at
    most 32."""
    return min(batch_size, most) if most else max(n for n in range(1, 33) if batch_size % n == 0)


Optimizer = Literal["adamw", "adafactor", "lion", "rmsprop"]
Schedule = Literal["cosine", "linear", "constant"]
Remat = Literal["none", "full", "dots"]
"""What the backward pass computes again: nothing, all of a layer, or all of it but its matrix products."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Fine-tuning, on answers or on preferences. Lengths are in tokens, `learning_rate` is the schedule's peak.

    warmup_steps: updates of the linear warm-up, in place of `warmup_ratio` of all.
    optimizer: `adafactor` and `lion` have optax's constants and take rates of another size: Lion's is a third to a
        tenth of AdamW's, Adafactor's is a share of each matrix' own scale. `rmsprop` is PyTorch's, with decay 0.99
        and epsilon beside the root, not under it.
    sum_loss: the supervised loss is the sum over an example's tokens, and the mean of that over the examples of an
        update, instead of the mean over all tokens of the update.
    remat: None decides by the size of the model, see `common.train.loop.REMAT_ABOVE`.
    lora: train adapters of this shape and leave the weights alone; None trains every weight.
    param_dtype: of the weights while all are trained. bfloat16 ones are rounded at random, so that updates smaller
        than the distance to the next number are not lost; moments and adapters are float32 always.
    zero_start: the warm-up begins with an update at rate 0, as in transformers' schedules.
    drop_last: a last batch that is not full is left out, unless it is the only one, or full once the examples are
        rounded up to a multiple of four, as on the four devices of LLM2LLM's authors.
    """

    learning_rate: float = 2e-5
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.03
    warmup_steps: int | None = None
    batch_size: int = 16
    micro_batch_size: int = 16
    epochs: float = 3.0
    max_length: int = 1024
    sum_loss: bool = False
    lora: LoraConfig | None = None
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat | None = None
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    zero_start: bool = False
    drop_last: bool = False
    seed: int = 0
    checkpoint_seconds: float = 300.0

    def steps_per_epoch(self, count: int) -> int:
        """Optimizer updates in one pass over `count` examples; the last one may be partly filled."""
        if self.drop_last:
            return max(1, -(-count // 4) * 4 // self.batch_size)
        return -(-count // self.batch_size)

    def total_steps(self, count: int) -> int:
        """Optimizer updates of a whole training on `count` examples, at least one."""
        return max(1, round(self.epochs * self.steps_per_epoch(count)))


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How answers are drawn. `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 switch these cuts off."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
