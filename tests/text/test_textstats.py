"""Text figures against textdescriptives and lexicalrichness, by fixtures of make_text_fixtures.py, and by hand."""

import json
import math
import random
import string
import time

import pytest

from common.text.textstats import (
    METRICS,
    MODES,
    Reading,
    gunning_fog,
    hdd,
    hdd_of,
    lix,
    mattr_of,
    mtld,
    mtld_of,
    profile,
    rix,
    syllables_of,
)

DIVERSITY = "mtld", "mattr", "hdd"


def rows_of(fixtures, name):
    return json.loads((fixtures / "text" / name).read_text(encoding="utf-8"))


def random_texts(seed, count, signs=string.ascii_letters + string.digits + string.punctuation + " \n"):
    """Of arbitrary signs, and of words with much repetition."""
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choices(signs, k=rng.randint(0, 120)))
        letters = string.ascii_lowercase[: rng.randint(1, 26)]
        yield " ".join(rng.choices(letters, k=rng.randint(1, 150)))


def sane(value):
    return isinstance(value, float) and (math.isnan(value) or 0 <= value < math.inf)


# ---- against the libraries


def test_official_figures_are_those_of_the_libraries(fixtures):
    rows = rows_of(fixtures, "texts.json")
    assert len(rows) > 25
    for row in rows:
        reading = Reading(row["text"], "official")
        assert list(reading.tokens) == row["kept"], row["name"]
        ours = profile(row["text"], row["official"], mode="official")
        for name, value in row["official"].items():
            expected = math.nan if value is None else value
            assert ours[name] == pytest.approx(expected, rel=1e-12, nan_ok=True), (row["name"], name)


def test_mtld_is_that_of_lexicalrichness(fixtures):
    for row in rows_of(fixtures, "mtld.json"):
        assert mtld(" ".join(row["words"])) == pytest.approx(row["mtld"], abs=1e-9)


def test_diversity_is_that_of_lexicalrichness_installed():
    """In `clean` mode on ASCII, in `official` mode on any text."""
    library = pytest.importorskip("lexicalrichness", reason="the oracle lexicalrichness is not installed")
    odd = string.ascii_letters + "0123456789  \n\t-–—'’“”.,;:!?…àßİ½²🎉字"
    for mode, signs in ("clean", string.printable), ("official", odd):
        for i, text in enumerate(random_texts(0, 100, signs)):
            oracle = library.LexicalRichness(text)
            reading = Reading(text, mode)
            assert reading.terms == oracle.wordlist
            if oracle.words:
                assert mtld(reading) == pytest.approx(oracle.mtld(), abs=1e-9)
            if oracle.words >= 50 and i < 30:  # these of the library are slow
                assert mattr_of(reading.terms) == pytest.approx(oracle.mattr(window_size=50), abs=1e-12)
                assert hdd(reading) == pytest.approx(oracle.hdd(draws=42), abs=1e-9)


# ---- acceptance figures


@pytest.mark.parametrize(("n", "last", "second"), [(10, 28, 19), (20, 112, 66), (40, 448, 244), (100, 2800, 1450)])
def test_mtld_of_one_repeat(n, last, second):
    words = [a + b for a in "abcdefghij" for b in "klmnopqrst"][:n]
    assert mtld(" ".join(words)) == n  # no repeat at all
    assert mtld(" ".join([*words[:-1], words[0]])) == pytest.approx(last, abs=1e-9)
    assert mtld(" ".join([words[0], words[0], *words[2:]])) == pytest.approx(second, abs=1e-9)


def test_mtld_by_hand():
    assert mtld("a b " * 6) == pytest.approx(3.0, abs=1e-12)
    assert mtld("a b c " * 4) == pytest.approx(6.0, abs=1e-12)
    assert mtld("the cat sat on the mat and the dog sat on the log") == pytest.approx(13.0, abs=1e-12)
    for empty in "", " \n", "12 34", "?!":
        for mode in MODES:
            assert mtld(Reading(empty, mode)) == 0.0
    # 18 of 25 are different, a TTR of the threshold itself: one factor forwards. Backwards likewise.
    words = [*string.ascii_lowercase[:18], *string.ascii_lowercase[:7]]
    assert mtld_of(words) == 25.0


def test_readability_by_hand():
    text = "The important cat sat. The dog ran."
    for mode in MODES:
        reading = Reading(text, mode)
        assert profile(text, ["tokens", "words", "sentences"], mode) == {"tokens": 7, "words": 7, "sentences": 2}
        assert gunning_fog(reading) == pytest.approx(0.4 * (3.5 + 100 / 7), abs=1e-12)
        assert gunning_fog(reading) == pytest.approx(7.114, abs=5e-4)
        assert rix(reading) == 0.5
        assert lix(reading) == pytest.approx(17.786, abs=5e-4)


def test_syllables():
    expected = {"area": 1, "idea": 1, "banana": 2, "computer": 2, "characteristics": 5, "": 1, "7": 1, "字": 1}
    assert {word: syllables_of(word) for word in expected} == expected
    assert syllables_of("banana" * 50) > 50


# ---- the clean mode


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Dr. Smith met J. R. Lee at 5 p.m. on Monday. He left.", 2),
        ("He left at 5 p.m. She stayed, e.g. in the U.S. or so.", 2),
        ("1. First item\n2. Second item.\n3. Third", 3),
        ("Buy:\n- flour\n- two eggs\n\nMix well. Bake at 350°F.", 5),
        ("**1.** Bold. **2.** More.", 2),
        ("“Why?” she asked. “No!” He left.", 3),
        ("Well... no. Etc. and so on… Then (see above.) we go?! Yes", 4),
        ("All of it costs 3.50 or 1,000.75 at example.com today", 1),
        ("it goes on. and on. in small letters.", 3),
        ("So did I. They left.", 2),
        ("A line that is\nwrapped. Another\none.", 2),
        ("# Title\n\nText. --- . !", 2),
        ("我喜欢猫。你呢？好！", 3),
        ("?! ...", 0),
        ("", 0),
    ],
)
def test_sentences_of_a_clean_reading(text, count):
    assert Reading(text).sentences == count


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don’t can't rock'n'roll 'quoted' dogs'", "don't can't rock'n'roll quoted dogs"),
        ("3.5 1,000 7. e.g. U.S.A. x2", "3.5 1,000 7 e.g u.s.a x2"),
        ("a_b well-known — and/or\n\n$ + 🎉 ❤️ 1️⃣", "a b well known and or 1"),
        ("Cafe\u0301 NAÏVE हिन्दी Straße", "café naïve हिन्दी straße"),
    ],
)
def test_words_of_a_clean_reading(text, words):
    assert list(Reading(text).tokens) == words.split()
    assert profile(text, ["words", "characters"]) == {
        "words": len(words.split()),
        "characters": len("".join(text.split()).replace("e\u0301", "é")),
    }


def test_clean_terms_do_not_depend_on_typography():
    plain, fancy = '"Don\'t - he said - run a well-known race..."', "“Don’t—he said—run a well‑known race…”"
    assert Reading(plain).terms == Reading(fancy).terms == "don t he said run a wellknown race".split()
    assert Reading(fancy, "official").terms != Reading(plain, "official").terms
    assert Reading("It is 🎉 ❤️ fun 字\u200d!").terms == ["it", "is", "fun", "字"]


def test_official_counts_what_clean_does_not():
    text = "It's  $5 – we’re in.\n1. Go!\n"
    clean, official = (profile(text, ["tokens", "words", "sentences", "characters"], mode) for mode in MODES)
    assert clean == {"tokens": 6, "words": 6, "sentences": 2, "characters": 20}
    assert official == {"tokens": 11, "words": 7, "sentences": 4, "characters": 22}


# ---- edges and properties


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "0123 456", "🎉🎉 ❤️", "我喜欢猫。", "x" * 5000, "?!", "\ud800", "\x00"]
)
@pytest.mark.parametrize("mode", MODES)
def test_edges(text, mode):
    figures = profile(text, mode=mode)
    assert list(figures) == list(METRICS)
    assert all(map(sane, figures.values()))
    if not figures["tokens"]:
        undefined = "token_length syllables gunning_fog rix lix ttr mattr hdd".split()
        assert all(math.isnan(figures[name]) for name in undefined)
    assert math.isnan(figures["compression_ratio"]) == (not text)


@pytest.mark.parametrize("sign", ["a", "!", ".", "(", "a.", "1.", "don't ", "\n", "\n- ", "a-", "°", "'"])
def test_long_texts_of_one_sign_are_no_trap(sign):
    start = time.perf_counter()
    for mode in MODES:
        assert all(map(sane, profile(sign * 10_000, mode=mode).values()))
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("mode", MODES)
def test_properties_of_random_texts(mode):
    signs = string.printable + "’“”—–…äßİ字日。 ۔हि🎉❤️\u200d\u0301"
    for text in random_texts(1, 250, signs):
        figures = profile(text, mode=mode)
        assert all(map(sane, figures.values()))
        assert figures == pytest.approx(
            {name: m.function(Reading(text, mode)) for name, m in METRICS.items()}, nan_ok=True
        )
        assert figures["unique_tokens"] <= figures["tokens"]
        assert figures["words"] <= figures["tokens"]
        assert figures["characters"] <= len(text)
        if mode == "clean":
            assert figures["sentences"] <= figures["words"]
            assert (figures["sentences"] > 0) == (figures["words"] > 0)
        for name in "ttr", "mattr", "hdd":
            assert math.isnan(figures[name]) or 0 < figures[name] <= 1
        terms = Reading(text, mode).terms
        assert mtld_of(terms) == mtld_of(terms[::-1])
        assert terms == [] or mtld_of(terms) >= 1


def test_diversity_is_equal_in_both_modes_on_ascii():
    for text in random_texts(2, 250, string.printable):
        clean, official = (profile(text, DIVERSITY, mode) for mode in MODES)
        assert clean == pytest.approx(official, nan_ok=True)


def test_diversity_in_plain_form():
    """MATTR window by window, HD-D by drawing."""
    rng = random.Random(3)
    for _ in range(50):
        terms = rng.choices(string.ascii_letters[: rng.randint(1, 52)], k=rng.randint(1, 90))
        window = rng.randint(1, 60)
        runs = [terms[i : i + window] for i in range(len(terms) - window + 1)]
        expected = sum(len(set(run)) / window for run in runs) / len(runs) if runs else math.nan
        assert mattr_of(terms, window) == pytest.approx(expected, nan_ok=True)
    drawn = [len(set(rng.sample(terms, 5))) / 5 for _ in range(4000)]
    assert hdd_of(terms, 5) == pytest.approx(sum(drawn) / 4000, abs=0.02)
    assert hdd_of(list("abcabc"), 6) == pytest.approx(0.5)


def test_more_repetition_compresses_better():
    text = "The gulls sleep standing on one leg. "
    ratios = [profile(text * n, ["compression_ratio"])["compression_ratio"] for n in (1, 2, 10, 100)]
    assert ratios == sorted(ratios)
    assert ratios[0] < 1 < 20 < ratios[-1]


def test_table_of_metrics():
    for name, metric in METRICS.items():
        assert name == metric.function.__name__
        assert len(metric.function.__doc__) > 20
        assert metric.function("Some words, said twice: some words.") == pytest.approx(
            profile("Some words, said twice: some words.", [name])[name], nan_ok=True
        )
    assert {name for name, metric in METRICS.items() if metric.least_words} == {
        "ttr", "mattr", "mtld", "hdd", "compression_ratio"
    }  # fmt: skip
    assert list(profile("a b", ["words", "mtld"])) == ["words", "mtld"]


def test_unknown_names_and_modes_are_refused():
    with pytest.raises(ValueError, match="no metric 'fog'"):
        profile("text", ["mtld", "fog"])
    with pytest.raises(ValueError, match="clean or official, not 'strict'"):
        profile("text", mode="strict")
