"""A language model as a notebook uses it: trained, saved and asked in a few lines."""

import numpy as np
import pytest
import transformers

from common.config import LoraConfig, TrainConfig
from common.errors import UserError
from common.evals.likelihood import ModelLikelihood
from common.lm import LanguageModel
from common.model.peft import base_of

ASKED = ({"role": "user", "content": "What is the capital of Peru?"},)


@pytest.fixture(scope="module")
def student():
    return LanguageModel.load("embedded:student")


@pytest.fixture(scope="module")
def tuned(student):
    return student.fine_tuned([(ASKED, "Lima")], TrainConfig(1e-3))


def likelihood(model, answer="Lima"):
    ((logp, _),) = ModelLikelihood(model)([(ASKED, answer)])
    return logp


def test_what_was_learned_is_likelier_and_the_first_model_stays_as_it_was(student, tuned):
    before = likelihood(student)
    assert likelihood(tuned) > before + 10
    assert likelihood(student) == before


def test_a_saved_model_is_the_model_in_memory_and_transformers_reads_its_folder(tuned, tmp_path):
    """Read back it has the same weights to the bit."""
    saved = tuned.save(tmp_path / "tuned")
    again = LanguageModel.load(str(tmp_path / "tuned"))
    assert np.array_equal(np.asarray(again.params["embed"]), np.asarray(tuned.params["embed"]))
    assert (saved.folder, saved.weights) == (tmp_path / "tuned", tmp_path / "tuned")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "tuned").hidden_size == tuned.config.hidden_size


def test_preference_training_parts_the_better_answer_from_the_worse(tuned):
    """Adapters are merged at the end, so the result is a model like any other. It starts from the weights in
    memory, not from the folder that the first model came from."""
    settings = TrainConfig(1e-3, lora=LoraConfig(4))
    better = tuned.preference_tuned([(ASKED, "Lima", "Oslo")], settings)
    margin = lambda model: likelihood(model) - likelihood(model, "Oslo")
    assert margin(better) > margin(tuned)
    assert better.weights is tuned.weights is None


def test_adapters_alone_are_saved_and_named_behind_their_base(student, tuned, tmp_path):
    """PEFT's form out and in: the same model, within the rounding of a merged matrix."""
    settings = TrainConfig(1e-3, lora=LoraConfig(2))
    adapted = student.fine_tuned([(ASKED, "Lima")], settings)
    again = LanguageModel.load(f"embedded:student+{adapted.save_adapter(tmp_path / 'adapter')}")
    assert likelihood(again) == pytest.approx(likelihood(adapted), abs=1e-3)
    saved = tuned.save(tmp_path / "whole").fine_tuned([(ASKED, "Lima")], settings)
    saved.save_adapter(tmp_path / "other")
    assert base_of(tmp_path / "other" / "adapter_config.json") == str(tmp_path / "whole")
    with pytest.raises(
        UserError, match=r"has no adapters: train it with TrainConfig\(lora=…\), or save all of it"
    ):
        student.save_adapter(tmp_path / "none")
    with pytest.raises(UserError, match="belong to weights that are in no folder: save all of it"):
        tuned.fine_tuned([(ASKED, "Lima")], settings).save_adapter(tmp_path / "none")


def test_a_row_that_is_too_long_is_named(student):
    with pytest.raises(UserError, match=r"row 2 has \d+ tokens, more than the limit of 60"):
        student.fine_tuned([(ASKED, "Lima"), (ASKED, "Lima " * 50)], TrainConfig(1e-3, max_length=60))
