"""A round of LLM2LLM, by seedloop and by a script of TRL and transformers, in turn, in one process.

    python benchmarks/round.py                                   # the embedded models
    python benchmarks/round.py --model /path/to/smollm2 --seeds 24 --epochs 2

The round: train the student on the seeds, let it answer them greedily, ask the teacher for one new problem like
each of them (sampled), and train the student from its beginning on seeds and replies. Both sides teach all seeds
and not only the wrong ones, so that they do the same amount of work. Beside the seconds stands how much they
wrote, how much of them is training, and what the parts of the two trainings take, each measured by itself, by the
faster library and by XLA (`parts.py`). The script is what TRL's and transformers' pages recommend: SFTTrainer
with batches of like length and the fused optimizer, `generate` on batches of 32 of like length. Needs torch and
trl. The last line is JSON.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

HERE = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(HERE))

from common import runtime  # noqa: E402

runtime.reuse_memory()  # as a run does, before jax is imported

import jax  # noqa: E402
import peers  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from parts import Parts  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from common.config import SampleConfig, TrainConfig  # noqa: E402
from common.generate import Generator, Message, Request  # noqa: E402
from common.lm import LanguageModel  # noqa: E402
from common.model import checkpoint  # noqa: E402
from common.tasks.arithmetic import Arithmetic  # noqa: E402
from common.tasks.base import Example  # noqa: E402
from common.train.data import Encoded  # noqa: E402

BATCH, RATE, TEMPERATURE = 16, 1e-3, 0.8
TASK = Arithmetic()
Rows = list[tuple[Sequence[Message], str]]


@dataclasses.dataclass(frozen=True)
class Done:
    """Tokens of all answers and replies, which the seconds have to be read with, seconds of training, and what was
    trained on."""

    tokens: int
    training: float
    rows: tuple[Rows, Rows]


def learned(seeds: list[Example]) -> Rows:
    return [(TASK.messages(seed.question), seed.answer) for seed in seeds]


def ours(student: str, teacher: str, seeds: list[Example], epochs: float) -> Done:
    settings = TrainConfig(epochs=epochs, batch_size=BATCH, learning_rate=RATE, max_length=512)
    base, writer = LanguageModel.load(student), LanguageModel.load(teacher)
    began = time.perf_counter()
    trained = base.fine_tuned(learned(seeds), settings)
    jax.block_until_ready(trained.params)
    training = time.perf_counter() - began
    asked = [Request(seed.id, TASK.messages(seed.question)) for seed in seeds]
    answers = texts_of(trained.generator(), asked, SampleConfig(TASK.answer_tokens))
    # Without fields: the script cannot hold a reply to a form.
    asked = [Request(seed.id, TASK.teacher_messages(seed)) for seed in seeds]
    replies = texts_of(writer.generator(), asked, SampleConfig(TASK.example_tokens, TEMPERATURE))
    new = [(TASK.messages(seed.question), text) for seed, text in zip(seeds, replies, strict=True)]
    began = time.perf_counter()
    jax.block_until_ready(base.fine_tuned(learned(seeds) + new, settings).params)
    training += time.perf_counter() - began
    count = lambda model, texts: sum(len(model.tokenizer.encode_text(text)) for text in texts)
    return Done(count(base, answers) + count(writer, replies), training, (learned(seeds), learned(seeds) + new))


def texts_of(generator: Generator, asked: list[Request], sampling: SampleConfig) -> list[str]:
    return [record.text or "" for batch in generator.generate(asked, sampling, 0) for record in batch]


def theirs(student: str, teacher: str, seeds: list[Example], epochs: float) -> Done:
    tokenizer, model = opened(student)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    writing, writer = opened(teacher)
    began = time.perf_counter()
    trl(model, tokenizer, learned(seeds), epochs)
    training = time.perf_counter() - began
    answers = generated(model, tokenizer, [TASK.messages(seed.question) for seed in seeds], TASK.answer_tokens)
    asked = [TASK.teacher_messages(seed) for seed in seeds]
    replies = generated(writer, writing, asked, TASK.example_tokens, temperature=TEMPERATURE)
    model.load_state_dict(start)
    new = [(TASK.messages(seed.question), text) for seed, text in zip(seeds, replies, strict=True)]
    began = time.perf_counter()
    trl(model, tokenizer, learned(seeds) + new, epochs)
    training += time.perf_counter() - began
    count = lambda tokenizer, texts: sum(len(tokenizer(text)["input_ids"]) for text in texts)
    wrote = count(tokenizer, answers) + count(writing, replies)
    return Done(wrote, training, (learned(seeds), learned(seeds) + new))


def opened(name: str):
    folder = checkpoint.resolve(name)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    return tokenizer, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def trl(model, tokenizer, rows: Rows, epochs: float) -> None:
    chats = [
        {"prompt": list(prompt), "completion": [{"role": "assistant", "content": text}]} for prompt, text in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            **peers.trl_settings(folder, BATCH, RATE, epochs), train_sampling_strategy="group_by_length"
        )
        SFTTrainer(model, args=config, train_dataset=Dataset.from_list(chats), processing_class=tokenizer).train()


def generated(model, tokenizer, prompts: list[Sequence[Message]], limit: int, **sampling: float) -> list[str]:
    model.eval()
    texts = [tokenizer.apply_chat_template(list(p), tokenize=False, add_generation_prompt=True) for p in prompts]
    found: list[str] = [""] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with torch.inference_mode():
        for at in range(0, len(order), 32):
            places = order[at : at + 32]
            batch = tokenizer(
                [texts[i] for i in places], return_tensors="pt", padding=True, add_special_tokens=False
            )
            batch.pop("token_type_ids", None)
            out = model.generate(
                **batch,
                max_new_tokens=limit,
                do_sample=bool(sampling),
                pad_token_id=tokenizer.pad_token_id or 0,
                **sampling,
            )
            new = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            for place, text in zip(places, new, strict=True):
                found[place] = text
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, as student and as teacher; default: the embedded ones")
    parser.add_argument("--seeds", type=int, default=120)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    student, teacher = args.model or "embedded:student", args.model or "embedded:teacher"
    seeds = TASK.load("train", None, 0)[: args.seeds]
    sides = {"seedloop": ours, "TRL": theirs}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    done: dict[str, Done] = {}
    for _ in range(1 + args.repeats):  # the first of each compiles
        for name, side in sides.items():
            began = time.perf_counter()
            done[name] = side(student, teacher, seeds, args.epochs)
            seconds[name].append(round(time.perf_counter() - began, 2))
    mine = statistics.median(seconds["seedloop"][1:])
    for name, own in seconds.items():
        cold, *warm = own
        median = statistics.median(warm)
        print(
            f"{name:9} {median:8.2f} s ({min(warm):.2f} to {max(warm):.2f}), cold {cold:.2f}, "
            f"{done[name].training:.2f} training, {done[name].tokens} tokens written, {median / mine:.2f}x"
        )
    model = LanguageModel.load(student)
    encoded = [[model.tokenizer.encode_example(*row) for row in rows] for rows in done["seedloop"].rows]
    texts = [[Encoded(tuple(tokens), start) for tokens, start in own] for own in encoded]
    alone, of_xla = (
        args.epochs * sum(Parts(model.config, here).learning(own, BATCH) for own in texts)
        for here in (False, True)
    )
    print(f"the parts of training {alone:.2f} s, of XLA {of_xla:.2f} s")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    versions = {"jax": jax.__version__, "torch": torch.__version__, "python": platform.python_version()}
    last = {"seeds": args.seeds, "epochs": args.epochs, "student": student, "seconds": seconds}
    last |= {name: {"wrote": own.tokens, "training": round(own.training, 2)} for name, own in done.items()}
    last |= {"parts": round(alone, 2), "parts_of_xla": round(of_xla, 2)}
    print(json.dumps(last | {"commit": commit.stdout.strip()} | versions))


if __name__ == "__main__":
    main()
