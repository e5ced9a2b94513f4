"""The synthetic data set as a folder that `datasets.load_dataset` opens and the Hub shows with its card.

    card = DatasetCard(title="...", made_by="...", fields=LEARNED | {"parent": Field("string", "Of whom."), ...})
    write_dataset(run.path / "dataset", rows, card)
    datasets.load_dataset("runs/demo/dataset")["train"]

The columns of `LEARNED` and `PREFERRED` are those that TRL's SFTTrainer and DPOTrainer read as they are: chats as
lists of turns, which a model's own template puts into words.

Rows are stored as Parquet: a JSON reader would turn an answer such as "2020-01-02" into a date, and a file without
rows would lose its columns. The file's name depends on its content, because the cache of `load_dataset` identifies
a folder by its name, its card and the names of its files, not by what they hold. All text in the card is plain
text; any Markdown or YAML in it is escaped.
"""

import bisect
import dataclasses
import hashlib
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from common.generate import Message
from common.results.card import front_matter, inline, paragraphs, table
from common.results.files import write_folder
from common.secret import keys, masked

Dtype = Literal["string", "int64", "float64", "bool", "chat"]
"""chat: turns of a conversation, {"role", "content"} each."""
_TYPES = {"string": str, "int64": int, "float64": (int, float), "bool": bool, "chat": (list, tuple)}


@dataclasses.dataclass(frozen=True)
class Field:
    """A column: its type and one sentence about it. Every value may be None."""

    dtype: Dtype
    description: str


LEARNED = {
    "prompt": Field("chat", "What the model is asked, turn by turn."),
    "completion": Field("chat", "What it learns to reply: one turn."),
}
"""Columns that supervised training reads."""
PREFERRED = {
    "prompt": LEARNED["prompt"],
    "chosen": Field("chat", "The better reply: one turn."),
    "rejected": Field("chat", "The worse reply: one turn."),
}
"""Columns that preference training reads."""


def reply(text: str) -> list[Message]:
    """A text as the turn of a model: the value of a completion, of what is chosen or rejected."""
    return [{"role": "assistant", "content": text}]


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
            fits = isinstance(value, _TYPES[dtype]) and is_bool == (dtype == "bool")
            if value is not None and not (fits and (dtype != "chat" or all(map(_is_turn, value)))):
                raise ValueError(f"row {number}: {name} is {value!r}, not of type {dtype}")
        yield row


def _is_turn(value: Any) -> bool:
    is_turn = isinstance(value, Mapping) and value.keys() == {"role", "content"}
    return is_turn and all(isinstance(text, str) for text in value.values())


def _write_parquet(path: pathlib.Path, rows: Iterable[Mapping[str, Any]], fields: Mapping[str, Field]) -> int:
    """Returns how many rows there were."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    types["chat"] = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
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
    if isinstance(value, list | tuple):
        return [{part: _encodable(text, hidden) for part, text in turn.items()} for turn in value]
    return re.sub("[\ud800-\udfff]", "\ufffd", masked(value, hidden)) if isinstance(value, str) else value


# --- the card -----------------------------------------------------------------------------------------------


def render_card(card: DatasetCard, size: int, file: str) -> str:
    """README.md: YAML front matter, then Markdown. `size` is the number of rows; `file` is where they lie, seen
    from the card."""
    front = {
        "pretty_name": card.title,
        "license": card.license,
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "seedloop"],
        "size_categories": [_size_category(size)],
    }
    yaml = front_matter(front)
    yaml += f'configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: "{file}"\n'
    fields = [(f"`{name}`", field.dtype, inline(field.description)) for name, field in card.fields.items()]
    parts = [
        f"---\n{yaml}---",
        f"# {inline(card.title)}",
        f"{size} synthetic {'example' if size == 1 else 'examples'}, one a row, in the split `train`.",
        "## How it was made",
        paragraphs(card.made_by),
        "## Fields",
        table(("field", "type", "meaning"), fields),
    ]
    if card.counts:
        counts = [(inline(reason), f"{count}") for reason, count in card.counts.items()]
        parts += ["## What became of the examples written", table(("outcome", "examples"), counts)]
    parts += [
        "## Lineage",
        paragraphs(card.lineage),
        "## Use",
        _USE if size else f"There are no rows. `load_dataset` opens such a split only as a stream.\n\n{_STREAM}",
    ]
    for columns, trainer in ((LEARNED, "SFTTrainer"), (PREFERRED, "DPOTrainer")):
        if columns.keys() <= card.fields.keys():
            named = ", ".join(f"`{name}`" for name in columns)
            parts.append(f"TRL's {trainer} reads {named} as they are, and leaves the other columns alone.")
    return "\n\n".join(parts) + "\n"


_USE = '```python\nimport datasets\n\nrows = datasets.load_dataset("PATH/TO/THIS/FOLDER", split="train")\n```'
_STREAM = _USE.replace('split="train"', 'split="train", streaming=True')


def _size_category(size: int) -> str:
    """The Hub's names: n<1K, 1K<n<10K, ..."""
    names = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
    return names[bisect.bisect([10**3, 10**4, 10**5, 10**6, 10**7], size)]
