"""What the settings of all methods share."""

import dataclasses
import importlib
import shlex

import pytest

from common.cli import flag, parse
from common.errors import UserError
from common.settings import RunSettings, check_files, command, filled, hosted_share, preset


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
