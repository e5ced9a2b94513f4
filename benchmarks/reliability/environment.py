"""What a machine does to a run: another process in its folder, a full disk, a home that cannot be written, no
network, a clock that jumps back. Each ends in one line, or does not matter; the same command then goes on to the
same bytes.

    python benchmarks/reliability/environment.py --seed 1              # on Linux, as root (it mounts small file
    systems)"""

import contextlib
import ctypes
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import kills

import proof
from proof import Outcome, faults

STEPS = 24
"""Sizes of the disk between nothing and all that a run takes."""


@contextlib.contextmanager
def disk(place: pathlib.Path, size: int, *options: str) -> Iterator[pathlib.Path]:
    """A file system of `size` bytes."""
    place.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(place)]
    subprocess.run(words, check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def grow(place: pathlib.Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True, capture_output=True)


def one_line(outcome: Outcome, says: str) -> list[str]:
    """What is wrong with a command that should end with status 2 and one line that says `says`."""
    last = (outcome.err.strip().splitlines() or [""])[-1]
    found = faults(outcome)
    if outcome.code != 2 or not last.startswith("error: ") or says not in last:
        found.append(f"status {outcome.code}: {last[:300]}")
    return found


def same(found: pathlib.Path, whole: pathlib.Path) -> list[str]:
    return [f"differs in {name}" for name in kills.differences(kills.bytes_of(found), kills.bytes_of(whole))]


def two_processes(words: list[str], folder: pathlib.Path, whole: pathlib.Path) -> list[str]:
    run = folder / "two"
    child = kills.started(words, folder, run)
    for _ in range(6000):
        if (run / "config.json").exists():
            break
        time.sleep(0.05)
    found = one_line(proof.forked([*words, "--run-dir", str(run)], folder), "another process")
    if (code := kills.wait(child)) != 0:
        found.append(f"the first process ended with {code}")
    return found + same(run, whole)


def full_disk(words: list[str], folder: pathlib.Path, whole: pathlib.Path) -> list[str]:
    """The disk grows only when it is full: a run is stopped by that again and again."""
    total = 2 * sum(file.stat().st_size for file in whole.rglob("*") if file.is_file()) + (8 << 20)
    found, stopped = [], 0
    with disk(folder / "disk", 1 << 14) as place:
        for step in range(1, 4 * STEPS):
            outcome = proof.forked([*words, "--run-dir", str(place / "run")], folder)
            if outcome.code == 0:
                break
            stopped += 1
            found += [f"at {step}/{STEPS} of the space: {fault}" for fault in one_line(outcome, "")]
            if "full" not in outcome.err and "space" not in outcome.err:
                found.append(f"at {step}/{STEPS} of the space: {outcome.err.strip()[-200:]}")
            grow(place, total * step // STEPS)
        else:
            found.append("it never ended")
        found += same(place / "run", whole)
    print(f"full disk: stopped {stopped} times", file=sys.stderr)
    return found + ["it was never stopped"] * (not stopped)


def full_cache(words: list[str], folder: pathlib.Path, whole: pathlib.Path) -> list[str]:
    with disk(folder / "cache", 1 << 14) as place:
        (place / "fill").write_bytes(b"x" * 4096)
        env = {"XDG_CACHE_HOME": str(place), "JAX_COMPILATION_CACHE_DIR": str(place / "jax")}
        outcome = proof.forked([*words, "--run-dir", "cached"], folder, env)
    return faults(outcome) + ([] if outcome.code == 0 else [outcome.err[-300:]]) + same(folder / "cached", whole)


def read_only_home(words: list[str], folder: pathlib.Path, whole: pathlib.Path) -> list[str]:
    with disk(folder / "home", 1 << 20, "ro") as place:
        env = {"HOME": str(place), "XDG_CACHE_HOME": "", "JAX_COMPILATION_CACHE_DIR": str(place / ".cache/jax")}
        outcome = proof.forked([*words, "--run-dir", "homeless"], folder, env)
    return faults(outcome) + ([] if outcome.code == 0 else [outcome.err[-300:]]) + same(folder / "homeless", whole)


def read_only_run(words: list[str], folder: pathlib.Path, whole: pathlib.Path) -> list[str]:
    with disk(folder / "sealed", 1 << 20, "ro") as place:
        return one_line(proof.forked([*words, "--run-dir", str(place / "run")], folder), "--run-dir")


def _cut_off() -> None:
    """Leave the network: a namespace with nothing in it. What waits before it tries again does not wait."""
    import huggingface_hub.constants as hub

    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
        raise OSError(ctypes.get_errno(), "unshare")
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))
    hub.HF_HUB_OFFLINE = False


def no_network(words: list[str], folder: pathlib.Path, whole: pathlib.Path) -> list[str]:
    found = []
    env = {"HF_HUB_OFFLINE": "0", "OPENAI_API_KEY": "loopback-key-0123", "HF_DATASETS_OFFLINE": "0"}
    asked = ["--teacher", "openai:m", "--teacher-url", "http://192.0.2.1/v1", "--label-check", "none"]
    for name, more in (
        ("model", ["--student", "nobody/nothing-at-all"]),
        ("data", ["llm2llm", "--task", "gsm8k"]),
        ("teacher", asked),
    ):
        given = more if more[0] == "llm2llm" else [*words, *more]
        outcome = proof.forked([*given, "--run-dir", f"offline_{name}"], folder, env, before=_cut_off)
        found += [f"{name}: {fault}" for fault in one_line(outcome, "")]
    outcome = proof.forked([*words, "--run-dir", "offline"], folder, env, before=_cut_off)
    return found + faults(outcome) + same(folder / "offline", whole)


def clock_jumps(words: list[str], folder: pathlib.Path, whole: pathlib.Path) -> list[str]:
    def jump() -> None:
        rng, now, offset = random.Random(0), time.time, [0.0]

        def time_() -> float:
            if rng.random() < 0.02:
                offset[0] -= rng.choice((1.0, 3600.0, 86400.0 * 400))
            return now() + offset[0]

        time.time = time_
        time.time_ns = lambda: int(time_() * 1e9)

    outcome = proof.forked([*words, "--run-dir", "jumped"], folder, before=jump)
    found = faults(outcome) + ([] if outcome.code == 0 else [outcome.err[-300:]]) + same(folder / "jumped", whole)
    again = proof.forked(["status", "jumped"], folder, before=jump)
    return found + faults(again)


CHECKS = {
    "two processes": two_processes,
    "full disk": full_disk,
    "full cache": full_cache,
    "read-only home": read_only_home,
    "read-only run directory": read_only_run,
    "no network": no_network,
    "a clock that jumps back": clock_jumps,
}


def main() -> None:
    args = proof.arguments(
        __doc__, ("--method", {"choices": proof.METHODS, "default": "llm2llm"}), ("--only", {"choices": CHECKS})
    )
    proof.warm_up()
    rows, all_found = [], {}
    with proof.place(args.keep) as made:
        folder = made
        words, files = proof.small(args.method)
        proof.write(folder, files)
        outcome = proof.forked([*words, "--run-dir", "whole"], folder)
        assert outcome.code == 0, outcome.err
        for name, check in CHECKS.items():
            if args.only in (None, name):
                found = check(words, folder, folder / "whole")
                rows.append((name, "; ".join(found)[:100] or "as it should be"))
                all_found |= {name: found} if found else {}
                print(rows[-1], found, file=sys.stderr)
    result: dict[str, Any] = {
        "seed": args.seed,
        "method": args.method,
        "checks": [row[0] for row in rows],
        "found": all_found,
    }
    proof.tell(
        f"environment_{args.method}",
        rows,
        ("what", "outcome"),
        result | {"faults": sum(map(len, all_found.values()))},
    )


if __name__ == "__main__":
    main()
