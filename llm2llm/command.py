"""`python run.py llm2llm`: flags, a plan or a run, a sweep of ablations."""

from common.backends.open import is_model
from common.experiment import main as run_command
from common.memory import foretold
from common.rates import told
from llm2llm.config import PRESETS, Config
from llm2llm.experiment import check_plan, load_data, models, run
from llm2llm.plan import needs, plan, spending, sweep_plan, work


def main(argv: list[str]) -> None:
    """Parse, check, plan; only then load jax and work."""
    about = "Fine-tune a student on what it gets wrong (LLM2LLM)."
    run_command(argv, Config, "llm2llm", about, _plan, _run, PRESETS)


def _plan(config: Config) -> list[tuple[str, str]]:
    data = load_data(config)  # refuses what a run would refuse
    key = check_plan(config, data)
    memory = foretold(
        lambda device, shards: needs(config, data.task, data.examples, device, shards),
        filter(is_model, models(config).values()),
        config.devices,
    )
    if config.sweep:
        return sweep_plan(config) + memory
    return [
        *plan(config),
        *(("warning", line) for line in data.doubts),
        ("time", told(key, work(config, len(data.dev), len(data.test)))),
        *spending(config, data.task, data.train),
        *memory,
    ]


def _run(config: Config) -> None:
    if config.sweep:
        from llm2llm.sweep import sweep

        sweep(config)
    else:
        run(config)
