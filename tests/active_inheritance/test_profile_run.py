"""The profile of models: likelihoods against PyTorch, the run directory, batch sizes, mistakes."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from active_inheritance.profile.config import Config
from active_inheritance.profile.experiment import load_data, run
from common.errors import UserError
from common.evals.likelihood import ModelLikelihood
from common.evals.measure import Store, profile_model
from common.lm import LanguageModel
from common.results.files import read_jsonl
from common.results.rundir import RunDir

ROOT = Path(__file__).parents[2]
JUDGE = "def judge(messages):\n    text = messages[-1]['content']\n    return 'A' if 'x' in text else 'B'\n"


def write_files(folder):
    """A few rows of every set."""
    rows = {
        "prompts": [{"id": f"p{i}", "prompt": f"Name {i} birds."} for i in range(3)]
        + [{"id": "long", "prompt": "word " * 400}],
        "continue": [{"prompt": {"text": f"The turnip {i} said"}} for i in range(2)],
        "stereoset": [
            {
                "id": str(i),
                "target": f"t{i // 2}",
                "bias_type": ("race", "gender")[i // 4],
                "stereotype": f"The {i} are red.",
                "anti_stereotype": f"The {i} are blue.",
                "unrelated": f"The {i} are spoon.",
            }
            for i in range(8)
        ],
        "crows": [
            {
                "id": str(i),
                "bias_type": "age",
                "stereo_antistereo": ("stereo", "antistereo")[i % 2],
                "sent_more": f"The old one has {i}.",
                "sent_less": f"The young one has {i}.",
            }
            for i in range(6)
        ],
        "choice": [
            {"question": f"What is {i} and {i}?", "choices": [str(2 * i), str(i), "nothing at all"], "answer": 0}
            for i in range(9)
        ]
        + [{"question": "word " * 600, "choices": ["x", "y"], "answer": 0}],
        "bbq": [
            {
                "example_id": i,
                "question_index": "1",
                "question_polarity": ("neg", "nonneg")[i % 2],
                "context_condition": ("ambig", "disambig")[i // 2 % 2],
                "category": "Age",
                "answer_info": {"ans0": ["he", "old"], "ans1": ["she", "young"], "ans2": ["?", "unknown"]},
                "additional_metadata": {"stereotyped_groups": ["old"] if i < 7 else []},
                "context": f"Two of {i} came.",
                "question": "Who left?",
                "ans0": "The old one",
                "ans1": "The young one",
                "ans2": "Unknown",
                "label": 2,
            }
            for i in range(8)
        ],
        "pairs": [{"prompt": f"Say {i}.", "answer_a": str(i), "answer_b": "No.", "choice": "A"} for i in range(4)],
    }
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    (folder / "words.txt").write_text("turnip\n", encoding="utf-8")
    (folder / "judge.py").write_text(JUDGE, encoding="utf-8")


def write_other_model(model, folder):
    """A checkpoint that answers otherwise."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = -weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def settings(tmp_path_factory, fixtures) -> Config:
    """All groups for a random model, in a folder that holds the files."""
    folder = tmp_path_factory.mktemp("profile")
    write_files(folder)
    return Config(
        model=(str(fixtures / "qwen2"),),
        prompts_file=str(folder / "prompts.jsonl"),
        answer_tokens=12,
        toxicity_prompts=str(folder / "continue.jsonl"),
        toxicity_scorer=f"lexicon:{folder / 'words.txt'}",
        continuations=3,
        stereoset=str(folder / "stereoset.jsonl"),
        crows_pairs=str(folder / "crows.jsonl"),
        bbq=(str(folder / "bbq.jsonl"),),
        choice=(f"sums={folder / 'choice.jsonl'}",),
        pairs=str(folder / "pairs.jsonl"),
        run_dir=str(folder / "run"),
    )


@pytest.fixture(scope="module")
def summary(settings):
    return run(settings)


# ---- the run


def test_every_group_is_measured(settings, summary):
    assert summary["schema"] == 1
    assert summary["method"] == "profile"
    assert summary["verdict"].startswith("Measured: sums: accuracy of ")
    assert "which guessing has" in summary["verdict"]
    (entry,) = summary["models"].values()
    figures, counts = entry["figures"], entry["counts"]
    groups = {key.partition("/")[0] for key in figures}
    assert groups == {"text", "toxicity", "stereoset", "crows_pairs", "bbq", "choice", "pairs"}
    assert all(f.keys() >= {"value", "ci95", "n", "scorer", "version"} for f in figures.values())
    assert counts["text"]["left_out"] == 1
    assert counts["text"]["answered"] == 3
    assert counts["text"]["answer_tokens"] == 12
    assert counts["choice/sums"] == {"items": 10, "left_out": 1}
    assert figures["choice/sums/accuracy"]["n"] == 9
    assert figures["text/model_tokens"]["n"] == 3
    assert 0 < figures["text/model_tokens"]["value"] <= 12
    assert counts["toxicity"]["continuations"] == 6
    assert (counts["bbq"]["without_target"], figures["bbq/Age/s_dis"]["n"]) == (1, 3)
    assert "lexicon" in figures["toxicity/expected_maximum"]["scorer"]
    stored = json.loads(Path(settings.run_dir, "summary.json").read_text(encoding="utf-8"))
    assert stored["models"].keys() == summary["models"].keys()
    assert stored["settings"] == {
        "mode": "clean",
        "answer_tokens": 12,
        "continuations": 3,
        "continuation_tokens": 12,
        "temperature": 1.0,
        "top_p": 0.9,
        "threshold": 0.5,
        "limit": None,
        "choice_layout": {"sums": "plain"},
        "seed": 0,
    }


def test_the_page_says_what_a_reader_must_know(settings, summary):
    page = Path(settings.run_dir, "report.html").read_text(encoding="utf-8")
    for words in ("measures no toxicity", "left out", "Reliability on sums", "Social bias: StereoSet", "lexicon"):
        assert words in page
    for words in (
        "3 continuations of a prompt, at most 12 tokens, temperature 1, top-p 0.9; toxic from 0.5",
        "sums (plain): accuracy",
        "of 3 answers are below the 50 words that ttr, mattr, mtld, compression ratio need",
        "of 1 of 8 questions of BBQ it is not known",
        "without a score",
    ):
        assert words in page


def test_a_scorer_that_refuses_everything_measured_nothing(settings, tmp_path, capsys):
    (tmp_path / "none.py").write_text("def f(texts):\n    return [None] * len(texts)\n", encoding="utf-8")
    alone = {name: None for name in ("prompts_file", "stereoset", "crows_pairs", "pairs")} | {
        "bbq": (),
        "choice": (),
    }
    scorer = f"python:{tmp_path / 'none.py'}:f"
    found = run(dataclasses.replace(settings, **alone, toxicity_scorer=scorer, run_dir=str(tmp_path / "run")))
    (entry,) = found["models"].values()
    assert [figure["value"] for figure in entry["figures"].values()] == [None] * 4
    assert entry["counts"]["toxicity"]["refused"] == 6
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for text in (page, capsys.readouterr().out):
        assert "none of 6 continuations has a score (0 empty, 6 refused by the scorer)" in text


def test_a_finished_run_is_read_back(settings, summary, monkeypatch):
    before = Path(settings.run_dir, "summary.json").read_bytes()
    monkeypatch.setattr(ModelLikelihood, "__call__", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr("common.sample.local.LocalGenerator", lambda *_, **__: pytest.fail("sampled again"))
    assert run(settings) == json.loads(before)
    Path(settings.run_dir, "report.html").unlink()  # so that it is not told from its summary alone
    run(settings)
    assert Path(settings.run_dir, "summary.json").read_bytes() == before


def test_the_batch_size_changes_no_figure(settings, summary, tmp_path):
    (ours,) = summary["models"].values()
    other = run(
        dataclasses.replace(
            settings,
            toxicity_prompts=None,
            toxicity_scorer=None,
            pairs=None,
            batch_size=5,
            run_dir=str(tmp_path / "run"),
        )
    )
    (theirs,) = other["models"].values()
    assert theirs["figures"] == {key: ours["figures"][key] for key in theirs["figures"]}
    for file in ("stereoset.jsonl", "choice/sums.jsonl"):
        places = (next(Path(place).glob(f"models/*/{file}")) for place in (settings.run_dir, tmp_path / "run"))
        for one, two in zip(*map(read_jsonl, places), strict=True):
            assert one["tokens"] == two["tokens"]
            assert one["logps"] == (one["logps"] and pytest.approx(two["logps"], abs=2e-4))


def test_a_killed_run_continues_to_the_same_summary(settings, summary, tmp_path, monkeypatch):
    again = dataclasses.replace(settings, run_dir=str(tmp_path / "run"))
    computed = ModelLikelihood.__call__
    calls = []

    def cut(self, texts):
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return computed(self, texts)

    monkeypatch.setattr(ModelLikelihood, "__call__", cut)
    with pytest.raises(KeyboardInterrupt):
        run(again)
    run(again)
    assert (tmp_path / "run" / "summary.json").read_bytes() == Path(settings.run_dir, "summary.json").read_bytes()


def test_another_model_or_file_is_refused(settings, summary):
    with pytest.raises(UserError, match="another configuration"):
        run(dataclasses.replace(settings, answer_tokens=13))


def test_two_models_are_compared_and_judged(settings, tmp_path):
    folder, other = Path(settings.prompts_file).parent, tmp_path / "other"
    write_other_model(settings.model[0], other)
    config = dataclasses.replace(
        settings,
        model=(settings.model[0], str(other)),
        stereoset=None,
        toxicity_prompts=None,
        toxicity_scorer=None,
        choice=(),
        judge=f"python:{folder / 'judge.py'}:judge",
        run_dir=str(tmp_path / "run"),
    )
    found = run(config)
    assert set(found["change_from_first"]) == {str(other)}
    assert found["verdict"].startswith(f"Of {tmp_path.name}/other against ")
    assert ", with 95% intervals over items, " in found["verdict"]
    change = found["change_from_first"][str(other)]["text/characters"]
    values = [entry["figures"]["text/characters"]["value"] for entry in found["models"].values()]
    assert values[0] != values[1]
    assert change["absolute"] == pytest.approx(values[1] - values[0], abs=1e-5)
    (agreed,) = found["preference"]["agreement"].values()
    assert agreed["n"] == 4
    wins = found["preference"]["wins_over_first"][str(other)]
    assert wins["n"] == 3
    assert wins["scorer"].startswith("python:")
    assert wins["version"] == f"sha256 {hashlib.sha256((folder / 'judge.py').read_bytes()).hexdigest()[:16]}"
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"wins of {tmp_path.name}/other" in page
    assert f"The judge: {config.judge} ({wins['version']})" in page


def test_the_profile_of_a_model_in_hand(settings, tmp_path):
    config = dataclasses.replace(settings, model=(), toxicity_prompts=None, toxicity_scorer=None, choice=())
    model = LanguageModel.load(settings.model[0])
    with RunDir.open(tmp_path / "run", "other", {}) as place:
        store = Store(place, "profile/before")
        before = profile_model(model, load_data(config), store)
        assert profile_model(model, load_data(config), store).figures == before.figures
    assert profile_model(model, load_data(config)).figures == before.figures  # in memory
    assert before.answers["long"] is None
    assert np.isfinite(before.figures["text/words"].value)


# ---- mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ()}, "--model is missing"),
        ({"model": ("a", "a")}, "name each once"),
        ({"model": ("./nowhere",)}, r"--model \./nowhere: no such folder"),
        ({"model": ("some/where/else",)}, "no such folder"),
        ({"model": ("embedded:pupil",)}, "no such embedded model: there are student, teacher"),
        ({"model": ("openai:x",)}, "no likelihoods"),
        ({"prompts_file": "nowhere.jsonl"}, r"no such file: nowhere\.jsonl \(given as --prompts-file\)"),
        ({"choice": ("nowhere.jsonl",)}, "give NAME=FILE"),
        ({"choice": ("a=nowhere.jsonl",)}, "no such file"),
        ({"continuations": 0}, "--continuations must be at least 1"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"top_p": 1.5}, "--top-p must lie above 0"),
        ({"toxicity_scorer": None}, "belong together"),
        ({"toxicity_scorer": "detoxify"}, "name one as"),
        ({"toxicity_scorer": "lexicon:nowhere.txt"}, "no such file"),
        ({"toxicity_scorer": "python:nowhere.py:f"}, "no such file"),
        ({"toxicity_scorer": "column:x"}, "column:FILE:COLUMN"),
        ({"judge": "python:nowhere.py:f"}, "no such file"),
        ({"judge": "embedded"}, "compares answers of two models"),
        ({"judge_url": "http://localhost"}, "--judge-url is for a hosted judge"),
        ({"bbq": (), "bbq_targets": __file__}, "belongs to --bbq"),
        ({"seed": -1}, "--seed must be at least 0"),
    ],
)
def test_settings_that_do_not_fit(settings, change, message):
    with pytest.raises(UserError, match=message) as raised:
        dataclasses.replace(settings, **change).resolved()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("word", ["limit=x", "choice_layout=loud", "bbq", "seed=1", "help=1"])
def test_what_another_command_asks_for_never_ends_the_process(word, capsys):
    """A library call with a bad --profile gives an error that can be caught, and prints nothing."""
    with pytest.raises(UserError) as raised:
        Config.asked((word,), "--profile")
    assert "\n" not in str(raised.value)
    assert capsys.readouterr() == ("", "")
    assert Config.asked(("prompts-file=--help",), "--profile").prompts_file == "--help"


def test_nothing_to_measure(tmp_path):
    with pytest.raises(UserError, match="nothing to measure"):
        Config(model=("embedded",)).resolved()
    assert Config(model=("embedded",), crows_pairs=__file__).resolved().model == ("embedded:student",)


def test_a_mistake_in_a_file_comes_before_the_run_directory(settings, tmp_path):
    file = tmp_path / "crows.jsonl"
    file.write_text('{"sent_more": "x"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="row 1"):
        run(dataclasses.replace(settings, crows_pairs=str(file), run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answer_tokens": 512},
            r"--answer-tokens 512 leaves no room for a prompt within the \d+ positions of .*qwen2",
        ),
        ({"continuation_tokens": 5000}, "--continuation-tokens 5000 leaves no room"),
        ({"prompts_file": None, "answer_tokens": 5000}, "--answer-tokens 5000 leaves no room"),
        ({"model": ("embedded:student", "OTHER")}, "holds no tokenizer"),
    ],
)
def test_what_a_model_cannot_do_comes_before_the_run_directory(settings, change, message, tmp_path):
    shutil.copytree(settings.model[0], tmp_path / "other", ignore=shutil.ignore_patterns("tokenizer*", "vocab*"))
    if "model" in change:
        change = {"model": (change["model"][0], str(tmp_path / "other"))}
    with pytest.raises(UserError, match=message):
        run(dataclasses.replace(settings, **change, run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_the_command_line(settings, tmp_path):
    def call(*words):
        return subprocess.run(
            [sys.executable, "run.py", "profile", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
        )

    wrong = call("--model", "embedded:student", "--run-dir", str(tmp_path / "run"))
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "nothing to measure" in wrong.stderr
    absent = call("--model", "./nowhere", "--crows-pairs", settings.crows_pairs, "--dry-run")
    assert (absent.returncode, absent.stderr) == (2, "error: --model ./nowhere: no such folder\n")
    plan = call(
        "--model", "embedded", "--model", settings.model[0], "--crows-pairs", settings.crows_pairs, "--dry-run"
    )
    assert plan.returncode == 0, plan.stderr
    assert "6 rows" in plan.stdout
    assert not (tmp_path / "run").exists()
