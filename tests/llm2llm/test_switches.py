"""Every switch of LLM2LLM does what it says, in three small runs that turn them on together."""

import json
import re
from pathlib import Path

import pytest

from common.errors import UserError
from common.results.files import read_json, read_jsonl
from common.tasks.arithmetic import Arithmetic
from llm2llm.config import Config
from llm2llm.experiment import run
from llm2llm.plan import FULL, variants
from llm2llm.sweep import sweep

SMALL = {"seed_examples": 6, "rounds": 3, "per_wrong": 2, "epochs": 2.0, "batch_size": 8}


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """Word problems of twelve skills as files."""
    folder = tmp_path_factory.mktemp("sums")
    files = {}
    for split, count in (("train", 24), ("dev", 12), ("test", 12)):
        rows = [{"question": e.question, "answer": e.answer} for e in Arithmetic().load(split, None, 5)[:count]]
        files[f"{split}_file"] = str(folder / f"{split}.jsonl")
        Path(files[f"{split}_file"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """Sentences about cats and dogs, twice as many about cats."""
    folder = tmp_path_factory.mktemp("animals")
    rows = [(f"the {noun} runs number {i}", noun) for i in range(12) for noun in ("cat", "cat", "dog")]
    rows = [(f"{text} {i}", noun) for i, (text, noun) in enumerate(rows)]
    files = {}
    for split, part in (("train", rows[:24]), ("test", rows[24:])):
        files[f"{split}_file"] = str(folder / f"{split}.csv")
        lines = ["text,label", *(f"{text},{noun}" for text, noun in part)]
        Path(files[f"{split}_file"]).write_text("\n".join(lines) + "\n")
    return files


def test_continued_out_of_fold_and_semantic(sums, tmp_path):
    arms = ("base", "fine-tune", "llm2llm", "eda", "auggpt", "more-data")
    config = Config(
        **SMALL | sums,
        init="continue",
        augment_from="all",
        target="wrong",
        detect="out-of-fold",
        folds=2,
        semantic=0.95,
        seed_weight=2.0,
        check_votes=3,
        max_per_seed=4,
        arms=arms,
        match="tokens",
        run_dir=str(tmp_path / "run"),
    )
    summary = run(config)
    top = tmp_path / "run/repeat_0"
    rounds = summary["rounds"]
    assert tuple(summary["arms"]) == arms

    # continued: a student's updates are its own and those of the students before it
    assert summary["arms"]["base"]["updates"] == [0]
    chosen = max(range(len(rounds)), key=lambda i: (rounds[i]["dev"], -i))
    assert summary["arms"]["llm2llm"]["updates"] == [sum(r["updates"] for r in rounds[: chosen + 1])]

    # out of fold: every seed is answered once, by a student of the other fold
    folds = [read_jsonl(top / f"fine-tune/round_0/fold_{k}/seeds.jsonl") for k in (0, 1)]
    ids = [row["id"] for fold in folds for row in fold]
    assert sorted(ids) == sorted(row["id"] for row in read_jsonl(top / "seeds.jsonl"))
    assert rounds[0]["fold_updates"] == 4
    assert not list(top.glob("**/fold_*/student"))

    # the teacher is shown what they got wrong, also where the student itself is right
    replies = read_jsonl(top / "llm2llm/round_0/new.jsonl") + read_jsonl(top / "llm2llm/round_0/refused.jsonl")
    wrong = {row["id"] for fold in folds for row in fold if not row["correct"]}
    if wrong:
        assert {row["parent"] for row in replies} == wrong

    # cap of a seed
    made = [r for n in (0, 1) for f in top.glob(f"llm2llm/round_{n}/new.jsonl") for r in read_jsonl(f)]
    roots = {}
    for row in made:
        roots[row["id"]] = roots.get(row["parent"], row["parent"])
    counts = [list(roots.values()).count(seed) for seed in set(roots.values())]
    assert max(counts, default=0) <= 4

    # votes: three answers for each label check
    checks = read_jsonl(top / "llm2llm/round_0/check_1.jsonl")
    assert {row["sample"] for row in checks} <= {0, 1, 2}
    assert rounds[0]["check_calls"] % 3 == 0

    # eda and more-data learn from as many examples as llm2llm, of the same seeds or of real data
    size = summary["arms"]["llm2llm"]["examples"][0]
    assert summary["arms"]["eda"]["examples"] == summary["arms"]["more-data"]["examples"] == [size]
    real = {json.loads(line)["question"] for line in Path(sums["train_file"]).read_text().splitlines()}
    if size > 6:
        assert {row["question"] for row in read_jsonl(top / "more-data/new.jsonl")} <= real
        assert not {row["question"] for row in read_jsonl(top / "eda/new.jsonl")} & real
    # the same tokens, as near as whole updates allow
    tokens = {
        name: arm["tokens"][0] / arm["updates"][0] for name, arm in summary["arms"].items() if arm["updates"][0]
    }
    for name in ("eda", "auggpt", "more-data"):
        assert abs(summary["arms"][name]["tokens"][0] - summary["arms"]["llm2llm"]["tokens"][0]) <= tokens[name]
    # auggpt: as many calls of the teacher
    cost = summary["accounting"]
    assert cost["auggpt"]["teacher_calls"] == cost["llm2llm"]["teacher_calls"]


def test_one_shot_shows_the_wrong_answer_and_earlier_questions(animals, tmp_path):
    """A Python function teaches; the test reads over its shoulder."""
    seen = []

    def write(messages):
        seen.append(messages)
        label = re.findall(r"Label: (cat|dog)", messages[-1]["content"])[0]
        return f"Text: one {len(seen)} more {len(seen) * 7} {label} story {len(seen) * 31}\nLabel: {label}"

    config = Config(
        **SMALL | animals | {"rounds": 4},
        task="text",
        mode="one-shot",
        show_wrong_answer=True,
        seed_sampler="random",
        seed=2,
        label_check="none",
        target="all",
        balance=True,
        rouge_l=0.95,
        arms=("fine-tune", "llm2llm"),
        run_dir=str(tmp_path / "run"),
    )
    summary = run(config, teacher=write)
    stored = read_json(tmp_path / "run/config.json")["config"]
    assert stored["teacher"].startswith("function:")
    assert "license" not in (tmp_path / "run/dataset/README.md").read_text().split("---")[1]
    assert len(summary["rounds"]) == 2
    seeds = read_jsonl(tmp_path / "run/repeat_0/seeds.jsonl")
    cats = sum(row["label"] == "cat" for row in seeds)
    # three teaching rounds of two examples in one; no class is asked for beyond its even share
    wanted = {"cat": min(cats * 6, 21 - cats), "dog": min((6 - cats) * 6, 21 - (6 - cats))}
    new = read_jsonl(tmp_path / "run/repeat_0/llm2llm/round_0/new.jsonl")
    assert {name: sum(row["label"] == name for row in new) for name in wanted} == wanted
    graded = {row["id"]: row for row in read_jsonl(tmp_path / "run/repeat_0/fine-tune/round_0/seeds.jsonl")}
    shown = "\n".join(message["content"] for messages in seen for message in messages)
    wrong = [row["text"].strip() for row in graded.values() if not row["correct"] and row["text"].strip()]
    assert wrong
    assert all(text.splitlines()[0] in shown for text in wrong)
    assert set(summary["arms"]["llm2llm"]["per_class"]) <= {"cat", "dog"}
    assert "macro_f1" in summary["arms"]["llm2llm"]
    low, high = summary["gains"]["llm2llm - fine-tune"]["bootstrap95"]
    assert low <= summary["gains"]["llm2llm - fine-tune"]["value"] <= high


def test_mixed_takes_what_is_right_at_times(sums, tmp_path):
    """Eight sampled answers to each seed: some right, not all."""
    config = Config(
        **SMALL | sums | {"rounds": 2, "per_wrong": 1},
        target="mixed",
        when_none_wrong="stop",
        label_check="program",
        arms=("llm2llm",),
        run_dir=str(tmp_path / "run"),
    )
    summary = run(config)
    top = tmp_path / "run/repeat_0"
    right = {}
    for row in read_jsonl(top / "fine-tune/round_0/sampled.jsonl"):
        right.setdefault(row["id"], []).append(row["correct"])
    assert {len(marks) for marks in right.values()} == {8}
    mixed = {name for name, marks in right.items() if any(marks) and not all(marks)}
    if not mixed:
        assert summary["rounds"][0]["stopped"] == "nothing to improve was found"
        return
    replies = read_jsonl(top / "llm2llm/round_0/new.jsonl") + read_jsonl(top / "llm2llm/round_0/refused.jsonl")
    assert {row["parent"] for row in replies} == mixed


@pytest.mark.long
def test_sweep_runs_every_variant_on_the_same_questions(animals, tmp_path):
    config = Config(
        **SMALL | animals | {"rounds": 2, "per_wrong": 1},
        task="text",
        teacher=f"pool:{animals['train_file']}",
        rouge_l=1.0,
        folds=2,
        repeats=2,
        run_dir=str(tmp_path / "run"),
    ).resolved()
    names = list(variants(config))
    assert names == [FULL, "one-shot", "continued training", "new examples augmented too", "out-of-fold mistakes"]
    result = sweep(config)
    assert {*names, "fine-tune-matched", "seeds drawn at random"} == set(result["arms"])
    for name in names[1:]:
        gain = result["gains"][f"{name} - {FULL}"]
        assert gain["value"] == pytest.approx(result["arms"][name]["value"] - result["arms"][FULL]["value"])
        assert gain["ci95"][0] <= gain["value"] <= gain["ci95"][1]
    assert (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 1, "detect": "auto"}, "--folds"),
        ({"target": "mixed", "detect": "out-of-fold"}, "finds answers"),
        ({"arms": ("llm2llm", "llm2llm")}, "twice"),
        ({"rounds": 1}, "seeds alone"),
        ({"preset": "paper"}, "sets a name only"),
        ({"teacher": "openai:"}, "names no model"),
        ({"teacher": "openai:m", "teacher_url": "http://u:p@host/v1"}, "login"),
        ({"teacher": "openai:m", "teacher_price": "abc"}, "price"),
        ({"teacher": "openai:m", "budget": "calls=1"}, "cannot be shared"),
        ({"teacher": "python:nowhere.py:write"}, "no such file: nowhere.py"),
        ({"target_share": 0.0}, "--target-share"),
        ({"student_temperature": -1.0}, "--student-temperature"),
        ({"budget": "calls=5"}, "hosted teacher"),
        ({"teacher": "openai:m", "budget": "usd=5"}, "price"),
        ({"reference_code": True}, "GSM8K only"),
        ({"seed": -1}, "--seed"),
        ({"teacher_temperature": float("nan")}, "--teacher-temperature"),
        ({"teacher": f"pool:{__file__}", "arms": ("llm2llm", "auggpt")}, "other words"),
        ({"teacher": f"pool:{__file__}", "show_earlier": 2}, "reads no requests"),
    ],
)
def test_switches_are_checked(change, message):
    with pytest.raises(UserError, match=message) as raised:
        Config(**change).resolved()
    assert "\n" not in str(raised.value)
