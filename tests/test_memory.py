"""The memory plan: sizes from shapes alone, and what is said where a run cannot fit."""

import dataclasses
import importlib
import json
import pathlib
import platform
import shutil
import subprocess
import sys

import pytest

from common import memory
from common.config import LoraConfig, TrainConfig
from common.errors import UserError
from common.memory import Model, available, check, foretold, lines_of, sampling, tokens_in, training
from common.model.meshes import Devices

ROOT = pathlib.Path(__file__).parents[1]
BIG = 8_030_261_248


@pytest.fixture
def student():
    model = Model.read("embedded:student")
    assert model is not None
    return model


@pytest.fixture
def big(student):
    """A model of 8B parameters by its count, with the embedded one's shape."""
    return Model("big", student.config, BIG)


def test_parameters_are_counted_from_the_heads_of_the_files(student):
    from common.lm import LanguageModel
    from common.model.decoder import count_params

    assert student.parameters == count_params(LanguageModel.load("embedded:student").params)


def test_parameters_of_adapters_are_those_that_are_made(student):
    import dataclasses

    import jax

    from common.model import lora
    from common.model.decoder import count_params

    config = dataclasses.replace(student.config, lora=LoraConfig(4))
    assert student.adapters(4) == count_params(lora.init(config, jax.random.key(0)))


@pytest.mark.parametrize("name", ["nobody/such-model", "a-model-of-no-owner"])
def test_a_model_of_the_hub_is_known_once_it_was_fetched_and_never_fetched_for_a_plan(fixtures, monkeypatch, name):
    import huggingface_hub
    from huggingface_hub import errors

    def snapshot_download(repo, *, allow_patterns, local_files_only):
        assert repo == name
        assert local_files_only, "a plan fetches nothing"
        if not cached:
            raise errors.LocalEntryNotFoundError("not here")
        return str(fixtures / "qwen2")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    cached = False
    assert Model.read(name) is None
    cached = True
    found, local = Model.read(name), Model.read(str(fixtures / "qwen2"))
    assert found is not None
    assert local is not None
    assert (found.config, found.parameters) == (local.config, local.parameters)


def test_a_plan_without_a_model_that_is_here_says_so():
    assert lines_of([]) == [("memory", "unknown: no model of the run is on this machine yet")]


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        (TrainConfig(), 16),
        (TrainConfig(optimizer="lion"), 12),
        (TrainConfig(optimizer="adafactor"), 8),
        (TrainConfig(param_dtype="bfloat16"), 14),
        (TrainConfig(lora=LoraConfig(16)), 2),
    ],
)
def test_bytes_a_parameter_on_an_accelerator(big, settings, size):
    need = training(big, settings, 64, device="accelerator")
    held = sum(need.parts.get(name, 0) for name in ("weights", "trained weights", "gradients", "optimizer"))
    assert held / BIG == pytest.approx(size, rel=0.01)


def test_a_model_that_is_split_needs_less_of_each_device(big):
    whole, part = (sampling(big, 32, 32, device="accelerator", shards=n).total for n in (1, 4))
    assert part - memory.PROCESS["accelerator"] == pytest.approx((whole - memory.PROCESS["accelerator"]) / 4)


def test_accumulation_recomputation_and_shorter_texts_save_memory(student):
    parts = lambda length=512, **change: training(student, TrainConfig(**change), length).parts
    activations = lambda *args, **change: parts(*args, **change)["activations"]
    assert activations(micro_batch_size=2) < activations() / 7
    assert activations(remat="full") < activations(remat="none")
    assert activations(100) < activations(512)


def test_what_cannot_fit_is_refused_in_one_line_with_advice(big):
    with pytest.raises(
        UserError, match=r"80\.0 GB are free.*in training.*use --lora-rank 16, .*--param-dtype"
    ) as e:
        check([training(big, TrainConfig(), 64, device="accelerator")], 80 * memory.GB)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="fewer answer tokens"):
        check([sampling(big, 32, 32)], 8 * memory.GB)
    check([sampling(big, 32, 32)], 64 * memory.GB)
    check([sampling(big, 32, 32)], None)


def test_free_memory_is_told_and_lies_below_all_of_it():
    room = available()
    assert room is None or memory.GB / 10 < room < 10_000 * memory.GB
    assert tokens_in(400) == 132


def test_a_plan_is_refused_as_its_run_would_be(big, monkeypatch):
    """In words that name the device: on an accelerator what is free there counts."""
    needs = lambda device, shards: [sampling(big, 32, 32, device=device, shards=shards)]
    nowhere = lambda: pytest.fail("jax is loaded")
    monkeypatch.setattr(memory.runtime, "accelerators", lambda: False)
    monkeypatch.setattr(memory, "available", lambda: 64 * memory.GB)
    assert "(on CPU)" in foretold(needs, [], nowhere)[0][1]
    monkeypatch.setattr(memory, "available", lambda: 8 * memory.GB)
    with pytest.raises(UserError, match="fewer answer tokens"):
        foretold(needs, [], nowhere)
    monkeypatch.setattr(memory.runtime, "accelerators", lambda: True)
    monkeypatch.setattr(memory, "_limits", lambda mesh: ("accelerator", 4, 80 * memory.GB))
    told = foretold(needs, [], lambda: Devices(None, "one device"))[0][1]
    assert told.endswith("80.0 GB are free (on each accelerator)")


def test_a_missing_file_of_weights_and_a_config_of_an_older_form_are_no_unknown_shape(fixtures, tmp_path):
    shutil.copytree(fixtures / "llama_sharded", tmp_path / "cut")
    (part := sorted((tmp_path / "cut").glob("model-*.safetensors"))[-1]).unlink()
    with pytest.raises(UserError, match=rf"{part.name} is missing, though"):
        Model.read(str(tmp_path / "cut"))
    shutil.copytree(fixtures / "qwen2", tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    config = json.loads(file.read_text())
    # As of the first versions of transformers with this family, which left it to their defaults.
    file.write_text(json.dumps({k: v for k, v in config.items() if k not in ("rms_norm_eps", "layer_types")}))
    found, whole = Model.read(str(tmp_path / "old")), Model.read(str(fixtures / "qwen2"))
    assert found is not None
    assert whole is not None
    assert found.parameters == whole.parameters


@pytest.mark.parametrize("method", ["llm2llm", "active_inheritance.profile"])
def test_a_run_that_cannot_fit_ends_before_a_model_is_loaded(method, tmp_path, monkeypatch):
    from common.lm import LanguageModel

    config = importlib.import_module(f"{method}.config").Config(run_dir=str(tmp_path / "run"))
    monkeypatch.setattr(memory, "available", lambda: memory.GB // 4)
    monkeypatch.setattr(LanguageModel, "load", lambda *args, **more: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=r"too little memory: 0\.2 GB"):
        importlib.import_module(f"{method}.experiment").run(config)
    assert not (tmp_path / "run").exists()


FAULTS = """
import resource, sys
from common import runtime
if sys.argv[1] == "kept":
    runtime.reuse_memory()
import jax
import jax.numpy as jnp
# Two products of 16 MB each as temporary arrays.
work = jax.jit(lambda x: (jnp.sin(x)[:, None] * jnp.cos(x) @ (jnp.cos(x)[:, None] * jnp.sin(x))).sum())
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
took = []
for _ in range(6):
    before = faults()
    work(jnp.ones(2000)).block_until_ready()
    took.append(faults() - before)
print(min(took[1:]))  # what came in between may lie where a block was
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_within_a_stage_freed_memory_is_used_again():
    """A page that the system has to give anew is a fault; 4,000 of them are 16 MB."""
    faults = lambda how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how], cwd=ROOT))
    given_back = faults("given back")
    if given_back <= 4000:
        pytest.skip("the system gives memory in large pages now: there is nothing to be counted")
    assert faults("kept") < given_back / 4  # Python of another version asks for some of its own


def test_memory_is_kept_only_where_there_is_plenty_and_the_plan_says_so(big, monkeypatch):
    kept = []
    monkeypatch.setattr(memory.runtime, "reuse_memory", lambda: kept.append(True))
    monkeypatch.setattr(memory.runtime, "accelerators", lambda: False)
    need = sampling(big, 256, 256)
    for times, expected in ((1.5, []), (3, [True])):
        monkeypatch.setattr(memory, "available", lambda times=times: int(times * need.total))
        assert memory.room_for(lambda device, shards: [need], lambda: Devices(None, "one device")) is None
        assert kept == expected
        told = lines_of([need], room=int(times * need.total))[0][1]
        assert ("held for speed" in told) == bool(expected)


@pytest.mark.parametrize(("rows", "cap"), [(2, None), (8, None), (8, 30.0)], ids=["one part", "kept", "capped"])
def test_what_a_preference_loss_holds_is_planned(rows, cap):
    """By what the compiler sets aside for the gradients: with one part of logits, with several that are kept, and
    with several that are computed again."""
    import jax.numpy as jnp
    import numpy as np

    from common.config import ModelConfig
    from common.model.decoder import abstract_params, count_params
    from common.train.loop import gradients
    from common.train.preference import Preference, collate_pairs, pair_loss

    config = ModelConfig("gemma2", 32768, 64, 128, 2, 2, 2, 32, 512, tied_head=True, logit_cap=cap)
    pair = Preference(tuple(range(8)), tuple(range(9, 257)), tuple(range(10, 258)))
    settings = TrainConfig(batch_size=rows, micro_batch_size=rows, remat="none")
    [part] = collate_pairs([pair] * rows, np.zeros((rows, 2), np.float32), settings, 0, 0.1, False)
    params = abstract_params(config)
    lowered = gradients.lower(
        *(params, part, None),
        **{"config": config, "dtype": jnp.dtype("float32"), "remat": "none", "objective": pair_loss, "mesh": None},
    )
    held = lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).memory_analysis()
    need = training(Model("pairs", config, count_params(params)), settings, 256, pairs=True)
    planned = sum(need.parts[name] for name in ("activations", "logits", "gradients"))
    found = held.temp_size_in_bytes + held.output_size_in_bytes
    assert 0.4 * planned < found < 1.05 * planned, f"{found / 1e9:.2f} GB of {planned / 1e9:.2f}"


def test_an_accelerator_keeps_no_logits_beyond_one_part(big):
    """Of answers to pairs as of other texts: what does not fit at once is computed again there."""
    settings = TrainConfig(batch_size=64, micro_batch_size=64)
    wide = dataclasses.replace(big, config=dataclasses.replace(big.config, vocab_size=2**17))
    needs = [training(wide, settings, 1024, device="accelerator", pairs=pairs) for pairs in (False, True)]
    assert needs[0].parts["logits"] == needs[1].parts["logits"] == 3 * 4 * 2**28
