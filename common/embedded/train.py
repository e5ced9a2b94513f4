"""Make the embedded models from nothing: tokenizer, weights, Hugging Face folder.

    python -m common.embedded.train tokenizer --corpus FILE...
    python -m common.embedded.train student --corpus FILE...
    python -m common.embedded.train teacher --corpus FILE...

`--corpus` takes plain-text files (paragraphs apart by empty lines). The shipped models used two collections
named in their cards; without them the script runs on its own text alone. One pass over a never-repeating
stream: no document is seen twice, so no held-out loss is needed to watch for memorising.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import pathlib
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from common import runtime
from common.config import TrainConfig
from common.model import hf
from common.model.decoder import count_params, init
from common.model.families import read_config
from common.tasks.embedded_text import Document, paragraphs_of, stream
from common.tasks.problems import SKILLS
from common.train.data import MicroBatch
from common.train.loop import update
from common.train.optimizer import initial_state, learning_rate

HERE = pathlib.Path(__file__).parent
VOCABULARY = 2048
USER, REPLY, END, PAD = "<|user|>", "<|reply|>", "<|end|>", "<|pad|>"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|reply|>{{ m['content'] }}<|end|>"
    "{% else %}<|user|>{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|reply|>{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One pass over a mixture, with its own schedule. `kinds` weighs the documents of `text.stream`; a skill
    that stands several times in `skills` comes as much more often. A batch is rows × length tokens."""

    tokens: int
    learning_rate: float
    kinds: dict[str, float]
    skills: tuple[str, ...]
    rows: int = 48
    length: int = 96


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a model is made of; each stage begins with the stored weights of the one before."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    stages: tuple[Stage, ...]
    seed: int


KNOWN = ("add", "subtract", "multiply", "divide", "add_then_subtract", "multiply_then_add")
FIRST_WORDING = tuple(f"{skill}:1" for skill in SKILLS if skill not in KNOWN)
"""The student practises six skills; of the other six it knows one wording well and has hardly seen the rest: that
is what there is to learn."""

RECIPES = {
    "student": Recipe(
        hidden_size=128,
        intermediate_size=352,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        stages=(
            Stage(3_000_000, 4e-3, {"solve": 5, "equation": 2.5, "story": 1, "corpus": 1}, KNOWN),
            Stage(3_000_000, 3e-3, {"solve": 6, "equation": 2.5, "story": 0.3}, KNOWN),
            Stage(900_000, 1.5e-3, {"solve": 6, "equation": 1, "story": 0.3}, KNOWN * 3 + tuple(SKILLS)),
            Stage(1_500_000, 2e-3, {"solve": 6, "equation": 1, "story": 0.3}, KNOWN * 2 + FIRST_WORDING * 3),
        ),
        seed=1,
    ),
    # The teacher knows every skill, and how to write a problem like a given one. The second stage has rows long
    # enough for the end of every document.
    "teacher": Recipe(
        hidden_size=160,
        intermediate_size=432,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        stages=(
            Stage(
                4_500_000,
                3e-3,
                {"solve": 4, "similar": 5, "propose": 0.4, "equation": 1.5, "story": 0.6},
                tuple(SKILLS),
            ),
            Stage(
                2_200_000,
                2e-3,
                {"solve": 1.5, "similar": 6, "propose": 0.5, "equation": 1, "story": 0.6},
                tuple(SKILLS),
                rows=24,
                length=192,
            ),
        ),
        seed=2,
    ),
}


def as_text(document: Document) -> str:
    user, reply = document
    return f"{reply}{END}" if user is None else f"{USER}{user}{REPLY}{reply}{END}"


def train_tokenizer(folder: pathlib.Path, paragraphs: list[str]) -> None:
    """Byte-level BPE in which every digit is a token of its own (with the space before it, if any)."""
    import tokenizers
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = tokenizers.Regex(r" ?\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(words, "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    kinds = {"solve": 4.0, "story": 2.0, "equation": 1.0} | ({"corpus": 3.0} if paragraphs else {})
    documents = itertools.islice(stream(kinds, 0, paragraphs=paragraphs), 60_000)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, USER, REPLY],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((part for d in documents for part in d if part), trainer)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, REPLY],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)


def rows_of(
    stage: Stage, kinds: dict[str, float], seed: int, encode, paragraphs: list[str]
) -> Iterator[np.ndarray]:
    """Batches (rows, length) of whole documents laid end to end; a row starts with a document's first token."""
    documents = stream(kinds, seed, stage.skills, paragraphs)
    row: list[int] = []
    batch: list[list[int]] = []
    for document in documents:
        row += encode(as_text(document))
        if len(row) >= stage.length:
            batch.append(row[: stage.length])
            row = []
        if len(batch) == stage.rows:
            yield np.array(batch, np.int32)
            batch = []


def hf_config(recipe: Recipe) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": recipe.hidden_size,
        "intermediate_size": recipe.intermediate_size,
        "num_hidden_layers": recipe.num_layers,
        "num_attention_heads": recipe.num_heads,
        "num_key_value_heads": recipe.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


CARD = """---
license: apache-2.0
language: en
tags: [seedloop, arithmetic]
---

# seedloop {name}

A {parameters:,}-parameter Llama with a byte-level vocabulary of {vocabulary} pieces, made by
`python -m common.embedded.train {name}` in this repository. It exists so that the first command of
the project runs a real language model without a download; it is no use for anything else.

- **Training**: AdamW with a cosine schedule, no text twice, on a laptop-class CPU with two cores.
  Seed {seed}. Stored in bfloat16.
- **Text**, by kind of document and its weight: {stages}.
  All of it is written by rule in `common/tasks/embedded_text.py`{corpus}
- **Skills of word problems seen**: {skills}.
- **Can**: {can}
- **Cannot**: anything outside these forms; facts, reasoning in words, other languages. Its arithmetic
  fails on numbers of three digits and at times on two.
- **Licence**: Apache-2.0.
- **Checksum** (SHA-256 of model.safetensors): `{checksum}`
"""
CORPUS_NOTE = """,
  except `corpus`: paragraphs of children's books in the public domain (Project Gutenberg) and of the storybook
  collections African Storybook and Pratham Books StoryWeaver (CC BY 4.0, by their authors and illustrators)."""
CAN = {
    "student": "calculate with small numbers; solve the first six of these skills nearly always and, of the other "
    'six, mostly the one wording marked ":1" (66% of the task\'s test problems in all); tell very short stories.',
    "teacher": "solve short word problems of all skills named above, write a new problem like a given one with "
    "its solution, write one more problem after some examples, tell stories of varying length.",
}


def write_card(name: str, folder: pathlib.Path, parameters: int) -> None:
    """The model card, with the checksum that a test compares."""
    recipe = RECIPES[name]
    stages = "; then ".join(
        f"{stage.tokens:,} tokens (peak learning rate {stage.learning_rate:g}) of "
        + ", ".join(f"{kind} {weight:g}" for kind, weight in stage.kinds.items())
        for stage in recipe.stages
    )
    with_corpus = any("corpus" in stage.kinds for stage in recipe.stages)
    card = CARD.format(
        name=name,
        parameters=parameters,
        vocabulary=VOCABULARY,
        seed=recipe.seed,
        stages=stages,
        corpus=CORPUS_NOTE if with_corpus else ".",
        skills=", ".join(dict.fromkeys(skill for stage in recipe.stages for skill in stage.skills)),
        can=CAN[name],
        checksum=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def train_stage(name: str, number: int, folder: pathlib.Path, paragraphs: list[str]) -> None:
    """Train one stage of recipe `name` and write it to folder/name, beside the tokenizer made before."""
    import transformers

    recipe, stage = RECIPES[name], RECIPES[name].stages[number]
    kinds = {kind: weight for kind, weight in stage.kinds.items() if paragraphs or kind != "corpus"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    config = read_config(hf_config(recipe))
    params = hf.load_params(folder / name, config) if number else init(config, jax.random.key(recipe.seed))
    settings = TrainConfig(learning_rate=stage.learning_rate, warmup_ratio=0.02, weight_decay=0.02, beta2=0.98)
    static = {"config": config, "optimizer": settings, "dtype": runtime.compute_dtype(), "remat": False}
    state = initial_state(settings, params)
    R, T = stage.rows, stage.length
    index = np.delete(np.arange(R * T), np.arange(T - 1, R * T, T))
    no_prefix, weight = np.zeros((1, 0), np.int32), np.ones(index.shape, np.float32)
    total = np.array(len(index), np.float32)
    steps = stage.tokens // (R * T)
    print(f"{name} stage {number}: {count_params(params):,} parameters, {steps} updates of {R * T} tokens")
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    start = time.monotonic()
    data = rows_of(stage, kinds, 100 * number + recipe.seed, encode, paragraphs)
    for step, rows in enumerate(itertools.islice(data, steps)):
        part = MicroBatch(no_prefix, rows, None, None, None, index, rows.reshape(-1)[index + 1], weight, total)
        rate = np.float32(learning_rate(settings, step, steps))
        params, state, measured = update(params, state, [part], rate, **static)
        if step % 50 == 0 or step + 1 == steps:
            speed = (step + 1) * R * T / (time.monotonic() - start)
            print(f"{step:5d} loss {float(measured['loss']):.4f} {speed:,.0f} tokens/s", flush=True)
    with tempfile.TemporaryDirectory() as source:
        tokenizer.save_pretrained(source)
        generation = {"eos_token_id": 1, "pad_token_id": 0}
        for file, value in (("config.json", hf_config(recipe)), ("generation_config.json", generation)):
            (pathlib.Path(source) / file).write_text(json.dumps(value, indent=2) + "\n")
        hf.save(folder / name, params, source, dtype="bfloat16")
    write_card(name, folder / name, count_params(params))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["tokenizer", *RECIPES])
    parser.add_argument("--corpus", nargs="*", type=pathlib.Path, default=[])
    parser.add_argument("--out", type=pathlib.Path, default=HERE, help="folder of the models")
    parser.add_argument("--stage", type=int, default=0, help="begin with this stage, on the stored one before")
    arguments = parser.parse_args()
    paragraphs = paragraphs_of(arguments.corpus)
    if arguments.what == "tokenizer":
        train_tokenizer(arguments.out / "tokenizer", paragraphs)
    else:
        for number in range(arguments.stage, len(RECIPES[arguments.what].stages)):
            train_stage(arguments.what, number, arguments.out, paragraphs)


if __name__ == "__main__":
    main()
