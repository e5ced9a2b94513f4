"""The next token of many rows at once, from their logits and one random number each.

    numbers = uniform(keys, steps)                                   # (n, B) in [0, 1)
    tokens = choose(logits, numbers[0], temperature, top_p, top_k)   # (B,)

Every row has its own temperature, top-p and top-k, so that samples with different settings decode together.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from common.buckets import power_of_two

_BITS_OF_ONE = int(np.float32(1).view(np.int32))


def key_data(seed: int) -> tuple[int, int]:
    """A 64-bit seed as the two words of a threefry key; `jax.random.key(seed)` for seeds below 2**32."""
    return seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF


def uniform(key: UInt32[Array, "B 2"], step: Int[Array, "n B"]) -> Float[Array, "n B"]:
    """The random number in [0, 1) of each row at each step: 24 bits of the row's key with the step folded in."""
    fold_in = jax.vmap(jax.vmap(jax.random.fold_in), in_axes=(None, 0))
    folded = jax.random.key_data(fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), step))
    # As many bits as a float32 holds exactly: with all 32 rounding could give 1.
    return (folded[..., 0] >> 8) * jnp.float32(2**-24)


def choose(
    logits: Float[Array, "B V"],
    uniform: Float[Array, " B"],
    temperature: Float[Array, " B"],
    top_p: Float[Array, " B"],
    top_k: Int[Array, " B"],
) -> Int[Array, " B"]:
    """The next token of each row: the likeliest at temperature 0, else drawn by the row's random number."""
    greedy = likeliest(logits)

    def drawn():
        # Nothing drawn for a greedy row is used, but dividing by its 0 would give NaN.
        scaled = logits / jnp.where(temperature > 0, temperature, 1.0)[:, None]
        weights = jnp.exp(scaled - scaled.max(1, keepdims=True))
        return jnp.where(temperature > 0, draw(cut(weights, top_p, top_k), uniform), greedy)

    # A batch of greedy rows alone skips the search.
    return jax.lax.cond((temperature > 0).any(), drawn, lambda: greedy)


def likeliest(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The token of the largest logit, of equals the first. In two steps, first the piece of the vocabulary, since
    XLA on CPU finds the largest of a row quickly, but its place number by number."""
    pieces = _pieces(logits)
    piece = jnp.argmax(pieces.max(axis=2), axis=1)
    place = jnp.argmax(jnp.take_along_axis(pieces, piece[:, None, None], axis=1)[:, 0], axis=1)
    return (piece * pieces.shape[2] + place).astype(jnp.int32)


def log_total(logits: Float[Array, "B V"]) -> Float[Array, " B"]:
    """The log of the sum of exp(logits). The largest of each row is found as by `likeliest`, so that the compiler
    looks for it once where both are asked for."""
    top = _pieces(logits).max(axis=2).max(axis=1)
    return jnp.log(jnp.exp(logits - top[:, None]).sum(axis=1)) + top


def _pieces(logits: Float[Array, "B V"]) -> Float[Array, "B n size"]:
    """Rows cut into about as many pieces as a piece has tokens."""
    size = power_of_two(math.isqrt(logits.shape[1]))
    padded = jnp.pad(logits, ((0, 0), (0, -logits.shape[1] % size)), constant_values=-jnp.inf)
    return padded.reshape(len(logits), -1, size)


def cut(weights: Float[Array, "B V"], top_p: Float[Array, " B"], top_k: Int[Array, " B"]) -> Float[Array, "B V"]:
    """`weights` (the largest of a row 1) with zeros outside the `top_k` largest, and among these outside the
    smallest set that has the share `top_p` of their sum.

    No sort: both sets are the tokens from a threshold on, which is found by bisection. Positive floats are ordered
    like their bits, so 30 halvings between 0 and 1 give it exactly. Tokens tied at it all stay.
    """

    def smaller(phase: jax.Array, weights: jax.Array) -> jax.Array:
        """Cut by count in phase 0, by share in phase 1."""
        by_count = phase == 0
        terms = jnp.where(by_count, 1.0, weights)
        wanted = jnp.where(by_count, top_k, top_p * weights.sum(1))

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            enough = jnp.where(weights >= as_float(middle), terms, 0.0).sum(1) >= wanted
            return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

        low = jnp.zeros(weights.shape[0], jnp.int32)
        low, _ = jax.lax.fori_loop(0, 30, halve, (low, jnp.full_like(low, _BITS_OF_ONE + 1)))
        # A row without this cut is not touched: rounding of its sum must not cost it unlikely tokens.
        off = jnp.where(by_count, top_k == 0, top_p >= 1)[:, None]
        return jnp.where((weights >= as_float(low)) | off, weights, 0.0)

    def as_float(bits: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(bits, jnp.float32)[:, None]

    # Only the phases that some row asks for.
    first, last = jnp.where((top_k > 0).any(), 0, 1), jnp.where((top_p < 1).any(), 2, 1)
    return jax.lax.fori_loop(first, last, smaller, weights)


def draw(weights: Float[Array, "B V"], uniform: Float[Array, " B"]) -> Int[Array, " B"]:
    """The token at which the running sum of `weights` first exceeds the share `uniform` of the whole sum.

    The search has two steps, first for a piece of the vocabulary, then for the token in it. One random number a
    row, not Gumbel noise for every token as is usual: that would take as long as all layers of a small model.
    """
    size = power_of_two(math.isqrt(weights.shape[1]))
    pieces = jnp.pad(weights, ((0, 0), (0, -weights.shape[1] % size))).reshape(len(weights), -1, size)

    def search(weights, target):
        """The place where the running sum first exceeds `target`, and what is left of `target` there."""
        count = weights.shape[1]
        # By default accelerators round the factors to fewer bits, which could change the token.
        sums = jnp.matmul(weights, jnp.triu(jnp.ones((count, count))), precision="highest")
        # Where rounding leaves the sum of all below the target, the last token with any weight is meant.
        last = count - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=1)
        place = jnp.minimum((sums <= target[:, None]).sum(1), last)[:, None]
        before = jnp.take_along_axis(sums - weights, place, 1)
        return place, target - before[:, 0]

    totals = pieces.sum(2)
    piece, rest = search(totals, uniform * totals.sum(1))
    place, _ = search(jnp.take_along_axis(pieces, piece[..., None], 1)[:, 0], rest)
    return (piece * size + place)[:, 0].astype(jnp.int32)
