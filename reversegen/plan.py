"""What a run will do at most, line by line, before anything is loaded: `--dry-run`."""

from reversegen.config import Config


def plan(config: Config) -> list[tuple[str, str]]:
    """Names and what they come to, for one repeat where nothing else is said."""
    exploring = config.prompts * config.samples * (config.rounds + 1)
    sampled = exploring + config.final_prompts
    answers = sampled * config.target_samples
    pairs = min(config.max_pairs, config.prompts * (config.samples // 2))
    warm_up = config.warm_up(0).total_steps(config.seed_instructions)
    failures = min(config.max_failures, config.final_prompts)
    partners = failures if config.task == "honesty" else 0
    learned = failures + partners
    updates = config.target_training(0).total_steps(
        learned + min(config.seed_instructions, round(config.mix * learned))
    )
    lines = [
        (
            "task, proposer, target",
            f"{config.task} ({config.data or 'own data'}), {config.proposer}, {config.target}",
        ),
        ("seeds, rounds, repeats", f"{config.seed_instructions}, {config.rounds}, {config.repeats}"),
        (
            "exploration",
            f"{sampled} queries, at most {answers} target answers; as much for the independent proposer",
        ),
        (
            "proposer",
            f"{warm_up} updates of warm-up, at most {config.dpo(0).total_steps(pairs)} of DPO a round, twice",
        ),
        ("target", f"at most {learned} new examples and {updates} updates in each of {len(config.arms) - 1} arms"),
    ]
    votes = config.label_votes
    if config.labeler != "program":
        judging = (config.reference == "labeler" and config.task == "math") * votes
        judging += config.validity == "labeler" and config.task in ("math", "honesty")
        calls = 2 * sampled * judging + votes * learned * len(config.arms)
        lines.append(("labeler", f"about {calls} calls, mostly by {'judging' if judging else 'labels'}"))
    if config.guard:
        lines.append(
            ("guard", f"at most {2 * answers} verdicts while exploring, and one for every answer measured")
        )
    if config.budget:
        lines.append(("budget", f"{config.budget} for the whole run, in equal shares for repeats"))
    return lines
