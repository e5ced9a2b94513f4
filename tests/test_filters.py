"""ROUGE-L, near-duplicates, and the pool of real examples."""

import random

import pytest

from common.config import SampleConfig
from common.filters import KnownTexts, lcs_length, lcs_length_reference, rouge_l, words_of
from common.generate import Request
from common.pool import PoolGenerator
from common.tasks.base import Example
from common.tasks.labelled import TREC


def test_bit_parallel_lcs_equals_the_table():
    rng = random.Random(0)
    for _ in range(300):
        a = tuple(rng.choices("abcdefg", k=rng.randint(0, 80)))
        b = tuple(rng.choices("abcdefg", k=rng.randint(0, 80)))
        assert lcs_length(a, b) == lcs_length_reference(a, b)


@pytest.mark.parametrize(("changed", "expected"), [(2, 0.96), (5, 0.90), (7, 0.86)])
def test_rouge_l_of_fifty_words_with_some_replaced(changed, expected):
    """Replacing m of 50 distinct words in place leaves an LCS of 50 - m."""
    words = tuple(f"w{i}" for i in range(50))
    other = tuple(f"x{i}" if i % 7 == 0 and i // 7 < changed else w for i, w in enumerate(words))
    assert rouge_l(words, other) == pytest.approx(expected)


def test_rouge_l_of_unequal_lengths_and_of_nothing():
    a, b = tuple("abcdefghij" * 5), tuple("abcdefgh" * 5)
    assert rouge_l(a, b) == 2 * lcs_length_reference(a, b) / 90
    assert rouge_l((), ()) == 0.0
    assert rouge_l(("a",), ()) == 0.0


def test_nearest_equals_the_search_through_all():
    rng = random.Random(1)
    texts = [" ".join(rng.choices("red blue green one two three four".split(), k=8)) for _ in range(60)]
    known = KnownTexts()
    for i, text in enumerate(texts[:50]):
        known.add(text, f"t{i}")
    for text in texts[50:]:
        scores = [rouge_l(words_of(text), words_of(other)) for other in texts[:50]]
        score, name = known.nearest(text)
        assert score == max(scores)
        assert scores[int(name[1:])] == score
    assert KnownTexts().nearest("anything") == (0.0, "")


POOL = [
    Example("a", "Where is the river Nile ?", "location", "location", "location"),
    Example("b", "Where is the Amazon river ?", "location", "location", "location"),
    Example("c", "What city is on the sea ?", "location", "location", "location"),
    Example("d", "Who sailed the Nile river ?", "human", "human", "human"),
]
SEED = Example("s", "Where does the Nile river flow ?", "location", "location", "location")


def ask(pool, n=1, name="r"):
    (records,) = pool.generate([Request(name, (), n, SEED)], SampleConfig(), seed=0)
    return records


def test_pool_gives_the_nearest_unused_example_of_the_label():
    pool = PoolGenerator("pool:x", TREC, POOL, exclude={"What city is on the sea ?"})
    first = ask(pool)
    assert ask(pool) == first  # nothing is used up until it is stored
    pool.seen(first)
    second = ask(pool)
    texts = [r.text for r in (*first, *second)]
    assert sorted(texts) == sorted(TREC.write_example(e) for e in POOL[:2])
    pool.seen(second)
    (third,) = ask(pool)
    assert (third.status, third.text) == ("failed", None)
    assert "location" in third.error


def test_pool_never_repeats_within_a_call():
    pool = PoolGenerator("pool:x", TREC, POOL, exclude=set())
    requests = [Request("1", (), 2, SEED), Request("2", (), 2, SEED)]
    (records,) = pool.generate(requests, SampleConfig(), seed=0)
    assert [r.status for r in records] == ["ok", "ok", "ok", "failed"]
    assert len({r.text for r in records[:3]}) == 3
