"""The configurations of `parity.py`: a table, and what random ones are drawn from."""

import numpy as np

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}


def longrope(half: int) -> dict:
    """LongRoPE for `half` frequencies."""
    factors = {
        f"{name}_factor": [1 + step * i for i in range(half)] for name, step in (("short", 0.1), ("long", 0.5))
    }
    return {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors}


CONFIGURATIONS: dict[str, list[dict]] = {
    "llama": [
        {},
        {"head_dim": 16, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
        {"rope_parameters": longrope(4)},
    ],
    "mistral": [{"sliding_window": 7}],
    "ministral": [
        {
            "head_dim": 16,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        }
    ],
    "qwen2": [
        {"tie_word_embeddings": True},
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ],
    "qwen3": [{"head_dim": 16}, {"attention_bias": True, "rope_parameters": DYNAMIC}],
    "gemma": [{"head_dim": 16}],
    "gemma2": [{"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24}],
    "gemma3_text": [
        {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 4, "sliding_window_pattern": 3},
        {
            "head_dim": 16,
            "sliding_window": 6,
            "final_logit_softcapping": 20.0,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        },
    ],
    "phi3": [{}, {"rope_parameters": longrope(4), "original_max_position_embeddings": 64, "sliding_window": 9}],
    "olmo": [{}, {"clip_qkv": 0.7}],
    "olmo2": [{}],
    "olmo3": [
        {
            "sliding_window": 6,
            "num_hidden_layers": 4,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
                "full_attention": YARN,
            },
        }
    ],
    "granite": [
        {
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
            "logits_scaling": 4.0,
            "tie_word_embeddings": True,
        }
    ],
    "smollm3": [
        {"num_hidden_layers": 4},
        {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 5},
    ],
    "seed_oss": [{"head_dim": 16}],
    "ernie4_5": [{"head_dim": 16}],
    "arcee": [{"rope_parameters": YARN}],
    "starcoder2": [{"sliding_window": 8}],
    "gpt2": [{}],
    "gpt_neox": [{}, {"use_parallel_residual": False}],
    "phi": [{}, {"qk_layernorm": True}],
    "stablelm": [{}, {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True}],
    "cohere": [{"logit_scale": 0.25}, {"use_qk_norm": True}],
    "cohere2": [{"sliding_window": 5, "num_hidden_layers": 4}],
    "falcon": [{}, {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}],
    "mixtral": [{"num_local_experts": 4}],
    "qwen3_moe": [
        {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True},
    ],
    "gpt_oss": [{"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 6}],
}
ROPES = {
    "default": lambda half: {"rope_type": "default", "rope_theta": 1e4},
    "linear": lambda half: LINEAR,
    "dynamic": lambda half: DYNAMIC,
    "llama3": lambda half: LLAMA3,
    "yarn": lambda half: YARN,
    "longrope": longrope,
}
OWN_ROPES = ("gpt2", "gemma3_text", "olmo3")
"""Families whose rotary embeddings are drawn in their own way, or that have none."""
EITHER = (True, False)
OPTIONS: dict[str, dict[str, tuple]] = {
    "llama": {"attention_bias": EITHER, "mlp_bias": EITHER, "hidden_act": ("silu", "gelu", "relu", "swish")},
    "mistral": {"sliding_window": (None, 3, 9), "attention_bias": EITHER, "mlp_bias": EITHER},
    "ministral": {"sliding_window": (3, 9)},
    "qwen2": {"use_sliding_window": EITHER, "sliding_window": (3, 9), "max_window_layers": (0, 1, 2)},
    "qwen3": {"attention_bias": EITHER, "use_sliding_window": EITHER, "sliding_window": (3, 9)},
    "gemma": {"attention_bias": EITHER, "hidden_act": ("gelu", "gelu_pytorch_tanh")},
    "gemma2": {
        "query_pre_attn_scalar": (8, 24, 256),
        "attn_logit_softcapping": (None, 5.0, 50.0),
        "final_logit_softcapping": (None, 10.0, 30.0),
        "sliding_window": (3, 9),
    },
    "gemma3_text": {
        "query_pre_attn_scalar": (8, 24),
        "sliding_window": (3, 9),
        "sliding_window_pattern": (2, 3),
        "attn_logit_softcapping": (None, 5.0),
    },
    "phi3": {"partial_rotary_factor": (1.0, 0.5), "sliding_window": (None, 9), "tie_word_embeddings": EITHER},
    "olmo": {"clip_qkv": (None, 0.5, 2.0), "attention_bias": EITHER},
    "olmo2": {"attention_bias": EITHER},
    "olmo3": {"attention_bias": EITHER, "sliding_window": (3, 9)},
    "granite": {
        "embedding_multiplier": (1.0, 12.0),
        "residual_multiplier": (0.22, 1.0),
        "attention_multiplier": (0.0625, 0.5),
        "logits_scaling": (2.0, 8.0),
        "attention_bias": EITHER,
        "mlp_bias": EITHER,
    },
    "smollm3": {
        "no_rope_layer_interval": (2, 3, 4),
        "use_sliding_window": EITHER,
        "sliding_window": (3, 9),
        "attention_bias": EITHER,
        "mlp_bias": EITHER,
    },
    "seed_oss": {"attention_bias": EITHER, "attention_out_bias": EITHER, "mlp_bias": EITHER},
    "ernie4_5": {"use_bias": EITHER},
    "arcee": {"attention_bias": EITHER, "mlp_bias": EITHER, "hidden_act": ("relu2", "gelu")},
    "starcoder2": {"use_bias": EITHER, "sliding_window": (None, 9), "hidden_act": ("gelu", "gelu_pytorch_tanh")},
    "gpt2": {
        "activation_function": ("gelu_new", "gelu", "relu"),
        "scale_attn_weights": EITHER,
        "scale_attn_by_inverse_layer_idx": EITHER,
        "n_inner": (None, 40),
    },
    "gpt_neox": {"use_parallel_residual": EITHER, "attention_bias": EITHER, "rotary_pct": (0.25, 0.5, 1.0)},
    "phi": {"qk_layernorm": EITHER, "partial_rotary_factor": (0.25, 0.5, 1.0)},
    "stablelm": {
        "qk_layernorm": EITHER,
        "use_parallel_residual": EITHER,
        "use_qkv_bias": EITHER,
        "partial_rotary_factor": (0.25, 0.5, 1.0),
    },
    "cohere": {"use_qk_norm": EITHER, "logit_scale": (0.0625, 0.5), "attention_bias": EITHER},
    "cohere2": {"sliding_window": (3, 9), "logit_scale": (0.0625, 0.5), "attention_bias": EITHER},
    "falcon": {
        "new_decoder_architecture": EITHER,
        "multi_query": EITHER,
        "bias": EITHER,
        "num_kv_heads": (2,),
        "ffn_hidden_size": (None, 40),
        "activation": ("gelu", "relu"),
    },
    "mixtral": {"num_local_experts": (2, 5), "num_experts_per_tok": (1, 2), "sliding_window": (None, 9)},
    "qwen3_moe": {
        "num_experts": (3, 8),
        "num_experts_per_tok": (1, 3),
        "moe_intermediate_size": (24,),
        "norm_topk_prob": EITHER,
        "decoder_sparse_step": (1, 2),
        "mlp_only_layers": ([], [0]),
    },
    "gpt_oss": {
        "num_local_experts": (2, 5),
        "num_experts_per_tok": (1, 2),
        "sliding_window": (3, 9),
        "swiglu_limit": (7.0, 1.0),
        "attention_bias": EITHER,
    },
}
SPLIT_HEADS = ("gpt2", "gpt_neox", "stablelm", "falcon", "cohere2", "phi3", "phi")
"""Families whose head size is hidden size / heads."""


def draw(family: str, rng: np.random.Generator) -> dict:
    """A random configuration of a family."""
    pick = lambda values: values[rng.integers(len(values))]
    heads, head_dim = pick((2, 4, 6)), pick((8, 16))
    given = {
        "num_attention_heads": heads,
        "num_key_value_heads": pick([n for n in range(1, heads + 1) if heads % n == 0]),
        "hidden_size": heads * head_dim,
        "intermediate_size": pick((24, 40)),
        "num_hidden_layers": pick((2, 2, 3)),
        "vocab_size": pick((50, 64)),
        **{name: pick(values) for name, values in OPTIONS[family].items()},
    }
    if family not in SPLIT_HEADS:
        given |= {"head_dim": pick((8, 16)), "hidden_size": pick((24, 48))}
        head_dim = given["head_dim"]
    if family in (
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "granite",
        "smollm3",
        "gemma",
        "gemma2",
        "cohere",
        "gpt_neox",
    ):
        given["tie_word_embeddings"] = pick(EITHER)
    if family == "falcon" and not given["new_decoder_architecture"]:
        given["num_kv_heads"] = None
        given["parallel_attn"] = pick(EITHER)
    if family not in OWN_ROPES:
        part = given.pop("rotary_pct", given.pop("partial_rotary_factor", 1.0))
        half = int(head_dim * part) // 2
        kind = pick(("default", "longrope") if family == "phi3" else tuple(ROPES))
        rope = dict(ROPES["linear" if kind == "dynamic" and half == 1 else kind](half))  # by zero it would divide
        given["rope_parameters"] = rope | ({} if part == 1 else {"partial_rotary_factor": part})
        if family in ("gpt_neox", "phi", "stablelm", "phi3"):
            given["rope_parameters"]["partial_rotary_factor"] = part
    return given
