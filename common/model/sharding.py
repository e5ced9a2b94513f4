"""How parameters, batches and caches lie on several devices: one table of rules, outside the model.

    mesh = make_mesh(tp=2)                                    # the other devices form the fsdp axis
    params = hf.load_params(folder, config, mesh=mesh)        # or jax.device_put by `param_shardings`
    params = fine_tune(params, config, ...)                   # on that mesh, as scoring and sampling are

Mesh axes: `fsdp` splits the batch, and every weight along one dimension (gathered when used); `tp` splits heads,
the MLP and the vocabulary. An axis that does not divide a dimension is dropped there, so any model runs on any
mesh. A mesh of one device costs nothing.

Nothing takes a mesh beside the parameters: they lie on theirs, `mesh_of` reads it from them, and compiled
functions follow their arguments. Over `fsdp`, training splits the rows of a micro-batch, scoring and embedding
those of a batch, sampling and beam search their slots and the cache; what the axis does not divide is computed
everywhere.

Not covered: several hosts (every device must be visible to this process), and replicas for sampling. With an fsdp
axis each decoding step gathers the weights, so a model that fits beside its cache samples faster on
`make_mesh(fsdp=1, tp=n)`, or in one process a device.
"""

import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from common.errors import UserError

RULES: tuple[tuple[str, P], ...] = (
    (r"embed", P("tp", "fsdp")),  # (V, D)
    (r"positions", P(None, "fsdp")),  # (P, D)
    (r"head", P("fsdp", "tp")),  # (D, V)
    (r"head_bias", P("tp")),  # (V,)
    (r"[qkv]", P("fsdp", "tp")),  # (D, N, H)
    (r"o", P("tp", None, "fsdp")),  # (N, H, D)
    (r"gate|up", P("fsdp", "tp")),  # (D, F)
    (r"down", P("tp", "fsdp")),  # (F, D)
    (r"[qkv]_bias", P("tp")),  # (N, H)
    (r"(gate|up)_bias", P("tp")),  # (F,)
    (r"(o|down)_bias", P()),  # (D,)
    (r"(norm[12]?|post[12]|[qk]_norm)(_bias)?", P()),
    (r"sinks", P("tp")),  # (N,)
    (r"router", P("fsdp")),  # (D, E)
    (r"router_bias", P()),  # (E,)
    (r"experts_(gate|up)", P("fsdp", None, "tp")),  # (E, D, F)
    (r"experts_down", P("fsdp", "tp")),  # (E, F, D)
    (r"experts_(gate|up)_bias", P("fsdp", "tp")),  # (E, F)
    (r"experts_down_bias", P("fsdp")),  # (E, D)
    (r"([qkv]|gate|up)_a", P("fsdp")),  # (D, R)
    (r"([qkv]|gate|up)_b", P(None, "tp")),  # (R, N, H) or (R, F)
    (r"(o|down)_a", P("tp")),  # (N, H, R) or (F, R)
    (r"(o|down)_b", P(None, "fsdp")),  # (R, D)
)
"""Name of a parameter (the whole of it must match; the first match holds) and where its axes go. The same name is
the same kind in every layer, and in the state of an optimizer, which holds whole trees of parameters."""

ROWS, MICRO_ROWS, CACHE = P("fsdp"), P(None, "fsdp"), P("fsdp", "tp")
"""Where the axes of data go: rows first, micro-batches before rows, and rows before key/value heads."""


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


def mesh_of(params: Any) -> Mesh | None:
    """The mesh of `make_mesh` that parameters were placed on; None where each lies whole on one device."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) and mesh.axis_names == ("fsdp", "tp") else None


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
    return jax.device_put(tree, _device(params) if mesh is None else param_shardings(mesh, tree))


def place_data(arrays: Any, params: Any, axes: P) -> Any:
    """Arrays of a batch or a cache on the devices of the parameters, on a mesh split over `axes`."""
    mesh = mesh_of(params)
    return jax.device_put(arrays, _device(params) if mesh is None else data_shardings(mesh, arrays, axes))


def _device(params: Any) -> Any:
    """Where parameters lie that are bound to one device, as those read from files are. What goes with them has to
    be bound as well: compiled functions return it so, and would compile a second time for the next call."""
    leaf = jax.tree.leaves(params)[0]
    return leaf.sharding if getattr(leaf, "committed", False) else None


def _divisible(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    sizes = zip(spec, shape, strict=False)  # dimensions after the end of a spec are replicated
    axes = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in sizes]
    while axes and axes[-1] is None:  # as compiled functions return it: the two forms do not count as equal
        axes.pop()
    return P(*axes)
