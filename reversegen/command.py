"""`python run.py reversegen`: from flags to a finished run directory.

From Python the same in two lines:

    from reversegen.command import run
    summary = run(Config(rounds=2, run_dir="runs/demo"))
"""

import contextlib
import dataclasses
import functools
import pathlib
import sys
from typing import Any

from common.backends.open import Purse, backend, file_hashes, fingerprints, model_name
from common.cli import parse
from common.errors import UserError
from reversegen.config import PRESETS, Config

ABOUT = "Train a proposer to write what a target fails on, and the target on that (ReverseGen)."


def main(argv: list[str]) -> None:
    """Parse, check, plan; only then load jax and work."""
    config = parse(Config, argv, "run.py reversegen", ABOUT, PRESETS).resolved()
    if config.dry_run:
        from reversegen.plan import plan

        for name, what in plan(config):
            print(f"{name:28}{what}")
    else:
        run(config)


def application(config: Config) -> Any:
    """What failing means in this run (see `applications.base`). Raises UserError for data that do not fit."""
    if config.task == "math":
        from reversegen.applications.math import Solving

        return Solving.of(config)
    if config.task == "honesty":
        from reversegen.applications.honesty import Certainty

        return Certainty.of(config)
    from reversegen.applications.conduct import Conduct

    return Conduct.of(config)


def run(config: Config) -> dict[str, Any]:
    """Carry out (or continue) the run that `config` describes; returns what `summary.json` holds."""
    config = config.resolved()
    app = application(config)
    data = app.load(config)
    if len(data.seeds) < config.seed_instructions:
        raise UserError(_too_few(len(data.seeds), config))
    if not data.test:
        raise UserError(f"there is no ordinary test for --task {config.task}: give --test-file FILE")

    from common import runtime
    from common.lm import LanguageModel
    from common.results.rundir import RunDir
    from reversegen.applications.base import Context
    from reversegen.loop import draw_seeds, run_repeat
    from reversegen.propose import that_fit
    from reversegen.report import finish
    from reversegen.targets import check_lengths

    # Whatever the user may have to mend is found before the run directory exists, the cheapest first.
    stored = identity(config)
    RunDir.check(config.run_dir, "reversegen", stored)
    runtime.enable_compile_cache()
    proposer = LanguageModel.load(model_name(config.proposer, "teacher"))
    target = LanguageModel.load(model_name(config.target, "student"))
    others = {name: LanguageModel.load(model_name(name, "student")) for name in config.transfer_targets}
    fitting = that_fit(app, proposer, data.seeds, config.shots, config.query_tokens or app.query_tokens)
    if len(fitting) < config.seed_instructions:
        raise UserError(
            f"{_too_few(len(fitting), config)}; {len(data.seeds) - len(fitting)} more are too long for --shots "
            f"{config.shots} and --query-tokens within the proposer's {proposer.config.max_positions} positions"
        )
    if len(fitting) < len(data.seeds):
        left = len(data.seeds) - len(fitting)
        print(f"left out {left} of {len(data.seeds)} seeds that are too long to be shown")
    data = dataclasses.replace(data, seeds=fitting)
    drawn = [
        draw_seeds(data.seeds, config.seed_instructions, config.seed + repeat)[0]
        for repeat in range(config.repeats)
    ]
    learned = dict.fromkeys(seed for seeds in drawn for seed in seeds if seed.answer)
    check_lengths(app, target, list(learned), [*data.test, *data.general], config)
    open_labeler = (
        None if config.labeler == "program" else backend(config.labeler, "teacher", url=config.labeler_url)
    )
    open_guard = None if config.guard is None else backend(config.guard, "teacher", url=config.guard_url)
    with RunDir.open(config.run_dir, "reversegen", stored) as place, contextlib.ExitStack() as stack:
        if sys.stderr.isatty():
            print(f"run directory: {config.run_dir}", file=sys.stderr)
        labeler = guard = None
        if open_labeler is not None:
            labeler = _opened(
                stack, open_labeler, Purse(place.path / "replies.sqlite", config.share(), "labeler/")
            )
        if open_guard is not None:
            guard = _opened(stack, open_guard, Purse(place.path / "replies.sqlite", None, "guard/"))
        repeats = [
            run_repeat(
                Context(place, config, repeat, config.seed + repeat, labeler, guard),
                app,
                proposer,
                target,
                others,
                data,
            )
            for repeat in range(config.repeats)
        ]
        return finish(place, config, app, data, repeats)


def _too_few(count: int, config: Config) -> str:
    return f"there are {count} seed instructions: lower --seed-instructions {config.seed_instructions}"


def _opened(stack: contextlib.ExitStack, opener: Any, purse: Purse) -> Any:
    """One generator an account."""
    return functools.cache(stack.enter_context(opener(purse)))


def identity(config: Config) -> dict[str, Any]:
    """What the run directory holds against the next command: settings, and hashes of files and checkpoints."""
    files = [config.seeds_file, config.test_file, config.general_file, config.human_file]
    if config.data is not None and pathlib.Path(config.data).suffix:
        files.append(config.data)
    named = [name for name in (config.labeler, config.guard, config.judge) if name]
    models = {"proposer": model_name(config.proposer, "teacher"), "labeler": model_name(config.labeler, "teacher")}
    models |= {f"target {name}": model_name(name, "student") for name in (config.target, *config.transfer_targets)}
    if config.guard is not None:
        models["guard"] = model_name(config.guard, "teacher")
    return config.stored() | {"file_hashes": file_hashes(files, named), "models": fingerprints(models)}
