"""Fine-tuning: optax's optimizers, gradient accumulation, all weights or adapters, resumable and deterministic.

    params = fine_tune(params, config, examples, TrainConfig(epochs=3), pad_id=tokenizer.pad_id)

`optimise` is the loop of every training; an `Objective` says what it minimises. The step function is compiled once
per shape and shared by every training of the process: the learning rate is an argument, not a constant, so that a
student retrained each round never compiles again.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from common import hosts, runtime, stopping
from common.buckets import SMALL_MODEL
from common.config import ModelConfig, Remat, TrainConfig
from common.errors import UserError
from common.model import lora, sharding
from common.model.blocks import Idle
from common.model.decoder import Params, count_params, hidden, hidden_at, prefill
from common.model.losses import weighted_logps
from common.model.packing import Packing
from common.progress import progress_bar
from common.train import state as state_files
from common.train.data import Encoded, MicroBatch, batches
from common.train.optimizer import clipped, initial_state, learning_rate, make_optimizer, stepped

Log = Callable[..., None]

REMAT_ABOVE = 100_000_000
"""Parameters from which layers are recomputed in the backward pass unless the settings say otherwise: below,
activations fit easily."""

Objective = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
"""What a training minimises: (params, config, part, *, dtype, remat) -> of a micro-batch its share of the update's
loss, and a dict of such shares of what else is logged. `gradients` is compiled for it, so it is defined once, at
the top of a module, and not anew for each training."""


def answer_loss(
    params: Params, config: ModelConfig, part: MicroBatch, *, dtype: Any, remat: Remat = "none"
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Negative log-likelihood of a micro-batch's targets: of all that share an update the mean over answer tokens,
    however they fall into micro-batches, or with `TrainConfig.sum_loss` the sum over those of an example."""
    h = hidden_at_places(params, config, part, dtype, remat)
    return -weighted_logps(params, config, h, part.targets, part.weight) / part.total, {}


def hidden_at_places(
    params: Params, config: ModelConfig, part: Any, dtype: Any, remat: Remat
) -> Float[Array, "A D"]:
    """Final hidden states of a micro-batch from which its targets are predicted; its prefix is read once."""
    if part.real is not None:
        packing = Packing.of(part.real, part.again, *part.tokens.shape, idle=part.idle)
        tokens = jnp.concatenate([part.prefix[0], part.tokens.reshape(-1)[part.real]])
        # Into 16 rows where they divide it: XLA on CPU takes an eighth longer for one.
        tokens = tokens.reshape(math.gcd(16, tokens.size), -1)
        at = part.prefix.size + packing.slots.reshape(-1)[part.places]
        return hidden_at(params, config, tokens, at, packing, dtype=dtype, remat=remat)
    begun = prefill(params, config, part.prefix, dtype=dtype, remat=remat) if part.prefix.size else None
    # Not by places in the last layer: on a mesh these would lie on every device, and rows are split.
    h = hidden(params, config, part.tokens, after=begun, dtype=dtype, remat=remat)
    return h.reshape(-1, h.shape[-1])[part.places]


def update(
    params: Params,
    state: dict[str, Any],
    parts: Sequence[tuple[Array | np.ndarray | Idle | None, ...]],
    rate: Array | np.float32 | float,
    frozen: Params | None = None,
    *,
    config: ModelConfig,
    optimizer: TrainConfig,
    dtype: np.dtype,
    remat: Remat,
    objective: Objective = answer_loss,
    mesh: Mesh | None = None,
) -> tuple[Params, dict[str, Any], dict[str, Array]]:
    """One optimizer update over micro-batches, of any lengths; returns params, state and a dict of scalars: loss,
    gradient_norm (before clipping) and what else the objective measures. The memory of the given params and state
    is given away.

    With `frozen`, `params` holds the adapters alone, `frozen` the rest of the tree. Once a loss or gradient is not
    finite, params and state no longer change, so that a caller may look at the losses a few updates later.
    With a `mesh`, on which everything lies, both come back laid out as the table of `common.model.sharding` says.
    """
    static = {"config": config, "dtype": dtype, "remat": remat, "objective": objective, "mesh": mesh}
    # Added up from zero, and not from the first of them: that would be a second program for each length.
    grads = sharding.place(_zeros(params, mesh), params) if len(parts) > 1 else None
    shares = []
    for part in parts:
        share, grads = gradients(params, part, frozen, grads, **static)
        shares.append(share)
    loss, more = jax.tree.map(lambda *values: functools.reduce(jnp.add, values), *shares)
    # Two programs: the second is the same for all lengths of texts, and a third of the time of compiling both.
    params, state, norm = apply_gradients(params, state, grads, loss, rate, optimizer=optimizer, mesh=mesh)
    return params, state, {"loss": loss, "gradient_norm": norm, **more}


@functools.partial(
    jax.jit, static_argnames=("config", "dtype", "remat", "objective", "mesh"), donate_argnames="so_far"
)
def gradients(
    params: Params,
    part: tuple[Array | Idle | None, ...],
    frozen: Params | None,
    so_far: Params | None = None,
    *,
    config: ModelConfig,
    dtype: np.dtype,
    remat: Remat,
    objective: Objective,
    mesh: Mesh | None,
) -> tuple[tuple[Array, dict[str, Array]], Params]:
    """What the objective measures of a micro-batch, and the gradients of `params`, where there are several of them
    in float32 and added to those `so_far`, whose memory is given away; see `update`."""

    def loss(trainable: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        whole = trainable if frozen is None else lora.join(frozen, trainable)
        return objective(whole, config, part, dtype=dtype, remat=remat)

    values, grads = jax.value_and_grad(loss, has_aux=True)(params)
    if so_far is not None:
        grads = jax.tree.map(jnp.add, so_far, _wide(grads))
    if mesh is not None:
        grads = jax.lax.with_sharding_constraint(grads, sharding.param_shardings(mesh, grads))
    return values, grads


@functools.partial(jax.jit, static_argnums=1)
def _zeros(params: Params, mesh: Mesh | None) -> Params:
    """Gradients before the first micro-batch."""
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape), params)
    if mesh is not None:
        zeros = jax.lax.with_sharding_constraint(zeros, sharding.param_shardings(mesh, zeros))
    return zeros


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
        return batches(examples, settings, pad_id=pad_id, first_step=first, last_step=steps)

    return optimise(
        params, config, stream, answer_loss, settings, steps, checkpoint=checkpoint, log=log, label=label
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
        stream: `stream(first)` gives the updates from `first` on, each as a list of micro-batches; each must
            depend on its number alone.
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
    mesh, large = sharding.mesh_of(given), count_params(given) > SMALL_MODEL
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
        for step, parts in enumerate(bar, start=first):
            rate = learning_rate(settings, step, steps)
            parts = [_computed(part, config, large, mesh) for part in parts]
            parts = sharding.place_data(parts, trained, sharding.ROWS)
            trained, state, measured = update(trained, state, parts, np.float32(rate), frozen, **static)
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


def _computed(part: Any, config: ModelConfig, large: bool, mesh: Mesh | None) -> Any:
    """A micro-batch without what the program for it would not use, or would take longer to compile than it spares:
    packed texts, whose rows could not be split over devices, and rows that are idle."""
    if mesh is not None or not (large or part.prefix.size):
        return part._replace(real=None, again=None, idle=None)
    left_out = large and config.score_cap is None and not config.sinks and not runtime.on_accelerator()
    return part if left_out else part._replace(idle=None)


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
