"""Students by teachers: what every student takes over from every source alone (passive inheritance), beside what
selection makes of it.

    python run.py active-inheritance --students A,B --source T,U --run-dir runs/grid

Each cell is a whole run in `RUN_DIR/cells/STUDENT_SOURCE`, with the same prompts, held-out prompts and seeds. A
source answers once for all students. The random arm learns what the source gives, unselected: its difference to
the base is passive inheritance.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from active_inheritance.config import Config
from active_inheritance.experiment import check_plan, load_data, models, run, run_identity
from active_inheritance.sampling import file_of
from active_inheritance.student_figures import LEAST
from active_inheritance.student_report import decimals, interval, percent, short
from common.backends.open import Backend
from common.config import SampleConfig
from common.experiment import carry_out
from common.generate import Record, Request
from common.results.conclusion import Conclusion, counted, verdict
from common.results.estimate import Gain
from common.results.files import read_jsonl
from common.results.plots import heat_figure
from common.results.report import Report
from common.results.rundir import RunDir
from common.results.tables import terminal_table
from common.settings import command, given, idle

STEPS = {"passive": "random - base", "active": "selected - base"}
HEADERS = ["figure", "student", "source", "base", "source's", "passive", "in %", "of the way", "active", "in %"]


def grid(config: Config) -> dict[str, Any]:
    """Carry out (or continue) all cells; returns what `summary.json` of the grid holds."""
    config = config.resolved()
    work = lambda place, _: _cells(place, config)
    # All cells have the same prompts, so what does not fit is found before anything is stored.
    return carry_out(
        "active-inheritance",
        config.run_dir,
        run_identity(config),
        lambda: check_plan(config, load_data(config)),
        work,
        models=models(config),
        told=idle(config, None),
    )


def _cells(place: RunDir, config: Config) -> Conclusion:
    cells: dict[str, dict[str, Any]] = {student: {} for student in config.students}
    prompts: list[int] = []
    for j, source in enumerate(config.source):
        for i, student in enumerate(config.students):
            print(f"\n{student} learns from {source}")
            folder = f"cells/{i}_{j}"
            own = dataclasses.replace(
                config, students=(), student=student, source=(source,), run_dir=str(place.path / folder)
            )
            again = None if i == 0 else {source: _stored(place.path / f"cells/0_{j}")}
            summary = run(own, again)
            prompts.append(summary["student"]["held_out_prompts"])
            cells[student][source] = _cell(summary) | {"run": folder, "warnings": summary["warnings"]}
    result = {
        "schema": 1,
        "method": "active-inheritance",
        "status": "complete",
        "grid": cells,
        "repeats": config.repeats,
    }
    steps = [(s, source, cell) for s, of in cells.items() for source, cell in of.items()]
    warned = [f"{s} from {source}: {line}" for s, source, cell in steps for line in cell["warnings"]]
    return Conclusion(
        result,
        terminal_table(HEADERS, rows(result)),
        _page(config, result),
        warned,
        _verdict(config, steps, min(prompts)),
        command=command("active-inheritance", config),
    )


def _verdict(config: Config, steps: Sequence[tuple[str, str, Mapping[str, Any]]], prompts: int) -> str | None:
    """What every student is shown to take over from every source unselected, in the first objective. `steps`:
    student, source and cell; `prompts`: that each was asked at least."""
    name = next(iter(objective.name for objective in config.objectives))
    compared, size = [], 0.0
    for student, source, cell in steps:
        step = cell["figures"][name]["passive"]
        resampled = step["ci95"] if given(config.repeats) == 1 else None
        ci95 = None if resampled else step["ci95"]
        gain = Gain(value=step["value"], ci95=ci95, bootstrap95=resampled, items=prompts)
        compared.append((f"{student} after answers of {source}", student, gain))
        size = max(size, abs(step["value"] or 0.0))
    return verdict(compared, name, 1, decimals(size), ("above", "below"), items="prompts")


class _Stored:
    """The answers that another cell has of the same source, as a `common.generate.Generator`."""

    name = "stored"

    def __init__(self, file: pathlib.Path):
        self._records = [Record(**row) for row in read_jsonl(file)]

    def generate(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        wanted = {request.id for request in requests}
        yield [record for record in self._records if record.id in wanted]

    def seen(self, records: Sequence[Record]) -> None:
        pass


def _stored(cell: pathlib.Path) -> Backend:
    return lambda cache: contextlib.nullcontext(lambda folder: _Stored(cell / file_of(folder, 0)))


def _cell(summary: Mapping[str, Any]) -> dict[str, Any]:
    """By figure: the base's value, the mean of the source's answers where it is a score of texts, and the steps of
    `STEPS`. "of_the_way": the passive step as a share of the way from the base to the source."""
    found = {}
    for name, base in summary["arms"]["base"]["metrics"].items():
        steps = {kind: summary["gains"][pair]["metrics"][name] for kind, pair in STEPS.items()}
        pool = summary["data"]["scores"][name]
        found[name] = _figure(base["value"], pool["pool"], steps, LEAST * (pool["spread"] or 0.0))
    profile = summary["profile"] or {"arms": {"base": {}}}
    for key, base in profile["arms"]["base"].items():
        steps = {kind: profile["changes"][pair][key] for kind, pair in STEPS.items()}
        values = {
            kind: {
                "value": step["absolute"],
                "ci95": step["ci95"],
                "relative": None if step["relative"] is None else step["relative"] / 100,
            }
            for kind, step in steps.items()
        }
        found[key] = _figure(base["value"], None, values, 0.0)
    return {"figures": found}


def _figure(
    base: float | None, source: float | None, steps: Mapping[str, Mapping[str, Any]], least: float
) -> dict[str, Any]:
    """`least`: a way from base to source that is no longer has no share."""
    kept = {kind: {key: step[key] for key in ("value", "ci95", "relative")} for kind, step in steps.items()}
    way = 0.0 if base is None or source is None else source - base
    share = kept["passive"]["value"] / way if abs(way) > least and kept["passive"]["value"] is not None else None
    return {"base": base, "source": source, **kept, "of_the_way": share}


def rows(result: Mapping[str, Any]) -> list[list[Any]]:
    """A row for every figure of every cell, figure by figure."""
    table = []
    step = lambda entry: [interval(entry["value"], entry["ci95"]), percent(entry["relative"])]
    for name in _names(result):
        for student, of_sources in result["grid"].items():
            for source, cell in of_sources.items():
                entry = cell["figures"][name]
                values, way = [short(entry["base"]), short(entry["source"])], entry["of_the_way"]
                row = [name.replace("/", ": "), student, source, *values, *step(entry["passive"])]
                table.append([*row, None if way is None else f"{way:.2f}", *step(entry["active"])])
    return table


def _names(result: Mapping[str, Any]) -> list[str]:
    first = next(iter(next(iter(result["grid"].values())).values()))
    return list(first["figures"])


def _page(config: Config, result: Mapping[str, Any]) -> Report:
    page = Report(
        f"Students by sources: {', '.join(config.objective)}",
        f"{counted(len(config.students), 'student')}, {counted(len(config.source), 'source')}, "
        f"{counted(given(config.repeats), 'repeat')}, "
        f"seed {config.seed}",
    )
    page.chapter("The grid")
    names = _names(result)
    pairs = [(student, source) for student, of in result["grid"].items() for source in of]
    for kind, caption in (
        ("passive", "Passive: after random answers"),
        ("active", "Active: after selected answers"),
    ):
        values = [[result["grid"][a][b]["figures"][name][kind]["relative"] for a, b in pairs] for name in names]
        labels = [f"{student} ← {source}" for student, source in pairs]
        shown = [[None if v is None else 100 * v for v in row] for row in values]
        page.add_figure(f"{caption}, change from the base in %", heat_figure(shown, names, labels))
    how = (
        "Student's t over repeats"
        if given(config.repeats) > 1
        else "bootstrap over prompts or items, of one training"
    )
    note = (
        f"95% intervals by {how}. Passive: the student after random answers of the source, minus the base. "
        "Active: after selected ones. Source's: the mean over its usable answers to the learned prompts. Of the "
        "way: the passive change as a share of the way from the base to the source; below 0 it moved away. Each "
        "cell's own page lies in cells/."
    )
    page.add_table("Every figure", HEADERS, rows(result), note=note)
    return page
