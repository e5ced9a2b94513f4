"""What the settings of all methods share."""

import contextlib
import dataclasses
import importlib
import inspect
import pathlib
import shlex
import types

import numpy as np
import pytest

from active_inheritance.config import Config as Selecting
from active_inheritance.profile.config import Config as Profile
from common.cli import flag, parse
from common.errors import UserError
from common.experiment import carry_out
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


def test_a_guard_and_a_judge_have_limits_of_their_own(tmp_path, monkeypatch):
    """At the place where they are asked."""
    from active_inheritance.profile.experiment import Ready, _judged
    from common.evals import preference
    from reversegen.applications import conduct
    from reversegen.experiment import application

    asked = []
    monkeypatch.setattr(conduct, "of_guard", lambda *given: asked.append(given[-1]) or [])
    (tmp_path / "seeds.jsonl").write_text("{}")
    config = ReverseGen(
        task="safety", guard="openai:g", guard_tokens=904, seeds_file=str(tmp_path / "seeds.jsonl")
    )
    assert application(config.resolved()).judged(None, "name", [("query", "answer")]) == []
    monkeypatch.setattr(preference, "verdicts", lambda *given: asked.append(given[-1]) or [])
    config = Profile(model=("a", "b"), judge="openai:j", judge_tokens=905)
    backend = lambda cache: contextlib.nullcontext(lambda account: None)
    run = types.SimpleNamespace(path=tmp_path, timed=lambda stage: contextlib.nullcontext())
    of_both = dict.fromkeys("ab", types.SimpleNamespace(answers={}))
    assert _judged(run, Ready(config, [], backend, None), of_both, of_both).keys() == {"b"}
    assert asked == [904, 905]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rate": "12"}, "--rate: '12' is no number"),
        ({"seed": 2.5}, "--seed: 2.5 is no whole number"),
        ({"dry_run": 1}, "--dry-run: 1 is neither true nor false"),
        ({"teacher": 3}, "--teacher: 3 is no text"),
        ({"seed": None}, "--seed: None is no whole number"),
        ({"teacher": None}, "--teacher: None is no text"),
        ({"dry_run": None}, "--dry-run: None is neither true nor false"),
        ({"rate": np.array([0.1])}, r"--rate: \(0.1,\) is no number"),
        ({"seed": np.arange(3)}, r"--seed: \(0, 1, 2\) is no whole number"),
    ],
)
def test_a_value_of_another_type_is_refused_from_a_program_too(given, says):
    with pytest.raises(UserError, match=says):
        Settings(**given)


def test_a_setting_that_has_a_value_is_not_left_open_in_a_file(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("rate: null\nfile: null\n")
    assert parse(Settings, ["--config", str(file)], "m", method="m") == Settings()
    file.write_text("seed: null\n")
    with pytest.raises(UserError, match=r"settings.yaml: seed: None is no whole number"):
        parse(Settings, ["--config", str(file)], "m", method="m")


def test_a_program_may_give_paths_lists_and_numbers_of_numpy():
    config = LLM2LLM(run_dir=pathlib.Path("a"), arms=["base"], seed=np.int64(3))
    assert (config.run_dir, config.arms, config.seed, type(config.seed)) == ("a", ("base",), 3, int)
    with pytest.raises(UserError, match="--arms: 'base' is no list of texts"):
        LLM2LLM(arms="base")
    config = Profile(model=np.array(["a", "b"]), bbq=[pathlib.Path("c"), "d"], limit=np.array(7))
    assert (config.model, config.bbq, config.limit) == (("a", "b"), ("c", "d"), 7)
    with pytest.raises(UserError, match=r"--model: \(\('a',\),\) is no list of texts"):
        Profile(model=np.array([["a"]]))
    with pytest.raises(UserError, match=r"--bbq: \(1, 2\) is no list of texts"):
        Profile(bbq=np.array([1, 2]))


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
    assert [line.split()[0] for _, line in idle(config, None)] == wanted
    name = wanted[0].removeprefix("--").replace("-", "_")
    assert wanted[0] not in str(idle(config, {getattr(config, "preset", ""): {name: given[name]}}))
    assert not idle(kind(), None)


@pytest.mark.parametrize(
    ("method", "config", "name"),
    [
        ("llm2llm", LLM2LLM(arms=("base", "fine-tune"), match="tokens"), "--match"),
        ("reversegen", ReverseGen(entropy_cut=0.5), "--entropy-cut"),
        ("active_inheritance", Selecting(tolerance=0.2), "--tolerance"),
        (
            "active_inheritance.profile",
            Profile(model=("embedded:student",), prompts_file="embedded:stories", continuations=3),
            "--continuations",
        ),
    ],
)
def test_a_run_from_a_program_tells_what_changes_nothing_as_a_command_does(method, config, name, monkeypatch):
    """Both leave it to `carry_out`, once."""
    import common.experiment

    module, given = importlib.import_module(f"{method}.experiment"), {}
    named = inspect.signature(common.experiment.carry_out)
    monkeypatch.setattr(module, "carry_out", lambda *a, **k: given.update(named.bind(*a, **k).arguments))
    module.run(config)
    ((kind, line),) = given["told"]
    assert (kind, line.split()[0]) == ("warning", name)
    assert given["models"] == module.models(config.resolved())


def test_what_changes_nothing_is_told_by_a_run_and_not_by_the_runs_within_it(tmp_path, capsys):
    told = [("warning", "--folds changes nothing here")]

    def refuse():
        raise UserError("the inner run is refused")

    within = lambda run, _: carry_out("m", str(run.path / "inner"), {"models": {}}, refuse, pytest.fail, told=told)
    with pytest.raises(UserError, match="the inner run is refused"):
        carry_out("m", str(tmp_path / "run"), {"models": {}}, lambda: None, within, told=told)
    said = capsys.readouterr()
    assert (said.err.count("--folds changes nothing here"), "--folds" in said.out) == (1, False)


def test_a_setting_beside_those_of_a_run_is_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"seedloop": "0", "method": "m", "config": {"seed": 2}, "seed": 3}')
    with pytest.raises(UserError, match="'seed' stands beside the settings of a run"):
        parse(Settings, ["--config", str(file)], "m", method="m")
