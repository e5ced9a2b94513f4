"""Figures of a text: length, readability, lexical diversity. Offline, and without a model.

    profile("The important cat sat. The dog ran.", ["gunning_fog", "words"])   # {"gunning_fog": 7.1, "words": 7.0}
    METRICS["mtld"].function(text)                                             # one of them
    lix(Reading(text, "official"))                                             # in the other mode

A text is read in one of two modes. `clean`, the default, is what the names of the figures promise. `official` has
the figures of the toolbox that belongs to the paper on active inheritance (arXiv 2407.01490), artefacts included:
textdescriptives 2.8.2 on spaCy's rules for English, lexicalrichness 0.5.1 for diversity.

|             | clean                                              | official
|-------------|----------------------------------------------------|-----------------------------------------------
| token       | a word: letters and digits, joined by an           | spaCy's token, unless all of it is
|             | apostrophe ("don't"), by a decimal point or comma  | punctuation or it has an apostrophe: "don't"
|             | ("1,000.5") or by the dots of "e.g."               | is "do" (with a typographic one "do", "n’t")
| white space | never counted                                      | a line break or second blank is a token, and
|             |                                                    | all but the blank " " are characters
| signs       | never counted                                      | "$", "+", "=" and emoji are tokens
| sentence    | ends in . ! ? … and the like before white space,   | ends in a token . ! ? and the like; the "1."
|             | with a blank line or before a list item; not in    | of a list ends one, and so does a line break
|             | "Dr.", "e.g.", "1."; it has a word                 | after a full stop
| diversity   | as beside, for the signs of all scripts: curly     | lower case; the digits 0-9, hyphen, en and em
|             | quotes separate words, and so does a dash; hyphens | dash are deleted; other ASCII punctuation
|             | of any kind do not                                 | separates words; nothing else but space does

On ASCII text mtld, mattr and hdd are the same in both modes. Both are made for English: so are syllables and
abbreviations; in a script without spaces every run is one word. No figure is better when it is higher or lower:
objectives say what is. A figure that is not defined for a text is NaN.
"""

import collections
import dataclasses
import functools
import math
import string
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Sequence

from common.text import segment
from common.text.segment import CACHED, CACHED_LENGTH

MODES = "clean", "official"

MTLD_THRESHOLD = 0.72
MATTR_WINDOW = 50
HDD_DRAWS = 42


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text and what is derived from it in one mode; each part is computed once, when first needed."""

    text: str
    mode: str = "clean"

    def __post_init__(self):
        """Raises ValueError for an unknown mode."""
        if self.mode not in MODES:
            raise ValueError(f"a text is read in mode {' or '.join(MODES)}, not {self.mode!r}")

    @property
    def tokens(self) -> Sequence[str]:
        """What is counted, in lower case: see the table of the module."""
        return self._counted[0]

    @property
    def sentences(self) -> int:
        return self._counted[1]

    @functools.cached_property
    def _counted(self) -> tuple[Sequence[str], int]:
        return segment.official(self.text) if self.mode == "official" else segment.clean(self.text)

    @functools.cached_property
    def terms(self) -> list[str]:
        """The words that diversity is measured on, in lower case."""
        if self.mode == "official":
            return self.text.lower().translate(_OFFICIAL_SIGNS).split()
        return unicodedata.normalize("NFC", self.text.lower()).translate(_CLEAN_SIGNS).split()

    @functools.cached_property
    def unique(self) -> int:
        """How many of the tokens are different."""
        return len(set(self.tokens))

    @functools.cached_property
    def length(self) -> float:
        """Tokens in a sentence, on average; NaN without a sentence."""
        return len(self.tokens) / self.sentences if self.sentences else math.nan

    @functools.cached_property
    def long(self) -> int:
        """Tokens of more than 6 characters."""
        return sum([len(token) > 6 for token in self.tokens])

    @functools.cached_property
    def syllables(self) -> list[int]:
        """Of every token."""
        return list(map(syllables_of, self.tokens))


Text = str | Reading


def _read(text: Text) -> Reading:
    return text if isinstance(text, Reading) else Reading(text)


def tokens(text: Text) -> float:
    """How many tokens there are: in `clean` mode the words, in `official` mode also signs and white space."""
    return float(len(_read(text).tokens))


def unique_tokens(text: Text) -> float:
    """How many of the tokens are different, case apart."""
    return float(_read(text).unique)


def characters(text: Text) -> float:
    """How many characters (Unicode code points) there are, without white space; in `official` mode without " "
    only, as in textdescriptives."""
    read = _read(text)
    if read.mode == "official":
        return float(len(read.text) - read.text.count(" "))
    return float(sum(map(len, unicodedata.normalize("NFC", read.text).split())))


def words(text: Text) -> float:
    """How many tokens have a letter or a digit. A floor for other metrics is meant in these."""
    read = _read(text)
    if read.mode == "official":
        return float(sum(token.isalnum() or any(map(str.isalnum, token)) for token in read.tokens))
    return float(len(read.tokens))


def sentences(text: Text) -> float:
    """How many sentences there are."""
    return float(_read(text).sentences)


def sentence_length(text: Text) -> float:
    """tokens / sentences, the mean length of a sentence."""
    return _read(text).length


def token_length(text: Text) -> float:
    """Characters of a token, on average."""
    found = _read(text).tokens
    return sum(map(len, found)) / len(found) if found else math.nan


def syllables(text: Text) -> float:
    """Syllables of a token, on average; each as in `syllables_of`."""
    found = _read(text).syllables
    return sum(found) / len(found) if found else math.nan


def gunning_fog(text: Text) -> float:
    """Fog index (Gunning 1952, The technique of clear writing): 0.4 · (tokens / sentences + 100 · hard / tokens).

    Hard are tokens of 3 syllables or more, as in textdescriptives; Gunning leaves out names, compounds and the
    third syllable of -es and -ed.
    """
    read = _read(text)
    if not read.tokens:
        return math.nan
    hard = sum([count >= 3 for count in read.syllables])
    return 0.4 * (read.length + 100 * hard / len(read.tokens))


def rix(text: Text) -> float:
    """Rix (Anderson 1983, Journal of Reading 26:490-496): tokens of more than 6 characters / sentences."""
    read = _read(text)
    return read.long / read.sentences if read.tokens else math.nan


def lix(text: Text) -> float:
    """Lix (Björnsson 1968, Läsbarhet): tokens / sentences + 100 · tokens of more than 6 characters / tokens."""
    read = _read(text)
    return read.length + 100 * read.long / len(read.tokens) if read.tokens else math.nan


def ttr(text: Text) -> float:
    """Type-token ratio: unique tokens / tokens. It falls with the length of a text: compare equally long ones."""
    read = _read(text)
    return read.unique / len(read.tokens) if read.tokens else math.nan


def mattr(text: Text) -> float:
    """Moving-average type-token ratio (Covington and McFall 2010, Journal of Quantitative Linguistics 17:94-100):
    the mean of different terms / 50 over all runs of 50 terms. NaN for fewer."""
    return mattr_of(_read(text).terms)


def mtld(text: Text) -> float:
    """Measure of textual lexical diversity (McCarthy and Jarvis 2010, Behavior Research Methods 42:381-392) with
    threshold 0.72, see `mtld_of`. 0.0 without terms. Short texts with few repeats score high by chance: where it
    is maximised, set a minimum of `words`."""
    return mtld_of(_read(text).terms)


def hdd(text: Text) -> float:
    """HD-D (McCarthy and Jarvis 2007, Language Testing 24:459-488): the type-token ratio of 42 terms drawn without
    replacement, on average: Σ over different terms of (1 - C(N - f, 42) / C(N, 42)) / 42, where the term occurs f
    times among N. NaN for fewer than 42."""
    return hdd_of(_read(text).terms)


def compression_ratio(text: Text) -> float:
    """Bytes of the text in UTF-8 / bytes after zlib (DEFLATE, level 9). Higher: more repetition.

    Shaib et al. 2024 (arXiv 2403.00553) take gzip, which is 12 bytes longer, of a whole corpus; for that give this
    the texts joined by line breaks. Below some 50 words it mostly tells the length. Builds of Python with another
    zlib (zlib-ng) may differ in the third digit. NaN for an empty text.
    """
    # A lone surrogate has no UTF-8 form; a text that holds one is measured all the same.
    plain = _read(text).text.encode("utf-8", "surrogatepass")
    return len(plain) / len(zlib.compress(plain, 9)) if plain else math.nan


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure of one text; the docstring of `function` says which. It has no better direction."""

    function: Callable[[Text], float]  # of a text in `clean` mode, or of a `Reading`
    least_words: int = 0  # in a shorter text it says little or nothing; 0: any text will do


METRICS: dict[str, Metric] = {
    function.__name__: Metric(function, least_words)
    for function, least_words in (
        (tokens, 0),
        (unique_tokens, 0),
        (characters, 0),
        (words, 0),
        (sentences, 0),
        (sentence_length, 0),
        (token_length, 0),
        (syllables, 0),
        (gunning_fog, 0),
        (rix, 0),
        (lix, 0),
        (ttr, 50),
        (mattr, MATTR_WINDOW),
        (mtld, 50),
        (hdd, HDD_DRAWS),
        (compression_ratio, 50),
    )
}
"""By name, all figures of a text. The floors of ttr, mtld and compression_ratio are this project's."""


def profile(text: str, names: Iterable[str] | None = None, mode: str = "clean") -> dict[str, float]:
    """The metrics `names` of a text, all of them by default, in that order. The text is read once for all.

    Raises ValueError for an unknown name or mode.
    """
    reading = Reading(text, mode)
    chosen = list(METRICS if names is None else names)
    if unknown := [name for name in chosen if name not in METRICS]:
        raise ValueError(f"no metric {', '.join(map(repr, unknown))} of a text; there are {', '.join(METRICS)}")
    return {name: METRICS[name].function(reading) for name in chosen}


# ---- lexical diversity of a sequence of terms


def mtld_of(terms: Sequence[str], threshold: float = MTLD_THRESHOLD) -> float:
    """MTLD of a sequence of terms: mean of N / factors, walked forwards and backwards; 0.0 for none.

    A walk keeps the type-token ratio since its start; where it is at or below the threshold, one factor is
    complete and the next term starts anew. What is left at the end is (1 - TTR) / (1 - threshold) of a factor. If
    no term comes twice there is no part of a factor at all, which counts as one: MTLD is N.
    """
    if not terms:
        return 0.0
    forwards, backwards = _factors(terms, threshold), _factors(reversed(terms), threshold)
    return (len(terms) / forwards + len(terms) / backwards) / 2


def _factors(terms: Iterable[str], threshold: float) -> float:
    seen: set[str] = set()
    count, factors = 0, 0.0
    for term in terms:
        seen.add(term)
        count += 1
        if len(seen) / count <= threshold:
            factors += 1
            count = 0
            seen.clear()
    if count:
        factors += (1 - len(seen) / count) / (1 - threshold)
    return factors or 1.0


def mattr_of(terms: Sequence[str], window: int = MATTR_WINDOW) -> float:
    """MATTR of a sequence of terms: mean of different terms / window over all runs of `window`; NaN for fewer."""
    if len(terms) < window:
        return math.nan
    counts = collections.Counter(terms[:window])
    types = total = len(counts)
    for gone, came in zip(terms, terms[window:], strict=False):
        counts[gone] -= 1
        types += (not counts[came]) - (not counts[gone])
        counts[came] += 1
        total += types
    return total / window / (len(terms) - window + 1)


def hdd_of(terms: Sequence[str], draws: int = HDD_DRAWS) -> float:
    """HD-D of a sequence of terms; NaN for fewer than `draws`."""
    n = len(terms)
    if n < draws:
        return math.nan
    frequencies = collections.Counter(collections.Counter(terms).values())  # how often -> of how many terms
    return math.fsum(count * (1 - _missed(n, f, draws)) for f, count in frequencies.items()) / draws


@functools.lru_cache(CACHED)
def _missed(n: int, f: int, draws: int) -> float:
    """The probability that none of f among n is drawn."""
    return math.comb(n - f, draws) / math.comb(n, draws)


# ---- syllables


@functools.cache
def _hyphenation():
    """Pyphen's patterns for British English: what the toolbox gets for "en"."""
    import pyphen

    return pyphen.Pyphen(lang="en_GB")


def syllables_of(word: str) -> int:
    """Points where a word may be hyphenated, plus 1; an estimate from below ("area" and "idea" have 1).

    By pyphen's patterns for en_GB, on which hyphens in the word count as points, too.
    """
    return _syllables_cached(word) if len(word) <= CACHED_LENGTH else _syllables(word)


def _syllables(word: str) -> int:
    hyphenation = _hyphenation()
    found = max(1, len(hyphenation.positions(word)) + word.count("-") + 1)
    hyphenation.hd.cache.clear()  # pyphen caches every word for ever: too much for millions of texts
    return found


_syllables_cached = functools.lru_cache(CACHED)(_syllables)


# ---- signs that separate terms

_OFFICIAL_SIGNS = {ord(sign): " " for sign in string.punctuation} | {ord(sign): None for sign in "0123456789-–—"}


class _Signs(dict):
    """For `str.translate`: what becomes of a character in `clean` mode, found when it first comes."""

    def __missing__(self, code: int) -> str | int | None:
        sign, kind = chr(code), unicodedata.category(chr(code))
        if sign in "\u2010\u2011" or kind in ("Nd", "Cf", "Me") or 0xFE00 <= code <= 0xFE0F:
            found = None  # hyphens, digits, invisible signs, what makes a sign an emoji
        else:
            found = " " if kind[0] in "PS" else code
        self[code] = found
        return found


_CLEAN_SIGNS = _Signs({code: sign for code, sign in _OFFICIAL_SIGNS.items() if code < 128})
