"""What of a layer is kept for the backward pass, and what is computed again.

run = recomputing("full")
x, keys_and_values = run(block, x, turns, mask, before, at)     # as Block.__call__
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from common import runtime
from common.config import Remat
from common.model.block import Block


def recomputing(remat: Remat) -> Callable[..., Any]:
    """`Block.__call__` with a backward pass that computes again what `remat` says."""
    if remat == "none":
        return Block.__call__
    if remat == "dots":
        return jax.checkpoint(Block.__call__, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    return jax.checkpoint(Block.__call__) if runtime.on_accelerator() else _one_by_one


def _zero(tree: Any) -> jax.Array:
    """A zero made of one row of every array, as a sum: the compiler does not work that out again for each use."""
    rows = [leaf.reshape(-1, leaf.shape[-1])[0].astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return 0 * jnp.sum(jnp.concatenate(rows))


def _one_by_one(
    block: Block, x: jax.Array, turns: Any, mask: Any, before: Any, at: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """`jax.checkpoint(Block.__call__)` for CPU, where the compiler's scheduler runs whatever it can at once, so
    that all layers would be computed again before the first of them is needed, and all gradients of weights last:
    with more memory than without recomputation. A zero made of what has to be there before holds both back."""
    after = lambda x, tree: x + _zero(tree).astype(x.dtype)
    trained = (lambda name: name.endswith(("_a", "_b"))) if block.config.lora else (lambda name: True)

    @jax.custom_vjp
    def run(x: jax.Array, block: Block, before: Any) -> Any:
        return block(x, turns, mask, before, at)

    def backward(inputs: tuple[Any, ...], cotangents: Any) -> tuple[jax.Array, Any, Any]:
        x, block, before = inputs
        again = lambda x, block, before: block(x, turns, mask, before, at)
        dx, dblock, dbefore = jax.vjp(again, after(x, cotangents[0]), block, before)[1](cotangents)
        # Frozen weights' gradients would be computed for this alone.
        needed = [leaf for path, leaf in jax.tree.leaves_with_path(dblock) if trained(_name(path))]
        return after(dx, needed), dblock, dbefore

    run.defvjp(lambda *given: (run(*given), given), backward)
    return run(x, block, before)


def _name(path: tuple) -> str:
    """The name of a block's array by its path."""
    return next(key for part in path if isinstance(key := getattr(part, "name", getattr(part, "key", None)), str))
