"""Tasks: problems and their recognition, grading, strict reading of replies, files."""

import json
import random
import re

import pytest

from common.errors import UserError
from common.tasks.arithmetic import Arithmetic
from common.tasks.base import Example
from common.tasks.files import read_rows
from common.tasks.grading import final_answer, same_number, wrong_equation
from common.tasks.labelled import SNIPS, TREC, labelled_text
from common.tasks.problems import SKILLS, recognise, write
from common.tasks.registry import get_task

ARITHMETIC = Arithmetic()
PARENT = Example(
    "p", "Ana has 3 pens. Ben gives Ana 4 more pens. How many pens does Ana have now?", "", "7", "add"
)


@pytest.mark.parametrize("skill", list(SKILLS))
def test_every_problem_is_recognised_with_its_answer(skill):
    rng = random.Random(1)
    for _ in range(200):
        problem = write(rng, skill)
        assert recognise(problem.question) == problem
        assert final_answer(problem.solution) == str(problem.answer)
        assert 0 <= problem.answer < 200
        # The answer is also that of the solution's last equation, read by Python instead of by us.
        last = re.findall(r"([\d+*/ -]+) = (\d+)\.", problem.solution)[-1]
        assert eval(last[0].replace("/", "//")) == int(last[1]) == problem.answer


@pytest.mark.parametrize(
    "question",
    [
        "",
        "How many?",
        "Ana has 3 pens. Ben gives Ana 4 more cups. How many pens does Ana have now?",  # things differ
        "Ana has 3 pens. Ana gives Ana 4 more pens. How many pens does Ana have now?",  # one person
        "Ana has 3 pens. Ana gives 5 pens to Ben. How many pens does Ana have left?",  # below zero
        "Ana shares 7 pens equally among 2 friends. How many pens does each friend get?",  # remainder
        "Ana shares 7 pens equally among 0 friends. How many pens does each friend get?",
    ],
)
def test_what_is_no_problem_has_no_answer(question):
    assert recognise(question) is None
    assert ARITHMETIC.truth(question) is None


def test_new_names_and_things_are_recognised():
    known = recognise("Zed has 3 zorks. Quo gives Zed 4 more zorks. How many zorks does Zed have now?")
    assert known is not None
    assert known.answer == 7


def test_splits_do_not_share_questions_and_are_fixed_by_the_seed():
    splits = {name: [e.question for e in ARITHMETIC.load(name, None, 3)] for name in ("train", "dev", "test")}
    everything = [question for questions in splits.values() for question in questions]
    assert len(set(everything)) == len(everything)
    assert splits["test"] == [e.question for e in ARITHMETIC.load("test", None, 3)]
    assert splits["test"] != [e.question for e in ARITHMETIC.load("test", None, 4)]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("5", "-5", False),
        ("12", "1/2", False),
        ("1/2", "0.5", True),
        ("1,000", "1000", True),
        ("20", "20%", True),
        ("$7.50", "7.5", True),
        ("1/0", "1/0", False),
        (None, "1", False),
    ],
)
def test_numbers_are_compared_by_value(a, b, same):
    assert same_number(a and final_answer(a), b and final_answer(b)) is same


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so #### 5 apples and 3 oranges", "5"),
        ("#### 7 (since 3+4=7)", "7"),
        ("#### -3", "-3"),
        ("first 3, then 4", "4"),
        ("17 - 3 = 14", "14"),
        ("It is 1,234.5.", "1,234.5"),
        ("####", None),
        ("none at all", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def test_wrong_equations_are_found():
    assert wrong_equation("2 + 2 = 5.") == "2 + 2 = 5"
    assert wrong_equation("6 / 4 = 1.") == "6 / 4 = 1"
    assert wrong_equation("6 / 0 = 0.") is not None
    assert wrong_equation("3 * 4 = 12. 12 - 5 = 7.") is None


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        ("Problem: How many?\nSolution: 3 + 4 = 7. #### 7", None),
        ("  Problem:  How\nmany? \n Solution:  3 + 4 = 7.  #### 7 ", None),
        ("How many? 3 + 4 = 7. #### 7", "format"),
        ("Problem: How many\nSolution: 3 + 4 = 7. #### 7", "format"),
        ("Problem: How many?\nSolution: 3 + 4 = 7.", "format"),
        ("Problem: How many?\nSolution: #### 7", "no rationale"),
        ("Problem: How many?\nSolution: 3 + 4 = 7. #### four dollars", "answer is not a number"),
        ("Problem: How many?\nSolution: 3 + 4 = 7. #### 7 pens", "answer is not a number"),
        ("Problem: How many?\nSolution: 2 + 2 = 5. #### 5", "wrong equation"),
    ],
)
def test_replies_of_an_arithmetic_teacher(reply, refused):
    new = ARITHMETIC.parse_example(reply, PARENT)
    assert new.refused == refused
    if refused is None:
        assert (new.question, new.label, new.group) == ("How many?", "7", "add")
        assert new.answer == "3 + 4 = 7. #### 7"


@pytest.mark.parametrize("task", [ARITHMETIC, TREC, SNIPS])
def test_a_written_example_is_read_back(task):
    if task is ARITHMETIC:
        problem = write(random.Random(0), "compare")
        example = Example("x", problem.question, problem.solution, str(problem.answer), "compare")
    else:
        word = task.labels[0][1]
        example = Example("x", "What is it ?", word, word, word)
    new = task.parse_example(task.write_example(example), example)
    assert new.refused is None
    assert (new.question, new.answer, new.label, new.group) == (
        example.question,
        example.answer,
        example.label,
        example.group,
    )
    assert task.correct(example.answer, example.label)


def test_labels_are_matched_without_case_and_punctuation():
    assert TREC.parse("Location.") == "location"
    assert TREC.parse(" LOC \nmore") == "location"
    assert SNIPS.parse("PlayMusic") == "play music"
    assert TREC.parse("place") is None
    assert not TREC.correct("", "location")
    assert TREC.parse_example("Text: Where ?\nLabel: human", Example("x", "", "", "location", "")).refused == (
        "label changed"
    )
    assert TREC.parse_example("Text: Where ?\nLabel: cat", Example("x", "", "", "location", "")).refused == (
        "unknown label"
    )


def test_files_of_every_format_give_the_same_rows(tmp_path):
    rows = [{"text": "a, b", "label": "x"}, {"text": "c “d”", "label": "y"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text('text,label\n"a, b",x\nc “d”,y\n', encoding="utf-8")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
        assert [row for row, _ in read_rows(tmp_path / name)] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b'{"text": "a"}\n{broken\n', "line 2: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: not an object"),
        ("a.jsonl", b'{"text": "a"}\n', "row 1: field 'label' is missing"),
        ("a.jsonl", b'{"text": " ", "label": "LOC"}\n', "row 1: field 'text' is empty"),
        ("a.jsonl", b'{"text": "a", "label": "LOC"}\n{"text": "b", "label": "cat"}\n', "row 2: label 'cat'"),
        ("a.csv", b"text,label\na,LOC,more\n", "row 1: more cells"),
        ("a.csv", b"text,label\n\xff,LOC\n", "not UTF-8"),
        ("a.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("a.txt", b"a", "unknown format"),
    ],
)
def test_bad_files_are_named_with_their_row(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        TREC.load("train", tmp_path / name, 0)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


def test_missing_file_and_unknown_task():
    with pytest.raises(UserError, match="no such file"):
        read_rows(__import__("pathlib").Path("nowhere.jsonl"))
    with pytest.raises(UserError, match="unknown task 'x'"):
        get_task("x", None, "text", "label", "")
    with pytest.raises(UserError, match="--train-file"):
        get_task("text", None, "text", "label", "")


def test_a_task_from_a_file(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("sentence,mood\ngood,very_glad\nbad,sad\n")
    task = labelled_text(file, "sentence", "mood", "Mood?")
    assert task.labels == (("sad", "sad"), ("very_glad", "very glad"))
    assert [e.label for e in task.load("train", file, 0)] == ["very glad", "sad"]
    assert task.messages("hm")[0]["content"] == "Mood?\nhm"
    file.write_text("sentence,mood\ngood,glad\n")
    with pytest.raises(UserError, match="one label only"):
        labelled_text(file, "sentence", "mood", "Mood?")


def test_real_files(shared_data):
    train = TREC.load("train", shared_data / "trec/train.jsonl", 0)
    assert (len(train), len({e.label for e in train})) == (5452, 6)
    test = SNIPS.load("test", shared_data / "snips/test.jsonl", 0)
    assert (len(test), len({e.label for e in test})) == (700, 7)
