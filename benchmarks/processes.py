"""A run by two processes on this machine, one killed in the middle and both started again, beside a run by one:

    python benchmarks/processes.py llm2llm --seed-examples 12            # a method and its flags; last line JSON

The one has two simulated devices and the mesh that two processes form, so that both compute alike: every artifact
must have the same bytes. A third run by one device shows what the split over devices changes.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
APART = ("timing.jsonl", "timing.svg", ".lock", "replies.sqlite")
"""Files that may differ between two runs of one command."""


def command(words: list[str], folder: pathlib.Path) -> list[str]:
    return [sys.executable, "run.py", *words, "--run-dir", str(folder)]


def environment(devices: int) -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}


def pair(words: list[str], folder: pathlib.Path) -> list[subprocess.Popen]:
    """Both processes of a run, started."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    more = ["--coordinator", place, "--processes", "2"]
    start = lambda number: subprocess.Popen(
        [*command(words, folder), *more, "--process", str(number)],
        cwd=ROOT,
        env=environment(1),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return [start(0), start(1)]


def ended(processes: list[subprocess.Popen]) -> list[int]:
    """Their exit statuses; what went wrong is shown."""
    for process in processes:
        _, said = process.communicate()
        if process.returncode:
            print(said[-2000:], file=sys.stderr)
    return [process.returncode for process in processes]


def bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in APART]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def main(words: list[str], killed: int = 1) -> None:
    found: dict[str, object] = {"command": " ".join(words)}
    with tempfile.TemporaryDirectory() as place:
        two, one, alone = (pathlib.Path(place, name) for name in ("two", "one", "alone"))
        start = time.monotonic()
        mesh = [*command(words, one), "--mesh", "data=2"]
        subprocess.run(mesh, cwd=ROOT, env=environment(2), check=True, stdout=subprocess.DEVNULL)
        found["one_process_seconds"] = round(time.monotonic() - start)
        start = time.monotonic()
        processes = pair(words, two)
        # Killed when a third of the artifacts are there.
        third = len(bytes_of(one)) // 3
        while all(process.poll() is None for process in processes) and len(list(two.rglob("*.*"))) < third:
            time.sleep(0.05)
        os.kill(processes[killed].pid, signal.SIGKILL)
        since = time.monotonic()
        statuses = ended(processes)
        found["statuses_after_the_kill"] = statuses
        found["seconds_to_end"] = round(time.monotonic() - since, 1)
        found["artifacts_then"] = f"{len(bytes_of(two))} of {len(bytes_of(one))}"
        assert ended(pair(words, two)) == [0, 0], "the run was not continued"
        found["two_processes_seconds"] = round(time.monotonic() - start)
        subprocess.run(command(words, alone), cwd=ROOT, env=environment(1), check=True, stdout=subprocess.DEVNULL)
        ours, theirs, device = bytes_of(two), bytes_of(one), bytes_of(alone)
        found["artifacts"] = len(ours)
        found["differ_from_one_process"] = sorted(n for n in ours | theirs if ours.get(n) != theirs.get(n))
        found["differ_from_one_device"] = sorted(n for n in ours | device if ours.get(n) != device.get(n))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
