"""Defaults that follow the model: one table for all methods, and the reason for each value that it gives.

    kind = kind_of("HuggingFaceTB/SmolLM2-135M-Instruct")
    training(kind, rank=0, examples=60)["learning_rate"]
    # Default(value=0.0001, why="a model of 135M, all weights trained")

Nothing is fetched or loaded: the size of a local checkpoint is read from the headers of its files, that of a model
on the hub from its name. The embedded models have defaults of their own, which stand in each method's
configuration.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from common.backends.open import is_model
from common.errors import UserError
from common.model import checkpoint, smollm2

SMALL = 6e8
"""Parameters below which a model counts as small: 0.5B and what is sold as 0.6B do."""
UPDATES = 8
"""Optimizer updates that a pass over the data should have at least: with fewer, a few passes teach nothing."""
SMALLEST_BATCH = 4
GUARD = 3.0
"""Standard deviations below the mean log-likelihood of the seeds at which a new text is nonsense."""


class Default(NamedTuple):
    """A setting that was left open, and why it has this value."""

    value: Any
    why: str


@dataclasses.dataclass(frozen=True)
class Kind:
    """What defaults follow. `parameters`: None where the name of a model on the hub does not say. `chat`: whether
    it has a chat template; None where that cannot be told without it."""

    embedded: bool = False
    parameters: int | None = None
    chat: bool | None = None

    @property
    def small(self) -> bool:
        return self.parameters is not None and self.parameters < SMALL

    def __str__(self) -> str:
        if self.embedded:
            return "the embedded model"
        what = {True: "a chat model", False: "a base model", None: "a model"}[self.chat]
        return f"{what} of {_short(self.parameters)}" if self.parameters else f"{what} of unknown size"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table. Rates are the schedule's peak; `preference_rate` is that of DPO; `rank` of adapters, 0:
    all weights are trained; `batch` is the largest; `temperature` and `top_p` are for writing new texts."""

    rate: float
    adapter_rate: float
    preference_rate: float
    adapter_preference_rate: float
    epochs: float
    batch: int
    rank: int
    temperature: float
    top_p: float = 0.95


TABLE = {
    "small": Row(1e-4, 5e-4, 5e-6, 5e-5, epochs=4.0, batch=16, rank=0, temperature=0.8),
    "larger": Row(2e-5, 2e-4, 1e-6, 5e-5, epochs=3.0, batch=32, rank=16, temperature=1.0),
}
"""A small model learns from larger steps, and drifts into nonsense where it is sampled hotly."""


def row(kind: Kind) -> Row:
    """What the table says of a model; one of unknown size counts as larger, whose steps are the safer ones."""
    return TABLE["small" if kind.small else "larger"]


def kind_of(name: str) -> Kind:
    """The kind of the model `name`: "embedded", a folder, or an id of the hub. What is no checkpoint is of unknown
    size."""
    if name.partition(":")[0] == "embedded":
        return Kind(embedded=True)
    path = pathlib.Path(os.path.expanduser(name))
    if not is_model(name):
        return Kind()
    if path.exists():
        with contextlib.suppress(UserError):  # the run says what is wrong with it, and with its role
            # Of a GGUF file the folder that stands for it, which every run of it makes.
            folder = checkpoint.resolve(path)
            return Kind(parameters=checkpoint.parameters(folder), chat=checkpoint.has_template(folder))
        return Kind()
    if "+" in name:
        # An adapter is small beside its base.
        return kind_of(checkpoint.split_adapter(name)[0])
    if name == smollm2.NAME:
        return Kind(parameters=smollm2.PARAMETERS, chat=True)
    # Not looked up, where it lies in the cache or not: the defaults of a command must not depend on that.
    size = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([mb])(?![a-z])", name.lower().replace("_", "-"))
    count = None if size is None else int(float(size[1]) * {"m": 1e6, "b": 1e9}[size[2]])
    return Kind(parameters=count, chat=True if re.search(r"(?i)instruct|chat|-it\b", name) else None)


def training(kind: Kind, rank: int, examples: int | None) -> dict[str, Default]:
    """Rate, passes and batch for supervised training of a model on about so many examples (None: unknown, many),
    with adapters of that rank or of all weights."""
    found, how = row(kind), f"adapters of rank {rank}" if rank else "all weights trained"
    epochs = found.epochs + (kind.chat is False)
    why = "which has the template to learn as well" if kind.chat is False else "on few examples"
    batch = found.batch
    while batch > SMALLEST_BATCH and examples is not None and -(-examples // batch) < UPDATES:
        batch //= 2
    count = "many examples" if examples is None else f"{examples} examples"
    return {
        "learning_rate": Default(found.adapter_rate if rank else found.rate, f"{kind}, {how}"),
        "epochs": Default(epochs, f"{kind}, {why}"),
        "batch_size": Default(batch, f"{count}, which should make {UPDATES} updates a pass or more"),
    }


def preferring(kind: Kind, rank: int) -> Default:
    """The rate for preference training of a model with adapters of that rank or of all weights."""
    found, how = row(kind), f"adapters of rank {rank}" if rank else "all weights trained"
    return Default(found.adapter_preference_rate if rank else found.preference_rate, f"DPO of {kind}, {how}")


def adapters(kind: Kind) -> Default:
    """The rank of adapters, 0 for none."""
    found = row(kind)
    why = "trained within the memory of its weights" if found.rank else "small enough to train all weights"
    return Default(found.rank, f"{kind}, {why}")


def writing(kind: Kind) -> dict[str, Default]:
    """Temperature and top-p for a model that writes new texts."""
    found = row(kind)
    drifts = "which drifts into nonsense when sampled hotly" if kind.small else "which varies and stays readable"
    return {
        "temperature": Default(found.temperature, f"{kind}, {drifts}"),
        "top_p": Default(found.top_p, "the tail of unlikely tokens is nonsense"),
    }


def values(defaults: Mapping[str, Default]) -> dict[str, Any]:
    """The bare values."""
    return {name: default.value for name, default in defaults.items()}


def reasons(config: Any, defaults: Mapping[str, Default]) -> list[tuple[str, str]]:
    """A line for every setting of `config` that has its default: its name; value and reason."""
    return [
        (name.replace("_", " "), f"{_shown(default.value)}: {default.why}")
        for name, default in defaults.items()
        if getattr(config, name) == default.value and default.why
    ]


def _shown(value: Any) -> str:
    if not isinstance(value, float) or value >= 1e-2 or not value:
        return f"{value:g}" if isinstance(value, float) else str(value)
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def _short(count: int) -> str:
    return f"{count / 1e9:.2g}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
