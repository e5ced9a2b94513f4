"""A Python function as a generator: a teacher of the user's own making.

def write(messages: list[dict[str, str]]) -> str: ...

generator = CallbackGenerator("python:teacher.py:write", load_callable("python:teacher.py:write"))
"""

from collections.abc import Callable, Iterator, Sequence

from common.characters import mended
from common.config import SampleConfig
from common.errors import UserError
from common.generate import Message, Record, Request
from common.progress import progress_bar
from common.usercode import FaultError, ask

BATCH = 8
"""Records yielded together. Few, as calls may be expensive and a killed run repeats an unfinished batch."""
BREAKER = 5
"""Failed calls in a row before the run stops."""


class CallbackGenerator:
    """Implements `common.generate.Generator` by calling `function` once for each sample, one after another.

    The function gets the messages only; `sampling` and `seed` are not passed on.
    """

    def __init__(self, name: str, function: Callable[[list[Message]], str]):
        self.name = name
        self._function = function
        self._failures = 0  # in a row

    def seen(self, records: Sequence[Record]) -> None:
        """Nothing to remember."""

    def generate(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        """Yield the records of whole requests in batches of about `BATCH`.

        An exception in the function, an exit or a result that is not text gives a failed record. Raises UserError
        after `BREAKER` of them in a row; what came before them has been yielded by then.
        """
        held: list[Record] = []
        good = 0  # records of `held` that come before the failures at its end
        with progress_bar(total=sum(r.n for r in requests), desc=self.name) as bar:
            for request in requests:
                for sample in range(request.n):
                    record = self._call(request, sample)
                    self._failures = self._failures + 1 if record.status == "failed" else 0
                    if self._failures == BREAKER:
                        if good:
                            yield held[:good]
                        raise UserError(
                            f"{self.name} failed {BREAKER} times in a row, the last with: {record.error}; fix "
                            "that, and the same command continues (a changed file takes a new --run-dir)"
                        )
                    held.append(record)
                    bar.update()
                # Failures at the end are held back: if the run stops, a later one asks for them again.
                if self._failures == 0:
                    good = len(held)
                    if good >= BATCH:
                        yield held
                        held, good = [], 0
        if held:
            yield held

    def _call(self, request: Request, sample: int) -> Record:
        try:
            # Copies, since the function may change what it is given.
            text = ask(self._function, [dict(message) for message in request.messages])
        except FaultError as error:
            return Record(request.id, sample, "failed", None, str(error))
        if not isinstance(text, str):
            error = f"the function gave {type(text).__name__}, not str"
        elif not text.strip():
            error = "the function gave an empty text"
        else:
            return Record(request.id, sample, "ok", mended(text))
        return Record(request.id, sample, "failed", None, error)
