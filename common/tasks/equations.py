"""Arithmetic written in text: is a stated equation right, and what does a formula work out to.

wrong_equation("16 - 3 - 4 = 8")                  # the equation, because it does not hold
worked_out("( ( 4.0 + 13.0 ) * 15.0 )")           # ("4 + 13 = 17. 17 * 15 = 255.", Fraction(255))
worked_out(infix("* - number0 number1 number2", ["8", "2", "3"]))
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from common.tasks.grading import numbers_in, plain, value

_TOKEN = re.compile(
    r"\s*(?:[$€£]?\s?(?:(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(\.\d+)?|(\.\d+))|([-+*/()×÷%]|x(?=\s*[\d($.])))"
)
_SIDE = frozenset("$€£0123456789.,()+-*/×÷%x \t")
_LONGEST = 200
_STATED = re.compile(r"\s*-?\s?[$€£]?\s?-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)%?")
_OPERATORS = {"×": "*", "x": "*", "÷": "/"}


class _Unreadable(Exception):
    """Not an expression of numbers, signs and brackets."""


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    text = text.strip().rstrip(".,")
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _Unreadable
        number = (match[1] or "").replace(",", "") + (match[2] or match[3] or "")
        found.append(number or _OPERATORS.get(match[4], match[4]))
        at = match.end()
    return found


class _Reader:
    """Recursive descent over tokens; collects the steps in the order in which they are worked out."""

    def __init__(self, tokens: Sequence[str], percent: bool):
        self._tokens, self._at, self._percent = tokens, 0, percent
        self.steps: list[tuple[Fraction, str, Fraction, Fraction]] = []

    def read(self) -> Fraction:
        result = self._sum()
        if self._at != len(self._tokens):
            raise _Unreadable
        return result

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1] if self._at <= len(self._tokens) else ""

    def _chain(self, operators: str, operand: Callable[[], Fraction]) -> Fraction:
        result = operand()
        while self._peek() and self._peek() in operators:
            operator, right = self._take(), operand()
            if operator == "/" and right == 0:
                raise ZeroDivisionError
            outcome = {"+": result.__add__, "-": result.__sub__, "*": result.__mul__, "/": result.__truediv__}
            self.steps.append((result, operator, right, outcome[operator](right)))
            result = self.steps[-1][3]
        return result

    def _sum(self) -> Fraction:
        return self._chain("+-", self._product)

    def _product(self) -> Fraction:
        return self._chain("*/", self._factor)

    def _factor(self) -> Fraction:
        token = self._take()
        if token == "-":
            return -self._factor()
        if token == "(":
            result = self._sum()
            if self._take() != ")":
                raise _Unreadable
        elif token and (token[0].isdigit() or token[0] == "."):
            if len(token) > 30:
                raise _Unreadable
            result = Fraction(token)
        else:
            raise _Unreadable
        while self._peek() == "%":
            self._take()
            result = result / 100 if self._percent else result
        return result


def _readings(text: str) -> set[Fraction]:
    """What the text can mean: 50% is both 0.5 and 50. Raises _Unreadable, ZeroDivisionError."""
    tokens = _tokens(text)
    return {_Reader(tokens, percent).read() for percent in (True, False)}


def wrong_equation(text: str) -> str | None:
    """The first stated equation between numbers that does not hold, None if all do.

    A result given with decimals may be rounded. What cannot be read as arithmetic (units between the numbers,
    part of a word) is passed over: this finds mistakes, it does not prove that there are none.
    """
    text = plain(text)
    for sign in re.finditer("=", text):
        left, right = _left_of(text, sign.start()), _right_of(text, sign.end())
        stated = _STATED.match(right)
        if left is None or stated is None:
            continue
        # "17 / 5 = 3 r 2" states a quotient and a remainder.
        if re.match(r"\s*(?:r|remainder)\b", text[sign.end() + stated.end() :], re.IGNORECASE):
            continue
        try:
            holds = _agrees(_readings(left), stated[0], right)
        except _Unreadable:
            continue
        except ZeroDivisionError:
            holds = False
        if not holds:
            return f"{' '.join(left.split())} = {stated[0].strip()}"
    return None


def _left_of(text: str, end: int) -> str | None:
    """The expression that ends at `end`, None if none stands alone there."""
    start = end
    while start and text[start - 1] in _SIDE and end - start < _LONGEST:
        start -= 1
    before = text[start - 1] if start else "\n"
    run = re.split(r"[.,](?=\s)", text[start:end])
    left, cut = run[-1], len(run) > 1
    if left.count("(") > left.count(")"):
        left, cut = left.rpartition("(")[2], True
    if not cut:
        if left.startswith("x") and before.isalpha():
            left, before = left[1:], "x"
        if left[:1] != " " and (before.isalnum() or before in "^_}!\\"):
            return None
        if before == "\n":
            left = re.sub(r"^\s*[-*]\s+", "", left)  # the dash of a list
    left = left.strip()
    # What starts with an operator continues something that is not a number: "apples + 3".
    if re.match(r"[+*/×÷x]|-\s", left) or not re.search(r"\S\s*[-+*/×÷x]", left):
        return None
    # "100 - 20%" may mean 80: of what the share is taken is not said.
    return None if "%" in left and re.search("[-+]", left) else left


def _right_of(text: str, start: int) -> str:
    end = start
    while end < len(text) and text[end] in _SIDE and end - start < _LONGEST:
        end += 1
    return re.split(r"[.,](?:\s|$)", text[start:end])[0]


def _agrees(meant: set[Fraction], stated: str, right: str) -> bool:
    """Whether a side can mean the number after the sign, rounded, or all that follows ("4 * 5 = 2 * 10")."""
    decimals = len(stated.rstrip("% ").partition(".")[2])
    slack = Fraction(1, 10**decimals) if decimals else Fraction(0)
    # "3 / 2 = 1 1/2": read as an expression, a mixed number is two.
    mixed = value(next(iter(numbers_in(right)), ""))
    if mixed is not None and mixed in meant:
        return True
    for side, allowed in ((stated, slack), (right, Fraction(0))):
        try:
            if any(a == b or abs(a - b) <= allowed for a in meant for b in _readings(side)):
                return True
        except (_Unreadable, ZeroDivisionError):
            continue
    return False


def infix(prefix: str, numbers: Sequence[str]) -> str:
    """A formula in Polish notation over "number0", "number1", … or plain numbers, with brackets instead.

    Raises ValueError if it is not one.
    """
    tokens = prefix.split()

    def read() -> str:
        if not tokens:
            raise ValueError(f"formula {prefix!r} ends too early")
        token = tokens.pop(0)
        if token in "+-*/":
            left, right = read(), read()
            return f"( {left} {token} {right} )"
        if name := re.fullmatch(r"number(\d{1,3})", token):
            if int(name[1]) >= len(numbers):
                raise ValueError(f"formula {prefix!r} names more numbers than there are")
            return numbers[int(name[1])]
        return token

    found = read()
    if tokens:
        raise ValueError(f"formula {prefix!r} goes on after its end")
    return found


def worked_out(formula: str) -> tuple[str, Fraction] | None:
    """A formula's steps as sentences, with its result; None where it cannot be read or takes no step."""
    try:
        reader = _Reader(_tokens(formula), percent=True)
        result = reader.read()
    except (_Unreadable, ZeroDivisionError):
        return None
    lines = [f"{show(a)} {op} {show(b)} = {show(c)}." for a, op, b, c in reader.steps]
    return (" ".join(lines), result) if lines else None


def show(number: Fraction) -> str:
    """A number as people write it: 7, 2.5, 0.333333."""
    if number.denominator == 1:
        return str(number.numerator)
    return f"{float(number):.6f}".rstrip("0")
