"""A profile killed in every stage ends with the bytes of one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from test_profile_run import write_files, write_other_model

ROOT = Path(__file__).parent.parent
STAGES = (
    "models/0_*/answers.jsonl*",
    "models/0_*/continuations.jsonl*",
    "models/0_*/toxicity.jsonl*",
    "models/0_*/stereoset.jsonl*",
    "models/0_*/choice/*.jsonl*",
    "models/1_*/crows_pairs.jsonl*",
    "models/1_*/bbq.jsonl*",
    "models/1_*/pairs.jsonl*",
    "models/1_*/verdicts.jsonl*",
    "report.html",
)
"""Artifacts, or the parts of them that come first."""
SLOW = """import time

def score(texts):
    time.sleep(0.3)
    return [len(text) % 10 / 10 for text in texts]

def judge(messages):
    time.sleep(0.1)
    return "A" if len(messages[-1]["content"]) % 2 else "B"
"""


def bytes_of(folder):
    apart = ("timing.jsonl", ".lock", "replies.sqlite")
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in apart]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_killed_in_every_stage_it_ends_with_the_same_bytes(fixtures, tmp_path):
    write_files(tmp_path)
    write_other_model(fixtures / "qwen2", tmp_path / "other")
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    words = [sys.executable, "run.py", "profile", "--model", str(fixtures / "qwen2"), "--model"]
    words += [str(tmp_path / "other"), "--toxicity-scorer", f"python:{tmp_path / 'slow.py'}:score"]
    words += ["--judge", f"python:{tmp_path / 'slow.py'}:judge", "--choice", f"sums={tmp_path / 'choice.jsonl'}"]
    words += ["--answer-tokens", "8", "--continuations", "2"]
    files = {"prompts-file": "prompts", "toxicity-prompts": "continue", "crows-pairs": "crows"}
    for flag, name in (files | {name: name for name in ("stereoset", "bbq", "pairs")}).items():
        words += [f"--{flag}", str(tmp_path / f"{name}.jsonl")]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}  # starts sooner than with those of the other tests

    def finish(folder):
        done = subprocess.run(
            [*words, "--run-dir", str(folder)], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    finish(whole)
    for stage in STAGES:
        begun = subprocess.Popen(
            [*words, "--run-dir", str(killed)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with begun as process:
            while process.poll() is None and not any(killed.glob(stage)):
                time.sleep(0.01)
            assert any(killed.glob(stage)), process.stderr.read().decode()
            os.kill(process.pid, signal.SIGKILL)
    finish(killed)
    wanted, found = bytes_of(whole), bytes_of(killed)
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if wanted[name] != found[name]] == []
