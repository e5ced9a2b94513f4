"""ReverseGen on the embedded models, as small as it can be and still do everything."""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.results.files import read_json, read_jsonl
from common.tasks.arithmetic import Arithmetic
from common.text.novelty import History
from killing import ROOT, bytes_of, check_killed, words_of
from reversegen.config import Config, preset
from reversegen.experiment import load_data, run

FLAGS = {
    "seed_instructions": 16,
    "rounds": 2,
    "prompts": 8,
    "samples": 4,
    "final_prompts": 24,
    "pairing": "fallback",
    "min_pairs": 1,
    "warm_up_epochs": 1.0,
    "dpo_epochs": 1.0,
    "epochs": 1.0,
    "batch_size": 8,
}
TWO_ARMS = ("target-before", "target-after")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Small splits, as files of a user's own; enough seeds for two proposers."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 40), ("test", 8)):
        rows = [{"question": e.question, "answer": e.answer} for e in Arithmetic().load(split, None, 5)[:count]]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"seeds_file": str(folder / "train.jsonl"), "test_file": str(folder / "test.jsonl")}


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    config = Config(**FLAGS, **files, run_dir=str(tmp_path_factory.mktemp("runs") / "whole"))
    return config, run(config)


def small(files, folder: Path, **change) -> Config:
    """One round and two arms."""
    settings = FLAGS | {"rounds": 1, "prompts": 6, "arms": TWO_ARMS} | files | change
    return Config(**settings, run_dir=str(folder / "run"))


def queries(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.rglob("queries.jsonl")) for row in read_jsonl(file)]


def test_summary_has_the_documented_schema(finished):
    config, summary = finished
    assert summary == read_json(Path(config.run_dir) / "summary.json")
    assert (summary["schema"], summary["method"], summary["status"]) == (1, "reversegen", "complete")
    assert tuple(summary["arms"]) == (
        *("target-before", "target-after", "seed-only", "warm-up", "warm-up-failures", "few-shot"),
    )
    for arm in summary["arms"].values():
        assert set(arm["sets"]) == {"failures", "test"}
        for entry in arm["sets"].values():
            assert entry["metric"] == "accuracy"
            low, high = entry["ci95"]
            assert 0 <= low <= entry["value"] <= high <= 1
            assert entry["per_repeat"] == [entry["value"]]
        assert arm["sets"]["test"]["items"] == [8]
        assert arm["value"] == arm["sets"]["failures"]["value"]
    assert set(summary["gains"]) == {
        f"target-after - {name}" for name in summary["arms"] if name != "target-after"
    }
    assert {"warm_up", "final", "ratio"} == set(summary["exploration"])
    assert set(summary["labels"]) >= {"target-after", "held-out failures", "warm-up"}


def test_the_verdict_is_on_what_preference_training_adds(finished):
    """Against the arm that learned from the proposer as it was after warm-up, on the held-out failures."""
    config, summary = finished
    assert "target-after" in summary["verdict"]
    assert "warm-up on held-out failures" in summary["verdict"]
    assert summary["verdict"] in (Path(config.run_dir) / "report.html").read_text()
    assert any(
        re.match(r"only \d+ held-out failures?, which tell a share", warning) for warning in summary["warnings"]
    )


def test_rounds_add_up(finished):
    config, summary = finished
    for explorer in ("explore", "independent"):
        own = [entry for entry in summary["rounds"] if entry["explorer"] == explorer]
        assert [entry["round"] for entry in own] == [0, 1, 2, "final"]
        assert [entry["queries"] for entry in own] == [32, 32, 32, 24]
        for entry in own:
            parts = ("malformed", "repeated", "unlikely", "invalid", "valid")
            assert sum(entry[name] for name in parts) == entry["queries"]
            assert entry["failed"] + entry["passed"] == entry["valid"]
            folder = Path(config.run_dir) / f"repeat_0/{explorer}"
            name = "final" if entry["round"] == "final" else f"round_{entry['round']}"
            assert len(read_jsonl(folder / name / "pairs.jsonl")) == entry["pairs"]


def test_all_trained_arms_have_the_same_updates(finished):
    _, summary = finished
    arms = summary["arms"]
    updates = {name: arm["updates"][0] for name, arm in arms.items() if name != "target-before"}
    assert len(set(updates.values())) == 1
    assert arms["target-before"]["updates"] == [0]
    for name in ("warm-up", "warm-up-failures", "few-shot"):
        assert arms[name]["examples"][0] <= arms["target-after"]["examples"][0]


def test_accounting(finished):
    """The warm-up arms choose from at most as many proposals as the whole exploration sampled."""
    config, summary = finished
    cost = summary["accounting"]
    sampled = 3 * 32 + 24
    assert cost["target-after"]["queries"] == sampled
    for pool, most in (("warm-up", sampled), ("few-shot", 2 * config.final_prompts)):
        assert 0 < cost[pool]["queries"] <= most
        assert cost[pool]["queries"] % config.final_prompts == 0
    assert cost["seed-only"] == {"queries": 0, "target_calls": 0, "labels_asked": 0, "optimizer_updates": 1} | {
        "optimizer_updates": cost["target-after"]["optimizer_updates"]
    }
    for found in summary["labels"].values():
        if found["asked"]:
            assert found["asked"] >= found["accepted"]
            assert found["wrong"] <= found["known"] <= found["asked"]
    own = queries(Path(config.run_dir) / "repeat_0/explore")
    assert cost["target-after"]["target_calls"] == sum(bool(row.get("answers")) for row in own)


def test_the_target_as_it_came_fails_on_all_held_out_failures(finished):
    _, summary = finished
    assert summary["arms"]["target-before"]["sets"]["failures"]["value"] == 0


def test_held_out_failures_are_near_nothing_that_was_learned(finished):
    config, _ = finished
    folder = Path(config.run_dir) / "repeat_0"
    learned = [row for file in folder.glob("*/data.jsonl") for row in read_jsonl(file)]
    held = {row["id"] for row in read_jsonl(folder / "target-before/failures.jsonl")}
    asked = [row for row in queries(folder / "independent") if row["id"] in held]
    assert len(asked) == len(held) > 0
    history = History(config.resolved().jaccard)
    history.add_new([row["question"] for row in learned], [row["id"] for row in learned])
    assert history.repeats([row["query"] for row in asked]) == [None] * len(asked)


def test_the_two_proposers_share_no_seed_and_no_prompt(finished):
    config, _ = finished
    folder = Path(config.run_dir) / "repeat_0"
    ours, theirs = (
        {row["id"] for row in read_jsonl(folder / name / "seeds.jsonl")} for name in ("explore", "independent")
    )
    assert len(ours) == len(theirs) == 16
    assert not ours & theirs
    groups = {}
    for row in queries(folder / "explore") + queries(folder / "controls"):
        assert set(row["shown"]) <= ours
        place = row["id"].rpartition("-")[0]
        groups[place] = frozenset(row["shown"])
    own = [group for place, group in groups.items() if "few_shot" not in place]
    assert len(set(own)) == len(own), "a group of seeds was shown twice"


def test_every_query_has_its_provenance(finished):
    config, _ = finished
    rows = queries(Path(config.run_dir) / "repeat_0")
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert len(row["prompt_hash"]) == 16
        assert len(row["shown"]) == config.shots
        assert {"round", "prompt", "sample", "reply", "malformed", "dropped", "pair", "side"} <= row.keys()
        assert (row["query"] is None) == (row["malformed"] is not None)
        if row["outcome"] in ("fail", "pass"):
            assert row["dropped"] is None
            assert len(row["answers"]) == 1
            assert row["score"] == (row["outcome"] == "fail")
            right = Arithmetic().correct(row["answers"][0], row["reference"])
            assert right == (row["outcome"] == "pass")
    of = {row["id"]: row for row in rows}
    for file in (Path(config.run_dir) / "repeat_0").rglob("pairs.jsonl"):
        for number, pair in enumerate(read_jsonl(file)):
            for side in ("chosen", "rejected"):
                assert (of[pair[side]]["pair"], of[pair[side]]["side"]) == (number, side)


def test_dpo_begins_at_log_2_in_every_round(finished):
    config, summary = finished
    rows = read_jsonl(Path(config.run_dir) / "metrics.jsonl")
    trained = [e for e in summary["rounds"] if e["round"] in (0, 1) and e["pairs"]]
    assert len(trained) >= 2
    for entry in trained:
        stage = f"repeat_0/{entry['explorer']}/round_{entry['round']}"
        first = next(row for row in rows if row["stage"] == stage)
        assert first["step"] == 0
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_weights_that_are_not_needed_again_are_deleted(finished):
    config, summary = finished
    folder = Path(config.run_dir) / "repeat_0"
    best = next(e["proposer"] for e in summary["rounds"] if e["round"] == "final" and e["explorer"] == "explore")
    kept = {"explore/warm_up/proposer"} | ({f"explore/round_{best - 1}/proposer"} if best else set())
    assert {str(f.relative_to(folder)) for f in folder.glob("explore/*/proposer")} == kept
    assert [f.parent.name for f in folder.glob("*/target")] == ["target-after"]
    assert not list(folder.rglob("training_state"))


def test_products_load(finished):
    from common.lm import LanguageModel

    folder = Path(finished[0].run_dir)
    for name in ("model", "proposer"):
        assert LanguageModel.load(str(folder / name)).config.family == "llama"
        assert "Trained from embedded:" in (folder / name / "README.md").read_text()
    page = (folder / "report.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert "warm-up-failures" in page


def test_data_sets_hold_what_target_and_proposer_learned(finished):
    """As chats: of the target its queries and labels, of the proposers their pairs of replies."""
    import pyarrow.parquet

    config, summary = finished
    folder = Path(config.run_dir)
    rows, pairs = (
        pyarrow.parquet.read_table(next((folder / name / "data").iterdir())).to_pylist()
        for name in ("dataset", "preferences")
    )
    turn = lambda role, text: [{"role": role, "content": text}]
    for row in rows:
        assert row["prompt"] == turn("user", row["query"])
        assert row["completion"] == turn("assistant", row["answer"])
    own = [entry for entry in summary["rounds"] if entry["explorer"] == "explore" and entry["round"] != "final"]
    assert [sum(pair["round"] == entry["round"] for pair in pairs) for entry in own] == [e["pairs"] for e in own]
    of = {row["id"]: row for row in queries(folder / "repeat_0/explore")}
    assert len({pair["id"] for pair in pairs}) == len(pairs) > 0
    for pair in pairs:
        chosen, rejected = of[pair["chosen_id"]], of[pair["rejected_id"]]
        assert (chosen["outcome"], rejected["outcome"]) == ("fail", "pass")
        assert pair["chosen"] == turn("assistant", chosen["reply"])
        assert pair["rejected"] == turn("assistant", rejected["reply"])
        if pair["kind"] == "within":
            asked = hashlib.sha256(json.dumps(pair["prompt"]).encode()).hexdigest()[:16]
            assert asked == chosen["prompt_hash"] == rejected["prompt_hash"], "the prompt that both answered"


def test_the_same_command_again_changes_nothing(finished):
    config, summary = finished
    before = bytes_of(Path(config.run_dir))
    assert run(config) == summary
    assert bytes_of(Path(config.run_dir)) == before


def test_another_configuration_is_refused(finished):
    config, _ = finished
    before = bytes_of(Path(config.run_dir))
    with pytest.raises(UserError, match=r"beta: 0\.1 -> 0\.2"):
        run(dataclasses.replace(config, beta=0.2))
    assert bytes_of(Path(config.run_dir)) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "no/such folder"}, "no/such folder"),
        ({"proposer": "embedded:nobody"}, "nobody"),
        ({"transfer_targets": ("embedded:nobody",)}, "nobody"),
        ({"labeler": "python:nowhere.py:write"}, "no such file: nowhere.py"),
        ({"data": "trec", "seeds_file": None, "test_file": None}, "compares numbers"),
        ({"seed_instructions": 41}, "40 seed instructions"),
        ({"query_tokens": 500}, "too long for --shots 3 and --query-tokens"),
        ({"max_length": 8}, "--max-length 8"),
        ({"answer_tokens": 505}, "leaves no room for an answer"),
        ({"seeds_file": __file__}, "unknown format"),
    ],
)
def test_a_mistake_leaves_no_run_directory(change, message, files, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        run(Config(**FLAGS | files | change, run_dir=str(tmp_path / "run")))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


STAGES = (
    "repeat_0/explore/warm_up/proposer",
    "repeat_0/explore/round_0/proposals.jsonl",
    "repeat_0/explore/round_0/target.jsonl",
    "repeat_0/explore/round_0/queries.jsonl",  # its pairs are there, DPO begins
    "repeat_0/explore/round_0/reference_logps.jsonl",  # within DPO
    "repeat_0/explore/round_0/proposer",
    "repeat_0/explore/final/proposals.jsonl",  # proposers that are not needed again are deleted
    "repeat_0/explore/final/labelled.jsonl",
    "repeat_0/independent/round_1/likelihood.jsonl",
    "repeat_0/controls/warm_up/queries.jsonl",
    "repeat_0/target-after/target",
    "repeat_0/seed-only/failures.jsonl",  # within the measures
    "dataset",
)


@pytest.mark.long
def test_killed_in_every_stage_it_ends_with_the_same_bytes(finished, tmp_path):
    """SIGKILL once an artifact of each stage appears, start again, and compare every file at the end."""
    config, _ = finished
    settings = {name: getattr(config, name) for name in (*FLAGS, "seeds_file", "test_file")}
    check_killed(["reversegen", *words_of(settings)], tmp_path / "killed", STAGES, Path(config.run_dir))


@pytest.mark.long
def test_the_options_together(files, tmp_path):
    """Co-training, more targets, soft rewards, pairs across prompts, adapters, a fixed reference, a program."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "common/embedded/student", copy)
    config = small(
        files,
        tmp_path,
        rounds=2,
        co_train=True,
        transfer_targets=("embedded:student", str(copy)),
        target_samples=3,
        pairing="fallback",
        lora_rank=4,
        reference_proposer="warm-up",
        labeler="program",
        length_normalised=True,
    )
    summary = run(config)
    folder = tmp_path / "run/repeat_0"
    table = {(entry["put_to"], entry["queries"]): entry for entry in summary["transfer"]}
    assert len(table) == 4
    for kind in ("valid", "failed"):
        one, two = (table[name, kind] for name in config.transfer_targets)
        assert one["n"] == two["n"] > 0
        assert 0 <= one["failure_rate"] <= 1
    pairs = read_jsonl(folder / "explore/round_0/pairs.jsonl")
    entry = summary["rounds"][0]
    assert entry["pairs"] == len(pairs) == entry["within"] + entry["across"]
    assert entry["pairs"] >= min(entry["failed"], entry["passed"])
    assert {len(row["answers"]) for row in queries(folder) if row["outcome"] in ("fail", "pass")} == {3}
    assert summary["accounting"]["target-after"]["target_calls"] % 3 == 0
    for number in (0, 1):
        assert (folder / f"explore/round_{number}/co_train/target").is_dir()
    # All failures of all rounds are learned, each once.
    learned = [row["id"] for row in read_jsonl(folder / "explore/final/labelled.jsonl")]
    assert len(set(learned)) == len(learned)
    assert sum("round_" in name for name in learned) > 0
    assert summary["labels"]["target-after"]["wrong"] == 0


@pytest.mark.long
def test_the_authors_settings_run(files, tmp_path):
    tiny = {name: FLAGS[name] for name in ("seed_instructions", "samples", "final_prompts")}
    config = preset(
        "reference-code", **tiny, **files, prompts=6, arms=TWO_ARMS, run_dir=str(tmp_path / "run"), query_tokens=96
    )
    summary = run(config)
    first = summary["rounds"][0]
    assert first["across"] == first["pairs"] == min(first["failed"], first["passed"])
    stored = read_json(tmp_path / "run/config.json")["config"]
    assert (stored["optimizer"], stored["pairing"], stored["semantic"]) == ("rmsprop", "pooled", 1.0)


@pytest.mark.long
def test_a_labeler_as_the_reference_without_a_validity_check_in_repeats(files, tmp_path, capsys):
    summary = run(small(files, tmp_path, reference="labeler", validity="none", repeats=2, redact=True))
    entry = summary["arms"]["target-after"]["sets"]["failures"]
    assert len(entry["per_repeat"]) == 2
    assert "no validity check was made" in capsys.readouterr().out
    assert "target-before on held-out failures" in summary["verdict"]
    assert any("add arm warm-up" in warning for warning in summary["warnings"])
    assert {row["repeat"] for row in summary["rounds"]} == {0, 1}
    for row in queries(tmp_path / "run/repeat_0/explore"):
        if row["outcome"] in ("fail", "pass"):
            assert Arithmetic().correct(row["reference_answer"], row["reference"])
    # The reference's words are the labels, whether a program finds them right or wrong.
    assert summary["labels"]["target-after"]["refused"] == {}
    assert all(entry["pairs"] for entry in summary["rounds"] if entry["round"] == 0), "DPO has its own file"


def test_files_that_repeat_or_contradict_themselves_are_told_before_the_work(files, tmp_path):
    """Held-out questions are found however they are written; the embedded data give nothing to warn of."""
    read = lambda name: [json.loads(line) for line in Path(files[name]).read_text().splitlines()]
    seeds, test = read("seeds_file"), read("test_file")
    seeds += [{"question": test[0]["question"].upper(), "answer": test[0]["answer"]}]
    seeds += [{"question": seeds[0]["question"], "answer": "1 + 1 = 2. #### 2"}]
    for name, rows in (("seeds", seeds), ("test", [*test, *test])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {f"{name}_file": str(tmp_path / f"{name}.jsonl") for name in ("seeds", "test")}
    _, data = load_data(small(own, tmp_path).resolved())
    assert len(data.seeds) == len(seeds) - 1
    torn, again, shared = data.doubts
    assert shared == "seeds.jsonl: 1 row asks what the test or general file asks, and were left out"
    assert torn.startswith("seeds.jsonl: 1 question stands under different labels, such as ")
    assert again.startswith("test.jsonl: 8 of 16 rows repeat another one: ")
    assert load_data(Config().resolved())[1].doubts == ()


def test_too_few_pairs_train_no_proposer_and_say_so(files, tmp_path, capsys, monkeypatch):
    """Without any pair there is no data set of pairs, which no reader would load; the cards say what is so."""
    monkeypatch.setattr("reversegen.explore.pair_up", lambda *_: [])
    summary = run(small(files, tmp_path, rounds=2, min_pairs=1000))
    assert "preferences" not in summary["files"]
    assert not (tmp_path / "run/preferences").exists()
    assert (
        "seed instructions, without any preference training" in (tmp_path / "run/proposer/README.md").read_text()
    )
    first, final = summary["rounds"][:2]
    assert (first["round"], final["round"], final["proposer"]) == (0, "final", 0)
    assert first["stopped"] == f"{first['pairs']} pairs, fewer than --min-pairs 1000"
    assert "fewer than --min-pairs 1000" in capsys.readouterr().out
    assert not (tmp_path / "run/repeat_0/explore/round_0/reference_logps.jsonl").exists()
    assert {row["stage"] for row in read_jsonl(tmp_path / "run/metrics.jsonl")} == {
        *("repeat_0/explore/warm_up", "repeat_0/independent/warm_up", "repeat_0/target-after"),
    }


def test_nothing_valid_is_one_clear_line(files, tmp_path):
    """Where every query is invalid there are no failures, no pairs and no training on them."""
    (tmp_path / "no.py").write_text("def no(messages):\n    return 'No.'\n")
    config = small(files, tmp_path, validity="labeler", labeler=f"python:{tmp_path / 'no.py'}:no")
    for _ in range(2):  # the same again when the run is continued
        with pytest.raises(UserError, match="no failing query with a label came from the best proposer") as raised:
            run(config)
        assert "\n" not in str(raised.value)
        assert "fail 0" in str(raised.value)
    assert {row["outcome"] for row in queries(tmp_path / "run")} <= {"invalid", None}


def test_a_full_disk_is_one_line_and_status_2(files, tmp_path):
    """Every write of the run directory fails as on a full disk."""
    code = (
        "import sys, errno, os; sys.path.insert(0, '.'); import run, common.results.files as r\n"
        "def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "r._write_all = full\n"
        "run.main(sys.argv[1:])"
    )
    words = ["reversegen", "--run-dir", str(tmp_path / "run"), "--seed-instructions", "16", "--prompts", "6"]
    words += ["--final-prompts", "8"]
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
