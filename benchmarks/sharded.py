"""What computing on a mesh changes: the largest difference from one device, for everything that a method does.

    python benchmarks/sharded.py [--model tests/fixtures/qwen2]      # a table in Markdown, on 8 simulated devices

Training: of any weight after three updates of all weights, of merged adapters, of DPO. Scoring: of a token's
log-probability. Sampling at temperature 1 and beam search: how many answers differ, of how many. Vectors: of any
number. Meshes of three devices divide none of the model's sizes.
"""

import argparse
import dataclasses
import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from common.config import LoraConfig, SampleConfig, TrainConfig
from common.generate import Request
from common.lm import LanguageModel
from common.model.meshes import parse
from common.model.sharding import fetch, make_mesh
from common.sample.beam import BeamGenerator
from common.sample.score import score
from common.train.data import Encoded
from common.train.loop import fine_tune
from common.train.preference import Preference, prefer, reference_logps

ROOT = pathlib.Path(__file__).parent.parent
MESHES = ("data=8", "fsdp=8", "data=1,tensor=8", "data=2,fsdp=2,tensor=2")
MESHES += ("data=3", "data=1,fsdp=3", "data=1,tensor=3")
SETTINGS = TrainConfig(learning_rate=1e-3, batch_size=8, micro_batch_size=4)


def figures(model: LanguageModel) -> dict[str, list[np.ndarray]]:
    """Everything by one model, as arrays."""
    rng = np.random.default_rng(0)
    some = lambda: tuple(rng.integers(1, 64, size=9).tolist())
    pairs = [Preference(some(), some(), some()) for _ in range(24)]
    examples = [Encoded(pair.prompt + pair.chosen, len(pair.prompt)) for pair in pairs]
    leaves = lambda tree: [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(fetch(tree))]
    trained = lambda lora: fine_tune(
        model.params, model.config, examples, dataclasses.replace(SETTINGS, lora=lora), pad_id=0, steps=3
    )
    # The same for all: DPO is to be compared, not the reference a second time.
    reference = np.linspace(-30, -20, 2 * len(pairs), dtype=np.float32).reshape(-1, 2)
    ask = [Request(str(i), ({"role": "user", "content": "0123456789"[: i % 9 + 1]},), 2) for i in range(12)]
    beam = BeamGenerator("beam", model.params, model.config, model.tokenizer)
    texts = lambda made: np.array([record.text for batch in made for record in batch])
    return {
        "all weights": leaves(trained(None)),
        "adapters": leaves(trained(LoraConfig(rank=4))),
        "DPO": leaves(prefer(model.params, model.config, pairs, reference, SETTINGS, pad_id=0, steps=3)),
        "reference": [reference_logps(model.params, model.config, pairs)],
        "scoring": [np.concatenate(score(model.params, model.config, [(p.prompt, p.chosen) for p in pairs], 8))],
        "vectors": [model.embed(["1 2 3", "4 5", "6", "7 8 9 0", "1"])],
        "samples": [texts(model.generator().generate(ask, SampleConfig(40, temperature=1.0), 0))],
        "beams": [texts(beam.generate(ask[:5], SampleConfig(12), 0))],
    }


def difference(a: list[np.ndarray], b: list[np.ndarray]) -> str:
    if a[0].dtype.kind == "U":
        return f"{int((a[0] != b[0]).sum())} of {a[0].size}"
    return f"{max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True)):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=str(ROOT / "tests/fixtures/qwen2"))
    parser.add_argument("--meshes", default=" ".join(MESHES), help="by spaces")
    asked = parser.parse_args()
    alone = figures(LanguageModel.load(asked.model))
    print(f"| mesh | {' | '.join(alone)} |\n|---{'|---' * len(alone)}|")
    for mesh in asked.meshes.split():
        found = figures(LanguageModel.load(asked.model, mesh=make_mesh(**parse(mesh))))
        print(f"| {mesh} | {' | '.join(difference(alone[name], found[name]) for name in alone)} |", flush=True)


if __name__ == "__main__":
    main()
