"""`python run.py metrics`: the scores of texts, the measures of models and the figures there are, a line each."""

import dataclasses

from active_inheritance.profile.config import Config
from common.cli import flag_name, no_words, wrapped
from common.text.glossary import TERMS, of_score
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
    of_texts = "active-inheritance --objective SCORE:max|min|target=X, --constraint, --metrics"
    print(wrapped("", f"scores of a text: {of_texts}") + "\n")
    for name in METRICS:
        print(wrapped(f"  {name}", of_score(name), 28))
    for name, about in OWN.items():
        print(wrapped(f"  {name}", about, 28))
    print("\nmeasures of a model: profile, and active-inheritance --profile NAME=FILE\n")
    for field in dataclasses.fields(Config):
        if field.name in MEASURES:
            print(wrapped(f"  {flag_name(field.name)}", field.metadata["help"], 28))
    print("\nfigures of runs and of models, as on their pages\n")
    for name, term in TERMS.items():
        way = "" if term.better is None else f" ({term.better} is better)"
        print(wrapped(f"  {name}", f"{term.meaning}{way}", 28))
