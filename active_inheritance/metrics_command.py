"""`python run.py metrics`: the scores of texts and the measures of models there are, a line each."""

import dataclasses
import re

from active_inheritance.profile.config import Config
from common.cli import flag_name, item, no_words
from common.text.textstats import METRICS

MEASURES = ("prompts_file", "toxicity_prompts", "stereoset", "crows_pairs", "bbq", "choice", "pairs")
OWN = {
    "toxicity": "from 0 to 1, made by --toxicity-scorer",
    "column:NAME": "a score that the file of --pool holds",
    "python:FILE.py:FUNCTION": "your own: FUNCTION(prompt, answer) gives a number",
}


def main(argv: list[str]) -> None:
    """Print them. Raises UserError for words after the command."""
    no_words(argv, "metrics\n\nLists what answers are selected by, and what models are measured by.")
    print("scores of a text: active-inheritance --objective SCORE:max|min|target=X, --constraint, --metrics\n")
    for name, metric in METRICS.items():
        floor = f" (from {metric.least_words} words)" if metric.least_words else ""
        print(item(f"  {name}", _first(metric.function.__doc__ or "") + floor, 28))
    for name, about in OWN.items():
        print(item(f"  {name}", about, 28))
    print("\nmeasures of a model: profile, and active-inheritance --profile NAME=FILE\n")
    for field in dataclasses.fields(Config):
        if field.name in MEASURES:
            print(item(f"  {flag_name(field.name)}", field.metadata["help"], 28))


def _first(text: str) -> str:
    """The first sentence, in one line and without references."""
    line = re.sub(r"( \([^()]*\d{4}[^()]*\)|, see `\w+`)", "", " ".join(text.split()))
    return re.split(r"[.;] |[.]$", line, maxsplit=1)[0]
