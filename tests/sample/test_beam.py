"""Diverse beam search against its plain form."""

import pytest

from common.config import SampleConfig
from common.generate import Request
from common.lm import LanguageModel
from common.sample.beam import BeamGenerator, diverse
from common.sample.reference import diverse_reference

ASKS = ("Tell me a short story about a fox.", "What did the owl do?", "Write about a cow.")


@pytest.fixture(scope="module")
def student():
    return LanguageModel.load("embedded:student")


def beam(model):
    return BeamGenerator(model.name, model.params, model.config, model.tokenizer)


def test_answers_are_those_of_the_reference(student):
    encode = lambda text: student.tokenizer.encode_prompt([{"role": "user", "content": text}])
    settings = (student.tokenizer.eos_ids, 4, 12)
    for penalty in (0.0, 1.0):
        found = diverse(student.params, student.config, [encode(text) for text in ASKS], *settings, penalty)
        for text, completions in zip(ASKS, found, strict=True):
            expected = diverse_reference(student.params, student.config, encode(text), *settings, penalty)
            assert [completion.tokens for completion in completions] == expected
            assert len({tuple(tokens) for tokens in expected}) == (1 if penalty == 0 else 4)


def test_records(student):
    """Groups of a prompt are its samples, the first the greedy answer; others in the batch change nothing."""
    ask = [Request(text, ({"role": "user", "content": text},), 3) for text in ASKS]
    long = Request("long", ({"role": "user", "content": "word " * 600},), 3)
    (records,) = beam(student).generate([ask[0], long, *ask[1:]], SampleConfig(24), 0)
    assert [(record.id, record.sample) for record in records[:4]] == [(ASKS[0], i) for i in range(3)] + [
        ("long", 0)
    ]
    assert {record.status for record in records[3:6]} == {"failed"}
    (alone,) = beam(student).generate(ask[1:2], SampleConfig(24), 0)
    assert [record.text for record in alone] == [record.text for record in records[6:9]]
    greedy = [Request(request.id, request.messages) for request in ask]
    (expected,) = student.generator().generate(greedy, SampleConfig(24), 0)
    assert [r.text for r in expected] == [r.text for r in records if r.sample == 0 and r.status != "failed"]
