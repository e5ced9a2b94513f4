"""`python run.py profile`: flags, a plan or a run. Without a model and without data it is a demonstration on the
embedded ones."""

from active_inheritance.profile.config import Config
from active_inheritance.profile.experiment import check_plan, load_data, models, needs, run, units
from common.experiment import main as run_command
from common.memory import foretold
from common.rates import cost, told

ABOUT = "Measure what models are like: text, toxicity, social bias, calibration, utility, preference."


def main(argv: list[str]) -> None:
    """Parse, check, plan; only then load jax and work."""
    run_command(argv, Config, "profile", ABOUT, _plan, run)


def _plan(config: Config) -> list[tuple[str, str]]:
    from active_inheritance.profile.report import sizes
    from active_inheritance.profile.warnings import repeated
    from common.evals.measure import MOST_TOKENS

    measures = load_data(config)
    key, counted = check_plan(config), sizes(measures)
    lines = [("models", ", ".join(config.model))]
    for name, count in counted.items():
        times = f", {config.continuations} continuations each" if name == "toxicity" else ""
        lines.append((name, f"{count} rows{times}"))
    if config.judge is not None:
        calls = 2 * counted["prompts"] * (len(config.model) - 1)  # in both orders
        lines.append(("judge", f"{config.judge}, at most {calls} calls"))
        if config.judge.startswith("openai:"):
            lines.append(("budget", config.budget or "none: nothing limits what is bought"))
            lines.append(("cost", cost(calls, 2 * (config.answer_tokens or MOST_TOKENS), 5, config.judge_price)))
    return [
        *lines,
        *(("warning", line) for line in repeated(measures)),
        ("time", told(key, units(config, measures))),
        *foretold(lambda device, shards: needs(config, device, shards), models(config).values(), config.devices),
    ]
