"""What a run leaves behind: the data sets of the arms, the student, the page and the printed tables."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from active_inheritance.forecast import Array, Forecast, Tally
from active_inheritance.outcome import Outcome, Row, folder_of
from active_inheritance.pools import GUARDS
from active_inheritance.scoring import Selection
from active_inheritance.select import ARMS, FAR, Rule
from active_inheritance.student_figures import AGAINST
from active_inheritance.student_report import (
    Table,
    add_student,
    add_student_details,
    arms_of,
    decimals,
    interval,
    metrics_of,
    percent,
    profile_of,
    rounds_of,
    short,
    student_warnings,
)
from active_inheritance.summary import StudentSummary, Summary, warnings
from active_inheritance.switches import Switches
from common import progress
from common.backends.open import model_name
from common.results.card import ModelCard
from common.results.charts import dots
from common.results.conclusion import Conclusion, counted, mixed, verdict
from common.results.dataset import LEARNED, PREFERRED, DatasetCard, Field, reply, write_dataset
from common.results.estimate import Estimate, Gain
from common.results.plots import histogram_figure, line_figure, scatter_figure, share_figure
from common.results.report import Report
from common.results.rundir import RunDir
from common.results.tables import terminal_table
from common.tasks.prompts import messages
from common.text.glossary import explain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKED_THROUGH = 500
"""Prompts among which examples of refused answers are looked for."""
DOTS = 1200
"""Answers in a scatter plot."""
SIDES = ("chosen", "rejected")
INSTRUCTION = Field("string", "The prompt as a text.")


def conclusion(
    run: RunDir, summary: Summary, switches: Switches, first: Outcome, redact: bool, command: str
) -> Conclusion:
    """What a finished run shows; stores the data sets and the selected student. `first`: the first repeat, where
    the page shows one; `redact`: it shows hashes in place of texts; `command`: what made the run."""
    trained = isinstance(summary, StudentSummary)
    notes = [*(student_warnings(switches, summary) if trained else []), *warnings(switches, summary)]
    # Of no repeat; and what is read for it lies in all of them.
    with run.timed("write"), progress.at("dataset"):
        for arm, folder in (("selected", "dataset"), *((arm, f"controls/{arm}") for arm in ARMS[:-1])):
            if not (run.path / folder).exists():
                write_dataset(run.path / folder, map(_learned, first.selection.rows(arm)), _card(summary, arm))
        if not (run.path / "preferences").exists():
            rule = first.selection.rule
            pairs = (_preferred(pair, rule.names) for pair in first.selection.pairs())
            write_dataset(run.path / "preferences", pairs, _pair_card(summary, rule))
        products = {"data set": "dataset", "preferences": "preferences", "controls": "controls"}
        if trained:
            from common.stages import publish  # a selection alone needs no jax

            products["student"] = "model"
            card = _model_card(summary, notes, command)
            products |= publish(run, f"{folder_of(0, switches.rounds - 1)}/selected/student", card)
        page = _page(summary, first, switches, redact)
    return Conclusion(summary, final_tables(summary), page, notes, _verdict(summary), products, command)


def _verdict(summary: Summary) -> str | None:
    """Whether selection is shown to do more than distillation does, by the first objective; of a selection alone
    what is shown of the data."""
    if not isinstance(summary, StudentSummary):
        name = next(iter(summary.data.objectives)).rpartition(":")[0]
        lift = summary.data.scores[name]["selected - random"]
        gain = Estimate(value=lift["value"], ci95=lift["ci95"])
        places = decimals(gain.value or 0.0)
        said = verdict(
            [("selected", AGAINST, gain)], f"{name} in the data", 1, places, ("above", "below"), "prompts"
        )
        return None if said is None else f"{said[:-1]}; what a student learns from it was not measured."
    compared = []
    for other in (AGAINST, "base"):
        if (found := summary.gains.get(f"selected - {other}")) is None:
            continue
        # With one repeat the interval is over prompts and says nothing about other seeds.
        over = (None, found.ci95) if summary.student.repeats == 1 else (found.ci95, None)
        compared.append(("selected", other, Gain(value=found.value, ci95=over[0], bootstrap95=over[1])))
    metric, places = summary.arms["selected"].metric, decimals(compared[0][2].value or 0.0)
    return verdict(compared, metric, 1, places, ways=("above", "below"))


# --- data sets ------------------------------------------------------------------------------------------------


def _learned(row: Row) -> Row:
    """A row of `Selection.rows` as it is written."""
    chat = {"prompt": messages(row["prompt"]), "completion": reply(row["answer"]), "instruction": row["prompt"]}
    return {name: value for name, value in (row | chat).items() if name != "scores"} | row["scores"]


def _preferred(pair: Row, names: Sequence[str]) -> Row:
    """A row of `Selection.pairs` as it is written. `names`: of the scores that stand beside it."""
    found = {"prompt": messages(pair["prompt"]), "id": pair["id"], "instruction": pair["prompt"]}
    for side in SIDES:
        answer = pair[side]
        found |= {side: reply(answer["text"])} | {f"{side}_{key}": answer[key] for key in ("source", "index")}
        found |= {f"{side}_{name}": answer["scores"][name] for name in names}
    return found


def _pair_card(summary: Summary, rule: Rule) -> DatasetCard:
    fields = PREFERRED | {"id": Field("string", "The prompt's id in the pool."), "instruction": INSTRUCTION}
    for side in SIDES:
        fields |= {
            f"{side}_source": Field("string", f"Who wrote the {side} answer."),
            f"{side}_index": Field("int64", "Which of this source's answers to the prompt it is, from 0."),
        }
        fields |= {
            f"{side}_{name}": Field("float64", f"Score of the {side} answer, by {summary.scorers[name]}.")
            for name in rule.names
        }
    against = {
        "far": f"the one nearest to {FAR:g} standard deviations below the mean of them",
        "worst": "the last of them",
        "random": "a uniform draw of them",
    }[rule.rejected]
    return DatasetCard(
        title=f"Preferences by Active Inheritance: {', '.join(map(str, rule.objectives))}",
        made_by=(
            f"Of each prompt's answers {_pool_name(summary)}, the one selected by {rule}, chosen, against one of "
            f"those that meet the constraints as well and rank behind it: {against}, rejected. Prompts without "
            "such an answer have no pair."
        ),
        fields=fields,
        lineage="id, source and index name the answers; pool/ of the run holds all answers with their scores.",
    )


def _model_card(summary: StudentSummary, notes: Sequence[str], command: str) -> ModelCard:
    rounds = f" after {summary.student.rounds} rounds" if summary.student.rounds > 1 else ""
    return ModelCard(
        title=f"{', '.join(summary.rule['objectives'])} by Active Inheritance",
        base=model_name(summary.student.name, "student"),
        method="active-inheritance",
        learned=(
            f"The arm selected of the first repeat{rounds}: fine-tuned on the best of several answers to each "
            f"prompt, by {', '.join(summary.rule['objectives'])}. Sources: {', '.join(summary.pool['sources'])}."
        ),
        tables={"Every arm on held-out prompts": arms_of(summary)},
        verdict=_verdict(summary),
        warnings=notes,
        command=command,
    )


def _card(summary: Summary, arm: str) -> DatasetCard:
    rule = summary.rule
    fields = LEARNED | {
        "id": Field("string", "The prompt's id in the pool; with #rank where several answers are taken."),
        "instruction": INSTRUCTION,
        "answer": Field("string", "The answer that this arm takes, as a text."),
        "source": Field("string", "Who wrote it."),
        "index": Field("int64", "Which of this source's answers to the prompt it is, from 0."),
        "rank": Field("int64", "Which of the answers taken for the prompt it is, from 0."),
        "reason": Field("string", "Why the selected answer was taken."),
        "margin": Field("float64", "By how much the best answer is ahead of the next; null where there is none."),
    }
    fields |= {name: Field("float64", f"Score, by {version}.") for name, version in summary.scorers.items()}
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
            f"{', '.join(summary.pool['sources'])}."
        ),
        fields=fields,
        lineage="id, source and index name the answer; pool/ of the run holds all answers with their scores.",
        counts={
            f"answers: {name}": sum(count.get(name, 0) for count in summary.pool["sources"].values())
            # An answer with two faults counts under both.
            for name in ("answers", *_faults(summary.pool), "usable")
            if arm == "selected"
        },
    )


def _pool_name(summary: Summary) -> str:
    made = summary.sampling
    if made is None:
        return f"in the pool {summary.pool['file']} (SHA-256 {summary.pool['sha256']}…)"
    if made["method"] == "diverse-beam":
        return f"({made['k']}, by diverse beam search with penalty {made['diversity_penalty']:g})"
    return f"({made['k']}, sampled at temperature {made['temperature']:g} and top-p {made['top_p']:g})"


# --- tables ---------------------------------------------------------------------------------------------------


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


def final_tables(summary: Summary) -> str:
    """What is printed at the end of a run."""
    data, rule = summary.data, summary.rule
    under = f" under {', '.join(rule['constraints'])}" if rule["constraints"] else ""
    usable = f"{data.answers_usable} usable answers from {counted(len(summary.pool['sources']), 'source')}"
    tables = [
        (
            "the objective in the data: what was to be expected of selection, and what came of it",
            objectives_of(summary),
        ),
        ("scores of the answers, on average, by how they were chosen", scores_of(summary)),
        ("who wrote them", sources_of(summary)),
    ]
    if isinstance(summary, StudentSummary):
        own = summary.student
        tables += [
            (
                f"the student on {own.held_out_prompts} held-out prompts, {counted(own.repeats, 'repeat')}",
                arms_of(summary),
            ),
            ("scores of its answers; transfer: how much of the change in the data came over", metrics_of(summary)),
            ("its profile, before and after", profile_of(summary)),
            ("round by round", rounds_of(summary)),
        ]
    parts = [f"{counted(data.prompts, 'prompt')}, {usable}, selected by {', '.join(rule['objectives'])}{under}"]
    parts += [f"{caption}\n\n{terminal_table(*table)}" for caption, table in tables if table[1]]
    return "\n\n".join(parts)


# --- the page -------------------------------------------------------------------------------------------------


def _page(summary: Summary, first: Outcome, switches: Switches, redact: bool) -> Report:
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
    page.chapter("What was selected")
    _lifts(page, data)
    page.add_table(
        "What was selected for",
        *objectives_of(summary),
        note="None: share of prompts without any spread. Lift predicted: what the objective alone would give if "
        "scores of the feasible answers were normal. Best of pool: without constraints and other objectives. "
        f"The choice is at most {data.kl_bound_nats:.2f} nats from what was drawn from.",
        terms=explain(
            *(objective.rpartition(":")[0] for objective in data.objectives), "spread", "lift", "headroom"
        ),
    )
    _figures(page, first.selection, data)
    page.add_table(
        "What selection does to every score",
        *scores_of(summary),
        note="95% bootstrap intervals over prompts of the difference to the random control. In spreads: that "
        "difference in standard deviations within a prompt. Matched: other answers of about the selected one's "
        f"length. Objectives: {', '.join(rule['objectives'])}; everything else is a side effect.",
        terms=explain(*data.scores),
    )
    names = list(data.correlations)
    page.add_table(
        "Which scores go together within a prompt",
        ["", *names],
        [[a, *(None if v is None else round(v, 2) for v in data.correlations[a].values())] for a in names],
        note="Pearson's correlation of the usable answers to one prompt, from -1 to 1.",
    )
    by_chance = "By chance: the share a uniform draw from the usable answers would have."
    page.add_table("Who wrote what was selected", *sources_of(summary), note=by_chance)
    _show_examples(page, first.selection, switches, redact)
    if isinstance(summary, StudentSummary):
        add_student_details(page, summary, first)
    page.chapter("Details")
    page.add_table(
        "What became of the answers",
        ["source", "answers", *_faults(pool), "usable", "mean words"],
        [
            [
                source,
                *(count.get(name, 0) for name in ("answers", *_faults(pool), "usable")),
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
    page.add_table("Why", ["reason", "prompts"], [[reason, n] for reason, n in data.reasons.items()])
    page.add_table("By what", ["score", "scorer and version"], [[*pair] for pair in summary.scorers.items()])
    return page


def _lifts(page: Report, data: Forecast) -> None:
    """How far selected answers are from random ones in every score, in spreads, so that one axis serves all."""
    names = [objective.rpartition(":")[0] for objective in data.objectives]
    rows = {}
    for name, entry in data.scores.items():
        lift, spread = entry["selected - random"], entry["spread"]
        if spread and lift["value"] is not None:
            low, high = (x / spread for x in lift["ci95"])
            rows[name] = Estimate(value=lift["value"] / spread, ci95=(low, high))
    axis = "selected - random, in standard deviations within a prompt"
    chart = dots(rows, axis, ours=names, line=0, decimals=2, signed=True)
    page.add_chart("What selection does to every score", chart)


def _show_examples(page: Report, selection: Selection, switches: Switches, redact: bool) -> None:
    """Answers that were selected, and answers that could not be."""
    page.chapter("Examples")
    shown = lambda text: f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}" if redact else text
    hashes = ", as hashes" if redact else ""
    page.add_examples(
        f"Kept: selected beside random{hashes}",
        ["Prompt", "Selected", "Random"],
        [[shown(text) for text in texts] for texts in _examples(selection, 8)],
    )
    refused = (
        (pool["prompt"], f"{answer['text']}\n— {answer['source']}", ", ".join(answer["flags"]))
        for pool, _ in itertools.islice(selection.prompts(), LOOKED_THROUGH)
        for answer in pool["answers"]
        if switches.scoring.drops(answer["flags"])
    )
    page.add_examples(
        f"Refused: answers that no student may learn{hashes}",
        ["Prompt", "Answer", "Why it was refused"],
        [[shown(prompt), shown(answer), why] for prompt, answer, why in mixed(refused, lambda row: row[2], 8)],
    )


def _figures(page: Report, selection: Selection, data: Forecast) -> None:
    found, objectives = selection.tally, selection.rule.objectives
    place = {name: m for m, name in enumerate(found.metrics)}
    shown = np.unique(found.sample_of)
    for objective in objectives[:3]:
        m = place[objective.name]
        series = {"pool": found.sample[:, m], **{arm: found.arm(arm)[shown, m] for arm in ("random", "selected")}}
        lists = {name: values.tolist() for name, values in series.items()}
        page.add_figure(f"Distribution of {objective.name}", histogram_figure(lists, objective.name))
    curves = {}
    for objective in objectives[:3]:
        scores = data.sweep["scores"][objective.name]
        spread = data.scores[objective.name]["spread"] or 1.0
        lifts = [None if score is None else (score - scores[0]) / spread for score in scores]
        curves[str(objective)] = (data.sweep["k"], lifts)
    if len(data.sweep["k"]) > 1:
        figure = line_figure(curves, "answers of a prompt (k)", "lift in spreads")
        how = "" if data.sweep["exact"] else ", by the ranking of the full pool"
        page.add_figure(f"Lift of the best against k, over all ways to thin the pool{how}", figure)
    if len(objectives) == 2:
        page.add_figure(
            "Both objectives, as differences to the mean of the prompt's pool in standard deviations within it",
            _scatter(found, [place[objective.name] for objective in objectives], shown),
        )
    entries = sorted(data.sources.items(), key=lambda pair: (-pair[1]["selected_share"], pair[0]))[:25]
    if len(entries) > 1:
        shares, chances = ([100 * e[key] for _, e in entries] for key in ("selected_share", "chance_share"))
        labels = ("selected", "by chance", "% of selected answers")
        page.add_figure("Share of sources", share_figure([name for name, _ in entries], shares, chances, labels))


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
    return scatter_figure(series, *(found.metrics[m] for m in columns))


def _examples(selection: Selection, count: int) -> Iterator[list[str]]:
    """Prompts near the beginning, with a selected and a random answer that differ."""
    differing = (
        (pool, [pool["answers"][chosen["arms"][arm][0]] for arm in ("selected", "random")])
        for pool, chosen in itertools.islice(selection.prompts(), 4 * count)
        if chosen["arms"] and chosen["arms"]["selected"] != chosen["arms"]["random"]
    )
    for pool, answers in itertools.islice(differing, count):
        yield [pool["prompt"], *(f"{answer['text']}\n— {answer['source']}" for answer in answers)]


def _faults(pool: Mapping[str, Any]) -> tuple[str, ...]:
    """What is told of answers: of unlikely ones only where there are any, as most sources tell no likelihoods."""
    return tuple(
        name for name in GUARDS if name != "unlikely" or any(name in count for count in pool["sources"].values())
    )
