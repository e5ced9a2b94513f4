"""Easy Data Augmentation (Wei and Zou 2019, arXiv 1901.11196): copies of examples with words edited at random.

    synonyms = wordnet_synonyms("/usr/share/wordnet")           # or neighbour_synonyms(student, questions)
    augment("How many red apples does Ada have?", random.Random(0), synonyms)
    eda_examples(seeds, 200, seed=0, synonyms=synonyms)

As published: one of four operations, drawn at random, is done to a copy. With l words and n = max(1, ⌊alpha l⌋),

    synonym replacement   n words that are no stop words become one of their synonyms
    random insertion      n times a synonym of a word that is no stop word goes before a random word
    random swap           n times two words change places
    random deletion       every word goes with probability alpha

Other than published: case, punctuation and spacing stay, where the authors' code takes letters only; numbers, in
figures or in words, are never replaced, moved, deleted or brought in, since the answer of a word problem hangs on
them; a copy that repeats a text is drawn again, which makes deletion, the operation that often does nothing, a bit
rarer. The paper advises 16 copies a text with alpha 0.05 for 500 texts, 8 with 0.05 for 2,000, and 4 with 0.1 for
5,000 and more; here the number of copies is given by the arm that is compared. Nothing checks that a copy still
has its label: deleting "not", or swapping "Ada" and "Bo", can make it wrong.
"""

import dataclasses
import pathlib
import random
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from common.errors import UserError
from common.lm import LanguageModel
from common.model.sharding import fetch
from common.tasks.base import Example
from common.text.filters import words_of

Synonyms = Callable[[str], list[str]]
"""From a lower-case word to other words of like meaning; [] if none is known."""

STOP_WORDS = frozenset(
    "a about above after again against all am an and any are as at be because been before being below between "
    "both but by can could did do does doing don down during each few for from further had has have having he "
    "her here hers herself him himself his how i if in into is it its itself just me more most my myself no nor "
    "not now of off on once only or other our ours ourselves out over own s same she should so some such t than "
    "that the their theirs them themselves then there these they this those through to too under until up very "
    "was we were what when where which while who whom why will with would you your yours yourself "
    "yourselves".split()
)
NUMBER_WORDS = frozenset(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds "
    "thousand thousands million millions billion billions dozen dozens half halves third thirds quarter "
    "quarters fourth fourths fifth fifths tenth tenths first second once twice thrice double triple single pair "
    "pairs couple".split()
)
TRIES = 10
"""How often a copy that repeats a text is drawn at most; then the repetition is taken."""


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A word with the signs before it and the signs and spaces after it; `word` is "" for signs alone."""

    before: str
    word: str
    after: str

    @property
    def movable(self) -> bool:
        return bool(self.word) and not is_number(self.word)

    @property
    def telling(self) -> bool:
        return self.movable and self.word.lower() not in STOP_WORDS


def is_number(word: str) -> bool:
    """Whether a word holds a digit or is, in some part, a number in words."""
    return any(c.isdigit() for c in word) or any(part in NUMBER_WORDS for part in words_of(word))


def augment(text: str, rng: random.Random, synonyms: Synonyms, alpha: float = 0.1) -> str:
    """A copy of `text` after one operation drawn from `rng`; the text itself where that finds nothing to do."""
    pieces = [_piece(part) for part in re.findall(r"\s*\S+\s*", text)]
    n = max(1, int(alpha * sum(bool(piece.word) for piece in pieces)))
    operation = rng.choice((_replace, _insert, _swap, None))
    pieces = _delete(pieces, rng, alpha) if operation is None else operation(pieces, rng, n, synonyms)
    return "".join(piece.before + piece.word + piece.after for piece in pieces)


def _piece(text: str) -> _Piece:
    found = re.fullmatch(r"(\W*)(.*?)(\W*)", text, re.S)
    assert found is not None, "the pattern fits every text"
    return _Piece(*found.groups())


def _choices(word: str, synonyms: Synonyms) -> list[str]:
    return [s for s in synonyms(word.lower()) if s and s.lower() != word.lower() and not is_number(s)]


def _replace(pieces: list[_Piece], rng: random.Random, n: int, synonyms: Synonyms) -> list[_Piece]:
    pieces = list(pieces)
    places = [i for i, piece in enumerate(pieces) if piece.telling]
    rng.shuffle(places)
    for i in places:
        choices = _choices(pieces[i].word, synonyms) if n else []
        if choices:
            new = rng.choice(choices)
            new = new[:1].upper() + new[1:] if pieces[i].word[0].isupper() else new
            pieces[i] = dataclasses.replace(pieces[i], word=new)
            n -= 1
    return pieces


def _insert(pieces: list[_Piece], rng: random.Random, n: int, synonyms: Synonyms) -> list[_Piece]:
    pieces = list(pieces)
    known = {piece.word: _choices(piece.word, synonyms) for piece in pieces if piece.telling}
    words = [piece.word for piece in pieces if known.get(piece.word)]
    for _ in range(n if words else 0):
        pieces.insert(rng.randrange(len(pieces)), _Piece("", rng.choice(known[rng.choice(words)]), " "))
    return pieces


def _swap(pieces: list[_Piece], rng: random.Random, n: int, synonyms: Synonyms) -> list[_Piece]:
    pieces = list(pieces)
    places = [i for i, piece in enumerate(pieces) if piece.movable]
    for _ in range(n if len(places) > 1 else 0):
        i, j = rng.sample(places, 2)
        one, other = pieces[i], pieces[j]
        pieces[i], pieces[j] = dataclasses.replace(one, word=other.word), dataclasses.replace(other, word=one.word)
    return pieces


def _delete(pieces: list[_Piece], rng: random.Random, p: float) -> list[_Piece]:
    """One word at least is kept, every word right after an opening sign, and the signs after a deleted one."""
    places = [i for i, piece in enumerate(pieces) if piece.movable and not piece.before.strip()]
    gone = {i for i in places if rng.random() < p}
    if places and len(gone) == sum(bool(piece.word) for piece in pieces):
        gone.remove(rng.choice(places))
    kept: list[_Piece] = []
    for i, piece in enumerate(pieces):
        if i not in gone:
            kept.append(piece)
        elif piece.after != " " and kept:
            kept[-1] = dataclasses.replace(kept[-1], after=kept[-1].after.rstrip() + piece.after)
    return kept


def eda_examples(
    examples: Sequence[Example], count: int, seed: int, synonyms: Synonyms, alpha: float = 0.1
) -> list[Example]:
    """`count` edited copies, of every example as many as of another, give or take one.

    Answer, label, group and place are the original's; ids are unique. Copy k of an example depends on `seed`, its
    text, its id and its earlier copies, not on the other examples. Raises ValueError without examples.
    """
    if not examples and count:
        raise ValueError("no examples to make copies of")
    order = random.Random(f"eda {seed}").sample(examples, len(examples))
    seen = {example.id: {example.question} for example in examples}
    made = []
    for i in range(count):
        example, copy = order[i % len(order)], i // len(order)
        rng = random.Random(f"eda {seed} {example.id} {copy}")
        question = example.question
        for _ in range(TRIES):
            question = augment(example.question, rng, synonyms, alpha)
            if question not in seen[example.id]:
                break
        seen[example.id].add(question)
        made.append(dataclasses.replace(example, id=f"{example.id}/eda_{copy}", question=question))
    return made


def wordnet_synonyms(folder: str | pathlib.Path) -> Synonyms:
    """Synonyms as EDA takes them: all words in any synset of WordNet that holds the word.

    `folder` has Princeton's files data.noun, data.verb, data.adj and data.adv (format: wndb(5WN)), as Debian's
    package wordnet-base puts them in /usr/share/wordnet. Only base forms are known: "apple", not "apples".
    Raises UserError if they cannot be read.
    """
    synsets: list[list[str]] = []
    of_word: dict[str, list[int]] = {}
    try:
        for kind in ("noun", "verb", "adj", "adv"):
            with (pathlib.Path(folder) / f"data.{kind}").open(encoding="utf-8") as file:
                for fields in (line.split() for line in file if line[:1].isdigit()):
                    words = [fields[4 + 2 * i] for i in range(int(fields[3], 16))]
                    words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ").lower() for word in words]
                    for word in words:
                        of_word.setdefault(word, []).append(len(synsets))
                    synsets.append(words)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"{folder} does not hold WordNet's data.noun, data.verb, data.adj, data.adv: {error}"
        ) from None
    return lambda word: sorted({other for i in of_word.get(word, ()) for other in synsets[i]} - {word})


def neighbour_synonyms(student: LanguageModel, texts: Iterable[str], count: int = 5) -> Synonyms:
    """A departure from EDA for want of a thesaurus: the words of `texts` nearest in the student's input embedding.

    A word's vector is the mean over its tokens (a space before it), less the mean of all words; nearness is the
    cosine. Such neighbours are used alike rather than mean alike ("city", "kitchen"), and words of several tokens
    are often near only because they share one ("actor", "award"), the more so the smaller the student. Stop words
    and numbers are neither asked for nor given.
    """
    words = sorted({w for text in texts for w in words_of(text) if w not in STOP_WORDS and not is_number(w)})
    number = {word: i for i, word in enumerate(words)}
    table = fetch(student.params["embed"]).astype(np.float32)
    vectors = np.array([table[student.tokenizer.encode_text(f" {word}")].mean(axis=0) for word in words])
    vectors = vectors - vectors.mean(axis=0) if words else vectors
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)

    def nearest(word: str) -> list[str]:
        if word not in number:
            return []
        cosines = vectors @ vectors[number[word]]
        cosines[number[word]] = -np.inf
        return [words[i] for i in np.argsort(-cosines, kind="stable")[: min(count, len(words) - 1)]]

    return nearest
