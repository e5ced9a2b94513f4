"""How parameters, batches and caches lie on several devices: one table of rules, outside the model.

    mesh = make_mesh(fsdp=4, tensor=2)                        # what devices remain form the data axis
    params = hf.load_params(folder, config, mesh=mesh)        # or `place_params`
    params = fine_tune(params, config, ...)                   # on that mesh, as scoring and sampling are

Mesh axes: `data` splits the batch, over copies of the weights; `fsdp` splits the batch, and every weight along one
dimension (gathered when used); `tensor` splits heads, the MLP and the vocabulary. An axis that does not divide a
dimension is dropped there, so any model runs on any mesh. A mesh of one device costs nothing.

Nothing takes a mesh beside the parameters: they lie on theirs, `mesh_of` reads it from them, and compiled
functions follow their arguments. Over `data` and `fsdp`, training splits the rows of a micro-batch, scoring and
embedding those of a batch, sampling and beam search their slots and the cache; what the axes do not divide is
computed everywhere.

With an fsdp axis each decoding step gathers the weights, so a model that fits beside its cache samples faster
with its devices on `data` or `tensor`. The devices may be those of several processes (`common.hosts`): each of
them then has the same host arrays and calls the same functions, and `fetch` gives all the same values.
"""

import functools
import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from common.errors import UserError

AXES = ("data", "fsdp", "tensor")

RULES: tuple[tuple[str, P], ...] = (
    (r"embed", P("tensor", "fsdp")),  # (V, D)
    (r"positions", P(None, "fsdp")),  # (P, D)
    (r"head", P("fsdp", "tensor")),  # (D, V)
    (r"head_bias", P("tensor")),  # (V,)
    (r"[qkv]", P("fsdp", "tensor")),  # (D, N, H)
    (r"o", P("tensor", None, "fsdp")),  # (N, H, D)
    (r"gate|up", P("fsdp", "tensor")),  # (D, F)
    (r"down", P("tensor", "fsdp")),  # (F, D)
    (r"[qkv]_bias", P("tensor")),  # (N, H)
    (r"(gate|up)_bias", P("tensor")),  # (F,)
    (r"(o|down)_bias", P()),  # (D,)
    (r"((post_)?norm[12]?|[qk]_norm)(_bias)?", P()),
    (r"sinks", P("tensor")),  # (N,)
    (r"router", P("fsdp")),  # (D, E)
    (r"router_bias", P()),  # (E,)
    (r"experts_(gate|up)", P("fsdp", None, "tensor")),  # (E, D, F)
    (r"experts_down", P("fsdp", "tensor")),  # (E, F, D)
    (r"experts_(gate|up)_bias", P("fsdp", "tensor")),  # (E, F)
    (r"experts_down_bias", P("fsdp")),  # (E, D)
    (r"([qkv]|gate|up)_a", P("fsdp")),  # (D, R)
    (r"([qkv]|gate|up)_b", P(None, "tensor")),  # (R, N, H) or (R, F)
    (r"(o|down)_a", P("tensor")),  # (N, H, R) or (F, R)
    (r"(o|down)_b", P(None, "fsdp")),  # (R, D)
)
"""Name of a parameter (the whole of it must match; the first match holds) and where its axes go. The same name is
the same kind in every layer, and in the state of an optimizer, which holds whole trees of parameters."""

ROWS, CACHE = P(("data", "fsdp")), P(("data", "fsdp"), "tensor")
"""Where the axes of data go: rows first, and rows before key/value heads."""


def make_mesh(data: int | None = None, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of `data` x `fsdp` x `tensor` devices; without `data`, of all devices.

    Raises UserError when there are too few devices, the axes do not divide their number, or some process of
    several would have no part in it.
    """
    devices = jax.devices()
    if min(fsdp, tensor, 1 if data is None else data) < 1:
        raise UserError("every axis of a mesh has at least one device")
    if data is None and len(devices) % (fsdp * tensor):
        raise UserError(
            f"fsdp={fsdp} x tensor={tensor} does not divide the {len(devices)} devices that are visible"
        )
    shape = (data or len(devices) // (fsdp * tensor), fsdp, tensor)
    sizes, count = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True)), math.prod(shape)
    if count > len(devices):
        raise UserError(f"a mesh of {sizes} needs {count} devices, {len(devices)} are visible")
    if count < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"a mesh of {sizes} has {count} devices, but all {len(devices)} of the processes take part"
        )
    # Auto axes let the compiler place the communication; jax's default (Explicit) wants it in every einsum.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:count])


def mesh_of(params: Any) -> Mesh | None:
    """The mesh of `make_mesh` that parameters were placed on; None where each lies whole on one device."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) and mesh.axis_names == AXES else None


def param_shardings(mesh: Mesh, tree: Any) -> Any:
    """A NamedSharding for each leaf (array or shape) of a parameter tree, or of a tree with such trees in it, as
    the state of an optimizer: its scalars lie everywhere."""

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        found = (spec for pattern, spec in RULES if re.fullmatch(pattern, name))
        spec = next(found, None if leaf.ndim else P())
        if spec is None:
            raise KeyError(f"no sharding rule for parameter {jax.tree_util.keystr(path)}")
        return NamedSharding(mesh, _divisible(spec, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def data_shardings(mesh: Mesh, arrays: Any, axes: P) -> Any:
    """A NamedSharding for each array of a batch or a cache, whose first dimensions `axes` split."""
    return jax.tree.map(lambda x: NamedSharding(mesh, _divisible(axes, x.shape, mesh)), arrays)


def place(tree: Any, params: Any) -> Any:
    """Adapters, or the state of an optimizer, on the devices of the parameters that they belong to."""
    mesh = mesh_of(params)
    return jax.device_put(tree, _device(params)) if mesh is None else _put(tree, param_shardings(mesh, tree))


def place_data(arrays: Any, params: Any, axes: P) -> Any:
    """Arrays of a batch or a cache on the devices of the parameters, on a mesh split over `axes`."""
    mesh = mesh_of(params)
    return (
        jax.device_put(arrays, _device(params))
        if mesh is None
        else _put(arrays, data_shardings(mesh, arrays, axes))
    )


def _put(tree: Any, shardings: Any) -> Any:
    """Every process has the whole of each array, or its part of one that lies on the devices of all."""

    def one(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
            return jax.device_put(leaf, sharding)
        # Not by device_put, which would have all processes compare what they hold.
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, shardings)


def fetch(tree: Any) -> Any:
    """Arrays as numpy ones, the same in every process: a part that lies with another process is sent by it."""

    def everywhere(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        assert isinstance(leaf.sharding, NamedSharding), "arrays of several processes lie on a mesh"
        return _replicated(NamedSharding(leaf.sharding.mesh, P()))(leaf)

    return jax.device_get(jax.tree.map(everywhere, tree))


@functools.lru_cache
def _replicated(sharding: NamedSharding) -> Any:
    return jax.jit(lambda x: x, out_shardings=sharding)


def _device(params: Any) -> Any:
    """Where parameters lie that are bound to one device, as those read from files are. What goes with them has to
    be bound as well: compiled functions return it so, and would compile a second time for the next call."""
    leaf = jax.tree.leaves(params)[0]
    return leaf.sharding if getattr(leaf, "committed", False) else None


def _divisible(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    """`spec` without the axes that do not divide their dimension; of two on one dimension, one may remain."""
    axes: list[Any] = []
    for entry, size in zip(spec, shape, strict=False):  # dimensions after the end of a spec are replicated
        # Without axes of one device, as compiled functions return it: the two forms do not count as equal.
        names = tuple(axis for axis in np.atleast_1d(entry or ()).tolist() if mesh.shape[axis] > 1)
        choices = (names, *((name,) for name in names))
        divides = lambda choice, size=size: size % math.prod(mesh.shape[axis] for axis in choice) == 0
        found = next((choice for choice in choices if divides(choice)), ())
        axes.append(found[0] if len(found) == 1 else found or None)
    while axes and axes[-1] is None:  # for the same reason
        axes.pop()
    return P(*axes)
