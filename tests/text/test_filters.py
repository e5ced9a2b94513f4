"""ROUGE-L, near-duplicates, shared n-grams, and the pool of real examples."""

import json
import random

import pytest

from common.config import SampleConfig
from common.generate import Request
from common.tasks.base import Example
from common.tasks.labelled import TREC
from common.text.filters import (
    KnownTexts,
    NGrams,
    lcs_length,
    lcs_length_reference,
    near_reference,
    rouge_l,
    words_of,
)
from llm2llm.pool import PoolGenerator


def test_bit_parallel_lcs_equals_the_table():
    rng = random.Random(0)
    for _ in range(300):
        a = tuple(rng.choices("abcdefg", k=rng.randint(0, 80)))
        b = tuple(rng.choices("abcdefg", k=rng.randint(0, 80)))
        assert lcs_length(a, b) == lcs_length_reference(a, b)


def test_words_of_any_script():
    assert words_of("It's 3.5 km, OK?") == ("it", "s", "3", "5", "km", "ok")
    assert words_of("Größe_der Straße") == ("größe", "der", "straße")
    assert words_of("Сколько яблок?") == ("сколько", "яблок")
    assert words_of("cafe\u0301") == words_of("CAFÉ") == ("café",)
    assert words_of("?! -- __ ...") == ()


QUESTION = (
    "Maria keeps 24 goats on her farm near the river Every morning each goat gives 3 cups of milk and Maria sells "
    "the milk at the village market for coins She spends half of the coins on hay How many coins does Maria have "
    "left after one week of market"
).split()
NUMBERS = {"24": "31", "3": "5"}
NAMES = {"Maria": "Tariq"}  # three times
OBJECTS = {"hay": "corn", "river": "forest"}


@pytest.mark.parametrize(
    ("changes", "expected"), [(NUMBERS, 0.960), (NUMBERS | NAMES, 0.900), (NUMBERS | NAMES | OBJECTS, 0.860)]
)
def test_rouge_l_of_a_question_of_fifty_words_with_some_replaced(changes, expected):
    """Replacing m of 50 words in place leaves an LCS of 50 - m."""
    assert len(QUESTION) == 50
    text, changed = " ".join(QUESTION), " ".join(changes.get(word, word) for word in QUESTION)
    assert rouge_l(words_of(text), words_of(changed)) == pytest.approx(expected)
    for limit in (0.7, 0.85, 0.95):
        known = KnownTexts(limit)
        known.add(text, "original")
        found = known.near(changed)
        assert (found is not None) == (expected > limit)
        assert found is None or found == (pytest.approx(expected), "original")


def test_rouge_l_of_a_question_and_another_of_forty_nine_words():
    """40 words in common in the same order, of 50 and of 49: 80/99."""
    other = [*QUESTION[:20], *"some quite different words now stand here in between".split(), *QUESTION[30:]]
    assert len(other) == 49
    score = rouge_l(words_of(" ".join(QUESTION)), words_of(" ".join(other)))
    assert score == pytest.approx(80 / 99)
    known = KnownTexts(0.7)
    known.add(" ".join(QUESTION), "original")
    assert known.near(" ".join(other)) == (pytest.approx(0.808, abs=5e-4), "original")
    strict = KnownTexts(0.95)
    strict.add(" ".join(QUESTION))
    assert strict.near(" ".join(other)) is None


def test_rouge_l_of_unequal_lengths_and_of_nothing():
    a, b = tuple("abcdefghij" * 5), tuple("abcdefgh" * 5)
    assert rouge_l(a, b) == 2 * lcs_length_reference(a, b) / 90
    assert rouge_l((), ()) == 0.0
    assert rouge_l(("a",), ()) == 0.0


def edited(rng, words, vocabulary):
    """A copy of `words` with some replaced, swapped or left out."""
    words = list(words)
    for _ in range(rng.randint(0, len(words) // 2)):
        i, j = rng.randrange(len(words)), rng.randrange(len(words))
        match rng.randrange(3):
            case 0:
                words[i] = rng.choice(vocabulary)
            case 1:
                words[i], words[j] = words[j], words[i]
            case 2 if len(words) > 1:
                del words[i]
    return words


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.5, 2 / 3, 0.7, 0.85, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("vocabulary", [4, 60, 600])
def test_near_equals_the_search_through_all(limit, vocabulary):
    """While the index is built anew twice, of texts of many lengths, with repeated words, ties, exact copies,
    equal words in another order and texts without words."""
    rng = random.Random(f"{limit} {vocabulary}")
    vocabulary = [f"w{i}" for i in range(vocabulary)]
    weights = [1 / (k + 1) for k in range(len(vocabulary))]
    known, texts, found = KnownTexts(limit), [], 0
    for i in range(300):
        words = rng.choices(vocabulary, weights=weights, k=rng.randint(0, rng.choice([4, 12, 40])))
        if texts and rng.random() < 0.5:
            words = edited(rng, rng.choice(texts)[0].split(), [*vocabulary, f"new{i}"])
        if rng.random() < 0.1:
            # Far or near by chance: what was shared in order is shared all the same.
            words = rng.sample(words, len(words))
        text = " ".join(words) or "?!"
        if i % 3 == 0:
            expected = near_reference(texts, text, limit)
            assert known.near(text) == expected
            found += expected is not None
        known.add(text, f"t{i}")
        texts.append((text, f"t{i}"))
    assert len(known) == 300
    assert found or limit == 1.0


def test_near_equals_the_search_through_all_on_real_questions(shared_data):
    """Of every data set 135 texts, a third of them edited copies of others."""
    rng = random.Random(0)
    for folder, field in (("trec", "text"), ("gsm8k", "question"), ("sst2", "text")):
        with (shared_data / folder / "train.jsonl").open(encoding="utf-8") as file:
            real = [json.loads(line)[field] for line, _ in zip(file, range(90), strict=False)]
        words = sorted({word for text in real for word in text.split()})
        texts = real + [" ".join(edited(rng, rng.choice(real).split(), words)) for _ in range(45)]
        rng.shuffle(texts)
        known, kept = KnownTexts(0.7), []
        for i, text in enumerate(texts):
            near = known.near(text)
            assert near == near_reference(kept, text, 0.7)
            if near is None:
                known.add(text, str(i))
                kept.append((text, str(i)))
        assert len(kept) < len(texts)


def test_the_first_added_of_equally_near_texts_is_named():
    known = KnownTexts(0.5)
    for name in ("first", "second"):
        known.add("red green blue", name)
    known.add("red green yellow", "third")
    assert known.near("red green black") == (pytest.approx(2 / 3), "first")
    assert known.near("red green yellow") == (1.0, "third")


def test_texts_without_words_and_empty_indexes_are_near_nothing():
    known = KnownTexts(0.0)
    assert known.near("anything") is None
    known.add("...", "signs")
    assert known.near("...") is None
    assert known.near("anything") is None
    known.add("anything", "a word")
    assert known.near("anything else") == (pytest.approx(2 / 3), "a word")
    for limit in (-0.1, 1.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            KnownTexts(limit)


def test_few_texts_are_compared_word_by_word():
    """The point of the index: of 1,000 known texts hardly one is looked at."""
    rng = random.Random(2)
    vocabulary = [f"w{i}" for i in range(2000)]
    weights = [1 / (k + 1) for k in range(2000)]
    draw = lambda: rng.choices(vocabulary, weights=weights, k=20)
    known = KnownTexts(0.7)
    for i in range(1000):
        known.add(" ".join(draw()), str(i))
    looked_at = [len(known._candidates([known._numbers.get(word, -1) for word in draw()])) for _ in range(50)]
    assert sum(looked_at) / 50 < 10


def test_shared_runs_of_words():
    runs = NGrams(4)
    runs.add("How many apples does Ada have now?")
    runs.add("Two words")
    assert runs.overlaps("Say: how many APPLES, does Bo own?") == "how many apples does"
    assert runs.overlaps("How many apples has Ada?") is None
    assert runs.overlaps("two words!") == "two words"  # shorter than a run: only an equal text
    assert runs.overlaps("two words more") is None
    assert runs.overlaps("...") is None
    with pytest.raises(ValueError, match="at least one word"):
        NGrams(0)


def test_shared_runs_equal_those_of_plain_sets():
    rng = random.Random(3)
    texts = [" ".join(rng.choices("abcdef", k=rng.randint(0, 12))) for _ in range(80)]
    runs, plain = NGrams(5), set()
    of = lambda text: [text] if len(text) < 9 else [text[i : i + 9] for i in range(0, len(text) - 8, 2)]
    for text in texts[:40]:
        runs.add(text)
        plain.update(of(text) if text else ())
    shared = [runs.overlaps(text) for text in texts[40:]]
    assert shared == [next((run for run in of(text) if run in plain), None) for text in texts[40:]]
    assert any(shared)
    assert not all(shared)


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
    pool = PoolGenerator("pool:x", TREC, POOL, exclude={"what city is on the sea?"})
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
