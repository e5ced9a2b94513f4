"""`python run.py active-inheritance`: from flags to a finished run directory.

From Python the same in two lines:

    from active_inheritance.command import run
    summary = run(Config(pool="pool.jsonl", objective=("mtld:max",), run_dir="runs/demo"))

A run ends with the selected data set.
"""

import itertools
import pathlib
import sys
from typing import Any

from active_inheritance.config import Config
from common.cli import parse
from common.errors import UserError

ABOUT = "Select what a student learns from by what it should become (Active Inheritance)."
LOOKED_AT = 200
"""Prompts at the beginning of a pool that are read before anything is made."""


def main(argv: list[str]) -> None:
    """Parse, check, plan; only then work."""
    config = parse(Config, argv, "run.py active-inheritance", ABOUT).resolved()
    if config.dry_run:
        from active_inheritance.plan import plan

        for name, what in plan(config, beginning(config)):
            print(f"{name:28}{what}")
    else:
        run(config)


def run(config: Config) -> dict[str, Any]:
    """Carry out (or continue) the run that `config` describes; returns what `summary.json` holds."""
    config = config.resolved()
    beginning(config)

    from active_inheritance.report import finish
    from active_inheritance.stage import select_stage
    from common.rundir import RunDir

    stored = identity(config)
    with RunDir.open(config.run_dir, "active-inheritance", stored) as place:
        if sys.stderr.isatty():
            print(f"run directory: {config.run_dir}", file=sys.stderr)
        return finish(place, config, select_stage(place, config), stored["file_hashes"])


def beginning(config: Config) -> list[Any]:
    """The first prompts of the pool. Raises UserError where the settings do not fit them."""
    from active_inheritance.pools import read_pool

    groups = list(itertools.islice(read_pool(pathlib.Path(config.pool), config.layout()), LOOKED_AT))
    answers = [answer for group in groups for answer in group.answers]
    there = dict.fromkeys(answer.source for answer in answers)
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
    """What the run directory holds against the next command: settings, and hashes of files."""
    from common.backends import file_hashes

    return config.stored() | {"file_hashes": file_hashes([config.pool], config.scores())}
