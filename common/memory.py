"""What a run will need of memory, stage by stage, from shapes alone: before anything is loaded, and without jax.

    model = Model.read("smollm2")
    needs = [sampling(model, prompt=256, answer=256), training(model, settings, length=512)]
    lines = lines_of(needs)                                   # for a plan
    check(needs, available())                                 # UserError with advice where it cannot fit

Sizes are upper estimates of what is held at one time in a stage; every stage lets go of what it alone needs. On
CPU weights and activations are float32, on accelerators bfloat16.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from common import runtime
from common.buckets import (
    KEPT_LOGITS,
    LOGITS,
    MANY_SLOTS,
    PREFILLED,
    SHORTEST,
    SLOTS,
    SMALL_MODEL,
    STREAMED_MODEL,
    bucket,
    finer,
    many_slots_up_to,
    turns,
)
from common.config import ModelConfig, TrainConfig
from common.errors import UserError
from common.mapping import read_object

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from common.model.meshes import Devices

GB = 10**9
PROCESS = {"cpu": 0.5 * GB, "accelerator": 1.0 * GB}
"""What a process has beside its arrays and programs: on CPU Python and its libraries; on an accelerator the
driver's and the compiler's workspace."""
GRADIENT, FORWARD, ADAPTED = 6_500_000, 3_500_000, 1.6
"""Bytes of main memory on CPU that a compiled program takes for each layer of a model, with its backward pass and
without; so many times as much with adapters, which add two products to every one. Measured, see RESULTS.md.
Programs stay until the process has too many of them (`common.runtime.tidy`): a stage has those of earlier ones
beside its own."""
LARGE = 100_000_000
"""Parameters from which layers are recomputed unless the settings say otherwise
(`common.train.loop.REMAT_ABOVE`)."""
SPARE = 2
"""So many times what a run needs has to be free for it to hold on to memory within a stage: a block does not fit
where smaller ones were, so that it holds more than it needs."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Shape and number of parameters of a checkpoint."""

    name: str
    config: ModelConfig
    parameters: int

    @classmethod
    def read(cls, name: str) -> "Model | None":
        """Those of a checkpoint that is on this machine, from its config.json and the heads of its files; None for
        one that is not here yet or is not understood. Nothing is fetched. Raises UserError where a file that the
        checkpoint names is missing."""
        from common.model import checkpoint

        try:
            folder = checkpoint.resolve(name, fetch=False)
        except (UserError, OSError, ValueError):
            return None  # the run says what is wrong
        with checkpoint.opened(name):
            count, config = checkpoint.parameters(folder), _shape(folder)
        return None if count is None or config is None else cls(name, config, count)

    def adapters(self, rank: int) -> int:
        """Parameters of adapters of `rank` beside all matrices of all layers."""
        c = self.config
        D, F, N, K, H = c.hidden_size, c.intermediate_size, c.num_heads, c.num_kv_heads, c.head_dim
        sides = 2 * (D + N * H) + 2 * (D + K * H) + 3 * (D + F)
        return c.num_layers * rank * sides


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes of one stage on one device by what they are for. `forms`: the programs that it compiles, by what two
    stages with the same ones have in common, with their bytes; `program`: those of its largest; `kept`: of what
    programs take beyond that where memory is plenty."""

    stage: str
    parts: Mapping[str, float]
    forms: Mapping[str, float] = dataclasses.field(default_factory=dict)
    program: float = 0.0
    kept: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def held(self) -> float:
        """Bytes where programs and freed memory are kept for what comes next (`common.runtime.reuse_memory`): what
        is there in training for moments is held nearly twice, as a block does not fit where smaller ones were.
        Measured, see RESULTS.md."""
        moments = ("activations", "logits") if "gradients" in self.parts else ()
        return self.total + self.kept + 0.75 * sum(self.parts[name] for name in moments)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in self.parts.items() if size >= GB / 200)
        return f"{self.total / GB:.2f} GB at most, in {self.stage}: {parts}"


def sampling(
    model: Model,
    prompt: int,
    answer: int,
    *,
    stage: str = "sampling",
    device: str = "cpu",
    shards: int = 1,
    rank: int = 0,
    scored: int = 0,
) -> Need:
    """Of answering: weights, twice where they are turned for decoding, adapters beside them, and as many rows of
    cache of prompts and answers of at most so many tokens as decode together, with the logits of a step. `shards`:
    devices that a model is split over. `scored`: texts of up to so many tokens are scored as well, for which there
    are programs of each length."""
    c, size = model.config, _size(device)
    length, count = prompt + answer, SLOTS if device == "cpu" else MANY_SLOTS
    shapes = [(count, bucket(min(length, c.max_positions), 128))]
    if device == "cpu" and (most := many_slots_up_to(model.parameters, c.cached * size)):
        count = MANY_SLOTS  # of the shorter texts
        shapes.append((count, bucket(min(length, most, c.max_positions), 128)))
    # While it grows, and while prompts are copied into it, an old one lies beside the new.
    cache = max(1.5 * slots * rows * c.cached * size for slots, rows in shapes)
    each = 2 * c.intermediate_size + 6 * c.hidden_size
    together = PREFILLED if device == "cpu" else math.inf
    prefill = max(
        min(max(1, slots // 4) * rows, max(rows, together)) * (each + c.num_heads * rows) * size
        for slots, rows in shapes
    )
    streams = 2 if device == "cpu" and model.parameters <= STREAMED_MODEL else 1
    parts = {
        "weights": float(model.parameters * size * (2 if device == "cpu" and turns(model.parameters) else 1)),
        "adapters": 4.0 * model.adapters(rank),
        "cache": streams * cache,
        "activations": float(streams * prefill),
        "logits": streams * 3.0 * count * c.vocab_size * 4,
    }
    programs = 14 if device == "cpu" and model.parameters > SMALL_MODEL else 5  # of more slots and of fewer
    forms = {"sample": programs * FORWARD} | ({"score": 2 * _lengths(1, scored) * FORWARD} if scored else {})
    return _need(stage, parts, model, device, shards, forms, FORWARD, adapted=rank > 0)


def training(
    model: Model,
    settings: TrainConfig,
    length: int,
    *,
    stage: str = "training",
    device: str = "cpu",
    shards: int = 1,
    pairs: bool = False,
    shortest: int = 1,
) -> Need:
    """Of training by `settings` on sequences of `shortest` to `length` tokens, on `pairs` of them twice as many
    rows."""
    c, size = model.config, _size(device)
    length = finer(min(length, settings.max_length, c.max_positions), 64)
    rows = min(settings.micro_batch_size, settings.batch_size) * (2 if pairs else 1)
    tokens, trained = rows * length, model.adapters(settings.lora.rank) if settings.lora else model.parameters
    N, D, F = c.num_heads, c.hidden_size, c.intermediate_size
    heads = (2 * N + 2 * c.num_kv_heads) * c.head_dim
    # What the backward pass of a layer looks at: inputs of products and of norms, gates, attention's weights.
    # Of those, on CPU the causal form keeps each block's alone (`common.model.attention`).
    plain = device == "cpu" and c.score_cap is None and not c.sinks and not c.windows
    layer = tokens * (4 * D + heads + 4 * F) * size + (0.75 if plain else 3) * rows * N * length * length * 4
    remat = settings.remat or ("full" if model.parameters > LARGE else "none")
    products = tokens * (3 * D + heads + 2 * F) * size
    kept = {"none": layer, "full": tokens * D * size, "dots": products}[remat] * c.num_layers
    own = 2 if settings.param_dtype == "bfloat16" and not settings.lora else 4
    moments = {"adamw": 8, "lion": 4, "rmsprop": 4, "adafactor": 0}[settings.optimizer]
    # Half of all positions are predicted, by a wide margin, as prompts are not learned; of pairs all may be.
    predicted = tokens if pairs else max(tokens // 2, 1)
    logits = 3.0 * min(predicted, max(1, LOGITS[device] // c.vocab_size)) * c.vocab_size
    kept_logits = min(predicted * c.vocab_size, KEPT_LOGITS[device])
    if pairs and LOGITS[device] < kept_logits:
        logits += kept_logits  # beside those of one part; on accelerators more than one part is computed again
    parts = {
        "weights": float(model.parameters * size) if settings.lora else 0.0,
        "adapters" if settings.lora else "trained weights": float(own * trained),
        # Added up in float32 over micro-batches, beside those of the last one.
        "gradients": 4.0 * trained * (2 if settings.batch_size > settings.micro_batch_size else 1),
        "optimizer": float(moments * trained),
        "activations": kept + (layer if remat != "none" else 0),
        "logits": logits * 4,
    }
    count = _lengths(shortest, length)
    # With more and with fewer predicted tokens.
    forms = {f"train {rows} {'rows of pairs' if pairs else 'rows'}": 2 * count * GRADIENT}
    forms |= {"score": 2 * count * FORWARD} if pairs else {}  # by the reference
    return _need(stage, parts, model, device, shards, forms, GRADIENT, adapted=settings.lora is not None)


def _shape(folder: pathlib.Path) -> ModelConfig | None:
    """Of a folder's model; None where there is no config.json. Raises UserError, as a run would, for a model that
    is refused."""
    from common.model import families

    with contextlib.suppress(UserError, OSError, ValueError):
        return families.read_config(read_object(folder / "config.json"))
    from common.model.hf import (
        load_config,  # of older files much is left to transformers, which takes seconds to load
    )

    if not (folder / "config.json").is_file():
        return None
    with contextlib.suppress(OSError):
        return load_config(folder)
    return None


def _size(device: str) -> int:
    """Bytes of a number."""
    return 4 if device == "cpu" else 2


def _lengths(shortest: int, longest: int) -> int:
    """How many lengths texts are padded to."""
    return len({finer(length, SHORTEST) for length in range(min(shortest, longest), longest + 1)})


def _need(
    stage: str,
    parts: dict[str, float],
    model: Model,
    device: str,
    shards: int,
    forms: dict[str, int],
    program: int,
    *,
    adapted: bool,
) -> Need:
    shared = {name: size / shards for name, size in parts.items()}
    layers = model.config.num_layers * (ADAPTED if adapted else 1) if device == "cpu" else 0
    compiled = {f"{model.name} {name} {adapted}": size * layers for name, size in forms.items()}
    total = sum(compiled.values())
    return Need(stage, shared | {"process": PROCESS[device], "programs": total}, compiled, program * layers)


def together(needs: Iterable[Need]) -> list[Need]:
    """The stages of one run, each with the programs that the others leave. `common.runtime.tidy` bounds those
    between stages; one at that bound is taken to add one or two."""
    needs = list(needs)
    every = {name: size for need in needs for name, size in need.forms.items()}
    found = []
    for need in needs:
        programs, kept = (
            min(sum(every.values()), most + 1.5 * need.program)
            for most in (runtime.PROGRAMS, runtime.KEPT_PROGRAMS)
        )
        parts = dict(need.parts) | ({"programs": programs} if every else {})
        found.append(dataclasses.replace(need, parts=parts, kept=kept - programs))
    return found


def available() -> int | None:
    """Bytes of main memory that are free, or that a container grants; None where neither is told."""
    found = []
    try:
        told = re.search(r"MemAvailable:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())
        found += [1024 * int(told[1])] if told else []
        for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
            if pathlib.Path(limit).exists():
                word = pathlib.Path(limit).read_text().strip()
                found += [int(word)] if word.isdigit() else []
    except OSError:
        pass
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(found, default=None)


def _plenty(needs: Iterable[Need], room: int | None) -> bool:
    return room is not None and all(max(SPARE * need.total, need.held) < room for need in needs)


def foretold(
    needs: Callable[[str, int], Iterable[Need]], names: Iterable[str], devices: "Callable[[], Devices]"
) -> list[tuple[str, str]]:
    """What a plan says of memory: that of one accelerator where there are any, for which jax is loaded. Arguments
    as those of `room_for` and `lines_of`. Raises UserError as `check` does."""
    kind, shards, room = _limits(devices().mesh) if runtime.accelerators() else ("cpu", 1, available())
    found = list(needs(kind, shards))
    check(found, room)
    return lines_of(found, names, room, "CPU" if kind == "cpu" else "each accelerator")


def lines_of(
    needs: Iterable[Need], names: Iterable[str] = (), room: int | None = None, where: str = "CPU"
) -> list[tuple[str, str]]:
    """The stage that needs most, as a line of a plan, beside the `room` that there is. `names`: of all models of
    the run; those that `needs` had to leave out are told."""
    needs = together(needs)
    if not needs:
        return [("memory", "unknown: no model of the run is on this machine yet")]
    most = max(needs, key=lambda need: need.total)
    has = "" if room is None else f"; {room / GB:.1f} GB are free"
    if where == "CPU" and _plenty(needs, room):
        has += f", so that up to {max(need.held for need in needs) / GB:.2f} GB are held for speed"
    left = [name for name in dict.fromkeys(names) if Model.read(name) is None]
    without = "" if not left else f"; without {' and '.join(left)}, whose shape is not known yet"
    return [("memory", f"{most}{has} (on {where}){without}")]


def check(needs: Iterable[Need], room: int | None) -> None:
    """Raises UserError, saying what could be done, where a stage needs more than `room` bytes."""
    most = max(together(needs), key=lambda need: need.total, default=None)
    if most is None or room is None or most.total <= room:
        return
    advice = ["--micro-batch-size 1", "--remat full", "a smaller --max-length", "more devices"]
    if most.parts.get("optimizer", 0) and "trained weights" in most.parts:
        advice = ["--lora-rank 16", "--param-dtype bfloat16 or --optimizer adafactor", *advice]
    elif "cache" in most.parts:
        advice = ["fewer answer tokens", "a smaller model", "more devices"]
    raise UserError(
        f"too little memory: {room / GB:.1f} GB are free, and this run needs {most}: use {', '.join(advice)}"
    )


def room_for(needs: Callable[[str, int], Iterable[Need]], devices: "Callable[[], Devices]") -> "Mesh | None":
    """The mesh of a run that fits on this machine: `needs` are told the kind of device and over how many of the
    mesh a model is split. Raises UserError, as `check` does. Loads jax, whose threads are to find the setting of
    the C library that is made before."""
    if _plenty(together(needs("cpu", 1)), available()) and not runtime.accelerators():
        runtime.reuse_memory()
    mesh = devices().mesh
    kind, shards, room = _limits(mesh)
    check(needs(kind, shards), room)
    return mesh


def _limits(mesh: "Mesh | None") -> tuple[str, int, int | None]:
    """The kind of device, over how many of the mesh a model is split, and bytes that there are of one device."""
    import jax

    if jax.default_backend() == "cpu":  # of which all devices are one
        return "cpu", 1, available()
    shards = 1 if mesh is None else mesh.shape["fsdp"] * mesh.shape["tensor"]
    return "accelerator", shards, (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def tokens_in(letters: int) -> int:
    """About how many tokens a text has, its template included."""
    return letters // 4 + 32
