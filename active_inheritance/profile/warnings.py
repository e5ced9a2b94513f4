"""What a reader of a profile should know before relying on it."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from common.evals.choice import MultipleChoice
from common.evals.figures import Figure
from common.evals.measure import Measure, Measured, Profile, WritingMeasure
from common.evals.preference import Wins
from common.evals.scorers import note_of
from common.evals.toxicity import Toxicity
from common.tasks.base import Example
from common.text.nonsense import REPETITION, nonsense
from common.text.same import TESTED, doubts
from common.text.textstats import METRICS

CUT = 0.2
"""Share of answers cut at the token limit above which a reader is told."""
LOOPS = 0.1
"""Share of answers that turn in circles above which a reader is told."""
CONTRADICTED = 0.2
"""Share of verdicts that change with the order of the answers above which a reader is told."""


def warnings(
    measures: Sequence[Measure],
    profiles: Mapping[str, Profile],
    wins: Mapping[str, Wins],
    named: Mapping[str, str],
) -> list[str]:
    """A sentence each. `profiles` and `wins`: by model; `named`: short names of models."""
    lines = repeated(measures)
    if any(own.counts["left_out"] for profile in profiles.values() for own in profile.of.values()):
        lines.append(
            "What does not fit into a model's positions is left out of its figures, so n may differ: compare "
            "by the table of changes, over what both have; a smaller --answer-tokens leaves more room for prompts"
        )
    for name, profile in profiles.items():
        for measure, of in (("text", _of_text), ("toxicity", _of_toxicity), ("bbq", _of_targets)):
            if measure in profile.of:
                lines += [f"{named[name]}: {line}" for line in of(profile.of[measure])]
        lines += [f"{named[name]}: {line}" for line in _of_loops([a for a in profile.answers.values() if a])]
    for name, won in wins.items():
        lines += [f"{named[name]}: {line}" for line in _of_judge(won)]
    for measure in measures:
        if isinstance(measure, Toxicity) and (note := note_of(measure.scorer)):
            lines.append(f"Toxicity: {note}")
    scored = [profile.of["toxicity"].figures for profile in profiles.values() if "toxicity" in profile.of]
    if len(measured_by(figures["expected_maximum"] for figures in scored if figures)) > 1:
        lines.append("Toxicity: not all models were scored by the same version of the scorer; see the table")
    return lines


def repeated(measures: Iterable[Measure]) -> list[str]:
    """Files whose rows ask again what another one asks. Options in another order make no other question."""
    lines = []
    for own in measures:
        asked: list[Example] = []
        if isinstance(own, MultipleChoice):
            for q in own.questions:
                text, right = "\n".join([q.context, *sorted(q.options)]), q.options[q.gold]
                asked.append(Example(q.id, text, right, right, "all"))
        elif isinstance(own, WritingMeasure):
            asked = [Example(prompt.id, prompt.text, "", "", "all") for prompt in own.prompts]
        lines += doubts(own.name, asked, TESTED)
    return lines


def _of_text(found: Measured) -> list[str]:
    share, figures, lines = found.counts["truncated_share"], found.figures, []
    if share and share > CUT:
        tokens = found.counts["answer_tokens"]
        lines.append(
            f"{100 * share:.0f}% of the answers were cut at {tokens} tokens; lengths are too short by that, and "
            "what depends on them"
        )
    of_floor: dict[tuple[int, int], list[str]] = {}  # metrics with one floor are told together
    for metric, about in METRICS.items():
        short = figures[metric].short if metric in figures else None
        if short:
            of_floor.setdefault((short, about.least_words), []).append(metric.replace("_", " "))
    return lines + [
        f"{short} of {figures['words'].n} answers {'is' if short == 1 else 'are'} below the {least} words that "
        f"{', '.join(metrics)} need"
        for (short, least), metrics in of_floor.items()
    ]


def _of_loops(answers: Collection[str]) -> list[str]:
    loops = sum(nonsense(answer) == REPETITION for answer in answers)
    if loops <= LOOPS * len(answers):
        return []
    return [
        f"{loops} of {len(answers)} answers say the same over and over; their lengths and their diversity are "
        "those of loops"
    ]


def _of_toxicity(found: Measured) -> list[str]:
    refused, given = found.counts["refused"], found.counts["continuations"]
    if given and found.figures["expected_maximum"].value is None:
        return [
            f"none of {given} continuations has a score ({found.counts['empty']} empty, {refused} refused by the "
            "scorer): its toxicity was not measured"
        ]
    same = {value for value in found.series.get("maximum", ()) if value is not None}
    if len(same) == 1 and len(found.series["maximum"]) > 1:
        return [f"the highest score of every prompt is {same.pop():g}: the scorer tells nothing apart"]
    return [f"the scorer refused {refused} of {given} continuations"] if refused else []


def _of_targets(found: Measured) -> list[str]:
    missing = found.counts["without_target"]
    if not missing:
        return []
    return [
        f"of {missing} of {found.counts['items']} questions of BBQ it is not known which answer names the "
        "stereotyped group; they count in the accuracy alone, unless --bbq-targets additional_metadata.csv tells"
    ]


def _of_judge(wins: Wins) -> list[str]:
    lines = []
    if wins.unpaid:
        lines.append(f"the budget of the judge did not cover {wins.unpaid} comparisons, left out of the wins")
    if unclear := wins.no_verdict - wins.unpaid:
        lines.append(f"of {unclear} comparisons the judge's replies give no verdict, left out of the wins")
    if wins.n and wins.contradicted > CONTRADICTED * wins.n:
        lines.append(
            f"on {wins.contradicted} of {wins.n} prompts the judge contradicts itself when the answers change "
            "places, which counts one half: the share of wins is drawn towards 50%"
        )
    return lines


def measured_by(figures: Iterable[Figure]) -> list[tuple[str, str]]:
    """Names and versions of what measured figures, each once."""
    return sorted({(entry.scorer, entry.version) for entry in figures})
