"""What selecting from a pool costs as it grows from 10,000 to 1,000,000 answers: seconds, peak memory, and a plot.

    python benchmarks/selection.py [--save] [--sizes 10000,1000000]

Ten answers to a prompt of 20 to 120 words drawn by Zipf's law, from four sources; MTLD up under its floor on
words, with Gunning-Fog and Lix beside it. Each size is a run of the command in a process of its own, from the file
to the report; beside the peak memory of that process stands that of the larger of its workers. `--save` writes
results/selection.json and results/selection.svg beside this file, with machine and commit.
"""

import argparse
import json
import os
import pathlib
import platform
import random
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from common.results.files import read_jsonl
from common.results.plots import figure_svg, line_figure

ROOT = pathlib.Path(__file__).parent.parent
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
K = 10
RESULTS = pathlib.Path(__file__).parent / "results"
COMMAND = """
import json, resource, sys
sys.path.insert(0, {root!r})
from active_inheritance.command import main
main({arguments!r})
own, workers = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps([own, workers]))
"""


def write_pool(file: pathlib.Path, answers: int) -> None:
    """A pool of Zipf texts with a sentence's end after every dozen words or so."""
    rng = random.Random("selection")
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choice(letters) for _ in range(rng.randint(2, 9))) for _ in range(5000)]
    text = rng.choices(words, [1 / (rank + 1) for rank in range(5000)], k=2_000_000)
    for i in range(0, len(text), 12):
        text[i] = text[i].capitalize()
        text[i - 1] += "."
    with file.open("w") as out:
        for prompt in range(answers // K):
            row = {"id": f"p{prompt}", "prompt": f"Write text {prompt}."}
            for i in range(K):
                start = rng.randrange(len(text) - 120)
                row |= {
                    f"completion_{i}": " ".join(text[start : start + rng.randint(20, 120)]),
                    f"source_{i}": "abcd"[i % 4],
                }
            out.write(json.dumps(row) + "\n")


def measure(answers: int) -> dict[str, float]:
    """One run: seconds in total and by stage, peak memory in MB, bytes of the pool in MB."""
    with tempfile.TemporaryDirectory() as folder:
        pool, run = pathlib.Path(folder, "pool.jsonl"), pathlib.Path(folder, "run")
        write_pool(pool, answers)
        arguments = [
            "--pool",
            str(pool),
            "--objective",
            "mtld:max",
            "--metrics",
            "gunning_fog,lix",
            "--select-only",
        ]
        code = COMMAND.format(root=str(ROOT), arguments=[*arguments, "--run-dir", str(run)])
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        own, workers = json.loads(done.stdout.splitlines()[-1])
        found = {"seconds": round(seconds, 1), "pool_mb": round(pool.stat().st_size / 1e6, 1)}
        found |= {"peak_mb": round(own / 1024), "peak_worker_mb": round(workers / 1024)}
        return found | {row["stage"]: row["seconds"] for row in read_jsonl(run / "timing.jsonl")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write the results beside this file")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="answers, comma-separated")
    given = parser.parse_args()
    found = {}
    for size in map(int, given.sizes.split(",")):
        found[size] = measure(size)
        print(f"{size:8} answers  {found[size]}", flush=True)
    if given.save:
        RESULTS.mkdir(exist_ok=True)
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
        result = {"answers": found, "python": platform.python_version(), "machine": platform.machine()}
        result |= {"cores": len(os.sched_getaffinity(0)), "commit": commit}
        (RESULTS / "selection.json").write_text(json.dumps(result, indent=2) + "\n")
        series = {
            name: ([n / 1000 for n in found], [entry[key] for entry in found.values()])
            for name, key in (
                ("seconds", "seconds"),
                ("peak memory, MB", "peak_mb"),
                ("peak memory of a worker, MB", "peak_worker_mb"),
            )
        }
        drawing = figure_svg(line_figure(series, "thousand answers", "seconds, MB"), "selection")
        drawing = drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:white" ', 1)
        (RESULTS / "selection.svg").write_text(drawing)


if __name__ == "__main__":
    main()
