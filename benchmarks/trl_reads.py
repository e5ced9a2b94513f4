"""What TRL makes of what runs leave: one step of its trainers on data sets and models as they were written.

    python benchmarks/trl_reads.py                              # three small runs, then their steps: two minutes

Needs PyTorch and TRL, which nothing else in the project does, and says so where they are absent. Every data set is
loaded by `datasets.load_dataset` under one cache, after which its rows are compared with those of the file; the
trainers get nothing but its rows, the exported model and a place to write. "as ours": rows of which SFTTrainer
made the very tokens that a training of ours learns. A DPO step begins at log 2 = 0.6931.
"""

import importlib.util
import pathlib
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

SMALL: dict[str, dict[str, Any]] = {
    "llm2llm": {"seed_examples": 12, "rounds": 2, "per_wrong": 4, "arms": ("fine-tune", "llm2llm")},
    "reversegen": {
        **{"seed_instructions": 16, "rounds": 1, "prompts": 12, "samples": 4, "final_prompts": 24, "min_pairs": 1},
        "arms": ("target-before", "target-after"),
    },
    "active_inheritance": {
        **{"prompts": 24, "k": 6, "test_prompts": 6, "test_samples": 1, "repeats": 1, "answer_tokens": 96},
        **{"arms": ("base", "random", "selected"), "profile": ("none",)},
    },
}
"""Settings by method."""


def finished(method: str, folder: pathlib.Path) -> pathlib.Path:
    config = importlib.import_module(f"{method}.config").Config
    importlib.import_module(f"{method}.experiment").run(config(**SMALL[method], run_dir=str(folder)))
    return folder


def main() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("torch", "trl")):
        print("PyTorch or TRL is not installed: nothing to read with")
        return
    with tempfile.TemporaryDirectory(prefix="seedloop-") as place:
        root = pathlib.Path(place)
        runs = {method: finished(method, root / method) for method in SMALL}
        lines = [line for method, run in runs.items() for line in steps(method, run, root)]
    print(f"\n{'run':20}{'data set':13}{'rows':>5}  {'trainer':12}{'model':10}{'loss':>8}  {'as ours':8}  chats")
    print("\n".join(lines))


def steps(method: str, run: pathlib.Path, root: pathlib.Path) -> list[str]:
    """A line for every data set of a run."""
    import datasets
    import pyarrow.parquet
    import transformers
    import trl

    kinds = {"dataset": (trl.SFTTrainer, trl.SFTConfig), "preferences": (trl.DPOTrainer, trl.DPOConfig)}
    lines = []
    for name, (trainer, settings) in kinds.items():
        if not (run / name).exists():
            continue
        rows = datasets.load_dataset(str(run / name), split="train", cache_dir=str(root / "cache"))
        (file,) = (run / name / "data").iterdir()
        assert rows.to_list() == pyarrow.parquet.read_table(file).to_pylist(), f"{method} got another run's rows"
        # Of ReverseGen the proposer learns preferences, and it is the larger model.
        model = "proposer" if name == "preferences" and (run / "proposer").exists() else "model"
        transformers.set_seed(0)
        taught = trainer(
            model=str(run / model),
            args=settings(
                output_dir=str(root / "trained"), max_steps=1, report_to="none", save_strategy="no", use_cpu=True
            ),
            train_dataset=rows,
        )
        loss = taught.train().training_loss
        same = (
            "" if name == "preferences" else f"{as_ours(str(run / model), rows, taught.train_dataset)}/{len(rows)}"
        )
        columns = [c for c in ("prompt", "completion", "chosen", "rejected") if c in rows.column_names]
        lines.append(
            f"{method:20}{name:13}{len(rows):5}  {trainer.__name__:12}{model:10}{loss:8.4f}  {same:8}  "
            + ", ".join(columns)
        )
    return lines


def as_ours(model: str, rows: Any, encoded: Any) -> int:
    """Rows with the same tokens in both, of which the same are learned."""
    from common.lm import LanguageModel

    tokenizer, same = LanguageModel.load(model).tokenizer, 0
    for row, theirs in zip(rows, encoded, strict=True):
        tokens, start = tokenizer.encode_example(row["prompt"], row["completion"][0]["content"])
        labels = [-100] * start + tokens[start:]
        same += (theirs["input_ids"], theirs["labels"]) == (tokens, labels)
    return same


if __name__ == "__main__":
    main()
