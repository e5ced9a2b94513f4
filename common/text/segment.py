"""Splits a text into tokens and sentences, in the two modes that `textstats` defines.

clean("Dr. Who isn't in. He left.")        # (["Dr", "Who", "isn't", ...], 2): tokens and the number of sentences
official(text)                             # the same by the rules of spaCy's blank English pipeline
"""

import dataclasses
import functools
import re
import string
import unicodedata
from collections.abc import Iterable

CACHED = 1 << 16
"""How many words are cached; few texts have others."""
CACHED_LENGTH = 64
"""In characters, the longest word that is cached."""


# ---- tokens and sentences, clean

_MARKS = "".join(
    chr(code)
    for code in range(0x300, 0xFE30)  # accents and vowel signs, but what makes a sign an emoji
    if unicodedata.category(chr(code)) in ("Mn", "Mc") and not 0xFE00 <= code <= 0xFE0F
)
_LETTER, _SIGN = r"[^\W\d_]", r"[^\W_]"
_WORD = re.compile(
    rf"\b(?:{_LETTER}\.)+{_LETTER}\b"  # e.g, U.S.A
    rf"|{_SIGN}+(?:(?:[{_MARKS}\u200c\u200d]+|['’](?={_LETTER})|(?<=\d)[.,](?=\d)){_SIGN}*)*"
)
_MAYBE_END = re.compile(
    r"""(?P<stop>[.!?…؟।॥]+)(?P<close>["'”’»)\]}*_]*)(?=\s|$)   # before white space
    |[。！？｡]+["'”’»」』）]*                                       # with or without it
    |\n[^\S\n]*(?:\n|(?=(?:[-*+•‣◦]|\d{1,3}[.)]|\#{1,6})\s))     # a blank line; before a list item or heading
    """,
    re.VERBOSE,
)
_LAST = re.compile(rf"(?:{_LETTER}|\d|\.(?=\S))+\Z")
_LIST_NUMBER = re.compile(r"(?:\A|\n)\s*[*_(]*(?:\d{1,3}|[a-zA-Z])\Z")
_NEVER_LAST = frozenset(
    "adm apt approx capt cf col dr e.g eg eq ex fig figs gen gov hon i.e ie lt maj mr mrs ms mt nos prof rep "
    "rev sen sgt st viz vs".split()
)
"""Abbreviations that stand before something."""
_SELDOM_LAST = frozenset("al bros co corp dept ed est etc inc jr ltd sr".split())
"""Abbreviations after which a sentence may end or go on."""
_LOOK_BACK = 16  # characters: longer than an abbreviation or the number of an item


def clean(text: str) -> tuple[list[str], int]:
    text = unicodedata.normalize("NFC", text)
    found = _WORD.findall(text.lower().replace("’", "'"))
    return found, _clean_sentences(text) if found else 0


def _clean_sentences(text: str) -> int:
    count = start = 0
    for match in _MAYBE_END.finditer(text):
        if match["stop"] and not _ends(text, start, match):
            continue
        # Without a word it is no sentence, such as a row of stars.
        count += _WORD.search(text, start, match.start()) is not None
        start = match.end()
    return count + (_WORD.search(text, start) is not None)


def _ends(text: str, start: int, match: re.Match) -> bool:
    """Whether what looks like the end of the sentence that begins at `start` is one."""
    stop, at = match["stop"], match.start()
    doubtful = bool(match["close"]) or stop[-1] == "…" or stop[-2:] == ".."  # "Why?" she asked; well ... no
    if stop == ".":
        before = text[max(start, at - _LOOK_BACK) : at]
        if at - start <= _LOOK_BACK and _LIST_NUMBER.search(before):
            return False
        found = _LAST.search(before)
        last = found[0] if found else ""
        if last.lower() in _NEVER_LAST or (len(last) == 1 and last.isupper() and last != "I"):
            return False  # before a name, or an initial
        doubtful |= last.lower() in _SELDOM_LAST or ("." in last and last[0].isalpha())  # U.S., a.m.
    return not (doubtful and text[match.end() : match.end() + _LOOK_BACK].lstrip()[:1].islower())


# ---- tokens and sentences, official
#
# The rules of spaCy's tokenizer for English (MIT licence), restated and shortened: a piece between white space is
# taken apart from both ends, at any time an exception may match, and the rest is cut where an infix matches. Left
# out are faces of punctuation only, which do not count either way, exceptions with white space, and most of the
# currencies and units.

_PIECE = re.compile(r"\S+ ?|\s+")  # one blank goes with the word before it; further white space is a token
_SENTENCE_SIGNS = frozenset("!.?։؟۔܀܁܂߹।॥၊။።፧፨᙮᠃᠉‼‽⁇⁈⁉⸮⸼꓿﹒﹖﹗！．？｡。")


def official(text: str) -> tuple[list[str], int]:
    kept: list[str] = []
    count, after_stop = 0, False
    for piece in _PIECE.findall(text):
        for token, is_punctuation, is_stop in _official_piece(piece):
            # A sentence goes on through closing signs, up to the first token that is neither.
            if not count or (after_stop and not is_punctuation and not is_stop):
                count += 1
                after_stop = False
            after_stop |= is_stop
            if not is_punctuation and "'" not in token:
                kept.append(token)
    return kept, count


Marked = tuple[str, bool, bool]
"""A token in lower case, whether it is punctuation, whether it is a sign that ends sentences."""


def _official_piece(piece: str) -> tuple[Marked, ...]:
    return _piece_cached(piece) if len(piece) <= CACHED_LENGTH else _marked(piece)


def _marked(piece: str) -> tuple[Marked, ...]:
    found = (piece,) if piece.isspace() else _split(piece.removesuffix(" "))
    return tuple((token.lower(), _is_punctuation(token), token in _SENTENCE_SIGNS) for token in found)


_piece_cached = functools.lru_cache(CACHED)(_marked)


def _is_punctuation(token: str) -> bool:
    return all(unicodedata.category(sign)[0] == "P" for sign in token)


def _split(piece: str) -> list[str]:
    rules, exceptions = _rules(), _exceptions()
    front: list[str] = []
    back: list[str] = []
    while piece and not _listed(piece, exceptions):
        prefix = rules.prefix.match(piece)
        a = prefix.end() if prefix else 0
        if _listed(piece[a:], exceptions):
            front.append(piece[:a])
            piece = piece[a:]
            break
        suffix = rules.suffix.search(piece[max(a, len(piece) - _LOOK_BACK) :])  # a long piece is not searched
        b = len(suffix[0]) if suffix else 0
        if b and _listed(piece[:-b], exceptions):
            back.append(piece[-b:])
            piece = piece[:-b]
            break
        if not a and not b:
            break
        if a + b > len(piece):
            b = 0
        front += [piece[:a]] if a else []
        back += [piece[-b:]] if b else []
        piece = piece[a : len(piece) - b]
    return _joined([*front, *_middle(piece, rules, exceptions), *reversed(back)], exceptions)


def _listed(piece: str, exceptions: dict[str, tuple[str, ...]]) -> bool:
    return len(piece) <= _LOOK_BACK and piece in exceptions


def _joined(parts: list[str], exceptions: dict[str, tuple[str, ...]]) -> list[str]:
    """Joins the parts of an exception such as "Dr." or "and/or" that only stands free now: in "**Dr."."""
    for size in 3, 2:
        for i in range(len(parts) - size, -1, -1):
            whole = "".join(parts[i : i + size]) if len(parts[i]) < _LOOK_BACK else ""
            if whole[:1] not in ("'", "’") and exceptions.get(whole) == (whole,):
                parts[i : i + size] = [whole]
    return parts


def _middle(piece: str, rules: "_Rules", exceptions: dict[str, tuple[str, ...]]) -> Iterable[str]:
    if piece in exceptions:
        return exceptions[piece]
    if rules.address.fullmatch(piece):
        return (piece,)
    found, start = [], 0
    for match in rules.infix.finditer(piece):
        if match.start() == 0:
            continue
        found += [piece[start : match.start()], match[0]]
        start = match.end()
    return [part for part in (*found, piece[start:]) if part]


@dataclasses.dataclass(frozen=True)
class _Rules:
    prefix: re.Pattern
    suffix: re.Pattern
    infix: re.Pattern
    address: re.Pattern


@functools.cache
def _rules() -> _Rules:
    """Patterns for what is cut off a piece in front and at the end, where its middle is cut, and what is not."""
    lower, upper, other = "", "", ""
    for code in range(0x20, 0x1FB00):
        sign = chr(code)
        kind = unicodedata.category(sign)
        if kind == "Ll":
            lower += sign
        elif kind == "Lu":
            upper += sign
        elif kind == "So":
            other += sign
    caseless = "\u0590-\u0fff\u3040-\u9fff\uac00-\ud7a3"
    # Letters of scripts without case count as both, as in spaCy.
    lower, upper = lower + caseless, upper + caseless
    quotes = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
    signs = r"…,:;!?¿؟¡()\[\]{}<>_#*&。？！，、；：～·।،۔؛٪"
    money = r"(?:US\$|C\$|A\$|[$£€¥฿₽₴₠-₿﷼])"
    units = (
        "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh "
        "mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K %"
    ).split()
    ends = rf"……|…|\.\.+|[{signs}]|[{quotes}]|[{other}]"
    return _Rules(
        prefix=re.compile(rf"[§%=—–]|\+(?![0-9])|{ends}|{money}"),
        suffix=re.compile(
            rf"(?:{ends}|(?<=°[FfCcKk])\.|['’][sS]|[—–]|(?<=[0-9])\+|(?<=[0-9])(?:{money}|{'|'.join(units)})"
            rf"|(?<=[0-9{lower}%²+\-{signs}{quotes}])\.|(?<=[{upper}][{upper}])\.)\Z"
        ),
        infix=re.compile(
            rf"\.\.+|…|[{other}]|(?<=[0-9])[+\-*^](?=[0-9-])"
            rf"|(?<=[{lower}{quotes}])\.(?=[{upper}{quotes}])|(?<={_LETTER}),(?={_LETTER})"
            rf"|(?<={_SIGN})(?:---|--|——|[-–—~])(?={_LETTER})|(?<={_SIGN})[:<>=/](?={_LETTER})"
        ),
        address=re.compile(
            r"(?:[\w+.-]{2,}://)?(?:\S+@)?"
            r"(?:\d{1,3}(?:\.\d{1,3}){3}"
            rf"|(?:[A-Za-z0-9\u00a1-\uffff][A-Za-z0-9\u00a1-\uffff_-]{{0,63}}\.)+[{lower}]{{2,63}})"
            r"(?::\d{2,5})?(?:[/?#]\S*)?"
        ),
    )


_PERSONS = "i you he she it we they"
_ASKING = "who what when where why how there that these those"
_VERBS = "ca could do does did had may might must need ought sha should wo would"
_CONTRACTED = {  # what is cut off: the words that it is cut off
    ("'m",): "i",
    ("'ll",): f"{_PERSONS} {_ASKING} this",
    ("'ll", "'ve"): f"{_PERSONS} {_ASKING} this",
    ("'d",): f"{_PERSONS} {_ASKING} this",
    ("'d", "'ve"): f"{_PERSONS} {_ASKING} this",
    ("'ve",): "i you we they who what when where why how there these those could might must should would not",
    ("'re",): "you we they who what when where why how there these those",
    ("'s",): "he she it who what when where why how there that this",
    ("n't",): f"{_VERBS} ai are is was were have has dare",
    ("n't", "'ve"): _VERBS,
}
_NOT_CONTRACTED = "ill its hell shell shed were well whore".split()  # without an apostrophe: words of their own
_WHOLE = (
    "Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. "
    "Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. "
    "Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. a.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. "
    "Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. Sen. "
    "St. vs. v.s. and/or w/o C++ ma'am Ma'am o'clock O'clock ol' Ol' 'em 'll 'nuff 'bout 's 'S 're 'd ' '' — \\n "
    "\\t ä. ö. ü."
).split()
_FACES = (  # those that are not all punctuation
    ":o) (o: 8) 8-) (-8 >:( >:o =( =) (= =] ]= [= =[ =/ =| =3 =D :| :-| :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 "
    ":3 :-3 :> :-> :X :-X :x :-x :D :-D ;D ;-D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< v.v V.V v_v V_V "
    "o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o <3 <33 <333 </3 (^_^) (>_<)"
).split()


@functools.cache
def _exceptions() -> dict[str, tuple[str, ...]]:
    """Pieces whose tokens are listed."""
    found = {}
    for cut, list_of_words in _CONTRACTED.items():
        for word in list_of_words.split():
            for start in (word, word.title()):
                plain = tuple(part.replace("'", "") for part in cut)
                found[start + "".join(cut)] = (start, *cut)
                if start + "".join(plain) not in (*_NOT_CONTRACTED, *map(str.title, _NOT_CONTRACTED)):
                    found[start + "".join(plain)] = (start, *plain)
    for tokens_of_one in "can not", "gon na", "got ta", "let 's", "c'm on":
        for one in (tokens_of_one, tokens_of_one[0].upper() + tokens_of_one[1:]):
            found[one.replace(" ", "")] = tuple(one.split())
    found |= {"y'all": ("y'", "all"), "yall": ("y", "all")}
    found |= {f"{hour}{half}": (f"{hour}", half) for hour in range(1, 13) for half in ("am", "pm", "a.m.", "p.m.")}
    found |= {whole: (whole,) for whole in (*_WHOLE, *_FACES)}
    found |= {f"{letter}.": (f"{letter}.",) for letter in string.ascii_lowercase}
    for start in "doin goin nothin nuthin somethin lovin havin".split():
        found |= {f"{word}'": (f"{word}'",) for word in (start, start.title())}
    for start in "cause cos coz cuz".split():
        found |= {f"'{word}": (f"'{word}",) for word in (start, start.title())}
    return found | {  # with a typographic apostrophe, which the filter of tokens does not know
        piece.replace("'", "’"): tuple(part.replace("'", "’") for part in parts)
        for piece, parts in found.items()
        if "'" in piece
    }
