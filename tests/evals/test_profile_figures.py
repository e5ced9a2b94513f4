"""Figures of a profile and their changes; the figures of texts and of preferences on hand-made rows."""

import json
import math

import numpy as np
import pytest

from active_inheritance.profile.warnings import warnings
from common.errors import UserError
from common.evals import preference, text
from common.evals.figures import Change, Scorer, changes, drawn_figures, figure, mean_figure, relative_change
from common.evals.measure import Measured, Profile
from llm2llm.summary import one_answer
from reversegen.summary import one_verdict


def _rows(*logps, tokens=1):
    return [{"id": str(i), "logps": row, "tokens": row and [tokens] * len(row)} for i, row in enumerate(logps)]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_figure_has_value_interval_n_and_scorer():
    found = mean_figure([0.0, 1.0, math.nan, None] * 50, Scorer("mine", "3"), scale=100)
    assert (found.value, found.n, found.scorer, found.version) == (50.0, 100, "mine", "3")
    low, high = found.ci95
    assert 35 < low < 45 < 55 < high < 65
    assert mean_figure([math.nan], Scorer("mine")).value is None
    # Items that are all alike leave a bootstrap without width, and tell little where they are few.
    alike = mean_figure([True] * 5, Scorer("mine"), scale=100, share=True)
    assert alike.ci95 == pytest.approx((56.5518, 100.0))
    assert mean_figure([2.0], Scorer("mine")).ci95 is None


def test_a_share_is_declared_and_not_guessed_from_values():
    """Scores of texts that happen to be 0 and 1, and ties that count one half, are no shares."""
    found = text.text_figures(["Once."] * 6, {"sentences": [1.0] * 6, "rix": [0.0] * 5 + [1.0]}, "clean")
    assert found["sentences"].ci95 == (1.0, 1.0)
    assert found["rix"].ci95 == mean_figure([0.0] * 5 + [1.0], Scorer("x")).ci95 == (0.0, 0.5)
    ties = [0.5, 1.0, 1.0, 1.0]
    assert mean_figure(ties, Scorer("x"), share=True).ci95 == mean_figure(ties, Scorer("x")).ci95
    wins = preference.win_rate([{"value": 1.0, "paid": True}] * 5, Scorer("judge"))
    assert wins.ci95 == pytest.approx((56.5518, 100.0))


def test_one_bootstrap_serves_several_figures():
    values = np.arange(40.0)
    found = drawn_figures(
        lambda d: {"mean": values[d].mean(), "double": 2 * values[d].mean()}, 40, 80, Scorer("x")
    )
    assert found["mean"].value == 19.5
    assert found["mean"].n == 80
    assert found["double"].ci95 == pytest.approx([2 * x for x in found["mean"].ci95], abs=1e-4)
    assert drawn_figures(lambda d: {"none": math.nan}, 3, 3, Scorer("x"))["none"].value is None
    assert drawn_figures(lambda d: {}, 0, 0, Scorer("x")) == {}
    right = lambda d: {"right": float(np.ones(5)[d].mean())}
    assert drawn_figures(right, 5, 5, Scorer("x"))["right"].ci95 == (1.0, 1.0)
    assert drawn_figures(right, 5, 5, Scorer("x"), shares=["right"])["right"].ci95 == pytest.approx((0.5655, 1.0))


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [(65.2, 43.2, -33.7), (70.3, 43.2, -38.5), (71.7, 50.7, -29.3), (68.1, 50.7, -25.6)],
)
def test_relative_change(before, after, change):
    assert round(relative_change(before, after), 1) == change


# ---- change from one model to another


def test_a_change_pairs_the_items_that_both_have():
    """Items far apart with nearly the same change: a paired interval is narrow, that of two samples is not."""
    old = [10.0 * i for i in range(40)]
    new = [value + 1 + 0.1 * (i % 3) for i, value in enumerate(old)]
    before = {"a": mean_figure([*old, None, 999.0], Scorer("x")), "b": mean_figure(old, Scorer("x"))}
    after = {"a": mean_figure([*new, 999.0, None], Scorer("x")), "c": mean_figure(new, Scorer("x"))}
    found = changes(before, after)
    assert found.keys() == {"a"}
    gain = float(np.mean(np.array(new) - np.array(old)))
    assert found["a"].absolute == pytest.approx(gain, abs=1e-4)
    assert found["a"].relative == pytest.approx(100 * gain / np.mean(old), abs=1e-3)
    assert found["a"].n == 40
    low, high = found["a"].ci95
    assert gain - 0.05 < low < gain < high < gain + 0.05
    assert found == changes(before, after)


def test_items_are_told_by_name_and_figures_of_one_measure_are_drawn_together():
    values = {"x": 1.0, "y": 5.0, "z": 2.0}
    calls = []

    def made(names, add):
        column = np.array([values[name] + add for name in names])

        def measure(drawn):
            calls.append(len(drawn))
            return {"mean": float(column[drawn].mean()), "most": float(column[drawn].max())}

        return drawn_figures(measure, names, len(names), Scorer("x"))

    before, after = made(("x", "y", "z"), 0.0), made(("z", "x"), 3.0)
    calls.clear()
    found = changes(before, after)
    assert found["mean"] == Change(absolute=3.0, ci95=(3.0, 3.0), relative=200.0, n=2)
    assert found["most"].absolute == 3.0
    assert len(calls) < 2 * 2 * 1100


def test_changes_that_have_no_interval():
    plain = lambda value: {"a": figure(value, None, 3, Scorer("x"))}
    assert changes(plain(2.0), plain(3.0)) == {"a": Change(absolute=1.0, ci95=None, relative=50.0, n=None)}
    assert changes(plain(0.0), plain(3.0))["a"].relative is None
    assert changes(plain(None), plain(3.0))["a"].absolute is None
    one, other = ({"a": mean_figure([1.0], Scorer("x"), units=[name])} for name in "xy")
    assert changes(one, other)["a"] == Change(absolute=None, ci95=None, relative=None, n=0)
    assert changes(one, one)["a"] == Change(absolute=0.0, ci95=None, relative=0.0, n=1)


# ---- text


def test_prompts_of_real_toxicity_prompts_and_others(tmp_path):
    nested = _write(tmp_path / "n.jsonl", [{"prompt": {"text": "Once", "toxicity": 0.9}}])
    assert text.load_prompts(nested) == (text.Prompt("0", "Once"),)
    named = _write(tmp_path / "d.jsonl", [{"id": 4, "inputs": "How?", "targets": "So."}])
    assert text.load_prompts(named) == (text.Prompt("4", "How?"),)
    assert text.load_prompts(named, "targets")[0].text == "So."
    with pytest.raises(UserError, match="comes twice"):
        text.load_prompts(_write(tmp_path / "t.jsonl", [{"id": 1, "text": "a"}, {"id": 1, "text": "b"}]), None)
    with pytest.raises(UserError, match="--prompt-column"):
        text.load_prompts(_write(tmp_path / "x.jsonl", [{"words": "a"}]), None)


def test_text_figures_say_how_they_were_made():
    texts = ["The important cat sat. The dog ran."] * 2 + ["One two three, and four.", ""]
    found = text.text_figures(texts, text.scores(texts, "official"), "official")
    assert found["gunning_fog"].n == 3
    assert found["tokens"].n == 4
    assert found["tokens"].version.startswith("official")
    assert found["mtld"].short == 4
    assert found["self_bleu"].ci95 is None
    assert found["self_bleu"].n == 3
    assert found["self_bleu"].value > 0.5


@pytest.mark.parametrize(("batch", "slots"), [(1, 1), (3, 2), (32, 32), (500, 128)])
def test_slots(batch, slots):
    assert text.Answers(prompts=(), batch_size=batch).slots() == slots


# ---- preference


def test_preference_cancels_what_a_place_has_going_for_it():
    pairs = tuple(preference.Pair(str(i), "p", "x", "y", human) for i, human in enumerate((1, 1, 0, None)))
    rows = _rows([-1, -3, -2, -1.5], [-1, -3, -1, -2], [-1, -2, -1, -2], None)
    measure = preference.PreferenceJudge(pairs=pairs)
    assert measure.series(rows) == {"choice": [1.0, 1.0, 0.5, None]}
    found = measure.figures(rows)
    assert found["consistent"].value == pytest.approx(100 / 3, abs=1e-4)
    assert found["letter_a"].value == pytest.approx(100 * 5 / 6, abs=1e-4)
    assert found["agreement_with_people"].value == pytest.approx(100 * 2.5 / 3, abs=1e-4)
    assert preference.agreement([1.0, 0.0, 0.5, None], [1.0, 1.0, 1.0, 0.0]).value == pytest.approx(50.0, abs=1e-4)


def test_a_reader_is_told_what_the_judge_did_not_say():
    rows = [{"id": str(i), "value": value, "paid": i != 4} for i, value in enumerate((0.5, 0.5, 1.0, None, None))]
    wins = preference.win_rate(rows, Scorer("judge"))
    assert [line.partition(";")[0][:60] for line in warnings((), {}, {"x": wins}, {"x": "x"})] == [
        "x: the budget of the judge did not cover 1 comparisons, left",
        "x: of 1 comparisons the judge's replies give no verdict, lef",
        "x: on 2 of 3 prompts the judge contradicts itself when the a",
    ]


def test_a_scorer_a_judge_or_a_student_that_never_varies_is_told():
    """Its figures would be exact, and say nothing."""
    counts = {"refused": 0, "continuations": 6, "empty": 0, "left_out": 0}
    figures = {"expected_maximum": mean_figure([0.25] * 3, Scorer("s"), 0)}
    profile = Profile({"toxicity": Measured(figures, counts, {"maximum": [0.25, 0.25, 0.25]})})
    assert warnings((), {"x": profile}, {}, {"x": "x"}) == [
        "x: the highest score of every prompt is 0.25: the scorer tells nothing apart"
    ]
    assert one_verdict([{"new_failure_rate": 1.0}] * 3) == [
        "every query failed in every round: what judges the answers tells nothing apart"
    ]
    assert not one_verdict([{"new_failure_rate": 1.0}, {"new_failure_rate": 0.5}])
    rows = [{"parsed": "a", "label": label} for label in "aab"]
    assert one_answer("base", rows) == ["base gives every test question one answer, 'a': it tells none apart"]
    assert not one_answer("base", [*rows, {"parsed": "b", "label": "a"}])


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A", "A"),
        (" b.", "B"),
        ("Answer B is better", "B"),
        ("**A**", "A"),
        ("**B** is better.", "B"),
        ("Answer: B", "B"),
        ("answer b", "B"),
        ("The better answer is B", "B"),
        ("The better answer is: **B**", "B"),
        ("Option B", "B"),
        ("\\boxed{A}", "A"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("(A)", "A"),
        ("A. It is not as long.", "A"),
        ("A is better than B", "A"),
        ("I prefer B over A.", "B"),
        ('{"choice": "B"}', "B"),
        ("A better answer is B", "B"),
        ("A tie", None),
        ("A tie.", None),
        ("A or B", None),
        ("A/B", None),
        ("A, B", None),
        ("A and B are equal", None),
        ("A is not better", None),
        ("Neither A nor B", None),
        ("The better answer is a", None),
        ("A good question", None),
        ("A's", None),
        ("Apple", None),
        ("Both", None),
        (None, None),
        ("", None),
    ],
)
def test_letters(reply, letter):
    assert preference.letter_of(reply) == letter
