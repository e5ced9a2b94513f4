"""What every finished run reports, whatever the method: tables, a verdict, caveats, and where the files are.

    conclude(run, Conclusion(summary, tables, page, caveats, verdict(gain, "llm2llm", "fine-tune-matched")))

Verdict and caveats are data: they appear in the terminal, on the page and in summary.json.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.results.estimate import ArmResult, Estimate, Gain, as_json
from common.results.files import write_json
from common.results.mirror import shown
from common.results.report import Report, percent_interval, stacked_bar_figure
from common.results.rundir import RunDir

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """`summary`: the figures of summary.json, a dataclass or a mapping. `tables`: what is printed. `caveats`: what
    a reader should know before relying on the figures, a sentence each. `verdict`: what was shown and what was
    not, None where nothing is compared. `products`: what else is in the run folder, by its label.
    `page`: None where the folder holds the page and figures of a later stage, which stay."""

    summary: Any
    tables: str
    page: Report | None
    caveats: Sequence[str] = ()
    verdict: str | None = None
    products: Mapping[str, str] = dataclasses.field(default_factory=dict)


def conclude(run: RunDir, found: Conclusion) -> dict[str, Any]:
    """Store page and summary, the summary last, print what was found, and return what summary.json holds."""
    summary = as_json(found.summary) | {"verdict": found.verdict, "caveats": list(found.caveats)}
    if found.page is not None:
        found.page.lead(found.verdict, found.caveats)
        found.page.write(run.path / "report.html")
        write_json(run.path / "summary.json", summary)
    print(f"\n{found.tables.strip()}\n")
    for caveat in found.caveats:
        print(f"note: {caveat}")
    if found.verdict:
        print(f"\n{found.verdict}")
    places = {"report": "report.html", "figures": "summary.json"} | dict(found.products)
    print("\n" + "   ".join(f"{name}: {shown(run.path / place)}" for name, place in places.items()))
    return summary


def verdict(
    gain: Estimate,
    ours: str,
    theirs: str,
    unit: str = "points",
    scale: float = 100,
    decimals: int = 1,
    ways: tuple[str, str] = ("ahead of", "behind"),
) -> str | None:
    """One sentence: whether `ours` is shown to differ from `theirs`. `unit` is that of `scale` times the value.
    `ways`: what `ours` is with a higher and with a lower value, where more is not better.

    Only an interval over repeats covers other seeds; the bootstrap of one repeat covers other questions alone.
    """
    if gain.value is None:
        return None
    size = f"{scale * gain.value:+.{decimals}f} {unit}"
    if gain.ci95 is None:
        resampled = gain.bootstrap95 if isinstance(gain, Gain) else None
        within = (
            "" if resampled is None else f", 95% interval over questions {_interval(resampled, scale, decimals)}"
        )
        here = f"here {ours} - {theirs} is {size}{within}"
        return f"One training shows nothing of other seeds: {here}; give --repeats 3."
    within = f"95% interval over repeats {_interval(gain.ci95, scale, decimals)}"
    if gain.ci95[0] <= 0 <= gain.ci95[1]:
        return f"Not shown: a difference of {ours} from {theirs}; it is {size}, and the {within} holds 0."
    way = ways[0] if gain.value > 0 else ways[1]
    return f"Shown: {ours} is {way} {theirs} by {size}, {within}."


def _interval(interval: tuple[float, float], scale: float, decimals: int) -> str:
    low, high = (scale * x for x in interval)
    return f"[{low:+.{decimals}f}, {high:+.{decimals}f}]"


def counted(count: int, noun: str) -> str:
    """ "1 repeat", "3 repeats"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# --- tables of arms and rounds ---------------------------------------------------------------------------------

Column = tuple[str, Callable[[str, ArmResult], Any]]
"""A header, and the cell of an arm by its name and result."""


def arm_table(arms: Mapping[str, ArmResult], columns: Sequence[Column]) -> tuple[list[str], list[list[Any]]]:
    """Headers, and one row for each arm."""
    return ["arm", *(name for name, _ in columns)], [
        [name, *(cell(name, arm) for _, cell in columns)] for name, arm in arms.items()
    ]


def gain_cell(gains: Mapping[str, Estimate], ours: str) -> Callable[[str, ArmResult], str]:
    """The lead of `ours` over an arm, in per cent with its interval; empty for `ours` itself."""

    def cell(name: str, arm: ArmResult) -> str:
        gain = gains.get(f"{ours} - {name}")
        return "" if gain is None else percent_interval(gain, signed=True)

    return cell


def mean_cell(field: str) -> Callable[[str, ArmResult], int]:
    """The mean over repeats of a field that holds one number a repeat, rounded."""
    return lambda name, arm: round(sum(getattr(arm, field)) / len(getattr(arm, field)))


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
    entries: Sequence[Mapping[str, Any]], kinds: Mapping[str, Callable[[Mapping[str, Any]], int]], unit: str
) -> "Figure":
    """A bar for each round, stacked of what its `entries` count of every kind, summed over repeats."""
    numbers = sorted({entry["round"] for entry in entries})
    total = lambda number, count: sum(count(entry) for entry in entries if entry["round"] == number)
    counts = {kind: [total(number, count) for number in numbers] for kind, count in kinds.items()}
    return stacked_bar_figure([f"round {number}" for number in numbers], counts, unit)
