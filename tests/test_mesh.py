"""A model on a mesh of devices: training, scoring and sampling give what one device gives."""

import dataclasses

import jax
import numpy as np
import pytest

from common.config import LoraConfig, SampleConfig, TrainConfig
from common.generate import Request
from common.lm import LanguageModel
from common.model import lora
from common.model.sharding import make_mesh, mesh_of, param_shardings, place
from common.sample import cache, sampler
from common.sample.beam import BeamGenerator
from common.sample.prompt import Prompt
from common.sample.score import all_logps, score
from common.train import state as stored_state
from common.train.data import Encoded, shared_prefix
from common.train.loop import fine_tune, gradients
from common.train.preference import Preference, prefer, reference_logps

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices (JAX_NUM_CPU_DEVICES=8)")
SETTINGS = TrainConfig(learning_rate=1e-3, batch_size=4, micro_batch_size=2)
QUESTIONS = [Request(str(i), ({"role": "user", "content": "0123456789"[: i + 1]},), n=1) for i in range(6)]


@pytest.fixture(scope="module")
def models(fixtures):
    """The same model on one device, and on two rows of four."""
    one = LanguageModel.load(str(fixtures / "qwen2"))
    return one, LanguageModel.load(str(fixtures / "qwen2"), mesh=make_mesh(fsdp=2, tensor=4))


def _answers():
    rng = np.random.default_rng(0)
    some = lambda: tuple(rng.integers(1, 64, size=9).tolist())  # one length: one shape of batches
    return [Preference(some(), some(), some()) for _ in range(8)]


def assert_trained_alike(one, mesh, start):
    """The same weights, laid out as they were before, and changed at all."""
    expected = param_shardings(make_mesh(fsdp=2, tensor=4), mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, mesh) == expected
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: abs(a - b).max(), one, start))) > 1e-4
    # AdamW divides by the size of a gradient, so that rounding shows where a gradient is next to nothing.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.asarray(b), atol=1e-5), one, mesh)


@pytest.mark.parametrize("shared", [0, 16])
@pytest.mark.parametrize("adapters", [None, LoraConfig(rank=4)], ids=["full", "adapters"])
def test_fine_tuning_on_a_mesh_gives_the_weights_of_one_device(models, adapters, shared):
    """It compiles one program for all updates, as on one device: state and batches keep their layout."""
    settings, first = dataclasses.replace(SETTINGS, lora=adapters), tuple(range(1, shared + 1))
    examples = [Encoded(first + pair.prompt + pair.chosen, shared + len(pair.prompt)) for pair in _answers()]
    assert len(shared_prefix(examples)) == shared
    trained, compiled = [], gradients._cache_size()
    for model in models:
        trained.append(fine_tune(model.params, model.config, examples, settings, pad_id=0, steps=3))
    assert gradients._cache_size() == compiled + 2
    start, config = models[0].params, dataclasses.replace(models[0].config, lora=adapters)
    if adapters is not None:
        start = lora.join(start, lora.init(config, jax.random.key(settings.seed)))
    assert_trained_alike(*trained, start)


def test_an_interrupted_training_on_a_mesh_continues_to_the_same_weights(models, tmp_path):
    model, examples = models[1], [Encoded(pair.prompt + pair.chosen, len(pair.prompt)) for pair in _answers()]
    whole = fine_tune(model.params, model.config, examples, SETTINGS, pad_id=0, steps=3)

    class Killed(Exception):
        pass

    def log(first):
        def write(step, **_):
            if step == 2 and not first:
                raise Killed

        return write

    often = dataclasses.replace(SETTINGS, checkpoint_seconds=0)
    arguments = {"pad_id": 0, "steps": 3, "checkpoint": tmp_path / "state", "log": log}
    with pytest.raises(Killed):
        fine_tune(model.params, model.config, examples, often, **arguments)
    continued = fine_tune(model.params, model.config, examples, often, **arguments)
    jax.tree.map(np.testing.assert_array_equal, whole, continued)


def test_an_interrupted_training_goes_on_on_other_devices(models, tmp_path):
    """Stopped on a mesh, it ends on one device with the weights of one device."""
    examples = [Encoded(pair.prompt + pair.chosen, len(pair.prompt)) for pair in _answers()]
    whole = fine_tune(models[0].params, models[0].config, examples, SETTINGS, pad_id=0, steps=3)

    def killed(first):
        def write(step, **_):
            if step == 1:
                raise KeyboardInterrupt

        return write

    often = dataclasses.replace(SETTINGS, checkpoint_seconds=0)
    more = {"pad_id": 0, "steps": 3, "checkpoint": tmp_path / "state"}
    with pytest.raises(KeyboardInterrupt):
        fine_tune(models[1].params, models[1].config, examples, often, log=killed, **more)
    begun = []
    ended = fine_tune(
        models[0].params, models[0].config, examples, often, log=lambda first: begun.append(first), **more
    )
    assert begun[0] > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.asarray(b), atol=1e-5), whole, ended)


def test_a_state_that_several_processes_wrote_is_read_onto_any_devices(models, tmp_path, monkeypatch):
    """They write it leaf by leaf, each into a folder of its own."""
    start = {"state": jax.numpy.int32(7), "moments": models[1].params}
    monkeypatch.setattr(stored_state.hosts, "count", lambda: 2)
    stored_state.save(tmp_path / "state", models[1].params, start, 5)
    monkeypatch.undo()
    for model in models:
        like = {"state": jax.numpy.int32(0), "moments": jax.tree.map(jax.numpy.zeros_like, model.params)}
        like = like | {"state": place(like["state"], model.params)}
        params, state, step = stored_state.restore(tmp_path / "state", model.params, like)
        assert (step, int(state["state"])) == (5, 7)
        assert mesh_of(params) == mesh_of(model.params)
        jax.tree.map(np.testing.assert_array_equal, (params, state["moments"]), (model.params, model.params))


def test_preference_training_on_a_mesh_gives_the_weights_of_one_device(models):
    pairs, trained = _answers(), []
    references = [reference_logps(model.params, model.config, pairs, batch_size=4) for model in models]
    np.testing.assert_allclose(*references, rtol=1e-5)
    for model in models:
        trained.append(prefer(model.params, model.config, pairs, references[0], SETTINGS, pad_id=0, steps=2))
    assert_trained_alike(*trained, models[0].params)


def test_likelihoods_and_vectors_on_a_mesh_are_those_of_one_device(models):
    pairs = [(pair.prompt, pair.chosen) for pair in _answers()]
    one, mesh = (np.concatenate(score(model.params, model.config, pairs, 4)) for model in models)
    np.testing.assert_allclose(mesh, one, rtol=1e-5)
    tokens = jax.numpy.array(pairs[0][0])
    np.testing.assert_allclose(*(all_logps(model.params, model.config, tokens) for model in models), atol=1e-4)
    np.testing.assert_allclose(*(model.embed(["1 2 3", "4 5"]) for model in models), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_on_a_mesh_are_those_of_one_device(models, temperature):
    """Also where slots are refilled and the cache grows."""
    sampling = SampleConfig(max_new_tokens=140, temperature=temperature)
    one, mesh = (list(model.generator().generate(QUESTIONS, sampling, 0)) for model in models)
    assert [[record.text for record in batch] for batch in mesh] == [
        [record.text for record in batch] for batch in one
    ]


def test_the_slots_of_a_mesh_are_split_over_its_rows_and_nothing_compiles_twice(models):
    params, config = models[1].params, models[1].config
    programs = (sampler._prefill, cache._copy_rows, sampler._decode_block)
    prompts = [Prompt([5, 6, i], SampleConfig(9), (i,)) for i in range(12)]
    before = [program._cache_size() for program in programs]
    ready = sampler.Sampler(params, config, eos_ids=(), slots=8, block=4)
    ready.sample(prompts)
    ready.sample(prompts)
    assert all(program._cache_size() - count <= 1 for program, count in zip(programs, before, strict=True))


def test_beam_search_on_a_mesh_gives_the_answers_of_one_device(models):
    asked = [dataclasses.replace(request, n=2) for request in QUESTIONS[:3]]
    found = [
        [[record.text for record in batch] for batch in generator.generate(asked, SampleConfig(6), 0)]
        for generator in (BeamGenerator("beam", m.params, m.config, m.tokenizer) for m in models)
    ]
    assert found[0] == found[1]


def test_other_weights_of_a_model_are_read_onto_its_mesh(models, fixtures):
    other = models[1].with_weights("other", fixtures / "qwen2")
    assert mesh_of(other.params) == mesh_of(models[1].params) == make_mesh(fsdp=2, tensor=4)
    assert mesh_of(models[0].with_weights("other", fixtures / "qwen2").params) is None
