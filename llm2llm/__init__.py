"""LLM2LLM (arXiv 2403.15042): fine-tune a student, find what it gets wrong, let a teacher write more of that.

    from llm2llm import Config, preset, run

    summary = run(Config(rounds=3, run_dir="runs/demo"))
    summary = run(preset("paper", task="gsm8k", student="my/folder"), teacher=my_function)  # messages -> reply

Importing this loads neither jax nor numpy; `run` does. Bad settings raise `common.errors.UserError`, a ValueError.
"""

from llm2llm.config import Config, preset
from llm2llm.experiment import run

__all__ = ["Config", "preset", "run"]
