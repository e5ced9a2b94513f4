"""Fine-tuning: optax's optimizers, gradient accumulation, all weights or adapters, resumable and deterministic.

    params = fine_tune(params, config, examples, TrainConfig(epochs=3), pad_id=tokenizer.pad_id)

`optimise` is the loop of every training; an `Objective` says what it minimises. The step function is compiled once
per shape and shared by every training of the process: the learning rate is an argument, not a constant, so that a
student retrained each round never compiles again.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from common import hosts, runtime, stopping
from common.config import ModelConfig, Remat, TrainConfig
from common.errors import UserError
from common.model import lora, sharding
from common.model.decoder import Params, count_params, hidden
from common.model.losses import token_logps
from common.progress import progress_bar
from common.train import state as state_files
from common.train.data import Encoded, batches
from common.train.optimizer import clipped, initial_state, learning_rate, make_optimizer, stepped

Log = Callable[..., None]

REMAT_ABOVE = 100_000_000
"""Parameters from which layers are recomputed in the backward pass unless the settings say otherwise: below,
activations fit easily."""


class Objective(NamedTuple):
    """What a training minimises, as two functions. `update` is compiled for them, so they are defined once, at the
    top of a module, and not anew for each training.

    loss: (params, config, part, *, dtype, remat) -> the sum over a micro-batch, and a dict of further sums to log.
    total: (batch) -> what these sums are divided by, once added up over the micro-batches of an update.
    """

    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    total: Callable[[Any], jax.Array | float]


def answer_loss(
    params: Params, config: ModelConfig, batch: Any, *, dtype: Any, remat: Remat = "none"
) -> jax.Array:
    """Summed negative log-likelihood of the targets of one micro-batch (tokens, index, target, weight)."""
    tokens, index, target, weight = batch
    h = hidden(params, config, tokens, dtype=dtype, remat=remat)
    h = h.reshape(-1, h.shape[-1])[index]
    return -jnp.sum(weight * token_logps(params, config, h, target))


def _answers(*args: Any, **settings: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    return answer_loss(*args, **settings), {}


TOKEN_MEAN = Objective(_answers, lambda batch: jnp.maximum(batch[3].sum(), 1.0))
"""The mean over all answer tokens of the update, however they fall into micro-batches."""

SUM = Objective(_answers, lambda batch: 1.0)
"""The sum: the weights that `collate` returns are already divided by the number of examples."""


def update(
    params: Params,
    state: dict[str, Any],
    batch: tuple[Array | np.ndarray, ...],
    rate: Array | np.float32 | float,
    frozen: Params | None = None,
    *,
    config: ModelConfig,
    optimizer: TrainConfig,
    dtype: np.dtype,
    remat: Remat,
    objective: Objective = TOKEN_MEAN,
    mesh: Mesh | None = None,
) -> tuple[Params, dict[str, Any], dict[str, Array]]:
    """One optimizer update over the micro-batches of `batch`; returns params, state and a dict of scalars: loss,
    gradient_norm (before clipping) and what else the objective measures. The memory of the given params and state
    is given away.

    With `frozen`, `params` holds the adapters alone, `frozen` the rest of the tree. Once a loss or gradient is not
    finite, params and state no longer change, so that a caller may look at the losses a few updates later.
    With a `mesh`, on which everything lies, both come back laid out as the table of `common.model.sharding` says.
    """
    # Two programs: the second is the same for all lengths of texts, and a third of the time of compiling both.
    (loss, more), grads = gradients(
        params, batch, frozen, config=config, dtype=dtype, remat=remat, objective=objective, mesh=mesh
    )
    params, state, norm = apply_gradients(params, state, grads, loss, rate, optimizer=optimizer, mesh=mesh)
    return params, state, {"loss": loss, "gradient_norm": norm, **more}


@functools.partial(jax.jit, static_argnames=("config", "dtype", "remat", "objective", "mesh"))
def gradients(
    params: Params,
    batch: tuple[Array, ...],
    frozen: Params | None,
    *,
    config: ModelConfig,
    dtype: np.dtype,
    remat: Remat,
    objective: Objective,
    mesh: Mesh | None,
) -> tuple[tuple[Array, dict[str, Array]], Params]:
    """The loss and what else the objective measures, and the gradients of `params`, over the micro-batches of
    `batch`; see `update`."""
    total = objective.total(batch)

    def loss(trainable, part):
        whole = trainable if frozen is None else lora.join(frozen, trainable)
        sums = objective.loss(whole, config, part, dtype=dtype, remat=remat)
        return jax.tree.map(lambda x: x / total, sums)

    value_and_grad = lambda part: jax.value_and_grad(loss, has_aux=True)(params, part)
    first = jax.tree.map(lambda x: x[0], batch)
    if batch[0].shape[0] == 1:
        values, grads = value_and_grad(first)
    else:

        def accumulate(carry, part):
            return jax.tree.map(jnp.add, carry, _wide(value_and_grad(part))), None

        # One micro-batch after another in one compiled body, whatever their number.
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(value_and_grad, first))
        (values, grads), _ = jax.lax.scan(accumulate, zero, batch)
    if mesh is not None:
        grads = jax.lax.with_sharding_constraint(grads, sharding.param_shardings(mesh, grads))
    return values, grads


@functools.partial(jax.jit, static_argnames=("optimizer", "mesh"), donate_argnums=(0, 1))
def apply_gradients(
    params: Params,
    state: dict[str, Any],
    grads: Params,
    loss: Array,
    rate: Array,
    *,
    optimizer: TrainConfig,
    mesh: Mesh | None,
) -> tuple[Params, dict[str, Any], Array]:
    """New params and state, and the norm of `grads`; see `update`."""
    norm = optax.tree.norm(_wide(grads))

    def step(now: tuple[Params, dict[str, Any]]) -> tuple[Params, dict[str, Any]]:
        params, state = now
        # Clipped here and not before the branch: it is one pass over the weights with the rest of the step.
        direction, moments = make_optimizer(optimizer).update(
            _wide(clipped(grads, norm, optimizer.clip_norm)), state["optimizer"], _wide(params)
        )
        # The rate is not part of the optimizer: as an argument it can change without compiling anew.
        new = stepped(params, direction, rate, state["updates"])
        return new, state | {"optimizer": moments, "updates": state["updates"] + 1}

    finite = state["finite"] & jnp.isfinite(loss) & jnp.isfinite(norm)
    # A branch, and not a selection of each number: with that no buffer could be written in place.
    params, state = jax.lax.cond(finite, step, lambda now: now, (params, state))
    state = state | {"finite": finite}
    if mesh is not None:
        # Left alone, the compiler may lay them out otherwise than they came, and the next update compiles again.
        both = params, state
        params, state = jax.lax.with_sharding_constraint(both, sharding.param_shardings(mesh, both))
    return params, state, norm


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _optimizer_settings(settings: TrainConfig) -> TrainConfig:
    """Only what the compiled update depends on, so that other settings do not compile it again."""
    return TrainConfig(
        optimizer=settings.optimizer,
        weight_decay=settings.weight_decay,
        beta1=settings.beta1,
        beta2=settings.beta2,
        epsilon=settings.epsilon,
        clip_norm=settings.clip_norm,
    )


def fine_tune(
    params: Params | Callable[[], Params],
    config: ModelConfig,
    examples: Sequence[Encoded],
    settings: TrainConfig,
    *,
    pad_id: int,
    steps: int | None = None,
    checkpoint: pathlib.Path | None = None,
    log: Callable[[int], Log] | None = None,
    label: str = "train",
) -> Params:
    """Fine-tune a copy of `params` and return it; the given ones stay as they are.

    Arguments:
        params: a function in their place gives such as nobody else holds. These are trained themselves, so that
            one copy of them is in memory.
        examples: what to learn; the loss covers tokens after each `prompt_length`.
        steps: optimizer updates, by default `settings.epochs` passes; data repeats as needed.
        checkpoint, log, label: see `optimise`.

    With `settings.lora`, adapters alone are trained, new ones or those among `params`, and returned beside the
    weights, which may be of any dtype (`common.model.lora.merge` makes one of both). Parameters that lie on a mesh
    (`common.model.sharding`) are trained there, and stay there.

    Raises UserError if the loss becomes NaN or infinite; after the first update the last good state is then in
    `checkpoint`.
    """
    if not examples:
        raise UserError("there is nothing to train on: the list of examples is empty")
    steps = settings.total_steps(len(examples)) if steps is None else steps

    def stream(first: int) -> Iterable[Any]:
        for batch in batches(examples, settings, pad_id=pad_id, first_step=first, last_step=steps):
            yield batch.tokens, batch.index, batch.target, batch.weight

    objective = SUM if settings.sum_loss else TOKEN_MEAN
    return optimise(
        params, config, stream, objective, settings, steps, checkpoint=checkpoint, log=log, label=label
    )


def optimise(
    params: Params | Callable[[], Params],
    config: ModelConfig,
    stream: Callable[[int], Iterable[Any]],
    objective: Objective,
    settings: TrainConfig,
    steps: int,
    *,
    checkpoint: pathlib.Path | None,
    log: Callable[[int], Log] | None,
    label: str,
) -> Params:
    """The training loop: `steps` updates of `params`, or of adapters beside them; see `fine_tune`.

    Arguments:
        stream: `stream(first)` gives the batches of the updates from `first` on, as arrays with a leading axis of
            micro-batches; each must depend on its update alone.
        checkpoint: folder for the state of an unfinished training. It is written every
            `settings.checkpoint_seconds`, and before a command that was asked to stop ends (`common.stopping`);
            a later call with the same arguments continues from it and ends with the same parameters, bit for
            bit. The caller removes it with the finished stage.
        log: called once with the first step; what it returns is called as `(step, loss=…, gradient_norm=…,
            learning_rate=…)`, and with what else the objective measures, for every update from there.
    """
    given, own = (params(), True) if callable(params) else (params, False)
    # Two names for one tree: the caller's is not to be held here while its copy is trained.
    del params
    remat = settings.remat or ("full" if count_params(given) > REMAT_ABOVE else "none")
    mesh = sharding.mesh_of(given)
    if settings.lora is None:
        # `update` gives the memory of its arguments away.
        dtype = jnp.dtype(settings.param_dtype)
        frozen, trained = None, jax.tree.map(lambda w: jnp.array(w, dtype, copy=not own), given)
    else:
        config = dataclasses.replace(config, lora=settings.lora)
        frozen, adapters = lora.split(given)
        if count_params(adapters):
            trained = jax.tree.map(jnp.copy, adapters)
        else:
            trained = sharding.place(lora.init(config, jax.random.key(settings.seed)), given)
    del given
    static = {
        "config": config,
        "optimizer": _optimizer_settings(settings),
        "dtype": runtime.compute_dtype(),
        "remat": remat,
        "objective": objective,
        "mesh": mesh,
    }
    state = sharding.place(initial_state(static["optimizer"], trained, mesh), trained)
    first = 0
    if checkpoint is not None and state_files.kept(checkpoint):
        like = jax.tree.map(state_files.shape, (trained, state))
        del trained, state  # or both would be in memory twice
        trained, state, first = state_files.restore(checkpoint, *like)
    # It is told where the training goes on, so that no update after the restored state is logged twice.
    write = log(first) if log is not None else None
    saved_at = time.monotonic()
    pending: list[tuple[int, float, Any]] = []
    bar = progress_bar(stream(first), desc=label, initial=first, total=steps, unit="update")
    # Without a place for the state there is nothing to wait for.
    with contextlib.nullcontext() if checkpoint is None else stopping.deferred():
        for step, batch in enumerate(bar, start=first):
            rate = learning_rate(settings, step, steps)
            batch = sharding.place_data(batch, trained, sharding.MICRO_ROWS)
            trained, state, measured = update(trained, state, batch, np.float32(rate), frozen, **static)
            pending.append((step, rate, measured))
            asked = checkpoint is not None and stopping.asked(step + 1)
            due = checkpoint is not None and _due(step, saved_at + settings.checkpoint_seconds)
            last = step + 1 == steps
            # Losses are read a few updates late, so that the device never waits for the host.
            if asked or due or last or len(pending) > 8:
                read = len(pending) if asked or due or last else -4
                bad = _report(pending[:read], write)
                pending = pending[read:]
                if bad is not None:
                    # Before the first update nothing is gained, and what was read into memory may itself be bad.
                    keeps = checkpoint if bad else None
                    if keeps is not None:
                        # Nothing has changed since the bad update; marked finite, so that a lower rate can go on.
                        state_files.save(keeps, trained, state | {"finite": jnp.bool_(True)}, bad)
                    raise UserError(_diverged_message(bad, steps, settings, keeps))
            # Asked to stop, it keeps the state after the last update too: the weights are not stored yet.
            if checkpoint is not None and (asked or (due and not last)):
                state_files.save(checkpoint, trained, state, step + 1)
                saved_at = time.monotonic()
            if asked:
                stopping.stop()
    return trained if frozen is None else lora.join(frozen, trained)


def _due(step: int, then: float) -> bool:
    """Whether it is time to store the state. No two clocks agree: of several processes the first one's counts, for
    which all have to stop, and so they ask now and then."""
    return (hosts.count() == 1 or step % 8 == 7) and hosts.share(lambda: time.monotonic() > then)


def _report(measured: list, log: Log | None) -> int | None:
    """Log updates; the number of the first one whose loss or gradient was not finite, if any."""
    for step, rate, scalars in measured:
        values = {name: round(float(value), 5) for name, value in scalars.items()}
        loss, norm = values.pop("loss"), values.pop("gradient_norm")
        if not (np.isfinite(loss) and np.isfinite(norm)):
            return step
        if log is not None:
            log(step, loss=loss, gradient_norm=norm, learning_rate=rate, **values)
    return None


def _diverged_message(step: int, steps: int, settings: TrainConfig, checkpoint: pathlib.Path | None) -> str:
    kept = f"; the last good state is in {checkpoint}" if checkpoint is not None else ""
    return (
        f"training stopped: the loss or its gradient was NaN or infinite at update {step + 1} of {steps} "
        f"(peak learning rate {settings.learning_rate:g}); lower the learning rate or look at the data{kept}"
    )
