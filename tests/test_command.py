"""The command line: fast, one line for a mistake, status 2."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from common.cli import flag, parse
from common.errors import UserError
from llm2llm.config import Config
from llm2llm.plan import plan

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Small:
    count: int = flag(3, "how many")
    rate: float | None = flag(None, "how fast, 50% or more")
    names: tuple[str, ...] = flag(("a", "b"), "which")
    kind: Literal["x", "y"] = flag("x", "what")
    quick: bool = flag(False, "hurry")


def test_flags_are_the_fields_of_the_dataclass():
    assert parse(Small, [], "p") == Small()
    words = "--count 5 --rate 0.5 --names c,d --kind y --quick".split()
    assert parse(Small, words, "p") == Small(5, 0.5, ("c", "d"), "y", True)


@pytest.mark.parametrize("words", ["--count x", "--kind z", "--unknown 1", "--count", "stray", "--coun 3"])
def test_a_bad_flag_is_one_line_and_leaves_the_process_alone(words, capsys):
    """A library call may parse flags too: only a command turns the error into status 2."""
    with pytest.raises(UserError, match=r"; see p --help$") as raised:
        parse(Small, words.split(), "p")
    assert "\n" not in str(raised.value)
    assert capsys.readouterr().err == ""


def test_help_shows_every_default(capsys):
    with pytest.raises(SystemExit) as raised:
        parse(Small, ["--help"], "p")
    assert raised.value.code == 0
    text = capsys.readouterr().out
    assert "(default: 3)" in text
    assert "(default: a,b)" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "--rounds must be above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be above 0"),
        ({"arms": ("llm2llm", "x")}, "unknown arm x"),
        ({"arms": ("fine-tune-matched",)}, "add llm2llm"),
        ({"rouge_l": 1.5}, "--rouge-l"),
        ({"train_file": "nowhere.jsonl"}, "no such file: nowhere.jsonl"),
        ({"teacher": "pool:nowhere.jsonl"}, "no such file: nowhere.jsonl"),
        ({"teacher": f"pool:{__file__}", "label_check": "resolve"}, "solves nothing again"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(UserError, match=message) as raised:
        Config(**change).resolved()
    assert "\n" not in str(raised.value)


def test_plan_counts_updates_and_warns_below_ten():
    lines = dict(plan(Config().resolved()))
    # 60 seeds in batches of 12, twice
    assert lines["fine-tune"].startswith("at most 10 optimizer updates")
    assert "warning" not in lines
    assert "warning" in dict(plan(Config(epochs=1).resolved()))


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ("--help", 0, "llm2llm"),
        ("llm2llm --help", 0, "--seed-examples"),
        ("nothing", 2, "unknown method"),
        ("llm2llm --rounds x", 2, "invalid int"),
        ("llm2llm --task nothing", 2, "unknown task"),
        ("llm2llm --task trec --train-file no.jsonl", 2, "no such file"),
        ("llm2llm --dry-run", 0, "optimizer updates"),
    ],
)
def test_the_command_answers_without_loading_jax(words, status, says):
    """Run with jax made unimportable: whatever answers cannot have loaded it."""
    code = (
        "import sys; sys.modules.update(jax=None, transformers=None, numpy=None, flax=None); "
        "sys.path.insert(0, '.'); import run; run.main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    assert says in done.stdout + done.stderr
    if status == 2:
        assert done.stderr.count("\n") == 1


def _command(body, tmp_path, monkeypatch):
    """run.py with a method that does what `body` says."""
    import run

    (tmp_path / "method_of_a_test.py").write_text(f"import errno, sys\ndef main(argv):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "method_of_a_test", raising=False)
    monkeypatch.setitem(run.METHODS, "llm2llm", ("method_of_a_test", ""))
    return run.main


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("raise __import__('common.errors').errors.UserError('bad row 3')", 2, "error: bad row 3"),
        ("raise OSError(errno.ENOSPC, 'full', 'runs/x')", 2, "error: the disk is full (runs/x): free space"),
        ("raise KeyboardInterrupt", 130, "stopped; the same command continues"),
    ],
)
def test_what_ends_a_command_is_one_line(body, status, says, tmp_path, monkeypatch, capsys):
    """Also without arguments of its own: then flags are those of the process."""
    monkeypatch.setattr("sys.argv", ["run.py", "llm2llm"])
    for name in ("COMPILATION_CACHE_DIR", "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(f"JAX_{name}", "as it was")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    with pytest.raises(SystemExit) as raised:
        _command(body, tmp_path, monkeypatch)()
    assert raised.value.code == status
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said


def test_other_errors_are_not_hidden(tmp_path, monkeypatch):
    """A pipe that breaks elsewhere than at our output, say to another process, is an error like any other."""
    with pytest.raises(BrokenPipeError):
        _command("raise BrokenPipeError", tmp_path, monkeypatch)(["llm2llm"])


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "llm2llm --help", "llm2llm --dry-run"])
def test_a_reader_that_goes_away_ends_the_command_quietly(words, buffered):
    settings = os.environ | {"PYTHONUNBUFFERED": buffered}
    command = subprocess.Popen(
        [sys.executable, "run.py", *words.split()],
        cwd=ROOT,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    command.stdout.close()
    with command.stderr as errors:
        assert errors.read() == b""
    assert command.wait(60) in (0, 141)  # argparse takes it for the end of --help


def test_compiled_programs_are_kept_where_jax_is_told_before_it_is_loaded(tmp_path):
    """The command sets what jax reads at import; what the user set already stays."""
    code = (
        "import sys, os; from common.runtime import compile_cache_environment as settings; "
        "os.environ.update(settings()); assert 'jax' not in sys.modules; import jax; c = jax.config; "
        "print(c.jax_compilation_cache_dir, c.jax_persistent_cache_min_compile_time_secs, "
        "c.jax_persistent_cache_min_entry_size_bytes)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    for more, says in (
        ({"XDG_CACHE_HOME": str(tmp_path)}, f"{tmp_path}/seedloop/jax 0.1 -1"),
        ({"JAX_COMPILATION_CACHE_DIR": "/mine", "HOME": "/x"}, "/mine 0.1 -1"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=clean | more, capture_output=True, text=True
        )
        assert done.stdout.strip() == says, done.stderr


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("text,label\na,x\nb,y\n", "text,label\na,x\nb,y\n", "has 0 training examples .2 more are dev or test"),
        ("id,text,label\n1,a,x\n1,b,y\n", "text,label\nc,x\n", "id '1' is also that of"),
        ("text,label\na,x\nb,\n", "text,label\nc,x\n", "row 2: field 'label' is empty"),
    ],
)
def test_data_that_cannot_be_used_are_refused_with_their_place(train, test, message, tmp_path):
    from llm2llm.experiment import load_data

    for name, text in (("train", train), ("test", test)):
        (tmp_path / f"{name}.csv").write_text(text)
    files = {f"{name}_file": str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    with pytest.raises(UserError, match=message) as raised:
        load_data(Config(task="text", seed_examples=2, **files).resolved())
    assert "\n" not in str(raised.value)


def test_labels_that_differ_in_signs_only_stay_apart(tmp_path):
    from common.tasks.labelled import labelled_text

    rows = {"-1": "bad", "0": "so so", "1": "good", "C": "old", "C++": "newer", "?": "unsure"}
    file = tmp_path / "t.csv"
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for label, text in rows.items()))
    task = labelled_text(file, "text", "label", "Which?")
    for label in rows:
        assert task.correct(label, label)
        assert not any(task.correct(other, label) for other in rows if other != label)
    assert task.parse("") is None
    assert task.parse("!!") is None
