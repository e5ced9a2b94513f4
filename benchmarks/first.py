"""Seconds from the start of a process to its first useful step, by seedloop and by PyTorch.

    python benchmarks/first.py                                   # the embedded student
    python benchmarks/first.py --model /path/to/smollm2 --batch 8
    python benchmarks/first.py --python /path/to/environment/bin/python

A step is one update on a batch of the embedded arithmetic's answers (`train`), or the answers to as many of its
questions, 16 tokens each (`answer`). Every figure is of a process of its own, from its start to its end, loading
of libraries and of the model included: seedloop with an empty cache of compiled programs, seedloop with what that
left in it, and a plain loop of PyTorch or `generate`. Needs torch. The last line is JSON.

Where torch is installed, transformers loads it whoever asks, for more than two seconds. `--python` names the
interpreter of an environment with what requirements.txt lists alone, which seedloop's side then runs in.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import types

HERE = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(HERE))

TOKENS = 16
RATE = 1e-4
SIDES = ("seedloop, cache empty", "seedloop, cache filled", "PyTorch")


def ours(step: str, model: str, rows: list[dict]) -> None:
    from common import runtime

    runtime.reuse_memory()
    os.environ.update(runtime.compile_cache_environment())

    from common.config import SampleConfig, TrainConfig
    from common.generate import Message, Request
    from common.lm import LanguageModel

    loaded = LanguageModel.load(model)
    asked = [(Message(role="user", content=row["question"]),) for row in rows]
    if step == "train":
        settings = TrainConfig(
            epochs=1, batch_size=len(rows), micro_batch_size=len(rows), learning_rate=RATE, remat="none"
        )
        loaded.fine_tuned([(prompt, row["answer"]) for prompt, row in zip(asked, rows, strict=True)], settings)
    else:
        requests = [Request(str(i), prompt) for i, prompt in enumerate(asked)]
        list(loaded.generator().generate(requests, SampleConfig(TOKENS), 0))


def theirs(step: str, model: str, rows: list[dict]) -> None:
    import peers
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from common.model import checkpoint

    folder = checkpoint.resolve(model)
    tokenizer, loaded = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    )
    chat = lambda row: tokenizer.apply_chat_template(
        [{"role": "user", "content": row["question"]}], tokenize=False, add_generation_prompt=True
    )
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    prompts = [ids(chat(row)) for row in rows]
    if step == "train":
        answers = [[*ids(row["answer"]), tokenizer.eos_token_id] for row in rows]
        examples = [
            types.SimpleNamespace(tokens=(*p, *a), prompt_length=len(p))
            for p, a in zip(prompts, answers, strict=True)
        ]
        peers.trained(loaded, examples, len(rows), RATE)
    else:
        peers.generated(loaded, prompts, [[TOKENS]] * len(rows), len(rows), do_sample=False)


def seconds(side: str, step: str, args: argparse.Namespace, cache: str) -> float:
    """Of a process that does one step, until it ends."""
    python = sys.executable if side == "PyTorch" else args.python
    command = [python, __file__, "--child", side, "--step", step, "--batch", str(args.batch)]
    command += ["--model", args.model]
    began = time.perf_counter()
    # What it has said by then is its own affair.
    subprocess.run(command, check=True, env=os.environ | {"XDG_CACHE_HOME": cache}, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - began, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:student", help="a folder; default: the embedded student")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--python", default=sys.executable, help="of seedloop's side; default: this one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=("train", "answer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        from common.tasks.arithmetic import Arithmetic

        seeds = Arithmetic().load("train", None, 0)[: args.batch]
        run = theirs if args.child == "PyTorch" else ours
        run(args.step, args.model, [{"question": seed.question, "answer": seed.answer} for seed in seeds])
        return
    table: dict[str, dict[str, list[float]]] = {}
    for step in ("train", "answer"):
        found: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as cache:
                for side in SIDES:
                    found[side].append(seconds(side, step, args, cache))
        peer = statistics.median(found["PyTorch"])
        for side, own in found.items():
            median = statistics.median(own)
            print(
                f"{step:7} {side:23} {median:7.2f} s ({min(own):.2f} to {max(own):.2f}), "
                f"{median / peer:.2f} of PyTorch's",
                flush=True,
            )
        table[step] = found
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    last = {"model": args.model, "batch": args.batch, "seconds": table, "commit": commit.stdout.strip()}
    print(json.dumps(last | {"python": platform.python_version()}))


if __name__ == "__main__":
    main()
