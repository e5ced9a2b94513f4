"""Toxicity as an objective, by the scorers of the profile."""

import json

import pytest

import run as program
from active_inheritance.config import Config
from active_inheritance.experiment import run
from common.errors import UserError
from common.results.files import read_jsonl

SCORER = """
def rude(texts):
    return [None if "?" in text else min(1.0, text.count("bad") / 4) for text in texts]
"""


@pytest.fixture
def pool(tmp_path):
    """Six prompts with four answers: 0 to 3 bad words, the last one refused by the scorer where i is odd."""
    (tmp_path / "rude.py").write_text(SCORER)
    rows = [
        {
            "prompt": f"Tell me about day {i}.",
            "outputs": {
                f"s{n}": f"Day {i} was " + "bad " * n + "number " * (9 + n) + ("?" if n == 3 and i % 2 else ".")
                for n in (2, 0, 1, 3)
            },
        }
        for i in range(6)
    ]
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def settings(pool, **more):
    given = {"toxicity_scorer": f"python:{pool.parent / 'rude.py'}:rude", "drop": ("none",), "select_only": True}
    return Config(pool=str(pool), run_dir=str(pool.parent / "run"), **given | more)


def test_the_least_toxic_answer_is_selected_and_the_scorer_is_named(pool):
    summary = run(settings(pool, objective=("toxicity:min",)))
    chosen = read_jsonl(pool.parent / "run/selection/part-00000.jsonl")
    assert [row["selected"][0]["source"] for row in chosen] == ["s0"] * 6
    assert summary["data"]["scores"]["toxicity"]["selected"] == 0
    assert summary["scorers"]["toxicity"].startswith(f"python:{pool.parent / 'rude.py'}:rude, sha256 ")
    scored = read_jsonl(pool.parent / "run/pool/part-00000.jsonl")
    found = [answer["scores"]["toxicity"] for answer in scored[1]["answers"]]
    assert found == [0.5, 0.0, 0.25, None]


def test_a_refused_answer_never_wins(pool):
    summary = run(settings(pool, objective=("toxicity:max",)))
    chosen = read_jsonl(pool.parent / "run/selection/part-00000.jsonl")
    assert [row["selected"][0]["source"] for row in chosen] == ["s3", "s2"] * 3
    assert summary["data"]["scores"]["toxicity"]["selected"] == pytest.approx((0.75 + 0.5) / 2)


def test_toxicity_is_watched_where_it_is_not_aimed_at(pool):
    summary = run(settings(pool, objective=("words:max",), constraint=("toxicity<=0.3",)))
    chosen = read_jsonl(pool.parent / "run/selection/part-00000.jsonl")
    assert {row["selected"][0]["source"] for row in chosen} == {"s1"}
    assert summary["data"]["scores"]["toxicity"]["selected"] == 0.25


def test_scores_made_elsewhere_are_read_by_text(pool):
    scores = pool.parent / "scores.jsonl"
    lines = pool.read_text().splitlines()
    rows = [answer for row in map(json.loads, lines) for answer in row["outputs"].values()]
    scores.write_text("".join(json.dumps({"text": text, "tox": len(text) / 1000}) + "\n" for text in rows[:-1]))
    config = settings(pool, objective=("toxicity:min",), toxicity_scorer=f"column:{scores}:tox")
    with pytest.raises(UserError, match="no score of 1 of 4 texts"):
        run(config)
    with scores.open("a") as file:
        file.write(json.dumps({"text": rows[-1], "tox": 0.001}) + "\n")
    run(config)
    chosen = read_jsonl(pool.parent / "run/selection/part-00000.jsonl")
    assert chosen[-1]["selected"][0]["source"] == "s3"


def test_the_student_is_measured_by_the_same_scorer(pool):
    summary = run(
        settings(
            pool,
            objective=("toxicity:min",),
            select_only=False,
            test_prompts=2,
            answer_tokens=16,
            epochs=1.0,
            batch_size=2,
            profile=("none",),
        )
    )
    for arm in summary["arms"].values():
        assert arm["metric"] == "toxicity"
        assert 0 <= arm["value"] <= 1


def test_a_score_without_a_scorer_is_one_line(pool, capsys, tmp_path):
    words = ["active-inheritance", "--pool", str(pool), "--objective", "toxicity:min"]
    with pytest.raises(SystemExit) as left:
        program.main([*words, "--run-dir", str(tmp_path / "none")])
    assert left.value.code == 2
    assert "toxicity is scored by whom you name: --toxicity-scorer" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program.main([*words, "--toxicity-scorer", "magic:", "--run-dir", str(tmp_path / "none")])
    assert "--toxicity-scorer magic:" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
