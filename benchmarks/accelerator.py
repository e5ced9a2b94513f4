"""How fast one GPU or TPU trains, samples and scores, by one command of about ten minutes.

    python benchmarks/accelerator.py                   # on an accelerator: shapes of 8B, 1.5B and 0.5B
    python benchmarks/accelerator.py --small           # on CPU: the same rows at a shape of 2M, to try the program
    python benchmarks/accelerator.py sft-lora decode   # some rows

Rows, of random weights in bfloat16 (float32 on CPU):
    sft-lora    adapters of rank 16 on an 8B shape, 8 texts of 2,048 tokens an update
    dpo-lora    adapters of rank 16 on an 8B shape, 4 pairs of 1,024 tokens an update, reference included
    sft-full    all weights of a 1.5B shape (AdamW, weights and moments in float32), 8 texts of 2,048 tokens
    decode      an 8B shape, 128 slots and one, prompts of 512 tokens; see benchmarks/decode.py
    options     four endings of 40 tokens behind a context of 400, on a 0.5B shape

A rate is real tokens a second; `mfu` the share of the device's data sheet (bfloat16, dense). A token counts 6 FLOP
a weight in training all weights, 4 with adapters alone, as frozen weights have no gradient, 2 where it is only
read, those of the head for answers alone; and attention 4 x layers x heads x head size for each token it looks at,
in the same proportion. A pair's prompt counts once, and recomputing does not. There is no peer on the other side,
and whole rounds and first steps are not timed. A row that does not fit is told, and the next one goes on. The last
line is JSON.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(HERE), str(HERE / "benchmarks")]

import decode  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402

from common import runtime  # noqa: E402
from common.config import LoraConfig, ModelConfig, TrainConfig  # noqa: E402
from common.model.decoder import abstract_params, count_params  # noqa: E402
from common.sample.score import score_shared  # noqa: E402
from common.train.data import Encoded  # noqa: E402
from common.train.loop import fine_tune  # noqa: E402
from common.train.preference import Preference, prefer, reference_logps  # noqa: E402

PEAK = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
"""FLOP a second in bfloat16 without sparsity, from the data sheets."""
UPDATES = 5


@dataclasses.dataclass(frozen=True)
class Row:
    """Tokens of a timed run, its seconds, and the FLOP that count."""

    tokens: int
    seconds: float
    flop: float

    def told(self) -> dict[str, float | None]:
        peak = PEAK.get(jax.devices()[0].device_kind)
        memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return {
            "tokens_per_second": round(self.tokens / self.seconds),
            "mfu": None if peak is None else round(self.flop / self.seconds / peak, 3),
            "peak_gb": None if memory is None else round(memory / 1e9, 1),
        }


def flop(config: ModelConfig, tokens: int, heads: int, seen: float, a_weight: int) -> float:
    """FLOP of `tokens` that look at `seen` others each on average, at `a_weight` FLOP a weight, and of logits of
    `heads` of them. The embedding is a look-up."""
    head = config.vocab_size * config.hidden_size
    weights = count_params(abstract_params(config)) - head * (1 if config.tied_head else 2)
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * seen
    return tokens * (a_weight * weights + a_weight / 2 * attention) + heads * a_weight * head


def timed(run: Callable[[], Any]) -> float:
    """Seconds of the second call; the first compiles."""
    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def texts(config: ModelConfig, count: int, length: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(1, config.vocab_size, length).tolist()) for _ in range(count)]


def sft(shape: str, rows: int, length: int, lora: LoraConfig | None) -> Row:
    config = decode.SHAPES[shape]
    params = decode.random_params(config, runtime.compute_dtype())
    examples = [Encoded(ids, length // 2) for ids in texts(config, rows, length)]
    settings = TrainConfig(batch_size=rows, max_length=length, lora=lora)
    seconds = timed(lambda: fine_tune(params, config, examples, settings, pad_id=0, steps=UPDATES))
    tokens = UPDATES * rows * length
    learned = tokens - UPDATES * rows * (length // 2)
    return Row(tokens, seconds, flop(config, tokens, learned, length / 2, 6 if lora is None else 4))


def dpo(shape: str, rows: int, length: int) -> Row:
    config = decode.SHAPES[shape]
    params = decode.random_params(config, runtime.compute_dtype())
    half = length // 2
    pairs = [
        Preference(ids[:half], ids[half:length], ids[length:])
        for ids in texts(config, rows, length + length - half)
    ]
    settings = TrainConfig(batch_size=rows, max_length=length, lora=LoraConfig(rank=16))

    def run():
        reference = reference_logps(params, config, pairs)
        return prefer(params, config, pairs, reference, settings, pad_id=0, steps=UPDATES)

    answers = 2 * rows * (length - half)
    # Tokens of a prompt look at fewer others than those of the answers behind it.
    seen = (rows * half * half / 2 + answers * (half + length) / 2) / (rows * half + answers)
    work = [flop(config, rows * half + answers, answers, seen, a_weight) for a_weight in (4, 2)]
    return Row(UPDATES * 2 * rows * length, timed(run), UPDATES * work[0] + work[1])


def options(shape: str, count: int, context: int, ending: int) -> Row:
    config = decode.SHAPES[shape]
    params = decode.random_params(config, runtime.compute_dtype())
    groups = [
        (ids[:context], [ids[context + i * ending : context + (i + 1) * ending] for i in range(4)])
        for ids in texts(config, count, context + 4 * ending)
    ]
    tokens = count * (context + 4 * ending)
    seconds = timed(lambda: score_shared(params, config, groups))
    return Row(tokens, seconds, flop(config, tokens, 4 * count * ending, (context + ending) / 2, 2))


def decoding(shape: str, slots: int, prompt: int, new: int) -> dict[str, float | None]:
    args = argparse.Namespace(slots=slots, prompt_tokens=prompt, new_tokens=new, repeats=2)
    rates, share = decode.measure(decode.SHAPES[shape], args)
    return {name: round(rate) for name, rate in rates.items()} | {
        "share_of_bandwidth": None if np.isnan(share) else round(share, 3)
    }


def table(small: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """What each row runs."""
    adapters = LoraConfig(rank=16)
    if small:
        return {
            "sft-lora": lambda: sft("tiny", 4, 128, adapters).told(),
            "dpo-lora": lambda: dpo("tiny", 2, 128).told(),
            "sft-full": lambda: sft("tiny", 4, 128, None).told(),
            "decode": lambda: {f"{n} slots": decoding("tiny", n, 64, 16) for n in (8, 1)},
            "options": lambda: options("tiny", 8, 64, 16).told(),
        }
    return {
        "sft-lora": lambda: sft("llama-3.1-8b", 8, 2048, adapters).told(),
        "dpo-lora": lambda: dpo("llama-3.1-8b", 4, 1024).told(),
        "sft-full": lambda: sft("qwen2.5-1.5b", 8, 2048, None).told(),
        "decode": lambda: {f"{n} slots": decoding("llama-3.1-8b", n, 512, 64) for n in (128, 1)},
        "options": lambda: options("qwen2.5-0.5b", 512, 400, 40).told(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="default: all of them")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if not (args.small or runtime.on_accelerator()):
        parser.error("there is no accelerator: --small tries the program on CPU")
    rows, found = table(args.small), {}
    if unknown := set(args.rows) - rows.keys():
        parser.error(f"unknown rows {', '.join(unknown)}: there are {', '.join(rows)}")
    for name in args.rows or rows:
        try:
            found[name] = rows[name]()
        except jax.errors.JaxRuntimeError as error:  # out of memory, most likely
            found[name] = {"failed": str(error).splitlines()[0][:200]}
        print(f"{name:10}{found[name]}", flush=True)
        jax.clear_caches()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "python": platform.python_version()}
    print(json.dumps({"rows": found, "commit": commit.stdout.strip()} | about))


if __name__ == "__main__":
    main()
