"""How the student is asked and graded: by likelihood or as it writes, after a system text and examples."""

import dataclasses

import numpy as np
import pytest

from common.errors import UserError
from common.lm import LanguageModel
from common.results.files import read_jsonl
from common.sample.score import score
from common.tasks.base import Example
from common.tasks.labelled import SNIPS, TREC
from common.tasks.registry import get_task
from common.tasks.worked import GSM8K
from llm2llm.config import Config
from llm2llm.experiment import load_data, run
from llm2llm.plan import work
from llm2llm.select import as_asked


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """Sentences about cats and dogs."""
    folder = tmp_path_factory.mktemp("animals")
    files = {}
    for split, start in (("train", 0), ("test", 12)):
        rows = [(f"the {noun} runs number {i}", noun) for i in range(start, start + 12) for noun in ("cat", "dog")]
        files[f"{split}_file"] = str(folder / f"{split}.csv")
        (folder / f"{split}.csv").write_text("text,label\n" + "".join(f"{t},{noun}\n" for t, noun in rows))
    return files


def config_of(animals, folder, **settings):
    small = {"seed_examples": 6, "rounds": 2, "per_wrong": 1, "epochs": 1.0, "batch_size": 8, "task": "text"}
    pool = {"teacher": f"pool:{animals['train_file']}", "rouge_l": 1.0}
    return Config(**small | pool | animals | {"run_dir": str(folder)} | settings)


def test_labels_are_scored_after_the_very_prompt_of_training(animals, tmp_path):
    config = config_of(
        animals,
        tmp_path / "run",
        answer_by="score",
        system="You know animals.",
        few_shot=2,
        target="low-confidence",
        arms=("base", "llm2llm"),
    )
    summary = run(config)
    top = tmp_path / "run/repeat_0"
    seeds = [Example(**row) for row in read_jsonl(top / "seeds.jsonl")]
    config = config.resolved()
    data = load_data(config)
    task = as_asked(data.task, config.switches(data.task).learning, seeds, config.seed)
    base = LanguageModel.load("embedded:student")
    student = base.with_weights("trained", top / "fine-tune/round_0/student")
    for model, file in ((base, "base/round_0/test.jsonl"), (student, "fine-tune/round_0/seeds.jsonl")):
        rows = read_jsonl(top / file)
        questions = {example.id: example.question for example in (*seeds, *data.test)}
        for row in rows[:4]:
            turns = task.messages(questions[row["id"]])
            assert [turn["role"] for turn in turns] == ["system", *("user", "assistant") * 2, "user"]
            assert {turn["content"] for turn in turns if turn["role"] == "assistant"} == {"cat", "dog"}
            encoded = [model.tokenizer.encode_example(turns, label) for label in ("cat", "dog")]
            alone = score(model.params, model.config, [(ids[:start], ids[start:-1]) for ids, start in encoded])
            np.testing.assert_allclose(list(row["logps"].values()), [own.sum() for own in alone], atol=1e-3)
    # the least sure of the labels were shown to the teacher
    graded = read_jsonl(top / "fine-tune/round_0/seeds.jsonl")
    least = sorted(graded, key=lambda row: row["mean_logp"])[:2]
    replies = read_jsonl(top / "llm2llm/round_0/new.jsonl") + read_jsonl(top / "llm2llm/round_0/refused.jsonl")
    assert {row["parent"] for row in replies} == {row["id"] for row in least}
    # what was written stands beside it, and the page says what that is
    assert "accuracy of what the student wrote itself" in (tmp_path / "run/report.html").read_text()
    tested = read_jsonl(top / "base/round_0/test.jsonl")
    arm = summary["arms"]["base"]
    assert arm["value"] == pytest.approx(np.mean([row["parsed"] == row["label"] for row in tested]))
    assert arm["generated"] == [np.mean([row["read"] == row["label"] for row in tested])]
    assert arm["likeliest"] == [np.mean([row["likeliest"] == row["label"] for row in tested])]
    assert arm["per_token"] == [np.mean([row["per_token"] == row["label"] for row in tested])]


def test_a_model_without_a_template_stops_at_the_end_of_a_line(animals, tmp_path, fixtures):
    config = config_of(animals, tmp_path / "run", student=str(fixtures / "llama2"), arms=("base",))
    config = dataclasses.replace(config, max_length=128, answer_tokens=16)
    summary = run(config)
    rows = read_jsonl(tmp_path / "run/repeat_0/base/round_0/test.jsonl")
    assert not any("\n" in row["reply"] for row in rows)
    assert "generated" in summary["arms"]["base"]  # by likelihood, as for every model but the embedded


@pytest.mark.parametrize("few_shot", [0, 2])
def test_the_base_answers_once_where_it_is_asked_alike(animals, tmp_path, few_shot):
    """With examples before the question it is not: each repeat draws its own."""
    config = config_of(animals, tmp_path / "run", few_shot=few_shot, arms=("base",), repeats=2)
    summary = run(config)
    own = tmp_path / "run/repeat_1/base"
    assert own.exists() == bool(few_shot)
    files = [tmp_path / f"run/repeat_{r if few_shot else 0}/base/round_0/test.jsonl" for r in range(2)]
    right = [np.mean([row["correct"] for row in read_jsonl(file)]) for file in files]
    assert summary["arms"]["base"]["value"] == pytest.approx(np.mean(right))
    assert work(config.resolved(), 0, 24)["evaluate"] == 24 * (2 if few_shot else 1)


def test_who_is_graded_by_likelihood():
    how = lambda task, **settings: Config(**settings).resolved().switches(task).learning.answer_by
    assert how(TREC, student="some/model") == how(get_task("arc-easy"), student="some/model") == "score"
    assert how(TREC) == how(GSM8K, student="some/model") == "generate"
    assert how(SNIPS, answer_by="score") == "score"
    assert how(SNIPS, student="some/model", answer_by="generate") == "generate"


def test_examples_come_evenly_from_groups_and_by_seed():
    seeds = [Example(str(i), f"{i}?", g, g, g) for i in range(4) for g in "abc"]
    learning = Config(few_shot=3).resolved().switches(TREC).learning
    shown = lambda seed: [t["content"] for t in as_asked(TREC, learning, seeds, seed).messages("x")[1::2]]
    assert all(sorted(shown(seed)) == ["a", "b", "c"] for seed in range(6))
    assert shown(1) == shown(1)
    assert len({tuple(shown(seed)) for seed in range(6)}) > 1


def test_mistakes_in_how_the_student_is_asked(animals, tmp_path):
    with pytest.raises(UserError, match="--few-shot 60 shows seeds: it must be below --seed-examples 60"):
        Config(few_shot=60).resolved()
    with pytest.raises(UserError, match="--few-shot must be"):
        Config(few_shot=-1).resolved()
    with pytest.raises(UserError, match="task arithmetic lists no answers to choose from: leave out --answer-by"):
        run(Config(answer_by="score", run_dir=str(tmp_path / "run")))
    with pytest.raises(UserError, match=r"tokens.*more than the limit of 60"):
        run(config_of(animals, tmp_path / "run", few_shot=5, max_length=60))
    assert not (tmp_path / "run").exists()
