"""The texts a model writes: its answers to prompts, and the figures of `common.text.textstats` over them.

found = Answers.load("prompts.jsonl").measure(model)
found.figures["mtld"].value, found.answers["0"]
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from common import VERSION
from common.config import SampleConfig
from common.errors import UserError
from common.evals.figures import Figure, Scorer, figure, mean_figure
from common.evals.measure import MEMORY, Counts, Measured, Store, WritingMeasure
from common.generate import Record, Request
from common.tasks.files import read_rows, require, row_id
from common.tasks.prompts import Prompt, messages
from common.text.diversity import self_bleu
from common.text.textstats import METRICS, compression_ratio, profile

if TYPE_CHECKING:
    from common.lm import LanguageModel

COLUMNS = ("prompt", "instruction", "inputs", "question", "query", "text")
BLEU_SAMPLE = 200
"""Texts among which self-BLEU compares; of all, it would take time with their square."""
Mode = Literal["clean", "official"]


def load_prompts(
    file: str | pathlib.Path, column: str | None = None, limit: int | None = None
) -> tuple[Prompt, ...]:
    """The prompts of a file, from `column` or the first of `COLUMNS` that its first row has; a prompt may be an
    object with a "text", as in RealToxicityPrompts. Raises UserError, naming the row, and for equal ids."""
    rows = read_rows(pathlib.Path(file))[:limit]
    first, place = rows[0]
    name = column or next((name for name in COLUMNS if first.get(name) is not None), None)
    if name is None:
        raise UserError(f"{place}: no prompt: it needs one of {', '.join(COLUMNS)}, or name it: --prompt-column")
    prompts = []
    for i, (row, place) in enumerate(rows):
        inner = isinstance(row.get(name), dict)
        text = require(row[name], "text", f"{place}, {name}") if inner else require(row, name, place)
        prompts.append(Prompt(row_id(row, str(i)), text))
    seen: set[str] = set()
    for prompt, (_, place) in zip(prompts, rows, strict=True):
        if prompt.id in seen:
            raise UserError(f"{place}: id {prompt.id!r} comes twice: ids must differ, answers are stored by them")
        seen.add(prompt.id)
    return tuple(prompts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers(WritingMeasure):
    """Greedy answers to prompts, through the chat template if the model has one. `mode`: how words and sentences
    are counted (see `common.text.textstats`)."""

    mode: Mode = "clean"
    name: str = "text"

    @classmethod
    def load(
        cls, file: str | pathlib.Path, limit: int | None = None, column: str | None = None, **settings: Any
    ) -> "Answers":
        """The prompts of a file, as `load_prompts` reads them. `settings`: other fields."""
        return cls(prompts=load_prompts(file, column, limit), **settings)

    def measure(self, model: "LanguageModel", store: Store = MEMORY) -> Measured:
        """The figures of `text_figures`, the values behind them by metric, and the answers, which are stored as
        answers.jsonl. A prompt that leaves no room within the model's positions is left out."""
        tokens = self.longest(model)
        requests = [Request(prompt.id, messages(prompt.text)) for prompt in self.prompts]
        records = self.written("answers.jsonl", model, requests, SampleConfig(max_new_tokens=tokens), store)
        answers = {r.id: r.text for r in records}
        given = [record for record in records if record.text is not None]
        texts = [text for text in answers.values() if text is not None]
        values = scores(texts, self.mode)
        figures = {}  # of no answers there are none
        if given:
            lengths = [record.completion_tokens - (record.status == "ok") for record in given]  # without the end
            figures = text_figures(texts, values, self.mode, self.seed, [r.id for r in given], lengths)
        return Measured(figures, counts_of(records) | {"answer_tokens": tokens}, values, answers)


def counts_of(records: Sequence[Record]) -> Counts:
    """What became of the prompts. `left_out`: too long for the model; `truncated`: cut at the token limit."""
    given = [record for record in records if record.text is not None]
    truncated = sum(record.status == "length" for record in given)
    return {
        "prompts": len(records),
        "answered": len(given),
        "left_out": len(records) - len(given),
        "empty": sum(not (record.text or "").strip() for record in given),
        "truncated": truncated,
        "truncated_share": truncated / len(given) if given else None,
    }


def scores(texts: Sequence[str], mode: Mode) -> dict[str, list[float]]:
    """Every metric of every text; NaN where it is not defined."""
    rows = [profile(text, mode=mode) for text in texts]
    return {name: [row[name] for row in rows] for name in METRICS}


def text_figures(
    texts: Sequence[str],
    values: Mapping[str, Sequence[float]],
    mode: Mode,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    tokens: Sequence[int] | None = None,
) -> dict[str, Figure]:
    """Means over texts of all metrics of `textstats`, self-BLEU, and the compression ratio of all texts.

    Intervals by bootstrap over texts. `short` counts the texts below the words that the metric needs to say
    something; the mean includes them. Self-BLEU and the ratio of the corpus have no interval: a text that is drawn
    twice repeats itself, so a bootstrap would measure the drawing. `values`: the `scores` of the texts. `ids`: of
    the prompts that were answered. `tokens`: the length of each text under the tokenizer of its model.
    """
    version = f"{mode}, seedloop {VERSION}"
    found = {}
    if tokens is not None:
        found["model_tokens"] = mean_figure(tokens, Scorer("tokens of the model's own tokenizer"), seed, 1, ids)
    for name, own in values.items():
        least = METRICS[name].least_words
        short = sum(words < least for words in values["words"]) if least else None
        entry = mean_figure(own, Scorer(f"common.text.textstats.{name}", version), seed, 1, ids)
        found[name] = dataclasses.replace(entry, short=short)
    written = [text for text in texts if text.strip()]
    bleu = self_bleu(written, sample=BLEU_SAMPLE, seed=seed) if len(written) > 1 else None
    drawn = min(len(written), BLEU_SAMPLE)
    found["self_bleu"] = figure(bleu, None, drawn, Scorer("common.text.diversity.self_bleu, orders 2 to 5"))
    ratio = compression_ratio("\n".join(written)) if written else None
    scorer = Scorer("common.text.textstats.compression_ratio of all texts", version)
    found["corpus_compression_ratio"] = figure(ratio, None, len(written), scorer)
    return found
