"""Defaults by the kind of a model: how kinds are told, what the table gives, and that methods say why."""

import pytest

from active_inheritance.config import Config as ActiveInheritance
from common.defaults import UPDATES, Kind, kind_of, reasons, training
from common.model.checkpoint import has_template, parameters
from common.model.hf import load_config, load_params
from llm2llm.config import Config as LLM2LLM
from reversegen.config import Config as ReverseGen


@pytest.mark.parametrize(
    ("name", "parameters", "chat", "small"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6, True, True),
        ("Qwen/Qwen2.5-0.5B", 0.5e9, None, True),
        ("Qwen/Qwen3-1.7B", 1.7e9, None, False),
        ("google/gemma-2-2b-it", 2e9, True, False),
        ("microsoft/phi-2", None, None, False),
        ("openai:gpt-4o-mini", None, None, False),
    ],
)
def test_models_on_the_hub_are_known_by_their_names(name, parameters, chat, small):
    kind = kind_of(name)
    assert (kind.parameters, kind.chat, kind.small) == (parameters, chat, small)
    assert not kind.embedded


def test_a_local_model_s_size_is_that_of_its_files(fixtures):
    import jax

    folder = fixtures / "qwen2"
    leaves = jax.tree.leaves(load_params(folder, load_config(folder)))
    assert parameters(folder) == sum(leaf.size for leaf in leaves)
    assert kind_of(str(folder)) == Kind(parameters=parameters(folder), chat=has_template(folder))
    assert kind_of("embedded:student").embedded


def test_an_adapter_has_the_defaults_of_its_base_whatever_their_names(fixtures, tmp_path):
    base, adapter = tmp_path / "a+b", tmp_path / "c+d"
    base.symlink_to(fixtures / "qwen2")
    adapter.symlink_to(fixtures / "adapter_qwen2")
    assert kind_of(f"{base}+{adapter}") == kind_of(str(fixtures / "qwen2"))


def test_a_broken_file_has_no_size(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    assert parameters(tmp_path) is None
    assert parameters(tmp_path / "nowhere") is None
    assert not has_template(tmp_path)


@pytest.mark.parametrize(("examples", "batch"), [(12, 4), (30, 4), (60, 8), (500, 16), (None, 16)])
def test_a_pass_has_enough_updates(examples, batch):
    found = training(Kind(parameters=135_000_000, chat=True), 0, examples)
    assert found["batch_size"].value == batch
    assert batch == 4 or examples is None or examples / batch > UPDATES - 1


def test_rates_follow_size_and_adapters():
    rate = lambda size, rank: training(Kind(parameters=size), rank, None)["learning_rate"].value
    assert rate(135_000_000, 0) > rate(7_000_000_000, 0)
    assert rate(135_000_000, 16) > rate(135_000_000, 0)
    assert rate(None, 0) == rate(7_000_000_000, 0), "of unknown size the smaller steps are the safe ones"


@pytest.mark.parametrize("kind", [LLM2LLM, ReverseGen, ActiveInheritance])
def test_the_demonstration_needs_no_reasons(kind):
    assert kind().resolved().reasons() == []


SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LARGE = "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (LLM2LLM(student=SMALL), ("learning rate", "1e-4: a chat model of 135M, all weights trained")),
        (ReverseGen(target=LARGE, proposer=LARGE), ("learning rate", "2e-4: a model of 8B, adapters of rank 16")),
        (
            ActiveInheritance(student=LARGE, lora_rank=0),
            ("learning rate", "2e-5: a model of 8B, all weights trained"),
        ),
    ],
)
def test_a_default_is_told_with_its_reason(config, line):
    assert line in config.resolved().reasons()


def test_what_was_given_stays_and_has_no_reason():
    config = LLM2LLM(student=SMALL, learning_rate=3e-5, rounds=7).resolved()
    assert (config.learning_rate, config.rounds) == (3e-5, 7)
    assert not {"learning rate", "rounds"} & {name for name, _ in config.reasons()}


def test_a_real_student_looks_beyond_its_seeds_by_itself():
    assert LLM2LLM(student=SMALL).resolved().detect == "auto"
    assert LLM2LLM(student=SMALL, target="high-loss").resolved().detect == "in-sample"
    assert LLM2LLM().resolved().detect == "in-sample"


def test_real_sources_have_room_to_end_their_answers(tmp_path):
    assert ActiveInheritance().resolved().answer_tokens == 160
    config = ActiveInheritance(source=(SMALL,), student=SMALL).resolved()
    assert (config.answer_tokens, config.max_length, config.source_temperature) == (512, 1024, 0.8)
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "p{i}"}}\n' for i in range(36)))
    config = ActiveInheritance(source=(SMALL,), student=SMALL, prompts_file=str(file)).resolved()
    assert config.batch_size == 4, "half of 36 prompts are held out"
    assert reasons(config, {}) == []
