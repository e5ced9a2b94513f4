"""Likelihoods of texts: against PyTorch, where they begin, start tokens, chat templates, continuation."""

import json

import pytest

from common.errors import UserError
from common.evals.likelihood import Item, ModelLikelihood, Reader, scored
from common.evals.measure import Store
from common.lm import LanguageModel
from common.model.tokenizer import Tokenizer
from common.results.rundir import RunDir


@pytest.mark.parametrize("name", ["qwen2", "stories260K"])
def test_option_likelihoods_are_those_of_pytorch(name, fixtures, request):
    golden = json.loads((fixtures / "option_likelihoods.json").read_text(encoding="utf-8"))
    folder = fixtures / name
    if name == "stories260K":
        folder = request.getfixturevalue("shared_data") / "weights" / name / "hf"
    model = LanguageModel.load(str(folder))
    texts = [tuple(pair) for pair in golden["texts"]]
    pairs = Reader(model.tokenizer).pairs(texts)
    found = ModelLikelihood(model, batch_size=4)(texts)
    for (_, counted), (logp, count), want in zip(pairs, found, golden["models"][name], strict=True):
        assert counted == want["tokens"]
        assert count == len(want["logps"])
        assert logp == pytest.approx(sum(want["logps"]), abs=2e-3, rel=1e-5)


class _Backend:
    """A tokenizer of words, which join the blank before them, as a byte-level one does."""

    is_fast, chat_template = True, None
    pad_token_id = eos_token_id = None
    added_tokens_decoder, all_special_tokens = {}, ()

    def __init__(self, bos=None, puts=False):
        self.bos_token_id, self._puts = bos, puts

    def __len__(self):
        return 100

    def __call__(self, text, add_special_tokens=True, return_offsets_mapping=False, verbose=False):
        texts, ids, places = [text] if isinstance(text, str) else text, [], []
        for one in texts:
            ends = [i for i, letter in enumerate(one) if letter == " " and i] + [len(one)]
            spans = list(zip([0, *ends], ends, strict=False))
            places.append(spans)
            start = [self.bos_token_id] if self._puts and add_special_tokens else []
            ids.append(start + [10 + end - begin for begin, end in spans])
        if isinstance(text, str):
            ids, places = ids[0], places[0]
        return {"input_ids": ids, "offset_mapping": places}


@pytest.mark.parametrize(
    ("bos", "puts", "option", "sentence"),
    [
        (None, False, ([13, 14], [14]), ([13], [14, 14])),  # no start token: the first token is a condition
        (7, False, ([13, 14], [14]), ([7], [13, 14, 14])),  # named, but not put in front of text
        (7, True, ([7, 13, 14], [14]), ([7], [13, 14, 14])),
    ],
)
def test_the_start_token_is_the_tokenizers_own(bos, puts, option, sentence):
    reader = Reader(Tokenizer(_Backend(bos, puts)))
    assert reader.pairs([("Who was", " she"), ("", "Who was she")]) == [option, sentence]


def test_a_token_across_the_border_belongs_to_the_text():
    reader = Reader(Tokenizer(_Backend()))
    assert reader.pairs([("Who wa", "s she")]) == [([13], [14, 14])]


def test_what_does_not_fit_or_counts_nothing_is_none(fixtures):
    likelihood = ModelLikelihood(LanguageModel.load(str(fixtures / "qwen2")))
    found = likelihood([("word " * 400, "x"), ("", ""), ("Hello", " you")])
    assert found[:2] == [None, None]
    assert found[2][1] > 1
    assert likelihood([]) == []


def test_scored_rows_continue_where_they_were_cut(tmp_path):
    items = [Item(str(i), (("", "ab"[: i % 2 + 1]), ("", "abc"))) for i in range(7)]
    calls = []

    def likelihood(texts):
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [None if len(text) == 2 else (-float(len(text)), len(text)) for _, text in texts]

    with RunDir.open(tmp_path / "run", "profile", {}) as place:
        with pytest.raises(KeyboardInterrupt):
            scored(items, likelihood, "rows.jsonl", Store(place), batch=3)
        rows = scored(items, likelihood, "rows.jsonl", Store(place), batch=3)
        assert scored(items, likelihood, "rows.jsonl", Store(place)) == rows
    assert calls == [6, 6, 6, 2]
    assert [row["id"] for row in rows] == [item.id for item in items]
    assert rows[0] == {"id": "0", "logps": [-1.0, -3.0], "tokens": [1, 3]}
    assert rows[1]["logps"] is None


# ---- replies under a chat template


BLANK_BEFORE_REPLY = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [None, BLANK_BEFORE_REPLY])
def test_a_reply_is_scored_as_the_template_writes_it(template, fixtures):
    """Condition and counted tokens are the beginning of what is trained on; the end token is not counted."""
    tokenizer = Tokenizer.load(fixtures / "qwen2")
    assert tokenizer.has_template
    if template is not None:
        tokenizer._backend.chat_template = template
    messages = ({"role": "user", "content": "How many is 2 + 3?"},)
    ((condition, counted),) = Reader(tokenizer).pairs([(messages, "It is 5.")])
    assert condition + counted == tokenizer.encode_example(messages, "It is 5.")[0][: len(condition + counted)]
    assert tokenizer.decode(counted) == ("It is 5." if template is None else " It is 5.")
    assert condition == tokenizer.encode_prompt(messages)


def test_without_a_template_a_reply_stands_after_answer():
    class Letters(_Backend):
        def __call__(self, text, add_special_tokens=True, return_offsets_mapping=False, verbose=False):
            texts = [text] if isinstance(text, str) else text
            start = [self.bos_token_id] if self._puts and add_special_tokens else []
            ids = [start + [ord(letter) for letter in one] for one in texts]
            places = [[(i, i + 1) for i in range(len(one))] for one in texts]
            return {"input_ids": ids[0] if isinstance(text, str) else ids, "offset_mapping": places}

    found = Reader(Tokenizer(Letters(7, True))).pairs([(({"role": "user", "content": "ab"},), "cd")])
    assert found == [([7, *map(ord, "ab\nAnswer:")], [*map(ord, " cd")])]


def test_places_of_tokens(fixtures):
    tokenizer = Tokenizer.load(fixtures / "qwen2")
    text = "Hello, naïve world"
    ((ids, places),) = tokenizer.encode_with_places([text])
    assert ids == tokenizer.encode_text(text)
    assert (places[0][0], places[-1][1]) == (0, len(text))
    assert tokenizer.encode_with_places([]) == []
    slow = _Backend()
    slow.is_fast = False
    with pytest.raises(UserError, match=r"needs a tokenizer\.json"):
        Tokenizer(slow).encode_with_places(["a"])
