"""What the target learns: labelled queries of every arm, its training, and its measures on held-out ground.

    target-before      the target as it came
    target-after       failing queries of the best proposer
    seed-only          the seeds
    warm-up            valid queries of the proposer before preference training, failing or not
    warm-up-failures   its failing queries, found among at most as many proposals as the whole exploration sampled
    few-shot           valid queries of the proposer as it came, shown seeds
    human-data         examples by people

All learn from as many examples as target-after where they have them, with as many seeds mixed in, for as many
updates.
"""

import collections
import dataclasses
import random
import shutil
from collections.abc import Mapping, Sequence

from common.errors import UserError
from common.lm import LanguageModel
from common.stages import Lazy, fine_tuned
from common.tasks.base import Example
from common.text.novelty import History
from common.text.same import apart
from common.train.data import Encoded
from reversegen.applications.base import Application, Context, Data, Model, Row, failing, valid
from reversegen.explore import Explorer
from reversegen.lengths import encoded, fits
from reversegen.propose import exploration_prompts
from reversegen.switches import Learning

TOO_LONG = "too long to be learned"


@dataclasses.dataclass(frozen=True)
class LabelCount:
    """What labelling came to. `refused`: by reason. `wrong`: labels that differ from the truth, before any were
    refused, among the `known` ones, for which a program has the truth."""

    asked: int
    accepted: int
    refused: Mapping[str, int]
    known: int
    wrong: int


@dataclasses.dataclass(frozen=True)
class Labelled:
    """`rows`: examples with labels. `asked`: every query that a label was asked for, with what came of it."""

    rows: list[Row]
    asked: list[Row] = dataclasses.field(default_factory=list)

    def __add__(self, more: "Labelled") -> "Labelled":
        return Labelled(self.rows + more.rows, self.asked + more.asked)

    @property
    def count(self) -> LabelCount:
        refused = collections.Counter(row["refused"] for row in self.asked if row["refused"])
        known = [row["label_correct"] for row in self.asked if row["label_correct"] is not None]
        counts = len(self.asked), len(self.rows), dict(sorted(refused.items()))
        return LabelCount(*counts, len(known), known.count(False))


def label(ctx: Context, app: Application, judged: Sequence[Row], folder: str) -> Labelled:
    """Answers to judged queries, stored as `labelled.jsonl`."""
    labels = app.labels(ctx, folder, judged)
    keep = ("id", "query", "group", "outcome")
    rows = [{name: row[name] for name in keep} | found for row, found in zip(judged, labels, strict=True)]
    ctx.run.once(f"{folder}/labelled.jsonl", lambda: rows)
    return Labelled([row for row in rows if row["refused"] is None], rows)


def failures(ctx: Context, app: Application, judged: Sequence[Row], folder: str, most: int | None) -> Labelled:
    """The failing queries with labels, at most `most`, and as many partners as the application wants."""
    # Cut before labels are bought, not after.
    return with_partners(ctx, app, label(ctx, app, failing(judged)[:most], folder), judged, folder)


def with_partners(ctx: Context, app: Application, found: Labelled, judged: Sequence[Row], folder: str) -> Labelled:
    partners = app.partners(judged)[: len(found.rows)]
    return found + label(ctx, app, partners, f"{folder}/partners") if partners else found


def learnable(found: Labelled, app: Application, target: LanguageModel, most: int) -> Labelled:
    """Without the examples of more than `most` tokens, or more than the target takes, which count as refused."""
    long = {example.id for example in as_examples(found.rows) if not fits(app, target, example, most)}
    return Labelled(
        [row for row in found.rows if row["id"] not in long],
        [row | {"refused": TOO_LONG} if row["id"] in long else row for row in found.asked],
    )


def as_examples(rows: Sequence[Row]) -> list[Example]:
    return [Example(row["id"], row["query"], row["answer"], row["label"], row["group"]) for row in rows]


@dataclasses.dataclass(frozen=True)
class Arms:
    """The arms of one repeat. `seeds` have answers; `size` is how many examples of its own target-after has."""

    ctx: Context
    app: Application
    settings: Learning
    target: LanguageModel
    seeds: Sequence[Example]
    size: int

    @property
    def mixed(self) -> int:
        """Seeds beside the examples of an arm's own."""
        return self.settings.mixed(self.size, len(self.seeds))

    @property
    def updates(self) -> int:
        """Of target-after, and so of every arm."""
        return self.settings.train.total_steps(self.size + self.mixed)

    def data(self, name: str, own: Sequence[Example]) -> list[Example]:
        """What an arm learns from: at most `size` of its own examples and the mixed-in seeds, in a drawn order;
        nothing without examples of its own."""
        # The same seed for all arms: they are mixed with the same seeds.
        rng = random.Random(f"arm {self.ctx.seed}")
        mixed = rng.sample(list(self.seeds), self.mixed)
        if name == "seed-only":
            # The seeds are its own examples: mixed in as well, they would stand there twice.
            own, mixed = list(self.seeds), []
        else:
            own = list(own)[: self.size]
        together = [*own, *mixed] if own else []
        rng.shuffle(together)
        return together

    def model(self, name: str, own: Sequence[Example]) -> tuple[Model, int] | None:
        """The trained target of an arm and the number of its examples; None where there is nothing to learn."""
        if name == "target-before":
            return lambda: self.target, 0
        ctx, folder = self.ctx, f"repeat_{self.ctx.repeat}/{name}"
        rows = ctx.run.once(f"{folder}/data.jsonl", lambda: [dataclasses.asdict(e) for e in self.data(name, own)])
        if not rows:
            return None
        data = [Example(**row) for row in rows]
        return self.train(data, folder), len(data)

    def train(self, data: Sequence[Example], folder: str) -> Lazy:
        """The target fine-tuned on `data` under the prompt it is judged with, stored in `folder`."""
        settings = dataclasses.replace(self.settings.train, seed=self.ctx.seed)

        def examples() -> list[Encoded]:
            return [encoded(self.target, self.app.messages(e.question), e.answer) for e in data]

        name, stage = f"{folder}/target", "train the target"
        return Lazy(lambda: fine_tuned(self.ctx.run, name, self.target, examples, settings, self.updates, stage))


def control_data(
    wanted: Sequence[str], explorer: Explorer, warm: Model, data: Data, seeds: Sequence[Example], learned: Labelled
) -> dict[str, Labelled]:
    """The labelled examples of every control that is `wanted`; `learned` are those of target-after."""
    ctx, app, final_prompts = explorer.ctx, explorer.app, explorer.settings.final_prompts
    size, failed = len(learned.rows), len(failing(learned.rows))
    found: dict[str, Labelled] = {}
    folder = f"repeat_{ctx.repeat}/controls"
    if {"warm-up", "warm-up-failures"} & {*wanted}:
        count = sum(entry["queries"] for entry in explorer.rounds)
        needed = {"valid": size} | ({"failed": failed} if "warm-up-failures" in wanted else {})
        rows = pool(explorer, warm, count, needed, f"{folder}/warm_up")
        if "warm-up" in wanted:
            found["warm-up"] = enough(ctx, app, valid(rows), f"{folder}/warm-up", size)
        if "warm-up-failures" in wanted:
            place = f"{folder}/warm-up-failures"
            own = enough(ctx, app, failing(rows), place, failed)
            found["warm-up-failures"] = with_partners(ctx, app, own, rows, place)
    if "few-shot" in wanted:
        rows = pool(explorer, lambda: explorer.base, 2 * final_prompts, {"valid": size}, f"{folder}/few_shot")
        found["few-shot"] = enough(ctx, app, valid(rows), f"{folder}/few-shot", size)
    if "seed-only" in wanted:
        found["seed-only"] = Labelled(as_rows(seeds))
    if "human-data" in wanted:
        # A file of people's data often holds the very seeds and test questions.
        rest = apart(data.human, [*explorer.seeds, *data.test, *data.general])
        random.Random(f"human {ctx.seed}").shuffle(rest)
        own, asked = app.taught(ctx, f"{folder}/human", explorer.target, rest[:size])
        found["human-data"] = Labelled(as_rows(own), asked)
    return found


def as_rows(examples: Sequence[Example]) -> list[Row]:
    return [
        {"id": e.id, "query": e.question, "group": e.group, "answer": e.answer, "label": e.label} for e in examples
    ]


SPARE = 1.5
"""Queries judged for a control, over those it is to learn from: some get no label."""


def pool(explorer: Explorer, proposer: Model, most: int, wanted: dict[str, int], folder: str) -> list[Row]:
    """Judged single proposals, against a history of their own: what a control may choose from.

    They are made `--final-prompts` at a time, at most `most`, until there are `wanted` of each kind with some to
    spare: {"valid": 100, "failed": 100}.
    """
    settings = explorer.settings
    explored, size = sum(settings.sizes), settings.final_prompts
    # The draw is one sequence: what comes after the exploration's prompts has not been used by it.
    prompts = exploration_prompts(explorer.seeds, settings.shots, explored + most, explorer.ctx.seed)[explored:]
    history, rows = explorer.new_history(), []
    for number, start in enumerate(range(0, most, size)):
        rows += explorer.judged(proposer, prompts[start : start + size], 1, f"{folder}/part_{number}", history)
        found = {"valid": len(valid(rows)), "failed": len(failing(rows))}
        if all(found[kind] >= SPARE * count for kind, count in wanted.items()):
            break
    return explorer.store(rows, [], folder)[0]


def enough(ctx: Context, app: Application, judged: Sequence[Row], folder: str, size: int) -> Labelled:
    """The first `size` of `judged` that get a label, asking for as few labels as that takes, in two turns."""
    first = label(ctx, app, judged[:size], f"{folder}/first")
    missing = size - len(first.rows)
    if missing <= 0 or len(judged) <= size:
        return first
    # The second turn asks for as many more as the first one's losses make likely to suffice.
    # At least a tenth, or a turn without any label would ask for all that is left.
    kept = max(0.1, len(first.rows) / max(1, len(first.asked)))
    found = first + label(ctx, app, judged[size : size + round(1.2 * missing / kept)], f"{folder}/second")
    return dataclasses.replace(found, rows=found.rows[:size])


def held_out(labelled: Sequence[Row], trained_on: Sequence[Example], jaccard: float) -> list[Example]:
    """Failing queries of the independent proposer that are near none of those any arm has learned from."""
    history = History(jaccard)
    history.add_new([e.question for e in trained_on], [e.id for e in trained_on])
    # These enter the history one by one, so that two like failures are not counted as two.
    repeats = history.add_new([row["query"] for row in labelled], [row["id"] for row in labelled])
    return as_examples([row for row, repeat in zip(labelled, repeats, strict=True) if repeat is None])


def measure_all(
    ctx: Context, app: Application, models: Mapping[str, Model], sets: Mapping[str, Sequence[Example]]
) -> dict[str, dict[str, str]]:
    """For each arm and set the file of its graded answers. Trained targets are deleted, but for target-after's."""
    files = {arm: {kind: f"repeat_{ctx.repeat}/{arm}/{kind}.jsonl" for kind in sets} for arm in models}
    for arm, model in models.items():
        for kind, examples in sets.items():
            app.measure(ctx, files[arm][kind], kind, model, examples)
        # A control is not needed once it is measured, and a checkpoint is large.
        if arm not in ("target-before", "target-after"):
            shutil.rmtree(ctx.run.path / f"repeat_{ctx.repeat}/{arm}/target", ignore_errors=True)
        if isinstance(model, Lazy):
            model.release()
    return files


def need_failures(found: Labelled, rows: Sequence[Row], what: str) -> None:
    """Raises UserError, saying what became of the queries, when there is no failing one with a label."""
    if failing(found.rows):
        return
    counts = collections.Counter(row["outcome"] or "dropped" for row in rows)
    told = ", ".join(f"{name} {counts[name]}" for name in ("dropped", "invalid", "pass", "fail"))
    unlabelled = f"; of {len(found.asked)} labels all were refused: {found.count.refused}" if found.asked else ""
    raise UserError(f"no failing query with a label came from {what} ({told}{unlabelled}): look at queries.jsonl")
