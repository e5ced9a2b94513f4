"""Seconds for the same work by seedloop and by PyTorch, in turn, in one process.

    python benchmarks/speed.py sft --size 3m
    python benchmarks/speed.py options --model /path/to/smollm2 --repeats 5
    python benchmarks/speed.py sft greedy sample options --size 14m --data ../shared/data

Rows:
    sft      one pass over GSM8K answers by AdamW, clipped; against a loop in PyTorch that sorts examples into like
             lengths, pads to the longest of a batch, has logits of answers alone and the fused optimizer, and
             against TRL's SFTTrainer, which groups by length and has that optimizer
    dpo      one pass over pairs of GSM8K answers, the reference included; against TRL's DPOTrainer
    greedy   8 tokens for questions of TREC; against `generate` on batches of like length
    sample   4 samples of 48 tokens a question of GSM8K; against `generate` with `num_return_sequences`
    options  log-likelihoods of the four endings of HellaSwag's rows; against PyTorch that reads contexts of like
             length as a batch, once, and their endings as a batch after them

A size is a Llama with random weights whose tokens are real text's, folded into its vocabulary; `--model` is a
folder. Samples and answers do not end before their limit, so that both sides do the same work, which is checked
where there are numbers to compare. Each side first runs once (`cold`, with compiling), then `--repeats` times.
Needs torch and trl, and the data sets that `--data` holds. The last line is JSON.
"""

import argparse
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(HERE))

from common import runtime  # noqa: E402

runtime.reuse_memory()  # as a run does, before jax is imported

import jax  # noqa: E402
import numpy as np  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from common.config import SampleConfig, TrainConfig  # noqa: E402
from common.model.hf import load_config, load_params  # noqa: E402
from common.sample.sampler import Prompt, Sampler  # noqa: E402
from common.sample.score import score_shared  # noqa: E402
from common.train.data import Encoded  # noqa: E402
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
    "dpo": (64, 32, 8),
    "greedy": (1000, 500, 100),
    "sample": (64, 32, 8),
    "options": (200, 100, 32),
}
"""Examples of a row of the table, for 3m, 14m and larger models."""
PAD = 0


class Work:
    """One model on both sides, and texts as its tokens."""

    def __init__(self, args: argparse.Namespace, folder: pathlib.Path):
        if args.model:
            folder = pathlib.Path(args.model)
            self.torch = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        else:
            shape = SHAPES[args.size] | {"max_position_embeddings": 2048, "tie_word_embeddings": True}
            self.torch = LlamaForCausalLM(LlamaConfig(**shape))
            self.torch.save_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or folder)
        self.config = load_config(folder)
        self.params = jax.device_put(load_params(folder, self.config), jax.devices()[0])
        self.data, self.place = pathlib.Path(args.data), ["3m", "14m"].index(args.size) if not args.model else 2

    def ids(self, text: str) -> list[int]:
        found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        # 0 is padding's.
        return [1 + token % (self.config.vocab_size - 1) for token in found]

    def rows(self, row: str, file: str) -> list[dict]:
        lines = (self.data / file).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines[: ROWS[row][self.place]]]


def padded(rows: list[list[int]], left: bool = False) -> torch.Tensor:
    longest = max(map(len, rows))
    fill = lambda row: [PAD] * (longest - len(row))
    return torch.tensor([fill(row) + row if left else row + fill(row) for row in rows])


def by_length(rows: list, size: int, length) -> list[list]:
    order = sorted(rows, key=length)
    return [order[i : i + size] for i in range(0, len(order), size)]


def sft(work: Work):
    """Returns ours, theirs, and how many tokens an example has in all."""
    rows = work.rows("sft", "gsm8k/train.jsonl")
    examples = []
    for row in rows:
        prompt, answer = work.ids(row["question"] + "\n"), work.ids(row["answer"])
        examples.append(Encoded((*prompt, *answer), len(prompt)))
    size = 16 if work.place < 2 else 8
    settings = TrainConfig(
        epochs=1, batch_size=size, learning_rate=1e-4, schedule="constant", warmup_ratio=0, remat="none"
    )

    def ours():
        losses = []
        log = lambda _: lambda step, loss, **__: losses.append(float(loss))
        jax.block_until_ready(fine_tune(work.params, work.config, examples, settings, pad_id=PAD, log=log))
        return losses[0]

    start = {name: tensor.clone() for name, tensor in work.torch.state_dict().items()}

    def theirs():
        work.torch.load_state_dict(start)
        optimizer = torch.optim.AdamW(work.torch.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        batches, losses = by_length(examples, size, lambda e: len(e.tokens)), []
        for batch in [batches[i] for i in np.random.default_rng(0).permutation(len(batches))]:
            tokens = padded([list(e.tokens) for e in batch])
            answers = torch.zeros_like(tokens, dtype=torch.bool)
            for r, e in enumerate(batch):
                answers[r, e.prompt_length - 1 : len(e.tokens) - 1] = True
            h = work.torch.model(tokens, attention_mask=None).last_hidden_state[answers]
            targets = tokens.roll(-1, 1)[answers]
            loss = torch.nn.functional.cross_entropy(work.torch.lm_head(h), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(work.torch.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
        return statistics.mean(losses)

    def trl():
        from trl import SFTConfig, SFTTrainer

        work.torch.load_state_dict(start)
        cut = [(e.tokens[: e.prompt_length], e.tokens[e.prompt_length :]) for e in examples]
        rows = [{"prompt": written(prompt), "completion": written(answer)} for prompt, answer in cut]
        with tempfile.TemporaryDirectory() as folder:
            config = SFTConfig(**trl_settings(folder, size), train_sampling_strategy="group_by_length")
            SFTTrainer(
                work.torch, args=config, train_dataset=Dataset.from_list(rows), processing_class=words(work.config)
            ).train()

    return ours, {"PyTorch": theirs, "TRL": trl}, sum(len(e.tokens) for e in examples)


def trl_settings(folder: str, size: int) -> dict:
    return {
        "output_dir": folder,
        "num_train_epochs": 1,
        "per_device_train_batch_size": size,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "max_length": None,
        "report_to": [],
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def words(config) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the numbers of tokens: TRL wants texts."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({str(i): i for i in range(config.vocab_size)}, unk_token="1")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="0", eos_token="1")


def written(tokens) -> str:
    return " ".join(map(str, tokens)) + " "


def dpo(work: Work):
    rows = work.rows("dpo", "gsm8k/train.jsonl")
    pairs = []
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        prompt, *answers = (work.ids(text) for text in (row["question"] + "\n", row["answer"], other["answer"]))
        pairs.append(Preference(*(tuple(part) for part in (prompt, *answers))))
    size = 8 if work.place < 2 else 4
    settings = TrainConfig(
        epochs=1, batch_size=size, learning_rate=1e-4, schedule="constant", warmup_ratio=0, remat="none"
    )

    def ours():
        reference = reference_logps(work.params, work.config, pairs)
        jax.block_until_ready(prefer(work.params, work.config, pairs, reference, settings, pad_id=PAD))

    start = {name: tensor.clone() for name, tensor in work.torch.state_dict().items()}

    def theirs():
        from trl import DPOConfig, DPOTrainer

        work.torch.load_state_dict(start)
        rows = [{n: written(getattr(p, n)) for n in ("prompt", "chosen", "rejected")} for p in pairs]
        with tempfile.TemporaryDirectory() as folder:
            config = DPOConfig(**trl_settings(folder, size), precompute_ref_log_probs=True)
            DPOTrainer(
                work.torch, args=config, train_dataset=Dataset.from_list(rows), processing_class=words(work.config)
            ).train()

    tokens = sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
    return ours, {"TRL": theirs}, tokens


def _generate(work: Work, prompts: list[list[int]], tokens: int, size: int, **settings) -> int:
    made = 0
    with torch.inference_mode():
        for batch in by_length(prompts, size, len):
            ids = padded(batch, left=True)
            out = work.torch.generate(
                ids,
                attention_mask=(ids != PAD).long(),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                pad_token_id=PAD,
                **settings,
            )
            made += len(out) * tokens
    return made


def greedy(work: Work):
    prompts = [work.ids(f"Which class? {row['text']}\nAnswer:") for row in work.rows("greedy", "trec/train.jsonl")]

    def ours():
        sampler = Sampler(work.params, work.config, eos_ids=())
        return sum(len(c.tokens) for [c] in sampler.sample([Prompt(p, SampleConfig(8)) for p in prompts]))

    return ours, {"generate": lambda: _generate(work, prompts, 8, 64, do_sample=False)}, 8 * len(prompts)


def sample(work: Work):
    prompts = [work.ids(row["question"]) for row in work.rows("sample", "gsm8k/train.jsonl")]
    k, tokens = 4, 48

    def ours():
        sampler = Sampler(work.params, work.config, eos_ids=())
        asked = [Prompt(p, SampleConfig(tokens, 1.0), tuple(range(k))) for p in prompts]
        return sum(len(c.tokens) for own in sampler.sample(asked) for c in own)

    def theirs():
        return _generate(work, prompts, tokens, 8, do_sample=True, top_k=0, num_return_sequences=k)

    return ours, {"generate": theirs}, k * tokens * len(prompts)


def options(work: Work):
    groups = [
        (work.ids(row["context"]), [work.ids(" " + ending) for ending in row["endings"]])
        for row in work.rows("options", "hellaswag/test.jsonl")
    ]

    def ours():
        found = score_shared(work.params, work.config, groups)
        return float(np.mean([logps.sum() for own in found for logps in own]))

    def theirs():
        sums = []
        with torch.inference_mode():
            for batch in by_length(groups, 8, lambda group: len(group[0])):
                count = len(batch[0][1])
                contexts, endings = padded([c for c, _ in batch], left=True), [e for _, own in batch for e in own]
                seen, ids = (contexts != PAD).long(), padded(endings)
                places = (seen.cumsum(1) - 1).clamp(min=0)
                begun = work.torch(
                    contexts, attention_mask=seen, position_ids=places, use_cache=True, logits_to_keep=1
                )
                begun.past_key_values.batch_repeat_interleave(count)
                seen = torch.cat([seen.repeat_interleave(count, 0), torch.ones_like(ids)], 1)
                places = places[:, -1:].repeat_interleave(count, 0) + 1 + torch.arange(ids.shape[1])
                after = work.torch(ids, attention_mask=seen, position_ids=places, cache=begun.past_key_values)
                logits = torch.cat([begun.logits.repeat_interleave(count, 0), after.logits[:, :-1]], 1)
                logps = logits.log_softmax(-1).gather(2, ids[..., None])[..., 0]
                sums += (logps * (ids != PAD)).sum(1).tolist()
        return statistics.mean(sums)

    return ours, {"PyTorch": theirs}, sum(len(c) + sum(map(len, own)) for c, own in groups)


WORK = {"sft": sft, "dpo": dpo, "greedy": greedy, "sample": sample, "options": options}


def timed(run) -> tuple[float, float]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def measure(name: str, work: Work, repeats: int) -> dict:
    ours, peers, tokens = WORK[name](work)
    runs = {"seedloop": ours, **peers}
    cold, found = zip(*(timed(run) for run in runs.values()), strict=True)
    # Of trainings batches and their order differ.
    if name not in ("sft", "dpo") and any(abs(number - found[0]) > 1e-3 * abs(found[0]) for number in found):
        raise SystemExit(f"{name}: {found} are not the same")
    seconds = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            seconds[key].append(timed(run)[0])
    return {
        "row": name,
        "seconds": {key: sorted(round(s, 3) for s in own) for key, own in seconds.items()},
        "cold": dict(zip(runs, (round(s, 2) for s in cold), strict=True)),
        "tokens_per_second": round(tokens / statistics.median(seconds["seedloop"])),
    }


def lines(size: str, row: dict) -> list[str]:
    mine = statistics.median(row["seconds"]["seedloop"])
    return [
        f"{size:8} {row['row']:8} {key:9} {statistics.median(own):8.2f} s ({own[0]:.2f} to {own[-1]:.2f}), "
        f"cold {row['cold'][key]:.2f}   "
        + (
            f"{row['tokens_per_second']:,} tokens/s"
            if key == "seedloop"
            else f"{statistics.median(own) / mine:.2f}x"
        )
        for key, own in row["seconds"].items()
    ]


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
        work = Work(args, pathlib.Path(folder))
    size = args.size if not args.model else pathlib.Path(args.model).name
    table = []
    for name in args.rows:
        table.append(measure(name, work, args.repeats))
        print("\n".join(lines(size, table[-1])), flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    versions = {"jax": jax.__version__, "torch": torch.__version__, "python": platform.python_version()}
    device = jax.devices()[0].device_kind
    print(json.dumps({"size": size, "rows": table, "device": device, "commit": commit.stdout.strip()} | versions))


if __name__ == "__main__":
    main()
