"""Reading rows from JSONL, CSV and Parquet files, with the place of every row for error messages."""

import csv
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from common.errors import UserError

Row = dict[str, Any]


def read_rows(file: pathlib.Path) -> list[tuple[Row, str]]:
    """All rows of a file with their places ("FILE row 3"). The suffix tells the format: .jsonl, .json (one
    list, or lines), .csv, .tsv, .parquet.

    Raises UserError for a missing, empty, unreadable or unknown file, naming the row where there is one.
    """
    if not file.is_file():
        raise UserError(f"no such file: {file}")
    reader = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
    }.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{file}: unknown format {file.suffix!r}: use .jsonl, .json, .csv, .tsv or .parquet")
    try:
        rows = [(row, f"{file} row {i}") for i, row in enumerate(reader(file), start=1)]
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}: convert it to UTF-8") from None
    if not rows:
        raise UserError(f"{file} is empty: it needs at least one row")
    return rows


def require(row: Row, field: str, place: str) -> str:
    """The text of a field. Raises UserError if it is missing or blank."""
    if field not in row or row[field] is None:
        raise UserError(f"{place}: field {field!r} is missing; the row has {', '.join(map(str, row)) or 'none'}")
    text = str(row[field]).strip()
    if not text:
        raise UserError(f"{place}: field {field!r} is empty")
    return text


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{place}: not an object with named fields")
    return value


def _jsonl(file: pathlib.Path) -> Iterator[Row]:
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


def _csv(file: pathlib.Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        for i, row in enumerate(reader, start=1):
            if None in row:
                raise UserError(f"{file} row {i}: more cells than the header has columns")
            yield row


def _parquet(file: pathlib.Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    yield from table.to_pylist()
