"""The proposer writes: few-shot prompts that are never used twice, the warm-up, proposals, what is new in them."""

import dataclasses
import hashlib
import itertools
import json
import random
from collections.abc import Sequence

import numpy as np

from common.config import SampleConfig, TrainConfig
from common.errors import UserError
from common.generate import Request
from common.lm import LanguageModel
from common.results.rundir import RunDir
from common.sample.score import score_shared
from common.stages import Lazy, collect, fine_tuned
from common.tasks.base import Example
from common.text.nonsense import Gate
from common.text.novelty import History, Repeat
from common.train.data import Encoded
from reversegen.applications.base import Application, Context, Model, Read, Row
from reversegen.lengths import encoded

Shown = tuple[Example, ...]


def warm_up_prompts(seeds: Sequence[Example], shots: int, seed: int) -> list[tuple[Shown, Example]]:
    """Each seed once as what is to be written, after `shots` others drawn at random; no such group comes twice."""
    rng = random.Random(f"warm-up {seed}")
    used: set[frozenset[str]] = set()
    return [(_draw(rng, seeds, shots, used, without=i), last) for i, last in enumerate(seeds)]


def exploration_prompts(seeds: Sequence[Example], shots: int, count: int, seed: int) -> list[Shown]:
    """`count` groups of `shots` seeds, none twice and none of the warm-up's."""
    # Drawn again, not stored: they follow from the seed. The proposer has learned which seed comes after each.
    used = {frozenset(s.id for s in shown) for shown, _ in warm_up_prompts(seeds, shots, seed)}
    rng = random.Random(f"prompts {seed}")
    return [_draw(rng, seeds, shots, used) for _ in range(count)]


def _draw(
    rng: random.Random, pool: Sequence[Example], shots: int, used: set[frozenset[str]], without: int | None = None
) -> Shown:
    """A group that is not in `used` yet, without the seed at that place. Raises UserError when the seeds are too
    few for another."""
    last = len(pool) if without is None else without
    places = range(len(pool) - (without is not None))
    # A bound: with few seeds every group may be used up.
    for _ in range(1000):
        shown = tuple(pool[i + (i >= last)] for i in rng.sample(places, shots))
        # The same seeds in another order are the same group.
        key = frozenset(seed.id for seed in shown)
        if key not in used:
            used.add(key)
            return shown
    raise UserError(
        f"{len(pool)} seeds give too few different prompts of {shots}: give more seeds or fewer --prompts"
    )


def warm_up(
    ctx: Context,
    app: Application,
    base: LanguageModel,
    seeds: Sequence[Example],
    shots: int,
    training: TrainConfig,
    folder: str,
) -> Lazy:
    """The proposer after supervised training on few-shot prompts made of the seeds."""
    settings = dataclasses.replace(training, seed=ctx.seed)

    def examples() -> list[Encoded]:
        prompts = warm_up_prompts(seeds, shots, ctx.seed)
        return [encoded(base, app.prompt(shown), app.completion(last)) for shown, last in prompts]

    name, stage = f"{folder}/warm_up/proposer", "train the proposer"
    return Lazy(lambda: fine_tuned(ctx.run, name, base, examples, settings, stage=stage))


def propose(
    ctx: Context,
    app: Application,
    proposer: Model,
    prompts: Sequence[Shown],
    n: int,
    writing: SampleConfig,
    folder: str,
    keep_first: bool = True,
) -> list[Row]:
    """`n` queries a prompt with their provenance; `query` is None where the reply holds none.

    `keep_first`: of a reply that was cut off the first query counts, if it is whole, and `reply` is that alone."""
    asked = [Request(f"{folder}/{i}", app.prompt(shown), n) for i, shown in enumerate(prompts)]
    generator = lambda: proposer().generator()
    with ctx.run.timed("propose"):
        records = collect(ctx.run, f"{folder}/proposals.jsonl", generator, asked, writing, ctx.seed)
    rows = []
    for i, record in enumerate(records):
        shown, messages = prompts[i // n], json.dumps(asked[i // n].messages)
        reply = record.text
        if record.status == "length":
            # The end of a query is missing, which may hold what is asked; but the first of several may be whole.
            reply = (app.first(record.text or "") if keep_first else None) or record.text
            read = app.read(reply or "") if reply != record.text else Read(refused="cut off")
        elif record.status == "failed" or record.text is None:
            read = Read(refused="failed")
        else:
            read = app.read(record.text)
        rows.append(
            {
                "id": f"{folder}/{i // n}-{record.sample}",
                "round": folder.rpartition("/")[2].removeprefix("round_"),
                "prompt": i // n,
                "sample": record.sample,
                "prompt_hash": hashlib.sha256(messages.encode()).hexdigest()[:16],
                "shown": [seed.id for seed in shown],
                "group": shown[0].group,
                "reply": reply,
                "query": None if read.refused else read.query,
                "malformed": read.refused,
                "mean_logp": record.mean_logp,
            }
        )
    return rows


@dataclasses.dataclass(frozen=True)
class Fluency:
    """The likelihood guard: queries must be about as likely under the warm-up proposer as its own were.

    A proposer that is only paid for failures may drift to text that nobody would write. `floor` is the mean of the
    warm-up proposer's mean log-probability a token less some standard deviations.
    """

    proposer: Model
    floor: float

    @classmethod
    def of(cls, proposer: Model, rows: Sequence[Row], deviations: float) -> "Fluency | None":
        """From the warm-up proposer's own proposals; None when the guard is off or nothing was written."""
        values = [row["mean_logp"] for row in rows if row["query"] is not None]
        if not deviations or len(values) < 2:
            return None
        # Rounded like the likelihoods that it is compared with.
        return cls(proposer, round(float(np.mean(values) - deviations * np.std(values, ddof=1)), 5))

    def likelihoods(
        self, run: RunDir, name: str, app: Application, rows: Sequence[Row], prompts: Sequence[Shown]
    ) -> list[float]:
        """Mean log-probability a token of each row's reply under the warm-up proposer."""

        def compute() -> list[Row]:
            model = self.proposer()
            texts = [encoded(model, app.prompt(prompts[row["prompt"]]), row["reply"]) for row in rows]
            # A prompt has several queries, and is read once for them.
            groups: dict[tuple[int, ...], list[int]] = {}
            for place, text in enumerate(texts):
                groups.setdefault(text.tokens[: text.prompt_length], []).append(place)
            asked = [
                (prompt, [texts[i].tokens[len(prompt) :] for i in places]) for prompt, places in groups.items()
            ]
            found = itertools.chain.from_iterable(score_shared(model.params, model.config, asked))
            means = dict(zip(itertools.chain.from_iterable(groups.values()), found, strict=True))
            return [
                {"id": row["id"], "mean_logp": round(float(means[place].mean()), 5)}
                for place, row in enumerate(rows)
            ]

        return [row["mean_logp"] for row in run.once(name, compute)]


def sift(
    ctx: Context,
    app: Application,
    rows: Sequence[Row],
    prompts: Sequence[Shown],
    history: History,
    held_out: History,
    fluency: Fluency | None,
    folder: str,
    gate: Gate | None = None,
) -> list[Row]:
    """The rows with why each was `dropped`, None for queries that are new against the history, not near what is
    held out for the test, no nonsense by `gate`, and likely enough. Whatever is well formed and new enters the
    history."""
    malformed = {row["id"]: f"malformed: {row['malformed']}" for row in rows if row["malformed"]}
    told: dict[str, Row] = {row["id"]: {"dropped": malformed.get(row["id"])} for row in rows}

    def new(asked: Sequence[Row], repeats: Sequence[Repeat | None], reason: str | None = None) -> list[Row]:
        """Those of `asked` that repeat nothing; for the others it is noted why they are dropped."""
        for row, repeat in zip(asked, repeats, strict=True):
            if repeat is not None:
                near = {"nearest": repeat.name, "similarity": round(repeat.score, 4)}
                told[row["id"]] = {"dropped": reason or repeat.reason} | near
        return [row for row, repeat in zip(asked, repeats, strict=True) if repeat is None]

    formed = [row for row in rows if row["query"] is not None]
    with ctx.run.timed("deduplicate"):
        repeats = history.add_new([row["query"] for row in formed], [row["id"] for row in formed])
    kept = new(formed, repeats)
    # After the history, which is to know these queries too: written again, they would not be new either.
    kept = new(kept, held_out.repeats([row["query"] for row in kept]), "near a test question")
    if gate is not None and kept:
        with ctx.run.timed("likelihood guard"):
            look = lambda: [{"why": why} for why in gate.reasons([row["query"] for row in kept])]
            found = ctx.run.once(f"{folder}/nonsense.jsonl", look)
        told |= {row["id"]: {"dropped": told_why["why"]} for row, told_why in zip(kept, found, strict=True)}
        kept = [row for row in kept if told[row["id"]]["dropped"] is None]
    # Last, so that the warm-up proposer reads only what is left.
    if fluency is not None and kept:
        with ctx.run.timed("likelihood guard"):
            values = fluency.likelihoods(ctx.run, f"{folder}/likelihood.jsonl", app, kept, prompts)
        for row, value in zip(kept, values, strict=True):
            unlikely = "unlikely text" if value < fluency.floor else None
            told[row["id"]] |= {"dropped": unlikely, "warm_up_logp": value}
    return [row | told[row["id"]] for row in rows]


def fresh(prompts: Sequence[Shown], sizes: Sequence[int]) -> list[list[Shown]]:
    """Consecutive slices of `prompts`."""
    left = iter(prompts)
    return [list(itertools.islice(left, size)) for size in sizes]
