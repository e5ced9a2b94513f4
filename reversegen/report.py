"""What a run leaves behind: summary.json, the labelled failures, target and proposer, the page and the tables."""

import collections
import hashlib
import shutil
from collections.abc import Sequence
from typing import Any

from common.results.dataset import DatasetCard, Field, write_dataset
from common.results.report import Report, line_figure, percent_interval, stacked_bar_figure, terminal_table
from common.results.rundir import RunDir, read_jsonl, write_folder, write_json
from reversegen.applications.base import Application, Row
from reversegen.config import Config
from reversegen.summary import summarise, warnings

FIELDS = {
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
    "repeat": Field("int64", "Repeat of the run."),
    "round": Field("string", "Folder of the proposals: final, or a round where the target was trained along."),
    "prompt_hash": Field("string", "Start of the SHA-256 of the proposer's prompt."),
    "shown": Field("string", "Ids of the seed instructions in that prompt."),
    "sample": Field("int64", "Which sample of the prompt it was, from 0."),
    "mean_logp": Field("float64", "Mean log-probability of its tokens under its proposer."),
}
OUTCOMES = ("fail", "pass", "invalid", "unlikely", "repeated", "malformed")


def finish(
    run: RunDir, config: Config, app: Application, data: Any, repeats: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Write all products of a finished run and print its tables; returns the summary."""
    summary = summarise(run, config, app, repeats)
    rows = [row for number in range(len(repeats)) for row in _learned(run, number)]
    write_dataset(run.path / "dataset", rows, _card(config, app, rows, summary))
    for name, folder in (("model", "repeat_0/target-after/target"), ("proposer", repeats[0]["proposer"])):
        chosen = run.path / folder
        write_folder(run.path / name, lambda place, c=chosen: shutil.copytree(c, place, dirs_exist_ok=True))
    _page(config, app, summary, rows).write(run.path / "report.html")
    write_json(run.path / "summary.json", summary)
    print(final_tables(summary))
    for line in warnings(config, summary):
        print(line)
    print(f"\nreport: {run.path / 'report.html'}   figures: {run.path / 'summary.json'}")
    return summary


# --- tables ---------------------------------------------------------------------------------------------------

ROUND_HEADERS = [
    *("round", "queries", "invalid, %", "repeated, %", "failures of valid, %", "valid and new failures, %"),
    *("self-BLEU", "pairs"),
]


def round_rows(summary: dict[str, Any], explorer: str = "explore") -> list[list[Any]]:
    """One line a round, means over repeats; a figure that some repeat lacks is missing."""
    by_round: dict[Any, list[Row]] = {}
    for entry in summary["rounds"]:
        if entry["explorer"] == explorer:
            by_round.setdefault(entry["round"], []).append(entry)
    table = []
    for number, entries in by_round.items():
        mean = lambda key, of=entries: _mean([entry[key] for entry in of])
        percent = lambda value: None if value is None else round(100 * value, 1)
        name = {0: "0 (warm-up)", "final": "final (best)"}.get(number, str(number))
        bleu = mean("self_bleu")
        table.append(
            [
                name,
                round(mean("queries")),
                percent(mean("invalid_share")),
                percent(mean("repeated") / mean("queries")),
                percent(mean("valid_failure_rate")),
                percent(mean("new_failure_rate")),
                None if bleu is None else round(bleu, 2),
                round(mean("pairs")),
            ]
        )
    return table


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)


SET_NAMES = {"failures": "held-out failures", "test": "test", "general": "general queries"}


def arm_table(summary: dict[str, Any], kinds: Sequence[str] | None = None) -> tuple[list[str], list[list[Any]]]:
    """Headers and rows: every arm on every set, and beside it by how much target-after is ahead of it there."""
    arms = summary["arms"]
    kinds = kinds or list(arms["target-before"]["sets"])
    metric = arms["target-before"]["metric"]
    headers = ["arm"]
    for kind in kinds:
        headers += [f"{metric} on {SET_NAMES[kind]}, %", "target-after is ahead by"]
    table = []
    for name, arm in arms.items():
        row: list[Any] = [name]
        for kind in kinds:
            ahead = summary["gains"].get(f"target-after - {name}")
            row += [percent_interval(arm["sets"][kind])]
            row += ["" if ahead is None else percent_interval(ahead["sets"][kind], signed=True)]
        table.append([*row, round(_mean(arm["examples"])), round(_mean(arm["updates"]))])
    return [*headers, "examples", "updates"], table


def _label_rows(summary: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for name, found in summary["labels"].items():
        if found["asked"]:
            reasons = ", ".join(f"{reason} {count}" for reason, count in found["refused"].items())
            noise = round(100 * found["wrong"] / found["known"], 1) if found["known"] else None
            rows.append([name, found["asked"], found["accepted"], reasons or "–", found["known"], noise])
    return rows


LABEL_HEADERS = ["labels of", "asked for", "accepted", "refused", "truth known", "of these wrong, %"]


def final_tables(summary: dict[str, Any]) -> str:
    """What is printed at the end of a run."""
    repeats = len(summary["arms"]["target-after"]["per_repeat"])
    found = summary["exploration"]
    ratio = found["ratio"]
    times = "" if ratio is None else f", {_plain(ratio)} times the share"
    return (
        f"\n{summary['task']}, {repeats} repeat{'s' if repeats > 1 else ''}: what the proposer wrote\n\n"
        + terminal_table(ROUND_HEADERS, round_rows(summary))
        + f"\n\nvalid and new failures: warm-up {percent_interval(found['warm_up'])} %, final "
        + f"{percent_interval(found['final'])} %{times}\n\nthe target\n\n"
        + terminal_table(*arm_table(summary))
    )


def _plain(entry: dict[str, Any]) -> str:
    value = f"{entry['value']:.1f}"
    return value if entry["ci95"] is None else f"{value} [{entry['ci95'][0]:.1f}, {entry['ci95'][1]:.1f}]"


# --- the data set ---------------------------------------------------------------------------------------------


def _learned(run: RunDir, repeat: int) -> list[Row]:
    """What target-after learned of one repeat, with the provenance of every query."""
    folder = run.path / f"repeat_{repeat}"
    kept = {row["id"] for row in read_jsonl(folder / "target-after/data.jsonl")}
    labelled = [
        row for file in sorted((folder / "explore/final").rglob("labelled.jsonl")) for row in read_jsonl(file)
    ]
    judged = {
        row["id"]: row for file in sorted((folder / "explore").glob("*/queries.jsonl")) for row in read_jsonl(file)
    }
    rows = []
    for row in labelled:
        if row["id"] in kept:
            query = judged[row["id"]]
            joined = query | row | {"repeat": repeat, "target_answer": query["answers"][0]}
            joined |= {"shown": " ".join(query["shown"]), "score": float(query["score"])}
            rows.append({name: joined[name] for name in FIELDS})
    return rows


def _card(config: Config, app: Application, rows: Sequence[Row], summary: dict[str, Any]) -> DatasetCard:
    outcomes: collections.Counter[str] = collections.Counter()
    for entry in summary["rounds"]:
        if entry["explorer"] == "explore":
            outcomes.update({name: count for name, count in _outcomes(entry).items()})
    example = ""
    if rows:
        example = f"\n\nThe first query: {_shown(config, rows[0]['query'])}"
    own = config.labeler == "embedded" and config.proposer == "embedded"
    judged = config.guard or config.judge or config.reference
    if config.task == "honesty":
        judged = "the entropy of its answers"
    return DatasetCard(
        license="apache-2.0" if own and config.seeds_file is None else None,
        title=f"Queries on which {config.target} fails ({app.name}), by ReverseGen",
        made_by=(
            f"Written by {config.proposer} after up to {config.rounds} rounds of preference training against "
            f"{config.target}, judged by {judged}, answered by {config.labeler}. Near-duplicates and queries "
            f"without an agreed answer were dropped.{example}"
        ),
        fields=FIELDS,
        lineage=(
            "`prompt_hash` and `shown` name the proposer's prompt, `sample` its sample; queries.jsonl of the "
            "round holds every query with its verdict, pairs.jsonl the preference pairs."
        ),
        counts={f"query: {name}": outcomes[name] for name in OUTCOMES},
    )


def _outcomes(entry: Row) -> dict[str, int]:
    return {name: entry[{"fail": "failed", "pass": "passed"}.get(name, name)] for name in OUTCOMES}


def _shown(config: Config, text: str | None) -> str:
    """The text, or with --redact the start of its SHA-256."""
    text = text or ""
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}" if config.redact else text


# --- the page -------------------------------------------------------------------------------------------------


def _page(config: Config, app: Application, summary: dict[str, Any], rows: Sequence[Row]) -> Report:
    repeats = len(summary["arms"]["target-after"]["per_repeat"])
    page = Report(
        f"ReverseGen on {app.name}",
        f"proposer {config.proposer}, target {config.target}, {config.seed_instructions} seed instructions, "
        f"{repeats} repeat{'s' if repeats > 1 else ''}, seed {config.seed}",
    )
    notes = [line.removeprefix("note: ") for line in warnings(config, summary) if line]
    for kind in summary["arms"]["target-before"]["sets"]:
        note = _arm_note(config) if kind == "failures" else None
        page.add_table(f"The target on {SET_NAMES[kind]}", *arm_table(summary, [kind]), note=note)
    if notes:
        page.add_text("\n\n".join(notes), "Know before believing")
    page.add_table("What the proposer wrote, by round", ROUND_HEADERS, round_rows(summary), note=ROUND_NOTE)
    _round_figures(page, summary)
    held = round_rows(summary, "independent")
    page.add_table("The independent proposer, whose failures are the held-out test", ROUND_HEADERS, held)
    if labels := _label_rows(summary):
        note = "Wrong labels are counted before any are refused, where a program knows the truth."
        page.add_table("Labels", LABEL_HEADERS, labels, note=note)
    _figure_table(page, summary)
    if summary["transfer"]:
        _transfer_table(page, summary)
    page.add_table(
        "What every arm cost, summed over repeats",
        ["arm", "queries sampled", "target answers", "labels asked for", "target updates"],
        [
            [name, cost["queries"], cost["target_calls"], cost["labels_asked"], cost["optimizer_updates"]]
            for name, cost in summary["accounting"].items()
        ],
        note="The warm-up arms choose from one pool of proposals. The independent proposer costs as much again.",
    )
    page.add_examples(
        "Failures and what was made of them (repeat 0)" + (", as hashes" if config.redact else ""),
        ["Query of the best proposer", "The target's answer", "The label it learned"],
        [
            [_shown(config, row[name]) for name in ("query", "target_answer", "answer")]
            for row in [row for row in rows if row["repeat"] == 0 and row["outcome"] == "fail"][:8]
        ],
    )
    return page


ROUND_NOTE = (
    "Shares are of all queries sampled, but for the failures of valid. Repeated queries are near-duplicates of "
    "seeds, earlier queries or test questions. Pairs: a failing over a passing query. Self-BLEU is over 100 "
    "queries: higher is more alike."
)


def _arm_note(config: Config) -> str:
    notes = [
        "held-out failures were written by an independent proposer"
        + ("; the target as it came fails on all of them by construction" if config.target_samples == 1 else ""),
        "trained arms take as many updates on as many examples, where they have them"
        + (f", with {config.mix:g} seeds mixed in for each" if config.mix else "")
        + "; seed-only learns all seeds",
        "warm-up: valid queries of the proposer before preference training; warm-up-failures: its failing ones, "
        "from at most as many proposals as the exploration; few-shot: of the proposer as it came",
    ]
    return "; ".join(notes) + "."


def _round_figures(page: Report, summary: dict[str, Any]) -> None:
    own = [e for e in summary["rounds"] if e["explorer"] == "explore" and e["round"] != "final"]
    numbers = sorted({entry["round"] for entry in own})
    of = lambda key, number: _mean([entry[key] for entry in own if entry["round"] == number])
    scaled = lambda key: [None if of(key, n) is None else 100 * of(key, n) for n in numbers]
    curves = {
        "failures of valid": (numbers, scaled("valid_failure_rate")),
        "valid and new failures of all": (numbers, scaled("new_failure_rate")),
        "invalid": (numbers, scaled("invalid_share")),
        "self-BLEU × 100": (numbers, scaled("self_bleu")),
    }
    page.add_figure("The proposer by round, %", line_figure(curves, "rounds of preference training", "%"))
    counts = {
        name: [sum(_outcomes(e)[name] for e in own if e["round"] == n) for n in numbers] for name in OUTCOMES
    }
    figure = stacked_bar_figure([f"round {n}" for n in numbers], counts, "queries")
    page.add_figure("What became of the queries", figure)


def _figure_table(page: Report, summary: dict[str, Any]) -> None:
    """What the application measures beside its metric."""
    arms = summary["arms"]
    standard = {"metric", "value", "ci95", "n", "per_repeat", "items"}
    rows = []
    for kind, first in arms["target-before"]["sets"].items():
        for name in first.keys() - standard:
            values = [_mean(arm["sets"][kind][name]) for arm in arms.values()]
            rows.append(
                [
                    f"{SET_NAMES[kind]}: {name.replace('_', ' ')}",
                    *(v if v is None else round(v, 3) for v in values),
                ]
            )
    page.add_table("Further figures", ["", *arms], sorted(rows, key=lambda row: row[0]))


def _transfer_table(page: Report, summary: dict[str, Any]) -> None:
    rows = []
    for name in dict.fromkeys(entry["put_to"] for entry in summary["transfer"]):
        for kind in ("valid", "failed"):
            rates = [e["failure_rate"] for e in summary["transfer"] if (e["put_to"], e["queries"]) == (name, kind)]
            mean = _mean(rates)
            what = "all valid queries" if kind == "valid" else "those the target failed on"
            rows.append([name, what, None if mean is None else round(100 * mean, 1)])
    page.add_table("Do failures transfer?", ["put to", "final queries", "failures, %"], rows)
