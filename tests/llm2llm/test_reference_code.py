"""The released code's behaviour, flaws included, as the specification lists it."""

import pytest

from common.tasks.base import Example
from common.tasks.worked import GSM8K
from llm2llm.reference_code import (
    REFERENCE_GSM8K,
    as_evaluated,
    as_in_reference_code,
    reference_answer,
    same_as_reference,
)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("5", "-5", True),
        ("12", "1/2", True),
        ("20", "20%", True),
        ("1,000", "1000", True),
        ("5", "5.0", True),
        ("5", "5 apples and 3 oranges", False),
        ("7", "7 (since 3+4=7)", False),
        ("Four Dollars", "four dollars", True),
        ("four", "five", False),
    ],
)
def test_the_released_judge(a, b, same):
    assert same_as_reference(a, b) is same
    assert same_as_reference(b, a) is same
    assert REFERENCE_GSM8K.correct(f"so #### {a}", b) is same


def test_the_same_pairs_are_told_apart_by_default():
    assert not GSM8K.correct("#### -5", "5")
    assert not GSM8K.correct("#### 1/2", "12")
    assert GSM8K.correct("#### 5 apples and 3 oranges", "5")
    assert GSM8K.correct("#### 7 (since 3+4=7)", "7")


def test_the_first_mark_counts_and_a_missing_one_is_wrong():
    assert reference_answer("a ## 5 #### 6") == "5"
    assert reference_answer("it is 5") is None
    assert not REFERENCE_GSM8K.correct("it is 5", "5")


def test_evaluation_uses_another_prompt_than_training():
    trained = REFERENCE_GSM8K.messages("How many?")[0]["content"]
    asked = REFERENCE_GSM8K.evaluation_messages("How many?")[0]["content"]
    assert trained != asked
    lead, question, label = trained.split("\n\n")
    assert question == "How many?"
    assert lead
    assert label.endswith(":")
    assert "How many?" in asked
    evaluated = as_evaluated(REFERENCE_GSM8K)
    assert evaluated.messages("How many?")[0]["content"] == asked
    assert evaluated.correct("#### -5", "5")
    assert evaluated.answer_tokens == REFERENCE_GSM8K.answer_tokens
    assert not hasattr(GSM8K, "evaluation_messages")
    assert (REFERENCE_GSM8K.answer_tokens, REFERENCE_GSM8K.near_duplicate) == (100, 0.95)


def test_new_examples_pass_unchecked():
    parent = Example("p", "", "", "1", "g")
    wrong = REFERENCE_GSM8K.parse_example("Problem: Q?\nSolution: 2 + 2 = 5. #### 5", parent)
    words = REFERENCE_GSM8K.parse_example("Problem: Q?\nSolution: #### four dollars", parent)
    twice = REFERENCE_GSM8K.parse_example("Problem: Q?\nSolution: #### 5 #### 5", parent)
    assert (wrong.refused, wrong.label) == (None, "5")
    assert (words.refused, words.label) == (None, "four dollars")
    assert twice.refused == "format"


def test_solutions_keep_their_annotations(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "Q?", "answer": "1+2=<<1+2=3>>3\\n#### 3"}\n')
    assert "<<" in as_in_reference_code(GSM8K).load("train", file, 0)[0].answer
    assert "<<" not in GSM8K.load("train", file, 0)[0].answer
