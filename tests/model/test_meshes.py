"""Which mesh a run computes on."""

import jax
import pytest

from common.errors import UserError
from common.model import meshes

needs_devices = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices (JAX_NUM_CPU_DEVICES=8)")


@pytest.mark.parametrize("text", ["", "fsdp", "fsdp=x", "rows=2", "data=2,data=2", "data=-1", "data=2 fsdp=2"])
def test_what_is_no_list_of_axes_is_refused(text):
    with pytest.raises(UserError, match="no list of axes"):
        meshes.parse(text)


@needs_devices
def test_data_takes_the_devices_that_no_other_axis_has():
    assert dict(meshes.choose("fsdp=2,tensor=2", {}).mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@needs_devices
def test_simulated_devices_are_used_only_when_they_are_asked_for():
    """They share the cores of one processor."""
    assert meshes.choose(None, {"embedded:student": 18}).mesh is None


@needs_devices
@pytest.mark.parametrize(
    ("share", "shape"),
    [
        (0.5, {"data": 8, "fsdp": 1, "tensor": 1}),
        (2.5, {"data": 2, "fsdp": 4, "tensor": 1}),
        (99, {"data": 1, "fsdp": 8, "tensor": 1}),
    ],
)
def test_a_model_is_split_over_as_few_devices_as_hold_it(fixtures, monkeypatch, share, shape):
    """`share`: what it needs, of the room that a device has. The reason names both sizes."""
    held = {str(fixtures / "qwen2"): 18}
    need = meshes.count_params(meshes.abstract_params(meshes.hf.load_config(fixtures / "qwen2"))) * 18
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(meshes, "_memory", lambda: need / share / meshes.ROOM)
    found = meshes.choose(None, held)
    assert dict(found.mesh.shape) == shape
    assert "weights and training state" in str(found)
