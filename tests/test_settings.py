"""What the settings of all methods share."""

import dataclasses
import importlib
import pathlib
import shlex

import numpy as np
import pytest

from active_inheritance.config import Config as Selecting
from active_inheritance.profile.config import Config as Profile
from common.cli import flag, parse
from common.errors import UserError
from common.settings import RunSettings, check_files, command, filled, hosted_share, idle, preset
from llm2llm.config import Config as LLM2LLM
from reversegen.config import Config as ReverseGen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    preset: str = flag("none", "")
    teacher: str = flag("embedded", "")
    teacher_url: str | None = flag(None, "")
    budget: str | None = flag(None, "")
    teacher_price: str | None = flag(None, "")
    rate: float | None = flag(None, "")
    file: str | None = flag(None, "")


def share(**given):
    config = Settings(**given)
    return hosted_share(config, "teacher", [config.teacher], 4)


def test_where_a_run_lies_is_no_part_of_it():
    """A run may be continued from another folder."""
    assert Settings(run_dir="a").stored() == Settings(run_dir="b", dry_run=True).stored()
    assert "seed" in Settings().stored()


def test_only_gaps_are_filled():
    assert filled(Settings(), {"rate": 2.0}).rate == 2.0
    assert filled(Settings(rate=0.0), {"rate": 2.0}).rate == 0.0


def test_a_preset_gives_way_to_settings():
    """Its name is kept, and an unknown one is refused."""
    found = preset(Settings, {"paper": {"rate": 1.0, "seed": 3}}, "paper", {"seed": 4})
    assert (found.preset, found.rate, found.seed) == ("paper", 1.0, 4)
    with pytest.raises(UserError, match="unknown preset 'other'"):
        preset(Settings, {"paper": {}}, "other", {})


def test_a_budget_is_shared_by_accounts():
    assert share(teacher="openai:m", budget="calls=40").calls == 10
    assert share(teacher="openai:m") is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"budget": "calls=4"}, "--budget is for a hosted teacher: use it with --teacher openai:MODEL"),
        ({"teacher_url": "http://x"}, "--teacher-url is for a hosted teacher"),
        ({"teacher": "openai:m", "teacher_price": "x"}, "price 'x'"),
        ({"teacher": "openai:m", "budget": "calls=2"}, "cannot be shared by 4"),
    ],
)
def test_settings_of_a_hosted_model_are_refused_in_one_line(given, words):
    with pytest.raises(UserError, match=words):
        share(**given)


def test_a_missing_file_is_named_by_its_flag(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*x.csv \(given as --file\)"):
        check_files(Settings(file=str(tmp_path / "x.csv")), ["file"])


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("llm2llm", ""),
        ("llm2llm", "--rounds 2 --learning-rate 0.001 --system 'be brief' --balance --arms fine-tune,llm2llm"),
        ("llm2llm", "--preset paper --seed-examples 30"),
        ("reversegen", "--task math --rounds 1 --no-none-option --seed 3"),
        ("active-inheritance", "--objective mtld:max --objective words:min --select-only --k 6"),
        ("active_inheritance.profile", "--model embedded:student --choice a=embedded:arithmetic --limit 5"),
    ],
)
def test_the_command_on_the_page_gives_the_same_settings(method, words):
    """With no flag that the run would have had anyway."""
    module = importlib.import_module(f"{method.replace('-', '_')}.config")
    presets, kind = getattr(module, "PRESETS", None), module.Config
    config = parse(kind, shlex.split(words), "run.py", presets=presets).resolved()
    said = shlex.split(command(method, config, presets, ("select_only",)))
    assert said[:3] == ["python", "run.py", method]
    assert said[-2:] == ["--run-dir", "DIR"]
    assert parse(kind, said[3:-2], "run.py", presets=presets).resolved() == config
    assert len(said) <= 5 + len(shlex.split(words)), "nothing that was not given"


def test_every_model_that_is_asked_has_a_limit_of_its_own():
    """Reasoning counts as a part of a reply, so that what suits an answer may be too little."""
    import active_inheritance.config
    import llm2llm.config
    import reversegen.config
    from common.tasks.registry import TASKS
    from reversegen.experiment import application

    switches = llm2llm.config.Config(teacher_tokens=901).resolved().switches(TASKS["arithmetic"])
    assert switches.asking.sampling.max_new_tokens == 901
    asked = application(reversegen.config.Config(labeler_tokens=902).resolved())
    assert (asked.votes.tokens, asked.answers.tokens == 902) == (902, False)
    sampling = active_inheritance.config.Config(source_tokens=903, answer_tokens=100).resolved().switches()
    assert sampling.answering.sampling.max_new_tokens == 903
    assert sampling.testing.sampling.max_new_tokens == 100


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rate": "12"}, "--rate: '12' is no number"),
        ({"seed": 2.5}, "--seed: 2.5 is no whole number"),
        ({"dry_run": 1}, "--dry-run: 1 is neither true nor false"),
        ({"teacher": 3}, "--teacher: 3 is no text"),
    ],
)
def test_a_value_of_another_type_is_refused_from_a_program_too(given, says):
    with pytest.raises(UserError, match=says):
        Settings(**given)


def test_a_program_may_give_paths_lists_and_numbers_of_numpy():
    config = LLM2LLM(run_dir=pathlib.Path("a"), arms=["base"], seed=np.int64(3))
    assert (config.run_dir, config.arms, config.seed, type(config.seed)) == ("a", ("base",), 3, int)
    with pytest.raises(UserError, match="--arms: 'base' is no list of texts"):
        LLM2LLM(arms="base")


def test_what_names_the_data_of_another_task_is_refused():
    for name in ("text_column", "label_column", "instruction"):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is for --task text: task trec says it"):
            LLM2LLM(task="trec", **{name: "body"}).resolved()
    with pytest.raises(UserError, match="--text-column is for --task safety or own"):
        ReverseGen(text_column="body").resolved()


@pytest.mark.parametrize(
    ("kind", "given", "wanted"),
    [
        (LLM2LLM, {"folds": 5, "detect": "in-sample", "lora_alpha": 3.0}, ["--lora-alpha", "--folds"]),
        (LLM2LLM, {"arms": ("base", "fine-tune"), "match": "tokens"}, ["--match"]),
        (ReverseGen, {"entropy_cut": 0.5}, ["--entropy-cut"]),
        (Selecting, {"tolerance": 0.2, "pick": "knee", "combine": "pareto"}, ["--tolerance"]),
        (Profile, {"continuations": 3, "prompts_file": "x"}, ["--continuations"]),
    ],
)
def test_a_setting_that_changes_nothing_is_told(kind, given, wanted):
    """By a flag or a program; what a preset says for all of its flags is none."""
    config = kind(**given)
    assert [line.split()[0] for _, line in idle(config, config, None)] == wanted
    name = wanted[0].removeprefix("--").replace("-", "_")
    assert wanted[0] not in str(idle(config, config, {getattr(config, "preset", ""): {name: given[name]}}))
    assert not idle(kind(), config, None)


def test_a_setting_beside_those_of_a_run_is_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"seedloop": "0", "method": "m", "config": {"seed": 2}, "seed": 3}')
    with pytest.raises(UserError, match="'seed' stands beside the settings of a run"):
        parse(Settings, ["--config", str(file)], "m", method="m")
