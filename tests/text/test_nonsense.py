"""What counts as nonsense, by itself and beside the texts it should be like."""

import math

import pytest

from common.tasks.arithmetic import Arithmetic
from common.text.nonsense import NO_TEXT, REPETITION, SCRIPT, UNLIKELY, Gate, nonsense, repeats


def test_repeats():
    assert repeats("one two three four " * 2) == 0  # too short to tell
    assert repeats(" ".join(map(str, range(100)))) == 0
    assert repeats("one two three four five " * 20) == pytest.approx(1 - 5 / 97)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("the capital of the capital of the capital of the capital of the capital of the capital of", REPETITION),
        ("no no no no no no no", REPETITION),
        ("hahahahahahahahahahahaha", REPETITION),
        (f"Who directed JAS-JAW{'-SHOCK' * 13}?", REPETITION),
        ("To be continued ........................", None),
        ("What on earth is it supposed to be????????????????", REPETITION),
        ("}{ ]( ;;~ => //", NO_TEXT),
        ("caf\ufffd au lait", NO_TEXT),
        ("", NO_TEXT),
        ("a\x00b", NO_TEXT),
        ("What is the capital of Kenya?", None),
        ("4 + 4 = 8", None),
        ("for (i = 0; i < n; i++) { s += x[i]; }", None),
        ("1 1 1 1 1 1 1 1 1 1", None),
        ("Сколько ног у паука?", None),
        ("蜘蛛有几条腿？", None),
        ("| town | sea |\n| --- | --- |\n| Split | Adriatic |", None),
    ],
)
def test_what_no_reader_would_take_for_text(text, why):
    assert nonsense(text) == why


def test_problems_of_the_demonstration_are_no_nonsense():
    assert not any(nonsense(example.question) for example in Arithmetic().load("train", None, 0))


KNOWN = [f"How far is it from town {i} to the sea?" for i in range(6)]


def test_a_new_text_may_be_as_unlikely_as_the_least_likely_known_one():
    table = dict(zip(KNOWN, [-2.0, -2.1, -1.9, -2.0, -2.0, -5.0], strict=True))
    table |= {"about as likely": -4.9, "colorless apricots decide": -9.0, "one": math.nan}
    gate = Gate.of(KNOWN, lambda texts: [table[text] for text in texts], deviations=1.0)
    assert gate.floor == -5.0
    asked = ["about as likely", "colorless apricots decide", None, "one", "no no no no no no no"]
    assert gate.reasons(asked) == [None, UNLIKELY, None, None, REPETITION]


def test_another_script_is_refused_where_it_prevails():
    gate = Gate.of(KNOWN[:2], lambda texts: pytest.fail("two texts have no spread"), deviations=4.0)
    assert gate.floor is None
    asked = ["Сколько ног у паука?", "Who was Пушкин, the poet of whom they speak?"]
    assert gate.reasons(asked) == [SCRIPT, None]
    assert gate.reasons(["1. 1"]) == [NO_TEXT]
