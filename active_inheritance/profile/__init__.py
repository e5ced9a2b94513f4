"""What a model is like: text, toxicity, social bias, calibration, utility and preference (passive inheritance).

    from active_inheritance.profile import Config, run

    summary = run(Config(model=("embedded:student",), prompts_file="prompts.jsonl", run_dir="runs/profile"))

Importing this loads neither jax nor numpy; `run` does.
"""

from active_inheritance.profile.config import Config
from active_inheritance.profile.experiment import run

__all__ = ["Config", "run"]
