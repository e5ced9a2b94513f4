"""Charts made by hand, as HTML with SVG in it: estimates with their intervals, and which class is taken for which.

    html = dots({"fine-tune": fine_tune, "llm2llm": llm2llm}, "test accuracy, %", "higher", ours=["llm2llm"])
    html = confusion([("positive", "negative"), …], ["negative", "positive"])

Both keep their size of text at any width, and take the colour of the text around them: they are readable on a
light and on a dark ground. `STYLE` goes with them. What is given is escaped, and what hides or reorders text is
spelled out.
"""

import html
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from common.results.axes import ANY, POINTS, SHARE, axis, marks
from common.results.estimate import Estimate
from common.results.plots import BAD, GOOD, INK, PALETTE
from common.results.tables import visible

OURS = PALETTE[0]
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
STYLE = f"""\
.chart {{ max-width: 40rem; margin: 0 auto; font: .875rem/1.35 {_FONT}; }}
.chart > svg {{ display: block; width: 100%; height: auto; }}
.chart text {{ font-family: {_FONT} !important; }}
.dots .row {{ display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin-top: .5rem; }}
.dots .value {{ font-variant-numeric: tabular-nums; margin-left: auto; }}
.dots .ours {{ font-weight: 600; }}
.dots svg {{ display: block; width: 100%; height: 16px; overflow: visible; }}
.dots .axis {{ height: 20px; font-size: 12px; }}
.dots p {{ margin: .1rem 0 0; text-align: center; font-size: .8125rem; opacity: .8; }}
.heat {{ max-width: none; overflow-x: auto; }}
.heat table {{ border-collapse: separate; border-spacing: 2px; width: auto; margin: 0 auto; font-size: .875rem; }}
.heat th, .heat td {{ border: 0; padding: .35rem .5rem; text-align: center; white-space: nowrap; }}
.heat tbody th {{ text-align: right; }}
.heat p {{ margin: .4rem 0 0; text-align: center; font-size: .8125rem; opacity: .8; }}
"""
"""What the charts look like; of a page and of a notebook."""
CLASSES = 12
"""Classes that a matrix shows: with more it cannot be read."""
_LEFT, _WIDTH = 2.0, 96.0  # of the axis, in per cent: a mark at its end has room


def dots(
    rows: Mapping[str, Estimate],
    label: str,
    better: Literal["higher", "lower"] | None = None,
    ours: Collection[str] = (),
    scale: float = 1.0,
    line: float | None = None,
    decimals: int = 1,
    signed: bool = False,
    colours: Mapping[str, str] | None = None,
) -> str:
    """A dot for each estimate, and a whisker for its 95% interval. `label`: what is measured; `better`: which way
    is good, None where neither is. `ours`: names that stand out from what they are compared with. Values are
    multiplied by `scale`; by 100 they are shares, or differences of shares where they are `signed`. `line`: a
    value that is marked, such as 0 for differences. `colours`: those that names have on the whole page; of others
    `ours` have one, what they are compared with none."""
    known = [x for e in rows.values() if e.value is not None for x in (e.value, *(e.ci95 or ()))]
    kind = ANY if scale != 100 else POINTS if signed else SHARE
    low, high, step = axis([scale * x for x in known] + ([] if line is None else [scale * line]), kind)
    place = lambda x: f"{_LEFT + _WIDTH * (x - low) / (high - low):.2f}%"
    ticks = marks(low, high, step)
    behind = "".join(_line(place(x), place(x), 0, 16, "currentColor", 1, 'opacity="0.15"') for x, _ in ticks)
    if line is not None:
        dashed = 'stroke-dasharray="3 3" opacity="0.7"'
        behind += _line(place(scale * line), place(scale * line), 0, 16, "currentColor", 1, dashed)
    parts = []
    for name, entry in rows.items():
        row = "row ours" if name in ours else "row"
        shown = _value(entry, scale, decimals, signed)
        parts.append(f'<div class="{row}"><span>{_text(name)}</span><span class="value">{shown}</span></div>')
        colour = (colours or {}).get(name, OURS if name in ours else INK)
        dot = _dot(entry, name in ours, colour, lambda x: place(scale * x))
        parts.append(f'<svg aria-hidden="true">{behind}{dot}</svg>')
    numbers = "".join(
        f'<text x="{place(x)}" y="14" text-anchor="middle" fill="currentColor">{number}</text>'
        for x, number in ticks
    )
    parts.append(f'<svg class="axis" aria-hidden="true">{numbers}</svg>')
    way = {"higher": " (higher is better →)", "lower": " (← lower is better)", None: ""}[better]
    return f'<div class="chart dots">{"".join(parts)}<p>{_text(label)}{way}</p></div>'


def _dot(entry: Estimate, is_ours: bool, colour: str, place: Callable[[float], str]) -> str:
    if entry.value is None:
        return ""
    width = 3 if is_ours else 1.5
    whisker = ""
    if entry.ci95 is not None:
        low, high = map(place, entry.ci95)
        whisker = _line(low, high, 8, 8, colour, width)
        whisker += "".join(_line(end, end, 4, 12, colour, width) for end in (low, high))
    # What ours is compared with is hollow, so that the two are told apart without colour.
    fill = colour if is_ours else "var(--ground, transparent)"
    ring = f'fill="{fill}" stroke="{colour}" stroke-width="2"'
    return f'{whisker}<circle cx="{place(entry.value)}" cy="8" r="5" {ring}/>'


def _line(x1: str, x2: str, y1: float, y2: float, colour: str, width: float, more: str = "") -> str:
    ends = f'x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"{" " + more if more else ""}/>'


def _value(entry: Estimate, scale: float, decimals: int, signed: bool) -> str:
    """ "84.0 [79.1, 88.9]"."""
    if entry.value is None:
        return "not defined"
    number = lambda x: f"{scale * x:{'+' if signed else ''}.{decimals}f}"
    within = " (no interval)" if entry.ci95 is None else f" [{', '.join(map(number, entry.ci95))}]"
    return number(entry.value) + within


def confusion(pairs: Sequence[tuple[str, str | None]], classes: Sequence[str]) -> str:
    """A heat table of (class, answer) `pairs`: a row for each class, a column for what was answered, with the
    number of answers and their share of the row as shade. The right ones lie on the diagonal. An answer that is
    none of `classes` counts as "other"; of many classes the `CLASSES` most frequent ones are shown."""
    counts = Counter((label, answer if answer in classes else None) for label, answer in pairs)
    totals = Counter(label for label, _ in pairs)
    shown = [name for name in classes if totals[name] or any(counts[row, name] for row in classes)]
    if len(shown) > CLASSES:
        most = {name for name, _ in totals.most_common(CLASSES)}
        shown = [name for name in shown if name in most]
    other = lambda row: totals[row] - sum(counts[row, name] for name in shown)
    has_other = any(other(row) for row in shown)
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in [*shown, *(["other"] if has_other else [])])
    body = ""
    for row in shown:
        cells = [(counts[row, name], GOOD if name == row else BAD) for name in shown]
        cells += [(other(row), BAD)] if has_other else []
        body += f'<tr><th scope="row">{_text(row)}</th>{"".join(_cell(*c, totals[row]) for c in cells)}</tr>'
    left = len(classes) - len(shown)
    note = "rows: the right class; columns: what was answered; shade: share of the row"
    if has_other:
        note += "; other: no class, or none of those shown"
    note += f"; {left} classes are not shown" if left and len(shown) == CLASSES else ""
    return (
        f'<div class="chart heat" tabindex="0"><table><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table><p>{note}</p></div>"
    )


def _cell(count: int, colour: str, total: int) -> str:
    share = count / total if total else 0.0
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    # Half of the colour at most, so that the text stays readable on both grounds.
    return f'<td style="background: rgba({red}, {green}, {blue}, {0.5 * share:.3f})">{count}</td>'


def _text(text: str) -> str:
    return html.escape(visible(str(text)))
