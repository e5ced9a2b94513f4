"""Make the tiny checkpoints of every model family in tests/fixtures/families. Development only: needs PEFT.

    python tests/make_family_fixtures.py

Each is a configuration of `benchmarks/parity.py` at 16 hidden dimensions, with a `golden.npz`: token ids (2, 20)
and the float32 logits that transformers computes for them in PyTorch's eager mode. The first of a family has an
adapter of PEFT's, with the logits that it gives; two have `gradients`, a checkpoint whose tensors are those of the
loss -log p(next token), a mean over all positions.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).parent
sys.path.insert(0, str(ROOT.parent))

from benchmarks import parity  # noqa: E402
from common.config import PROJECTIONS  # noqa: E402
from common.model import hf  # noqa: E402
from common.model.names import layer_rules  # noqa: E402

FOLDER = ROOT / "fixtures" / "families"
SMALLER = {"hidden_size": 16, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
WIDTHS = {"gpt2": "n_inner", "falcon": "ffn_hidden_size", "qwen3_moe": "moe_intermediate_size"}
"""By which other name a family calls the width of its MLPs or experts."""
OWN = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose first configuration is among the older fixtures already."""
DIFFERENTIATED = ("gemma2", "gpt_oss")


def main() -> None:
    transformers.logging.set_verbosity_error()
    shutil.rmtree(FOLDER, ignore_errors=True)
    for family, configurations in parity.CONFIGURATIONS.items():
        for number, given in enumerate(configurations):
            if family in OWN and number == 0:
                continue
            layers = {} if {"layer_types", "mlp_only_layers"} & given.keys() else {"num_hidden_layers": 2}
            more = {WIDTHS[family]: 12} if family in WIDTHS else {}
            more |= {"num_attention_heads": 4} if "num_kv_heads" in given else {}
            make(family, number, layers | given | SMALLER | more)
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    print(f"{size / 1e6:.2f} MB")


def make(family: str, number: int, given: dict) -> None:
    """One fixture."""
    folder = FOLDER / (f"{family}_{number}" if number else family)
    model = parity.make(family, given, number, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokens = np.random.default_rng(number).integers(3, parity.SMALL["vocab_size"], (2, 20)).astype(np.int32)
    np.savez_compressed(folder / "golden.npz", tokens=tokens, logits=parity.torch_logits(model, tokens))
    if number == 0:
        _add_adapter(model, family, folder, tokens)
    if number == 0 and family in DIFFERENTIATED:
        _add_gradients(folder, tokens)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder.name}: {size / 1000:.0f} kB")


def _add_adapter(model, family: str, folder: pathlib.Path, tokens: np.ndarray) -> None:
    import peft

    rules = [rule for rule in layer_rules(hf.load_config(folder), 0) if rule.key in PROJECTIONS]
    targets = sorted({rule.name.split(".", 3)[-1].removesuffix(".weight") for rule in rules})
    settings = {"fan_in_fan_out": family == "gpt2", "target_modules": targets}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=5, **settings))
    for path, weight in wrapped.named_parameters():
        if "lora_" in path:
            with torch.no_grad():
                weight.copy_(0.2 * torch.randn(weight.shape))
    wrapped.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()
    file = folder / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": family}
    config["target_modules"] = sorted(config["target_modules"])  # a set in PEFT
    file.write_text(json.dumps(config, indent=2) + "\n")
    np.savez_compressed(folder / "adapter" / "golden.npz", logits=parity.torch_logits(wrapped, tokens))


def _add_gradients(folder: pathlib.Path, tokens: np.ndarray) -> None:
    model = parity.load(folder)
    ids = torch.tensor(tokens, dtype=torch.long)
    logits = model(ids).logits[:, :-1].reshape(-1, model.config.vocab_size)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1)).backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.grad)
    model.save_pretrained(folder / "gradients")
    (folder / "gradients" / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
