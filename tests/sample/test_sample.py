"""The sampler against its plain form, against exact probabilities, and against itself in other company."""

import dataclasses
import functools
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from common import buckets
from common.config import ModelConfig, SampleConfig
from common.errors import UserError
from common.model import decoder
from common.sample import cache
from common.sample import sampler as sample
from common.sample import slots as host
from common.sample.choose import choose, cut, draw, key_data, likeliest, log_total, uniform
from common.sample.prompt import Prompt
from common.sample.reference import sample_reference
from common.sample.sampler import Sampler
from common.sample.score import score

CONFIG = ModelConfig(
    family="qwen2",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=192,
    tied_head=True,
    biases=("q", "k", "v"),
    windows=(0, 24),
)
EOS = 3
SETTINGS = [
    SampleConfig(temperature=0.0),
    SampleConfig(temperature=1.0),
    SampleConfig(temperature=0.7, top_p=0.8),
    SampleConfig(temperature=1.3, top_k=7),
    SampleConfig(temperature=1.0, top_p=0.9, top_k=20),
]


_quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _params(seed=0):
    """Random weights, large enough that some tokens are much likelier than others."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        norm = "norm" in jax.tree_util.keystr(path)
        return jnp.asarray(rng.normal(float(norm), 0.12, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, decoder.abstract_params(CONFIG))


def _sampler(eos_ids=(EOS,), slots=8, block=4, **changes):
    return Sampler(_params(), CONFIG, eos_ids=eos_ids, slots=slots, block=block, **changes)


@_quick_jit
def _logits(params, tokens):
    return decoder.unembed(params, CONFIG, decoder.hidden(params, CONFIG, tokens))


def _prompts(count, seed=0, longest=60, samples=1):
    """Prompts of random lengths, seeds and limits, with the settings in turn."""
    rng = np.random.default_rng(seed)
    return [
        Prompt(
            rng.integers(4, 64, rng.integers(1, longest)).tolist(),
            dataclasses.replace(SETTINGS[i % len(SETTINGS)], max_new_tokens=int(rng.integers(1, 30))),
            seeds=tuple(rng.integers(0, 2**64, samples, dtype=np.uint64).tolist()),
        )
        for i in range(count)
    ]


def _tokens(results):
    return [[(one.tokens, one.finish) for one in samples] for samples in results]


def test_equals_the_reference():
    prompts = _prompts(20, samples=2)
    for prompt, got in zip(prompts, _sampler().sample(prompts), strict=True):
        want = sample_reference(_params(), CONFIG, prompt, [EOS])
        assert _tokens([got]) == _tokens([want])
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a.logps, b.logps, atol=1e-4)


def test_reference_prompts_end_in_every_way():
    """Otherwise the agreement above would not show that stopping is right."""
    ends = {one.finish for samples in _sampler().sample(_prompts(20, samples=2)) for one in samples}
    assert ends == {"stop", "length"}


def test_a_sample_does_not_depend_on_company_order_slots_or_refills():
    prompts = _prompts(24, seed=1)
    together = _tokens(_sampler().sample(prompts))
    assert _tokens(_sampler().sample(prompts[::-1])) == together[::-1]
    assert [_tokens(_sampler().sample([prompt]))[0] for prompt in prompts] == together
    assert _tokens(_sampler(slots=1, block=3).sample(prompts)) == together


@pytest.mark.parametrize("count", [3, 40])
def test_a_sample_does_not_depend_on_the_number_of_streams(monkeypatch, count):
    """Many prompts are dealt out, and few prompts' samples are; the rows of each stream are as many as before."""
    prompts = _prompts(count, seed=2, samples=80 // count)
    found, seen, queue = {}, [], host.Queue
    for streams in (1, 2):
        monkeypatch.setattr(sample.streams, "most", lambda streams=streams: streams)
        spied = lambda *args: seen.append(queue(*args)) or seen[-1]
        monkeypatch.setattr(sample, "Queue", spied)
        done = []
        found[streams] = _sampler().sample(prompts, on_done=lambda done=done: done.append(threading.get_ident()))
        assert done == [threading.get_ident()] * sum(len(prompt.seeds) for prompt in prompts)
    assert [own.distinct for own in seen] == {3: [3, 3, 3], 40: [40, 20, 20]}[count]
    assert _tokens(found[1]) == _tokens(found[2])


def _widths(monkeypatch):
    """The numbers of slots that decode, as they change."""
    seen, decode = [], sample._decode_block

    def spied(params, config, cache, rows, *more, **named):
        if not seen or seen[-1] != len(rows["live"]):
            seen.append(len(rows["live"]))
        return decode(params, config, cache, rows, *more, **named)

    monkeypatch.setattr(sample, "_decode_block", spied)
    return seen


@pytest.mark.parametrize(("least", "widths"), [(1, [8, 4, 2]), (100, [8])])
def test_the_last_samples_go_on_in_fewer_slots(monkeypatch, least, widths):
    monkeypatch.setattr(sample.streams, "most", lambda: 1)
    prompts = _prompts(24, seed=1)
    want = _sampler().sample(prompts)
    for name, value in {"SMALL_MODEL": 0, "FEW_SLOTS": 2, "LONG_REST": least}.items():
        monkeypatch.setattr(sample, name, value)
    seen = _widths(monkeypatch)
    got = _sampler().sample(prompts)
    assert seen == widths
    assert _tokens(got) == _tokens(want)
    for a, b in zip(itertools.chain(*got), itertools.chain(*want), strict=True):
        np.testing.assert_allclose(a.logps, b.logps, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "limit", "tokens", "each", "widths"),
    [
        (16, 9, 5, 1, [16, 4]),
        (9, 9, 5, 1, [12, 4]),
        (8, 9, 5, 1, [8, 4]),
        (16, 9, 190, 1, [4]),
        (3, 9, 5, 6, [16, 4]),
    ],
)
def test_many_answers_decode_in_more_slots(monkeypatch, count, limit, tokens, each, widths):
    monkeypatch.setattr(sample.streams, "most", lambda: 1)
    monkeypatch.setattr(sample, "many_slots_up_to", lambda *_: 100)
    for name, value in {"SLOTS": 4, "MANY_SLOTS": 16, "SMALL_MODEL": 0}.items():
        for module in (buckets, sample, host):
            monkeypatch.setattr(module, name, value, raising=False)
    prompts = [
        Prompt([4 + i] * tokens, SampleConfig(limit if i < 3 else 2, 1.0), tuple(range(each)))
        for i in range(count)
    ]
    if tokens + limit > CONFIG.max_positions:
        assert _sampler(slots=None)._width(prompts) == widths[0]
        return
    seen = _widths(monkeypatch)
    found = _sampler(eos_ids=(), slots=None).sample(prompts)
    assert seen == widths
    assert _tokens(found) == _tokens(_sampler(eos_ids=()).sample(prompts))


def test_many_slots_are_for_what_takes_about_a_gigabyte():
    most = buckets.many_slots_up_to(135_000_000, 46_080)  # SmolLM2 in float32
    assert most * 46_080 * buckets.MANY_SLOTS <= 1.1e9 < (most + 1) * 46_080 * buckets.MANY_SLOTS
    assert buckets.many_slots_up_to(buckets.SMALL_MODEL, 1) == 0


def test_samples_of_one_prompt_equal_prompts_of_one_sample():
    seeds = tuple(range(11))
    sampling = SampleConfig(max_new_tokens=20, temperature=1.0)
    shared, other = Prompt([5, 6, 7], sampling, seeds), Prompt([9] * 40, sampling, seeds[:2])
    results = _sampler().sample([shared, other])
    alone = [Prompt(prompt.tokens, sampling, (seed,)) for prompt in (shared, other) for seed in prompt.seeds]
    assert _tokens([results[0] + results[1]]) == [[pair for [pair] in _tokens(_sampler().sample(alone))]]
    assert len({tuple(one.tokens) for one in results[0]}) > 8


def test_long_prompts_are_prefilled_fewer_at_a_time():
    prompts = [Prompt([5] * (20 + i), SampleConfig(max_new_tokens=2)) for i in range(40)]
    queue, shapes = host.Queue(prompts), []
    while queue.waiting:
        shapes.append(host.padded(*queue.next_prompts(8, 80)[1:], buckets.bucket).shape)
        while queue.ready:
            queue.pop()
    assert shapes[0] == (2, 24)  # 8 of 27 tokens are more than 80, and 4 of 23; lengths are rounded up
    assert all(rows * length <= 96 for rows, length in shapes)
    assert {rows for rows, _ in shapes} == {2, 1}


@pytest.mark.parametrize("shared", [0, 16, 48])
def test_packed_prompts_are_those_with_padding(monkeypatch, shared):
    """Also behind what all begin with, in layers with a window and without."""
    begin = np.random.default_rng(8).integers(4, 64, shared).tolist()
    prompts = [
        Prompt([*begin, 4 + i % 50, *range(5, 5 + i)], SampleConfig(max_new_tokens=9), shared=shared)
        for i in (0, 1, 3, 20, 21, 57)
    ]
    want = _sampler().sample(prompts)
    shapes, prefill = [], sample._prefill_packed
    spied = lambda *args: shapes.append((args[4], len(args[2]))) or prefill(*args)
    monkeypatch.setattr(sample, "_prefill_packed", spied)
    monkeypatch.setattr(sample, "SMALL_MODEL", 0)
    found = _sampler().sample(prompts)
    # Of 0, 1, 3 and 20 tokens, and of 21 and 57: the last token of a prompt is not among them.
    assert shapes == [((2, 16), 2), ((2, 32), 24), ((2, 64), 80)]
    assert _tokens(found) == _tokens(want)
    for own, other in zip(itertools.chain(*found), itertools.chain(*want), strict=True):
        np.testing.assert_allclose(own.logps, other.logps, atol=1e-5)


def test_equal_prompts_are_prefilled_once(monkeypatch):
    monkeypatch.setattr(sample.streams, "most", lambda: 1)
    prefilled = []
    prefill = sample._prefill
    monkeypatch.setattr(sample, "_prefill", lambda *args: prefilled.append(args[2]) or prefill(*args))
    sampling = SampleConfig(max_new_tokens=3, temperature=1.0)
    prompts = [Prompt([5, 6, 7], sampling, (i, i + 100)) for i in range(10)] + [Prompt([8, 9], sampling)]
    _sampler().sample(prompts)
    assert [tokens[:, :2].tolist() for tokens in prefilled] == [[[8, 0], [5, 6]]]


def test_what_prompts_begin_with_is_read_once_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(sample.streams, "most", lambda: 1)
    rng = np.random.default_rng(4)
    first, second = (rng.integers(4, 64, count).tolist() for count in (32, 48))
    prompts = [
        dataclasses.replace(prompt, tokens=[*start, *prompt.tokens], shared=len(start))
        for prompt, start in zip(_prompts(24, seed=3, samples=2), [first, second, []] * 8, strict=True)
    ]
    prefilled = []
    prefill = sample._prefill
    monkeypatch.setattr(sample, "_prefill", lambda *args: prefilled.append(args[2]) or prefill(*args))
    together = _sampler().sample(prompts)
    assert sum(tokens[0].tolist() in (first, second) for tokens in prefilled) == 2
    for prompt, got in zip(prompts, together, strict=True):
        assert _tokens([got]) == _tokens([sample_reference(_params(), CONFIG, prompt, [EOS])])
    assert _tokens(_sampler().sample(prompts[:2])) == _tokens(together[:2])


def test_a_shared_beginning_that_leaves_much_fits_into_the_cache():
    prompt = Prompt([5] * 16 + list(range(4, 60)) * 3, SampleConfig(max_new_tokens=4, temperature=0.0))
    plain = _tokens(_sampler(block=1).sample([prompt]))
    assert _tokens(_sampler(block=1).sample([dataclasses.replace(prompt, shared=16)])) == plain


def test_log_probabilities_are_those_that_scoring_gives():
    prompts = [dataclasses.replace(p, stop_at=None) for p in _prompts(10, seed=2, samples=2)]
    results = _sampler().sample(prompts)
    pairs = [(p.tokens, one.tokens) for p, samples in zip(prompts, results, strict=True) for one in samples]
    scored = score(_params(), CONFIG, pairs)
    for logps, one in zip(scored, [one for samples in results for one in samples], strict=True):
        np.testing.assert_allclose(one.logps, logps, atol=1e-4)


def test_blocks_may_be_longer_than_a_page():
    prompts = _prompts(9, seed=5)
    assert _tokens(_sampler(block=80).sample(prompts)) == _tokens(_sampler().sample(prompts))


@pytest.mark.parametrize("size", [1, 5, 64, 300])
def test_of_equally_likely_tokens_the_first_is_taken_and_all_are_summed_up(size):
    logits = np.random.default_rng(0).integers(-3, 3, (200, size)).astype(np.float32)
    logits[0] = -np.inf
    assert (np.asarray(_quick_jit(likeliest)(logits)) == logits.argmax(axis=1)).all()
    wanted = logsumexp(logits[1:].astype(np.float64), axis=1)
    np.testing.assert_allclose(_quick_jit(log_total)(logits[1:]), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 33, 34, 65, 66, 97])
@pytest.mark.parametrize("new", [1, 2, 95])
def test_lengths_at_the_edges_of_buckets(length, new):
    prompt = Prompt([(7 * i) % 60 + 4 for i in range(length)], SampleConfig(max_new_tokens=new))
    [[got]] = _sampler(eos_ids=()).sample([prompt])  # 97 + 95: the model's last position
    assert len(got.tokens) == new
    assert got.finish == "length"
    padded = np.zeros((1, 192), np.int32)
    padded[0, : length + new - 1] = [*prompt.tokens, *got.tokens][:-1]
    logits = np.asarray(_logits(_params(), padded))[0, length - 1 : length + new - 1]
    assert logits.argmax(1).tolist() == got.tokens


def test_stops_at_any_end_token_and_keeps_it():
    prompt = Prompt([5, 6, 7], SampleConfig(max_new_tokens=40, temperature=1.0), seeds=tuple(range(8)))
    free = _sampler(eos_ids=()).sample([prompt])[0]
    ends = {free[0].tokens[9], free[1].tokens[5]}
    for whole, got in zip(free, _sampler(eos_ids=tuple(ends)).sample([prompt])[0], strict=True):
        first = next((i for i, token in enumerate(whole.tokens) if token in ends), 39)
        assert got.tokens == whole.tokens[: first + 1]
        assert got.logps == whole.logps[: first + 1]
        assert got.finish == ("stop" if whole.tokens[first] in ends else "length")


@pytest.mark.parametrize(("slots", "block"), [(8, 4), (1, 3)])
def test_stop_at_cuts_at_the_same_place_whatever_the_block(slots, block):
    prompt = Prompt([5, 6, 7], SampleConfig(max_new_tokens=40, temperature=1.0), seeds=tuple(range(6)))
    free = _sampler(eos_ids=()).sample([prompt])[0]

    def after_sum_200(tokens):
        return next((i + 1 for i, total in enumerate(np.cumsum(tokens)) if total >= 200), None)

    cut = dataclasses.replace(prompt, stop_at=after_sum_200)
    for whole, got in zip(free, _sampler(eos_ids=(), slots=slots, block=block).sample([cut])[0], strict=True):
        keep = after_sum_200(whole.tokens)
        assert (got.tokens, got.finish) == (whole.tokens[:keep], "stop")
        np.testing.assert_allclose(got.logps, whole.logps[:keep], atol=1e-5)


@pytest.mark.parametrize("sampling", SETTINGS[1:], ids=str)
def test_draws_follow_the_exact_distribution(sampling):
    """20,000 draws, each with a seed of its own, against the probabilities by the chi-square statistic."""
    count = 20_000
    logits = (3 * np.random.default_rng(0).normal(size=64)).astype(np.float32)
    seeds = np.array([key_data(seed) for seed in range(count)], np.uint32)
    settings = [np.full(count, x, np.float32) for x in (sampling.temperature, sampling.top_p)]
    [numbers] = _quick_jit(uniform)(seeds, np.zeros((1, count), np.int32))
    top_k = np.full(count, sampling.top_k, np.int32)
    drawn = _quick_jit(choose)(np.tile(logits, (count, 1)), numbers, *settings, top_k)
    probs = _exact_probabilities(logits.astype(np.float64), sampling)
    counts = np.bincount(drawn, minlength=64)
    assert counts[probs == 0].sum() == 0
    expected = count * probs[probs > 0]
    chi_square, degrees = ((counts[probs > 0] - expected) ** 2 / expected).sum(), len(expected) - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("size", [1, 3, 64, 300])
def test_a_draw_is_where_the_running_sum_exceeds_the_uniform_number(size):
    rng = np.random.default_rng(size)
    weights = np.where(rng.random((500, size)) < 0.3, 0, np.exp(3 * rng.normal(size=(500, size)))).astype(
        np.float32
    )
    weights[:, rng.integers(size)] = 1  # at least one is left
    numbers = rng.random(500).astype(np.float32)
    numbers[:2] = 0, 1 - 2**-24
    drawn = np.asarray(_quick_jit(draw)(weights, numbers))[:, None]
    probs = weights.astype(np.float64) / weights.sum(1, keepdims=True, dtype=np.float64)
    chosen, mass = (np.take_along_axis(x, drawn, 1)[:, 0] for x in (np.cumsum(probs, 1), probs))
    assert (mass > 0).all()
    assert (chosen >= numbers - 1e-6).all()
    assert (chosen - mass <= numbers + 1e-6).all()


def _exact_probabilities(logits, sampling):
    """As transformers' warpers define them: temperature, then top-k, then top-p of what is left."""
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits[logits < np.sort(logits)[-min(sampling.top_k, len(logits))]] = -np.inf
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    order = np.argsort(-probs)
    probs[order[np.cumsum(probs[order]) - probs[order] >= sampling.top_p]] = 0
    return probs / probs.sum()


def test_cuts_equal_those_by_sorting():
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(64, 300)) * rng.uniform(0.1, 8, (64, 1))).astype(np.float32)
    top_p = rng.choice([1.0, 0.999, 0.9, 0.5, 0.01], 64).astype(np.float32)
    top_k = rng.choice([0, 1, 2, 10, 299, 300, 1000], 64).astype(np.int32)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    kept = np.asarray(_quick_jit(cut)(weights, top_p, top_k)) > 0
    for row in range(64):
        want = _exact_probabilities(
            logits[row].astype(np.float64), SampleConfig(temperature=1.0, top_p=top_p[row], top_k=top_k[row])
        )
        if top_p[row] == 1:  # by sorting in float64, likelihoods below rounding would be lost
            rank = np.argsort(np.argsort(-logits[row]))
            assert (kept[row] == (rank < (top_k[row] or 300))).all()
        else:
            assert (kept[row] == (want > 0)).all()


def test_a_cut_in_one_row_leaves_other_rows_as_they_are():
    weights = np.exp(np.linspace(0, -80, 50, dtype=np.float32))[None].repeat(2, 0)  # far beyond float32's rounding
    kept = _quick_jit(cut)(weights, np.array([1.0, 0.5], np.float32), np.array([0, 3], np.int32))
    assert (np.asarray(kept) > 0).sum(1).tolist() == [50, 1]


def test_nothing_is_compiled_again_for_a_retrained_model():
    prompts, others = _prompts(12, seed=3, samples=2), _prompts(15, seed=4)
    _sampler().sample(prompts)
    programs = (
        sample._prefill,
        cache._copy_to_pages,
        cache._more_pages,
        cache._take,
        sample._uniform,
        sample._decode_block,
    )
    before = [program._cache_size() for program in programs]
    Sampler(_params(seed=1), CONFIG, eos_ids=(EOS,), slots=8, block=4).sample(others)
    assert [program._cache_size() for program in programs] == before


def test_the_cache_is_donated():
    """Otherwise each block would copy it."""
    sampler, slots = _sampler(), host.Slots(8)
    slots.start(0, host.Job(Prompt([5, 6, 7], SampleConfig(9)), 0, 0, 0))
    made = sampler._cache([], 8)
    assert isinstance(made, cache.PagedCache)
    source = sample._prefill(sampler._params, CONFIG, np.array([[5, 6]], np.int32), None, made.multiple)
    before = made.arrays
    made.fill(source, np.array([0]), np.array([0]), np.array([2]), slots.live)
    filled, pages = made.arrays, made.room(slots.live, slots.rows["position"], slots.ends(4))
    assert made.arrays is filled
    numbers = np.zeros((4, 8), np.float32)
    sample._decode_block(sampler._params, CONFIG, filled, slots.rows, numbers, sampler._eos, 0, pages)
    assert all(part.is_deleted() for layer in before + filled for part in layer)


def test_weights_turned_for_decoding_write_the_same(monkeypatch):
    prompts = _prompts(12, seed=6, samples=2)
    want = _sampler().sample(prompts)
    monkeypatch.setattr(buckets, "SMALL_MODEL", 0)
    sampler = _sampler()
    found = sampler.sample(prompts)
    assert sampler._turned is not None
    weights, turned = sampler._weights(8)
    assert turned
    assert weights["layers"][0]["down"].shape == _params()["layers"][0]["down"].shape[::-1]
    assert sampler._weights(8)[0] is weights
    # Of a width between powers of two they would be slower.
    assert sampler._weights(12) == (sampler._params, False)
    assert _tokens(found) == _tokens(want)
    for own, other in zip(itertools.chain(*found), itertools.chain(*want), strict=True):
        np.testing.assert_allclose(own.logps, other.logps, atol=1e-5)


def test_weights_of_its_dtype_are_used_as_they_are_and_others_converted():
    """So that a sampler holds no copy of weights that are loaded for computing."""
    given = jax.tree.leaves(_params())
    assert all(own is leaf for own, leaf in zip(jax.tree.leaves(_sampler()._params), given, strict=True))
    half = _sampler(dtype=jnp.bfloat16)._params
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}


def test_a_seed_below_2_to_32_is_that_of_jax():
    assert (jax.random.key_data(jax.random.key(12345)) == np.array(key_data(12345))).all()


def test_nothing_to_sample():
    assert _sampler().sample([]) == []
    assert _sampler().sample([Prompt([5], SampleConfig(9), seeds=())]) == [[]]


def test_each_finished_sample_is_announced():
    announced = []
    _sampler().sample(_prompts(5, samples=2), on_done=lambda: announced.append(1))
    assert len(announced) == 10


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt([], SampleConfig(9)), "prompt 1 is empty"),
        (Prompt([5] * 100, SampleConfig(max_new_tokens=93)), "prompt 1 of 100 tokens leaves no room for 93 new"),
        (Prompt([5], SampleConfig(max_new_tokens=0)), "max_new_tokens must be at least 1, not 0"),
        (Prompt([5], SampleConfig(9, temperature=-1.0)), "temperature must be 0"),
        (Prompt([5], SampleConfig(9, temperature=1.0, top_p=0.0)), "top_p must be above 0"),
        (Prompt([5], SampleConfig(9, temperature=1.0, top_k=-1)), "top_k must be 0"),
    ],
)
def test_bad_prompts_are_refused_before_any_work(prompt, message):
    with pytest.raises(UserError, match=message):
        _sampler().sample([Prompt([5], SampleConfig(9)), prompt])


def test_slots_must_be_a_power_of_two():
    with pytest.raises(UserError, match="power of two, not 12"):
        _sampler(slots=12)
