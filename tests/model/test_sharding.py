"""Parameters and batches on several devices: the same figures as on one."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from common.errors import UserError
from common.model import decoder, hf, sharding

needs_devices = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices (JAX_NUM_CPU_DEVICES=8)")


def _loss(params, config, tokens):
    logits = decoder.unembed(params, config, decoder.hidden(params, config, tokens))
    return -jax.nn.log_softmax(logits)[..., 0].mean()


@needs_devices
def test_sharded_loss_and_gradients_equal_unsharded_ones(fixtures, quick_jit):
    name = "qwen2_windows"  # has every kind of parameter but the norms of queries and keys
    config = hf.load_config(fixtures / name)
    tokens = np.tile(np.load(fixtures / name / "golden.npz")["tokens"], (2, 1))
    step = quick_jit(jax.value_and_grad(_loss), static_argnums=1)
    loss, grads = step(hf.load_params(fixtures / name, config), config, tokens)

    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    params = hf.load_params(fixtures / name, config, mesh=mesh)
    split = params["layers"][0]["gate"]
    assert split.addressable_shards[0].data.size * 8 == split.size  # each device holds its part alone
    batch = sharding.place_data(tokens, params, sharding.ROWS)
    sharded_loss, sharded_grads = step(params, config, batch)

    np.testing.assert_allclose(sharded_loss, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), sharded_grads, grads)


@needs_devices
@pytest.mark.parametrize(
    "name",  # with fused tensors, transposed ones and experts among them
    ["llama_sharded", "qwen2", "qwen3", *(f"families/{name}" for name in ("gpt2", "phi3", "falcon", "gpt_oss"))],
)
def test_slices_read_for_a_mesh_make_up_the_whole(fixtures, name):
    config = hf.load_config(fixtures / name)
    whole = hf.load_params(fixtures / name, config)
    for axes in ((1, 8, 1), (1, 2, 4), (2, 1, 2), (8, 1, 1)):
        parts = hf.load_params(fixtures / name, config, mesh=sharding.make_mesh(*axes))
        jax.tree.map(np.testing.assert_array_equal, whole, parts)


@needs_devices
def test_axes_that_do_not_divide_a_dimension_are_dropped(fixtures):
    config = hf.load_config(fixtures / "qwen2")  # 8 heads, 2 key/value heads
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=4)
    specs = jax.tree.map(lambda s: s.spec, sharding.param_shardings(mesh, decoder.abstract_params(config)))
    assert specs["embed"] == P("tensor", "fsdp")
    assert specs["layers"][1]["q"] == P("fsdp", "tensor")
    assert specs["layers"][1]["k"] == P("fsdp")
    assert specs["layers"][1]["norm1"] == P()


def test_rules_name_axes_of_a_mesh():
    for pattern, spec in sharding.RULES:
        assert {axis for axis in spec if axis} <= set(sharding.AXES), pattern


@needs_devices
def test_of_two_axes_on_one_dimension_the_one_that_divides_it_remains():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    spec = lambda rows: sharding.data_shardings(mesh, np.zeros((rows, 3)), sharding.ROWS).spec
    assert [spec(rows) for rows in (8, 6, 4, 3)] == [P(("data", "fsdp")), P("data"), P("data"), P()]


def test_one_device_makes_a_mesh(fixtures, quick_jit):
    config = hf.load_config(fixtures / "llama2")
    mesh = sharding.make_mesh(data=1)
    params = hf.load_params(fixtures / "llama2", config, mesh=mesh)
    tokens = sharding.place_data(np.zeros((2, 4), np.int32), params, sharding.ROWS)
    assert quick_jit(lambda p: decoder.hidden(p, config, tokens))(params).shape == (2, 4, 32)


@pytest.mark.parametrize("axes", [{"tensor": 0}, {"tensor": 1000}, {"data": 1, "fsdp": 1000}])
def test_a_mesh_that_the_devices_cannot_form_is_refused(axes):
    with pytest.raises(UserError, match=r"devices?"):
        sharding.make_mesh(**axes)
