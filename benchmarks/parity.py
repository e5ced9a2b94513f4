"""Parity with transformers: tiny random checkpoints of every model family, in PyTorch and here.

    python benchmarks/parity.py                    # the table of parity_configurations.py, by family
    python benchmarks/parity.py --random 300       # as many drawn at random over all options, in turn by family
    python benchmarks/parity.py --only gpt2,phi    # some families

Needs PyTorch and PEFT, which nothing else in the project does. For each checkpoint: logits of the whole text, and
of its second half token by token from a cache; 24 tokens of greedy decoding; the checkpoint saved again, tensor by
tensor; for those of the table also a LoRA adapter of PEFT's read here, and one of ours read by PEFT. Differences
are the largest, in units of the logits' standard deviation where that is above 1. The last line is JSON.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from safetensors.numpy import load_file

from benchmarks.parity_configurations import CONFIGURATIONS, SMALL, draw
from common.config import PROJECTIONS, LoraConfig
from common.model import decoder, hf, lora
from common.model.names import layer_rules


def make(family: str, given: dict, seed: int, folder: pathlib.Path):
    """A random checkpoint in `folder`, and its model in PyTorch."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(family, **SMALL | given)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for path, weight in model.named_parameters():
        with torch.no_grad():
            weight.copy_(random_weight(path, weight, family))
    model.save_pretrained(folder)
    return load(folder)


def random_weight(path: str, weight, family: str):
    """Weights that give every part of a model its say."""
    noise = torch.randn(weight.shape)
    if "norm" in path or ".ln_" in path:
        unit = 0 if family.startswith("gemma") or path.endswith("bias") else 1
        return unit + 0.3 * noise
    if "bias" in path or "sinks" in path:
        return 0.5 * noise
    return noise if any(name in path for name in ("embed", "wte", "wpe")) else 0.2 * noise


def load(folder: pathlib.Path):
    """The model of a folder in PyTorch."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def torch_logits(model, tokens: np.ndarray) -> np.ndarray:
    """Logits in float32 that PyTorch computes."""
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long)).logits.float().numpy()


LONGEST = 36
"""Tokens in a cache: 12 and the 24 that follow."""

_quick = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnums=(1, 3), compiler_options=_quick)
def logits_of(params, config, tokens, dtype=jnp.float32):
    """Logits of whole texts."""
    return decoder.unembed(params, config, decoder.hidden(params, config, tokens, dtype=dtype))


@functools.partial(jax.jit, static_argnums=1, compiler_options=_quick)
def step(params, config, cache, tokens, positions):
    """Logits after one more token of each text, and the cache."""
    h, cache = decoder.decode(params, config, cache, tokens, positions)
    return decoder.unembed(params, config, h)[:, 0], cache


def begun(params, config, tokens: np.ndarray):
    """A cache that holds the texts, filled token by token, for which nothing more is compiled."""
    cache = decoder.empty_cache(config, len(tokens), LONGEST)
    for t in range(tokens.shape[1]):
        _, cache = step(params, config, cache, tokens[:, t : t + 1], np.full((len(tokens), 1), t))
    return cache


def from_cache(params, config, tokens: np.ndarray, start: int) -> np.ndarray:
    """Logits of each position from `start` on, token by token."""
    cache, found = begun(params, config, tokens[:, :start]), []
    for t in range(start, tokens.shape[1]):
        logits, cache = step(params, config, cache, tokens[:, t : t + 1], np.full((len(tokens), 1), t))
        found.append(np.asarray(logits))
    return np.stack(found, axis=1)


def greedy(params, config, prompt: np.ndarray, count: int) -> np.ndarray:
    """`count` tokens, each the likeliest after those before it."""
    cache, token, found = begun(params, config, prompt[:, :-1]), prompt[:, -1:], []
    for i in range(count):
        positions = np.full((len(prompt), 1), prompt.shape[1] - 1 + i)
        logits, cache = step(params, config, cache, token, positions)
        token = np.argmax(logits, axis=-1)[:, None].astype(np.int32)
        found.append(token)
    return np.concatenate(found, axis=1)


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint."""
    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


def adapters(model, family: str, folder: pathlib.Path, params, config, tokens: np.ndarray, seed: int) -> dict:
    """Largest differences of logits with an adapter: one that PEFT made, and one made here."""
    import peft

    rules = [rule for rule in layer_rules(config, 0) if rule.key in PROJECTIONS]
    targets = sorted({rule.name.split(".", 3)[-1].removesuffix(".weight") for rule in rules})
    torch.manual_seed(seed)
    theirs = peft.get_peft_model(
        model, peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, fan_in_fan_out=family == "gpt2")
    )
    for path, weight in theirs.named_parameters():
        if "lora_" in path:
            with torch.no_grad():
                weight.copy_(0.2 * torch.randn(weight.shape))
    theirs.save_pretrained(folder / "theirs")
    joined, adapted = lora.load_adapter(folder / "theirs", params, config)
    golden = torch_logits(theirs, tokens)
    inward = difference(logits_of(joined, adapted, tokens), golden)
    inward = max(inward, difference(logits_of(lora.merge(joined, adapted), config, tokens), golden))
    theirs.unload()
    # Of ours every matrix has an A of its own. Of the same settings, so that nothing more is compiled.
    adapted = dataclasses.replace(config, lora=LoraConfig(rank=3, alpha=5.0))
    rng = np.random.default_rng(seed)
    own = jax.tree.map(
        lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32),
        lora.split(decoder.abstract_params(adapted))[1],
    )
    joined = lora.join(params, own)
    lora.save_adapter(folder / "ours", joined, adapted, str(folder / "base"))
    back, _ = lora.load_adapter(folder / "ours", params, config)
    same = all(jax.tree.leaves(jax.tree.map(np.array_equal, back, joined)))
    wrapped = peft.PeftModel.from_pretrained(model, folder / "ours")
    outward = difference(logits_of(joined, adapted, tokens), torch_logits(wrapped, tokens))
    return {"peft_in": inward, "peft_out": outward if same else float("inf")}


def difference(ours, theirs) -> float:
    """The largest difference of logits, over their deviation where that is above 1."""
    return float(np.abs(np.asarray(ours) - theirs).max() / max(1.0, float(np.std(theirs))))


def check(family: str, given: dict, seed: int, thorough: bool) -> dict:
    """The figures of one checkpoint; those of adapters and of bfloat16 if it is looked at thoroughly."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        model = make(family, given, seed, folder / "base")
        config = hf.load_config(folder / "base")
        params = hf.load_params(folder / "base", config)
        rng = np.random.default_rng(seed)
        tokens = rng.integers(3, config.vocab_size, (2, 24)).astype(np.int32)
        golden = torch_logits(model, tokens)
        full = difference(logits_of(params, config, tokens), golden)
        cached = difference(from_cache(params, config, tokens, 12), golden[:, 12:])
        with torch.no_grad():
            told = model.generate(
                torch.tensor(tokens[:, :12], dtype=torch.long),
                max_new_tokens=24,
                do_sample=False,
                eos_token_id=None,
            ).numpy()[:, 12:]
        equal = bool(np.array_equal(greedy(params, config, tokens[:, :12], 24), told))
        hf.save(folder / "again", params, folder / "base")
        first, second = tensors_of(folder / "base"), tensors_of(folder / "again")
        exact = first.keys() == second.keys() and all(np.array_equal(first[n], second[n]) for n in first)
        exact = exact and difference(torch_logits(load(folder / "again"), tokens), golden) == 0
        found = {"logits": max(full, cached), "greedy": equal, "reload": exact}
        if not thorough:
            return found
        half = np.abs(np.asarray(logits_of(params, config, tokens, jnp.bfloat16)) - golden).mean()
        found["bfloat16"] = float(half / max(1.0, float(np.std(golden))))
        return found | adapters(model, family, folder, params, config, tokens, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="families, with commas between")
    parser.add_argument("--random", type=int, default=0, help="as many random configurations instead")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    families = args.only.split(",") if args.only else list(CONFIGURATIONS)
    cases = [(family, given) for family in families for given in CONFIGURATIONS[family]]
    rng = np.random.default_rng(args.seed)
    if args.random:
        drawn = (families[i % len(families)] for i in range(args.random))
        cases = [(family, draw(family, rng)) for family in drawn]
    rows: dict[str, list[dict]] = {family: [] for family in families}
    begun = time.monotonic()
    for seed, (family, given) in enumerate(cases, 1000 * args.seed):
        print(f"{seed % 1000 + 1} of {len(cases)}: {family}", end="\r", file=sys.stderr, flush=True)
        try:
            found = check(family, given, seed, thorough=not args.random)
        except Exception as error:
            print(f"{family} {given}: {type(error).__name__}: {error}", file=sys.stderr)
            found = {"logits": float("inf"), "greedy": False, "reload": False}
        if (
            not found["greedy"]
            or not found["reload"]
            or max(found[name] for name in LIMITED if name in found) > 1e-4
        ):
            print(f"{family} {given}: {found}", file=sys.stderr)
        rows[family].append(found)
        if seed % 20 == 19:
            jax.clear_caches()  # else every shape stays compiled
    print(f"{'family':12} count  logits   greedy   reload   from PEFT  to PEFT  bfloat16")
    for family, found in rows.items():
        print(
            f"{family:12} {len(found):5}  {worst(found, 'logits'):.1e}  {count(found, 'greedy'):7}  "
            f"{count(found, 'reload'):7}  {worst(found, 'peft_in'):.1e}    {worst(found, 'peft_out'):.1e}  "
            f"{worst(found, 'bfloat16'):.3f}"
        )
    every = [row for found in rows.values() for row in found]
    total = {name: worst(every, name) for name in (*LIMITED, "bfloat16")}
    total |= {name: sum(row[name] for row in every) for name in ("greedy", "reload")}
    print(json.dumps({"cases": len(every), **total, "seconds": round(time.monotonic() - begun)}))


LIMITED = ("logits", "peft_in", "peft_out")
"""Differences of logits that are rounding alone."""


def worst(rows: list[dict], name: str) -> float:
    """The largest of a figure, where it was looked at."""
    return max((row[name] for row in rows if name in row), default=0.0)


def count(rows: list[dict], name: str) -> str:
    """How often something holds."""
    return f"{sum(row[name] for row in rows)}/{len(rows)}"


if __name__ == "__main__":
    main()
