"""Speed of prefill and decoding, for a named shape with random weights.

    python benchmarks/decode.py                                 # tiny, 32 slots
    python benchmarks/decode.py --shape qwen2.5-0.5b --slots 64 --peer hf

Rows: prefill of a group of prompts; blocks of decoding with every slot busy (greedy, sampled, sampled with top-p);
and a whole run whose samples have random lengths, so that slots are refilled. Each figure is the best of several
repeats. `share of bandwidth` counts the bytes that a step must read, weights and the cache in use, against the
device's data sheet. `--peer hf` runs transformers' generate on the same prompts in the same dtype, on the CPU,
if torch is installed. The last line is JSON.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from common import runtime  # noqa: E402
from common.config import ModelConfig, Rope, RopeScaling, SampleConfig  # noqa: E402
from common.model import decoder  # noqa: E402
from common.sample import sampler as sample  # noqa: E402
from common.sample.prompt import Prompt  # noqa: E402
from common.sample.slots import Job, Slots  # noqa: E402

SHAPES = {
    "tiny": ModelConfig("llama", 2048, 192, 512, 4, 6, 2, 32, 1024, tied_head=True),
    "qwen2.5-0.5b": ModelConfig(
        "qwen2", 151936, 896, 4864, 24, 14, 2, 64, 32768, rope=Rope(1e6), tied_head=True, biases=("q", "k", "v")
    ),
    "qwen2.5-1.5b": ModelConfig(
        "qwen2", 151936, 1536, 8960, 28, 12, 2, 128, 32768, rope=Rope(1e6), tied_head=True, biases=("q", "k", "v")
    ),
    "llama-3.1-8b": ModelConfig(
        "llama", 128256, 4096, 14336, 32, 32, 8, 128, 131072, 1e-5, Rope(5e5, RopeScaling("llama3", 8.0))
    ),
    "llama-3.2-1b": ModelConfig(
        "llama", 128256, 2048, 8192, 16, 32, 8, 64, 131072, 1e-5, Rope(5e5, RopeScaling("llama3", 32.0)), True
    ),
}
BANDWIDTH = {"NVIDIA H200": 4.8e12, "NVIDIA H100 80GB HBM3": 3.35e12, "NVIDIA A100-SXM4-80GB": 2.04e12}
"""Bytes a second, from the data sheets."""


def random_params(config: ModelConfig, dtype) -> decoder.Params:
    """Made where they lie and in this dtype: in float32 those of 8B would take all of a device."""
    make = jax.jit(lambda key: jax.tree.map(lambda w: w.astype(dtype), decoder.init(config, key)))
    return make(jax.random.key(0))


def best(run, repeats: int) -> float:
    """Seconds of the fastest of several runs, the first (which compiles) left out."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def prompts(config: ModelConfig, length: int, limits, temperature: float = 0.0, top_p: float = 1.0):
    """Random prompts of `length` tokens, one for each limit of new tokens."""
    rng = np.random.default_rng(0)
    return [
        Prompt(
            rng.integers(0, config.vocab_size, length).tolist(), SampleConfig(int(limit), temperature, top_p), (i,)
        )
        for i, limit in enumerate(limits)
    ]


def decode_step(sampler: sample.Sampler, busy: list[Prompt], repeats: int) -> tuple[float, int]:
    """Seconds of a decoding step with a prompt in every slot, and the bytes of the cache it reads."""
    slots = Slots(len(busy))
    for slot, prompt in enumerate(busy):
        slots.start(slot, Job(prompt, slot, slot, 0))
    cache = sampler._cache(busy, slots.count)
    ends = slots.ends(busy[0].sampling.max_new_tokens)
    pages = cache.room(slots.live, slots.rows["position"], ends)
    numbers = np.random.default_rng(0).random((sampler.block, slots.count), np.float32)
    weights, turned = sampler._weights(slots.count)

    def block():
        cache.arrays, tokens, _ = sample._decode_block(
            weights,
            sampler.config,
            cache.arrays,
            slots.rows,
            numbers,
            sampler._eos,
            0,
            pages,
            turned=turned,
        )
        jax.block_until_ready(tokens)

    return best(block, repeats) / sampler.block, sum(leaf.nbytes for leaf in jax.tree.leaves(cache.arrays))


def measure(config: ModelConfig, args: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Tokens a second of each row of the table, and the share of bandwidth in greedy decoding (nan: unknown)."""
    params = random_params(config, runtime.compute_dtype())
    sampler = sample.Sampler(params, config, eos_ids=(), slots=args.slots)
    del params
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(sampler._params))
    bandwidth = BANDWIDTH.get(jax.devices()[0].device_kind, np.nan)

    together = Slots(args.slots).together
    group = np.random.default_rng(0).integers(0, config.vocab_size, (together, args.prompt_tokens), np.int32)
    prefill = best(lambda: jax.block_until_ready(sample._prefill(sampler._params, config, group)), args.repeats)
    rates, share = {"prefill": group.size / prefill}, np.nan
    limits = [args.new_tokens] * args.slots
    for name, *settings in (("greedy",), ("sampled", 1.0), ("top-p", 1.0, 0.9)):
        busy = prompts(config, args.prompt_tokens, limits, *settings)
        seconds, cache = decode_step(sampler, busy, args.repeats)
        rates[f"decode, {name}"] = args.slots / seconds
        if name == "greedy":
            share = (weights + cache) / seconds / bandwidth

    limits = np.random.default_rng(0).integers(1, 2 * args.new_tokens, 4 * args.slots)
    run = prompts(config, args.prompt_tokens, limits, 1.0)
    rates["whole run, random lengths"] = limits.sum() / best(lambda: sampler.sample(run), args.repeats)
    return rates, share


def measure_hf(config: ModelConfig, args: argparse.Namespace) -> float:
    """New tokens a second of transformers' generate for one batch of `slots` prompts, prefill included."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    kinds = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
    config_class, model_class = kinds[config.family]
    peer = model_class(
        config_class(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            tie_word_embeddings=config.tied_head,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    ids = torch.randint(0, config.vocab_size, (args.slots, args.prompt_tokens))

    def run():
        with torch.inference_mode():
            peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=args.new_tokens,
                min_new_tokens=args.new_tokens,
            )

    return args.slots * args.new_tokens / best(run, args.repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--slots", type=int, default=32, help="rows decoded together, a power of two")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64, help="of each sample, on average")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", choices=["hf"], help="also run transformers on torch")
    args = parser.parse_args()

    runtime.enable_compile_cache()
    config = SHAPES[args.shape]
    rates, share = measure(config, args)
    if args.peer:
        try:
            rates["transformers generate"] = measure_hf(config, args)
        except ImportError:
            print("torch is not installed: no peer is run")
    device = jax.devices()[0]
    print(f"{args.shape} on {device.device_kind}, {jnp.dtype(runtime.compute_dtype())}, {args.slots} slots")
    for name, rate in rates.items():
        print(f"  {name:28s}{rate:12,.0f} tokens/s")
    if not np.isnan(share):
        print(f"  {'share of bandwidth, greedy':28s}{share:12.0%}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    print(
        json.dumps(
            vars(args)
            | {name: round(rate, 1) for name, rate in rates.items()}
            | {"share of bandwidth": None if np.isnan(share) else round(share, 3)}
            | {"device": device.device_kind, "jax": jax.__version__, "commit": commit.stdout.strip()}
        )
    )


if __name__ == "__main__":
    main()
