"""Seconds for the same work by seedloop and by PyTorch, in turn, in one process, and the floor under both.

    python benchmarks/speed.py sft lora dpo greedy evaluate sample options --size 3m --tokenizer /path/to/smollm2
    python benchmarks/speed.py options --model /path/to/smollm2 --repeats 1

Rows:
    sft       one pass over GSM8K answers by AdamW, clipped; against a loop in PyTorch that sorts examples into
              like lengths, pads to the longest of a batch, has logits of answers alone and the fused optimizer,
              and against TRL's SFTTrainer, which groups by length and has that optimizer
    task      the same on TREC's questions and classes, behind an instruction that names the classes
    lora      the same with adapters of rank 16 beside every matrix; PEFT's in the loop and in TRL
    dpo       one pass over pairs of GSM8K answers, the reference included; against TRL's DPOTrainer
    greedy    8 tokens for questions of TREC; against `generate` on batches of like length
    evaluate  the same behind an instruction that names the classes, as a run asks them
    sample    several samples a question of GSM8K, each as long as some answer of the data; against `generate` with
              `num_return_sequences`, whose batches end with their longest sample
    options   log-likelihoods of the four endings of HellaSwag's rows; against PyTorch that reads contexts of like
              length as a batch, once, and their endings as a batch after them

A size is a Llama with random weights whose tokens are real text's, folded into its vocabulary; `--model` is a
folder. Samples and answers end where they are told to, so that both sides do the same work; tokens are counted on
both sides, and scores compared. All is float32. Each side first runs once (`cold`, with compiling), then
`--repeats` times. `floor` is what the products of matrices alone would take, on tokens without padding and with
what prompts have in common read once, at the best rate that either library reached on this machine, or, where that
is more, to read the cache of what is written (`floors.py`). `parts` is what the parts of the work take, each by
itself, at its own shape, by the faster library, and `parts of XLA` what they take if all are XLA's (`parts.py`).
Needs torch, trl and peft, and the data sets that `--data` holds. The last line is JSON.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(HERE))

from common import runtime  # noqa: E402

runtime.reuse_memory()  # as a run does, before jax is imported

import floors  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import peers  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
from parts import Parts  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402

from common.buckets import in_common  # noqa: E402
from common.config import LoraConfig, SampleConfig, TrainConfig  # noqa: E402
from common.model.hf import load_config, load_params  # noqa: E402
from common.sample.prompt import Prompt  # noqa: E402
from common.sample.sampler import Sampler  # noqa: E402
from common.sample.score import score_shared  # noqa: E402
from common.train.data import Encoded, batches  # noqa: E402
from common.train.loop import fine_tune  # noqa: E402
from common.train.preference import Preference, prefer, reference_logps  # noqa: E402

SHAPES = {
    "3m": dict(
        vocab_size=4096, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6
    ),
    "14m": dict(
        vocab_size=32768, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=8
    ),
}
ROWS = {
    "sft": (256, 96, 32),
    "task": (512, 256, 64),
    "dpo": (64, 32, 8),
    "greedy": (1000, 500, 100),
    "sample": (64, 32, 16),
    "options": (200, 100, 32),
}
"""Examples of a row of the table, for 3m, 14m and larger models."""
ASK = (
    "Questions fall into one of six classes by the kind of answer that they ask for: abbreviation, entity, "
    "description, human, location or number. Read the question below and give its class in one word.\n"
    "Question: {}\nClass:"
)
RANK, RATE = 16, 1e-4


class Setting:
    """One model on both sides, and texts as its tokens."""

    def __init__(self, args: argparse.Namespace, folder: pathlib.Path):
        if args.model:
            folder = pathlib.Path(args.model)
            self.torch = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        else:
            shape = SHAPES[args.size] | {"max_position_embeddings": 2048, "tie_word_embeddings": True}
            torch.manual_seed(0)
            self.torch = LlamaForCausalLM(LlamaConfig(**shape))
            self.torch.save_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or folder)
        self.config = load_config(folder)
        self.shape = floors.Shape.of(self.config)
        self.params = jax.device_put(load_params(folder, self.config), jax.devices()[0])
        self.data, self.place = pathlib.Path(args.data), 2 if args.model else list(SHAPES).index(args.size)

    def ids(self, text: str) -> list[int]:
        found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        # 0 is padding's, 1 the end's.
        return [2 + token % (self.config.vocab_size - 2) for token in found]

    def rows(self, row: str, file: str) -> list[dict]:
        with (self.data / file).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in itertools.islice(lines, ROWS[row][self.place])]

    def fresh(self, lora: bool = False) -> Any:
        """A copy of PyTorch's model to be trained, since TRL puts a head of its own into what it is given."""
        model = copy.deepcopy(self.torch)
        shape = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        return peft.get_peft_model(model, shape) if lora else model


@dataclasses.dataclass(frozen=True)
class Work:
    """A row of the table: what each side runs, the tokens that count, and what it needs at least: products, those
    of texts that are written a token at a time and how many texts there are, bytes of their cache; what its parts
    take alone (`parts.py`). Of trainings also the positions computed for a token, padding included, here and in
    PyTorch."""

    sides: dict[str, Callable[[], Any]]
    tokens: int
    flops: float
    parts: Callable[[Parts, floors.Machine], float]
    decoded: float = 0.0
    texts: int = 0
    bytes: float = 0.0
    padding: tuple[float, float] | None = None


def sft(setting: Setting, lora: bool = False) -> Work:
    rows = setting.rows("sft", "gsm8k/train.jsonl")
    return _trained(setting, [(row["question"] + "\n", row["answer"]) for row in rows], lora)


def task(setting: Setting) -> Work:
    rows = setting.rows("task", "trec/train.jsonl")
    return _trained(setting, [(ASK.format(row["text"]), f" {row['label_name']}") for row in rows], lora=False)


def _trained(setting: Setting, texts: list[tuple[str, str]], lora: bool) -> Work:
    examples = []
    for question, written in texts:
        prompt, answer = setting.ids(question), setting.ids(written)
        examples.append(Encoded((*prompt, *answer), len(prompt)))
    settings = training(setting, lora, size := 16 if setting.place < 2 else 8)

    def ours() -> None:
        jax.block_until_ready(fine_tune(setting.params, setting.config, examples, settings, pad_id=peers.PAD))

    def plain() -> None:
        peers.trained(setting.fresh(lora), examples, size, RATE)

    def trl() -> None:
        peers.trl_trained(setting.fresh(lora), setting.config.vocab_size, examples, size, RATE)

    steps = settings.total_steps(len(examples))
    updates = batches(examples, settings, pad_id=peers.PAD, first_step=0, last_step=steps)
    computed = sum(
        part.prefix.size + (part.tokens if part.real is None else part.real).size
        for update in updates
        for part in update
    )
    longest = [
        [len(e.tokens) for e in batch] for batch in peers.by_length(examples, size, lambda e: len(e.tokens))
    ]
    theirs = sum(len(batch) * max(batch) for batch in longest)
    tokens = sum(len(e.tokens) for e in examples)
    forward = sum(setting.shape.text(e.prompt_length, [len(e.tokens) - e.prompt_length]) for e in examples)
    shared = in_common([e.tokens[: e.prompt_length] for e in examples])
    forward -= setting.shape.text(shared, []) * (len(examples) - steps)

    return Work(
        {"seedloop": ours, "PyTorch": plain, "TRL": trl},
        tokens,
        # The weights' own gradients are not needed for adapters.
        (2 if lora else 3) * forward,
        parts=lambda parts, _: parts.learning(examples, size, RANK if lora else 0),
        padding=(computed / tokens, theirs / tokens),
    )


def training(setting: Setting, lora: bool, size: int) -> TrainConfig:
    return TrainConfig(
        epochs=1,
        batch_size=size,
        micro_batch_size=size,
        learning_rate=RATE,
        schedule="constant",
        warmup_ratio=0,
        remat="none",
        lora=LoraConfig(rank=RANK, alpha=2 * RANK) if lora else None,
    )


def dpo(setting: Setting) -> Work:
    rows = setting.rows("dpo", "gsm8k/train.jsonl")
    pairs = []
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        prompt, *answers = (setting.ids(text) for text in (row["question"] + "\n", row["answer"], other["answer"]))
        pairs.append(Preference(*(tuple(part) for part in (prompt, *answers))))
    settings = training(setting, False, size := 8 if setting.place < 2 else 4)

    def ours() -> None:
        reference = reference_logps(setting.params, setting.config, pairs)
        jax.block_until_ready(prefer(setting.params, setting.config, pairs, reference, settings, pad_id=peers.PAD))

    def trl() -> None:
        peers.trl_preferred(setting.fresh(), setting.config.vocab_size, pairs, size, RATE)

    # Of the reference a forward pass; a pair's prompt is read once.
    forward = sum(setting.shape.text(len(p.prompt), [len(p.chosen), len(p.rejected)]) for p in pairs)
    tokens = sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)

    def alone(parts: Parts, _: floors.Machine) -> float:
        steps, answers = settings.total_steps(len(pairs)), sum(len(p.chosen) + len(p.rejected) for p in pairs)
        update = {
            "tokens": (tokens - sum(len(p.prompt) + 2 for p in pairs)) // steps,
            "rows": 2 * size,
            "length": tokens // (2 * len(pairs)),
            "heads": answers // steps,
        }
        return steps * (parts.forward(**update) + parts.training(**update) + parts.step())

    return Work({"seedloop": ours, "TRL": trl}, tokens, 4 * forward, parts=alone)


def greedy(setting: Setting, ask: str = "Which class? {}\nAnswer:") -> Work:
    prompts = [setting.ids(ask.format(row["text"])) for row in setting.rows("greedy", "trec/train.jsonl")]
    return _answered(setting, prompts, [[8]] * len(prompts), rows=64, do_sample=False)


def sample(setting: Setting) -> Work:
    rows = setting.rows("sample", "gsm8k/train.jsonl")
    prompts = [setting.ids(row["question"]) for row in rows]
    lengths = [len(setting.ids(row["answer"])) for row in rows]
    k = 10 if setting.place < 2 else 4
    limits = np.random.default_rng(0).choice(lengths, (len(rows), k)).tolist()
    return _answered(setting, prompts, limits, rows=64, do_sample=True, top_k=0)


def _answered(
    setting: Setting,
    prompts: list[list[int]],
    limits: list[list[int]],
    rows: int,
    do_sample: bool,
    **sampling: Any,
) -> Work:
    """Answers of so many tokens to each prompt."""
    shared = in_common(prompts)

    def ours() -> int:
        sampler = Sampler(setting.params, setting.config, eos_ids=())
        asked = [
            Prompt(prompt, SampleConfig(limit, float(do_sample)), (seed,), shared=shared - shared % 16)
            for prompt, own in zip(prompts, limits, strict=True)
            for seed, limit in enumerate(own)
        ]
        return sum(len(c.tokens) for own in sampler.sample(asked) for c in own)

    def theirs() -> int:
        return peers.generated(setting.torch, prompts, limits, rows, do_sample=do_sample, **sampling)

    # Tokens that all prompts begin with are read once.
    prefilled = [setting.shape.text(len(p), []) for p in prompts]
    again = setting.shape.text(shared, []) * (len(prompts) - 1)
    whole = sum(setting.shape.text(len(p), own) for p, own in zip(prompts, limits, strict=True))
    read = sum(setting.shape.read(len(p), own) for p, own in zip(prompts, limits, strict=True))

    def alone(parts: Parts, machine: floors.Machine) -> float:
        own = sum(len(p) - 1 - shared for p in prompts) // len(prompts)
        begun = parts.forward(tokens=32 * own, rows=32, length=own, heads=0) * len(prompts) / 32
        counts = [*itertools.chain(*limits)]
        seen = sum(len(p) * n + n * (n - 1) // 2 for p, own in zip(prompts, limits, strict=True) for n in own)
        return begun + parts.writing(counts, seen // sum(counts), machine.bandwidth)

    return Work(
        {"seedloop": ours, "generate": theirs},
        sum(map(sum, limits)),
        sum(prefilled) - again,
        decoded=whole - sum(prefilled),
        texts=sum(map(len, limits)),
        bytes=read,
        parts=alone,
    )


def options(setting: Setting) -> Work:
    groups = [
        (setting.ids(row["context"]), [setting.ids(" " + ending) for ending in row["endings"]])
        for row in setting.rows("options", "hellaswag/test.jsonl")
    ]

    def ours() -> float:
        found = score_shared(setting.params, setting.config, groups)
        return float(np.mean([logps.sum() for own in found for logps in own]))

    endings = [len(ending) for _, own in groups for ending in own]

    def alone(parts: Parts, _: floors.Machine) -> float:
        # A batch of four; in attention as if it were contexts with one ending each.
        context, ending = (sum(map(len, (c for c, _ in groups))) // len(groups), sum(endings) // len(endings))
        batch = parts.forward(
            tokens=4 * (context + 4 * (ending - 1)), rows=4, length=context + ending, heads=16 * ending
        )
        return len(groups) / 4 * batch

    return Work(
        {"seedloop": ours, "PyTorch": lambda: peers.scored(setting.torch, groups)},
        sum(len(context) + sum(map(len, own)) for context, own in groups),
        sum(setting.shape.text(len(context), map(len, own)) for context, own in groups),
        parts=alone,
    )


WORK: dict[str, Callable[[Setting], Work]] = {
    "sft": sft,
    "lora": lambda setting: sft(setting, lora=True),
    "dpo": dpo,
    "task": task,
    "greedy": greedy,
    "evaluate": lambda setting: greedy(setting, ASK),
    "sample": sample,
    "options": options,
}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def measure(name: str, setting: Setting, machine: floors.Machine, repeats: int) -> dict:
    work = WORK[name](setting)
    cold, found = zip(*(timed(run) for run in work.sides.values()), strict=True)
    if found[0] is not None and any(abs(number - found[0]) > 1e-3 * abs(found[0]) for number in found):
        raise SystemExit(f"{name}: {found} are not the same")
    seconds = {key: [] for key in work.sides}
    for _ in range(repeats):
        for key, run in work.sides.items():
            seconds[key].append(timed(run)[0])
    return {
        "row": name,
        "seconds": {key: sorted(round(s, 3) for s in own) for key, own in seconds.items()},
        "cold": dict(zip(work.sides, (round(s, 2) for s in cold), strict=True)),
        "tokens": work.tokens,
        "floor": round(floor(work, machine), 3),
        "parts": round(work.parts(Parts(setting.config), machine), 3),
        "parts_of_xla": round(work.parts(Parts(setting.config, here=True), machine), 3),
        "padding": work.padding and [round(ratio, 3) for ratio in work.padding],
    }


def floor(work: Work, machine: floors.Machine) -> float:
    """Seconds that no program in float32 could undercut."""
    written = work.decoded / machine.decoding(work.texts) if work.texts else 0.0
    return max(work.flops / machine.flops + written, work.bytes / machine.bandwidth)


def lines(size: str, row: dict) -> list[str]:
    mine, floor = statistics.median(row["seconds"]["seedloop"]), row["floor"]
    written = []
    for key, own in row["seconds"].items():
        median = statistics.median(own)
        written.append(
            f"{size:8} {row['row']:8} {key:9} {median:8.2f} s ({own[0]:.2f} to {own[-1]:.2f}), "
            f"cold {row['cold'][key]:.2f}   "
            + (
                f"{row['tokens'] / median:,.0f} tokens/s, floor {floor:.2f} s, parts {row['parts']:.2f} s, "
                f"of XLA {row['parts_of_xla']:.2f} s"
                + (", {} computed a token, PyTorch {}".format(*row["padding"]) if row["padding"] else "")
                if key == "seedloop"
                else f"{median / mine:.2f}x, at the floor {median / floor:.1f}x, at the pace of the parts "
                f"{median / row['parts']:.2f}x, of XLA's {median / row['parts_of_xla']:.2f}x"
            )
        )
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", choices=WORK)
    parser.add_argument("--size", choices=SHAPES, default="3m")
    parser.add_argument("--model", help="folder of a model of the Llama family, in place of --size")
    parser.add_argument("--tokenizer", help="folder of the tokenizer; default: that of --model")
    parser.add_argument("--data", default=str(HERE.parent / "shared" / "data"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if not (args.model or args.tokenizer):
        parser.error("--size needs --tokenizer: the folder of any model with one")
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(args, pathlib.Path(folder))
    size = args.size if not args.model else pathlib.Path(args.model).name
    machine = floors.measured()
    print(f"this machine: {machine.flops / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.0f} GB/s", flush=True)
    table = []
    for name in args.rows:
        table.append(measure(name, setting, machine, args.repeats))
        print("\n".join(lines(size, table[-1])), flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    versions = {"jax": jax.__version__, "torch": torch.__version__, "python": platform.python_version()}
    device = {"device": jax.devices()[0].device_kind, "gflops": round(machine.flops / 1e9)}
    print(json.dumps({"size": size, "rows": table, "commit": commit.stdout.strip()} | device | versions))


if __name__ == "__main__":
    main()
