"""How parameters and batches lie on several devices: one table of rules, outside the model.

    mesh = make_mesh(tp=2)                                    # the other devices form the fsdp axis
    shardings = param_shardings(mesh, abstract_params(config))
    params = jax.device_put(params, shardings)

Mesh axes: `fsdp` splits the batch, and every weight along one dimension (gathered when used); `tp` splits heads,
the MLP and the vocabulary. An axis that does not divide a dimension is dropped there, so any model runs on any
mesh. A mesh of one device costs nothing.
"""

import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from common.errors import UserError

RULES: tuple[tuple[str, P], ...] = (
    (r"embed", P("tp", "fsdp")),  # (V, D)
    (r"head", P("fsdp", "tp")),  # (D, V)
    (r"layers/[qkv]", P(None, "fsdp", "tp")),  # (L, D, N, H)
    (r"layers/o", P(None, "tp", None, "fsdp")),  # (L, N, H, D)
    (r"layers/(gate|up)", P(None, "fsdp", "tp")),  # (L, D, F)
    (r"layers/down", P(None, "tp", "fsdp")),  # (L, F, D)
    (r"layers/[qkv]_bias", P(None, "tp")),  # (L, N, H)
    (r".*norm[12]?", P()),
)
"""Path in the parameter tree (the whole of it must match; the first match holds) and where its axes go."""


def make_mesh(fsdp: int | None = None, tp: int = 1) -> Mesh:
    """A mesh of `fsdp` x `tp` devices; without `fsdp`, all devices are used.

    Raises UserError when there are too few devices, or `tp` does not divide their number.
    """
    devices = jax.devices()
    if tp < 1 or (fsdp is None and len(devices) % tp):
        raise UserError(f"a tp axis of {tp} does not divide {len(devices)} devices")
    fsdp = fsdp or len(devices) // tp
    if fsdp * tp > len(devices):
        raise UserError(f"a mesh of {fsdp} x {tp} needs {fsdp * tp} devices, {len(devices)} are visible")
    # Auto axes let the compiler place the communication; jax's default (Explicit) wants it in every einsum.
    return jax.make_mesh((fsdp, tp), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2, devices=devices[: fsdp * tp])


def param_shardings(mesh: Mesh, abstract: Any) -> Any:
    """A NamedSharding for each leaf of a parameter tree (arrays or their shapes)."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = "/".join(key.key for key in path)
        spec = next((spec for pattern, spec in RULES if re.fullmatch(pattern, name)), None)
        if spec is None:
            raise KeyError(f"no sharding rule for parameter {name}")
        return NamedSharding(mesh, _divisible(spec, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, abstract)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are split over `fsdp`, whatever the number of further dimensions."""
    return NamedSharding(mesh, P("fsdp"))


def _divisible(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    sizes = zip(spec, shape, strict=False)  # dimensions after the end of a spec are replicated
    return P(*(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in sizes))
