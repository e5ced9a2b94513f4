"""Replies held to a form: labelled lines, of which a model writes what stands behind each label and nothing else.

The labels of `Request.fields` are written for the model, one after another, each for all requests together. A
field with `choices` gets the one of highest likelihood. So no reply falls out of the form, however weak the model.
"""

import bisect
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

from common.config import SampleConfig
from common.generate import Record, Request
from common.model.tokenizer import Tokenizer
from common.sample.prompt import Completion, Prompt

Draw = Callable[[Sequence[Prompt]], list[list[Completion] | str]]
"""From prompts to the samples of each, or why there are none."""
Score = Callable[[Sequence[tuple[Sequence[int], Sequence[int]]]], list[np.ndarray]]
"""From prompts with answers to the log-probabilities of each answer's tokens."""


@dataclasses.dataclass
class _Reply:
    """One sample on its way. `tokens`: written by the model. `logps`: of those, and of choices taken for it."""

    request: Request
    sample: int
    text: str = ""
    tokens: int = 0
    logps: list[float] = dataclasses.field(default_factory=list)
    prompt_tokens: int = 0
    done: Record | None = None

    def add(self, value: str, tokens: int, logps: Sequence[float]) -> None:
        self.text += f" {value}" if value else ""
        self.tokens += tokens
        self.logps += logps

    def end(self, status: str, error: str | None = None) -> None:
        """Set `done`."""
        self.done = Record(
            self.request.id,
            self.sample,
            "failed" if error else "length" if status == "length" else "ok",
            None if error else self.text,
            error,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.tokens,
            mean_logp=round(sum(self.logps) / len(self.logps), 5) if self.logps and not error else None,
        )


def fill(
    requests: Sequence[Request],
    sampling: SampleConfig,
    tokenizer: Tokenizer,
    seed_of: Callable[[str, int], int],
    draw: Draw,
    score: Score,
    positions: int,
) -> list[list[Record]]:
    """The samples of each request. All fields of a reply together have as many new tokens as `sampling` allows; a
    sample that needs more is cut, as it would be without a form. One whose choices go beyond the model's
    `positions` fails alone, as one does that `draw` has no room for.

    `seed_of`: from the name of what is drawn and the number of the sample to a seed.
    """
    groups = [[_Reply(request, sample) for sample in range(request.n)] for request in requests]
    for place in range(max((len(request.fields) for request in requests), default=0)):
        going = [
            reply
            for group in groups
            for reply in group
            if reply.done is None and place < len(reply.request.fields)
        ]
        for reply in going:
            reply.text += ("\n" if place else "") + f"{reply.request.fields[place]}:"
        given = [_choices(reply.request, place) for reply in going]
        choosing = [(reply, few) for reply, few in zip(going, given, strict=True) if few]
        _choose(choosing, tokenizer, score, positions)
        free = [reply for reply, few in zip(going, given, strict=True) if not few]
        _write(free, place, sampling, tokenizer, seed_of, draw)
    for group in groups:
        for reply in group:
            if reply.done is None:
                reply.end("ok")
    return [[reply.done for reply in group if reply.done] for group in groups]


def _choices(request: Request, place: int) -> tuple[str, ...]:
    return dict(request.choices).get(request.fields[place], ())


def _write(
    replies: Sequence[_Reply],
    place: int,
    sampling: SampleConfig,
    tokenizer: Tokenizer,
    seed_of: Callable[[str, int], int],
    draw: Draw,
) -> None:
    """The field at `place` of each reply, in the model's words."""
    if not replies:
        return
    prompts, ends = [], []
    for reply in replies:
        names = reply.request.fields
        end = functools.partial(value_end, names=names, last=place + 1 == len(names), stop=sampling.stop)
        tokens = tokenizer.encode_begun(reply.request.messages, reply.text)
        reply.prompt_tokens = reply.prompt_tokens or len(tokens)
        left = dataclasses.replace(sampling, max_new_tokens=sampling.max_new_tokens - reply.tokens)
        # A name of its own for each field: with equal seeds they would share their random numbers.
        seed = seed_of(f"{reply.request.id}\0{names[place]}", reply.sample)
        prompts.append(Prompt(tokens, left, (seed,), end_finder(tokenizer.decode, end)))
        ends.append(end)
    for reply, end, found in zip(replies, ends, draw(prompts), strict=True):
        if isinstance(found, str):
            reply.end("failed", found)
            continue
        [completion] = found
        text = tokenizer.decode([token for token in completion.tokens if token not in tokenizer.eos_ids])
        value = text[: end(text)].strip()
        reply.add(value, len(completion.tokens), completion.logps)
        last = place + 1 == len(reply.request.fields)
        if completion.finish == "length" or (not last and reply.tokens >= sampling.max_new_tokens):
            reply.end("length")
        elif not value:
            # Without this field nobody can read the reply: the others would be written for nothing.
            reply.end("ok")


def _choose(
    replies: Sequence[tuple[_Reply, tuple[str, ...]]], tokenizer: Tokenizer, score: Score, positions: int
) -> None:
    """For each reply the likeliest of its choices, with the end of the line: one may begin like another. Where the
    request has a blank prompt, the one that is made likeliest by the question."""
    if not replies:
        return
    # By prompt, text and choice: replies share a blank prompt, and often their own.
    pairs: dict[tuple[tuple[str, ...], str, str], tuple[list[int], list[int]]] = {}
    key = lambda messages, text, choice: (tuple(m["content"] for m in messages), text, choice)
    for reply, choices in replies:
        for messages in (reply.request.messages, reply.request.blank):
            if not messages:
                continue
            begun = tokenizer.encode_begun(messages, reply.text)
            reply.prompt_tokens = reply.prompt_tokens or len(begun)
            for choice in choices:
                whole = tokenizer.encode_begun(messages, f"{reply.text} {choice}\n")
                # A token may span the border: then the choices are compared from a little before it.
                same = next((i for i, (a, b) in enumerate(zip(begun, whole, strict=False)) if a != b), len(begun))
                pairs[key(messages, reply.text, choice)] = whole[:same], whole[same:]
                if len(whole) > positions and reply.done is None:
                    room = f"no room for {choice!r} within the model's {positions} positions"
                    reply.end("failed", f"the prompt of {len(begun)} tokens leaves {room}: shorten it")
    replies = [(reply, choices) for reply, choices in replies if reply.done is None]
    pairs = {name: pair for name, pair in pairs.items() if sum(map(len, pair)) <= positions}
    logps = dict(zip(pairs, score(list(pairs.values())), strict=True))
    for reply, choices in replies:
        request, text = reply.request, reply.text
        found = [logps[key(request.messages, text, choice)] for choice in choices]
        usual = [logps[key(request.blank, text, choice)].sum() if request.blank else 0.0 for choice in choices]
        gains = [float(own.sum() - other) for own, other in zip(found, usual, strict=True)]
        best = max(range(len(choices)), key=lambda i: (gains[i], -i))
        reply.add(choices[best], 0, found[best].tolist())


def value_end(text: str, names: Sequence[str], last: bool, stop: Sequence[str] = ()) -> int | None:
    """Where the value at the beginning of `text` ends, None while it goes on: with its line, the last one of a
    reply (a worked solution has several lines) with a blank line or where the model begins a label of `names`."""
    start = len(text) - len(text.lstrip())
    labels = "|".join(map(re.escape, names))
    ends = rf"\n[ \t]*\n|\n[ \t*#>]*(?:{labels})[ \t]*:" if last else r"\n"
    found = re.search(ends, text[start:])
    places = [start + found.start()] if found else []
    places += [place for place in (text.find(string) for string in stop) if place >= 0]
    return min(places, default=None)


def end_finder(
    decode: Callable[[list[int]], str], end: Callable[[str], int | None]
) -> Callable[[list[int]], int | None]:
    """`Prompt.stop_at` where `end` tells the end of a text: the fewest tokens whose text, by `decode`, has one."""

    def ended(tokens: list[int]) -> bool:
        return end(decode(tokens)) is not None

    def stop_at(tokens: list[int]) -> int | None:
        if not ended(tokens):
            return None
        # More tokens do not take an end away, so the first place that has one can be bisected.
        return bisect.bisect_left(range(len(tokens) + 1), True, key=lambda count: ended(tokens[:count]))

    return stop_at
