"""`python run.py llm2llm`: from flags to a finished run directory.

From Python the same in two lines:

    from llm2llm.command import run
    summary = run(Config(rounds=3, run_dir="runs/demo"))
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from common.backends.open import Purse, Write, backend, file_hashes, fingerprints, model_name
from common.cli import parse
from common.errors import UserError
from common.generate import Generator
from common.tasks.base import Example, Task
from common.tasks.files import check_ids
from common.tasks.registry import get_task
from llm2llm.config import PRESETS, Config
from llm2llm.plan import plan, sweep_plan

if TYPE_CHECKING:
    from llm2llm.augment import Refine


def main(argv: list[str]) -> None:
    """Parse, check, plan; only then load jax and work."""
    about = "Fine-tune a student on what it gets wrong (LLM2LLM)."
    config = parse(Config, argv, "run.py llm2llm", about, PRESETS).resolved()
    if config.dry_run:
        check_data(config)
        for name, what in sweep_plan(config) if config.sweep else plan(config):
            print(f"{name:28}{what}")
    elif config.sweep:
        from llm2llm.sweep import sweep

        sweep(config)
    else:
        run(config)


def check_data(config: Config) -> tuple[Task, Task, dict[str, list[Example]]]:
    """The task, the same as the run treats it (they differ for the authors' program only), and its splits.

    Raises UserError for rows that do not fit and for too few of them.
    """
    as_path = lambda name: None if name is None else pathlib.Path(name)
    train_file = as_path(config.train_file)
    plain = task = get_task(config.task, train_file, config.text_column, config.label_column, config.instruction)
    if config.official:
        from llm2llm.reference_code import official

        task = official(plain)
    files = {"train": train_file, "dev": as_path(config.dev_file), "test": as_path(config.test_file)}
    data = {split: task.load(split, file, config.seed) for split, file in files.items()}
    for examples in data.values():
        check_ids(examples)
    # Real sets repeat a few questions across splits; such rows become no seeds, so that the test stays unseen.
    held_out = {example.question for split in ("dev", "test") for example in data[split]}
    rest = [example for example in data["train"] if example.question not in held_out]
    if len(rest) < config.seed_examples:
        shared = len(data["train"]) - len(rest)
        also = f" ({shared} more are dev or test questions too)" if shared else ""
        raise UserError(
            f"{config.train_file or f'task {config.task}'} has {len(rest)} training examples{also}: lower "
            f"--seed-examples {config.seed_examples}"
        )
    data["train"] = rest
    if config.teacher.startswith("python:"):
        from common.usercode import load_callable

        load_callable(config.teacher)
    if "eda" in config.arms and len(task.reply_fields) > 2:
        raise UserError(f"arm eda would edit words inside the options of task {task.name}: leave it out")
    if config.label_check == "program" and not any(task.truth(example.question) for example in rest[:50]):
        raise UserError(f"no program knows the answers of task {task.name}: use --label-check resolve or none")
    return plain, task, data


def run(
    config: Config, teacher: Write | None = None, purse: Purse | None = None, refine: "Refine | None" = None
) -> dict[str, Any]:
    """Carry out (or continue) the run that `config` describes; returns what `summary.json` holds.

    `teacher`: a function from chat messages to the reply, in place of the teacher that `config` names. `purse`: by
    default the replies lie in the run directory and each arm of each repeat has an equal share of the budget.
    `refine`: what every reply that is to be a new example comes through (see `llm2llm.augment.Refine`); the label
    check asks the teacher itself. It is not for a pool, whose examples are given out once.
    """
    if teacher is not None:
        config = dataclasses.replace(config, teacher=f"function:{getattr(teacher, '__qualname__', 'teacher')}")
    config = config.resolved()
    if refine is not None and config.pool is not None:
        raise UserError("a pool gives out every example once, so there is nothing to refine: leave out refine")
    judge, task, data = check_data(config)
    evaluated = task
    if config.official:
        from llm2llm.reference_code import as_evaluated

        evaluated = as_evaluated(task)

    from common import runtime
    from common.lm import LanguageModel
    from common.results.rundir import RunDir
    from llm2llm.loop import run_repeat
    from llm2llm.report import finish
    from llm2llm.select import draw_seeds
    from llm2llm.students import Setting

    # Whatever the user may have to mend is found before the run directory exists, the cheapest first.
    stored = identity(config) | ({} if refine is None else {"refine": dict(refine.stored)})
    RunDir.check(config.run_dir, "llm2llm", stored)
    runtime.enable_compile_cache()
    base = LanguageModel.load(model_name(config.student, "student"))
    seeds = [
        draw_seeds(data["train"], config.seed_examples, config.seed + repeat, config.seed_sampler)
        for repeat in range(config.repeats)
    ]
    base.encode(task, dict.fromkeys(example for drawn in seeds for example in drawn), config.max_length)
    answer_tokens = config.answer_tokens or task.answer_tokens
    for examples in (*seeds, data["dev"], data["test"]):
        base.check_prompts(task, examples, answer_tokens)
    open_teacher = _teacher(config, task, teacher, purse)
    with RunDir.open(config.run_dir, "llm2llm", stored) as place, open_teacher(place.path) as make:
        if sys.stderr.isatty():
            print(f"run directory: {config.run_dir}", file=sys.stderr)
        splits = (data["train"], data["dev"], data["test"])
        setting = Setting(config, task, evaluated, judge, base, make, *splits, refine)
        repeats = [run_repeat(place, setting, repeat) for repeat in range(config.repeats)]
        return finish(place, setting, repeats)


def _teacher(
    config: Config, task: Task, function: Write | None, purse: Purse | None
) -> Callable[[pathlib.Path], Any]:
    """A context manager over the run's folder that gives `Setting.teacher`; loads and checks what it can now."""
    if config.pool is not None:
        from llm2llm.pool import PoolGenerator

        pool = task.load("train", pathlib.Path(config.pool), config.seed)
        make = lambda given, scope: PoolGenerator(config.teacher, task, pool, given)
        return lambda folder: contextlib.nullcontext(make)
    opener = backend(config.teacher, "teacher", url=config.teacher_url, function=function)
    limits = config.limits()
    share = None if limits is None else limits.share(config.repeats * max(1, config.teaching_arms))

    @contextlib.contextmanager
    def opened(folder: pathlib.Path) -> Iterator[Callable[[set[str], str], Generator]]:
        with opener(purse or Purse(folder / "replies.sqlite", share)) as generator:
            yield lambda given, scope: generator(scope)

    return opened


def identity(config: Config) -> dict[str, Any]:
    """What the run directory holds against the next command: settings, and hashes of files and checkpoints."""
    files = [config.train_file, config.dev_file, config.test_file, config.pool]
    if pathlib.Path(config.task).suffix:
        files.append(config.task)
    hashes = file_hashes(files, [config.teacher])
    models = fingerprints({name: model_name(getattr(config, name), name) for name in ("student", "teacher")})
    return config.stored() | {"file_hashes": hashes, "models": models}
