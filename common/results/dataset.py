"""The synthetic data set as a folder that `datasets.load_dataset` opens and the Hub shows with its card.

    card = DatasetCard(title="...", made_by="...", fields={"question": Field("string", "The problem."), ...})
    write_dataset(run.path / "dataset", rows, card)
    datasets.load_dataset("runs/demo/dataset")["train"]

Rows are stored as Parquet: a JSON reader would turn an answer such as "2020-01-02" into a date, and a file without
rows would lose its columns. The file's name depends on its content, because the cache of `load_dataset` identifies
a folder by its name, its card and the names of its files, not by what they hold. All text in the card is plain
text; any Markdown or YAML in it is escaped.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from common.results.files import write_folder
from common.results.report import visible
from common.secret import keys, masked

Dtype = Literal["string", "int64", "float64", "bool"]
_TYPES = {"string": str, "int64": int, "float64": (int, float), "bool": bool}


@dataclasses.dataclass(frozen=True)
class Field:
    """A column: its type and one sentence about it. Every value may be None."""

    dtype: Dtype
    description: str


@dataclasses.dataclass(frozen=True)
class DatasetCard:
    """What the card says. `fields` lists the columns in order."""

    title: str
    made_by: str
    """How the rows were made: method, student, teacher, seed data. Blank lines separate paragraphs."""
    fields: Mapping[str, Field]
    lineage: str
    """How to trace a row to what it was made from."""
    license: str | None = None
    """An SPDX name; None where it depends on models and data of the user's."""
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """How many examples had each outcome; shown in the order given."""


def write_dataset(folder: pathlib.Path, rows: Iterable[Mapping[str, Any]], card: DatasetCard) -> None:
    """Write `folder` with data/train-HASH.parquet and README.md, replacing an earlier one when all is there. HASH
    is the start of the file's SHA-256. Of rows from an iterator only `_GROUP` are in memory at a time.

    A lone surrogate in a text, which no file can hold, becomes U+FFFD; keys are masked. Raises ValueError for a
    row whose names or types are not those of `card.fields`, UserError for a full disk. Zero rows are fine here and
    for Parquet readers; `load_dataset` refuses a split without rows, except with streaming=True.
    """

    def fill(target: pathlib.Path) -> None:
        (target / "data").mkdir()
        unnamed = target / "data" / "train.parquet"
        size = _write_parquet(unnamed, _checked(rows, card.fields), card.fields)
        with unnamed.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()[:8]
        file = unnamed.rename(unnamed.with_stem(f"train-{digest}"))
        text = render_card(card, size, file.relative_to(target).as_posix())
        (target / "README.md").write_text(text, encoding="utf-8", newline="\n")

    write_folder(folder, fill)


_GROUP = 10_000
"""Rows of a Parquet row group."""


def _checked(rows: Iterable[Mapping[str, Any]], fields: Mapping[str, Field]) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(rows, 1):
        if row.keys() != fields.keys():
            odd = ", ".join(sorted(row.keys() ^ fields.keys()))
            raise ValueError(f"row {number} and the card do not have the same fields: {odd}")
        for name, value in row.items():
            dtype = fields[name].dtype
            is_bool = isinstance(value, bool)
            if value is not None and (not isinstance(value, _TYPES[dtype]) or is_bool != (dtype == "bool")):
                raise ValueError(f"row {number}: {name} is {value!r}, not of type {dtype}")
        yield row


def _write_parquet(path: pathlib.Path, rows: Iterable[Mapping[str, Any]], fields: Mapping[str, Field]) -> int:
    """Returns how many rows there were."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    schema = pa.schema([(name, types[field.dtype]) for name, field in fields.items()])
    size, rest, hidden = 0, iter(rows), keys()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        # A row group without rows makes the reader of `datasets` fail.
        while group := list(itertools.islice(rest, _GROUP)):
            columns = [
                pa.array([_encodable(row[name], hidden) for row in group], type=types[field.dtype])
                for name, field in fields.items()
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            size += len(group)
    return size


def _encodable(value: Any, hidden: tuple[str, ...]) -> Any:
    return re.sub("[\ud800-\udfff]", "\ufffd", masked(value, hidden)) if isinstance(value, str) else value


# --- the card -----------------------------------------------------------------------------------------------


def render_card(card: DatasetCard, size: int, file: str) -> str:
    """README.md: YAML front matter, then Markdown. `size` is the number of rows; `file` is where they lie, seen
    from the card."""
    front = {
        "pretty_name": visible(card.title),
        "license": card.license,
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "seedloop"],
        "size_categories": [_size_category(size)],
    }
    # JSON is YAML once the characters that YAML forbids are spelled out, as `visible` does.
    yaml = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in front.items() if value)
    yaml += f'configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: "{file}"\n'
    fields = [(f"`{name}`", field.dtype, _inline(field.description)) for name, field in card.fields.items()]
    parts = [
        f"---\n{yaml}---",
        f"# {_inline(card.title)}",
        f"{size} synthetic {'example' if size == 1 else 'examples'}, one a row, in the split `train`.",
        "## How it was made",
        _paragraphs(card.made_by),
        "## Fields",
        _table(("field", "type", "meaning"), fields),
    ]
    if card.counts:
        counts = [(_inline(reason), f"{count}") for reason, count in card.counts.items()]
        parts += ["## What became of the examples written", _table(("outcome", "examples"), counts)]
    parts += [
        "## Lineage",
        _paragraphs(card.lineage),
        "## Use",
        _USE if size else f"There are no rows. `load_dataset` opens such a split only as a stream.\n\n{_STREAM}",
    ]
    return "\n\n".join(parts) + "\n"


_USE = '```python\nimport datasets\n\nrows = datasets.load_dataset("PATH/TO/THIS/FOLDER", split="train")\n```'
_STREAM = _USE.replace('split="train"', 'split="train", streaming=True')


def _size_category(size: int) -> str:
    """The Hub's names: n<1K, 1K<n<10K, ..."""
    names = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
    return names[bisect.bisect([10**3, 10**4, 10**5, 10**6, 10**7], size)]


def _inline(text: str) -> str:
    """Plain text as one line of Markdown that shows it unchanged, also within a table."""
    text = " ".join(visible(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", text)
    # What would start a list, a heading's underline or a rule at the beginning of a line.
    return re.sub(r"^(\d+)(?=[.)])|^(?=[-+=:])", lambda match: (match[1] or "") + "\\", text)


def _paragraphs(text: str) -> str:
    return "\n\n".join(_inline(part) for part in re.split(r"\n\s*\n", text.strip()))


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
