"""The tokenizer of a GGUF file, in the files of a Hugging Face folder: tokenizer.json, tokenizer_config.json and
chat_template.jinja.

    write(gguf.read(path), folder)

llama.cpp knows two kinds that matter here: `gpt2`, pairs of bytes with a list of merges, where
`tokenizer.ggml.pre` names the rule by which text is cut beforehand; and `llama`, SentencePiece's pieces with a
score, merged best first.
Another rule is one line of `_CUTS`.
"""

import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from common.errors import UserError
from common.model.gguf import GGUF
from common.model.tokenizer import import_transformers

_IDS = ("bos", "eos", "eot", "eom", "unknown", "padding")
"""What a file names by the number of a token."""
_CONTROL, _USER_DEFINED = 3, 4
"""Types of tokens: those that steer (`<|im_end|>`), and those that stand for text as a whole."""

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CASED_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _words_and_numbers(digits: str) -> str:
    """GPT-4's rule, with `digits` for numbers."""
    return (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_GPT2, _DIGITS_ALONE = (_WORDS,), (r"\p{N}", _WORDS)
_LLAMA3, _QWEN2 = (_words_and_numbers(r"\p{N}{1,3}"),), (_words_and_numbers(r"\p{N}"),)
_CUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _DIGITS_ALONE),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), _QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4"), (_CASED_WORDS,)),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _WORDS, "[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", "[0-9][0-9][0-9]"),
}
"""How text is cut before pairs are merged, one expression after another, by the value of `tokenizer.ggml.pre`."""
_COMPOSED = ("qwen2", "deepseek-r1-qwen", "stablelm2", "command-r")
"""Those of which the original tokenizers compose characters first (NFC)."""
_WHOLE_FIRST = ("llama3", "llama-v3", "llama-bpe", "falcon3")
"""Those that take a piece which is a token as it is, whatever the merges would make of it."""


def write(file: GGUF, folder: pathlib.Path) -> None:
    """Write the tokenizer's files into `folder`.

    Raises UserError, naming it, for a kind of tokenizer that is not understood, and for a file without one.
    """
    kind = file.fields.get("tokenizer.ggml.model")
    tokens = file.fields.get("tokenizer.ggml.tokens")
    if kind not in ("gpt2", "llama") or not isinstance(tokens, list):
        raise UserError(f"{file.path}: the tokenizer {kind!r} is not understood, read are gpt2 and llama")
    kinds = file.fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(kinds) != len(tokens):
        raise UserError(f"{file.path}: its tokenizer has no type for each token: fetch the file again")
    ids = {name: file.fields.get(f"tokenizer.ggml.{name}_token_id") for name in _IDS}
    for name, number in ids.items():
        if number is not None and not (isinstance(number, int) and number < len(tokens)):
            raise UserError(
                f"{file.path}: tokenizer.ggml.{name}_token_id is {number!r}, and there are {len(tokens)} tokens: "
                "fetch the file again"
            )
    made = _pairs_of_bytes(file, tokens) if kind == "gpt2" else _pieces(file, tokens)
    for number in (_CONTROL, _USER_DEFINED):
        added = [token for token, its in zip(tokens, kinds, strict=True) if its == number]
        made.add_tokens([AddedToken(token, special=number == _CONTROL, normalized=False) for token in added])
    named = {
        name: tokens[number]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (number := ids[key]) is not None
    }
    if _starts_with_bos(file) and "bos" in named:
        bos = named["bos"]
        made.post_processor = processors.TemplateProcessing(
            f"{bos} $A", f"{bos} $A {bos} $B", [(bos, made.token_to_id(bos))]
        )
    made.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it stands
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": token for name, token in named.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    template = file.fields.get("tokenizer.chat_template")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _starts_with_bos(file: GGUF) -> bool:
    """Where the file does not say: as llama.cpp does, for SentencePiece and Llama 3."""
    said = file.fields.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said)
    return file.fields["tokenizer.ggml.model"] == "llama" or file.fields.get("tokenizer.ggml.pre") in _WHOLE_FIRST


def _pairs_of_bytes(file: GGUF, tokens: list[str]) -> tokenizers.Tokenizer:
    rule = file.fields.get("tokenizer.ggml.pre", "default")
    if rule not in _CUTS:
        raise UserError(
            f"{file.path}: the rule {rule!r} by which its tokenizer cuts text is not understood, known are "
            f"{', '.join(_CUTS)}"
        )
    if "tokenizer.ggml.merges" not in file.fields:
        raise UserError(f"{file.path}: its tokenizer has no merges: fetch the file again")
    merges = [_pair(file, merge) for merge in file.fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made = _built(file, lambda: models.BPE(vocabulary, merges, ignore_merges=rule in _WHOLE_FIRST))
    if rule in _COMPOSED:
        made.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in _CUTS[rule]]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def _pair(file: GGUF, merge: str) -> tuple[str, str]:
    first, _, second = merge.partition(" ")
    if not first or not second:
        raise UserError(f"{file.path}: the merge {merge!r} of its tokenizer is not a pair: fetch the file again")
    return first, second


def _pieces(file: GGUF, tokens: list[str]) -> tokenizers.Tokenizer:
    import_transformers()
    from transformers.tokenization_utils_base import generate_merges

    scores = file.fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise UserError(f"{file.path}: its tokenizer has no score for each token: fetch the file again")
    if file.architecture.startswith("gemma"):
        # Gemma's runs of blanks are written as such, and its scores are not the order of its merges.
        tokens = ["▁" * len(token) if token and not token.strip(" ") else token for token in tokens]
        scores = [-number for number in range(len(tokens))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = generate_merges(vocabulary, dict(zip(tokens, scores, strict=True)))
    unknown = file.fields.get("tokenizer.ggml.unknown_token_id")
    made = _built(
        file,
        lambda: models.BPE(
            vocabulary,
            merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        ),
    )
    replace = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.fields.get("tokenizer.ggml.add_space_prefix", True):
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        parts.append(decoders.Strip(" ", 1, 0))
    else:
        made.normalizer = replace
    made.decoder = decoders.Sequence(parts)
    return made


def _built(file: GGUF, model: Any) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(model())
    except Exception as error:  # plain ones of a library in Rust
        raise UserError(f"{file.path}: its tokenizer is damaged ({' '.join(str(error).split())})") from None
