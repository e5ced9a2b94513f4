"""Which examples the teacher is asked about: drawing seeds, choosing among them, sharing out the requests.

Pure functions over examples and their graded answers (rows of `common.evals.evaluate`).
"""

import collections
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.tasks.asked import asked
from common.tasks.base import Example, Task
from llm2llm.switches import Learning, Quota, Seeds, Targeting

Row = dict[str, Any]

MEMORISED = 5 / 6
"""Share of seeds answered correctly from which `--detect auto` asks students that have not seen them: the few
mistakes that are left would starve the loop."""


def draw_seeds(examples: Sequence[Example], seeds: Seeds, seed: int | str) -> list[Example]:
    """`seeds.count` different examples: at random, or as evenly as possible over the groups."""
    rng, count = random.Random(f"seeds {seed}"), seeds.count
    # By id, so that the draw does not depend on the order of rows in the file.
    pool = sorted(examples, key=lambda e: e.id)
    if seeds.sampler == "random":
        return rng.sample(pool, count)
    groups: dict[str, list[Example]] = {}
    for example in pool:
        groups.setdefault(example.group, []).append(example)
    for members in groups.values():
        rng.shuffle(members)
    # Which groups give one more, where they cannot all give as many, is drawn as well.
    names = sorted(groups)
    rng.shuffle(names)
    # The loop below would never end.
    if count > len(pool):
        raise ValueError(f"{count} examples wanted, {len(pool)} there")
    drawn: list[Example] = []
    while len(drawn) < count:
        for name in names:
            if groups[name] and len(drawn) < count:
                drawn.append(groups[name].pop())
    return drawn


def as_asked(task: Task, learning: Learning, seeds: Sequence[Example], seed: int) -> Task:
    """`task` as the student is asked: after the system text, and after some of `seeds`, evenly from groups."""
    few = learning.few_shot
    shots = draw_seeds(seeds, Seeds(len(seeds)), f"few-shot {seed}") if few else ()
    return asked(task, learning.system, shots, few)


def choose(
    targeting: Targeting,
    pool: Sequence[Example],
    graded: Sequence[Row],
    losses: Callable[[], Sequence[float]],
    right_shares: Callable[[], Sequence[float]],
) -> tuple[list[Example], str]:
    """The examples of `pool` to be shown to the teacher, and the rule that chose them.

    `graded`, `losses()` (mean loss of the right answer) and `right_shares()` (share of several sampled answers
    that are right) hold one entry for each example of `pool`. When wrong or mixed finds nothing, the least
    confident answers count, if the settings say so.
    """
    count = math.ceil(targeting.share * len(pool))
    rule = targeting.rule
    if rule == "all":
        return list(pool), rule
    if rule == "high-loss":
        return _highest(pool, losses(), count), rule
    if rule in ("wrong", "mixed"):
        wanted = [not row["correct"] for row in graded] if rule == "wrong" else [0 < x < 1 for x in right_shares()]
        chosen = [example for example, is_wanted in zip(pool, wanted, strict=True) if is_wanted]
        if chosen or targeting.when_none_wrong != "low-confidence":
            return chosen, rule
    # An answer without a likelihood is taken for the least confident.
    doubt = [math.inf if row["mean_logp"] is None else -row["mean_logp"] for row in graded]
    return _highest(pool, doubt, count), "low-confidence"


def _highest(pool: Sequence[Example], values: Sequence[float], count: int) -> list[Example]:
    """The `count` examples of highest value, in the order of the pool; of equal ones the first."""
    best = sorted(range(len(pool)), key=lambda i: (-values[i], i))[:count]
    return [pool[i] for i in sorted(best)]


def share_out(
    quota: Quota,
    chosen: Sequence[Example],
    data: Sequence[Example],
    seeds: Sequence[Example],
    seed_of: Mapping[str, str],
) -> list[Example]:
    """The slots of a round: each chosen example as often as new ones are wanted for it, within the caps.

    `data`: all examples so far; `seed_of`: the seed that each new example derives from. Where a cap applies, every
    example of the class loses its last slot first.
    """
    k = quota.per_example
    made_of_seed = collections.Counter(seed_of[e.id] for e in data if e.id in seed_of)
    made_of_class = collections.Counter(e.group for e in data if e.id in seed_of)
    unlimited = lambda most: math.inf if most is None else most
    most_of_seed, most_of_class = unlimited(quota.per_seed), unlimited(quota.per_class)
    room_of_class = {e.group: most_of_class - made_of_class[e.group] for e in chosen}
    if quota.balance:
        classes = collections.Counter(e.group for e in data)
        # What every class would hold after this round if all held the same.
        even = math.ceil((len(data) + k * len(chosen)) / len({e.group for e in seeds}))
        room_of_class = {name: min(room, even - classes[name]) for name, room in room_of_class.items()}
    asked_of_class: collections.Counter[str] = collections.Counter()
    taken = []
    for turn in range(k):
        for place, example in enumerate(chosen):
            root, name = seed_of.get(example.id, example.id), example.group
            if made_of_seed[root] < most_of_seed and asked_of_class[name] < room_of_class[name]:
                made_of_seed[root] += 1
                asked_of_class[name] += 1
                taken.append((place, turn))
    # Not in the order of turns: slots are numbered in the order of the chosen examples.
    return [chosen[place] for place, _ in sorted(taken)]


def deal_folds(seeds: Sequence[Example], folds: int, seed: int) -> list[list[Example]]:
    """The seeds split into `folds` parts of about the same size and the same mixture of groups."""
    # Shuffled, then sorted stably by group: dealt out in turns, every group is spread over all folds.
    order = random.Random(f"folds {seed}").sample(list(seeds), len(seeds))
    order.sort(key=lambda e: e.group)
    return [order[i::folds] for i in range(folds)]


def spread(seeds: Sequence[Example], count: int, name: str) -> list[Example]:
    """`count` slots over all seeds, in an order drawn from `name`; their numbers differ by one at most."""
    order = random.Random(name).sample(list(seeds), len(seeds))
    return [order[i % len(order)] for i in range(count)]


def flow(before: Sequence[Row] | None, now: Sequence[Row]) -> Row:
    """What became of the seeds since the last round: fixed, still wrong, regressed, still right."""
    if before is None:
        return {}
    pairs = collections.Counter((a["correct"], b["correct"]) for a, b in zip(before, now, strict=True))
    moves = {"fixed": (False, True), "still_wrong": (False, False), "regressed": (True, False)}
    return {name: pairs[move] for name, move in (moves | {"still_right": (True, True)}).items()}


def best_round(rounds: Sequence[Row]) -> int:
    """The round that is tested: the first with the best dev accuracy; without a dev split the last."""
    return max(range(len(rounds)), key=lambda i: (rounds[i].get("dev", i), -i))
