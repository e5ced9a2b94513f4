"""The page of a run, and its tables on the data, which are printed as well."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from active_inheritance.forecast import Array, Forecast, Tally
from active_inheritance.outcome import Outcome
from active_inheritance.pools import GUARDS
from active_inheritance.scoring import Selection
from active_inheritance.student_report import (
    COLOURS,
    Table,
    add_student,
    add_student_details,
    interval,
    of_first,
    percent,
    short,
)
from active_inheritance.summary import StudentSummary, Summary
from active_inheritance.switches import Switches
from common.results.charts import dots
from common.results.conclusion import counted, mixed
from common.results.estimate import Estimate
from common.results.plots import INK, histogram_figure, line_figure, scatter_figure, share_figure
from common.results.report import Report
from common.text.glossary import explain, reason

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKED_THROUGH = 500
"""Prompts among which examples of refused answers are looked for."""
DOTS = 1200
"""Answers in a scatter plot."""


# --- tables ---------------------------------------------------------------------------------------------------


OBJECTIVE_NOTE = (
    "None: share of prompts without any spread. Lift predicted: what the objective alone would give if scores of "
    "the feasible answers were normal. Best of pool: without constraints and other objectives."
)
SCORE_NOTE = (
    "95% bootstrap intervals over prompts of the difference to the random control. In spreads: that difference in "
    "standard deviations within a prompt. Matched: other answers of about the selected one's length."
)
CHANCE_NOTE = "By chance: the share a uniform draw from the usable answers would have."


def objectives_of(summary: Summary) -> Table:
    """What was to be expected of every objective, and what came of it."""
    headers = ["objective", "pool", "spread", "none, %", "lift predicted", "lift realised", "best of pool"]
    return [*headers, "headroom"], [
        [
            name,
            *map(short, (e.pool, e.within_prompt_spread)),
            f"{100 * e.without_spread_share:.1f}",
            *map(short, (e.lift_predicted, e.lift_realised, e.best_of_pool, e.headroom)),
        ]
        for name, e in summary.data.objectives.items()
    ]


def scores_of(summary: Summary) -> Table:
    """Every score, those selected by first, and how far the selected answers are from the random ones."""
    headers = ["score", "pool", "random", "matched", "selected", "selected - random", "relative", "in spreads"]
    rows = []
    for name, entry in summary.data.scores.items():
        lift, spread = entry["selected - random"], entry["spread"]
        values = (short(entry[key]) for key in ("pool", "random", "matched", "selected"))
        spreads = f"{lift['value'] / spread:+.2f}" if spread and lift["value"] is not None else None
        rows.append([name, *values, interval(lift["value"], lift["ci95"]), percent(lift["relative"]), spreads])
    return headers, rows


def sources_of(summary: Summary) -> Table:
    """Sources by how often they are selected, with the means of the objectives."""
    headers = ["source", "answers", "usable", "wins", "share, %", "by chance, %"]
    rows = []
    for source, entry in summary.data.sources.items():
        answers = summary.pool["sources"][source]["answers"]
        shares = (round(100 * entry[key], 1) for key in ("selected_share", "chance_share"))
        means = [short(value) for key, value in entry.items() if key.startswith("mean ")]
        rows.append([source, answers, entry["usable"], entry["wins"], *shares, *means])
    first = next(iter(summary.data.sources.values()))
    headers += [key for key in first if key.startswith("mean ")]
    return headers, sorted(rows, key=lambda row: (-row[3], row[0]))


# --- the page -------------------------------------------------------------------------------------------------


def page_of(summary: Summary, first: Outcome, switches: Switches, redact: bool) -> Report:
    """The whole page. `first`: the first repeat, whose data and answers it shows; `redact`: answers as hashes."""
    data, rule, pool = summary.data, summary.rule, summary.pool
    page = Report(
        f"Active Inheritance: {', '.join(rule['objectives'])}",
        f"{counted(data.prompts, 'prompt')}, {data.answers_usable} usable answers of "
        f"{counted(len(pool['sources']), 'source')}, "
        + "".join(f"{constraint}, " for constraint in rule["constraints"])
        + f"seed {switches.rule.seed}",
    )
    if isinstance(summary, StudentSummary):
        add_student(page, summary, first.selection.rule.objectives)
    where = of_first(summary.student)
    page.chapter(f"What was selected{where}")
    _lifts(page, data, where)
    page.add_table(
        f"What was selected for{where}",
        *objectives_of(summary),
        note=f"{OBJECTIVE_NOTE} The choice is at most {data.kl_bound_nats:.2f} nats from what was drawn from.",
        terms=explain(
            *(objective.rpartition(":")[0] for objective in data.objectives), "spread", "lift", "headroom"
        ),
    )
    _figures(page, first.selection, data, where)
    page.add_table(
        f"What selection does to every score{where}",
        *scores_of(summary),
        note=f"{SCORE_NOTE} Objectives: {', '.join(rule['objectives'])}; everything else is a side effect.",
        terms=explain(*data.scores),
    )
    names = list(data.correlations)
    page.add_table(
        f"Which scores go together within a prompt{where}",
        ["", *names],
        [[a, *(None if v is None else round(v, 2) for v in data.correlations[a].values())] for a in names],
        note="Pearson's correlation of the usable answers to one prompt, from -1 to 1.",
    )
    page.add_table(f"Who wrote what was selected{where}", *sources_of(summary), note=CHANCE_NOTE)
    _show_examples(page, first.selection, switches, redact, where)
    if isinstance(summary, StudentSummary):
        add_student_details(page, summary, first)
    page.chapter("Details")
    page.add_table(
        f"What became of the answers{where}",
        ["source", "answers", *faults(pool), "usable", "mean words"],
        [
            [
                source,
                *(count.get(name, 0) for name in ("answers", *faults(pool), "usable")),
                round(count["words"] / count["answers"], 1),
            ]
            for source, count in pool["sources"].items()
        ],
        note=f"Not used: {', '.join(switches.scoring.drop) or 'none'}. An answer may have two faults.",
    )
    if summary.sampling is not None:
        page.add_table(
            "What the sources cost",
            ["source", "calls", "tokens sent", "tokens received", "truncated, %", "failed"],
            [
                [
                    name,
                    *(entry[key] for key in ("calls", "prompt_tokens", "completion_tokens")),
                    round(100 * entry["truncated_share"], 1),
                    entry["failed"],
                ]
                for name, entry in summary.sampling["sources"].items()
            ],
            note="Over all repeats.",
        )
    page.add_table(f"Why{where}", ["reason", "prompts"], [[reason, n] for reason, n in data.reasons.items()])
    page.add_table("By what", ["score", "scorer and version"], [[*pair] for pair in summary.scorers.items()])
    return page


def _lifts(page: Report, data: Forecast, where: str) -> None:
    """How far selected answers are from random ones in every score, in spreads, so that one axis serves all."""
    names = [objective.rpartition(":")[0] for objective in data.objectives]
    rows = {}
    for name, entry in data.scores.items():
        lift, spread = entry["selected - random"], entry["spread"]
        if spread and lift["value"] is not None:
            ends = lift["ci95"]  # which too few prompts with this score leave out
            within = None if ends is None else (ends[0] / spread, ends[1] / spread)
            rows[name] = Estimate(value=lift["value"] / spread, ci95=within)
    axis = "selected - random, in standard deviations within a prompt"
    # Scores are no arms, and have no colour of theirs.
    chart = dots(rows, axis, ours=names, line=0, decimals=2, signed=True, colours=dict.fromkeys(names, INK))
    page.add_chart(f"What selection does to every score{where}", chart)


def _show_examples(page: Report, selection: Selection, switches: Switches, redact: bool, where: str) -> None:
    """Answers that were selected, and answers that could not be."""
    page.chapter("Examples")
    shown = lambda text: f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}" if redact else text
    hashes = ", as hashes" if redact else ""
    page.add_examples(
        f"Kept: selected beside random{where}{hashes}",
        ["Prompt", "Selected", "Random"],
        [[shown(text) for text in texts] for texts in _examples(selection, 8)],
    )
    refused = (
        (pool["prompt"], f"{answer['text']}\n— {answer['source']}", "; ".join(map(reason, answer["flags"])))
        for pool, _ in itertools.islice(selection.prompts(), LOOKED_THROUGH)
        for answer in pool["answers"]
        if switches.scoring.drops(answer["flags"])
    )
    page.add_examples(
        f"Refused: answers that no student may learn{where}{hashes}",
        ["Prompt", "Answer", "Why it was refused"],
        [[shown(prompt), shown(answer), why] for prompt, answer, why in mixed(refused, lambda row: row[2], 8)],
    )


def _figures(page: Report, selection: Selection, data: Forecast, where: str) -> None:
    found, objectives = selection.tally, selection.rule.objectives
    place = {name: m for m, name in enumerate(found.metrics)}
    shown = np.unique(found.sample_of)
    for objective in objectives[:3]:
        m = place[objective.name]
        series = {"pool": found.sample[:, m], **{arm: found.arm(arm)[shown, m] for arm in ("random", "selected")}}
        lists = {name: values.tolist() for name, values in series.items()}
        drawn = histogram_figure(lists, objective.name, colours=COLOURS)
        page.add_figure(f"Distribution of {objective.name}{where}", drawn)
    curves = {}
    for objective in objectives[:3]:
        scores = data.sweep["scores"][objective.name]
        spread = data.scores[objective.name]["spread"] or 1.0
        lifts = [None if score is None else (score - scores[0]) / spread for score in scores]
        curves[str(objective)] = (data.sweep["k"], lifts)
    if len(data.sweep["k"]) > 1:
        figure = line_figure(curves, "answers of a prompt (k)", "lift in spreads", COLOURS)
        how = "" if data.sweep["exact"] else ", by the ranking of the full pool"
        page.add_figure(f"Lift of the best against k, over all ways to thin the pool{how}{where}", figure)
    if len(objectives) == 2:
        page.add_figure(
            "Both objectives, as differences to the mean of the prompt's pool in standard deviations within it"
            f"{where}",
            _scatter(found, [place[objective.name] for objective in objectives], shown),
        )
    entries = sorted(data.sources.items(), key=lambda pair: (-pair[1]["selected_share"], pair[0]))[:25]
    if len(entries) > 1:
        shares, chances = ([100 * e[key] for _, e in entries] for key in ("selected_share", "chance_share"))
        labels = ("selected", "by chance", "% of selected answers")
        drawn = share_figure([name for name, _ in entries], shares, chances, labels, COLOURS)
        page.add_figure(f"Share of sources{where}", drawn)


def _scatter(found: Tally, columns: list[int], shown: NDArray[np.int64]) -> "Figure":
    """Dots of two scores, by prompt centred and scaled, so that prompts of any level lie over one another."""

    def dots(values: Array, prompts: NDArray[np.int64], most: int) -> tuple[list[float], list[float]]:
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled = (values - found.pool[prompts]) / found.spread[prompts]
        few = scaled[:: -(-len(scaled) // most), columns]
        x, y = few[np.isfinite(few).all(axis=1)].T.tolist()
        return x, y

    series = {"pool": dots(found.sample, found.sample_of, DOTS)}
    series |= {arm: dots(found.arm(arm)[shown], shown, DOTS // 4) for arm in ("random", "selected")}
    return scatter_figure(series, *(found.metrics[m] for m in columns), colours=COLOURS)


def _examples(selection: Selection, count: int) -> Iterator[list[str]]:
    """Prompts near the beginning, with a selected and a random answer that differ."""
    differing = (
        (pool, [pool["answers"][chosen["arms"][arm][0]] for arm in ("selected", "random")])
        for pool, chosen in itertools.islice(selection.prompts(), 4 * count)
        if chosen["arms"] and chosen["arms"]["selected"] != chosen["arms"]["random"]
    )
    for pool, answers in itertools.islice(differing, count):
        yield [pool["prompt"], *(f"{answer['text']}\n— {answer['source']}" for answer in answers)]


def faults(pool: Mapping[str, Any]) -> tuple[str, ...]:
    """What is told of answers: of unlikely ones only where there are any, as most sources tell no likelihoods."""
    return tuple(
        name for name in GUARDS if name != "unlikely" or any(name in count for count in pool["sources"].values())
    )
