"""Which texts ask the same, and what a reader is told of a file that asks twice."""

import pytest

from common.tasks.base import Example
from common.text.same import TESTED, apart, doubts, normal_form, repeats


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who  wrote “Emma” ?", "WHO WROTE EMMA?"),
        ("What is it? ", "What is it?"),
        ("don’t go", "Don't go."),
        ("a caf\N{LATIN SMALL LETTER E WITH ACUTE}", "a cafe\N{COMBINING ACUTE ACCENT}"),
        ("\N{FULLWIDTH DIGIT FIVE} men", "5 men"),
        ("Stra\N{LATIN SMALL LETTER SHARP S}e", "STRASSE"),
        ("5 \N{MINUS SIGN} 3", "5 - 3"),
        ("a\N{ZERO WIDTH SPACE}b", "ab"),
        ("What is 2+3?", "What is 2 + 3 ?"),
        ("( 2*3 )-$4", "(2 * 3) - $ 4"),
        ("don\N{ACUTE ACCENT}t", "don't"),
        ("\N{LEFT CORNER BRACKET}Emma\N{RIGHT CORNER BRACKET}\N{FULLWIDTH QUESTION MARK}", "emma"),
        ("\N{DOUBLE LOW-9 QUOTATION MARK}Emma\N{LEFT DOUBLE QUOTATION MARK}", "emma"),
        ("kya yah\N{DEVANAGARI DANDA}", "Kya yah"),
        ("\N{ARABIC LETTER MEEM}\N{ARABIC QUESTION MARK}", "\N{ARABIC LETTER MEEM}"),
        ("a\N{ARABIC COMMA} b\N{ARABIC SEMICOLON} c", "a b c"),
        ("\N{ARMENIAN CAPITAL LETTER INI}n\N{ARMENIAN FULL STOP}", "\N{ARMENIAN SMALL LETTER INI}n"),
        ("a\N{ETHIOPIC FULL STOP}", "a"),
        ("a\N{TWO-EM DASH}b", "a - b"),
    ],
)
def test_ways_to_write_one_question_have_one_form(one, other):
    assert normal_form(one) == normal_form(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 - 4", "3 + 4"),
        ("3.5 miles", "35 miles"),
        (".5 miles", "5 miles"),
        ("1,000", "1000"),
        ("5\N{SUPERSCRIPT TWO}", "52"),
        ("x\N{SUBSCRIPT ONE}", "x1"),
        ("C", "C++"),
        ("-5", "5"),
        ("2 * (3 + 4)", "(2 * 3) + 4"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe"),
        ("???", "!!!"),
        ("3 .5", "3.5"),
        ("5\N{PER MILLE SIGN}", "5"),
        ("\N{LEFT CEILING}x\N{RIGHT CEILING}", "\N{LEFT FLOOR}x\N{RIGHT FLOOR}"),
        ("\N{ARABIC-INDIC DIGIT THREE}\N{ARABIC DECIMAL SEPARATOR}5", "\N{ARABIC-INDIC DIGIT THREE}5"),
        (
            "\N{DEVANAGARI LETTER KA}\N{DEVANAGARI VOWEL SIGN II} a",
            "\N{DEVANAGARI LETTER KA}\N{DEVANAGARI VOWEL SIGN II}a",
        ),
    ],
)
def test_letters_digits_and_signs_of_calculations_keep_texts_apart(one, other):
    assert normal_form(one) != normal_form(other)


def example(question, label="a"):
    return Example(question, question, label, label, label)


def test_what_is_held_out_is_found_however_it_is_written():
    train = [example("How far is it?"), example("How long is it?")]
    assert apart(train, [example("HOW FAR  IS IT ?")]) == train[1:]


def test_a_file_that_asks_twice_is_told_once():
    rows = [example(f"question {i % 30}") for i in range(300)]
    (line,) = doubts("test.csv", rows, TESTED)
    assert line == (
        "test.csv: 270 of 300 rows repeat another one: the interval is narrower than it should be; take them out"
    )
    assert doubts("test.csv", rows[:30], TESTED) == []
    assert repeats("x", ["a", "a"], "so")[0].startswith("x: 1 of 2 rows repeats another one")


def test_a_question_under_several_labels_is_told_with_an_example():
    rows = [example("Is it?", "yes"), example("is it", "no"), example("Was it?", "yes"), example("Was it?", "Yes")]
    told = doubts("train.csv", rows, "so")
    assert told[0].startswith("train.csv: 1 of 4 rows")
    assert told[1] == (
        "train.csv: 1 question stands under different labels, such as 'Is it?' under 'yes' and 'no': correct them"
    )
