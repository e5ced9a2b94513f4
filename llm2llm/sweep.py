"""The ablations of the method in one command: the same run with one switch changed, as one table.

    python run.py llm2llm --sweep --repeats 3 --run-dir runs/sweep

Each variant is a whole run in `RUN_DIR/variants/NAME`, with the same seeds and test questions. From the paper:
iterative against one-shot, from scratch against continued, seeds against all data; from the work after it: what
the teacher is shown, and mistakes found by students that have not seen the question.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from common.backends.open import ReplyCache
from common.experiment import carry_out
from common.results.conclusion import (
    Conclusion,
    arm_dots,
    arm_table,
    coarse,
    counted,
    mean_cell,
    points,
    verdict,
)
from common.results.estimate import ArmResult, Gain, as_json
from common.results.files import read_jsonl
from common.results.report import Report
from common.results.rundir import RunDir
from common.results.stats import gain
from common.results.tables import percent_interval, terminal_table
from common.settings import command, hosted_share, idle
from common.text.glossary import explain
from llm2llm.config import PRESETS, Config
from llm2llm.experiment import check_plan, load_data, models, run, run_identity
from llm2llm.plan import FULL, variant, variants

LABELS = {"untargeted": "seeds drawn at random"}
"""What a control of the full method is called among the variants."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant(ArmResult):
    """One variant; lists hold a value a repeat. `teacher_calls`: of a repeat."""

    examples: list[int]
    updates: list[int]
    teacher_calls: float


def sweep(config: Config) -> dict[str, Any]:
    """Carry out (or continue) all variants; returns what `summary.json` of the sweep holds."""
    config = config.resolved()
    work = lambda place, _: _variants(place, config)
    # All variants have the same data, so what does not fit is found before anything is stored.
    return carry_out(
        "llm2llm",
        config.run_dir,
        run_identity(config),
        lambda: check_plan(config, load_data(config)),
        work,
        models=models(config),
        told=idle(config, PRESETS),
    )


def _variants(place: RunDir, config: Config) -> Conclusion:
    entries: dict[str, dict[str, Any]] = {}
    correct: dict[str, list[list[bool]]] = {}
    warnings: dict[str, list[str]] = {}
    task = ""
    # Every arm of every repeat of every variant has an equal share of the budget.
    shares = config.repeats * sum(variant(config, name).teaching_arms for name in variants(config))
    budget = hosted_share(config, "teacher", [config.teacher], shares)
    for name, change in variants(config).items():
        folder = pathlib.Path("variants") / name.replace(" ", "-")
        print(f"\n{name}")
        own = dataclasses.replace(variant(config, name), run_dir=str(place.path / folder))
        # One reply cache for all: what two variants ask alike is bought once.
        summary = run(own, cache=ReplyCache(place.path / "replies.sqlite", budget, f"{name}/"))
        task, warnings[name] = summary["task"], summary["warnings"]
        for arm, entry in summary["arms"].items():
            label = name if arm == "llm2llm" else str(LABELS.get(arm, arm))
            calls = summary["accounting"][arm]["teacher_calls"] / config.repeats
            entries[label] = entry | {"change": change, "teacher_calls": calls}
            rows = [read_jsonl(place.path / folder / file) for file in entry["answers"]]
            correct[label] = [[row["correct"] for row in repeat] for repeat in rows]
    entries = {FULL: entries[FULL], **entries}
    mine = entries[FULL]["per_repeat"]
    gains = {
        f"{name} - {FULL}": gain(entry["per_repeat"], mine, correct[name], correct[FULL])
        for name, entry in entries.items()
        if name != FULL
    }
    fields = [field.name for field in dataclasses.fields(Variant)]
    found = {name: Variant(**{field: entry[field] for field in fields}) for name, entry in entries.items()}
    table = _table(found, gains)
    tables = f"ablations, {counted(config.repeats, 'repeat')}\n\n{terminal_table(*table)}"
    told = {"schema": 1, "method": "llm2llm", "status": "complete", "task": task, "arms": entries}
    said = verdict([(name, FULL, gains[f"{name} - {FULL}"]) for name in entries if name != FULL])
    # The test is the same for all: what it tells is said once.
    warned = coarse(found[FULL].n or 0, "test question")
    warned += [f"{name}: {warning}" for name, own in warnings.items() for warning in own if warning not in warned]
    page = _page(task, found, gains, table, config)
    made_by = command("llm2llm", config, PRESETS)
    return Conclusion(told | {"gains": as_json(gains)}, tables, page, warned, said, command=made_by)


def _table(found: Mapping[str, Variant], gains: Mapping[str, Gain]) -> tuple[list[str], list[list[Any]]]:
    def ahead(name: str, arm: ArmResult) -> str:
        return "" if name == FULL else points(gains[f"{name} - {FULL}"])

    columns = [
        ("test accuracy, % [95%]", lambda name, arm: percent_interval(arm)),
        ("minus full method [95%]", ahead),
        ("examples", mean_cell("examples")),
        ("updates", mean_cell("updates")),
        ("teacher calls", lambda name, arm: round(found[name].teacher_calls)),
    ]
    headers, rows = arm_table(found, columns)
    return ["variant", *headers[1:]], rows


def _page(
    task: str,
    variants: Mapping[str, ArmResult],
    gains: Mapping[str, Gain],
    table: tuple[list[str], list[list[Any]]],
    config: Config,
) -> Report:
    page = Report(
        f"Ablations of LLM2LLM on {task}",
        f"student {config.student}, teacher {config.teacher}, {config.seed_examples} seeds, "
        f"{counted(config.repeats, 'repeat')}, seed {config.seed}",
    )
    note = (
        "Differences are paired by repeat. Budgets differ where the switch makes them differ: look at the "
        "last three columns before reading the first."
    )
    page.chapter("The variants")
    arm_dots(page, variants, gains, FULL, "held-out questions", "What each switch changes")
    terms = explain("accuracy", "95% interval", "lead", "updates")
    page.add_table("One switch changed at a time", *table, note=note, terms=terms)
    return page
