"""The generator that runs a model in process: records, seeds, batches and stop strings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.config import ModelConfig, SampleConfig
from common.errors import UserError
from common.generate import Record, Request
from common.model import decoder
from common.model.tokenizer import Tokenizer
from common.results.rundir import RunDir
from common.sample import local
from common.sample.local import LocalGenerator, sample_seed

LETTERS = "abcdefghijklmnopqrstuvwxyz .,!?"
CONFIG = ModelConfig(
    family="llama",
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=96,
)
SAMPLING = SampleConfig(max_new_tokens=20, temperature=1.0)


class Letters(Tokenizer):
    """A tokenizer with a token a letter; token 31 ends an answer."""

    def __init__(self):
        self.eos_ids, self.pad_id = (31,), 31

    def encode_prompt(self, messages):
        return [LETTERS.index(letter) for message in messages for letter in message["content"]]

    def decode(self, ids):
        return "".join(LETTERS[i] for i in ids if i < 31)


@pytest.fixture(scope="module")
def generator():
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), decoder.abstract_params(CONFIG)
    )
    return LocalGenerator("letters", params, CONFIG, Letters(), slots=4)


def _request(name, text="tell me", n=1):
    return Request(name, ({"role": "user", "content": text},), n)


def _records(generator, requests, sampling=SAMPLING, seed=0):
    return [record for batch in generator.generate(requests, sampling, seed) for record in batch]


def test_one_record_a_sample_in_the_order_of_requests(generator):
    records = _records(generator, [_request("b", "tell me", 3), _request("a", "why?", 2)])
    assert [(record.id, record.sample) for record in records] == [("b", 0), ("b", 1), ("b", 2), ("a", 0), ("a", 1)]
    assert {record.prompt_tokens for record in records[:3]} == {7}
    for record in records:
        assert record.completion_tokens == len(record.text) + (record.status == "ok")
        assert (record.status == "length") == (record.completion_tokens == 20 and len(record.text) == 20)
        assert record.error is None
    assert {record.status for record in records} == {"ok", "length"}


def test_a_record_depends_on_seed_id_and_sample_alone(generator):
    requests = [_request(str(i), "abc"[: 1 + i % 3], 2) for i in range(9)]
    records = _records(generator, requests)
    assert _records(generator, requests) == records
    assert [r for request in requests for r in _records(generator, [request])] == records
    others = _records(generator, requests, seed=1)
    assert sum(a.text != b.text for a, b in zip(records, others, strict=True)) > 12
    assert len({record.text for record in records}) > 12  # equal prompts, but other ids


def test_waves_of_fixed_size_and_a_run_cut_between_them(generator, monkeypatch):
    monkeypatch.setattr(local, "BATCH", 4)
    requests = [_request(str(i)) for i in range(10)]
    batches = list(generator.generate(requests, SAMPLING, 0))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert list(generator.generate(requests[4:], SAMPLING, 0)) == batches[1:]
    monkeypatch.undo()
    assert list(generator.generate(requests, SAMPLING, 0)) == [[record for batch in batches for record in batch]]


@pytest.mark.parametrize("stop", [("e",), ("a ", "o"), ("zq!",)])
def test_text_ends_before_the_first_stop_string(generator, stop):
    requests = [_request(str(i)) for i in range(12)]
    free = _records(generator, requests)
    cut = _records(generator, requests, dataclasses.replace(SAMPLING, stop=stop))
    for whole, record in zip(free, cut, strict=True):
        found = [place for string in stop if (place := whole.text.find(string)) >= 0]
        assert record.text == whole.text[: min(found, default=None)]
        assert record.status == ("ok" if found else whole.status)
        assert record.completion_tokens <= whole.completion_tokens
    assert (cut != free) == (stop != ("zq!",))


def test_a_prompt_that_does_not_fit_fails_alone(generator):
    records = _records(
        generator, [_request("a"), _request("long", "x" * 80, 2), _request("none", ""), _request("b")]
    )
    assert [record.status == "failed" for record in records] == [False, True, True, True, False]
    for record, error in zip(records[1:4], ["80 tokens leaves no room for 20"] * 2 + ["is empty"], strict=True):
        assert record.text is None
        assert error in record.error
        assert "\n" not in record.error
    kept = [records[0], records[4]]
    assert kept == _records(generator, [_request("a"), _request("b")])


def test_greedy_samples(generator):
    greedy = SampleConfig(max_new_tokens=5)
    first, second = _records(generator, [_request("a"), _request("b")], greedy)
    assert first.text == second.text
    with pytest.raises(UserError, match="'a' asks for 2 greedy samples"):
        generator.generate([_request("a", n=2)], greedy, 0)


def test_mistakes_are_found_before_any_work(generator):
    with pytest.raises(UserError, match="'a' comes twice"):
        generator.generate([_request("a"), _request("b"), _request("a")], SAMPLING, 0)
    with pytest.raises(UserError, match="top_p must be above 0"):
        generator.generate([], dataclasses.replace(SAMPLING, top_p=1.5), 0)


def test_no_requests(generator):
    assert list(generator.generate([], SAMPLING, 0)) == []


def test_seeds_are_stable():
    """Stored runs depend on them."""
    assert sample_seed(0, "row-1", 0) == 4044586123076068818
    assert (
        len({sample_seed(*key) for key in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a\\x001", 0)]})
        == 5
    )


def test_quiet_when_not_a_terminal(generator, capfd):
    _records(generator, [_request("a")])
    assert capfd.readouterr() == ("", "")


def test_a_wave_torn_within_a_request_is_completed_without_doubles(tmp_path):
    """Three samples a request: a journal that was cut after four rows goes on with the fifth."""
    from common.evals.evaluate import answer_batches
    from common.tasks.arithmetic import Arithmetic
    from llm2llm.augment import collect

    class Counting:
        name = "counting"

        def generate(self, requests, sampling, seed):
            for request in requests:
                yield [Record(request.id, i, "ok", f"{request.id} {i} #### 1") for i in range(request.n)]

        def seen(self, records):
            pass

    task = Arithmetic()
    examples = task.load("train", None, 0)[:3]
    requests = [Request(e.id, task.messages(e.question), 3) for e in examples]
    wanted = [(e.id, i) for e in examples for i in range(3)]
    with RunDir.open(tmp_path / "run", "test", {}) as place:
        whole = collect(place, "whole.jsonl", Counting(), requests, SampleConfig(8, temperature=1.0), 0)
        assert [(r.id, r.sample) for r in whole] == wanted
        place.journal("torn.jsonl.part").append([dataclasses.asdict(record) for record in whole[:4]])
        assert collect(place, "torn.jsonl", Counting(), requests, SampleConfig(8, temperature=1.0), 0) == whole
        batches = answer_batches(Counting, task, examples, SampleConfig(8, temperature=1.0), 0, 3)
        rows = place.collect("answers.jsonl", batches)
        place.journal("part.jsonl.part").append(rows[:4])
        assert place.collect("part.jsonl", batches) == rows
        assert [row["id"] for row in rows] == [name for name, _ in wanted]
