"""Settings and paths that all tests share."""

import functools
import os
import pathlib

import pytest

from common import rates
from common.runtime import compile_cache_environment

# Before jax starts: several devices for the sharding tests, and products in full float32 where a GPU is used.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Workers, and the processes that tests start and kill, share what one of them has compiled.
os.environ.update(compile_cache_environment())
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")

# The times of tests say nothing of runs.
rates.FILE = "rates-of-tests.json"

ROOT = pathlib.Path(__file__).parent


@pytest.fixture(scope="session")
def fixtures() -> pathlib.Path:
    """The folder of tiny checkpoints made by make_fixtures.py."""
    return ROOT / "fixtures"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Optional real data and weights, which lie beside the repository and are not part of it."""
    folder = ROOT.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the optional real data in ../shared/data")
    return folder


@pytest.fixture
def quick_jit():
    """`jax.jit` that compiles four times faster, to slower code: for gradients of a tiny model, run once."""
    import jax

    return functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
