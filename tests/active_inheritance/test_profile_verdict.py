"""The sentence on a profile: figures with intervals, what stands out, and what could not be shown."""

import dataclasses

import pytest

from active_inheritance.profile.findings import Findings, verdict
from active_inheritance.profile.warnings import warnings
from common.evals.choice import MultipleChoice, Question
from common.evals.figures import Change, Scorer, figure
from common.evals.measure import Measured, Profile
from common.evals.text import Answers
from common.tasks.prompts import Prompt

QUESTIONS = tuple(Question(str(i), "How many?", ("1", "2", "3", "4"), 0) for i in range(8))
CHOICE = MultipleChoice(questions=QUESTIONS, name="choice/sums")


def profile(**figures) -> Profile:
    """Of value and interval by key, in which "__" stands for "/"."""
    found = {}
    for key, (value, *ci95) in figures.items():
        group, _, name = key.replace("__", "/").rpartition("/")
        found.setdefault(group, {})[name] = figure(value, ci95, 40, Scorer("x"))
    return Profile({group: Measured(figures=own, counts={}) for group, own in found.items()})


def change(value, low, high) -> Change:
    return Change(absolute=value, ci95=(low, high), relative=None, n=40)


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        ((0.75, 0.5, 1.0), "; shown: it is above 0.250, which guessing has; not shown: "),
        ((0.375, 0.125, 0.75), "; not shown: that it differs from 0.250, which guessing has; that overall: ss"),
    ],
)
def test_one_model_is_compared_with_what_is_known(accuracy, said):
    own = profile(choice__sums__accuracy=accuracy, stereoset__overall__ss=(51.0, 45.0, 57.0))
    told = verdict(Findings([CHOICE], {"m": own}, {}, {}, {}))
    assert told is not None
    assert told.startswith("Measured: sums: accuracy of m is ")
    assert said in told
    assert "that overall: ss, 51.0 [45.0, 57.0], differs from 50.0, which a model without a lean has" in told


def test_one_model_with_nothing_to_compare_says_so():
    told = verdict(Findings([], {"m": profile(text__mtld=(14.0, 13.0, 15.0))}, {}, {}, {}))
    assert told is not None
    assert told.endswith("nothing is known that it could be compared with: a second --model would be.")


def test_two_models_differ_in_what_is_shown_and_in_which_way():
    figures = {
        "choice__sums__accuracy": (0.5, 0.3, 0.7),
        "text__words": (9.0, 8.0, 10.0),
        "text__mtld": (5.0, 4.0, 6.0),
    }
    other = {"choice__sums__accuracy": (1.0, 0.7, 1.0), "text__words": (6.0, 5.0, 7.0)}
    profiles = {"a": profile(**figures), "b": profile(**figures | other)}
    steps = {
        "choice/sums/accuracy": change(0.5, 0.3, 0.7),
        "text/words": change(-3.0, -3.5, -2.5),
        "text/mtld": change(0.2, -0.5, 0.9),
        "text/characters": change(-15.0, -17.0, -13.0),  # says what words say
    }
    assert verdict(Findings([CHOICE], profiles, {"b": steps}, {}, {})) == (
        "Of b against a, with 95% intervals over items, shown: better in sums: accuracy (1.000 against 0.500, "
        "+0.500 [+0.300, +0.700]); lower in words (6.00 against 9.00, -3.00 [-3.50, -2.50]); not shown: a "
        "difference in mtld (+0.200 [-0.500, +0.900])."
    )
    worse = verdict(
        Findings([CHOICE], profiles, {"b": steps | {"choice/sums/accuracy": change(-0.5, -0.7, -0.3)}}, {}, {})
    )
    assert worse is not None
    assert "shown: worse in sums: accuracy (" in worse
    alike = dict.fromkeys(steps, change(0.1, -0.1, 0.3))
    told = verdict(Findings([CHOICE], profiles, {"b": alike}, {}, {}))
    assert told is not None
    assert told.startswith(
        "Of b against a, with 95% intervals over items, not shown: a difference in sums: accuracy "
    )
    few = {"text/words": dataclasses.replace(change(-3.0, -3.5, -2.5), n=4), "text/mtld": change(2.0, 2.0, 2.0)}
    assert verdict(Findings([CHOICE], profiles, {"b": few}, {}, {})) == (
        "Of b against a, with 95% intervals over items, not shown: a difference in words (-3.00 [-3.50, -2.50]: 4 "
        "items are too few to tell), mtld (+2.00 [+2.00, +2.00]: an interval without any width proves nothing)."
    )


def test_answers_that_turn_in_circles_are_a_warning():
    loop = "The cat was big and sat in the sun. " * 6
    of = lambda texts: Measured(
        figures={"words": figure(50.0, None, len(texts), Scorer("x"))},
        counts={"left_out": 0, "truncated_share": 0.0},
        answers={str(i): text for i, text in enumerate(texts)},
    )
    told = lambda texts: warnings([], {"m": Profile({"text": of(texts)})}, {}, {"m": "m"})
    assert told([loop, "A cat sat.", None]) == [
        "m: 1 of 2 answers say the same over and over; their lengths and their diversity are those of loops"
    ]
    assert not told(["A cat sat."] * 10 + [None])


def test_rows_that_ask_the_same_are_a_warning():
    """Options in another order make no other question; another right option is a contradiction."""
    asked = [Question("a", "Is it?", ("yes", "no"), 0), Question("b", "IS IT ?", ("no", "yes"), 1)]
    asked += [Question("c", "Was it?", ("yes", "no"), 0), Question("d", "Was it?", ("yes", "no"), 1)]
    prompts = tuple(Prompt(str(i), f"Say {i % 2}.") for i in range(6))
    measures = [MultipleChoice(questions=tuple(asked), name="choice/own"), Answers(prompts=prompts)]
    assert warnings(measures, {}, {}, {}) == [
        "choice/own: 1 of 4 rows repeats another one: the interval is narrower than it should be; take them out",
        "choice/own: 1 question stands under different labels, such as 'Was it?\\nno\\nyes' under 'yes' and 'no': "
        "correct them",
        "text: 4 of 6 rows repeat another one: the interval is narrower than it should be; take them out",
    ]
