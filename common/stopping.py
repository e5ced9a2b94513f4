"""Being asked to stop: SIGTERM, as of a machine that is taken away, and Ctrl-C.

    stopping.listen()                   # of a command alone: nothing else installs a handler
    with stopping.deferred():           # from here on a signal waits...
        for step in range(steps):
            ...
            if stopping.asked(step):    # ... until it is looked for
                store()
                stopping.stop()

Elsewhere a signal ends the process where it is, as Ctrl-C always did: what is finished is stored. A second one
does so everywhere. Without `listen` all of this does nothing, so that a notebook keeps the handlers that it has.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt no Exception, so that no `except Exception` takes it for a fault."""


_ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
_came: signal.Signals | None = None
_deferring = 0


def listen() -> None:
    """Handle SIGTERM and Ctrl-C from now on. One that the process was started to ignore stays ignored."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == usual:
            signal.signal(number, _handle)


def _handle(number: int, frame: Any) -> None:
    global _came
    second = _came is not None
    _came = signal.Signals(number)
    if second or not _deferring:
        stop()
    if number == signal.SIGINT:
        # Not print: the handler may interrupt a write to the same stream.
        os.write(sys.stderr.fileno(), b"\nstopping once this is stored; Ctrl-C again stops at once\n")


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


def stop() -> NoReturn:
    """End as the signal that came wants it. Where none did, another process was told, by SIGTERM."""
    raise _ENDS[_came or signal.SIGTERM]
