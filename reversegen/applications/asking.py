"""Asking the target and the labeler: every answer is stored, and read back when the run continues."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from common.generate import Generator, Message, Record, Request
from common.stages import collect
from common.tasks.base import Example
from common.tasks.replies import bare
from reversegen.applications.base import Context, Model, Row
from reversegen.switches import WORD, Answers

Ask = Callable[[Row], Sequence[Message]]
"""From a query to the conversation that is to be answered."""


def in_groups(items: Sequence[Any], n: int) -> list[Sequence[Any]]:
    """`items` n at a time: the samples of each request."""
    return [items[i : i + n] for i in range(0, len(items), n)]


def as_queries(examples: Sequence[Example]) -> list[Row]:
    """Examples in the form in which proposals are asked."""
    return [{"id": example.id, "query": example.question, "group": example.group} for example in examples]


def of_target(
    ctx: Context, folder: str, queries: Sequence[Row], ask: Ask, answers: Answers, target: Model
) -> list[Sequence[Record]]:
    """The target's answers to each query. It is loaded only if one is missing."""
    with ctx.run.timed("target answers"):
        generator = lambda: target().generator()
        return in_groups(_asked(ctx, f"{folder}/target", generator, queries, ask, answers), answers.n)


def measured(
    ctx: Context, name: str, examples: Sequence[Example], ask: Ask, tokens: int, model: Model
) -> list[Record]:
    """One greedy answer of a target to each example; `name` is the file of what is measured on them."""
    with ctx.run.timed("measure"):
        generator = lambda: model().generator()
        file = f"{name.removesuffix('.jsonl')}_answers.jsonl"
        return _asked(ctx, name, generator, as_queries(examples), ask, Answers(1, tokens, 0.0), file)


def of_labeler(
    ctx: Context, name: str, queries: Sequence[Row], ask: Ask, votes: Answers
) -> list[Sequence[Record]]:
    """The labeler's answers to each query, booked on the repeat's account and stored as `name`.jsonl."""
    with ctx.run.timed("label"):
        return in_groups(_asked(ctx, name, ctx.account(ctx.labeler), queries, ask, votes), votes.n)


def of_guard(ctx: Context, name: str, queries: Sequence[Row], ask: Ask, tokens: int) -> list[Record]:
    """The guard's one reply on each query, stored as `name`.jsonl."""
    with ctx.run.timed("judge"):
        return _asked(ctx, name, ctx.account(ctx.guard), queries, ask, Answers(1, tokens, 0.0))


def said_yes(ctx: Context, name: str, queries: Sequence[Row], question: str) -> list[bool]:
    """Whether the labeler answers `question`, which holds {query}, with yes."""
    # Not str.format: a query may hold braces.
    ask = lambda row: ({"role": "user", "content": question.replace("{query}", row["query"])},)
    replies = of_labeler(ctx, name, queries, ask, Answers(1, ctx.labeler_tokens or WORD, 0.0))
    # A reply that is neither counts as no: what cannot be read must not make a query valid.
    return [(record.text or "").strip().lower().startswith("yes") for (record,) in replies]


def _asked(
    ctx: Context,
    name: str,
    generator: Generator | Callable[[], Generator],
    queries: Sequence[Row],
    ask: Ask,
    answers: Answers,
    file: str | None = None,
) -> list[Record]:
    """A request is named by `name` and query, so that every sampling has random numbers of its own."""
    requests = [Request(f"{name}/{row['id']}", tuple(ask(row)), answers.n) for row in queries]
    records = collect(ctx.run, file or f"{name}.jsonl", generator, requests, answers.sampling, ctx.seed)
    # Stored as they came; a draft in front of an answer is not what is judged and learned.
    return [r if r.text is None else dataclasses.replace(r, text=bare(r.text)) for r in records]
