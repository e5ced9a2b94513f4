"""A Python function as a generator: a teacher of the user's own making.

def write(messages: list[dict[str, str]]) -> str: ...

generator = CallbackGenerator("python:teacher.py:write", load_callable("python:teacher.py:write"))
"""

import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from common.config import SampleConfig
from common.errors import UserError
from common.generate import Record, Request

Write = Callable[[list[dict[str, str]]], str]

WAVE = 8
"""Records yielded together, so few because a call may be dear and a killed run makes those of one wave again."""
BREAKER = 5
"""Failed calls in a row before the run stops."""


class CallbackGenerator:
    """Implements `common.generate.Generator` by calling `function` once for each sample, one after another.

    The function gets the messages only: `sampling` and `seed` are its own affair.
    """

    def __init__(self, name: str, function: Write):
        self.name = name
        self._function = function
        self._failures = 0  # in a row

    def seen(self, records: Sequence[Record]) -> None:
        """Nothing to remember."""

    def generate(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        """Yield the records of whole requests in waves of about `WAVE`.

        An exception in the function and a result that is no text give failed records; after `BREAKER` of them in
        a row, UserError, and what came before them has been yielded.
        """
        held: list[Record] = []
        good = 0  # records of `held` that come before the failures at its end
        with tqdm(total=sum(r.n for r in requests), desc=self.name, disable=None) as bar:
            for request in requests:
                for sample in range(request.n):
                    record = self._call(request, sample)
                    self._failures = self._failures + 1 if record.status == "failed" else 0
                    if self._failures == BREAKER:
                        if good:
                            yield held[:good]
                        raise UserError(
                            f"{self.name} failed {BREAKER} times in a row, the last with: {record.error}; mend "
                            "that, and the same command continues (a changed file takes a new --run-dir)"
                        )
                    held.append(record)
                    bar.update()
                if self._failures == 0:
                    good = len(held)
                    if good >= WAVE:
                        yield held
                        held, good = [], 0
        if held:
            yield held

    def _call(self, request: Request, sample: int) -> Record:
        try:
            text = self._function([dict(message) for message in request.messages])
        except (Exception, SystemExit) as error:
            return Record(request.id, sample, "failed", None, _said(error))
        if not isinstance(text, str):
            error = f"the function gave {type(text).__name__}, not str"
        elif not text.strip():
            error = "the function gave an empty text"
        else:
            return Record(request.id, sample, "ok", text)
        return Record(request.id, sample, "failed", None, error)


def load_callable(name: str) -> Callable[..., Any]:
    """The function that "python:FILE.py:FUNCTION" names. The file is run as a module of its own.

    Raises UserError when there is no such file or function, or the file fails; then with the line of it.
    """
    path, _, function = name.removeprefix("python:").rpartition(":")
    if not name.startswith("python:") or not path or not function:
        raise UserError(f"{name!r} names no function: give python:FILE.py:FUNCTION")
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"no such file: {path} (given as {name})")
    spec = importlib.util.spec_from_file_location(f"seedloop_callback_{file.stem}", file.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: its name must end in .py (given as {name})")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise UserError(f"{path}{_line(error, file)} fails when it is loaded ({_said(error)}): mend it") from error
    found = getattr(module, function, None)
    if not callable(found):
        what = "has no function" if found is None else "holds something that is no function as"
        raise UserError(f"{path} {what} {function!r} (given as {name})")
    return found


def _said(error: BaseException) -> str:
    """Type and message in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line(error: BaseException, file: pathlib.Path) -> str:
    """ ", line N": where in `file` it failed, if that is known."""
    path = str(file.resolve())
    if isinstance(error, SyntaxError) and error.filename == path:
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f", line {lines[-1]}" if lines else ""
