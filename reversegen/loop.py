"""The whole method, once a repeat.

explore        a proposer learns to make the target fail (see `reversegen.explore`)
label          its last failing queries get answers
independent    a second proposer, from other seeds and random numbers, does the same: what it finds is held out
arms           the target learns from the failures, and from every control's data (see `reversegen.targets`)
measure        all of them on the held-out failures, the ordinary test, and general queries where there are any
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from common.lm import LanguageModel
from common.stages import Lazy
from common.tasks.base import Example
from reversegen.applications.base import Application, Context, Data, Row
from reversegen.explore import Explorer, explore
from reversegen.targets import (
    Arms,
    as_examples,
    control_data,
    failures,
    held_out,
    measure_all,
    need_failures,
    train_target,
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


def run_repeat(
    ctx: Context,
    app: Application,
    proposer: LanguageModel,
    target: LanguageModel,
    others: Mapping[str, LanguageModel],
    data: Data,
) -> dict[str, Any]:
    """Everything of one repeat. Returns what `reversegen.summary` makes its figures of."""
    config, folder = ctx.config, f"repeat_{ctx.repeat}"
    drawn = draw_seeds(data.seeds, config.seed_instructions, ctx.seed)
    seeds, other_seeds = (
        [Example(**row) for row in ctx.run.once(f"{folder}/{name}/seeds.jsonl", lambda s=some: as_dicts(s))]
        for name, some in zip(("explore", "independent"), drawn, strict=True)
    )
    original = lambda: target
    taught = app.taught(ctx, f"{folder}/seed_answers", original, seeds)

    held_out_from = [*data.test, *data.general]
    first = Explorer(ctx, app, proposer, original, seeds, "explore", held_out_from)
    co_train = lambda number, valid: refreshed(first, target, taught, number, valid)
    found = explore(first, co_train if config.co_train else None)
    final = found["final"] + (found["valid"] if config.co_train else [])
    learned = failures(ctx, app, final, f"{first.folder}/final", config.max_failures)
    need_failures(learned, final, "the best proposer")

    independent = dataclasses.replace(ctx, seed=ctx.seed + INDEPENDENT)
    second = Explorer(independent, app, proposer, original, other_seeds, "independent", held_out_from)
    held = explore(second)
    test = failures(independent, app, held["final"], f"{second.folder}/final", None)
    need_failures(test, held["final"], "the independent proposer")

    arms = Arms.of(ctx, app, target, taught, len(learned.rows))
    controls = control_data(first, found["warm"], data, taught, learned)
    found["warm"].release()
    own = {"target-before": [], "target-after": as_examples(learned.rows)}
    own |= {name: as_examples(control.rows) for name, control in controls.items()}
    failed = [row for row in test.rows if row["outcome"] == "fail"]
    unseen = held_out(failed, [*taught, *(e for examples in own.values() for e in examples)], ctx)
    need_failures(dataclasses.replace(test, rows=failed[: len(unseen)]), held["final"], "what no arm has seen")
    sets = {"failures": unseen, "test": data.test} | ({"general": data.general} if data.general else {})
    models = {name: arms.model(name, own[name]) for name in config.arms}
    trained = {name: made for name, made in models.items() if made is not None}
    files = measure_all(ctx, app, {name: model for name, (model, _) in trained.items()}, sets)
    return {
        "rounds": found["rounds"] + held["rounds"],
        "proposer": f"{first.folder}/"
        + (f"round_{found['best'] - 1}" if found["best"] else "warm_up")
        + "/proposer",
        "files": files,
        "labelled": {"target-after": learned} | controls | {"held-out failures": test},
        "updates": {name: arms.updates if name != "target-before" else 0 for name in trained},
        "examples": {name: count for name, (_, count) in trained.items()},
        "transfer": transfer(first, others, found["final"]),
        "seeds_shared": len({e.question for e in seeds} & {e.question for e in other_seeds}),
    }


def refreshed(
    explorer: Explorer, target: LanguageModel, seeds: Sequence[Example], number: int, valid: Sequence[Row]
) -> Lazy | None:
    """Co-training: the target after all failures so far, beside as many seeds; None while none has a label."""
    ctx, folder = explorer.ctx, f"{explorer.folder}/round_{number}/co_train"
    learned = failures(ctx, explorer.app, valid, folder, None)
    if not learned.rows:
        return None
    arms = Arms.of(ctx, explorer.app, target, seeds, len(learned.rows))
    data = arms.data("target-after", as_examples(learned.rows))
    return train_target(ctx, explorer.app, target, data, folder, arms.updates)


def transfer(explorer: Explorer, others: Mapping[str, LanguageModel], judged: Sequence[Row]) -> list[Row]:
    """How often other targets fail on the valid queries of the last proposing, and on those the target failed."""
    ctx, table = explorer.ctx, []
    valid = [row for row in judged if row["outcome"] in ("fail", "pass")]
    for number, (name, model) in enumerate(others.items()):
        rows = explorer.app.verdicts(ctx, f"{explorer.folder}/transfer_{number}", valid, lambda m=model: m)
        for kind, chosen in (("valid", valid), ("failed", [row for row in valid if row["outcome"] == "fail"])):
            ids = {row["id"] for row in chosen}
            theirs = [v["outcome"] for row, v in zip(valid, rows, strict=True) if row["id"] in ids]
            counted = sum(outcome in ("fail", "pass") for outcome in theirs)
            table.append({"repeat": ctx.repeat, "put_to": name, "queries": kind, "n": counted})
            table[-1]["failure_rate"] = theirs.count("fail") / counted if counted else None
    return table


def as_dicts(examples: Sequence[Example]) -> list[Row]:
    return [dataclasses.asdict(example) for example in examples]
