"""What a run will do at most, line by line, before anything is loaded: `--dry-run`."""

from llm2llm.config import Config


def plan(config: Config) -> list[tuple[str, str]]:
    """Names and what they come to."""
    chosen = [config.seed_examples]
    sizes = [config.seed_examples]
    for _ in range(config.trainings - 1):
        sizes.append(sizes[-1] + chosen[-1] * config.slots_per_example)
        chosen.append(sizes[-1] if config.augment_from == "all" else config.seed_examples)
    settings = config.training(config.seed)
    updates = [settings.total_steps(size) for size in sizes]
    calls = sum(count * config.slots_per_example * config.max_attempts for count in chosen[: len(sizes) - 1])
    blind = 0 if config.detect == "in-sample" else config.folds * sum(updates[:-1])
    last = sum(updates) if config.init == "continue" else updates[-1]
    lines = [
        ("task, student, teacher", f"{config.task}, {config.student}, {config.teacher}"),
        ("seeds, rounds, repeats", f"{config.seed_examples}, {config.trainings}, {config.repeats}"),
    ]
    by_arm = {
        "base": (0, 0),
        "fine-tune": (updates[0], 0),
        "fine-tune-matched": (last, 0),
        "llm2llm": (sum(updates) + blind, calls),
        "untargeted": (sum(updates), calls),
        "eda": (last, 0),
        "auggpt": (last, calls),
        "more-data": (last, 0),
    }
    for arm in config.arms:
        arm_updates, arm_calls = by_arm[arm]
        lines.append((arm, f"at most {arm_updates} optimizer updates and {arm_calls} teacher calls a repeat"))
    if calls and config.label_check == "resolve":
        checks = calls * config.check_votes
        lines.append(("label check", f"at most {checks} more calls in each arm that asks the teacher"))
    limits = config.limits()
    if limits is not None:
        lines.append(("budget", f"{config.budget} for the whole run, in equal shares for arms and repeats"))
    if updates[0] < 10:
        lines.append(
            (
                "warning",
                f"the first training has only {updates[0]} updates: raise --epochs or lower --batch-size, or its "
                "result says little about the data",
            )
        )
    return lines
