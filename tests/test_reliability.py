"""Small samples of the proofs in benchmarks/reliability: those run whole by their own commands."""

import html
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from common import stopping
from common.config import SampleConfig
from common.errors import UserError
from common.lm import LanguageModel
from common.mapping import read_mapping
from common.model import hf
from common.results.files import read_json, read_jsonl
from common.results.report import Report
from common.sample.embed import embed
from common.sample.prompt import Prompt
from common.sample.sampler import Sampler
from common.sample.score import score
from common.tasks.files import read_rows
from common.usercode import load_file
from killing import ROOT


def test_a_sample_of_odd_commands_ends_in_one_line(tmp_path):
    """Plans with odd flags, files, checkpoints, templates and user code, of every method."""
    words = ["--cases", "36", "--plans", "--seed", "5", "--part", "--failures", str(tmp_path / "failing.jsonl")]
    done = subprocess.run(
        [sys.executable, "benchmarks/reliability/fuzz.py", *words, "--keep", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sum(found["cases"].values()) == 36
    assert found["failures"] == []


def test_a_message_is_one_line_of_bounded_length():
    said = str(UserError("a\nb \x1b[31m\u2028c\x00" + "word " * 300))
    assert said.isprintable()
    assert len(f"error: {said}") < 500


class Bomb:
    """What its pickle does when it is opened can be seen."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def model(fixtures, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(fixtures / "qwen2", folder)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "pytorch_model.bin"])
def test_no_loader_of_models_opens_a_pickle(model, tmp_path, name):
    mark = tmp_path / "opened"
    if name.endswith(".bin"):
        (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    with pytest.raises(UserError):
        LanguageModel.load(str(model))
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".pkl", ".npy", ".pt"])
def test_no_reader_of_data_opens_a_pickle(tmp_path, suffix):
    mark, file = tmp_path / "opened", tmp_path / f"data{suffix}"
    if suffix == ".npy":
        with file.open("wb") as out:
            np.save(out, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    else:
        file.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    with pytest.raises(UserError):
        read_rows(file)
    assert not mark.exists()


@pytest.mark.parametrize("place", ["../away.safetensors", "/etc/hostname"])
def test_an_index_of_weights_names_no_file_outside_its_folder(fixtures, tmp_path, place):
    folder = tmp_path / "model"
    shutil.copytree(fixtures / "llama_sharded", folder)
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    (folder / "model-00001-of-00004.safetensors").rename(tmp_path / "away.safetensors")
    index["weight_map"] = {k: place if "00001" in v else v for k, v in index["weight_map"].items()}
    file.write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside of its folder"):
        hf.load_params(folder, hf.load_config(folder))


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_hostile_text_on_a_page_runs_nothing(tmp_path):
    run = "document.documentElement.title = 'ran'"
    texts = [
        f"<script>{run}</script>",
        f'<img src=x onerror="{run}">',
        f'</td></table></svg><svg onload="{run}">',
        f'" onfocus="{run}" autofocus x="',
        f'</style><body onload="{run}">',
        f"</title></head><script>{run}</script>",
    ]
    report = Report(texts[-1])
    report.add_table(texts[0], texts, [texts, texts])
    report.add_examples(texts[1], ["a", "b"], [texts[:2], texts[2:4]])
    (tmp_path / "page.html").write_text(report.html(), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    where = [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    dom = subprocess.run(["chromium", *flags, *where], capture_output=True, text=True, timeout=300).stdout
    assert html.escape("<script>") in dom
    assert 'title="ran"' not in dom.partition(">")[0] + dom.partition("<html")[2].partition(">")[0]


def test_a_file_of_the_users_is_announced_as_code(tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text("x = 1\n")
    load_file(file)
    load_file(file)
    assert capsys.readouterr().err == f"{file} runs as code, with your rights\n"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named_when_they_are_read(model, value):
    tensors = {
        name: array.copy() for name, array in safetensors.numpy.load_file(model / "model.safetensors").items()
    }
    name = sorted(tensors)[3]
    tensors[name].reshape(-1)[1] = value
    safetensors.numpy.save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"model\.safetensors: tensor {name} holds NaN or infinity"):
        hf.load_params(model, hf.load_config(model))


def test_weights_that_are_not_finite_are_not_stored(model, tmp_path):
    params = hf.load_params(model, hf.load_config(model))
    params["embed"] = params["embed"].at[1, 1].set(np.nan)
    with pytest.raises(UserError, match="the training gave NaN or infinity in"):
        hf.save(tmp_path / "out", params, model)
    assert not (tmp_path / "out").exists()


def test_an_answer_of_nan_is_no_answer(model):
    """Weights that became NaN in memory: sampling, likelihoods and vectors all stop."""
    found = LanguageModel.load(str(model))
    params = hf.load_params(model, found.config)
    params["embed"] = params["embed"].at[:].set(np.nan)
    sampler = Sampler(params, found.config, eos_ids=[0], slots=1, block=2)
    with pytest.raises(UserError, match="sampled answer: the model gives NaN"):
        sampler.sample([Prompt([1, 2], SampleConfig(4))])
    with pytest.raises(UserError, match="log-probabilities of answer 0: the model gives NaN"):
        score(params, found.config, [([1], [2, 3])], 1)
    with pytest.raises(UserError, match="hidden states of a text: the model gives NaN"):
        embed(params, found.config, [[1, 2]], 1)


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b"{", b"[" * 100_000])
def test_an_artifact_of_another_kind_is_damaged(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json", ("x",))
    (tmp_path / "a.jsonl").write_bytes(b"{}\n" + content + b"\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 2 is damaged"):
        read_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match=r"folder\.jsonl is damaged"):
        read_jsonl(tmp_path / "folder.jsonl")


def test_references_in_yaml_have_an_end(tmp_path):
    """By them a value may hold itself, and a few lines stand for billions of values."""
    file, letters = tmp_path / "settings.yaml", "abcdefghij"
    deep = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise(letters))
    for text in ("a: &x [*x]\n", "a: &x {b: *x}\n", f"a: &a [1]\n{deep}"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"settings\.yaml: a value in it cannot be read \(by its references"):
            read_mapping(file, "settings")
    file.write_text("a: &x [1, 2]\nb: *x\n")
    assert read_mapping(file, "settings") == {"a": [1, 2], "b": [1, 2]}


STUCK = """
import contextlib, hashlib, sys, threading
from common import progress, stopping

stopping.listen()
progress._compiling = sys.argv[1] == "compiling"
threading.Timer(0.5, lambda: print("ready", flush=True)).start()  # once it is stuck
with stopping.deferred() if progress._compiling else contextlib.nullcontext():
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2**31 - 1)  # like a compiler, it lets no handler of Python's through
"""


@pytest.mark.parametrize("what", ["compiling", "computing"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_python_cannot_interrupt(what, number):
    """A compilation also within a stage that a signal would wait for."""
    # Whoever runs the tests may ignore either, which processes inherit.
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {each: signal.signal(each, handler) for each, handler in usual.items()}
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, what], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for each, handler in before.items():
        signal.signal(each, handler)
    with process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
        finally:
            process.kill()  # one that does not end would be waited for
    line, status = stopping.LINES[number]
    assert (process.returncode, said.strip()) == (status, line)
