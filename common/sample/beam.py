"""Diverse beam search with as many groups as beams: k answers to a prompt that differ, without randomness.

    generator = BeamGenerator(name, params, config, tokenizer, penalty=1.0)
    for records in generator.generate([Request("a", messages, n=10)], SampleConfig(160), seed=0): ...

Vijayakumar et al. 2018 (AAAI, arXiv 1610.02424) split B beams into G groups; a group is searched after those
before it, and pays for each of their beams that took the same token at the same step (Hamming diversity). With G
= B, as in pools of the authors of active inheritance, a group is one beam and its search greedy: a group takes
the token of the highest log p - penalty · (how many of the unfinished groups before it took it at this step).
The first group's answer is the greedy one. Transformers, in whose terms this is num_beams = num_beam_groups,
searches on after an end token and ranks answers; here an answer ends at its end token, and stays in its group's
place. `reference.diverse_reference` is the plain form.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common.buckets import bucket, power_of_two
from common.config import ModelConfig, SampleConfig
from common.errors import UserError
from common.generate import Record, Request
from common.model.decoder import Cache, Params, copy_rows, decode, empty_cache, prefill, unembed
from common.model.sharding import CACHE, ROWS, fetch, place_data
from common.model.tokenizer import Tokenizer
from common.progress import progress_bar
from common.sample.cache import SHORTEST_CACHE
from common.sample.choose import likeliest
from common.sample.numbers import numbers
from common.sample.prompt import Completion, Prompt, check

BATCH = 8
"""Prompts searched together and yielded at one time. Fixed, so that a run that was killed goes on with the
same batches, and so with the same bits."""


class BeamGenerator:
    """A `common.generate.Generator` whose samples of a request are the groups of one search. Temperature, top-p
    and seed mean nothing here."""

    def __init__(
        self, name: str, params: Params, config: ModelConfig, tokenizer: Tokenizer, *, penalty: float = 1.0
    ):
        self.name, self._penalty = name, penalty
        self._params, self._config, self._tokenizer = params, config, tokenizer

    def generate(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        """Yield the records of `BATCH` requests at a time. A prompt that does not fit gives failed records."""
        with progress_bar(total=len(requests), desc=self.name, unit="prompt") as bar:
            for start in range(0, len(requests), BATCH):
                yield self._batch(requests[start : start + BATCH], sampling)
                bar.update(len(requests[start : start + BATCH]))

    def seen(self, records: Sequence[Record]) -> None:
        """Nothing to remember."""

    def _batch(self, requests: Sequence[Request], sampling: SampleConfig) -> list[Record]:
        tokenizer, config = self._tokenizer, self._config
        prompts, errors = [tokenizer.encode_prompt(request.messages) for request in requests], []
        for tokens in prompts:
            try:
                check(Prompt(tokens, sampling), config, "the prompt")
                errors.append(None)
            except UserError as error:
                errors.append(str(error))
        fitting = [tokens for tokens, error in zip(prompts, errors, strict=True) if not error]
        # One search for all: a group does not depend on later ones, so a request takes as many as it wants.
        groups = max(request.n for request in requests)
        found = iter(self._search(fitting, groups, sampling.max_new_tokens) if fitting else ())
        records = []
        for request, tokens, error in zip(requests, prompts, errors, strict=True):
            completions = [None] * request.n if error else next(found)[: request.n]
            records += [self._record(request, i, c, len(tokens), error) for i, c in enumerate(completions)]
        return records

    def _search(self, prompts: list[list[int]], groups: int, limit: int) -> list[list[Completion]]:
        padded = prompts + [prompts[0]] * (BATCH - len(prompts))  # one shape for all batches
        completions = diverse(
            self._params, self._config, padded, self._tokenizer.eos_ids, groups, limit, self._penalty
        )
        return completions[: len(prompts)]

    def _record(
        self, request: Request, i: int, found: Completion | None, prompt_tokens: int, error: str | None
    ) -> Record:
        if found is None:
            return Record(request.id, i, "failed", None, error, prompt_tokens=prompt_tokens)
        ended = found.finish == "stop"
        return Record(
            request.id,
            i,
            "ok" if ended else "length",
            self._tokenizer.decode(found.tokens[:-1] if ended else found.tokens),
            prompt_tokens=prompt_tokens,
            completion_tokens=len(found.tokens),
            mean_logp=round(sum(found.logps) / len(found.logps), 5),
        )


def diverse(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    eos_ids: Sequence[int],
    groups: int,
    limit: int,
    penalty: float,
) -> list[list[Completion]]:
    """For every prompt `groups` answers of at most `limit` tokens. The longest prompt and `limit` must fit into
    the model together."""
    rows = len(prompts) * groups
    longest = max(map(len, prompts))
    tokens = np.zeros((len(prompts), bucket(longest)), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    cache = empty_cache(config, rows, bucket(longest + limit, SHORTEST_CACHE), dtype=params["embed"].dtype)
    cache = place_data(cache, params, CACHE)
    tokens = place_data(tokens, params, ROWS)
    cache = _filled(params, config, cache, tokens, np.arange(rows) // groups)
    eos = np.pad(
        np.array(eos_ids, np.int32), (0, power_of_two(len(eos_ids), 8) - len(eos_ids)), constant_values=-1
    )
    # The last token of a prompt is fed again, over its own place in the cache: that gives the first logits.
    last = np.repeat([prompt[-1] for prompt in prompts], groups).astype(np.int32)
    place = np.repeat([len(prompt) - 1 for prompt in prompts], groups).astype(np.int32)
    found, logps = fetch(_search(params, config, cache, last, place, eos, groups, limit, np.float32(penalty)))
    completions = []
    for row in range(rows):
        count = int((found[:, row] >= 0).sum())
        own = found[:count, row].tolist()
        finish = "stop" if own[-1] in eos_ids else "length"
        likelihoods = numbers(logps[:count, row], "log-probabilities of a sampled answer")
        completions.append(Completion(own, likelihoods.tolist(), finish))
    return [completions[start : start + groups] for start in range(0, rows, groups)]


@functools.partial(jax.jit, static_argnums=1, donate_argnums=2)
def _filled(params: Params, config: ModelConfig, cache: Cache, tokens: jax.Array, rows: jax.Array) -> Cache:
    prefilled = prefill(params, config, tokens, dtype=params["embed"].dtype)
    short = cache[0][1].shape[2]
    prefilled = [(keys[..., :short], values[:, :, :short]) for keys, values in prefilled]
    return copy_rows(cache, prefilled, rows, jnp.arange(len(rows)))


@functools.partial(jax.jit, static_argnums=(1, 6, 7))
def _search(
    params: Params,
    config: ModelConfig,
    cache: Cache,
    token: Int[Array, " B"],
    position: Int[Array, " B"],
    eos: Int[Array, " E"],
    groups: int,
    limit: int,
    penalty: Float[Array, ""],
) -> tuple[Int[Array, "limit B"], Float[Array, "limit B"]]:
    """Tokens and log-probabilities of all rows, the groups of a prompt side by side; -1 after an end."""

    def one_token(state: dict[str, Any]) -> dict[str, Any]:
        h, cache = decode(
            params,
            config,
            state["cache"],
            state["token"][:, None],
            state["position"][:, None],
            dtype=params["embed"].dtype,
        )
        logps = jax.nn.log_softmax(unembed(params, config, h[:, 0]))
        live = state["live"]
        token = _by_group(logps.reshape(-1, groups, logps.shape[1]), live.reshape(-1, groups), penalty).reshape(-1)
        token = jnp.where(live, token, state["token"])  # a finished row repeats itself, unread
        logp = jnp.take_along_axis(logps, token[:, None], 1)[:, 0]
        return {
            "i": state["i"] + 1,
            "cache": cache,
            "token": token,
            "position": state["position"] + live,
            "live": live & ~jnp.isin(token, eos),
            "tokens": state["tokens"].at[state["i"]].set(jnp.where(live, token, -1)),
            "logps": state["logps"].at[state["i"]].set(logp),
        }

    state = {"i": 0, "cache": cache, "token": token, "position": position, "live": jnp.ones(token.shape, bool)}
    state["tokens"] = jnp.full((limit, len(token)), -1, jnp.int32)
    state["logps"] = jnp.zeros((limit, len(token)))
    state = jax.lax.while_loop(lambda s: (s["i"] < limit) & s["live"].any(), one_token, state)
    return state["tokens"], state["logps"]


def _by_group(logps: Float[Array, "P G V"], live: Array, penalty: Array) -> Int[Array, "P G"]:
    """One group after another takes its token."""

    def group(taken: Float[Array, "P V"], scores_and_live: Any) -> tuple[Array, Array]:
        scores, live = scores_and_live
        token = likeliest(scores - penalty * taken)
        # A group that has ended repeats its token, for which nobody pays.
        return taken.at[jnp.arange(len(token)), token].add(live), token

    taken = jnp.zeros((logps.shape[0], logps.shape[2]))
    _, tokens = jax.lax.scan(group, taken, (logps.swapaxes(0, 1), live.T.astype(jnp.float32)))
    return tokens.T
