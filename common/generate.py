"""Text generation behind one protocol: prompts in, one record per sample out.

A back end is anything with `generate(requests, sampling, seed)`. Every sample asked for comes back as a
`Record`, also when it failed: a failure is a status and an error, never an empty string that looks like data.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from common.config import SampleConfig

Message = dict[str, str]
"""A chat turn: {"role": "system" | "user" | "assistant", "content": text}."""


def system_into_user(messages: Sequence[Message]) -> list[Message] | None:
    """The conversation with its system text in front of the first user turn, for models without a system role;
    None if there is no system text to move."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    content = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": content}, *messages[2:]]


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and how many samples of it are wanted.

    `example` is the data row that the prompt is about, for back ends that look things up instead of
    writing (see `llm2llm.pool`); language models ignore it. `fields` names the labelled lines of which the
    reply consists, such as ("Text", "Label") for "Text: …" above "Label: …"; back ends that can hold a model to a
    form make use of it. `choices`: the fields that take one of a few values, with these.
    `blank`: the same prompt without its question. What both begin with is read once for all such requests, and
    choices are compared by how much the question makes each likelier, and not by what a model says whatever it is
    asked (see `common.evals.evaluate.scored_batches`).
    `reserve`: calls, tokens sent and tokens received that a budget must still cover once this was bought, since
    without them its reply is of no use.
    """

    id: str
    messages: tuple[Message, ...]
    n: int = 1
    example: Any = None
    fields: tuple[str, ...] = ()
    choices: tuple[tuple[str, tuple[str, ...]], ...] = ()
    blank: tuple[Message, ...] = ()
    reserve: tuple[int, int, int] = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample. `status`: "ok", "length" (cut at the token limit, text kept) or "failed" (see `error`).

    `mean_logp`: mean log-probability of its tokens under the model at temperature 1, where it is known.
    """

    id: str
    sample: int
    status: Literal["ok", "length", "failed"]
    text: str | None
    error: str | None = None
    attempts: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    mean_logp: float | None = None


def unnumbered(error: str | None) -> str:
    """What an error says but for its numbers, which differ where the reason is one: "a prompt of 612 tokens"."""
    return re.sub(r"\d+", "#", error or "")


class Generator(Protocol):
    """What every back end offers. `name` goes into lineage and reports."""

    name: str

    def generate(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        """Yield records in batches, in the order of `requests`, each request's samples side by side.

        The same requests, sampling and seed give the same records, wherever a batch ends. A caller that
        stores each batch as it comes loses at most one when it is killed.
        """
        ...

    def seen(self, records: Sequence[Record]) -> None:
        """Told of every record that was stored, fresh or read back when a run continues. Back ends that may
        not give the same thing twice remember it; models need not."""
        ...


def sample_texts(
    generator: Generator, prompts: Sequence[str], sampling: SampleConfig, *, n: int = 1, seed: int = 0
) -> list[list[str | None]]:
    """`n` answers to each of `prompts`, which are said as a user would; None for one that failed.

    A prompt is known by its place, so its answers depend on `seed`, and with more prompts stay the same.
    """
    requests = [Request(str(i), ({"role": "user", "content": prompt},), n) for i, prompt in enumerate(prompts)]
    records = [record for batch in generator.generate(requests, sampling, seed) for record in batch]
    return [[record.text for record in records[i : i + n]] for i in range(0, len(records), n)]
