"""A model from its GGUF file against transformers' reading of the same file with PyTorch: logits and token ids.

    python run.py fetch smollm2
    python benchmarks/gguf_parity.py                            # half a minute on two cores, 3 GB
    python benchmarks/gguf_parity.py --data ../shared/data      # real texts from there

Needs PyTorch, which nothing else in the project does, and says so where it is absent. Texts are the beginnings of
files found in `--data`, by default of this repository's. Token ids are compared with those of transformers'
tokenizer of the same file. That one cuts numbers as GPT-2 does and not digit by digit, as SmolLM2's own
tokenizer.json says, so they are compared on the texts without their digits; `--original FOLDER` compares with the
model's own tokenizer in full. The last line is JSON.
"""

import argparse
import importlib.util
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from common.lm import LanguageModel  # noqa: E402
from common.model import decoder  # noqa: E402

POSITIONS = 512
"""Tokens of each text that the models are given."""


def texts_of(folder: pathlib.Path, count: int) -> list[str]:
    kinds = (".jsonl", ".txt", ".csv", ".tsv", ".md")
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in kinds]
    step = max(1, len(files) // count)
    return [file.read_text(encoding="utf-8", errors="replace")[:2000] for file in files[::step][:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or smollm2")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT, help="where texts are looked for")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--original", help="a folder with the model's own tokenizer.json")
    args = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: nothing to compare with")
        return
    model = LanguageModel.load(args.model, dtype=np.float32)
    config, tokenizer, file = model.config, model.tokenizer, next(model.folder.glob("*.gguf")).resolve()
    forward = jax.jit(lambda p, t: decoder.unembed(p, config, decoder.hidden(p, config, t)))
    texts, found = texts_of(args.data, args.texts), []
    for text in texts:
        ids = np.array(tokenizer.encode_text(text)[:POSITIONS], np.int32)
        padded = np.pad(ids, (0, POSITIONS - len(ids)))[None]  # one shape, compiled once
        found.append((ids, np.asarray(forward(model.params, padded))[0, : len(ids)]))
    del model
    figures = compared(file, found) | {"texts": len(texts)}
    same = lambda theirs, text: tokenizer.encode_text(text) == theirs(text, add_special_tokens=False)["input_ids"]
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    figures["ids_equal"] = sum(same(theirs, re.sub(r"\d", "", text)) for text in texts)
    if args.original:
        own = transformers.AutoTokenizer.from_pretrained(args.original)
        figures["ids_equal_to_original"] = sum(same(own, text) for text in texts)
    for name, value in figures.items():
        print(f"{name:24}{value}")
    print(json.dumps(figures))


def compared(file: pathlib.Path, found: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Differences from PyTorch's logits. `found`: ids and logits of each text."""
    import torch
    import transformers

    reader = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    difference, largest, argmax, positions = 0.0, 0.0, 0, 0
    for ids, logits in found:
        with torch.no_grad():
            expected = reader(torch.tensor(ids[None], dtype=torch.long)).logits[0].float().numpy()
        difference = max(difference, float(np.abs(logits - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
        argmax += int((logits.argmax(-1) == expected.argmax(-1)).sum())
        positions += len(ids)
    return {
        "positions": positions,
        "largest_difference": difference,
        "largest_logit": largest,
        "argmax_equal": argmax,
    }


if __name__ == "__main__":
    main()
