"""What comes in: texts, numbers, paths and addresses that no run could end well with are refused by name, in one
line, before any work; in what others write, such as replies, they are mended."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import run
from active_inheritance.config import Config as Selecting
from active_inheritance.pools import Layout, read_pool
from common.backends.budget import Budget
from common.backends.callback import CallbackGenerator
from common.backends.chat import to_record
from common.backends.open import check_url
from common.backends.replies import Reply
from common.characters import broken, mended
from common.config import SampleConfig
from common.errors import UserError
from common.generate import Request
from common.mapping import read_mapping
from common.tasks.files import read_rows
from common.usercode import said
from llm2llm.config import Config
from reversegen.config import Config as Exploring

ROOT = pathlib.Path(__file__).parent.parent
HALF, NUL = "half a character (a lone surrogate)", "a NUL character"


def _refused(match, call, *given, **named):
    with pytest.raises(UserError, match=match) as raised:
        call(*given, **named)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


# --- texts ----------------------------------------------------------------------------------------------------


def test_broken_texts_are_found_in_any_value_and_mended():
    assert broken(["ü", {"a": ("b", "c \ud83d")}]) == HALF
    assert broken({"a\0": 1}) == NUL
    assert broken(Reply("x \udc80", None, None, 0, 0)) == HALF
    assert broken(["ü", 3, None, "\U0001f600"]) is None
    assert mended({"a": ["x \ud83d", "\0", 3]}) == {"a": ["x \ufffd", "\ufffd", 3]}


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (Config, "instruction"),
        (Config, "system"),
        (Config, "run_dir"),
        (Config, "text_column"),
        (Exploring, "label_instruction"),
        (Exploring, "transfer_targets"),
        (Selecting, "prompt_column"),
    ],
)
def test_a_setting_with_half_a_character_or_nul_is_refused_by_its_flag(kind, field):
    """From a program as from a command, whatever the setting is for."""
    for text, what in (("a \udc80 b", "half a character"), ("a\0b", "a NUL")):
        value = (text,) if field.endswith("s") else text
        _refused(f"--{field.replace('_', '-')} holds {what}", kind, **{field: value})


@pytest.mark.parametrize("words", ["status runs/\udc80", "llm2llm --run-dir x\udc80", "nothing\udc80"])
def test_a_word_of_a_command_that_is_no_utf_8_is_refused(words):
    _refused("a word of the command holds half a character", run._method, words.split())


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"id": "\ud83d", "text": "a"}, r"row 1: field 'id' holds half a character"),
        ({"text": "a", "choices": ["b", "\ud83d"]}, "row 1: field 'choices' holds half a character"),
        ({"text": "a\0"}, "row 1: field 'text' holds a NUL character"),
        ({"\ud83d": "a"}, "holds half a character"),
    ],
)
def test_a_row_with_half_a_character_is_refused_with_file_row_and_field(row, says, tmp_path):
    for name, text in (("rows.jsonl", json.dumps(row)), ("rows.json", json.dumps([row]))):
        (tmp_path / name).write_text(text)
        _refused(f"{name} {says}" if says[0] == "r" else says, read_rows, tmp_path / name)


def test_of_a_pool_every_text_is_mended(tmp_path):
    """Models wrote them, and they are many."""
    file = tmp_path / "pool.jsonl"
    file.write_text(json.dumps({"id": "\ud83d", "prompt": "p\0", "completion_0": "a \ud83d", "completion_1": "b"}))
    (group,) = read_pool(file, Layout())
    assert (group.id, group.prompt) == ("\ufffd", "p\ufffd")
    assert [answer.text for answer in group.answers] == ["a \ufffd", "b"]


def test_files_of_keys_with_half_a_character_are_refused(tmp_path):
    for name in ("t.json", "t.yaml"):
        (tmp_path / name).write_text('{"name": "x", "labels": ["a", "\\ud83d"]}')
        _refused(f"{name}: 'labels' holds half a character", read_mapping, tmp_path / name, "")


def test_replies_are_mended_wherever_they_come_from():
    """Also one that was stored before, so that it does not come back at every restart."""
    asked = Request("i", ({"role": "user", "content": "?"},))
    record = to_record(asked, 0, [Reply("a \ud83d", "stop", None, 1, 1)])
    assert record is not None
    assert record.text == "a \ufffd"
    refused = to_record(asked, 0, [Reply(None, "stop", "no \ud83d", 1, 1)])
    assert refused is not None
    assert refused.error == "refused: no \ufffd"
    generator = CallbackGenerator("python:t.py:f", lambda messages: "b \ud83d")
    ((record,),) = generator.generate([asked], SampleConfig(), 0)
    assert record.text == "b \ufffd"
    assert said(ValueError("c \ud83d")) == "ValueError: c \ufffd"


# --- numbers --------------------------------------------------------------------------------------------------


def _numbers(kind):
    for field in dataclasses.fields(kind):
        if field.type in ("int", "float", "int | None", "float | None", int, float, int | None, float | None):
            yield field.name


@pytest.mark.parametrize("kind", [Config, Exploring, Selecting])
def test_no_number_of_a_setting_may_be_infinite_or_endless(kind):
    """Every one of them, those of later versions too."""
    names = list(_numbers(kind))
    assert len(names) > 20
    for name in names:
        for value in (float("nan"), float("inf"), -float("inf"), 1e308, 10**30, 1e-300):
            _refused(f"--{name.replace('_', '-')} must be", kind, **{name: value})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epochs": 1e308}, "--epochs must be at most 10000, not 1e[+]308: no training needs as many passes"),
        ({"batch_size": 10_000_000}, "--batch-size must be at most 65536, not 10000000: an update's examples are"),
        ({"learning_rate": 1e308}, "--learning-rate must be at most 10,"),
        ({"student_temperature": 1e-300}, "--student-temperature must be 0 or at least 1e-09"),
    ],
)
def test_an_upper_limit_has_a_reason(change, says):
    _refused(says, Config, **change)


@pytest.mark.parametrize("weights", ["nan,1", "inf,1", "1e-320,1", "1e300,1"])
def test_weights_of_objectives_are_bounded_likewise(weights):
    config = Selecting(objective=("words:max", "ttr:max"), weights=tuple(weights.split(",")))
    _refused("--weights must be", lambda: config.rule)


def test_budgets_and_prices_are_bounded_likewise():
    for text in (f"calls={'9' * 400}", "usd=inf", "usd=nan", "tokens=0"):
        _refused("must be above 0 and at most", Budget.parse, text, "1,1")
    for price in ("nan,1", "1e308,1", "1,inf"):
        _refused("must not be below 0, nor above", Budget.parse, "calls=3", price)


def test_an_infinite_cell_is_no_text(tmp_path):
    from common.tasks.files import require

    (tmp_path / "rows.jsonl").write_text('{"text": 1e999}')
    ((row, place),) = read_rows(tmp_path / "rows.jsonl")
    _refused("row 1: field 'text' is infinite", require, row, "text", place)


# --- addresses, paths, the machine ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["http://[::1/v1", "http://a:99999/v1", "http://a:x/v1", "http://a b/v1", "ftp://a", "a", "http://"]
)
def test_a_malformed_address_is_one_line(url):
    _refused("--teacher-url is no address", check_url, url, "--teacher-url", "OPENAI_API_KEY")


@pytest.mark.parametrize(
    "words",
    [
        "llm2llm --student {long} --dry-run",
        "llm2llm --train-file {long} --dry-run",
        "llm2llm --run-dir {long} --dry-run",
        "status {long}",
        "llm2llm --config {folder}",
        "reversegen --general-file /proc/self/mem --dry-run",
    ],
)
def test_a_path_that_the_system_refuses_is_one_line(words, tmp_path):
    """A name of more than 255 letters, a folder in the place of a file, a file that cannot be read."""
    argv = words.format(long="x" * 300, folder=tmp_path).split()
    _refused(r"cannot use|cannot be read", run._method, argv)


def test_links_that_lead_nowhere_are_missing_files(tmp_path):
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.jsonl").symlink_to(tmp_path / "round.jsonl")
    for name in ("gone", "round"):
        _refused("no such file", read_rows, tmp_path / f"{name}.jsonl")


@pytest.mark.parametrize(
    ("name", "value"), [("JAX_PLATFORMS", "cuda"), ("JAX_PLATFORMS", "abacus"), ("JAX_NUM_CPU_DEVICES", "x")]
)
def test_what_keeps_jax_from_starting_is_one_line(name, value):
    done = subprocess.run(
        [sys.executable, "run.py", "llm2llm", "--mesh", "data=1", "--dry-run"],
        cwd=ROOT,
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    told = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(rf"error: JAX cannot start \(.+\): fix or unset .*{name}={value}.*", told)
    assert "Traceback" not in done.stderr


def test_a_terminal_without_an_encoding_for_a_text_gets_a_sign_in_its_place():
    done = subprocess.run(
        [sys.executable, "run.py", "llm2llm", "--student", "modèle-ü"],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "mod?le-?" in done.stderr
    assert "Traceback" not in done.stderr
