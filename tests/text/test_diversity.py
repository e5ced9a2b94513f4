"""Self-BLEU against sacrebleu and by hand."""

import json
import math
import random

import pytest
from sacrebleu.metrics import BLEU

from common.text.diversity import bleu_reference, self_bleu, self_bleu_reference, tokens_of


def sacrebleu(texts, order):
    """The same by sacrebleu, from 0 to 1, with texts as tokens joined by spaces."""
    metric = BLEU(
        tokenize="none",
        force=True,
        smooth_method="floor",
        smooth_value=0.1,
        max_ngram_order=order,
        effective_order=True,
    )
    lines = [" ".join(tokens_of(text)) for text in texts]
    scores = [metric.sentence_score(line, lines[:i] + lines[i + 1 :]).score / 100 for i, line in enumerate(lines)]
    return sum(scores) / len(scores)


def random_texts(seed, count, vocabulary, longest):
    """With repeated words and whole copies, and texts of one word and of none."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        if texts and rng.random() < 0.2:
            texts.append(rng.choice(texts))
        else:
            texts.append(" ".join(f"w{rng.randrange(vocabulary)}" for _ in range(rng.randint(0, longest))))
    return texts


REAL = [
    "How many apples does Ada have, if she buys 3 bags of 12 apples each?",
    "How many pears does Bo have if he buys 3 bags of 12 pears, each at $2.50?",
    "What's the capital of France?",
    "What is the capital of Frankreich — or of GERMANY?",
    "Wo liegt die größte Straße?",
    "Сколько яблок у Ады?",
    "Сколько груш, сколько яблок у Бориса?",
    "A train leaves at 10:30 and arrives at 12:15; how long does it take (in minutes)?",
    "Why?",
    "?!",
    "",
]


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_equals_sacrebleu(order):
    for seed, (vocabulary, longest) in enumerate([(3, 12), (15, 12), (15, 40), (400, 25), (100000, 9)]):
        texts = random_texts(seed, 40, vocabulary, longest)
        assert self_bleu(texts, (order,)) == pytest.approx(sacrebleu(texts, order), abs=1e-9)
    assert self_bleu(REAL, (order,)) == pytest.approx(sacrebleu(REAL, order), abs=1e-9)


def test_equals_sacrebleu_on_real_questions(shared_data):
    for folder, field in (("trec", "text"), ("gsm8k", "question")):
        with (shared_data / folder / "train.jsonl").open(encoding="utf-8") as file:
            texts = [json.loads(line)[field] for line, _ in zip(file, range(60), strict=False)]
        expected = sum(sacrebleu(texts, order) for order in (2, 3, 4, 5)) / 4
        assert self_bleu(texts) == pytest.approx(expected, abs=1e-9)
        assert 0.05 < expected < 0.6


@pytest.mark.parametrize("orders", [(2, 3, 4, 5), (3,), (5, 1)])
def test_equals_the_plain_form(orders):
    for seed in range(10):
        texts = random_texts(seed, 2 + seed * 3, 8, 14)
        ours = self_bleu(texts, orders, sample=20, seed=seed)
        assert ours == pytest.approx(self_bleu_reference(texts, orders, sample=20, seed=seed), abs=1e-12)
        assert 0 <= ours <= 1


def test_bleu_by_hand():
    # unigrams 3/4 ("the" is at most twice in one reference), bigrams 2/3, brevity exp(1 - 5/4)
    tokens, others = tuple("the the the cat".split()), [tuple("the the cat is on".split()), tuple("a the".split())]
    assert bleu_reference(tokens, others[:1], 2) == pytest.approx(math.exp(-1 / 4) * math.sqrt(3 / 4 * 2 / 3))
    # no trigram of three: 0.1 / 2; of equally close lengths the shorter one counts
    tokens, others = tuple("a b c d".split()), [tuple("a b x d y".split()), tuple("a b x".split())]
    assert bleu_reference(tokens, others, 3) == pytest.approx((3 / 4 * 1 / 3 * 0.1 / 2) ** (1 / 3))


def test_identical_texts_are_not_diverse():
    for text in ("one two three four five", "a a a a a a", "What is the capital of France?"):
        assert self_bleu([text] * 7) == 1.0
    assert self_bleu(["Why?"] * 3) == 1.0  # by the n-grams that it has
    assert self_bleu(["one two", "three four", "five six"]) == 0.0
    assert self_bleu(["?", "", ""]) == 0.0


def test_what_cannot_be_compared_is_refused():
    for texts, sample in (([], 200), (["one text alone here now"], 200), (["two", "texts"], 1)):
        with pytest.raises(ValueError, match="two texts or more"):
            self_bleu(texts, sample=sample)
    for orders in ((), (0, 2)):
        with pytest.raises(ValueError, match="orders"):
            self_bleu(["two", "texts"], orders)


def test_the_seed_draws_the_sample():
    texts = random_texts(3, 120, 30, 20)
    assert self_bleu(texts, sample=50) == self_bleu(texts, sample=50, seed=0)
    assert self_bleu(texts, sample=50) != self_bleu(texts, sample=50, seed=1)
    assert self_bleu(texts, sample=120) == self_bleu(texts, sample=200, seed=1) == self_bleu(texts[::-1])
    assert self_bleu(texts, sample=120) > self_bleu(texts, sample=20)  # more texts, more found again


def test_tokens():
    assert tokens_of("It's 3.5 km_h, OK?") == ("it", "'", "s", "3", ".", "5", "km", "_", "h", ",", "ok", "?")
    assert tokens_of("cafe\u0301\u00a0—\tGröße") == ("café", "—", "größe")
    assert tokens_of(" \n") == ()
