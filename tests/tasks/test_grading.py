"""Numbers read from real kinds of answers, equations checked, formulas worked out, labelled replies read."""

import time
from fractions import Fraction

import pytest

from common.tasks.equations import infix, worked_out, wrong_equation
from common.tasks.grading import final_answer, numbers_in, same_number, stated_number, value
from common.tasks.replies import read_fields, read_worked


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("5", "-5", False),
        ("12", "1/2", False),
        ("1/2", "0.5", True),
        ("1,000", "1000", True),
        ("20", "20%", True),
        ("5 apples and 3 oranges ####5 apples and 3 oranges", "5", True),
        ("#### 7 (since 3+4=7)", "7", True),
        ("first 3, then 4", "4", True),
        ("$7.50", "7.5", True),
        ("1 1/2", "1.5", True),
        ("3½", "3.5", True),
        ("1e3", "1000", True),
        ("2 x 10^3", "2000", True),
        ("0.8333333333333334", "5/6", True),
        ("0.833333", "5/6", True),
        ("2.9999999999999996", "3", True),
        ("1000000", "1000001", False),
        ("0.83", "5/6", False),
        ("1/0", "1/0", False),
        ("four", "4", False),
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
        ("#### 5 - that's it", "5"),
        ("#### -3", "-3"),
        ("#### - 3", "-3"),
        ("#### \u22123", "-3"),
        ("####\n5", "5"),
        ("#### **5**", "5"),
        ("#### $5.00.", "$5.00"),
        ("#### 3 + 4 = 7", "7"),
        ("#### 10 = 2 * 5", "10"),
        ("#### 5\n####", "5"),
        ("#### 4, no: #### 6", "6"),
        ("#### .5", ".5"),
        ("#### 5/hour", "5"),
        ("first 3, then 4", "4"),
        ("17 - 3 = 14", "14"),
        ("3-4", "4"),
        ("it is -$5", "-$5"),
        ("**5**", "5"),
        (r"so \boxed{5} (of 8)", "5"),
        (r"\boxed{\frac{1}{2}}", "1/2"),
        (r"\$1{,}000", "$1,000"),
        ("It is 1,234.5.", "1,234.5"),
        ("20 10/5", "10/5"),
        ("- 5 apples\n- 7 pears", "7"),
        ("####", None),
        ("#### none", None),
        ("none at all", None),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def test_enormous_numbers_and_long_texts_do_no_harm():
    start = time.monotonic()
    assert value("1e999999999") is None
    assert value(final_answer("9" * 50_000)) is None
    for text in (
        "1+" * 5000 + "1",
        "= " * 5000,
        "1 " * 5000,
        "#### " + "1-" * 5000,
        "(" * 3000 + "=1",
        "-" * 9000,
    ):
        final_answer(text)
        wrong_equation(text)
        numbers_in(text)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", "7"),
        (" **7**. ", "7"),
        ("$1,000", "1000"),
        ("-2.5", "-2.5"),
        ("20%", "20"),
        ("7 pens", None),
        ("four dollars", None),
        ("3 4", None),
        ("1/0", None),
        ("", None),
    ],
)
def test_an_answer_field_that_is_a_number_and_nothing_else(text, number):
    assert stated_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "2 + 2 = 5.",
        "6 / 4 = 1.",
        "6 / 0 = 0.",
        "3 * 4 = 12. 12 - 5 = 8.",
        "He has 5 (3 + 2 = 6)",
        "a box 3 + 4 = 8",
        "(3 + 4) * 2 = 15",
        "$5 × 3 = $16",
        "2 + 3 = 5\n- 4 + 5 = 8",
        "2.5 * 4 = 11",
    ],
)
def test_wrong_equations_are_found(text):
    assert wrong_equation(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "3 * 4 = 12. 12 - 5 = 7.",
        "16 - 3 - 4 = 9",
        "2.5 * 4 = 10",
        "1,000 * 3 = 3,000",
        "10/3 = 3.33",
        "12/60 = $0.2",
        "50 * 20% = 10",
        "7 / 2 = 3 remainder 1",
        "7 / 2 = 3 1/2",
        "4 * 5 = 2 * 10",
        "2*3 = 6 + 4 = 10",
        "- 3 + 4 = 7",
        "3 apples * 4 = 13",
        "x + 3 = 5",
        "tax = 5",
        "",
    ],
)
def test_right_equations_and_what_is_no_arithmetic_pass(text):
    assert wrong_equation(text) is None


def test_formulas_are_worked_out():
    assert worked_out("( ( 4.0 + 13.0 ) * 15.0 )") == ("4 + 13 = 17. 17 * 15 = 255.", Fraction(255))
    assert infix("- * number0 2 number1", ["8", "3"]) == "( ( 8 * 2 ) - 3 )"
    assert worked_out("1 / 0") is None
    assert worked_out("eight") is None
    for bad in ("+ number0", "number0 number0", "+ number0 number9"):
        with pytest.raises(ValueError, match="formula"):
            infix(bad, ["1"])


@pytest.mark.parametrize(
    "reply",
    [
        "Problem: How many?\nSolution: 7",
        "  problem:   How\n many? \n\nSolution:\n7",
        "1. Problem: How many?\n2. Solution: 7",
        "**Problem:** How many?\n**Solution:** 7",
        "**Problem**: How many?\n**Solution**: 7",
        "### Problem 1:\nHow many?\n### Solution 1:\n7",
        "**Problem: How many?**\n**Solution: 7**",
        "- Problem: How many?\n- Solution: 7",
    ],
)
def test_labels_in_all_their_forms_do_not_leak(reply):
    fields = read_fields(reply, ("Problem", "Solution"))
    assert {name: " ".join(text.split()) for name, text in fields.items()} == {
        "Problem": "How many?",
        "Solution": "7",
    }


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "How many? 7",
        "Here it is.\nProblem: How many?\nSolution: 7",
        "Solution: 7\nProblem: How many?",
        "Problem: How many?\nSolution: 7\nProblem: And now?\nSolution: 8",
        "Problem: How many?",
    ],
)
def test_other_forms_are_refused(reply):
    assert read_fields(reply, ("Problem", "Solution")) is None


@pytest.mark.parametrize(
    ("solution", "refused"),
    [
        ("3 + 4 = <<3+4=7>>7.\n#### 7", None),
        ("3 + 4 = 7.\n#### $7.", None),
        ("#### 7", "no rationale"),
        ("**\n#### 7", "no rationale"),
        ("3 + 4 = 7.\n#### four dollars", "answer is not a number"),
        ("3 + 4 = 7.\n#### 7\nDo you want another?", "answer is not a number"),
        ("2 + 2 = 5.\n#### 5", "wrong equation"),
        ("3 + 4 = 7.", "format"),
        ("3 + 4 = 7. #### 7\n#### 7", "several final answers"),
    ],
)
def test_worked_replies_are_refused_with_distinct_reasons(solution, refused):
    reply = f"Problem: How many pens?\nSolution: {solution}"
    new = read_worked(reply, ("Problem", "Solution"), "g", "\n", asks=False)
    assert new.refused == refused
    if refused is None:
        assert (new.question, new.answer, new.label) == ("How many pens?", "3 + 4 = 7.\n#### 7", "7")
