"""What the parts of a piece of work take, each measured by itself, at its own shape, by XLA and by PyTorch: the
pace of a program that is put together from products, attention, norms and so on, and has nothing else to do.

    parts = Parts(config)                           # each by the faster library; Parts(config, here=True): by XLA
    seconds = parts.forward(tokens=512, rows=4, length=128, heads=80)
    seconds = parts.training(tokens=3000, rows=16, length=200, heads=1000) + parts.step()
    seconds = parts.learning(examples, size=16)
    seconds = parts.writing(limits, context=24, bandwidth=bytes_a_second)

Where the floors of `floors.py` take the best rate that any product reaches, these take the rate of this product:
one over 32 numbers is far from it. What every layer does is measured for eight layers in one program (where it is
of few tokens, for all), each on numbers of its own; the forms of a product are those that XLA's compiler can be
made to keep. How a program packs its texts, cuts and joins, adds adapters and gradients up, and waits between its
operations is not counted; what it finds in the processor's cache, as it has just written it, may spare it some of
this. Of a training one micro-batch of mean size stands for all.
"""

import dataclasses
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
from common.config import ModelConfig, Rope
from common.model.attention import attention
from common.model.losses import target_logps
from common.model.norms import rms_norm
from common.model.rope import rotate, turns_of
from common.train.data import Encoded

Seconds = tuple[float, float]
"""By XLA, and by PyTorch."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """Those of a gated model with as many matrices as Llama's, by the faster of both libraries or `here` alone."""

    config: ModelConfig
    here: bool = False

    @property
    def _matrices(self) -> list[tuple[int, int]]:
        c = self.config
        D, F = c.hidden_size, c.intermediate_size
        heads, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        return [(D, heads), (D, keys), (D, keys), (heads, D), (D, F), (D, F), (F, D)]

    def _of(self, seconds: Seconds) -> float:
        return seconds[0] if self.here else min(seconds)

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
        c, L = self.config, self.config.num_layers
        D, F, V = c.hidden_size, c.intermediate_size, c.vocab_size
        N, K, H = c.num_heads, c.num_kv_heads, c.head_dim

        def products(tokens: int, matrices: list[tuple[int, int]], count: int) -> float:
            found = sum(self._products(tokens, *matrix, count, train, weights=not rank) for matrix in matrices)
            for inner, columns in matrices if rank else ():
                found += self._products(tokens, inner, rank, count, train)
                found += self._products(tokens, rank, columns, count, train)
            return found

        def behind(tokens: int, count: int) -> float:
            if not count:
                return 0.0
            gate = self._part("gate", ((tokens, F), (tokens, F)), count, train)
            return products(tokens, self._matrices[3:], count) + norm(tokens, count) + gate

        def norm(tokens: int, count: int) -> float:
            return self._part("norm", ((tokens, D), (tokens, D), (D,)), count, train)

        queries, keys = (rows, length, N, H), (rows, length, K, H)
        # Without logits the last layer has keys and values alone.
        looking = L if heads else L - 1
        layers = products(tokens, self._matrices[:1], looking) + products(tokens, self._matrices[1:3], L)
        layers += norm(tokens, L) + behind(tokens, L - 1)
        layers += self._part("attention", (queries, keys, keys), looking, train)
        layers += self._part("rope", ((1, tokens, N, H), (1, tokens, K, H)), looking, train)
        if rank and train:  # nobody asks for the gradient of the embedding
            first = (_product("inputs", tokens, *matrix, L) for matrix in self._matrices[:3])
            layers -= sum(map(self._of, first)) / L
        if not heads:
            return layers
        # The last layer has to go on with these positions alone.
        layers += behind(min(heads, tokens), 1)
        # The head itself is not trained beside adapters.
        head = self._products(heads, D, V, 1, train, weights=not rank)
        return layers + head + self._part("logps", ((heads, V),), 1, train)

    def _products(
        self, tokens: int, inner: int, columns: int, count: int, train: bool, weights: bool = True
    ) -> float:
        """Of products with as many matrices, with those for what comes in, and those for the matrices where they
        are trained."""
        forms = ["forward"] + ["inputs"] * train + ["weights"] * (train and weights)
        return sum(self._of(_product(form, tokens, inner, columns, count)) for form in forms)

    def _part(self, name: str, shapes: tuple[tuple[int, ...], ...], count: int, train: bool) -> float:
        return self._of(_part(name, shapes, count, train))

    def step(self) -> float:
        """Of AdamW, with gradients clipped."""
        c = self.config
        shapes = [shape for shape in self._matrices for _ in range(c.num_layers)] + [(c.vocab_size, c.hidden_size)]
        return self._of(_step(tuple(shapes)))

    def writing(self, limits: Sequence[int], context: int, bandwidth: float) -> float:
        """Of answers of so many tokens that are all written at once, a token of each at a time, which looks at
        `context` on average: products of as many rows as go on, or the weights read once where that is more, and
        what else a step has."""
        c, L = self.config, self.config.num_layers
        N, K, H = c.num_heads, c.num_kv_heads, c.head_dim
        matrices = self._matrices * L + [(c.hidden_size, c.vocab_size)]
        shapes = {shape: matrices.count(shape) for shape in set(matrices)}
        weights = 4 * sum(inner * columns for inner, columns in matrices)

        def step(rows: int) -> float:
            numbers, wide = (rows, c.hidden_size), (rows, c.intermediate_size)
            products = sum(self._products(rows, *shape, n, train=False) for shape, n in shapes.items())
            looking = ((rows, K, N // K, H), (rows, K, H, context), (rows, K, context, H))
            return (
                max(products, weights / bandwidth)
                + self._part("looking", looking, L, train=False)
                + self._part("rope", ((1, rows, N, H), (1, rows, K, H)), L, train=False)
                + self._part("norm", (numbers, numbers, (c.hidden_size,)), 2 * L + 1, train=False)
                + self._part("gate", (wide, wide), L, train=False)
                + self._part("logps", ((rows, c.vocab_size),), 1, train=False)
            )

        sizes = [2**n for n in range(10) if 2**n < 2 * len(limits)]
        going = (np.array(limits)[:, None] > np.arange(max(limits))).sum(0)
        most = sizes[-1]  # from there on it grows as they do
        steps = np.interp(np.minimum(going, most), sizes, [step(rows) for rows in sizes])
        return float((steps * np.maximum(going / most, 1)).sum())


# --- Measured ----------------------------------------------------------------------------------------------------

MEASURED, MANY_TOKENS = 8, 512
"""Layers that stand for all, where there are as many tokens: with few, to send a program off counts beside it."""
RUNS = 7

_hold = jax.lax.optimization_barrier  # or XLA puts factors as it likes

FORMS: dict[str, list[tuple[str, Callable[..., jax.Array]]]] = {
    "forward": [("ti,ic", lambda x, w: x @ w), ("ti,ci", lambda x, w: _hold(w @ x.T).T)],
    "inputs": [("tc,ic", lambda d, w: d @ w.T), ("tc,ic", lambda d, w: _hold(w @ d.T).T)],
    "weights": [
        ("ti,tc", lambda x, d: x.T @ d),
        ("ti,tc", lambda x, d: _hold(x.T) @ d),
        ("ti,tc", lambda x, d: _hold(d.T) @ x),
    ],
}
"""A product with a matrix, that for the gradient of what comes in, and that for the matrix, in XLA's forms: what
goes in has these axes, of tokens, inner numbers and columns."""
THERE: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
    "forward": ("ti,ci", functional.linear),
    "inputs": ("tc,ci", lambda d, w: d @ w),
    "weights": ("ti,tc", lambda x, d: d.T @ x),
}
"""The same in PyTorch."""


@functools.cache
def _product(form: str, tokens: int, inner: int, columns: int, count: int) -> Seconds:
    """Of so many products of one of `FORMS`, in one program or one after the other."""
    size = {"t": tokens, "i": inner, "c": columns}

    def given(axes: str) -> list[tuple[np.ndarray, ...]]:
        return _numbers([tuple(size[axis] for axis in own) for own in axes.split(",")], count, tokens)

    axes, there = THERE[form]
    with torch.inference_mode():
        peer = _seconds_there(there, given(axes), count)
    return min(_seconds_here(here, given(axes), count) for axes, here in FORMS[form]), peer


def _norm_there(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + y
    return total, functional.rms_norm(total, weight.shape, weight, 1e-6)


def _attention_there(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    many = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=many)


def _rotated(q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    turns = turns_of(jnp.arange(q.shape[1])[None], Rope(), q.shape[3])
    return rotate(q, turns, Rope()), rotate(k, turns, Rope())


def _rotated_there(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = _turns_there(q.shape[1], q.shape[3])
    half = lambda x: torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1)
    return q * cos + half(q) * sin, k * cos + half(k) * sin


@functools.cache
def _turns_there(length: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(length)[:, None] * 10000 ** (-torch.arange(0, size, 2) / size)
    both = torch.cat([angles, angles], -1)[:, None]
    return both.cos(), both.sin()


def _looked(q: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    return jax.nn.softmax(q.shape[-1] ** -0.5 * (q @ keys)) @ values


def _looked_there(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q.shape[-1] ** -0.5 * (q @ keys), -1) @ values


def _logps_there(logits: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="none")


BOTH: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "attention": (attention, _attention_there),
    "looking": (_looked, _looked_there),
    "rope": (_rotated, _rotated_there),
    "norm": (lambda x, y, weight: (x + y, rms_norm(x + y, weight, 1e-6)), _norm_there),
    "gate": (lambda x, y: jax.nn.silu(x) * y, lambda x, y: functional.silu(x) * y),
    "logps": (lambda logits: target_logps(logits, jnp.zeros(len(logits), jnp.int32)), _logps_there),
}
"""What is no product with a matrix, here and in PyTorch: a norm with the sum in front of it, and as `looking` the
attention of one token a row."""


@functools.cache
def _part(name: str, shapes: tuple[tuple[int, ...], ...], count: int, train: bool) -> Seconds:
    """Of so many of one of `BOTH`, as `_product`, with its backward pass where `train`."""
    here, there = BOTH[name]

    def back(*arrays: jax.Array) -> Any:
        out, pull = jax.vjp(here, *arrays)
        # In PyTorch those of both terms of a sum are one array; here one would be copied.
        return pull(out)[name == "norm" :]

    def back_there(*arrays: torch.Tensor) -> None:
        out = there(*arrays)
        outs = out if isinstance(out, tuple) else (out,)
        torch.autograd.grad(outs, arrays, [one.detach() for one in outs])

    given = functools.partial(_numbers, shapes, count, math.prod(shapes[0][:-1]))
    ours = _seconds_here(back if train else here, given(), count)
    with torch.set_grad_enabled(train):
        return ours, _seconds_there(back_there if train else there, given(), count, train)


def _numbers(shapes: Sequence[tuple[int, ...]], count: int, tokens: int) -> list[tuple[np.ndarray, ...]]:
    random = np.random.default_rng(0)
    count = min(count, MEASURED) if tokens >= MANY_TOKENS else count
    return [tuple(random.standard_normal(shape, np.float32) for shape in shapes) for _ in range(count)]


def _seconds_here(run: Callable[..., Any], given: list[tuple[np.ndarray, ...]], count: int) -> float:
    all_of = jax.jit(lambda given: [run(*own) for own in given])
    arrays = jax.tree.map(jnp.asarray, given)
    return count / len(given) * floors._fastest(lambda: jax.block_until_ready(all_of(arrays)), RUNS)


def _seconds_there(
    run: Callable[..., Any], given: list[tuple[np.ndarray, ...]], count: int, train: bool = False
) -> float:
    arrays = [tuple(torch.tensor(x, requires_grad=train) for x in own) for own in given]
    return count / len(given) * floors._fastest(lambda: [run(*own) for own in arrays], RUNS)


@functools.cache
def _step(shapes: tuple[tuple[int, int], ...]) -> Seconds:
    return _step_here(shapes), _step_there(shapes)


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
