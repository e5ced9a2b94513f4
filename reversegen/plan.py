"""What a run will do at most, line by line, before any model is loaded: `--dry-run`."""

from common.settings import given
from reversegen.config import Config
from reversegen.switches import Switches


def plan(config: Config, switches: Switches) -> list[tuple[str, str]]:
    """Names and what they come to, for one repeat where nothing else is said."""
    exploring, learning = switches.exploring, switches.learning
    sampled = exploring.prompts * exploring.samples * (exploring.rounds + 1) + exploring.final_prompts
    answers = sampled * given(config.target_samples)
    pairs = min(exploring.max_pairs, exploring.prompts * (exploring.samples // 2))
    warm_up = exploring.warm_up.total_steps(switches.seeds)
    failures = min(learning.failures, exploring.final_prompts)
    # In honesty as many passing queries are learned as failing ones.
    learned = failures * (2 if config.task == "honesty" else 1)
    updates = learning.train.total_steps(learned + learning.mixed(learned, switches.seeds))
    most = exploring.preferring.train.total_steps(pairs)
    models = f"{config.task} ({config.data or 'own data'}), {config.proposer}, {config.target}"
    asked = f"{sampled} queries, at most {answers} target answers"
    each = f"in each of {len(switches.arms) - 1} arms"
    lines = [
        ("task, proposer, target", models),
        ("seeds, rounds, repeats", f"{switches.seeds}, {exploring.rounds}, {config.repeats}"),
        ("exploration", f"{asked}; as much for the independent proposer"),
        ("proposer", f"{warm_up} updates of warm-up, at most {most} of DPO a round, twice"),
        ("target", f"at most {learned} new examples and {updates} updates {each}"),
    ]
    if config.labeler != "program":
        votes = config.label_votes
        judging = (config.reference == "labeler" and config.task == "math") * votes
        judging += config.validity == "labeler" and config.task in ("math", "honesty")
        calls = 2 * sampled * judging + votes * learned * len(switches.arms)
        lines.append(("labeler", f"about {calls} calls, mostly for {'judging' if judging else 'labels'}"))
    if config.guard:
        judged = f"at most {2 * answers} verdicts while exploring, and one for every answer measured"
        lines.append(("guard", judged))
    if config.budget:
        lines.append(("budget", f"{config.budget} for the whole run, in equal shares for repeats"))
    return lines
