"""Texts as vectors, for near-duplicates in meaning.

    vectors = embed(params, config, [tokenizer_ids, ...])          # (N, D), unit length
    vectors = centred(vectors, embed(params, config, seeds).mean(axis=0))
    known = KnownVectors(limit=0.9)
    known.add(vectors, names)
    known.near(vector)                                              # (0.93, "seed-1"), or None

`embed_reference` and `near_vector_reference` are the plain forms.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common import runtime
from common.buckets import bucket
from common.config import ModelConfig
from common.errors import UserError
from common.model.decoder import Params, hidden
from common.model.sharding import ROWS, fetch, place_data
from common.sample.numbers import numbers

SHORTEST = 32
"""Smallest compiled length."""

BLOCK = 8192
"""Known vectors compared at a time."""


def embed(
    params: Params,
    config: ModelConfig,
    token_lists: Sequence[Sequence[int]],
    batch_size: int = 32,
    *,
    dtype: Any = None,
) -> np.ndarray:
    """Vectors (N, D), float32 and of unit length: the mean of the last hidden states over a text's tokens.

    Texts of like length share a batch, right-padded to a few static shapes; padding does not count. `dtype` is
    that of the activations (default: `runtime.compute_dtype`). A text's vector depends on its batch mates by
    rounding only. Where the parameters lie on a mesh, so do the rows of a batch.

    Raises UserError, naming the text by its index, for one without tokens or with more than the model's positions.
    """
    for index, tokens in enumerate(token_lists):
        if not 0 < len(tokens) <= config.max_positions:
            raise UserError(f"text {index} has {len(tokens)} tokens: the model takes 1 to {config.max_positions}")
    dtype = jnp.dtype(dtype or runtime.compute_dtype())
    order = sorted(range(len(token_lists)), key=lambda i: len(token_lists[i]))
    vectors = np.zeros((len(order), config.hidden_size), np.float32)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = np.zeros((batch_size, bucket(len(token_lists[rows[-1]]), SHORTEST)), np.int32)
        # 1 also for rows of padding alone, whose mean would otherwise be a division by zero.
        lengths = np.ones(batch_size, np.int32)
        for row, i in enumerate(rows):
            lengths[row] = len(token_lists[i])
            inputs[row, : lengths[row]] = token_lists[i]
        batch = place_data((inputs, lengths), params, ROWS)
        vectors[rows] = fetch(_embed_batch(params, config, dtype, *batch))[: len(rows)]
    return _unit(numbers(vectors, "hidden states of a text"))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _embed_batch(
    params: Params, config: ModelConfig, dtype: Any, inputs: Int[Array, "B T"], lengths: Int[Array, " B"]
) -> Float[Array, "B D"]:
    h = hidden(params, config, inputs, dtype=dtype).astype(jnp.float32)
    real = jnp.arange(inputs.shape[1]) < lengths[:, None]
    return jnp.where(real[..., None], h, 0).sum(axis=1) / lengths[:, None]


def embed_reference(params: Params, config: ModelConfig, tokens: Sequence[int]) -> np.ndarray:
    """The plain form that `embed` agrees with: the vector (D,) of one text."""
    mean = np.asarray(hidden(params, config, jnp.asarray(tokens)[None])[0]).mean(axis=0)
    return mean / np.linalg.norm(mean)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length; a row of zeros stays one."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def centred(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Vectors (N, D) of unit length minus the `mean` (D,) of a reference set such as the seeds, again normalised.

    The hidden states of a language model lie in a narrow cone (Ethayarajh 2019): any two questions of TREC have a
    cosine of 0.93 in the median under the embedded student, so that no limit on it would separate them. With
    the mean of 60 seeds subtracted it is 0.08, and copies with every sixth word edited are easier to tell from
    random pairs (area under the curve 0.96 instead of 0.93; GSM8K 0.99, 0.96; SNIPS 0.97, 0.94).
    """
    return _unit(vectors - mean)


class KnownVectors:
    """Vectors that a new one must keep its distance from; the store grows by doubling.

    Memory: `dtype` (float32 or float16) for every number, at most twice over, and one block of the search.
    """

    def __init__(self, limit: float, dtype: Any = np.float32):
        """`limit`: the cosine that a near vector exceeds, from -1 to 1. Raises ValueError for another."""
        if not -1 <= limit <= 1:
            raise ValueError(f"the limit of a cosine is between -1 and 1, not {limit}")
        self._limit = limit
        self._store = np.zeros((0, 0), dtype)
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, vectors: np.ndarray, names: Sequence[str]) -> None:
        """Know `vectors` (N, D) of unit length by their names. Raises ValueError if they do not fit together."""
        vectors = np.asarray(vectors)
        width = self._store.shape[1] if self._names else vectors.shape[-1]
        if vectors.shape != (len(names), width):
            raise ValueError(f"{len(names)} names for vectors {vectors.shape}, expected {(len(names), width)}")
        if not self._names:
            self._store = np.zeros((0, width), self._store.dtype)
        total = len(self) + len(names)
        if total > len(self._store):
            # Doubled, or every addition would copy the whole store.
            grown = np.zeros((max(total, 2 * len(self._store)), vectors.shape[1]), self._store.dtype)
            grown[: len(self)] = self._store[: len(self)]
            self._store = grown
        self._store[len(self) : total] = vectors
        self._names.extend(names)

    def near(self, vector: np.ndarray) -> tuple[float, str] | None:
        """The highest cosine of `vector` (D,), of unit length, with any known one and the name of the first that
        has it; None where none exceeds the limit."""
        best, found = self._limit, None
        vector = np.asarray(vector, np.float32)
        for start in range(0, len(self), BLOCK):
            # float16 saves memory; products in it would lose digits.
            cosines = self._store[start : min(start + BLOCK, len(self))].astype(np.float32, copy=False) @ vector
            row = int(cosines.argmax())
            if cosines[row] > best:
                best, found = float(cosines[row]), start + row
        return None if found is None else (best, self._names[found])


def near_vector_reference(
    known: Sequence[tuple[np.ndarray, str]], vector: np.ndarray, limit: float
) -> tuple[float, str] | None:
    """What `KnownVectors(limit).near(vector)` finds after adding every (vector, name) of `known`."""
    best, found = limit, None
    for other, name in known:
        cosine = float(np.dot(other, vector))
        if cosine > best:
            best, found = cosine, (cosine, name)
    return found
