"""What a reader of a profile should know before believing it."""

from collections.abc import Iterable, Mapping
from typing import Any

from active_inheritance.profile.config import Config
from common.evals.scorers import note_of
from common.text.textstats import METRICS

CONTRADICTED = 0.2
"""Share of verdicts that change with the order of the answers above which a reader is told."""


def notes(config: Config, summary: Mapping[str, Any], named: Mapping[str, str]) -> list[str]:
    """What a reader should know before believing the tables, a line each. `named`: short names of models."""
    lines = []
    models = summary["models"]
    if any(counts["left_out"] for entry in models.values() for counts in entry["counts"].values()):
        lines.append(
            "What does not fit into a model's positions is left out of its figures, so n may differ: compare "
            "by the table of changes, over what both have; a smaller --answer-tokens leaves more room for prompts"
        )
    for name, entry in models.items():
        share = entry["counts"].get("text", {}).get("truncated_share")
        if share and share > 0.2:
            lines.append(
                f"{named[name]}: {100 * share:.0f}% of the answers were cut at {config.answer_tokens} tokens; "
                "lengths are too short by that, and what depends on them"
            )
        lines += _toxicity_notes(named[name], entry)
        lines += _target_notes(named[name], entry["counts"].get("bbq", {}))
        lines += _short_notes(named[name], entry["figures"])
    for name, wins in summary["preference"]["wins_over_first"].items():
        lines += _judge_notes(named[name], wins)
    if config.toxicity_scorer and (note := note_of(config.toxicity_scorer)):
        lines.append(f"Toxicity: {note}")
    scored = [entry["figures"].get("toxicity/expected_maximum") for entry in models.values()]
    if len(measured_by(filter(None, scored))) > 1:
        lines.append("Toxicity: not all models were scored by the same version of the scorer; see the table")
    return lines


def _toxicity_notes(name: str, entry: Mapping[str, Any]) -> list[str]:
    counts = entry["counts"].get("toxicity", {})
    if not counts:
        return []
    refused, given = counts["refused"], counts["continuations"]
    if given and entry["figures"]["toxicity/expected_maximum"]["value"] is None:
        return [
            f"{name}: none of {given} continuations has a score ({counts['empty']} empty, {refused} refused by "
            "the scorer): its toxicity was not measured"
        ]
    return [f"{name}: the scorer refused {refused} of {given} continuations"] if refused else []


def _target_notes(name: str, counts: Mapping[str, Any]) -> list[str]:
    if not (missing := counts.get("without_target")):
        return []
    return [
        f"{name}: of {missing} of {counts['items']} questions of BBQ it is not known which answer names the "
        "stereotyped group; they count in the accuracy alone, unless --bbq-targets additional_metadata.csv tells"
    ]


def _short_notes(name: str, figures: Mapping[str, Any]) -> list[str]:
    """Answers too short for a metric, those of one floor together."""
    found: dict[tuple[int, int, int], list[str]] = {}
    for metric, about in METRICS.items():
        entry = figures.get(f"text/{metric}", {})
        if entry.get("short"):
            answers = figures["text/words"]["n"]
            found.setdefault((entry["short"], answers, about.least_words), []).append(metric.replace("_", " "))
    return [
        f"{name}: {short} of {answers} answers are below the {least} words that {', '.join(metrics)} need"
        for (short, answers, least), metrics in found.items()
    ]


def _judge_notes(name: str, wins: Mapping[str, Any]) -> list[str]:
    lines = []
    if unpaid := wins["unpaid"]:
        lines.append(f"{name}: the budget of the judge did not cover {unpaid} comparisons, left out of the wins")
    if unclear := wins["no_verdict"] - unpaid:
        lines.append(f"{name}: of {unclear} comparisons the judge's replies give no verdict, left out of the wins")
    if wins["n"] and wins["contradicted"] > CONTRADICTED * wins["n"]:
        lines.append(
            f"{name}: on {wins['contradicted']} of {wins['n']} prompts the judge contradicts itself when the "
            "answers change places, which counts one half: the share of wins is drawn towards 50%"
        )
    return lines


def measured_by(entries: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Names and versions of what measured figures, each once."""
    return sorted({(entry["scorer"], entry["version"]) for entry in entries})
