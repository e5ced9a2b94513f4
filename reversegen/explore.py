"""Exploration: rounds in which a proposer learns to write what the target fails on.

warm up the proposer on few-shot prompts made of seeds
for each round:  propose on fresh prompts -> what is new -> the frozen target answers -> verdicts
                 -> pairs -> DPO against the proposer as it was at the start of the round
judge the last proposer too; the one with most valid, new failures counts
propose once more with it, one query a prompt
"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence

import numpy as np

from common.lm import LanguageModel
from common.stages import Lazy, trained
from common.tasks.base import Example
from common.text.diversity import self_bleu
from common.text.novelty import History
from common.train.preference import Preference, prefer, reference_logps
from reversegen.applications.base import Application, Context, Model, Row
from reversegen.config import Config
from reversegen.pairs import pair_up
from reversegen.propose import Fluency, Shown, exploration_prompts, fresh, propose, sift, warm_up

BLEU_SAMPLE = 100
"""Queries of a round that self-BLEU, which grows with their number, is taken over; of fewer there is none."""
FEWEST_NEW = 0.5
"""Share of well-formed queries that must be new, or the alarm is raised."""


@dataclasses.dataclass
class Explorer:
    """One proposer on its way, in the folder `name` of the repeat. `target` is who is to fail; queries near one of
    `test` (test and general questions) are dropped, as an arm may learn from them."""

    ctx: Context
    app: Application
    base: LanguageModel
    target: Model
    seeds: Sequence[Example]
    name: str
    test: Sequence[Example]

    def __post_init__(self):
        self.held_out = History(self.ctx.config.jaccard)
        self.held_out.add_new([example.question for example in self.test], [example.id for example in self.test])
        self.folder = f"repeat_{self.ctx.repeat}/{self.name}"
        self.history = self.new_history()
        self.fluency: Fluency | None = None
        self.rounds: list[Row] = []
        self.begun = False

    def new_history(self) -> History:
        """Empty, but for the seeds: to write one of them again is no discovery."""
        limit = self.ctx.config.semantic
        texts = [seed.question for seed in self.seeds]
        semantic = limit < 1
        history = History(
            self.ctx.config.jaccard, limit, self.base.embed if semantic else None, texts if semantic else ()
        )
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
        rows = propose(ctx, app, proposer, prompts, n, folder)
        if not self.begun:  # the first to propose is the warm-up proposer
            self.begun = True
            self.fluency = Fluency.of(proposer, rows, ctx.config.likelihood_guard)
        queries = sift(ctx, app, rows, prompts, history, self.held_out, self.fluency, folder)
        for row in rows:
            row["outcome"] = None
        verdicts = app.verdicts(ctx, folder, queries, target or self.target)
        for row, verdict in zip(queries, verdicts, strict=True):
            row |= verdict
        return rows

    def store(self, rows: Sequence[Row], pairs: Sequence[Row], folder: str) -> tuple[list[Row], list[Row]]:
        """Keep queries and pairs and give what is stored; each query is told its pair's number and its side."""
        place = {pair[side]: (i, side) for i, pair in enumerate(pairs) for side in ("chosen", "rejected")}
        for row in rows:
            row["pair"], row["side"] = place.get(row["id"], (None, None))
        kept = self.ctx.run.once(f"{folder}/pairs.jsonl", lambda: list(pairs))
        return self.ctx.run.once(f"{folder}/queries.jsonl", lambda: rows), kept


def slices(config: Config) -> list[int]:
    """Prompts of every round, and of the last proposing."""
    return [config.prompts] * (config.rounds + 1) + [config.final_prompts]


def explore(explorer: Explorer, co_train: Callable[[int, list[Row]], Model | None] | None = None) -> Row:
    """All rounds; returns {"rounds", "best": its number, "warm": the warm-up proposer, "final": judged rows of the
    last proposing, "valid": valid rows of all rounds}.

    `co_train(round, valid rows so far)` gives the target of the next round; without it, or if it gives None, the
    target stays.
    """
    ctx, config, app = explorer.ctx, explorer.ctx.config, explorer.app
    sizes = slices(config)
    prompts = list(fresh(exploration_prompts(explorer.seeds, config.shots, sum(sizes), ctx.seed), sizes))
    proposers = [warm_up(ctx, app, explorer.base, explorer.seeds, explorer.folder)]
    valid: list[Row] = []
    target, over = explorer.target, False
    for number in range(config.rounds + 1):
        folder = f"{explorer.folder}/round_{number}"
        rows = explorer.judged(proposers[-1], prompts[number], config.samples, folder, explorer.history, target)
        valid += [row for row in rows if row["outcome"] in ("fail", "pass")]
        for earlier in proposers[1:-1]:  # the warm-up one guards the likelihood
            earlier.release()
        last = number == config.rounds
        pairs = [] if last else pair_up(rows, config.pairing, ctx.seed, config.max_pairs)
        rows, pairs = explorer.store(rows, pairs, folder)
        entry = {"repeat": ctx.repeat, "explorer": explorer.name, "round": number} | figures(
            rows, config.target_samples
        )
        entry |= {kind: sum(pair["kind"] == kind for pair in pairs) for kind in ("within", "across")}
        entry |= {"pairs": len(pairs), "prompts_mixed": mixed(rows), "stopped": None}
        explorer.rounds.append(entry)
        entry["alarm"] = alarms(explorer.rounds, config.collapse)
        if not last and len(pairs) < config.min_pairs:
            entry["stopped"] = f"{len(pairs)} pairs, fewer than --min-pairs {config.min_pairs}"
            over = True
        if last or over:
            break
        proposers.append(preference_round(explorer, proposers, rows, pairs, prompts[number], number))
        if co_train is not None:
            target = co_train(number, valid) or target
    best = max(range(len(explorer.rounds)), key=lambda i: (explorer.rounds[i]["new_failure_rate"], -i))
    _forget(explorer, {0, best}, len(proposers))
    final = explorer.judged(proposers[best], prompts[-1], 1, f"{explorer.folder}/final", explorer.history, target)
    final, _ = explorer.store(final, [], f"{explorer.folder}/final")
    entry = {"repeat": ctx.repeat, "explorer": explorer.name, "round": "final", "proposer": best}
    explorer.rounds.append(entry | figures(final, config.target_samples) | {"pairs": 0, "stopped": None})
    explorer.rounds[-1]["alarm"] = alarms(explorer.rounds, config.collapse)
    for proposer in proposers:
        proposer.release()
    return {"rounds": explorer.rounds, "best": best, "warm": proposers[0], "final": final, "valid": valid}


def preference_round(
    explorer: Explorer,
    proposers: Sequence[Lazy],
    rows: Sequence[Row],
    pairs: Sequence[Row],
    prompts: Sequence[Shown],
    number: int,
) -> Lazy:
    """The proposer after DPO on the pairs; optimizer and schedule start anew, earlier pairs are not seen again.

    The reference is the proposer as it was at the start of the round, or the warm-up one: its log-probabilities
    are computed once and stored, so that no second model is kept while training.
    """
    ctx, config, app = explorer.ctx, explorer.ctx.config, explorer.app
    policy, folder = proposers[-1], f"{explorer.folder}/round_{number}"
    reference = policy if config.reference_proposer == "round" else proposers[0]
    settings = config.dpo(ctx.seed)

    def fit(state, log):
        by_id = {row["id"]: row for row in rows}
        encoded = [
            _preference(
                explorer.base,
                app,
                prompts[pair["prompt"]],
                *(by_id[pair[e]]["reply"] for e in ("chosen", "rejected")),
            )
            for pair in pairs
        ]

        def compute() -> list[Row]:
            model = reference()
            values = reference_logps(model.params, model.config, encoded, normalise=config.length_normalised)
            return [{"chosen": float(chosen), "rejected": float(rejected)} for chosen, rejected in values]

        stored = ctx.run.once(f"{folder}/reference_logps.jsonl", compute)
        logps = np.array([[row["chosen"], row["rejected"]] for row in stored], np.float32)
        return prefer(
            policy().starting_weights(settings),
            explorer.base.config,
            encoded,
            logps,
            settings,
            pad_id=explorer.base.tokenizer.pad_id,
            beta=config.beta,
            normalise=config.length_normalised,
            checkpoint=state,
            log=log,
            label=f"{folder} dpo",
        )

    return Lazy(lambda: trained(ctx.run, f"{folder}/proposer", explorer.base, fit, "train the proposer"))


def _preference(model: LanguageModel, app: Application, shown: Shown, chosen: str, rejected: str) -> Preference:
    """Prompt and the two replies as the proposer wrote them, each with its end."""
    messages = app.prompt(shown)
    first, start = model.tokenizer.encode_example(messages, chosen)
    second, _ = model.tokenizer.encode_example(messages, rejected)
    return Preference(tuple(first[:start]), tuple(first[start:]), tuple(second[start:]))


def _forget(explorer: Explorer, needed: set[int], count: int) -> None:
    """Delete proposers that are not needed again; proposer t > 0 lies in the folder of round t - 1."""
    for number in range(1, count):
        if number not in needed:
            shutil.rmtree(
                explorer.ctx.run.path / f"{explorer.folder}/round_{number - 1}/proposer", ignore_errors=True
            )


def figures(rows: Sequence[Row], target_samples: int) -> Row:
    """What a round of proposals came to. Shares are of all queries sampled, `valid_failure_rate` of the valid."""
    count = len(rows)
    outcome = lambda name: sum(row["outcome"] == name for row in rows)
    malformed = sum(row["malformed"] is not None for row in rows)
    unlikely = sum(row["dropped"] == "unlikely text" for row in rows)
    repeated = sum(row["dropped"] is not None for row in rows) - malformed - unlikely
    fail, passed, refused = outcome("fail"), outcome("pass"), outcome("invalid")
    judged = [row["query"] for row in rows if row["outcome"] is not None]
    return {
        "queries": count,
        "malformed": malformed,
        "repeated": repeated,
        "unlikely": unlikely,
        "invalid": refused,
        "valid": fail + passed,
        "failed": fail,
        "passed": passed,
        "invalid_share": (malformed + unlikely + refused) / count,
        "valid_failure_rate": fail / (fail + passed) if fail + passed else None,
        "new_failure_rate": fail / count,
        "self_bleu": self_bleu(judged, sample=BLEU_SAMPLE) if len(judged) >= BLEU_SAMPLE else None,
        "target_calls": target_samples * sum(bool(row.get("answers")) for row in rows),
    }


def mixed(rows: Sequence[Row]) -> float:
    """Share of prompts with both failing and passing queries."""
    seen: dict[int, set[str]] = {}
    for row in rows:
        seen.setdefault(row["prompt"], set()).add(row["outcome"])
    return sum({"fail", "pass"} <= outcomes for outcomes in seen.values()) / len(seen)


def alarms(rounds: Sequence[Row], collapse: float) -> list[str]:
    """Signs that the proposer has narrowed: text more alike than at first, or mostly repetitions."""
    first, now = rounds[0], rounds[-1]
    found = []
    if None not in (first["self_bleu"], now["self_bleu"]) and now["self_bleu"] - first["self_bleu"] > collapse:
        found.append(f"self-BLEU rose from {first['self_bleu']:.2f} to {now['self_bleu']:.2f}")
    formed = now["queries"] - now["malformed"]
    if formed and 1 - now["repeated"] / formed < FEWEST_NEW:
        found.append(f"{now['repeated']} of {formed} queries repeat earlier ones")
    return found
