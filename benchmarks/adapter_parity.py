"""Adapters against PEFT, both ways: its adapters merged into a base as BASE+ADAPTER, and ours read by it.

    python benchmarks/adapter_parity.py                         # the tests' tiny models, two minutes

Needs PyTorch and PEFT, which nothing else in the project does, and says so where they are absent. Each base gets
random adapters on all its matrices: plain, rslora, and with ranks and alphas of their own by pattern. A row is the
largest difference of two logits, and the largest logit.
"""

import dataclasses
import importlib.util
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from common.config import PROJECTIONS, LoraConfig, ModelConfig  # noqa: E402
from common.model import checkpoint, decoder, hf, lora  # noqa: E402
from common.model.decoder import Params  # noqa: E402

FIXTURES = ROOT / "tests" / "fixtures"
BASES = ("llama2", "llama3", "mistral", "qwen2", "qwen3")
SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 5, r"layers\.1\.mlp\.up_proj": 1}, "alpha_pattern": {"v_proj": 9}},
    "rslora, patterns": {"use_rslora": True, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"k_proj": 2}},
}
TOKENS = np.random.default_rng(0).integers(3, 128, (2, 24)).astype(np.int32)


def load(name: str) -> tuple[Params, ModelConfig]:
    folder = checkpoint.resolve(name)
    config = hf.load_config(folder)
    return hf.load_params(folder, config), config


def logits(params: Params, config: ModelConfig) -> np.ndarray:
    return np.asarray(decoder.unembed(params, config, decoder.hidden(params, config, TOKENS)))


def main() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("torch", "peft")):
        print("PyTorch or PEFT is not installed: nothing to compare with")
        return
    import peft
    import torch
    import transformers

    def base_model(name: str):
        return transformers.AutoModelForCausalLM.from_pretrained(
            FIXTURES / name, dtype=torch.float32, attn_implementation="eager"
        )

    def theirs(model) -> np.ndarray:
        with torch.no_grad():
            return model.eval()(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()

    transformers.utils.logging.disable_progress_bar()
    modules = [f"{name}_proj" for name in PROJECTIONS]
    with tempfile.TemporaryDirectory() as temporary:
        for name in BASES:
            for number, (kind, settings) in enumerate(SETTINGS.items()):
                torch.manual_seed(number)
                wanted = peft.LoraConfig(
                    r=3, lora_alpha=7, init_lora_weights=False, target_modules=modules, **settings
                )
                model = peft.get_peft_model(base_model(name), wanted)
                expected, folder = theirs(model), pathlib.Path(temporary, f"{name}_{number}")
                model.save_pretrained(folder)
                found = logits(*load(f"{FIXTURES / name}+{folder}"))
                print(f"in   {name:10}{kind:20}{np.abs(found - expected).max():.1e} {np.abs(expected).max():.1f}")
            params, config = load(str(FIXTURES / name))
            config = dataclasses.replace(config, lora=LoraConfig(4, 6.0))
            noise = lambda w: w + 0.02 * jax.random.normal(jax.random.key(w.size), w.shape)
            joined = lora.join(params, jax.tree.map(noise, lora.init(config, jax.random.key(1))))
            folder = lora.save_adapter(pathlib.Path(temporary, name), joined, config, str(FIXTURES / name))
            expected = theirs(peft.PeftModel.from_pretrained(base_model(name), folder))
            found = logits(joined, config)
            print(f"out  {name:10}{'plain':20}{np.abs(found - expected).max():.1e} {np.abs(expected).max():.1f}")


if __name__ == "__main__":
    main()
