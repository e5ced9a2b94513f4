"""Tasks that users bring: the examples of the documentation as they stand, and what is said about mistakes."""

import json
import pathlib
import re

import pytest

from common.errors import UserError
from common.tasks.base import Example, Hints
from common.tasks.registry import get_task

README = pathlib.Path(__file__).parents[2] / "common/tasks/README.md"
BARE = "class Bare(BaseException):\n    def __str__(self): raise Bare\n\n\n"
"""No Exception, and no message that can be made of it."""


def task_of(file):
    return get_task(str(file), None, "text", "label", "")


def blocks(kind):
    """The code blocks of one language in the documentation."""
    return re.findall(rf"```{kind}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_documented_yaml_task_works_as_it_stands(tmp_path):
    (tmp_path / "mail.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "mail.csv").write_text(blocks("csv")[0])
    task = task_of(tmp_path / "mail.yaml")
    examples = task.load("train", tmp_path / "mail.csv", 0)
    assert [e.label for e in examples] == ["delivery"] * 2 + ["payment"] * 2 + ["something else"] * 2
    assert all(task.correct(e.answer, e.label) for e in examples)
    assert "mail to a shop" in task.teacher_messages(examples[0])[0]["content"]
    assert task.parse_example(task.write_example(examples[0]), examples[0]).refused is None


def test_the_documented_python_tasks_work_as_they_stand(tmp_path):
    shop, dates, _ = blocks("python")
    (tmp_path / "dates.py").write_text(dates)
    (tmp_path / "dates.jsonl").write_text(blocks("json")[0])
    task = task_of(tmp_path / "dates.py")
    examples = task.load("train", tmp_path / "dates.jsonl", 0)
    assert [e.label for e in examples] == ["2024-02-29", "1999-12-31", "2021-05-10"]
    assert task.correct("29.02.2024", examples[0].label)
    assert not task.correct("28 February 2024", examples[0].label)
    told = task.teacher_messages(examples[0], Hints("tomorrow", ("Which day is it?",)))[0]["content"]
    assert "tomorrow" in told
    assert task.parse_example("Question: Which?\nAnswer: soon", examples[0]).refused == "answer cannot be read"
    (tmp_path / "shop.py").write_text(shop)
    (tmp_path / "shop.jsonl").write_text('{"problem": "How many?", "solution": "3 + 4 = 7.\\n#### 7"}')
    (example,) = task_of(tmp_path / "shop.py").load("train", tmp_path / "shop.jsonl", 0)
    assert example.label == "7"


def test_the_documented_commands_work_as_they_stand(tmp_path, monkeypatch, capsys):
    """Each file is written from the block after the sentence that names it, each command run where they lie."""
    from llm2llm.command import main

    text = README.read_text(encoding="utf-8")
    named = r"`([\w.]+\.(?:yaml|csv|py|jsonl))`[^`]*?:[^`]*\n\n```\w+\n(.*?)```"
    for name, content in re.findall(named, text, re.DOTALL):
        (tmp_path / name).write_text(content)
    commands = re.findall(r"^python run\.py llm2llm (.*--dry-run)$", text, re.MULTILINE)
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    for command in commands:
        main(command.split())
        assert "optimizer updates" in capsys.readouterr().out


def test_a_json_task_and_a_list_of_labels(tmp_path):
    keys = {"name": "n", "instruction": "i", "labels": ["a_long_label " * 5, 2], "near_duplicate": 1}
    (tmp_path / "t.json").write_text(json.dumps(keys))
    task = task_of(tmp_path / "t.json")
    assert [word for _, word in task.labels] == [" ".join(["a_long_label"] * 5), "2"]
    assert task.answer_tokens > 12
    assert task.near_duplicate == 1


GOOD = "name: n\ninstruction: i\nlabels: [a, b]\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.yaml", GOOD + "colour: red\n", "unknown key colour"),
        ("t.yaml", "name: n\nlabels: [a, b]\n", "key instruction is missing"),
        ("t.yaml", "name: n\ninstruction: i\nlabels: [a]\n", "two or more, not 1"),
        ("t.yaml", "name: n\ninstruction: i\nlabels: a\n", "labels must be a list"),
        ("t.yaml", "name: n\ninstruction: i\nlabels: [yes, no]\n", "in quotes"),
        ("t.yaml", "name: n\ninstruction: i\nlabels: [A, a]\n", "case and punctuation: A, a"),
        ("t.yaml", "name: n\ninstruction: i\nlabels: [é, e\u0301]\n", r"punctuation: e\u0301, \xe9"),
        ("t.yaml", "name: n\ninstruction: i\nlabels: [a, '!']\n", "letters or digits"),
        ("t.yaml", "name: 3\ninstruction: i\nlabels: [a, b]\n", "name must be a text, not 3"),
        ("t.yaml", GOOD + "answer_tokens: many\n", "answer_tokens must be a whole number"),
        ("t.yaml", GOOD + "near_duplicate: 1.5\n", "near_duplicate must be a number above 0"),
        ("t.yaml", GOOD + "hub_config: main\n", "hub_config needs hub_id"),
        ("t.yaml", "name: [\n", "line 2: not YAML"),
        ("t.yml", "- a\n", "must hold keys"),
        ("t.json", "{", "line 1: not JSON"),
        ("t.py", "x = 1\n", "must define TASK"),
        ("t.py", "import nothing_of_this_name\n", ", line 1 fails when it is loaded (ModuleNotFoundError: "),
        ("t.py", "\nx = (\n", ", line 2 fails when it is loaded (SyntaxError: "),
        ("t.py", "def f():\n    return 1 / 0\n\nf()\n", ", line 2 fails when it is loaded (ZeroDivisionError: "),
        ("t.py", "import sys\nsys.exit(0)\n", ", line 2 fails when it is loaded (SystemExit: 0)"),
        ("t.py", f"{BARE}raise Bare('no')\n", ", line 5 fails when it is loaded (Bare)"),
        ("t.py", f"{BARE}def __getattr__(name): raise Bare\n", "fails when TASK is looked up in it (Bare)"),
        (
            "t.py",
            f"{BARE}from common.tasks.free import FreeAnswer\nclass T(FreeAnswer):\n"
            "    def __init_subclass__(cls, **_): raise Bare\nTASK = T('n', 'i')\n",
            "TASK fails when its members are read (Bare)",
        ),
        ("t.py", "TASK = 3\n", "TASK lacks name, kind, reply_fields"),
        ("t.py", "from common.tasks.free import FreeAnswer as TASK\n", "make an instance"),
        (
            "t.py",
            "from common.tasks.free import FreeAnswer\nTASK = FreeAnswer('n', 'i', kind='word')\n",
            "kind of TASK is 'word'",
        ),
        (
            "t.py",
            "from common.tasks.free import FreeAnswer\nclass T(FreeAnswer):\n    def parse(self): return ''\n"
            "TASK = T('n', 'i')\n",
            "parse of TASK: too many positional arguments",
        ),
        (
            "t.py",
            "from common.tasks.free import FreeAnswer\nTASK = FreeAnswer('n', 'i', answer_tokens=0)\n",
            "answer_tokens of TASK must be",
        ),
        (
            "t.py",
            "from common.tasks.free import FreeAnswer\nclass T(FreeAnswer): choices = 'ab'\nTASK = T('n', 'i')\n",
            "choices of TASK is 'ab': it must be a tuple of texts",
        ),
        (
            "t.py",
            "from common.tasks.free import FreeAnswer\nclass T(FreeAnswer):\n    @property\n"
            "    def choices(self): raise SystemExit(0)\nTASK = T('n', 'i')\n",
            "TASK fails when its members are read (SystemExit: 0)",
        ),
    ],
)
def test_mistakes_are_one_line_with_the_file(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        task_of(tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("body", "call", "message"),
    [
        (
            "def correct(self, text, label): pass",
            ("correct", "a", "b"),
            "correct of TASK gave None: it must give",
        ),
        ("def parse(self, text): exit()", ("parse", "a"), "parse of TASK failed (SystemExit"),
        ("def parse(self, text): raise GeneratorExit", ("parse", "a"), "parse of TASK failed (GeneratorExit"),
        ("def parse(self, text): raise Bare", ("parse", "a"), "parse of TASK failed (Bare"),
        ("def parse(self, text): return 3", ("parse", "a"), "parse of TASK gave 3: it must give str or None"),
        ("def messages(self, question): return ('ask',)", ("messages", "q"), "gave ('ask',): it must give tuple["),
        (
            "def load(self, split, file, seed): return [Example('1', 'q', 'a', 3, '')]",
            ("load", "dev", None, 0),
            "it must give list[Example]",
        ),
        (
            "def parse(self, text): return 'half \\ud83d'",
            ("parse", "a"),
            "parse of TASK gave a text with half a character",
        ),
        ("def messages(self, question): 1 / 0", ("messages", "q"), "messages of TASK failed (ZeroDivisionError"),
        ("def load(self, split, file, seed): raise UserError('row 3: no')", ("load", "dev", None, 0), "row 3: no"),
    ],
)
def test_a_method_of_a_task_that_fails_or_exits_is_one_line_with_the_file(tmp_path, body, call, message):
    """Called by name and through another method; the class stays its own, and so do its siblings."""
    from common.tasks.free import FreeAnswer

    (tmp_path / "t.py").write_text(
        "from common.errors import UserError\nfrom common.tasks.base import Example\n"
        "from common.tasks.free import FreeAnswer\n"
        f"{BARE}class T(FreeAnswer):\n    {body}\nTASK = T('n', 'i')\n"
    )
    task = task_of(tmp_path / "t.py")
    name, *given = call
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        getattr(task, name)(*given)
    assert "\n" not in str(raised.value)
    assert isinstance(task, FreeAnswer)
    assert FreeAnswer("n", "i").correct("a", "a")


def test_a_missing_file_and_a_row_that_does_not_fit(tmp_path):
    with pytest.raises(UserError, match=r"no such file: nowhere\.py"):
        task_of("nowhere.py")
    (tmp_path / "t.yaml").write_text(GOOD)
    (tmp_path / "t.jsonl").write_text('{"text": "x", "label": "c"}\n')
    with pytest.raises(UserError, match=r"row 1: label 'c' is not one of the task's: a, b"):
        task_of(tmp_path / "t.yaml").load("train", tmp_path / "t.jsonl", 0)
    with pytest.raises(UserError, match="give --test-file"):
        task_of(tmp_path / "t.yaml").load("test", None, 0)


def test_two_files_of_one_name_do_not_mix(tmp_path):
    code = "from common.tasks.free import FreeAnswer\nTASK = FreeAnswer({!r}, 'i')\n"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.py").write_text(code.format(name))
    first, second = (task_of(tmp_path / name / "t.py") for name in ("one", "two"))
    assert (first.name, second.name) == ("one", "two")
    assert first.load("dev", None, 0) == []
    assert isinstance(first.teacher_messages(Example("x", "q", "a", "a", "all")), tuple)


def test_the_documented_teacher_teaches_the_documented_task(tmp_path, monkeypatch, capsys):
    """Its replies are read, none repeats another beyond the limit, and its own answers agree with them."""
    from common.backends.callback import CallbackGenerator
    from common.config import SampleConfig
    from common.generate import Request
    from common.text.filters import KnownTexts
    from common.usercode import load_callable

    text = README.read_text(encoding="utf-8")
    for name in ("dates.py", "dates.jsonl", "clock.py"):
        (tmp_path / name).write_text(
            re.search(rf"`{name}`[^`]*?(?:`[^`]*`[^`]*)?:?\n\n```\w+\n(.*?)```", text, re.S)[1]
        )
    task = task_of(tmp_path / "dates.py")
    seeds = task.load("train", tmp_path / "dates.jsonl", 0)
    write = load_callable(f"python:{tmp_path / 'clock.py'}:write")
    requests = [Request(f"{i}", task.teacher_messages(seeds[i % 3])) for i in range(12)]
    batches = CallbackGenerator("t", write).generate(requests, SampleConfig(), 0)
    made = [task.parse_example(record.text, seeds[0]) for batch in batches for record in batch]
    assert [new.refused for new in made] == [None] * 12
    known = KnownTexts(task.near_duplicate)
    kept = 0
    for new in made:
        assert task.correct(write(list(task.messages(new.question))), new.label)
        kept += known.near(new.question) is None
        known.add(new.question)
    assert kept >= 3


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("from common.errors import UserError", "from seedloop.common.errors import UserError"),
        ("from  common.errors import UserError", "from seedloop.common.errors import UserError"),
        ("if 1: from reversegen.judge import Verdict", "if 1: from seedloop.reversegen.judge import Verdict"),
        ("from common.helpers import clean", "from common.helpers import clean"),
        ('text = "from common.errors import x"', 'text = "from common.errors import x"'),
    ],
)
def test_a_users_file_means_our_modules_where_seedloop_is_installed_and_his_own_elsewhere(source, read):
    """The user's own package may be called common too."""
    from common.usercode import imports_below

    assert imports_below("seedloop.", source) == read
    assert imports_below("", source) == source
