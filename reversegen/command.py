"""`python run.py reversegen`: flags, then a plan or a run."""

from common.backends.open import is_model
from common.experiment import main as run_command
from common.memory import foretold
from common.rates import told
from reversegen.config import PRESETS, Config
from reversegen.experiment import check_plan, load_data, models, run
from reversegen.plan import needs, plan, spending, work


def main(argv: list[str]) -> None:
    """Parse, check, plan; only then load models and work."""
    about = "Train a proposer to write what a target fails on, and the target on that (ReverseGen)."
    run_command(argv, Config, "reversegen", about, _plan, run, PRESETS)


def _plan(config: Config) -> list[tuple[str, str]]:
    app, data = load_data(config)  # refuses what a run would refuse
    key, switches = check_plan(config, app, data), config.switches(app.query_tokens)
    time = ("time", told(key, work(config, switches, data)))
    memory = foretold(
        lambda device, shards: needs(config, app, data, device, shards),
        filter(is_model, models(config).values()),
        config.devices,
    )
    doubts = [("warning", line) for line in data.doubts]
    return [*plan(config, switches), *doubts, time, *spending(config, app, switches, data), *memory]
