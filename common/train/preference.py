"""Direct preference optimisation: answers that are better made likelier than others, against a fixed reference.

    pairs = [Preference(prompt_ids, chosen_ids, rejected_ids), ...]
    reference = reference_logps(params, config, pairs)           # (P, 2), once: the start is the reference
    params = prefer(params, config, pairs, reference, TrainConfig(...), pad_id=tokenizer.pad_id)

The reference is two numbers a pair, so no second model is held. `mean_loss_reference` is the plain form.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from common.config import ModelConfig, Remat, TrainConfig
from common.errors import UserError
from common.model.decoder import Params, hidden
from common.model.losses import token_logps
from common.sample.numbers import numbers
from common.sample.score import all_logps, score_shared
from common.train.data import Encoded, collate, plan
from common.train.loop import Log, Objective, optimise


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
        # What a pair is padded to.
        lengths = [len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs]
        for rows in plan(lengths, settings, first_step=first, last_step=steps):
            yield collate_pairs([pairs[i] for i in rows], reference[rows], settings, pad_id, beta, normalise)

    return optimise(params, config, stream, DPO, settings, steps, checkpoint=checkpoint, log=log, label=label)


def _check(pairs: Sequence[Preference], config: ModelConfig) -> None:
    for i, pair in enumerate(pairs):
        if not (pair.prompt and pair.chosen and pair.rejected):
            raise UserError(f"pair {i} has an empty prompt or answer: give at least one token of each")
        length = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
        if length > config.max_positions:
            raise UserError(
                f"pair {i} of {length} tokens exceeds the model's {config.max_positions} positions: shorten it"
            )


def collate_pairs(
    pairs: Sequence[Preference],
    reference: np.ndarray,
    settings: TrainConfig,
    pad_id: int,
    beta: float,
    normalise: bool,
) -> tuple[np.ndarray, ...]:
    """One update as `pair_loss` takes it, with a leading axis of micro-batches of P pairs.

    tokens (micro, 2P, T), the chosen answer of a pair in the row before the rejected one; index, target, weight
    (micro, A) as in `data.Batch`; reference (micro, P, 2); share (micro, P), 1 / pairs of the update or 0
    for padding; beta (micro,).
    """
    examples = [
        Encoded(pair.prompt + answer, len(pair.prompt), 1 / len(answer) if normalise else 1.0)
        for pair in pairs
        for answer in (pair.chosen, pair.rejected)
    ]
    rows = min(settings.micro_batch_size, settings.batch_size)
    # A pair is two rows. Its share divides the loss, so the weights must not.
    twice = dataclasses.replace(
        settings, batch_size=2 * settings.batch_size, micro_batch_size=2 * rows, sum_loss=False
    )
    batch = collate(examples, twice, pad_id)
    micro = len(batch.tokens)
    logps, share = np.zeros((micro * rows, 2), np.float32), np.zeros(micro * rows, np.float32)
    # Pairs that are padding keep the share 0, and so count for nothing.
    logps[: len(pairs)], share[: len(pairs)] = reference, 1 / len(pairs)
    return (
        *(batch.tokens, batch.index, batch.target, batch.weight),
        *(logps.reshape(micro, rows, 2), share.reshape(micro, rows), np.full(micro, beta, np.float32)),
    )


def pair_loss(params: Params, config: ModelConfig, batch: Any, *, dtype: Any, remat: Remat = "none") -> Any:
    """DPO loss of one micro-batch of `collate_pairs`, summed by the pairs' shares, and such sums of what `prefer`
    logs."""
    tokens, index, target, weight, reference, share, beta = batch
    rows, length = tokens.shape
    h = hidden(params, config, tokens, dtype=dtype, remat=remat)
    logps = weight * token_logps(params, config, h.reshape(-1, h.shape[-1])[index], target)
    # A sum over a mask, and not a scatter, which adds in no fixed order on a GPU.
    policy = jnp.where(index // length == jnp.arange(rows)[:, None], logps, 0).sum(-1).reshape(-1, 2)
    losses = dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], beta)
    change = policy - reference
    margin = beta * (change[:, 0] - change[:, 1])
    measures = {
        "accuracy": jnp.sum(share * (margin > 0)),
        "margin": jnp.sum(share * margin),
        "chosen_logp_change": jnp.sum(share * change[:, 0]),
        "rejected_logp_change": jnp.sum(share * change[:, 1]),
    }
    return jnp.sum(share * losses), measures


DPO = Objective(pair_loss, lambda batch: 1.0)
"""The mean over the pairs of an update: their shares add up to one."""


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
