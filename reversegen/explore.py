"""Exploration: rounds in which a proposer learns to write what the target fails on.

warm up the proposer on few-shot prompts made of seeds
for each round:  propose on fresh prompts -> what is new -> the frozen target answers -> verdicts
                 -> pairs -> DPO against the proposer as it was at the start of the round
judge the last proposer too; the one with most valid, new failures counts
propose once more with it, one query a prompt
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Sequence

import numpy as np

from common import progress
from common.lm import LanguageModel
from common.model.decoder import Params
from common.stages import Lazy, trained
from common.tasks.base import Example
from common.text.diversity import self_bleu
from common.text.nonsense import Gate
from common.text.novelty import History
from common.train.loop import Log
from common.train.preference import Preference, prefer, reference_logps
from reversegen.applications.base import Application, Context, Model, Row, valid
from reversegen.pairs import ENDS, pair_up
from reversegen.propose import Fluency, Shown, exploration_prompts, fresh, propose, sift, warm_up
from reversegen.switches import Exploring

BLEU_SAMPLE = 100
"""Queries of a round that self-BLEU, which grows with their number, is taken over; of fewer there is none."""
FEWEST_NEW = 0.5
"""Share of well-formed queries below which so few are new that the alarm is raised."""


@dataclasses.dataclass
class Explorer:
    """One proposer on its way, in the folder `name` of the repeat. `base` is the proposer as it came, `target` the
    model that is to fail. Queries near one of `test` (test and general questions) are dropped, as an arm may learn
    from them."""

    ctx: Context
    app: Application
    settings: Exploring
    base: LanguageModel
    target: Model
    seeds: Sequence[Example]
    name: str
    test: Sequence[Example]

    def __post_init__(self):
        self.held_out = History(self.settings.jaccard)
        self.held_out.add_new([example.question for example in self.test], [example.id for example in self.test])
        self.folder = f"repeat_{self.ctx.repeat}/{self.name}"
        self.history = self.new_history()
        self.fluency: Fluency | None = None
        self.gate: Gate | None = None
        if self.settings.likelihood_guard and self.settings.guarded_by == "seeds":
            texts = [seed.question for seed in self.seeds]
            self.gate = Gate.of(texts, self.base.text_logps, self.settings.likelihood_guard)
        self.rounds: list[Row] = []
        self.begun = False

    def new_history(self) -> History:
        """Empty, but for the seeds: to write one of them again is no discovery."""
        texts = [seed.question for seed in self.seeds]
        jaccard, cosine = self.settings.jaccard, self.settings.semantic
        embed = self.base.embed if cosine < 1 else None
        history = History(jaccard, cosine, embed, texts if embed else ())
        history.add_new(texts, [seed.id for seed in self.seeds])
        return history

    def judged(
        self,
        proposer: Model,
        prompts: Sequence[Shown],
        n: int,
        folder: str,
        history: History,
        target: Model | None = None,
    ) -> list[Row]:
        """Proposals with their verdicts. Rows that were dropped have no outcome."""
        ctx, app = self.ctx, self.app
        rows = propose(ctx, app, proposer, prompts, n, self.settings.writing, folder, self.settings.keep_first)
        if not self.begun and self.gate is None:
            # The first to propose is the warm-up proposer, whose own queries say what is likely text.
            self.begun = True
            self.fluency = Fluency.of(proposer, rows, self.settings.likelihood_guard)
        rows = sift(ctx, app, rows, prompts, history, self.held_out, self.fluency, folder, self.gate)
        # Only what is new and likely costs answers of the target.
        asked = [row for row in rows if row["dropped"] is None]
        verdicts = app.verdicts(ctx, folder, asked, target or self.target)
        found = {row["id"]: verdict for row, verdict in zip(asked, verdicts, strict=True)}
        return [row | {"outcome": None} | found.get(row["id"], {}) for row in rows]

    def proposer_folder(self, number: int) -> str:
        """Where the proposer that wrote round `number` lies: it was trained in the round before."""
        return f"{self.folder}/" + (f"round_{number - 1}" if number else "warm_up") + "/proposer"

    def store(self, rows: Sequence[Row], pairs: Sequence[Row], folder: str) -> tuple[list[Row], list[Row]]:
        """Keep queries and pairs and give what is stored; each query is told its pair's number and its side."""
        place = {pair[end]: {"pair": i, "side": end} for i, pair in enumerate(pairs) for end in ENDS}
        told = [row | place.get(row["id"], {"pair": None, "side": None}) for row in rows]
        # Pairs first: a run that was killed in between finds queries that know their pairs, or none.
        kept = self.ctx.run.once(f"{folder}/pairs.jsonl", lambda: list(pairs))
        return self.ctx.run.once(f"{folder}/queries.jsonl", lambda: told), kept


@dataclasses.dataclass(frozen=True)
class Explored:
    """What an exploration came to: figures of its `rounds`; `proposer`, the folder of the best one; `warm`, the
    proposer after warm-up; `final`, the judged rows of the last proposing; `valid`, valid rows of all rounds."""

    rounds: list[Row]
    proposer: str
    warm: Lazy
    final: list[Row]
    valid: list[Row]


def explore(explorer: Explorer, co_train: Callable[[int, list[Row]], Model | None] | None = None) -> Explored:
    """All rounds, and the last proposing of the best proposer.

    `co_train(round, valid rows so far)` gives the target of the next round; without it, or if it gives None, the
    target stays.
    """
    ctx, settings, seeds = explorer.ctx, explorer.settings, explorer.seeds
    # All rounds' prompts in one draw: so none comes twice, and a continued run has the same ones.
    drawn = exploration_prompts(seeds, settings.shots, sum(settings.sizes), ctx.seed)
    prompts = fresh(drawn, settings.sizes)
    proposers = [
        warm_up(ctx, explorer.app, explorer.base, seeds, settings.shots, settings.warm_up, explorer.folder)
    ]
    so_far: list[Row] = []
    target = explorer.target
    # One round more than there are trainings: the last proposer is judged as well, as it may be the best.
    for number in range(settings.rounds + 1):
        folder = f"{explorer.folder}/round_{number}"
        rows = explorer.judged(proposers[-1], prompts[number], settings.samples, folder, explorer.history, target)
        so_far += valid(rows)
        for earlier in proposers[1:-1]:  # the warm-up one stays: the likelihood guard asks it every round
            earlier.release()
        last = number == settings.rounds
        # No proposer is trained after the last round, so it needs no pairs.
        pairs = [] if last else pair_up(rows, settings.pairing, ctx.seed, settings.max_pairs)
        rows, pairs = explorer.store(rows, pairs, folder)
        stopped = None
        if not last and len(pairs) < settings.min_pairs:
            stopped = f"{len(pairs)} pairs, fewer than --min-pairs {settings.min_pairs}"
        counts = {kind: sum(pair["kind"] == kind for pair in pairs) for kind in ("within", "across")}
        counts |= {"pairs": len(pairs), "prompts_mixed": mixed(rows), "stopped": stopped}
        _enter(explorer, number, figures(rows) | counts)
        if last or stopped:
            break
        proposers.append(preference_round(explorer, proposers, rows, pairs, prompts[number], number))
        if co_train is not None:
            target = co_train(number, so_far) or target
    # Of equals the earlier one: it has drifted less.
    best = max(range(len(explorer.rounds)), key=lambda i: (explorer.rounds[i]["new_failure_rate"], -i))
    for number in range(1, len(proposers)):
        if number != best:  # the warm-up proposer is kept, as controls ask it
            shutil.rmtree(ctx.run.path / explorer.proposer_folder(number), ignore_errors=True)
    folder = f"{explorer.folder}/final"
    final = explorer.judged(proposers[best], prompts[-1], 1, folder, explorer.history, target)
    final, _ = explorer.store(final, [], folder)
    _enter(explorer, "final", {"proposer": best} | figures(final) | {"pairs": 0, "stopped": None})
    for proposer in proposers:
        proposer.release()
    return Explored(explorer.rounds, explorer.proposer_folder(best), proposers[0], final, so_far)


def _enter(explorer: Explorer, number: int | str, found: Row) -> None:
    """Add the figures of a round, and whether they raise the alarm."""
    entry = {"repeat": explorer.ctx.repeat, "explorer": explorer.name, "round": number} | found
    first = explorer.rounds[0] if explorer.rounds else entry
    explorer.rounds.append(entry | {"alarm": alarms(first, entry, explorer.settings.collapse)})
    progress.tell(f"{explorer.name} {number}: new failures", f"{100 * entry['new_failure_rate']:.1f}%")


def preference_round(
    explorer: Explorer,
    proposers: Sequence[Lazy],
    rows: list[Row],
    pairs: list[Row],
    prompts: list[Shown],
    number: int,
) -> Lazy:
    """The proposer after DPO on the pairs; optimizer and schedule start anew, earlier pairs are not seen again.

    The reference is the proposer as it was at the start of the round, or the warm-up one: its log-probabilities
    are computed once and stored, so that no second model is kept while training.
    """
    ctx, app, preferring = explorer.ctx, explorer.app, explorer.settings.preferring
    policy, folder = proposers[-1], f"{explorer.folder}/round_{number}"
    reference = proposers[0] if preferring.from_warm_up else policy
    settings = dataclasses.replace(preferring.train, seed=ctx.seed)

    def fit(state: pathlib.Path, log: Callable[[int], Log]) -> Params:
        reply = {row["id"]: row["reply"] for row in rows}
        encoded = [
            _preference(explorer.base, app, prompts[pair["prompt"]], *(reply[pair[end]] for end in ENDS))
            for pair in pairs
        ]

        def compute() -> list[Row]:
            model = reference()
            values = reference_logps(model.params, model.config, encoded, normalise=preferring.length_normalised)
            return [dict(zip(ENDS, map(float, pair), strict=True)) for pair in values]

        stored = ctx.run.once(f"{folder}/reference_logps.jsonl", compute)
        logps = np.array([[row[end] for end in ENDS] for row in stored], np.float32)
        return prefer(
            lambda: policy().start(settings),
            explorer.base.config,
            encoded,
            logps,
            settings,
            pad_id=explorer.base.tokenizer.pad_id,
            beta=preferring.beta,
            normalise=preferring.length_normalised,
            checkpoint=state,
            log=log,
            label=f"{folder} dpo",
        )

    # A continued run may have all that this proposer wrote, and then needs no weights.
    return Lazy(lambda: trained(ctx.run, f"{folder}/proposer", explorer.base, fit, settings, "train the proposer"))


def _preference(model: LanguageModel, app: Application, shown: Shown, chosen: str, rejected: str) -> Preference:
    """Prompt and the two replies as the proposer wrote them, each with its end."""
    messages = app.prompt(shown)
    first, start = model.tokenizer.encode_example(messages, chosen)
    second, _ = model.tokenizer.encode_example(messages, rejected)
    return Preference(tuple(first[:start]), tuple(first[start:]), tuple(second[start:]))


def figures(rows: Sequence[Row]) -> Row:
    """What a round of proposals came to. Shares are of all queries sampled, `valid_failure_rate` of the valid."""
    count, outcomes = len(rows), [row["outcome"] for row in rows]
    malformed = sum(row["malformed"] is not None for row in rows)
    unlikely = sum((row["dropped"] or "").startswith(("unlikely", "nonsense")) for row in rows)
    # What is dropped for any other reason repeats something: a seed, an earlier query or a test question.
    repeated = sum(row["dropped"] is not None for row in rows) - malformed - unlikely
    failed, passed, refused = (outcomes.count(name) for name in ("fail", "pass", "invalid"))
    judged = [row["query"] for row in rows if row["outcome"] is not None]
    return {
        "queries": count,
        "malformed": malformed,
        "repeated": repeated,
        "unlikely": unlikely,
        "invalid": refused,
        "valid": failed + passed,
        "failed": failed,
        "passed": passed,
        "invalid_share": (malformed + unlikely + refused) / count,
        "valid_failure_rate": failed / (failed + passed) if failed + passed else None,
        # Over all that was sampled, so that malformed or repeated queries cannot raise a proposer's rate.
        "new_failure_rate": failed / count,
        "self_bleu": self_bleu(judged, sample=BLEU_SAMPLE) if len(judged) >= BLEU_SAMPLE else None,
        "target_calls": target_calls(rows),
    }


def target_calls(rows: Sequence[Row]) -> int:
    """Answers of the target that are used in judging `rows`."""
    return sum(len(row.get("answers") or ()) for row in rows)


def mixed(rows: Sequence[Row]) -> float:
    """Share of prompts with both failing and passing queries."""
    seen: dict[int, set[str]] = {}
    for row in rows:
        seen.setdefault(row["prompt"], set()).add(row["outcome"])
    return sum({"fail", "pass"} <= outcomes for outcomes in seen.values()) / len(seen)


def alarms(first: Row, now: Row, collapse: float) -> list[str]:
    """Signs that the proposer has narrowed: text more alike than at first, or mostly repetitions."""
    found = []
    if None not in (first["self_bleu"], now["self_bleu"]) and now["self_bleu"] - first["self_bleu"] > collapse:
        found.append(f"self-BLEU rose from {first['self_bleu']:.2f} to {now['self_bleu']:.2f}")
    formed = now["queries"] - now["malformed"]
    if formed and 1 - now["repeated"] / formed < FEWEST_NEW:
        found.append(f"{now['repeated']} of {formed} queries repeat earlier ones")
    return found
