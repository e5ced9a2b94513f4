"""Attention over a cache in pages against that over rows, and the pages that slots are given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.config import ModelConfig
from common.model import decoder
from common.model.attention import attention_mask, cached_attention
from common.model.pages import PAGE, Pages, paged_attention, write
from common.sample import cache as slot_cache
from common.sample.cache import PagedCache

B, N, K, H, LONGEST = 4, 6, 2, 8, 3 * PAGE
POSITIONS = np.array([5, 2 * PAGE + 7, PAGE - 1, PAGE], np.int32)
CONFIG = ModelConfig(
    family="llama",
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=512,
)
PARAMS = decoder.init(CONFIG, jax.random.key(0))


def _random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _in_pages(keys, values, count, seed):
    """Rows of a cache in `count` pages in a random order, what belongs to nobody without numbers."""
    wanted = [(row, nth) for row in range(B) for nth in range(POSITIONS[row] // PAGE + 1)]
    places = np.random.default_rng(seed).permutation(count)[: len(wanted)]
    owner, start = np.full(count, B, np.int32), np.zeros(count, np.int32)
    near, first = np.full((B, 2), count, np.int32), (POSITIONS // PAGE).astype(np.int32)
    paged = np.full((count, K, H, PAGE), 7e3, np.float32), np.full((count, K, PAGE, H), 7e3, np.float32)
    for (row, nth), place in zip(wanted, places, strict=True):
        owner[place], start[place] = row, nth * PAGE
        here = slice(nth * PAGE, (nth + 1) * PAGE)
        paged[0][place], paged[1][place] = keys[row][..., here], values[row][:, here]
        if nth == first[row]:
            near[row, 0] = place
    return Pages(owner, start, np.lexsort((start, owner)).astype(np.int32), near, first), paged


@pytest.mark.parametrize("window", [0, 9, PAGE + 3])
@pytest.mark.parametrize("extras", [{}, {"scale": 0.7, "cap": 1.3, "sinks": jnp.arange(N) / 3.0}])
def test_pages_are_attended_to_as_rows_wherever_they_lie(window, extras):
    q, keys, values = _random(B, 1, N, H), _random(B, K, H, LONGEST, seed=1), _random(B, K, LONGEST, H, seed=2)
    mask = attention_mask(POSITIONS[:, None], LONGEST, window)
    want = cached_attention(jnp.array(q), jnp.array(keys), jnp.array(values), mask, **extras)
    found = []
    for seed in range(2):
        pages, paged = _in_pages(keys, values, 16, seed)
        look = pages.look(jnp.array(POSITIONS), window)
        found.append(paged_attention(jnp.array(q), *map(jnp.array, paged), look, **extras))
        np.testing.assert_allclose(found[-1], want, atol=1e-6)
    # The order in which a row's pages add up does not depend on where they lie.
    assert (found[0] == found[1]).all()


def test_a_row_without_pages_finds_nothing_and_changes_no_other():
    q, keys, values = _random(B, 1, N, H), _random(B, K, H, LONGEST, seed=1), _random(B, K, LONGEST, H, seed=2)
    pages, paged = _in_pages(keys, values, 16, seed=3)
    whole = paged_attention(jnp.array(q), *map(jnp.array, paged), pages.look(jnp.array(POSITIONS)))
    # The last row: it is what pages without an owner are compared with.
    less = pages._replace(
        owner=np.where(pages.owner == B - 1, B, pages.owner),
        near=np.where(np.arange(B)[:, None] < 3, pages.near, 16),
    )
    look = less.look(jnp.array(POSITIONS))
    found = paged_attention(jnp.array(q), *map(jnp.array, paged), look)
    assert (found[:3] == whole[:3]).all()
    assert (found[3] == 0).all()
    new = jnp.array(_random(B, 1, K, H, seed=4))
    written = write(tuple(map(jnp.array, paged)), new, new, look)
    changed = {int(place) for place in np.flatnonzero((written[1] != paged[1]).any(axis=(1, 2, 3)))}
    assert changed == set(pages.near[:3, 0].tolist())


def test_a_token_is_written_at_its_position():
    pages, paged = _in_pages(_random(B, K, H, LONGEST), _random(B, K, LONGEST, H), 16, seed=5)
    new = _random(B, 1, K, H, seed=6)
    keys, values = write(
        tuple(map(jnp.array, paged)), jnp.array(new), -jnp.array(new), pages.look(jnp.array(POSITIONS))
    )
    for row, position in enumerate(POSITIONS):
        place = pages.near[row, 0]
        assert (np.asarray(keys)[place, :, :, position % PAGE] == new[row, 0]).all()
        assert (np.asarray(values)[place, :, position % PAGE] == -new[row, 0]).all()


def _owned(pages):
    """The pages of each slot, in order."""
    slots = len(pages.first)
    return [[int(p) for p in pages.order if pages.owner[p] == slot] for slot in range(slots)]


def test_slots_take_free_pages_and_give_them_back(monkeypatch):
    monkeypatch.setattr(slot_cache, "FEWEST_PAGES", 4)
    cache, live = PagedCache(CONFIG, 3, 4, np.float32, PARAMS), np.array([True, True, False])
    at = np.array([3, PAGE + 1, 0], np.int32)
    pages = cache.room(live, at, at + 4)
    assert _owned(pages) == [[0], [1, 2], []]
    assert pages.near.tolist() == [[0, 4], [2, 4], [4, 4]]
    # The second slot ends, the third begins and needs more than there are: two of them were the second's.
    live, at = np.array([True, False, True]), np.array([PAGE - 2, PAGE + 5, 0], np.int32)
    pages = cache.room(live, at, at + np.array([4, 4, 4 * PAGE]))
    assert _owned(pages) == [[0, 1], [], [2, 3, 4, 5]]
    assert [len(part) for layer in cache.arrays for part in layer] == [6] * 4


def test_what_slots_hold_moves_with_them_into_fewer_pages(monkeypatch):
    monkeypatch.setattr(slot_cache, "FEWEST_PAGES", 4)
    cache = PagedCache(CONFIG, 4, 12, np.float32, PARAMS)
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (4, 2 * PAGE))
    source = decoder.prefill(PARAMS, CONFIG, jnp.array(tokens, jnp.int32))
    lengths = np.array([2 * PAGE, 3, PAGE, PAGE + 1], np.int32)
    cache.fill(source, np.arange(4), np.arange(4), lengths, np.ones(4, bool))
    live, ends = np.array([True, True, False]), np.array([PAGE + 2, 2 * PAGE, 9])
    cache.narrow(np.array([3, 0, 1]), live, ends)
    pages = cache.room(live, np.array([PAGE + 1, 2 * PAGE - 1, 0]), ends)
    assert len(cache.arrays[0][0]) == 4
    assert [len(own) for own in _owned(pages)] == [2, 2, 0]
    for slot, row in enumerate((3, 0)):
        for nth, place in enumerate(_owned(pages)[slot]):
            here = slice(nth * PAGE, min((nth + 1) * PAGE, lengths[row]))
            size = here.stop - here.start
            for (keys, values), (own_keys, own_values) in zip(cache.arrays, source, strict=True):
                assert (keys[place][..., :size] == own_keys[row][..., here]).all()
                assert (values[place][:, :size] == own_values[row][:, here]).all()
