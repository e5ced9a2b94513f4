"""A run directory given as a URL: one whole state of the run at any time, and the same bytes at the end."""

import hashlib
import json
import pathlib
import shutil
import time

import fsspec
import pytest
from fsspec.registry import known_implementations

from bucket import Bucket, Cut
from common.backends.replies import Replies, Reply
from common.errors import UserError
from common.results import mirror
from common.results.files import write_folder, write_json
from common.results.rundir import RunDir
from killing import bytes_of

URL = "bucket://b/runs/a"
CONFIG = {"seed": 0}


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    """An empty store, and a cache folder of the test's own."""
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    monkeypatch.setattr(Bucket, "objects", {})
    monkeypatch.setattr(Bucket, "before", staticmethod(lambda operation, name: None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield Bucket.objects
    mirror._OPEN.clear()


def held() -> dict[str, bytes]:
    """The files of the run as the store's list has them, each checked against its hash."""
    found = json.loads(Bucket.objects["b/runs/a/.seedloop.json"])["files"]
    files = {name: Bucket.objects[f"b/runs/a/{entry['object']}"] for name, entry in found.items()}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == {
        name: entry["sha256"] for name, entry in found.items()
    }
    return files


def work(place: str) -> dict[str, bytes]:
    """A run with an artifact of every kind. Its state of an unfinished training, a folder, is replaced twice."""

    def batches(done):
        for i in range(done, 6, 2):
            replies.put(f"{i}", "account", Reply(f"reply {i}", "stop", None, 1, 1))
            yield [{"row": i}, {"row": i + 1}]

    def fill(text):
        def write(folder: pathlib.Path) -> None:
            for name in ("a", "b/c"):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(f"{text} {name}")

        return write

    with RunDir.open(place, "test", CONFIG) as run:
        with Replies(run.path / "replies.sqlite") as replies:
            run.collect("round_0/teacher.jsonl", batches)
        state = run.path / "round_0/training_state"
        if not (run.path / "round_0/student").exists():
            first = int((state / "a").read_text().split()[0]) if state.exists() else 0
            assert not state.exists() or (state / "b/c").read_text() == f"{first} b/c"
            metrics = run.metrics("round_0", first)
            for step in range(first, 3):
                metrics.log(step, loss=1.0)
                write_folder(state, fill(step + 1))
            run.once_folder("round_0/student", fill("student"))
        shutil.rmtree(state, ignore_errors=True)
        run.once("round_0/new.jsonl", lambda: [{"x": 1}])
        write_json(run.path / "summary.json", {"ok": True})
    return bytes_of(run.path)


@pytest.fixture
def whole(tmp_path):
    """What the run leaves in a folder."""
    return work(str(tmp_path / "whole"))


def kept(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without what may differ between two runs."""
    return {
        name: content
        for name, content in files.items()
        if name not in ("timing.jsonl", "timing.svg", "replies.sqlite")
    }


def test_a_run_in_a_store_is_the_run_of_a_folder_and_lies_there_under_its_own_names(whole, store):
    """Every artifact is an object of its name, readable without this program, and nothing else is left."""
    assert work(URL) == whole
    assert kept(held()) == whole
    names = {name.removeprefix("b/runs/a/") for name in store}
    assert names == whole.keys() | {"replies.sqlite", ".seedloop.json"}


@pytest.mark.parametrize("mirrored", [True, False], ids=["same machine", "another machine"])
def test_cut_at_any_operation_a_run_goes_on_to_the_same_bytes(whole, store, monkeypatch, mirrored, tmp_path):
    """The process ends in place of its nth operation on the store, for every n; its lock stays behind. At each
    operation all that the list names is there."""
    operations, count, done = [], 0, False
    while not done:
        count += 1
        store.clear()
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        operations.clear()

        def watch(operation, name):
            if f"b/runs/a/{mirror.LIST}" in store:
                held()

        def cut(operation, name, count=count, watch=watch):
            watch(operation, name)
            operations.append((operation, name))
            if len(operations) >= count:
                raise Cut

        monkeypatch.setattr(Bucket, "before", staticmethod(cut))
        try:
            work(URL)
            done = True
        except Cut:
            # Nothing of a process that is gone is heard of again.
            for one in list(mirror._OPEN):
                one._ended.set()
            mirror._OPEN.clear()
            if not mirrored:
                shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            monkeypatch.setattr(Bucket, "before", staticmethod(watch))
            monkeypatch.setattr(mirror, "_lives", lambda process: False)
            assert work(URL) == whole, operations
            assert kept(held()) == whole
            left = {name.removeprefix("b/runs/a/") for name in store}
            assert left == whole.keys() | {"replies.sqlite", ".seedloop.json"}, operations
    assert count > 30


def test_a_run_in_use_is_refused_with_the_line_that_helps(store):
    """By another run of this process, and by a process on another machine that was heard of."""
    with (
        RunDir.open(URL, "test", CONFIG),
        pytest.raises(UserError, match=r"in use by .* delete bucket://b/runs/a/"),
    ):
        RunDir.open(URL, "test", CONFIG)
    far = {"owner": "far, process 7", "machine": "x", "process": "7", "token": "t"}
    store["b/runs/a/.seedloop.lock"] = json.dumps(far | {"time": time.time() - 60}).encode()
    with pytest.raises(UserError, match="in use by far, process 7, last heard of 6"):
        RunDir.open(URL, "test", CONFIG)
    # Not heard of for longer, it is gone.
    store["b/runs/a/.seedloop.lock"] = json.dumps(far | {"time": time.time() - mirror.STALE - 1}).encode()
    RunDir.open(URL, "test", CONFIG).close()
    assert "b/runs/a/.seedloop.lock" not in store


def test_a_process_that_lost_its_lock_writes_no_more(store):
    """As of a machine that was suspended and wakes up beside its successor."""
    run = RunDir.open(URL, "test", CONFIG)
    before = held()
    store["b/runs/a/.seedloop.lock"] = json.dumps({"token": "another"}).encode()
    with pytest.raises(UserError, match="taken over by another process"):
        run.once("a.json", lambda: 1)
    assert held() == before
    with pytest.raises(UserError, match="taken over"):
        run.close()
    assert json.loads(store["b/runs/a/.seedloop.lock"]) == {"token": "another"}


def test_the_holder_says_that_it_lives(store, monkeypatch):
    """However long a stage takes that stores nothing."""
    monkeypatch.setattr(mirror, "BEAT", 0.02)
    with RunDir.open(URL, "test", CONFIG):
        first = json.loads(store["b/runs/a/.seedloop.lock"])["time"]
        deadline = time.monotonic() + 20
        while json.loads(store["b/runs/a/.seedloop.lock"])["time"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_what_another_machine_did_wins_over_the_mirror(store, monkeypatch, tmp_path):
    """Here two artifacts are stored; another machine, which has its own mirror, adds a third and drops one."""
    with RunDir.open(URL, "test", CONFIG) as run:
        run.once("a.json", lambda: 1)
        run.once("b/b.json", lambda: 2)
    with monkeypatch.context() as there:
        there.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        with RunDir.open(URL, "test", CONFIG) as other:
            shutil.rmtree(other.path / "b")
            other.once("c.json", lambda: 3)
    with RunDir.open(URL, "test", CONFIG) as run:
        assert bytes_of(run.path).keys() == {"config.json", "a.json", "c.json", "sizes.jsonl"}
        assert not (run.path / "b").exists()
    # And a run that was deleted there is begun anew.
    store.clear()
    with RunDir.open(URL, "test", {"seed": 1}) as run:
        assert bytes_of(run.path).keys() == {"config.json"}


def test_a_store_that_is_away_for_a_while_does_not_end_a_run(store, monkeypatch, caplog):
    """It is said once, and the last snapshot holds everything. If that cannot be written either, one line says
    where everything is."""

    def away(operation, name):
        raise ConnectionError("no route to host")

    run = RunDir.open(URL, "test", CONFIG)
    monkeypatch.setattr(Bucket, "before", staticmethod(away))
    run.once("a.json", lambda: 1)
    run.once("b.json", lambda: 2)
    assert len(caplog.records) == 1
    monkeypatch.setattr(Bucket, "before", staticmethod(lambda operation, name: None))
    run.close()
    assert held().keys() == {"config.json", "a.json", "b.json", "sizes.jsonl"}
    run = RunDir.open(URL, "test", CONFIG)
    monkeypatch.setattr(Bucket, "before", staticmethod(away))
    run.once("c.json", lambda: 3)
    with pytest.raises(UserError, match=r"no route to host\); everything is in "):
        run.close()
    monkeypatch.setattr(Bucket, "before", staticmethod(lambda operation, name: None))
    # The lock is still this process's own, which in truth would be gone.
    monkeypatch.setattr(mirror, "_lives", lambda process: False)
    RunDir.open(URL, "test", CONFIG).close()
    assert held().keys() == {"config.json", "a.json", "b.json", "c.json", "sizes.jsonl"}


def test_a_place_that_cannot_hold_a_run_is_refused_before_anything_is_loaded(store, monkeypatch, tmp_path):
    """One line each: no such scheme, a package that is missing, no path, a login in the URL, no right to write,
    other files, another configuration. Nothing is left behind."""
    for url, said in (
        ("zz://b/run", "unknown scheme zz://"),
        ("gs://", "no place for a run"),
        ("gs://key:secret@b/run", "no place for a run"),
        ("http://127.0.0.1:9/run", "cannot use http://127.0.0.1:9/run"),
        ("file:///proc/no/run", "cannot use file:///proc/no/run"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            RunDir.check(url, "test", CONFIG)
        assert "\n" not in str(raised.value)
    missing = {"class": "no_such_package.Files", "err": "install it"}
    monkeypatch.setitem(known_implementations, "gs", missing)
    with pytest.raises(UserError, match="pip install gcsfs"):
        RunDir.check("gs://b/run", "test", CONFIG)
    store["b/runs/a/notes.txt"] = b""
    with pytest.raises(UserError, match="holds other files"):
        RunDir.check(URL, "test", CONFIG)
    assert store.keys() == {"b/runs/a/notes.txt"}
    store.clear()
    RunDir.check(URL, "test", CONFIG)
    assert not store
    RunDir.open(URL, "test", CONFIG).close()
    RunDir.check(URL, "test", CONFIG)
    for attempt in (RunDir.check, RunDir.open):
        with pytest.raises(UserError, match=f"{URL} holds a run of another configuration .*seed: 0 -> 1"):
            attempt(URL, "test", {"seed": 1})
    assert "b/runs/a/.seedloop.lock" not in store

    def forbidden(operation, name):
        raise PermissionError("Forbidden: storage.objects.create")

    monkeypatch.setattr(Bucket, "before", staticmethod(forbidden))
    for attempt in (RunDir.check, RunDir.open):
        with pytest.raises(UserError, match=r"PermissionError: Forbidden: storage.objects.create"):
            attempt(URL, "test", CONFIG)


def test_a_damaged_object_is_named(store, tmp_path):
    """On a machine without a mirror of it."""
    with RunDir.open(URL, "test", CONFIG) as run:
        run.once("a.json", lambda: 1)
    shutil.rmtree(tmp_path / "cache")
    store["b/runs/a/a.json"] = b"other"
    with pytest.raises(UserError, match=r"bucket://b/runs/a/a\.json is damaged"):
        RunDir.open(URL, "test", CONFIG)


@pytest.mark.parametrize("name", ["../../other", "/tmp/other", "a/../../other"])
def test_a_list_that_leads_out_of_the_run_is_damaged(store, tmp_path, name):
    """The objects of a bucket may be another one's."""
    with RunDir.open(URL, "test", CONFIG) as run:
        run.once("a.json", lambda: 1)
    shutil.rmtree(tmp_path / "cache")
    key = f"b/runs/a/{mirror.LIST}"
    store[key] = store[key].replace(b'"a.json": {', b'"%s": {' % name.encode())
    for attempt in (RunDir.check, RunDir.open):
        with pytest.raises(UserError, match=r"\.seedloop\.json is damaged"):
            attempt(URL, "test", CONFIG)


def test_a_run_within_a_run_goes_up_too(store):
    """Variants of a sweep lie below it, and are opened as folders of the mirror."""
    with RunDir.open(URL, "test", CONFIG) as outer:
        with RunDir.open(outer.path / "variants/one", "test", CONFIG) as inner:
            inner.once("a.json", lambda: 1)
            assert "variants/one/a.json" in held()
            assert mirror.shown(inner.path / "a.json") == f"{URL}/variants/one/a.json"
        assert mirror._OPEN
    assert not mirror._OPEN
