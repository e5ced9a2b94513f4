"""Command lines from frozen dataclasses: one flag a field, checked by argparse, without importing jax.

    @dataclasses.dataclass(frozen=True)
    class Config:
        rounds: int = flag(4, "trainings of the student, the first on the seeds alone")

    config = parse(Config, ["--rounds", "2"], prog="run.py llm2llm")

The same dataclass serves notebooks and imports. A field's type decides how its flag is read: int, float, str,
bool (a switch; with --no-… where the default is not off), Literal (choices), tuple[...] (comma-separated, or the
flag given several times), and any of these or None.
"""

import argparse
import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from common.errors import UserError
from common.usercode import PACKAGE

C = TypeVar("C")

PROG = "seedloop" if PACKAGE else "run.py"
"""What the command is called: installed, or in the repository."""


def flag(default: Any, help: str, group: str | None = None) -> Any:
    """A dataclass field with its default and the line that `--help` shows, under the heading `group` if given."""
    return dataclasses.field(default=default, metadata={"help": help, "group": group})


class _Parser(argparse.ArgumentParser):
    """Reports a fault by an exception: whether the process ends is for its caller to decide."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


class _Several(argparse.Action):
    """A flag given again adds to what it was given before, and not to the default."""

    given: tuple[str, ...] = ()

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        self.given += values
        setattr(namespace, self.dest, self.given)


def parse(
    kind: type[C],
    argv: list[str],
    prog: str,
    description: str = "",
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> C:
    """An instance of the dataclass `kind` from command-line words.

    `presets` gives other defaults by the name that stands after `--preset`; flags that are given win over them.
    Raises UserError for anything that does not fit. `--help` prints the flags and exits with status 0.
    """
    # No abbreviations: a flag added later could make one ambiguous, or change what it means.
    parser = _Parser(prog=prog, description=description, allow_abbrev=False)
    hints = typing.get_type_hints(kind)
    groups: dict[str | None, Any] = {None: parser}
    for field in dataclasses.fields(typing.cast("type[Any]", kind)):
        name = field.metadata.get("group")
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        groups[name].add_argument(flag_name(field.name), **_argument(hints[field.name], field))
    if presets is not None:
        parser.set_defaults(**presets.get(_preset(argv) or "", {}))
    values = vars(parser.parse_args(argv))
    return kind(**values)


def _preset(argv: list[str]) -> str | None:
    """The word after `--preset`; whether it is a known one is for the full parser to say."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", nargs="?")
    return first.parse_known_args(argv)[0].preset


def _argument(hint: Any, field: dataclasses.Field) -> dict[str, Any]:
    default: Any = field.default
    options: dict[str, Any] = {"default": default, "dest": field.name}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        # X | None is read as X: None is what stays where the flag is not given.
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    shown = default
    if hint is bool:
        switch = "store_true" if default is False else argparse.BooleanOptionalAction
        return options | {"action": switch, "help": field.metadata["help"]}
    if typing.get_origin(hint) is typing.Literal:
        options |= {"choices": typing.get_args(hint), "metavar": "|".join(typing.get_args(hint))}
    elif typing.get_origin(hint) is tuple:
        options |= {"type": _words, "metavar": "A,B,...", "action": _Several}
        shown = ",".join(default or ())
    else:
        options |= {"type": hint, "metavar": {"int": "N", "float": "X"}.get(hint.__name__, "TEXT")}
    stated = "" if default in (None, ()) else f" (default: {shown})"
    # argparse formats help texts with %.
    return options | {"help": (field.metadata["help"] + stated).replace("%", "%%")}


def flag_name(field: str) -> str:
    """ "--run-dir" of "run_dir"."""
    return "--" + field.replace("_", "-")


def check_ranges(
    config: Any,
    counts: Sequence[str] = (),
    above: Sequence[str] = (),
    least: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Raises UserError, naming the flag, for a field of `config` that is out of range: `counts` are at least 1,
    `above` above 0, `least` at least 0, all of them finite; `shares` above 0 and at most 1. None is left out."""
    ranges = (
        (counts, "be at least 1", lambda value: 1 <= value < math.inf),
        (above, "be above 0", lambda value: 0 < value < math.inf),
        (least, "be at least 0", lambda value: 0 <= value < math.inf),
        (shares, "lie above 0 and at most at 1", lambda value: 0 < value <= 1),
    )
    for names, what, fits in ranges:
        for name in names:
            value = getattr(config, name)
            if value is not None and not fits(value):
                raise UserError(f"{flag_name(name)} must {what}, not {value}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def fail(message: str) -> NoReturn:
    """Say one line on standard error and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
