"""Presets against figures measured on the authors' program: updates, learning rates, rounds, growth."""

import json

import pytest

from common.cli import parse
from common.errors import UserError
from common.results.files import read_json, read_jsonl
from common.train.optimizer import learning_rate
from llm2llm.config import PRESETS, Config, preset
from llm2llm.experiment import run

# seeds, updates an epoch, updates in all, sum of the learning rates over the peak
OFFICIAL = [
    (20, 1, 3, 1.5),
    (60, 1, 3, 1.5),
    (74, 1, 3, 1.5),
    (149, 1, 3, 1.5),
    (373, 2, 6, 3.0),
    (465, 3, 9, 4.5),
    (747, 5, 15, 7.5),
    (951, 7, 21, 10.5),
    (1494, 11, 33, 16.5),
    (3736, 29, 87, 43.5),
    (7473, 58, 174, 87.0),
]


@pytest.mark.parametrize(("count", "epoch", "total", "area"), OFFICIAL)
def test_reference_code_makes_as_many_updates_at_the_same_rates(count, epoch, total, area):
    settings = preset("reference-code", seed_examples=count).resolved().training()
    assert settings.steps_per_epoch(count) == epoch
    assert settings.total_steps(count) == total
    rates = [learning_rate(settings, step, total) / settings.learning_rate for step in range(total)]
    assert sum(rates) == pytest.approx(area)
    if total == 3:
        assert rates == pytest.approx([0, 1, 0.5])


def test_paper_preset_never_wastes_its_first_update():
    settings = preset("paper").resolved().training()
    assert learning_rate(settings, 0, settings.total_steps(149)) > 0


def test_flags_win_over_the_preset_and_the_preset_over_defaults():
    words = ["--rounds", "3", "--preset", "paper"]
    config = parse(Config, words, "p", presets=PRESETS)
    assert (config.rounds, config.per_wrong, config.preset) == (3, 1, "paper")
    assert config == preset("paper", rounds=3)
    assert parse(Config, [], "p", presets=PRESETS) == Config()
    with pytest.raises(UserError, match="'nothing' is none of embedded"):
        parse(Config, ["--preset", "nothing"], "p", presets=PRESETS)


def test_the_reference_code_is_for_gsm8k():
    with pytest.raises(UserError, match="GSM8K only"):
        preset("reference-code", task="trec").resolved()


TEACHER = '''
"""A teacher as a function: a new numbered problem each time."""
import itertools

count = itertools.count()
NOUNS = "apples boats coins drums eggs forks goats hats inks jars kites lamps mugs nuts owls pens".split()


def write(messages):
    i = next(count)
    noun, other = NOUNS[i % 16], NOUNS[i // 16 % 16]
    question = f"{noun} {i} and {other} {i * 7} with {noun}{i} near {other}{i}?"
    return f"Problem: {question}\\nSolution: 2 + 2 = 5\\n#### {i}"
'''


@pytest.mark.long
def test_reference_code_end_to_end(tmp_path):
    """10 trainings and 9 rounds of the teacher; the data grow by at most one example a seed and round, and by just
    that when every seed is wrong, as for a student that cannot do the task at all; wrong sums pass the filters."""
    rows = [
        {"question": f"Ann has {i} red hats {i * i}?", "answer": f"{i} + 0 = {i}\n#### {i}"} for i in range(12)
    ]
    for split, part in (("train", rows[:8]), ("test", rows[8:])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "teacher.py").write_text(TEACHER)
    config = preset(
        "reference-code",
        student="embedded",
        teacher=f"python:{tmp_path / 'teacher.py'}:write",
        train_file=str(tmp_path / "train.jsonl"),
        test_file=str(tmp_path / "test.jsonl"),
        seed_examples=4,
        arms=("llm2llm",),
        answer_tokens=8,
        batch_size=40,
        micro_batch_size=8,
        folds=2,
        run_dir=str(tmp_path / "run"),
    )
    summary = run(config)
    rounds = summary["rounds"]
    assert len(rounds) == 10
    assert [entry["teacher_calls"] > 0 for entry in rounds] == [True] * 9 + [False]
    for i, entry in enumerate(rounds):
        assert entry["examples"] <= (i + 1) * 4
        assert entry["updates"] == 3
        if i:
            wrong = 4 - rounds[i - 1]["seeds_correct"]
            assert entry["examples"] - rounds[i - 1]["examples"] == wrong
    assert rounds[-1]["seeds_correct"] == 0
    assert rounds[-1]["examples"] == 40
    row = read_jsonl(tmp_path / "run/repeat_0/llm2llm/round_0/new.jsonl")[0]
    assert "2 + 2 = 5" in row["answer"]
    assert summary["arms"]["llm2llm"]["regraded"] == [0.0]
    assert read_json(tmp_path / "run/config.json")["config"]["reference_code"] is True


@pytest.mark.parametrize("count", [253, 254, 255])
def test_rounding_up_to_four_devices_fills_the_last_batch(count):
    settings = preset("reference-code", seed_examples=count).resolved().training()
    assert settings.total_steps(count) == 6


def test_regrading_uses_our_judge():
    """-5 is 5 for the authors' judge and not for ours."""
    import types

    from common.tasks.worked import GSM8K
    from llm2llm.reference_code import as_in_reference_code
    from llm2llm.summary import _regraded

    rows = [{"text": "so #### -5", "label": "5"}, {"text": "so #### 5", "label": "5"}]
    setting = types.SimpleNamespace(task=as_in_reference_code(GSM8K), judge=GSM8K)
    assert [setting.task.correct(row["text"], row["label"]) for row in rows] == [True, True]
    assert _regraded(setting, rows) == 0.5
