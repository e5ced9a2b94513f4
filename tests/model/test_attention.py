"""The fast forms of attention against the readable one and against jax's own."""

import functools

import jax
import numpy as np
import pytest

from common.model.attention import _folded_attention, attention, reference_attention
from common.model.blocks import Idle
from common.model.decoder import attention_mask


def inputs(B=3, T=12, N=4, K=2, H=8):
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(k, (B, T, heads, H)) for k, heads in zip(keys, (N, K, K), strict=True))


def masks(B=3, T=12):
    positions = np.broadcast_to(np.arange(T), (B, T))
    return {
        "causal": None,
        "window of 5, shared by rows": attention_mask(positions[:1], T, 5),
        "window of 5, by row": attention_mask(positions, T, 5),
    }


@pytest.mark.parametrize("name", list(masks()))
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)])
def test_values_and_gradients_equal_the_reference(name, heads):
    q, k, v = inputs(N=heads[0], K=heads[1])
    mask = masks()[name]
    full = attention_mask(np.arange(12)[None], 12) if mask is None else mask
    for fast in (functools.partial(_folded_attention, mask=mask), functools.partial(attention, mask=mask)):
        slow = functools.partial(reference_attention, mask=full)
        np.testing.assert_allclose(fast(q, k, v), slow(q, k, v), atol=1e-5)
        grads = [jax.grad(lambda *x, f=f: (f(*x) ** 2).sum(), argnums=(0, 1, 2))(q, k, v) for f in (fast, slow)]
        for a, b in zip(*grads, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("length", [31, 32, 64, 66])  # 1, 2, 4 and 2 blocks
@pytest.mark.parametrize("form", [attention, _folded_attention])
def test_blocks_of_queries_equal_the_reference(form, length, before):
    """Also with keys before those of the queries, which all of them see."""
    q, k, v = inputs(T=before + length)
    q = q[:, before:]
    full = attention_mask(np.arange(before, before + length)[None], before + length)
    slow = functools.partial(reference_attention, mask=full, scale=0.3)
    fast = functools.partial(form, mask=None, scale=0.3)
    np.testing.assert_allclose(fast(q, k, v), slow(q, k, v), atol=1e-5)
    grads = [jax.grad(lambda *x, f=f: (f(*x) ** 2).sum(), argnums=(0, 1, 2))(q, k, v) for f in (fast, slow)]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("length", [31, 32, 64, 66])  # 1, 2, 4 and 2 blocks
def test_rows_that_end_early_are_left_out(length, before):
    """The last row is as long as all, which is seen by what the others give: zeros where a block is left out."""
    rows, lengths = 4, [length // 4, length // 2, length // 2 + 1, length]
    idle = Idle.of(lengths, rows, length)
    assert idle == {31: None, 32: Idle((0, 2)), 64: Idle((0, 1, 2, 3)), 66: Idle((0, 2))}[length]
    q, k, v = inputs(B=rows, T=before + length)
    q = q[:, before:]
    read = (np.arange(length) < np.array(lengths)[:, None])[..., None, None]
    run = lambda idle, *x: jax.numpy.where(read, attention(*x, idle=idle), 0)
    np.testing.assert_allclose(run(idle, q, k, v), run(None, q, k, v), atol=1e-5)
    loss = lambda idle, *x: (run(idle, *x) ** 2).sum()
    grads = [jax.grad(loss, argnums=(1, 2, 3))(own, q, k, v) for own in (idle, None)]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert (np.asarray(attention(q, k, v, idle=idle))[0, length // 2 :] == 0).all() == (idle is not None)


def test_idle_rows_are_counted_by_quarters_of_rows_and_blocks():
    assert Idle.of([10, 20, 40, 64], 4, 64) == Idle((0, 1, 2, 3))
    assert Idle.of([10, 40, 20, 64], 4, 64) == Idle((0, 1, 1, 3))  # only those in front of all that go on
    assert Idle.of([16, 20, 33, 64], 4, 64) == Idle((0, 1, 2, 3))  # to its end a text is read
    assert Idle.of([10] * 3 + [64] * 13, 16, 64) is None
    assert Idle.of([10] * 9 + [64] * 7, 16, 64) == Idle((0, 8, 8, 8))
    assert Idle.of([10] * 5, 16, 64) == Idle((0, 4, 4, 4))  # rows behind the last text are not counted
    assert Idle.of([10] * 3 + [64] * 4, 7, 64) == Idle((0, 2, 2, 2))
    assert Idle.of([40] * 4 + [64] * 12, 16, 64) is None  # a tenth of attention
    assert Idle.of([64] * 16, 16, 64) is None


def test_the_reference_is_jax_dot_product_attention():
    q, k, v = inputs()
    mask = attention_mask(np.arange(12)[None], 12)
    ours = reference_attention(q, k, v, mask)
    np.testing.assert_allclose(ours, jax.nn.dot_product_attention(q, k, v, is_causal=True), atol=1e-5)


def test_a_row_with_nothing_to_see_stays_finite():
    q, k, v = inputs()
    nothing = jax.numpy.zeros((1, 1, 12, 12), bool)
    assert np.isfinite(_folded_attention(q, k, v, nothing)).all()
