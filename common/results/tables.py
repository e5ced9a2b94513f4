"""Values and tables as text, the same in the terminal, in cards and on the page.

    print(terminal_table(["arm", "accuracy, %"], [["fine-tune", 61.2], ["llm2llm", percent_interval(estimate)]]))

Nothing that hides or reorders text gets through, and no key.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

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


def terminal_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Plain text with aligned columns, figures to the right. Cells are cut at 60 places."""
    cells = table_cells(rows)
    to_right = numeric_columns(len(headers), cells)
    table = [[one_line(visible(str(cell))) for cell in row] for row in (headers, *cells)]
    widths = [max(_width(row[i]) for row in table) for i in range(len(headers))]

    def line(row: list[str]) -> str:
        padded = []
        for cell, width, right in zip(row, widths, to_right, strict=True):
            space = " " * (width - _width(cell))
            padded.append(space + cell if right else cell + space)
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(table[0]), rule, *(line(row) for row in table[1:])])


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
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _width(text: str) -> int:
    """Terminal columns: East Asian wide characters take two, combining marks and joiners none."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
