"""`python run.py active-inheritance`: from flags to a finished run directory.

From Python the same in two lines:

    from active_inheritance.command import run
    summary = run(Config(pool="pool.jsonl", objective=("mtld:max",), run_dir="runs/demo"))

A run samples a pool or reads one, selects from it, and trains a student on every arm of the selection.
"""

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from active_inheritance.config import Config
from active_inheritance.profile.config import Config as ProfileConfig
from common.cli import parse
from common.errors import UserError

if TYPE_CHECKING:
    from common.backends.open import Opener

ABOUT = "Select what a student learns from by what it should become (Active Inheritance)."
LOOKED_AT = 200
"""Prompts at the beginning of a pool that are read before anything is made."""


def main(argv: list[str]) -> None:
    """Parse, check, plan; only then work."""
    config = parse(Config, argv, "run.py active-inheritance", ABOUT).resolved()
    if config.dry_run:
        from active_inheritance.plan import plan

        prompts, held_out = given_prompts(config)
        for name, what in plan(config, beginning(config) if config.pool else [], prompts, held_out):
            print(f"{name:28}{what}")
    elif config.students:
        from active_inheritance.grid import grid

        grid(config)
    else:
        run(config)


def run(config: Config, sources: "Mapping[str, Opener] | None" = None) -> dict[str, Any]:
    """Carry out (or continue) the run that `config` describes; returns what `summary.json` holds. `sources`: in
    place of those that `config` names, under the same names."""
    config = config.resolved()
    trains = config.trains() and not config.select_only
    prompts, held_out = given_prompts(config)

    from active_inheritance.loop import Setting, run_repeat
    from active_inheritance.prompts import fitting
    from active_inheritance.report import finish
    from common.results.rundir import RunDir

    # Whatever the user may have to mend is found before the run directory exists, the cheapest first.
    stored = identity(config)
    RunDir.check(config.run_dir, "active-inheritance", stored)
    if config.source and sources is None:
        from active_inheritance.sampling import open_sources

        sources = open_sources(config)
    data = student = None
    if trains:
        from active_inheritance.profile.experiment import load_data

        data = load_data(config.profile_settings()) if config.profile else None
        student = loaded(config)
    asked = held_out if student is None else fitting(held_out, student, config.answer_tokens)
    with RunDir.open(config.run_dir, "active-inheritance", stored) as place:
        if sys.stderr.isatty():
            print(f"run directory: {config.run_dir}", file=sys.stderr)
        setting, outcomes = Setting(config, sources or {}, prompts, asked, student, data), []
        for repeat in range(config.repeats if trains else 1):
            outcomes.append(run_repeat(place, setting, repeat))
            setting = dataclasses.replace(setting, held_out=outcomes[0].held_out)  # of a pool: the same for all
        return finish(place, config, outcomes, stored["file_hashes"], len(held_out) - len(asked))


def given_prompts(config: Config) -> tuple[list[Any], list[Any]]:
    """Prompts for the sources, and held-out ones where they are known before the pool. Raises UserError for files
    that do not fit the settings."""
    from active_inheritance.prompts import PROMPTS, columns_of, load_prompts, read_prompts

    if config.pool is None:
        return load_prompts(config)
    beginning(config)
    given = config.test_prompts_file
    return [], read_prompts(given, (*columns_of(config), *PROMPTS)) if given is not None else []


def loaded(config: Config) -> Any:
    """The student, in this process."""
    from common import runtime
    from common.backends.open import model_name
    from common.lm import LanguageModel

    runtime.enable_compile_cache()
    return LanguageModel.load(model_name(config.student, "student"))


def beginning(config: Config) -> list[Any]:
    """The first prompts of the pool. Raises UserError where the settings do not fit them."""
    from active_inheritance.pools import draw, read_pool

    groups = list(itertools.islice(read_pool(pathlib.Path(config.pool), config.layout()), LOOKED_AT))
    answers = [answer for group in groups for answer in group.answers]
    there = dict.fromkeys(answer.source for answer in answers)
    most = max(len(draw(group, config.sources, config.k, config.seed).answers) for group in groups)
    if config.top >= most > 1:
        raise UserError(
            f"--top {config.top} of {most} answers of {config.pool} selects nothing: use a smaller --top"
        )
    if unknown := [source for source in config.sources if source not in there]:
        raise UserError(
            f"--sources {','.join(unknown)}: not among the first {len(groups)} prompts of {config.pool}, whose "
            f"sources are {', '.join(there)}"
        )
    for name in config.layout().scores:
        if all(answer.columns[name] != answer.columns[name] for answer in answers):
            raise UserError(f"column:{name}: the first {len(groups)} prompts of {config.pool} have no such score")
    return groups


def identity(config: Config) -> dict[str, Any]:
    """What the run directory holds against the next command: settings, and hashes of files and checkpoints."""
    from common.backends.open import file_hashes, fingerprints, model_name

    files = [config.pool, config.prompts_file, config.test_prompts_file]
    named = [*config.scores(), *config.source]
    for settings in (config.profile_settings(), ProfileConfig(toxicity_scorer=config.toxicity_scorer)):
        more, code = settings.read()
        files, named = files + more, named + code
    models = {f"source {name}": name for name in config.source}
    for number, name in enumerate(config.students or (config.student,)):
        if name != "none":
            models[f"student {number}" if config.students else "student"] = model_name(name, "student")
    return config.stored() | {
        "file_hashes": file_hashes(files, named),
        "models": fingerprints(models),
    }
