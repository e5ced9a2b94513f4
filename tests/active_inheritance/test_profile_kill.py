"""A profile killed in every stage ends with the bytes of one that was left alone."""

import os
import subprocess
import sys

import pytest
from test_profile_run import write_files, write_other_model

from killing import ROOT, check_killed

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


@pytest.mark.long
def test_killed_in_every_stage_it_ends_with_the_same_bytes(fixtures, tmp_path):
    write_files(tmp_path)
    write_other_model(fixtures / "qwen2", tmp_path / "other")
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    words = ["profile", "--model", str(fixtures / "qwen2"), "--model"]
    words += [str(tmp_path / "other"), "--toxicity-scorer", f"python:{tmp_path / 'slow.py'}:score"]
    words += ["--judge", f"python:{tmp_path / 'slow.py'}:judge", "--choice", f"sums={tmp_path / 'choice.jsonl'}"]
    words += ["--answer-tokens", "8", "--continuations", "2"]
    files = {"prompts-file": "prompts", "toxicity-prompts": "continue", "crows-pairs": "crows"}
    for flag, name in (files | {name: name for name in ("stereoset", "bbq", "pairs")}).items():
        words += [f"--{flag}", str(tmp_path / f"{name}.jsonl")]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}  # starts sooner than with those of the other tests

    done = subprocess.run(
        [sys.executable, "run.py", *words, "--run-dir", str(tmp_path / "whole")],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    check_killed(words, tmp_path / "killed", STAGES, tmp_path / "whole", env)
