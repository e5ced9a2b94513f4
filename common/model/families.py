"""Model families as differences from Llama's layer: how `config.json` of each is read. Loads no jax.

    config = read_config(transformers.AutoConfig.from_pretrained(folder).to_dict())

A row of `FAMILIES` says what a family does differently, and by which names its file says the rest; names of
tensors are in `common.model.names`. Whatever changes what transformers (5.24) computes and is not covered is
refused by the name of its field. Fields that transformers ignores in a family are ignored here too.

By design other than in transformers: dropout and the noise of routers are off in training too, nothing is added to
the loss for balanced experts, and the embedding of the padding token is trained like any other.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from common.config import PROJECTIONS, Activation, Experts, ModelConfig, NormKind, Rope
from common.errors import UserError
from common.model.rope_fields import Fields, number, read_ropes

QKV, ATTENTION, MLP = PROJECTIONS[:3], PROJECTIONS[:4], PROJECTIONS[4:]
PRE, POST, AROUND = (
    ("norm1", "norm2"),
    ("post_norm1", "post_norm2"),
    ("norm1", "post_norm1", "norm2", "post_norm2"),
)
ALWAYS = ""
"""In the place of a field's name: the biases are there whatever config.json says."""

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""Their names of activations, and ours."""

_UNSUPPORTED = {
    "per_layer_config": "every layer has the same shape here",
    "transformers_weights": "weights are read from model.safetensors or its shards alone",
}
"""Fields of config.json that transformers honours in every family, and what is so here instead."""
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
    *("num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"),
)
"""Fields that count something, where they are there."""


# --- What a family reads in its own way: more fields of ModelConfig ----------------------------------------------


def _gemma2(hf: Fields) -> dict[str, Any]:
    return {
        "attention_scale": number("query_pre_attn_scalar", hf["query_pre_attn_scalar"]) ** -0.5,
        "score_cap": hf.get("attn_logit_softcapping"),
        "logit_cap": hf.get("final_logit_softcapping"),
        **_gemma(hf),
    }


def _gemma3(hf: Fields) -> dict[str, Any]:
    return _gemma2(hf) | {"score_cap": None, "qk_norm": "head"}  # transformers reads its cap and does not use it


def _gemma(hf: Fields) -> dict[str, Any]:
    return {"embedding_scale": hf["hidden_size"] ** 0.5}


def _granite(hf: Fields) -> dict[str, Any]:
    return {
        "embedding_scale": hf["embedding_multiplier"],
        "residual_scale": hf["residual_multiplier"],
        "attention_scale": hf["attention_multiplier"],
        "logit_scale": 1 / number("logits_scaling", hf["logits_scaling"]),
    }


def _smollm3(hf: Fields) -> dict[str, Any]:
    return {"rotated": [bool(kept) for kept in hf["no_rope_layers"][: hf["num_hidden_layers"]]]}


def _gpt2(hf: Fields) -> dict[str, Any]:
    heads = {"num_kv_heads": hf["num_attention_heads"]}
    plain = heads | {
        "learned_positions": True,
        "rope": None,
        "scale_by_layer": hf["scale_attn_by_inverse_layer_idx"],
    }
    return plain if hf["scale_attn_weights"] else plain | {"attention_scale": 1.0}


def _parallel(hf: Fields) -> dict[str, Any]:
    return {"parallel": bool(hf["use_parallel_residual"])}


def _neox(hf: Fields) -> dict[str, Any]:
    return _parallel(hf) | {"num_kv_heads": hf["num_attention_heads"]}


def _stablelm(hf: Fields) -> dict[str, Any]:
    qk_norm = {"qk_norm": "heads" if hf["qk_layernorm"] else "none"}
    return _parallel(hf) | qk_norm | ({"norms": PRE[:1]} if hf["use_parallel_residual"] else {})


def _cohere(hf: Fields) -> dict[str, Any]:
    return {
        "parallel": True,
        "logit_scale": hf["logit_scale"],
        "qk_norm": "heads" if hf.get("use_qk_norm") else "none",
    }


def _cohere2(hf: Fields) -> dict[str, Any]:
    rotated = [kind == "sliding_attention" for kind in hf["layer_types"]]
    return {"parallel": True, "logit_scale": hf["logit_scale"], "rotated": rotated}


def _phi(hf: Fields) -> dict[str, Any]:
    return {"parallel": True, "qk_norm": "head" if hf["qk_layernorm"] else "none"}


def _falcon(hf: Fields) -> dict[str, Any]:
    new, parallel, norms = (
        hf.get(name) for name in ("new_decoder_architecture", "parallel_attn", "num_ln_in_parallel_attn")
    )
    two = norms == 2 or (new and norms is None)
    if (new and not parallel) or (not new and two) or norms not in (None, 1, 2):
        raise UserError(
            f"new_decoder_architecture {new} with parallel_attn {parallel} and num_ln_in_parallel_attn {norms} in "
            "config.json is no model that transformers runs"
        )
    kv_heads = hf["num_kv_heads"] if new else 1 if hf["multi_query"] else hf["num_attention_heads"]
    one = {"norms": PRE[:1]} if parallel and not two else {}
    return {"num_kv_heads": kv_heads, "parallel": bool(parallel), **one}


def _mixtral(hf: Fields) -> dict[str, Any]:
    return {"experts": Experts(hf["num_local_experts"], hf["num_experts_per_tok"], hf["intermediate_size"])}


def _qwen3_moe(hf: Fields) -> dict[str, Any]:
    count = hf.get("num_experts") or hf.get("num_local_experts") or 0
    dense, step = hf.get("mlp_only_layers") or (), hf["decoder_sparse_step"]
    layers = tuple(count > 0 and i not in dense and (i + 1) % step == 0 for i in range(hf["num_hidden_layers"]))
    weights = "renormalised" if hf["norm_topk_prob"] else "all"
    experts = Experts(
        count,
        hf["num_experts_per_tok"],
        hf["moe_intermediate_size"],
        weights,
        layers=None if all(layers) else layers,
    )
    return {"experts": experts if any(layers) else None, "qk_norm": "head"}


def _gpt_oss(hf: Fields) -> dict[str, Any]:
    experts = Experts(
        hf["num_local_experts"],
        hf["num_experts_per_tok"],
        hf["intermediate_size"],
        "chosen",
        clamp=hf.get("swiglu_limit", 7.0),
        alpha=hf.get("swiglu_alpha", 1.702),
        biases=True,
    )
    return {"experts": experts, "sinks": True}


# --- The table ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family differs from Llama; the defaults are Llama's.

    norm, norms, gated, qk_norm: as in `ModelConfig`.
    eps: the field of the norms' epsilon, or the number.
    act: the field of the activation.
    biases: by the field that switches them on, the matrices that have one.
    window: who slides: no layer, all ("all"), or those that `layer_types` names ("types").
    window_switch: nobody does unless `use_sliding_window` is on.
    own_head_dim: `head_dim` counts, and not only hidden size / heads.
    partial, interleaved, rope_by_type: `partial_rotary_factor` counts; neighbours are rotated, not halves; rotary
        embeddings are stated by layer type.
    refused: fields that change the computation unless they are off.
    renamed: fields by another name than Llama's: ours, theirs.
    """

    norm: NormKind = "rms"
    eps: str | float = "rms_norm_eps"
    norms: tuple[str, ...] = PRE
    act: str = "hidden_act"
    gated: bool = True
    biases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    window: str = "none"
    window_switch: bool = False
    own_head_dim: bool = True
    partial: bool = False
    interleaved: bool = False
    rope_by_type: bool = False
    qk_norm: str = "none"
    refused: tuple[str, ...] = ()
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    read: Callable[[Fields], dict[str, Any]] = lambda hf: {}


_ATTENTION_BIAS = {"attention_bias": ATTENTION}
_BOTH_BIASES = {"attention_bias": ATTENTION, "mlp_bias": MLP}
_BIDIRECTIONAL = ("use_bidirectional_attention",)
_GEMMA = Family(norm="rms1p", biases=_ATTENTION_BIAS, refused=_BIDIRECTIONAL, read=_gemma)
_COHERE = Family(
    norm="ln_scale", eps="layer_norm_eps", norms=PRE[:1], biases=_ATTENTION_BIAS, interleaved=True, read=_cohere
)
_OLMO2 = Family(norm="rms32", norms=POST, qk_norm="flat", biases=_ATTENTION_BIAS)

FAMILIES: dict[str, Family] = {
    "llama": Family(biases=_BOTH_BIASES),
    "mistral": Family(window="all"),
    "ministral": Family(window="types"),
    "mixtral": Family(window="all", read=_mixtral),
    "qwen2": Family(biases={ALWAYS: QKV}, window="types", window_switch=True),
    "qwen3": Family(biases=_ATTENTION_BIAS, window="types", window_switch=True, qk_norm="head"),
    "qwen3_moe": Family(biases=_ATTENTION_BIAS, window="all", window_switch=True, read=_qwen3_moe),
    "gemma": _GEMMA,
    "gemma2": dataclasses.replace(_GEMMA, norms=AROUND, act="hidden_activation", window="types", read=_gemma2),
    "gemma3_text": dataclasses.replace(
        _GEMMA, norms=AROUND, act="hidden_activation", window="types", rope_by_type=True, read=_gemma3
    ),
    "phi": Family(
        norm="ln",
        eps="layer_norm_eps",
        norms=PRE[:1],
        gated=False,
        biases={ALWAYS: (*PROJECTIONS, "head")},
        partial=True,
        read=_phi,
    ),
    "phi3": Family(window="all", partial=True),
    "olmo": Family(
        norm="ln_bare", eps=1e-5, biases=_ATTENTION_BIAS, read=lambda hf: {"qkv_clip": hf.get("clip_qkv")}
    ),
    "olmo2": _OLMO2,
    "olmo3": dataclasses.replace(_OLMO2, window="types", rope_by_type=True),
    "granite": Family(biases=_BOTH_BIASES, read=_granite),
    "smollm3": Family(biases=_BOTH_BIASES, window="types", window_switch=True, read=_smollm3),
    "seed_oss": Family(biases={"attention_bias": QKV, "attention_out_bias": ("o",), "mlp_bias": MLP}),
    "ernie4_5": Family(biases={"use_bias": PROJECTIONS}, interleaved=True),
    "arcee": Family(gated=False, biases=_BOTH_BIASES),
    "starcoder2": Family(
        norm="ln", eps="norm_epsilon", gated=False, biases={"use_bias": PROJECTIONS}, window="all"
    ),
    "gpt2": Family(
        norm="ln",
        eps="layer_norm_epsilon",
        act="activation_function",
        gated=False,
        biases={ALWAYS: PROJECTIONS},
        own_head_dim=False,
        refused=("add_cross_attention",),
        renamed={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
            "intermediate_size": "n_inner",
        },
        read=_gpt2,
    ),
    "gpt_neox": Family(
        norm="ln",
        eps="layer_norm_eps",
        gated=False,
        biases={"attention_bias": ATTENTION, ALWAYS: MLP},
        own_head_dim=False,
        partial=True,
        read=_neox,
    ),
    "stablelm": Family(
        norm="ln",
        eps="layer_norm_eps",
        biases={"use_qkv_bias": QKV},
        own_head_dim=False,
        partial=True,
        read=_stablelm,
    ),
    "cohere": _COHERE,
    "cohere2": dataclasses.replace(_COHERE, window="types", own_head_dim=False, read=_cohere2),
    "falcon": Family(
        norm="ln",
        eps="layer_norm_epsilon",
        act="activation",
        gated=False,
        biases={"bias": PROJECTIONS},
        own_head_dim=False,
        refused=("alibi",),
        renamed={"intermediate_size": "ffn_hidden_size", "num_key_value_heads": "num_kv_heads"},
        read=_falcon,
    ),
    "gpt_oss": Family(norm="rms32", biases=_ATTENTION_BIAS, window="types", read=_gpt_oss),
}
"""By `model_type`. Not here, so refused by name: Llama 4 (its attention is cut into chunks, its experts work on
the scaled input) and Qwen3.5 (most of its layers are recurrent)."""

TRANSPOSED = ("gpt2",)
"""Families whose matrices lie in files as they are multiplied (Conv1D): inputs first."""


# --- Reading -----------------------------------------------------------------------------------------------------


def read_config(hf: Fields) -> ModelConfig:
    """Read a Hugging Face `config.json` as transformers v5 normalises it (`hf.load_config` does so first).

    Raises UserError, naming the field, for an architecture, activation, rope type or kind of layer that the model
    does not have, for every other field that changes what transformers computes and not what is computed here, and
    for a value of which no model can be made.
    """
    if not isinstance(hf, Mapping):
        raise UserError("config.json is not a JSON object: is the checkpoint complete?")
    name = hf.get("model_type")
    family = FAMILIES.get(str(name))
    if family is None:
        raise UserError(f"unsupported architecture {name!r}: supported are {', '.join(FAMILIES)}")
    try:
        _refuse(hf, family)
        hf = dict(hf) | {ours: hf[theirs] for ours, theirs in family.renamed.items() if theirs in hf}
        _check_sizes(hf)
        return _read(str(name), family, hf)
    except KeyError as missing:
        raise UserError(f"config.json lacks {missing}: is the checkpoint complete?") from None
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        # A list where a number should be, a share of nothing: what comes of it differs from field to field.
        raise UserError(f"config.json holds a value of which no model can be made ({error})") from None


def _refuse(hf: Fields, family: Family) -> None:
    quantized = hf.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "an unknown method") if isinstance(quantized, dict) else quantized
        raise UserError(
            f"quantized checkpoints are not supported ({method}): use the unquantized one, or let transformers "
            "dequantize this one and save it"
        )
    if not hf.get("is_causal", True):  # null too: transformers then lets every token see all others
        raise UserError("unsupported is_causal in config.json: only causal attention is covered")
    for field, meaning in _UNSUPPORTED.items():
        if hf.get(field):
            raise UserError(f"unsupported {field} in config.json: {meaning}")
    for field in family.refused:
        if hf.get(field):
            raise UserError(f"unsupported {field} in config.json of a {hf['model_type']} model: it has to be off")
    activation = hf.get(family.act, "silu")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"unsupported activation {activation!r} in config.json ({family.act}): known are {known}")


def _check_sizes(hf: Fields) -> None:
    for field in _SIZES:
        value = hf.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{field} {value!r} in config.json is not a whole number above zero")


def _read(name: str, family: Family, hf: Fields) -> ModelConfig:
    hidden, heads, layers = hf["hidden_size"], hf["num_attention_heads"], hf["num_hidden_layers"]
    head_dim = (hf.get("head_dim") if family.own_head_dim else None) or hidden // heads
    if not family.own_head_dim and (hidden % heads or hf.get("head_dim", head_dim) != head_dim):
        raise UserError(
            f"hidden_size {hidden}, num_attention_heads {heads}, head_dim {hf.get('head_dim')} in config.json: in "
            f"a {name} model the third has to be the first divided by the second"
        )
    more = dict(family.read(hf))
    kv_heads = more.pop("num_kv_heads", None) or hf.get("num_key_value_heads") or heads
    if heads % kv_heads or head_dim % 2:
        raise UserError(
            f"num_attention_heads {heads}, num_key_value_heads {kv_heads} and head_dim {head_dim} in "
            "config.json: the first must be a multiple of the second, and the third even"
        )
    experts = more.get("experts")
    if experts and not (isinstance(experts.count, int) and 0 < experts.per_token <= experts.count):
        raise UserError(f"num_experts_per_tok {experts.per_token} of {experts.count} experts in config.json")
    positions = hf.get("max_position_embeddings") or 2048
    ropes: list[Rope | None] = []
    if "rope" not in more:
        stated = {"partial": family.partial, "interleaved": family.interleaved, "by_type": family.rope_by_type}
        rotated = more.pop("rotated", [True] * layers)
        if len(rotated) != layers:
            raise UserError(f"no_rope_layers or layer_types in config.json name {len(rotated)} of {layers} layers")
        found = read_ropes(hf, head_dim, positions, layers, **stated)
        ropes = [rope if kept else None for rope, kept in zip(found, rotated, strict=True)]
    for rope in ropes:
        if rope and rope.scaling and rope.scaling.kind == "longrope":
            # Beyond, transformers changes the frequencies of all positions, those in the cache included.
            positions = min(positions, rope.scaling.original_max_positions)
    if len(set(ropes)) == 1:
        more["rope"] = ropes[0]
    elif ropes:
        more["ropes"] = tuple(ropes)
    switched = [
        m for field, matrices in family.biases.items() if field == ALWAYS or hf.get(field) for m in matrices
    ]
    plain = {
        "qk_norm": family.qk_norm,
        "norms": family.norms,
        "norm_eps": hf.get(family.eps, 1e-6) if isinstance(family.eps, str) else family.eps,
    }
    fields = plain | more
    return ModelConfig(
        family=name,
        vocab_size=hf["vocab_size"],
        hidden_size=hidden,
        intermediate_size=hf.get("intermediate_size") or 4 * hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=positions,
        tied_head=bool(hf.get("tie_word_embeddings", False)),
        biases=tuple(m for m in (*PROJECTIONS, "head") if m in switched and (family.gated or m != "gate")),
        norm=family.norm,
        activation=ACTIVATIONS[hf.get(family.act, "silu")],
        gated=family.gated,
        windows=_windows(hf, family, layers),
        **fields,
    )


def _windows(hf: Fields, family: Family, layers: int) -> tuple[int, ...] | None:
    """Sliding windows by layer.

    Raises UserError for a window without a token, and for kinds of layers that are unknown or lack their window.
    """
    window = hf.get("sliding_window")
    if family.window == "none" or (family.window_switch and not hf.get("use_sliding_window")):
        window = None
    if window is not None and window < 1:  # 0 does not mean "no window": transformers masks every token
        raise UserError(f"sliding_window {window} in config.json hides every token: null is full attention")
    if family.window != "types":  # Mistral slides in all or none; with layer types transformers takes a Ministral
        return None if window is None else (window,) * layers
    kinds = hf.get("layer_types")
    known = {"full_attention"} if window is None else {"full_attention", "sliding_attention"}
    unknown = sorted(set(kinds or ()) - known)
    if unknown:
        raise UserError(f"unsupported layer_types in config.json: {', '.join(unknown)} with a window of {window}")
    if kinds is not None and len(kinds) < layers:
        raise UserError(f"layer_types in config.json names {len(kinds)} of {layers} layers")
    if window is None:
        return None
    if kinds is None:  # a Qwen file of before transformers 4.53
        first = hf.get("max_window_layers", layers)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    sizes = tuple(window if kind == "sliding_attention" else 0 for kind in kinds[:layers])
    return sizes if any(sizes) else None
