"""Teachers served by programs that others wrote. Needs `pip install "transformers[serving]"`, PyTorch included."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from common.backends.replies import Replies
from common.tasks.arithmetic import Arithmetic
from killing import ROOT

NEEDED = ("torch", "fastapi", "uvicorn", "accelerate")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="transformers serve is not installed"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The embedded teacher behind `transformers serve`: its model name and its address."""
    folder = tmp_path_factory.mktemp("served") / "teacher"
    shutil.copytree(ROOT / "common/embedded/teacher", folder)
    # Else the server answers greedily, whatever temperature it is asked for.
    config = folder / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"do_sample": True}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    # One thread: eight requests come at a time, and the cores are shared.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
        deadline = time.monotonic() + 300
        while True:
            assert server.poll() is None, f"ended by itself: {command}"
            assert time.monotonic() < deadline
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield str(folder), f"http://127.0.0.1:{port}/v1"
        server.terminate()


def test_a_whole_run_learns_from_a_model_that_transformers_serves(served, tmp_path):
    """Every request is answered, no two replies of one prompt need be alike, and a second run buys nothing."""
    model, url = served
    drawn = Arithmetic().load("test", None, 5)[:6]
    rows = [{"id": e.id, "question": e.question, "answer": e.answer} for e in drawn]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "run.py", "llm2llm", "--teacher", f"openai:{model}", "--teacher-url", url]
    command += ["--rounds", "2", "--per-wrong", "1", "--seed-examples", "4", "--target", "all", "--epochs", "1"]
    command += [
        "--test-file",
        str(tmp_path / "test.jsonl"),
        "--arms",
        "llm2llm",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    environment = os.environ | {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": ""}
    spent = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with Replies(tmp_path / "run/replies.sqlite") as replies:
            spent.append(replies.spent("repeat_0/llm2llm"))
        summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert spent[0] == spent[1]
    assert spent[0].calls >= 4
    (folder,) = (tmp_path / "run").glob("repeat_0/llm2llm/round_0")
    records = [json.loads(line) for line in (folder / "teacher_1.jsonl").read_text().splitlines()]
    assert {record["status"] for record in records} <= {"ok", "length"}
    assert len({record["text"] for record in records}) > 1
    assert summary["status"] == "complete"
