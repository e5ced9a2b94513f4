"""Sampling from a decoder: many prompts, several samples each, continuous batching over a number of slots.

    sampler = Sampler(params, config, eos_ids=tokenizer.eos_ids)
    [[completion]] = sampler.sample([Prompt(tokenizer.encode_prompt(messages), SampleConfig())])

A distinct prompt is prefilled once, what many begin with once for all of them (in each stream, of which there
may be two), and its keys and values are copied to one slot a sample. All slots then decode together, a block of
tokens at a time on the device; between blocks the host takes out finished samples and fills their slots anew.
Each row draws from its own random key, so a sample's tokens depend on its prompt, settings and seed alone: not
on the other rows, its slot, or the order of refills. Only the last bits of its log-probabilities depend on how
many decode together: that is decided by what a call asks for, and where none waits any more and half are done,
the others go on in fewer slots. On CPU a small model writes in two streams of slots, side by side. The plain
form is `reference.sample_reference`.
"""

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from common import runtime, streams
from common.buckets import (
    FEW_SLOTS,
    MANY_SLOTS,
    PREFILLED,
    SLOTS,
    SMALL_MODEL,
    STREAMED_MODEL,
    bucket,
    many_slots_up_to,
    power_of_two,
    turns,
)
from common.config import ModelConfig
from common.errors import UserError
from common.model.decoder import Cache, Params, count_params, decode, grow_cache, prefill, unembed
from common.model.packing import Packing
from common.model.pages import PAGE, Pages
from common.model.sharding import CACHE, ROWS, data_shardings, fetch, mesh_of, place_data
from common.model.turned import turned
from common.sample.cache import PagedCache, RowCache, SlotCache
from common.sample.choose import choose, log_total, uniform
from common.sample.prompt import Completion, Prompt, check
from common.sample.slots import Job, Queue, Slots, packed, padded
from common.streams import Task, side_by_side

LONG_REST = 48
"""Fewest tokens that the last samples may still get for a program of fewer than `SLOTS` to be worth it."""


class Sampler:
    """A model ready to sample from, with at most `slots` rows that decode together in a stream and `block` tokens
    between refills.

    Equal shapes share compiled programs, also between Samplers: a retrained model starts at once.
    `slots` is a power of two (default: what the device is fast with for the prompts given); `dtype` is that of
    weights and cache (default: `runtime.compute_dtype`).
    """

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        *,
        eos_ids: Sequence[int],
        slots: int | None = None,
        block: int = 16,
        dtype: Any = None,
    ):
        if slots is not None and (slots < 1 or slots & (slots - 1)):
            raise UserError(f"slots must be a power of two, not {slots}")
        self.config, self.slots, self.block = config, slots, block
        self.dtype = jnp.dtype(dtype or runtime.compute_dtype())
        # Of one length for nearly all models, as it is part of the compiled shape; -1 is no token.
        self._eos = np.pad(
            np.array(eos_ids, np.int32), (0, power_of_two(len(eos_ids), 8) - len(eos_ids)), constant_values=-1
        )
        self._mesh = mesh_of(params)
        # The very arrays where they have this dtype already: the weights are held once.
        self._params = jax.tree.map(lambda w: jnp.asarray(w, self.dtype), params)
        self._size = count_params(params)
        self._turned: Params | None = None
        self._turning = threading.Lock()  # of two streams one makes the copy

    def sample(
        self, prompts: Sequence[Prompt], on_done: Callable[[], object] | None = None
    ) -> list[list[Completion]]:
        """Samples of each prompt, in the order of its seeds. `on_done` is called after each finished sample.

        Raises UserError, naming the prompt by its index, for an empty prompt, one too long for the model, or
        sampling settings out of range.
        """
        for index, prompt in enumerate(prompts):
            check(prompt, self.config, f"prompt {index}")
        results: list[list[Any]] = [[None] * len(prompt.seeds) for prompt in prompts]

        def keep(job: Job) -> None:
            results[job.prompt_index][job.sample_index] = Completion(job.tokens, job.logps, job.finish)
            if on_done:
                on_done()

        count = self._streams(prompts)
        slots = self.slots or self._width(prompts, count)
        queues = [Queue(prompts, stream, count) for stream in range(count)]
        side_by_side([self._writing(queue, slots, self._cache(prompts, slots), keep) for queue in queues])
        return results

    def _writing(self, queue: Queue, count: int, cache: SlotCache, keep: Callable[[Job], None]) -> Task:
        """Writes the samples of a queue in so many slots, and hands each over that is finished."""
        slots = Slots(count, queue.distinct)
        while queue.waiting or slots.live.any():
            tokens, logps = yield functools.partial(self._block, cache, slots, queue)
            for job in slots.advance(tokens, logps, self._eos):
                keep(job)

    def _block(self, cache: SlotCache, slots: Slots, queue: Queue) -> tuple[np.ndarray, np.ndarray]:
        """The next tokens of all slots and their log-probabilities (block, B), after what has to be done for them:
        free slots are filled anew, or those that are left go on in fewer."""
        if slots.live.sum() <= slots.few(queue.waiting):
            self._refill(cache, slots, queue)
        elif not queue.waiting and isinstance(cache, PagedCache) and (fewer := self._fewer(slots)):
            kept = slots.narrow(fewer)
            cache.narrow(kept, slots.live, slots.ends(self.block))
        pages = cache.room(slots.live, slots.rows["position"], slots.ends(self.block))
        # Numbered by the sample's own steps: its random numbers do not depend on when its slot was filled.
        steps = slots.rows["step"] + np.arange(self.block, dtype=np.int32)[:, None]
        weights, is_turned = self._weights(slots.count)
        cache.arrays, tokens, logps = _decode_block(
            weights,
            self.config,
            cache.arrays,
            slots.rows,
            _uniform(slots.rows["key"], steps),
            self._eos,
            slots.few(queue.waiting),
            pages,
            turned=is_turned,
            mesh=self._mesh,
        )
        return fetch((tokens, logps))

    def _weights(self, rows: int) -> tuple[Params, bool]:
        """What so many rows decode with, and whether it is turned: a copy, made when it is first asked for."""
        if self._mesh is not None or runtime.on_accelerator() or not turns(self._size, rows):
            return self._params, False
        with self._turning:
            if self._turned is None:
                self._turned = turned(self._params)
        return self._turned, True

    def _streams(self, prompts: Sequence[Prompt]) -> int:
        """In how many streams of slots these prompts are answered."""
        samples = sum(len(prompt.seeds) for prompt in prompts)
        worth = self._mesh is None and self._size <= STREAMED_MODEL and samples > (self.slots or SLOTS)
        return streams.most() if worth else 1

    def _width(self, prompts: Sequence[Prompt], streams: int = 1) -> int:
        """Slots of each of these streams."""
        if runtime.on_accelerator():
            return MANY_SLOTS
        wanted = [prompt for prompt in prompts if prompt.seeds]
        # In fours, as a step of more rows than there are samples takes longer.
        samples = 4 * math.ceil(sum(len(prompt.seeds) for prompt in wanted) / (4 * streams))
        if samples <= SLOTS or self._mesh is not None:
            return SLOTS
        longest = max(len(prompt.tokens) + prompt.sampling.max_new_tokens for prompt in wanted)
        most = many_slots_up_to(self._size, self.config.cached * self.dtype.itemsize)
        return min(samples, MANY_SLOTS) if longest <= most else SLOTS

    def _cache(self, prompts: Sequence[Prompt], slots: int) -> SlotCache:
        """With room for first tokens: in rows behind the longest prompt, in pages behind one of mean length."""
        ends = [
            len(prompt.tokens) + min(self.block, prompt.sampling.max_new_tokens)
            for prompt in prompts
            for _ in prompt.seeds
        ]
        if runtime.on_accelerator() or self._mesh is not None:
            return RowCache(self.config, slots, max(ends, default=0), self.dtype, self._params)
        pages = np.mean([math.ceil(end / PAGE) for end in ends]) if ends else 0
        return PagedCache(self.config, slots, math.ceil(slots * pages), self.dtype, self._params)

    def _fewer(self, slots: Slots) -> int:
        """To how many slots those samples that are left should go, when none waits any more; 0: they stay."""
        if self._size <= SMALL_MODEL:
            return 0
        least = FEW_SLOTS if slots.most_left() >= LONG_REST else SLOTS
        fewer = max(least, power_of_two(int(slots.live.sum())))
        return fewer if fewer < slots.count else 0

    def _refill(self, cache: SlotCache, slots: Slots, queue: Queue) -> None:
        """Fill free slots with waiting samples, prefilling prompts as needed."""
        # On a mesh a part of the slots is of as many rows as it has.
        most = PREFILLED if isinstance(cache, PagedCache) else math.inf
        while queue.waiting and not slots.live.all():
            if not queue.ready:
                shared, prompts, rows = queue.next_prompts(slots.together, most)
                if shared != queue.shared:  # prompts that have it in common follow one another
                    once = np.array([shared], np.int32)
                    queue.begun = _prefill(self._params, self.config, once) if shared else None
                    queue.shared = shared
                if self._size <= SMALL_MODEL or not isinstance(cache, PagedCache):
                    tokens = place_data(padded(prompts, rows, bucket), self._params, ROWS)
                    queue.prefilled = _prefill(self._params, self.config, tokens, queue.begun, cache.multiple)
                else:
                    shape, tokens, real = packed(prompts)
                    queue.prefilled = _prefill_packed(
                        self._params, self.config, tokens, real, shape, queue.begun, cache.multiple
                    )
            # A place beyond the last slot, where nothing is written: the copy has one shape however many are free.
            rows, lengths = np.zeros((2, slots.group), np.int32)
            to = np.full(slots.group, slots.count, np.int32)
            free = np.flatnonzero(~slots.live)
            for i in range(min(len(free), len(queue.ready), slots.group)):
                to[i] = free[i]
                rows[i], job = queue.pop()
                slots.start(int(free[i]), job)
                lengths[i] = len(job.prompt.tokens) - 1
            cache.fill(queue.prefilled, rows, to, lengths, slots.live)


@functools.partial(jax.jit, static_argnums=(1, 4))
def _prefill(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array | np.ndarray, "P T"],
    after: Cache | None = None,
    multiple: int = 1,
) -> Cache:
    """The cache of prompts, of a length that is a multiple of this."""
    cache = prefill(params, config, tokens, dtype=params["embed"].dtype, after=after)
    length = cache[0][1].shape[2]
    return grow_cache(cache, length + -length % multiple)


@functools.partial(jax.jit, static_argnums=(1, 4, 6))
def _prefill_packed(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array | np.ndarray, " N"],
    real: Int[Array | np.ndarray, " N"],
    shape: tuple[int, int],
    after: Cache | None,
    multiple: int,
) -> Cache:
    """As `_prefill`, of prompts one behind the other, which are those of so many rows and such a length."""
    packing = Packing.of(real, None, *shape)
    # In rows, as in training: XLA on CPU takes longer for one.
    tokens = tokens.reshape(math.gcd(16, tokens.size), -1)
    cache = prefill(params, config, tokens, packing, dtype=params["embed"].dtype, after=after)
    length = cache[0][1].shape[2]
    return grow_cache(cache, length + -length % multiple)


# A program of its own: compiled once for all models and cache lengths.
_uniform = jax.jit(uniform)


@functools.partial(jax.jit, static_argnums=1, static_argnames=("turned", "mesh"), donate_argnums=2)
def _decode_block(
    params: Params,
    config: ModelConfig,
    cache: Cache,
    rows: dict[str, jax.Array],
    numbers: Float[Array, "block B"],
    eos: Int[Array, " E"],
    few: Int[Array, ""],
    pages: Pages | None = None,
    *,
    turned: bool = False,
    mesh: Mesh | None = None,
) -> tuple[Cache, Int[Array, "block B"], Float[Array, "block B"]]:
    """Up to `block` tokens of every live row, fewer if only `few` rows are left. Tokens not sampled are -1."""
    block, B = numbers.shape

    def going(state: dict[str, Any]) -> jax.Array:
        return (state["i"] < block) & (state["live"].sum() > few)

    def one_token(state: dict[str, Any]) -> dict[str, Any]:
        i, live, position = state["i"], state["live"], state["position"]
        h, cache = decode(
            params,
            config,
            state["cache"],
            state["token"][:, None],
            position[:, None],
            pages,
            dtype=params["embed"].dtype,
            turned=turned,
        )
        logits = unembed(params, config, h[:, 0], turned=turned)
        token = choose(logits, numbers[i], rows["temperature"], rows["top_p"], rows["top_k"])
        logp = jnp.take_along_axis(logits, token[:, None], 1)[:, 0] - log_total(logits)
        step = state["step"] + 1
        return {
            "i": i + 1,
            "cache": cache,
            "live": live & (step < rows["limit"]) & ~jnp.isin(token, eos),
            # A row that is done feeds its last token again and again, to a place that nobody reads.
            "token": jnp.where(live, token, state["token"]),
            "position": jnp.where(live, position + 1, position),
            "step": step,
            "tokens": state["tokens"].at[i].set(jnp.where(live, token, -1)),
            "logps": state["logps"].at[i].set(logp),
        }

    state: dict[str, Any] = {name: rows[name] for name in ("live", "token", "position", "step")} | {
        "i": 0,
        "cache": cache,
        "tokens": jnp.full((block, B), -1, jnp.int32),
        "logps": jnp.zeros((block, B)),
    }
    state = jax.lax.while_loop(going, one_token, state)
    cache = state["cache"]
    if mesh is not None:
        # Left alone, the compiler may split it otherwise than it came, and the next block compiles again.
        cache = jax.lax.with_sharding_constraint(cache, data_shardings(mesh, cache, CACHE))
    return cache, state["tokens"], state["logps"]
