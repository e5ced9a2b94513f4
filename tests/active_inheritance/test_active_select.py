"""`python run.py active-inheritance` on a file: what it leaves behind, that it continues, what it refuses."""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from active_inheritance import scoring
from active_inheritance.config import Config
from active_inheritance.experiment import pool_of, run
from active_inheritance.metrics import USUAL
from active_inheritance.sampling import sample_pool
from active_inheritance.select import ARMS
from active_inheritance.switches import Answering
from common.config import SampleConfig
from common.errors import UserError
from common.results.files import read_json, read_jsonl
from common.results.rundir import RunDir
from common.tasks.prompts import Prompt

ROOT = pathlib.Path(__file__).parents[2]
WORDS = (
    "the a cat dog saw heard important river under over never quickly walking house of and but then green".split()
)


@pytest.fixture
def pool(tmp_path):
    """60 prompts with six answers of two sources; some are empty or repeat."""
    rng = random.Random(0)
    rows = []
    for p in range(60):
        texts = [" ".join(rng.choices(WORDS, k=rng.randrange(20, 120))) + "." for _ in range(6)]
        if p % 10 == 0:
            texts[1] = ""
            texts[2] = texts[0]
            texts[3] = "round and round it goes " * 20
        rows.append({"id": f"p{p}", "prompt": f"Write {p}.", "outputs": {"x": texts[:3], "y": texts[3:]}})
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config(pool, name="run", **settings):
    settings = {"objective": ("mtld:max",), "metrics": ("lix",), "select_only": True} | settings
    return Config(pool=str(pool), run_dir=str(pool.parent / name), **settings)


def files(folder):
    """All artifacts but the one that holds times."""
    folder = pathlib.Path(folder)
    skipped = ("timing.jsonl", "timing.svg", ".lock")
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in folder.rglob("*")
        if f.is_file() and f.name not in skipped
    }


def test_a_run_leaves_pool_selection_controls_and_data_set(pool, capsys):
    import pyarrow.parquet

    summary = run(config(pool))
    assert "selected by mtld:max under words>=50" in capsys.readouterr().out
    folder = pool.parent / "run"
    assert summary == read_json(folder / "summary.json")
    assert (summary["schema"], summary["method"]) == (1, "active-inheritance")
    source = summary["pool"]["sources"]["x"]
    assert (source["answers"], source["empty"], source["duplicate"], source["usable"]) == (180, 6, 6, 168)
    assert summary["pool"]["sources"]["y"]["repeating"] == 6
    with RunDir.open(folder, "active-inheritance", read_json(folder / "config.json")["config"]) as place:
        settings = config(pool).resolved()
        scored = scoring.score_pool(place, pool_of(settings), settings.switches().scoring)
        selection = scoring.select_from(place, scored, settings.rule)
        rows = {arm: list(selection.rows(arm)) for arm in ARMS}
    prompts = [row["id"] for row in rows["selected"]]
    assert len(set(prompts)) == 60
    for arm in ARMS:  # every prompt in all arms
        assert [row["id"] for row in rows[arm]] == prompts
        place = folder / ("dataset" if arm == "selected" else f"controls/{arm}")
        (file,) = (place / "data").iterdir()
        table = pyarrow.parquet.read_table(file).to_pylist()
        assert [row["answer"] for row in table] == [row["answer"] for row in rows[arm]]
        assert [row["mtld"] for row in table] == [row["scores"]["mtld"] for row in rows[arm]]
        turn = lambda role, text: [{"role": role, "content": text}]
        for row in table:
            assert row["prompt"] == turn("user", row["instruction"])
            assert row["completion"] == turn("assistant", row["answer"])
    (file,) = (folder / "preferences/data").iterdir()
    pairs = pyarrow.parquet.read_table(file).to_pylist()
    learned = {row["id"]: row for row in rows["selected"]}
    assert 0 < len(pairs) <= 60
    for pair in pairs:
        assert pair["chosen"] == turn("assistant", learned[pair["id"]]["answer"]) != pair["rejected"]
        assert pair["chosen_mtld"] > pair["rejected_mtld"]
        assert min(pair["chosen_words"], pair["rejected_words"]) >= 50
    best = {}
    for row, _ in selection.prompts():
        fits = [a for a in row["answers"] if not a["flags"] and a["scores"]["words"] >= 50]
        if fits:
            best[row["id"]] = max(a["scores"]["mtld"] for a in fits)
    chosen = {row["id"]: row for row in rows["selected"]}
    assert all(chosen[name]["scores"]["mtld"] == value for name, value in best.items())
    assert {chosen[name]["reason"] for name in chosen.keys() - best.keys()} <= {"infeasible, baseline"}
    assert {row["source"] for row in rows["first"]} == {"x"}
    shares = summary["data"]["sources"]
    assert sum(entry["wins"] for entry in shares.values()) == 60
    assert sum(entry["chance_share"] for entry in shares.values()) == pytest.approx(1)


def test_workers_parts_and_a_second_time_change_nothing(pool, monkeypatch):
    monkeypatch.setattr(scoring, "PART", 50)
    run(config(pool, "one", workers=1))
    before = files(pool.parent / "one")
    run(config(pool, "one", workers=1))
    assert files(pool.parent / "one") == before
    assert "pool/part-00006.jsonl" in before
    monkeypatch.setattr(scoring, "SMALL", 0)
    run(config(pool, "two"))
    assert files(pool.parent / "two") == before


def test_what_is_left_over_is_made_again(pool, monkeypatch):
    monkeypatch.setattr(scoring, "PART", 50)
    run(config(pool))
    folder = pool.parent / "run"
    whole = files(folder)
    for name in ("pool/index.json", "pool/part-00003.jsonl", "selection/part-00001.jsonl", "summary.json"):
        (folder / name).unlink()
    for name in ("pool/part-00002.jsonl", "selection/part-00000.jsonl"):
        cut(folder / name)
    (folder / "pool" / f".part-00004.jsonl.{os.getpid()}.tmp").write_text("torn")
    run(config(pool))
    assert files(folder) == whole


def cut(file):
    """Leave out the last row."""
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize("name", ["pool/part-00000.jsonl", "pool/index.json"])
def test_a_part_of_the_pool_that_is_not_as_it_was_is_named(pool, name):
    run(config(pool))
    folder = pool.parent / "run"
    (folder / "summary.json").unlink()
    whole = (folder / name).read_bytes()
    for damage in (b"", whole.splitlines(keepends=True)[0], whole.replace(b"0", b"1")):
        (folder / name).write_bytes(damage)
        with pytest.raises(UserError, match=f"{name} is damaged: it has .* when it was complete: delete it"):
            run(config(pool))


def test_a_killed_run_continues_to_the_same_bytes(pool):
    """SIGKILL while a function of the user's scores."""
    score = pool.parent / "score.py"
    score.write_text(
        "import time\ndef vowels(prompt, answer):\n    time.sleep(0.002)\n"
        "    return sum(c in 'aeiou' for c in answer)\n"
    )
    settings = {"objective": (f"python:{score}:vowels:max",), "min_words": 20}
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from active_inheritance import scoring\nfrom active_inheritance.experiment import run\n"
        "from active_inheritance.config import Config\nscoring.PART = 30\n"
        "run(Config(pool=sys.argv[2], run_dir=sys.argv[3], metrics=('lix',), select_only=True, "
        f"**{settings!r}))\n"
    )
    call = lambda name: [sys.executable, "-c", code, str(ROOT), str(pool), str(pool.parent / name)]
    subprocess.run(call("whole"), check=True, capture_output=True)
    killed = subprocess.Popen(call("killed"), stdout=subprocess.DEVNULL)
    third = pool.parent / "killed" / "pool" / "part-00003.jsonl"
    while not third.exists() and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (pool.parent / "killed" / "pool" / "index.json").exists()
    subprocess.run(call("killed"), check=True, capture_output=True)
    assert files(pool.parent / "killed") == files(pool.parent / "whole")
    scored = json.loads(third.read_text().splitlines()[0])["answers"][0]
    vowels = sum(c in "aeiou" for c in scored["text"])
    assert scored["scores"][f"python:{score}:vowels"] == vowels


def test_a_function_that_keeps_failing_stops_the_run(pool):
    score = pool.parent / "score.py"
    score.write_text("def f(prompt, answer):\n    raise ValueError('no')\n")
    with pytest.raises(UserError, match=r"failed 5 times in a row, the last with: ValueError: no"):
        run(config(pool, objective=(f"python:{score}:f:max",)))


def test_budgets_of_sources(pool):
    """Sources share k answers of every prompt evenly."""
    for sources, k in (((), 3), (("x",), 3), (("y", "x"), 3)):
        summary = run(config(pool, f"run-{'-'.join(sources)}", sources=sources, k=k, drop=("none",)))
        assert summary["pool"]["answers_of_a_prompt"] == {"3": 60}
        assert set(summary["pool"]["sources"]) == set(sources or "xy")


def test_columns_and_target(pool):
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    for row in rows:
        row["tox"] = {source: [len(text) / 1000 for text in texts] for source, texts in row["outputs"].items()}
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = run(config(pool, objective=("column:tox:min", "words:target=60"), combine="pareto"))
    assert summary["scorers"]["column:tox"] == "as in the pool"
    lift = summary["data"]["scores"]["column:tox"]["selected - random"]
    assert lift["ci95"][1] < 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pool": None, "sources": ("x",)}, "--sources names those of a --pool FILE"),
        ({"source": ("embedded:student",)}, "holds the answers already: leave out --source"),
        ({"pool": "nowhere.jsonl"}, "no such file: nowhere.jsonl"),
        ({"objective": ("mtlt:max",)}, "no metric 'mtlt'; did you mean mtld"),
        ({"objective": ("mtld",)}, "--objective 'mtld': give SCORE:max"),
        ({"objective": ()}, "name at least one"),
        ({"objective": ("mtld:max", "mtld:min")}, "each score once"),
        ({"constraint": ("words<=40",)}, "no answer has words>=50 and words<=40.*lower --min-words 50"),
        ({"weights": ("1", "2")}, "--weights 1,2: give 1 numbers"),
        ({"weights": ("x",)}, "--weights x: not numbers"),
        ({"drop": ("bad",)}, "--drop bad: there are empty"),
        ({"sources": ("z",)}, "--sources z: not among the first 60 prompts of .*, whose sources are x, y"),
        ({"sources": ("x", "x")}, "name each once"),
        ({"k": 2, "top": 2}, "--top 2 of --k 2 answers selects nothing"),
        ({"k": 0}, "--k must be at least 1"),
        ({"temperature": -1.0}, "--temperature must be at least 0"),
        (
            {"objective": ("mtld:max", "lix:min"), "combine": "pareto", "temperature": 1.0},
            "--temperature draws by a sum",
        ),
        (
            {"objective": ("column:tox:min",), "student": "none"},
            "column:tox: the first 60 prompts of .* have no such score",
        ),
        ({"objective": ("python:nowhere.py:f:min",)}, "no such file: nowhere.py"),
    ],
)
def test_mistakes_are_found_before_any_work(pool, settings, said):
    with pytest.raises(UserError, match=said) as error:
        run(Config(**{"pool": str(pool), "run_dir": str(pool.parent / "run")} | settings))
    assert "\n" not in str(error.value)
    assert not (pool.parent / "run").exists()


def command(*words):
    return subprocess.run(
        [sys.executable, "run.py", "active-inheritance", *words], capture_output=True, text=True, cwd=ROOT
    )


def test_the_command(pool):
    folder = str(pool.parent / "run")
    words = [
        "--pool",
        str(pool),
        "--objective",
        "mtld:max",
        "--objective",
        "lix:min,words:target=80",
        "--run-dir",
        folder,
    ]
    plan = command(*words, "--dry-run")
    assert (plan.returncode, plan.stderr) == (0, "")
    assert "mtld:max, lix:min, words:target=80, by sum" in plan.stdout
    assert not pathlib.Path(folder).exists()
    done = command(*words, "--select-only")
    assert done.returncode == 0
    # A stage has a line if it took a second, which depends on the machine.
    began, *stages, ended = done.stderr.splitlines()
    assert began.startswith("active-inheritance (seedloop ")
    assert ended.startswith("finished in ")
    told = {line.split("]")[1].split(":")[0].split(" · ")[-1].strip() for line in stages}
    assert told <= {"score", "select", "write"}
    assert pathlib.Path(folder, "report.html").exists()
    assert set(USUAL) <= read_json(pathlib.Path(folder, "summary.json"))["scorers"].keys()
    other = command("--pool", str(pool), "--run-dir", folder, "--select-only")
    assert (other.returncode, other.stdout) == (2, "")
    assert other.stderr.startswith("error: ")
    assert other.stderr.count("\n") == 1


def test_the_real_pool(shared_data, tmp_path):
    """14 models' answers to 605 prompts, of which the test takes every tenth."""
    lines = (shared_data / "alpaca_eval_pool" / "train.jsonl").read_text().splitlines()[::10]
    file = tmp_path / "pool.jsonl"
    file.write_text("\n".join(lines))
    summary = run(config(file, constraint=("words<=200",)))
    assert len(summary["pool"]["sources"]) == 14
    lift = summary["data"]["scores"]["mtld"]["selected - random"]
    assert lift["ci95"][0] > 20


def test_nothing_feasible_is_one_line(pool):
    with pytest.raises(UserError, match=r"no prompt has an answer that can be taken under words>=900: relax"):
        run(config(pool, min_words=900, fallback="drop"))


def test_a_function_that_leaves_the_program_is_a_failure(pool):
    score = pool.parent / "score.py"
    score.write_text("def f(prompt, answer):\n    raise SystemExit(3)\n")
    with pytest.raises(UserError, match=r"failed 5 times in a row, the last with: SystemExit: 3"):
        run(config(pool, objective=(f"python:{score}:f:max",)))


def test_failures_of_a_function_are_counted_and_said(pool, capsys):
    score = pool.parent / "score.py"
    score.write_text("def f(prompt, answer):\n    return len(answer) if len(answer) % 5 else float('nan')\n")
    name = f"python:{score}:f"
    summary = run(config(pool, objective=(f"{name}:max",), drop=("none",)))
    pooled = [answer for row in read_parts(pool.parent / "run/pool") for answer in row["answers"]]
    missing = sum(answer["scores"][name] is None for answer in pooled)
    assert 0 < missing < len(pooled)
    assert sum(count[f"without {name}"] for count in summary["pool"]["sources"].values()) == missing
    assert f"warning: {name}: {missing} of {len(pooled)} answers have no such score" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "says"), [("float('nan')", "no answer has this score"), ("3", "100% of the")])
def test_a_score_that_is_never_there_or_never_varies_is_said(pool, value, says):
    score = pool.parent / "score.py"
    score.write_text(f"def f(prompt, answer):\n    return {value}\n")
    summary = run(config(pool, objective=(f"python:{score}:f:max",), min_words=0))
    assert any(says in warning and str(score) in warning for warning in summary["warnings"])


def test_drafts_in_answers_of_a_source_are_neither_scored_nor_learned(tmp_path):
    """Of a function or a model in this process too; a code fence may be what was asked for."""
    from common.backends.callback import CallbackGenerator

    say = lambda messages: "<think>\nA draft.\n</think>\n\n```\ncode\n```"
    source = {"f": lambda cache: contextlib.nullcontext(lambda account: CallbackGenerator("f", say))}
    with RunDir.open(tmp_path / "run", "m", {}) as place:
        pool = sample_pool(place, Answering(2, SampleConfig()), source, [Prompt("p", "Say.")], "r", 0)
        (group,) = pool.groups()
    assert [answer.text for answer in group.answers] == ["```\ncode\n```"] * 2


def read_parts(folder):
    return [row for file in sorted(folder.glob("part-*.jsonl")) for row in read_jsonl(file)]


def test_all_of_a_prompts_answers_are_no_selection(pool):
    with pytest.raises(UserError, match=r"--top 6 of 6 answers of .* selects nothing"):
        run(config(pool, top=6))
