"""Short arithmetic word problems of twelve skills: written, solved and recognised by one table of templates.

The same table works in both directions. `write` fills in a template; `recognise` finds the skill and numbers of
any text, so that a problem invented by a model has an exact answer, or is known to have none.

    problem = write(random.Random(0), "add_then_subtract")
    problem.question, problem.solution, problem.answer
    recognise(problem.question).answer == problem.answer
"""

import dataclasses
import functools
import random
import re
from collections.abc import Callable, Sequence

Step = tuple[int, str, int]

NAMES = (
    "Ada Amir Ana Ben Bo Chen Dara Eli Emma Eva Finn Gus Hana Ida Ivan Jack Jana Jo Kai Kim Lea Leo Lily Luis "
    "Mara Max Mia Milo Nina Noah Nora Omar Otto Pia Rana Remi Rosa Ruth Sam Sara Tara Theo Tom Uma Vera Will "
    "Yara Zoe"
).split()
THINGS = (
    "apples balls beads bells berries books boxes bricks buttons cakes candles cards carrots cars coins cookies "
    "crayons cups drums eggs figs flags flowers forks hats jars keys kites lamps leaves lemons letters maps "
    "marbles melons mugs nuts oranges pears pencils pens photos pies pins plates plums rings rocks roses shells "
    "socks spoons stamps stars stickers stones tickets toys tulips"
).split()
HOLDERS = "bags baskets bins boxes cases crates drawers jars packs rows shelves trays".split()


@dataclasses.dataclass(frozen=True)
class Skill:
    """A kind of problem. `draw` gives the numbers x, y, … in that order; `steps` takes them and gives the
    calculation, one operation a step."""

    templates: tuple[str, ...]
    draw: Callable[[random.Random], Sequence[int]]
    steps: Callable[..., list[Step]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with its worked solution ("3 + 4 = 7. #### 7") and exact answer."""

    skill: str
    question: str
    solution: str
    answer: int


def _drawn(*ranges: tuple[int, int]) -> Callable[[random.Random], Sequence[int]]:
    """Independent numbers, each from its range, ends included."""
    return lambda r: [r.randint(*ends) for ends in ranges]


# Where one number bounds another, so that no result is negative and every division comes out even.


def _subtract(r: random.Random) -> Sequence[int]:
    x = r.randint(6, 45)
    return x, r.randint(2, min(20, x - 2))


def _divide(r: random.Random) -> Sequence[int]:
    y, quotient = r.randint(2, 9), r.randint(2, 9)
    return y * quotient, y


def _add_then_subtract(r: random.Random) -> Sequence[int]:
    x, y = r.randint(3, 25), r.randint(2, 20)
    return x, y, r.randint(2, min(20, x + y - 2))


def _change(r: random.Random) -> Sequence[int]:
    x, y = r.randint(2, 6), r.randint(2, 6)
    return x, y, x * y + r.randint(2, 12)


def _double(r: random.Random) -> Sequence[int]:
    x = r.randint(4, 20)
    return x, r.randint(2, min(20, 2 * x - 2))


def _subtract_then_divide(r: random.Random) -> Sequence[int]:
    z, quotient, y = r.randint(2, 7), r.randint(2, 7), r.randint(2, 12)
    return z * quotient + y, y, z


def _then(first: Step, op: str, second: int) -> list[Step]:
    return [first, (calculate(*first), op, second)]


SKILLS: dict[str, Skill] = {
    "add": Skill(
        (
            "{A} has {x} {o}. {B} gives {A} {y} more {o}. How many {o} does {A} have now?",
            "There are {x} {o} in a box and {y} {o} on a table. How many {o} are there in all?",
            "{A} finds {x} {o} in the morning and {y} {o} in the evening. How many {o} does {A} find?",
        ),
        _drawn((2, 25), (2, 20)),
        lambda x, y: [(x, "+", y)],
    ),
    "subtract": Skill(
        (
            "{A} has {x} {o}. {A} gives {y} {o} to {B}. How many {o} does {A} have left?",
            "A shop has {x} {o} and sells {y} of them. How many {o} remain?",
            "There were {x} {o} on a table. {A} took {y} of them. How many {o} are still on the table?",
        ),
        _subtract,
        lambda x, y: [(x, "-", y)],
    ),
    "multiply": Skill(
        (
            "{A} has {x} {h} with {y} {o} in each. How many {o} does {A} have?",
            "There are {x} {h}. Each one holds {y} {o}. How many {o} are there?",
            "{A} buys {x} {o} for {y} coins each. How many coins does {A} pay?",
        ),
        _drawn((2, 9), (2, 9)),
        lambda x, y: [(x, "*", y)],
    ),
    "divide": Skill(
        (
            "{A} shares {x} {o} equally among {y} friends. How many {o} does each friend get?",
            "{A} puts {x} {o} into {y} {h}, the same number in each. How many {o} are in each?",
            "{y} children split {x} {o} evenly. How many {o} does each child get?",
        ),
        _divide,
        lambda x, y: [(x, "/", y)],
    ),
    "add_then_subtract": Skill(
        (
            "{A} has {x} {o}. {A} buys {y} more and then gives {z} to {B}. How many {o} does {A} have now?",
            "A shop has {x} {o}. It gets {y} more and sells {z}. How many {o} are in the shop?",
            "{A} picks {x} {o} and {B} picks {y} {o}. They lose {z} of them. How many {o} are left?",
        ),
        _add_then_subtract,
        lambda x, y, z: _then((x, "+", y), "-", z),
    ),
    "compare": Skill(
        (
            "{A} has {x} {o}. {B} has {y} more {o} than {A}. How many {o} do they have together?",
            "{A} made {x} {o} and {B} made {y} more than {A}. How many {o} did they make in all?",
            "There are {x} {o} in one box and {y} more than that in another. How many {o} are in both?",
        ),
        _drawn((3, 15), (2, 12)),
        lambda x, y: [(x, "+", y), (x + y, "+", x)],
    ),
    "multiply_then_add": Skill(
        (
            "{A} has {x} {h} of {y} {o} and {z} more {o}. How many {o} does {A} have?",
            "{A} fills {x} {h} with {y} {o} each. {z} {o} are left over. How many {o} were there?",
            "There are {x} {h} with {y} {o} each. {A} brings {z} more {o}. How many {o} are there now?",
        ),
        _drawn((2, 7), (2, 7), (2, 20)),
        lambda x, y, z: _then((x, "*", y), "+", z),
    ),
    "change": Skill(
        (
            "{A} buys {x} {o} for {y} coins each and pays with {z} coins. How many coins does {A} get back?",
            "One of the {o} costs {y} coins. {A} has {z} coins and buys {x}. How many coins are left?",
            "{A} has {z} coins and spends {y} coins on each of {x} {o}. How many coins does {A} keep?",
        ),
        _change,
        lambda x, y, z: [(x, "*", y), (z, "-", x * y)],
    ),
    "double": Skill(
        (
            "{A} has {x} {o}. {B} has twice as many. {B} loses {y}. How many {o} does {B} have now?",
            "{A} found {x} {o} on Monday and twice as many on Tuesday, but {y} of the {o} from Tuesday broke. "
            "How many {o} from Tuesday are good?",
            "{B} has {x} {o}. {A} has double that and gives away {y}. How many {o} does {A} keep?",
        ),
        _double,
        lambda x, y: _then((x, "*", 2), "-", y),
    ),
    "subtract_then_divide": Skill(
        (
            "{A} has {x} {o}, keeps {y} and shares the rest equally among {z} friends. "
            "How many {o} does each friend get?",
            "Of {x} {o}, {y} are broken. {A} packs the good ones into {z} {h} evenly. How many {o} are in each?",
            "{A} ate {y} of {x} {o}. Then {z} children split the others evenly. How many {o} did each child get?",
        ),
        _subtract_then_divide,
        lambda x, y, z: _then((x, "-", y), "/", z),
    ),
    "two_groups": Skill(
        (
            "{A} has {x} {h} of {y} {o} and {B} has {z} {h} of {w} {o}. How many {o} do they have in all?",
            "There are {x} {h} with {y} {o} each and {z} {h} with {w} {o} each. How many {o} are there?",
            "{A} packs {y} {o} in each of {x} {h}, then {w} {o} in each of {z} others. How many {o} are packed?",
        ),
        _drawn((2, 5), (2, 5), (2, 5), (2, 5)),
        lambda x, y, z, w: [(x, "*", y), (z, "*", w), (x * y, "+", z * w)],
    ),
    "daily": Skill(
        (
            "Every day {A} makes {x} {o} and {B} makes {y}. How many {o} do they make in {z} days?",
            "A bag holds {x} red {o} and {y} blue {o}. How many {o} are in {z} bags?",
            "{A} and {B} put {x} and {y} {o} into each of {z} {h}. How many {o} is that in all?",
        ),
        _drawn((2, 5), (2, 5), (2, 7)),
        lambda x, y, z: _then((x, "+", y), "*", z),
    ),
}


def calculate(a: int, op: str, b: int) -> int:
    """One step. Raises ValueError when a division is by zero or leaves a remainder."""
    if op == "/":
        if b == 0 or a % b:
            raise ValueError(f"{a} / {b} is not a whole number")
        return a // b
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def work_out(steps: list[Step]) -> tuple[str, int]:
    """The worked solution and its result: every step as an equation, then the marked answer."""
    lines = [f"{a} {op} {b} = {calculate(a, op, b)}." for a, op, b in steps]
    result = calculate(*steps[-1])
    return f"{' '.join(lines)} #### {result}", result


def write(rng: random.Random, skill: str) -> Problem:
    """A random problem of `skill`; "SKILL:1" means in its first wording only."""
    skill, _, wordings = skill.partition(":")
    kind = SKILLS[skill]
    numbers = dict(zip("xyzw", kind.draw(rng), strict=False))
    a, b = rng.sample(NAMES, 2)
    thing, holder = rng.choice(THINGS), rng.choice(HOLDERS)
    while holder == thing:  # some are both: no boxes of boxes
        holder = rng.choice(HOLDERS)
    template = rng.choice(kind.templates[: int(wordings or len(kind.templates))])
    question = template.format(A=a, B=b, o=thing, h=holder, **numbers)
    solution, answer = work_out(kind.steps(**numbers))
    return Problem(skill, question, solution, answer)


_SLOT = re.compile(r"(\{\w\})")
_SHAPES = {"{A}": "[A-Z][a-z]+", "{B}": "[A-Z][a-z]+", "{o}": "[a-z]+", "{h}": "[a-z]+"}


def _pattern(template: str) -> re.Pattern[str]:
    """What a template can have been filled to: a slot that comes again holds what it held before."""
    seen: set[str] = set()
    parts = []
    for part in _SLOT.split(template):
        if _SLOT.fullmatch(part):
            name = part[1]
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{_SHAPES.get(part, '[0-9]+')})")
            seen.add(name)
        else:
            parts.append(re.escape(part))
    return re.compile("".join(parts))


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    return [(skill, _pattern(template)) for skill, kind in SKILLS.items() for template in kind.templates]


def recognise(question: str) -> Problem | None:
    """The problem that `question` states, with its exact answer; None if it is none of ours or has no answer.

    Names and things may be any words; numbers any for which every step is a whole, non-negative number.
    """
    for skill, pattern in _patterns():
        match = pattern.fullmatch(question.strip())
        if match is None:
            continue
        groups = match.groupdict()
        if groups.get("A") is not None and groups.get("A") == groups.get("B"):
            return None
        numbers = {k: int(v) for k, v in groups.items() if k in "xyzw"}
        try:
            steps = SKILLS[skill].steps(**numbers)
            solution, answer = work_out(steps)
        except ValueError:
            return None
        if any(calculate(*step) < 0 for step in steps):
            return None
        return Problem(skill, question.strip(), solution, answer)
    return None
