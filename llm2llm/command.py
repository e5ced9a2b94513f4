"""`python run.py llm2llm`: from flags to a finished run directory.

From Python the same in two lines:

    from llm2llm.command import run
    summary = run(Config(rounds=3, run_dir="runs/demo"))
"""

import hashlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from common.cli import parse
from common.errors import UserError
from common.tasks.registry import get_task
from llm2llm.config import Config, plan


def main(argv: list[str]) -> None:
    """Parse, check, plan; only then load jax and work."""
    config = parse(Config, argv, "run.py llm2llm", "Fine-tune a student on what it gets wrong (LLM2LLM).")
    config = config.resolved()
    if config.dry_run:
        check_data(config)
        for name, what in plan(config):
            print(f"{name:24}{what}")
        return
    run(config)


def check_data(config: Config) -> tuple[Any, dict[str, list]]:
    """The task and its splits. Raises UserError for rows that do not fit and for too few of them."""
    as_path = lambda name: None if name is None else pathlib.Path(name)
    train_file = as_path(config.train_file)
    task = get_task(config.task, train_file, config.text_column, config.label_column, config.instruction)
    files = {"train": train_file, "dev": as_path(config.dev_file), "test": as_path(config.test_file)}
    data = {split: task.load(split, file, config.seed) for split, file in files.items()}
    if len(data["train"]) < config.seed_examples:
        where = config.train_file or f"task {config.task}"
        raise UserError(
            f"{where} has {len(data['train'])} training examples: lower --seed-examples {config.seed_examples}"
        )
    # Real sets repeat a few questions across splits; such rows become no seeds, so that the test stays unseen.
    test = {example.question for example in data["test"]}
    data["train"] = [example for example in data["train"] if example.question not in test]
    return task, data


def run(config: Config) -> dict[str, Any]:
    """Carry out (or continue) the run that `config` describes; returns what `summary.json` holds."""
    config = config.resolved()
    task, data = check_data(config)

    from common import runtime
    from common.generate import Generator
    from common.models import LanguageModel
    from common.pool import PoolGenerator
    from common.rundir import RunDir
    from llm2llm.loop import Setting, run_repeat
    from llm2llm.report import finish

    # Whatever the user may have to mend is found before the run directory exists.
    runtime.enable_compile_cache()
    name = lambda given, role: f"embedded:{role}" if given == "embedded" else given
    base = LanguageModel.load(name(config.student, "student"))
    for split in ("train", "dev"):
        base.encode(task, data[split][:5000], config.max_length)
    if config.teacher.startswith("pool:"):
        pool = task.load("train", pathlib.Path(config.teacher.removeprefix("pool:")), config.seed)
        teacher: Callable[[set[str]], Generator] = lambda given: PoolGenerator(config.teacher, task, pool, given)
    else:
        writer = LanguageModel.load(name(config.teacher, "teacher")).generator()
        teacher = lambda given: writer
    setting = Setting(config, task, base, teacher, data["train"], data["dev"], data["test"])
    stored = config.stored() | {"file_hashes": file_hashes(config)}
    with RunDir.open(pathlib.Path(config.run_dir), "llm2llm", stored) as place:
        if sys.stderr.isatty():
            print(f"run directory: {config.run_dir}", file=sys.stderr)
        repeats = [run_repeat(place, setting, repeat) for repeat in range(config.repeats)]
        return finish(place, setting, repeats)


def file_hashes(config: Config) -> dict[str, str]:
    """Start of the SHA-256 of every data file, so that a run is not continued on other data."""
    pool = config.teacher.removeprefix("pool:") if config.teacher.startswith("pool:") else None
    files = (config.train_file, config.dev_file, config.test_file, pool)
    return {file: hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:16] for file in files if file}
