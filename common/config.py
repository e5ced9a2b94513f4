"""Frozen settings of the core: the model's shape, training, sampling.

Plain dataclasses without jax, so that command lines can be parsed and checked before jax is loaded.

    sampling = SampleConfig(max_new_tokens=64, temperature=0.7)
"""

import dataclasses
from typing import Literal

from common.errors import UserError

NormKind = Literal["rms", "rms32", "rms1p", "ln", "ln_scale", "ln_bare"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
"""The matrices of a layer that adapters can stand beside, where the layer has them."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary embeddings. `linear` divides every frequency by `factor`; `llama3` divides only
    those whose wavelength exceeds the original context, with a smooth band in between; `yarn` (arXiv 2309.00071)
    those that turn less than `beta_slow` times within it, and keeps those above `beta_fast`; `longrope` (arXiv
    2402.13753) divides each by its own of `short_factors`. The last two multiply cosines and sines by
    `attention_factor`."""

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding of a layer. `size` is how many numbers of a head are rotated (None: all of them);
    `interleaved` pairs neighbours instead of the two halves."""

    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    size: int | None = None
    interleaved: bool = False


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of `count` gated MLPs of width `intermediate_size`, `per_token` of which a token goes through.

    weights: how their outputs are weighed, by the softmax over all experts ("all"), the same divided by the sum of
        those chosen ("renormalised"), or the softmax over those chosen ("chosen").
    clamp: with a limit, GPT-OSS's activation: min(gate, clamp) * sigmoid(alpha * gate) * (clipped up + 1).
    biases: whether the router and the experts have biases.
    layers: which layers have experts, or None for all; the others have an MLP.
    """

    count: int
    per_token: int
    intermediate_size: int
    weights: Literal["all", "renormalised", "chosen"] = "renormalised"
    clamp: float | None = None
    alpha: float = 1.0
    biases: bool = False
    layers: tuple[bool, ...] | None = None


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
    """Shape of a decoder-only model: what one family has and another has not (`common.model.families`).

    norm: the kind of all norms but those of StableLM's queries and keys. RMS norms are `rms` (scaled in the
        activations' dtype), `rms32` (in float32) and `rms1p` (by 1 + weight, in float32); layer norms are `ln`,
        `ln_scale` (without biases) and `ln_bare` (without weights).
    norms: those that a layer has: before attention and MLP (`norm1`, `norm2`), and after them (`post_norm1`,
        `post_norm2`).
    parallel: attention and MLP read the same input, and their outputs are added together.
    qk_norm: queries and keys are normed before they are rotated: each head by the same weights ("head"), each by
        its own ("heads", always a layer norm without biases), or all heads as one vector ("flat").
    biases: the matrices that have one, among `PROJECTIONS` and `head`.
    windows, ropes: sliding window (0: full attention) and rotary embedding (None: none) of each layer; None where
        all layers attend to all, or have `rope`.
    attention_scale: factor of the scores instead of 1 / root of the head size; with `scale_by_layer` those of
        layer i (from 0) are divided by i + 1 as well.
    score_cap, logit_cap: x becomes cap * tanh(x / cap).
    sinks: each head has a learned score beside those of the tokens, whose share of the softmax is dropped.
    lora: the adapters that the parameters hold beside the weights (`common.model.lora`): while training only.
    """

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
    rope: Rope | None = Rope()
    tied_head: bool = False
    biases: tuple[str, ...] = ()
    qk_norm: Literal["none", "head", "heads", "flat"] = "none"
    norm: NormKind = "rms"
    norms: tuple[str, ...] = ("norm1", "norm2")
    parallel: bool = False
    activation: Activation = "silu"
    gated: bool = True
    windows: tuple[int, ...] | None = None
    ropes: tuple[Rope | None, ...] | None = None
    learned_positions: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    scale_by_layer: bool = False
    logit_scale: float = 1.0
    score_cap: float | None = None
    logit_cap: float | None = None
    qkv_clip: float | None = None
    sinks: bool = False
    experts: Experts | None = None
    lora: LoraConfig | None = None

    def window(self, layer: int) -> int:
        """Sliding window of a layer; 0 where it attends to all."""
        return self.windows[layer] if self.windows else 0

    def layer_rope(self, layer: int) -> Rope | None:
        """Rotary embedding of a layer, None where it has none."""
        return self.ropes[layer] if self.ropes else self.rope

    def adapted(self, matrix: str) -> bool:
        """Whether adapters stand beside a matrix, in the layers that have it. In a model with experts they do in
        attention alone: what PEFT's files say of MLPs is taken for the experts there."""
        possible = self.experts is None or matrix in PROJECTIONS[:4]
        return self.lora is not None and matrix in self.lora.targets and possible

    @property
    def cached(self) -> int:
        """Numbers that a token's keys and values are, in all layers."""
        return 2 * self.num_kv_heads * self.head_dim * self.num_layers

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts in the place of an MLP."""
        return self.experts is not None and (self.experts.layers is None or self.experts.layers[layer])


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
