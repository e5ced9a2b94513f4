"""Asked to stop: what is under way is stored, one line is said, and the same command ends with the same bytes."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from common import stopping
from common.tasks.arithmetic import Arithmetic
from killing import ROOT, check_ends, signalled

LINE = "stopped by SIGTERM; the same command continues where it left off"
UPDATES = 180
WORDS = ["llm2llm", "--seed-examples", "6", "--rounds", "1", "--epochs", "60", "--batch-size", "2"]
WORDS += ["--micro-batch-size", "2", "--arms", "fine-tune"]


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """A run that is little more than one training."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 12), ("test", 4)):
        drawn = Arithmetic().load(split, None, 5)[:count]
        rows = [{"id": e.id, "question": e.question, "answer": e.answer} for e in drawn]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [*WORDS, "--train-file", str(folder / "train.jsonl"), "--test-file", str(folder / "test.jsonl")]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(
        [sys.executable, "run.py", *words, "--run-dir", folder], cwd=ROOT, check=True, capture_output=True
    )
    return folder


def updates(folder: pathlib.Path) -> int:
    """How many updates are logged so far."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.long
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_asked_to_stop_stores_its_state(words, whole, tmp_path, number, status):
    """In the middle of an update loop whose state is not due for minutes. Every update before it is logged once,
    and what the second process ends with is what one process would have."""
    folder = tmp_path / "run"
    ended, said = signalled([*words, "--run-dir", str(folder)], lambda: updates(folder) > 9, number)
    assert ended == status, said
    assert said.splitlines()[-1].endswith("the same command continues where it left off")
    assert "Traceback" not in said
    assert (said.strip().splitlines()[-1:] == [LINE]) == (number == signal.SIGTERM)
    (state,) = folder.glob("**/training_state")
    assert not (state.parent / "student").exists()
    assert 9 < updates(folder) < UPDATES
    check_ends([*words, "--run-dir", str(folder)], folder, whole)


@pytest.mark.long
def test_a_run_kept_elsewhere_goes_on_where_its_machine_was_taken_away(words, whole, tmp_path):
    """The run directory is a URL. Within the training comes SIGTERM, then SIGKILL, which leaves the lock behind;
    both times the mirror is gone with its machine. The last process ends with the same bytes."""
    away, url = tmp_path / "away", f"file://{tmp_path / 'away'}"
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    mirror = lambda: next((tmp_path / "cache/seedloop/runs").glob("away-*/run"), tmp_path)
    ended, said = signalled([*words, "--run-dir", url], lambda: updates(mirror()) > 9, signal.SIGTERM, env)
    assert (ended, said.strip().splitlines()[-1]) == (143, LINE)
    assert not (away / ".seedloop.lock").exists()
    assert any(away.glob("**/training_state/**/manifest.ocdbt*"))
    stored = updates(away)
    shutil.rmtree(tmp_path / "cache")
    signalled([*words, "--run-dir", url], lambda: updates(mirror()) > stored + 9, signal.SIGKILL, env)
    assert (away / ".seedloop.lock").exists()
    shutil.rmtree(tmp_path / "cache")
    check_ends([*words, "--run-dir", url], away, whole, env)


def test_a_call_from_a_notebook_leaves_the_handlers_alone(tmp_path, monkeypatch):
    """Only `run.py` as a command of its own listens."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    import run

    with pytest.raises(SystemExit):
        run.main(["llm2llm", "--seed-examples", "no"])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_does_not_wait(monkeypatch):
    """Within a deferred block the first leaves a mark, and the second ends the block."""
    monkeypatch.setattr(stopping, "_came", None)
    reached = []

    def work():
        with stopping.deferred():
            stopping._handle(signal.SIGTERM, None)
            reached.append(stopping.asked(1))
            stopping._handle(signal.SIGTERM, None)
            reached.append("after the second")

    with pytest.raises(stopping.Terminated):
        work()
    assert reached == [True]


def test_a_signal_that_waited_takes_effect_at_the_end_of_the_outer_block(monkeypatch):
    """Also where nothing in it looked for one."""
    monkeypatch.setattr(stopping, "_came", None)
    reached = []

    def work():
        with stopping.deferred():
            with stopping.deferred():
                stopping._handle(signal.SIGINT, None)
            reached.append("after the inner block")
        reached.append("after the outer block")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["after the inner block"]


KEEP_COMING = """
import os, signal
from common import stopping

stopping.listen()
print(*stopping.ended(signal.SIGTERM), flush=True)
for number in (signal.SIGTERM, signal.SIGINT):
    os.kill(os.getpid(), number)
print("the last line")
"""


def test_signals_that_keep_coming_do_not_interrupt_the_end():
    """A scheduler may send several; what is left of the process is its last line."""
    told = subprocess.check_output([sys.executable, "-c", KEEP_COMING], cwd=ROOT, text=True, timeout=60)
    assert told.splitlines() == [f"{LINE} 143", "the last line"]


WITHIN_JAX = """
import os, signal, time, traceback
from common import stopping
from common.errors import Terminated

stopping.listen()
jax = {"__name__": "jax._src.core", "os": os, "signal": signal, "time": time}
exec('''
def traced(then):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    print("JAX went on", flush=True)
    then()
''', jax)

def ours():
    time.sleep(10)

try:
    jax["traced"](ours)
except Terminated as error:
    # A line that `ours` prints could itself be what the signal finds half done.
    print("ended in", *[each.name for each in traceback.extract_tb(error.__traceback__)][:3])
"""


def test_a_signal_within_jax_waits_until_code_of_this_project_is_at_work():
    """Compiled code that calls Python may know no exceptions: one that passes through it aborts the process."""
    told = subprocess.check_output([sys.executable, "-c", WITHIN_JAX], cwd=ROOT, text=True, timeout=60)
    assert told.splitlines() == ["JAX went on", "ended in <module> traced ours"]
