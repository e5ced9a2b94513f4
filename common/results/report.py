"""One self-contained HTML page about a run, and the table printed at its end.

    report = Report("LLM2LLM", "run demo, seed 0")
    report.add_table("Accuracy", ["arm", "accuracy"], [["fine-tune", 0.61], ["llm2llm", 0.74]])
    report.add_figure("By round", line_figure({"llm2llm": ([0, 1, 2], [0.5, 0.6, 0.7])}, "round", "accuracy"))
    report.add_examples("From mistake to new example", ["failed seed", "answer", "new example"], rows)
    report.write(run.path / "report.html")

The page has no script and loads nothing. All that a model or a user wrote is escaped by the template, and
characters that hide or reorder text are spelled out. The same calls give the same bytes.
"""

import io
import math
import pathlib
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import markupsafe

from common.results.estimate import Estimate
from common.results.files import write_bytes
from common.secret import masked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours (jfly.uni-koeln.de/color), told apart with every common form of colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5F5F5F")
_MARKERS = "osD^vPX"
_HATCHES = ("", "///", "...", "\\\\\\", "xxx")
_INK, _GRID = "#33373d", "#d9dce1"
_SIZE = 9  # points on a drawing 5 inches wide: readable at 320 pixels' width and not clumsy at 640


# --- text ---------------------------------------------------------------------------------------------------


def visible(text: str) -> str:
    """`text` with control, bidirectional and other invisible characters spelled out as [U+202E], and keys masked.

    Newlines and tabs stay, as do the two joiners that scripts and emoji need.
    """
    text = masked(text).replace("\r\n", "\n")
    return "".join(
        f"[U+{ord(c):04X}]"
        if c not in "\n\t\u200c\u200d" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")
        else c
        for c in text
    )


def table_cells(rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    """The cells of a table as text: a dash for None and NaN; floats with as many decimals as their column needs,
    at most three (so `round(x, 1)` shows one), unless they are tiny or huge."""
    columns = [_column_text(column) for column in zip(*rows, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _column_text(values: Sequence[Any]) -> list[str]:
    is_ordinary = lambda value: value == 0 or 1e-3 <= abs(value) < 1e6
    shown = [repr(float(v)) for v in values if isinstance(v, float) and is_ordinary(v)]
    decimals = max((min(3, len(digits.partition(".")[2])) for digits in shown), default=0)

    def text(value: Any) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "–"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float):
            return f"{value:.{decimals}f}" if is_ordinary(value) else f"{value:.3g}"
        return visible(str(value))

    return [text(value) for value in values]


def _numeric_columns(count: int, cells: Sequence[Sequence[str]]) -> list[bool]:
    """Which of `count` columns hold figures and read best aligned to the right."""
    columns = [[row[i] for row in cells if row[i] not in ("", "–")] for i in range(count)]
    return [bool(column) and all(re.match(r"[+\-−±<>≤≥]?\s*\.?\d", c) for c in column) for column in columns]


def terminal_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], width: int | None = None) -> str:
    """Plain text with aligned columns, figures to the right, within `width` places: by default the terminal's, 100
    where there is none. Cells are cut at 60 places.

    Where that is too wide, headers are wrapped, then texts; columns move closer; columns that still have no room
    stand in a further table below, behind the same leading texts. Figures stay whole.
    """
    cells = table_cells(rows)
    to_right = _numeric_columns(len(headers), cells)
    table = [[_one_line(visible(str(cell))) for cell in row] for row in (headers, *cells)]
    columns, room = range(len(headers)), width or shutil.get_terminal_size((100, 24)).columns
    widest = lambda texts: max((_width(text.rstrip()) for text in texts), default=0)
    widths = [widest(row[i] for row in table) for i in columns]
    heads = [widest([*_pieces(table[0][i]), *(row[i] for row in table[1:])]) for i in columns]
    words = [min(20, head, widest(w for row in table for w in _pieces(row[i]))) for i, head in enumerate(heads)]
    least = [head if right else word for head, word, right in zip(heads, words, to_right, strict=True)]
    gap = 1 if sum(least) + len(least) - 1 <= room < sum(least) + 2 * (len(least) - 1) else 2
    for narrow in (heads, least):
        while sum(widths) + gap * (len(columns) - 1) > room and widths != narrow:
            widths[max(columns, key=lambda i: widths[i] if widths[i] > narrow[i] else 0)] -= 1
    leading = [*columns[: max(1, to_right.index(True) if True in to_right else 1)]]
    blocks = [leading]
    for i in columns[len(leading) :]:
        if sum(widths[j] + gap for j in blocks[-1]) + widths[i] > room and blocks[-1] != leading:
            blocks.append(leading)
        blocks[-1] = [*blocks[-1], i]
    return "\n\n".join(_block(table, block, widths, to_right, " " * gap) for block in blocks)


def _block(
    table: Sequence[Sequence[str]],
    columns: Sequence[int],
    widths: Sequence[int],
    to_right: Sequence[bool],
    gap: str,
) -> str:
    """Some columns of a table whose first row is its header, in their widths."""
    lines = []
    for number, row in enumerate(table):
        wrapped = {i: _wrapped(row[i], widths[i]) for i in columns}
        for at in range(max(map(len, wrapped.values()))):
            padded = []
            for i, parts in wrapped.items():
                text = parts[at] if at < len(parts) else ""
                space = " " * (widths[i] - _width(text))
                padded.append(space + text if to_right[i] else text + space)
            lines.append(gap.join(padded).rstrip())
        if number == 0:
            lines.append(gap.join("-" * widths[i] for i in columns))
    return "\n".join(lines)


def _pieces(text: str) -> list[str]:
    """What a text may be wrapped between: words, and their parts between hyphens, slashes, colons, underscores."""
    return re.split(r"(?<=[-/_:])(?=\w)|(?<=\s)(?=\S)", text)


def _wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` places; a piece that is longer is cut."""
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and _width((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [_cut(line.rstrip(), width) for line in lines]


def percent_interval(estimate: Estimate, signed: bool = False) -> str:
    """A share and its interval in per cent, "70.5 [63.2, 77.8]"; a dash for one that is not defined."""
    if estimate.value is None:
        return "–"
    sign = "+" if signed else ""
    shown = f"{100 * estimate.value:{sign}.1f}"
    if estimate.ci95 is None:
        return shown
    low, high = (100 * x for x in estimate.ci95)
    return f"{shown} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _one_line(text: str, limit: int = 60) -> str:
    return _cut(" ".join(text.split()), limit)


def _cut(text: str, limit: int) -> str:
    """`text`, with … for what lies beyond `limit` terminal columns."""
    if _width(text) <= limit:
        return text
    while _width(text) >= limit:
        text = text[:-1]
    return text + "…"


def _width(text: str) -> int:
    """Terminal columns: East Asian wide characters take two, combining marks and joiners none."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


# --- the page -----------------------------------------------------------------------------------------------


class Report:
    """A page under construction: sections appear in the order in which they are added."""

    def __init__(self, title: str, subtitle: str = ""):
        self.title, self.subtitle = title, subtitle
        self._sections: list[dict[str, Any]] = []
        self._verdict: str | None = None
        self._warnings: tuple[str, ...] = ()

    def lead(self, verdict: str | None, warnings: Sequence[str] = ()) -> None:
        """What appears above all sections: what was shown, and what to know before relying on it."""
        self._verdict, self._warnings = verdict, tuple(warnings)

    def add_table(
        self, caption: str, headers: Sequence[str], rows: Sequence[Sequence[Any]], note: str | None = None
    ) -> None:
        """A table; see `table_cells` for how values are shown. Raises ValueError for a row of another length."""
        for row in rows:
            if len(row) != len(headers):
                raise ValueError(f"a row of {len(row)} cells under {len(headers)} headers: {row!r}")
        cells = table_cells(rows)
        numeric = _numeric_columns(len(headers), cells)
        self._add("table", caption, headers=list(map(str, headers)), rows=cells, numeric=numeric, note=note)

    def add_figure(self, caption: str, figure: "Figure") -> None:
        """A matplotlib figure, drawn right away as SVG inside the page."""
        number = sum(section["kind"] == "figure" for section in self._sections) + 1
        self._add("figure", caption, svg=markupsafe.Markup(figure_svg(figure, f"figure{number}")))

    def add_examples(self, caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Texts side by side, one card a column, stacked in a narrow window."""
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"an example of {len(row)} texts under {len(columns)} columns: {row!r}")
        self._add("examples", caption, columns=list(columns), rows=[list(row) for row in rows])

    def _add(self, kind: str, caption: str, **content: Any) -> None:
        self._sections.append({"kind": kind, "caption": caption, **content})

    def html(self) -> str:
        """The whole page."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
            autoescape=True,
            # A name that is missing fails, and leaves no gap in the page.
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            # Every value passes through here before it is escaped, so none can be forgotten.
            finalize=lambda value: value if isinstance(value, markupsafe.Markup) else visible(str(value)),
        )
        lead = {
            "title": self.title,
            "subtitle": self.subtitle,
            "verdict": self._verdict,
            "warnings": self._warnings,
        }
        return environment.get_template("report.html.jinja").render(**lead, sections=self._sections)

    def write(self, path: pathlib.Path) -> None:
        """Store the page atomically. Raises UserError when the disk is full."""
        write_bytes(path, self.html().encode("utf-8"))


# --- figures ------------------------------------------------------------------------------------------------


def figure_svg(figure: "Figure", prefix: str) -> str:
    """`figure` as an <svg> element: same bytes for the same figure, ids that begin with `prefix`, no size of its
    own, no metadata, text as text."""
    import warnings

    import matplotlib

    buffer = io.StringIO()
    # Without a salt of ours matplotlib makes other ids each time.
    with matplotlib.rc_context({"svg.hashsalt": prefix, "svg.fonttype": "none"}), warnings.catch_warnings():
        # The viewer's fonts draw the text, so a glyph that matplotlib's font lacks does no harm.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    svg = visible(buffer.getvalue())
    svg = svg[svg.index("<svg") :]  # without the XML prologue, which has no place in HTML
    head, body = svg.split(">", 1)
    box = re.findall(r'viewBox="[\d. ]+"', head)[0]
    body = re.sub(r'<g id="[^"]*">', "<g>", body)  # names such as axes_1, the same in every figure
    # Ids are the page's: two figures must not have one in common.
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    return f'<svg {box} xmlns:xlink="http://www.w3.org/1999/xlink" role="img">{body.strip()}'


def _axes(xlabel: str, ylabel: str, grid: Sequence[Literal["x", "y"]] = ("y",)) -> tuple["Figure", Any]:
    """A figure with one frameless pair of axes, made without pyplot and its global state. `grid`: the axes
    whose ticks have lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 2.7), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_INK, length=0, labelsize=_SIZE)
    for axis in grid:
        axes.grid(axis=axis, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(_label(xlabel), color=_INK, fontsize=_SIZE, parse_math=False)
    axes.set_ylabel(_label(ylabel), color=_INK, fontsize=_SIZE, parse_math=False)
    return figure, axes


def _colour(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _label(text: str) -> str:
    """One short visible line; matplotlib would leave out of the legend a name that begins with an underscore."""
    text = _one_line(visible(str(text)), 40)
    return " " + text if text.startswith("_") else text


def _legend(figure: "Figure", axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 24 else min(len(labels), 3)
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(labels) / columns))
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, labelcolor=_INK, fontsize=_SIZE
    )
    for text in legend.get_texts():
        # A name with dollar signs is not a formula.
        text.set_parse_math(False)


def line_figure(series: Mapping[str, Sequence[Any]], xlabel: str, ylabel: str) -> "Figure":
    """Curves with markers. `series` maps a name to (x, y) or (x, y, low, high), the latter drawn as a band.

    None and NaN leave a gap. Whole-numbered x, such as rounds, get whole-numbered ticks.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(xlabel, ylabel)
    whole = True
    for i, (name, (x, *ys)) in enumerate(series.items()):
        y, *band = ([math.nan if v is None else float(v) for v in values] for values in ys)
        style = {"color": _colour(i), "linestyle": ("-", "--", ":")[i // len(PALETTE) % 3]}
        # More would run into one another.
        marker = _MARKERS[i % len(_MARKERS)] if len(x) <= 40 else ""
        axes.plot(x, y, label=_label(name), marker=marker, markersize=4, linewidth=1.5, **style)
        if band:
            axes.fill_between(x, *band, color=style["color"], alpha=0.15, linewidth=0)
        whole = whole and all(float(v).is_integer() for v in x)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    if series:
        _legend(figure, axes)
    return figure


def stacked_bar_figure(
    categories: Sequence[str], counts: Mapping[str, Sequence[float]], ylabel: str = ""
) -> "Figure":
    """One bar a category, made of one layer a name in `counts`; each list runs along `categories`."""
    figure, axes = _axes("", ylabel)
    names = [_label(category) for category in categories]
    places = range(len(names))
    base = [0.0] * len(names)
    for i, (name, values) in enumerate(counts.items()):
        style = {"color": _colour(i), "hatch": _HATCHES[i // len(PALETTE) % len(_HATCHES)]}
        axes.bar(places, values, 0.62, base, label=_label(name), edgecolor="white", linewidth=0.6, **style)
        base = [b + v for b, v in zip(base, values, strict=True)]
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, names)) > 48 else {}
    if slanted:
        figure.set_figheight(figure.get_figheight() + 0.05 * max(map(len, names)))
    axes.set_xticks(places, names, parse_math=False, **slanted)
    axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
    if counts:
        _legend(figure, axes)
    return figure


def histogram_figure(series: Mapping[str, Sequence[float | None]], xlabel: str, bins: int = 30) -> "Figure":
    """Outlines of distributions in per cent of each series, over common bins from the 1st to the 99th percentile
    of all; what lies outside is not drawn. None and NaN are left out."""
    import numpy as np

    figure, axes = _axes(xlabel, "%")
    columns = {name: np.array(values, float) for name, values in series.items()}  # None becomes NaN
    shown = {name: finite for name, values in columns.items() if len(finite := values[np.isfinite(values)])}
    if not shown:
        return figure
    low, high = np.quantile(np.concatenate(list(shown.values())), [0.01, 0.99])
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for i, (name, values) in enumerate(shown.items()):
        shares = 100 * np.histogram(values, edges)[0] / len(values)
        linestyle = ("-", "--", "-.", ":")[i % 4]
        axes.stairs(shares, edges, label=_label(name), linewidth=1.6, color=_colour(i), linestyle=linestyle)
        axes.stairs(shares, edges, fill=True, alpha=0.12, color=_colour(i))
    _legend(figure, axes)
    return figure


def scatter_figure(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str
) -> "Figure":
    """Points. The first series, the crowd, is drawn small and grey, the others over it. The 0.5% of the points
    that are farthest out to a side do not set the scale."""
    import numpy as np

    figure, axes = _axes(xlabel, ylabel, grid=("x", "y"))
    for i, (name, (x, y)) in enumerate(series.items()):
        size, alpha, color = (13, 0.75, _colour(i)) if i else (7, 0.45, "#9aa1ab")
        style = {"alpha": alpha, "color": color, "marker": _MARKERS[i % len(_MARKERS)], "linewidths": 0}
        axes.scatter(x, y, size, label=_label(name), **style)
    for n, limits in enumerate((axes.set_xlim, axes.set_ylim)):
        values = np.concatenate([np.asarray(pair[n], float) for pair in series.values()] or [np.zeros(0)])
        if len(values := values[np.isfinite(values)]):
            low, high = np.quantile(values, [0.005, 0.995])
            room = 0.05 * (high - low) or 1.0
            limits(low - room, high + room)
    if series:
        _legend(figure, axes)
    return figure


def share_figure(
    names: Sequence[str], shares: Sequence[float], marks: Sequence[float], labels: Sequence[str]
) -> "Figure":
    """A horizontal bar a name, and a mark to compare it with; `labels` say what bars and marks are, and the
    axis."""
    bars, mark, xlabel = labels
    figure, axes = _axes(xlabel, "", grid=("x",))
    figure.set_figheight(0.9 + 0.24 * len(names))
    places = range(len(names))
    axes.barh(places, shares, 0.62, color=_colour(0), label=_label(bars))
    axes.plot(marks, places, "D", color=_colour(1), markersize=4.5, label=_label(mark))
    axes.set_yticks(places, [_label(name) for name in names], parse_math=False)
    axes.invert_yaxis()
    if names:
        _legend(figure, axes)
    return figure


def heat_figure(values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str]) -> "Figure":
    """A table of signed numbers, coloured by the sign and by the share of the row's largest: rows may have units
    of their own. None is left white."""
    import numpy as np

    figure, axes = _axes("", "", grid=())
    table = np.array(values, np.float64).reshape(len(rows), len(columns))
    largest = np.nanmax(np.abs(np.where(np.isfinite(table), table, 0)), axis=1, keepdims=True)
    shades = np.divide(table, largest, out=np.zeros_like(table), where=largest > 0)
    figure.set_figheight(1.2 + 0.3 * len(rows))
    # No shade is too dark to read on. Rectangles, for an image would be pixels within the drawing.
    axes.pcolormesh(shades, cmap="RdBu_r", vmin=-1.6, vmax=1.6, edgecolors="white", linewidth=1)
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            if math.isfinite(value):
                axes.text(j + 0.5, i + 0.5, f"{value:+.1f}", ha="center", va="center", fontsize=8, color="#111111")
    turned = {"rotation": 20, "ha": "right"} if len(columns) > 2 else {}
    places = [j + 0.5 for j in range(len(columns))]
    axes.set_xticks(places, [_label(name) for name in columns], parse_math=False, **turned)
    axes.set_yticks([i + 0.5 for i in range(len(rows))], [_label(name) for name in rows], parse_math=False)
    axes.invert_yaxis()
    return figure
