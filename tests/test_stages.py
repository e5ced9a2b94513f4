"""Weights that are shared and let go of, and trained models as a run keeps them."""

import dataclasses
import json
import stat

import jax
import numpy as np
import pytest

from common import stages
from common.config import LoraConfig, SampleConfig, TrainConfig
from common.errors import UserError
from common.generate import Record, Request
from common.lm import LanguageModel
from common.model import weights
from common.results.card import ModelCard
from common.results.rundir import RunDir
from common.train.data import Encoded

ASKED = ({"role": "user", "content": "What is the capital of Peru?"},)
FULL = TrainConfig(1e-3, batch_size=2, micro_batch_size=2, epochs=1)
CARD = ModelCard("A student", "embedded:student", "test", "Two examples.", {})
ADAPTERS = dataclasses.replace(FULL, lora=LoraConfig(4))


@pytest.fixture
def base():
    return LanguageModel.load("embedded:student")


def examples(model):
    tokens, start = model.tokenizer.encode_example(ASKED, "Lima")
    return [Encoded(tuple(tokens), start)] * 2


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


class Failing:
    """A generator of which every request fails, each for a reason with a number of its own."""

    name = "failing"

    def __init__(self, good=()):
        self.good = good

    def seen(self, records):
        pass

    def generate(self, requests, sampling, seed):
        fail = lambda i, r: Record(r.id, 0, "failed", None, f"a prompt of {100 + i} tokens leaves no room")
        yield [Record(r.id, 0, "ok", "x") if i in self.good else fail(i, r) for i, r in enumerate(requests)]


def test_a_stage_of_which_every_request_fails_for_one_reason_ends_the_run(tmp_path):
    """A model in this process too; a single request that does not fail shows that it is not all."""
    requests = [Request(str(i), ASKED) for i in range(5)]
    with RunDir.open(tmp_path, "m", {}) as run:
        says = r"a\.jsonl: each of 5 requests failed, and for one reason: a prompt of 100 tokens"
        with pytest.raises(UserError, match=says):
            stages.collect(run, "a.jsonl", Failing(), requests, SampleConfig(), 0)
        assert len(stages.collect(run, "b.jsonl", Failing({3}), requests, SampleConfig(), 0)) == 5
        assert len(stages.collect(run, "c.jsonl", Failing(), requests[:4], SampleConfig(), 0)) == 4


def test_models_of_one_folder_share_their_arrays_and_read_them_again(base):
    other = LanguageModel.load("embedded:student")
    first = base.params
    assert other.params["embed"] is first["embed"]
    weights.release()
    assert base.params["embed"] is not first["embed"]
    assert other.params["embed"] is base.params["embed"]
    same(first, base.params)


def test_other_dtypes_and_changed_files_are_other_weights(base, tmp_path):
    half = LanguageModel.load("embedded:student", dtype="bfloat16")
    assert half.params["embed"].dtype == "bfloat16"
    saved = base.save(tmp_path / "model")
    before = LanguageModel.load(str(tmp_path / "model"))
    dataclasses.replace(saved, base=weights.Weights.held(jax.tree.map(lambda w: w + 1, saved.params))).save(
        tmp_path / "model"
    )
    after = LanguageModel.load(str(tmp_path / "model"))
    assert not np.array_equal(after.params["embed"], before.params["embed"])


def test_a_full_training_lets_go_of_idle_weights_and_adapters_keep_their_own(base):
    other = LanguageModel.load("embedded:teacher")
    held = [id(model.params["embed"]) for model in (base, other)]
    base.start(ADAPTERS)
    assert id(base.params["embed"]) == held[0]
    assert other.base._params is None
    base.start(FULL)
    assert base.base._params is None


def test_a_generator_holds_no_weights_between_batches(base):
    generator = base.generator()
    weights.release()
    assert base.base._params is None
    assert generator.name == base.name


def test_adapters_are_kept_as_such_and_stand_beside_the_base(base, tmp_path):
    with RunDir.open(tmp_path / "run", "test", {}) as run:
        student = stages.fine_tuned(run, "arm/student", base, lambda: examples(base), ADAPTERS)
        names = sorted(file.name for file in (tmp_path / "run/arm/student").iterdir())
        assert names == ["adapter_config.json", "adapter_model.safetensors"]
        settings = json.loads((tmp_path / "run/arm/student/adapter_config.json").read_text())
        assert (settings["r"], settings["base_model_name_or_path"]) == (4, "embedded:student")
        assert student.params["embed"] is base.params["embed"]
        # Read back, not trained again.
        again = stages.fine_tuned(run, "arm/student", base, lambda: pytest.fail("trained again"), ADAPTERS)
        same(again.adapters, student.adapters)
        further = stages.fine_tuned(run, "next/student", student, lambda: examples(base), ADAPTERS)
        moved = lambda a, b: any(
            not np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
        )
        assert moved(further.adapters, student.adapters)


def test_what_is_published_of_adapters_is_a_merged_model_with_the_adapter_beside(base, tmp_path):
    with RunDir.open(tmp_path / "run", "test", {}) as run:
        student = stages.fine_tuned(run, "arm/student", base, lambda: examples(base), ADAPTERS)
        assert stages.publish(run, "arm/student", CARD) == {"adapter": "adapter"}
        assert stages.publish(run, "arm/student", CARD, "proposer") == {"proposer adapter": "proposer_adapter"}
    merged = LanguageModel.load(str(tmp_path / "run/model"))
    tokens = examples(base)[0].tokens
    from common.sample.score import score

    pair = [(tokens[:3], tokens[3:])]
    (beside,), (whole,) = (score(model.params, model.config, pair) for model in (student, merged))
    np.testing.assert_allclose(beside, whole, atol=1e-4)
    (plain,) = score(base.params, base.config, pair)
    assert np.abs(plain - whole).max() > 1e-3
    assert (tmp_path / "run/adapter/adapter_config.json").exists()


def test_what_was_trained_in_full_is_published_as_it_is(base, tmp_path):
    with RunDir.open(tmp_path / "run", "test", {}) as run:
        student = stages.fine_tuned(run, "arm/student", base, lambda: examples(base), FULL)
        assert stages.publish(run, "arm/student", CARD) == {}
    same(LanguageModel.load(str(tmp_path / "run/model")).params, student.params)
    folder = tmp_path / "run/model"
    text = (folder / "README.md").read_text()
    assert text.startswith('---\nlicense: "apache-2.0"\nlibrary_name: "transformers"\n')
    assert "Trained from embedded:student." in text
    usual = stat.S_IMODE((folder / "config.json").stat().st_mode)
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {usual}, (
        "no file is its owner's alone"
    )
