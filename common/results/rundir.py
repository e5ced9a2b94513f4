"""The run directory: one folder that holds a run, and from which a killed run continues.

Every stage stores one artifact, written under a temporary name and renamed when it is complete, so every
artifact that exists is complete. The same command given again skips the stages whose artifacts exist.

    with RunDir.open("runs/demo", "llm2llm", config) as run:
        errors = run.once("round-1/errors.jsonl", lambda: find_errors(...))
        records = run.collect("round-1/records.jsonl", lambda done: teacher(requests[done:]))
        folder = run.once_folder("round-1/student", lambda folder: save(params, folder))

Artifacts hold no clock times: two runs of one command give the same bytes. `timing.jsonl` alone may differ.

The folder may be given as a URL, such as gs://bucket/runs/demo: see `common.results.mirror`, which is told here of
everything that is stored.
"""

import contextlib
import errno
import fcntl
import functools
import json
import math
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from common import hosts
from common.errors import UserError
from common.results import mirror
from common.secret import keys, masked_value

VERSION = "0.2.0"
Rows = list[dict[str, Any]]

_LEFTOVER = re.compile(r"\..+\.\d+\.tmp(\.partial|\.old)?")
NOT_SHARED = (".lock", "timing.jsonl", "replies.sqlite", "replies.sqlite-wal", "replies.sqlite-shm")
"""Of use to the process that writes a run alone."""
_DISK_FULL = ("No space left on device", "Disk quota exceeded")


# --- files: whole or absent ---------------------------------------------------------------------------------


def _temporary(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    """Turn a full disk or a forbidden write into a UserError about `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        # Writers in C++ and Rust (safetensors, tensorstore) report a full disk as text only.
        if code in (errno.ENOSPC, errno.EDQUOT) or any(phrase in str(error) for phrase in _DISK_FULL):
            raise UserError(
                f"disk full while writing {path}: make room and give the same command again, it continues there"
            ) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"cannot write {path} ({error}): fix the permissions or choose another folder"
            ) from error
        raise


def _sync_folder(folder: pathlib.Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_folder(folder: pathlib.Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Write a file that is never seen half-written: temporary name, fsync, rename, fsync of the folder.

    Raises UserError when the disk is full or the place may not be written; then nothing is left behind.
    """
    temporary = _temporary(path)
    with _explained(path):
        _make_folder(path.parent)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                _write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    mirror.stored(path)


def write_folder(path: pathlib.Path, fill: Callable[[pathlib.Path], Any]) -> None:
    """Let `fill` write files into an empty folder, then give it its name `path`, replacing what is there."""
    temporary = _temporary(path)
    with _explained(path):
        _make_folder(path.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            fill(temporary)
            # Or the new name could reach the disk before what the files hold.
            for folder, _, files in os.walk(temporary):
                for file in files:
                    _sync_folder(pathlib.Path(folder, file))  # a file is opened and synced the same way
                _sync_folder(pathlib.Path(folder))
            if path.exists():  # a folder cannot be swapped in one step; between the two it is absent
                old = _temporary(path.with_name(path.name + ".old"))
                shutil.rmtree(old, ignore_errors=True)
                os.replace(path, old)
                os.replace(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(path.parent)
    mirror.stored(path)


# --- JSON: one spelling for one value -----------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Arrays and array scalars (numpy, jax) as plain numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


def dump_json(value: Any, indent: int | None = None) -> bytes:
    """UTF-8 JSON with sorted keys and a newline at the end; secrets of the environment are masked. Raises
    ValueError for NaN and infinities."""
    return _dump(value, keys(), indent)


def _dump_rows(rows: Iterable[dict[str, Any]]) -> bytes:
    hidden = keys()
    return b"".join(_dump(row, hidden) for row in rows)


def _dump(value: Any, hidden: tuple[str, ...], indent: int | None = None) -> bytes:
    """`dump_json` with `hidden` masked."""
    dumps = functools.partial(
        json.dumps, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, default=_plain
    )
    text = dumps(value)
    if any(form in text for form in hidden):  # in texts only: a number may have the digits of a key
        text = dumps(masked_value(json.loads(text), hidden))
    # A lone surrogate has no UTF-8 form; backslashreplace writes it as the JSON escape \udXXX.
    return (text + "\n").encode("utf-8", "backslashreplace")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write one JSON value atomically, indented for reading."""
    write_bytes(path, dump_json(value, indent=2))


def read_json(path: pathlib.Path) -> Any:
    """Read a JSON artifact. Raises UserError if it is damaged, which no run of ours can have done."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and its stage is done again") from error


def write_jsonl(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows atomically, one JSON object a line."""
    write_bytes(path, _dump_rows(rows))


def read_jsonl(path: pathlib.Path) -> Rows:
    """Read a JSONL artifact. Raises UserError naming the first damaged line."""
    data = path.read_bytes()
    rows, end = _whole_lines(data)
    if end < len(data):
        raise UserError(f"{path}, line {len(rows) + 1} is damaged: delete the file, and its stage is done again")
    return rows


def _whole_lines(data: bytes) -> tuple[Rows, int]:
    """The rows before the first incomplete or damaged line, and the number of bytes they take."""
    rows: Rows = []
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        try:
            rows.append(json.loads(data[start:end]))
        except ValueError:
            break
        start = end + 1
    return rows, start


class Journal:
    """An append-only JSONL file for rows that are expensive to make. Opening it cuts off a torn last line."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        if path.exists():
            data = path.read_bytes()
            whole = _whole_lines(data)[1]
            if whole < len(data):
                os.truncate(path, whole)

    def rows(self) -> Rows:
        """All rows stored so far."""
        return _whole_lines(self.path.read_bytes())[0] if self.path.exists() else []

    def append(self, rows: Iterable[dict[str, Any]], sync: bool = True) -> None:
        """Add rows in one write. With `sync` they survive a power cut, without it only the death of the process.

        Raises UserError on a full disk, with the journal as it was before.
        """
        data = _dump_rows(rows)
        with _explained(self.path):
            _make_folder(self.path.parent)
            is_new = not self.path.exists()
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                size = os.fstat(fd).st_size
                try:
                    _write_all(fd, data)
                    if sync:
                        os.fsync(fd)
                except BaseException:
                    os.ftruncate(fd, size)
                    raise
            finally:
                os.close(fd)
            if is_new and sync:
                _sync_folder(self.path.parent)
        mirror.stored(self.path, grows=True)


class Metrics:
    """Writes {"stage", "step", ...} lines to metrics.jsonl; made by `RunDir.metrics`."""

    def __init__(self, journal: Journal, stage: str):
        self._journal, self._stage = journal, stage

    def log(self, step: int, **values: Any) -> None:
        """Add one line. NaN and infinities become null."""
        plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in values.items()}
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in plain.items()
        }
        self._journal.append([{"stage": self._stage, "step": step, **finite}], sync=False)


# --- the run ------------------------------------------------------------------------------------------------


class RunDir:
    """A locked run folder. Make one with `RunDir.open`; leaving the `with` block unlocks it."""

    def __init__(self, path: pathlib.Path, lock: int, kept: mirror.Mirror | None = None):
        self.path = path
        self._lock, self._kept = lock, kept
        # Seconds that stages took within each stage that is open, the outermost first.
        self._within: list[float] = []

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
        _make_folder(folder)
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
                _make_folder(path)
                lock = _acquire(path)
            except OSError as error:
                raise UserError(
                    f"cannot use {path} as run folder ({error.strerror}): give a --run-dir that can be written"
                ) from error
            undo.callback(os.close, lock)
            if (path / "config.json").exists():
                _check_same(mirror.shown(path), read_json(path / "config.json"), given)
                _remove_leftovers(path)
            else:
                _remove_leftovers(path)
                write_json(path / "config.json", given)
            undo.pop_all()
        return cls(path, lock, kept)

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
        if not path.exists():
            write(path, compute())
        return read(path)

    def once_folder(self, name: str, fill: Callable[[pathlib.Path], Any]) -> pathlib.Path:
        """The same for a folder, such as a checkpoint: `fill` gets an empty folder to write into."""
        path = self.path / name
        if not path.exists():
            write_folder(path, fill)
        return path

    def journal(self, name: str) -> Journal:
        """The journal `name`, which is empty at first."""
        return Journal(self.path / name)

    def collect(self, name: str, batches: Callable[[int], Iterable[Rows]]) -> Rows:
        """The stage primitive for rows that come in expensive batches, such as generations.

        `batches(n)` yields the rows after the first n. Each batch is stored as it comes; a killed run loses
        at most the batch in progress. When all are there the journal NAME.part takes its final `name`.
        """
        path = self.path / name
        if not path.exists():
            part = self.journal(name + ".part")
            # Rows of an earlier process stay: `batches` goes on after them.
            part.append([])  # so that a stage without rows has a file too
            for rows in batches(len(part.rows())):
                part.append(rows)
            with _explained(path):
                os.replace(part.path, path)
                _sync_folder(path.parent)
            mirror.stored(path)
        return read_jsonl(path)

    def metrics(self, stage: str, from_step: int = 0) -> Metrics:
        """A logger for `stage`. Lines of this stage with step >= `from_step` are dropped first, so that a stage
        which continues at `from_step` leaves no line twice."""
        journal = self.journal("metrics.jsonl")
        rows = journal.rows()
        kept = [row for row in rows if row["stage"] != stage or row["step"] < from_step]
        if len(kept) < len(rows):
            write_jsonl(journal.path, kept)
        return Metrics(journal, stage)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent in the block, also when it fails, to timing.jsonl.

        What a stage within it took is that stage's own and not counted again: the seconds of all lines add up.
        """
        self._within.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            own = round(seconds - self._within.pop(), 3)
            if self._within:
                self._within[-1] += seconds
            self.journal("timing.jsonl").append([{"stage": stage, "seconds": own}], sync=False)


def _stated(method: str, config: dict[str, Any]) -> dict[str, Any]:
    """What config.json holds, as it is read back."""
    # Tuples become lists on the way: only so can it be compared with what is stored.
    return json.loads(dump_json({"seedloop": VERSION, "method": method, "config": config}))


def _is_leftover(name: str) -> bool:
    return _LEFTOVER.fullmatch(name) is not None


def _check_place(path: pathlib.Path) -> None:
    """Refuse what is neither a run, nor empty, nor the remains of a process killed before config.json."""
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file: give a folder as --run-dir")
    names = [name for name in os.listdir(path) if name != ".lock" and not _is_leftover(name)]
    if names and not _is_run(path / "config.json"):
        raise UserError(f"{path} holds other files and no seedloop run: give a new or empty folder as --run-dir")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"cannot write in {path}: fix the permissions or give another --run-dir")


def _check_run(path: str | os.PathLike, given: dict[str, Any]) -> None:
    if mirror.is_url(path):
        stored = mirror.check(str(path))
    else:
        place = pathlib.Path(path)
        _check_place(place)
        stored = read_json(place / "config.json") if (place / "config.json").exists() else None
    if stored is not None:
        _check_same(str(path), stored, given)


def _is_run(file: pathlib.Path) -> bool:
    try:
        stored = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(stored, dict) and {"seedloop", "method", "config"} <= stored.keys()


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


def _check_same(path: str, stored: dict[str, Any], given: dict[str, Any]) -> None:
    if stored == given:
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
