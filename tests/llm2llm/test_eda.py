"""Easy Data Augmentation: the four operations, what they never touch, and where synonyms come from."""

import collections
import dataclasses
import random
import re

import numpy as np
import pytest

from common.errors import UserError
from common.tasks.base import Example
from llm2llm import eda
from llm2llm.eda import augment, eda_examples, is_number, neighbour_synonyms, wordnet_synonyms

TEXT = (
    'Ada has 12 red apples.  She gives "twenty-five" big pears to Bo,\nwho (slowly) eats three. How many are left?'
)
PROBLEM = Example("p", TEXT, "…", "9", "add", "file 1")


def synonyms(word):
    return {"red": ["crimson", "two"], "big": ["large", "1st"], "apples": ["fruits"]}.get(word, [])


def pieces(text):
    return [eda._Piece("", word, " ") for word in text.split()]


def words(result):
    return [piece.word for piece in result]


def test_numbers_keep_their_places_and_signs_theirs():
    numbers = [w for w in re.findall(r"[\w-]+", TEXT) if is_number(w)]
    assert numbers == ["12", "twenty-five", "three"]
    results = {augment(TEXT, random.Random(i), synonyms, alpha=0.4) for i in range(200)}
    assert len(results) > 100
    for text in results:
        assert [w for w in re.findall(r"[\w-]+", text) if is_number(w)] == numbers
        assert "".join(c for c in text if c in '."\n,()?') == "".join(c for c in TEXT if c in '."\n,()?')


def test_the_same_random_numbers_give_the_same_copy():
    assert augment(TEXT, random.Random(3), synonyms) == augment(TEXT, random.Random(3), synonyms)


def test_replacement_takes_words_that_have_synonyms_and_are_no_stop_words():
    result = words(eda._replace(pieces("the Red big apples were not red"), random.Random(0), 2, lambda w: ["new"]))
    assert collections.Counter(result)["new"] + collections.Counter(result)["New"] == 2
    assert [w for w in result if w in ("the", "were", "not")] == ["the", "were", "not"]
    assert words(eda._replace(pieces("big Red"), random.Random(0), 9, synonyms)) == ["large", "Crimson"]
    assert words(eda._replace(pieces("blue"), random.Random(0), 1, synonyms)) == ["blue"]


def test_insertion_adds_synonyms_between():
    result = words(eda._insert(pieces("a red box"), random.Random(0), 3, synonyms))
    assert collections.Counter(result) == {"a": 1, "red": 1, "box": 1, "crimson": 3}
    assert words(eda._insert(pieces("a blue box"), random.Random(0), 3, synonyms)) == ["a", "blue", "box"]


def test_swap_exchanges_words_but_not_numbers():
    result = words(eda._swap(pieces("one 2 a b"), random.Random(0), 1, synonyms))
    assert result == ["one", "2", "b", "a"]
    assert words(eda._swap(pieces("one a"), random.Random(0), 1, synonyms)) == ["one", "a"]


def test_deletion_has_its_probability_and_leaves_a_word():
    rng, text = random.Random(0), pieces(" ".join("abcdefghij"))
    left = sum(len(eda._delete(text, rng, 0.1)) for _ in range(1000))
    assert left / 10_000 == pytest.approx(0.9, abs=0.01)
    assert len(eda._delete(text, rng, 1.0)) == 1
    assert words(eda._delete(pieces("a 5 b"), rng, 1.0)) == ["5"]


@pytest.mark.parametrize("text", ["", "?", "12 + 3 = ?", "one", "word"])
def test_texts_with_nothing_to_edit_come_back(text):
    for i in range(20):
        assert augment(text, random.Random(i), synonyms) == text


def test_examples_are_spread_evenly_and_keep_their_answers():
    seeds = [dataclasses.replace(PROBLEM, id=f"s{i}", question=f"{TEXT} {i}", label=str(i)) for i in range(7)]
    made = eda_examples(seeds, 24, 0, synonyms)
    assert made == eda_examples(seeds, 24, 0, synonyms)
    assert made[:10] == eda_examples(seeds, 10, 0, synonyms)
    assert made != eda_examples(seeds, 24, 1, synonyms)
    assert len({e.id for e in made}) == len({e.question for e in made}) == 24
    origins = [e.id.partition("/")[0] for e in made]
    assert sorted(collections.Counter(origins).values()) == [3, 3, 3, 3, 4, 4, 4]
    for example, origin in zip(made, origins, strict=True):
        seed = seeds[int(origin[1:])]
        assert example.question != seed.question
        assert dataclasses.replace(example, id=seed.id, question=seed.question) == seed
    assert eda_examples([], 0, 0, synonyms) == []
    with pytest.raises(ValueError, match="no examples"):
        eda_examples([], 1, 0, synonyms)


WORDNET = {
    "noun": "  1 a line of the licence\n08524735 15 n 02 city 0 urban_center 0 001 @ 0852 n 0000 | a town  \n"
    "08540903 15 n 02 city 1 metropolis 0 000 | another sense\n",
    "verb": "",
    "adj": "01148283 00 a 01 happy 0 000 | x\n01000000 00 s 02 glad(p) 0 happy 3 000 | y\n",
    "adv": "",
}


def test_wordnet_is_read_from_its_own_files(tmp_path):
    for kind, text in WORDNET.items():
        (tmp_path / f"data.{kind}").write_text(text)
    known = wordnet_synonyms(tmp_path)
    assert known("city") == ["metropolis", "urban center"]
    assert known("happy") == ["glad"]
    assert known("glad") == ["happy"]
    assert known("cities") == []
    (tmp_path / "data.adv").unlink()
    with pytest.raises(UserError, match="WordNet"):
        wordnet_synonyms(tmp_path)


def test_neighbours_in_the_input_embedding():
    class Tokenizer:
        def encode_text(self, text):
            return {" red": [0], " blue": [1], " green": [0, 1], " apples": [2]}[text]

    class Student:
        tokenizer = Tokenizer()
        params = {"embed": np.array([[1.0, 0.1], [0.9, -0.1], [-1.0, 0.5]], np.float32)}  # noqa: RUF012

    known = neighbour_synonyms(Student(), ["The red and the blue", "green apples, 12 or two"], count=2)
    assert set(known("red")) == {"green", "blue"}
    assert len(known("apples")) == 2
    assert known("the") == known("12") == known("unheard") == []
    assert neighbour_synonyms(Student(), ["the"])("red") == []
