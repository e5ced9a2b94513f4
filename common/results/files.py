"""Files of a run: whole or absent, and JSON in one spelling for one value.

    write_json(path, {"accuracy": 0.5})              # never seen half-written
    journal = Journal(path)                          # rows are added; a torn last line is cut off
    journal.append(rows)

Everything that is stored is told to `common.results.mirror`. Raises UserError, naming the file, when the disk is
full or a place may not be written.
"""

import contextlib
import errno
import functools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from common.errors import UserError, in_one_line
from common.results import mirror
from common.secret import keys, masked_value

Rows = list[dict[str, Any]]

_AGAIN = "delete it, and its stage is done again"
_DISK_FULL = ("No space left on device", "Disk quota exceeded")


# --- files: whole or absent ---------------------------------------------------------------------------------


def _temporary(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def explained(path: pathlib.Path) -> Iterator[None]:
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


def sync_folder(folder: pathlib.Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: pathlib.Path) -> None:
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Write a file that is never seen half-written: temporary name, fsync, rename, fsync of the folder.

    Raises UserError when the disk is full or the place may not be written; then nothing is left behind.
    """
    temporary = _temporary(path)
    with explained(path):
        make_folder(path.parent)
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
        sync_folder(path.parent)
    mirror.stored(path)


def write_folder(path: pathlib.Path, fill: Callable[[pathlib.Path], Any]) -> None:
    """Let `fill` write files into an empty folder, then give it its name `path`, replacing what is there."""
    temporary = _temporary(path)
    with explained(path):
        make_folder(path.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            fill(temporary)
            # Or the new name could reach the disk before what the files hold.
            for folder, _, files in os.walk(temporary):
                for file in files:
                    sync_folder(pathlib.Path(folder, file))  # a file is opened and synced the same way
                sync_folder(pathlib.Path(folder))
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
        sync_folder(path.parent)
    mirror.stored(path)


# --- JSON: one spelling for one value -----------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Arrays and array scalars (numpy, jax) as plain numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


def dump_json(value: Any, indent: int | None = None) -> bytes:
    """UTF-8 JSON with sorted keys and a newline at the end; secrets of the environment are masked. Raises
    UserError for NaN and infinities: nothing that is computed from them may be stored."""
    return _dump(value, keys(), indent)


def _dump_rows(rows: Iterable[dict[str, Any]]) -> bytes:
    hidden = keys()
    return b"".join(_dump(row, hidden) for row in rows)


def _dump(value: Any, hidden: tuple[str, ...], indent: int | None = None) -> bytes:
    """`dump_json` with `hidden` masked."""
    dumps = functools.partial(
        json.dumps, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, default=_plain
    )
    try:
        text = dumps(value)
    except ValueError as error:  # after this module's own checks, which name what they are of
        raise UserError(
            f"a figure that was to be stored is NaN or infinite ({in_one_line(error)}): what it was computed from "
            "is not finite; what is finished is kept"
        ) from error
    if any(form in text for form in hidden):  # in texts only: a number may have the digits of a key
        text = dumps(masked_value(json.loads(text), hidden))
    # A lone surrogate has no UTF-8 form; backslashreplace writes it as the JSON escape \udXXX.
    return (text + "\n").encode("utf-8", "backslashreplace")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write one JSON value atomically, indented for reading."""
    write_bytes(path, dump_json(value, indent=2))


def read_json(path: pathlib.Path, names: Sequence[str] = ()) -> Any:
    """Read a JSON artifact; with `names` an object that holds these. Raises UserError if it is damaged, which no
    run of ours can have done."""
    try:
        value = json.loads(path.read_bytes())
        if names and not (isinstance(value, dict) and value.keys() >= {*names}):
            raise ValueError(f"it is no object with {', '.join(names)}")
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise UserError(f"{path} is damaged ({in_one_line(error)}): {_AGAIN}") from error
    return value


def write_jsonl(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows atomically, one JSON object a line."""
    write_bytes(path, _dump_rows(rows))


def read_jsonl(path: pathlib.Path) -> Rows:
    """Read a JSONL artifact. Raises UserError naming the first damaged line."""
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise UserError(f"{path} is damaged (it is a folder): {_AGAIN}") from None
    rows, end = _whole_lines(data)
    if end < len(data):
        raise UserError(f"{path}, line {len(rows) + 1} is damaged: {_AGAIN}")
    return rows


def _whole_lines(data: bytes) -> tuple[Rows, int]:
    """The rows before the first incomplete or damaged line, and the number of bytes they take."""
    rows: Rows = []
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        try:
            row = json.loads(data[start:end])
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
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

    def rows(self, **kinds: type | tuple[type, ...]) -> Rows:
        """All rows stored so far. `kinds`: names that each row must hold, and of which type; raises UserError
        where one does not, which no run of ours can have written."""
        rows = _whole_lines(self.path.read_bytes())[0] if self.path.exists() else []
        for number, row in enumerate(rows, 1):
            if wrong := [name for name, kind in kinds.items() if not isinstance(row.get(name), kind)]:
                raise UserError(f"{self.path}, line {number} is damaged (its {wrong[0]}): {_AGAIN}")
        return rows

    def append(self, rows: Iterable[dict[str, Any]], sync: bool = True) -> None:
        """Add rows in one write. With `sync` they survive a power cut, without it only the death of the process.

        Raises UserError on a full disk, with the journal as it was before.
        """
        data = _dump_rows(rows)
        with explained(self.path):
            make_folder(self.path.parent)
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
                sync_folder(self.path.parent)
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
