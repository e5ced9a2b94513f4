"""What every finished run reports, whatever the method: tables, a verdict, warnings, and where the files are.

    conclude(run, Conclusion(summary, tables, page, warnings, verdict([("llm2llm", "fine-tune-matched", gain)])))

Verdict and warnings are data: they appear in the terminal, on the page and in summary.json.
"""

import contextlib
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from common.cli import CALL, item
from common.progress import stage
from common.results.charts import dots
from common.results.estimate import ArmResult, Estimate, Gain, as_json, wide
from common.results.files import read_json, write_json
from common.results.mirror import shown
from common.results.origin import facts
from common.results.plots import stacked_bar_figure
from common.results.report import Report
from common.results.rundir import TIMES, RunDir, damaged_outputs
from common.results.tables import percent_interval
from common.results.times import DRAWING, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure


T = TypeVar("T")

TELLS = 0.05
"""A difference of shares that a test should be able to tell."""
LEAST = 20
"""Items below which nothing is shown. Of 20 Wilson's interval of a share of one half is 40 points wide; of fewer a
bootstrap covers clearly less than 95% (of 10 about 90%), and they may well be alike by chance."""
SUMMARY = "summary.json"
BESIDE = ("config.json", TIMES)
"""What else of a run folder its page names: settings and seconds."""
NOTHING = "Nothing was shown: no arms were compared, or their figures are not defined."


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """`summary`: the figures of summary.json, a dataclass or a mapping. `tables`: what is printed. `warnings`:
    what a reader should know before relying on the figures, a sentence each. `verdict`: what was shown and what
    was not, None where no figure is defined. `products`: what else is in the run folder, by its label. `command`:
    what makes the run again, as far as a command can."""

    summary: Any
    tables: str
    page: Report
    warnings: Sequence[str] = ()
    verdict: str | None = None
    products: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str | None = None


def conclude(run: RunDir, found: Conclusion) -> dict[str, Any]:
    """Store page and summary, the summary last, print what was found, and return what summary.json holds."""
    files = {"report": "report.html", "figures": SUMMARY} | dict(found.products)
    told = {
        "verdict": _with(found.verdict or NOTHING, found.warnings),
        "warnings": list(found.warnings),
        "files": files,
    }
    summary = as_json(found.summary) | told
    found.page.lead(told["verdict"], found.warnings)
    found.page.chapter("How it was made")
    beside = {name: name for name in BESIDE}
    picture = (
        DRAWING,
        "How long it took",
        f"The picture {DRAWING} is not beside this page; {TIMES} has the seconds.",
    )
    found.page.add_origin("Command, versions, files", found.command, facts(), files | beside, picture)
    with stage("report"):
        draw(run)
        found.page.write(run.path / "report.html")
    for place in files.values():
        # The summary comes last; what is cut of it does not read.
        if place != SUMMARY and (run.path / place).exists():
            run.note(place, output=True)
    run.settle()
    write_json(run.path / SUMMARY, summary)
    print(f"\n{found.tables.strip()}")
    tell(run.path, summary)
    return summary


def _with(said: str, warnings: Sequence[str]) -> str:
    """A verdict that does not stand without its warnings."""
    return f"{said} To be read with {counted(len(warnings), 'warning')}." if warnings else said


def tell(folder: pathlib.Path, summary: Mapping[str, Any]) -> None:
    """Print warnings, verdict and files of a finished run."""
    if summary["warnings"]:
        print("\n" + "\n".join(item("warning: ", warning, 9) for warning in summary["warnings"]))
    print(f"\n{item('', summary['verdict'])}")
    print("\n" + "\n".join(f"{name}: {shown(folder / place)}" for name, place in summary["files"].items()))
    print(f"what the figures mean: {CALL} metrics")


def finished(folder: pathlib.Path) -> dict[str, Any] | None:
    """What `conclude` gave of the run in `folder`, where it is complete and all of its files are there."""
    with contextlib.suppress(OSError, ValueError):
        summary = read_json(folder / SUMMARY, ("status", "files", "verdict", "warnings"))
        files, warnings = summary["files"], summary["warnings"]
        if not (isinstance(files, dict) and isinstance(warnings, list) and isinstance(summary["verdict"], str)):
            return None
        if not all(isinstance(text, str) for text in (*files.values(), *warnings)):
            return None
        there = lambda place: (folder / place).is_file() or any((folder / place).iterdir())
        whole = all(map(there, summary["files"].values())) and not damaged_outputs(folder)
        if summary["status"] == "complete" and whole:
            return summary
    return None


Compared = tuple[str, str, Estimate]
"""What is compared with what, and the lead of the first."""


def verdict(
    compared: Sequence[Compared],
    unit: str = "points",
    scale: float = 100,
    decimals: int = 1,
    ways: tuple[str, str] = ("ahead of", "behind"),
    over: str = "repeats",
    items: str = "questions",
) -> str | None:
    """One sentence: of each comparison whether it is shown or not, with its interval; None where nothing is
    defined. `unit` is that of `scale` times the value. `ways`: what the first is with a higher and with a lower
    value, where more is not better. `over`: what `ci95` is over, which is repeats of a training unless nothing
    was trained; `items`: what the bootstrap of one repeat is over.

    Only an interval over repeats covers other seeds; the bootstrap of one repeat covers other questions alone.
    Nothing is shown by fewer than `LEAST` items, nor by an interval without width.
    """
    shown: list[str] = []
    level: list[str] = []
    one, told = False, set[str]()

    def interval(gain: Estimate, within: tuple[float, float], before: str, article: str = "") -> str:
        """With what it is over; that is said once."""
        what, size = (over if gain.ci95 is not None else items), _interval(within, scale, decimals)
        if isinstance(gain, Gain) and gain.ci95 == gain.bootstrap95:  # as the repeats were all alike
            what = f"{over} and {items}"
        known = what in told
        told.add(what)
        return f" {size}" if known else f"{before}{article}95% interval over {what} {size}"

    # What is shown comes first, so that it has the words.
    for ours, theirs, gain in sorted(compared, key=lambda c: not _shows(c[2])):
        if gain.value is None:
            continue
        size, within = f"{scale * gain.value:+.{decimals}f} {unit}", _within(gain)
        one = one or (gain.ci95 is None and over == "repeats")
        if doubted := doubt(within, _items(gain), items):
            level.append(f"a difference of {ours} from {theirs}, {size}, as {doubted}")
        elif within is None:
            level.append(f"a difference of {ours} from {theirs}, {size} without an interval")
        elif not _shows(gain):
            around = interval(gain, within, " ", "the ")
            level.append(f"a difference of {ours} from {theirs}, {size}, as{around} contains 0")
        else:
            way = ways[0] if gain.value > 0 else ways[1]
            shown.append(f"{ours} is {way} {theirs} by {size}{interval(gain, within, ', ')}")
    parts = [f"{word}: {'; '.join(own)}" for word, own in (("shown", shown), ("not shown", level)) if own]
    if not parts:
        return None
    said = "; ".join(parts)
    if one:
        return f"Within this one training (3 repeats would tell of other random seeds), {said}."
    return f"{said[0].upper()}{said[1:]}."


def lost(gain: Estimate) -> bool:
    """Whether it is shown to be below 0: a verdict leaves out no loss."""
    within = _within(gain)
    return within is not None and within[1] < 0 and _shows(gain)


def doubt(within: tuple[float, float] | None, count: int | None, items: str = "items") -> str | None:
    """Why an interval proves nothing, whatever it holds: fewer than `LEAST` items behind it, or no width."""
    if count is not None and count < LEAST:
        return f"{counted(count, items.removesuffix('s'))} {'is' if count == 1 else 'are'} too few to tell"
    return None if within is None or wide(within) else "an interval without any width proves nothing"


def _shows(gain: Estimate) -> bool:
    """Whether it is shown to be other than 0."""
    within = _within(gain)
    return within is not None and not within[0] <= 0 <= within[1] and doubt(within, _items(gain)) is None


def _items(gain: Estimate) -> int | None:
    return gain.items if isinstance(gain, Gain) else None


def _interval(interval: tuple[float, float], scale: float, decimals: int) -> str:
    low, high = (scale * x for x in interval)
    return f"[{low:+.{decimals}f}, {high:+.{decimals}f}]"


def flat(
    arms: Mapping[str, ArmResult], shown: Callable[[float], str] = lambda value: f"{100 * value:.0f}%"
) -> list[str]:
    """A warning where all arms have none or all of the answers right, or where more than two have one figure:
    nothing can be told from that. `shown`: a figure as it is told."""
    (value, *others) = {arm.value for arm in arms.values()} or {None}
    # Two arms may well meet by chance.
    if others or value is None or len(arms) < 2 or (len(arms) == 2 and value not in (0.0, 1.0)):
        return []
    told = "this test tells nothing apart; take an easier or harder one"
    return [f"every arm is at {shown(value)}: {told}"]


CHECKED = ("a program could check", "of all, %", "of these wrong", "of these, %")
"""Headers of `checked`."""


def checked(total: int, known: int, wrong: int) -> list[Any]:
    """Cells on label noise: of how many of `total` labels a program knows the truth, their share, how many of
    those are wrong, and which share of them. Of the others nothing is known."""
    share = lambda part, of: round(100 * part / of, 1) if of else None
    return [known, share(known, total), wrong, share(wrong, known)]


def coarse(count: int, noun: str) -> list[str]:
    """A warning where `count` items tell a share of right answers less exactly than to `TELLS`, with half of its
    95% interval: 1.96 sqrt(p (1 - p) / n), of the binomial, where it is widest, at p = 1/2."""
    enough = math.ceil(0.25 * (1.96 / TELLS) ** 2)
    if not 0 < count < enough:
        return []
    within = 100 * 1.96 * math.sqrt(0.25 / count)
    return [
        f"only {counted(count, noun)}, which tell a share of right answers to within {within:.1f} points (95%): "
        f"{enough} would tell it to within {100 * TELLS:g}"
    ]


def counted(count: float, noun: str) -> str:
    """ "1 repeat", "3 repeats", "0.5 repeats"."""
    number = f"{count:g}" if isinstance(count, float) else count
    return f"{number} {noun}" if count == 1 else f"{number} {noun}s"


# --- tables of arms and rounds ---------------------------------------------------------------------------------

Column = tuple[str, Callable[[str, ArmResult], Any]]
"""A header, and the cell of an arm by its name and result."""


def arm_table(arms: Mapping[str, ArmResult], columns: Sequence[Column]) -> tuple[list[str], list[list[Any]]]:
    """Headers, and one row for each arm."""
    return ["arm", *(name for name, _ in columns)], [
        [name, *(cell(name, arm) for _, cell in columns)] for name, arm in arms.items()
    ]


def points(gain: Estimate) -> str:
    """A lead in per cent with its interval: over repeats, of one repeat over questions."""
    return percent_interval(dataclasses.replace(gain, ci95=_within(gain)), signed=True)


def _within(gain: Estimate) -> tuple[float, float] | None:
    return gain.ci95 or (gain.bootstrap95 if isinstance(gain, Gain) else None)


def gain_cell(gains: Mapping[str, Estimate], ours: str) -> Callable[[str, ArmResult], str]:
    """The lead of `ours` over an arm as `points`; empty for `ours` itself."""
    return lambda name, arm: points(gains[f"{ours} - {name}"]) if f"{ours} - {name}" in gains else ""


def mean_cell(field: str) -> Callable[[str, ArmResult], int]:
    """The mean over repeats of a field that holds one number a repeat, rounded."""
    return lambda name, arm: round(sum(getattr(arm, field)) / len(getattr(arm, field)))


def arm_dots(
    page: Report,
    arms: Mapping[str, ArmResult],
    gains: Mapping[str, Estimate],
    ours: str,
    on: str,
    leads: str | None = None,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Charts of the arms by a share of right answers, and of the lead of `ours`, or what `leads` calls the gains.
    `on`: what they were measured on; `colours`: those of arms on the whole page."""
    metric = next(iter(arms.values())).metric.replace("_", " ")
    page.add_chart(f"Arms on {on}", dots(arms, f"{metric}, %", "higher", [ours], 100, colours=colours))
    if gains:
        # Of one repeat the interval is over questions, as in the table.
        within = {name: dataclasses.replace(gain, ci95=_within(gain)) for name, gain in gains.items()}
        axis = f"difference in {metric}, points"
        chart = dots(within, axis, "higher", scale=100, line=0, signed=True)
        page.add_chart(f"{leads or f'Lead of {ours}'} on {on}", chart)


def mixed(rows: Iterable[T], kind: Callable[[T], Hashable], count: int) -> list[T]:
    """Up to `count` of `rows`, of all kinds in turn, so that the rare ones are among them."""
    by_kind: dict[Hashable, list[T]] = {}
    for row in rows:
        by_kind.setdefault(kind(row), []).append(row)
    turns = itertools.zip_longest(*by_kind.values())
    return list(itertools.islice((row for turn in turns for row in turn if row is not None), count))


def by_round(
    entries: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float | None]
) -> tuple[list[Any], list[float | None]]:
    """The rounds of `entries` as they appear, and the mean over repeats of each; None where a repeat lacks it."""
    values: dict[Any, list[float | None]] = {}
    for entry in entries:
        values.setdefault(entry["round"], []).append(value(entry))
    means = [None if None in found else sum(found) / len(found) for found in values.values()]  # type: ignore[arg-type]
    return list(values), means


def round_bars(
    entries: Sequence[Mapping[str, Any]],
    kinds: Mapping[str, Callable[[Mapping[str, Any]], int]],
    unit: str,
    colours: Mapping[str, str],
) -> "Figure":
    """A bar for each round, stacked of what its `entries` count of every kind, summed over repeats."""
    numbers = sorted({entry["round"] for entry in entries})
    total = lambda number, count: sum(count(entry) for entry in entries if entry["round"] == number)
    counts = {kind: [total(number, count) for number in numbers] for kind, count in kinds.items()}
    return stacked_bar_figure([f"round {number}" for number in numbers], counts, unit, colours)
