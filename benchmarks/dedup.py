"""Deduplication of up to 1,000,000 candidates by ROUGE-L: seconds of computing, texts kept and memory.

    python benchmarks/dedup.py                    # about seven minutes on one quiet core
    python benchmarks/dedup.py --save             # also writes benchmarks/results/dedup.json and .svg

Candidates are sentences of 8 to 60 words drawn from 20,000 by Zipf's law; every second one is an earlier one with
some words replaced, left out or swapped, from hardly to beyond recognition. A candidate is kept if no kept one is
nearer than the limit, as in a run. `MiB` is the most memory the process has held so far, less what it held before
the first candidate, and `exponent` the power of the number of candidates that the seconds have grown with since
the row above. The plain search compares with every kept text, and must keep the same ones.
"""

import argparse
import itertools
import json
import math
import pathlib
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common.results.plots import alone, line_figure  # noqa: E402
from common.text.filters import KnownTexts, rouge_l, words_of  # noqa: E402

SIZES = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
VOCABULARY = [f"word{i}" for i in range(20_000)]
CUMULATIVE = list(itertools.accumulate(1 / (i + 2.7) for i in range(20_000)))


def draw(rng: random.Random, count: int) -> list[str]:
    return rng.choices(VOCABULARY, cum_weights=CUMULATIVE, k=count)


def candidate(index: int) -> str:
    """Sentence `index`, always the same: an even one is new, an odd one an edited copy of an earlier even one."""
    rng = random.Random(index)
    if index % 2 == 0:
        return " ".join(draw(rng, rng.randint(8, 60)))
    words = candidate(2 * rng.randrange(index // 2 + 1)).split()
    for _ in range(rng.randint(0, len(words) // 3)):
        place, other = rng.randrange(len(words)), rng.randrange(len(words))
        edit = rng.randrange(3)
        if edit == 0:
            words[place] = draw(rng, 1)[0]
        elif edit == 1:
            words[place], words[other] = words[other], words[place]
        elif len(words) > 4:
            del words[place]
    return " ".join(words)


def resident() -> float:
    """The most memory held so far, MiB (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def indexed(limit: float, sizes: list[int]) -> Iterator[dict[str, Any]]:
    """One pass over the most candidates, with the figures so far at each of `sizes`, which ascend."""
    known, before, seconds, done = KnownTexts(limit), resident(), 0.0, 0
    for size in sizes:
        while done < size:
            text = candidate(done)
            start = time.process_time()
            if known.near(text) is None:
                known.add(text, str(done))
            seconds += time.process_time() - start
            done += 1
        yield {
            "candidates": size,
            "kept": len(known),
            "seconds": round(seconds, 2),
            "MiB": round(resident() - before, 1),
        }


def plain(limit: float, size: int) -> tuple[int, float]:
    """Texts kept and seconds by comparing with every one kept before."""
    texts = [words_of(candidate(i)) for i in range(size)]
    start, kept = time.process_time(), []
    for words in texts:
        if not any(rouge_l(words, other) > limit for other in kept):
            kept.append(words)
    return len(kept), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=0.7, help="ROUGE-L F1 above which two texts are the same")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--plain", type=int, default=3_000, help="most candidates for the plain search")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/dedup.json and .svg")
    args = parser.parse_args()

    rows = []
    print(f"{'candidates':>10s}{'kept':>9s}{'seconds':>10s}{'exponent':>10s}{'MiB':>9s}")
    for row in indexed(args.limit, sorted(args.sizes)):
        if rows:
            growth = [math.log(row[key] / rows[-1][key]) for key in ("seconds", "candidates")]
            row["exponent"] = round(growth[0] / growth[1], 2)
        rows.append(row)
        print(
            f"{row['candidates']:10,d}{row['kept']:9,d}{row['seconds']:10.2f}{row.get('exponent', ''):>10}"
            f"{row['MiB']:9.1f}",
            flush=True,
        )
    for row in rows:
        if row["candidates"] <= args.plain:
            kept, seconds = plain(args.limit, row["candidates"])
            if kept != row["kept"]:
                raise SystemExit(f"the plain search keeps {kept} of {row['candidates']}, the index {row['kept']}")
            row["plain_seconds"] = round(seconds, 2)
            print(f"the plain search takes {seconds:.2f} s for {row['candidates']:,d} and keeps the same number")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    result = {
        "limit": args.limit,
        "rows": rows,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "commit": commit.stdout.strip(),
    }
    print(json.dumps(result))
    if args.save:
        file = ROOT / "benchmarks" / "results" / "dedup.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
        thousands = [row["candidates"] / 1000 for row in rows]
        series = {key: (thousands, [row[key] for row in rows]) for key in ("seconds", "MiB")}
        figure = line_figure(series, "thousand candidates", "seconds, MiB")
        file.with_suffix(".svg").write_text(alone(figure, "Deduplication: seconds and memory against candidates"))


if __name__ == "__main__":
    main()
