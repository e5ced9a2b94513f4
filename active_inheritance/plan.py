"""What a run will do, line by line, before it reads more than the beginning of the pool: `--dry-run`."""

import pathlib

from active_inheritance.config import Config
from active_inheritance.forecast import expected_max, kl_bound
from active_inheritance.pools import Group, draw


def plan(config: Config, beginning: list[Group]) -> list[tuple[str, str]]:
    """Names and what they come to. `beginning`: the first prompts of the pool."""
    rule = config.rule()
    drawn = [draw(group, config.sources, config.k, config.seed) for group in beginning]
    sizes = [len(group.answers) for group in drawn]
    sources = dict.fromkeys(answer.source for group in drawn for answer in group.answers)
    k = max(1, round(sum(sizes) / len(sizes)))
    several = len(rule.objectives) > 1
    return [
        ("pool", f"{config.pool}, {pathlib.Path(config.pool).stat().st_size / 1e6:.1f} MB"),
        ("answers of a prompt", f"{min(sizes)} to {max(sizes)} in the first {len(sizes)} prompts"),
        ("sources", ", ".join(sources)),
        ("objectives", ", ".join(map(str, rule.objectives)) + (f", by {rule.combine}" if several else "")),
        ("constraints", f"{', '.join(map(str, rule.constraints)) or 'none'}; else {rule.fallback}"),
        ("scores", ", ".join(config.scores())),
        ("not used", ", ".join(config.drop) or "nothing"),
        (
            "to be expected",
            f"best of {k}: {expected_max(k):.2f} standard deviations within a prompt if scores are normal, at "
            f"most {kl_bound(k):.2f} nats from the pool",
        ),
    ]
