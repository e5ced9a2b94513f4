"""What a run will do, line by line, before it reads more than the beginning of the pool: `--dry-run`."""

import pathlib
from collections.abc import Sequence
from typing import Any

from active_inheritance.config import Config, K
from active_inheritance.forecast import expected_max, kl_bound
from active_inheritance.pools import Group, draw


def plan(
    config: Config, beginning: Sequence[Group], prompts: Sequence[Any], held_out: Sequence[Any]
) -> list[tuple[str, str]]:
    """Names and what they come to. `beginning`: the first prompts of a pool that is there, else `prompts` that
    sources answer."""
    rule = config.rule()
    k, lines = _file_lines(config, beginning) if config.pool else _source_lines(config, prompts)
    several = len(rule.objectives) > 1
    one = len(config.source) == 1 and not several
    lines += [
        ("objectives", ", ".join(map(str, rule.objectives)) + (f", by {rule.combine}" if several else "")),
        ("constraints", f"{', '.join(map(str, rule.constraints)) or 'none'}; else {rule.fallback}"),
        ("scores", ", ".join(config.scores())),
        ("not used", ", ".join(config.drop) or "nothing"),
        (
            "to be expected",
            f"best of {k}: {expected_max(k):.2f} standard deviations within a prompt if scores are normal, at "
            f"most {kl_bound(k, one):.2f} nats from what is drawn from",
        ),
    ]
    if config.select_only or not config.trains():
        return [*lines, ("student", "none: the run ends with the selected data")]
    count = len(held_out) or f"at most {config.test_prompts}"
    how = f"adapters of rank {config.lora_rank}" if config.lora_rank else "all weights"
    if config.students:
        lines.append(("runs", f"{len(config.students) * len(config.source)}: every student with every source"))
    names = ", ".join(config.students or (config.student,))
    lines.append(("student", f"{names}, {how}, rate {config.learning_rate:g}, {config.epochs:g} epochs"))
    lines.append(("arms", f"{', '.join(config.arms)}; {config.repeats} repeats"))
    if config.rounds > 1:
        k, later = config.k or K, config.rounds - 1
        lines.append(("further rounds", f"{later}: two students answer every prompt {k} times in each"))
    if prompts:
        updates = config.training(0).total_steps(config.top * len(prompts))
        lines.append(("updates of an arm", f"{updates}, on at most {config.top * len(prompts)} answers"))
    lines.append(("held out", f"{count} prompts, {config.test_samples} answers of an arm to each"))
    return lines


def _source_lines(config: Config, prompts: Sequence[Any]) -> tuple[int, list[tuple[str, str]]]:
    """Sources, and how long hosted ones would take at one answer a second."""
    calls = config.k * len(prompts) * (1 if config.select_only or not config.trains() else config.repeats)
    lines = [
        ("prompts", f"{len(prompts)} of {config.prompts_file or 'the embedded set'}"),
        ("sources", ", ".join(config.source)),
        ("answers", f"{config.k} of a prompt in total, {calls} calls of at most {config.answer_tokens} tokens"),
    ]
    hosted = sum(name.startswith("openai:") for name in config.source)
    if hosted:
        asked = calls * hosted // len(config.source)
        lines.append(("hosted", f"{asked} calls: {asked / 86_400:.1f} days at one a second"))
        lines.append(("budget", config.budget or "none: nothing limits what is bought"))
    return config.k, lines


def _file_lines(config: Config, beginning: Sequence[Group]) -> tuple[int, list[tuple[str, str]]]:
    drawn = [draw(group, config.sources, config.k, config.seed) for group in beginning]
    sizes = [len(group.answers) for group in drawn]
    sources = dict.fromkeys(answer.source for group in drawn for answer in group.answers)
    k = max(1, round(sum(sizes) / len(sizes)))
    return k, [
        ("pool", f"{config.pool}, {pathlib.Path(config.pool).stat().st_size / 1e6:.1f} MB"),
        ("answers of a prompt", f"{min(sizes)} to {max(sizes)} in the first {len(sizes)} prompts"),
        ("sources", ", ".join(sources)),
    ]
