"""What every run must survive: SIGKILL in any stage, or being asked to stop, and the same command again."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
APART = ("timing.jsonl", "timing.svg", ".lock", "replies.sqlite", ".seedloop.json")
"""Files that may differ between two runs of one command."""


def bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Everything else in a run directory, by its place there."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in APART]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings as flags of the command line."""
    words = []
    for name, value in settings.items():
        words += ["--" + name.replace("_", "-"), ",".join(value) if isinstance(value, tuple) else str(value)]
    return words


def check_killed(
    words: Sequence[str],
    folder: pathlib.Path,
    stages: Sequence[str],
    whole: pathlib.Path,
    env: Mapping[str, str] | None = None,
) -> None:
    """Start `run.py` with `words` and `--run-dir folder`, kill it once the first of `stages` appears (patterns of
    artifacts), again for the next, and let it end. Its bytes must be those of `whole`, which was left alone."""
    command = [*words, "--run-dir", str(folder)]
    for stage in stages:
        # A folder that is not there yet holds nothing.
        signalled(command, lambda stage=stage: folder.exists() and any(folder.glob(stage)), signal.SIGKILL, env)
    check_ends(command, folder, whole, env)


def signalled(
    words: Sequence[str], ready: Callable[[], bool], number: signal.Signals, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Start `run.py` with `words` and send it the signal once it is `ready`; its exit status and what it said."""
    # A shell's background job ignores Ctrl-C, and so would all that it starts; a handler is not inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "run.py", *words],
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    signal.signal(signal.SIGINT, before)
    with process:
        while process.poll() is None and not ready():
            time.sleep(0.01)
        ended = process.poll()
        os.kill(process.pid, number)
        said = process.communicate()[1].decode()
        assert ended is None or ready(), said
        return process.returncode, said


def check_ends(
    words: Sequence[str], folder: pathlib.Path, whole: pathlib.Path, env: Mapping[str, str] | None = None
) -> None:
    """Let `run.py` with `words` end. The bytes in `folder` must be those of `whole`."""
    done = subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted, found = bytes_of(whole), bytes_of(folder)
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if wanted[name] != found[name]] == []
