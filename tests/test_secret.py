"""Keys of the environment: what counts as one, and that none gets into a file or onto the terminal."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from common.backends.budget import Spent
from common.backends.callback import BREAKER, CallbackGenerator
from common.backends.chat import read_reply
from common.config import SampleConfig
from common.errors import UserError
from common.evals import scorers
from common.generate import Request
from common.results.dataset import DatasetCard, Field, write_dataset
from common.results.files import read_json, read_jsonl, write_json
from common.results.report import Report
from common.results.rundir import RunDir
from common.secret import masked
from common.stages import collect
from killing import ROOT

KEY = 'sk-live/0123+4567"89'
"""With characters that JSON, addresses and Markdown write in another way."""
NUMBER = "1234567890"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def check_clean(folder: Path) -> None:
    """No file below `folder` holds a part of KEY."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    for file in files:
        for part in (b"sk-live", b"0123+4567", b"0123%2B4567"):
            assert part not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("name", "value", "text", "shown"),
    [
        ("HF_TOKEN", "hf_abcdefgh", "Bearer hf_abcdefgh", "Bearer [key]"),
        ("HUGGING_FACE_HUB_TOKEN", " hf_abcdefgh\n", "b'hf_abcdefgh\\n'", "b'[key]\\n'"),
        ("PERSPECTIVE_API_KEY", "first-half\nother-half", "first-half other-half", "[key] [key]"),
        ("AWS_SECRET_ACCESS_KEY", "ab/cd+ef=0", "?key=ab%2Fcd%2Bef%3D0&n=1", "?key=[key]&n=1"),
        ("my_client_secret", 'quote"quote', json.dumps({"a": 'quote"quote'}), '{"a": "[key]"}'),
        (
            "HTTPS_PROXY",
            "http://me:pass%20word@host:1",
            "proxy me:pass%20word@ (pass word)",
            "proxy me:[key]@ ([key])",
        ),
        ("PGPASSWORD", "shorter", "a shorter text", "a shorter text"),
        ("VLLM_API_KEY", "placeholder", "a placeholder", "a placeholder"),
        ("SOME_VARIABLE", "no secret at all", "no secret at all", "no secret at all"),
        ("DOCS_URL", "https://example.org/a:b@c", "https://example.org/a:b@c", "https://example.org/a:b@c"),
    ],
)
def test_what_a_key_is_and_in_which_forms_it_is_found(monkeypatch, name, value, text, shown):
    assert masked(text) == text
    monkeypatch.setenv(name, value)
    assert masked(text) == shown


def test_of_two_keys_the_longer_is_masked_as_a_whole(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("OTHER_TOKEN", "hf_abcdefgh-and-more")
    assert masked("hf_abcdefgh-and-more hf_abcdefgh") == "[key] [key]"


def _bad_at_times(messages):
    if "q1" in messages[0]["content"]:
        raise RuntimeError(f"401 bad key {KEY}")
    return f"Your key is {KEY}."


def test_what_a_users_function_says_is_masked_in_records_and_messages(tmp_path):
    requests = [Request(f"r{i}", ({"role": "user", "content": f"q{i}"},), 1) for i in range(3)]
    with RunDir.open(tmp_path, "llm2llm", {"instruction": f"Say {KEY}", KEY: 1}) as run:
        made = CallbackGenerator("mine", _bad_at_times)
        records = collect(run, "teacher.jsonl", made, requests, SampleConfig(), 0)
        run.metrics("train").log(0, note=KEY, loss=1.5)
        assert collect(run, "teacher.jsonl", made, requests, SampleConfig(), 0) == records
    assert records[1].error == "RuntimeError: 401 bad key [key]"
    assert records[0].text == "Your key is [key]."
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"stage": "train", "step": 0, "note": "[key]", "loss": 1.5}]
    check_clean(tmp_path)
    RunDir.open(tmp_path, "llm2llm", {"instruction": f"Say {KEY}", KEY: 1}).close()  # the same configuration
    always = CallbackGenerator("mine", lambda messages: _bad_at_times([{"content": "q1"}]))
    with pytest.raises(UserError, match=rf"failed {BREAKER} times in a row, the last with: .* bad key \[key\];"):
        list(always.generate(requests * BREAKER, SampleConfig(), 0))


def test_a_number_with_the_digits_of_a_key_stays_a_number(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", NUMBER)
    write_json(tmp_path / "a.json", {"n": int(NUMBER), "text": f"= {NUMBER}", "list": [f"{NUMBER}0", 0.1]})
    assert read_json(tmp_path / "a.json") == {"n": int(NUMBER), "text": "= [key]", "list": ["[key]0", 0.1]}


def test_files_without_a_key_are_the_same_with_and_without_one_in_the_environment(tmp_path, monkeypatch):
    value = {"b": [1, 1e-9, None, "ü \ud800"], "a": {"c": "sk-live", "d": NUMBER}}
    write_json(tmp_path / "with.json", value)
    monkeypatch.delenv("OPENAI_API_KEY")
    write_json(tmp_path / "without.json", value)
    assert (tmp_path / "with.json").read_bytes() == (tmp_path / "without.json").read_bytes()


def test_reports_and_data_sets_are_clean(tmp_path):
    report = Report(f"Of {KEY}")
    report.add_table(f"With {KEY}", ["a"], [[KEY]])
    report.add_examples("Texts", ["a"], [[f"<b>{KEY}</b>"]])
    report.write(tmp_path / "report.html")
    card = DatasetCard(f"Of {KEY}", f"By {KEY}", {"text": Field("string", KEY)}, KEY, counts={KEY: 1})
    write_dataset(tmp_path / "dataset", [{"text": f"a {KEY}"}, {"text": None}], card)
    check_clean(tmp_path)
    (file,) = (tmp_path / "dataset" / "data").iterdir()
    assert pyarrow.parquet.read_table(file).to_pylist() == [{"text": "a [key]"}, {"text": None}]


def test_replies_of_a_server_are_masked_before_they_are_stored():
    body = json.dumps({"choices": [{"message": {"content": f"a {KEY}"}, "finish_reason": "stop"}]})
    assert read_reply(body, Spent(1, 1, 1)).text == "a [key]"
    with pytest.raises(ValueError, match="not a chat completion") as raised:
        read_reply(json.dumps({"error": "x" * 170 + KEY}), Spent(1, 1, 1))
    assert "sk-" not in str(raised.value)  # cut after it was masked


@pytest.mark.parametrize(
    "value", ["per-spective\n0123456789", "perspective 0123456789", "perspective-\u00e9t\u00e9"]
)
def test_a_key_that_cannot_be_sent_is_found_before_work_and_not_shown(monkeypatch, value):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", value)
    with pytest.raises(UserError, match="PERSPECTIVE_API_KEY holds characters that no key has") as raised:
        scorers.check_scorer("perspective:")
    assert "0123456789" not in str(raised.value)
    assert "\u00e9" not in str(raised.value)


def test_a_key_within_an_address_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "perspective-key")
    with pytest.raises(UserError, match="would be stored: use PERSPECTIVE_API_KEY") as raised:
        scorers.check_scorer("perspective:https://example.org/v1?key=AIza0123456789")
    assert "AIza" not in str(raised.value)


def test_all_that_a_process_prints_is_masked():
    code = (
        "import os, sys, warnings, logging\n"
        "from common.secret import mask_output\n"
        "mask_output()\n"
        "key = os.environ['OPENAI_API_KEY']\n"
        "print('said', key)\n"
        "sys.stdout.writelines([key, '\\n'])\n"
        "warnings.warn('careful ' + key)\n"
        "logging.getLogger('a').warning('logged %s', key)\n"
        "assert not sys.stderr.isatty() and sys.stdout.fileno() == 1\n"
        "raise RuntimeError('bad ' + key)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stdout == "said [key]\n[key]\n"
    for line in ("careful [key]", "logged [key]", "RuntimeError: bad [key]"):
        assert line in done.stderr
    assert "sk-live" not in done.stderr


def test_a_run_whose_teacher_tells_its_key_leaves_it_nowhere(tmp_path):
    """From the command line: a teacher that fails at every third call, and one that always does."""
    for split, numbers in (("train", range(12)), ("test", range(20, 24))):
        rows = [f"{noun} number {i} runs,{noun}" for i in numbers for noun in ("cat", "dog")]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "teacher.py").write_text(
        "import itertools, os\n"
        "calls = itertools.count(1)\n"
        "def write(messages):\n"
        "    n = next(calls)\n"
        "    if n % 3 == 0:\n"
        "        raise RuntimeError('401 bad key ' + os.environ['OPENAI_API_KEY'])\n"
        "    return f'Text: {n} cats run with ' + os.environ['OPENAI_API_KEY'] + '\\nLabel: cat'\n"
        "def fail(messages):\n"
        "    raise RuntimeError('401 bad key ' + os.environ['OPENAI_API_KEY'])\n"
    )
    flags = "--task text --seed-examples 4 --rounds 2 --per-wrong 2 --max-attempts 1 --target all --epochs 1"
    flags += " --label-check none --rouge-l 1 --batch-size 8 --arms llm2llm"
    for name, status in (("write", 0), ("fail", 2)):
        words = [*flags.split(), "--run-dir", str(tmp_path / "runs" / name)]
        words += ["--train-file", str(tmp_path / "train.csv"), "--test-file", str(tmp_path / "test.csv")]
        words += ["--teacher", f"python:{tmp_path / 'teacher.py'}:{name}"]
        command = [sys.executable, "run.py", "llm2llm", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == status, done.stderr
        assert "sk-live" not in done.stdout + done.stderr
    assert "the last with: RuntimeError: 401 bad key [key]" in done.stderr
    assert any(b"bad key [key]" in file.read_bytes() for file in (tmp_path / "runs" / "write").rglob("*.jsonl"))
    check_clean(tmp_path / "runs")
