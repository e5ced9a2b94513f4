"""`python run.py metrics`: the scores of texts, the measures of models and the figures there are, a line each."""

import dataclasses

from active_inheritance.profile.config import Config
from common.cli import flag_name, item, no_words
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
    print("scores of a text: active-inheritance --objective SCORE:max|min|target=X, --constraint, --metrics\n")
    for name in METRICS:
        print(item(f"  {name}", of_score(name), 28))
    for name, about in OWN.items():
        print(item(f"  {name}", about, 28))
    print("\nmeasures of a model: profile, and active-inheritance --profile NAME=FILE\n")
    for field in dataclasses.fields(Config):
        if field.name in MEASURES:
            print(item(f"  {flag_name(field.name)}", field.metadata["help"], 28))
    print("\nfigures of runs and of models, as on their pages\n")
    for name, term in TERMS.items():
        way = "" if term.better is None else f" ({term.better} is better)"
        print(item(f"  {name}", f"{term.meaning}{way}", 28))
