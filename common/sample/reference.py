"""Sampling and diverse beam search in their readable form: one answer after another, a full forward pass a token.

`Sampler.sample` and `beam.diverse` are tested against these, token by token.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common.buckets import bucket
from common.config import ModelConfig, SampleConfig
from common.model.decoder import Params, hidden, unembed
from common.sample.cache import SHORTEST_CACHE
from common.sample.choose import key_data
from common.sample.prompt import Completion, Prompt


@functools.partial(jax.jit, static_argnums=1)
def _next_logits(
    params: Params, config: ModelConfig, tokens: Int[Array, " T"], last: Int[Array, ""]
) -> Float[Array, " V"]:
    """Logits of the token to follow position `last` of right-padded `tokens`."""
    return unembed(params, config, hidden(params, config, tokens[None])[0, last])


def sample_reference(
    params: Params, config: ModelConfig, prompt: Prompt, eos_ids: Sequence[int]
) -> list[Completion]:
    """What `Sampler.sample` gives for one prompt: one sample after another, a full forward pass a token."""
    completions = []
    for seed in prompt.seeds:
        tokens: list[int] = []
        logps: list[float] = []
        finish: Literal["stop", "length"] = "length"
        keep, sampling = None, prompt.sampling
        for step in range(sampling.max_new_tokens):
            text = [*prompt.tokens, *tokens]
            length = bucket(len(prompt.tokens) + sampling.max_new_tokens, SHORTEST_CACHE)
            padded = np.pad(text, (0, length - len(text)))
            logits = np.asarray(_next_logits(params, config, padded, len(text) - 1))
            tokens.append(_choose_reference(logits, seed, step, sampling))
            logps.append(float(logits[tokens[-1]] - np.logaddexp.reduce(logits)))
            keep = prompt.stop_at(tokens) if prompt.stop_at else None
            if keep is not None or tokens[-1] in eos_ids:
                finish = "stop"
                break
        completions.append(Completion(tokens[:keep], logps[:keep], finish))
    return completions


def _choose_reference(logits: np.ndarray, seed: int, step: int, sampling: SampleConfig) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits / np.float32(sampling.temperature)
    order = np.argsort(-scaled, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = np.exp(scaled[order] - scaled[order[0]])
    before = (np.cumsum(weights) - weights) / weights.sum()  # mass of likelier tokens
    # In the order of the vocabulary, in which `choose.draw` sums as well.
    kept = np.sort(order[before < sampling.top_p])
    key = jax.random.wrap_key_data(jnp.array(key_data(seed), jnp.uint32), impl="threefry2x32")
    number = (int(jax.random.key_data(jax.random.fold_in(key, step))[0]) >> 8) / 2**24
    sums = np.cumsum(np.exp(scaled[kept] - scaled[order[0]], dtype=np.float64))
    return int(kept[np.searchsorted(sums, number * sums[-1], side="right")])


def diverse_reference(
    params: Params,
    config: ModelConfig,
    prompt: Sequence[int],
    eos_ids: Sequence[int],
    groups: int,
    limit: int,
    penalty: float,
) -> list[list[int]]:
    """The answers' tokens for one prompt: step by step, group by group, a full forward pass a token."""
    answers: list[list[int]] = [[] for _ in range(groups)]
    for _ in range(limit):
        taken: dict[int, int] = {}
        for answer in answers:
            if answer and answer[-1] in eos_ids:
                continue
            text = [*prompt, *answer]
            padded = np.pad(text, (0, len(prompt) + limit - len(text)))
            logits = np.asarray(_next_logits(params, config, padded, len(text) - 1))
            scores = logits - np.logaddexp.reduce(logits)  # a new array, written to below
            for token, count in taken.items():
                scores[token] -= penalty * count
            answer.append(int(scores.argmax()))
            taken[answer[-1]] = taken.get(answer[-1], 0) + 1
    return answers
