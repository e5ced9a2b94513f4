"""`python run.py status DIR`: where a run stands, read from its folder alone; nothing in it is changed. Of a run
at a URL it is this machine's copy that is read.

for line in status(pathlib.Path("runs/llm2llm")):
    print(line)
"""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from common.cli import PROG, item
from common.errors import UserError
from common.progress import place_of
from common.results.conclusion import SUMMARY, finished
from common.results.mirror import here, is_url
from common.results.rundir import TIMES, right
from common.results.times import by_stage

LATEST = 3
"""Figures that are shown, the last ones."""
LONG = 5
"""Stages that are shown, those that took longest."""


def main(argv: list[str]) -> None:
    """The command. Raises UserError for what is no folder of a run."""
    if argv in (["-h"], ["--help"]):
        print(f"usage: {PROG} status DIR\n\nSays where the run in DIR stands, from what is on the disk.")
        raise SystemExit(0)
    if len(argv) != 1:
        raise UserError(f"status takes one folder: {PROG} status DIR")
    folder = pathlib.Path(argv[0])
    if is_url(argv[0]):
        folder = here(argv[0])
        if not folder.is_dir():
            raise UserError(
                f"this machine has no copy of a run at {argv[0]}: ask where it is made, or give its command again"
            )
    for line in status(folder):
        print(line)


def status(folder: pathlib.Path) -> list[str]:
    """Lines on the run in `folder`. Raises UserError where it holds none."""
    stored = _read(folder / "config.json")
    if not isinstance(stored, dict) or not {"method", "config"} <= stored.keys():
        what = "its config.json is missing or no run's"
        if not folder.is_dir():
            what = "it is a file" if folder.exists() else "there is no such folder"
        raise UserError(f"{folder} holds no seedloop run ({what}): name the --run-dir of one")
    summary, done = _read(folder / SUMMARY), finished(folder)
    state = "finished" if done else "at work" if _locked(folder) else "not finished, nobody is at work on it"
    lines = [f"{folder}: {stored['method']}, {state}"]
    if done is None and isinstance(summary, dict):
        lines.append(
            _told("status", f"{summary.get('status')}, or some of its files are gone: the same command goes on")
        )
    files = _files(folder)
    if files and done is None:
        lines.append(_told("last", _place(folder, files[-1])))
    lines += [_told("figure", line) for line in _figures(folder, files)] if done is None else []
    lines += _updates(folder) if done is None else []
    lines += _times(folder)
    if done:
        lines += [_told("warning", warning) for warning in done["warnings"]]
        lines.append(_told("verdict", done["verdict"]))
        lines += [_told(name, str(folder / place)) for name, place in done["files"].items()]
    return lines


def _told(name: str, what: str) -> str:
    return item(name, what, 13)


def _read(file: pathlib.Path) -> Any:
    """What a JSON file holds; None where it cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return json.loads(file.read_bytes())
    return None


def _rows(file: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a file that can be read: the last one may be cut."""
    found = []
    with contextlib.suppress(OSError):
        for line in file.read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                found.append(json.loads(line))
    return [row for row in found if isinstance(row, dict)]


def _locked(folder: pathlib.Path) -> bool:
    """Whether a process on this machine works on the run."""
    with contextlib.suppress(OSError):
        lock = os.open(folder / ".lock", os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
    return False


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """What the stages have stored, the last at the end."""

    def found() -> Iterator[tuple[float, pathlib.Path]]:
        for file in folder.glob("*/**/*"):
            with contextlib.suppress(OSError):  # gone since it was listed
                if file.is_file() and not file.name.startswith("."):
                    yield file.stat().st_mtime, file

    return [file for _, file in sorted(found())]


def _place(folder: pathlib.Path, file: pathlib.Path) -> str:
    name = file.relative_to(folder).as_posix()
    count = f", {len(_rows(file))} rows so far" if file.suffix == ".part" else ""
    return f"{' · '.join((*place_of(name), file.name.removesuffix('.part')))}{count}"


def _figures(folder: pathlib.Path, files: list[pathlib.Path]) -> list[str]:
    """The last shares of right answers."""
    found = ((file, right(_rows(file))) for file in reversed(files) if file.suffix == ".jsonl")
    told = [f"{_place(folder, file)}: {share} right" for file, share in found if share is not None]
    return told[LATEST - 1 :: -1]


def _updates(folder: pathlib.Path) -> list[str]:
    rows = _rows(folder / "metrics.jsonl")
    if not rows:
        return []
    of_stage = rows[-1]
    place = " · ".join(place_of(f"{of_stage.get('stage')}/"))
    return [_told("update", f"{of_stage.get('step', 0) + 1} of {place}, loss {of_stage.get('loss')}")]


def _times(folder: pathlib.Path) -> list[str]:
    took = by_stage(_rows(folder / TIMES))
    most = ", ".join(f"{stage} {seconds:.0f} s" for stage, (seconds, _) in list(took.items())[:LONG])
    whole = sum(seconds for seconds, _ in took.values())
    return [_told("time", f"{whole:.0f} s of work: {most}")] if took else []
