"""Rows of tasks: every schema, the hub's names and splits, the real files where they lie beside the repository."""

import json
import pathlib
import subprocess
import sys
import types

import pytest

from common.errors import UserError
from common.tasks.choice import ARC_EASY, CASEHOLD
from common.tasks.labelled import SNIPS, SST2, TREC
from common.tasks.worked import GSM8K, SVAMP


def test_every_schema_of_casehold_gives_the_same(tmp_path):
    holdings = [f"holding that {i}" for i in range(5)]
    named = {"citing_prompt": "See (<HOLDING>)", "label": "2"} | {
        f"holding_{i}": h for i, h in enumerate(holdings)
    }
    listed = {"context": "See (<HOLDING>)", "endings": holdings, "label": 2}
    numbered = {"0": "See (<HOLDING>)", "11": "2.0"} | {str(i + 1): h for i, h in enumerate(holdings)}
    found = set()
    for row in (named, listed, numbered):
        file = tmp_path / "a.jsonl"
        file.write_text(json.dumps(row))
        (example,) = CASEHOLD.load("train", file, 0)
        found.add((example.question, example.answer, example.label, example.group))
    assert len(found) == 1
    assert example.label == "C"
    for wrong, message in (({"label": 5}, "label '5'"), ({"endings": holdings[:4]}, "4 options")):
        file.write_text(json.dumps(listed | wrong))
        with pytest.raises(UserError, match=message):
            CASEHOLD.load("train", file, 0)


def test_rows_of_arc_with_other_than_four_options_are_left_out(tmp_path):
    row = {"question": "Which?", "choices": list("wxyz"), "answer": 1}
    file = tmp_path / "a.jsonl"
    rows = [row | {"choices": list("vwxyz")[:n]} for n in (3, 4, 5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (example,) = ARC_EASY.load("train", file, 0)
    assert example.question == "Which?\nA. v\nB. w\nC. x\nD. y"
    assert example.label == "B"
    file.write_text(json.dumps(row | {"choices": ["v"], "answer": 0}))
    with pytest.raises(UserError, match="no train row has 4 options"):
        ARC_EASY.load("train", file, 0)


@pytest.mark.parametrize(
    ("task", "split", "asked", "row", "label"),
    [
        (GSM8K, "test", ("openai/gsm8k", "main", "test"), {"question": "Q?", "answer": "1+1=2\n#### 2"}, "2"),
        (SST2, "test", ("stanfordnlp/sst2", None, "validation"), {"sentence": "fine", "label": 1}, "positive"),
        (SNIPS, "train", ("benayas/snips", None, "train"), {"text": "t", "category": "RateBook"}, "rate book"),
        (
            TREC,
            "train",
            ("SetFit/TREC-QC", None, "train"),
            {"text": "t", "label": 3, "label_coarse": 0, "label_coarse_original": "DESC"},
            "description",
        ),
        (
            SVAMP,
            "test",
            ("ChilleD/SVAMP", None, "test"),
            {"ID": "1", "Body": "He had 8", "Question": "And 2?", "Equation": "( 8.0 - 2.0 )", "Answer": "6"},
            "6",
        ),
        (
            CASEHOLD,
            "train",
            ("coastalcph/lex_glue", "case_hold", "train"),
            {"context": "c", "endings": list("vwxyz"), "label": 0},
            "A",
        ),
        (
            ARC_EASY,
            "test",
            ("allenai/ai2_arc", "ARC-Easy", "test"),
            {"question": "q", "choices": {"text": list("wxyz"), "label": list("1234")}, "answerKey": "2"},
            "B",
        ),
    ],
)
def test_rows_of_the_hub(monkeypatch, task, split, asked, row, label):
    calls = []

    def load_dataset(hub_id, config, split):
        calls.append((hub_id, config, split))
        return [row]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    (example,) = task.load(split, None, 0)
    assert calls == [asked]
    assert example.label == label
    assert task.correct(example.answer, example.label)
    assert task.load("dev", None, 0) == []
    if task is SST2:
        row["label"] = -1
        with pytest.raises(UserError, match="label '-1'"):
            task.load(split, None, 0)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace())
    with pytest.raises(UserError, match="cannot fetch data set"):
        task.load(split, None, 0)


def test_importing_tasks_loads_nothing_heavy():
    code = (
        "import sys, common.tasks.registry, llm2llm.reference_code\n"
        "assert not {'jax', 'numpy', 'transformers', 'datasets', 'yaml', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("task", "file", "count", "groups"),
    [
        (GSM8K, "gsm8k/train", 7473, 7),
        (GSM8K, "gsm8k/test", 1319, 7),
        (SVAMP, "svamp/train", 3138, 6),
        (SVAMP, "svamp/test", 1000, 2),
        (SST2, "sst2/train", 67349, 2),
        (SST2, "sst2/validation", 872, 2),
        (TREC, "trec/train", 5452, 6),
        (TREC, "trec/test", 500, 6),
        (SNIPS, "snips/train", 13784, 7),
        (SNIPS, "snips/test", 700, 7),
        (ARC_EASY, "arc_easy/train", 2241, 4),
        (ARC_EASY, "arc_easy/test", 2365, 4),
    ],
)
def test_every_real_row_loads_and_is_right_by_itself(shared_data, task, file, count, groups):
    examples = task.load("train", shared_data / f"{file}.jsonl", 0)
    assert (len(examples), len({e.group for e in examples})) == (count, groups)
    assert len({e.id for e in examples}) == count
    step = 10 if count > 10_000 else 1
    for example in examples[::step]:
        assert task.correct(example.answer, example.label)
        assert "<<" not in example.answer
    if file == "gsm8k/train":
        shares = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
        assert [int(f * count) for f in shares] == [74, 149, 373, 747, 1494, 3736, 7473]
        read = [task.parse_example(task.write_example(e), e).refused for e in examples[:400]]
        assert set(read) <= {None, "wrong equation"}
        assert read.count(None) > 390
    if task is SVAMP:
        assert sum("=" not in e.answer for e in examples) <= 25
