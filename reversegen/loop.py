"""The whole method, once a repeat.

explore        a proposer learns to make the target fail (see `reversegen.explore`)
label          its last failing queries get answers
independent    a second proposer, from other seeds and random numbers, does the same: what it finds is held out
arms           the target learns from the failures, and from every control's data (see `reversegen.targets`)
measure        all of them on the held-out failures, the ordinary test, and general queries where there are any
"""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence

from common.lm import LanguageModel
from common.stages import Lazy
from common.tasks.base import Example
from reversegen.applications.base import Application, Context, Data, Row, failing, valid
from reversegen.explore import Explorer, explore
from reversegen.switches import Switches
from reversegen.targets import (
    Arms,
    Labelled,
    as_examples,
    control_data,
    failures,
    held_out,
    learnable,
    measure_all,
    need_failures,
)

INDEPENDENT = 100_000
"""Added to the seed of a repeat for its independent proposer."""


def draw_seeds(pool: Sequence[Example], count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Seeds of the proposer and of the independent one: disjoint where there are enough, else drawn apart."""
    rng = random.Random(f"seeds {seed}")
    order = rng.sample(list(pool), len(pool))
    if len(order) >= 2 * count:
        return order[:count], order[count : 2 * count]
    return order[:count], rng.sample(order, count)


@dataclasses.dataclass(frozen=True)
class Models:
    """The models that a run begins with. `others`: by name, targets that the final queries are put to as well."""

    proposer: LanguageModel
    target: LanguageModel
    others: Mapping[str, LanguageModel]


@dataclasses.dataclass(frozen=True)
class Repeat:
    """What `reversegen.summary` makes its figures of.

    `rounds`: figures of all rounds of both proposers; `proposer`: folder of the best one; `files`: by arm and set
    the graded answers; `labelled`: what was labelled, by what it is for; `updates` and `examples`: of each arm.
    """

    rounds: list[Row]
    proposer: str
    files: dict[str, dict[str, str]]
    labelled: dict[str, Labelled]
    updates: dict[str, int]
    examples: dict[str, int]
    transfer: list[Row]
    seeds_shared: int


def run_repeat(ctx: Context, app: Application, switches: Switches, models: Models, data: Data) -> Repeat:
    """Everything of one repeat. Raises UserError where no failing query with a label comes of it."""
    folder, target = f"repeat_{ctx.repeat}", models.target
    exploring, learning = switches.exploring, switches.learning
    drawn = draw_seeds(data.seeds, switches.seeds, ctx.seed)
    seeds, other_seeds = (
        [
            Example(**row)
            for row in ctx.run.once(f"{folder}/{name}/seeds.jsonl", lambda s=some: [*map(dataclasses.asdict, s)])
        ]
        for name, some in zip(("explore", "independent"), drawn, strict=True)
    )
    original = lambda: target
    taught, asked = app.taught(ctx, f"{folder}/seed_answers", original, seeds)

    asked_later = [*data.test, *data.general]
    first = Explorer(ctx, app, exploring, models.proposer, original, seeds, "explore", asked_later)
    arms = lambda size: Arms(ctx, app, learning, target, taught, size)
    short = lambda labelled: learnable(labelled, app, target, learning.train.max_length)
    co_train = lambda number, so_far: refreshed(first, arms, short, number, so_far)
    found = explore(first, co_train if switches.co_train else None)
    final = found.final + (found.valid if switches.co_train else [])
    learned = short(failures(ctx, app, final, f"{first.folder}/final", learning.failures))
    need_failures(learned, final, "the best proposer")

    # What the first proposer finds is what the target learns, so only another one's failures can test it.
    independent = dataclasses.replace(ctx, seed=ctx.seed + INDEPENDENT)
    second = Explorer(
        independent, app, exploring, models.proposer, original, other_seeds, "independent", asked_later
    )
    held = explore(second)
    test = failures(independent, app, held.final, f"{second.folder}/final", None)
    need_failures(test, held.final, "the independent proposer")

    # Every arm has the size of target-after: a larger one could win by its size.
    compared = arms(len(learned.rows))
    wanted = [arm for arm in switches.arms if arm not in ("target-before", "target-after")]
    controls = {
        name: short(control)
        for name, control in control_data(wanted, first, found.warm, data, taught, learned).items()
    }
    # Not before the controls are made, which ask the warm-up proposer for queries.
    found.warm.release()
    own = {"target-before": [], "target-after": as_examples(learned.rows)}
    own |= {name: as_examples(control.rows) for name, control in controls.items()}
    failed = failing(test.rows)
    # Near-duplicates of what any arm has learned would reward memory.
    unseen = held_out(failed, [*taught, *(e for some in own.values() for e in some)], exploring.jaccard)
    # Asked again: all that was found may be near what some arm has learned.
    need_failures(dataclasses.replace(test, rows=failed[: len(unseen)]), held.final, "what no arm has seen")
    sets = {"failures": unseen, "test": data.test} | ({"general": data.general} if data.general else {})
    made = {name: compared.model(name, own[name]) for name in switches.arms}
    trained = {name: model for name, model in made.items() if model is not None}
    files = measure_all(ctx, app, {name: model for name, (model, _) in trained.items()}, sets)
    return Repeat(
        rounds=found.rounds + held.rounds,
        proposer=found.proposer,
        files=files,
        # Where the seeds had no answers, all arms learn those that were asked for once, for seed-only.
        labelled={"target-after": learned}
        | controls
        | {"held-out failures": test}
        | labels_of_seeds(controls, asked),
        updates={name: compared.updates if name != "target-before" else 0 for name in trained},
        examples={name: count for name, (_, count) in trained.items()},
        transfer=transfer(first, models.others, found.final),
        seeds_shared=len({e.question for e in seeds} & {e.question for e in other_seeds}),
    )


def labels_of_seeds(controls: Mapping[str, Labelled], asked: Sequence[Row]) -> dict[str, Labelled]:
    """The labels that were `asked` for seeds: those of seed-only, without that arm of the seeds alone."""
    if not asked:
        return {}
    if (own := controls.get("seed-only")) is not None:
        return {"seed-only": own + Labelled([], list(asked))}
    return {"seeds": Labelled([row for row in asked if row["refused"] is None], list(asked))}


def refreshed(
    explorer: Explorer,
    arms: Callable[[int], Arms],
    short: Callable[[Labelled], Labelled],
    number: int,
    so_far: Sequence[Row],
) -> Lazy | None:
    """Co-training: the target that learned from the failures `so_far` and seeds mixed in; None while none of them
    has a label. `arms`: those of the repeat, by how many examples target-after has; `short`: what of labelled
    queries is not too long.
    """
    folder = f"{explorer.folder}/round_{number}/co_train"
    learned = short(failures(explorer.ctx, explorer.app, so_far, folder, None))
    if not learned.rows:
        return None
    now = arms(len(learned.rows))
    # Each time from the target as it came: what it has learned so far is in the data.
    return now.train(now.data("target-after", as_examples(learned.rows)), folder)


def transfer(explorer: Explorer, others: Mapping[str, LanguageModel], final: Sequence[Row]) -> list[Row]:
    """How often other targets fail on the valid queries of the last proposing, and on those the target failed."""
    ctx, table = explorer.ctx, []
    asked = valid(final)
    for number, (name, model) in enumerate(others.items()):
        # Numbered, as the name of a model may be a path.
        rows = explorer.app.verdicts(ctx, f"{explorer.folder}/transfer_{number}", asked, lambda m=model: m)
        for kind, ours in (("valid", ("fail", "pass")), ("failed", ("fail",))):
            judged = [theirs for row, theirs in zip(asked, rows, strict=True) if row["outcome"] in ours]
            failed, counted = len(failing(judged)), len(valid(judged))
            entry = {"repeat": ctx.repeat, "put_to": name, "queries": kind, "n": counted}
            table.append(entry | {"failure_rate": failed / counted if counted else None})
    return table
