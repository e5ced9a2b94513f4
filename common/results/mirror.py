"""A run directory on an object store, such as gs://: worked on in a local mirror, from which snapshots go up.

    mirror = Mirror.open("gs://bucket/runs/mail")       # locked, and brought down if it is not here
    ...                                                 # work in mirror.folder
    stored(mirror.folder / "summary.json")              # at every finished file or folder: a snapshot goes up
    mirror.close()

A store has no rename, no append and no lock. What takes their place is one small object, `.seedloop.json`: the
list of files that make up the run, with the object that holds each and its hash. It is written last and in one
piece, and no object that it names is overwritten or deleted before the next list is there. So a store holds one
whole state of the run at any time, in which every file and folder is whole or absent, as on disk. When a machine
is lost with its disk, only what came after its last snapshot is done again.

Any scheme that fsspec knows will do. Nothing of it is loaded before a URL is given.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from common.errors import UserError
from common.runtime import cache_dir
from common.secret import masked

LIST = ".seedloop.json"
LOCK = ".seedloop.lock"
SECONDS = 30.0
"""Between snapshots of files that grow, such as journals. What is finished goes up at once."""
BEAT = 30.0
"""Seconds after which the holder of a lock says again that it lives."""
STALE = 180.0
"""Seconds without a word after which a lock may be taken over."""

log = logging.getLogger(__name__)
Files = dict[str, dict[str, str]]
"""By their place in the run directory: the `object` that holds a file, and its `sha256`."""


def is_url(path: str | os.PathLike) -> bool:
    """Whether a run directory is given as a URL, and not as a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", str(path)) is not None and "://" in str(path)


class Store(NamedTuple):
    """The objects below one URL. Methods raise what the file system raises."""

    files: Any
    root: str
    url: str

    @classmethod
    def open(cls, url: str) -> "Store":
        """Raises UserError for a URL that cannot be used, an unknown scheme, and one whose package is missing."""
        import fsspec

        scheme, _, rest = url.partition("://")
        if not rest.strip("/") or "::" in url or re.search(r"[?#@\s]", rest):
            raise UserError(f"{url} is no place for a run: give one like gs://bucket/runs/name as --run-dir")
        # A store makes no folders; the local file system, a stand-in for one, makes them by itself like that.
        options = {"auto_mkdir": True} if scheme in ("file", "local") else {}
        try:
            files, root = fsspec.core.url_to_fs(url.rstrip("/"), **options)
        except ImportError as error:
            package = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "az": "adlfs", "abfs": "adlfs"}.get(scheme)
            fix = f"pip install {package}" if package else str(error)
            raise UserError(f"--run-dir {url} needs a package that is not installed: {fix}") from None
        except ValueError:
            raise UserError(
                f"--run-dir {url} has an unknown scheme {scheme}://: give a folder, or a URL such as gs://bucket/name"
            ) from None
        except Exception as error:  # of the store's own kind: no credentials, no such account
            raise _unusable(url, error) from None
        return cls(files, root, url.rstrip("/"))

    def at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        """An object, None if there is none."""
        try:
            return self.files.cat_file(self.at(name))
        except FileNotFoundError:
            return None

    def read_list(self) -> dict[str, Any] | None:
        """The list of the run's files: {"id": of this snapshot, "files": Files}. None where there is no run."""
        content = self.read(LIST)
        if content is None:
            return None
        try:
            found = json.loads(content)
            if isinstance(found["id"], str) and all(map(_within, found["files"].keys())):
                return found
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise UserError(f"{self.url}/{LIST} is damaged: restore it, or give another --run-dir")

    def write(self, name: str, content: bytes, mode: str = "overwrite") -> None:
        """Put an object in one piece; with mode "create" raises FileExistsError if it is there."""
        self.files.pipe_file(self.at(name), content, mode=mode)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(self.at(name))


def _within(name: str) -> bool:
    """Whether a file of that name lies in the run's folder: somebody else may have written the list."""
    place = pathlib.PurePosixPath(name)
    return not place.is_absolute() and ".." not in place.parts


def _unusable(url: str, error: BaseException) -> UserError:
    # Libraries of stores say what is wrong over several lines, some of them with the request.
    said = f"{type(error).__name__}: {' '.join(masked(str(error)).split())[:200]}"
    return UserError(
        f"cannot use {url} as run folder ({said}): check the address, the login and what it may write"
    )


def check(url: str) -> dict[str, Any] | None:
    """Raise UserError if a run cannot be kept at `url`; gives the config.json of the run that is there, if any.

    To be called before anything is loaded. Writes and removes one empty object: nothing else tells whether it may.
    """
    store = Store.open(url)
    try:
        probe = f".seedloop.{secrets.token_hex(4)}.probe"
        store.write(probe, b"")
        store.remove(probe)
        found = store.read_list()
        if found is None:
            store.files.invalidate_cache()
            try:
                others = [name for name in store.files.find(store.root) if not name.endswith((LOCK, ".probe"))]
            except FileNotFoundError:
                others = []
            if others:
                raise UserError(f"{url} holds other files and no seedloop run: give a new or empty --run-dir")
            return None
        config = found["files"].get("config.json")
        content = None if config is None else store.read(config["object"])
        return None if content is None else json.loads(content)
    except UserError:
        raise
    except Exception as error:
        raise _unusable(url, error) from None


def here(url: str) -> pathlib.Path:
    """Where this machine keeps its copy of the run at `url`, whether there is one or not."""
    url = url.rstrip("/")
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2])
    return cache_dir() / "runs" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:16]}" / "run"


class Mirror:
    """The local `folder` of a run whose place is a URL, which it holds the lock of. Make one with `open`."""

    def __init__(self, store: Store):
        self._store = store
        self.folder = here(store.url)
        self._place = self.folder.parent
        self._files: Files = {}
        self._hashes: dict[str, tuple[Any, str]] = {}  # by name: what the file looked like, and its hash
        self._lock = {"owner": f"{socket.gethostname()}, process {os.getpid()}", "token": secrets.token_hex(8)}
        self._lock["machine"], self._lock["process"] = _machine(), str(os.getpid())
        self._lost, self._failed, self._closed = False, False, False
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._pushed_at = 0.0

    @classmethod
    def open(cls, url: str) -> "Mirror":
        """Take the lock and bring the folder to the state of the store.

        Raises UserError when another process has the run, and for whatever keeps it from being used.
        """
        mirror = cls(Store.open(url))
        try:
            mirror._acquire()
        except UserError:
            raise
        except Exception as error:
            raise _unusable(url, error) from None
        try:
            mirror._pull()
        except BaseException as error:
            mirror._release()
            if isinstance(error, Exception) and not isinstance(error, UserError):
                raise _unusable(url, error) from None
            raise
        threading.Thread(target=mirror._beat, daemon=True).start()
        _OPEN.append(mirror)
        return mirror

    def close(self) -> None:
        """A last snapshot, in which every file lies under its own name; then let go of the lock.

        A second call does nothing. Raises UserError if the snapshot does not get there.
        """
        if self._closed:
            return
        self._closed = True
        _OPEN.remove(self)
        try:
            self._push(rename=True)
            self._sweep()
        except UserError:
            raise
        except Exception as error:
            said = " ".join(masked(str(error)).split())[:200]
            raise UserError(
                f"{self._store.url} could not be written ({said}); everything is in {self.folder}: give the same "
                "command again on this machine, it brings it there"
            ) from error
        finally:
            self._ended.set()
            with contextlib.suppress(Exception):
                self._release()

    def shown(self, path: pathlib.Path) -> str:
        """The URL of something in the folder."""
        return "/".join((self._store.url, *path.relative_to(self.folder).parts))

    def point(self, grows: bool) -> None:
        """Bring up what has changed; what `grows` waits until `SECONDS` have passed."""
        if os.getpid() != int(self._lock["process"]) or (grows and time.monotonic() - self._pushed_at < SECONDS):
            return
        try:
            self._push()
            self._failed = False
        except UserError:
            raise
        except Exception as error:
            # A run of hours does not end because a network was away for a minute; `close` tries for the last time.
            if not self._failed:
                log.warning("%s cannot be written for now (%s): the run goes on here", self._store.url, error)
            self._failed = True
        self._pushed_at = time.monotonic()

    # --- the lock: an object that only one process can create ---

    def _acquire(self) -> None:
        while True:
            # Looked for first, as some stores put an object whatever the mode.
            held = self._store.read(LOCK)
            if held is None:
                try:
                    self._store.write(LOCK, self._stamp(), mode="create")
                    return
                except Exception:
                    # Stores have their own words for "it is there already".
                    held = self._store.read(LOCK)
                    if held is None:
                        raise
            try:
                holder = json.loads(held)
                age = max(0.0, time.time() - float(holder["time"]))
                owner, machine, process = holder["owner"], holder["machine"], int(holder["process"])
            except (ValueError, KeyError, TypeError):
                age, owner, machine, process = 0.0, "somebody", "", 0
            gone = machine == self._lock["machine"] and not _lives(process)
            if not gone and age < STALE:
                raise UserError(
                    f"{self._store.url} is in use by {owner}, last heard of {age:.0f} s ago: wait until it has "
                    f"ended, or give another --run-dir; if it was killed, the run is free {STALE:.0f} s after "
                    f"that, or once you delete {self._store.url}/{LOCK}"
                )
            # Two processes may get here together; the one whose lock is removed stops at its next snapshot.
            self._store.remove(LOCK)

    def _stamp(self) -> bytes:
        return json.dumps(self._lock | {"time": time.time()}).encode()

    def _mine(self) -> bool:
        held = self._store.read(LOCK)
        try:
            return held is not None and json.loads(held)["token"] == self._lock["token"]
        except (ValueError, KeyError, TypeError):
            return False

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(Exception):  # the network may come back
                if not self._mine():
                    return  # the next snapshot says so
                self._store.write(LOCK, self._stamp())

    def _release(self) -> None:
        if self._mine():
            self._store.remove(LOCK)

    # --- down ---

    def _pull(self) -> None:
        """Make the folder what the store holds, or keep it where it is ahead of that: if nobody wrote there since
        this folder did."""
        record = self._place / "snapshot"
        found = self._store.read_list()
        if found is None:
            # A mirror of a run that was deleted there.
            shutil.rmtree(self._place, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._write_list({})
            return
        self._files = found["files"]
        if self.folder.is_dir() and record.is_file() and record.read_text() == found["id"]:
            return
        # Until the end of this the folder is neither one state nor the other.
        record.unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = {self.folder / name: entry for name, entry in self._files.items()}
        for folder, _, names in os.walk(self.folder):
            for file in (pathlib.Path(folder, name) for name in names):
                if file not in wanted or _sha256(file) != wanted[file]["sha256"]:
                    file.unlink()
        for file, entry in wanted.items():
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                part = file.with_name(f".{file.name}.{os.getpid()}.tmp")  # a name that no run keeps
                self._store.files.get_file(self._store.at(entry["object"]), str(part))
                if _sha256(part) != entry["sha256"]:
                    raise UserError(
                        f"{self._store.url}/{entry['object']} is damaged: restore it, or give another --run-dir"
                    )
                os.replace(part, file)
        # Folders of what is no longer there: an empty one could be taken for a finished artifact.
        for folder, _, _ in os.walk(self.folder, topdown=False):
            if folder != str(self.folder) and not os.listdir(folder):
                os.rmdir(folder)
        record.write_text(found["id"])

    # --- up ---

    def _push(self, rename: bool = False) -> None:
        with self._turn:
            used = {entry["object"] for entry in self._files.values()}
            new: Files = {}
            for name, file in self._listed():
                try:
                    source, digest = self._still(name, file)
                except FileNotFoundError:
                    continue  # gone since it was listed
                old = self._files.get(name)
                if old is not None and old["sha256"] == digest and not (rename and old["object"] != name):
                    new[name] = old
                    continue
                # What the list names stays as it is until the next list is there.
                target = name if name not in used else f"{name}~"
                self._store.files.put_file(str(source), self._store.at(target))
                new[name] = {"object": target, "sha256": digest}
            if new != self._files:
                self._write_list(new)
                for target in used - {entry["object"] for entry in new.values()}:
                    self._store.remove(target)
            elif not self._mine():
                raise self._taken()
        if rename and any(entry["object"] != name for name, entry in self._files.items()):
            self._push(rename)

    def _sweep(self) -> None:
        """Remove what an earlier process put there and was killed before a list named it.

        Of other files the same command has put the same names there again; those within a state are by chance.
        """
        self._store.files.invalidate_cache()
        used = {entry["object"] for entry in self._files.values()}
        for found in self._store.files.find(self._store.root):
            name = found.removeprefix(f"{self._store.root}/")
            if name not in used and (name.endswith("~") or "training_state" in name.split("/")):
                self._store.remove(name)

    def _taken(self) -> UserError:
        return UserError(
            f"{self._store.url} was taken over by another process, as this one was not heard of for "
            f"{STALE:.0f} s: let that one go on, or end it and give the same command again"
        )

    def _write_list(self, files: Files) -> None:
        if not self._mine():
            raise self._taken()
        snapshot = secrets.token_hex(8)
        record = self._place / "snapshot"
        content = json.dumps({"id": snapshot, "files": files}, indent=1, sort_keys=True) + "\n"
        # Killed between the two, the next process takes this folder for an old one and compares all of it with the
        # store, which costs time and nothing else.
        self._store.write(LIST, content.encode())
        record.write_text(snapshot)
        self._files = files

    def _listed(self) -> Iterator[tuple[str, pathlib.Path]]:
        for folder, folders, names in os.walk(self.folder):
            # Files and folders under a temporary name, of ours and of others, are nobody's yet.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith(".") and not name.endswith((".sqlite-wal", ".sqlite-shm")):
                    file = pathlib.Path(folder, name)
                    yield file.relative_to(self.folder).as_posix(), file

    def _still(self, name: str, file: pathlib.Path) -> tuple[pathlib.Path, str]:
        """A file to be read in peace, and its hash, which is taken again only if the file looks different."""
        is_database = file.suffix == ".sqlite"
        # Threads may be adding to it, and part of it is in its log.
        source = self._place / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.copy" if is_database else file
        looks = _looks(file), is_database and _looks(file.with_name(f"{file.name}-wal"))
        known = self._hashes.get(name)
        if known is None or known[0] != looks:
            if is_database:
                source.unlink(missing_ok=True)
                with (
                    contextlib.closing(sqlite3.connect(file)) as db,
                    contextlib.closing(sqlite3.connect(source)) as to,
                ):
                    db.backup(to)
            known = self._hashes[name] = looks, _sha256(source)
        return source, known[1]


def _looks(file: pathlib.Path) -> tuple[int, ...] | None:
    """What changes when a file does; None where a log is not there."""
    try:
        found = file.stat()
    except FileNotFoundError:
        if file.suffix == ".sqlite-wal":
            return None
        raise
    return found.st_size, found.st_mtime_ns, found.st_ino


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _machine() -> str:
    """Tells machines apart, and containers, in which the number of a process means something else."""
    parts = [socket.gethostname()]
    for read in (
        lambda: pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        with contextlib.suppress(OSError):
            parts.append(read())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True


# --- what the rest of the code knows of mirrors ---------------------------------------------------------------

_OPEN: list[Mirror] = []


def _holder(path: pathlib.Path) -> Mirror | None:
    return next((mirror for mirror in _OPEN if path.is_relative_to(mirror.folder)), None)


def stored(path: pathlib.Path, grows: bool = False) -> None:
    """To be told of every file or folder that is finished, and of every one that `grows`: of a run that is kept
    elsewhere a snapshot goes there. Raises UserError where another process has taken the run over."""
    mirror = _holder(path)
    if mirror is not None:
        mirror.point(grows)


def shown(path: pathlib.Path) -> str:
    """Where a user finds something of a run."""
    mirror = _holder(path)
    return str(path) if mirror is None else mirror.shown(path)
