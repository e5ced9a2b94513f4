"""What a selection leaves behind: summary.json, the data sets of the arms, the page and the printed tables."""

import hashlib
import itertools
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from active_inheritance.config import Config
from active_inheritance.loop import Outcome, folder_of
from active_inheritance.pools import GUARDS
from active_inheritance.scoring import Selection
from active_inheritance.select import ARMS
from active_inheritance.student_report import (
    ACCOUNT_HEADERS,
    METRIC_HEADERS,
    PROFILE_HEADERS,
    ROUND_HEADERS,
    account_rows,
    add_student,
    add_student_details,
    arm_table,
    interval,
    metric_rows,
    profile_rows,
    round_rows,
    short,
)
from active_inheritance.summary import summarise, warnings
from common.results.dataset import DatasetCard, Field, write_dataset
from common.results.report import (
    Report,
    histogram_figure,
    line_figure,
    scatter_figure,
    share_figure,
    terminal_table,
)
from common.results.rundir import RunDir, write_folder, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS = 1200
"""Answers in a scatter plot."""


def finish(
    run: RunDir, config: Config, outcomes: Sequence[Outcome], hashes: dict[str, str], unasked: int
) -> dict[str, Any]:
    """Write all products of a run and print its tables; returns the summary. See `summarise`."""
    summary = summarise(run, config, outcomes, hashes, unasked)
    if not outcomes[0].rounds and (run.path / "model").exists():
        print(f"{final_tables(summary)}\nthe student of this run is there already: {run.path / 'report.html'}")
        return summary
    selection, trained = outcomes[0].selection, summary["student"] is not None
    with run.timed("write"):
        for arm, folder in (("selected", "dataset"), *((arm, f"controls/{arm}") for arm in ARMS[:-1])):
            if not (run.path / folder).exists():
                write_dataset(run.path / folder, _rows(selection, arm), _card(config, summary, arm))
        if trained:
            chosen = run.path / folder_of(0, config.rounds - 1) / "selected/student"
            write_folder(run.path / "model", lambda place: shutil.copytree(chosen, place, dirs_exist_ok=True))
        _page(config, summary, outcomes).write(run.path / "report.html")
    write_json(run.path / "summary.json", summary)
    print(final_tables(summary))
    for line in warnings(config, summary):
        print(f"note: {line}")
    print(f"\nreport: {run.path / 'report.html'}   figures: {run.path / 'summary.json'}")
    print(
        f"data set: {run.path / 'dataset'}   controls: {run.path / 'controls'}"
        + (f"   student: {run.path / 'model'}" if trained else "")
    )
    return summary


# --- data sets ------------------------------------------------------------------------------------------------


def _rows(selection: Selection, arm: str) -> Iterator[dict[str, Any]]:
    for row in selection.rows(arm):
        scores = row.pop("scores")
        yield row | scores


def _card(config: Config, summary: dict[str, Any], arm: str) -> DatasetCard:
    rule = summary["rule"]
    fields = {
        "id": Field("string", "The prompt's id in the pool; with #rank where several answers are taken."),
        "prompt": Field("string", "The prompt."),
        "answer": Field("string", "The answer that this arm takes."),
        "source": Field("string", "Who wrote it."),
        "index": Field("int64", "Which of this source's answers to the prompt it is, from 0."),
        "rank": Field("int64", "Which of the answers taken for the prompt it is, from 0."),
        "reason": Field("string", "Why the selected answer was taken."),
        "margin": Field("float64", "By how much the best answer is ahead of the next; null where there is none."),
    }
    fields |= {name: Field("float64", f"Score, by {version}.") for name, version in summary["scorers"].items()}
    how = {
        "selected": f"best by {', '.join(rule['objectives'])}",
        "first": "the first answer of the first source",
        "random": "a uniform draw of the usable answers",
        "matched": "the answer, other than the selected one, nearest to it in words",
    }[arm]
    under = f" under {', '.join(rule['constraints'])}" if rule["constraints"] and arm == "selected" else ""
    return DatasetCard(
        title=f"Answers by Active Inheritance: {arm}",
        made_by=(
            f"Of each prompt's answers {_pool_name(summary)}, {how}{under}. Sources: "
            f"{', '.join(summary['pool']['sources'])}."
        ),
        fields=fields,
        lineage="id, source and index name the answer; pool/ of the run holds all answers with their scores.",
        counts={f"answers: {name}": count for name, count in _outcomes(summary).items()}
        if arm == "selected"
        else {},
    )


def _pool_name(summary: dict[str, Any]) -> str:
    made = summary["sampling"]
    if made is None:
        return f"in the pool {summary['pool']['file']} (SHA-256 {summary['pool']['sha256']}…)"
    if made["method"] == "diverse-beam":
        return f"({made['k']}, by diverse beam search with penalty {made['diversity_penalty']:g})"
    return f"({made['k']}, sampled at temperature {made['temperature']:g} and top-p {made['top_p']:g})"


def _outcomes(summary: dict[str, Any]) -> dict[str, int]:
    """What became of all answers of the pool. One with two faults counts under both."""
    total = lambda name: sum(count.get(name, 0) for count in summary["pool"]["sources"].values())
    return {name: total(name) for name in ("answers", *GUARDS, "usable")}


# --- tables ---------------------------------------------------------------------------------------------------

OBJECTIVE_HEADERS = ["objective", "pool", "spread", "none, %", "lift predicted", "lift realised", "best of pool"]
OBJECTIVE_HEADERS += ["headroom"]


def objective_rows(summary: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for name, entry in summary["data"]["objectives"].items():
        row = [name, short(entry["pool"]), short(entry["within_prompt_spread"])]
        row.append(f"{100 * entry['without_spread_share']:.1f}")
        keys = ("lift_predicted", "lift_realised", "best_of_pool", "headroom")
        rows.append([*row, *(short(entry[key]) for key in keys)])
    return rows


SCORE_HEADERS = ["score", "pool", "random", "matched", "selected", "selected - random", "relative", "in spreads"]


def score_rows(summary: dict[str, Any]) -> list[list[Any]]:
    """Every score, those selected by first, and how far the selected answers are from the random ones."""
    rows = []
    for name, entry in summary["data"]["scores"].items():
        lift = entry["selected - random"]
        relative = None if lift["relative"] is None else f"{100 * lift['relative']:+.1f}%"
        spreads = lift["value"] / entry["spread"] if entry["spread"] and lift["value"] is not None else None
        columns = [short(entry[key]) for key in ("pool", "random", "matched", "selected")]
        rows.append([name, *columns, interval(lift), relative, None if spreads is None else f"{spreads:+.2f}"])
    return rows


SOURCE_HEADERS = ["source", "answers", "usable", "wins", "share, %", "by chance, %"]


def source_rows(summary: dict[str, Any]) -> list[list[Any]]:
    """Sources by how often they are selected."""
    rows = []
    for source, entry in summary["data"]["sources"].items():
        answers = summary["pool"]["sources"][source]["answers"]
        shares = (round(100 * entry[key], 1) for key in ("selected_share", "chance_share"))
        means = [short(value) for key, value in entry.items() if key.startswith("mean ")]
        rows.append([source, answers, entry["usable"], entry["wins"], *shares, *means])
    return sorted(rows, key=lambda row: (-row[3], row[0]))


def _source_headers(summary: dict[str, Any]) -> list[str]:
    first = next(iter(summary["data"]["sources"].values()))
    return SOURCE_HEADERS + [key for key in first if key.startswith("mean ")]


def final_tables(summary: dict[str, Any]) -> str:
    """What is printed at the end of a selection."""
    data, rule = summary["data"], summary["rule"]
    how = ", ".join(rule["objectives"]) + (
        f" under {', '.join(rule['constraints'])}" if rule["constraints"] else ""
    )
    return (
        f"\n{data['prompts']} prompts, {data['answers_usable']} usable answers from "
        f"{len(summary['pool']['sources'])} sources, selected by {how}\n\n"
        + terminal_table(OBJECTIVE_HEADERS, objective_rows(summary))
        + "\n\n"
        + terminal_table(SCORE_HEADERS, score_rows(summary))
        + "\n\n"
        + terminal_table(_source_headers(summary), source_rows(summary))
        + "\n"
        + (_student_tables(summary) if summary["student"] else "")
    )


def _student_tables(summary: dict[str, Any]) -> str:
    own = summary["student"]
    repeats = f"{own['repeats']} repeat{'s' if own['repeats'] > 1 else ''}"
    return (
        f"\nthe student on {own['held_out_prompts']} held-out prompts, {repeats}\n\n"
        + terminal_table(*arm_table(summary))
        + "\n\n"
        + terminal_table(METRIC_HEADERS, metric_rows(summary))
        + "\n"
        + (f"\n{terminal_table(PROFILE_HEADERS, profile_rows(summary))}\n" if summary["profile"] else "")
        + (f"\n{terminal_table(ROUND_HEADERS, round_rows(summary))}\n" if summary["rounds"] else "")
    )


# --- the page -------------------------------------------------------------------------------------------------


def _page(config: Config, summary: dict[str, Any], outcomes: Sequence[Outcome]) -> Report:
    data, rule, selection = summary["data"], summary["rule"], outcomes[0].selection
    page = Report(
        f"Active Inheritance: {', '.join(rule['objectives'])}",
        f"{data['prompts']} prompts, {data['answers_usable']} usable answers of {len(summary['pool']['sources'])} "
        f"sources{', ' + ', '.join(rule['constraints']) if rule['constraints'] else ''}, seed {config.seed}",
    )
    if summary["student"]:
        add_student(page, summary)
    page.add_table(
        "What was selected for", OBJECTIVE_HEADERS, objective_rows(summary), note=_objective_note(summary)
    )
    if notes := warnings(config, summary):
        page.add_text("\n\n".join(notes), "Know before believing")
    if summary["student"]:
        add_student_details(page, config, summary, outcomes[0])
    _figures(page, config, selection, summary)
    page.add_table(
        "What selection does to every score", SCORE_HEADERS, score_rows(summary), note=_score_note(summary)
    )
    names = list(data["correlations"])
    page.add_table(
        "Which scores go together within a prompt",
        ["", *names],
        [[a, *(None if v is None else round(v, 2) for v in data["correlations"][a].values())] for a in names],
        note="Pearson's correlation of the usable answers to one prompt, from -1 to 1.",
    )
    page.add_table("Who wrote what was selected", _source_headers(summary), source_rows(summary), note=SOURCE_NOTE)
    page.add_table(
        "What became of the answers",
        ["source", "answers", *GUARDS, "usable", "mean words"],
        [
            [
                source,
                *(count.get(name, 0) for name in ("answers", *GUARDS, "usable")),
                round(count["words"] / count["answers"], 1),
            ]
            for source, count in summary["pool"]["sources"].items()
        ],
        note=f"Not used: {', '.join(config.drop) or 'none'}. An answer may have two faults.",
    )
    if summary["sampling"]:
        page.add_table("What the sources cost", ACCOUNT_HEADERS, account_rows(summary), note="Over all repeats.")
    page.add_table("Why", ["reason", "prompts"], [[reason, n] for reason, n in data["reasons"].items()])
    page.add_table("By what", ["score", "scorer and version"], [[*pair] for pair in summary["scorers"].items()])
    page.add_examples(
        "Selected beside random" + (", as hashes" if config.redact else ""),
        ["Prompt", "Selected", "Random"],
        [[_shown(config, text) for text in texts] for texts in _examples(selection, 8)],
    )
    return page


def _objective_note(summary: dict[str, Any]) -> str:
    data = summary["data"]
    return (
        "Spread: standard deviation within a prompt, averaged; none: share of prompts without any. Lifts are over "
        "the mean of the pool; predicted: what the objective alone would give if scores of the feasible answers "
        "were normal. Best of pool: without constraints and other objectives; headroom: how far the selection "
        f"stays from it. The choice is at most {data['kl_bound_nats']:.2f} nats from what was drawn from."
    )


SOURCE_NOTE = "By chance: the share a uniform draw from the usable answers would have."


def _score_note(summary: dict[str, Any]) -> str:
    rule = summary["rule"]
    return (
        "95% bootstrap intervals over prompts of the difference to the random control. In spreads: that "
        "difference in standard deviations within a prompt. Matched: other answers of about the selected one's "
        "length. "
        f"Objectives: {', '.join(rule['objectives'])}; everything else is a side effect."
    )


def _figures(page: Report, config: Config, selection: Selection, summary: dict[str, Any]) -> None:
    found, data, objectives = selection.tally, summary["data"], config.rule().objectives
    place = {name: m for m, name in enumerate(found.metrics)}
    shown = np.unique(found.sample_of)
    for objective in objectives[:3]:
        m = place[objective.name]
        series = {"pool": found.sample[:, m], **{arm: found.arm(arm)[shown, m] for arm in ("random", "selected")}}
        page.add_figure(f"Distribution of {objective.name}", histogram_figure(series, objective.name))
    curves = {}
    for objective in objectives[:3]:
        scores = data["sweep"]["scores"][objective.name]
        spread = data["scores"][objective.name]["spread"] or 1.0
        lifts = [None if score is None else (score - scores[0]) / spread for score in scores]
        curves[str(objective)] = (data["sweep"]["k"], lifts)
    if len(data["sweep"]["k"]) > 1:
        figure = line_figure(curves, "answers of a prompt (k)", "lift in spreads")
        how = "" if data["sweep"]["exact"] else ", by the ranking of the full pool"
        page.add_figure(f"Lift of the best against k, over all ways to thin the pool{how}", figure)
    if len(objectives) == 2:
        page.add_figure(
            "Both objectives, as differences to the mean of the prompt's pool in standard deviations within it",
            _scatter(selection, [place[objective.name] for objective in objectives], shown),
        )
    entries = sorted(data["sources"].items(), key=lambda pair: (-pair[1]["selected_share"], pair[0]))[:25]
    if len(entries) > 1:
        shares, chances = ([100 * e[key] for _, e in entries] for key in ("selected_share", "chance_share"))
        labels = ("selected", "by chance", "% of selected answers")
        page.add_figure("Share of sources", share_figure([name for name, _ in entries], shares, chances, labels))


def _scatter(selection: Selection, columns: list[int], shown: np.ndarray) -> "Figure":
    found = selection.tally

    def dots(values: np.ndarray, prompts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled = (values - found.pool[prompts]) / found.spread[prompts]
        few = scaled[:: -(-len(scaled) // most), columns]
        return tuple(few[np.isfinite(few).all(axis=1)].T)

    series = {"pool": dots(found.sample, found.sample_of, DOTS)}
    series |= {arm: dots(found.arm(arm)[shown], shown, DOTS // 4) for arm in ("random", "selected")}
    return scatter_figure(series, *(found.metrics[m] for m in columns))


def _examples(selection: Selection, count: int) -> Iterator[list[str]]:
    pairs = itertools.islice(selection.prompts(), 4 * count)
    shown = 0
    for pool, chosen in pairs:
        if chosen["arms"] and chosen["arms"]["selected"] != chosen["arms"]["random"] and shown < count:
            shown += 1
            texts = [pool["answers"][chosen["arms"][arm][0]] for arm in ("selected", "random")]
            yield [pool["prompt"], *(f"{answer['text']}\n— {answer['source']}" for answer in texts)]


def _shown(config: Config, text: str) -> str:
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}" if config.redact else text
