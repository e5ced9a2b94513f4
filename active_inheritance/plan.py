"""What a run will do, line by line, before it reads more than the beginning of the pool: `--dry-run`."""

from collections.abc import Sequence

from active_inheritance.config import Config
from active_inheritance.experiment import Data
from active_inheritance.forecast import expected_max, kl_bound
from active_inheritance.pools import PoolFile
from common.memory import tokens_in
from common.rates import cost
from common.results.conclusion import counted
from common.tasks.prompts import Prompt

DAY = 86_400
"""Seconds."""


def plan(config: Config, data: Data) -> list[tuple[str, str]]:
    """Names and what they come to."""
    switches = config.switches()
    rule, learning, testing = switches.rule, switches.learning, switches.testing
    if data.pool is not None:
        k, lines = _file_lines(data.pool, rule.top)
    else:
        k, lines = switches.answering.k, _source_lines(config, data.prompts)
    several = len(rule.objectives) > 1
    one_score = len(config.source) == 1 and not several
    lines += [
        ("objectives", ", ".join(map(str, rule.objectives)) + (f", by {rule.combine}" if several else "")),
        ("constraints", f"{', '.join(map(str, rule.constraints)) or 'none'}; else {rule.fallback}"),
        ("scores", ", ".join(switches.scoring.names)),
        ("not used", ", ".join(switches.scoring.drop) or "nothing"),
        (
            "to be expected",
            f"best of {k}: {expected_max(k):.2f} standard deviations within a prompt if scores are normal, at "
            f"most {kl_bound(k, one_score):.2f} nats from what is drawn from",
        ),
    ]
    if not config.trains:
        return [*lines, ("student", "none: the run ends with the selected data")]
    count = len(data.held_out) or f"at most {testing.prompts}"
    how = f"adapters of rank {learning.train.lora.rank}" if learning.train.lora else "all weights"
    if config.students:
        lines.append(("runs", f"{len(config.students) * len(config.source)}: every student with every source"))
    names, train = ", ".join(config.students or (config.student,)), learning.train
    lines.append(("student", f"{names}, {how}, rate {train.learning_rate:g}, {train.epochs:g} epochs"))
    lines.append(("arms", f"{', '.join(switches.arms)}; {counted(switches.repeats, 'repeat')}"))
    if switches.rounds > 1:
        asked = f"two students answer every prompt {switches.answering.k} times in each"
        lines.append(("further rounds", f"{switches.rounds - 1}: {asked}"))
    if data.prompts:
        examples = rule.top * len(data.prompts)
        lines.append(("updates of an arm", f"{train.total_steps(examples)}, on at most {examples} answers"))
    lines.append(("held out", f"{count} prompts, {testing.samples} answers of an arm to each"))
    return lines


def _source_lines(config: Config, prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    """Sources, and how long hosted ones would take at one answer a second."""
    switches = config.switches()
    k, tokens = switches.answering.k, switches.answering.sampling.max_new_tokens
    calls = k * len(prompts) * (switches.repeats if config.trains else 1)
    lines = [
        ("prompts", f"{len(prompts)} of {config.prompts_file or 'the embedded set'}"),
        ("sources", ", ".join(config.source)),
        ("answers", f"{k} of a prompt in total, {calls} calls of at most {tokens} tokens"),
    ]
    hosted = sum(name.startswith("openai:") for name in config.source)
    if hosted:
        asked = calls * hosted // len(config.source)
        lines.append(("hosted", f"{asked} calls: {asked / DAY:.1f} days at one a second"))
        lines.append(("budget", config.budget or "none: nothing limits what is bought"))
        letters = sum(len(prompt.text) for prompt in prompts) // max(1, len(prompts))
        lines.append(("cost", cost(asked, tokens_in(letters), tokens, config.source_price)))
    return lines


def _file_lines(pool: PoolFile, top: int) -> tuple[int, list[tuple[str, str]]]:
    """The k to be expected, and what the beginning of a pool shows."""
    drawn = pool.beginning(top)
    sizes = [len(group.answers) for group in drawn]
    sources = dict.fromkeys(answer.source for group in drawn for answer in group.answers)
    return max(1, round(sum(sizes) / len(sizes))), [
        ("pool", f"{pool.file}, {pool.file.stat().st_size / 1e6:.1f} MB"),
        ("answers of a prompt", f"{min(sizes)} to {max(sizes)} in the first {len(sizes)} prompts"),
        ("sources", ", ".join(sources)),
    ]
