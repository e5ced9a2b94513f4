"""A generator that process 0 alone asks, for all processes of a run: a hosted model, or a function of the user's.

generator = shared("openai:gpt-4o-mini", lambda: EndpointGenerator("gpt-4o-mini"))
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from common import hosts
from common.config import SampleConfig
from common.generate import Generator, Record, Request


def shared(name: str, make: Callable[[], Generator]) -> Generator:
    """What `make` gives; with several processes, one that process 0 makes and asks, and that tells all of them."""
    return make() if hosts.count() == 1 else _Shared(name, make() if hosts.is_writer() else None)


class _Shared:
    """Implements `common.generate.Generator`. `own`: in process 0."""

    def __init__(self, name: str, own: Generator | None):
        self.name, self._own = name, own

    def generate(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        batches = iter(()) if self._own is None else self._own.generate(requests, sampling, seed)
        following = lambda: [dataclasses.asdict(record) for record in next(batches, ())]
        # A batch has records, so that none is the end.
        while rows := hosts.share(following):
            yield [Record(**row) for row in rows]

    def seen(self, records: Sequence[Record]) -> None:
        if self._own is not None:
            self._own.seen(records)
