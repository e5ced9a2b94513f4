"""Process-wide switches of jax and flax, set once on import by every module that computes.

flax is kept in tree mode (modules are plain pytrees; nothing is shared by reference) and sharding metadata
stays out of the modules, so that today's defaults and the announced ones behave alike. Compiled programs are
kept in the user's cache directory, so that a second run starts without compiling.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx

nnx.set_graph_mode(False)
nnx.set_graph_updates(False)
nnx.use_eager_sharding(False)


def cache_dir() -> pathlib.Path:
    """The user's cache folder for seedloop: $XDG_CACHE_HOME/seedloop, by default ~/.cache/seedloop."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "seedloop"


def enable_compile_cache() -> None:
    """Keep compiled programs on disk between processes, unless jax was told of another place."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def on_accelerator() -> bool:
    """Whether the default device is a GPU or TPU."""
    return jax.default_backend() != "cpu"


def compute_dtype() -> jnp.dtype:
    """bfloat16 on accelerators; float32 on CPU, where bfloat16 is emulated and slower."""
    return jnp.dtype(jnp.bfloat16 if on_accelerator() else jnp.float32)
