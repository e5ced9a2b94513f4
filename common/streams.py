"""Work on a CPU side by side: one program seldom keeps all cores busy, as each of its small steps waits for the
slowest part of the one before. Two that have nothing to do with each other fill the gaps.

    for h in in_order(states, batches, streams=2): ...          # as map(states, batches)
    side_by_side([written(queue) for queue in queues])          # generators that yield work and get its result
"""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from common import runtime

Item = TypeVar("Item")
Found = TypeVar("Found")
Task = Generator[Callable[[], Any], Any, None]
"""Yields work, which runs in a thread of its own, and is sent what it returns."""


def most() -> int:
    """Streams that are worth it here: one on a single core and on an accelerator, which has a queue of its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if runtime.on_accelerator() else min(2, cores)


def in_order(run: Callable[[Item], Found], items: Iterable[Item], streams: int) -> Iterator[Found]:
    """`map(run, items)`, with so many items in work at a time, and one ahead of them. An error of `run` comes in
    the place of its result."""
    if streams == 1:
        yield from map(run, items)
        return
    with concurrent.futures.ThreadPoolExecutor(streams) as pool:
        started: collections.deque[concurrent.futures.Future[Found]] = collections.deque()
        for item in items:
            started.append(pool.submit(run, item))
            if len(started) > streams:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()


def side_by_side(tasks: Sequence[Task]) -> None:
    """Run tasks to their ends. Between two pieces of work a task runs in the caller's thread, so that tasks may
    share what it has. An error of one ends all, once the work that others are at is done."""
    if len(tasks) == 1:
        work = next(tasks[0], None)
        while work is not None:
            work = _sent(tasks[0], work())
        return
    with concurrent.futures.ThreadPoolExecutor(len(tasks)) as pool:
        running = {pool.submit(work): task for task in tasks if (work := next(task, None)) is not None}
        while running:
            for done in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                task = running.pop(done)
                if (work := _sent(task, done.result())) is not None:
                    running[pool.submit(work)] = task


def _sent(task: Task, found: Any) -> Callable[[], Any] | None:
    """The next piece of work of a task, or None at its end."""
    try:
        return task.send(found)
    except StopIteration:
        return None
