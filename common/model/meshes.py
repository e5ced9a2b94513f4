"""Which mesh a run computes on: as the user says, or by the size of its models.

    devices = choose("fsdp=4,tensor=2", {"my/folder": 18})
    model = LanguageModel.load("my/folder", mesh=devices.mesh)          # None where one device computes

A model that fits on a device, with what trains it, has a copy on each (`data`). One that does not is split over as
few devices as hold it (`fsdp`, or `tensor` where its width is no multiple of their number), and copied over the
rest.
"""

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from common import hosts
from common.errors import UserError, meant
from common.model import checkpoint, hf
from common.model.decoder import abstract_params, count_params
from common.model.sharding import AXES, make_mesh

ROOM = 0.6
"""Share of a device's memory for weights and training state; the rest is for activations and the cache."""


class Devices(NamedTuple):
    """A mesh, None for one device, and why it is that."""

    mesh: Mesh | None
    reason: str

    def __str__(self) -> str:
        sizes = "" if self.mesh is None else ", ".join(f"{axis}={n}" for axis, n in self.mesh.shape.items()) + ": "
        return f"{sizes}{self.reason}"


def choose(asked: str | None, held: Mapping[str, int]) -> Devices:
    """The mesh that `asked` says, else one for the models of a run. `held`: those in memory at one time, by name,
    and the bytes that each takes for a parameter.

    Raises UserError for a mesh that cannot be, and for a model that cannot be found.
    """
    if asked is not None:
        return Devices(make_mesh(**parse(asked)), "as --mesh says")
    count = len(jax.devices())
    if count == 1:
        return Devices(None, "one device")
    if jax.default_backend() == "cpu" and hosts.count() == 1:
        return Devices(None, "the processor as one device, since several would share its cores")
    configs = {}
    for name in held:
        with checkpoint.opened(name):
            configs[name] = hf.load_config(checkpoint.resolve(name))
    need = sum(count_params(abstract_params(configs[name])) * size for name, size in held.items())
    # Of process 0, so that all choose alike.
    memory = hosts.share(_memory)
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    parts = next((n for n in divisors if need / n <= ROOM * memory), count)
    fsdp = math.gcd(parts, *(config.hidden_size for config in configs.values()))
    sizes = f"{need / 1e9:.1f} GB of weights and training state, {memory / 1e9:.1f} GB a device"
    return Devices(make_mesh(fsdp=fsdp, tensor=parts // fsdp), sizes)


def parse(text: str) -> dict[str, int]:
    """Devices by axis. Raises UserError for another axis, one that is named twice, and what is no number."""
    found: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition("="))
        if axis not in AXES or axis in found or not size.isdecimal():
            hint = "" if axis in AXES else meant(axis, AXES)
            raise UserError(
                f"--mesh {text} is no list of axes: give such as data=2,fsdp=2,tensor=2, each at most once{hint}"
            )
        found[axis] = int(size)
    return found


def _memory() -> int:
    """Bytes of a device; without word of it, an equal share of the machine's."""
    device = jax.local_devices()[0]
    told = (device.memory_stats() or {}).get("bytes_limit")
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return told or machine // jax.local_device_count()
