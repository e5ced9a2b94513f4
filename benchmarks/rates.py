"""What the default run of each method takes by stage, with nothing compiled before and again with what is then in
the cache:

    python benchmarks/rates.py                  # a table; last line JSON
    python benchmarks/rates.py --keep           # and what `--dry-run` says before a run has ended on a machine

For a quiet machine. `--keep` writes the first runs' rates to `common/embedded/rates.json` (see `common.rates`).
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
METHODS = ("llm2llm", "reversegen", "active-inheritance", "profile")


def carried_out(method: str, cache: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """Seconds of a default run in all, of compiling and by stage."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "run.py", method, "--run-dir", str(folder)],
        cwd=ROOT,
        env=environment | {"XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    whole = time.monotonic() - start
    stages: collections.Counter[str] = collections.Counter()
    compiling = 0.0
    for line in (folder / "timing.jsonl").read_text().splitlines():
        row = json.loads(line)
        stages[row["stage"].split("/")[-1]] += row["seconds"] - row.get("compiling", 0)
        compiling += row.get("compiling", 0)
    most = {name: round(seconds, 1) for name, seconds in stages.most_common(5)}
    return {"seconds": round(whole, 1), "compiling": round(compiling, 1), "stages": most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="write common/embedded/rates.json")
    keep = parser.parse_args().keep
    rows, rates = [], {}
    print("| run | cache | seconds | of them compiling | stages |\n|---|---|---|---|---|")
    for method in METHODS:
        with tempfile.TemporaryDirectory() as place:
            cache = pathlib.Path(place) / "cache"
            for state in ("empty", "filled"):
                row = carried_out(method, cache, pathlib.Path(place) / state)
                if state == "empty":
                    rates |= json.loads((cache / "seedloop" / "rates.json").read_text())
                rows.append({"method": method, "cache": state, **row})
                stages = ", ".join(f"{name} {seconds}" for name, seconds in row["stages"].items())
                print(f"| {method} | {state} | {row['seconds']} | {row['compiling']} | {stages} |", flush=True)
    if keep:
        text = json.dumps(rates, indent=1, sort_keys=True) + "\n"
        (ROOT / "common" / "embedded" / "rates.json").write_text(text)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
