"""Drawings of a page by matplotlib, as SVG that takes on the colours of what stands around it.

    svg = figure_svg(line_figure({"llm2llm": ([0, 1, 2], [0.5, 0.6, 0.7])}, "round", "accuracy"), "figure1")

Text and lines of the axes have the colour of the text around the drawing, and the others are told from a light and
from a dark ground. The same calls give the same bytes.

`colours` of a figure are those that names have on the whole page, so that an arm, a model or a source looks the
same in all of its drawings; a name that is not among them takes one that is left.
"""

import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from common.results.axes import ANY, COUNT, SHARE, axis, marks
from common.results.tables import one_line, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# After Okabe and Ito (jfly.uni-koeln.de/color): told apart with every common form of colour blindness, and from a
# light and a dark ground, for which some are a little darker or lighter than theirs. Without their green, which on
# a page of results would say that something is good.
PALETTE = ("#1F7FC0", "#D55E00", "#B8649A", "#B98200", "#3D9DB3", "#808080")
GOOD, BAD = "#2E8B57", "#B3261E"
"""What is right and what is wrong: no arm, model or source has these."""
INK = "currentColor"
"""The colour of the text around a drawing."""
_MARKERS = "osD^vPX"
_HATCHES = ("", "///", "...", "\\\\\\", "xxx")
# Stand-ins, for which `figure_svg` puts what they mean: the colour of text, that thinned, and the ground.
_INK, _GRID, _GROUND = "#010203", "#040506", "#fefdfc"
_MEANT = {
    f"fill: {_INK}": "fill: currentColor",
    f"stroke: {_INK}": "stroke: currentColor",
    f"stroke: {_GRID}": "stroke: currentColor; stroke-opacity: 0.2",
    f"fill: {_GROUND}": "fill: var(--ground, #ffffff)",
    f"stroke: {_GROUND}": "stroke: var(--ground, Canvas)",
}
_NONE: Mapping[str, str] = MappingProxyType({})
_SIZE = 9  # points on a drawing 5 inches wide: readable at 320 pixels' width and not clumsy at 640


def figure_svg(figure: "Figure", prefix: str) -> str:
    """`figure` as an <svg> element: same bytes for the same figure, ids that begin with `prefix`, no size and no
    ground of its own, no metadata, text as text."""
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
    for stand_in, meant in _MEANT.items():
        body = body.replace(stand_in, meant)
    # Ids are the page's: two figures must not have one in common.
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    return f'<svg {box} xmlns:xlink="http://www.w3.org/1999/xlink" role="img">{body.strip()}'


def alone(figure: "Figure", title: str) -> str:
    """`figure` as a file of its own, which a page shows as an image: an image has none of the page's colours, but
    is told whether they are dark. `title`: what is read out."""
    svg = figure_svg(figure, "alone").removeprefix("<svg ")
    dark = "@media (prefers-color-scheme: dark) { :root { color: #e6e9ed; } }"
    style = f":root {{ color: #1d2127; font-family: sans-serif; }} {dark}"
    head, body = svg.split(">", 1)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {head}><title>{title}</title><style>{style}</style>{body}\n'


def _axes(xlabel: str, ylabel: str, grid: Sequence[Literal["x", "y"]] = ("y",)) -> tuple["Figure", Any]:
    """A figure with one frameless pair of axes, made without pyplot and its global state. `grid`: the axes
    whose ticks have lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 2.7), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_INK, length=0, labelsize=_SIZE)
    for side in grid:
        axes.grid(axis=side, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(_label(xlabel), color=_INK, fontsize=_SIZE, parse_math=False)
    axes.set_ylabel(_label(ylabel), color=_INK, fontsize=_SIZE, parse_math=False)
    return figure, axes


def _coloured(names: Iterable[str], known: Mapping[str, str]) -> list[tuple[str, int]]:
    """The colour of each name: its own in `known`, else the next one of the palette that `known` leaves; and how
    often the palette was gone through before."""
    free = [colour for colour in PALETTE if colour not in known.values()] or PALETTE
    places = itertools.count()
    found = []
    for name in names:
        turn, place = (0, None) if name in known else divmod(next(places), len(free))
        colour = known[name] if place is None else free[place]
        found.append((_INK if colour == INK else colour, turn))
    return found


def _label(text: str) -> str:
    """One short visible line; matplotlib would leave out of the legend a name that begins with an underscore."""
    text = one_line(visible(str(text)), 40)
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


def line_figure(
    series: Mapping[str, Sequence[Any]], xlabel: str, ylabel: str, colours: Mapping[str, str] = _NONE
) -> "Figure":
    """Curves with markers. `series` maps a name to (x, y) or (x, y, low, high), the latter drawn as a band.

    None and NaN leave a gap. Whole-numbered x, such as rounds, get whole-numbered ticks, and so do whole-numbered
    y, such as counts. A `ylabel` that ends in % says that y are shares in per cent.
    """
    figure, axes = _axes(xlabel, ylabel)
    whole, drawn, coloured = True, [], _coloured(series, colours)
    for i, (name, (x, *ys)) in enumerate(series.items()):
        y, *band = ([math.nan if v is None else float(v) for v in values] for values in ys)
        colour, turn = coloured[i]
        style = {"color": colour, "linestyle": ("-", "--", ":")[turn % 3]}
        # More would run into one another.
        marker = _MARKERS[i % len(_MARKERS)] if len(x) <= 40 else ""
        # A marker at an end of the axis is drawn whole.
        axes.plot(x, y, label=_label(name), marker=marker, markersize=4, linewidth=1.5, clip_on=False, **style)
        drawn += [value for values in (y, *band) for value in values if math.isfinite(value)]
        if band:
            axes.fill_between(x, *band, color=style["color"], alpha=0.15, linewidth=0)
        whole = whole and all(float(v).is_integer() for v in x)
    if whole:
        _whole(axes.xaxis)
    kind = SHARE if ylabel.endswith("%") else COUNT if all(map(float.is_integer, drawn)) else ANY
    low, high, step = axis(drawn, kind)
    axes.set_ylim(low, high)
    axes.set_yticks(*zip(*marks(low, high, step), strict=True))
    if series:
        _legend(figure, axes)
    return figure


def _whole(axis: Any) -> None:
    """Ticks at whole numbers alone, for what is counted."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))


def stacked_bar_figure(
    categories: Sequence[str],
    counts: Mapping[str, Sequence[float]],
    ylabel: str = "",
    colours: Mapping[str, str] = _NONE,
) -> "Figure":
    """One bar a category, made of one layer a name in `counts`; each list runs along `categories`. Counts that are
    whole numbers get whole-numbered ticks."""
    figure, axes = _axes("", ylabel)
    names = [_label(category) for category in categories]
    places = range(len(names))
    base = [0.0] * len(names)
    for (name, values), (colour, turn) in zip(counts.items(), _coloured(counts, colours), strict=True):
        style = {"color": colour, "hatch": _HATCHES[turn % len(_HATCHES)]}
        axes.bar(places, values, 0.62, base, label=_label(name), edgecolor=_GROUND, linewidth=0.6, **style)
        base = [b + v for b, v in zip(base, values, strict=True)]
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, names)) > 48 else {}
    if slanted:
        figure.set_figheight(figure.get_figheight() + 0.05 * max(map(len, names)))
    axes.set_xticks(places, names, parse_math=False, **slanted)
    axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
    if all(float(value).is_integer() for values in counts.values() for value in values):
        _whole(axes.yaxis)
    if counts:
        _legend(figure, axes)
    return figure


def histogram_figure(
    series: Mapping[str, Sequence[float | None]], xlabel: str, bins: int = 30, colours: Mapping[str, str] = _NONE
) -> "Figure":
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
    for i, ((name, values), (colour, _)) in enumerate(zip(shown.items(), _coloured(shown, colours), strict=True)):
        shares = 100 * np.histogram(values, edges)[0] / len(values)
        linestyle = ("-", "--", "-.", ":")[i % 4]
        axes.stairs(shares, edges, label=_label(name), linewidth=1.6, color=colour, linestyle=linestyle)
        axes.stairs(shares, edges, fill=True, alpha=0.12, color=colour)
    _legend(figure, axes)
    return figure


def scatter_figure(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    colours: Mapping[str, str] = _NONE,
) -> "Figure":
    """Points. The first series, the crowd, is drawn small and faint, the others over it. The 0.5% of the points
    that are farthest out to a side do not set the scale."""
    import numpy as np

    figure, axes = _axes(xlabel, ylabel, grid=("x", "y"))
    for i, ((name, (x, y)), (colour, _)) in enumerate(
        zip(series.items(), _coloured(series, colours), strict=True)
    ):
        size, alpha = (13, 0.75) if i else (7, 0.35)
        style = {"alpha": alpha, "color": colour, "marker": _MARKERS[i % len(_MARKERS)], "linewidths": 0}
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
    names: Sequence[str],
    shares: Sequence[float],
    marks: Sequence[float],
    labels: Sequence[str],
    colours: Mapping[str, str] = _NONE,
) -> "Figure":
    """A horizontal bar a name, and a mark to compare it with; `labels` say what bars and marks are, and the
    axis."""
    bars, mark, xlabel = labels
    (bar_colour, _), (mark_colour, _) = _coloured((bars, mark), colours)
    figure, axes = _axes(xlabel, "", grid=("x",))
    figure.set_figheight(0.9 + 0.24 * len(names))
    places = range(len(names))
    axes.barh(places, shares, 0.62, color=bar_colour, label=_label(bars))
    axes.plot(marks, places, "D", color=mark_colour, markersize=4.5, label=_label(mark))
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
    axes.pcolormesh(shades, cmap="RdBu_r", vmin=-1.6, vmax=1.6, edgecolors=_GROUND, linewidth=1)
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
