"""Log-probabilities of answers against the full log-softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.buckets import beginning
from common.config import ModelConfig
from common.errors import UserError
from common.model import decoder
from common.sample import batching, score

CONFIG = ModelConfig(
    family="llama",
    vocab_size=50,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=128,
)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), decoder.abstract_params(CONFIG)
    )


@pytest.fixture(autouse=True, params=[False, True], ids=["in rows", "packed"])
def packed(request, monkeypatch):
    """Texts that share a prompt in rows with padding, and packed, as of larger models on CPU."""
    monkeypatch.setattr(score, "SMALL_MODEL", 0 if request.param else 10**9)


def _pairs(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, 50, length).tolist() for length in pair) for pair in lengths]


def test_equals_the_plain_form_in_the_order_given(params, quick_jit):
    pairs = _pairs((12, 5), (1, 39), (30, 10), (16, 1), (39, 1), (10, 7))
    scored = score.score(params, CONFIG, pairs, batch_size=4)
    all_logps = functools.partial(quick_jit(score.all_logps, static_argnums=1), params, CONFIG)
    for (prompt, answer), logps in zip(pairs, scored, strict=True):
        assert logps.shape == (len(answer),)
        assert logps.dtype == np.float32
        want = np.asarray(all_logps(np.array([*prompt, *answer])))[
            len(prompt) - 1 + np.arange(len(answer)), answer
        ]
        np.testing.assert_allclose(logps, want, atol=1e-5)


def test_answers_that_share_a_prompt_score_as_they_do_alone(params):
    rng = np.random.default_rng(1)
    ids = lambda count: rng.integers(0, 50, count).tolist()
    groups = [(ids(n), [ids(1), ids(5), ids(2)]) for n in (1, 12, 70, 63, 40, 100)]
    alone = iter(score.score(params, CONFIG, [(prompt, own) for prompt, answers in groups for own in answers]))
    shared = score.score_shared(params, CONFIG, groups, batch_size=2)
    for answers in shared:
        for logps in answers:
            np.testing.assert_allclose(logps, next(alone), atol=1e-5)
    [again] = score.score_shared(params, CONFIG, groups[2:3], batch_size=2)
    for own, other in zip(again, shared[2], strict=True):
        np.testing.assert_array_equal(own, other)  # whatever else is in the batch
    with pytest.raises(UserError, match="pair 0 of 129 tokens"):
        score.score_shared(params, CONFIG, [(ids(120), [ids(1), ids(9)])])


def test_the_likeliest_of_answers_that_share_a_prompt_are_those_alone(params, quick_jit):
    all_logps = functools.partial(quick_jit(score.all_logps, static_argnums=1), params, CONFIG)
    rng = np.random.default_rng(4)
    ids = lambda count: rng.integers(0, 50, count).tolist()
    groups = []
    for count in (3, 30, 64):
        prompt = ids(count)
        greedy = list(prompt)
        for _ in range(4):
            padded = np.array(greedy + [0] * (70 - len(greedy)))  # one length, one program
            greedy.append(int(all_logps(padded)[len(greedy) - 1].argmax()))
        groups.append((prompt, [greedy[count:], greedy[count : count + 2] + ids(3), ids(1)]))
    found = score.score_shared_greedy(params, CONFIG, groups, batch_size=2)
    alone = iter(score.score_greedy(params, CONFIG, [(p, own) for p, answers in groups for own in answers]))
    for own in found:
        assert own[0][1].all()
        assert own[1][1][:2].all()
        for (logps, likeliest), (wanted, same) in zip(own, [next(alone) for _ in own], strict=True):
            np.testing.assert_allclose(logps, wanted, atol=1e-5)
            np.testing.assert_array_equal(likeliest, same)


def test_of_tokens_that_are_as_likely_the_first_is_the_likeliest():
    """As greedy decoding chooses."""
    head = np.zeros((16, 50), np.float32)
    head[:, [7, 9]] = 1
    h, targets = jnp.ones((3, 16)), jnp.array([7, 9, 3])
    logps, likeliest = score._head({"head": jnp.array(head)}, CONFIG, True, h, targets)
    assert likeliest.tolist() == [True, False, False]
    np.testing.assert_allclose(logps[:2], -np.log(2), atol=1e-5)


def test_many_answers_to_one_prompt_are_cut_into_rows(params, monkeypatch):
    rng = np.random.default_rng(3)
    ids = lambda count: rng.integers(0, 50, count).tolist()
    groups = [(ids(n), [ids(int(m)) for m in rng.integers(1, 12, 9)]) for n in (5, 20)]
    whole = score.score_shared(params, CONFIG, groups)
    monkeypatch.setattr(score, "ROW", 12)
    assert len(list(score._parts(groups[0][1]))) > 3
    for answers, own in zip(score.score_shared(params, CONFIG, groups), whole, strict=True):
        assert [len(logps) for logps in answers] == [len(logps) for logps in own]
        for logps, other in zip(answers, own, strict=True):
            np.testing.assert_allclose(logps, other, atol=1e-5)


def test_answers_that_are_cut_between_two_turns_of_the_head(params, monkeypatch):
    pairs = _pairs((12, 5), (1, 39), (30, 10), (16, 1), (39, 1))
    groups = [(prompt, [answer, answer[:1]]) for prompt, answer in pairs]
    whole = score.score_greedy(params, CONFIG, pairs), score.score_shared(params, CONFIG, groups)
    monkeypatch.setitem(score.POSITIONS, "cpu", 7)
    turns, head = [], score._head
    monkeypatch.setattr(score, "_head", lambda *given: turns.append(len(given[3])) or head(*given))
    for (logps, likeliest), (wanted, same) in zip(
        score.score_greedy(params, CONFIG, pairs), whole[0], strict=True
    ):
        np.testing.assert_allclose(logps, wanted, atol=1e-5)
        np.testing.assert_array_equal(likeliest, same)
    assert turns == [4] * 14  # 56 tokens, by the largest power of two
    for own, wanted in zip(score.score_shared(params, CONFIG, groups), whole[1], strict=True):
        for logps, same in zip(own, wanted, strict=True):
            np.testing.assert_allclose(logps, same, atol=1e-5)


def test_a_model_that_gives_no_numbers_is_told_by_the_prompt(params, monkeypatch):
    monkeypatch.setattr(score, "ROW", 12)
    groups = [(prompt, [answer] * 3) for prompt, answer in _pairs((9, 5), (7, 5), (8, 5))]
    states = score._states_of
    # Each group is cut into two rows.
    spoilt = lambda *given: ((text, h * np.nan if text >= 4 else h) for text, h in states(*given))
    monkeypatch.setattr(score, "_states_of", spoilt)
    with pytest.raises(UserError, match="log-probabilities of answer 2: the model gives NaN"):
        score.score_shared(params, CONFIG, groups)


def test_what_all_prompts_begin_with_is_read_once(params):
    rng = np.random.default_rng(2)
    ids = lambda count: rng.integers(0, 50, count).tolist()
    instruction = ids(37)
    groups = [([*instruction, *ids(n)], [ids(1), ids(5), ids(2)]) for n in (1, 12, 30, 17, 2)]
    assert beginning([prompt for prompt, _ in groups]) == tuple(instruction[:32])
    alone = iter(score.score(params, CONFIG, [(prompt, own) for prompt, answers in groups for own in answers]))
    for answers in score.score_shared(params, CONFIG, groups, batch_size=2):
        for logps in answers:
            np.testing.assert_allclose(logps, next(alone), atol=1e-5)
    same = [instruction[:33]] * 3  # something of every prompt is left
    assert beginning(same) == beginning([*same, instruction]) == tuple(instruction[:32])
    assert beginning([instruction[:32]] * 2) == tuple(instruction[:16])


def test_probabilities_of_all_answers_of_one_token_sum_to_one(params):
    scored = score.score(params, CONFIG, [([7, 8, 9], [token]) for token in range(50)])
    assert np.exp(np.concatenate(scored)).sum() == pytest.approx(1, abs=1e-5)


def test_a_score_does_not_depend_on_company(params):
    pairs = _pairs(*[(3 + i, 2 + i % 5) for i in range(9)])
    together = score.score(params, CONFIG, pairs)
    for pair, logps in zip(pairs, together, strict=True):
        np.testing.assert_array_equal(score.score(params, CONFIG, [pair])[0], logps)


def test_an_empty_answer_and_no_pairs_at_all(params):
    assert score.score(params, CONFIG, []) == []
    [nothing, one] = score.score(params, CONFIG, [([5, 6], []), ([5], [6])])
    assert (nothing.shape, one.shape) == ((0,), (1,))
    assert score.score_shared(params, CONFIG, []) == []
    [[nothing]] = score.score_shared(params, CONFIG, [([5, 6], [[]])])
    assert nothing.shape == (0,)


def test_the_longest_pair_that_fits(params):
    [logps] = score.score(params, CONFIG, _pairs((100, 28)))
    assert np.isfinite(logps).all()


def test_nothing_is_compiled_again_for_other_weights(params):
    pairs = _pairs((5, 3), (20, 30), (7, 7))
    score.score(params, CONFIG, pairs)
    before = score._states._cache_size() + score._head._cache_size()
    score.score(jax.tree.map(lambda w: w * 0.5, params), CONFIG, _pairs((9, 2), (14, 31), seed=1))
    assert score._states._cache_size() + score._head._cache_size() == before


def test_packed_texts_take_a_shape_that_there_is_if_that_is_cheaper(params):
    """A few more tokens are computed sooner than another program is compiled; numbers are the same to the bit."""
    reads, asked, lengths = [50, 41, 60, 45, 52], [20, 11, 30, 15, 22], [64] * 5
    batches = lambda *places, worth: [
        ([places[i] for i in own], *shape)
        for own, *shape in batching.packed_batches(
            *([numbers[place] for place in places] for numbers in (lengths, reads, asked)), 32, "these", worth
        )
    ]
    batching._MADE.clear()
    [(_, *first)] = batches(0, 1, 2, 3, 4, worth=1000.0)
    assert first == [5, 64, 256, 112]
    assert batches(0, 2, worth=1000.0) == [([0, 2], *first)]
    # 144 tokens more than with a shape of their own, and now once again.
    assert batches(0, 2, worth=287.0) == [([0, 2], 2, 64, 112, 56)]
    assert [shape for _, *shape in batches(0, 1, 2, 3, worth=1000.0)] == [first]
    batching._MADE.clear()


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([], [5]), "pair 1 has an empty prompt"),
        (([5] * 100, [6] * 29), "pair 1 of 129 tokens exceeds the model's 128"),
    ],
)
def test_bad_pairs_are_refused(params, pair, message):
    with pytest.raises(UserError, match=message):
        score.score(params, CONFIG, [([5], [6]), pair])
