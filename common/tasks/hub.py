"""Rows of a task from a file or from the Hugging Face hub."""

import dataclasses
import itertools
import pathlib

from common.errors import UserError, in_one_line
from common.tasks.files import Row, read_rows, require, sound


@dataclasses.dataclass(frozen=True)
class Hub:
    """A data set on the hub. `splits` maps our names of splits to the hub's; what it leaves out is not there."""

    id: str
    config: str | None = None
    splits: tuple[tuple[str, str], ...] = (("train", "train"), ("test", "test"))


def load_rows(name: str, hub: Hub | None, split: str, file: pathlib.Path | None) -> list[tuple[Row, str]]:
    """The rows of a split of task `name` with their places, from `file` if one is given, else from the hub.

    No dev split is not a mistake: [] then. Raises UserError where train or test rows cannot be had.
    """
    if file is not None:
        return read_rows(file)
    if hub is not None and (theirs := dict(hub.splits).get(split)) is not None:
        return _hub_rows(hub, theirs, split)
    if split == "dev":
        return []
    raise UserError(f"task {name} has no {split} data of its own: give --{split}-file FILE")


def require_any(row: Row, columns: tuple[str, ...], place: str) -> str:
    """The text of the first of `columns` that the row has. Raises UserError if it has none, or a blank one."""
    first, *more = columns
    found = next((column for column in columns if column in row), None)
    if found is None and more:
        names = " or ".join(map(repr, columns))
        raise UserError(f"{place}: field {names} is missing; the row has {', '.join(map(str, row)) or 'none'}")
    return require(row, found or first, place)


def _hub_rows(hub: Hub, theirs: str, split: str) -> list[tuple[Row, str]]:
    import datasets

    try:
        table = datasets.load_dataset(hub.id, hub.config, split=theirs)
    except Exception as error:  # the hub's errors differ between versions of its client
        reason = in_one_line(error)
        raise UserError(
            f"cannot fetch data set {hub.id} ({reason}): check the network or give --{split}-file FILE"
        ) from None
    places = (f"{hub.id} {theirs} row {i}" for i in itertools.count(1))
    return [(sound(dict(row), place), place) for row, place in zip(table, places, strict=False)]
