"""Tasks that users bring: a Python file with a `TASK`, or a YAML or JSON file for plain labelled text."""

import copy
import dataclasses
import functools
import inspect
import pathlib
import re
import reprlib
import types
import typing
from collections.abc import Callable
from typing import Any

from common.characters import broken
from common.errors import UserError, meant, quoted
from common.mapping import read_mapping
from common.tasks.base import MEMBERS, Kind, Task
from common.tasks.hub import Hub
from common.tasks.labelled import LabelledText, normalise, tokens_for
from common.usercode import FaultError, ask, load_member

SUFFIXES = (".py", ".yaml", ".yml", ".json")
_METHODS = {name: method for name in MEMBERS if inspect.isfunction(method := getattr(Task, name))}
_TEXTS = ("name", "instruction", "noun", "text_column", "label_column", "hub_id", "hub_config")
_LIMITS = ("answer_tokens", "example_tokens", "near_duplicate")
KEYS = (*_TEXTS[:3], "labels", *_TEXTS[3:], *_LIMITS)


def own_task(file: pathlib.Path) -> Task:
    """The task that `file` describes. Raises UserError naming file and member or key for whatever is wrong."""
    if not file.is_file():
        raise UserError(f"no such file: {file} (given as --task)")
    if file.suffix.lower() == ".py":
        return _from_python(file)
    return _from_keys(file, read_mapping(file, ", ".join(KEYS)))


def _from_python(file: pathlib.Path) -> Task:
    task = load_member(file, "TASK")
    if task is None:
        raise UserError(f"{file}: it must define TASK, such as TASK = WorkedAnswer(name={file.stem!r})")
    try:
        return ask(lambda: _guarded(file, _checked(file, task)))
    except FaultError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise UserError(f"{file}: TASK fails when its members are read ({error}): fix it") from None


def _guarded(file: pathlib.Path, task: Task) -> Task:
    """`task`, still of its own class, with methods whose faults are UserErrors that name the file."""
    kind = type(task)
    # No slots or dict of its own: an object can only change to a class of the same layout.
    guarded_kind = type(kind.__name__, (kind,), {"__slots__": ()})
    for name, method in _METHODS.items():
        if hasattr(kind, name):
            setattr(guarded_kind, name, _guard(file, guarded_kind, name, typing.get_type_hints(method)["return"]))
    guarded = copy.copy(task)  # it may be one of ours, which others use as it is
    object.__setattr__(guarded, "__class__", guarded_kind)
    return guarded


def _guard(file: pathlib.Path, kind: type, name: str, hint: Any) -> Callable[..., Any]:
    def method(self: Any, *given: Any, **named: Any) -> Any:
        try:
            result = ask(getattr(super(kind, self), name), *given, **named)
        except FaultError as error:
            if isinstance(error.cause, UserError):  # of a row, say
                raise error.cause from None
            raise UserError(f"{file}{error.line}: {name} of TASK failed ({error}): fix it") from None
        if not _fits(result, hint):
            raise UserError(f"{file}: {name} of TASK gave {reprlib.repr(result)}: it must give {_shown(hint)}")
        if fault := broken(result):
            raise UserError(f"{file}: {name} of TASK gave a text with {fault}: mend it there")
        return result

    return method


_hints = functools.cache(typing.get_type_hints)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what a method of `Task` returns, to its innermost part. A list will do for a tuple."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is types.UnionType:
        return any(_fits(value, part) for part in parts)
    if kind in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(part, parts[0]) for part in value)
    if kind is dict:  # a message
        return (
            isinstance(value, dict)
            and value.keys() == {"role", "content"}
            and all(isinstance(text, str) for text in value.values())
        )
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return isinstance(value, hint) and all(_fits(getattr(value, n), of) for n, of in _hints(hint).items())
    return isinstance(value, hint)


def _shown(hint: Any) -> str:
    if typing.get_origin(hint) is None:
        return "None" if hint is types.NoneType else hint.__name__
    return re.sub(r"[\w.]+\.(?=\w)", "", str(hint)).replace(" | ", " or ")


def _checked(file: pathlib.Path, task: Any) -> Task:
    if isinstance(task, type):
        raise UserError(f"{file}: TASK is the class {task.__name__}; make an instance of it: {task.__name__}(…)")
    if missing := [member for member in MEMBERS if not hasattr(task, member)]:
        raise UserError(f"{file}: TASK lacks {', '.join(missing)} (see common/tasks/base.py)")
    for method, ours in _METHODS.items():
        arguments = list(inspect.signature(ours).parameters)[1:]
        found = getattr(task, method)
        if not callable(found):
            raise UserError(f"{file}: {method} of TASK must be a method")
        try:
            inspect.signature(found).bind(*arguments)
        except TypeError as error:
            raise UserError(f"{file}: {method} of TASK: {error}; it gets {len(arguments)} argument(s)") from None
    if not isinstance(task.name, str) or not task.name:
        raise UserError(f"{file}: name of TASK must be a text")
    kinds = typing.get_args(Kind)
    if task.kind not in kinds:
        raise UserError(f"{file}: kind of TASK is {task.kind!r}: it must be {' or '.join(map(repr, kinds))}")
    # A text would pass for a sequence of texts.
    if isinstance(task.reply_fields, str) or not all(isinstance(field, str) for field in task.reply_fields):
        raise UserError(f"{file}: reply_fields of TASK must be a tuple of texts")
    if not _fits(task.choices, tuple[str, ...]) or broken([*task.choices, task.name, *task.reply_fields]):
        raise UserError(f"{file}: choices of TASK is {quoted(task.choices)}: it must be a tuple of texts")
    for limit in _LIMITS:
        _limit(f"{file}: {limit} of TASK", limit, getattr(task, limit))
    return task


def _limit(what: str, name: str, value: Any) -> None:
    whole = name != "near_duplicate"
    kinds = int if whole else (int, float)
    # In Python True is a whole number.
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= (100_000 if whole else 1):
        wanted = "a whole number above 0" if whole else "a number above 0 and at most 1"
        raise UserError(f"{what} must be {wanted}, not {quoted(value)}")


def _from_keys(file: pathlib.Path, given: dict[Any, Any]) -> LabelledText:
    unknown = [str(key) for key in given if key not in KEYS]
    if unknown:
        raise UserError(
            f"{file}: unknown key {', '.join(unknown)}{meant(unknown[0], KEYS)}; there are {', '.join(KEYS)}"
        )
    missing = [key for key in ("name", "instruction", "labels") if key not in given]
    if missing:
        raise UserError(f"{file}: key {', '.join(missing)} is missing")
    for key in _TEXTS:
        if key in given and (not isinstance(given[key], str) or not given[key].strip()):
            raise UserError(f"{file}: {key} must be a text, not {given[key]!r}")
    limits: dict[str, Any] = {key: given[key] for key in _LIMITS if key in given}
    for key, value in limits.items():
        _limit(f"{file}: {key}", key, value)
    if "hub_config" in given and "hub_id" not in given:
        raise UserError(f"{file}: hub_config needs hub_id")
    labels = _labels(file, given["labels"])
    return LabelledText(
        name=given["name"],
        instruction=given["instruction"],
        noun=given.get("noun", "text"),
        labels=labels,
        text_columns=(given.get("text_column", "text"),),
        label_columns=(given.get("label_column", "label"),),
        hub=Hub(given["hub_id"], given.get("hub_config")) if "hub_id" in given else None,
        **{"answer_tokens": tokens_for(labels), **limits},
    )


def _labels(file: pathlib.Path, given: Any) -> tuple[tuple[str, str], ...]:
    """Pairs of code and word. A list gives both in one; YAML's bare yes, no, on and off are refused."""
    if isinstance(given, list):
        pairs = [(entry, entry) for entry in given]
    elif isinstance(given, dict):
        pairs = list(given.items())
    else:
        raise UserError(f"{file}: labels must be a list of labels or a mapping from label to words")
    if len(pairs) < 2:
        raise UserError(f"{file}: labels must name two or more, not {len(pairs)}")
    for code, word in pairs:
        for entry in (code, word):
            if isinstance(entry, bool):
                raise UserError(
                    f"{file}: labels: {entry} is no text: write yes, no, on, off, true, false in quotes"
                )
            if not isinstance(entry, str | int) or not normalise(str(entry)):
                raise UserError(f"{file}: labels: {entry!r} is no text with letters or digits")
    words = [" ".join(str(word).split()) for _, word in pairs]
    forms = [normalise(word) for word in words]
    twice = sorted({word for word, form in zip(words, forms, strict=True) if forms.count(form) > 1})
    if twice:
        # Two that look alike are told apart by their code points.
        shown = ", ".join(word if word.isascii() else ascii(word)[1:-1] for word in twice)
        raise UserError(f"{file}: labels must differ in more than case and punctuation: {shown}")
    return tuple((str(code), word) for (code, _), word in zip(pairs, words, strict=True))
