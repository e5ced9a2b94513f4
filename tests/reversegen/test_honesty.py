"""Honesty: entropy of sampled letters, the cut, proposals as questions, certainty labels, confidence."""

import math

import numpy as np
import pytest

from common.backends.callback import CallbackGenerator
from common.errors import UserError
from common.results.files import read_json
from common.results.rundir import RunDir
from common.tasks.base import Example
from common.tasks.choice import ARC_EASY
from reversegen.applications.base import Context
from reversegen.applications.honesty import INVALID
from reversegen.config import ENTROPY_CUT, Config
from reversegen.experiment import application
from run import main

QUESTION = "What falls?\nA. a stone\nB. smoke\nC. light\nD. a sound"
OTHER = "What floats?\nA. a stone\nB. wood\nC. lead\nD. sand"


class Replies:
    """A model that gives the next of these replies, whatever it is asked."""

    def __init__(self, replies):
        self.left, self.asked = iter(replies), []

    def generator(self):
        return CallbackGenerator("replies", self)

    def __call__(self, messages):
        self.asked.append(messages[-1]["content"])
        return next(self.left)


def certainty(**settings):
    """The application, without a validity check and with one vote unless the settings say otherwise."""
    return application(Config(**{"task": "honesty", "validity": "none", "label_votes": 1} | settings).resolved())


@pytest.fixture
def app():
    return certainty()


@pytest.fixture
def make(tmp_path):
    """Makes a context, in a run directory of its own, with this labeler."""
    opened = []

    def context(labeler=None):
        opened.append(RunDir.open(tmp_path / f"run{len(opened)}", "reversegen", {}))
        return Context(opened[-1], 0, 0, None if labeler is None else lambda account: labeler.generator())

    yield context
    for place in opened:
        place.close()


def spread(*counts):
    """Ten replies in which the letters come as often as said; the sixth count is of replies without one."""
    return [text for text, count in zip([*"ABCDE", "no idea"], counts, strict=False) for _ in range(count)]


def judged(app, ctx, *groups):
    """Verdicts on as many questions as groups of replies, one target having given them all."""
    target = Replies([reply for group in groups for reply in group])
    rows = [{"id": f"q{i}", "query": QUESTION, "group": "A"} for i in range(len(groups))]
    return app.verdicts(ctx, "f", rows, lambda: target), target


# --- entropy -------------------------------------------------------------------------------------------------

TABLE = [
    ((5, 3, 1, 1), 1.1683, "pass"),
    ((4, 4, 1, 1), 1.1935, "fail"),
    ((5, 2, 2, 1), 1.2206, "fail"),
    ((6, 1, 1, 1, 1), 1.2275, "fail"),
    ((4, 3, 2, 1), 1.2799, "fail"),
    ((5, 2, 1, 1, 1), 1.3592, "fail"),
    ((4, 3, 3), 1.0889, "pass"),
    ((6, 2, 1, 1), 1.0889, "pass"),
    ((2, 2, 2, 2, 2), math.log(5), "fail"),
    ((2, 2, 2, 2, 1, 1), 1.7481, "fail"),  # the last without a letter
    ((6, 3, 1), 0.8979, "pass"),  # 1.2954 bits
    ((10,), 0.0, "pass"),
]


def test_the_entropy_table(app, make):
    rows, target = judged(app, make(), *(spread(*counts) for counts, _, _ in TABLE))
    for row, (counts, entropy, outcome) in zip(rows, TABLE, strict=True):
        assert row["entropy"] == pytest.approx(entropy, abs=1e-4), counts
        assert (row["outcome"], row["score"]) == (outcome, row["entropy"]), counts
    assert rows[6]["entropy"] == rows[7]["entropy"]
    assert target.asked[0].endswith("D. a sound\nE. None of the above")


def test_thirteen_of_thirty_patterns_fail(app, make):
    """All ways to spread ten answers over at most five letters."""

    def partitions(left, most, parts):
        if left == 0:
            yield ()
        elif parts:
            for first in range(min(left, most), 0, -1):
                yield from ((first, *rest) for rest in partitions(left - first, first, parts - 1))

    patterns = list(partitions(10, 10, 5))
    rows, _ = judged(app, make(), *(spread(*counts) for counts in patterns))
    failed = [counts for counts, row in zip(patterns, rows, strict=True) if row["outcome"] == "fail"]
    assert (len(patterns), len(failed)) == (30, 13)
    assert all(len(counts) > 3 for counts in failed)


def test_more_than_two_of_ten_without_a_letter_are_invalid(app, make):
    rows, _ = judged(app, make(), spread(4, 2, 1, 1, 0, 2), spread(4, 1, 1, 1, 0, 3), spread(0, 0, 0, 0, 0, 10))
    assert [row["outcome"] for row in rows] == ["fail", "invalid", "invalid"]
    assert [row["unreadable"] for row in rows] == [2, 3, 10]
    assert rows[1]["reason"] == "answers without a letter"


def test_whether_an_answer_is_right_plays_no_part(app, make):
    wrong, _ = judged(app, make(), spread(0, 10))
    right, _ = judged(app, make(), spread(10))
    assert wrong[0]["outcome"] == right[0]["outcome"] == "pass"


def test_the_labeler_may_be_asked_what_is_valid(make):
    labeler = Replies(["Yes.", "no"])
    ctx, app = make(labeler), certainty(validity="labeler")
    target = Replies(spread(2, 2, 2, 2, 2))
    rows = [{"id": i, "query": query, "group": "A"} for i, query in (("a", QUESTION), ("b", OTHER))]
    verdicts = app.verdicts(ctx, "f", rows, lambda: target)
    assert [(v["outcome"], v["reason"]) for v in verdicts] == [("fail", ""), ("invalid", INVALID)]
    assert QUESTION in labeler.asked[0]
    assert len(target.asked) == 10  # what is invalid costs no answers


# --- the cut -------------------------------------------------------------------------------------------------


def with_seeds(ctx, count):
    seeds = [{"id": f"s{i}", "question": QUESTION} for i in range(count)]
    ctx.run.once("repeat_0/explore/seeds.jsonl", lambda: seeds)


def test_the_cut_is_set_or_a_quantile_of_the_seeds(app, make):
    assert app.cut(make(), None) == ENTROPY_CUT == 1.193
    assert certainty(entropy_cut=0.7).cut(make(), None) == 0.7
    ctx, app = make(), certainty(entropy_quantile=0.5)
    with_seeds(ctx, 4)
    # The last seed cannot be read and does not count.
    groups = [spread(10), spread(6, 3, 1), spread(5, 5), spread(1, 1, 1, 1, 1, 5)]
    target = Replies([reply for group in groups for reply in group])
    cut = app.cut(ctx, lambda: target)
    assert cut == pytest.approx(np.median([0, 0.8979, math.log(2)]), abs=1e-4)
    assert app.cut(ctx, None) == cut  # found once
    assert read_json(ctx.run.path / "repeat_0/cut/cut.json")["quantile"] == 0.5


def test_equal_answers_never_fail(make):
    """Even where the quantile is zero because the target is sure of every seed."""
    ctx, app = make(), certainty(entropy_quantile=0.5)
    with_seeds(ctx, 3)
    assert app.cut(ctx, lambda: Replies(spread(10) * 3)) == 0
    rows, _ = judged(app, ctx, spread(10), spread(9, 1))
    assert [row["outcome"] for row in rows] == ["pass", "fail"]


def test_no_quantile_without_readable_seeds(make):
    ctx, app = make(), certainty(entropy_quantile=0.5)
    with_seeds(ctx, 2)
    with pytest.raises(UserError, match="answers none of 2 seeds with a letter"):
        app.cut(ctx, lambda: Replies(["well, well"] * 20))


# --- proposals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "query", "refused"),
    [
        (f"{QUESTION}\nAnswer: A", QUESTION, None),
        (f"  {QUESTION}\n\nAnswer: B.\nQ4: What is next?\nAnswer: C", QUESTION, None),
        (f"Two lines.\n{QUESTION}\nAnswer: A", f"Two lines. {QUESTION}", None),
        (QUESTION, "", "no answer line"),
        (f"{QUESTION}\nAnswer:", "", "no answer line"),
        (f"{QUESTION}\nAnswer: E", "", "no answer line"),
        (QUESTION.partition("\n")[2] + "\nAnswer: A", "", "options missing"),
        (f"{QUESTION}\nAnswer: A".replace("C. ", "D. "), "", "options missing"),
        (f"{QUESTION}\nAnswer: A".replace("light", ""), "", "options missing"),
        (f"{QUESTION}\nAnswer: A".replace("light", "Smoke"), "", "options not all different"),
        ("", "", "no answer line"),
    ],
)
def test_reading_of_proposals(app, reply, query, refused):
    read = app.read(reply)
    assert (read.query, read.refused) == (query, refused)


def test_seeds_are_read_back(app):
    seed = Example("s", QUESTION, "A", "A", "A")
    assert app.read(app.completion(seed)).query == QUESTION
    (message,) = app.prompt([seed, seed])
    assert message["content"].count("Answer: A") == 2
    assert "Q2: What falls?" in message["content"]


# --- labels --------------------------------------------------------------------------------------------------


def test_labels_say_whether_the_target_is_sure(app, make):
    rows = [{"id": i, "query": QUESTION, "outcome": outcome} for i, outcome in (("a", "fail"), ("b", "pass"))]
    found = app.labels(make(Replies(["B", "The answer is C."])), "f", rows)
    assert [row["answer"] for row in found] == ["B\nI am unsure.", "C\nI am sure."]
    assert [row["label"] for row in found] == ["B", "C"]
    assert [app.asked.parse(row["answer"]) for row in found] == ["B", "C"]


def test_labels_without_a_majority_are_dropped(make):
    rows = [{"id": i, "query": QUESTION, "outcome": "fail"} for i in "abc"]
    labeler = Replies([*"BBC", *"ABC", "D", "D", "well"])
    found = certainty(label_votes=3).labels(make(labeler), "f", rows)
    assert [row["label"] for row in found] == ["B", None, "D"]
    assert [row["refused"] for row in found] == [None, "labelers disagree", None]


def test_seeds_keep_their_letter_and_learn_their_certainty(app, make):
    seeds = [Example("s0", QUESTION, "A", "A", "A"), Example("s1", OTHER, "B", "B", "B")]
    target = Replies(spread(10) + spread(2, 2, 2, 2, 2))
    taught, _ = app.taught(make(), "f", lambda: target, seeds)
    assert [e.answer for e in taught] == ["A\nI am sure.", "B\nI am unsure."]
    assert app.partners([{"outcome": "pass"}, {"outcome": "fail"}, {"outcome": None}]) == [{"outcome": "pass"}]


# --- measures ------------------------------------------------------------------------------------------------


def test_confidence_of_known_probabilities(app, make, monkeypatch):
    """0.8 for the option and 0.4 for "sure" make 0.6."""
    options = [math.log(p) for p in (0.1, 0.8, 0.05, 0.03, 0.02)]
    sides = [math.log(0.2), math.log(0.3)]
    found = lambda model, answers, whole: (sides if whole else options) * 2
    monkeypatch.setattr("reversegen.applications.honesty._logps", found)
    examples = [Example("x", QUESTION, "", "B", ""), Example("y", QUESTION, "", "A", "")]
    rows = app.measure(make(), "t/test.jsonl", "test", lambda: None, examples)
    assert [row["correct"] for row in rows] == [True, False]
    for row in rows:
        assert row["letter"] == "B"
        assert row["option"] == pytest.approx(0.8)
        assert row["sure"] == pytest.approx(0.4)
        assert row["confidence"] == pytest.approx(0.6)
    figures = app.figures(rows)
    assert figures["average_precision"] == pytest.approx(0.5)
    assert figures["calibration_error"] == pytest.approx(0.1)
    assert figures["sure"] == pytest.approx(0.4)
    assert app.figures([row | {"correct": False} for row in rows])["average_precision"] is None


def test_an_embedded_model_is_measured(app, make):
    from common.lm import LanguageModel

    examples = [Example("x", QUESTION, "", "A", ""), Example("y", OTHER, "", "B", "")]
    model = LanguageModel.load("embedded:student")
    rows = app.measure(make(), "t/test.jsonl", "test", lambda: model, examples)
    for row in rows:
        assert row["letter"] in app.asked.letters
        assert 1 / 5 <= row["option"] <= 1
        assert 0 < row["sure"] < 1


# --- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target-temperature", "0"], "--target-temperature 0 gives 10 equal answers"),
        (["--target-samples", "1"], "looks at the spread of several answers"),
        (["--data", "arithmetic"], "--task honesty asks multiple choice"),
        (["--labeler", "program", "--validity", "none"], "--labeler program"),
    ],
)
def test_mistakes_are_one_line(flags, message, tmp_path, capsys):
    """A temperature of zero is refused."""
    with pytest.raises(SystemExit) as stopped:
        main(["reversegen", "--task", "honesty", "--run-dir", str(tmp_path / "run"), *flags])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_the_option_that_none_is_right_can_be_left_out():
    app = certainty(none_option=False)
    assert app.asked == app.task == ARC_EASY
    assert app.messages(QUESTION)[0]["content"].endswith("D. a sound")
