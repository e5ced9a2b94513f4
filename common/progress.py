"""What a run is doing: one line in a terminal, which changes; where nobody looks, a line for every stage.

    with running(repeats=3):                              # a run: where it stands is told from here on
        with at("repeat_0/llm2llm/round_1/student"), stage("train llm2llm"):  # by the artifact that is made
            with progress_bar(total=78, desc="llm2llm", unit="update") as bar:
                bar.update()
        tell("dev", "71.3%")                              # a figure so far

    repeat 1/3 · llm2llm · round 1 · train 34/78 updates, 0:12 left · dev 71.3% · 1:40

In Jupyter there are both. Of several processes the first alone tells. All of it goes to standard error, at once.
A time that is left is said only where it follows from what was measured: of a stage once some of it is done,
compiling apart, and of a run once a repeat of it is done.
"""

import contextlib
import dataclasses
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from common import hosts

BETWEEN = 0.1
"""Seconds between two drawings."""
WORTH_SAYING = 1.0
"""Seconds that a stage takes to have a line of its own, and that a rest is measured on."""
WONDER = 20.0
"""Seconds without a word before something is said."""
SHOWN = 2
"""Figures in the line, the last ones."""
OWN = 2
"""Parts of a place, repeat and arm, that a figure stands for: another arm's line does not show it."""


@dataclasses.dataclass
class _Stage:
    """A stage that is open; what stages within it take is theirs. `compiled`: seconds of compiling before it."""

    name: str
    compiled: float
    within: float = 0.0


@dataclasses.dataclass
class _Run:
    """Where a run stands. `expected`: seconds that it should take; `stages`: those that are open; `news`: figures
    that have not stood in a line yet; `begun`: when each repeat was begun that this process has come to."""

    repeats: int = 1
    expected: float | None = None
    place: tuple[str, ...] = ()
    stages: list[_Stage] = dataclasses.field(default_factory=list)
    figures: dict[str, tuple[str, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    news: list[str] = dataclasses.field(default_factory=list)
    start: float = dataclasses.field(default_factory=time.monotonic)
    begun: list[float] = dataclasses.field(default_factory=list)


_NONE = _run = _Run()
_bar: "Bar | None" = None
_compiled, _listening = 0.0, False
_compiling: set[int] = set()  # threads that are at it
_drawing = threading.RLock()  # programs are compiled side by side, and each tells it
_drawn, _drawn_at = 0, 0.0  # letters on the screen, and since when


# --- what is told ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(repeats: int, expected: float | None = None, start: float | None = None) -> Iterator[None]:
    """A run of so many repeats within the block, begun at `start` (of `time.monotonic`; now), of which so many
    seconds are expected; one within another has a line of its own."""
    global _run
    outer, _run = _run, _Run(repeats, expected, start=start or time.monotonic())
    try:
        yield
    finally:
        _clear()
        _run = outer


@contextlib.contextmanager
def patience(line: str) -> Iterator[None]:
    """Say `line` where what is done within the block takes long enough for somebody to wonder."""
    timer = threading.Timer(WONDER, say, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def within_another() -> bool:
    """Whether a run that begins here is one of those that another run is made of."""
    return _run is not _NONE


@contextlib.contextmanager
def at(name: str) -> Iterator[None]:
    """The artifact `name` of the run is made within the block; its folders tell the place, also of what follows
    until another one is begun."""
    place = _run.place = place_of(name, _run.repeats)
    number = re.match(r"repeat_(\d+)/", name)
    while number is not None and len(_run.begun) <= int(number[1]):
        _run.begun.append(time.monotonic())
    _draw()
    try:
        yield
    finally:
        # What was made for it on the way, such as the model that writes it, lies elsewhere.
        _run.place = place


def place_of(name: str, repeats: int = 1) -> tuple[str, ...]:
    """("repeat 1", "llm2llm", "round 2") of "repeat_0/llm2llm/round_2/dev.jsonl"."""
    parts = []
    for part in name.split("/")[:-1]:
        kind, _, number = part.rpartition("_")
        if kind == "repeat":
            parts.append(f"repeat {int(number) + 1}" + (f"/{repeats}" if repeats > 1 else ""))
        elif part not in ("models", "samples"):
            parts.append(f"{kind} {number}" if kind in ("round", "fold", "part") else part)
    return tuple(parts)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """A stage of the run within the block; it gets a line when it is done."""
    _listen()
    own, start = _Stage(name, _compiled), time.monotonic()
    _run.stages.append(own)
    _draw()
    try:
        yield
        if (time.monotonic() - start - own.within >= WORTH_SAYING or _run.news) and not _terminal():
            say(f"[{_clock()}] {'; '.join([_told(own, start), *_run.news])}")
            _run.news.clear()
    finally:
        _run.stages.pop()
        if _run.stages:
            outer = _run.stages[-1]
            outer.within += time.monotonic() - start
            outer.compiled += _compiled - own.compiled


def _told(own: _Stage, start: float) -> str:
    compiled = _compiled - own.compiled
    share = f", {compiled:.0f} s of it compiling" if compiled >= WORTH_SAYING else ""
    place = " · ".join((*_run.place, _stage(own.name)))
    return f"{place}: {time.monotonic() - start - own.within:.1f} s{share}"


def tell(name: str, figure: str) -> None:
    """A figure so far."""
    _run.figures.pop(name, None)  # the last one told stands last
    _run.figures[name] = (figure, _run.place[:OWN])
    if _run.stages:
        _run.news.append(f"{name} {figure}")
    elif not _terminal():  # of what is done: it has no part in the stage that comes next
        say(f"[{_clock()}] {' · '.join((*_run.place, f'{name} {figure}'))}")
    _draw()


class Bar:
    """Work of one kind that is being done, counted in `unit`s: an iterable, or `update` by hand."""

    def __init__(self, iterable: Iterable[Any] | None, total: int | None, initial: int, desc: str, unit: str):
        self._iterable, self.total, self.done, self.desc, self.unit = iterable, total, initial, desc, unit
        # When so much was done, and how long compiling had taken by then, from the first update on.
        self._marks: list[tuple[float, int, float]] = []

    def update(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if not self._marks or now - self._marks[-1][0] >= WORTH_SAYING:
            self._marks.append((now, self.done, _compiled))
        _draw()

    def left(self) -> float | None:
        """Seconds until all is done, as fast as the later half of what was done since the first update; None
        before a tenth is done."""
        if not self._marks or self.total is None or not 0.1 * self.total <= self.done < self.total:
            return None
        since, before, compiled = self._marks[(len(self._marks) - 1) // 2]
        taken, count = time.monotonic() - since - (_compiled - compiled), self.done - before
        return (self.total - self.done) * taken / count if count > 0 and taken >= WORTH_SAYING else None

    def __str__(self) -> str:
        of = "" if self.total is None else f"/{self.total}"
        return f"{self.done}{of} {self.unit}s"

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._iterable or ():
                yield item
                self.update()

    def __enter__(self) -> "Bar":
        global _bar
        _listen()
        _bar = self
        _draw()
        return self

    def __exit__(self, *_: object) -> None:
        global _bar
        if _bar is self:
            _bar = None
        if not _run.stages:  # in a call of the user's own, with no run around it
            _clear()


def progress_bar(
    iterable: Iterable[Any] | None = None,
    total: int | None = None,
    initial: int = 0,
    desc: str = "",
    unit: str = "request",
) -> Bar:
    """A bar over `iterable`, or updated by hand within its `with` block. All bars of the project are made here."""
    return Bar(iterable, total, initial, desc, unit)


# --- the line ----------------------------------------------------------------------------------------------------


def _line() -> str:
    name = _stage(_run.stages[-1].name) if _run.stages else ""
    if _bar is not None:
        name = f"{name or _bar.desc} {_bar}"
        if (left := _bar.left()) is not None:
            name += f", {clock(left)} left"
    parts = [*_run.place, "compiling …" if _compiling else name, _clock()]
    # The latest first, as a narrow terminal cuts the line.
    own = [f"{key} {value}" for key, (value, place) in _run.figures.items() if place == _run.place[:OWN]]
    parts += reversed(own[-SHOWN:])
    return " · ".join(filter(None, parts))


def _stage(name: str) -> str:
    """Its name without what the place tells already: the arm, or the folder of a model."""
    name = re.sub(r"^(models/[^/]+/|repeat_\d+/(.*/)?)", "", name)
    return next((name.removesuffix(f" {part}") for part in _run.place if name.endswith(f" {part}")), name)


def _clock() -> str:
    """How long the run has taken, and what is left of it where that is known."""
    left = _run_left()
    return clock(_elapsed()) + ("" if left is None else f", about {clock(left)} left of all")


def _elapsed() -> float:
    return time.monotonic() - _run.start


def _run_left() -> float | None:
    """Seconds until the run is done, as the repeats before this one took, else as is expected; None where that is
    not known. Of a run that is continued, repeats that were only read back tell nothing."""
    count = len(_run.begun) - 1
    if count > 0:
        each, here = (_run.begun[-1] - _run.begun[0]) / count, time.monotonic() - _run.begun[-1]
        # A repeat that takes longer than those before it tells that they are no measure.
        left = (_run.repeats - count) * each - here if each > here else 0.0
    else:
        left = (_run.expected or 0.0) - _elapsed()
    return left if left >= WORTH_SAYING else None


def clock(seconds: float) -> str:
    """ "0:07", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _draw(now: bool = False) -> None:
    global _drawn, _drawn_at
    if not (_terminal() or _in_jupyter()) or not hosts.is_writer():
        return
    if not now and time.monotonic() - _drawn_at < BETWEEN:
        return
    width = shutil.get_terminal_size((100, 24)).columns - 1
    with _drawing:
        line = _line()
        line = line if len(line) <= width else line[: width - 1] + "…"
        print(f"\r{line:{_drawn}}", end="", file=sys.stderr, flush=True)
        _drawn, _drawn_at = len(line), time.monotonic()


def _clear() -> None:
    global _drawn
    with _drawing:
        if _drawn:
            print(f"\r{'':{_drawn}}\r", end="", file=sys.stderr, flush=True)
            _drawn = 0


def say(line: str) -> None:
    """A line that stays, wherever the run is looked at."""
    _clear()
    if hosts.is_writer():
        print(line, file=sys.stderr, flush=True)


def _terminal() -> bool:
    return sys.stderr.isatty()


def _in_jupyter() -> bool:
    """Whether this process is the kernel of a notebook. Its standard error is no terminal, yet somebody looks."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


# --- compiling ---------------------------------------------------------------------------------------------------


def _listen() -> None:
    """Have jax tell when it compiles, once it is loaded."""
    global _listening
    if _listening or "jax" not in sys.modules:
        return
    _listening = True
    from jax import monitoring

    monitoring.register_event_listener(_on_event)
    monitoring.register_event_duration_secs_listener(_on_duration)


def compiling() -> bool:
    """Whether a program is being compiled now, where the compilation cache is in use."""
    return bool(_compiling)


def compiled() -> float:
    """Seconds that this process has spent compiling, or reading compiled programs, since its first stage; of
    several at a time those of the last to be ready."""
    return _compiled


def _on_event(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/compile_requests_use_cache":
        _compiling.add(threading.get_ident())
        _draw(now=True)


def _on_duration(event: str, duration_secs: float, **_: Any) -> None:
    global _compiled
    if event == "/jax/core/compile/backend_compile_duration":
        _compiling.discard(threading.get_ident())
        if not _compiling:
            _compiled += duration_secs
        _draw()
