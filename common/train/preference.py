"""Direct preference optimisation: answers that are better made likelier than others, against a fixed reference.

    pairs = [Preference(prompt_ids, chosen_ids, rejected_ids), ...]
    reference = reference_logps(params, config, pairs)           # (P, 2), once: the start is the reference
    params = prefer(params, config, pairs, reference, TrainConfig(...), pad_id=tokenizer.pad_id)

The reference is two numbers a pair, so no second model is held. `mean_loss_reference` is the plain form.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common.config import ModelConfig, Remat, TrainConfig
from common.errors import UserError
from common.model.blocks import Idle
from common.model.decoder import Params
from common.model.losses import token_logps
from common.sample.numbers import numbers
from common.sample.score import all_logps, score_shared
from common.train.data import Encoded, collate, plan, rounded, shared_prefix
from common.train.loop import Log, hidden_at_places, optimise


@dataclasses.dataclass(frozen=True)
class Preference:
    """Token ids of a prompt and of a better and a worse answer to it, end tokens included."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def dpo_loss(
    policy_chosen: Float[Array, "*B"],
    policy_rejected: Float[Array, "*B"],
    reference_chosen: Float[Array, "*B"],
    reference_rejected: Float[Array, "*B"],
    beta: float | jax.Array,
) -> Float[Array, "*B"]:
    """-log sigmoid(beta * (log-ratio of the chosen - log-ratio of the rejected answer)), pair by pair.

    Rafailov et al. 2023, arXiv 2305.18290, equation 7; log 2 where policy and reference agree.
    """
    margin = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -jax.nn.log_sigmoid(beta * margin)


def reference_logps(
    params: Params,
    config: ModelConfig,
    pairs: Sequence[Preference],
    *,
    normalise: bool = False,
    batch_size: int = 32,
) -> np.ndarray:
    """Log-probabilities (P, 2), float32, of the chosen and the rejected answer of each pair: the sum over the
    answer's tokens, or with `normalise` the mean. Raises UserError as `prefer` does, and where one is not
    finite."""
    _check(pairs, config)
    answers = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
    reduce = np.mean if normalise else np.sum
    # In float64, as margins are small differences of long sums.
    found = score_shared(params, config, answers, batch_size)
    sums = np.array([[reduce(x, dtype=np.float64) for x in both] for both in found], np.float32).reshape(-1, 2)
    return numbers(sums, "log-probabilities of the reference")


def prefer(
    params: Params | Callable[[], Params],
    config: ModelConfig,
    pairs: Sequence[Preference],
    reference: np.ndarray,
    settings: TrainConfig,
    *,
    pad_id: int,
    beta: float = 0.1,
    normalise: bool = False,
    steps: int | None = None,
    checkpoint: pathlib.Path | None = None,
    log: Callable[[int], Log] | None = None,
    label: str = "dpo",
) -> Params:
    """Train `params`, or adapters beside them, to prefer the chosen answers; returns what `fine_tune` does.

    Arguments:
        params: see `common.train.loop.fine_tune`.
        reference: log-probabilities (P, 2) from `reference_logps`, with the same `normalise`.
        settings: batch sizes count pairs; the loss is the mean over the pairs of an update.
        beta: how firmly the policy is held to the reference.
        normalise: rewards from the mean log-probability of an answer's tokens instead of their sum.
        steps, checkpoint, label: see `common.train.loop.fine_tune` and `optimise`.
        log: called like that of `fine_tune`, with further means over the pairs of an update: `accuracy` (share
            with a positive margin), `margin` (difference of rewards, beta times that of the log-ratios), and the
            change of each log-probability against the reference, `chosen_logp_change`, `rejected_logp_change`.

    Raises UserError without pairs, for a pair with an empty part or one that is too long, and as `fine_tune` does.
    """
    if not pairs:
        raise UserError("there is nothing to prefer: the list of pairs is empty")
    _check(pairs, config)
    if reference.shape != (len(pairs), 2):
        raise ValueError(f"the reference has shape {reference.shape}, for {len(pairs)} pairs: compute it for them")
    steps = settings.total_steps(len(pairs)) if steps is None else steps

    def stream(first: int) -> Iterable[Any]:
        prefix = shared_prefix([Encoded(p.prompt + p.chosen, len(p.prompt)) for p in pairs])
        longest = [len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs]
        lengths = [rounded(length, len(prefix)) for length in longest]
        for rows in plan(lengths, settings, first_step=first, last_step=steps):
            some = [pairs[i] for i in rows]
            yield collate_pairs(some, reference[rows], settings, pad_id, beta, normalise, prefix)

    return optimise(
        params, config, stream, pair_loss, settings, steps, checkpoint=checkpoint, log=log, label=label
    )


def _check(pairs: Sequence[Preference], config: ModelConfig) -> None:
    for i, pair in enumerate(pairs):
        if not (pair.prompt and pair.chosen and pair.rejected):
            raise UserError(f"pair {i} has an empty prompt or answer: give at least one token of each")
        length = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
        if length > config.max_positions:
            raise UserError(
                f"pair {i} of {length} tokens exceeds the model's {config.max_positions} positions: shorten it"
            )


class PairBatch(NamedTuple):
    """A part of an update of P pairs: what `pair_loss` takes.

    The chosen answer of a pair is in the row before the rejected one; the first eight are those of
    `common.train.data.MicroBatch`. The `share` of a pair is 1 / pairs of the update, or 0 for padding.
    """

    prefix: Int[Array | np.ndarray, "1 S"]
    tokens: Int[Array | np.ndarray, "2*P T"]
    real: Int[Array | np.ndarray, " N"] | None
    again: Int[Array | np.ndarray, " N"] | None
    idle: Idle | None
    places: Int[Array | np.ndarray, " A"]
    targets: Int[Array | np.ndarray, " A"]
    weight: Float[Array | np.ndarray, " A"]
    reference: Float[Array | np.ndarray, "P 2"]
    share: Float[Array | np.ndarray, " P"]
    beta: Float[Array | np.ndarray, ""]


def collate_pairs(
    pairs: Sequence[Preference],
    reference: np.ndarray,
    settings: TrainConfig,
    pad_id: int,
    beta: float,
    normalise: bool,
    prefix: Sequence[int] = (),
) -> list[PairBatch]:
    """One update of pairs and their reference (pairs, 2) in micro-batches of `settings.micro_batch_size` pairs.
    All prompts begin with `prefix`, and go on."""
    examples = [
        Encoded(pair.prompt + answer, len(pair.prompt), 1 / len(answer) if normalise else 1.0)
        for pair in pairs
        for answer in (pair.chosen, pair.rejected)
    ]
    rows = min(settings.micro_batch_size, settings.batch_size)
    # A pair is two rows.
    twice = dataclasses.replace(settings, batch_size=2 * settings.batch_size, micro_batch_size=2 * rows)
    parts = []
    for number, part in enumerate(collate(examples, twice, pad_id, prefix, twins=True)):
        known = reference[number * rows : (number + 1) * rows]
        # Pairs that are padding keep the share 0, and so count for nothing.
        logps, share = np.zeros((rows, 2), np.float32), np.zeros(rows, np.float32)
        logps[: len(known)], share[: len(known)] = known, 1 / len(pairs)
        parts.append(PairBatch(*part[:8], logps, share, np.array(beta, np.float32)))
    return parts


def pair_loss(
    params: Params, config: ModelConfig, part: PairBatch, *, dtype: Any, remat: Remat = "none"
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """DPO loss of one micro-batch, summed by the pairs' shares, so that those of an update add up to its mean, and
    such sums of what `prefer` logs."""
    rows, length = part.tokens.shape
    h = hidden_at_places(params, config, part, dtype, remat)
    logps = part.weight * token_logps(params, config, h, part.targets)
    # A sum over a mask, and not a scatter, which adds in no fixed order on a GPU.
    policy = jnp.where(part.places // length == jnp.arange(rows)[:, None], logps, 0).sum(-1).reshape(-1, 2)
    known, share, beta = jnp.asarray(part.reference), part.share, jnp.asarray(part.beta)
    losses = dpo_loss(policy[:, 0], policy[:, 1], known[:, 0], known[:, 1], beta)
    change = policy - known
    margin = beta * (change[:, 0] - change[:, 1])
    measures = {
        "accuracy": jnp.sum(share * (margin > 0)),
        "margin": jnp.sum(share * margin),
        "chosen_logp_change": jnp.sum(share * change[:, 0]),
        "rejected_logp_change": jnp.sum(share * change[:, 1]),
    }
    return jnp.sum(share * losses), measures


def mean_loss_reference(
    params: Params,
    config: ModelConfig,
    pairs: Sequence[Preference],
    reference: np.ndarray,
    beta: float,
    normalise: bool = False,
) -> jax.Array:
    """The readable form of the loss of one update: pair by pair, from all logits, without padding."""
    total = jnp.zeros(())
    for pair, (reference_chosen, reference_rejected) in zip(pairs, jnp.asarray(reference), strict=True):
        policy = []
        for answer in (pair.chosen, pair.rejected):
            logps = all_logps(params, config, jnp.array(pair.prompt + answer))
            places = len(pair.prompt) - 1 + np.arange(len(answer))
            taken = logps[places, np.array(answer)]
            policy.append(taken.mean() if normalise else taken.sum())
        chosen, rejected = policy
        total += dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta)
    return total / len(pairs)
