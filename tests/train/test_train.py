"""Losses, batches and the training loop."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common.config import ModelConfig, TrainConfig
from common.errors import UserError
from common.model import losses
from common.model.blocks import Idle
from common.model.decoder import hidden, init, unembed
from common.model.losses import token_logps, token_logps_reference, weighted_logps
from common.train import loop, state
from common.train.data import Encoded, batches, collate, epoch_plan, shared_prefix
from common.train.loop import answer_loss, fine_tune, gradients, update
from common.train.optimizer import clipped, initial_state, learning_rate, make_optimizer

CONFIG = ModelConfig("llama", 64, 32, 48, 2, 4, 2, 8, 128, tied_head=True)
SETTINGS = TrainConfig(learning_rate=1e-2, batch_size=4, micro_batch_size=4, epochs=2, max_length=64)


@pytest.mark.parametrize("most", [0.1, 100.0])
def test_gradients_are_clipped_as_by_optax(params, most):
    clip = optax.clip_by_global_norm(most)
    wanted, _ = clip.update(params, clip.init(params))
    jax.tree.map(np.testing.assert_array_equal, clipped(params, optax.tree.norm(params), most), wanted)


@pytest.fixture(scope="module")
def params():
    return jax.jit(init, static_argnums=0)(CONFIG, jax.random.key(0))


def some_examples(count=11, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Encoded(tuple(rng.integers(1, 64, size=n).tolist()), int(rng.integers(1, n)))
        for n in rng.integers(3, 60, size=count)
    ]


@pytest.mark.parametrize("kept", [0, 2**20], ids=["recomputed", "kept"])
def test_chunked_log_probabilities_and_gradients_equal_the_reference(params, monkeypatch, kept):
    monkeypatch.setitem(losses.KEPT_LOGITS, "cpu", kept)
    h = jax.random.normal(jax.random.key(1), (37, 32))
    targets = jax.random.randint(jax.random.key(2), (37,), 0, 64)
    chunked = lambda p, h: token_logps(p, CONFIG, h, targets, chunk=8).sum()
    whole = lambda p, h: token_logps_reference(p, CONFIG, h, targets).sum()
    gradients = [jax.jit(jax.grad(f, (0, 1)))(params, h) for f in (chunked, whole)]
    np.testing.assert_allclose(
        token_logps(params, CONFIG, h, targets, chunk=8),
        token_logps_reference(params, CONFIG, h, targets),
        rtol=1e-6,
    )
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_chunked_weighted_sum_and_gradients_equal_the_reference(tied, dtype):
    """With a head of its own that has a bias, a scale and a cap, and with the embedding as the head."""
    more = {} if tied else {"biases": frozenset({"head"}), "logit_scale": 0.7, "logit_cap": 9.0}
    config = dataclasses.replace(CONFIG, tied_head=tied, **more)
    params = jax.tree.map(lambda x: (20 * x).astype(dtype), init(config, jax.random.key(0)))
    h = jax.random.normal(jax.random.key(1), (37, 32)).astype(dtype)
    targets = jax.random.randint(jax.random.key(2), (37,), 0, 64)
    weight = jnp.arange(37) % 3 / 2
    chunked = lambda p, h: 3 * weighted_logps(p, config, h, targets, weight, chunk=8)
    whole = lambda p, h: 3 * jnp.sum(weight * token_logps_reference(p, config, h, targets))
    (value, grads), (plain, plain_grads) = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(params, h) for f in (chunked, whole)
    )
    exact = dtype == jnp.float32
    assert float(value) == pytest.approx(float(plain), rel=1e-5)
    assert float(chunked(params, h)) == pytest.approx(float(plain), rel=1e-5)  # without gradients
    for a, b in zip(*map(jax.tree.leaves, (grads, plain_grads)), strict=True):
        assert a.dtype == b.dtype == dtype
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        np.testing.assert_allclose(a, b, atol=(1e-5 if exact else 2e-2) * max(1.0, float(jnp.abs(b).max())))


def test_loss_covers_just_the_answer_tokens(params):
    """Against the plain definition: sum over answer positions of -log p(token | everything before it)."""
    examples = some_examples(5)
    [part] = collate(examples, dataclasses.replace(SETTINGS, batch_size=5, micro_batch_size=5), pad_id=0)
    loss = part.total * answer_loss(params, CONFIG, part, dtype=jnp.float32)[0]
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(unembed(params, CONFIG, hidden(params, CONFIG, tokens))))
    expected = 0.0
    for example in examples:
        tokens = np.zeros((1, 64), np.int32)
        tokens[0, : len(example.tokens)] = example.tokens
        logps = forward(tokens)[0]
        for place in range(example.prompt_length, len(example.tokens)):
            expected -= float(logps[place - 1, example.tokens[place]])
    assert loss == pytest.approx(expected, rel=1e-5)
    assert part.total == part.weight.sum() == sum(len(e.tokens) - e.prompt_length for e in examples)


def test_padding_and_remat_change_neither_loss_nor_gradient(params):
    examples = some_examples(3)
    settings = dataclasses.replace(SETTINGS, batch_size=4)
    [part], [other_part] = (collate(examples, settings, pad_id=pad_id) for pad_id in (0, 7))
    f = lambda p, x, remat: answer_loss(p, CONFIG, x, dtype=jnp.float32, remat=remat)[0]
    value_and_grad = jax.jit(jax.value_and_grad(f), static_argnums=2)
    loss, grads = value_and_grad(params, part, "none")
    for x, remat in ((other_part, "none"), (part, "full"), (part, "dots")):
        same, same_grads = value_and_grad(params, x, remat)
        assert same == pytest.approx(float(loss), rel=1e-6)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(same_grads), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_accumulation_gives_the_update_of_the_whole_batch(params):
    """Micro-batches with unequal numbers of answer tokens must not be averaged batch by batch."""
    examples = some_examples(8)
    # A large epsilon keeps Adam from turning rounding of tiny gradients into whole steps.
    whole = dataclasses.replace(SETTINGS, batch_size=8, micro_batch_size=8, epsilon=1e-2)
    parts = dataclasses.replace(whole, micro_batch_size=2)
    results = [fine_tune(params, CONFIG, examples, s, pad_id=0, steps=3) for s in (whole, parts)]
    for a, b in zip(*(jax.tree.leaves(r) for r in results), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


OPTIMIZERS = {
    "adamw": lambda mask: optax.adamw(3e-3, 0.9, 0.999, 1e-8, weight_decay=0.1, mask=mask),
    "lion": lambda mask: optax.lion(3e-3, weight_decay=0.1, mask=mask),
    # Its own decay is not times the rate.
    "adafactor": lambda mask: optax.adafactor(3e-3, weight_decay_rate=3e-4, weight_decay_mask=mask),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_is_that_of_the_whole_optimizer_of_optax(params, name):
    """Three steps with clipping, on the same gradients."""
    parts = collate(some_examples(4), SETTINGS, pad_id=0)
    settings = TrainConfig(optimizer=name, weight_decay=0.1)
    mask = lambda p: jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in path[-1].key, p)
    tx = optax.chain(optax.clip_by_global_norm(1.0), OPTIMIZERS[name](mask))
    gradient = jax.jit(jax.grad(lambda p: answer_loss(p, CONFIG, parts[0], dtype=jnp.float32)[0]))
    expected, its_state = params, tx.init(params)
    new, state = jax.tree.map(jnp.copy, params), initial_state(settings, params)
    static = {"config": CONFIG, "optimizer": settings, "dtype": jnp.dtype(jnp.float32), "remat": "none"}
    for _ in range(3):
        updates, its_state = tx.update(gradient(new), its_state, expected)
        expected = optax.apply_updates(expected, updates)
        new, state, _ = update(new, state, parts, np.float32(3e-3), **static)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_adafactor_keeps_rows_and_columns_of_whole_matrices():
    """The two factors of q, taken as (D, heads x size), are those of optax for that matrix; its state is small."""
    optimizer = make_optimizer(TrainConfig(optimizer="adafactor"))
    q, gradient = (jax.random.normal(jax.random.key(i), (256, 8, 32)) for i in range(2))
    got, state = optimizer.update({"q": gradient}, optimizer.init({"q": q}), {"q": q})
    plain = optax.adafactor(1.0)
    flat = {"q": q.reshape(256, 256)}
    expected, _ = plain.update({"q": gradient.reshape(256, 256)}, plain.init(flat), flat)
    np.testing.assert_allclose(got["q"].reshape(256, 256), -expected["q"], rtol=1e-6)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 600


def test_bfloat16_weights_follow_float32_ones(params):
    """With moments in float32 and random rounding, weights trained in bfloat16 end near those in
    float32; rounded to the nearest, updates of this size would leave nearly all of them where they were."""
    wide = dataclasses.replace(SETTINGS, learning_rate=2e-5, schedule="constant", warmup_ratio=0.0)
    narrow = dataclasses.replace(wide, param_dtype="bfloat16")
    start = jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), params)
    masters = fine_tune(start, CONFIG, some_examples(8), wide, pad_id=0, steps=30)
    halves = fine_tune(start, CONFIG, some_examples(8), narrow, pad_id=0, steps=30)
    assert {leaf.dtype for leaf in jax.tree.leaves(halves)} == {jnp.dtype(jnp.bfloat16)}
    before = jax.tree.leaves(start)
    moved = lambda tree: np.concatenate(
        [np.ravel(a.astype(jnp.float32) - b) for a, b in zip(jax.tree.leaves(tree), before, strict=True)]
    )
    exact, rounded = moved(masters), moved(halves)
    # The slope of the one against the other: 1 where nothing is lost on average.
    assert exact @ rounded / (exact @ exact) == pytest.approx(1, abs=0.1)


def test_weights_of_a_function_are_trained_without_a_copy(params):
    """They are given away: afterwards the first ones are gone."""
    own = jax.tree.map(jnp.copy, params)
    examples = some_examples(4)
    after = fine_tune(lambda: own, CONFIG, examples, SETTINGS, pad_id=0, steps=2)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(own))
    same = fine_tune(params, CONFIG, examples, SETTINGS, pad_id=0, steps=2)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rmsprop_is_that_of_pytorch(fixtures):
    golden = np.load(fixtures / "rmsprop.npz")
    optimizer = make_optimizer(TrainConfig(optimizer="rmsprop", clip_norm=1e9))
    weights = {"w": jnp.array(golden["start"])}
    state = optimizer.init(weights)
    for gradient, expected in zip(golden["gradients"], golden["weights"], strict=True):
        direction, state = optimizer.update({"w": jnp.array(gradient)}, state, weights)
        weights = {"w": weights["w"] - 0.01 * direction["w"]}
        np.testing.assert_allclose(weights["w"], expected, rtol=2e-6)


def test_rmsprop_trains_and_decays_weights(params):
    settings = dataclasses.replace(SETTINGS, optimizer="rmsprop", learning_rate=1e-3, schedule="constant")
    losses = []
    log = lambda first: lambda step, **values: losses.append(values["loss"])
    fine_tune(params, CONFIG, some_examples(4), settings, pad_id=0, steps=12, log=log)
    assert losses[-1] < 0.9 * losses[0]
    decayed = dataclasses.replace(settings, weight_decay=1.0, warmup_ratio=0.0)
    again = fine_tune(params, CONFIG, some_examples(4), decayed, pad_id=0, steps=1)
    without = dataclasses.replace(decayed, weight_decay=0.0)
    plain = fine_tune(params, CONFIG, some_examples(4), without, pad_id=0, steps=1)
    np.testing.assert_allclose(again["embed"], plain["embed"] - 1e-3 * params["embed"], atol=1e-7)
    np.testing.assert_array_equal(again["norm"], plain["norm"])


@pytest.mark.parametrize("micro", [4, 2])
def test_sum_loss_is_the_sum_over_tokens_and_the_mean_over_examples(params, quick_jit, micro):
    """Three examples in a batch for four: the loss and the update against the plain definition."""
    examples = some_examples(3)
    settings = dataclasses.replace(
        SETTINGS, sum_loss=True, micro_batch_size=micro, optimizer="rmsprop", epsilon=1.0, clip_norm=1e9
    )
    seen = []
    log = lambda first: lambda step, **values: seen.append(values)
    after = fine_tune(params, CONFIG, examples, settings, pad_id=0, steps=1, log=log)

    def plain(p):
        total = 0.0
        for example in examples:
            logps = jax.nn.log_softmax(unembed(p, CONFIG, hidden(p, CONFIG, jnp.array([example.tokens]))))[0]
            places = np.arange(example.prompt_length, len(example.tokens))
            total -= logps[places - 1, jnp.array(example.tokens)[places]].sum()
        return total / len(examples)

    loss, grads = quick_jit(jax.value_and_grad(plain))(params)
    assert seen[0]["loss"] == pytest.approx(float(loss), abs=1e-4)
    assert seen[0]["gradient_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)
    expected = jax.tree.map(lambda p, g: p - seen[0]["learning_rate"] * g / (0.1 * jnp.abs(g) + 1), params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after, expected)


def test_every_example_is_in_some_part_of_an_uneven_batch():
    """Batches of 8 in parts of 3: three parts, the last with an empty row."""
    settings = dataclasses.replace(SETTINGS, batch_size=8, micro_batch_size=3)
    examples = some_examples(8)
    parts = collate(examples, settings, pad_id=0)
    assert [len(part.tokens) for part in parts] == [3, 3, 3]
    assert {int(part.total) for part in parts} == {sum(len(e.tokens) - e.prompt_length for e in examples)}
    assert sum(part.weight.sum() for part in parts) == parts[0].total


def test_a_part_is_no_longer_than_its_own_examples():
    """Sixteen examples of 60 to 660 tokens in four parts, none padded to the longest of the others."""
    settings = dataclasses.replace(SETTINGS, batch_size=16, micro_batch_size=4, max_length=1024)
    examples = [Encoded(tuple(range(1, length + 1)), 2) for length in range(60, 700, 40)]
    [parts] = batches(examples, settings, pad_id=0, first_step=0, last_step=1)
    assert [part.tokens.shape for part in parts] == [(4, 192), (4, 384), (4, 512), (4, 768)]
    answers = [sum(len(e.tokens) - 2 for e in examples[i : i + 4]) for i in range(0, 16, 4)]
    # By eighths of all positions of the part.
    assert [len(part.places) for part in parts] == [
        -(-count // (part.tokens.size // 8)) * (part.tokens.size // 8)
        for count, part in zip(answers, parts, strict=True)
    ]


def with_instruction(count=6, length=20):
    """Examples whose prompts begin with the same `length` tokens."""
    first = tuple(range(1, length + 1))
    return [Encoded(first + e.tokens, length + e.prompt_length, e.weight) for e in some_examples(count)]


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_a_shared_beginning_is_read_once_for_the_same_gradients(params, quick_jit, remat):
    examples = with_instruction()
    settings = dataclasses.replace(SETTINGS, batch_size=6, micro_batch_size=3, max_length=128)
    prefix = shared_prefix(examples)
    assert prefix == tuple(range(1, 17))
    [once] = batches(examples, settings, pad_id=0, first_step=0, last_step=1)
    assert [part.prefix.tolist() for part in once] == [[list(prefix)]] * 2
    whole = [part._replace(real=None) for part in collate(examples, settings, pad_id=0)]  # padding is computed too
    # Rows of 16, 24, 32 ... tokens and not of 64 or more.
    assert sum(part.tokens.size + 16 for part in once) < 0.75 * sum(part.tokens.size for part in whole)
    assert all(len(part.real) < part.tokens.size for part in once)
    loss = lambda p, parts: sum(answer_loss(p, CONFIG, x, dtype=jnp.float32, remat=remat)[0] for x in parts)
    run = quick_jit(jax.value_and_grad(loss))
    (value, grads), (plain, plain_grads) = run(params, once), run(params, whole)
    assert value == pytest.approx(float(plain), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), grads, plain_grads)


def test_packed_examples_train_the_same_weights(params, monkeypatch):
    examples = some_examples(9)
    plain = fine_tune(params, CONFIG, examples, SETTINGS, pad_id=0, steps=4)
    seen = []
    real = loop.Packing.of
    monkeypatch.setattr(loop.Packing, "of", lambda *given, **more: seen.append(given) or real(*given, **more))
    monkeypatch.setattr(loop, "SMALL_MODEL", 0)
    packed = fine_tune(params, CONFIG, examples, SETTINGS, pad_id=0, steps=4)
    assert seen
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), packed, plain)


def test_rows_that_end_early_are_left_out_of_attention_for_the_same_weights(params, monkeypatch):
    ids = lambda start, count: tuple(1 + (start + i) % 60 for i in range(count))
    examples = [Encoded(ids(7 * i, 20), 12) for i in range(6)] + [Encoded(ids(11 * i, 150), 140) for i in range(2)]
    settings = dataclasses.replace(SETTINGS, batch_size=8, micro_batch_size=8, max_length=256)
    train = lambda: fine_tune(params, CONFIG, examples, settings, pad_id=0, steps=3)
    plain = train()
    seen = []
    real = loop.Packing.of
    monkeypatch.setattr(
        loop.Packing, "of", lambda *given, **more: seen.append(more["idle"]) or real(*given, **more)
    )
    monkeypatch.setattr(loop, "SMALL_MODEL", 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), train(), plain)
    assert set(seen) == {Idle((0, 6, 6, 6))}


def test_idle_rows_are_told_only_to_programs_that_leave_them_out():
    examples = [Encoded(tuple(range(1, 21)), 12)] * 6 + [Encoded(tuple(range(1, 151)), 140)] * 2
    settings = dataclasses.replace(SETTINGS, batch_size=8, micro_batch_size=8, max_length=256)
    [part] = collate(examples, settings, pad_id=0)
    assert part.idle == Idle((0, 6, 6, 6))
    told = lambda config, large: loop._computed(part, config, large, None).idle
    assert told(CONFIG, True) == part.idle
    assert told(CONFIG, False) is told(dataclasses.replace(CONFIG, score_cap=30.0), True) is None
    assert told(dataclasses.replace(CONFIG, sinks=True), True) is None
    # What is read: not the last token, nor a beginning that stands in front of all.
    [part] = collate([Encoded(tuple(range(1, 66)), 60)] * 6 + examples[-2:], settings, 0, tuple(range(1, 17)))
    assert (part.tokens.shape, part.idle) == ((8, 192), Idle((0, 6, 6, 8)))
    [part] = collate([Encoded(tuple(range(1, 67)), 60)] * 6 + examples[-2:], settings, 0, tuple(range(1, 17)))
    assert part.idle == Idle((0, 0, 6, 8))


def test_a_beginning_is_shared_where_it_is_worth_it():
    examples = with_instruction()
    assert len(shared_prefix(examples)) == 16  # by multiples of it
    assert shared_prefix([*examples, Encoded((9,) * 40, 30)]) == ()
    assert shared_prefix([*examples, Encoded(tuple(range(1, 41)), 0)]) == ()  # no prompt at all
    assert shared_prefix([*examples, Encoded(tuple(range(1, 41)), 16)]) == ()  # nothing of the prompt left
    assert shared_prefix([Encoded(e.tokens + (7,) * 60, e.prompt_length) for e in examples]) == ()
    assert shared_prefix(examples[:1]) == shared_prefix([]) == ()


def test_training_lowers_the_loss_and_leaves_the_base_alone(params):
    before = jax.tree.map(np.array, params)
    losses = []
    examples = some_examples(4)
    fine_tune(
        params,
        CONFIG,
        examples,
        SETTINGS,
        pad_id=0,
        steps=30,
        log=lambda first: lambda step, **values: losses.append((step, values["loss"])),
    )
    assert [step for step, _ in losses] == list(range(30))
    assert losses[-1][1] < 0.5 * losses[0][1]
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_retraining_does_not_compile_again(params):
    examples = some_examples(9)
    fine_tune(params, CONFIG, examples, SETTINGS, pad_id=0, steps=6)
    compiled = gradients._cache_size()
    other = dataclasses.replace(SETTINGS, learning_rate=3e-3, schedule="linear", epochs=5, seed=0)
    fine_tune(params, CONFIG, examples, other, pad_id=0, steps=6)
    assert gradients._cache_size() == compiled


def test_continued_training_ends_bit_for_bit_the_same(params, tmp_path, monkeypatch):
    examples = some_examples(9)
    settings = dataclasses.replace(SETTINGS, checkpoint_seconds=0.0)
    whole = fine_tune(params, CONFIG, examples, SETTINGS, pad_id=0, steps=7)

    def stop_at_four(first):
        def log(step, **values):
            if step == 4:
                raise KeyboardInterrupt

        return log

    folder = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        fine_tune(params, CONFIG, examples, settings, pad_id=0, steps=7, checkpoint=folder, log=stop_at_four)
    resumed = []
    again = fine_tune(
        params,
        CONFIG,
        examples,
        settings,
        pad_id=0,
        steps=7,
        checkpoint=folder,
        log=lambda first: resumed.append(first) or (lambda step, **values: resumed.append(step)),
    )
    assert resumed[0] > 0
    assert resumed[1:] == list(range(resumed[0], 7))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("added", [(), ("00000.safetensors",)])
def test_a_damaged_state_is_one_line(added, params, tmp_path):
    """As Orbax leaves it, and as several processes do; what lies there may be anything, such as a pickle."""
    state.save(tmp_path / "state", params, (), step=3)
    files = [file for file in (tmp_path / "state").rglob("*") if file.is_file()]
    for file in [*files, *(tmp_path / "state" / name for name in added)]:
        file.write_bytes(b"\x80\x04\x95 no state")
    with pytest.raises(UserError, match=r"state is damaged \(.*\): delete it, and the training begins again"):
        state.restore(tmp_path / "state", *jax.tree.map(state.shape, (params, ())))


@pytest.mark.parametrize("first", [0, 2])
def test_nan_stops_with_one_line_and_keeps_the_last_good_state(params, tmp_path, monkeypatch, first):
    """Whatever was kept, the same call without the bad number ends as one that never met it. Before the first
    update there is no such state: weights that are bad in memory would be found again for ever."""

    def spoilt(*given, first_step, **named):
        for step, parts in enumerate(batches(*given, first_step=first_step, **named), start=first_step):
            yield [part._replace(weight=part.weight * (np.nan if step == first else 1)) for part in parts]

    bad = jax.tree.map(jnp.copy, params)
    if not first:
        bad["norm"] = bad["norm"].at[0].set(jnp.nan)
    call = partial(fine_tune, config=CONFIG, examples=some_examples(4), settings=SETTINGS, pad_id=0, steps=4)
    monkeypatch.setattr(loop, "batches", spoilt)
    with pytest.raises(UserError, match="NaN or infinite at update") as raised:
        call(bad, checkpoint=tmp_path / "state")
    monkeypatch.setattr(loop, "batches", batches)
    said = str(raised.value)
    assert f"at update {first + 1} of 4" in said
    assert "\n" not in said
    assert ("last good state" in said) == (tmp_path / "state").exists() == bool(first)
    again, whole = call(params, checkpoint=tmp_path / "state"), call(params)
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_updates_after_a_bad_one_change_nothing(params):
    """Losses are read late; what came in between must not move the parameters."""
    static = {"config": CONFIG, "optimizer": SETTINGS, "dtype": jnp.dtype(jnp.float32), "remat": "none"}
    good = next(iter(batches(some_examples(4), SETTINGS, pad_id=0, first_step=0, last_step=1)))
    bad = [part._replace(weight=part.weight * np.float32("nan")) for part in good]
    now, state, _ = update(jax.tree.map(jnp.copy, params), initial_state(SETTINGS, params), good, 1e-3, **static)
    kept = jax.tree.map(np.array, now)
    for parts in (bad, good, good):
        now, state, _ = update(now, state, parts, np.float32(1e-3), **static)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(now), strict=True):
        np.testing.assert_array_equal(a, b)


def test_empty_data_is_refused(params):
    with pytest.raises(UserError, match="nothing to train on"):
        fine_tune(params, CONFIG, [], SETTINGS, pad_id=0)


def test_an_epoch_holds_every_example_once():
    lengths = [len(e.tokens) for e in some_examples(23)]
    for epoch in (0, 1):
        plan = epoch_plan(lengths, SETTINGS, epoch)
        assert sorted(np.concatenate(plan).tolist()) == list(range(23))
        assert sum(len(part) < SETTINGS.batch_size for part in plan) <= 1
    assert [p.tolist() for p in epoch_plan(lengths, SETTINGS, 0)] != [p.tolist() for p in plan]


def test_batches_depend_on_their_step_alone():
    examples = some_examples(10)
    every = list(batches(examples, SETTINGS, pad_id=0, first_step=0, last_step=7))
    late = list(batches(examples, SETTINGS, pad_id=0, first_step=5, last_step=7))
    jax.tree.map(np.testing.assert_array_equal, every[5:], late)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule_never_wastes_an_update(schedule):
    settings = TrainConfig(learning_rate=1.0, schedule=schedule, warmup_ratio=0.1)
    rates = [learning_rate(settings, step, 30) for step in range(30)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(1.0)
    if schedule != "constant":
        assert rates[-1] < 0.05


def test_warm_up_of_a_number_of_updates():
    """150 updates as in HALOs: (step + 1) / (150 + 1), then constant, however many updates there are."""
    settings = TrainConfig(learning_rate=1.0, schedule="constant", warmup_steps=150, warmup_ratio=0.9)
    for steps in (306, 100):
        rates = [learning_rate(settings, step, steps) for step in range(steps)]
        np.testing.assert_allclose(rates, np.minimum(1.0, (np.arange(steps) + 1) / 151))
    none = dataclasses.replace(settings, warmup_steps=0)
    assert learning_rate(none, 0, 306) == 1.0
