"""A user's own flax and jax go on as before: no import and no call of ours changes a setting of the process."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
QUICK = "--xla_backend_optimization_level=0"  # compiles faster, to slower code

USER = """
import json, sys
import flax, jax, jax.numpy as jnp, numpy as np
from flax import nnx

modes = json.loads(sys.argv[1])
if modes is not None:
    nnx.set_graph_mode(modes), nnx.set_graph_updates(modes), nnx.use_eager_sharding(modes)


class Mine(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 2, rngs=rngs)
        self.steps = nnx.Variable(jnp.zeros(()))
        if nnx.set_graph_mode.current_value():
            self.again = self.first  # a shared reference, which trees of arrays do not have


def seen():
    mine, figures = Mine(nnx.Rngs(0)), {}
    graphdef, state = nnx.split(mine)
    figures["split"] = [str(graphdef), str(jax.tree.map(jnp.shape, state)), str(nnx.state(mine, nnx.Param))]
    merged = nnx.merge(graphdef, state)
    figures["shared"] = getattr(merged, "again", None) is merged.first

    @nnx.jit
    def count(module):
        module.steps[...] += 1

    count(mine)  # with graph updates the caller's own module counts
    figures["steps"] = float(mine.steps[...])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        variable = nnx.Param(jnp.zeros(8), out_sharding=("data",))
    figures["sharding"] = [str(variable[...].sharding), variable.eager_sharding]
    figures["modes"] = [nnx.set_graph_mode.current_value(), nnx.set_graph_updates.current_value()]
    figures["modes"].append(nnx.using_eager_sharding())
    figures["settings"] = {name: repr(value) for name, value in jax.config.values.items()}
    figures["flax"] = {name: repr(getattr(flax.config, name)) for name in flax.config._values}
    return figures


before = seen()

from common.config import ModelConfig, SampleConfig, TrainConfig
from common.lm import LanguageModel
from common.model.decoder import init
from common.sample.beam import diverse
from common.sample.embed import embed
from common.sample.prompt import Prompt
from common.sample.sampler import Sampler
from common.sample.score import score
from common.train.data import Encoded
from common.train.loop import fine_tune
from common.train.preference import prefer

config = ModelConfig("llama", 16, 8, 8, 2, 2, 1, 4, 64, tied_head=True)
params = init(config, jax.random.key(0))
settings = TrainConfig(batch_size=1, micro_batch_size=1)
params = fine_tune(params, config, [Encoded((1, 2, 3), 1)], settings, pad_id=0, steps=1)
[[sampled]] = Sampler(params, config, eos_ids=[0], slots=1, block=2).sample([Prompt([1, 2], SampleConfig(4))])
ours = [sampled.tokens, diverse(params, config, [[1, 2]], [0], 2, 3, 1.0)[0][0].tokens]
ours += [score(params, config, [([1], [2, 3])], 1)[0].tolist(), embed(params, config, [[1, 2]], 1).tolist()]

assert seen() == before
print(json.dumps(ours))
"""


def _python(code: str, *arguments: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "NNX_", "FLAX_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        **{"cwd": ROOT, "check": True, "capture_output": True, "text": True},
        env=kept | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK} | environment,
    ).stdout


def test_a_users_own_modules_and_settings_stay_as_they_are():
    """Neither flax's modes nor jax's settings change, and ours gives the same figures under both of them."""
    figures = [_python(USER, json.dumps(modes)) for modes in (None, False)]
    assert figures[0] == figures[1]


SETTINGS = """
import os, sys
from common.runtime import compile_cache_environment
os.environ.update(compile_cache_environment())
assert "jax" not in sys.modules
import jax
print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)
print(jax.config.jax_persistent_cache_min_entry_size_bytes)
"""


@pytest.mark.parametrize("own", [{}, {"JAX_COMPILATION_CACHE_DIR": "/of/the/user"}])
def test_the_compile_cache_is_set_through_the_environment_before_jax_is_imported(own):
    """jax reads the three variables; what the user has set stays."""
    folder = own.get("JAX_COMPILATION_CACHE_DIR", "/caches/seedloop/jax")
    assert _python(SETTINGS, XDG_CACHE_HOME="/caches", **own) == f"{folder} 0.1\n-1\n"
