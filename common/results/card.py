"""README.md of what leaves a run: what the cards of data sets and of models share, and the card of a model.

    card = ModelCard(title="...", base="my/base", method="...", learned="...", tables={"Accuracy": found})
    text = render(card, base_id=None, license="apache-2.0")

All text of a card is plain text; any Markdown or YAML in it is escaped.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from common.results.origin import version
from common.results.tables import table_cells, visible

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Headers and rows."""


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What the card of a trained model says. `base`: the model that it was trained from, as `resolve` of
    `common.model.checkpoint` knows it. `method`: of seedloop. `learned`: from which data, and how; blank lines
    separate paragraphs. `tables`: figures with their intervals by caption. `warnings`: what to know before relying
    on them. `command`: what makes it again, as far as a command can."""

    title: str
    base: str
    method: str
    learned: str
    tables: Mapping[str, Table]
    verdict: str | None = None
    warnings: Sequence[str] = ()
    command: str | None = None


def render(card: ModelCard, base_id: str | None, license: str | None) -> str:
    """README.md: YAML front matter, then Markdown. `base_id`: of the base on the Hub, None where it is not known
    to be there; `license`: of the base, None where it is unknown."""
    front = {
        "license": license,
        "base_model": base_id,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["seedloop", card.method],
    }
    unknown = "Unknown: neither its folder nor its card names one. Find out before you pass this model on."
    parts = [
        f"---\n{front_matter(front)}---",
        f"# {inline(card.title)}",
        paragraphs(f"Trained from {card.base}.\n\n{card.learned}"),
        *(["## Figures"] if card.tables else []),
        *([inline(card.verdict)] if card.verdict else []),
    ]
    for caption, (headers, rows) in card.tables.items():
        shown = [[inline(cell) for cell in row] for row in table_cells(rows)]
        parts += [f"{inline(caption)}:", table([inline(header) for header in headers], shown)]
    if card.warnings:
        parts += ["## Before relying on them", "\n".join(f"- {inline(warning)}" for warning in card.warnings)]
    parts += ["## How it was made", inline(f"By seedloop {version()}{':' if card.command else '.'}")]
    parts += [_block(card.command)] if card.command else []
    parts += ["## Licence of the base", unknown if license is None else inline(license)]
    return "\n\n".join([*parts, "## Use", _USE]) + "\n"


_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH/TO/THIS/FOLDER")
tokenizer = AutoTokenizer.from_pretrained("PATH/TO/THIS/FOLDER")
```"""


# --- Markdown and YAML ------------------------------------------------------------------------------------------


def front_matter(entries: Mapping[str, Any]) -> str:
    """Lines of YAML, without the marks around them, of those entries that hold something: texts, or lists of
    them."""
    # JSON is YAML once the characters that YAML forbids are spelled out, as `visible` does.
    plain = lambda value: visible(value) if isinstance(value, str) else [visible(text) for text in value]
    return "".join(f"{k}: {json.dumps(plain(v), ensure_ascii=False)}\n" for k, v in entries.items() if v)


def inline(text: str) -> str:
    """Plain text as one line of Markdown that shows it unchanged, also within a table."""
    text = " ".join(visible(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", text)
    # What would start a list, a heading's underline or a rule at the beginning of a line.
    return re.sub(r"^(\d+)(?=[.)])|^(?=[-+=:])", lambda match: (match[1] or "") + "\\", text)


def _block(text: str) -> str:
    """Plain text as a block of code, which nothing in it can end."""
    return "\n".join(f"    {line}" for line in visible(text).split("\n"))


def paragraphs(text: str) -> str:
    """Plain text whose paragraphs are separated by blank lines, as `inline` shows it."""
    return "\n\n".join(inline(part) for part in re.split(r"\n\s*\n", text.strip()))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown, such as those of `inline`."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
