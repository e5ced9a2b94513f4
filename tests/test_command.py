"""The command line: fast, one line for a mistake, status 2."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from common.cli import OUTPUT, TRAINING, fail, flag, item, parse
from common.errors import UserError
from common.experiment import identity
from common.results.rundir import RunDir
from common.tasks.registry import get_task
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
    run_quickly: bool = flag(True, "hurry more", OUTPUT)
    epochs: float = flag(1.0, "passes")
    learning_rate: float | None = flag(None, "peak", TRAINING)


def test_flags_are_the_fields_of_the_dataclass():
    assert parse(Small, [], "p") == Small()
    words = "--count 5 --rate 0.5 --names c,d --kind y --quick".split()
    assert parse(Small, words, "p") == Small(5, 0.5, ("c", "d"), "y", True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--count x", "argument --count: 'x' is no whole number"),
        ("--rate x", "argument --rate: 'x' is no number"),
        ("--kind z", "argument --kind: 'z' is none of x, y"),
        ("--unknown 1", "unknown flag --unknown;"),
        ("--count", "expected one argument"),
        ("stray", "stray word 'stray'"),
        ("--coun 3", "unknown flag --coun; did you mean --count?"),
        ("--run_quickly", "unknown flag --run_quickly; did you mean --run-quickly?"),
        ("--rq", "unknown flag --rq; did you mean --run-quickly?"),
    ],
)
def test_a_bad_flag_is_one_line_and_leaves_the_process_alone(words, says, capsys):
    """A library call may parse flags too: only a command turns the error into status 2."""
    with pytest.raises(UserError, match=r"; see p --help$") as raised:
        parse(Small, words.split(), "p")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert capsys.readouterr().err == ""


def test_help_shows_every_default(capsys):
    with pytest.raises(SystemExit) as raised:
        parse(Small, ["--help"], "p")
    assert raised.value.code == 0
    text = capsys.readouterr().out
    assert "(default: 3)" in text
    assert "(default: a,b)" in text


def test_help_has_headings_units_and_the_values_of_a_preset(capsys):
    """Headings in one order, whatever that of the fields; a field without one stands under the last one."""
    presets = {"paper": {"epochs": 3.0, "learning_rate": 2e-5, "quick": True}}
    texts = []
    for words in (["--help"], ["--preset", "paper", "--help"]):
        with pytest.raises(SystemExit):
            parse(Small, words, "p", presets=presets, method="m")
        texts.append(" ".join(capsys.readouterr().out.split()))
    plain, paper = texts
    assert plain.index("training: --learning-rate RATE") < plain.index("output: --run-quickly")
    assert plain.index("output:") < plain.index("--epochs PASSES passes (default: 1.0)")
    assert "--config FILE" in plain
    assert "passes (paper: 3.0)" in paper
    assert "peak (paper: 2e-05)" in paper
    assert "hurry (paper: True)" in paper
    assert "how many (default: 3)" in paper


def test_what_is_printed_is_wrapped_for_who_looks_at_it(monkeypatch, capsys):
    """By the stream that it goes to: an error in a terminal, too, where the output goes into a file."""
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        fail("--rounds is far too long for a narrow terminal")
    assert capsys.readouterr().err.splitlines() == [
        "error: --rounds is far too",
        "       long for a narrow",
        "       terminal",
    ]
    assert item("name", "what is said of it, on one line", 6) == "name  what is said of it, on one line"
    assert item("a long name", "what", 6) == "a long name  what"


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_file_gives_settings_and_flags_win_over_it(suffix, tmp_path):
    file = tmp_path / f"c{suffix}"
    text = {".json": '{"count": 7, "names": ["x,y"], "learning_rate": 1e-3, "run-quickly": false, "rate": null}'}
    file.write_text(text.get(suffix, "count: 7\nnames: ['x,y']\nlearning_rate: 1e-3\nrun-quickly: false\nrate:\n"))
    given = ["--config", str(file), "--count", "8", "--names", "z"]
    found = parse(Small, given[:2], "p", method="m")
    assert found == Small(7, None, ("x,y",), run_quickly=False, learning_rate=1e-3)
    assert parse(Small, given, "p", method="m") == dataclasses.replace(found, count=8, names=("z",))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cuont: 3", "unknown setting 'cuont'; did you mean count?"),
        ("count: 1.5", "count: 1.5 is no whole number"),
        ("count: true", "count: True is no whole number"),
        ("quick: 1", "quick: 1 is neither true nor false"),
        ("kind: z", "kind: 'z' is none of x, y"),
        ("names: [1]", r"names: \[1\] is no list of texts"),
        ("- 3", "must hold keys with values"),
        ("a: [", "line 2: not YAML"),
        ("count: 1\ncount: 2", "line 2: 'count' stands twice: keep one of them"),
        ("learning_rate: 1\nlearning-rate: 2", "'learning_rate' and 'learning-rate' are one setting"),
        ("{method: other, config: {count: 3}}", "is of 'other', not of m"),
    ],
)
def test_a_bad_file_of_settings_is_refused_in_one_line(text, says, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(text + "\n")
    with pytest.raises(UserError, match=says) as raised:
        parse(Small, ["--config", str(file)], "p", method="m")
    assert "\n" not in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_key_that_stands_twice_is_refused_wherever_keys_are_read(tmp_path):
    """Within others too; what a YAML file merges in from elsewhere may be set anew."""
    from common.mapping import read_mapping

    texts = {"a.json": '{"a": 1, "b": {"c": 1, "c": 2}}', "b.yaml": "a: 1\nb: {c: 1, c: 2}\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="'c' stands twice"):
            read_mapping(tmp_path / name, "")
    (tmp_path / "c.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, x: 2}\n")
    assert read_mapping(tmp_path / "c.yaml", "") == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize("words", [["tasks"], ["metrics"]])
def test_a_list_stays_within_the_width_of_the_terminal(words, monkeypatch, capsys):
    import run

    monkeypatch.setenv("COLUMNS", "80")
    run._method(words)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_config_json_of_a_run_given_back_is_the_same_configuration(tmp_path):
    """Of every method, whatever was resolved by then."""
    import active_inheritance.config
    import active_inheritance.profile.config
    import llm2llm.config
    import reversegen.config

    for module in (
        llm2llm.config,
        reversegen.config,
        active_inheritance.config,
        active_inheritance.profile.config,
    ):
        for preset in getattr(module, "PRESETS", {"": {}}):
            given = ["--preset", preset] if preset else []
            presets = getattr(module, "PRESETS", None)
            config = parse(module.Config, given, "p", presets=presets).resolved()
            with RunDir.open(
                tmp_path / f"{module.__name__}{preset}", "m", identity(config.stored(), [], [], {})
            ) as run:
                words = ["--config", str(run.path / "config.json")]
            assert parse(module.Config, words, "p", presets=presets, method="m").resolved() == config


def test_values_are_quoted_shortly_and_messages_end():
    """100 kB that were given by mistake hide neither what is wrong nor how to mend it."""
    long = "x" * 100_000
    for value in (long, "x " * 50_000):
        with pytest.raises(UserError) as raised:
            Config(task=value).resolved() and get_task(value)
        assert len(str(raised.value)) < 500
        assert "there are arithmetic" in str(raised.value)
    assert len(str(UserError(f"no such file: {long} (given as --x)"))) < 300
    assert str(UserError(f"{'a b ' * 10_000}: give less")).endswith(": give less")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "--rounds must be above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be a finite number"),
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
        ("--help", 0, "--version"),
        ("llm2llm --help", 0, "--version"),
        ("llm2llm --rounds 2 --version", 0, "seedloop 0"),
        ("llm2llm --help", 0, "--seed-examples"),
        ("--version", 0, "seedloop 0."),
        ("tasks", 0, "gsm8k"),
        ("metrics --help", 0, "Lists what"),
        ("metrics", 0, "share of the questions that are answered rightly"),
        ("status nowhere", 2, "nowhere holds no seedloop run (there is no such folder)"),
        ("status", 2, "status takes one folder"),
        ("status README.md", 2, "README.md holds no seedloop run (it is a file)"),
        ("llm2llm --version", 0, "seedloop 0"),
        ("status --version", 0, "seedloop 0"),
        ("llm2llm --task nothing", 2, "or a file ending in .py, .yaml or .json"),
        ("nothing", 2, "unknown method"),
        ("llm2lm", 2, "did you mean llm2llm?"),
        ("llm2llm --learning_rate 1", 2, "did you mean --learning-rate?"),
        ("llm2llm --lr 1", 2, "--learning-rate"),
        ("llm2llm --task arithmetik", 2, "did you mean arithmetic?"),
        ("llm2llm --arms llm2lm", 2, "did you mean llm2llm?"),
        ("reversegen --arms target-befor", 2, "did you mean target-before?"),
        ("llm2llm --rounds x", 2, "no whole number"),
        ("llm2llm --task nothing", 2, "unknown task"),
        ("llm2llm --task trec --train-file no.jsonl", 2, "no such file"),
        ("llm2llm --dry-run", 0, "optimizer updates"),
        ("active-inheritance --dry-run", 0, "held out"),
    ],
)
def test_the_command_answers_without_loading_jax(words, status, says):
    """Run with jax made unimportable: whatever answers cannot have loaded it. A plan needs tokenizers."""
    heavy = "jax=None, flax=None" if "--dry-run" in words else "jax=None, flax=None, transformers=None, numpy=None"
    code = f"import sys; sys.modules.update({heavy}); sys.path.insert(0, '.'); import run; run.main(sys.argv[1:])"
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
        ("raise ModuleNotFoundError('none', name='optax')", 2, "'optax' is not installed for "),
    ],
)
def test_what_ends_a_command_is_one_line(body, status, says, tmp_path, monkeypatch, capsys):
    """Also without arguments of its own: then flags are those of the process."""
    monkeypatch.setattr("sys.argv", ["run.py", "llm2llm"])
    monkeypatch.setattr("common.stopping.listen", lambda: None)  # the tests' process is not ours to end
    for name in ("COMPILATION_CACHE_DIR", "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(f"JAX_{name}", "as it was")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    with pytest.raises(SystemExit) as raised:
        _command(body, tmp_path, monkeypatch)()
    assert raised.value.code == status
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("raise BrokenPipeError", BrokenPipeError),
        ("import nothing_of_this_name", ModuleNotFoundError),
    ],
)
def test_other_errors_are_not_hidden(body, error, tmp_path, monkeypatch):
    """A pipe that breaks elsewhere than at our output, say to another process, is an error like any other; so is a
    module that is missing and that nobody was told to install."""
    with pytest.raises(error):
        _command(body, tmp_path, monkeypatch)(["llm2llm"])


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
        for said in ("{}.", "**{}**", "The label is {}.", "Label: {}", '"{}"', "{} (as it says)", "{}\nBecause."):
            assert task.parse(said.format(label)) == task.parse(label), said
    assert task.parse("") is None
    assert task.parse("!!") is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("llm2llm --run-dir .", "holds other files and no seedloop run"),
        ("llm2llm --max-length 20", "tokens with its answer, more than the limit of 20"),
        ("reversegen --max-length 30", "longer than --max-length 30"),
        ("reversegen --seeds-file {}/rows.jsonl", "rows.jsonl row 1: field 'question' or 'query' is missing"),
        ("reversegen --target {}", "holds no tokenizer"),
        ("profile --prompts-file embedded:stories --model {}/bad", "unsupported is_causal in config.json"),
        ("llm2llm --teacher {}/bad", "unsupported is_causal in config.json"),
        ("reversegen --data nothing.yaml", "given as --data"),
        ("active-inheritance --answer-tokens 511", "leaves no room for 511 tokens"),
        ("active-inheritance --profile choice=a={}/rows.jsonl", "rows.jsonl row 1: no question"),
        ("profile --model embedded:student --prompts-file embedded:stories --answer-tokens 600", "leaves no room"),
    ],
)
def test_a_plan_refuses_what_a_run_would(words, says, tmp_path):
    import run

    (tmp_path / "rows.jsonl").write_text('{"foo": "a"}\n')
    bad = pathlib.Path(
        shutil.copytree(pathlib.Path(run.__file__).parent / "common/embedded/student", tmp_path / "bad")
    )
    config = json.loads((bad / "config.json").read_text()) | {"is_causal": False}
    (bad / "config.json").write_text(json.dumps(config))
    argv = [*words.format(tmp_path).split(), "--dry-run"]
    # Not that of a default run, which a user may have made here.
    argv += [] if "--run-dir" in argv else ["--run-dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match=re.escape(says)):
        run._method(argv)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("llm2llm --run-dir {}/rows.jsonl/a/b", "rows.jsonl is a file, and"),
        ("reversegen --run-dir {}/locked/a", "locked cannot be written"),
        ("profile --run-dir {}/" + 300 * "a", "as run folder (File name too long)"),
        ("llm2llm --student ./nowhere", "no such folder: ./nowhere (given as the student)"),
        ("llm2llm --student models/nowhere", "cannot fetch models/nowhere from the hub"),
        ("reversegen --target models/nowhere", "(given as the target models/nowhere)"),
        ("active-inheritance --source nowhere", "cannot fetch nowhere from the hub"),
        ("profile --model nowhere --prompts-file embedded:stories", "cannot fetch nowhere from the hub"),
        ("llm2llm --teacher openai:m", "wants a key: set the environment variable OPENAI_API_KEY"),
        ("reversegen --labeler openai:m", "wants a key: set the environment variable OPENAI_API_KEY"),
        ("active-inheritance --source openai:m", "wants a key: set the environment variable OPENAI_API_KEY"),
        (
            "profile --model embedded:student --model embedded:teacher --prompts-file embedded:stories "
            "--judge openai:m",
            "wants a key: set the environment variable OPENAI_API_KEY",
        ),
    ],
)
def test_a_run_and_its_plan_are_refused_at_the_start_for_the_same_reason(words, says, tmp_path, monkeypatch):
    """Without a network, and without the rights of root, who may write anywhere."""
    from huggingface_hub import constants

    import run

    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path) and allowed(path, mode))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "locked").mkdir()
    (tmp_path / "rows.jsonl").write_text("")
    if "--run-dir" not in words:
        words += " --run-dir {}/run"
    argv = words.format(tmp_path).split()
    for dry in (["--dry-run"], []):
        with pytest.raises(UserError, match=re.escape(says)):
            run._method([*argv, *dry])
    assert not (tmp_path / "run").exists()


def test_a_plan_names_the_models_that_its_memory_is_without(capsys, monkeypatch, tmp_path):
    """What the hub knows is fetched by the run."""
    import huggingface_hub

    import run

    monkeypatch.setattr(huggingface_hub, "model_info", lambda name, timeout: None)
    run._method(["llm2llm", "--teacher", "my/larger", "--dry-run", "--run-dir", str(tmp_path / "run")])
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert "in training a student" in lines["memory"]
    assert lines["memory"].endswith("; without my/larger, whose shape is not known yet")
    assert "unknown" in lines["time"]


def test_a_plan_says_time_and_money(capsys, monkeypatch, tmp_path):
    import run

    monkeypatch.setattr("common.rates._kept", lambda file: {})
    monkeypatch.setenv("OPENAI_API_KEY", "sk-" + "x" * 30)
    asked = ["--teacher", "openai:m", "--teacher-price", "0.15,0.6", "--run-dir", str(tmp_path / "run")]
    run._method(["llm2llm", *asked, "--dry-run"])
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert "unknown: no run of these models" in lines["time"]
    assert "17,280 calls at most" in lines["cost"]
    assert lines["cost"].endswith(" USD")


def test_a_run_tells_its_beginning_and_its_end_where_nobody_looks(tmp_path):
    """In one file with what it found, too, the last line stands last."""
    words = "profile --model embedded:student --choice a=embedded:arithmetic --limit 4 --run-dir"
    command = [sys.executable, "run.py", *words.split(), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first, *_, last = done.stdout.splitlines()
    assert re.match(rf"profile \(seedloop [\d.]+\) begins in {tmp_path}/run: 1 repeat of choice/a", first)
    assert re.fullmatch(rf"finished in \d+:\d\d, results in {tmp_path}/run", last)
