"""Seconds for the same work by seedloop and by PyTorch, in turn, in one process.

    python benchmarks/speed.py sft --size 3m
    python benchmarks/speed.py options --model /path/to/smollm2 --repeats 5
    python benchmarks/speed.py sft greedy sample options --size 14m --data ../shared/data

Rows:
    sft      one pass over GSM8K answers by AdamW, clipped; against a loop in PyTorch that sorts examples into like
             lengths, pads to the longest of a batch, computes logits of answers alone, and has the fused optimizer
    greedy   8 tokens for questions of TREC; against `generate` on batches of like length
    sample   4 samples of 48 tokens a question of GSM8K; against `generate` with `num_return_sequences`
    options  log-likelihoods of the four endings of HellaSwag's rows; against PyTorch that reads contexts of like
             length as a batch, once, and their endings as a batch after them

A size is a Llama with random weights whose tokens are real text's, folded into its vocabulary; `--model` is a
folder. Samples and answers do not end before their limit, so that both sides do the same work, which is checked
where there are numbers to compare. Each side first runs once (`cold`, with compiling), then `--repeats` times.
Needs torch, and the data sets that `--data` holds. The last line is JSON.
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

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402

from common.config import SampleConfig, TrainConfig  # noqa: E402
from common.model.hf import load_config, load_params  # noqa: E402
from common.sample.sampler import Prompt, Sampler  # noqa: E402
from common.sample.score import score_shared  # noqa: E402
from common.train.data import Encoded  # noqa: E402
from common.train.loop import fine_tune  # noqa: E402

SHAPES = {
    "3m": dict(
        vocab_size=4096, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6
    ),
    "14m": dict(
        vocab_size=32768, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=8
    ),
}
ROWS = {"sft": (256, 96, 32), "greedy": (1000, 500, 100), "sample": (64, 32, 8), "options": (200, 100, 32)}
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

    return ours, theirs, sum(len(e.tokens) for e in examples)


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

    return ours, lambda: _generate(work, prompts, 8, 64, do_sample=False), 8 * len(prompts)


def sample(work: Work):
    prompts = [work.ids(row["question"]) for row in work.rows("sample", "gsm8k/train.jsonl")]
    k, tokens = 4, 48

    def ours():
        sampler = Sampler(work.params, work.config, eos_ids=())
        asked = [Prompt(p, SampleConfig(tokens, 1.0), tuple(range(k))) for p in prompts]
        return sum(len(c.tokens) for own in sampler.sample(asked) for c in own)

    def theirs():
        return _generate(work, prompts, tokens, 8, do_sample=True, top_k=0, num_return_sequences=k)

    return ours, theirs, k * tokens * len(prompts)


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

    return ours, theirs, sum(len(c) + sum(map(len, own)) for c, own in groups)


WORK = {"sft": sft, "greedy": greedy, "sample": sample, "options": options}


def timed(run) -> tuple[float, float]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def measure(name: str, work: Work, repeats: int) -> dict:
    ours, theirs, tokens = WORK[name](work)
    (cold, found), (their_cold, wanted) = timed(ours), timed(theirs)
    if name != "sft":  # where batches and their order differ
        assert abs(found - wanted) <= 1e-3 * abs(wanted), f"{name}: {found} here, {wanted} there"
    runs = [(timed(ours)[0], timed(theirs)[0]) for _ in range(repeats)]
    mine, peer = zip(*runs, strict=True)
    return {
        "row": name,
        "seconds": [round(x, 3) for x in sorted(mine)],
        "peer_seconds": [round(x, 3) for x in sorted(peer)],
        "tokens_per_second": round(tokens / statistics.median(mine)),
        "ratio": round(statistics.median(peer) / statistics.median(mine), 2),
        "cold": [round(cold, 2), round(their_cold, 2)],
    }


def line(row: dict) -> str:
    spread = lambda s: f"{statistics.median(s):7.2f} s ({s[0]:.2f} to {s[-1]:.2f})"
    return (
        f"{row['row']:8} ours {spread(row['seconds'])}   PyTorch {spread(row['peer_seconds'])}"
        f"   {row['ratio']:.2f}x   {row['tokens_per_second']:,} tokens/s   cold {row['cold'][0]} and {row['cold'][1]} s"
    )


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
        print(f"{size:8} {line(table[-1])}", flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    versions = {"jax": jax.__version__, "torch": torch.__version__, "python": platform.python_version()}
    device = jax.devices()[0].device_kind
    print(json.dumps({"size": size, "rows": table, "device": device, "commit": commit.stdout.strip()} | versions))


if __name__ == "__main__":
    main()
