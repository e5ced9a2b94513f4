"""Memory and time of each stage of one small run of each method with a real model, beside what the plan foretells.

python benchmarks/memory.py --model smollm2
python benchmarks/memory.py --model /path/to/smollm2 --repo /path/to/another/checkout   # with other code
python benchmarks/memory.py --defaults         # the run that each method makes without flags
python benchmarks/memory.py --defaults --held  # the same as they are run where memory is plenty, which hold more

Runs are commands of their own, `run.py METHOD`, whose resident memory is looked at twenty times a second. Prints a
table, and as its last line the same as JSON.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).parents[1]
GIVEN_BACK = {"MALLOC_TRIM_THRESHOLD_": "131072"}
"""glibc's own threshold: a run that finds it set holds on to nothing (`common.runtime.reuse_memory`), so that what
is measured is what it needs."""
TOLD = {"needed": r"([\d.]+) GB at most", "held": r"up to ([\d.]+) GB are held"}
METHODS = ("llm2llm", "reversegen", "active-inheritance", "profile")
TOPICS = (
    *("the sea at night", "old bridges", "bread and salt", "winter birds", "a quiet street", "the price of tea"),
    *("rain on a roof", "city gardens", "maps of the moon", "train stations", "mountain paths", "a broken clock"),
)
VERBS = ("Tell me about", "Write a short note on", "Describe", "What is good about")
JUDGE = """from reversegen.judge import Verdict

def judge(query, answer):
    return Verdict("pass" if answer.startswith("Gladly") or len(answer) % 3 == 0 else "fail")

def label(messages):
    return "Gladly: here it is."
"""


def commands(model: str, place: pathlib.Path, old: bool) -> dict[str, list[str]]:
    """The arguments of every run, whose files are written into `place`. `old`: code without --lora-rank in all."""
    prompts = [f"{verb} {topic}." for verb in VERBS for topic in TOPICS]
    rows = [{"text": text, "label": ("short", "long")[len(text) > 30]} for text in prompts]
    files = {
        "train": rows[:24],
        "test": rows[24:36],
        "pool": rows[36:],
        "prompts": [{"prompt": text} for text in prompts],
    }
    for name, content in files.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (place / "judge.py").write_text(JUDGE)
    labelled = ["--task", "text", "--train-file", f"{place}/train.jsonl", "--test-file", f"{place}/test.jsonl"]
    taught = ["--teacher", f"pool:{place}/pool.jsonl", "--arms", "base,fine-tune,llm2llm", "--seed-examples", "8"]
    small = ["--rounds", "2", "--per-wrong", "1", "--batch-size", "4", "--max-length", "256"]
    llm2llm = ["llm2llm", "--student", model, *labelled, *taught, *small]
    roles = [word for role in ("proposer", "target") for word in (f"--{role}", model)]
    asked = ["--task", "own", "--judge", f"python:{place}/judge.py:judge", "--seeds-file", f"{place}/train.jsonl"]
    few = ["--seed-instructions", "12", "--shots", "2", "--prompts", "6", "--final-prompts", "16", "--rounds", "1"]
    few += ["--samples", "3", "--query-tokens", "64", "--answer-tokens", "24", "--min-pairs", "1"]
    few += ["--arms", "target-before,target-after", "--likelihood-guard", "0", "--semantic", "1", "--jaccard", "1"]
    few += ["--batch-size", "4", "--dpo-batch-size", "4", "--label-votes", "1", "--mix", "0.5"]
    few += ["--test-file", f"{place}/test.jsonl", "--labeler", f"python:{place}/judge.py:label"]
    reversegen = ["reversegen", *roles, *asked, *few]
    sampled = ["--prompts-file", f"{place}/prompts.jsonl", "--prompts", "24", "--k", "3", "--answer-tokens", "32"]
    learned = ["--batch-size", "8", "--epochs", "1", "--max-length", "256", "--arms", "base,random,selected"]
    measured = ["--min-words", "0", "--profile", "none", "--test-prompts", "6", "--objective", "words:max"]
    inherit = ["active-inheritance", "--source", model, "--student", model, *sampled, *learned, *measured]
    found = {
        "llm2llm, all weights": llm2llm,
        "reversegen, adapters": [*reversegen, "--lora-rank", "16"],
        "active-inheritance, all weights": [*inherit, "--lora-rank", "0"],
        "active-inheritance, adapters": [*inherit, "--lora-rank", "16"],
    }
    return found if old else found | {"llm2llm, adapters": [*llm2llm, "--lora-rank", "16"]}


def resident(pid: int) -> int:
    """Bytes of memory that a process has now; 0 once it has ended."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return 1024 * int(found[1]) if found else 0


def watched(
    command: list[str], repo: pathlib.Path, timing: pathlib.Path, variables: dict[str, str]
) -> tuple[int, dict[str, int], float, str]:
    """The most bytes that a command had, in all and by stage, its seconds, and its output. A stage is over as soon
    as it has a line in the file `timing`. Raises RuntimeError where it fails."""
    peak, start, since = 0, time.monotonic(), 0
    stages: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryFile("w+") as output:
        given = os.environ | variables
        process = subprocess.Popen(command, cwd=repo, stdout=output, stderr=subprocess.STDOUT, env=given)
        ended = threading.Event()

        def look() -> None:
            nonlocal peak, since
            seen = 0
            while not ended.wait(0.05):
                since = max(since, resident(process.pid))
                peak = max(peak, since)
                for row in read(timing)[seen:]:
                    stages[row["stage"]] = max(stages[row["stage"]], since)
                    seen, since = seen + 1, 0

        watcher = threading.Thread(target=look)
        watcher.start()
        code = process.wait()
        ended.set()
        watcher.join()
        output.seek(0)
        said = output.read()
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{said[-2000:]}")
    return peak, dict(stages), time.monotonic() - start, said


def read(timing: pathlib.Path) -> list[dict]:
    """The whole lines of timing.jsonl, of a run that may be adding one."""
    return [json.loads(line) for line in timing.read_text().split("\n")[:-1]] if timing.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repo", type=pathlib.Path, default=HERE)
    parser.add_argument("--only", default="", help="runs whose name holds this")
    parser.add_argument("--defaults", action="store_true", help="the methods without flags")
    parser.add_argument("--held", action="store_true", help="what is held where memory is plenty")
    args = parser.parse_args()
    old = not (args.repo / "common/memory.py").exists()
    variables, told = ({}, TOLD["held"]) if args.held else (GIVEN_BACK, TOLD["needed"])
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        runs = {name: [name] for name in METHODS} if args.defaults else commands(args.model, place, old)
        for name, arguments in runs.items():
            if args.only not in name:
                continue
            run_dir = place / re.sub(r"\W+", "-", name)
            command = [sys.executable, "run.py", *arguments, "--run-dir", str(run_dir)]
            foretold = None
            if not old:
                *_, said = watched([*command, "--dry-run"], args.repo, run_dir / "timing.jsonl", variables)
                found = re.search(rf"^memory\s.*?{told}", said, re.M)
                foretold = found and float(found[1])
            peak, peaks, seconds, _ = watched(command, args.repo, run_dir / "timing.jsonl", variables)
            spent: collections.Counter[str] = collections.Counter()
            for row in read(run_dir / "timing.jsonl"):
                spent[row["stage"]] += row["seconds"]
            table[name] = {"peak_gb": round(peak / 1e9, 2), "planned_gb": foretold, "seconds": round(seconds)}
            table[name]["stages"] = {
                stage: {"seconds": round(value), "peak_gb": round(peaks.get(stage, 0) / 1e9, 2)}
                for stage, value in spent.items()
            }
            print(f"{name:34}{table[name]}", flush=True)
    print(json.dumps(table))


if __name__ == "__main__":
    main()
