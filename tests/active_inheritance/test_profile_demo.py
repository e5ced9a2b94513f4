"""The profile without data: the embedded demonstration, the plan, the limits on a hosted judge."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from active_inheritance.profile.config import ARITHMETIC, STORIES, Config
from active_inheritance.profile.experiment import load_data, run
from common.errors import UserError
from common.evals.figures import Scorer, changes
from common.evals.measure import Store, profile_model
from common.evals.preference import win_rate
from common.lm import LanguageModel
from common.results.rundir import RunDir

ROOT = Path(__file__).parents[2]
HOSTED = Config(
    model=("embedded:student", "embedded:teacher"), prompts_file=STORIES, judge="openai:x", budget="calls=5"
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    config = Config(limit=6, answer_tokens=48, run_dir=str(tmp_path_factory.mktemp("demo") / "run"))
    return config, run(config)


def test_the_demonstration_measures_both_embedded_models(demo):
    config, summary = demo
    assert list(summary["models"]) == ["embedded:student", "embedded:teacher"]
    for entry in summary["models"].values():
        assert {key.partition("/")[0] for key in entry["figures"]} == {"text", "choice"}
        assert entry["counts"]["text"]["prompts"] == entry["counts"]["choice/arithmetic"]["items"] == 6
    assert Path(config.run_dir, "report.html").is_file()


def test_every_change_has_an_interval_where_there_is_one(demo):
    _, summary = demo
    (changed,) = summary["change_from_first"].values()
    values = [entry["figures"] for entry in summary["models"].values()]
    for key, entry in changed.items():
        assert entry.keys() == {"absolute", "ci95", "relative", "n"}
        if key in ("text/self_bleu", "text/corpus_compression_ratio"):
            assert (entry["ci95"], entry["n"]) == (None, None)
        elif values[0][key]["n"] == values[1][key]["n"] == 6:
            assert entry["n"] == 6
            assert entry["absolute"] == pytest.approx(values[1][key]["value"] - values[0][key]["value"], abs=2e-4)
            assert entry["ci95"][0] - 1e-4 <= entry["ci95"][1]


def test_the_page_shows_changes_with_their_intervals(demo):
    page = Path(demo[0].run_dir, "report.html").read_text(encoding="utf-8")
    table = page[page.index("Change from") :]
    assert "choice: arithmetic: accuracy" in table
    assert "[+" in table or "[-" in table


def test_before_and_after_within_another_run(tmp_path):
    config = Config(choice=(f"arithmetic={ARITHMETIC}",), limit=8)
    config.check_measures()
    data = load_data(config)
    with RunDir.open(tmp_path / "run", "other", {}) as place:
        before, after = (
            profile_model(LanguageModel.load(f"embedded:{name}"), data, Store(place, name))
            for name in ("student", "teacher")
        )
    found = changes(before.figures, after.figures)["choice/arithmetic/accuracy"]
    assert found.n == 8


def test_the_plan_needs_no_jax():
    code = (
        "import sys; from active_inheritance.profile.command import main; main(['--dry-run']); "
        "sys.exit(any(name in sys.modules for name in ('jax', 'flax')))"  # it reads tokenizers, as a run does
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 10
    assert "80 rows" in done.stdout
    assert "240 rows" in done.stdout


def test_importing_the_experiment_loads_no_numpy():
    code = (
        "import sys, active_inheritance.profile.experiment; "
        "sys.exit('numpy' in sys.modules or 'jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_model_or_data_alone_is_no_demonstration():
    with pytest.raises(UserError, match="nothing to measure"):
        Config(model=("embedded",)).resolved()
    with pytest.raises(UserError, match="--model is missing"):
        Config(prompts_file=STORIES).resolved()
    with pytest.raises(UserError, match="no such file: embedded:poems"):
        Config(model=("embedded",), prompts_file="embedded:poems").resolved()
    with pytest.raises(UserError, match=r"no such file: embedded:stories \(given as --choice\)"):
        Config(model=("embedded",), choice=(f"x={STORIES}",)).resolved()


def test_the_layout_follows_the_set():
    given = Config()
    assert (given.layout(ARITHMETIC), given.layout("file.jsonl")) == ("chat", "plain")
    assert dataclasses.replace(given, choice_layout="answer").layout(ARITHMETIC) == "answer"


# ---- limits on a hosted judge


def test_the_judge_has_a_budget():
    assert HOSTED.share().calls == 5
    priced = dataclasses.replace(HOSTED, budget="usd=2.5", judge_price="0.15,0.6")
    assert priced.share().price == (0.15, 0.6)
    assert dataclasses.replace(HOSTED, budget=None).share() is None
    HOSTED.resolved()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judge": "embedded"}, "--budget is for a hosted judge"),
        ({"judge": None, "budget": None, "judge_price": "1,2"}, "--judge-price is for a hosted judge"),
        ({"budget": "usd=2"}, "needs a price"),
        ({"budget": "cents=2"}, "give calls=N"),
        ({"judge_price": "x"}, "price 'x'"),
    ],
)
def test_a_budget_that_does_not_fit(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(HOSTED, **change).resolved()


def test_what_the_budget_did_not_cover_is_counted():
    rows = [
        {"id": "0", "value": 1.0, "paid": True},
        {"id": "1", "value": None, "paid": False},
        {"id": "2", "value": None, "paid": True},
    ]
    found = win_rate(rows, Scorer("judge"))
    assert (found.n, found.no_verdict, found.unpaid) == (1, 2, 1)


def test_a_judge_stops_at_its_budget(tmp_path, monkeypatch):
    """A server that answers everything is asked three times; the rest is counted, and said on the page."""
    from fault_server import FaultServer

    monkeypatch.setenv("OPENAI_API_KEY", "test")
    with FaultServer(answer="A") as server:
        config = dataclasses.replace(
            HOSTED, limit=3, answer_tokens=8, budget="calls=3", judge_url=server.url, run_dir=str(tmp_path / "run")
        )
        summary = run(config)
    (wins,) = summary["preference"]["wins_over_first"].values()
    assert wins["unpaid"] == 2
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "did not cover 2 comparisons" in page
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["preference"]["wins_over_first"]
