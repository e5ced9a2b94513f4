"""A run by several processes: they end with what one ends with, and none outlives what ends another."""

import json
import os
import socket
import subprocess
import sys

import pytest

from common import hosts
from common.errors import UserError
from killing import ROOT, bytes_of

TEACHER = """
import pathlib

def write(messages):
    calls = pathlib.Path(__file__).with_name("calls")
    with calls.open("a") as file:
        file.write("x")
    return f"Text: parcel number {len(calls.read_text())} is late\\nLabel: bad"
"""


@pytest.fixture
def words(tmp_path):
    """A small run of llm2llm, whose teacher counts its calls."""
    (tmp_path / "teacher.py").write_text(TEACHER)
    rows = [{"text": f"the {thing} came {how}", "label": how} for thing in "abcdefgh" for how in ("good", "bad")]
    for name, part in (("train", rows[:12]), ("test", rows[12:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = ["--train-file", str(tmp_path / "train.jsonl"), "--test-file", str(tmp_path / "test.jsonl")]
    small = ["--seed-examples", "8", "--rounds", "2", "--per-wrong", "1", "--epochs", "1", "--label-check", "none"]
    arms = ["--arms", "fine-tune,llm2llm", "--teacher", f"python:{tmp_path / 'teacher.py'}:write"]
    return ["llm2llm", "--task", "text", *files, *small, *arms]


def started(words, folder, devices=1):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "run.py", *words, "--run-dir", str(folder)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def pair(words, folder, other=()):
    """Output, errors and status of both processes of a run; `other` are further flags of the second."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    several = [*words, "--coordinator", place, "--processes", "2", "--process"]
    both = [started([*several, "0"], folder), started([*several, "1", *other], folder)]
    return [(*process.communicate(timeout=500), process.returncode) for process in both]


@pytest.mark.long
def test_two_processes_end_with_the_artifacts_of_one(words, tmp_path):
    """The one computes on the same mesh, of two devices. The second process writes nothing and asks nobody."""
    one = started([*words, "--mesh", "data=2"], tmp_path / "one", devices=2)
    _, said = one.communicate(timeout=500)
    assert one.returncode == 0, said
    calls = (tmp_path / "calls").read_text()
    (tmp_path / "calls").unlink()
    (printed, said, status), (silent, _, other) = pair(words, tmp_path / "two")
    assert (status, other) == (0, 0), said
    assert (tmp_path / "calls").read_text() == calls
    assert "test questions" in printed
    assert "test questions" not in silent
    wanted, found = bytes_of(tmp_path / "one"), bytes_of(tmp_path / "two")
    assert [name for name in wanted | found if wanted.get(name) != found.get(name)] == []


def test_what_one_process_cannot_do_ends_all_with_one_line(words, tmp_path):
    """Here the second one was started with another seed."""
    (_, said, status), (_, _, other) = pair(words, tmp_path / "run", ("--seed", "7"))
    assert (status, other) == (2, 2)
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert errors == [
        "error: process 1 has another seed than process 0: give all of them the same flags and files (process 1)"
    ]
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("localhost:1234", 2, None), "go together"),
        (("localhost", 2, 0), "no HOST:PORT"),
        (("localhost:99999", 2, 0), "no HOST:PORT"),
        (("localhost:1234", 2, 2), "between 0 and 1"),
    ],
)
def test_flags_that_name_no_process_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        hosts.check(*given)


def test_launchers_of_several_processes_are_known_by_their_environment(monkeypatch):
    """A job of one process has nobody to wait for, nor has a script of SLURM's outside of srun."""
    slurm = ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS")
    for name in (*slurm, "OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    assert hosts.cluster() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert hosts.cluster() is None
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-4]")
    assert hosts.cluster() == "SLURM"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert hosts.cluster() == "TPU"
    # Open MPI 5 no longer says where the first process is: each would go on alone, as if there were no others.
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"give each --coordinator HOST:PORT"):
        hosts.cluster()
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1:34911")
    assert hosts.cluster() == "Open MPI"


def test_one_process_shares_with_itself(tmp_path):
    """It keeps its own folder and its own values, and a user's mistake is raised where it was made."""
    assert hosts.share(lambda: (1, 2)) == (1, 2)
    assert hosts.share_folder(tmp_path) == tmp_path
    hosts.forget(tmp_path)
    assert tmp_path.exists()
    assert (hosts.count(), hosts.index(), hosts.is_writer()) == (1, 0, True)
