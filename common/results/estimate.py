"""Figures with their uncertainty, as typed values.

    ArmResult(metric="accuracy", value=0.61, ci95=(0.55, 0.67), n=500, per_repeat=(0.58, 0.64))
    as_json(result)                              # its entry in summary.json

`ci95` is a 95% interval (low, high), None where there is none; the code that computes it says how.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

UNSTORED = {"stored": False}
"""Metadata of a field that `as_json` always leaves out."""


NO_WIDTH = 1e-9
"""What rounding may leave of no width."""


def wide(interval: Sequence[float]) -> bool:
    """Whether an interval (low, high) has any width. One without comes of values that are all alike; that others
    would be so too it does not prove."""
    return interval[1] - interval[0] > NO_WIDTH


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure, None where it is not defined. `n`: how many items it covers; `per_repeat`: its value in each."""

    value: float | None
    ci95: tuple[float, float] | None
    n: int | None = None
    per_repeat: tuple[float | None, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmResult(Estimate):
    """An arm of an experiment by its main `metric`. Methods add fields of their own."""

    metric: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gain(Estimate):
    """The lead of one arm over another. `bootstrap95`: paired bootstrap over repeats and questions. `items`: how
    many questions or prompts stand behind it, None where that is not known."""

    bootstrap95: tuple[float, float] | None
    items: int | None = dataclasses.field(default=None, metadata=UNSTORED)


def as_json(value: Any) -> Any:
    """Dataclasses, within mappings and sequences, as plain dictionaries. A field that holds its default is left
    out: figures without repeats have no "per_repeat"; so is one that is marked `UNSTORED`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: as_json(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.metadata.get("stored", True)
            and (field.default is dataclasses.MISSING or getattr(value, field.name) != field.default)
        }
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value
