"""What the machine offers: where compiled programs are kept, which device computes, and in what precision.

Nothing here or elsewhere in `common` changes a setting of jax or flax by being imported or called, save
`enable_compile_cache`, which is for a notebook or a script of one's own. What runs call is of the whole
process: `tidy`, between stages, which frees compiled programs, and `reuse_memory`. This module loads jax only when
asked about a device.
"""

import ctypes
import glob
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def cache_dir() -> pathlib.Path:
    """The user's cache folder for seedloop: $XDG_CACHE_HOME/seedloop, by default ~/.cache/seedloop."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "seedloop"


def _compile_cache() -> dict[str, Any]:
    """jax's settings: keep every program that took a tenth of a second to compile, however small."""
    return {
        "jax_compilation_cache_dir": str(cache_dir() / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


def compile_cache_environment() -> dict[str, str]:
    """Environment variables under which a jax that is yet to be imported keeps compiled programs on disk, so that
    a second run starts without compiling. What the user has set is left out.

        os.environ.update(compile_cache_environment())
    """
    names = {name.upper(): str(value) for name, value in _compile_cache().items()}
    return {name: value for name, value in names.items() if name not in os.environ}


def enable_compile_cache() -> None:
    """Keep compiled programs on disk from now on, unless jax was told of another place."""
    import jax

    for name, value in _compile_cache().items():
        if name != "jax_compilation_cache_dir" or jax.config.values["jax_compilation_cache_dir"] is None:
            jax.config.update(name, value)


def accelerators() -> bool:
    """Whether this machine has a GPU or TPU, as far as can be told without jax."""
    return any(glob.glob(f"/dev/{name}") for name in ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*", "kfd"))


def on_accelerator() -> bool:
    """Whether the default device is a GPU or TPU."""
    import jax

    return jax.default_backend() != "cpu"


def here(sizes: dict[str, int]) -> int:
    """Of sizes on "cpu" and on an "accelerator" the one that counts on this machine."""
    return sizes["accelerator" if on_accelerator() else "cpu"]


def compute_dtype() -> "np.dtype":
    """bfloat16 on accelerators; float32 on CPU, where bfloat16 is emulated and slower."""
    import jax.numpy as jnp

    return jnp.dtype(jnp.bfloat16 if on_accelerator() else jnp.float32)


def trim() -> None:
    """Give memory that was freed back to the system, where the C library keeps it: glibc holds on to the weights
    and moments of a training that is over, gigabytes of a model of 0.1B."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


def reuse_memory() -> None:
    """Where memory is plenty. Programs may grow to `KEPT_PROGRAMS`, and where the C library is glibc, what is
    freed is kept for what is allocated next, until `trim`. A program's temporary arrays are one block of up to
    gigabytes, which by default goes back to the system after every call; to be given zeroed pages anew took a
    quarter of the time of training a small model on CPU. For all of the process; has to come before jax starts its
    threads. Where the user has set a variable MALLOC_…, nothing is changed."""
    global _most
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    _most = KEPT_PROGRAMS
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is None:
        return
    # From malloc.h: M_ARENA_MAX, as others than the main arena always map large blocks; M_MMAP_MAX; and
    # M_TRIM_THRESHOLD, where -1 is the largest size there is.
    for name, value in ((-8, 1), (-4, 0), (-1, -1)):
        option(name, value)


MOST_PROGRAMS = 400
"""Programs compiled in a process, small ones included, after which they are forgotten."""
PROGRAMS, KEPT_PROGRAMS = 1_000_000_000, 4_000_000_000
"""Bytes of main memory on CPU that programs may grow by before they are forgotten, and where memory is plenty: one
for a model of thirty layers takes up to 200 MB, and four seconds to read from disk again."""
_most = PROGRAMS
_compiled: list[int] = []
_without: list[int] = []


def tidy() -> None:
    """Give back freed memory, and free all compiled programs once they are many or large: jax keeps each of them
    for as long as the process lives, until memory is full or the compiler finds no place for more. Called between
    stages, as what is still needed is then compiled (or read from disk) again. Counts from its first call on."""
    trim()
    if "jax" not in sys.modules:
        return
    import jax

    if not _compiled:
        _compiled.append(0)
        _without.append(beside_arrays())

        def count(event: str, *_: Any, **__: Any) -> None:
            _compiled[0] += event.endswith("backend_compile_duration")

        jax.monitoring.register_event_duration_secs_listener(count)
    elif _compiled[0] > MOST_PROGRAMS or (not on_accelerator() and beside_arrays() > _without[0] + _most):
        jax.clear_caches()
        trim()
        _compiled[0], _without[0] = 0, beside_arrays()


def beside_arrays() -> int:
    """Bytes of main memory that this process has beside jax's arrays on CPU; 0 where the system does not tell."""
    import jax

    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") - sum(array.nbytes for array in jax.live_arrays("cpu"))
