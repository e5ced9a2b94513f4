"""The run directory: one folder that holds a run, and from which a killed run continues.

Every stage stores one artifact, written under a temporary name and renamed when it is complete, so every
artifact that exists is complete. The same command given again skips the stages whose artifacts exist.

    with RunDir.open("runs/demo", "llm2llm", config) as run:
        errors = run.once("round-1/errors.jsonl", lambda: find_errors(...))
        records = run.collect("round-1/records.jsonl", lambda done: teacher(requests[done:]))
        folder = run.once_folder("round-1/student", lambda folder: save(params, folder))

Artifacts hold no clock times: two runs of one command give the same bytes. `timing.jsonl`, and the picture that
`common.results.times` makes of it, alone may differ.

The folder may be given as a URL, such as gs://bucket/runs/demo: see `common.results.mirror`, which is told here of
everything that is stored.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from common import VERSION, hosts, progress, runtime
from common.errors import UserError
from common.results import mirror
from common.results.files import (
    Journal,
    Metrics,
    Rows,
    dump_json,
    explained,
    make_folder,
    read_json,
    read_jsonl,
    sync_folder,
    write_folder,
    write_json,
    write_jsonl,
)

PARTS = ("seedloop", "method", "config")
"""Of the config.json of a run."""
SIZES = "sizes.jsonl"
"""How many bytes each artifact had when it was complete: one that lost its last lines still reads well."""
_LEFTOVER = re.compile(r"\..+\.\d+\.tmp(\.partial|\.old)?")
TIMES = "timing.jsonl"
"""Seconds by stage."""
NOT_SHARED = (".lock", TIMES, "timing.svg", "replies.sqlite", "replies.sqlite-wal", "replies.sqlite-shm")
"""Of use to the process that writes a run alone."""


class RunDir:
    """A locked run folder. Make one with `RunDir.open`; leaving the `with` block unlocks it."""

    def __init__(self, path: pathlib.Path, lock: int, kept: mirror.Mirror | None = None):
        self.path = path
        self._lock, self._kept = lock, kept
        self._sizes = {row["name"]: row for row in self.journal(SIZES).rows(name=str, bytes=int)}
        # Seconds that stages took within each stage that is open, the outermost first.
        self._within: list[tuple[float, float]] = []

    @classmethod
    def open(cls, path: str | os.PathLike, method: str, config: dict[str, Any]) -> "RunDir":
        """Begin a run in a new or empty folder, or continue the run that the folder holds. Of several processes
        (`common.hosts`) process 0 does so, and the others work on private copies of it, which `close` deletes.

        For a URL, `path` of the result is the local mirror. Raises UserError when the folder belongs to another
        configuration (shown as `key: stored -> given`) or to something else, is used by another process, or cannot
        be written. The folder is then left as it was.
        """
        if hosts.count() == 1:
            return cls._open(path, method, config)
        opened: list[RunDir] = []
        hosts.share(lambda: opened.append(cls._open(path, method, config)))
        folder = hosts.share_folder(opened[0].path if opened else pathlib.Path(path), without=NOT_SHARED)
        if opened:
            return opened[0]
        make_folder(folder)
        return cls(folder, _acquire(folder))

    @classmethod
    def _open(cls, path: str | os.PathLike, method: str, config: dict[str, Any]) -> "RunDir":
        with contextlib.ExitStack() as undo:
            kept = None
            if mirror.is_url(path):
                kept = mirror.Mirror.open(str(path))
                undo.callback(kept.close)
                path = kept.folder
            path = pathlib.Path(path)
            given = _stated(method, config)
            try:
                _check_place(path)
                make_folder(path)
                lock = _acquire(path)
            except OSError as error:
                raise UserError(
                    f"cannot use {path} as run folder ({error.strerror}): give a --run-dir that can be written"
                ) from error
            undo.callback(os.close, lock)
            if (path / "config.json").exists():
                _check_same(mirror.shown(path), read_json(path / "config.json", PARTS), given)
                _remove_leftovers(path)
            else:
                _remove_leftovers(path)
                write_json(path / "config.json", given)
            undo.pop_all()
        return cls(path, lock, kept)

    @staticmethod
    def check_place(path: str | os.PathLike) -> None:
        """Raise UserError where no run can be kept in a folder, whatever its configuration; changes nothing."""
        if not mirror.is_url(path):
            _check_place(pathlib.Path(path))

    @staticmethod
    def check(path: str | os.PathLike, method: str, config: dict[str, Any]) -> None:
        """Raise UserError where `open` would for the folder or its configuration; changes nothing.

        To be called before anything is loaded.
        """
        hosts.check_same(_stated(method, config)["config"], "give all of them the same flags and files")
        hosts.share(lambda: _check_run(path, _stated(method, config)))

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the folder; of a URL, once everything is there. A second call does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
            hosts.forget(self.path)
            if self._kept is not None:
                self._kept.close()

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The stage primitive: read artifact `name` if it exists; otherwise compute, store and read it.

        `name` is a path in the run folder that ends in .json (any JSON value) or .jsonl (rows). Both ways give
        what was read, so a continued run works on the same types as an undisturbed one.
        """
        path = self.path / name
        read, write = {".json": (read_json, write_json), ".jsonl": (read_jsonl, write_jsonl)}[path.suffix]
        with progress.at(name):
            if path.exists():
                self.check_whole(name)
            else:
                write(path, compute())
                self.note(name)
        return read(path)

    def once_folder(self, name: str, fill: Callable[[pathlib.Path], Any]) -> pathlib.Path:
        """The same for a folder, such as a checkpoint: `fill` gets an empty folder to write into."""
        path = self.path / name
        with progress.at(name):
            if not path.exists():
                write_folder(path, fill)
        return path

    def note(self, name: str, output: bool = False) -> None:
        """Note what is complete: its size, and of a file a checksum. `output`: it is made for the user, who may
        empty or delete it, and made again then."""
        row = {"name": name, "bytes": size_of(self.path / name)}
        row |= {"output": True} if output else {"crc32": _checksum(self.path / name)}
        if self._sizes.get(name) != row:
            self._sizes[name] = row
            self.journal(SIZES).append([row], sync=False)

    def settle(self) -> None:
        """Put the sizes in order of name, each once: a run that was killed has noted them in another order, and
        is to end with the same bytes."""
        journal = self.journal(SIZES)
        rows = {row["name"]: row for row in journal.rows(name=str, bytes=int)}
        if hosts.is_writer():
            write_jsonl(journal.path, [rows[name] for name in sorted(rows)])

    def check_whole(self, name: str) -> None:
        """Raise UserError where the artifact `name` is no longer what it was when it was complete."""
        path, known = self.path / name, self._sizes.get(name)
        if known is None:  # of a process that was killed in between
            self.note(name)
            return
        size = size_of(path)
        if size == known["bytes"] and _checksum(path) == known.get("crc32"):
            return
        now = "has other content than" if size == known["bytes"] else f"has {size} bytes, and had {known['bytes']}"
        raise UserError(
            f"{path} is damaged: it {now} when it was complete: delete it, and its stage is done again"
        )

    def journal(self, name: str) -> Journal:
        """The journal `name`, which is empty at first."""
        return Journal(self.path / name)

    def collect(self, name: str, batches: Callable[[int], Iterable[Rows]]) -> Rows:
        """The stage primitive for rows that come in expensive batches, such as generations.

        `batches(n)` yields the rows after the first n. Each batch is stored as it comes; a killed run loses
        at most the batch in progress. When all are there the journal NAME.part takes its final `name`.
        """
        path = self.path / name
        with progress.at(name):
            if path.exists():
                self.check_whole(name)
            else:
                self._gather(name, batches)
        rows = read_jsonl(path)
        if (share := right(rows)) is not None:
            progress.tell(f"right on {path.stem}", share)
        return rows

    def _gather(self, name: str, batches: Callable[[int], Iterable[Rows]]) -> None:
        part, path = self.journal(name + ".part"), self.path / name
        # Rows of an earlier process stay: `batches` goes on after them.
        part.append([])  # so that a stage without rows has a file too
        for rows in batches(len(part.rows())):
            part.append(rows)
        with explained(path):
            os.replace(part.path, path)
            sync_folder(path.parent)
        mirror.stored(path)
        self.note(name)

    def metrics(self, stage: str, from_step: int = 0) -> Metrics:
        """A logger for `stage`. Lines of this stage with step >= `from_step` are dropped first, so that a stage
        which continues at `from_step` leaves no line twice."""
        journal = self.journal("metrics.jsonl")
        rows = journal.rows(stage=str, step=int)
        kept = [row for row in rows if row["stage"] != stage or row["step"] < from_step]
        if len(kept) < len(rows):
            write_jsonl(journal.path, kept)
        return Metrics(journal, stage)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent in the block, also when it fails, to timing.jsonl. What memory it leaves is given
        back to the system.

        What a stage within it took is that stage's own and not counted again: the seconds of all lines add up.
        Those spent compiling, or reading compiled programs, are told apart.
        """
        self._within.append((0.0, 0.0))
        start, compiled = time.perf_counter(), progress.compiled()
        try:
            with progress.stage(stage):
                yield
        finally:
            runtime.tidy()
            took = time.perf_counter() - start, progress.compiled() - compiled
            seconds, compiling = (
                round(all - within, 3) for all, within in zip(took, self._within.pop(), strict=True)
            )
            if self._within:
                outer = self._within[-1]
                self._within[-1] = outer[0] + took[0], outer[1] + took[1]
            row = {"stage": stage, "seconds": seconds} | ({"compiling": compiling} if compiling else {})
            self.journal(TIMES).append([row], sync=False)


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files of a folder; 0 of what is not there."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def _checksum(path: pathlib.Path) -> int:
    """CRC-32 of a file."""
    found = 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            found = zlib.crc32(part, found)
    return found


def damaged_outputs(folder: pathlib.Path) -> list[pathlib.Path]:
    """Of what the run in `folder` made for the user, what no longer has the size it was made with."""
    sizes = {
        row["name"]: row["bytes"] for row in Journal(folder / SIZES).rows(name=str, bytes=int) if "output" in row
    }
    return [folder / name for name, size in sizes.items() if size_of(folder / name) != size]


def right(rows: Rows) -> str | None:
    """The share of right answers among graded ones, "71.3%"; None of other rows."""
    graded = [row["correct"] for row in rows if isinstance(row.get("correct"), bool)]
    return f"{100 * sum(graded) / len(graded):.1f}%" if graded else None


def _stated(method: str, config: dict[str, Any]) -> dict[str, Any]:
    """What config.json holds, as it is read back."""
    # Tuples become lists on the way: only so can it be compared with what is stored.
    return json.loads(dump_json({"seedloop": VERSION, "method": method, "config": config}))


def _is_leftover(name: str) -> bool:
    return _LEFTOVER.fullmatch(name) is not None


def _check_place(path: pathlib.Path) -> None:
    """Refuse what is neither a run, nor empty, nor the remains of a process killed before config.json, and a place
    where no folder can be made."""
    above = _existing(path)
    if not above.is_dir():
        within = "" if above == path else f", and {path} would lie in it"
        raise UserError(f"{above} is a file{within}: give a folder as --run-dir")
    if above != path:
        if not os.access(above, os.W_OK | os.X_OK):
            raise UserError(f"cannot make {path}, as {above} cannot be written: give another --run-dir")
        return
    names = [name for name in os.listdir(path) if name != ".lock" and not _is_leftover(name)]
    if names and not _is_run(path / "config.json"):
        raise UserError(f"{path} holds other files and no seedloop run: give a new or empty folder as --run-dir")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"cannot write in {path}: fix the permissions or give another --run-dir")


def _existing(path: pathlib.Path) -> pathlib.Path:
    """The path itself, or the first above it that is there. Raises UserError for one that cannot be."""
    for place in (path, *path.parents):
        try:
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # not allowed, a name too long, a zero in it
            said = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"cannot use {path} as run folder ({said}): give a --run-dir that can be written"
            ) from None
        return place
    return path


def _check_run(path: str | os.PathLike, given: dict[str, Any]) -> None:
    if mirror.is_url(path):
        stored = mirror.check(str(path))
    else:
        place = pathlib.Path(path)
        _check_place(place)
        stored = read_json(place / "config.json", PARTS) if (place / "config.json").exists() else None
    if stored is not None:
        _check_same(str(path), stored, given)


def _is_run(file: pathlib.Path) -> bool:
    try:
        stored = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(stored, dict) and stored.keys() >= {*PARTS}


def _acquire(path: pathlib.Path) -> int:
    fd = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # The system lets go of it when the process ends, however it ends: no lock is left behind.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise UserError(
            f"{path} is in use by another process: wait until it has ended or give another --run-dir"
        ) from error
    except OSError:
        os.close(fd)
        raise
    return fd


def _remove_leftovers(path: pathlib.Path) -> None:
    """Remove what a killed process had not yet renamed. The lock is held, so nobody is writing it."""
    for folder, folders, files in os.walk(path):
        for name in files:
            if _is_leftover(name):
                os.unlink(os.path.join(folder, name))
        for name in [name for name in folders if _is_leftover(name)]:
            shutil.rmtree(os.path.join(folder, name))
            # What is gone is not walked into.
            folders.remove(name)


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat


def _by_content(stated: dict[str, Any]) -> dict[str, Any]:
    """The same with the hash of each data file in place of its path, which is another one from another directory.
    Models and files of code keep their names, which are stored with what they gave."""
    config = stated["config"]
    hashes = config.get("file_hashes") if isinstance(config, dict) else None
    if not isinstance(hashes, dict):
        return stated

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(part) for part in value]
        return hashes.get(value, value) if isinstance(value, str) else value

    settings = {name: plain(value) for name, value in config.items() if name != "file_hashes"}
    return stated | {"config": settings | {"file_hashes": sorted(map(str, hashes.values()))}}


def _check_same(path: str, stored: dict[str, Any], given: dict[str, Any]) -> None:
    if stored == given or _by_content(stored) == _by_content(given):
        return

    def shown(values: dict[str, Any], key: str) -> str:
        return json.dumps(values[key], ensure_ascii=False) if key in values else "(absent)"

    differences = []
    for old, new in (
        ({k: stored[k] for k in ("seedloop", "method")}, {k: given[k] for k in ("seedloop", "method")}),
        (_flatten(stored["config"]), _flatten(given["config"])),
    ):
        for key in sorted(old.keys() | new.keys()):
            if key not in old or key not in new or old[key] != new[key]:
                differences.append(f"{key}: {shown(old, key)} -> {shown(new, key)}")
    raise UserError(
        f"{path} holds a run of another configuration ({', '.join(differences)}): "
        "give the stored settings to continue it, or another --run-dir"
    )
