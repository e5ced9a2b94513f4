"""Sets that need no file: word problems with four worked solutions, and requests for stories.

    --choice arithmetic=embedded:arithmetic          --prompts-file embedded:stories

Problems are the test split of the embedded task with seed 0, apart from its training split. The embedded models
read problems drawn apart from both, and by chance a few that are the same. Heroes and qualities of the stories are
in no prompt that the demonstration of Active Inheritance learns from. Both sets are the same for every seed.
"""

import random
import re

from common.evals.choice import Question
from common.tasks.problems import Step, calculate, work_out
from common.tasks.prompts import Prompt, story_prompts

PROBLEMS = 240
"""Twenty of each of the twelve skills."""
STORIES = 80
LARGEST = 100
"""Wrong results stay below it where they can: right ones do, and size should not tell them apart."""


def problem_questions(limit: int | None = None) -> tuple[Question, ...]:
    """The first `limit` of 240 questions, from the test split of the embedded task with seed 0.

    Options are worked solutions, "3 + 4 = 7. #### 7", for so the embedded models answer, never with a bare number.
    Three are wrong: another operation in one of the steps, the last step left out, or a slip in its result. The
    right one is equally often in each place.
    """
    from common.tasks.arithmetic import Arithmetic

    problems = Arithmetic().load("test", None, 0)[:PROBLEMS]
    rng = random.Random("embedded arithmetic")
    places = [i % 4 for i in range(len(problems))]
    rng.shuffle(places)
    found = []
    for problem, place in zip(problems, places, strict=True):
        options = wrong_solutions(problem.answer, rng)
        options.insert(place, problem.answer)
        found.append(Question(problem.id, problem.question, tuple(options), place))
    return tuple(found[:limit])


def story_requests(limit: int | None = None) -> tuple[Prompt, ...]:
    """The first `limit` of the held-out prompts of the demonstration of Active Inheritance."""
    return tuple(story_prompts(STORIES)[1][:limit])


def wrong_solutions(solution: str, rng: random.Random, count: int = 3) -> list[str]:
    """Worked solutions with `count` different results that are not that of `solution`."""
    steps = [(int(a), op, int(b)) for a, op, b in re.findall(r"(\d+) ([-+*/]) (\d+) =", solution)]
    right = calculate(*steps[-1])
    methods = [_with(steps, place, op) for place in range(len(steps)) for op in "+-*/" if op != steps[place][1]]
    found: dict[int, str] = {}
    for method in [*methods, steps[:-1]]:
        results = [calculate(*step) for step in method or ()]
        if results and min(results) >= 1 and results[-1] != right:
            found.setdefault(results[-1], work_out(method)[0])
    by_size = [[r for r in found if (r < LARGEST) == small] for small in (True, False)]
    slips = [right + way for way in (-10, -2, -1, 1, 2, 10) if right + way >= 1 and right + way not in found]
    # Small results of other methods first, then slips, then whatever there is.
    ranked = [r for group in (by_size[0], slips, by_size[1]) for r in rng.sample(group, len(group))]
    last = f"= {right}. #### {right}"
    return [found.get(r) or solution.replace(last, f"= {r}. #### {r}") for r in ranked[:count]]


def _with(steps: list[Step], place: int, op: str) -> list[Step] | None:
    """The steps with another operation in one of them, carried on through those that use its result; None where a
    step would then leave a remainder or divide by zero."""
    changed, carried = [], {}
    for i, (a, own, b) in enumerate(steps):
        if a in carried:
            new = (carried.pop(a), own, b)
        elif b in carried:
            new = (a, own, carried.pop(b))
        else:
            new = (a, op if i == place else own, b)
        try:
            if calculate(*new) != calculate(a, own, b):
                carried[calculate(a, own, b)] = calculate(*new)
        except ValueError:
            return None
        changed.append(new)
    return changed
