"""What a run leaves behind: the labelled failures, target and proposer, the page and the tables."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from common.backends.open import model_name
from common.results.card import ModelCard
from common.results.charts import dots
from common.results.conclusion import (
    CHECKED,
    Conclusion,
    arm_dots,
    by_round,
    checked,
    counted,
    gain_cell,
    lost,
    mean_cell,
    round_bars,
    verdict,
)
from common.results.conclusion import arm_table as table_of
from common.results.dataset import LEARNED, PREFERRED, DatasetCard, Field, reply, write_dataset
from common.results.estimate import Estimate, Gain
from common.results.files import read_jsonl
from common.results.plots import PALETTE, line_figure
from common.results.report import Report
from common.results.rundir import RunDir
from common.results.tables import percent_interval, terminal_table
from common.settings import command, given
from common.stages import publish
from common.tasks.base import Example
from common.text.glossary import explain
from reversegen.applications.base import Application, Row
from reversegen.config import PRESETS, Config
from reversegen.examples import add_examples, shown
from reversegen.loop import Repeat
from reversegen.pairs import ENDS
from reversegen.summary import MAIN, Summary, summarise, warnings
from reversegen.targets import LabelCount

FIELDS = LEARNED | {
    "id": Field("string", "Repeat, folder, prompt and sample: unique."),
    "query": Field("string", "What the proposer wrote and the target failed on."),
    "answer": Field("string", "The labeler's answer, which the target learned."),
    "label": Field("string", "The part of it that is graded, where there is one."),
    "target_answer": Field("string", "What the target answered; the first of several."),
    "outcome": Field("string", "The judge's verdict: fail, or pass for queries learned beside the failures."),
    "score": Field("float64", "How badly the target failed; what is worse is higher."),
    "reason": Field("string", "What the judge said beside it."),
    "truth": Field("string", "Exact answer where a program knows it; null elsewhere."),
    "label_correct": Field("bool", "Whether label and truth agree; null where unknown."),
    "repeat": Field("int64", "Repeat of the run, from 0."),
    "round": Field("string", "Folder of the proposals: final, or a round where the target was trained along."),
    "prompt_hash": Field("string", "Start of the SHA-256 of the proposer's prompt."),
    "shown": Field("string", "Ids of the seed instructions in that prompt."),
    "sample": Field("int64", "Which sample of the prompt it was, from 0."),
    "mean_logp": Field("float64", "Mean log-probability of its tokens under its proposer."),
}
PAIRS = PREFERRED | {
    "id": Field("string", "Folder of the round and number of the pair: unique."),
    "chosen_query": Field("string", "The query in the chosen reply, on which the target failed."),
    "rejected_query": Field("string", "The query in the rejected reply, on which it did not."),
    "chosen_id": Field("string", "Of that query in queries.jsonl of the round."),
    "rejected_id": Field("string", "Of that query in queries.jsonl of the round."),
    "chosen_score": Field("float64", "How badly the target failed; what is worse is higher."),
    "rejected_score": Field("float64", "The same of the rejected query."),
    "kind": Field("string", "within: both were written under this prompt; across: under different ones."),
    "repeat": Field("int64", "Repeat of the run, from 0."),
    "round": Field("int64", "Round that wrote them, from 0."),
    "shown": Field("string", "Ids of the seed instructions in the prompt."),
}
OUTCOMES = {"fail": "failed", "pass": "passed"}
OUTCOMES |= {name: name for name in ("invalid", "unlikely", "repeated", "malformed")}
"""What became of a query, and where a round counts it."""
COLOURS = {
    "target-after": PALETTE[0],
    **dict.fromkeys(("failures of valid", "fail"), PALETTE[1]),
    **dict.fromkeys(("valid and new failures of all", "best proposer"), PALETTE[2]),
    "invalid": PALETTE[3],
}
"""Of what the page draws more than once."""


def conclusion(
    run: RunDir,
    config: Config,
    app: Application,
    repeats: Sequence[Repeat],
    test: Sequence[Example],
    known: Sequence[str] = (),
) -> Conclusion:
    """Write data set, target and proposer of a finished run; returns its figures, tables and page.

    `test`: test and general questions, which queries are kept away from; `known`: warnings from before the work.
    """
    summary = summarise(run, app, given(config.arms), repeats)
    rows = [row for number in range(len(repeats)) for row in _learned(run, app, number)]
    write_dataset(run.path / "dataset", rows, _card(config, app, rows, summary))
    pairs = [pair for number in range(len(repeats)) for pair in _preferred(run, app, number)]
    preferred = {"preferences": "preferences"} if pairs else {}  # no reader loads a split without rows
    if pairs:
        write_dataset(run.path / "preferences", pairs, _pair_card(config, app, summary, pairs))
    notes = [*known, *doubts(config), *warnings(summary, given(config.arms))]
    target, proposer = _model_cards(config, app, summary, notes)
    adapters = publish(run, "repeat_0/target-after/target", target)
    adapters |= publish(run, repeats[0].proposer, proposer, "proposer")
    return Conclusion(
        summary.stored(),
        final_tables(config, summary),
        _page(run, config, app, summary, rows, test),
        notes,
        main_verdict(summary),
        {
            "data set": "dataset",
            **preferred,
            "target": "model",
            "proposer": "proposer",
            **adapters,
        },
        command("reversegen", config, PRESETS),
    )


def main_verdict(summary: Summary) -> str | None:
    """Target-after on the held-out failures, against the targets that learned from the proposer before preference
    training, its proposals and its failures; on the test, against what it was before and against practice on
    seeds; and against whatever it is behind. Without the first arms it is against target-before, which fails on
    most or all of the held-out failures by how they were found."""
    untrained = [name for name in ("warm-up", "warm-up-failures") if name in summary.arms] or ["target-before"]
    asked = [(name, MAIN) for name in untrained] + [(name, "test") for name in ("target-before", "seed-only")]
    for where in summary.sets:
        behind = [name for name in summary.arms if (g := _gain(summary, name, where)) is not None and lost(g)]
        asked += [(name, where) for name in behind if (name, where) not in asked]
    return verdict(
        [
            ("target-after", f"{name} on {SET_NAMES[where]}", gain)
            for name, where in asked
            if (gain := _gain(summary, name, where)) is not None
        ]
    )


def _gain(summary: Summary, name: str, where: str) -> Gain | None:
    """The lead of target-after over an arm on a set of questions; None where there is none."""
    found = summary.gains.get(f"target-after - {name}")
    return None if found is None else found.sets.get(where)


def doubts(config: Config) -> list[str]:
    """What the settings give reason to doubt."""
    found = []
    if config.validity == "none" and config.task in ("math", "honesty"):
        found.append("no validity check was made (--validity none): failures may be nonsense queries")
    if config.jaccard == 1 and config.semantic == 1:
        found.append("near-duplicates were not dropped: failures may be one query many times")
    if "warm-up" not in given(config.arms):
        found.append(
            "target-before fails on held-out failures by how they were found, so nearly any training is ahead of "
            "it there: add arm warm-up to see what preference training adds"
        )
    return found


# --- tables ---------------------------------------------------------------------------------------------------

ROUND_HEADERS = [
    *("round", "queries", "invalid, %", "repeated, %", "failures of valid, %", "valid and new failures, %"),
    *("self-BLEU", "pairs"),
]


def round_rows(summary: Summary, explorer: str = "explore") -> list[list[Any]]:
    """One line a round, means over repeats; a figure that some repeat lacks is missing."""
    own = [entry for entry in summary.rounds if entry["explorer"] == explorer]
    mean = lambda value, scale, digits: [
        None if x is None else round(scale * x, digits) for x in by_round(own, value)[1]
    ]
    count = lambda key: mean(lambda entry: entry[key], 1, None)
    share = lambda key: mean(lambda entry: entry[key], 100, 1)
    numbers, _ = by_round(own, lambda entry: None)
    columns = [
        [{0: "0 (warm-up)", "final": "final (best)"}.get(number, str(number)) for number in numbers],
        count("queries"),
        share("invalid_share"),
        mean(lambda entry: entry["repeated"] / entry["queries"], 100, 1),
        share("valid_failure_rate"),
        share("new_failure_rate"),
        mean(lambda entry: entry["self_bleu"], 1, 2),
        count("pairs"),
    ]
    return [list(row) for row in zip(*columns, strict=True)]


SET_NAMES = {"failures": "held-out failures", "test": "test", "general": "general queries"}


def arm_table(summary: Summary, kinds: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Headers and rows: every arm on every set, and beside it by how much target-after is ahead of it there."""
    columns = []
    for kind in kinds:
        gains: Mapping[str, Estimate] = {name: gain.sets[kind] for name, gain in summary.gains.items()}
        share = lambda name, _, k=kind: percent_interval(summary.arms[name].sets[k])
        columns.append((f"{summary.arms['target-before'].metric} on {SET_NAMES[kind]}, %", share))
        columns.append(("target-after - arm [95%]", gain_cell(gains, "target-after")))
    columns += [("examples", mean_cell("examples")), ("updates", mean_cell("updates"))]
    return table_of(summary.arms, columns)


def _label_row(name: str, found: LabelCount) -> list[Any]:
    reasons = ", ".join(f"{reason} {count}" for reason, count in found.refused.items())
    return [name, found.asked, found.accepted, reasons or "–", *checked(found.asked, found.known, found.wrong)]


LABEL_HEADERS = ["labels of", "asked for", "accepted", "refused", *CHECKED]


def final_tables(config: Config, summary: Summary) -> str:
    """What is printed at the end of a run."""
    found, times = summary.exploration, ""
    if found.ratio is not None:
        low_high = "" if found.ratio.ci95 is None else " [{:.1f}, {:.1f}]".format(*found.ratio.ci95)
        times = f", {found.ratio.value:.1f}{low_high} times as many"
    return (
        f"{summary.task}, {counted(summary.repeats, 'repeat')}: what the proposer wrote\n\n"
        + terminal_table(ROUND_HEADERS, round_rows(summary), note=_round_note(summary))
        + f"\n\nvalid and new failures: {percent_interval(found.warm_up)} % of the warm-up proposer's queries, "
        + f"{percent_interval(found.final)} % of the final ones{times}\n\nthe target\n\n"
        + terminal_table(*arm_table(summary, summary.sets), note=_arm_note(config))
    )


# --- the data set ---------------------------------------------------------------------------------------------


def _learned(run: RunDir, app: Application, repeat: int) -> list[Row]:
    """What target-after learned of one repeat, with the provenance of every query."""
    folder = run.path / f"repeat_{repeat}"
    kept = {row["id"] for row in read_jsonl(folder / "target-after/data.jsonl")}
    read = lambda files: [row for file in sorted(files) for row in read_jsonl(file)]
    judged = {row["id"]: row for row in read((folder / "explore").glob("*/queries.jsonl"))}
    rows = []
    for row in read((folder / "explore/final").rglob("labelled.jsonl")):
        if row["id"] in kept:
            query = judged[row["id"]]
            joined = query | row | {"repeat": repeat, "target_answer": query["answers"][0]}
            joined |= {"shown": " ".join(query["shown"]), "score": float(query["score"])}
            joined |= {"prompt": app.messages(row["query"]), "completion": reply(row["answer"])}
            rows.append({name: joined[name] for name in FIELDS})
    return rows


def _preferred(run: RunDir, app: Application, repeat: int) -> list[Row]:
    """The pairs that the proposers of one repeat learned from, in words."""
    folder, rows = run.path / f"repeat_{repeat}/explore", []
    seeds = {row["id"]: Example(**row) for row in read_jsonl(folder / "seeds.jsonl")}
    for file in sorted(folder.glob("round_*/pairs.jsonl"), key=lambda file: int(file.parent.name[6:])):
        queries = read_jsonl(file.with_name("queries.jsonl"))
        of = {row["id"]: row for row in queries}
        shown = {row["prompt"]: row["shown"] for row in queries}  # a pair's prompt may be neither query's
        for number, pair in enumerate(read_jsonl(file)):
            sides = {side: of[pair[side]] for side in ENDS}
            rows.append(
                {
                    "prompt": app.prompt([seeds[name] for name in shown[pair["prompt"]]]),
                    **{side: reply(row["reply"]) for side, row in sides.items()},
                    "id": f"repeat_{repeat}/{file.parent.name}/{number}",
                    **{f"{side}_query": row["query"] for side, row in sides.items()},
                    **{f"{side}_id": row["id"] for side, row in sides.items()},
                    **{f"{side}_score": float(row["score"]) for side, row in sides.items()},
                    "kind": pair["kind"],
                    "repeat": repeat,
                    "round": int(file.parent.name[6:]),
                    "shown": " ".join(shown[pair["prompt"]]),
                }
            )
    return rows


def _pair_card(config: Config, app: Application, summary: Summary, pairs: Sequence[Row]) -> DatasetCard:
    own = [entry for entry in summary.rounds if entry["explorer"] == "explore"]
    # Too few pairs for a training are stored as well.
    stopped = [f"round {e['round']} of repeat {e['repeat']}" for e in own if e["stopped"] and e["pairs"]]
    but = f", but not from those of {', '.join(stopped)} (from 0), which were too few" if stopped else ""
    return DatasetCard(
        license="apache-2.0" if _embedded(config) else None,
        title=f"What {config.target} fails on ({app.name}), preferred to what it does not, by ReverseGen",
        made_by=(
            f"Replies of {config.proposer} to few-shot prompts, in pairs: with a query on which {config.target} "
            "failed, chosen, and with one on which it did not, rejected. In every round the proposer learned from "
            f"its own pairs (beta {config.beta:g}, pairing {config.pairing}){but}."
        ),
        fields=PAIRS,
        lineage="chosen_id and rejected_id name the queries in queries.jsonl of the round, with their verdicts.",
        counts={f"pairs {kind} prompts": sum(p["kind"] == kind for p in pairs) for kind in ("within", "across")},
    )


def _embedded(config: Config) -> bool:
    """Whether all that a text of the run was made from comes with seedloop."""
    return config.labeler == config.proposer == "embedded" and config.seeds_file is None


def _model_cards(
    config: Config, app: Application, summary: Summary, notes: Sequence[str]
) -> tuple[ModelCard, ModelCard]:
    """Of the target and of the proposer."""
    final = (e for e in summary.rounds if (e["explorer"], e["round"], e["repeat"]) == ("explore", "final", 0))
    best = next(final)["proposer"]  # after so many trainings
    target = ModelCard(
        title=f"Target for {app.name} by ReverseGen",
        base=model_name(config.target, "student"),
        method="reversegen",
        learned=(
            f"The arm target-after of the first repeat: fine-tuned on queries that {config.proposer} learned to "
            f"write and on which it failed, answered by {config.labeler}, with {counted(config.mix, 'seed')} "
            "mixed in for each."
        ),
        tables={f"The target on {SET_NAMES[kind]}": arm_table(summary, [kind]) for kind in summary.sets},
        verdict=main_verdict(summary),
        warnings=notes,
        command=command("reversegen", config, PRESETS),
    )
    proposer = ModelCard(
        title=f"Proposer against {config.target} ({app.name}) by ReverseGen",
        base=model_name(config.proposer, "teacher"),
        method="reversegen",
        learned=(
            f"The best proposer of the first repeat: warmed up on {config.seed_instructions} seed instructions, "
            + (
                f"then trained to prefer queries on which {config.target} fails."
                if best
                else "without any preference training, after which none was better."
            )
        ),
        tables={"What it wrote, by round": (ROUND_HEADERS, round_rows(summary))},
        warnings=notes,
        command=command("reversegen", config, PRESETS),
    )
    return target, proposer


def _card(config: Config, app: Application, rows: Sequence[Row], summary: Summary) -> DatasetCard:
    own = [entry for entry in summary.rounds if entry["explorer"] == "explore"]
    judged = config.guard or config.judge or config.reference
    if config.task == "honesty":
        judged = "the entropy of its answers"
    example = f"\n\nThe first query: {shown(rows[0]['query'], config.redact)}" if rows else ""
    return DatasetCard(
        license="apache-2.0" if _embedded(config) else None,
        title=f"Queries on which {config.target} fails ({app.name}), by ReverseGen",
        made_by=(
            f"Written by {config.proposer} after up to {counted(config.rounds, 'round')} of preference training "
            f"against {config.target}, judged by {judged}, answered by {config.labeler}. Near-duplicates and "
            f"queries without an agreed answer were dropped.{example}"
        ),
        fields=FIELDS,
        lineage=(
            "prompt_hash and shown name the proposer's prompt, sample its sample; queries.jsonl of the "
            "round holds every query with its verdict, pairs.jsonl the preference pairs."
        ),
        counts={f"query: {name}": sum(entry[key] for entry in own) for name, key in OUTCOMES.items()},
    )


# --- the page -------------------------------------------------------------------------------------------------


def _page(
    run: RunDir, config: Config, app: Application, summary: Summary, rows: Sequence[Row], test: Sequence[Example]
) -> Report:
    page = Report(
        f"ReverseGen on {app.name}",
        f"proposer {config.proposer}, target {config.target}, {config.seed_instructions} seed instructions, "
        f"{counted(summary.repeats, 'repeat')}, seed {config.seed}",
    )
    page.chapter("The target")
    metric = summary.arms["target-after"].metric
    for kind in summary.sets:
        arms = {name: arm.sets[kind] for name, arm in summary.arms.items()}
        gains = {name: gain.sets[kind] for name, gain in summary.gains.items()}
        arm_dots(page, arms, gains, "target-after", SET_NAMES[kind], colours=COLOURS)
        note = _arm_note(config) if kind == MAIN else None
        terms = explain(metric, "95% interval", "lead", "updates") if kind == MAIN else None
        page.add_table(f"The target on {SET_NAMES[kind]}", *arm_table(summary, [kind]), note=note, terms=terms)
    page.chapter("Round by round")
    found = {"warm-up proposer": summary.exploration.warm_up, "best proposer": summary.exploration.final}
    axis = "valid and new failures, % of all queries"
    page.add_chart(
        "What the proposer finds", dots(found, axis, ours=["best proposer"], scale=100, colours=COLOURS)
    )
    _round_figures(page, summary)
    terms = explain("invalid", "repeated", "failures of valid", "valid and new failures", "self-BLEU")
    page.add_table(
        "What the proposer wrote, by round",
        ROUND_HEADERS,
        round_rows(summary),
        note=_round_note(summary),
        terms=terms,
    )
    held = round_rows(summary, "independent")
    page.add_table("The independent proposer, whose failures are the held-out test", ROUND_HEADERS, held)
    add_examples(page, run, rows, test, config.redact)
    page.chapter("Details")
    if labels := [_label_row(name, found) for name, found in summary.labels.items() if found.asked]:
        note = "Wrong labels are counted before any are refused, where a program knows the truth."
        page.add_table("Labels", LABEL_HEADERS, labels, note=note)
    _figure_table(page, summary)
    if summary.transfer:
        _transfer_table(page, summary)
    page.add_table(
        "What every arm cost, summed over repeats",
        ["arm", "queries sampled", "target answers", "labels asked for", "target updates"],
        [[name, *dataclasses.astuple(cost)] for name, cost in summary.accounting.items()],
        note="The warm-up arms choose from one pool of proposals. The independent proposer costs as much again.",
    )
    return page


def _round_note(summary: Summary) -> str:
    best = sorted({entry["proposer"] for entry in summary.rounds if _is_final(entry)})
    return (
        f"final (best): the proposer of round {', '.join(map(str, best))}, which had the most valid and new "
        "failures, asked once more, with other seeds; what repeats an earlier query is not new. Pairs: a failing "
        "query that is preferred to a passing one; the last proposer is not trained again. Self-BLEU: over 100 "
        "queries."
    )


def _is_final(entry: Row) -> bool:
    return entry["explorer"] == "explore" and entry["round"] == "final"


def _arm_note(config: Config) -> str:
    notes = [
        "Held-out failures were written by an independent proposer, and are like nothing that an arm learned"
        + ("; the target as it came fails on all of them by construction" if config.target_samples == 1 else ""),
        "every trained arm takes the same number of updates, on as many examples as target-after where it has so "
        "many"
        + (f", with {counted(config.mix, 'seed')} mixed in for each" if config.mix else "")
        + "; seed-only learns all seeds",
        "warm-up: valid queries of the proposer before preference training; warm-up-failures: those of them that "
        "the target fails on, found among at most as many as the exploration sampled; few-shot: valid queries of "
        "the proposer as it came",
    ]
    return "; ".join(notes) + "."


def _round_figures(page: Report, summary: Summary) -> None:
    own = [e for e in summary.rounds if e["explorer"] == "explore" and e["round"] != "final"]
    curve = lambda key: by_round(own, lambda entry: None if entry[key] is None else 100 * entry[key])
    curves = {
        "failures of valid": curve("valid_failure_rate"),
        "valid and new failures of all": curve("new_failure_rate"),
        "invalid": curve("invalid_share"),
        "self-BLEU × 100": curve("self_bleu"),
    }
    page.add_figure("The proposer by round, %", line_figure(curves, "rounds of preference training", "%", COLOURS))
    kinds = {name: operator.itemgetter(key) for name, key in OUTCOMES.items()}
    page.add_figure("What became of the queries", round_bars(own, kinds, "queries", COLOURS))


def _mean(values: Sequence[float | None], scale: float, digits: int) -> float | None:
    """Rounded; None where a repeat lacks the value."""
    known = [value for value in values if value is not None]
    return round(scale * (sum(known) / len(known)), digits) if len(known) == len(values) else None


def _figure_table(page: Report, summary: Summary) -> None:
    """What the application measures beside its metric."""
    rows = [
        [
            f"{SET_NAMES[kind]}: {name.replace('_', ' ')}",
            *(_mean(arm.sets[kind].further[name], 1, 3) for arm in summary.arms.values()),
        ]
        for kind in summary.sets
        for name in summary.arms["target-before"].sets[kind].further
    ]
    page.add_table("Further figures", ["", *summary.arms], sorted(rows, key=lambda row: row[0]))


def _transfer_table(page: Report, summary: Summary) -> None:
    names = {"valid": "all valid queries", "failed": "those the target failed on"}
    rates: dict[tuple[str, str], list[float | None]] = {}
    for entry in summary.transfer:
        rates.setdefault((entry["put_to"], entry["queries"]), []).append(entry["failure_rate"])
    rows = [[name, names[kind], _mean(values, 100, 1)] for (name, kind), values in rates.items()]
    page.add_table("Do failures transfer?", ["put to", "final queries", "failures, %"], rows)
