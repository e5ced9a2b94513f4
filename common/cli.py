"""Command lines from frozen dataclasses: one flag a field, checked by argparse, without importing jax.

    @dataclasses.dataclass(frozen=True)
    class Config:
        rounds: int = flag(4, "trainings of the student, the first on the seeds alone", LOOP)

    config = parse(Config, ["--rounds", "2"], prog="run.py llm2llm")

The same dataclass serves notebooks and imports. A field's type decides how its flag is read: int, float, str,
bool (a switch; with --no-… where the default is not off), Literal (choices), tuple[...] (comma-separated, or the
flag given several times), and any of these or None.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TextIO, TypeVar

from common import VERSION
from common.characters import broken
from common.errors import UserError, meant, quoted
from common.mapping import read_mapping
from common.usercode import PACKAGE

C = TypeVar("C")

PROG = "seedloop" if PACKAGE else "run.py"
"""What the command is called: installed, or in the repository."""
CALL = PROG if PACKAGE else f"python {PROG}"
"""How it is called."""

MODEL, DATA, LOOP, TRAINING = "the model", "the data", "the loop", "training"
MEASURED, COMPARED = "how it is measured", "what is compared"
OUTPUT, DEVICES = "output", "devices and processes"
GROUPS = (MODEL, DATA, LOOP, TRAINING, MEASURED, COMPARED, OUTPUT, DEVICES)
"""Headings of flags in a command's help, in order."""

UNITS = {
    ("_tokens", "max_length"): "TOKENS",
    ("_words",): "WORDS",
    ("_file", "pool", "toxicity_prompts", "stereoset", "crows_pairs", "bbq_targets"): "FILE",
    ("_dir",): "DIR",
    ("_column",): "COLUMN",
    ("_url",): "URL",
    ("_price",): "USD,USD",
    ("budget",): "LIMITS",
    ("epochs",): "PASSES",
    ("batch_size",): "EXAMPLES",
    ("_steps",): "UPDATES",
    ("learning_rate",): "RATE",
    ("_cut",): "NATS",
}
"""What stands for a flag's value in the help, by how the field's name ends."""
TEXTS = {
    ("student", "teacher", "proposer", "target", "labeler", "guard", "judge"): "MODEL",
    ("task", "data"): "NAME",
    ("push_to_hub",): "[OWNER/]NAME",
    ("pairs",): "FILE",
    ("wordnet",): "DIR",
    ("toxicity_scorer",): "SCORER",
    ("mesh",): "AXIS=N,...",
    ("coordinator",): "HOST:PORT",
}
"""The same of flags that take a text and have no unit."""
MOST = (
    (("seed",), 2**63 - 1, "random numbers are drawn from 64 bits"),
    (("epochs", "mix"), 10_000, "no training needs as many passes"),
    (("rounds", "repeats"), 1000, "each of them trains models"),
    (("learning_rate",), 10, "no training bears such a rate"),
    (("temperature",), 100, "above that all tokens are alike"),
    (("batch_size",), 65_536, "an update's examples are laid out together"),
    (("_tokens", "max_length"), 2**20, "no model here reads as many"),
    (("lora_rank",), 8192, "a matrix has no more rows than that"),
    (("workers", "processes"), 1024, "each is a process of this machine"),
    (
        (
            "votes",
            "samples",
            "shots",
            "few_shot",
            "per_wrong",
            "max_attempts",
            "show_earlier",
            "continuations",
            "k",
        ),
        10_000,
        "it is counted for one prompt",
    ),
    (("",), 10**9, "so much is never reached"),
)
"""The largest value of a number, by how its field's name ends, and why; the first that fits."""
LEAST = 1e-9
"""The smallest number beside 0: what is below it is as good as 0, and would change nothing without a word."""
IDENTITY = ("file_hashes", "models")
"""What a run writes into its config.json beside settings."""


def flag(default: Any, help: str, group: str | None = None) -> Any:
    """A dataclass field with its default and the line that `--help` shows. `group`: the heading it stands under,
    from here on: fields that follow stand there too until one names another."""
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
    method: str | None = None,
) -> C:
    """An instance of the dataclass `kind` from command-line words.

    `presets` gives other defaults by the name that stands after `--preset`. With a `method`, `--config FILE` reads
    settings from a file (see `stored`), which win over those of a preset. Flags that are given win over both.
    Raises UserError for anything that does not fit. `--help` prints the flags and exits with status 0.
    """
    # No abbreviations: a flag added later could make one ambiguous, or change what it means.
    parser = _Parser(prog=prog, usage=f"{prog} [--flags]", description=description, allow_abbrev=False)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset", nargs="?")
    early.add_argument("--config", nargs="?")
    named, found = early.parse_known_args(argv)[0], {}
    if method is not None:
        version = f"seedloop {VERSION}"
        parser.add_argument("--version", action="version", version=version, help="print the version and exit")
        told = "settings from a YAML or JSON file, such as config.json of a run; flags win over it"
        parser.add_argument("--config", metavar="FILE", help=told)
        if named.config:
            found = stored(kind, pathlib.Path(named.config), method)
    preset = named.preset or found.get("preset") or ""
    of_preset = (presets or {}).get(preset, {})
    _add_flags(parser, kind, of_preset, preset)
    parser.set_defaults(**{**of_preset, **found})
    values, rest = parser.parse_known_args(argv)
    if rest:
        flags = [option for action in parser._actions for option in action.option_strings]  # in order
        word = rest[0].partition("=")[0]
        what = f"unknown flag {word}{meant(word, flags)}" if word.startswith("-") else f"stray word {quoted(word)}"
        parser.error(what)
    return kind(**{name: value for name, value in vars(values).items() if name != "config"})


def _add_flags(parser: _Parser, kind: type[Any], of_preset: Mapping[str, Any], preset: str) -> None:
    hints, current = typing.get_type_hints(kind), None
    found: dict[str | None, list[dataclasses.Field]] = {None: [], **{name: [] for name in GROUPS}}
    for field in dataclasses.fields(kind):
        current = field.metadata.get("group") or current
        found[current].append(field)
    for name, fields in found.items():
        # A heading for a parser without groups would stand over nothing.
        group: Any = parser.add_argument_group(name) if name and fields else parser
        for field in fields:
            options = _argument(hints[field.name], field)
            told = field.metadata["help"] + _default_told(field, of_preset, preset)
            # argparse formats help texts with %.
            group.add_argument(flag_name(field.name), help=told.replace("%", "%%"), **options)


def _default_told(field: dataclasses.Field, of_preset: Mapping[str, Any], preset: str) -> str:
    """ " (default: 4)", or " (paper: 10)" of a preset; nothing of an open or empty one and of a switch."""
    value = of_preset.get(field.name, field.default)
    if field.name not in of_preset and (value in (None, (), "") or isinstance(value, bool)):
        return ""
    shown = ",".join(value) if isinstance(value, tuple) else value
    return f" ({preset if field.name in of_preset else 'default'}: {shown})"


def _argument(hint: Any, field: dataclasses.Field) -> dict[str, Any]:
    options: dict[str, Any] = {"default": field.default, "dest": field.name}
    hint = _plain(hint)
    if hint is bool:
        return options | {"action": "store_true" if field.default is False else argparse.BooleanOptionalAction}
    units = [*UNITS.items(), *(TEXTS.items() if hint is str else ())]
    unit = next((unit for ends, unit in units if field.name.endswith(ends)), None)
    if typing.get_origin(hint) is typing.Literal:
        unit = "|".join(typing.get_args(hint))
    elif typing.get_origin(hint) is tuple:
        return options | {"type": _words, "metavar": unit or "A,B,...", "action": _Several}
    return options | {
        "type": functools.partial(_from_word, hint),
        "metavar": unit or {int: "N", float: "X"}.get(hint, "TEXT"),
    }


def _may_be_open(hint: Any) -> bool:
    """Whether a setting may be None: where the flag is not given."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint)


def _plain(hint: Any) -> Any:
    """X of X | None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _from_word(hint: Any, word: str) -> Any:
    try:
        return _read(hint, word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _read(hint: Any, value: Any, from_text: bool = True) -> Any:
    """A setting of a flag's type from a word, or from a file's value, or with `from_text` False one of a program,
    which writes numbers as numbers and several texts as a tuple. Raises ValueError."""
    if typing.get_origin(hint) is typing.Literal:
        known = typing.get_args(hint)
        if value not in known:
            raise ValueError(f"{quoted(value)} is none of {', '.join(known)}{meant(str(value), known)}")
        return value
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
            return tuple(value)
        if isinstance(value, str) and from_text:
            return _words(value)
        raise ValueError(f"{quoted(value)} is no list of texts")
    if hint in (int, float):
        kinds = ((int,) if hint is int else (int, float)) + ((str,) if from_text else ())
        try:
            # YAML takes 1e-4 for a text; in Python True is a number.
            if isinstance(value, kinds) and not isinstance(value, bool):
                return hint(value)
        except (ValueError, OverflowError):
            pass
        raise ValueError(f"{quoted(value)} is no {'whole ' if hint is int else ''}number")
    if not isinstance(value, hint):
        raise ValueError(f"{quoted(value)} is {'neither true nor false' if hint is bool else 'no text'}")
    return value


def stored(kind: type[Any], file: pathlib.Path, method: str) -> dict[str, Any]:
    """The settings in a YAML or JSON file: names of flags with their values, or config.json of a run of `method`.
    Raises UserError for a name that is none, and for a value that its flag does not take."""
    found = read_mapping(file, "names of flags with their values")
    if {"method", "config"} <= found.keys() and isinstance(found["config"], dict):
        if found["method"] != method:
            raise UserError(f"{file} is of {quoted(found['method'])}, not of {method}: use it with that method")
        if beside := [key for key in found if key not in ("seedloop", "method", "config")]:
            raise UserError(
                f"{file}: {quoted(beside[0])} stands beside the settings of a run: put it into its config"
            )
        found = {name: value for name, value in found["config"].items() if name not in IDENTITY}
    hints, settings, by_name = typing.get_type_hints(kind), {}, {}
    fields = [field.name for field in dataclasses.fields(kind)]
    for key, value in found.items():
        name = str(key).removeprefix("--").replace("-", "_")
        if name not in fields:
            raise UserError(f"{file}: unknown setting {quoted(key)}{meant(str(key), fields)}")
        if name in by_name:
            raise UserError(f"{file}: {quoted(by_name[name])} and {quoted(key)} are one setting: keep one of them")
        by_name[name] = key
        if value is None and _may_be_open(hints[name]):  # as in config.json
            continue
        try:
            settings[name] = _read(_plain(hints[name]), value)
        except ValueError as error:
            raise UserError(f"{file}: {name}: {error}") from None
    return settings


def flag_name(field: str) -> str:
    """ "--run-dir" of "run_dir"."""
    return "--" + field.replace("_", "-")


def flag_words(field: str, value: Any) -> list[str]:
    """What gives `field` that value on a command line."""
    name = flag_name(field)
    if isinstance(value, bool):
        return [name if value else f"--no-{name[2:]}"]
    return [name, ",".join(value) if isinstance(value, tuple) else str(value)]


def check_values(config: Any) -> None:
    """Raises UserError, naming the flag, for any value in a dataclass of settings that is not of its type, any
    number that is not finite, too large, or too small to be told from 0, and any text with half a character or
    NUL."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), flag_name(field.name)
        if fault := broken(value):
            # Of a name on the disk it is a byte that is no UTF-8.
            raise UserError(f"{name} holds {fault}: give a text in UTF-8 without it")
        if isinstance(value, int | float) and not isinstance(value, bool):
            most, why = next((most, why) for ends, most, why in MOST if field.name.endswith(ends))
            check_number(name, value, most, why)
        if value is not None or not _may_be_open(hints[field.name]):
            try:
                _read(_plain(hints[field.name]), value, from_text=False)
            except ValueError as error:
                raise UserError(f"{name}: {error}") from None


def check_number(name: str, value: float, most: float, why: str) -> None:
    """Raises UserError for a number that is not finite, above `most`, or too small to be told from 0."""
    if value != value or abs(value) == math.inf:
        raise UserError(f"{name} must be a finite number, not {value}")
    if abs(value) > most:
        raise UserError(f"{name} must be at most {most}, not {quoted(value)}: {why}")
    if 0 < abs(value) < LEAST:
        raise UserError(f"{name} must be 0 or at least {LEAST}, not {value}: less is as good as 0")


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


def no_words(argv: list[str], usage: str) -> None:
    """For a command that takes no words. `-h` prints its usage; raises UserError for anything else."""
    if argv in (["-h"], ["--help"]):
        print(f"usage: {PROG} {usage}")
        raise SystemExit(0)
    if argv:
        raise UserError(f"stray word {quoted(argv[0])}: the command is {PROG} {usage.partition(chr(10))[0]}")


def item(name: str, about: str, place: int = 0, stream: TextIO | None = None) -> str:
    """What is printed to `stream`, the standard output if not given: `wrapped` in a terminal. Where there is none
    it is one line, for programs that search it."""
    return wrapped(name, about, place) if (stream or sys.stdout).isatty() else f"{_aside(name, place)}{about}"


def wrapped(name: str, about: str, place: int = 0) -> str:
    """A name, and from column `place` on what is said of it, within the width of a terminal, 100 where there is
    none."""
    width = max(shutil.get_terminal_size((100, 24)).columns, place + 20)
    lines = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    lines.initial_indent, lines.subsequent_indent = _aside(name, place), " " * place
    return lines.fill(about)


def _aside(name: str, place: int) -> str:
    """A name in a column of that width, apart from what follows also where it is longer."""
    return f"{name:{place}}" if len(name) < place or name.endswith(" ") or not name else f"{name}  "


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def fail(message: str) -> NoReturn:
    """Say one line on standard error and exit with status 2."""
    print(item("error: ", message, 7, sys.stderr), file=sys.stderr)
    raise SystemExit(2)
