"""Active Inheritance in rounds, with drift, and the profile before and after."""

import dataclasses
import math
import pathlib
import statistics

import numpy as np
import pytest
from test_active_run import FLAGS

from active_inheritance.config import Config
from active_inheritance.experiment import run
from active_inheritance.loop import LINEAGES
from active_inheritance.outcome import Student
from active_inheritance.student_figures import drift_figure
from active_inheritance.student_profile import profiles
from common.errors import UserError
from common.evals.figures import Figure
from common.lm import LanguageModel
from common.results.files import read_json, read_jsonl
from common.sample.score import all_logps
from common.tasks.prompts import messages
from killing import check_killed, words_of

ROUNDS = FLAGS | {"rounds": 3, "repeats": 1, "prompts": 10}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = Config(**ROUNDS, run_dir=str(tmp_path_factory.mktemp("rounds") / "whole"))
    return config, run(config), pathlib.Path(config.run_dir)


def test_in_later_rounds_each_student_answers_and_its_successor_learns_that(finished):
    config, summary, folder = finished
    assert [entry["round"] for entry in summary["rounds"]] == [0, 1, 2]
    assert (summary["arms"]["selected"]["round"], summary["arms"]["first"]["round"]) == (2, 0)
    for number in (1, 2):
        place = folder / f"repeat_0/round_{number}"
        assert {path.name for path in place.iterdir()} == {*LINEAGES}
        for arm in LINEAGES:
            pool = read_jsonl(place / arm / "samples/pool.jsonl")
            name = f"{arm} student {number - 1}"
            assert all(len(row["outputs"][name]) == config.k and len(row["outputs"]) == 1 for row in pool)
            learned = read_jsonl(place / arm / "data.jsonl")
            texts = {row["id"]: [a["text"] for a in row["outputs"][name]] for row in pool}
            assert learned
            assert all(row["answer"] in texts[row["id"]] for row in learned)
        random, selected = (read_jsonl(place / arm / "data.jsonl") for arm in LINEAGES)
        assert [row["prompt"] for row in random] == [row["prompt"] for row in selected]
    # Arms of other rounds are not compared: they did not learn as often.
    assert "selected - first" not in summary["gains"]
    # Of all weights those of the last selected student are left.
    assert {str(f.relative_to(folder)) for f in folder.rglob("student")} == {"repeat_0/round_2/selected/student"}


def test_the_table_of_rounds_is_of_what_is_stored(finished):
    _, summary, folder = finished
    for entry in summary["rounds"]:
        place = folder / "repeat_0" / (f"round_{entry['round']}" if entry["round"] else "")
        for arm, own in entry["arms"].items():
            learned = [row["scores"]["mtld"] for row in read_jsonl(place / arm / "data.jsonl")]
            assert own["learned"] == [pytest.approx(statistics.fmean(learned))]
            by_prompt: dict[str, list[float]] = {}
            for row in read_jsonl(place / arm / "answers.jsonl"):
                by_prompt.setdefault(row["id"], []).append(row["scores"]["mtld"])
            means = [statistics.fmean(values) for values in by_prompt.values()]
            assert own["value"] == pytest.approx(statistics.fmean(means))
        values = [entry["arms"][arm]["value"] for arm in ("selected", "random")]
        assert entry["gain"]["value"] == pytest.approx(values[0] - values[1])
    last = summary["rounds"][-1]["arms"]
    assert all(summary["arms"][arm]["value"] == pytest.approx(last[arm]["value"]) for arm in LINEAGES)
    page = (folder / "report.html").read_text()
    for words in ("Round after round", "Drift from the base", "Before and after: what else changed"):
        assert words in page, words


def test_drift_is_the_difference_of_the_plain_likelihoods(finished):
    _, summary, folder = finished
    place = folder / "repeat_0/round_2/selected"
    base, student = LanguageModel.load("embedded:student"), LanguageModel.load(str(place / "student"))
    rows, total, count = read_jsonl(place / "answers.jsonl")[:3], 0.0, 0
    stored = read_jsonl(place / "drift.jsonl")[:3]
    for row, kept in zip(rows, stored, strict=True):
        tokens, start = base.tokenizer.encode_example(messages(row["prompt"]), row["answer"])
        tokens = np.array(tokens[:-1] if row["truncated"] else tokens)
        logps = []
        for model in (student, base):
            table = np.asarray(all_logps(model.params, model.config, tokens[:-1]))
            logps.append(float(table[np.arange(start - 1, len(tokens) - 1), tokens[start:]].sum()))
        assert [kept["logp"], kept["base_logp"]] == pytest.approx(logps, abs=2e-3)
        assert kept["tokens"] == len(tokens) - start
        total, count = total + logps[0] - logps[1], count + len(tokens) - start
    assert drift_figure([stored]).value == pytest.approx(total / count, abs=1e-4)
    assert summary["arms"]["base"]["drift"] is None
    assert summary["arms"]["selected"]["drift"]["value"] > 0  # a divergence, of few answers


def test_the_profile_before_and_after(finished):
    _, summary, folder = finished
    found = summary["profile"]
    assert found["arms"].keys() == {"base", "first", "random", "selected"}
    stored = {
        "base": "repeat_0/base",
        "first": "repeat_0/first",
        **{arm: f"repeat_0/round_2/{arm}" for arm in LINEAGES},
    }
    for arm, place in stored.items():
        figures = read_json(folder / place / "profile/figures.json")
        for key, figure in found["arms"][arm].items():
            assert figure["value"] == figures[key]["value"]
            assert (figure["n"], figure["per_repeat"]) == (8, [figures[key]["value"]])
    for pair, steps in found["changes"].items():
        after, before = (found["arms"][arm] for arm in pair.split(" - "))
        for key, step in steps.items():
            assert step["absolute"] == pytest.approx(after[key]["value"] - before[key]["value"], abs=2e-4)
            assert step["ci95"][0] <= step["absolute"] <= step["ci95"][1] or key.endswith(("ece", "ece_1_bin"))


def test_the_profile_over_repeats():
    def outcome(value):
        figures = lambda v: {"choice/x/accuracy": Figure(value=v, ci95=(0, 1), n=4, scorer="s", version="1")}
        of = {"base": 0.5, "random": 0.5 + value / 2, "selected": 0.5 + value}

        class Stored:
            def last(self, arm):
                return Student([], [], [], figures(of[arm]), updates=0, round=None)

        return Stored()

    arms = ("base", "random", "selected")
    found = profiles((), arms, [outcome(0.1), outcome(0.2), outcome(0.3)], seed=0)
    step = found.changes["selected - base"]["choice/x/accuracy"]
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # Student's t, two degrees of freedom
    assert step.absolute == pytest.approx(0.2)
    assert step.ci95 == pytest.approx([0.2 - half, 0.2 + half])
    assert step.relative == pytest.approx(40.0)
    assert found.arms["base"]["choice/x/accuracy"].ci95 == (0, 1)


STAGES = (
    "repeat_0/base/profile/figures.json",
    "repeat_0/selected/drift.jsonl",
    "repeat_0/selected/profile/choice/arithmetic.jsonl",
    "repeat_0/round_1/random/samples/source_0.jsonl*",
    "repeat_0/round_1/random/samples/pool.jsonl",
    "repeat_0/round_1/selected/selection/part-00000.jsonl",
    "repeat_0/round_1/selected/student",
    "repeat_0/round_2/random/pool/index.json",
    "repeat_0/round_2/selected/answers.jsonl",
)


@pytest.mark.long
def test_killed_in_the_stages_of_rounds_it_ends_with_the_same_bytes(finished, tmp_path):
    _, _, whole = finished
    check_killed(["active-inheritance", *words_of(ROUNDS)], tmp_path / "killed", STAGES, whole)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rounds": 0}, "--rounds must be at least 1"),
        ({"profile": ("colour=red",)}, "--profile 'colour=red': give NAME=VALUE, of prompts_file"),
        ({"profile": ("model=x",)}, "--profile 'model=x': give NAME=VALUE"),
        ({"profile": ("choice=arc=nowhere.jsonl",)}, "no such file: nowhere.jsonl"),
        ({"profile": ("limit=3",)}, "nothing to measure"),
    ],
)
def test_a_mistake_leaves_no_run_directory(settings, said, tmp_path):
    with pytest.raises(UserError, match=said):
        run(Config(**FLAGS | settings, run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_scores_of_a_pool_cannot_be_made_in_later_rounds(tmp_path):
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"prompt": "a", "outputs": {"x": "b", "y": "c"}, "tox": {"x": 1, "y": 2}}\n')
    with pytest.raises(UserError, match="use --rounds 1, not 2"):
        Config(pool=str(pool), objective=("column:tox:min",), student="embedded", rounds=2).resolved()


def test_nothing_is_profiled_if_nothing_is_asked_for():
    assert Config(profile=("none",)).resolved().profile == ()
    settings = dataclasses.replace(Config(), profile=("choice=a=b", "choice=c=d")).profile_settings()
    assert settings.choice == ("a=b", "c=d")
