"""Active Inheritance on the embedded models, as small as it can be and still do everything."""

import collections
import dataclasses
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys

import pytest

from active_inheritance.config import ARMS, Config
from active_inheritance.experiment import load_data, run
from active_inheritance.sampling import requests_of
from common.config import SampleConfig
from common.errors import UserError
from common.generate import Request
from common.results.files import read_json, read_jsonl
from common.tasks.prompts import story_prompts
from common.text.textstats import METRICS, profile
from killing import ROOT, bytes_of, check_killed, words_of

FLAGS = {
    "prompts": 12,
    "k": 4,
    "test_prompts": 6,
    "test_samples": 2,
    "answer_tokens": 64,
    "min_words": 10,
    "epochs": 1.0,
    "batch_size": 4,
    "repeats": 2,
    "metrics": ("lix",),
    "profile": ("choice=arithmetic=embedded:arithmetic", "limit=8"),
}
TRAINED = ("first", "random", "selected")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run that was first stopped with the selected data."""
    config = Config(**FLAGS, run_dir=str(tmp_path_factory.mktemp("runs") / "whole"))
    first = run(dataclasses.replace(config, select_only=True))
    assert (first["status"], first["student"], "arms" in first) == ("selected", None, False)
    assert not (pathlib.Path(config.run_dir) / "repeat_0/base").exists()
    return config, first, run(config)


def test_the_student_as_it_came_is_profiled_once(finished):
    """No seed of a repeat changes it."""
    rows = read_jsonl(pathlib.Path(finished[0].run_dir) / "timing.jsonl")
    stages = collections.Counter(row["stage"] for row in rows)
    assert stages["repeat_0/base/profile/choice/arithmetic"] == 1
    assert "repeat_1/base/profile/choice/arithmetic" not in stages


def test_summary_has_the_documented_schema(finished):
    config, first, summary = finished
    assert summary == read_json(pathlib.Path(config.run_dir) / "summary.json")
    assert (summary["schema"], summary["method"], summary["status"]) == (1, "active-inheritance", "complete")
    assert tuple(summary["arms"]) == ("base", *TRAINED)
    assert summary["verdict"].startswith(
        ("Shown: selected is ", "Not shown: a difference of selected from random")
    )
    assert first["verdict"].startswith(("Shown: selected is above", "Not shown: a difference of selected from"))
    assert "what a student learns from it was not measured." in first["verdict"]
    assert "only 6 held-out prompts: raise --test-prompts" in summary["warnings"]
    for arm in summary["arms"].values():
        assert arm["metric"] == "mtld"
        assert {"value", "ci95", "n", "per_repeat"} <= arm.keys()
        assert arm["metrics"].keys() == {"mtld", "words", "lix"}
        assert (len(arm["per_repeat"]), arm["n"]) == (2, 6)
        assert arm["value"] == pytest.approx(statistics.fmean(arm["per_repeat"]))
        assert arm["ci95"][0] <= arm["value"] <= arm["ci95"][1]
        for key in ("truncated_share", "empty_share", "feasible_share", "corpus", "updates", "examples"):
            assert len(arm[key]) == 2
    assert summary["gains"].keys() == {
        *("selected - base", "selected - first", "selected - random", "first - base", "random - base"),
    }
    ours, theirs = (summary["arms"][arm]["metrics"] for arm in ("selected", "random"))
    gain = summary["gains"]["selected - random"]
    for name, entry in gain["metrics"].items():
        assert entry["value"] == pytest.approx(ours[name]["value"] - theirs[name]["value"])
        assert entry["relative"] == pytest.approx(entry["value"] / theirs[name]["value"])
    assert gain["value"] == gain["metrics"]["mtld"]["value"]
    ratio = summary["transfer"]["mtld"]
    assert ratio["ratio"] == pytest.approx(gain["value"] / ratio["data"])
    # What was known before a student was paid for does not change with it.
    for key in ("pool", "rule", "scorers", "data"):
        assert summary[key] == first[key]


def test_the_page_says_what_is_short_what_is_of_one_repeat_and_what_figures_mean(finished):
    """Of answers with fewer words than the metric needs, of drawings of the first of two repeats, and of the
    table of what else changed."""
    config, first, summary = finished
    page = pathlib.Path(config.run_dir, "report.html").read_text()
    (short,) = [
        line for line in summary["warnings"] if line.startswith("mtld says little of texts below 50 words")
    ]
    assert "among the answers to select from" in short
    assert "among the students" in short
    assert any(line.startswith("mtld says little") for line in first["warnings"])
    assert "mtld says little of texts below 50 words" in page
    for title in ("Distribution of mtld", "Share of sources", "What selection does to every score", "Why"):
        assert f"{title} (first repeat)<" in page
    assert "Kept: selected beside random (first repeat)<" in page
    assert "<dt>brier:</dt>" in page
    assert "`" not in page


def test_every_arm_learns_as_much_from_the_same_prompts(finished):
    config, _, summary = finished
    _, learned, held_out, _ = load_data(config.resolved())
    for repeat in range(2):
        folder = pathlib.Path(config.run_dir) / f"repeat_{repeat}"
        data = {arm: read_jsonl(folder / arm / "data.jsonl") for arm in TRAINED}
        prompts = [row["prompt"] for row in data["selected"]]
        assert set(prompts) <= {prompt.text for prompt in learned}
        assert not set(prompts) & {prompt.text for prompt in held_out}
        for arm in TRAINED:
            assert [row["prompt"] for row in data[arm]] == prompts
            entry = summary["arms"][arm]
            assert entry["examples"][repeat] == len(prompts) > 8
            assert entry["updates"][repeat] == math.ceil(len(prompts) / 4)
    logged = collections.Counter(
        row["stage"] for row in read_jsonl(pathlib.Path(config.run_dir) / "metrics.jsonl")
    )
    for repeat in range(2):
        for arm in TRAINED:
            assert logged[f"repeat_{repeat}/{arm}"] == summary["arms"][arm]["updates"][repeat]


def test_the_pool_is_sampled_evenly_and_accounted(finished):
    config, _, summary = finished
    folder = pathlib.Path(config.run_dir)
    assert summary["pool"]["answers_of_a_prompt"] == {"4": 12}
    made = summary["sampling"]
    assert (made["method"], made["temperature"], made["top_p"], made["k"]) == ("sample", 1.0, 0.9, 4)
    for number, (name, account) in enumerate(made["sources"].items()):
        rows = [row for r in range(2) for row in read_jsonl(folder / f"repeat_{r}/samples/source_{number}.jsonl")]
        assert name == ("embedded:student", "embedded:teacher")[number]
        assert account["calls"] == len(rows) == 2 * 2 * 12
        assert account["completion_tokens"] == sum(row["completion_tokens"] for row in rows)
        assert account["truncated_share"] == sum(row["status"] == "length" for row in rows) / len(rows)
    pools = [read_jsonl(folder / f"repeat_{r}/samples/pool.jsonl") for r in range(2)]
    for row in pools[0]:
        assert {source: len(answers) for source, answers in row["outputs"].items()} == dict.fromkeys(
            made["sources"], 2
        )
    assert pools[0] != pools[1], "repeats sample their own pools"


@pytest.mark.parametrize(("k", "count"), [(10, 3), (4, 4), (2, 3), (5, 1)])
def test_sources_share_a_budget(k, count):
    """k answers of every prompt in total, and over many prompts as many of each source."""
    prompts, _ = story_prompts(10)
    names = [f"source {i}" for i in range(count)]
    asked = {name: [r.id.rpartition("#")[0] for r in requests_of(name, names, prompts[:60], k)] for name in names}
    assert collections.Counter(p for ids in asked.values() for p in ids) == {p.id: k for p in prompts[:60]}
    sizes = [len(ids) for ids in asked.values()]
    assert max(sizes) - min(sizes) <= 1


def test_held_out_stories_share_no_hero_and_no_quality():
    learned, held_out = story_prompts(80)
    words = lambda prompts, i: {prompt.text.rstrip(".").split()[i] for prompt in prompts}
    for place in (-1, -2):
        assert not words(learned, place) & words(held_out, place)
    assert (len({p.id for p in (*learned, *held_out)}), len(held_out)) == (len(learned) + 80, 80)


def test_answers_hold_their_scores(finished):
    config, _, summary = finished
    rows = read_jsonl(pathlib.Path(config.run_dir) / "repeat_1/selected/answers.jsonl")
    assert len(rows) == 12
    for row in rows:
        assert row["scores"]["words"] == METRICS["words"].function(row["answer"])
    by_prompt = [statistics.fmean(row["scores"]["mtld"] for row in rows[i : i + 2]) for i in range(0, 12, 2)]
    assert summary["arms"]["selected"]["per_repeat"][1] == pytest.approx(statistics.fmean(by_prompt))


def test_products_load(finished):
    from common.lm import LanguageModel

    config, _, _ = finished
    folder = pathlib.Path(config.run_dir)
    model = LanguageModel.load(str(folder / "model"))
    # The kept student is the one that was measured.
    rows = read_jsonl(folder / "repeat_0/selected/raw.jsonl")[:4]
    texts = {row["id"]: row["prompt"] for row in read_jsonl(folder / "repeat_0/selected/answers.jsonl")}
    ask = [Request(r["id"], ({"role": "user", "content": texts[r["id"].rpartition("#")[0]]},)) for r in rows]
    (again,) = model.generator().generate(ask, SampleConfig(64, temperature=1.0), config.seed)
    assert [record.text for record in again] == [row["text"] for row in rows]
    assert "| selected |" in (folder / "model/README.md").read_text()
    page = (folder / "report.html").read_text()
    for words in ("What the student became", "What of the data&#39;s change came over", "What the sources cost"):
        assert words in page, words
    left = {str(f.relative_to(folder)) for f in folder.rglob("student")}
    assert left == {"repeat_0/selected/student"}


def test_the_same_command_again_changes_nothing(finished):
    config, _, summary = finished
    before = bytes_of(pathlib.Path(config.run_dir))
    assert run(config) == summary
    assert bytes_of(pathlib.Path(config.run_dir)) == before
    assert run(dataclasses.replace(config, select_only=True)) == summary
    pathlib.Path(config.run_dir, "report.html").unlink()  # so that it is not told from its summary alone
    assert run(config) == summary
    assert bytes_of(pathlib.Path(config.run_dir)) == before, "the student's figures stay"
    with pytest.raises(UserError, match=r"epochs: 1\.0 -> 2\.0"):
        run(dataclasses.replace(config, epochs=2.0))
    assert bytes_of(pathlib.Path(config.run_dir)) == before


STAGES = (
    "repeat_0/samples/source_0.jsonl",
    "repeat_0/samples/pool.jsonl",
    "pool/index.json",
    "selection/part-00000.jsonl",
    "repeat_0/base/raw.jsonl",
    "repeat_0/first/data.jsonl",  # within its training
    "repeat_0/random/student",
    "repeat_0/selected/answers.jsonl",
    "repeat_1/pool/part-00000.jsonl",
    "repeat_1/first/raw.jsonl",
    "model",
)


@pytest.mark.long
def test_killed_in_every_stage_it_ends_with_the_same_bytes(finished, tmp_path):
    """SIGKILL once an artifact of each stage appears, start again, and compare every file at the end."""
    config, _, _ = finished
    words = ["active-inheritance", *words_of(FLAGS)]
    check_killed(words, tmp_path / "killed", STAGES, pathlib.Path(config.run_dir))


@pytest.fixture
def pool(tmp_path):
    """Answers of two sources to 16 prompts, with a score of its own."""
    prompts, _ = story_prompts(1)
    rows = [
        {
            "prompt": prompt.text,
            "outputs": {s: f"The {s} saw a bird{' and a cat' * (i + n % 3)}." for i, s in enumerate("xy")},
            "tox": {"x": n / 20, "y": 1 - n / 20},
        }
        for n, prompt in enumerate(prompts[:16])
    ]
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.long
def test_a_student_of_a_file_with_adapters_and_all_arms(pool, tmp_path):
    """Held-out prompts are a part of the pool; objectives that only the pool has are not measured, and said."""
    config = Config(
        pool=str(pool),
        objective=("words:min", "column:tox:min"),
        arms=ARMS,
        lora_rank=2,
        test_prompts=5,
        epochs=1.0,
        batch_size=4,
        answer_tokens=32,
        repeats=2,
        metrics=("none",),
        run_dir=str(tmp_path / "run"),
    )
    summary = run(config)
    assert tuple(summary["arms"]) == ARMS
    assert summary["arms"]["base"]["metrics"].keys() == {"words"}
    assert summary["arms"]["matched"]["examples"] == [11, 11]
    assert summary["sampling"] is None
    folder = tmp_path / "run"
    held_out = {row["prompt"] for row in read_jsonl(folder / "repeat_0/base/answers.jsonl")}
    assert len(held_out) == 5
    for repeat in range(2):
        learned = {row["prompt"] for row in read_jsonl(folder / f"repeat_{repeat}/random/data.jsonl")}
        assert (len(learned), learned & held_out) == (11, set())
    assert not (folder / "repeat_1/pool").exists(), "a file is scored once"
    assert (folder / "repeat_1/selection").exists()


def test_a_pool_of_diverse_beams(tmp_path):
    config = Config(
        **FLAGS | {"prompts": 6, "answer_tokens": 16, "min_words": 0, "drop": ("empty",)},
        sampling="diverse-beam",
        select_only=True,
        run_dir=str(tmp_path / "run"),
    )
    summary = run(config)
    made = summary["sampling"]
    assert (made["method"], made["temperature"], made["diversity_penalty"]) == ("diverse-beam", None, 1.0)
    for row in read_jsonl(tmp_path / "run/repeat_0/samples/pool.jsonl"):
        for answers in row["outputs"].values():
            assert len({answer["text"] for answer in answers}) == len(answers) == 2


@pytest.mark.long
def test_answers_that_are_too_long(pool, tmp_path):
    """Cut where they are learned, without an end; or their prompts are in no arm."""
    from active_inheritance.student import encoded
    from common.lm import LanguageModel

    settings = {"objective": ("words:max",), "test_prompts": 4, "metrics": ("none",), "answer_tokens": 16}
    settings |= {"epochs": 1.0, "batch_size": 4, "max_length": 24, "pool": str(pool)}
    student = LanguageModel.load("embedded:student")
    ends = student.tokenizer.eos_ids
    for how in ("cut", "drop"):
        config = Config(**settings, too_long=how, run_dir=str(tmp_path / how))
        summary = run(config)
        (left,), (examples,) = summary["student"]["left_out_too_long"], summary["arms"]["selected"]["examples"]
        assert left + examples == 12
        assert (left > 0) == (how == "drop")
        assert (summary["arms"]["selected"]["cut"][0] > 0) == (how == "cut")
        for row in read_jsonl(tmp_path / how / "repeat_0/selected/data.jsonl"):
            sequence, cut = encoded(student, row, config.resolved().switches().learning)
            assert len(sequence.tokens) <= 24
            assert row["cut"] == cut == (sequence.tokens[-1] not in ends)
            learned = sequence.tokens[sequence.prompt_length :]
            assert row["tokens"] == len(learned)
            # What was learned is what is scored: the beginning of a cut answer.
            assert row["scores"]["words"] == profile(student.tokenizer.decode(learned), ["words"])["words"]


def test_a_function_as_source_and_prompts_from_files(tmp_path):
    (tmp_path / "tell.py").write_text("def tell(messages):\n    return messages[-1]['content'] + ' Once.'\n")
    for name, count in (("learn", 9), ("test", 3)):
        rows = [{"instruction": f"Say {name} {i}."} for i in range(count)] + [{"instruction": "Say learn 0."}]
        column = {"learn": "body", "test": "instruction"}[name]
        if name == "test":  # the same in upper case, which is held out nevertheless
            rows[-1] = {"instruction": "SAY  LEARN 0 ."}
        lines = [json.dumps({column: row["instruction"]}) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    config = Config(
        **FLAGS | {"prompts": None, "k": 2, "repeats": 1, "min_words": 0, "test_samples": 1},
        source=(f"python:{tmp_path / 'tell.py'}:tell",),
        prompts_file=str(tmp_path / "learn.jsonl"),
        prompt_column="body",
        test_prompts_file=str(tmp_path / "test.jsonl"),
        run_dir=str(tmp_path / "run"),
    )
    summary = run(config)
    assert summary["student"]["held_out_prompts"] == 4
    assert summary["arms"]["selected"]["examples"] == [8], "what is held out is not learned"
    assert "learn.jsonl: 1 of 9 ask what a held-out prompt asks, and were left out" in summary["warnings"]
    (account,) = summary["sampling"]["sources"].values()
    assert (account["calls"], account["failed"]) == (16, 0)
    lead = summary["gains"]["selected - random"]
    assert (lead["value"], lead["ci95"]) == (0.0, None), "equal answers make equal students, which prove nothing"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"student": "no/such folder"}, "no/such folder"),
        ({"student": "openai:x"}, "--student openai:x cannot be trained"),
        ({"source": ("embedded:nobody",)}, "nobody"),
        ({"source": ("python:nowhere.py:f",)}, "no such file: nowhere.py"),
        ({"source": ("embedded:student",) * 2}, "--source .*: name each once"),
        ({"source_url": "http://localhost:1"}, "--source-url is for a hosted source"),
        ({"source_temperature": 0.0}, "--source-temperature 0 gives equal answers"),
        ({"sampling": "diverse-beam", "k": 5}, "--k 5 is no multiple of 2 sources"),
        ({"source_top_p": 0.0}, "--source-top-p must lie above 0"),
        ({"prompts_file": "nowhere.jsonl"}, "no such file: nowhere.jsonl"),
        ({"test_prompts_file": __file__}, "unknown format"),
        ({"answer_tokens": 505}, "leaves no room for 505 tokens"),
        ({"arms": ("base", "selected")}, "--arms must hold base, random and selected"),
        ({"arms": ("base", "best")}, "--arms best: there are"),
        ({"test_temperature": 0.0}, "gives 2 equal answers"),
        ({"repeats": 0}, "--repeats must be at least 1"),
        ({"learning_rate": 0.0}, "--learning-rate must be above 0"),
        ({"objective": ("column:tox:min",)}, "names a score that a --pool FILE holds"),
    ],
)
def test_a_mistake_leaves_no_run_directory(settings, said, tmp_path):
    with pytest.raises(UserError, match=said) as raised:
        run(Config(**FLAGS | settings, run_dir=str(tmp_path / "run")))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_the_plan_says_what_a_hosted_pool_takes(tmp_path):
    """52,000 prompts, ten answers each, one a second, are six days."""
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(52_000))
    )
    words = [sys.executable, "run.py", "active-inheritance", "--source", "openai:x", "--dry-run", "--select-only"]
    words += ["--prompts-file", str(tmp_path / "prompts.jsonl"), "--test-prompts", "1"]
    words += ["--run-dir", str(tmp_path / "run")]
    key = os.environ | {"OPENAI_API_KEY": "sk-" + "x" * 30}
    done = subprocess.run(words, cwd=ROOT, env=key, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6.0 days at one a second" in done.stdout
    assert "nothing limits what is bought" in done.stdout
    assert not (tmp_path / "run").exists()
