"""What the parts of a piece of work take, each measured alone, at its own shape, by the faster of two libraries: a
floor under any program that is put together from products, attention, norms and so on of either.

    parts = Parts(config)
    seconds = parts.forward(tokens=512, rows=4, length=128, heads=80)
    seconds = parts.training(tokens=3000, rows=16, length=200, heads=1000) + parts.step()
    seconds = parts.learning(examples, size=16)
    seconds = parts.writing(limits, cache=bytes, bandwidth=a_second)

Where the floors of `floors.py` take the best rate that any product reaches, these take the rate of this product:
one over 32 numbers is far from it. Alone each part finds its data in the cache of the processor, which it does not
in a program (but for what is written a token at a time, where each product has a matrix of its own, as many as the
model has), and what joins them, rotary embeddings among it, is not counted. Of a training one micro-batch of mean
size stands for all.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import floors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.nn import functional

from common.buckets import in_common
from common.config import ModelConfig
from common.model.attention import attention
from common.model.losses import target_logps
from common.model.norms import rms_norm
from common.train.data import Encoded

RATE = functools.cache(floors._rate)


class Parts:
    """Those of a gated model with as many matrices as Llama's."""

    def __init__(self, config: ModelConfig):
        self.config = config
        D, F = config.hidden_size, config.intermediate_size
        heads, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self._matrices = [(D, heads), (D, keys), (D, keys), (heads, D), (D, F), (D, F), (F, D)]

    def forward(self, *, tokens: int, rows: int, length: int, heads: int) -> float:
        """Of `tokens` in `rows` of about this length, with logits of `heads` positions."""
        return self._pass(tokens, rows, length, heads, train=False)

    def training(self, *, tokens: int, rows: int, length: int, heads: int, rank: int = 0) -> float:
        """With the backward pass, to all weights or to adapters of this rank."""
        return self._pass(tokens, rows, length, heads, train=True, rank=rank)

    def learning(self, examples: Sequence[Encoded], size: int, rank: int = 0) -> float:
        """Of a pass over examples in batches of `size`, with the steps of the optimizer; what all prompts begin
        with is read once a batch."""
        steps, tokens = math.ceil(len(examples) / size), [len(e.tokens) for e in examples]
        shared = in_common([e.tokens[: e.prompt_length] for e in examples])
        update = self.training(
            tokens=(sum(tokens) - len(tokens) - shared * (len(tokens) - steps)) // steps,
            rows=size,
            length=sum(tokens) // len(tokens) - shared,
            heads=sum(len(e.tokens) - e.prompt_length for e in examples) // steps,
            rank=rank,
        )
        return steps * (update + (0 if rank else self.step()))

    def _pass(self, tokens: int, rows: int, length: int, heads: int, *, train: bool, rank: int = 0) -> float:
        c = self.config
        D, F, V, H = c.hidden_size, c.intermediate_size, c.vocab_size, c.head_dim

        def products(tokens: int, matrices: list[tuple[int, int]]) -> float:
            found = sum(_products(tokens, *matrix, train, weights=not rank) for matrix in matrices)
            for inner, columns in matrices if rank else ():
                found += _products(tokens, inner, rank, train) + _products(tokens, rank, columns, train)
            return found

        def behind(tokens: int) -> float:
            gate = _part("gate", ((tokens, F), (tokens, F)), train)
            return products(tokens, self._matrices[3:]) + _part("norm", ((tokens, D), (D,)), train) + gate

        queries, keys = (rows, length, c.num_heads, H), (rows, length, c.num_kv_heads, H)
        first = products(tokens, self._matrices[:3]) + _part("norm", ((tokens, D), (D,)), train)
        first += _part("attention", (queries, keys, keys), train)
        layers = c.num_layers * first + (c.num_layers - 1) * behind(tokens)
        if not heads:
            return layers
        # The last layer has to go on with these positions alone.
        layers += behind(min(heads, tokens))
        # The head itself is not trained beside adapters.
        head = _products(heads, D, V, train, weights=not rank) + _part("logps", ((heads, V),), train)
        return layers + head

    def step(self) -> float:
        """Of AdamW, with gradients clipped."""
        c = self.config
        shapes = [shape for shape in self._matrices for _ in range(c.num_layers)] + [(c.vocab_size, c.hidden_size)]
        return min(_step_here(shapes), _step_there(shapes))

    def writing(self, limits: Sequence[int], cache: float, bandwidth: float) -> float:
        """Of answers of so many tokens that are all written at once, a token of each at a time, with `cache` bytes
        read of what was before: products of as many rows as go on, or the weights read once where that is more."""
        c = self.config
        matrices = self._matrices * c.num_layers + [(c.hidden_size, c.vocab_size)]
        weights = 4 * sum(inner * columns for inner, columns in matrices)
        sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
        shapes = {shape: matrices.count(shape) for shape in set(matrices)}
        taken = [
            max(sum(_in_turn(rows, *shape, count) for shape, count in shapes.items()), weights / bandwidth)
            for rows in sizes
        ]
        going = (np.array(limits)[:, None] > np.arange(max(limits))).sum(0)
        most = sizes[-1]  # from there on it grows as they do
        steps = np.interp(np.minimum(going, most), sizes, taken) * np.maximum(going / most, 1)
        return float(steps.sum()) + cache / bandwidth


def _products(tokens: int, inner: int, columns: int, train: bool, weights: bool = True) -> float:
    """Of a product with a matrix, with that for what comes in, and that for the matrix where it is trained."""
    shapes = [(tokens, inner, columns)]
    shapes += [(tokens, columns, inner)] * train + [(inner, tokens, columns)] * (train and weights)
    return sum(2 * tokens * inner * columns / RATE(shape) for shape in shapes)


@functools.cache
def _in_turn(rows: int, inner: int, columns: int, count: int) -> float:
    """Seconds of so many products of few rows one after the other, each with a matrix of its own, by the faster
    library and with either factor in front. With few rows it counts that the matrices come from memory."""
    random = np.random.default_rng(0)
    given = [random.normal(size=(rows, inner)).astype(np.float32) for _ in range(count)]
    matrices = [random.normal(size=(columns, inner)).astype(np.float32) for _ in range(count)]
    ours, own = [jnp.array(w) for w in matrices], [jnp.array(x) for x in given]
    hold = jax.lax.optimization_barrier  # or XLA puts the factors as it likes
    front = jax.jit(lambda xs, ws: [hold(w @ x.T) for x, w in zip(xs, ws, strict=True)])
    behind = jax.jit(lambda xs, ws: [x @ w for x, w in zip(xs, ws, strict=True)])
    seconds = [floors._fastest(lambda: jax.block_until_ready(front(own, ours)))]
    ours = [w.T + 0 for w in ours]
    seconds.append(floors._fastest(lambda: jax.block_until_ready(behind(own, ours))))
    theirs, there = [torch.tensor(w) for w in matrices], [torch.tensor(x) for x in given]
    with torch.inference_mode():
        peer = lambda: [functional.linear(x, w) for x, w in zip(there, theirs, strict=True)]
        return min(*seconds, floors._fastest(peer))


def _norm_there(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, weight.shape, weight, 1e-6)


def _attention_there(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    many = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=many)


def _logps_there(logits: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="none")


BOTH: dict[str, tuple[Callable[..., jax.Array], Callable[..., torch.Tensor]]] = {
    "attention": (attention, _attention_there),
    "norm": (lambda x, weight: rms_norm(x, weight, 1e-6), _norm_there),
    "gate": (lambda x, y: jax.nn.silu(x) * y, lambda x, y: functional.silu(x) * y),
    "logps": (lambda logits: target_logps(logits, jnp.zeros(len(logits), jnp.int32)), _logps_there),
}
"""What is no product with a matrix, here and in PyTorch."""


@functools.cache
def _part(name: str, shapes: tuple[tuple[int, ...], ...], train: bool) -> float:
    """Seconds of one of `BOTH`, with its backward pass where `train`, by the faster library."""
    random = np.random.default_rng(0)
    given = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    here, there = BOTH[name]

    def back(*arrays: jax.Array) -> Any:
        out, pull = jax.vjp(here, *arrays)
        return pull(out)

    ours, own = jax.jit(back if train else here), [jnp.array(x) for x in given]
    theirs = [torch.tensor(x, requires_grad=train) for x in given]

    def peer() -> None:
        out = there(*theirs)
        if train:
            torch.autograd.grad(out, theirs, out.detach())

    with torch.set_grad_enabled(train):
        return min(floors._fastest(lambda: jax.block_until_ready(ours(*own))), floors._fastest(peer))


def _step_here(shapes: Sequence[tuple[int, int]]) -> float:
    weights = [jnp.ones(shape) for shape in shapes]
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(weights: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state

    kept = [weights, optimizer.init(weights)]
    grads = [jnp.ones(shape) for shape in shapes]

    def run() -> None:
        kept[:] = step(*kept, grads)
        jax.block_until_ready(kept)

    return floors._fastest(run)


def _step_there(shapes: Sequence[tuple[int, int]]) -> float:
    weights = [torch.ones(shape, requires_grad=True) for shape in shapes]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)

    def run() -> None:
        for weight in weights:
            weight.grad = torch.ones_like(weight) if weight.grad is None else weight.grad
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return floors._fastest(run)
