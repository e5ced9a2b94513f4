"""The run directory: resuming, refusing, and being killed at any instant."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from common import VERSION
from common.errors import UserError
from common.results.files import Journal, read_json, read_jsonl, write_bytes, write_folder, write_json, write_jsonl
from common.results.rundir import SIZES, RunDir

CONFIG = {"rounds": 3, "train": {"learning_rate": 1e-3, "betas": (0.9, 0.999)}, "name": "é"}


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_version_is_the_packages():
    pyproject = pathlib.Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    assert f'\nversion = "{VERSION}"\n' in pyproject


# --- opening ------------------------------------------------------------------------------------------------


def test_open_stores_the_config_and_resumes(tmp_path):
    folder = tmp_path / "a" / "run"
    with RunDir.open(folder, "llm2llm", CONFIG) as run:
        assert run.path == folder
        stored = read_json(folder / "config.json")
    assert stored == {
        "seedloop": VERSION,
        "method": "llm2llm",
        "config": {"rounds": 3, "train": {"learning_rate": 1e-3, "betas": [0.9, 0.999]}, "name": "é"},
    }
    before = tree(folder)
    RunDir.open(folder, "llm2llm", CONFIG).close()
    assert tree(folder) == before


def test_data_files_are_told_by_what_they_hold_and_not_by_the_way_to_them(tmp_path):
    """The same command from another directory names them otherwise."""

    def of(place, content="12"):
        return {"train_file": f"{place}/a.csv", "bbq": [f"{place}/b.csv"], "seed": 1} | {
            "file_hashes": {f"{place}/a.csv": content, f"{place}/b.csv": "34"}
        }

    RunDir.open(tmp_path / "run", "llm2llm", of("data")).close()
    before = tree(tmp_path)
    RunDir.open(tmp_path / "run", "llm2llm", of("../data")).close()
    assert tree(tmp_path) == before
    for other in (of("../data", "56"), of("../data") | {"seed": 2}, of("data") | {"bbq": ["data/a.csv"]}):
        with pytest.raises(UserError, match="another configuration"):
            RunDir.open(tmp_path / "run", "llm2llm", other)


def test_other_config_is_refused_with_the_difference_and_nothing_is_touched(tmp_path):
    RunDir.open(tmp_path, "llm2llm", {**CONFIG, "old": None}).close()
    (tmp_path / ".part.json.1.tmp").write_text("left by a killed process")
    before = tree(tmp_path)
    given = {**CONFIG, "new": [1], "train": {**CONFIG["train"], "learning_rate": 2e-3}}
    with pytest.raises(UserError) as caught:
        RunDir.open(tmp_path, "reversegen", given)
    message = str(caught.value)
    assert "\n" not in message
    assert (
        '(method: "llm2llm" -> "reversegen", new: (absent) -> [1], old: null -> (absent), '
        "train.learning_rate: 0.001 -> 0.002)" in message
    )
    assert tree(tmp_path) == before
    RunDir.open(tmp_path, "llm2llm", {**CONFIG, "old": None}).close()  # the lock was given back


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_foreign_folder_is_refused_untouched(tmp_path, name):
    (tmp_path / name).write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="no seedloop run"):
        RunDir.open(tmp_path, "llm2llm", CONFIG)
    assert os.listdir(tmp_path) == [name]


def test_places_that_cannot_be_a_run_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunDir.open(tmp_path / "file", "llm2llm", CONFIG)
    with pytest.raises(UserError, match=r"file is a file, and .*/file/run would lie in it"):
        RunDir.open(tmp_path / "file" / "run", "llm2llm", CONFIG)
    (tmp_path / "sealed").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)  # chmod would not stop the superuser
    with pytest.raises(UserError, match="cannot write in"):
        RunDir.open(tmp_path / "sealed", "llm2llm", CONFIG)
    with pytest.raises(UserError, match=r"cannot make .*/sealed/run, as .*/sealed cannot be written"):
        RunDir.open(tmp_path / "sealed/run", "llm2llm", CONFIG)


def test_second_process_is_refused(tmp_path):
    code = (
        "import sys\nfrom common.results.rundir import RunDir\nfrom common.errors import UserError\n"
        "try:\n    RunDir.open(sys.argv[1], 'llm2llm', {})\nexcept UserError as error:\n    print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with RunDir.open(tmp_path, "llm2llm", {}):
        out = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=pathlib.Path(__file__).parents[2]
        )
        assert out.stdout.startswith(f"{tmp_path} is in use by another process")
    out = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=pathlib.Path(__file__).parents[2]
    )
    assert out.stdout == ""


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    RunDir.open(tmp_path, "llm2llm", {}).close()
    model = tmp_path / "round-1" / ".model.77.tmp"
    model.mkdir(parents=True)
    (model / "weights").write_text("half")
    (tmp_path / "round-1" / ".rows.jsonl.77.tmp").write_text("half")
    (tmp_path / "round-1" / "kept.tmp").write_text("somebody's own")
    RunDir.open(tmp_path, "llm2llm", {}).close()
    assert set(tree(tmp_path)) == {".lock", "config.json", "round-1/kept.tmp"}
    assert not model.exists()


def test_leftovers_alone_are_an_empty_folder(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.77.tmp").write_text("{")
    RunDir.open(tmp_path, "llm2llm", {}).close()
    assert set(tree(tmp_path)) == {".lock", "config.json"}


# --- files --------------------------------------------------------------------------------------------------


def test_json_is_the_same_bytes_for_the_same_value(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    write_json(tmp_path / "b.json", {"a": "ü", "b": np.int64(1)})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'


def test_any_text_survives_jsonl(tmp_path):
    rows = [{"text": "line\nbreak \u2028 \u0085 \x00 \ud800 \U0001f600"}, {"text": ""}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows
    (tmp_path / "rows.jsonl").read_bytes().decode("utf-8")


def test_not_a_number_and_unknown_types_are_refused(tmp_path):
    with pytest.raises(ValueError, match="NaN or infinite"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    with pytest.raises(TypeError, match="object cannot be stored"):
        write_json(tmp_path / "a.json", {"loss": object()})
    assert not list(tmp_path.iterdir())


def test_damaged_artifacts_name_file_and_line(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2 is damaged"):
        read_jsonl(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl", "c.json"])
def test_an_artifact_that_was_cut_where_a_line_ends_is_named(name, tmp_path):
    """It reads well, and its stage would go on with fewer rows. Deleted, it is made again."""
    rows = [{"i": 1}, {"i": 2}]

    def work():
        with RunDir.open(tmp_path, "m", {}) as run:
            made = run.once("a.jsonl", lambda: rows), run.collect("b.jsonl", lambda done: [rows[done:]])
            return *made, run.once("c.json", lambda: [1, 23])

    whole = work()
    assert work() == whole
    stored = (tmp_path / name).read_bytes()
    (tmp_path / name).write_text("[1, 2]" if name == "c.json" else '{"i":1}\n')
    with pytest.raises(UserError, match=rf"{name} is damaged: it has \d+ bytes, and had \d+ when it was complete"):
        work()
    (tmp_path / name).write_bytes(stored.replace(b"2", b"3"))
    with pytest.raises(UserError, match=rf"{name} is damaged: it has other content than when it was complete"):
        work()
    (tmp_path / name).unlink()
    assert work() == whole


def test_sizes_are_noted_of_what_a_killed_process_had_completed(tmp_path):
    with RunDir.open(tmp_path, "m", {}) as run:
        run.once("a.json", lambda: [1, 2])
    noted = (tmp_path / SIZES).read_bytes()
    (tmp_path / SIZES).write_bytes(noted[:-5])
    with RunDir.open(tmp_path, "m", {}) as run:
        assert run.once("a.json", lambda: None) == [1, 2]
    assert (tmp_path / SIZES).read_bytes() == noted


def test_write_folder_replaces_a_folder(tmp_path):
    for text in "old", "new":
        write_folder(tmp_path / "x" / "model", lambda folder, text=text: (folder / text).write_text(text))
    assert tree(tmp_path) == {"x/model/new": b"new"}
    assert os.listdir(tmp_path / "x") == ["model"]


# --- stages -------------------------------------------------------------------------------------------------


def test_once_computes_once_and_returns_what_a_read_returns(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {1: (2, 3), 2: np.float32(0.5)}

    with RunDir.open(tmp_path, "llm2llm", {}) as run:
        first = run.once("round-1/a.json", compute)
        assert run.once("round-1/a.json", compute) == first == {"1": [2, 3], "2": 0.5}
        rows = run.once("rows.jsonl", lambda: ({"i": i} for i in range(3)))
        assert rows == [{"i": 0}, {"i": 1}, {"i": 2}]
        assert run.once("empty.jsonl", list) == run.once("empty.jsonl", pytest.fail) == []
    assert len(calls) == 1


def test_once_folder(tmp_path):
    with RunDir.open(tmp_path, "llm2llm", {}) as run:
        with pytest.raises(RuntimeError):
            run.once_folder("model", lambda folder: (_ for _ in ()).throw(RuntimeError))
        assert not list(tmp_path.glob("*model*"))
        folder = run.once_folder("model", lambda folder: (folder / "w").write_text("1"))
        assert run.once_folder("model", pytest.fail) == folder == tmp_path / "model"
        assert (folder / "w").read_text() == "1"


def test_collect_goes_on_after_the_stored_rows(tmp_path):
    asked = []

    def batches(done, stop_after=None):
        asked.append(done)
        for start in range(done, 7, 2):
            if start == stop_after:
                raise KeyboardInterrupt
            yield [{"row": i} for i in range(start, min(start + 2, 7))]

    with RunDir.open(tmp_path, "llm2llm", {}) as run:
        with pytest.raises(KeyboardInterrupt):
            run.collect("r/rows.jsonl", lambda done: batches(done, stop_after=4))
        assert len(run.journal("r/rows.jsonl.part").rows()) == 4
        expected = [{"row": i} for i in range(7)]
        assert run.collect("r/rows.jsonl", batches) == run.collect("r/rows.jsonl", pytest.fail) == expected
        assert asked == [0, 4]
        assert os.listdir(tmp_path / "r") == ["rows.jsonl"]
        assert run.collect("none.jsonl", lambda done: []) == []


@pytest.mark.parametrize("torn", [b'{"row": 2', b'{"row": 2}', b'\x00\x00\n{"row": 3}\n', b'{"row"\n'])
def test_torn_journal_line_is_cut_off(tmp_path, torn):
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"row": 0}\n{"row": 1}\n' + torn)
    journal = Journal(path)
    assert journal.rows() == [{"row": 0}, {"row": 1}]
    journal.append([{"row": 2}])
    assert path.read_bytes() == b'{"row": 0}\n{"row": 1}\n{"row": 2}\n'


def test_metrics_of_a_resumed_stage_are_not_doubled(tmp_path):
    with RunDir.open(tmp_path, "llm2llm", {}) as run:
        for stage in "base", "round-1":
            metrics = run.metrics(stage)
            for step in range(4):
                metrics.log(step, loss=np.float32(0.5), norm=float("nan"))
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"loss": 0.')
        undisturbed = read_jsonl_until_torn(tmp_path / "metrics.jsonl")
        metrics = run.metrics("round-1", from_step=2)
        for step in (2, 3):
            metrics.log(step, loss=np.float32(0.5), norm=float("inf"))
        rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert rows == undisturbed
    assert rows[0] == {"stage": "base", "step": 0, "loss": 0.5, "norm": None}
    assert [row["step"] for row in rows] == [0, 1, 2, 3] * 2


def read_jsonl_until_torn(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_seconds_are_noted_by_every_process_and_after_failures(tmp_path):
    for _ in range(2):
        with RunDir.open(tmp_path, "llm2llm", {}) as run, run.timed("train"):
            pass
    with RunDir.open(tmp_path, "llm2llm", {}) as run, pytest.raises(RuntimeError), run.timed("evaluate"):
        raise RuntimeError
    rows = read_jsonl(tmp_path / "timing.jsonl")
    assert [row["stage"] for row in rows] == ["train", "train", "evaluate"]
    assert all(0 <= row["seconds"] < 60 for row in rows)


def test_a_stage_within_a_stage_is_counted_once(tmp_path):
    """Evaluation may train what it evaluates: those seconds are the training's."""
    with RunDir.open(tmp_path, "llm2llm", {}) as run:
        start = time.perf_counter()
        with run.timed("evaluate"):
            with run.timed("train"):
                time.sleep(0.2)
                with run.timed("score"):
                    time.sleep(0.1)
            time.sleep(0.05)
        whole = time.perf_counter() - start
    spent = {row["stage"]: row["seconds"] for row in read_jsonl(tmp_path / "timing.jsonl")}
    assert spent["evaluate"] < spent["train"]
    assert spent["train"] >= 0.2
    assert sum(spent.values()) == pytest.approx(whole, abs=0.02)


# --- full disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, code):
    with RunDir.open(tmp_path, "llm2llm", {}) as run:
        run.journal("j.jsonl").append([{"row": 0}])
        run.once_folder("model", lambda folder: (folder / "w").write_text("1"))
        before = tree(tmp_path)
        write = os.write

        def half_then_full(fd, data):
            if len(data) < 8:
                raise OSError(code, os.strerror(code))
            return write(fd, bytes(data[: len(data) // 2]))

        monkeypatch.setattr(os, "write", half_then_full)
        for attempt in (
            lambda: run.once("a.json", lambda: list(range(100))),
            lambda: run.journal("j.jsonl").append([{"row": 1, "text": "long enough to be torn"}]),
            lambda: run.once_folder("m", lambda folder: write_bytes(folder / "w", b"x" * 100)),
        ):
            with pytest.raises(
                UserError, match=r"disk full while writing .*: make room and give the same command"
            ):
                attempt()
        assert tree(tmp_path) == before
        monkeypatch.undo()
        assert run.once("a.json", lambda: 1) == 1


def test_full_disk_told_by_a_library_without_errno(tmp_path):
    def fill(folder):
        raise ValueError("IoError(Os { code: 28, kind: StorageFull, message: 'No space left on device' })")

    with RunDir.open(tmp_path, "llm2llm", {}) as run, pytest.raises(UserError, match="disk full while writing"):
        run.once_folder("model", fill)


def test_forbidden_write(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "x")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path / "a.json", b"")


# --- killed -------------------------------------------------------------------------------------------------

KILLED = '''
"""Kill a small run with SIGKILL before every single system call that changes a file, or half-way through a write;
continue it, and compare all bytes with those of an undisturbed run."""
import os, pathlib, shutil, signal, sys
from common.results.files import write_bytes, write_folder
from common.results.rundir import RunDir

ROUNDS = 1

def fill(folder):
    write_bytes(folder / "weights", b"w" * 64)
    (folder / "deep").mkdir()
    (folder / "deep" / "more").write_text("more")

def work(path):
    with RunDir.open(path, "llm2llm", {"rounds": 2}) as run:
        for n in range(ROUNDS):
            errors = run.once(f"round-{n}/errors.jsonl", lambda: [{"id": n, "text": "x" * 20}] * 3)
            rows = run.collect(f"round-{n}/rows.jsonl", lambda done: [[{"row": i, "of": len(errors)}]
                                                                      for i in range(done, 3)])
            if not (path / f"round-{n}/model").exists():
                metrics = run.metrics(f"round-{n}")
                for step in range(2):
                    metrics.log(step, loss=len(rows) / 7)
            run.once_folder(f"round-{n}/model", fill)
        run.once("summary.json", lambda: {"rows": rows})
        for _ in range(2):
            write_folder(path / "dataset", fill)

def content(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}

def die_at(n, halfway):
    calls = 0
    def wrap(name):
        real = getattr(os, name)
        def counted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == n:
                if halfway and name == "write":
                    real(args[0], bytes(args[1][: len(args[1]) // 2]))
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(os, name, counted)
    for name in ("write",) if halfway else ("open", "write", "fsync", "replace", "close", "mkdir", "ftruncate"):
        wrap(name)

def in_child(function):
    pid = os.fork()
    if not pid:
        function()
        os._exit(0)
    return os.waitpid(pid, 0)[1]

os.fsync = lambda fd: None  # only a power cut asks for it, and it is slow
root = pathlib.Path(sys.argv[1])
work(root / "undisturbed")
expected = content(root / "undisturbed")
kills = 0
for halfway in False, True:
    n = 0
    while True:
        n += 1
        path = root / "killed"
        def killed():
            die_at(n, halfway)
            work(path)
        status = in_child(killed)
        if status == 0:
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        kills += 1
        assert in_child(lambda: work(path)) == 0, f"not continued after a kill at call {n}"
        assert content(path) == expected, f"other bytes after a kill at call {n}"
        shutil.rmtree(path)
    shutil.rmtree(path)
ROUNDS = 2
work(root / "undisturbed, longer")
expected = content(root / "undisturbed, longer")
path = root / "often"  # killed again and again, getting a little farther each time
def killed_again():
    die_at(80, False)
    work(path)
for attempt in range(20):
    if in_child(killed_again) == 0:
        break
    kills += 1
assert 0 < attempt < 19, attempt
assert content(path) == expected
print(kills)
'''


def test_killed_at_any_instant_the_run_continues_to_the_same_bytes(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60


def test_rows_that_lack_what_each_must_hold_are_named(tmp_path):
    """Of sizes, seconds and losses, whose rows are read by name."""
    for name, call in (
        ("sizes.jsonl", lambda run: run.settle()),
        ("metrics.jsonl", lambda run: run.metrics("train", 2)),
    ):
        folder = tmp_path / name
        with RunDir.open(folder, "m", {}) as run:
            run.journal(name).append(
                [{"name": "a", "bytes": 1, "stage": "train", "step": 0}, {"name": {}, "stage": 3}]
            )
            with pytest.raises(UserError, match=f"{name}, line 2 is damaged"):
                call(run)
    with pytest.raises(UserError, match=r"sizes\.jsonl, line 2 is damaged"):
        RunDir.open(tmp_path / "sizes.jsonl", "m", {})
