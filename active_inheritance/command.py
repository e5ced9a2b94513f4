"""`python run.py active-inheritance`: flags, a plan or a run, a table of students by sources."""

from active_inheritance.config import Config
from active_inheritance.experiment import check_plan, load_data, models, needs, run, units
from common.backends.open import is_model
from common.experiment import main as run_command
from common.memory import foretold
from common.rates import told


def main(argv: list[str]) -> None:
    """Parse, check, plan; only then work."""
    about = "Select what a student learns from by what it should become (Active Inheritance)."
    run_command(argv, Config, "active-inheritance", about, _plan, _run)


def _plan(config: Config) -> list[tuple[str, str]]:
    from active_inheritance.plan import plan

    data = load_data(config)
    key = check_plan(config, data)
    time = [] if config.students else [("time", told(key, units(config, data)))]
    memory = foretold(
        lambda device, shards: needs(config, data, device, shards),
        filter(is_model, models(config).values()),
        config.devices,
    )
    return plan(config, data) + [("warning", line) for line in data.doubts] + time + memory


def _run(config: Config) -> None:
    if config.students:
        from active_inheritance.grid import grid

        grid(config)
    else:
        run(config)
