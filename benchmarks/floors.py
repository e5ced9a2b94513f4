"""What this machine could do at most, measured, and what a piece of work needs at least: together the fewest
seconds that any program could take in float32.

    machine = measured()                                       # products a second, bytes a second
    shape = Shape.of(config)
    seconds = shape.flops(tokens=100, pairs=5050, heads=20) / machine.flops

Arithmetic counts products of matrices alone, at the rate of the best of two libraries on shapes that suit it, on
tokens without padding. Norms, activations, softmax and the optimizer come on top of it in every program. What is
written a token at a time is at the best rate of products of as many rows as there are texts. Of memory only what
decoding reads of its cache is counted, of a prompt once for all its answers; weights can be shared by any number
of rows.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from common.config import ModelConfig

PRODUCTS = [(3072, 192, 512), (768, 576, 1536), (1024, 1024, 1024), (2048, 2048, 2048)]
"""Rows, inner and columns: of training small models, of a model of 135M, and two that suit any library."""
DECODED = [(192, 512), (576, 1536), (1024, 4096)]
"""Inner and columns of products of few rows."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """flops: of float32 products, a second. bandwidth: bytes of a matrix read for one row, a second."""

    flops: float
    bandwidth: float

    def decoding(self, rows: int) -> float:
        """Products a second of so many rows, by the better library and with either factor in front."""
        shapes = [(rows, *shape) for shape in DECODED] + [(columns, inner, rows) for inner, columns in DECODED]
        return min(self.flops, max(map(_rate, shapes)))


def measured() -> Machine:
    """The best of ten of each product, by XLA and by PyTorch."""
    row, matrix = jnp.ones((1, 4096)), jnp.ones((4096, 65536))
    read = _fastest(lambda: jax.block_until_ready(_product(row, matrix)))
    return Machine(max(map(_rate, PRODUCTS)), matrix.nbytes / read)


_product = jax.jit(jnp.matmul)


def _rate(shape: tuple[int, int, int]) -> float:
    """Operations a second of a product of this shape, by the faster library."""
    (rows, inner, columns), random = shape, np.random.default_rng(0)
    a, b = (random.normal(size=size).astype(np.float32) for size in ((rows, inner), (inner, columns)))
    ours, theirs = (jnp.array(a), jnp.array(b)), (torch.tensor(a), torch.tensor(b))
    seconds = (
        _fastest(lambda: jax.block_until_ready(_product(*ours))),
        _fastest(lambda: torch.matmul(*theirs)),
    )
    return 2 * rows * inner * columns / min(seconds)


def _fastest(run: Callable[[], object], runs: int = 11) -> float:
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


@dataclasses.dataclass(frozen=True)
class Shape:
    """Multiplications of a model. weights: of a token, in the matrices of all layers; last: in those of the last
    layer behind its attention; scores: of a query and a key, in all layers; head: of a token's logits. cache:
    bytes of a token's keys and values, in all layers."""

    weights: int
    last: int
    scores: int
    head: int
    cache: int

    @classmethod
    def of(cls, config: ModelConfig) -> "Shape":
        """Of a gated model with as many matrices as Llama's."""
        D, H, N, K = config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads
        last = D * H * N + 3 * D * config.intermediate_size
        layer = D * H * (N + 2 * K) + last
        each = config.num_layers * H
        return cls(config.num_layers * layer, last, each * 2 * N, config.vocab_size * D, each * 2 * K * 4)

    def flops(self, *, tokens: int, pairs: int, heads: int) -> float:
        """Of a forward pass over `tokens`, which look at `pairs` of a token and one before it or itself, with
        logits of `heads` positions, which alone the last layer has to go on with. A backward pass takes twice as
        much where all weights are trained."""
        weights = self.weights * tokens - self.last * max(0, tokens - heads)
        return 2.0 * (weights + self.scores * pairs + self.head * heads)

    def text(self, prompt: int, answers: Iterable[int]) -> float:
        """Of reading a prompt once and behind it each of some answers, with logits of all tokens of answers."""
        answers = list(answers)
        read = [max(answer - 1, 0) for answer in answers]  # the last token is predicted and not read
        pairs = _triangle(prompt) + sum(prompt * count + _triangle(count) for count in read)
        return self.flops(tokens=prompt + sum(read), pairs=pairs, heads=sum(answers))

    def read(self, prompt: int, answers: Iterable[int]) -> float:
        """Bytes of the cache that are read to write such answers behind a prompt, its own once for all."""
        answers = list(answers)
        return float(self.cache * (prompt * max(answers) + sum(map(_triangle, answers))))


def _triangle(count: int) -> int:
    return count * (count + 1) // 2
