"""The ablations of the method in one command: the same run with one switch changed, as one table.

    python run.py llm2llm --sweep --repeats 3 --run-dir runs/sweep

Each variant is a whole run in `RUN_DIR/variants/NAME`, with the same seeds and test questions. From the paper:
iterative against one-shot, from scratch against continued, seeds against all data; from the work after it: what
the teacher is shown, and mistakes found by students that have not seen the question.
"""

import dataclasses
import pathlib
from typing import Any

from common.backends.budget import Budget
from common.backends.open import Purse
from common.results.report import Report, percent_interval, terminal_table
from common.results.rundir import RunDir, read_jsonl, write_json
from common.results.stats import gain
from llm2llm.command import identity, run
from llm2llm.config import Config
from llm2llm.plan import FULL, variant, variants

HEADERS = ["variant", "test accuracy, % [95%]", "minus full method", "examples", "updates", "teacher calls"]


def sweep(config: Config) -> dict[str, Any]:
    """Carry out (or continue) all variants; returns what `summary.json` of the sweep holds."""
    config = config.resolved()
    top = pathlib.Path(config.run_dir)
    entries: dict[str, Any] = {}
    correct: dict[str, list[list[bool]]] = {}
    with RunDir.open(top, "llm2llm", identity(config)) as place:
        for name, change in variants(config).items():
            folder = top / "variants" / name.replace(" ", "-")
            print(f"\n{name}")
            own = dataclasses.replace(variant(config, name), run_dir=str(folder))
            # One store for all: what two variants ask alike is bought once.
            purse = Purse(top / "replies.sqlite", _share(config), f"{name}/")
            summary = run(own, purse=purse)
            for arm, entry in summary["arms"].items():
                label = {"llm2llm": name, "untargeted": "seeds drawn at random"}.get(arm, arm)
                calls = summary["accounting"][arm]["teacher_calls"] / config.repeats
                entries[label] = entry | {"change": change, "teacher_calls": calls}
                rows = [read_jsonl(folder / file) for file in entry["answers"]]
                correct[label] = [[row["correct"] for row in repeat] for repeat in rows]
        entries = {FULL: entries[FULL], **entries}
        result = {
            "schema": 1,
            "method": "llm2llm",
            "status": "complete",
            "task": summary["task"],
            "arms": entries,
            "gains": {f"{name} - {FULL}": _difference(entries, correct, name) for name in entries if name != FULL},
        }
        _page(result, config).write(place.path / "report.html")
        write_json(place.path / "summary.json", result)
    print(f"\nablations, {config.repeats} repeats\n\n{terminal_table(HEADERS, _rows(result))}")
    print(f"\nreport: {top / 'report.html'}   figures: {top / 'summary.json'}")
    return result


def _share(config: Config) -> Budget | None:
    """What each arm of each repeat of each variant may spend."""
    limits = config.limits()
    arms = sum(variant(config, name).teaching_arms for name in variants(config))
    return None if limits is None else limits.share(config.repeats * arms)


def _difference(entries: dict[str, Any], correct: dict[str, list[list[bool]]], name: str) -> dict[str, Any]:
    return gain(entries[name]["per_repeat"], entries[FULL]["per_repeat"], correct[name], correct[FULL])


def _rows(result: dict[str, Any]) -> list[list[Any]]:
    mean = lambda values: round(sum(values) / len(values))
    rows = []
    for name, entry in result["arms"].items():
        gain = result["gains"].get(f"{name} - {FULL}")
        rows.append(
            [
                name,
                percent_interval(entry),
                "" if gain is None else percent_interval(gain, signed=True),
                mean(entry["examples"]),
                mean(entry["updates"]),
                round(entry["teacher_calls"]),
            ]
        )
    return rows


def _page(result: dict[str, Any], config: Config) -> Report:
    page = Report(
        f"Ablations of LLM2LLM on {result['task']}",
        f"student {config.student}, teacher {config.teacher}, {config.seed_examples} seeds, "
        f"{config.repeats} repeats, seed {config.seed}",
    )
    page.add_table(
        "One switch changed at a time",
        HEADERS,
        _rows(result),
        note="Differences are paired by repeat. Budgets differ where the switch makes them differ: look at the "
        "last three columns before reading the first.",
    )
    return page
