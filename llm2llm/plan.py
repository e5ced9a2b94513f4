"""What a run will do at most, line by line, before anything is loaded: `--dry-run`."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common.backends.open import is_model, model_name
from common.memory import Model, Need, sampling, tokens_in, training
from common.rates import OTHER, cost
from common.results.conclusion import counted
from common.settings import given
from llm2llm.config import MATCHED, Config

if TYPE_CHECKING:
    from common.tasks.base import Example, Task

FULL = "full method"
CONTROLS = ("fine-tune-matched", "llm2llm", "untargeted")
"""Arms of the full method in a sweep; the variants run llm2llm alone."""


def counts(config: Config) -> dict[str, tuple[int, int]]:
    """Optimizer updates and teacher calls of every arm in a repeat, at most."""
    chosen, sizes = [config.seed_examples], [config.seed_examples]
    for _ in range(config.trainings - 1):
        sizes.append(sizes[-1] + chosen[-1] * config.slots_per_example)
        chosen.append(sizes[-1] if config.augment_from == "all" else config.seed_examples)
    settings = config.training()
    updates = [settings.total_steps(size) for size in sizes]
    # A slot of llm2llm is asked about until it is filled; untargeted asks as often, and each call may fill one.
    filled = [config.seed_examples + (size - config.seed_examples) * config.max_attempts for size in sizes]
    calls = sum(count * config.slots_per_example * config.max_attempts for count in chosen[: len(sizes) - 1])
    blind = 0 if config.detect == "in-sample" else config.folds * sum(updates[:-1])
    last = sum(updates) if config.init == "continue" else updates[-1]
    by_arm = {
        "base": (0, 0),
        "fine-tune": (updates[0], 0),
        "fine-tune-matched": (last, 0),
        "llm2llm": (sum(updates) + blind, calls),
        "untargeted": (sum(settings.total_steps(size) for size in filled), calls),
        "eda": (last, 0),
        "auggpt": (last, calls),
        "more-data": (last, 0),
    }
    return {arm: by_arm[arm] for arm in config.arms}


def work(config: Config, dev: int, test: int) -> dict[str, float]:
    """Units of work by stage (see `common.rates`): examples seen, calls of the teacher, answers of students to so
    many questions of the splits."""
    found, repeats = counts(config), config.repeats
    checks = config.check_votes if config.label_check == "resolve" else 0
    loops = sum(arm in found for arm in ("llm2llm", "untargeted"))
    answers = len(found) * test + loops * config.trainings * (dev + config.seed_examples)
    # The base answers once for all repeats where it is asked alike in them.
    again = 0 if config.few_shot or "base" not in found else (repeats - 1) * test
    return {
        "train": repeats * sum(updates for updates, _ in found.values()) * given(config.batch_size),
        "teach": repeats * sum(calls for _, calls in found.values()) * (1 + checks),
        "evaluate": repeats * answers - again,
        OTHER: repeats,
    }


def spending(config: Config, task: "Task", train: "Sequence[Example]") -> list[tuple[str, str]]:
    """What a hosted teacher may cost."""
    calls = work(config, 0, 0)["teach"]
    if not config.teacher.startswith("openai:") or not calls:
        return []
    some = train[:50]
    letters = sum(len(m["content"]) for e in some for m in task.teacher_messages(e)) // len(some)
    return [
        (
            "cost",
            cost(calls, tokens_in(letters), config.teacher_tokens or task.example_tokens, config.teacher_price),
        )
    ]


def plan(config: Config) -> list[tuple[str, str]]:
    """Names and what they come to."""
    found, first = counts(config), config.training().total_steps(config.seed_examples)
    lines = [
        ("task, student, teacher", f"{config.task}, {config.student}, {config.teacher}"),
        ("seeds, rounds, repeats", f"{config.seed_examples}, {config.trainings}, {config.repeats}"),
    ]
    for arm, (updates, calls) in found.items():
        most = "about" if config.match == "tokens" and arm in MATCHED and arm != "untargeted" else "at most"
        lines.append((arm, f"{most} {updates} optimizer updates and {calls} teacher calls a repeat"))
    calls = max((calls for _, calls in found.values()), default=0)
    if calls and config.label_check == "resolve":
        checks = calls * config.check_votes
        lines.append(("label check", f"at most {checks} more calls in each arm that asks the teacher"))
    if config.budget is not None:
        lines.append(("budget", f"{config.budget} for the whole run, in equal shares for arms and repeats"))
    if first < 10:
        advice = "raise --epochs or lower --batch-size, or its result says little about the data"
        lines.append(("warning", f"the first training has only {counted(first, 'update')}: {advice}"))
    return lines


def needs(
    config: Config, task: "Task", examples: "Sequence[Example]", device: str = "cpu", shards: int = 1
) -> list[Need]:
    """Memory of the stages, of models that are on this machine."""
    letters = lambda e: sum(len(m["content"]) for m in task.messages(e.question)) + len(e.answer)
    length = tokens_in(letters(max(examples, key=lambda e: len(e.question) + len(e.answer))))
    where = {"device": device, "shards": shards}
    found = []
    student = Model.read(model_name(config.student, "student"))
    if student is not None:
        settings, answer = config.training(), config.switches(task).learning.answering.max_new_tokens
        found.append(training(student, settings, length, stage="training a student", **where))
        rank = given(config.lora_rank)
        found.append(sampling(student, length, answer, stage="answering", rank=rank, **where))
    teacher = Model.read(model_name(config.teacher, "teacher")) if is_model(config.teacher) else None
    if teacher is not None:
        found.append(sampling(teacher, 2 * length, task.example_tokens, stage="asking the teacher", **where))
    return found


def variants(config: Config) -> dict[str, dict[str, Any]]:
    """The change of every ablation against `config`, by name. What the settings already say is left out."""
    shows = config.show_wrong_answer
    # Where new examples may be followed by newer ones, a seed's are bounded by what it could have had without.
    most = config.max_per_seed or given(config.per_wrong) * max(1, given(config.rounds) - 1)
    every = {
        FULL: {},
        "one-shot": {"mode": "one-shot"},
        "continued training": {"init": "continue"},
        "new examples augmented too": {"augment_from": "all", "max_per_seed": most},
        "wrong answer hidden" if shows else "wrong answer shown": {"show_wrong_answer": not shows},
        "earlier questions shown": {"show_earlier": 3},
        "out-of-fold mistakes": {"detect": "out-of-fold"},
    }
    if config.pool is not None:  # it reads no requests
        shown = {"show_wrong_answer", "show_earlier"}
        every = {name: change for name, change in every.items() if not shown & change.keys()}
    if config.target not in ("wrong", "low-confidence"):
        del every["out-of-fold mistakes"]
    same = [n for n, change in every.items() if change and all(getattr(config, k) == v for k, v in change.items())]
    return {name: change for name, change in every.items() if name not in same}


def variant(config: Config, name: str) -> Config:
    """The settings of one variant: the controls are matched to the full method and stand beside it alone."""
    arms = CONTROLS if name == FULL else ("llm2llm",)
    return dataclasses.replace(config, **variants(config)[name], sweep=False, arms=arms).resolved()


def sweep_plan(config: Config) -> list[tuple[str, str]]:
    """What a sweep will do at most."""
    lines = [line for line in plan(config) if not line[1].startswith(("at most", "about"))]
    for name in variants(config):
        for arm, what in plan(variant(config, name)):
            if arm in CONTROLS:
                lines.append((name if arm == "llm2llm" else f"{name}: {arm}", what))
    return lines
