"""The state of an unfinished training on disk, from which it goes on, on whatever devices.

save(folder, params, state, step=5)
if kept(folder):
    params, state, step = restore(folder, *jax.tree.map(shape, (params, state)))
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from common import hosts
from common.errors import UserError, in_one_line
from common.model import sharding
from common.model.decoder import Params
from common.results.files import write_folder
from common.results.mirror import stored

COPIED = 2**28
"""Bytes of a training's state that are copied at one time while it is stored."""


def save(folder: pathlib.Path, params: Params, state: Any, step: int) -> None:
    """Write the training state with Orbax beside the old one, then put it in its place. Several processes, for
    which Orbax wants one file system, write it leaf by leaf, each into its own copy of the run directory."""
    # The state as a list of leaves: the files do not depend on the optimizer's classes.
    tree = {"params": params, "state": jax.tree.leaves(state), "step": jnp.int32(step)}
    if hosts.count() > 1:

        def fill(place: pathlib.Path) -> None:
            for number, leaf in enumerate(jax.tree.leaves(tree)):
                save_file({"leaf": np.ascontiguousarray(sharding.fetch(leaf))}, place / f"{number:05}.safetensors")

        write_folder(folder, fill)
        return
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.memory.write_concurrent_bytes = COPIED
    with context:
        ocp.save(str(folder.absolute()), tree, overwrite=True)
    stored(folder)


def kept(folder: pathlib.Path) -> bool:
    """Whether there is a state to go on from: several processes start again where one has written it, with
    Orbax."""
    return folder.exists() and (hosts.count() == 1 or (folder / "00000.safetensors").exists())


def shape(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def restore(folder: pathlib.Path, params: Params, state: Any) -> tuple[Params, Any, int]:
    """The stored state laid out as the shapes given say, on whatever devices it was written. Raises UserError for
    a damaged one."""
    leaves, treedef = jax.tree.flatten(state)
    target = {"params": params, "state": leaves, "step": shape(jnp.int32(0))}
    try:
        if (folder / "00000.safetensors").exists():
            files = iter(sorted(folder.glob("*.safetensors")))
            tree = jax.tree.map(lambda leaf: _read_leaf(next(files), leaf), target)
        else:
            from orbax.checkpoint import v1 as ocp

            tree = ocp.load(str(folder.absolute()), target)
    except jax.errors.JaxRuntimeError:  # such as no room on the device, which is no fault of the files
        raise
    except Exception as error:  # of three libraries, of any kind
        raise UserError(
            f"{folder} is damaged ({in_one_line(error)}): delete it, and the training begins again"
        ) from None
    return tree["params"], jax.tree.unflatten(treedef, tree["state"]), int(tree["step"])


def _read_leaf(file: pathlib.Path, like: Any) -> jax.Array:
    with safe_open(file, framework="numpy") as opened:
        stored = opened.get_tensor("leaf").reshape(like.shape)  # a scalar comes as a vector
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: stored[index])
