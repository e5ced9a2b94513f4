"""ReverseGen (arXiv 2410.16736): a proposer learns to write what a target fails on; the target learns that.

    from reversegen import Config, preset, run

    summary = run(Config(rounds=2, run_dir="runs/demo"))

A judge of one's own gives `Verdict`s, from `reversegen` or from `reversegen.judge`. Importing this loads neither
jax nor numpy; `run` does. Bad settings raise `common.errors.UserError`, a ValueError.
"""

from reversegen.config import Config, preset
from reversegen.experiment import run
from reversegen.judge import Verdict

__all__ = ["Config", "Verdict", "preset", "run"]
