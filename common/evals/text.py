"""The texts a model writes: its answers to prompts, and the figures of `common.text.textstats` over them."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.config import SampleConfig
from common.errors import UserError
from common.evals.figures import Figure, Scorer, figure, mean_figure
from common.generate import Record, Request
from common.results.rundir import VERSION, RunDir
from common.tasks.files import read_rows, require, row_id
from common.tasks.prompts import Prompt
from common.text.diversity import self_bleu
from common.text.textstats import METRICS, compression_ratio, profile

if TYPE_CHECKING:
    from common.lm import LanguageModel

COLUMNS = ("prompt", "instruction", "inputs", "question", "query", "text")
BLEU_SAMPLE = 200
SLOTS = 128
"""Most samples that decode together."""


def load_prompts(file: pathlib.Path, column: str | None, limit: int | None = None) -> list[Prompt]:
    """The prompts of a file, from `column` or the first of `COLUMNS` that its first row has; a prompt may be an
    object with a "text", as in RealToxicityPrompts. Raises UserError, naming the row, and for equal ids."""
    rows = read_rows(file)[:limit]
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
    return prompts


def slots_for(batch_size: int) -> int:
    """The power of two at or below `batch_size`, at most `SLOTS`: so many samples decode together."""
    return min(SLOTS, 1 << (batch_size.bit_length() - 1))


def answers(
    run: RunDir,
    name: str,
    model: "LanguageModel",
    prompts: Sequence[Prompt],
    tokens: int,
    seed: int,
    batch_size: int,
) -> list[Record]:
    """The model's greedy answer to every prompt, at most `tokens` long, through its chat template if it has one.

    A prompt that leaves no room within the model's positions gives a failed record.
    """
    from common.sample.local import LocalGenerator
    from common.stages import collect

    requests = [Request(prompt.id, ({"role": "user", "content": prompt.text},)) for prompt in prompts]
    make = lambda: LocalGenerator(
        model.name, model.params, model.config, model.tokenizer, slots=slots_for(batch_size)
    )
    return collect(run, name, make, requests, SampleConfig(max_new_tokens=tokens), seed)


def counts(records: Sequence[Record]) -> dict[str, int | float | None]:
    """What became of the prompts. `left_out`: too long for the model; `truncated`: cut at the token limit."""
    given = [record for record in records if record.status != "failed"]
    truncated = sum(record.status == "length" for record in given)
    return {
        "prompts": len(records),
        "answered": len(given),
        "left_out": len(records) - len(given),
        "empty": sum(not record.text.strip() for record in given),
        "truncated": truncated,
        "truncated_share": truncated / len(given) if given else None,
    }


def scores(texts: Sequence[str], mode: str) -> dict[str, list[float]]:
    """Every metric of every text; NaN where it is not defined."""
    rows = [profile(text, mode=mode) for text in texts]
    return {name: [row[name] for row in rows] for name in METRICS}


def figures(
    texts: Sequence[str],
    mode: str,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    tokens: Sequence[int] | None = None,
) -> dict[str, Figure]:
    """Means over texts of all metrics of `textstats`, self-BLEU, and the compression ratio of all texts.

    Intervals by bootstrap over texts. `short` counts the texts below the words that the metric needs to say
    something; they are in the mean. Self-BLEU and the ratio of the corpus have no interval: a text that is drawn
    twice repeats itself, so a bootstrap would measure the drawing. `ids`: of the prompts that were answered.
    `tokens`: of each text under the tokenizer of the model that wrote it, its length as the model counts it.
    """
    version = f"{mode}, seedloop {VERSION}"
    of_texts = scores(texts, mode)
    found = {}
    if tokens is not None:
        found["model_tokens"] = mean_figure(tokens, Scorer("tokens of the model's own tokenizer"), seed, 1, ids)
    for name, values in of_texts.items():
        least = METRICS[name].least_words
        more = {"short": sum(words < least for words in of_texts["words"])} if least else {}
        found[name] = mean_figure(values, Scorer(f"common.text.textstats.{name}", version), seed, 1, ids, **more)
    written = [text for text in texts if text.strip()]
    bleu = self_bleu(written, sample=BLEU_SAMPLE, seed=seed) if len(written) > 1 else None
    drawn = min(len(written), BLEU_SAMPLE)
    found["self_bleu"] = figure(bleu, None, drawn, Scorer("common.text.diversity.self_bleu, orders 2 to 5"))
    ratio = compression_ratio("\n".join(written)) if written else None
    scorer = Scorer("common.text.textstats.compression_ratio of all texts", version)
    found["corpus_compression_ratio"] = figure(ratio, None, len(written), scorer)
    return found
