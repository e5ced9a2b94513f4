"""Names and layouts of tensors in Hugging Face checkpoints: one table, read in both directions.

    for rule in layer_rules(config, 0):
        print(rule.name, rule.key)          # model.layers.0.self_attn.q_proj.weight q

What a family calls differently stands in `_NAMES`; what it stores as one tensor is cut into ours by `Rows`.
"""

from typing import NamedTuple

from common.config import PROJECTIONS, ModelConfig
from common.model.families import TRANSPOSED
from common.model.norms import BIASED, WEIGHTLESS


class Rows(NamedTuple):
    """Our part of a tensor that holds several: along `axis`, of every `width` places those from start to stop."""

    axis: int
    width: int
    start: int
    stop: int


class Rule(NamedTuple):
    """One tensor: its name in the file, its key in our tree, and the dimensions of both, in the letters of
    `common.model.decoder` (E experts). A Hugging Face dimension may merge several of ours ("NH D": head by head,
    then D). With "{}" in the name there is a tensor for each index of our first dimension: `theirs` is of one.
    With `rows` the tensor holds others too."""

    name: str
    key: str
    theirs: str
    ours: str
    rows: Rows | None = None


_LLAMA = {
    "embed": "model.embed_tokens",
    "positions": "model.positions",
    "norm": "model.norm",
    "head": "lm_head",
    "layers": "model.layers",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "post_norm1": "post_attention_layernorm",
    "post_norm2": "post_feedforward_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "sinks": "self_attn.sinks",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "router": "mlp.gate",
    "experts_gate": "mlp.experts.{}.gate_proj",
    "experts_up": "mlp.experts.{}.up_proj",
    "experts_down": "mlp.experts.{}.down_proj",
}
_AROUND = {"norm2": "pre_feedforward_layernorm"}
_GPT2_MLP = {"up": "mlp.c_fc", "down": "mlp.c_proj"}
_NEOX_MLP = {"up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"}
_NAMES: dict[str, dict[str, str]] = {
    "gemma2": _AROUND,
    "gemma3_text": _AROUND,
    "phi": {
        "norm": "model.final_layernorm",
        "o": "self_attn.dense",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
        "q_norm": "self_attn.q_layernorm",
        "k_norm": "self_attn.k_layernorm",
    },
    "phi3": dict.fromkeys("qkv", "self_attn.qkv_proj") | dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"),
    "stablelm": {"q_norm": "self_attn.q_layernorm.norms.{}", "k_norm": "self_attn.k_layernorm.norms.{}"},
    "starcoder2": _GPT2_MLP,
    "gpt2": {
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "norm": "transformer.ln_f",
        "layers": "transformer.h",
        "norm1": "ln_1",
        "norm2": "ln_2",
        **dict.fromkeys("qkv", "attn.c_attn"),
        "o": "attn.c_proj",
        **_GPT2_MLP,
    },
    "gpt_neox": {
        "embed": "gpt_neox.embed_in",
        "norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
        "layers": "gpt_neox.layers",
        **dict.fromkeys("qkv", "attention.query_key_value"),
        "o": "attention.dense",
        **_NEOX_MLP,
    },
    "falcon": {
        "embed": "transformer.word_embeddings",
        "norm": "transformer.ln_f",
        "layers": "transformer.h",
        **dict.fromkeys("qkv", "self_attention.query_key_value"),
        "o": "self_attention.dense",
        **_NEOX_MLP,
    },
    "mixtral": {
        "router": "block_sparse_moe.gate",
        "experts_gate": "block_sparse_moe.experts.{}.w1",
        "experts_up": "block_sparse_moe.experts.{}.w3",
        "experts_down": "block_sparse_moe.experts.{}.w2",
    },
    "gpt_oss": {
        "router": "mlp.router",
        "experts_gate": "mlp.experts.gate_up_proj",
        "experts_up": "mlp.experts.gate_up_proj",
        "experts_down": "mlp.experts.down_proj",
    },
}
_FALCON_TWO = {"norm1": "ln_attn", "norm2": "ln_mlp"}

_MATRICES = {
    **dict.fromkeys(("q",), ("NH D", "D N H")),
    **dict.fromkeys(("k", "v"), ("KH D", "D K H")),
    "o": ("D NH", "N H D"),
    **dict.fromkeys(("gate", "up"), ("F D", "D F")),
    "down": ("D F", "F D"),
}
_BIASES = {"q": ("NH", "N H"), "k": ("KH", "K H"), "v": ("KH", "K H"), "gate": ("F", "F"), "up": ("F", "F")}
_GROUPED = ("gpt_neox", "falcon")
"""Families whose queries, keys and values lie group by group: the queries of a key head, that key, its value."""
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Ends of names of buffers in older files, which are computed here."""


def names(config: ModelConfig) -> dict[str, str]:
    """What the family calls our parameters, without `.weight` and the like."""
    found = _LLAMA | _NAMES.get(config.family, {})
    if config.family == "falcon" and config.parallel and "norm2" in config.norms:
        found |= _FALCON_TWO
    return found


def prefix(config: ModelConfig) -> str:
    """What stands before every name but the head's, unless the file is of the model without a head."""
    return names(config)["layers"].split(".")[0] + "."


def top_rules(config: ModelConfig) -> list[Rule]:
    """Rules of what stands outside the layers."""
    named = names(config)
    rules = [Rule(f"{named['embed']}.weight", "embed", "V D", "V D")]
    if config.learned_positions:
        rules.append(Rule(f"{named['positions']}.weight", "positions", "P D", "P D"))
    rules += _norm_rules(config, "norm", named["norm"])
    if not config.tied_head:
        rules.append(Rule(f"{named['head']}.weight", "head", "V D", "D V"))
    if "head" in config.biases:
        rules.append(Rule(f"{named['head']}.bias", "head_bias", "V", "V"))
    return rules


def layer_rules(config: ModelConfig, layer: int) -> list[Rule]:
    """Rules of a layer's tensors."""
    named = names(config)
    rules = [rule for key in config.norms for rule in _norm_rules(config, key, named[key])]
    experts = config.has_experts(layer)
    for key in PROJECTIONS[:4] if experts else PROJECTIONS:
        if key != "gate" or config.gated:
            rules.append(matrix_rule(config, key))
            if key in config.biases:
                theirs, ours = _BIASES.get(key, ("D", "D"))
                rules.append(Rule(f"{named[key]}.bias", f"{key}_bias", theirs, ours, _rows(config, key, 0)))
    if config.qk_norm != "none":
        for key, head in (("q_norm", "N"), ("k_norm", "K")):
            rules += _qk_norm_rules(config, key, named[key], head)
    if config.sinks:
        rules.append(Rule(named["sinks"], "sinks", "N", "N"))
    if experts:
        rules += _expert_rules(config, named)
    return [rule._replace(name=f"{named['layers']}.{layer}.{rule.name}") for rule in rules]


def matrix_rule(config: ModelConfig, key: str) -> Rule:
    """The rule of one of `PROJECTIONS`, without the layer in its name."""
    theirs, ours = _MATRICES[key]
    transposed = config.family in TRANSPOSED
    if transposed:
        theirs = " ".join(reversed(theirs.split()))
    return Rule(f"{names(config)[key]}.weight", key, theirs, ours, _rows(config, key, 1 if transposed else 0))


def _norm_rules(config: ModelConfig, key: str, name: str) -> list[Rule]:
    weight = [] if config.norm == WEIGHTLESS else [Rule(f"{name}.weight", key, "D", "D")]
    bias = [Rule(f"{name}.bias", f"{key}_bias", "D", "D")] if config.norm == BIASED else []
    return weight + bias


def _qk_norm_rules(config: ModelConfig, key: str, name: str, head: str) -> list[Rule]:
    if config.qk_norm == "head":
        rules = [Rule(f"{name}.weight", key, "H", "H")]
        return [*rules, Rule(f"{name}.bias", f"{key}_bias", "H", "H")] if config.norm == BIASED else rules
    theirs = f"{head}H" if config.qk_norm == "flat" else "H" if "{}" in name else f"{head} H"
    return [Rule(f"{name}.weight", key, theirs, f"{head} H")]


def _expert_rules(config: ModelConfig, named: dict[str, str]) -> list[Rule]:
    assert config.experts is not None
    router = [Rule(f"{named['router']}.weight", "router", "E D", "D E")]
    if config.family != "gpt_oss":
        return router + [
            Rule(
                f"{named[f'experts_{key}']}.weight", f"experts_{key}", _MATRICES[key][0], f"E {_MATRICES[key][1]}"
            )
            for key in PROJECTIONS[4:]
        ]
    # Gate and up are interleaved, and nothing is transposed.
    rows = {"gate": (0, 1), "up": (1, 2)}
    router.append(Rule(f"{named['router']}.bias", "router_bias", "E", "E"))
    for key in PROJECTIONS[4:]:
        name, ours = named[f"experts_{key}"], f"E {_MATRICES[key][1]}"
        of_matrix, of_bias = (Rows(axis, 2, *rows[key]) if key in rows else None for axis in (2, 1))
        router.append(Rule(name, f"experts_{key}", ours, ours, of_matrix))
        bias = "E F" if key in rows else "E D"
        router.append(Rule(f"{name}_bias", f"experts_{key}_bias", bias, bias, of_bias))
    return router


def _rows(config: ModelConfig, key: str, axis: int) -> Rows | None:
    """Where the matrix `key` lies in a tensor that the family shares out among several."""
    named = names(config)
    if key in ("gate", "up") and named["gate"] == named["up"]:
        size = config.intermediate_size
        return Rows(axis, 2 * size, 0, size) if key == "gate" else Rows(axis, 2 * size, size, 2 * size)
    if key not in "qkv" or named["q"] != named["k"]:
        return None
    # As many queries, keys and values as lie side by side before the next group begins.
    groups = config.num_kv_heads if config.family in _GROUPED else 1
    N, K, H = config.num_heads // groups, config.num_kv_heads // groups, config.head_dim
    ends = {"q": N * H, "k": (N + K) * H, "v": (N + 2 * K) * H}
    starts = {"q": 0, "k": N * H, "v": (N + K) * H}
    return Rows(axis, ends["v"], starts[key], ends[key])
