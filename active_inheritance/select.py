"""Which of a prompt's answers is learned from: objectives, constraints, several at once, ties, controls.

    rows = [{"prompt": "A bird?", "answers": [{"text": "A crow.", "likes": 3}, {"text": "An owl.", "likes": 5}]}]
    select(rows, "likes:max")                          # [[{"text": "An owl.", "likes": 5}]]

    rule = Rule.parse(("mtld:max",), ("words>=50",))
    choice = choose(rule, "prompt-7", candidates)      # choice.selected, .first, .random, .reason, .margin

A choice is a ranking of the usable answers, best first, whose first is taken (or drawn from, with a temperature).
It depends on the scores, the seed and the prompt's id only, never on the order of the candidates. Plain Python: a
prompt has a dozen answers, and there may be a million of them.
"""

import collections
import dataclasses
import hashlib
import math
import random
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from common.errors import UserError, meant, quoted

ARMS = ("first", "random", "matched", "selected")
"""first: the first answer of the first source. random: a uniform draw of the usable answers. matched: of the other
usable answers the one whose number of words is nearest to the selected one's, so that length explains nothing."""


FAR = 2.0
"""Standard deviations below the mean where the rule "far" looks for the rejected answer (arXiv 2502.16825)."""
AUGMENT = 1e-6
"""Weight of the sum beside the largest of the shortfalls, so small that it decides between equal ones only."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """A score to be raised, lowered, or brought near `target`."""

    name: str
    direction: Literal["max", "min", "target"]
    target: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """ "mtld:max", "column:toxicity:min", "words:target=100". Raises UserError for anything else."""
        # From the right: the name of a score may hold colons, as in column:likes:max.
        name, _, how = text.rpartition(":")
        direction, _, value = how.partition("=")
        if not name or direction not in ("max", "min", "target") or bool(value) != (direction == "target"):
            like = meant(direction, ("max", "min", "target"))
            raise UserError(f"--objective {quoted(text)}: give SCORE:max, SCORE:min or SCORE:target=NUMBER{like}")
        return cls(name, direction, _number(value, f"--objective {text!r}") if value else 0.0)

    def gain(self, value: float | None) -> float:
        """What is the higher the better; NaN for no score."""
        if value is None:
            return math.nan
        if self.direction == "target":
            return -abs(value - self.target)
        return value if self.direction == "max" else -value

    def __str__(self) -> str:
        return f"{self.name}:{self.direction}" + (f"={self.target:g}" if self.direction == "target" else "")


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A floor (">=") or a ceiling ("<=") of a score."""

    name: str
    sign: Literal[">=", "<="]
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """ "words>=50". Raises UserError for anything else."""
        match = re.fullmatch(r"\s*([^<>=]+?)\s*(>=|<=)\s*([^<>=]+?)\s*", text)
        if match is None:
            raise UserError(f"--constraint {text!r}: give SCORE>=NUMBER or SCORE<=NUMBER")
        sign = ">=" if match[2] == ">=" else "<="
        return cls(match[1], sign, _number(match[3], f"--constraint {text!r}"))

    def violation(self, value: float | None) -> float:
        """0 where it is met, else how far off in units of the limit (of 1 for the limit 0); infinite for no
        score."""
        if value is None:
            return math.inf
        off = self.limit - value if self.sign == ">=" else value - self.limit
        return max(0.0, off) / (abs(self.limit) or 1.0)

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.limit:g}"


def _number(text: Any, where: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {text!r} is no number")
    return value


@dataclasses.dataclass(frozen=True)
class Rule:
    """How to choose.

    `combine`, for several objectives: "sum" of normalised gains times `weights`; "product" of gains scaled to
    0..1, to the power of their weights; "lexicographic", where answers within `tolerance` (a share of the prompt's
    range) count as equal in an objective and the next decides; "pareto": the front of answers that no other beats
    in everything, of which `pick` takes the one nearest to the best of all (Chebyshev distance, weighted) or the
    knee. `normalise` by the standard deviation ("z"), "rank" or "minmax", within the feasible answers of the
    prompt.

    `fallback`, where no answer meets the constraints: "baseline" takes the random control's answer, "violation"
    the one that violates them least, "drop" leaves the prompt out of every arm. `temperature` above 0 draws
    instead of taking the best, with odds exp(normalised sum / temperature). `top`: how many answers of a prompt
    are taken, in every arm.

    `rejected`: which answer a preference pair sets against the first that is taken, of the feasible ones that rank
    behind it: "far" the one nearest to two standard deviations below the mean of the feasible ones, "worst" the
    last, "random" a uniform draw."""

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    combine: Literal["sum", "product", "lexicographic", "pareto"] = "sum"
    weights: tuple[float, ...] = ()
    normalise: Literal["z", "rank", "minmax"] = "z"
    tolerance: float = 0.1
    pick: Literal["chebyshev", "knee"] = "chebyshev"
    fallback: Literal["baseline", "violation", "drop"] = "baseline"
    temperature: float = 0.0
    top: int = 1
    rejected: Literal["far", "worst", "random"] = "far"
    seed: int = 0

    @classmethod
    def parse(cls, objectives: Sequence[str], constraints: Sequence[str] = (), **how: Any) -> "Rule":
        """From words such as ("mtld:max",) and ("words>=50",); `how`: any other field. Raises UserError."""
        return cls(tuple(map(Objective.parse, objectives)), tuple(map(Constraint.parse, constraints)), **how)

    @property
    def names(self) -> tuple[str, ...]:
        """The scores that it looks at."""
        return tuple(dict.fromkeys(part.name for part in (*self.objectives, *self.constraints)))

    def weight(self, i: int) -> float:
        return self.weights[i] if self.weights else 1.0

    def __str__(self) -> str:
        under = f" under {', '.join(map(str, self.constraints))}" if self.constraints else ""
        return ", ".join(map(str, self.objectives)) + under


def mark(text: str) -> str:
    """What stands for a text in a choice: a hash, so that texts need not stay in memory."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What a choice looks at. `mark` stands for the text (see `mark`); `scores` hold "words"."""

    source: str
    index: int
    mark: str
    scores: Mapping[str, float | None]
    usable: bool = True
    """False where a guard dropped it."""
    original: bool = True
    """Whether it may be the first control: False where it is unusable for more than being a duplicate."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Places among the candidates. `order`: all usable ones, best first, the `feasible` ones before the others."""

    order: tuple[int, ...]
    feasible: int
    selected: tuple[int, ...]
    first: tuple[int, ...]
    random: tuple[int, ...]
    matched: tuple[int, ...]
    reason: str
    margin: float | None
    """By how much the best answer's utility exceeds the next one's: in the score's own unit for one objective."""
    front: tuple[int, ...] = ()
    """The Pareto front, where there is one."""
    rejected: int | None = None
    """The answer that a preference pair sets against the first selected one; None where none is worse."""

    def arm(self, name: str) -> tuple[int, ...]:
        return getattr(self, name)


def select(
    rows: Iterable[Mapping[str, Any]],
    objective: str | Sequence[str],
    constraint: str | Sequence[str] = (),
    **how: Any,
) -> list[list[Mapping[str, Any]]]:
    """For every row those of its answers that are taken, the best first: plain data in, the same objects out.

    A row has a "prompt" (its "id", where there is one, seeds the draws) and "answers": mappings with a "text", a
    score under each name that the rule looks at (None: no score, it never wins), and where known a "source".
    "words" are counted where they are not given. `how`: fields of `Rule`, such as top=2 or fallback="drop". Blank
    answers are not taken; a row without another one, or dropped by the fallback, has none.

    Raises UserError for a rule or a score that cannot be read, and for a score that no answer has.
    """
    several = lambda words: [words] if isinstance(words, str) else words
    rule = Rule.parse(several(objective), several(constraint), **how)
    chosen, found = [], {"words"}
    for number, row in enumerate(rows):
        counts: collections.Counter[str] = collections.Counter()
        candidates = []
        for answer in row["answers"]:
            if not isinstance(answer, Mapping) or "text" not in answer:
                raise UserError(f"row {number}: an answer is no mapping with a text: {quoted(str(answer))}")
            text, source = str(answer["text"]), str(answer.get("source", ""))
            scores: dict[str, float | None] = {"words": float(len(text.split()))}
            scores |= {
                name: None if answer[name] is None else _number(answer[name], f"row {number}, score {name!r}")
                for name in (*rule.names, "words")
                if name in answer
            }
            found |= scores.keys()
            candidates.append(Candidate(source, counts[source], mark(text), scores, usable=bool(text.strip())))
            counts[source] += 1
        choice = choose(rule, str(row.get("id", row["prompt"])), candidates)
        chosen.append([row["answers"][i] for i in choice.selected] if choice else [])
    if missing := [name for name in rule.names if name not in found]:
        raise UserError(f"no answer has a score {', '.join(missing)}: give it beside the text of every answer")
    return chosen


def choose(rule: Rule, prompt_id: str, candidates: Sequence[Candidate]) -> Choice | None:
    """The choice for a prompt; None where no candidate is usable."""
    names = lambda i: (candidates[i].source, candidates[i].mark, candidates[i].index)
    # Sums are made in this order, so that rounding does not depend on the order of the candidates either.
    usable = sorted((i for i, c in enumerate(candidates) if c.usable), key=names)
    if not usable:
        return None
    # Ties go to the middle length, so that they favour neither short answers nor long ones.
    middle = statistics.median(candidates[i].scores["words"] or 0.0 for i in usable)
    tie = {i: (abs((candidates[i].scores["words"] or 0.0) - middle), place) for place, i in enumerate(usable)}
    gains = {i: [o.gain(candidates[i].scores.get(o.name)) for o in rule.objectives] for i in usable}
    broken = {
        i: math.fsum(c.violation(candidates[i].scores.get(c.name)) for c in rule.constraints)
        # An answer that lacks one of the scores can never win.
        if all(map(math.isfinite, gains[i]))
        else math.inf
        for i in usable
    }
    feasible = [i for i in usable if broken[i] == 0]
    ranked, utility, front = _ranked(rule, feasible, gains, tie)
    ranked += sorted((i for i in usable if broken[i] > 0), key=lambda i: (broken[i], tie[i]))
    m = min(rule.top, len(usable))
    # Seeded by the prompt, so that the draw is the same in whatever part or process the prompt comes.
    drawn = tuple(random.Random(f"random {rule.seed} {prompt_id}").sample(usable, m))
    selected, reason = _taken(rule, prompt_id, ranked, len(feasible), drawn, utility, broken)
    if rule.fallback == "drop":
        # What the selected arm drops, all arms drop: they learn from the same prompts.
        m = len(selected)
    margin = utility[ranked[0]] - utility[ranked[1]] if len(feasible) > 1 else None
    # A duplicate's twin may stand later: its text is the first answer all the same.
    originals = [i for i, c in enumerate(candidates) if c.usable or (c.original and m == 1)]
    return Choice(
        order=tuple(ranked),
        feasible=len(feasible),
        selected=selected,
        first=tuple(originals[:m]),
        random=drawn[:m],
        matched=_matched(candidates, usable, selected, tie),
        reason=reason,
        margin=margin if margin is None or math.isfinite(margin) else None,
        front=tuple(front),
        rejected=_rejected(rule, prompt_id, ranked[: len(feasible)], selected, gains),
    )


def _taken(
    rule: Rule,
    prompt_id: str,
    ranked: Sequence[int],
    feasible: int,
    drawn: tuple[int, ...],
    utility: Mapping[int, float],
    broken: Mapping[int, float],
) -> tuple[tuple[int, ...], str]:
    """The answers taken, and why in a word or two. Where fewer are feasible than are wanted, the fallback fills
    up."""
    m = len(drawn)
    best = list(ranked[:feasible])
    reason = "only feasible answer" if feasible == 1 else "best"
    if feasible > 1 and utility[best[0]] == utility[best[1]]:
        reason = "tie, nearest to the median length"
    if rule.temperature and feasible > 1:
        rng = random.Random(f"soft {rule.seed} {prompt_id}")
        # One score has a unit of its own: z scores give a temperature the same meaning whatever it is.
        standard = [utility[i] for i in best]
        if len(rule.objectives) == 1:
            standard = _scale(standard, "z")
        # The highest of utility / T + Gumbel noise is a draw from softmax(utility / T), the m highest are m draws
        # without replacement (Gumbel's trick; Kool, van Hoof and Welling 2019).
        noisy = {
            # random() may give 0, which has no logarithm.
            i: value / rule.temperature - math.log(-math.log(rng.random() or 0.5))
            for i, value in zip(best, standard, strict=True)
        }
        best.sort(key=lambda i: -noisy[i])
        reason = "drawn"
    if feasible >= m:
        return tuple(best[:m]), reason
    if rule.fallback == "violation":
        filled = [i for i in ranked[feasible:] if math.isfinite(broken[i])]
        best += filled
        reason = reason if feasible else "least violation" if filled else "no score, baseline"
    elif rule.fallback == "drop":
        return tuple(best), reason if feasible else "dropped"
    else:
        reason = reason if feasible else "infeasible, baseline"
    best += [i for i in drawn if i not in best]  # as many distinct answers as were drawn
    return tuple(best[:m]), reason


def _rejected(
    rule: Rule, prompt_id: str, ranked: Sequence[int], selected: Sequence[int], gains: Mapping[int, list[float]]
) -> int | None:
    """See `Rule.rejected`. `ranked`: the feasible candidates, best first: those that break a constraint differ
    from the selected one by more than the objectives, and where that breaks one itself nothing is preferred."""
    if not selected or selected[0] not in ranked:
        return None
    behind = ranked[ranked.index(selected[0]) + 1 :]
    rest = [i for i in behind if i not in selected and gains[i] != gains[selected[0]]]
    if not rest:
        return None
    if rule.rejected == "random":
        return random.Random(f"rejected {rule.seed} {prompt_id}").choice(rest)
    if rule.rejected == "worst":
        return rest[-1]
    # Several objectives are summed as z scores, whatever they are combined by: ranks have no distances.
    columns = [_scale([gains[i][j] for i in ranked], "z") for j in range(len(rule.objectives))]
    sums = [math.fsum(rule.weight(j) * z for j, z in enumerate(own)) for own in zip(*columns, strict=True)]
    height = dict(zip(ranked, _scale(sums, "z"), strict=True))
    # Of equally near ones the one that ranks last.
    return min(reversed(rest), key=lambda i: abs(height[i] + FAR))


def _matched(
    candidates: Sequence[Candidate], usable: Sequence[int], selected: Sequence[int], tie: Mapping[int, tuple]
) -> tuple[int, ...]:
    words = lambda i: candidates[i].scores["words"] or 0.0
    matched: list[int] = []
    for chosen in selected:
        others = [i for i in usable if i not in selected and i not in matched]
        matched.append(min(others, key=lambda i: (abs(words(i) - words(chosen)), tie[i]), default=chosen))
    return tuple(matched)


# --- rankings ---------------------------------------------------------------------------------------------------


def _ranked(
    rule: Rule, feasible: Sequence[int], gains: Mapping[int, list[float]], tie: Mapping[int, tuple]
) -> tuple[list[int], dict[int, float], list[int]]:
    """The feasible candidates best first, the utility of each, and the Pareto front where the rule makes one."""
    count = len(rule.objectives)
    utility: dict[int, float]
    columns = [[gains[i][j] for i in feasible] for j in range(count)]
    front: list[int] = []
    if count == 1:
        utility = dict(zip(feasible, columns[0], strict=True))
        key = lambda i: (-utility[i], tie[i])
    elif rule.combine == "pareto":
        place, utility = _pareto(rule, feasible, gains)
        front = [i for i in feasible if place[i] == 0]
        key = lambda i: (place[i], -utility[i], tie[i])
    elif rule.combine == "lexicographic":
        steps = {i: [] for i in feasible}
        for column in columns:
            width = rule.tolerance * (max(column) - min(column)) if column else 0.0
            for i, gain in zip(feasible, column, strict=True):
                steps[i].append(math.floor((max(column) - gain) / width) if width > 0 else max(column) - gain)
        utility = {i: gains[i][0] for i in feasible}
        key = lambda i: (steps[i], [-gain for gain in gains[i]], tie[i])
    else:
        # A product needs factors of one sign: gains from 0 to 1.
        scaled = [_scale(column, "minmax" if rule.combine == "product" else rule.normalise) for column in columns]
        if rule.combine == "product":
            utility = {
                i: math.prod(s[n] ** rule.weight(j) for j, s in enumerate(scaled)) for n, i in enumerate(feasible)
            }
        else:
            utility = {
                i: math.fsum(rule.weight(j) * s[n] for j, s in enumerate(scaled)) for n, i in enumerate(feasible)
            }
        key = lambda i: (-utility[i], tie[i])
    return sorted(feasible, key=key), utility, front


def _scale(values: Sequence[float], how: str) -> list[float]:
    """z scores, ranks from 0 to 1 (equal values share theirs), or values from 0 to 1; zeros where all are
    equal."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low == high:
        return [0.0] * len(values)
    if how == "z":
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
        return [(v - mean) / deviation for v in values]
    if how == "minmax":
        return [(v - low) / (high - low) for v in values]
    below = {v: sum(w < v for w in values) + (values.count(v) - 1) / 2 for v in set(values)}
    return [below[v] / (len(values) - 1) for v in values]


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether gains `a` are nowhere below `b` and somewhere above."""
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


def _pareto(
    rule: Rule, feasible: Sequence[int], gains: Mapping[int, list[float]]
) -> tuple[dict[int, int], dict[int, float]]:
    """The front each candidate is on (0: beaten by none; 1: by none but those; …) and how good a pick of it it is.

    Both picks scale the gains of a front to 0..1. Chebyshev: minus the largest weighted shortfall from the best
    values of the front, which need not be reached by one answer, and of equal ones the least in sum (the augmented
    form, Steuer and Choo 1983, Mathematical Programming 26:326-344). Knee: the height over the plane through the
    best in each objective, by which it is the sum of the scaled gains (Das 1999, Structural Optimization
    18:107-115).
    """
    place: dict[int, int] = {}
    utility: dict[int, float] = {}
    rest = list(feasible)
    for number in range(len(feasible)):
        front = [i for i in rest if not any(dominates(gains[j], gains[i]) for j in rest)]
        scaled = [_scale([gains[i][j] for i in front], "minmax") for j in range(len(rule.objectives))]
        # Where the whole front is equal in an objective, nobody falls short in it.
        flat = [len(set(column)) == 1 for column in scaled]
        for n, i in enumerate(front):
            place[i] = number
            if rule.pick == "knee":
                utility[i] = math.fsum(column[n] for column in scaled)
            else:
                short = [rule.weight(j) * (0.0 if flat[j] else 1 - s[n]) for j, s in enumerate(scaled)]
                utility[i] = -max(short) - AUGMENT * math.fsum(short)
        rest = [i for i in rest if i not in place]
        if not rest:
            break
    return place, utility
