"""Replies held to a form: what ends a value, how fields follow one another, and which choice is taken."""

import dataclasses

import numpy as np
import pytest

from common.config import SampleConfig
from common.generate import Request
from common.lm import LanguageModel
from common.model.tokenizer import Tokenizer
from common.sample.form import fill, value_end
from common.sample.prompt import Completion
from common.tasks.replies import read_fields

ASK = ({"role": "user", "content": "Write one."},)


class Letters(Tokenizer):
    """A token a character; token 0 ends an answer."""

    def __init__(self):
        self.eos_ids = (0,)

    def encode_begun(self, messages, answer):
        return [ord(c) for c in f"{messages[0]['content']}\n{answer}"]

    def decode(self, ids):
        return "".join(map(chr, ids))


def writes(texts, asked):
    """A `Draw` that gives the next of `texts` to each prompt, as far as its limit and its end let it."""
    left = iter(texts)

    def draw(prompts):
        asked.append([Letters().decode(prompt.tokens) for prompt in prompts])
        found = []
        for prompt in prompts:
            tokens = [ord(c) for c in next(left)] + [0]
            limit = prompt.sampling.max_new_tokens
            finish = "stop" if len(tokens) <= limit else "length"
            keep = prompt.stop_at(tokens[:limit])
            tokens, finish = (tokens[:limit], finish) if keep is None else (tokens[:keep], "stop")
            found.append([Completion(tokens, [-1.0] * len(tokens), finish)])
        return found

    return draw


def filled(request, texts, tokens=50, score=None, positions=1000):
    asked = []
    score = score or (lambda pairs: [])
    draw = writes(texts, asked)
    (records,) = fill([request], SampleConfig(tokens), Letters(), lambda name, n: 0, draw, score, positions)
    return records, asked


def test_labels_are_ours_and_values_the_model_s():
    """Whatever a model adds behind a value, the reply has its fields and nothing else."""
    request = Request("a", ASK, fields=("Text", "Label"))
    (record,), asked = filled(request, [" Who wrote it?\nLabel: me\nText: another", " human\n\nThis one is …"])
    assert record.text == "Text: Who wrote it?\nLabel: human"
    assert read_fields(record.text, request.fields) == {"Text": "Who wrote it?", "Label": "human"}
    assert record.status == "ok"
    assert asked == [["Write one.\nText:"], ["Write one.\nText: Who wrote it?\nLabel:"]]


def test_all_fields_share_one_limit():
    """A reply that needs more tokens is cut, in whichever field it is, and nothing more is written."""
    request = Request("a", ASK, n=2, fields=("Text", "Label"))
    (first, second), asked = filled(request, ["x" * 40, "y\n", "z" * 9], tokens=10)
    assert (first.status, first.completion_tokens) == ("length", 10)
    assert (second.status, second.text) == ("length", "Text: y\nLabel: " + "z" * 8)
    assert [len(prompts) for prompts in asked] == [2, 1]


def test_an_empty_field_ends_the_reply():
    request = Request("a", ASK, fields=("Text", "Label"))
    (record,), asked = filled(request, [""])
    assert record.text == "Text:"
    assert len(asked) == 1


def test_the_likeliest_choice_is_taken():
    seen = []

    def score(pairs):
        seen.extend(Letters().decode([*a, *b]) for a, b in pairs)
        return [np.full(len(answer), -1.0 if "dog" in Letters().decode(answer) else -2.0) for _, answer in pairs]

    request = Request("a", ASK, fields=("Text", "Label"), choices=(("Label", ("cat", "dog")),))
    (record,), asked = filled(request, [" It barks.\n"], score=score)
    assert record.text == "Text: It barks.\nLabel: dog"
    assert [text.rpartition("\n")[0].rpartition(" ")[2] for text in seen] == ["cat", "dog"]
    assert len(asked) == 1, "nothing is sampled for a field with choices"


@pytest.mark.parametrize(("positions", "status"), [(len("Write one.\nLabel: human\n"), "ok"), (23, "failed")])
def test_a_reply_without_room_for_its_choices_fails_alone(positions, status):
    request = Request("a", ASK, fields=("Label",), choices=(("Label", ("me", "human")),))
    blank = ({"role": "user", "content": "?"},)
    for asked in (request, dataclasses.replace(request, blank=blank)):
        (record,), _ = filled(
            asked, [], score=lambda pairs: [np.zeros(len(p[1])) for p in pairs], positions=positions
        )
        assert record.status == status
        assert (record.error is None) == (record.text is not None) == (status == "ok")
        assert status == "ok" or "leaves no room for 'human' within the model's 23 positions" in record.error


def test_with_a_blank_prompt_the_question_decides():
    """A choice that is likely whatever is asked is not what the question makes likely."""
    usual = {"cat": -1.0, "dog": -5.0}
    blank = ({"role": "user", "content": "N/A"},)

    def score(pairs):
        found = []
        for prompt, answer in pairs:
            choice = "dog" if "dog" in Letters().decode(answer) else "cat"
            asked = Letters().decode(prompt).startswith("Write")
            found.append(np.array([usual[choice] + (2.0 if asked and choice == "dog" else 0.0)]))
        return found

    choices = (("Label", ("cat", "dog")),)
    request = Request("a", ASK, fields=("Label",), choices=choices)
    assert filled(request, [], score=score)[0][0].text == "Label: cat"
    request = Request("a", ASK, fields=("Label",), choices=choices, blank=blank)
    assert filled(request, [], score=score)[0][0].text == "Label: dog"


@pytest.mark.parametrize(
    ("text", "last", "value"),
    [
        (" one line\nmore", False, " one line"),
        ("\n\n after blanks\n", False, "\n\n after blanks"),
        (" 3 + 4\n= 7\n#### 7\n\nNext", True, " 3 + 4\n= 7\n#### 7"),
        (" 3 + 4\n**Problem: another", True, " 3 + 4"),
        (" no end yet", False, None),
        (" two\nlines", True, None),
    ],
)
def test_where_a_value_ends(text, last, value):
    end = value_end(text, ("Problem", "Solution"), last)
    assert (None if end is None else text[:end]) == value


def test_a_held_model_s_records_depend_on_their_request_alone(fixtures):
    """In any company, a request gets the same reply; the embedded models write their form themselves."""
    model = LanguageModel.load(str(fixtures / "qwen2"))
    choices = (("Label", ("red", "green")),)
    requests = [Request(f"r{i}", ASK, 2, fields=("Text", "Label"), choices=choices) for i in range(3)]
    requests.insert(1, Request("free", ASK))
    ask = lambda some: [r for b in model.generator().generate(some, SampleConfig(12, 1.0), 0) for r in b]
    together = ask(requests)
    assert [record.id for record in together] == ["r0", "r0", "free", "r1", "r1", "r2", "r2"]
    assert [record for request in requests for record in ask([request])] == together
    held = [record for record in together if record.id != "free"]
    assert all(record.text.startswith("Text:") for record in held)
    whole = [record for record in held if record.status == "ok" and "\n" in record.text]
    assert all(record.text.endswith(("\nLabel: red", "\nLabel: green")) for record in whole)
    assert LanguageModel.load("embedded:teacher").generator()._held is False
