"""Vectors of texts, and the nearest known one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.config import ModelConfig
from common.errors import UserError
from common.model import decoder
from common.sample import embed as embedding
from common.sample.embed import KnownVectors, centred, embed, embed_reference, near_vector_reference

CONFIG = ModelConfig("llama", 50, 16, 32, 2, 2, 1, 8, 64, tied_head=True)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda w: jnp.asarray(rng.normal(0, 0.3, w.shape), jnp.float32), decoder.abstract_params(CONFIG)
    )


def texts(count, lengths=(5, 33), seed=0):
    """Of few lengths, for each of which the plain form is compiled."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 50, rng.choice(lengths)).tolist() for _ in range(count)]


def test_vectors_equal_those_of_each_text_alone(params):
    given = texts(5)
    vectors = embed(params, CONFIG, given, batch_size=2)
    assert vectors.shape == (5, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    expected = [embed_reference(params, CONFIG, tokens) for tokens in given]
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_padding_and_batch_mates_do_not_count(params):
    given = texts(5)
    together, zeros = embed(params, CONFIG, [*given, [7] * 40], 4), embed(params, CONFIG, [[0], [1, 2]], 4)
    for tokens, vector in zip(given, together, strict=False):
        np.testing.assert_allclose(embed(params, CONFIG, [tokens], 4)[0], vector, atol=2e-6)
    np.testing.assert_allclose(zeros[0], embed_reference(params, CONFIG, [0]), atol=2e-6)  # a real token 0 counts
    assert embed(params, CONFIG, []).shape == (0, 16)


def test_few_shapes_are_compiled(params):
    embed(params, CONFIG, [[1] * 32, [1] * 48], 2)
    before = embedding._embed_batch._cache_size()
    for seed in range(3):
        embed(jax.tree.map(lambda w: w + 0.1, params), CONFIG, texts(7, range(1, 49), seed), 2)
    assert embedding._embed_batch._cache_size() <= before + 1  # lengths up to 32 and up to 48


def test_texts_that_cannot_be_embedded_are_named(params):
    for bad in ([], [1] * 65):
        with pytest.raises(UserError, match="text 1 has"):
            embed(params, CONFIG, [[1], bad])


def test_centred_vectors_have_unit_length_and_no_common_direction():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 8)).astype(np.float32) + 5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    result = centred(vectors, vectors.mean(axis=0))
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, rtol=1e-5)
    assert np.median(vectors @ vectors.T) > 0.9
    assert abs(np.median(result @ result.T)) < 0.1
    mean = vectors[0]
    assert not centred(vectors[:1], mean).any()  # a vector that is the mean has no direction


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_near_equals_the_search_through_all(dtype, monkeypatch):
    monkeypatch.setattr(embedding, "BLOCK", 16)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(90, 4)).astype(np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype).astype(np.float32)
    known, plain, found = KnownVectors(0.9, dtype), [], 0
    assert known.near(vectors[0]) is None
    for start in range(0, 80, 5):
        names = [f"v{i}" for i in range(start, start + 5)]
        known.add(vectors[start : start + 5], names)
        plain += zip(vectors[start : start + 5], names, strict=True)
        for vector in vectors[80:]:
            near, expected = known.near(vector), near_vector_reference(plain, vector, 0.9)
            assert (near is None) == (expected is None)
            if near is not None:
                assert near == (pytest.approx(expected[0], abs=1e-5), expected[1])
                found += 1
    assert len(known) == 80
    assert found > 10


def test_known_vectors_refuse_what_does_not_fit():
    known = KnownVectors(0.5)
    known.add(np.eye(3), ["a", "b", "c"])
    assert known.near(np.eye(3)[1]) == (1.0, "b")
    assert KnownVectors(1.0).near(np.eye(3)[1]) is None
    for vectors, names in ((np.eye(3), ["a"]), (np.eye(2), ["a", "b"]), (np.ones(3), ["a"])):
        with pytest.raises(ValueError, match="names for vectors"):
            known.add(vectors, names)
    with pytest.raises(ValueError, match="between -1 and 1"):
        KnownVectors(1.5)
