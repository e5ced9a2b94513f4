"""A model behind an HTTP endpoint that speaks OpenAI's chat protocol, as a generator.

    with Replies(folder / "replies.sqlite") as replies:
        generator = EndpointGenerator("gpt-4o-mini", replies=replies, scope="repeat_0/llm2llm")
        for records in generator.generate(requests, SampleConfig(temperature=1.0), seed=0):
            ...

Every reply is stored in `replies` before it is used, so a killed run buys again at most the `concurrency` replies
that were in flight. The server may still bill replies that were cut off or timed out in transit; no budget counts
those.
"""

import collections
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Sized

from common.backends.budget import BUDGET_SPENT, Budget, Spent
from common.backends.chat import ASKS, KEPT, NOTHING, estimate, read_reply, to_record
from common.backends.replies import Replies, Reply, reply_key
from common.backends.wire import LostError, UnfitError, Wire
from common.config import SampleConfig
from common.errors import UserError
from common.generate import Record, Request, unnumbered
from common.progress import progress_bar

TIMEOUT = 120.0
"""Seconds for one try of a request."""
READS = 3
"""Tries of a request whose answer has status 200 and is not readable."""
PAUSE = 1.0
"""Seconds before such a try."""
BREAKER = 5
"""Consecutive requests that may fail, all retries included, before the run stops."""
BATCH = 32
"""Records yielded together. The caller syncs each batch to disk; the replies are safe before that."""
GRACE = 30.0
"""Seconds to wait, when a run stops, for replies in flight: they are paid for."""


class EndpointGenerator:
    """Implements `common.generate.Generator`. The key comes from OPENAI_API_KEY and goes into requests only.

    `url` is the base address (else OPENAI_BASE_URL, else OpenAI's own). `budget` limits what is bought on the
    account `scope` of `replies`, over all processes. `timeout` is in seconds. Close it, or use it in a `with`
    block. Raises UserError for a malformed address and for a missing key.
    """

    def __init__(
        self,
        model: str,
        *,
        url: str | None = None,
        replies: Replies,
        scope: str,
        budget: Budget | None = None,
        concurrency: int = 8,
        timeout: float = TIMEOUT,
    ):
        if concurrency < 1 or not timeout > 0:
            raise UserError(f"concurrency {concurrency} must be at least 1 and timeout {timeout} above 0 seconds")
        self.name = f"openai:{model}"
        self._model, self._replies, self._scope = model, replies, scope
        self._budget, self._concurrency = budget or Budget(), concurrency
        self._wire = Wire(model, url, timeout)
        self._failures = 0  # in a row
        self._useless: list[str] = []  # errors of the last records in a row, equal but for their numbers
        self._useful = False  # whether one was ever of use

    def __enter__(self) -> "EndpointGenerator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        self._wire.close()

    def seen(self, records: Sequence[Record]) -> None:
        """Nothing to remember: replies are found again by their request."""

    def generate(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        """Yield the records of whole requests in batches of about `BATCH`; see `common.generate.Generator`.

        What the budget does not cover comes back as failed with an error that begins with `BUDGET_SPENT`. Raises
        UserError for an id that comes twice, for a refusal that concerns every request, and after `BREAKER`
        failures in a row.
        """
        ids = collections.Counter(request.id for request in requests)
        twice = next((name for name, count in ids.items() if count > 1), None)
        if twice is not None:
            raise UserError(f"request id {twice!r} comes twice: ids must differ, replies are stored by them")
        return self._waves(requests, sampling, seed)

    def _waves(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        wants = [
            _Want(request, sample, self._keys(request, sample, sampling, seed))
            for request in requests
            for sample in range(request.n)
        ]
        # What an earlier process bought is taken from the cache before anything is asked for.
        for want in wants:
            # Two replies, where the first had no text and was asked for again.
            while want.record is None and (reply := self._replies.get(want.key)) is not None:
                want.take(reply)
        open_wants = collections.deque(want for want in wants if want.record is None)
        spent = self._replies.spent(self._scope)
        in_flight: dict[str, Spent] = {}
        landed: queue.SimpleQueue = queue.SimpleQueue()
        done = 0
        bought = len(wants) - len(open_wants)
        with progress_bar(total=len(wants), initial=bought, desc=self.name) as bar, _awaiting(landed, in_flight):
            while open_wants or in_flight:
                while open_wants and len(in_flight) < self._concurrency:
                    want = open_wants[0]
                    # Reserved in full, so that requests in flight cannot exceed the budget together.
                    cost = estimate(want.request, sampling)
                    wanted = sum(in_flight.values(), spent + cost) + Spent(*want.request.reserve)
                    if self._budget.covers(wanted):
                        in_flight[want.key] = cost
                        _in_thread(lambda want=want: self._buy(want, sampling), want, landed)
                    elif in_flight:
                        break  # what is in flight may cost less than was reserved for it
                    else:
                        want.fail(f"{BUDGET_SPENT}: {' and '.join(self._budget.short(wanted))}", asked=0)
                        bar.update()
                    open_wants.popleft()
                if in_flight:
                    want, outcome = landed.get()
                    del in_flight[want.key]
                    if isinstance(outcome, Reply):
                        self._failures = 0
                        spent += Spent(1, outcome.prompt_tokens, outcome.completion_tokens)
                        want.take(outcome)
                    else:
                        want.fail(self._failure(outcome), asked=1)
                    self._see(want.record)
                    if want.record is None:
                        open_wants.appendleft(want)  # first in line: its batch waits for it
                    else:
                        bar.update()
                # Failures that may turn out to be an outage are held back, so that a later run asks again.
                if self._failures == 0 and (ready := _ready(wants, done)) - done >= BATCH:
                    yield _records(wants[done:ready])
                    done = ready
        if done < len(wants):
            yield _records(wants[done:])

    def _keys(self, request: Request, sample: int, sampling: SampleConfig, seed: int) -> list[str]:
        """The names in `replies` of all that may be bought for one sample."""
        parts = {
            "url": self._wire.url,
            "model": self._model,
            "messages": request.messages,
            "sampling": dataclasses.asdict(sampling),
            "fields": request.fields,
            # Not sent to the server, but another seed is to be another draw.
            "seed": seed,
            "request": request.id,
            "sample": sample,
        }
        return [reply_key(**parts, ask=ask) for ask in range(ASKS)]

    def _buy(self, want: "_Want", sampling: SampleConfig) -> Reply:
        """One reply, stored. Raises LostError, UnfitError, or UserError for what concerns every request."""
        expected = estimate(want.request, sampling)
        problem = ""
        for attempt in range(READS):
            if attempt:
                time.sleep(PAUSE)
            text = self._wire.send(want.request, sampling)
            try:
                reply = read_reply(text, expected)
            except ValueError as error:
                problem = self._wire.line(str(error))
                continue
            self._replies.put(want.key, self._scope, reply)
            return reply
        raise LostError(f"no readable reply in {READS} tries ({problem})")

    def _see(self, record: Record | None) -> None:
        """Raise UserError if what this server gave in a row is of no use, for one and the same reason."""
        if record is None:
            return
        if record.status != "failed":
            self._useless, self._useful = [], True
            return
        error = str(record.error)
        # From a server that gave what is of use, refusals and what is too long are about their prompts.
        if self._useful and not error.startswith(NOTHING):
            return
        same = bool(self._useless) and unnumbered(self._useless[0]) == unnumbered(error)
        self._useless = [*self._useless, error] if same else [error]
        if len(self._useless) >= BREAKER:
            raise UserError(
                f"{self._wire.shown_url}, model {self._model}, gave nothing of use for {BREAKER} requests in a "
                f"row: {record.error}; change what the server is started with, or the model; {KEPT}"
            )

    def _failure(self, outcome: BaseException) -> str:
        """The error of one record. Raises what concerns more than that record."""
        if isinstance(outcome, UnfitError):
            self._failures = 0  # the server answers
        elif isinstance(outcome, LostError):
            self._failures += 1
            if self._failures >= BREAKER:
                raise UserError(
                    f"{self._failures} requests in a row failed at {self._wire.shown_url}, model {self._model}, "
                    f"the last with: {outcome}; check the service and the network; {KEPT}"
                )
        else:
            raise outcome
        return str(outcome)


class _Want:
    """One sample that is to become a record. `key` names the reply to be bought next."""

    def __init__(self, request: Request, sample: int, keys: Sequence[str]):
        self.request, self.sample = request, sample
        self.record: Record | None = None
        self._keys, self._replies = keys, []

    @property
    def key(self) -> str:
        return self._keys[len(self._replies)]

    def take(self, reply: Reply) -> None:
        """Add a reply; `record` stays None when one more has to be bought."""
        self._replies.append(reply)
        self.record = to_record(self.request, self.sample, self._replies)

    def fail(self, error: str, asked: int) -> None:
        """Make a failed record. It counts what was paid for before, and `asked` more attempts."""
        self.record = Record(
            self.request.id,
            self.sample,
            "failed",
            None,
            error,
            attempts=len(self._replies) + asked,
            prompt_tokens=sum(reply.prompt_tokens for reply in self._replies),
            completion_tokens=sum(reply.completion_tokens for reply in self._replies),
        )


def _records(wants: Sequence[_Want]) -> list[Record]:
    """The records of wants that all have theirs."""
    return [want.record for want in wants if want.record is not None]


def _ready(wants: Sequence[_Want], start: int) -> int:
    """Where the whole requests from `start` on end that have all their records."""
    end = start
    while end < len(wants):
        count = wants[end].request.n
        if any(want.record is None for want in wants[end : end + count]):
            break
        end += count
    return end


def _in_thread(buy: Callable[[], Reply], want: _Want, landed: queue.SimpleQueue) -> None:
    """Let a thread put (want, reply or exception) into `landed`."""

    def work():
        try:
            outcome = buy()
        except BaseException as error:
            outcome = error
        landed.put((want, outcome))

    # A daemon, so that a hanging server cannot keep a stopped process alive.
    threading.Thread(target=work, daemon=True).start()


@contextlib.contextmanager
def _awaiting(landed: queue.SimpleQueue, in_flight: Sized) -> Iterator[None]:
    """At the end let the replies in flight land, which stores them, for as long as `GRACE` allows."""
    try:
        yield
    finally:
        deadline = time.monotonic() + GRACE
        with contextlib.suppress(queue.Empty):
            for _ in range(len(in_flight)):
                landed.get(timeout=max(0.0, deadline - time.monotonic()))
