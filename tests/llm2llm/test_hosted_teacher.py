"""The whole loop with a hosted teacher: bought once over a kill, ended by its budget, kept if the server fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.backends.replies import Replies
from common.errors import UserError
from common.results.files import read_json, read_jsonl
from fault_server import FaultServer
from llm2llm.config import Config
from llm2llm.experiment import run
from llm2llm.summary import Chosen, chosen_rounds

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("animals")
    for split, numbers in (("train", range(12)), ("test", range(20, 24))):
        lines = ["text,label", *(f"{noun} number {i} runs,{noun}" for i in numbers for noun in ("cat", "dog"))]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return {f"{split}_file": str(folder / f"{split}.csv") for split in ("train", "test")}


@pytest.fixture
def quick(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    monkeypatch.setattr("common.backends.endpoint.PAUSE", 0.0)


def settings(server, files, folder, **change):
    """Three rounds on four seeds; the server answers every request with its own last line as a new text."""
    values = {
        "task": "text",
        "teacher": "openai:m",
        "teacher_url": server.url,
        "seed_examples": 4,
        "rounds": 3,
        "per_wrong": 2,
        "max_attempts": 1,
        "target": "all",
        "label_check": "none",
        "show_wrong_answer": False,
        "rouge_l": 1.0,
        "epochs": 1.0,
        "batch_size": 8,
        "arms": ("llm2llm", "untargeted"),
        "run_dir": str(folder / "run"),
    }
    return Config(**values | files | change)


def words(config):
    """`config` as a command line."""
    result = [sys.executable, "run.py", "llm2llm"]
    for name, value in vars(config).items():
        default = type(config).__dataclass_fields__[name].default
        if value == default:
            continue
        flag = "--" + name.replace("_", "-")
        if value is False:
            result.append(flag.replace("--", "--no-", 1))
        else:
            result += [flag, ",".join(value) if isinstance(value, tuple) else str(value)]
    return result


def test_killed_while_it_buys_it_pays_for_nothing_twice(files, tmp_path):
    """SIGKILL once five replies are stored; the server counts what it was paid for, message by message."""
    environment = os.environ | {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": ""}
    with FaultServer(answer="Text: {}\nLabel: cat", hold_after=5) as server:
        config = settings(server, files, tmp_path, rounds=2, per_wrong=3, arms=("llm2llm",))
        database = tmp_path / "run/replies.sqlite"
        with subprocess.Popen(words(config), cwd=ROOT, env=environment, stderr=subprocess.PIPE) as child:
            bought, deadline = 0, time.monotonic() + 300
            while bought < 5:
                assert child.poll() is None, child.stderr.read().decode()
                assert time.monotonic() < deadline
                time.sleep(0.1)
                if database.exists():
                    with Replies(database) as replies:
                        bought = replies.spent("repeat_0/llm2llm").calls
            os.kill(child.pid, signal.SIGKILL)
        server.release()
        done = subprocess.run(words(config), cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        summary = read_json(tmp_path / "run/summary.json")
        assert summary["accounting"]["llm2llm"]["teacher_calls"] == 3 * 4  # three examples for each of four seeds
        assert server.paid.total() == 12


def test_a_spent_budget_ends_the_arm_and_keeps_everything(files, tmp_path, quick):
    """20 calls for two arms: each buys a whole round of 8 and 2 of the next, learns from them, and stops."""
    with FaultServer(answer="Text: {}\nLabel: cat") as server:
        summary = run(settings(server, files, tmp_path, budget="calls=20", rounds=4))
        assert server.paid.total() == 20
    assert {entry["teacher_calls"] for entry in summary["accounting"].values()} == {10}
    rounds = [entry for entry in summary["rounds"] if entry["arm"] == "llm2llm"]
    assert [entry["teacher_calls"] for entry in rounds] == [8, 2, 0]
    assert rounds[1]["refused"]["budget spent"] == 6
    assert rounds[2]["stopped"] == "budget spent"
    assert summary["warnings"][0].startswith("the budget is spent: 6 requests were not made, for want of calls")
    assert rounds[2]["examples"] == 4 + rounds[0]["accepted"] + rounds[1]["accepted"]
    assert summary["status"] == "complete"


def test_a_student_that_dev_chose_from_an_earlier_round_is_said_to_be_that(files, tmp_path, quick):
    """With hardly any learning all rounds are equal on the development split: the first counts. What its student
    did not learn is told where it is read: by the warnings, the page and both cards."""
    files = files | {"dev_file": files["test_file"]}
    still = {"learning_rate": 1e-9, "rounds": 2, "arms": ("base", "llm2llm")}
    with FaultServer(answer="Text: one cat runs\nLabel: cat") as server:
        summary = run(settings(server, files, tmp_path, **still))
    kept = sum(entry["accepted"] for entry in summary["rounds"])
    assert kept
    assert (summary["arms"]["llm2llm"]["examples"], summary["rounds"][1]["examples"]) == ([4], 4 + kept)
    (warning,) = [line for line in summary["warnings"] if line.startswith("llm2llm, repeat 1")]
    assert warning == (
        "llm2llm, repeat 1: the development split chose round 0, a training on the seeds alone: "
        f"{kept} new examples were kept later, and not learned by the student that was tested"
    )
    assert not any("no new example" in line for line in summary["warnings"])
    late = "the development split chose the llm2llm student of round 0, which learned the seeds alone"
    card, data = ((tmp_path / "run" / name / "README.md").read_text() for name in ("model", "dataset"))
    assert f"fine-tuned on 4 seeds alone. It is not of the last round: {late}; {kept} more" in card
    assert f"in repeat 0 (from 0) {late}" in data
    assert f"In repeat 1 {late}" in (tmp_path / "run/report.html").read_text()


def test_the_tested_round_of_every_repeat_is_told_from_the_entries():
    entry = lambda repeat, number, examples, accepted, **more: {
        "arm": "llm2llm",
        "repeat": repeat,
        "round": number,
        "examples": examples,
        "accepted": accepted,
        **more,
    }
    rounds = [
        *(entry(0, 0, 4, 3, dev=0.5), entry(0, 1, 7, 5, dev=0.7), entry(0, 2, 12, 0, dev=0.7)),
        *(entry(1, 0, 4, 3), entry(1, 1, 7, 0)),
    ]
    assert chosen_rounds(rounds, "llm2llm") == [Chosen(0, 1, 3, 5), Chosen(1, 1, 3, 0)]
    assert chosen_rounds(rounds, "untargeted") == []


def test_a_failing_server_is_named_and_what_was_paid_is_kept(files, tmp_path, quick):
    """Credit runs out after the first round; with new credit the same command goes on and buys only the rest."""
    with FaultServer(faults=[None] * 8, always="402", answer="Text: {}\nLabel: cat") as server:
        config = settings(server, files, tmp_path, arms=("llm2llm",))
        with pytest.raises(UserError, match="402") as raised:
            run(config)
        assert "\n" not in str(raised.value)
        assert server.paid.total() == 8
        assert len(read_jsonl(tmp_path / "run/repeat_0/llm2llm/round_0/teacher_1.jsonl")) == 8
        server.always = None
        assert run(config)["status"] == "complete"
        assert server.paid.total() == 16
