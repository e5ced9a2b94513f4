"""Judging and labelling in `--task math`, with scripted targets and labelers."""

import types

import pytest

from common.backends.callback import CallbackGenerator
from common.errors import UserError
from common.results.rundir import RunDir
from reversegen.applications.base import Context
from reversegen.applications.math import INVALID, VALID, Solving
from reversegen.config import Config
from reversegen.experiment import application
from reversegen.targets import label

SUM = "There are 3 pears in a box and 4 pears on a table. How many pears are there in all?"
"""Written like the task's own problems, so that a program can solve it."""
OTHER = "What is it?"


@pytest.fixture
def place(tmp_path):
    with RunDir.open(tmp_path / "run", "reversegen", {}) as run:
        yield run


def script(*replies: str):
    """Gives the replies one after another, and counts the calls."""
    left = list(replies)

    def write(messages):
        write.asked.append(messages[-1]["content"])
        return left.pop(0)

    write.asked = []
    return write


def labeler(write):
    return lambda account: CallbackGenerator("script", write)


def target(*replies: str):
    return lambda: types.SimpleNamespace(generator=lambda: CallbackGenerator("target", script(*replies)))


def context(place, write=None, **settings) -> tuple[Context, Solving]:
    config = Config(**settings).resolved()
    return Context(place, 0, 0, None if write is None else labeler(write)), application(config)


def queries(*texts: str) -> list[dict]:
    return [{"id": f"q{i}", "query": text, "group": "g"} for i, text in enumerate(texts)]


def by_labeler(**more):
    return {"reference": "labeler", "validity": "none", "data": "arithmetic"} | more


def test_equal_numbers_pass_and_a_missing_answer_fails(place):
    """72, 72.0 and 72.00 are equal; an answer without a number is a wrong one."""
    for i, (answer, outcome) in enumerate(
        [("#### 72", "pass"), ("#### 72.0", "pass"), ("#### 72.00", "pass"), ("#### 73", "fail"), ("hm", "fail")]
    ):
        ctx, app = context(place, script("#### 72"), **by_labeler(label_votes=1))
        (verdict,) = app.verdicts(ctx, f"round_{i}", queries(OTHER), target(answer))
        assert (verdict["outcome"], verdict["score"]) == (outcome, float(outcome == "fail"))
        assert verdict["answers"] == [answer]
        assert verdict["reference"] == "72"


def test_references_are_agreed_on_by_more_than_half(place):
    """(a, a, b) keeps a, in the words of its first; (a, b, c) is dropped before the target is asked."""
    write = script("so #### 5", "#### 5.0", "#### 6", "#### 1", "#### 2", "#### 3", "none", "#### 8", "none")
    ctx, app = context(place, write, **by_labeler())
    found = app.verdicts(ctx, "round_0", queries(OTHER, "Who?", "Where?"), target("#### 6"))
    assert [row["outcome"] for row in found] == ["fail", "invalid", "invalid"]
    assert (found[0]["reference"], found[0]["reference_answer"]) == ("5", "so #### 5")
    assert [row["reason"] for row in found[1:]] == ["no reference answer"] * 2
    assert len(write.asked) == 9


@pytest.mark.parametrize(
    ("reply", "valid"), [("Yes", True), ("yes, it is", True), ("No.", False), ("", False), ("I think so", False)]
)
def test_the_validity_check_of_a_labeler(reply, valid, place):
    write = script(reply, "#### 7")
    ctx, app = context(place, write, **by_labeler(validity="labeler", label_votes=1))
    (verdict,) = app.verdicts(ctx, "round_0", queries(OTHER), target("#### 1"))
    assert verdict["outcome"] == ("fail" if valid else "invalid")
    assert verdict["reason"] == ("" if valid else INVALID["labeler"])
    assert len(write.asked) == 1 + valid
    assert write.asked[0] == VALID.replace("{query}", OTHER)


def test_a_program_tells_valid_queries_and_their_answers(place):
    ctx, app = context(place)
    found = app.verdicts(ctx, "round_0", queries(OTHER, SUM, SUM), target("#### 7", "#### 8"))
    assert [row["outcome"] for row in found] == ["invalid", "pass", "fail"]
    assert found[1]["reference"] == "7"
    assert found[1]["reference_answer"] is None


def test_soft_failures_are_a_share_of_several_answers(place):
    ctx, app = context(place, target_samples=3)
    answers = ["#### 7", "#### 7", "#### 8", "#### 8", "#### 7", "none"]
    found = app.verdicts(ctx, "round_0", queries(SUM, SUM), target(*answers))
    assert [(row["outcome"], round(row["score"], 3)) for row in found] == [("pass", 0.333), ("fail", 0.667)]
    assert found[1]["answers"] == answers[3:]


def judged(*texts: str, reference: str, answer: str | None = None) -> list[dict]:
    told = {"outcome": "fail", "reference": reference, "reference_answer": answer}
    return [row | told for row in queries(*texts)]


def test_a_label_must_state_the_reference_and_noise_is_counted_first(place):
    """Of three labels one is right, one agreed on but wrong, on one the labelers disagree."""
    replies = ["It is 3 + 4 = 7. #### 7", "#### 7", "#### 9", *["#### 9"] * 3, "#### 1", "#### 2", "#### 3"]
    ctx, app = context(place, script(*replies))
    found = label(ctx, app, judged(SUM, SUM, SUM, reference="7"), "final")
    assert [row["answer"] for row in found.rows] == ["It is 3 + 4 = 7. #### 7"]
    assert found.count.refused == {"labelers disagree": 1, "not the reference answer": 1}
    assert (found.count.asked, found.count.known, found.count.wrong) == (3, 2, 1)
    stored = [row["label_correct"] for row in ctx.run.once("final/labelled.jsonl", list)]
    assert stored == [True, False, None]


def test_the_reference_of_a_labeler_is_its_label(place):
    """Nothing is asked a second time, and a reference that a program knows to be wrong is counted as noise."""
    write = script()
    ctx, app = context(place, write, **by_labeler())
    rows = judged(SUM, OTHER, reference="8", answer="#### 8")
    found = label(ctx, app, rows, "final")
    assert [row["answer"] for row in found.rows] == ["#### 8", "#### 8"]
    assert (found.count.known, found.count.wrong) == (1, 1)
    assert write.asked == []


def test_a_program_labels(place):
    ctx, app = context(place, labeler="program")
    found = label(ctx, app, judged(SUM, reference="7"), "final")
    assert app.task.correct(found.rows[0]["answer"], "7")
    assert (found.count.known, found.count.wrong) == (1, 0)


@pytest.mark.parametrize("change", [{"reference": "labeler"}, {"validity": "labeler"}])
def test_a_program_that_must_ask_a_labeler_is_refused(change):
    with pytest.raises(UserError, match="--labeler program"):
        Config(labeler="program", **change).resolved()


def test_a_task_without_numbers_is_refused():
    with pytest.raises(UserError, match="compares numbers"):
        application(Config(data="trec").resolved())


def test_a_completion_is_read_back_as_the_query():
    app = application(Config().resolved())
    seed = app.task.load("train", None, 0)[0]
    assert app.read(app.completion(seed)).query == seed.question
    assert app.read(f"Problem: {SUM}\nProblem: another").query == SUM
    assert app.read(f" {SUM} ").query == SUM
    assert app.read("Problem: ").refused == "empty"
