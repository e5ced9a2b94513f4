"""What every run must survive: SIGKILL in any stage, and the same command again."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
APART = ("timing.jsonl", ".lock", "replies.sqlite")
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
    command = [sys.executable, "run.py", *words, "--run-dir", str(folder)]
    for stage in stages:
        there = lambda stage=stage: any(folder.glob(stage)) if folder.exists() else False
        with subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            while process.poll() is None and not there():
                time.sleep(0.01)
            assert there(), (stage, process.stderr.read().decode())
            os.kill(process.pid, signal.SIGKILL)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted, found = bytes_of(whole), bytes_of(folder)
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if wanted[name] != found[name]] == []
