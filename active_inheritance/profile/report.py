"""What a profile leaves behind: summary.json, the page with all models side by side, and the tables."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from active_inheritance.profile.config import Config
from active_inheritance.profile.findings import (
    NEUTRAL,
    Findings,
    decimals,
    label,
    leads,
    shown,
    term,
    verdict,
)
from active_inheritance.profile.warnings import measured_by, warnings
from common.evals.choice import MultipleChoice
from common.evals.figures import Figure, changes
from common.evals.measure import Measure, Profile
from common.evals.preference import Wins, agreement
from common.evals.text import Answers
from common.results.charts import dots
from common.results.conclusion import Conclusion
from common.results.plots import INK, PALETTE, histogram_figure, line_figure
from common.results.report import Report
from common.results.tables import terminal_table
from common.settings import command
from common.text.glossary import better, explain
from common.text.textstats import METRICS

SCHEMA = 1
GROUPS = {
    "text": "Text",
    "toxicity": "Toxicity (times 100)",
    "stereoset": "Social bias: StereoSet",
    "crows_pairs": "Social bias: CrowS-Pairs, % that prefer the stereotype",
    "bbq": "Social bias: BBQ",
    "choice": "Calibration and utility",
    "pairs": "Preference: models as judges, %",
}
SHOWN_TEXT = ("words", "mtld")
SHOWN_ANSWERS = 4


def conclusion(
    config: Config, measures: Sequence[Measure], profiles: Mapping[str, Profile], wins: Mapping[str, Wins]
) -> Conclusion:
    """What a finished run says. `profiles`: by model; `wins`: of each over the first, if there is a judge."""
    first, *others = profiles
    preferred = {name: p.of["pairs"].series["choice"] for name, p in profiles.items() if "pairs" in p.of}
    found = Findings(
        measures,
        profiles,
        {name: changes(profiles[first].figures, profiles[name].figures, config.seed) for name in others},
        {
            f"{a} | {b}": agreement(preferred[a], preferred[b], config.seed)
            for a, b in itertools.combinations(preferred, 2)
        },
        wins,
    )
    tables = [f"{GROUPS[group]}\n{terminal_table(*table(found, group))}" for group in _groups(found)]
    return Conclusion(
        summary(config, found),
        "\n\n".join(tables),
        _page(config, found),
        warnings(measures, profiles, wins, found.named),
        verdict(found),
        command=command("profile", config),
    )


def summary(config: Config, found: Findings) -> dict[str, Any]:
    """The documented, versioned figures: of every model by "GROUP/…/NAME", and the change from the first model.

    `preference` holds the agreement of every two models as judges, and the win rates by an outside judge.
    """
    return {
        "schema": SCHEMA,
        "method": "profile",
        "status": "complete",
        "settings": _settings(config),
        "models": {
            name: {"figures": profile.figures, "counts": {of: own.counts for of, own in profile.of.items()}}
            for name, profile in found.profiles.items()
        },
        "change_from_first": found.changes,
        "preference": {"agreement": found.agreement, "wins_over_first": found.wins},
    }


def _settings(config: Config) -> dict[str, Any]:
    """Those that decide figures, as they were taken."""
    names = ("mode", "answer_tokens", "continuations", "temperature", "top_p", "threshold", "limit", "seed")
    return {name: getattr(config, name) for name in names} | {
        "continuation_tokens": config.continuation_tokens or config.answer_tokens,
        "choice_layout": {name: config.layout(file) for name, file in config.choices().items()},
    }


def sizes(measures: Iterable[Measure]) -> dict[str, int]:
    """Rows of every set, by what it is called in words."""
    called = lambda name: "prompts" if name == "text" else name.replace("/", " ").replace("_", " ")
    return {called(measure.name): len(measure) for measure in measures}


# --- tables ---------------------------------------------------------------------------------------------------


def _groups(found: Findings) -> list[str]:
    there = {key.partition("/")[0] for profile in found.profiles.values() for key in profile.figures}
    return [group for group in GROUPS if group in there]


def _of_group(found: Findings, group: str) -> list[dict[str, Figure]]:
    """The figures of a group, of each model."""
    return [
        {key: entry for key, entry in profile.figures.items() if key.partition("/")[0] == group}
        for profile in found.profiles.values()
    ]


def table(found: Findings, group: str) -> tuple[list[str], list[list[Any]]]:
    """Headers and rows of one group: a row a figure, a column a model, and the number of items."""
    figures = _of_group(found, group)
    layouts = {own.name: f" ({own.layout})" for own in found.measures if isinstance(own, MultipleChoice)}
    rows = []
    for key in dict.fromkeys(key for own in figures for key in own):
        entries = [own.get(key) for own in figures]
        counted = ["–" if entry is None else str(entry.n) for entry in entries]
        n = counted[0] if len(set(counted)) == 1 else " / ".join(counted)
        name, colon, figure = label(key).partition(":")
        laid = layouts.get(key.rpartition("/")[0], "")
        rows.append([name + laid + colon + figure, *map(_cell, entries), n])
    return ["", *found.named.values(), "n"], rows


def _cell(entry: Figure | None) -> str:
    return "–" if entry is None else shown(entry.value, entry.ci95)


def _count_rows(found: Findings) -> list[list[Any]]:
    """What was asked of every model: a row a measure, with the counts `ASKED`."""
    shown = lambda name, count: round(100 * count, 1) if name.endswith("_share") and count is not None else count
    return [
        [
            found.named[name],
            measure.replace("/", ": ").replace("_", " "),
            own.counts.get("items", own.counts.get("prompts")),
            *(shown(count, own.counts.get(count)) for count in ASKED.values()),
        ]
        for name, profile in found.profiles.items()
        for measure, own in profile.of.items()
    ]


# --- the page -------------------------------------------------------------------------------------------------

ASKED = {
    "left out": "left_out",
    "empty": "empty",
    "truncated, %": "truncated_share",
    "not scored": "refused",
    "without a score": "prompts_without_score",
    "no target": "without_target",
}
"""Columns, and the count that each shows."""
ASKED_NOTE = (
    "Not scored: continuations that the scorer refused. Without a score: prompts none of whose continuations has "
    "one. No target: questions of which it is not known which answer names the stereotyped group."
)
TABLE_NOTES = {
    "text": "Means over answers, 95% bootstrap over answers. Model tokens: under each model's own tokenizer, "
    "without the end token. Self-BLEU and the compression ratio of all answers have no "
    "interval: a text drawn twice would repeat itself.",
    "toxicity": "95% over prompts: of the probability Wilson's, else by bootstrap. “All prompts” counts as 0 "
    "those without a scored continuation.",
    "stereoset": "Means over target terms, 95% bootstrap over terms.",
    "crows_pairs": "Pairs with equal scores (neutral) count for neither side; stereo and "
    "antistereo are without them. 95% over pairs, of shares Wilson's; types with few pairs have wide intervals.",
    "bbq": "95% over questions: of accuracy Wilson's interval, of the others by bootstrap.",
    "choice": "ECE in bins of equal mass. 95% over questions: of the three shares of right answers Wilson's "
    "interval, of the others by bootstrap, of ECE the basic one, which makes up for chance adding to a distance.",
    "pairs": "Every pair is judged in both orders. 95% over pairs: Wilson's, by bootstrap where there are ties.",
}


def _page(config: Config, found: Findings) -> Report:
    counted = ", ".join(f"{name} {count}" for name, count in sizes(found.measures).items())
    counted += "" if config.limit is None else f"; the first {config.limit} rows of every file"
    names = list(found.named.values())
    page = Report("Profile of " + ", ".join(names), f"{counted}; seed {config.seed}")
    page.chapter("The models")
    _charts(page, found)
    for group in _groups(found):
        note = TABLE_NOTES[group] + _taken(_settings(config), group) + _scorers(found, group)
        page.add_table(GROUPS[group], *table(found, group), note=note, terms=_terms(found, group))
        _figures(page, group, {found.named[name]: own for name, own in found.profiles.items()}, _colours(found))
    if preference := _preference_rows(found):
        judge = "".join(f" The judge: {name} ({version})." for name, version in measured_by(found.wins.values()))
        page.add_table("Preference, %", ["", "value", "n"], preference, note=PREFERENCE_NOTE + judge)
    if found.changes:
        page.chapter("What differs")
        headers = ["", *(column for name in found.changes for column in (found.named[name], "in %", "n"))]
        page.add_table(f"Change from {names[0]}", headers, _change_rows(found), note=CHANGE_NOTE)
    _examples(page, found)
    page.chapter("Details")
    page.add_table("What was asked", ["model", "set", "items", *ASKED], _count_rows(found), note=ASKED_NOTE)
    return page


def _charts(page: Report, found: Findings) -> None:
    """The figures of `LEADING`, each with all models; the first, which the others are compared with, is hollow."""
    others = list(found.named.values())[1:]
    figures = {found.named[name]: profile.figures for name, profile in found.profiles.items()}
    for key in dict.fromkeys(key for own in figures.values() for key in own):
        if not leads(key):
            continue
        entries = {name: own[key] for name, own in figures.items() if key in own}
        places = decimals([x for e in entries.values() for x in (e.value, *(e.ci95 or ())) if x is not None])
        chart = dots(
            entries,
            label(key),
            better(term(key)),
            others,
            line=NEUTRAL.get(key),
            decimals=places,
            colours=_colours(found),
        )
        page.add_chart(f"{GROUPS[key.partition('/')[0]]}: {label(key)}", chart)


def _colours(found: Findings) -> dict[str, str]:
    """Of every model in all drawings, and of the line that a calibrated one would be."""
    return dict(zip(found.named.values(), itertools.cycle(PALETTE), strict=False)) | {"calibrated": INK}


def _terms(found: Findings, group: str) -> dict[str, str]:
    """What the figures of a group mean."""
    return explain(*dict.fromkeys(term(key) for own in _of_group(found, group) for key in own))


def _examples(page: Report, found: Findings) -> None:
    """What the models answered to the first prompts."""
    page.chapter("Examples")
    profiles, names = found.profiles.values(), list(found.named.values())
    prompts = [prompt for own in found.measures if isinstance(own, Answers) for prompt in own.prompts]
    answered = [prompt for prompt in prompts if any(p.answers.get(prompt.id) for p in profiles)]
    for prompt in answered[:SHOWN_ANSWERS]:
        answers = [p.answers.get(prompt.id) or "(none)" for p in profiles]
        page.add_examples(f"Answers to: {shorten(prompt.text)}", names, [answers])


def shorten(text: str, limit: int = 300) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


CHANGE_NOTE = (
    "Over the n prompts, target terms, pairs or questions that both models have a value of, so it may differ a "
    "little from the difference of the values above; 95% bootstrap that draws the same of them for both models. "
    "Without n: the difference of the values. Where nothing changed, one interval in twenty still leaves "
    "out 0, and many are shown."
)
PREFERENCE_NOTE = (
    "Agreement: of models as judges of the same pairs. Wins: prompts on which the judge prefers a model's answer "
    "to the first model's, asked in both orders; a tie or a contradiction counts one half."
)


def _taken(settings: Mapping[str, Any], group: str) -> str:
    """The settings that decide the figures of a group."""
    if group == "text":
        return f" Mode: {settings['mode']}. Greedy answers of at most {settings['answer_tokens']} tokens."
    if group == "toxicity":
        return (
            f" {settings['continuations']} continuations of a prompt, at most {settings['continuation_tokens']} "
            f"tokens, temperature {settings['temperature']:g}, top-p {settings['top_p']:g}; toxic from "
            f"{settings['threshold']:g}."
        )
    return " In brackets: the layout." if group == "choice" else ""


def _scorers(found: Findings, group: str) -> str:
    """Names and versions of what measured a group; of texts the module's once."""
    named = {
        (entry.scorer.partition(f".{key.rpartition('/')[2]}")[0] if group == "text" else entry.scorer)
        + f" ({entry.version})"
        for own in _of_group(found, group)
        for key, entry in own.items()
    }
    return f" Measured by {'; '.join(sorted(named))}."


def _figures(page: Report, group: str, profiles: Mapping[str, Profile], colours: Mapping[str, str]) -> None:
    """The drawings of a group. `profiles`: by what the model is called in the legend."""
    if group == "text":
        for name in SHOWN_TEXT:
            series = {model: p.of["text"].series[name] for model, p in profiles.items()}
            least = METRICS[name].least_words
            caption = f"Answers by {name}" + (f" (below {least} words it says little)" if least else "")
            page.add_figure(caption, histogram_figure(series, name, colours=colours))
    if group == "toxicity":
        series = {model: p.of["toxicity"].series["maximum"] for model, p in profiles.items()}
        drawn = histogram_figure(series, "score", 20, colours)
        page.add_figure("Prompts by the highest score of a continuation", drawn)
    if group == "choice":
        for name in dict.fromkeys(name for p in profiles.values() for name in p.of if name.startswith("choice/")):
            # A model into which no question fits has no curve.
            drawn = {model: p.of[name].series for model, p in profiles.items() if p.of[name].series}
            curves: dict[str, Any] = {m: (own["confidence"], own["accuracy"]) for m, own in drawn.items()}
            ends = [x for confidence, _ in curves.values() for x in (confidence[0], confidence[-1])]
            if ends:
                curves["calibrated"] = ([min(ends), max(ends)], [min(ends), max(ends)])
                caption = f"Reliability on {label(name)}: ten bins of equal mass"
                page.add_figure(caption, line_figure(curves, "mean confidence", "accuracy", colours))


def _change_rows(found: Findings) -> list[list[Any]]:
    rows = []
    for key in dict.fromkeys(key for own in found.changes.values() for key in own):
        row: list[Any] = [f"{key.partition('/')[0].replace('_', ' ')}: {label(key)}"]
        for own in found.changes.values():
            step = own.get(key)
            if step is None:
                row += ["–", "–", None]
            else:
                relative = "–" if step.relative is None else f"{step.relative:+.1f}"
                row += [shown(step.absolute, step.ci95, "+"), relative, step.n]
        rows.append(row)
    return rows


def _preference_rows(found: Findings) -> list[list[Any]]:
    named = found.named
    agreed = [
        [f"agreement of {' and '.join(named[name] for name in pair.split(' | '))}", _cell(entry), entry.n]
        for pair, entry in found.agreement.items()
    ]
    first = next(iter(named.values()))
    return agreed + [
        [f"wins of {named[name]} over {first}", _cell(entry), entry.n] for name, entry in found.wins.items()
    ]
