"""Active Inheritance (arXiv 2407.01490): choose what a student learns from by what it should become.

    from active_inheritance import Config, run

    summary = run(Config(pool="pool.jsonl", objective=("mtld:max",), select_only=True, run_dir="runs/demo"))

Importing this loads neither jax nor numpy; `run` does, and jax only where a model is asked or trained. Bad
settings raise `common.errors.UserError`, a ValueError.
"""

from active_inheritance.config import Config
from active_inheritance.experiment import run

__all__ = ["Config", "run"]
