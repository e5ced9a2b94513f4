"""How likely a model finds given texts: sentences, and options after their context.

    rows = scored([Item("q1", (("Which is red?", " a rose"), …))], ModelLikelihood(model), "arc.jsonl", store)
    rows[0]["logps"], rows[0]["tokens"]        # summed log-probabilities in nats, and of how many tokens

Context and text are tokenised together, and the text's tokens are found by their places in the joint string: from
the first that ends beyond the context. Tokenised by itself, a text would have other tokens, and its start token
would be counted although nothing predicts it. In front stands what the tokenizer itself puts in front of plain
text; where that is nothing and the text begins the string, the start token that the tokenizer names; where it
names none, the first token is a condition only, and is not counted. A chat template writes its own start token.
"""

import abc
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.buckets import in_common
from common.errors import UserError
from common.evals.figures import Figure
from common.evals.measure import MEMORY, Counts, Measure, Measured, Row, Store
from common.generate import Message
from common.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from common.lm import LanguageModel

Context = str | tuple[Message, ...]
"""Text, or a conversation, which is put through the model's chat template where it has one."""

Text = tuple[Context, str]
"""Context, and the text whose likelihood is wanted; joined they are what the model reads."""

Score = tuple[float, int] | None
"""Summed log-probability in nats, number of tokens; None for what does not fit into the model."""

Likelihood = Callable[[Sequence[Text]], list[Score]]

BATCH = 256
"""Items stored together."""
DIGITS = 4
"""Decimals of a stored log-likelihood: float32 sums over other batch shapes may differ in the fifth."""
TIE = 1e-5
"""Mean log-probabilities, in nats a token, that are closer than this are equal."""


@dataclasses.dataclass(frozen=True)
class Item:
    """Texts that are compared with each other."""

    id: str
    texts: tuple[Text, ...]


class Reader:
    """Texts as token ids under a model's tokenizer, with the place where the counted tokens begin."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        named = tokenizer.bos_id
        # Some tokenizers name a start token that they do not write; the first token of a text needs one before it.
        self._start = tokenizer.start_ids or ([] if named is None else [named])

    def pairs(self, texts: Sequence[Text]) -> list[tuple[list[int], list[int]]]:
        """(condition, counted tokens) of each text; both together are the joint string's tokens.

        Raises UserError for a tokenizer that cannot tell where its tokens stand.
        """
        parts = [
            (context, text) if isinstance(context, str) else self._tokenizer.written(context, text)
            for context, text in texts
        ]
        templates = [not isinstance(context, str) and self._tokenizer.has_template for context, _ in texts]
        encoded = self._tokenizer.encode_with_places([context + text for context, text in parts])
        return [
            self._pair(ids, places, len(context), [] if template else self._tokenizer.start_ids)
            for (context, _), (ids, places), template in zip(parts, encoded, templates, strict=True)
        ]

    def _pair(
        self, ids: list[int], places: Sequence[tuple[int, int]], border: int, put: list[int]
    ) -> tuple[list[int], list[int]]:
        first = next((i for i, (_, end) in enumerate(places) if end > border), len(ids))
        if first:
            return put + ids[:first], ids[first:]
        return (self._start, ids) if self._start else (ids[:1], ids[1:])


class ModelLikelihood:
    """A `Likelihood` of a model in this process, at most `batch_size` texts at a time. Texts that follow one
    another and have their context in common, such as the options of a question, are read as one row: the context
    once.

    Another batch size is another compiled shape, for which XLA cuts products into other parts: sums differ in the
    last bits of float32.
    """

    def __init__(self, model: "LanguageModel", batch_size: int = 32):
        self._model, self._batch_size, self._reader = model, batch_size, Reader(model.tokenizer)

    def __call__(self, texts: Sequence[Text]) -> list[Score]:
        from common.sample.score import score, score_shared

        params, config = self._model.params, self._model.config
        pairs = self._reader.pairs(texts)
        found: list[Score] = [None] * len(pairs)
        fitting = [i for i, (a, b) in enumerate(pairs) if a and b and len(a) + len(b) <= config.max_positions]
        together, alone = split_by_context(pairs, [texts[i][0] for i in fitting], fitting)

        def note(i: int, logps: Any) -> None:
            own = logps[len(logps) - len(pairs[i][1]) :]
            found[i] = round(float(own.sum(dtype="float64")), DIGITS), len(own)

        groups = [
            (prompt, [[*pairs[i][0], *pairs[i][1]][len(prompt) :] for i in places]) for prompt, places in together
        ]
        for (_, places), rows in zip(
            together, score_shared(params, config, groups, self._batch_size), strict=True
        ):
            for i, logps in zip(places, rows, strict=True):
                note(i, logps)
        for i, logps in zip(
            alone, score(params, config, [pairs[i] for i in alone], self._batch_size), strict=True
        ):
            note(i, logps)
        return found


def split_by_context(
    pairs: Sequence[tuple[list[int], list[int]]], contexts: Sequence[Context], places: Sequence[int]
) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
    """Of the `places` of pairs, which have these contexts: those in a row whose conditions have a beginning in
    common that is worth reading once, as (beginning, places), and the others."""
    together, alone = [], []
    for _, run in itertools.groupby(zip(contexts, places, strict=True), key=lambda item: item[0]):
        own = [place for _, place in run]
        same = in_common([pairs[i][0] for i in own])
        rest = max(sum(map(len, pairs[i])) for i in own) - same
        # Beside a long rest the beginning saves little, and every token looks at all rests.
        if len(own) > 1 and same >= rest:
            together.append((pairs[own[0]][0][:same], own))
        else:
            alone += own
    return together, alone


def scored(
    items: Sequence[Item], likelihood: Likelihood, name: str, store: Store = MEMORY, batch: int = BATCH
) -> list[Row]:
    """A row for each item, stored once as `name`: its id, and `logps` and `tokens` of its texts, which are None
    for an item with a text that does not fit into the model, or of which no token is counted."""

    def batches(done: int) -> Iterator[list[Row]]:
        for start in range(done, len(items), batch):
            part = items[start : start + batch]
            scores = iter(likelihood([text for item in part for text in item.texts]))
            rows = []
            for item in part:
                own = [next(scores) for _ in item.texts]
                known = [score for score in own if score is not None]
                whole = len(known) == len(own)
                rows.append(
                    {
                        "id": item.id,
                        # The texts of an item are compared, so one that does not fit leaves out all of them.
                        "logps": [logp for logp, _ in known] if whole else None,
                        "tokens": [count for _, count in known] if whole else None,
                    }
                )
            yield rows

    rows = store.rows(name, batches)
    # Rows are found by the name of the file: those of other data would be taken for these.
    if [row["id"] for row in rows] != [item.id for item in items]:
        raise UserError(f"{store.file(name)} holds rows of other items: use another folder for other data")
    return rows


def mean_logps(row: Row) -> list[float]:
    """Mean log-probability of a token, in nats, of each text of a row: the log of the geometric mean."""
    return [logp / count for logp, count in zip(row["logps"], row["tokens"], strict=True)]


def prefers(a: float, b: float) -> float:
    """1 where a is the higher one, 0 where b is, one half where they are equal."""
    return 0.5 if abs(a - b) < TIE else float(a > b)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodMeasure(Measure):
    """A measure that compares how likely a model finds the texts of an item. It says what is read, and what the
    rows of `scored` come to; the file is called as the measure."""

    def __len__(self) -> int:
        return len(self.items())

    @abc.abstractmethod
    def items(self) -> list[Item]:
        """What the model reads."""

    @abc.abstractmethod
    def figures(self, rows: Sequence[Row]) -> dict[str, Figure]:
        """What the rows come to. `rows`: one for each item, in order."""

    def counts(self, rows: Sequence[Row]) -> Counts:
        """`left_out`: items with a text that does not fit into the model."""
        return {"items": len(rows), "left_out": sum(row["logps"] is None for row in rows)}

    def series(self, rows: Sequence[Row]) -> Mapping[str, Sequence[float | None]]:
        """Values that drawings and comparisons show."""
        return {}

    def measure(self, model: "LanguageModel", store: Store = MEMORY) -> Measured:
        """The likelihoods of all items, and what they come to."""
        rows = scored(self.items(), ModelLikelihood(model, self.batch_size), f"{self.name}.jsonl", store)
        return Measured(self.figures(rows), self.counts(rows), self.series(rows))
