"""Pools: several answers to every prompt, read from a file as a stream of prompts.

    pool = PoolFile(pathlib.Path("pool.jsonl"), Layout(), sources=("llama", "gemma"), k=10)
    for group in pool.groups():
        flags = guard(group.answers, max_repeats=0.5)

Three forms are understood, in JSONL, CSV and Parquet:

    wide   {"prompt", "completion_0", …, "completion_9"}, and source_0, truncated_0, NAME_0, … where there are any;
           a number that a row lacks is an answer that it lacks
    map    {"prompt", "outputs": {source: answer or list of answers}}, and "NAME": {source: value} beside it
    long   {"prompt", "source", "completion"}, one answer a row, in any order

NAME is a score of the user's own (see `active_inheritance.metrics`).
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
import random
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from common.errors import UserError
from common.tasks.files import Row, require, row_id, stream_rows
from common.text.filters import refuses
from common.text.nonsense import NO_TEXT, REPETITION, nonsense

PROMPTS = ("prompt", "instruction", "question", "query")
MAPS = ("outputs", "responses", "completions", "answers")
ONES = ("completion", "response", "answer", "output")
UNNAMED = "pool"
"""The source of answers whose row names none."""
GUARDS = ("empty", "truncated", "repeating", "duplicate", "refusal", "unlikely")
BUCKET = 16 << 20
"""Bytes of a long file that are grouped by prompt in memory at a time; as objects they take some five times
that."""
MOST = 10_000
"""Answers of a prompt in the wide form: what is numbered higher is a slip."""
LOOKED_AT = 200
"""Prompts at the beginning of a pool that are read before anything is made."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One candidate. `index` counts the answers of its source to the prompt, from 0, those that a wide row lacks
    among them."""

    source: str
    index: int
    text: str
    truncated: bool = False
    columns: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Scores that came with the pool."""
    unlikely: bool = False
    """Far less likely, to the model that wrote it, than its other answers."""


@dataclasses.dataclass(frozen=True)
class Group:
    """A prompt and its answers, in the order of the file."""

    id: str
    prompt: str
    answers: tuple[Answer, ...]


class Pool(Protocol):
    """A file that holds prompts with several answers each, and how it is read. An error of the file comes when its
    row does."""

    @property
    def file(self) -> pathlib.Path: ...

    def groups(self) -> Iterator[Group]: ...


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of columns; None is found out from the first row. `scores`: columns that hold scores."""

    prompt: str | None = None
    answers: str | None = None
    scores: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PoolFile:
    """A file of the user's, and what of it is used: answers of `sources` (all, where none is named), of which `k`
    are drawn with `seed` (see `draw`)."""

    file: pathlib.Path
    layout: Layout = Layout()
    sources: tuple[str, ...] = ()
    k: int | None = None
    seed: int = 0

    def groups(self) -> Iterator[Group]:
        """See `Pool`."""
        return map(self.drawn, read_pool(self.file, self.layout))

    def drawn(self, group: Group) -> Group:
        """What is used of a prompt's answers."""
        return draw(group, self.sources, self.k, self.seed)

    def beginning(self, top: int) -> list[Group]:
        """The first prompts, with what is used of them. Raises UserError where the settings do not fit them.
        `top`: answers of a prompt that are to be taken."""
        groups = list(itertools.islice(read_pool(self.file, self.layout), LOOKED_AT))
        answers = [answer for group in groups for answer in group.answers]
        there = dict.fromkeys(answer.source for answer in answers)
        found = [self.drawn(group) for group in groups]
        most = max(len(group.answers) for group in found)
        if top >= most > 1:
            raise UserError(f"--top {top} of {most} answers of {self.file} selects nothing: use a smaller --top")
        if unknown := [source for source in self.sources if source not in there]:
            raise UserError(
                f"--sources {','.join(unknown)}: not among the first {len(groups)} prompts of {self.file}, whose "
                f"sources are {', '.join(there)}"
            )
        for name in self.layout.scores:
            if all(math.isnan(answer.columns[name]) for answer in answers):
                raise UserError(
                    f"column:{name}: the first {len(groups)} prompts of {self.file} have no such score"
                )
        return found


# --- reading --------------------------------------------------------------------------------------------------


def read_pool(file: pathlib.Path, layout: Layout) -> Iterator[Group]:
    """The prompts of a file, each once; a few of them are in memory at a time.

    A prompt without an id is known by the start of the SHA-256 of its text. Raises UserError, when it gets there,
    for a row that fits no form, two prompts with one id, and a score that is no number.
    """
    rows = stream_rows(file, mend=True)
    first, place = next(rows)
    form, columns = _form(first, layout, place)
    rows = itertools.chain([(first, place)], rows)
    if form == "long":
        groups = _long(file, rows, columns)
    else:
        read = _wide if form == "wide" else _mapped
        groups = (
            (_prompt_id(row, row_id(row, ""), columns), row, read(row, columns, place), place)
            for row, place in rows
        )
    seen: set[int] = set()  # 8 bytes of a hash each: there may be many
    for number, (name, row, answers, place) in enumerate(groups):
        prompt = require(row, columns.prompt, place)
        if _short(name) in seen:
            # An id that was given twice is a mistake; a text that comes twice is a prompt that was asked twice.
            if row_id(row, "") or "prompt_id" in row:
                raise UserError(f"{place}: id {name!r} is also that of an earlier prompt: ids must differ")
            name = f"{name}-{number}"
        seen.add(_short(name))
        yield Group(name, prompt, tuple(answers))


@dataclasses.dataclass(frozen=True)
class _Columns:
    """The layout of a file that was looked at; of the wide form `answers` is the part before _0, _1, …"""

    prompt: str
    answers: str
    scores: tuple[str, ...]


def _form(row: Row, layout: Layout, place: str) -> tuple[str, _Columns]:
    """Which of the three forms the file has, and its columns."""
    prompt = layout.prompt or text_column(row, PROMPTS)
    if prompt is None or prompt not in row:
        raise UserError(f"{place}: no column {prompt or ' or '.join(PROMPTS)!r}: name it with --prompt-column")
    stem = layout.answers or "completion"
    if _numbered(row, stem, place):
        return "wide", _Columns(prompt, stem, layout.scores)
    names = (layout.answers,) if layout.answers else (*MAPS, *ONES)
    column = text_column(row, names)
    if column is None:
        raise UserError(
            f"{place}: no answers under {', '.join(names)} or completion_0, completion_1, …: name their column "
            "with --answers-column"
        )
    form = "map" if isinstance(row[column], Mapping | list) else "long"
    if form == "long" and "source" not in row and "prompt_id" not in row and "model" not in row:
        raise UserError(
            f"{place}: one answer a row needs a column source (or model, or prompt_id) beside {column!r}; several "
            "answers in a row stand in completion_0, completion_1, …"
        )
    return form, _Columns(prompt, column, layout.scores)


def text_column(row: Row, names: Sequence[str]) -> str | None:
    """The first of the columns that the row has and that is no chat: data sets for trainers, ours among them, have
    chats beside their texts."""
    return next((name for name in names if name in row and not _is_chat(row[name])), None)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]


def _prompt_id(row: Row, otherwise: str, columns: _Columns) -> str:
    given = row.get("prompt_id")
    given = otherwise if given is None else str(given).strip()
    return given or hashlib.sha256(str(row.get(columns.prompt)).encode("utf-8", "replace")).hexdigest()[:16]


def _short(name: str) -> int:
    # A lone surrogate has no UTF-8 form: replaced, it still hashes.
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8], "big")


def _source(row: Row, otherwise: str = UNNAMED) -> str:
    return str(row.get("source") or row.get("model") or otherwise).strip()


def _text(value: Any, place: str) -> str:
    """An answer as it is; nothing at all counts as an empty one, which a guard tells."""
    # NaN is how tables say that nothing is there.
    if value is None or value != value:
        return ""
    if not isinstance(value, str | int | float):
        raise UserError(f"{place}: an answer is a {type(value).__name__}: it must be a text")
    return str(value)


def _score(value: Any, name: str, place: str) -> float:
    """A score that came with the pool; None and empty cells are no score (NaN)."""
    if value is None or value == "":
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{place}: score {name!r} is {value!r}: it must be a number") from None


def _truncated(row: Mapping[str, Any], suffix: str = "") -> bool:
    said = str(row.get(f"truncated{suffix}") or "").strip().lower()
    return said in ("true", "1") or row.get(f"finish_reason{suffix}") == "length"


def _numbered(row: Row, stem: str, place: str) -> dict[int, str]:
    """The numbers of the answers that a row of the wide form has, and how each is written. Raises UserError for
    one out of all measure, and for one that comes twice."""
    written = [found[1] for key in row if (found := re.fullmatch(rf"{re.escape(stem)}_([0-9]+)", key))]
    numbers = {int(number[:9]): number for number in written}
    if len(numbers) < len(written) or max(numbers, default=0) >= MOST:
        raise UserError(f"{place}: number the answers {stem}_0, {stem}_1, … once each, below {MOST}")
    return numbers


def _wide(row: Row, columns: _Columns, place: str) -> list[Answer]:
    stem = columns.answers
    numbers = _numbered(row, stem, place)
    counts: collections.Counter[str] = collections.Counter()
    answers = []
    # Where nulls are not written a number may be missing; the other answers keep their places.
    for i in range(max(numbers, default=-1) + 1):
        number = numbers.get(i, str(i))
        source = str(row.get(f"source_{number}") or _source(row)).strip()
        if i in numbers:
            scores = {name: _score(row.get(f"{name}_{number}"), name, place) for name in columns.scores}
            text, truncated = _text(row[f"{stem}_{number}"], place), _truncated(row, f"_{number}")
            answers.append(Answer(source, counts[source], text, truncated, scores))
        counts[source] += 1
    return answers


def _mapped(row: Row, columns: _Columns, place: str) -> list[Answer]:
    """Sources with an answer or a list of them; in tables a source without any is None. An answer is a text or
    {"text", "truncated" or "finish_reason", NAME: score}."""
    given = row.get(columns.answers)
    if isinstance(given, list):
        given = {_source(row): given}
    if not isinstance(given, Mapping):
        raise UserError(f"{place}: {columns.answers!r} is no map of source to answer")
    answers = []
    for source, entry in given.items():
        entries = entry if isinstance(entry, list) else [] if entry is None else [entry]
        for index, one in enumerate(entries):
            if not isinstance(one, Mapping):
                one = {"text": one}
            scores = {n: _score(_beside(row, n, source, index, one), n, place) for n in columns.scores}
            answers.append(Answer(str(source), index, _text(one.get("text"), place), _truncated(one), scores))
    return answers


def _beside(row: Row, name: str, source: str, index: int, one: Mapping[str, Any]) -> Any:
    """The score `name` of an answer: in the answer's own entry, or in a map of the same shape beside the
    answers."""
    if name in one or not isinstance(row.get(name), Mapping):
        return one.get(name)
    value = row[name].get(source)
    return value[index] if isinstance(value, list) and index < len(value) else value


def _long(
    file: pathlib.Path, rows: Iterator[tuple[Row, str]], columns: _Columns
) -> Iterator[tuple[str, Row, list[Answer], str]]:
    """Rows of one answer, brought together by prompt: rows of one hash are kept in one file, small enough to be
    grouped in memory."""
    # Parquet is compressed: its rows take several times the size of the file.
    count = max(1, file.stat().st_size * (6 if file.suffix == ".parquet" else 1) // BUCKET)
    if count == 1:
        yield from _grouped(rows, columns)
        return
    with tempfile.TemporaryDirectory(prefix="seedloop-") as folder:
        buckets = [pathlib.Path(folder, f"{i}.jsonl") for i in range(count)]
        held: list[list[str]] = [[] for _ in buckets]
        for number, (row, place) in enumerate(rows, start=1):
            # Not hash(), which differs from process to process.
            i = zlib.crc32(_prompt_id(row, "", columns).encode("utf-8", "replace")) % count
            held[i].append(json.dumps([row, place]))
            # Written many rows at a time: opening a file for every row would cost more than reading it.
            if number % 20_000 == 0:
                _spill(buckets, held)
        _spill(buckets, held)
        for bucket in buckets:
            if bucket.exists():
                with bucket.open() as lines:
                    yield from _grouped((json.loads(line) for line in lines), columns)


def _spill(files: Sequence[pathlib.Path], held: Sequence[list[str]]) -> None:
    for file, lines in zip(files, held, strict=True):
        if lines:
            with file.open("a") as out:
                out.writelines(f"{line}\n" for line in lines)
            lines.clear()


def _grouped(rows: Iterator[tuple[Row, str]], columns: _Columns) -> Iterator[tuple[str, Row, list[Answer], str]]:
    found: dict[str, tuple[Row, list[Answer], str, collections.Counter[str]]] = {}
    for row, place in rows:
        name = _prompt_id(row, "", columns)
        _, answers, _, counts = found.setdefault(name, (row, [], place, collections.Counter()))
        source = _source(row)
        scores = {column: _score(row.get(column), column, place) for column in columns.scores}
        text = _text(row.get(columns.answers), place)
        answers.append(Answer(source, counts[source], text, _truncated(row), scores))
        counts[source] += 1
    for name, (row, answers, place, _) in found.items():
        yield name, row, answers, place


# --- what is drawn, what may be chosen ---------------------------------------------------------------------------


def draw(group: Group, sources: Sequence[str], k: int | None, seed: int) -> Group:
    """The answers of the named sources (all, where none is named) in their order, at most `k` of them in total.

    What is drawn depends on the seed and the prompt's id alone. Sources take turns, so that each gives as many as
    the others while it has any; who comes first, and so gives one more where k is no multiple, changes from prompt
    to prompt. Fewer than k answers are all taken.
    """
    answers = group.answers
    if sources:
        place = {source: i for i, source in enumerate(sources)}
        answers = sorted((a for a in answers if a.source in place), key=lambda a: (place[a.source], a.index))
    if k is not None and len(answers) > k:
        stacks: dict[str, list[Answer]] = {}
        for answer in sorted(answers, key=lambda a: (a.source, a.index)):
            stacks.setdefault(answer.source, []).append(answer)
        rng = random.Random(f"draw {seed} {group.id}")
        turns = list(stacks)
        rng.shuffle(turns)
        for stack in stacks.values():
            rng.shuffle(stack)
        drawn: set[tuple[str, int]] = set()
        while len(drawn) < k:
            for source in turns:
                if stacks[source] and len(drawn) < k:
                    answer = stacks[source].pop()
                    drawn.add((answer.source, answer.index))
        answers = [answer for answer in answers if (answer.source, answer.index) in drawn]
    return dataclasses.replace(group, answers=tuple(answers))


def guard(answers: Sequence[Answer], max_repeats: float) -> list[tuple[str, ...]]:
    """For every answer what is wrong with it, in the order of GUARDS.

    empty: no visible character, or none that makes a text. truncated: its row says that it was cut off. repeating:
    it turns in circles, or the share of its runs of four words that stood in it before exceeds `max_repeats` (1:
    it may repeat whatever it likes); both as `common.text.nonsense` sees it. duplicate: the same text, but for
    space around it, as an answer that comes before it by source and index. refusal: it declines in one of the
    common English phrases. unlikely: as its source said.
    """
    firsts: dict[str, tuple[str, int]] = {}
    for answer in answers:
        key = answer.text.strip()
        firsts[key] = min(firsts.get(key, (answer.source, answer.index)), (answer.source, answer.index))
    flags = []
    for answer in answers:
        text = answer.text.strip()
        why = nonsense(text, max_repeats)
        found = {
            "empty": why == NO_TEXT,
            "truncated": answer.truncated,
            "repeating": why == REPETITION and max_repeats < 1,
            "duplicate": bool(text) and firsts[text] != (answer.source, answer.index),
            "refusal": refuses(text),
            "unlikely": answer.unlikely,
        }
        flags.append(tuple(name for name in GUARDS if found[name]))
    return flags
