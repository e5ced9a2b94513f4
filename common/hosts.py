"""A run by several processes, on one machine or many: who does what, and how all come to the same values.

    hosts.connect(coordinator, processes, process)      # before jax is used; finds a cluster's processes by itself
    reply = hosts.share(lambda: ask(model))             # computed by process 0 alone, and given to all
    folder = hosts.share_folder(folder)                 # process 0's own; elsewhere a private copy of it

All processes carry out the same program with the same data, and compute on one mesh over the devices of all
(`common.model.sharding`), so every one of them knows every result. Process 0 alone touches the run directory,
calls hosted models and functions of the user's, and prints; the others work on a private copy of the run
directory, which is deleted with them, and so need no file system in common with it. What no process can know by
itself (a reply, a clock, a failure) goes through `share`.

A process that fails tells the others, and process 0 says why, in one line. One that is killed is missed at once
where they compute together, else within `SILENCE` seconds; the others end too, and the same commands continue.
"""

import atexit
import contextlib
import importlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NoReturn

from common.errors import UserError

BEAT, SILENCE = 5, 60
"""Seconds between two signs of life, and without one after which a process counts as dead."""
LONG = 2**31 - 1
"""Milliseconds to wait for another process, which may be asking a hosted model: as many as can be said."""
CHUNK = 1 << 20
"""Bytes sent at once: a message of the coordination service may have four times as many."""

_sent = 0
_shared: list[pathlib.Path] = []
"""Folders of which every process has its own copy: in process 0 the original ones."""


def count() -> int:
    """How many processes carry out this run. Loads no jax: without it there is one."""
    jax = sys.modules.get("jax")
    return jax.process_count() if jax is not None and jax.distributed.is_initialized() else 1


def index() -> int:
    """Which of them this is, from 0."""
    return sys.modules["jax"].process_index() if count() > 1 else 0


def is_writer() -> bool:
    """Whether this process writes, asks and prints for all."""
    return index() == 0


def cluster() -> str | None:
    """The launcher that started this process as one of several, by what it left in the environment. Raises
    UserError for one that leaves too little for them to find each other."""
    several = lambda name: int(os.environ.get(name) or 1) > 1
    if "SLURM_STEP_NODELIST" in os.environ and several("SLURM_STEP_NUM_TASKS"):
        return "SLURM"
    if "OMPI_MCA_orte_hnp_uri" in os.environ and several("OMPI_COMM_WORLD_SIZE"):
        return "Open MPI"
    if several("OMPI_COMM_WORLD_SIZE"):
        raise UserError(
            "Open MPI 5 or later started these processes and does not say where the first one is: give each "
            "--coordinator HOST:PORT --processes $OMPI_COMM_WORLD_SIZE --process $OMPI_COMM_WORLD_RANK"
        )
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys() and find_spec("kubernetes"):
        return "Kubernetes"
    # On one host a TPU's processes have nobody to find.
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ:
        return "TPU"
    return None


def check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Raises UserError for flags that name no place among several processes."""
    given = (coordinator, processes, process)
    if all(value is None for value in given):
        return
    if coordinator is None or processes is None or process is None:
        raise UserError("--coordinator, --processes and --process go together: give all three or none")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator {coordinator} is no HOST:PORT, such as 10.0.0.1:1234")
    if processes < 1:
        raise UserError(f"--processes {processes} must be at least 1")
    if not 0 <= process < processes:
        raise UserError(f"--process {process} must lie between 0 and {processes - 1}, one less than --processes")


def connect(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the other processes of the run, if there are any: those that the arguments name, or those that a
    cluster's launcher started with this one. To be called before jax is used.

    Raises UserError for arguments that do not fit, and when the others are not there within five minutes.
    """
    check(coordinator, processes, process)
    if processes is None and cluster() is None and not _on_tpu_pod():
        return
    if processes == 1 or count() > 1:  # a notebook may have connected by itself
        return
    jax = importlib.import_module("jax")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        where = coordinator or f"the processes of {cluster() or 'the TPU pod'}"
        raise UserError(f"cannot join {where} ({said}): start all processes at about the same time") from None
    if count() == 1:
        return
    if not is_writer():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for good)
    watcher = threading.Thread(target=_watch, daemon=True)
    watcher.start()
    atexit.register(_part, watcher)


def _on_tpu_pod() -> bool:
    """Whether this is a Cloud TPU VM of several, which tell of one another by the metadata of the machine."""
    if not os.path.exists("/dev/accel0") and not os.path.exists("/dev/vfio/0"):
        return False
    with contextlib.suppress(ImportError, OSError, AttributeError):
        from jax._src.clusters import cloud_tpu_cluster

        return len(cloud_tpu_cluster.GceTpuCluster._get_worker_list_in_slice() or ()) > 1
    return False


def _client() -> Any:
    """The key-value store and the barriers that all processes have in common; jax has no public name for it."""
    from jax._src import distributed

    return distributed.global_state.client


# --- values ---------------------------------------------------------------------------------------------------


def share(compute: Callable[[], Any]) -> Any:
    """What `compute` gives in process 0, which alone calls it: a JSON value. Its UserError is raised in all."""
    if count() == 1:
        return compute()
    sent = None
    if is_writer():
        try:
            sent = {"value": compute()}
        except UserError as error:
            sent = {"error": str(error)}
    # Read back by process 0 as well, so that all have the same types.
    found = json.loads(_share_bytes(None if sent is None else json.dumps(sent).encode()))
    if "error" in found:
        raise UserError(found["error"])
    return found["value"]


def check_same(what: dict[str, Any], said: str) -> None:
    """Raises UserError, in all processes, where one of them was given other values than process 0."""
    if count() == 1:
        return
    ours = json.loads(json.dumps(what))
    theirs = share(lambda: ours)
    other = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if other:
        raise UserError(f"process {index()} has another {other[0]} than process 0: {said}")


def _share_bytes(data: bytes | None) -> bytes:
    """The bytes of process 0."""
    global _sent
    _sent += 1
    client, place = _client(), f"seedloop/{_sent}"
    if data is not None:
        parts = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
        client.key_value_set(f"{place}/parts", str(len(parts)))
        for number, part in enumerate(parts):
            client.key_value_set_bytes(f"{place}/{number}", part)
    else:
        parts = int(client.blocking_key_value_get(f"{place}/parts", LONG))
        data = b"".join(client.blocking_key_value_get_bytes(f"{place}/{n}", LONG) for n in range(parts))
    # Until all have read it; then the store lets go of it.
    client.wait_at_barrier(place, LONG)
    if is_writer():
        client.key_value_delete(f"{place}/")
    return data


# --- folders --------------------------------------------------------------------------------------------------


def share_folder(folder: pathlib.Path, without: tuple[str, ...] = ()) -> pathlib.Path:
    """`folder` of process 0, and in the others a private folder with the same files, but for names in `without`.
    A folder within one that is shared already is that, in every process."""
    if any(folder.is_relative_to(root) for root in _shared):
        return folder
    place = folder if is_writer() else pathlib.Path(tempfile.mkdtemp(prefix="seedloop-"))
    _shared.append(place)
    inside = lambda: [path for path in sorted(folder.rglob("*")) if path.name not in without]
    for name, is_dir in share(lambda: [(str(path.relative_to(folder)), path.is_dir()) for path in inside()]):
        if is_writer():
            if not is_dir:
                _send_file(place / name)
        elif is_dir:
            (place / name).mkdir()
        else:
            _receive_file(place / name)
    return place


def _send_file(file: pathlib.Path) -> None:
    with file.open("rb") as data:
        while part := data.read(8 * CHUNK):
            _share_bytes(part)
    _share_bytes(b"")


def _receive_file(file: pathlib.Path) -> None:
    with file.open("wb") as data:
        while part := _share_bytes(None):
            data.write(part)


def forget(folder: pathlib.Path) -> None:
    """Undo `share_folder`: a private copy is deleted."""
    if folder in _shared:
        _shared.remove(folder)
        if not is_writer():
            shutil.rmtree(folder, ignore_errors=True)


# --- the end --------------------------------------------------------------------------------------------------


def end(line: str, code: int) -> NoReturn:
    """End this process and all others, process 0 with `line` as its last word."""
    if is_writer():
        _last(line, code)
    try:
        _client().key_value_set("seedloop/failed", json.dumps([index(), line, code]), allow_overwrite=True)
        _client().blocking_key_value_get("seedloop/end", 15_000)
    except Exception:  # process 0, which would say it, is gone
        print(line, file=sys.stderr, flush=True)
    _leave(code)


def _last(line: str, code: int) -> NoReturn:
    if line:
        print(line, file=sys.stderr, flush=True)
    with contextlib.suppress(Exception):
        _client().key_value_set("seedloop/end", str(code))
    time.sleep(1)  # the others read it while this process, which keeps it, lives
    _leave(code)


def _part(watcher: threading.Thread) -> None:
    """At the end of a process: wait for all others, then let go of the thread that waits for word of them."""
    with contextlib.suppress(Exception):
        _client().wait_at_barrier("seedloop/done", 300_000)
        if is_writer():
            _client().key_value_set("seedloop/failed", "null")
            _client().key_value_set("seedloop/end", "null")
    watcher.join(3 * BEAT)


def _watch() -> None:
    """End this process when another one has failed or is gone; until then give a sign of life now and then."""
    gone = "error: process {} is gone; the same command, given to all processes, continues"
    heard = {number: ("", time.monotonic()) for number in range(1, count())}
    while True:
        try:
            found = json.loads(_client().blocking_key_value_get(_awaited(), 1000 * BEAT))
        except Exception as error:
            if "DEADLINE_EXCEEDED" in str(error):
                silent = _listen(heard)
                if silent is not None:
                    _last(gone.format(silent), 1)
                continue
            time.sleep(BEAT)  # this process may be about to end in its own way
            if not is_writer():
                print(gone.format(0), file=sys.stderr, flush=True)
            _leave(1)
        if found is None:
            return
        if not is_writer():
            _leave(found)
        number, line, code = found
        time.sleep(3)  # what every process runs into is told by this one itself
        _last(line and f"{line} (process {number})", code)


def _awaited() -> str:
    return "seedloop/failed" if is_writer() else "seedloop/end"


def _listen(heard: dict[int, tuple[str, float]]) -> int | None:
    """Tell process 0 that this one lives; there, which of the others does not."""
    now = time.monotonic()
    if not is_writer():
        with contextlib.suppress(Exception):
            _client().key_value_set(f"seedloop/alive/{index()}", str(now), allow_overwrite=True)
        return None
    for number, (word, since) in heard.items():
        said = word
        with contextlib.suppress(Exception):  # it has not said anything yet
            said = _client().key_value_try_get(f"seedloop/alive/{number}")
        if said != word:
            heard[number] = (said, now)
        elif now - since > SILENCE:
            return number
    return None


def _leave(code: int) -> NoReturn:
    """At once: an orderly end would wait for processes that are gone."""
    for folder in list(_shared):
        forget(folder)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
