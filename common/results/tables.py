"""Values and tables as text, the same in the terminal, in cards and on the page.

    print(terminal_table(["arm", "accuracy, %"], [["fine-tune", 61.2], ["llm2llm", percent_interval(estimate)]]))

Nothing that hides or reorders text gets through, and no key.
"""

import math
import re
import shutil
import unicodedata
from collections.abc import Sequence
from typing import Any

from common.cli import wrapped
from common.results.estimate import Estimate
from common.secret import masked


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


def numeric_columns(count: int, cells: Sequence[Sequence[str]]) -> list[bool]:
    """Which of `count` columns hold figures and read best aligned to the right."""
    columns = [[row[i] for row in cells if row[i] not in ("", "–")] for i in range(count)]
    return [bool(column) and all(re.match(r"[+\-−±<>≤≥]?\s*\.?\d", c) for c in column) for column in columns]


def terminal_table(
    headers: Sequence[str], rows: Sequence[Sequence[Any]], width: int | None = None, note: str | None = None
) -> str:
    """Plain text with aligned columns, figures to the right, within `width` places: by default the terminal's, 100
    where there is none. Cells are cut at 60 places. `note`: what stands below it.

    Where that is too wide, headers are wrapped, then texts; columns move closer; columns that still have no room
    stand in a further table below, behind the same leading texts. Figures stay whole.
    """
    cells = table_cells(rows)
    to_right = numeric_columns(len(headers), cells)
    table = [[one_line(visible(str(cell))) for cell in row] for row in (headers, *cells)]
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
    drawn = [_block(table, block, widths, to_right, " " * gap) for block in blocks]
    return "\n\n".join([*drawn, wrapped("", note)] if note else drawn)


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


def one_line(text: str, limit: int = 60) -> str:
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
