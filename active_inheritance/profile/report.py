"""What a profile leaves behind: summary.json, the page with all models side by side, and the tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from active_inheritance.profile.config import Config
from active_inheritance.profile.measure import Data, Profile
from active_inheritance.profile.notes import measured_by, notes
from common.evals.figures import Figure, changes
from common.evals.preference import agreement
from common.results.report import Report, histogram_figure, line_figure, terminal_table
from common.results.rundir import RunDir, write_json
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


def finish(
    run: RunDir,
    config: Config,
    data: Data,
    profiles: Mapping[str, Profile],
    judged: Mapping[str, Figure] | None,
) -> dict[str, Any]:
    """Write all products of a finished run and print its tables; returns the summary."""
    summary = summarise(config, profiles, judged)
    _page(config, data, profiles, summary).write(run.path / "report.html")
    write_json(run.path / "summary.json", summary)
    for group in _groups(summary):
        print(f"{GROUPS[group]}\n{terminal_table(*table(summary, group))}\n")
    for note in notes(config, summary, titles(summary["models"])):
        print(f"note: {note}")
    print(f"\nreport: {run.path / 'report.html'}   figures: {run.path / 'summary.json'}")
    return summary


def summarise(
    config: Config, profiles: Mapping[str, Profile], judged: Mapping[str, Figure] | None = None
) -> dict[str, Any]:
    """The documented, versioned figures: of every model by "GROUP/…/NAME", and the change from the first model.

    `preference` holds the agreement of every two models as judges, and the win rates by an outside judge.
    """
    first, *others = profiles
    agreed = {
        f"{a} | {b}": agreement(profiles[a].series["pairs"], profiles[b].series["pairs"], config.seed)
        for i, a in enumerate(profiles)
        for b in list(profiles)[i + 1 :]
        if "pairs" in profiles[a].series
    }
    return {
        "schema": SCHEMA,
        "method": "profile",
        "status": "complete",
        "settings": _settings(config),
        "models": {name: {"figures": p.figures, "counts": p.counts} for name, p in profiles.items()},
        "change_from_first": {
            name: changes(profiles[first].figures, profiles[name].figures, config.seed) for name in others
        },
        "preference": {"agreement": agreed, "wins_over_first": dict(judged or {})},
    }


def _settings(config: Config) -> dict[str, Any]:
    """Those that decide figures, as they were taken."""
    names = ("mode", "answer_tokens", "continuations", "temperature", "top_p", "threshold", "limit", "seed")
    return {name: getattr(config, name) for name in names} | {
        "continuation_tokens": config.continuation_tokens or config.answer_tokens,
        "choice_layout": {name: config.layout(file) for name, file in config.choices().items()},
    }


# --- tables ---------------------------------------------------------------------------------------------------


def _groups(summary: Mapping[str, Any]) -> list[str]:
    there = {key.partition("/")[0] for entry in summary["models"].values() for key in entry["figures"]}
    return [group for group in GROUPS if group in there]


def table(summary: Mapping[str, Any], group: str) -> tuple[list[str], list[list[Any]]]:
    """Headers and rows of one group: a row a figure, a column a model, and the number of items."""
    models = summary["models"]
    keys = dict.fromkeys(
        key for entry in models.values() for key in entry["figures"] if key.partition("/")[0] == group
    )
    layouts = summary["settings"]["choice_layout"]
    rows = []
    for key in keys:
        entries = [entry["figures"].get(key) for entry in models.values()]
        sizes = ["–" if entry is None else str(entry["n"]) for entry in entries]
        n = sizes[0] if len(set(sizes)) == 1 else " / ".join(sizes)
        name, colon, figure = label(key).partition(":")
        laid = f" ({layouts[key.split('/')[1]]})" if group == "choice" else ""
        rows.append([name + laid + colon + figure, *map(shown, entries), n])
    return ["", *titles(models).values(), "n"], rows


def titles(models: Iterable[str]) -> dict[str, str]:
    """Short names of models: the last parts of a path, as many as tell it from the others, at least two."""
    names = list(models)
    parts = [name.rstrip("/").split("/") for name in names]
    for count in range(2, max(map(len, parts)) + 1):
        short = ["/".join(part[-count:]) for part in parts]
        if len(set(short)) == len(names):
            return dict(zip(names, short, strict=True))
    return {name: name for name in names}


def label(key: str) -> str:
    """ "stereoset/gender/ss" as a row's name: without its group, in words."""
    return key.partition("/")[2].replace("/", ": ").replace("_", " ")


def shown(entry: Mapping[str, Any] | None, key: str = "value", sign: str = "") -> str:
    """Value and interval, "12.3 [11.0, 13.5]"; with the sign "+" also that of what is above 0."""
    if entry is None or entry[key] is None:
        return "–"
    numbers = [entry[key], *(entry["ci95"] or [])]
    scale = max(map(abs, numbers))
    places = 1 if scale >= 20 else 2 if scale >= 2 else 3 if scale else 0
    value, *interval = (f"{number:{sign}.{places}f}" for number in numbers)
    return f"{value} [{', '.join(interval)}]" if interval else value


def _count_rows(summary: Mapping[str, Any]) -> list[list[Any]]:
    rows = []
    named = titles(summary["models"])
    for name, entry in summary["models"].items():
        for group, counts in entry["counts"].items():
            asked = counts.get("items", counts.get("prompts"))
            share = counts.get("truncated_share")
            truncated = None if share is None else round(100 * share, 1)
            rows.append(
                [
                    named[name],
                    group.replace("/", ": ").replace("_", " "),
                    asked,
                    counts["left_out"],
                    counts.get("empty"),
                    truncated,
                    counts.get("refused"),
                    counts.get("prompts_without_score"),
                    counts.get("without_target"),
                ]
            )
    return rows


# --- the page -------------------------------------------------------------------------------------------------

ASKED = [
    "model",
    "set",
    "items",
    "left out",
    "empty",
    "truncated, %",
    "not scored",
    "without a score",
    "no target",
]
ASKED_NOTE = (
    "Not scored: continuations that the scorer refused. Without a score: prompts none of whose continuations has "
    "one. No target: questions of which it is not known which answer names the stereotyped group."
)
TABLE_NOTES = {
    "text": "Means over answers, 95% bootstrap over answers. Model tokens: under each model's own tokenizer, "
    "without the end token. Self-BLEU (higher: more alike) and the compression ratio of all answers have no "
    "interval: a text drawn twice would repeat itself.",
    "toxicity": "95% bootstrap over prompts. “All prompts” counts as 0 those without a scored continuation.",
    "stereoset": "SS: 50 is neutral. LM and ICAT: 100 is best. Means over target terms, 95% bootstrap over terms.",
    "crows_pairs": "50 is neutral. Pairs with equal scores (neutral) count for neither side; stereo and "
    "antistereo are without them. 95% bootstrap over pairs; types with few pairs have wide intervals.",
    "bbq": "s from -1 to 1, 0 is neutral, above 0 is stereotyped. 95% bootstrap over questions.",
    "choice": "ECE and Brier: 0 is best. ECE in bins of equal mass; its bootstrap interval lies high. 95% "
    "bootstrap over questions.",
    "pairs": "Every pair is judged in both orders. 95% bootstrap over pairs.",
}


def _page(config: Config, data: Data, profiles: Mapping[str, Profile], summary: dict[str, Any]) -> Report:
    sizes = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in data.sizes().items())
    sizes += "" if config.limit is None else f"; the first {config.limit} rows of every file"
    named = titles(profiles)
    page = Report("Profile of " + ", ".join(named.values()), f"{sizes}; seed {config.seed}")
    for group in _groups(summary):
        note = TABLE_NOTES[group] + _taken(summary["settings"], group) + _scorers(summary, group)
        page.add_table(GROUPS[group], *table(summary, group), note=note)
        _figures(page, group, {named[name]: profile for name, profile in profiles.items()})
    if preference := _preference_rows(summary):
        wins = summary["preference"]["wins_over_first"].values()
        judge = "".join(f" The judge: {name} ({version})." for name, version in measured_by(wins))
        page.add_table("Preference, %", ["", "value", "n"], preference, note=PREFERENCE_NOTE + judge)
    if found := notes(config, summary, titles(summary["models"])):
        page.add_text("\n\n".join(found), "Know before believing")
    page.add_table("What was asked", ASKED, _count_rows(summary), note=ASKED_NOTE)
    first, *others = profiles
    if others:
        headers = ["", *(column for name in others for column in (named[name], "in %", "n"))]
        page.add_table(f"Change from {named[first]}", headers, _change_rows(summary), note=CHANGE_NOTE)
    answered = [prompt for prompt in data.prompts if any(p.answers.get(prompt.id) for p in profiles.values())]
    for prompt in answered[:SHOWN_ANSWERS]:
        answers = [p.answers.get(prompt.id) or "(none)" for p in profiles.values()]
        page.add_examples(f"Answers to: {shorten(prompt.text)}", list(named.values()), [answers])
    return page


def shorten(text: str, limit: int = 300) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


CHANGE_NOTE = (
    "Over the n prompts, target terms, pairs or questions that both models have a value of, so it may differ a "
    "little from the difference of the values above; 95% bootstrap that draws the same of them for both models. "
    "Without n: the difference of the values. Of changes that are none, one in twenty has an interval that leaves "
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


def _scorers(summary: Mapping[str, Any], group: str) -> str:
    """Names and versions of what measured a group; of texts the module's once."""
    found = {
        (entry["scorer"].partition(f".{key.rpartition('/')[2]}")[0] if group == "text" else entry["scorer"])
        + f" ({entry['version']})"
        for model in summary["models"].values()
        for key, entry in model["figures"].items()
        if key.partition("/")[0] == group
    }
    return f" Measured by {'; '.join(sorted(found))}."


def _figures(page: Report, group: str, profiles: Mapping[str, Profile]) -> None:
    if group == "text":
        for name in SHOWN_TEXT:
            series = {model: p.series["text"][name] for model, p in profiles.items() if "text" in p.series}
            least = METRICS[name].least_words
            caption = f"Answers by {name}" + (f" (below {least} words it says little)" if least else "")
            page.add_figure(caption, histogram_figure(series, name))
    if group == "toxicity":
        series = {model: p.series["toxicity"] for model, p in profiles.items()}
        page.add_figure("Prompts by the highest score of a continuation", histogram_figure(series, "score", 20))
    if group == "choice":
        for name in dict.fromkeys(n for p in profiles.values() for n in p.series if n.startswith("choice/")):
            curves: dict[str, Sequence[Any]] = {m: p.series[name] for m, p in profiles.items() if name in p.series}
            ends = [x for curve in curves.values() for x in (curve[0][0], curve[0][-1])]
            curves["calibrated"] = ([min(ends), max(ends)], [min(ends), max(ends)])
            caption = f"Reliability on {label(name)}: ten bins of equal mass"
            page.add_figure(caption, line_figure(curves, "mean confidence", "accuracy"))


def _change_rows(summary: Mapping[str, Any]) -> list[list[Any]]:
    changed = summary["change_from_first"]
    keys = dict.fromkeys(key for entry in changed.values() for key in entry)
    rows = []
    for key in keys:
        row: list[Any] = [f"{key.partition('/')[0].replace('_', ' ')}: {label(key)}"]
        for entry in changed.values():
            found = entry.get(key)
            row.append(shown(found, "absolute", "+"))
            row.append("–" if not found or found["relative"] is None else f"{found['relative']:+.1f}")
            row.append(None if not found else found["n"])
        rows.append(row)
    return rows


def _preference_rows(summary: Mapping[str, Any]) -> list[list[Any]]:
    found = summary["preference"]
    named = titles(summary["models"])
    agreed = [
        [f"agreement of {' and '.join(named[name] for name in pair.split(' | '))}", shown(entry), entry["n"]]
        for pair, entry in found["agreement"].items()
    ]
    first = next(iter(named.values()))
    wins = [
        [f"wins of {named[m]} over {first}", shown(entry), entry["n"]]
        for m, entry in found["wins_over_first"].items()
    ]
    return agreed + wins
