"""Being asked to stop: SIGTERM, as of a machine that is taken away, and Ctrl-C.

    stopping.listen()                   # of a command alone: nothing else installs a handler
    with stopping.deferred():           # from here on a signal waits...
        for step in range(steps):
            ...
            if stopping.asked(step):    # ... until it is looked for
                store()
                stopping.stop()

Elsewhere a signal ends the process where it is, as Ctrl-C always did: what is finished is stored. A second one
does so everywhere. While a program is being compiled, which may take minutes in which no handler of Python's is
called, a thread ends the process. Where Python is JAX's own, an exception could pass through compiled code that
knows none, which would abort the process: there a signal waits a moment as well. Without `listen` all of this does
nothing, so that a notebook keeps the handlers that it has.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import NoReturn

from common import hosts, progress
from common.errors import Terminated

PATIENCE = 1.5
"""Seconds that a signal waits for compiled code to give way."""


_OURS = ("__main__", "seedloop", "run", "common", "llm2llm", "reversegen", "active_inheritance")
"""Packages of this project; installed, all lie below the second."""
_ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
LINES = {
    signal.SIGINT: ("stopped; the same command continues where it left off", 130),
    signal.SIGTERM: ("stopped by SIGTERM; the same command continues where it left off", 143),
}
"""What is said of a signal, and the exit status that tells of it."""
_came: signal.Signals | None = None
_deferring = 0
_put_off = False
"""Whether a signal found the process where it cannot end, and is to be sent again."""


def listen() -> None:
    """Handle SIGTERM and Ctrl-C from now on. One that the process was started to ignore stays ignored."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == usual:
            signal.signal(number, _handle)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)  # written to at once, whatever the main thread does
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # it is not this process that is asked
    threading.Thread(target=_watch, args=(told,), daemon=True).start()


def _watch(told: int) -> None:
    """Send again what was put off, and end the process where a signal finds it in a compiler, or in other compiled
    code that no stage waits for: Python's handler is called only when that gives way. Whatever is stored is whole,
    at any instant."""
    global _put_off
    number = signal.Signals(os.read(told, 1)[0])
    while number not in LINES or signal.getsignal(number) is not _handle:
        number = signal.Signals(os.read(told, 1)[0])
    stuck_since = time.monotonic()
    while True:
        time.sleep(0.05)
        if _put_off:
            _put_off = False
            os.kill(os.getpid(), number)
        # A state is being stored, or replies that are paid for are awaited: that is what a signal waits for.
        if not (progress.compiling() or (_came is None and not _deferring)):
            stuck_since = time.monotonic()
        elif time.monotonic() - stuck_since > PATIENCE and hosts.count() == 1:
            line, status = LINES[number]
            os.write(2, f"\n{line}\n".encode())
            os._exit(status)


def _handle(number: int, frame: types.FrameType | None) -> None:
    global _came, _put_off
    ends = _came is not None or not _deferring
    _put_off = ends and _within_jax(frame)
    if _put_off:
        return
    _came = signal.Signals(number)
    if ends:
        stop()
    if number == signal.SIGINT:
        # Not print: the handler may interrupt a write to the same stream.
        os.write(sys.stderr.fileno(), b"\nstopping once this is stored; Ctrl-C again stops at once\n")


def _within_jax(frame: types.FrameType | None) -> bool:
    """Whether the code at work was called by JAX, and not by a part of this project that JAX has called."""
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in _OURS:
            return False
        if package in ("jax", "jaxlib"):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within the block a first signal only leaves its mark; at the block's end it takes effect."""
    global _deferring
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
    if _came is not None and not _deferring:
        stop()


def asked(step: int) -> bool:
    """Whether the process was asked to stop, looked for after `step` units of work.

    Of several processes any may be asked, and all learn of it at the same step.
    """
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
    return _came is not None


def ended(number: signal.Signals) -> tuple[str, int]:
    """Line and status of a signal that has taken effect. From now on others are ignored: what is left of the
    process is its last line and Python's own end, which would be a traceback if it were interrupted."""
    for each in _ENDS:
        if signal.getsignal(each) is _handle:
            signal.signal(each, signal.SIG_IGN)
    return LINES[number]


def stop() -> NoReturn:
    """End as the signal that came wants it. Where none did, another process was told, by SIGTERM."""
    raise _ENDS[_came or signal.SIGTERM]
