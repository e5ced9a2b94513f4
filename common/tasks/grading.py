"""Reading and comparing numeric answers: one judge for every task with numbers.

Signs, fractions, decimals, thousands separators, percent signs, currency and trailing words are understood:
5 is not -5, 12 is not 1/2, 1/2 is 0.5, 1,000 is 1000, 20 is 20%, 5 is "5 apples and 3 oranges".
"""

import re
from fractions import Fraction

MARK = "####"
_NUMBER = re.compile(r"-?\s?[$€£]?\s?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:\s?/\s?\d+(?:\.\d+)?)?")
_CONTENT = re.compile(r"\d")


def numbers_in(text: str) -> list[str]:
    """The numbers of a text as written, in order."""
    found = (m[0].strip() for m in _NUMBER.finditer(text))
    return [n for n in found if _CONTENT.search(n)]


def final_answer(text: str) -> str | None:
    """The first number after the last mark "####"; without a mark, the last number of the text."""
    _, mark, tail = text.rpartition(MARK)
    found = numbers_in(tail)
    if mark:
        return found[0] if found else None
    return found[-1] if found else None


def value(number: str) -> Fraction | None:
    """The exact value of a number as written, None if it has none (division by zero)."""
    plain = re.sub(r"[$€£,\s]", "", number)
    top, _, bottom = plain.partition("/")
    try:
        return Fraction(top) / Fraction(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return None


def same_number(a: str | None, b: str | None) -> bool:
    """Whether both are numbers of equal value."""
    if a is None or b is None:
        return False
    left, right = value(a), value(b)
    return left is not None and left == right


_EQUATION = re.compile(r"(-?\d+)\s*([-+*/])\s*(-?\d+)\s*=\s*(-?\d+)")


def wrong_equation(text: str) -> str | None:
    """The first stated equation `a op b = c` of whole numbers that does not hold, None if all do."""
    for match in _EQUATION.finditer(text):
        a, op, b, c = int(match[1]), match[2], int(match[3]), int(match[4])
        holds = {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b != 0 and a == b * c}
        if not holds[op]:
            return match[0]
    return None
