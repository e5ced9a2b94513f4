"""Reading and comparing numeric answers: one grader for every task with numbers.

Signs, fractions, mixed numbers, decimals, thousands separators, powers of ten, percent signs, currency, LaTeX
and trailing words are understood: 5 is not -5, 12 is not 1/2, 1/2 is 0.5, 1,000 is 1000, 20 is 20%, 1e3 is
1000, 5 is "5 apples and 3 oranges". Words for numbers ("four", "5 million") are not.
"""

import re
from fractions import Fraction

MARK = "####"

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"[$€£]?\s?(?:(?P<whole>\d+)(?:\s+|\s+and\s+)(?=\d+\s?/\s?\d))?"
    rf"(?P<top>{_DIGITS}(?:\.\d+)?|\.\d+)"
    # Three digits at most: a longer power of ten is no answer, and its exact value would fill the memory.
    r"(?:[eE](?P<e>[+-]?\d{1,3})(?!\d)|\s?(?:\*|x|×)\s?10\s?\^\s?(?P<power>-?\d{1,3})(?!\d))?"
    r"(?:\s?/\s?(?P<bottom>\d+(?:\.\d+)?))?"
)
_PLAIN = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "⁄": "/", "∕": "/", "％": "%", "\u00a0": " ", "\u202f": " ", "\u2009": " "}
    | {"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⅕": " 1/5", "⅛": " 1/8"}
)
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r" \1/\2"),
    (re.compile(r"(?<=\d)(?:\{,\}|\\,|\\!)(?=\d{3})"), ","),
    (re.compile(r"\\(?:times|cdot)\b"), "*"),
    (re.compile(r"\^\{(-?\d+)\}"), r"^\1"),
    (re.compile(r"\\([$%])"), r"\1"),
)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_THIN = re.compile(r"(?<=\d)[\u00a0\u202f\u2009](?=\d{3}(?!\d))")  # 1 000 with a space that does not break
_SUM = re.compile(r"\d\s*[-+*/×÷x]\s*[$€£(]?\s*\d")


def plain(text: str) -> str:
    """The text with every variant of minus, fraction and space made plain, and LaTeX numbers written out."""
    text = _THIN.sub("", text).translate(_PLAIN)
    if "\\" in text or "{" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    return text


def numbers_in(text: str) -> list[str]:
    """The numbers of a text as written, in order."""
    return _numbers(plain(text))


def _numbers(text: str) -> list[str]:
    found, at = [], 0
    while match := _NUMBER.search(text, at):
        start, end = match.start() + len(match[0]) - len(match[0].lstrip()), match.end()
        if match["whole"] and not _proper(match["top"], match["bottom"]):
            end = match.end("whole")
        found.append(_sign(text, start) + text[start:end].strip())
        at = end
    return found


def _proper(top: str, bottom: str) -> bool:
    """ "1 1/2" is one number, "20 10/5" is two."""
    return max(len(top), len(bottom)) < 10 and float(top.replace(",", "")) < float(bottom)


def _sign(text: str, start: int) -> str:
    """ "-" if the number at `start` is negative and not what is taken away from something before it."""
    before = text[:start]
    stripped = before.rstrip(" ")
    if not stripped.endswith("-"):
        return ""
    ahead = stripped[:-1]
    if stripped == before:
        # Close to its number: a sign unless it stands close to what comes before, as in "3-4" and "x-4".
        return "" if ahead and (ahead[-1].isalnum() or ahead[-1] in ")%") else "-"
    ahead = ahead.rstrip(" *_`$(")
    return "-" if not ahead or ahead[-1] in "=:#" else ""


def final_answer(text: str) -> str | None:
    """The first number after the last mark "####" that has one; without a mark, that in the last LaTeX box;
    without either, the last number of the text."""
    text = plain(text)
    parts = text.split(MARK)
    if len(parts) > 1:
        # From the end, as a model may state a first result and correct it; a mark without a number says nothing.
        return next((found for tail in reversed(parts[1:]) if (found := _first(tail))), None)
    boxes = _BOXED.findall(text)
    if boxes and (found := _first(boxes[-1])):
        return found
    everything = _numbers(text)
    return everything[-1] if everything else None


def _first(tail: str) -> str | None:
    """The first number of an answer field; of "3 + 4 = 7" the result."""
    sides = tail.strip().partition("\n")[0].split("=")
    sums = 0
    while sums + 1 < len(sides) and not re.search("[A-Za-z]", sides[sums]) and _SUM.search(sides[sums]):
        sums += 1
    found = _numbers("=".join(sides[sums:])) if sums else _numbers(tail)
    return found[0] if found else None


def stated_number(text: str) -> str | None:
    """The number that `text` consists of, without currency, commas, percent sign and Markdown, as it is to be
    learned; None if there is anything else in it."""
    bare = plain(text).strip().strip("*_`$ ").removesuffix(".").strip("*_`%$ ")
    found = _numbers(bare)
    written = found[0].replace(" ", "") if found else None
    if written is None or written != bare.replace(" ", "") or value(written) is None:
        return None
    return re.sub(r"[$€£,]", "", found[0]).strip()


def value(number: str) -> Fraction | None:
    """The exact value of a number as written, None if it has none (division by zero)."""
    bare = plain(number).replace("%", "").strip()
    negative = bare.startswith("-")
    match = _NUMBER.fullmatch(bare.removeprefix("-").strip())
    if match is None:
        return None
    try:
        # Exact: in floating point 0.1 + 0.2 is not 0.3.
        found = Fraction(match["top"].replace(",", ""))
        if power := match["e"] or match["power"]:
            found *= Fraction(10) ** int(power)
        if match["bottom"]:
            found = found / Fraction(match["bottom"]) + int(match["whole"] or 0)
    except (ValueError, ZeroDivisionError):
        return None
    return -found if negative else found


def same_number(a: str | None, b: str | None) -> bool:
    """Whether both are numbers of equal value. Decimals may differ by rounding to six places, so that 0.833333 is
    5/6 and 2.9999999999999996 is 3; whole numbers may not."""
    if a is None or b is None:
        return False
    left, right = value(a), value(b)
    if left is None or right is None:
        return False
    whole = (left.denominator == 1) + (right.denominator == 1)
    if whole:
        return abs(left - right) <= abs(right) * (Fraction(1, 10**9) if whole == 1 else 0)
    return abs(left - right) <= max(abs(right) / 10**6, Fraction(5, 10**7))
