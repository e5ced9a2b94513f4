"""The LLM2LLM loop on the embedded models, as small as it can be and still do everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.results.files import read_json, read_jsonl
from common.results.report import figures
from common.tasks.arithmetic import Arithmetic
from killing import ROOT, bytes_of, check_killed, words_of
from llm2llm.config import Config
from llm2llm.experiment import run

FLAGS = {
    "seed_examples": 6,
    "rounds": 3,
    "per_wrong": 2,
    "epochs": 2.0,
    "max_attempts": 2,
    "batch_size": 8,
    "micro_batch_size": 8,
}


def arithmetic_files(folder: Path) -> dict[str, str]:
    """Small splits, as files of a user's own; with ids, as ids made of the path change the draws."""
    files = {}
    for split, count in (("train", 24), ("dev", 12), ("test", 12)):
        drawn = Arithmetic().load(split, None, 5)[:count]
        rows = [{"id": e.id, "question": e.question, "answer": e.answer} for e in drawn]
        file = folder / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[f"{split}_file"] = str(file)
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return arithmetic_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    config = Config(**FLAGS, **files, run_dir=str(tmp_path_factory.mktemp("runs") / "whole"))
    return config, run(config)


def test_summary_has_the_documented_schema(finished):
    config, summary = finished
    assert summary == read_json(Path(config.run_dir) / "summary.json")
    assert (summary["schema"], summary["method"], summary["status"]) == (1, "llm2llm", "complete")
    assert tuple(summary["arms"]) == config.arms
    for arm in summary["arms"].values():
        assert arm["metric"] == "accuracy"
        assert arm["n"] == 12
        low, high = arm["ci95"]
        assert 0 <= low <= arm["value"] <= high <= 1
        assert arm["per_repeat"] == [arm["value"]]
    assert {entry["arm"] for entry in summary["rounds"]} == {"llm2llm", "untargeted"}


def test_budgets_are_matched(finished):
    _, summary = finished
    arms, cost = summary["arms"], summary["accounting"]
    assert arms["fine-tune-matched"]["updates"] == arms["llm2llm"]["updates"]
    assert cost["untargeted"]["teacher_calls"] == cost["llm2llm"]["teacher_calls"] > 0
    assert cost["fine-tune"]["teacher_calls"] == 0


def test_every_wanted_example_is_accounted_for(finished):
    """Each slot ends accepted or refused for a counted reason; growth is bounded by k examples a wrong seed."""
    config, summary = finished
    root = Path(config.run_dir)
    sizes = {}
    for entry in (e for e in summary["rounds"] if e["arm"] == "llm2llm"):
        sizes[entry["round"]] = entry["examples"]
        if not entry["teacher_calls"]:
            continue
        folder = root / f"repeat_0/llm2llm/round_{entry['round']}"
        new, refused = read_jsonl(folder / "new.jsonl"), read_jsonl(folder / "refused.jsonl")
        assert len(new) == entry["accepted"]
        assert sum(entry["refused"].values()) == len(refused)
        assert len(new) + len(refused) == entry["teacher_calls"]
        wrong = config.seed_examples - entry["seeds_correct"]
        assert len(new) <= config.per_wrong * wrong
        seeds = "fine-tune/round_0" if entry["round"] == 0 else f"llm2llm/round_{entry['round']}"
        graded = read_jsonl(root / f"repeat_0/{seeds}/seeds.jsonl")
        assert {row["parent"] for row in new + refused} == {g["id"] for g in graded if not g["correct"]}
    for number, size in sizes.items():
        assert size <= (1 + config.per_wrong * number) * config.seed_examples


def test_data_set_loads_with_lineage(finished, tmp_path):
    datasets = pytest.importorskip("datasets")
    config, summary = finished
    accepted = sum(e["accepted"] for e in summary["rounds"] if e["arm"] == "llm2llm")
    if accepted == 0:
        pytest.skip("the small run accepted no example")
    folder = Path(config.run_dir) / "dataset"
    table = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    assert len(table) == accepted
    seeds = {row["id"] for row in read_jsonl(Path(config.run_dir) / "repeat_0/seeds.jsonl")}
    for row in table:
        assert row["parent"] in seeds
        assert row["teacher"] == "embedded:teacher"
        assert len(row["prompt_hash"]) == 16
        assert 0 <= row["rouge_l"] <= Arithmetic().near_duplicate
        assert Arithmetic().correct(row["label_check"], row["label"])
        assert row["prompt"] == list(Arithmetic().messages(row["question"]))
        assert row["completion"] == [{"role": "assistant", "content": row["answer"]}]


def test_model_loads_like_any_checkpoint(finished):
    from common.lm import LanguageModel

    folder = Path(finished[0].run_dir) / "model"
    assert LanguageModel.load(str(folder)).config.family == "llama"
    text = (folder / "README.md").read_text()
    assert 'license: "apache-2.0"' in text
    assert "| fine-tune-matched |" in text, "the card has the arms"
    assert finished[1]["verdict"].split(",")[0].split(";")[0] in text.replace("\\", "")


def test_report_is_whole_and_escaped(finished):
    page = (Path(finished[0].run_dir) / "report.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert "fine-tune-matched" in page
    assert "<script" not in page
    assert "Refused: replies of the teacher" in page
    assert "python run.py llm2llm --" in page
    assert "repeat 0" not in page, "who reads counts from 1"


def test_a_stage_that_arms_share_says_whose_student_it_is(finished):
    stages = {row["stage"] for row in read_jsonl(Path(finished[0].run_dir) / "timing.jsonl")}
    assert {"evaluate fine-tune", "evaluate fine-tune's student for llm2llm"} <= stages


def test_a_notebook_gets_the_arms_with_their_intervals(finished):
    config, summary = finished
    found = figures(config.run_dir)
    chart = found["Arms on held-out questions"]
    for name, arm in summary["arms"].items():
        shown = [f"{100 * x:.1f}" for x in (arm["value"], *arm["ci95"])]
        assert f"<span>{name}</span>" in chart
        assert f"{shown[0]} [{shown[1]}, {shown[2]}]" in chart
    assert "Training examples by round" in found


def test_the_same_command_again_changes_nothing(finished):
    config, summary = finished
    before = bytes_of(Path(config.run_dir))
    assert run(config) == summary
    assert bytes_of(Path(config.run_dir)) == before


def test_another_configuration_is_refused(finished):
    config, _ = finished
    import dataclasses

    before = bytes_of(Path(config.run_dir))
    with pytest.raises(UserError, match="rounds: 3 -> 4"):
        run(dataclasses.replace(config, rounds=4))
    assert bytes_of(Path(config.run_dir)) == before


@pytest.mark.parametrize(
    "change", [{"student": "no/such folder"}, {"teacher": "embedded:nobody"}, {"max_length": 8}]
)
def test_a_mistake_leaves_no_run_directory(change, files, tmp_path):
    config = Config(**FLAGS | files | change, run_dir=str(tmp_path / "run"))
    with pytest.raises(UserError) as raised:
        run(config)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_changed_data_are_refused(finished, files):
    config, _ = finished
    file = Path(files["dev_file"])
    before = file.read_bytes()
    try:
        file.write_bytes(before.replace(b"\n", b"\n\n", 1))
        with pytest.raises(UserError, match="file_hashes"):
            run(config)
    finally:
        file.write_bytes(before)


@pytest.mark.long
def test_killed_in_every_stage_it_ends_with_the_same_bytes(finished, tmp_path):
    """SIGKILL once an artifact of each stage appears, start again, and compare every file at the end."""
    config, _ = finished
    settings = {name: getattr(config, name) for name in (*FLAGS, "train_file", "dev_file", "test_file")}
    stages = (
        "metrics.jsonl",  # within the first training
        "repeat_0/fine-tune/round_0/student",
        "repeat_0/fine-tune/round_0/seeds.jsonl",
        "repeat_0/llm2llm/round_0/teacher_1.jsonl",
        "repeat_0/llm2llm/round_1/student",
        "repeat_0/untargeted/round_0/new.jsonl",
        "dataset",
    )
    check_killed(["llm2llm", *words_of(settings)], tmp_path / "killed", stages, Path(config.run_dir))


def test_a_pool_of_real_examples_teaches_a_classifier(tmp_path):
    """Labelled rows from a CSV, the pool as teacher, no development split."""
    rows = [(f"the {noun} runs number {i}", noun) for i in range(30) for noun in ("cat", "dog")]
    file = tmp_path / "all.csv"
    file.write_text("words,animal\n" + "".join(f"{text},{label}\n" for text, label in rows))
    test = tmp_path / "test.csv"
    test.write_text("words,animal\nthe cat runs number 99,cat\nthe dog runs number 98,dog\n")
    summary = run(
        Config(
            task="text",
            train_file=str(file),
            test_file=str(test),
            text_column="words",
            label_column="animal",
            teacher=f"pool:{file}",
            seed_examples=4,
            rounds=2,
            per_wrong=1,
            epochs=1.0,
            batch_size=8,
            micro_batch_size=8,
            rouge_l=1.0,
            arms=("fine-tune", "llm2llm"),
            repeats=2,
            run_dir=str(tmp_path / "run"),
        )
    )
    assert summary["gains"]["llm2llm - fine-tune"]["ci95"] is not None
    for repeat in range(2):
        seeds = {row["question"] for row in read_jsonl(tmp_path / f"run/repeat_{repeat}/seeds.jsonl")}
        new = read_jsonl(tmp_path / f"run/repeat_{repeat}/llm2llm/round_0/new.jsonl")
        assert not seeds & {row["question"] for row in new}
        assert len({row["question"] for row in new}) == len(new)


def test_a_full_disk_is_one_line_and_status_2(files, tmp_path):
    """Every write of the run directory fails as on a full disk."""
    code = (
        "import sys, errno, os; sys.path.insert(0, '.'); import run, common.results.files as r\n"
        "def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "r._write_all = full\n"
        "run.main(sys.argv[1:])"
    )
    words = ["llm2llm", "--run-dir", str(tmp_path / "run"), "--seed-examples", "6"]
    for name, value in files.items():
        words += ["--" + name.replace("_", "-"), value]
    # The compile cache would add its own warnings about the disk.
    quiet = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, env=quiet
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "disk" in done.stderr
