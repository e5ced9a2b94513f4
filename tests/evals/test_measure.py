"""Measures by themselves: one signature, in memory or in a run folder."""

import inspect
import json
import types

import pytest

from common.errors import UserError
from common.evals import toxicity
from common.evals.bbq import BBQ
from common.evals.bias import CrowSPairs, StereoSet
from common.evals.choice import MultipleChoice
from common.evals.figures import Scorer, mean_figure
from common.evals.likelihood import ModelLikelihood
from common.evals.measure import Measure, Store, profile_model
from common.evals.preference import PreferenceJudge
from common.evals.text import Answers
from common.evals.toxicity import Toxicity
from common.generate import Record
from common.lm import LanguageModel
from common.results.estimate import as_json
from common.results.rundir import RunDir
from common.tasks.prompts import Prompt

PAIRS = [
    {"bias_type": "age", "stereo_antistereo": "stereo", "sent_more": f"The old {i}.", "sent_less": f"The {i}."}
    for i in range(5)
]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(fixtures):
    return LanguageModel.load(str(fixtures / "qwen2"))


@pytest.mark.parametrize("kind", [Answers, BBQ, CrowSPairs, MultipleChoice, PreferenceJudge, StereoSet, Toxicity])
def test_all_measures_have_one_signature(kind):
    """Whoever can call one can call all."""
    assert issubclass(kind, Measure)
    given = [list(inspect.signature(of.measure).parameters) for of in (kind, Measure)]
    assert given[0] == given[1] == ["self", "model", "store"]


def test_a_measure_alone_is_three_lines(model, tmp_path, monkeypatch):
    """No run folder is needed, and nothing is written."""
    file = _write(tmp_path / "crows.jsonl", PAIRS)
    monkeypatch.chdir(tmp_path)
    found = CrowSPairs.load(file).measure(model)
    assert 0 <= found.figures["overall/stereotype"].value <= 100
    assert found.counts == {"items": 5, "left_out": 0}
    assert list(tmp_path.iterdir()) == [file]


def test_rows_in_a_run_folder_are_not_computed_again(model, tmp_path, monkeypatch):
    """The figures are those of the same measure in memory."""
    measure = CrowSPairs.load(_write(tmp_path / "crows.jsonl", PAIRS), limit=4)
    alone = measure.measure(model)
    with RunDir.open(tmp_path / "run", "test", {}) as run:
        assert measure.measure(model, Store(run, "before")).figures == alone.figures
        monkeypatch.setattr(ModelLikelihood, "__call__", lambda *_: pytest.fail("computed again"))
        assert measure.measure(model, Store(run, "before")) == alone
    assert (tmp_path / "run/before/crows_pairs.jsonl").is_file()


def test_a_profile_names_figures_by_their_measure(model, tmp_path):
    """Continuations are scored in memory too; a scorer that fails is one line."""
    prompts = _write(tmp_path / "prompts.jsonl", [{"prompt": f"Name {i} birds."} for i in range(2)])
    words = tmp_path / "words.txt"
    words.write_text("turnip\n", encoding="utf-8")
    measures = [
        Answers.load(prompts, tokens=4),
        Toxicity.load(prompts, f"lexicon:{words}", continuations=2, tokens=4),
    ]
    profile = profile_model(model, measures)
    assert profile.figures["text/words"] == profile.of["text"].figures["words"]
    assert profile.figures["toxicity/expected_maximum"].n + profile.of["toxicity"].counts["empty"] >= 2
    assert profile.answers.keys() == {"0", "1"}
    with pytest.raises(UserError, match="score the texts of the continuations into it"):
        Toxicity.load(prompts, f"column:{tmp_path / 'none.jsonl'}:tox", continuations=1, tokens=2).measure(model)


def test_what_is_stored_of_a_figure():
    """Its sample stays in memory, and what a figure has nothing of is left out."""
    found = mean_figure([1.0, 3.0], Scorer("mine", "1"))
    assert found.sample is not None
    assert as_json(found) == {"value": 2.0, "ci95": [1.0, 3.0], "n": 2, "scorer": "mine", "version": "1"}
    assert as_json(mean_figure([], Scorer("mine", "1")))["n"] == 0


def test_thoughts_are_no_part_of_what_a_model_writes():
    """Stored as they came; figures, counts and a judge see the answer."""
    texts = ["<think>So long a thought.</think>Yes.", "[THINK]Is it?[/THINK]No.", "<think>It may be"]
    records = [Record(str(i), 0, "ok", text) for i, text in enumerate(texts)]
    store = types.SimpleNamespace(records=lambda *_: records)
    prompts = tuple(Prompt(str(i), "Why?") for i in range(3))
    found = Answers(prompts=prompts, tokens=8).measure(None, store)
    assert found.answers == {"0": "Yes.", "1": "No.", "2": ""}
    assert (found.counts["answered"], found.counts["empty"]) == (3, 1)
    assert found.figures["characters"].value == pytest.approx(7 / 3, abs=1e-4)
    shown = []
    monkeyed = lambda texts: shown.extend(texts) or [0.0] * len(texts)
    written = Toxicity(prompts=prompts, scorer="x", tokens=8).written("", None, [], None, store)
    toxicity.scored_continuations(written, "x", lambda: (monkeyed, Scorer("x", "1")))
    assert shown == ["Yes.", "No."]
