"""Reading rows from JSONL, CSV, TSV and Parquet files, with the place of every row for error messages."""

import csv
import itertools
import json
import math
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from common.characters import broken, mended
from common.errors import UserError, in_one_line

Row = dict[str, Any]


def read_rows(file: pathlib.Path) -> list[tuple[Row, str]]:
    """All rows of a file with their places ("FILE row 3"). The suffix tells the format: .jsonl, .json (one
    list, or lines), .csv, .tsv, .parquet.

    Raises UserError for a missing, empty, unreadable or unknown file, naming the row where there is one.
    """
    return list(stream_rows(file))


def stream_rows(file: pathlib.Path, mend: bool = False) -> Iterator[tuple[Row, str]]:
    """The same row by row, for files that do not fit into memory (a .json list is read at once). Errors come when
    their row does. `mend`: half characters and NUL are replaced, where other rows are refused for them."""
    if not file.is_file():
        raise UserError(f"no such file: {file}")
    reader = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": _delimited,
        ".tsv": _delimited,
        ".parquet": _parquet,
    }.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{file}: unknown format {file.suffix!r}: use .jsonl, .json, .csv, .tsv or .parquet")
    i = 0
    try:
        for i, row in enumerate(reader(file), start=1):
            place = f"{file} row {i}"
            yield (mended(row) if mend else sound(row, place)), place
    except UserError:
        raise
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text: convert it to UTF-8") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): fix its permissions") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, endless nesting
        raise UserError(f"{file}: a value in it cannot be read ({in_one_line(error)})") from None
    if not i:
        raise UserError(f"{file} is empty: it needs at least one row")


def sound(row: Row, place: str) -> Row:
    """`row`. Raises UserError, naming the field, for half a character or NUL in any of its texts."""
    for field, value in _object(row, place).items():
        if fault := broken(field) or broken(value):
            raise UserError(f"{place}: field {field!r} holds {fault}: repair the text")
    return row


def require(row: Row, field: str, place: str) -> str:
    """The text of a field. Raises UserError if it is missing, blank, infinite, or no text or number."""
    value = row.get(field)
    if value is None or value != value:  # NaN is how tables say that nothing is there
        raise UserError(f"{place}: field {field!r} is missing; the row has {', '.join(map(str, row)) or 'none'}")
    if not isinstance(value, str | int | float):
        raise UserError(f"{place}: field {field!r} is a {type(value).__name__}: it must be a text or a number")
    text = str(value).lower() if isinstance(value, bool) else str(value).strip()
    if not text:
        raise UserError(f"{place}: field {field!r} is empty")
    if isinstance(value, float) and math.isinf(value):
        raise UserError(f"{place}: field {field!r} is infinite: it must be a text or a finite number")
    return text


def one_way(text: str) -> str:
    """A name as it is compared: "é" as one character, however Unicode writes it (NFC), and single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_column(file: pathlib.Path, rows: Sequence[tuple[Row, str]], column: str, flag: str) -> None:
    """Raises UserError for a column that no row of `file` has: `flag` names another."""
    if not any(column in row for row, _ in rows):
        names = ", ".join(map(str, rows[0][0])) or "none"
        raise UserError(f"{file} has no column {column!r}: name yours with {flag}; there are {names}")


def row_id(row: Row, otherwise: str) -> str:
    """The row's own id, or `otherwise` where it has none."""
    given = row.get("id")
    return otherwise if given is None or not str(given).strip() else str(given).strip()


def check_ids(examples: Sequence[Any]) -> None:
    """Raises UserError when two examples share an id: answers are seeded and stored by it."""
    seen: dict[str, str] = {}
    for example in examples:
        if example.id in seen:
            where = example.place or example.id
            raise UserError(f"{where}: id {example.id!r} is also that of {seen[example.id]}: ids must differ")
        seen[example.id] = example.place or "an earlier row"


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{place}: not an object with named fields")
    return value


def _jsonl(file: pathlib.Path) -> Iterator[Row]:
    # Some editors write a byte order mark, which JSON does not allow.
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{file} line {number}: not JSON ({error.msg})") from None
            yield _object(value, f"{file} line {number}")


def _json(file: pathlib.Path) -> Iterator[Row]:
    text = file.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        yield from _jsonl(file)
        return
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file} line {error.lineno}: not JSON ({error.msg})") from None
    for i, value in enumerate(values, start=1):
        yield _object(value, f"{file} row {i}")


_FIX = 'enclose such a cell in quotes and write every quote in it twice (""), or use .jsonl'


def _delimited(file: pathlib.Path) -> Iterator[Row]:
    """Rows under a header; columns that a row leaves out at its end are None.

    In .tsv a quote is a character like any other. In .csv it may enclose a cell of one line. A cell of several
    lines is refused: it cannot be told from rows that a stray quote has joined, which would get a wrong label.
    """
    taken: list[str] = []  # the lines of the row that is being read
    header: list[str] = []
    # newline: csv reads line breaks itself, those within quotes among them.
    with file.open(encoding="utf-8-sig", newline="") as lines:
        noted = (taken.append(line) or line for line in lines)
        if file.suffix.lower() == ".tsv":
            reader = csv.reader(noted, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            # Strict, or a quote in the wrong place would pass for text.
            reader = csv.reader(noted, strict=True)
        for i in itertools.count():
            place = f"{file} row {i}" if i else f"{file}, header"
            taken.clear()
            try:
                cells = next(cells for cells in reader if cells or taken.clear())  # none but blank lines
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(f"{place}: {_said_plainly(error)}") from None
            header = header or cells
            if len(cells) > len(header):
                raise UserError(f"{place}: more cells than the header has columns")
            if len(taken) > 1:
                raise UserError(
                    f"{place}: a quote joins {len(taken)} lines to one cell: write a quote that belongs to a text "
                    'twice (""); keep texts of several lines in .jsonl or .parquet'
                )
            if i:
                yield dict(itertools.zip_longest(header, cells))
            elif twice := next((name for name in header if name and header.count(name) > 1), None):
                raise UserError(f"{place}: column {twice!r} comes twice: names must differ")


def _said_plainly(error: csv.Error) -> str:
    """What is wrong with a row that is not valid CSV."""
    said = str(error)
    if "unexpected end" in said:
        return f"a quote opens a cell and is not closed ({said}): {_FIX}"
    if "field limit" in said:
        return f"a cell is too long, maybe because a closing quote is missing ({said}): {_FIX}"
    if "expected after" in said:
        return f"a quoted cell goes on after its end ({said}): {_FIX}"
    return f"not readable as CSV ({said})"


def _parquet(file: pathlib.Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable Parquet file ({in_one_line(error)})") from None
