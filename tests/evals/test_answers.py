"""Graded answers: as they are written, and by the likelihood of a task's choices."""

import numpy as np
import pytest

from common.config import SampleConfig, TrainConfig
from common.evals.evaluate import answer_batches, choice_scores, scored_batches
from common.generate import Record
from common.lm import LanguageModel
from common.sample.score import score
from common.tasks.base import Example
from common.tasks.grading import MARK
from common.tasks.labelled import LabelledText
from common.tasks.worked import GSM8K

MOOD = LabelledText(
    name="mood",
    instruction="Which mood?",
    noun="text",
    labels=(("0", "sad"), ("1", "glad"), ("2", "glad and very tired")),
    answer_tokens=6,
)
EXAMPLES = [Example(str(i), f"Ana has {i} pens and {'no ' * i}cup", "sad", "sad", "sad") for i in range(5)]


@pytest.fixture(scope="module")
def student():
    return LanguageModel.load("embedded:student")


def test_choices_score_as_trained_answers_do_but_for_the_end(student):
    asked = [MOOD.messages(example.question) for example in EXAMPLES]
    for messages, own in zip(asked, choice_scores(student, asked, MOOD.choices), strict=True):
        encoded = [student.tokenizer.encode_example(messages, choice) for choice in MOOD.choices]
        assert all(ids[-1] in student.tokenizer.eos_ids for ids, _ in encoded)
        alone = score(student.params, student.config, [(ids[:start], ids[start:-1]) for ids, start in encoded])
        np.testing.assert_allclose([choice.logp for choice in own], [logps.sum() for logps in alone], atol=1e-3)
        assert [choice.tokens for choice in own] == [len(logps) for logps in alone]


def test_the_choice_that_the_question_raises_most_is_the_answer_and_the_reply_stands_beside_it(student):
    rows = [row for batch in scored_batches(lambda: student, MOOD, EXAMPLES)(0) for row in batch]
    written = [row for batch in answer_batches(student.generator, MOOD, EXAMPLES)(0) for row in batch]
    [blank] = choice_scores(student, [MOOD.messages("N/A")], MOOD.choices)
    for row, reply in zip(rows, written, strict=True):
        assert list(row["logps"]) == list(row["pmi"]) == list(MOOD.choices)
        sums, pmi = (np.array(list(row[name].values())) for name in ("logps", "pmi"))
        np.testing.assert_allclose(pmi, sums - [choice.logp for choice in blank], atol=1e-3)
        assert row["text"] == row["parsed"] == MOOD.choices[pmi.argmax()]
        assert row["correct"] is (row["parsed"] == "sad")
        assert row["mean_logp"] == pytest.approx(np.log(np.exp(pmi).max() / np.exp(pmi).sum()), abs=1e-4)
        assert row["likeliest"] == MOOD.choices[sums.argmax()]
        assert row["per_token"] == MOOD.choices[(sums / [choice.tokens for choice in blank]).argmax()]
        assert (row["reply"], row["read"], row["status"]) == (reply["text"], reply["parsed"], reply["status"])
    rest = [row for batch in scored_batches(lambda: student, MOOD, EXAMPLES)(3) for row in batch]
    assert rest == rows[3:]
    learned = [row for batch in scored_batches(lambda: student, MOOD, EXAMPLES, learned=True)(0) for row in batch]
    for row, other in zip(learned, rows, strict=True):
        assert row["text"] == row["parsed"] == row["likeliest"] == other["likeliest"]
        sums = np.array(list(row["logps"].values()))
        assert row["mean_logp"] == pytest.approx(np.log(np.exp(sums).max() / np.exp(sums).sum()), abs=1e-4)
        assert (row["logps"], row["pmi"]) == (other["logps"], other["pmi"])
    assert list(scored_batches(lambda: pytest.fail("loaded for nothing"), MOOD, EXAMPLES)(5)) == []


def test_what_follows_from_the_likelihoods_is_not_written(student, monkeypatch):
    taught = [(MOOD.messages(e.question), "sad" if i < 3 else "no idea") for i, e in enumerate(EXAMPLES)]
    settings = TrainConfig(epochs=40.0, batch_size=4, micro_batch_size=4, learning_rate=3e-3)
    trained = student.fine_tuned(taught, settings)
    written = [row for batch in answer_batches(trained.generator, MOOD, EXAMPLES)(0) for row in batch]
    assert [row["text"] for row in written] == ["sad"] * 3 + ["no idea"] * 2
    asked = []
    real = LanguageModel.generator

    def generator(model):
        made = real(model)
        generate = made.generate
        made.generate = lambda requests, *rest: asked.extend(r.id for r in requests) or generate(requests, *rest)
        return made

    monkeypatch.setattr(LanguageModel, "generator", generator)
    everyone = [example.id for example in EXAMPLES]
    for how, ids in (
        (None, ["3", "4"]),
        (SampleConfig(2), everyone),  # no room for the end
        (SampleConfig(6, stop=("d",)), everyone),
        (SampleConfig(6, temperature=1.0), everyone),
    ):
        rows = [row for batch in scored_batches(lambda: trained, MOOD, EXAMPLES, how)(0) for row in batch]
        plain = [row for batch in answer_batches(lambda: real(trained), MOOD, EXAMPLES, how)(0) for row in batch]
        assert asked == ids
        for row, other in zip(rows, plain, strict=True):
            assert (row["id"], row["reply"], row["read"]) == (other["id"], other["text"], other["parsed"])
            assert row["status"] == other["status"]
        asked.clear()


def test_a_draft_in_front_of_an_answer_is_not_graded():
    class Thinks:
        name = "thinks"

        def generate(self, requests, sampling, seed):
            texts = [f"<think>{MARK} 5</think>The answer is 6", f"{MARK} 5", "<think>6, or"]
            yield [Record(r.id, 0, "ok", text) for r, text in zip(requests, texts, strict=True)]

    examples = [Example(str(i), "How many?", "6", "6", "all") for i in range(3)]
    [rows] = answer_batches(Thinks, GSM8K, examples)(0)
    assert [row["parsed"] for row in rows] == ["6", "5", None]
    assert [row["correct"] for row in rows] == [True, False, False]
    assert rows[0]["text"].startswith("<think>")
