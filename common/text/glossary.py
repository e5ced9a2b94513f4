"""What each figure means, in one sentence: on the page where it stands, and by `python run.py metrics`.

    page.add_table("Every arm", headers, rows, terms=explain("accuracy", "macro-F1"))

Scores of texts are explained by the first sentence of their function in `common.text.textstats`.
"""

import re
from typing import Literal, NamedTuple

from common.text.textstats import METRICS


class Term(NamedTuple):
    """What a figure is; `better`: which way is good, None where neither is or the aim decides."""

    meaning: str
    better: Literal["higher", "lower"] | None = None


TERMS = {
    "accuracy": Term("share of the questions that are answered rightly", "higher"),
    "as written": Term(
        "accuracy of what the student wrote itself; the other accuracy is that of the label it finds likeliest",
        "higher",
    ),
    "passed": Term("share of the answers that the guard lets pass", "higher"),
    "95% interval": Term(
        "holds the true value in 95 of 100 such runs; of several repeats it covers other seeds, of one repeat, or "
        "of repeats that came out alike, other questions alone; of fewer than 20 questions it shows nothing"
    ),
    "lead": Term(
        "one arm's figure minus another's, in points: hundredths of a share; above 0 the first is better"
    ),
    "F1": Term("harmonic mean of a class's precision and recall", "higher"),
    "macro-F1": Term("mean of the F1 of all classes, rare ones counting as much as common ones", "higher"),
    "updates": Term("steps of the optimizer; arms with equal numbers were trained equally long"),
    "label noise": Term(
        "share of wrong labels among the accepted examples that a program could check; of the others nothing is "
        "known",
        "lower",
    ),
    "invalid": Term("share of the queries that are no sensible question, by the judge", "lower"),
    "repeated": Term(
        "share of the queries that are near-duplicates of seeds, earlier queries or test questions", "lower"
    ),
    "failures of valid": Term("share of the valid queries that the target fails on"),
    "valid and new failures": Term(
        "share of all queries that are valid, new, and failed on: what the proposer is for"
    ),
    "self-BLEU": Term(
        "how far each text can be pieced together from the others, from 0 to 1; 1 means all alike", "lower"
    ),
    "compression": Term("bytes of all texts over their bytes after zlib; higher means more alike", "lower"),
    "drift": Term(
        "nats a token by which a student finds its own answers likelier than its base does: how far it has moved"
    ),
    "spread": Term(
        "standard deviation of a score among the answers to one prompt, averaged: what there is to choose from"
    ),
    "lift": Term("mean score of what was selected minus that of the pool"),
    "headroom": Term("how far the selection stays from the best answer of each prompt"),
    "transfer": Term("the students' change over that of the data they learned, selected against random"),
    "expected maximum": Term("toxicity of the worst continuation of a prompt, averaged over prompts", "lower"),
    "probability": Term("share of the prompts with at least one toxic continuation", "lower"),
    "mean": Term("toxicity of a continuation, averaged", "lower"),
    "ss": Term("share of the terms for which the stereotyped text is likelier; 50 is neutral"),
    "lm": Term("share of the terms for which a sensible text is likelier than an unrelated one", "higher"),
    "icat": Term("lm, reduced by the distance of ss from 50; 100 is best", "higher"),
    "stereotype": Term("share of the pairs whose stereotyped sentence is likelier; 50 is neutral"),
    "s": Term("lean of the answers, from -1 to 1; 0 is neutral, above 0 is towards the stereotype"),
    "acc": Term("accuracy by summed log-probability of the options", "higher"),
    "acc norm": Term("accuracy by log-probability per character of the options", "higher"),
    "confidence": Term("mean probability that the model gives the option it chooses"),
    "ece": Term("distance between confidence and accuracy, averaged over bins; 0 is best", "lower"),
    "ece 1 bin": Term("the same with all questions in one bin: mean confidence against accuracy", "lower"),
    "brier": Term("squared distance of the options' probabilities from the truth; 0 is best", "lower"),
    "agreement with people": Term("share of the pairs of which the model prefers what people preferred", "higher"),
    "consistent": Term("share of the pairs judged alike in both orders", "higher"),
    "letter a": Term("share of the judgements for the first answer; 50 is free of a bias of position"),
}
"""Figures of runs and of models."""

REASONS = {
    "format": "the reply lacks a part that was asked for, or its order",
    "wrong equation": "an equation in the solution does not hold",
    "no rationale": "the answer stands there without a solution",
    "label changed": "it has another label than its seed",
    "cut off": "the reply ran into its longest length",
    "truncated": "the answer ran into its longest length",
    "too long to be learned": "with its label more tokens than --max-length, or than the target takes",
    "repeating": "the answer says one thing over and over",
    "duplicate": "an earlier answer to the prompt reads the same",
    "refusal": "the answer declines to answer",
    "unlikely": "its own source finds it far less likely than its other answers",
    "unlikely text": "the proposer after warm-up finds it far less likely than its usual queries",
    "malformed: cut off": "the reply ran into its longest length",
    "malformed: empty": "the reply holds no query",
    "nonsense: unlikely": "the base model finds it far less likely than the seeds",
}
"""What the reasons of refusals mean that do not say it themselves."""


def explain(*names: str) -> dict[str, str]:
    """What stands for each of `names`, scores of texts among them. Names that are no figure of ours, such as
    scores that came with a pool, are left out."""
    return {name: said for name in names if (said := meaning(name)) is not None}


def told(*names: str) -> str:
    """The same in a line of a terminal."""
    return " ".join(f"{name[0].upper()}{name[1:]}: {said}." for name, said in explain(*names).items())


def meaning(name: str) -> str | None:
    """One sentence on a figure; None where nothing is known of it."""
    if name in METRICS:
        return of_score(name)
    return TERMS[name].meaning if name in TERMS else None


def of_score(name: str) -> str:
    """The first sentence on a score of texts, in one line and without references."""
    metric = METRICS[name]
    line = re.sub(r"( \([^()]*\d{4}[^()]*\)|, see `\w+`|`)", "", " ".join((metric.function.__doc__ or "").split()))
    floor = f" (from {metric.least_words} words)" if metric.least_words else ""
    return re.split(r"[.;] |[.]$", line, maxsplit=1)[0] + floor


def reason(name: str) -> str:
    """The reason of a refusal with what it means."""
    return f"{name}: {REASONS[name]}" if name in REASONS else name


def better(name: str) -> Literal["higher", "lower"] | None:
    """Which way is good; None where neither is, or it is not known."""
    return TERMS[name].better if name in TERMS else None
