"""What the settings of every method have in common: a run's own flags, presets, and hosted models with a budget.

Loads no jax, so that a command line is parsed and checked in well under a second.
"""

import contextlib
import dataclasses
import os
import pathlib
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from common.backends.budget import Budget, Spent
from common.cli import (
    CALL,
    DEVICES,
    LOOP,
    OUTPUT,
    TRAINING,
    check_ranges,
    check_values,
    flag,
    flag_name,
    flag_words,
)
from common.config import LoraConfig, Optimizer, Remat, Schedule, TrainConfig, micro_batch
from common.errors import UserError, meant, quoted
from common.results.hub import Push, check

if TYPE_CHECKING:
    from common.model.meshes import Devices

PRESET = (
    "values for all flags at once: embedded, those of the demonstration; paper, of the published method; "
    "reference-code, of its authors' program. Flags win over it; --preset NAME --help shows them"
)
"""The help of --preset."""
C = TypeVar("C", bound="RunSettings")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Flags of every run. A method's Config inherits them and gives `run_dir` a default of its own."""

    UNSTORED: ClassVar[tuple[str, ...]] = (
        *("run_dir", "dry_run", "mesh", "coordinator", "processes", "process"),
        *("push_to_hub", "hub_public"),
    )
    """Settings that decide no result, so that a run may be continued with others."""

    seed: int = flag(0, "random seed of everything", LOOP)
    run_dir: str = flag("runs/seedloop", "folder or URL of the run; the same command continues it", OUTPUT)
    dry_run: bool = flag(False, "show the plan and stop")
    mesh: str | None = flag(
        None,
        "devices by axis, such as data=2,fsdp=2,tensor=2 (batches; batches and weights; heads); by the models' "
        "size if not given",
        DEVICES,
    )
    coordinator: str | None = flag(
        None,
        "where process 0 is reached; TPU pods, SLURM, Open MPI 4 and (with the package kubernetes) GKE name it by "
        "themselves",
    )
    processes: int | None = flag(None, "how many processes carry out this run, by the same command")
    process: int | None = flag(None, "which of them this one is, from 0")

    def __post_init__(self):
        # A program gives paths, lists, numbers and arrays of numpy, where a command line gives texts, tuples and
        # numbers.
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        # Whether from flags, from a file, or from a program: no setting gets past this.
        check_values(self)

    def held(self) -> dict[str, int]:
        """Models that are in memory at one time, by name, and the bytes that each takes for a parameter."""
        return {}

    def devices(self) -> "Devices":
        """Where the models of the run lie. Raises UserError for a mesh that cannot be."""
        from common.model.meshes import choose

        return choose(self.mesh, self.held())

    def stored(self) -> dict[str, Any]:
        """What the run directory records: everything that decides the results."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in self.UNSTORED}

    def reasons(self) -> list[tuple[str, str]]:
        """Why settings that were left open have the values that `resolved()` gave them, where the model decides
        that: names, and values with reasons."""
        return []

    def idle(self) -> dict[str, str]:
        """Settings that decide nothing beside the others, by what they would have to be given with."""
        return {}


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numbers and arrays of numpy
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubSettings:
    """Flags of runs that leave data sets and a model."""

    push_to_hub: str | None = flag(
        None,
        "what data sets and model are called on the Hub, pushed there when all is done; HF_TOKEN holds the token",
        OUTPUT,
    )
    hub_public: bool = flag(False, "make what is pushed public; private if not given")

    @property
    def push(self) -> Push | None:
        """Where to, None where nothing is pushed."""
        return None if self.push_to_hub is None else Push(self.push_to_hub, self.hub_public)

    def check_push(self, nothing: str | None) -> None:
        """Raises UserError for what cannot be pushed. `nothing`: the flag for which the run leaves nothing to be
        pushed, None where it does leave something."""
        if self.push is None:
            if self.hub_public:
                raise UserError("--hub-public is for --push-to-hub NAME: give both or neither")
            return
        if nothing is not None:
            raise UserError(f"--push-to-hub {self.push_to_hub}: with {nothing} there is nothing to be pushed")
        check(self.push)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Flags of how models are trained, the same in every method and for all its trainings. Rates, epochs and batch
    sizes are the method's own."""

    lora_rank: int | None = flag(None, "rank of adapters, 0 trains all weights; by model if not given", TRAINING)
    lora_alpha: float = flag(16.0, "scale of adapters, over their rank")
    optimizer: Optimizer = flag("adamw", "of all trainings; rmsprop: as in ReverseGen's program")
    schedule: Schedule = flag("cosine", "of the learning rate after its warm-up")
    weight_decay: float = flag(0.0, "of matrices, times the rate")
    clip_norm: float = flag(1.0, "largest norm of a gradient")
    micro_batch_size: int | None = flag(None, "most examples on the device at once; by batch size if not given")
    remat: Remat | None = flag(
        None, "what is computed twice to save memory: nothing, layers (full), or all but products (dots)"
    )
    param_dtype: Literal["float32", "bfloat16"] = flag(
        "float32", "of all weights while they are trained; bfloat16 halves them, rounding at random"
    )

    def train_config(self, rate: float, epochs: float, batch_size: int, **more: Any) -> TrainConfig:
        """A training by these flags, with what differs between trainings. Its seed is the caller's to set."""
        return TrainConfig(
            learning_rate=rate,
            epochs=epochs,
            batch_size=batch_size,
            micro_batch_size=micro_batch(batch_size, self.micro_batch_size),
            schedule=self.schedule,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            remat=self.remat,
            lora=LoraConfig(self.lora_rank, self.lora_alpha) if self.lora_rank else None,
            param_dtype=self.param_dtype,
            **more,
        )

    def idle(self) -> dict[str, str]:
        return {} if self.lora_rank else {"lora_alpha": "--lora-rank above 0"}

    def trained_bytes(self) -> int:
        """Bytes of memory that a model takes for a parameter where it is trained: what is kept to start from, and
        where all weights are trained, their copy, its gradients and two moments in float32."""
        return 2 if self.lora_rank else 18

    def check_training(self) -> None:
        """Raises UserError for a value out of range, and for settings that exclude one another."""
        above = ("lora_alpha", "clip_norm", "micro_batch_size")
        check_ranges(self, above=above, least=("lora_rank", "weight_decay"))
        if self.lora_rank and self.param_dtype != "float32":
            raise UserError(
                f"--param-dtype {self.param_dtype} is for training all weights: with --lora-rank {self.lora_rank} "
                "the weights stay as they are, and adapters are float32"
            )


def filled(config: C, defaults: Mapping[str, Any]) -> C:
    """`config` with those of `defaults` that it leaves open (None)."""
    # None alone counts as open: a setting that was given stays, 0 and False included.
    missing = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def given(value: T | None) -> T:
    """A setting that `resolved()` has filled."""
    assert value is not None, "settings are read before resolved() has filled them"
    return value


def preset(kind: type[C], presets: Mapping[str, Mapping[str, Any]], name: str, settings: Mapping[str, Any]) -> C:
    """The settings of a preset with `settings` in place of its own. Raises UserError for an unknown name."""
    check_preset(presets, name)
    # The later ones win: what is given takes the place of the preset's own.
    return kind(**{**presets[name], **settings, "preset": name})


def command(
    method: str,
    config: RunSettings,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    also: tuple[str, ...] = (),
) -> str:
    """The command that makes a run of the resolved `config` in a folder of its own: with those flags alone that
    differ from the defaults and from what `resolved()` finds by itself. `also`: settings that belong to it though
    the run does not record them."""
    kind = type(config)
    named = getattr(config, "preset", "")
    of_preset = dict((presets or {}).get(named, {}))
    fields = [
        field for field in dataclasses.fields(kind) if field.name not in config.UNSTORED or field.name in also
    ]
    usual = {field.name: of_preset.get(field.name, field.default) for field in fields}
    flags = {name: value for name in usual if (value := getattr(config, name)) not in (None, usual[name])}
    # What is open by default may have been filled: only what comes out otherwise has to be given.
    told = {name: value for name, value in flags.items() if usual[name] is not None}
    try:
        while True:
            found = kind(**{**of_preset, **told}).resolved()  # type: ignore[attr-defined]
            wrong = [name for name in flags if name not in told and getattr(found, name) != flags[name]]
            if not wrong:
                break
            told[wrong[0]] = flags[wrong[0]]
    except UserError:  # it cannot do without a flag that is not told yet
        told = flags
    words = [word for name, value in told.items() for word in flag_words(name, value)]
    return " ".join([CALL, method, *map(shlex.quote, words), "--run-dir", "DIR"])


def idle(config: Any, presets: Mapping[str, Mapping[str, Any]] | None) -> list[tuple[str, str]]:
    """Warnings of settings that were given, by a flag or a program and not by a preset, and decide nothing."""
    of_preset = (presets or {}).get(getattr(config, "preset", ""), {})
    usual = {field.name: of_preset.get(field.name, field.default) for field in dataclasses.fields(config)}
    found = {
        name: wanted for name, wanted in config.idle().items() if getattr(config, name) not in (usual[name], None)
    }
    # Resolved, or in the config.json of a run, every setting has a value: what is found without being given is no
    # one's choice.
    open_ = [name for name in found if usual[name] is None]
    with contextlib.suppress(UserError):
        plain = dataclasses.replace(config, **dict.fromkeys(open_)).resolved()
        chosen = lambda name: name not in open_ or getattr(plain, name) != getattr(config, name)
        found = {name: wanted for name, wanted in found.items() if chosen(name)}
    told = lambda name, wanted: f"{flag_name(name)} changes nothing here: it is for {wanted}"
    return [("warning", told(name, wanted)) for name, wanted in found.items()]


def check_preset(presets: Mapping[str, Any], name: str) -> None:
    """Raises UserError for an unknown name."""
    if name not in presets:
        raise UserError(f"unknown preset {quoted(name)}{meant(name, presets)}; there are {', '.join(presets)}")


def check_files(config: Any, fields: Iterable[str]) -> None:
    """Raises UserError, naming the flag, for a file that is not there. None is left out."""
    for name in fields:
        file = getattr(config, name)
        if file is not None and not pathlib.Path(file).is_file():
            raise UserError(f"no such file: {file} (given as {flag_name(name)})")


def hosted_share(config: Any, role: str, named: Iterable[str], parts: int, tokens: int = 1) -> Budget | None:
    """What each of `parts` accounts may spend on hosted models of `role`, from the settings ROLE_url, budget and
    ROLE_price; None without a budget.

    `named`: the models given for that role; `tokens`: of the shortest of their longest replies. Raises UserError
    for such settings without a hosted one among them, and for a budget or price that cannot be read or shared, or
    whose share covers no reply.
    """
    hosted = any(name.startswith("openai:") for name in named)
    for field in (f"{role}_url", "budget", f"{role}_price"):
        if getattr(config, field) is not None and not hosted:
            raise UserError(f"{flag_name(field)} is for a hosted {role}: use it with --{role} openai:MODEL")
    price = getattr(config, f"{role}_price")
    if price is not None:
        # Without a budget nothing else reads the price, and a wrong one would pass.
        Budget.parse("calls=1", price)
    if config.budget is None:
        return None
    share = Budget.parse(config.budget, price).share(parts)
    share.check(Spent(1, 1, tokens), f"one reply of a {role}")
    return share
