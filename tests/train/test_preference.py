"""Preference training: against TRL's loss and gradients, the plain form, and closed forms; the training loop."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.config import LoraConfig, ModelConfig, TrainConfig
from common.errors import UserError
from common.model import hf, lora
from common.model.blocks import Idle
from common.model.decoder import init
from common.model.names import layer_rules
from common.train import preference
from common.train.loop import gradients
from common.train.preference import (
    Preference,
    collate_pairs,
    dpo_loss,
    mean_loss_reference,
    pair_loss,
    prefer,
    reference_logps,
)

CONFIG = ModelConfig("llama", 64, 32, 48, 2, 4, 2, 8, 128, tied_head=True)
SETTINGS = TrainConfig(learning_rate=1e-2, batch_size=4, micro_batch_size=2, epochs=2)
LORA = LoraConfig(rank=3, alpha=7.0)


@pytest.fixture(scope="module")
def params():
    return jax.jit(init, static_argnums=0)(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(1)
    some = lambda: tuple(rng.integers(1, 64, size=rng.integers(1, 20)).tolist())
    return [Preference(some(), some(), some()) for _ in range(10)]


@pytest.fixture(scope="module")
def reference(params, pairs):
    return reference_logps(params, CONFIG, pairs)


@pytest.fixture(scope="module")
def trl(fixtures):
    """The pairs and figures of TRL: the policy is an adapter on its base, the base the reference."""
    golden = dict(np.load(fixtures / "dpo.npz"))
    part = lambda name, i: tuple(golden[f"{name}_ids_{i}"].tolist())
    pairs = [Preference(part("prompt", i), part("chosen", i), part("rejected", i)) for i in range(5)]
    config = hf.load_config(fixtures / "qwen2")
    plain = hf.load_params(fixtures / "qwen2", config)
    params, adapted = lora.load_adapter(fixtures / "adapter_qwen2", plain, config)
    return golden, pairs, plain, config, params, adapted


def mean_loss(params, config, pairs, reference, beta=0.1, normalise=False, micro=8):
    """The fast path's loss of one update: what `update` adds up over its micro-batches."""
    settings = dataclasses.replace(SETTINGS, batch_size=8, micro_batch_size=micro)
    parts = jax.tree.map(jnp.asarray, collate_pairs(pairs, reference, settings, 0, beta, normalise))
    return sum(pair_loss(params, config, part, dtype=jnp.float32)[0] for part in parts)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("difference", "loss"), [(0, 0.6931), (1, 0.6444), (10, 0.3133)])
def test_loss_is_the_closed_form(difference, loss):
    zero = jnp.zeros(1)
    for values in ((zero + difference, zero, zero, zero), (zero, zero - difference, zero, zero)):
        assert float(dpo_loss(*values, 0.1)[0]) == pytest.approx(loss, abs=5e-5)
    both = dpo_loss(zero - 3, zero - 5, zero - 3 - difference, zero - 5, 0.1)
    assert float(both[0]) == pytest.approx(loss, abs=5e-5)


def test_reference_log_probabilities_are_those_of_trl(trl):
    golden, pairs, plain, config, params, adapted = trl
    np.testing.assert_allclose(reference_logps(plain, config, pairs), golden["reference_logps"], rtol=1e-4)
    merged = lora.merge(params, adapted)
    np.testing.assert_allclose(reference_logps(merged, config, pairs), golden["policy_logps"], rtol=1e-4)
    lengths = np.array([[len(pair.chosen), len(pair.rejected)] for pair in pairs])
    means = reference_logps(plain, config, pairs, normalise=True, batch_size=3)
    np.testing.assert_allclose(means * lengths, golden["reference_logps"], rtol=1e-4)
    assert means.dtype == np.float32


@pytest.mark.parametrize("kind", ["full", "adapter"])
@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm"])
def test_loss_and_gradients_are_those_of_trl(trl, quick_jit, loss_type, kind):
    golden, pairs, plain, config, params, adapted = trl
    normalise = loss_type == "sigmoid_norm"
    reference = reference_logps(plain, config, pairs, normalise=normalise)
    if kind == "full":
        trained, join = lora.merge(params, adapted), lambda tree: tree
    else:
        trained, join, config = lora.split(params)[1], lambda tree: lora.join(plain, tree), adapted
    f = lambda tree: mean_loss(join(tree), config, pairs, reference, normalise=normalise)
    loss, grads = quick_jit(jax.value_and_grad(f))(trained)
    assert float(loss) == pytest.approx(float(golden[f"{loss_type}/{kind}/loss"]), abs=1e-5)
    seen = 0
    for name, theirs in golden.items():
        if name.startswith(f"{loss_type}/{kind}/") and not name.endswith("/loss"):
            np.testing.assert_allclose(
                _theirs(grads, name, config), theirs, atol=2e-5 + 1e-4 * np.abs(theirs).max()
            )
            seen += 1
    assert seen >= 3


def _theirs(grads, name, config):
    """Our gradient of the weight that PyTorch calls `name`, in its shape."""
    path = name.split("model.")[-1]
    if path == "norm.weight":
        return grads["norm"]
    _, layer, rest = path.split(".", 2)
    keys = {rule.name.split(".", 3)[3]: rule.key for rule in layer_rules(config, int(layer))}
    if ".lora_" in rest:
        module, part = rest.removesuffix(".default.weight").split(".lora_")
        key = keys[f"{module}.weight"]
        leaf = grads["layers"][int(layer)][f"{key}_{part.lower()}"]
        return leaf.reshape(-1, 3).T if part == "A" else leaf.reshape(3, -1).T
    leaf = grads["layers"][int(layer)][keys[rest]]
    return leaf.reshape(-1) if rest.endswith("bias") else leaf.reshape(leaf.shape[0], -1).T


@pytest.mark.parametrize("normalise", [False, True])
def test_loss_and_gradients_equal_the_plain_form(params, pairs, quick_jit, normalise):
    """In parts, with rows of padding, and away from the start, where both log-ratios are zero."""
    few = pairs[:3]
    reference = np.random.default_rng(0).normal(-9, 3, (3, 2)).astype(np.float32)
    fast = quick_jit(jax.value_and_grad(lambda p: mean_loss(p, CONFIG, few, reference, 0.3, normalise, micro=2)))(
        params
    )
    plain = quick_jit(
        jax.value_and_grad(lambda p: mean_loss_reference(p, CONFIG, few, reference, 0.3, normalise))
    )(params)
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("spare", [0, 20], ids=["whole", "padded"])
def test_what_a_pair_begins_with_is_computed_once_for_the_same_gradients(params, quick_jit, spare):
    """The prompt, and what both answers begin with; without padding to round up by, some of it twice after all."""
    prompts = [tuple(range(1, 41)), tuple(range(2, 36))]
    pairs = [
        Preference(prompts[0], (5, *range(7, 30)), (5, *range(8, 31 - spare))),
        Preference(prompts[1], tuple(range(9, 39 - spare)), tuple(range(10, 40))),
    ]
    reference = np.random.default_rng(0).normal(-9, 3, (2, 2)).astype(np.float32)
    settings = dataclasses.replace(SETTINGS, batch_size=2, micro_batch_size=2)
    [part] = collate_pairs(pairs, reference, settings, 0, 0.3, False)
    assert part.tokens.shape == (4, 64)
    part_of_all = part.tokens.size // 16
    apart = sum(len(p.prompt) + len(answer) - 1 for p in pairs for answer in (p.chosen, p.rejected))
    assert len(part.real) == -(-(apart - 41 - 34) // part_of_all) * part_of_all
    # Of every position read twice there is no other place, and of no place two.
    again = part.again[part.again < part.tokens.size]
    assert len(set(again)) == len(again)
    assert (len(again) < 41 + 34) == (spare == 0)
    assert not set(again) & set(part.real)
    run = quick_jit(jax.value_and_grad(lambda p, part: pair_loss(p, CONFIG, part, dtype=jnp.float32)[0]))
    plain = run(params, part._replace(real=None, again=None))
    for a, b in zip(jax.tree.leaves(run(params, part)), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_pairs_that_end_early_are_left_out_of_attention_for_the_same_gradients(params, quick_jit, remat):
    pairs = [
        Preference(tuple(range(1, 21)), tuple(range(5, 13)), tuple(range(30, 36))),
        Preference(tuple(range(3, 33)), tuple(range(9, 39)), tuple(range(20, 48))),
    ]
    reference = np.random.default_rng(0).normal(-9, 3, (2, 2)).astype(np.float32)
    settings = dataclasses.replace(SETTINGS, batch_size=2, micro_batch_size=2)
    [part] = collate_pairs(pairs, reference, settings, 0, 0.3, False)
    assert part.idle == Idle((0, 0, 2, 2))
    assert (part.again < part.tokens.size).any()
    run = quick_jit(
        jax.value_and_grad(lambda p, part: pair_loss(p, CONFIG, part, dtype=jnp.float32, remat=remat)[0])
    )
    plain = run(params, part._replace(real=None, again=None, idle=None))
    for a, b in zip(jax.tree.leaves(run(params, part)), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize(("name", "remat"), [("gpt_oss", "none"), ("gemma2", "full"), ("mixtral", "dots")])
def test_pairs_are_packed_for_the_same_gradients_in_other_families(fixtures, quick_jit, name, remat):
    """With windows and sinks, caps, and experts; behind a prefix, and with answers that begin alike."""
    config = hf.load_config(fixtures / "families" / name)
    params = hf.load_params(fixtures / "families" / name, config)
    rng = np.random.default_rng(2)
    ids = lambda count: tuple(rng.integers(1, config.vocab_size, count).tolist())
    prefix, start = ids(8), ids(2)
    pairs = [
        Preference((*prefix, *ids(count)), (*start, *ids(5)), (*start, *ids(other)))
        for count, other in ((1, 7), (9, 1), (4, 5))
    ]
    reference = rng.normal(-9, 3, (3, 2)).astype(np.float32)
    settings = dataclasses.replace(SETTINGS, batch_size=3, micro_batch_size=2)
    packed = collate_pairs(pairs, reference, settings, 0, 0.3, False, prefix)
    assert all((part.again < part.tokens.size).any() for part in packed)
    plain = [
        part._replace(real=None, again=None) for part in collate_pairs(pairs, reference, settings, 0, 0.3, False)
    ]
    loss = lambda p, parts: sum(pair_loss(p, config, x, dtype=jnp.float32, remat=remat)[0] for x in parts)
    run = quick_jit(jax.value_and_grad(loss))
    for a, b in zip(*(jax.tree.leaves(run(params, parts)) for parts in (packed, plain)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("adapters", [None, LORA], ids=["full", "adapters"])
@pytest.mark.parametrize("normalise", [False, True])
def test_training_starts_at_log_two_and_learns_to_prefer(params, pairs, adapters, normalise):
    before = jax.tree.map(np.array, params)
    reference = reference_logps(params, CONFIG, pairs, normalise=normalise)
    rows = []
    after = prefer(
        params,
        CONFIG,
        pairs,
        reference,
        dataclasses.replace(SETTINGS, lora=adapters, learning_rate=3e-2),
        pad_id=0,
        beta=0.5,
        normalise=normalise,
        steps=12,
        log=lambda first: lambda step, **values: rows.append((step, values)),
    )
    assert [step for step, _ in rows] == list(range(12))
    first, last = rows[0][1], rows[-1][1]
    assert list(first) == [
        *("loss", "gradient_norm", "learning_rate"),
        *("accuracy", "chosen_logp_change", "margin", "rejected_logp_change"),
    ]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("margin", "chosen_logp_change", "rejected_logp_change"):
        assert first[name] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < 0.67
    assert last["accuracy"] == 1
    assert last["margin"] == pytest.approx(
        0.5 * (last["chosen_logp_change"] - last["rejected_logp_change"]), abs=1e-4
    )
    assert_same(before, params)
    # What is returned really prefers, scored anew.
    config = dataclasses.replace(CONFIG, lora=adapters)
    change = reference_logps(after, config, pairs, normalise=normalise) - reference
    assert (change[:, 0] > change[:, 1]).all()


def test_what_all_prompts_begin_with_is_read_once_for_the_same_update(params, pairs, monkeypatch):
    first = tuple(range(1, 33))
    longer = [dataclasses.replace(pair, prompt=first + pair.prompt) for pair in pairs]
    reference = np.random.default_rng(0).normal(-9, 3, (len(pairs), 2)).astype(np.float32)
    # One batch, as rows of other lengths are shared out otherwise; a large epsilon, as rounding is not the matter.
    settings = dataclasses.replace(SETTINGS, batch_size=len(pairs), micro_batch_size=len(pairs), epsilon=1e-2)
    train = lambda: prefer(params, CONFIG, longer, reference, settings, pad_id=0, steps=2)
    seen = []
    collated = preference.collate_pairs
    monkeypatch.setattr(preference, "collate_pairs", lambda *x: seen.append(collated(*x)) or seen[-1])
    once = train()
    monkeypatch.setattr(preference, "shared_prefix", lambda examples: ())
    plain = train()
    assert [parts[0].prefix.size for parts in seen] == [32, 32, 0, 0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), once, plain)


def test_micro_batches_give_the_update_of_the_whole(params, pairs, reference):
    # A large epsilon keeps Adam from turning rounding of tiny gradients into whole steps.
    results = [
        prefer(
            params,
            CONFIG,
            pairs,
            reference,
            dataclasses.replace(SETTINGS, batch_size=8, micro_batch_size=micro, epsilon=1e-2),
            pad_id=pad_id,
            steps=2,
        )
        for micro, pad_id in ((8, 0), (3, 5))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *results)


@pytest.mark.parametrize("adapters", [None, LORA], ids=["full", "adapters"])
def test_continued_training_ends_bit_for_bit_the_same(params, pairs, reference, tmp_path, adapters):
    settings = dataclasses.replace(SETTINGS, lora=adapters, checkpoint_seconds=0.0)
    whole = prefer(params, CONFIG, pairs, reference, settings, pad_id=0, steps=7)

    def stop_at_four(first):
        def log(step, **values):
            if step == 4:
                raise KeyboardInterrupt

        return log

    run = {"pad_id": 0, "steps": 7, "checkpoint": tmp_path / "state"}
    with pytest.raises(KeyboardInterrupt):
        prefer(params, CONFIG, pairs, reference, settings, log=stop_at_four, **run)
    resumed = []
    log = lambda first: resumed.append(first) or (lambda step, **values: resumed.append(step))
    again = prefer(params, CONFIG, pairs, reference, settings, log=log, **run)
    assert resumed[0] > 0
    assert resumed[1:] == list(range(resumed[0], 7))
    assert_same(whole, again)


def test_training_again_does_not_compile_again(params, pairs, reference):
    """For another beta, learning rate or reference."""
    prefer(params, CONFIG, pairs, reference, SETTINGS, pad_id=0, steps=3)
    compiled = gradients._cache_size()
    other = dataclasses.replace(SETTINGS, learning_rate=1e-4, schedule="constant", warmup_steps=2)
    prefer(params, CONFIG, pairs, reference - 1, other, pad_id=0, steps=3, beta=0.7)
    assert gradients._cache_size() == compiled


def test_a_pass_sees_every_pair_once(params, pairs, reference):
    """10 pairs in batches of 4: three updates, the last of two pairs."""
    steps = []
    settings = dataclasses.replace(SETTINGS, epochs=1)
    log = lambda first: lambda step, **values: steps.append(step)
    prefer(params, CONFIG, pairs, reference, settings, pad_id=0, log=log)
    assert steps == [0, 1, 2]


@pytest.mark.parametrize(("count", "updates"), [(2448, 306), (6277, 785), (9700, 1213)])
def test_the_last_batch_counts(count, updates):
    assert TrainConfig(batch_size=8, epochs=1).total_steps(count) == updates


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Preference((), (1,), (2,)), "pair 1 has an empty prompt or answer"),
        (Preference((1,), (), (2,)), "pair 1 has an empty prompt or answer"),
        (Preference((1,), (2,), ()), "pair 1 has an empty prompt or answer"),
        (Preference((1,) * 100, (2,), (3,) * 29), "pair 1 of 129 tokens exceeds the model's 128 positions"),
    ],
)
def test_pairs_that_cannot_be_learned_are_refused(params, pairs, pair, message):
    both = [pairs[0], pair]
    with pytest.raises(UserError, match=message):
        reference_logps(params, CONFIG, both)
    with pytest.raises(UserError, match=message):
        prefer(params, CONFIG, both, np.zeros((2, 2), np.float32), SETTINGS, pad_id=0)


def test_no_pairs_are_refused_in_one_line(params):
    with pytest.raises(UserError, match="nothing to prefer") as raised:
        prefer(params, CONFIG, [], np.zeros((0, 2), np.float32), SETTINGS, pad_id=0)
    assert "\n" not in str(raised.value)
    assert reference_logps(params, CONFIG, []).shape == (0, 2)


def test_a_reference_of_other_pairs_is_refused(params, pairs, reference):
    with pytest.raises(ValueError, match="for 10 pairs"):
        prefer(params, CONFIG, pairs, reference[:4], SETTINGS, pad_id=0)


def test_a_bad_reference_stops_with_one_line(params, pairs, reference):
    bad = np.where(np.arange(10)[:, None] == 3, np.float32("nan"), reference)
    with pytest.raises(UserError, match="NaN or infinite at update"):
        prefer(params, CONFIG, pairs, bad, SETTINGS, pad_id=0)
