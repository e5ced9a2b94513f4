"""Multiple choice: rows, layouts, accuracy and calibration, and the embedded set."""

import collections
import math
import random
import re

import pytest

from common.errors import UserError
from common.evals import choice
from common.evals import embedded_sets as embedded
from common.evals.calibration import ece
from common.lm import LanguageModel
from common.tasks.arithmetic import Arithmetic
from common.tasks.problems import calculate, recognise


def _rows(*logps, tokens=1):
    return [{"id": str(i), "logps": row, "tokens": row and [tokens] * len(row)} for i, row in enumerate(logps)]


def test_choice_rows_as_published_on_the_hub_and_flat():
    of = lambda row: choice.question_of(row, "here", "7")
    hella = {"ctx": "A man sits.", "activity_label": "Sitting", "endings": ["He", "She"], "label": "1"}
    assert of(hella) == choice.Question("7", "Sitting: A man sits.", ("He", "She"), 1)
    flat = {"id": "q", "question": "Which?", "choices": ["x", "y", "z"], "answer": 2}
    assert of(flat) == choice.Question("q", "Which?", ("x", "y", "z"), 2)
    hub = {"question_stem": "Which?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
    assert of(hub) == choice.Question("7", "Which?", ("x", "y"), 1)
    numbered = {"question": "Which?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"}
    assert of(numbered).gold == 0
    stem = {
        "question": {"stem": "Which?", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]},
        "answerKey": "A",
    }
    assert of(stem) == choice.Question("7", "Which?", ("x", "y"), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "no question"),
        ({"choices": ["x"]}, "two options"),
        ({"answer": 5}, "'5' is none of 0, 1"),
        ({"answer": None}, "no right option"),
        ({"choices": ["x", ""]}, "here option 1: field 'text' is empty"),
        (
            {"choices": {"text": ["x", "y"], "label": ["A"]}},
            r"here: choices\.text and choices\.label must be two lists",
        ),
        ({"choices": {"text": "xy", "label": "AB"}}, "two lists of one length"),
        ({"choices": {"text": ["x", "y"]}}, "two lists of one length"),
    ],
)
def test_bad_choice_rows(change, message):
    with pytest.raises(UserError, match=message):
        choice.question_of({"question": "Which?", "choices": ["x", "y"], "answer": 0} | change, "here", "0")


def test_rows_of_hellaswag_lose_their_tags():
    row = {
        "activity_label": "Health",
        "ctx": "[header] How to cope [title] Rest. [step] Sleep  well.",
        "endings": ["[substeps] Lie down [title] Sit.", "Run."],
        "label": "0",
    }
    found = choice.question_of(row, "here", "0")
    assert found.context == "Health: How to cope. Rest. Sleep well."
    assert found.options == ("Lie down. Sit.", "Run.")
    other = {"question": "Is [x] a  list?", "choices": ["[x]", "y"], "answer": 0}
    found = choice.question_of(other, "here", "0")
    assert (found.context, found.options) == ("Is [x] a  list?", ("[x]", "y"))


def test_accuracy_and_calibration_of_questions_that_fit(monkeypatch):
    questions = tuple(choice.Question(str(i), "q", ("x", "y"), gold) for i, gold in enumerate((0, 0, 1, 0)))
    likely = [2 * math.log(0.8), 2 * math.log(0.2)]  # of two tokens: 0.8 and 0.2 each
    rows = _rows(likely, likely, likely, None, tokens=2)
    measure = choice.MultipleChoice(questions=questions)
    found = measure.figures(rows)
    assert measure.counts(rows) == {"items": 4, "left_out": 1}
    assert found["accuracy"].value == pytest.approx(2 / 3, abs=1e-4)
    assert found["accuracy"].n == 3
    assert found["confidence"].value == pytest.approx(0.8, abs=1e-4)
    assert found["ece_1_bin"].value == pytest.approx(0.8 - 2 / 3, abs=1e-4)
    assert found["brier"].value == pytest.approx((2 * (0.04 + 0.04) + 2 * 0.64) / 3, abs=1e-4)
    alone = choice.MultipleChoice(questions=questions[:1])
    assert (alone.figures(_rows(None)), alone.series(_rows(None))) == ({}, {})
    assert ece([0.8] * 5, [1, 1, 1, 0, 0], 1) == pytest.approx(0.2)
    monkeypatch.setattr(choice, "BINS", 2)
    assert measure.series(rows) == {"confidence": [0.8, 0.8], "accuracy": [1.0, 0.0]}


@pytest.mark.parametrize("count", [3, 23])
def test_the_interval_of_a_calibration_error_holds_it(count):
    """Chance adds to a distance, in a bootstrap sample once more: its percentiles may all lie above the value."""
    draw = random.Random(count)
    for _ in range(6):
        sure = [draw.uniform(0.5, 1.0) for _ in range(count)]
        gold = [int(draw.random() > p) for p in sure]
        questions = tuple(choice.Question(str(i), "q", ("x", "y"), g) for i, g in enumerate(gold))
        found = choice.MultipleChoice(questions=questions).figures(
            _rows(*([math.log(p), math.log(max(1 - p, 1e-9))] for p in sure))
        )
        for name in ("ece", "ece_1_bin"):
            low, high = found[name].ci95
            assert 0 <= low <= found[name].value <= high <= 1


def test_layouts():
    (plain,), (answer,), (chat,) = (
        choice.MultipleChoice(questions=(choice.Question("0", "Why?", ("x", "y"), 0),), layout=layout).items()
        for layout in ("plain", "answer", "chat")
    )
    assert chat.texts[1] == (({"role": "user", "content": "Why?"},), "y")
    assert plain.texts[0] == ("Why?", " x")
    assert answer.texts[1] == ("Question: Why?\nAnswer:", " y")


# ---- the embedded set


def test_the_embedded_questions():
    questions = embedded.problem_questions()
    assert questions == embedded.problem_questions()
    assert questions[:7] == embedded.problem_questions(7)
    assert collections.Counter(q.gold for q in questions) == dict.fromkeys(range(4), 60)
    learned = {example.question for split in ("train", "dev") for example in Arithmetic().load(split, None, 0)}
    for question in questions:
        problem = recognise(question.context)
        assert question.options[question.gold] == problem.solution
        results = [int(option.rpartition("#### ")[2]) for option in question.options]
        assert len(set(results)) == 4
        assert results.index(problem.answer) == question.gold
        assert question.context not in learned


def test_wrong_solutions():
    found = embedded.wrong_solutions("3 + 4 = 7. 7 * 5 = 35. #### 35", random.Random(0), 20)
    assert len({option.rpartition("#### ")[2] for option in found}) == len(found)
    assert "3 + 4 = 7. #### 7" in found
    assert "3 + 4 = 7. 7 + 5 = 12. #### 12" in found
    assert "3 * 4 = 12. 12 * 5 = 60. #### 60" in found
    assert "3 + 4 = 7. 7 * 5 = 36. #### 36" in found
    for option in found:
        *steps, result = (*re.findall(r"\d+ [-+*/] \d+ = \d+", option), option.rpartition("#### ")[2])
        assert steps[-1].endswith(f"= {result}")
        for step in steps[:-1]:
            a, op, b, _, value = step.split()
            assert calculate(int(a), op, int(b)) == int(value)


def test_the_embedded_student_does_better_than_chance():
    """A quarter is chance. Under the plain layout it reads what it has never seen, and is worse."""
    questions, model = embedded.problem_questions(96), LanguageModel.load("embedded:student")
    plain, chat = (
        choice.MultipleChoice(questions=questions, layout=layout).measure(model).figures["accuracy"]
        for layout in ("plain", "chat")
    )
    assert chat.ci95[0] > 0.7
    assert chat.value > plain.value
