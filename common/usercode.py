"""Python files of the user's own (tasks, teachers, judges, scorers): the one place where they are run.

    module = load_file(pathlib.Path("judge.py"))
    load_callable("python:judge.py:judge")

Whatever such code does wrong becomes a UserError with file and line; so does `sys.exit`, which would end a run
without a word, and a notebook's kernel with it.
"""

import ast
import pathlib
import re
import sys
import tokenize
import traceback
import types
from collections.abc import Callable
from typing import Any

from common.characters import mended
from common.errors import Terminated, UserError

STOPS = (KeyboardInterrupt, Terminated)
"""What comes through the user's code and is nobody's fault: Ctrl-C and SIGTERM. Whatever else comes is one, and so
are exceptions that are no Exception: `sys.exit`, what asyncio cancels with, a class of the user's own."""
OURS = ("common", "llm2llm", "reversegen", "active_inheritance")
_announced: set[str] = set()
PACKAGE = __name__.removesuffix("common.usercode")
""" "" in the repository; "seedloop." where the project is installed."""


def load_file(file: pathlib.Path) -> types.ModuleType:
    """Run `file` as a module of its own. Raises UserError, naming the line, for whatever goes wrong in it.

    The file reads the same in the repository and where seedloop is installed: `from reversegen.judge import
    Verdict` is ours in both. No compiled copy is left beside it.
    """
    module = types.ModuleType(f"seedloop_user_{file.stem}")
    module.__file__ = str(file.resolve())
    if module.__file__ not in _announced:  # one that was fetched with data may be no mere description of them
        _announced.add(module.__file__)
        print(f"{file} runs as code, with your rights", file=sys.stderr)
    sys.modules[module.__name__] = module  # dataclasses look their own module up there
    try:
        with tokenize.open(file) as opened:
            source = imports_below(PACKAGE, opened.read())
        exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)
    except STOPS:
        raise
    except BaseException as error:
        del sys.modules[module.__name__]
        # Without the cause: its own message may hold a key, and a notebook would store it.
        raise UserError(f"{file}{_line(error, file)} fails when it is loaded ({said(error)}): fix it") from None
    return module


def load_member(file: pathlib.Path, name: str) -> Any:
    """What `file` calls `name`; None if there is no such thing. Raises UserError as `load_file` does."""
    module = load_file(file)
    try:
        return ask(getattr, module, name, None)
    except FaultError as error:  # of a `__getattr__` of its own
        raise UserError(f"{file} fails when {name} is looked up in it ({error}): fix it") from None


def load_callable(name: str) -> Callable[..., Any]:
    """The function that "python:FILE.py:FUNCTION" names.

    Raises UserError when there is no such file or function, or the file fails.
    """
    path, _, function = name.removeprefix("python:").rpartition(":")
    if not name.startswith("python:") or not path or not function:
        raise UserError(f"{name!r} names no function: give python:FILE.py:FUNCTION")
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"no such file: {path} (given as {name})")
    if file.suffix.lower() != ".py":
        raise UserError(f"{path} is no Python file: its name must end in .py (given as {name})")
    found = load_member(file, function)
    if not callable(found):
        what = "has no function" if found is None else "holds something that is no function as"
        raise UserError(f"{path} {what} {function!r} (given as {name})")
    return found


class FaultError(Exception):
    """What a function of the user's raised (`cause`): its text says kind and message, `line` where."""

    def __init__(self, cause: BaseException, function: Callable[..., Any]):
        super().__init__(said(cause))
        code = getattr(function, "__code__", None)
        self.cause = cause
        self.line = "" if code is None else _line(cause, pathlib.Path(code.co_filename))


def ask(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What a function of the user's gives: the one place where one is called. Raises FaultError for whatever it
    raises but `STOPS`, `sys.exit` included, which would end a run without a word."""
    try:
        return function(*given, **named)
    except STOPS:
        raise
    except BaseException as error:
        raise FaultError(error, function) from None  # whose message is not masked


def place_of(function: Callable[..., Any]) -> str:
    """ "judge.py: judge": file and name of a function of the user's."""
    code, name = getattr(function, "__code__", None), getattr(function, "__qualname__", repr(function))
    return name if code is None else f"{pathlib.Path(code.co_filename).name}: {name}"


def said(error: BaseException) -> str:
    """Type and message in one line; the type alone where the message cannot be made."""
    try:
        text = mended(" ".join(str(error).split()))
    except STOPS:
        raise
    except BaseException:  # of a class of the user's own
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def imports_below(package: str, source: str) -> str:
    """`source` with its `from common.… import …` read from `package` ("seedloop."), and so for all of `OURS`.

    A module that is not there is the user's own, whose package may well be called `common` too. Lines stay where
    they are. Raises SyntaxError.
    """
    if not package:
        return source
    lines = source.split("\n")  # as the parser counts them
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level and _is_ours(str(node.module)):
            line = lines[node.lineno - 1].encode()  # the parser counts bytes
            before, statement = line[: node.col_offset].decode(), line[node.col_offset :].decode()
            statement = re.sub(
                rf"^from\s+{re.escape(str(node.module))}\b", f"from {package}{node.module}", statement
            )
            lines[node.lineno - 1] = before + statement
    return "\n".join(lines)


def _is_ours(module: str) -> bool:
    """Whether seedloop has a module of that name."""
    place = pathlib.Path(__file__).parents[1].joinpath(*module.split("."))
    return module.split(".")[0] in OURS and (place.with_suffix(".py").is_file() or place.is_dir())


def _line(error: BaseException, file: pathlib.Path) -> str:
    """ ", line N": where in `file` it failed, if that is known."""
    path = str(file.resolve())
    if isinstance(error, SyntaxError) and error.filename in (path, "<unknown>"):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f", line {lines[-1]}" if lines else ""
