"""Which sample sits where: the host's side of continuous batching.

queue, slots = Queue(prompts), Slots(32)
shared, tokens, rows = queue.next_prompts(8, 4096)     # to be prefilled; their samples are ready
row, job = queue.pop()
slots.start(0, job)
finished = slots.advance(tokens, logps, eos)           # what a block of decoding has made
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common.buckets import MANY_SLOTS, PREFIX, SLOTS, power_of_two
from common.model.decoder import Cache
from common.sample.choose import key_data
from common.sample.numbers import numbers
from common.sample.prompt import Prompt

FEW_PROMPTS = 8
"""Prompts a stream, with fewer of which each stream prefills all of them: or one could have most samples."""


@dataclasses.dataclass
class Job:
    """A sample on its way."""

    prompt: Prompt
    seed: int
    prompt_index: int
    sample_index: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logps: list[float] = dataclasses.field(default_factory=list)
    finish: Any = None

    def extend(self, tokens: list[int], logps: list[float], eos: np.ndarray) -> None:
        """Take in a block's tokens; set `finish` if the sample is complete."""
        self.tokens += tokens
        self.logps += logps
        # First: an end token that is also the last one allowed is an end.
        if self.tokens[-1] in eos:
            self.finish = "stop"
        elif len(self.tokens) == self.prompt.sampling.max_new_tokens:
            self.finish = "length"
        keep = self.prompt.stop_at(self.tokens) if self.prompt.stop_at else None
        if keep is not None:
            self.tokens, self.logps, self.finish = self.tokens[:keep], self.logps[:keep], "stop"


class Queue:
    """Samples without a slot: of prompts still to be prefilled, and `ready` ones of those that were last.

    Of several streams that share the samples of these prompts each has a queue of its own, with as many of like
    length: of few prompts some samples of each, of many some prompts with all of theirs.
    """

    def __init__(self, prompts: Sequence[Prompt], stream: int = 0, streams: int = 1):
        distinct = collections.defaultdict(list)
        for i, prompt in enumerate(prompts):
            tokens = tuple(prompt.tokens)
            for j, seed in enumerate(prompt.seeds):
                distinct[tokens[: prompt.shared], tokens].append(Job(prompt, seed, i, j))
        # Short prompts first, so that those prefilled together are of like length.
        order = sorted(distinct.items(), key=lambda item: (item[0][0], len(item[0][1])))
        if len(order) >= FEW_PROMPTS * streams:
            order = order[stream::streams]
        else:
            order = [(tokens, own) for tokens, jobs in order if (own := jobs[stream::streams])]
        self._prompts = collections.deque(order)
        self.shared: tuple[int, ...] = ()
        self.begun: Cache | None = None
        self.distinct = len(order)
        self.waiting = sum(len(jobs) for _, jobs in order)
        self.ready: collections.deque[tuple[int, Job]] = collections.deque()
        self.prefilled: Cache = []

    def next_prompts(self, count: int, most: int | float) -> tuple[tuple[int, ...], list[tuple[int, ...]], int]:
        """What the next prompts begin with, and their other tokens; their samples become ready, by row. At most
        `count` rows, or a half or less of them where all would have more than `most` tokens; and this number.

        The last token of a prompt is left out: it is what the slot feeds first.
        """
        shared, group = self._prompts[0][0][0], []
        same = itertools.takewhile(lambda item: item[0][0] == shared, itertools.islice(self._prompts, count))
        lengths = [len(prompt) - len(shared) for (_, prompt), _ in same]
        while count > 1 and count * max(lengths[:count]) > most:
            count //= 2
        while self._prompts and len(group) < count and self._prompts[0][0][0] == shared:
            (_, prompt), jobs = self._prompts.popleft()
            self.ready.extend((len(group), job) for job in jobs)
            group.append(prompt[len(shared) : -1])
        return shared, group, count

    def pop(self) -> tuple[int, Job]:
        self.waiting -= 1
        return self.ready.popleft()


class Slots:
    """The host's view of the rows: what the device needs for the next block, and the sample in each."""

    def __init__(self, count: int, prompts: int = MANY_SLOTS):
        self.count = count
        self.group = max(1, count // 8)  # free slots worth a stop
        # Prompts prefilled in one call: fewer keep a processor half busy, more than there are are padding.
        self.together = max(1, min(count // 4, max(SLOTS // 4, power_of_two(prompts))))
        self.jobs: list[Any] = [None] * count
        self.live = np.zeros(count, bool)
        self.rows = {
            "live": self.live,
            "token": np.zeros(count, np.int32),  # fed next, at `position`
            "position": np.zeros(count, np.int32),
            "step": np.zeros(count, np.int32),  # tokens sampled so far
            "limit": np.zeros(count, np.int32),
            "key": np.zeros((count, 2), np.uint32),
            "temperature": np.zeros(count, np.float32),
            "top_p": np.ones(count, np.float32),
            "top_k": np.zeros(count, np.int32),
        }

    def start(self, slot: int, job: Job) -> None:
        tokens, sampling = job.prompt.tokens, job.prompt.sampling
        self.jobs[slot] = job
        values = {
            "live": True,
            "token": tokens[-1],
            "position": len(tokens) - 1,
            "step": 0,
            "limit": sampling.max_new_tokens,
            "key": key_data(job.seed),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.temperature else 1.0,
            "top_k": sampling.top_k if sampling.temperature else 0,
        }
        for name, value in values.items():
            self.rows[name][slot] = value

    def few(self, waiting: int) -> int:
        """How few live rows are a reason to stop and refill, when so many samples wait."""
        return self.count - min(waiting, self.group) if waiting else 0

    def narrow(self, count: int) -> np.ndarray:
        """Keep so many slots, with all that are live; returns their rows."""
        kept = np.argsort(~self.live, kind="stable")[:count]
        self.count, self.jobs = count, [self.jobs[slot] for slot in kept]
        self.rows = {name: values[kept] for name, values in self.rows.items()}
        self.live = self.rows["live"]
        return kept

    def most_left(self) -> int:
        """The most tokens that a live sample may still get."""
        return int(np.max(self.rows["limit"] - self.rows["step"], where=self.live, initial=0))

    def ends(self, block: int) -> np.ndarray:
        """Of each slot how many tokens its next block reaches up to."""
        rows = self.rows
        return rows["position"] + np.minimum(block, rows["limit"] - rows["step"])

    def advance(self, tokens: np.ndarray, logps: np.ndarray, eos: np.ndarray) -> list[Job]:
        """Hand the block's tokens and log-probabilities (block, B) to the samples; returns finished ones."""
        finished, rows = [], self.rows
        counts = (tokens >= 0).sum(0)
        for slot in np.flatnonzero(self.live):
            job, count = self.jobs[slot], counts[slot]
            likelihoods = numbers(logps[:count, slot], "log-probabilities of a sampled answer")
            job.extend(tokens[:count, slot].tolist(), likelihoods.tolist(), eos)
            rows["token"][slot] = tokens[count - 1, slot]
            rows["position"][slot] += count
            rows["step"][slot] += count
            if job.finish:
                finished.append(job)
                self.live[slot] = False
                # A greedy row without cuts asks for no random numbers and no search.
                rows["temperature"][slot], rows["top_p"][slot], rows["top_k"][slot] = 0.0, 1.0, 0
        return finished


def padded(prompts: Sequence[Sequence[int]], rows: int, rounded: Callable[[int, int], int]) -> np.ndarray:
    """So many rows, right-padded to the longest of them, `rounded` up."""
    tokens = np.zeros((rows, rounded(max(map(len, prompts)), PREFIX)), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens


def packed(prompts: Sequence[Sequence[int]]) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
    """Rows and length that prompts fit into, and ids and places of their tokens, whose number is rounded up to
    sixteenths of that (see `common.model.packing.Packing`)."""
    rows = padded(prompts, power_of_two(len(prompts)), power_of_two)
    lengths = np.zeros(len(rows), np.int32)
    lengths[: len(prompts)] = list(map(len, prompts))
    part = rows.size // 16
    padding = np.arange(rows.shape[1]) >= lengths[:, None]
    real = np.argsort(padding, axis=None, kind="stable")[: part * max(1, -(-lengths.sum() // part))]
    return rows.shape, rows.reshape(-1)[real], real.astype(np.int32)
