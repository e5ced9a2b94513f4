"""`python run.py llm2llm`: flags, a plan or a run, a sweep of ablations."""

from common.experiment import main as run_command
from common.memory import lines_of
from llm2llm.config import PRESETS, Config
from llm2llm.experiment import load_data, run
from llm2llm.plan import needs, plan, sweep_plan


def main(argv: list[str]) -> None:
    """Parse, check, plan; only then load jax and work."""
    about = "Fine-tune a student on what it gets wrong (LLM2LLM)."
    run_command(argv, Config, "llm2llm", about, _plan, _run, PRESETS)


def _plan(config: Config) -> list[tuple[str, str]]:
    data = load_data(config)  # refuses what a run would refuse
    return (sweep_plan(config) if config.sweep else plan(config)) + lines_of(
        needs(config, data.task, data.examples)
    )


def _run(config: Config) -> None:
    if config.sweep:
        from llm2llm.sweep import sweep

        sweep(config)
    else:
        run(config)
