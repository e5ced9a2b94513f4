"""Run a method:  python run.py METHOD [--flags]      (installed: seedloop METHOD [--flags])

python run.py llm2llm                     the embedded demonstration, minutes on a laptop
python run.py reversegen                  the same for this method
python run.py llm2llm --help              its flags
python run.py status runs/llm2llm         where that run stands
"""

import errno
import importlib
import io
import os
import select
import signal
import sys
import traceback

from common import VERSION, hosts, stopping
from common.characters import broken
from common.cli import PROG, fail
from common.errors import UserError, in_one_line, meant, quoted
from common.runtime import compile_cache_environment
from common.secret import mask_output
from common.usercode import PACKAGE

METHODS = {  # name: module of its command, and what it does
    "llm2llm": ("llm2llm.command", "learn from a teacher's new examples, written for what the student gets wrong"),
    "reversegen": (
        "reversegen.command",
        "train a proposer to write what a target fails on, and the target on that",
    ),
    "active-inheritance": (
        "active_inheritance.command",
        "select what a student learns from, by what it should become",
    ),
    "profile": (
        "active_inheritance.profile.command",
        "measure what models are like: text, toxicity, bias, calibration, utility",
    ),
}
ALSO = {
    "tasks": ("common.tasks.command", "list the tasks there are"),
    "metrics": ("active_inheritance.metrics_command", "list the scores of texts and the measures of models"),
    "status": ("common.results.status", "status DIR: where a run stands, from what is on the disk"),
    "fetch": ("common.model.smollm2", "fetch SmolLM2, a small chat model: --student smollm2"),
}
NEEDED = (
    *("jax", "jaxlib", "jaxtyping", "flax", "optax", "orbax", "transformers", "datasets", "numpy", "safetensors"),
    *("gguf", "jinja2", "matplotlib", "openai", "datasketch", "fsspec", "yaml", "pyphen"),
)
"""Modules of what requirements.txt lists. Where one is missing, most often nothing was installed."""

COMMAND = PROG if PACKAGE else f"python {PROG}"
LINES = {
    what: "".join(f"  {name:20}{about}\n" for name, (_, about) in of.items())
    for what, of in (("methods", METHODS), ("also", ALSO))
}
USAGE = f"usage: {COMMAND} METHOD [--flags]\n\n" + "\n".join(f"{what}:\n{lines}" for what, lines in LINES.items())


def main(argv: list[str] | None = None) -> None:
    """Run the method that `argv` (by default the command line) names.

    What the user can fix, a full disk, SIGTERM and Ctrl-C end it with one line; a reader of its output that went
    away (`| head`) ends it without one.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal's encoding is no reason to lose a finished run
    if argv is None:  # a command of its own, whose output and signals are all ours
        mask_output()
        stopping.listen()
    try:
        _together(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:
        if not _reader_left():
            raise
        raise SystemExit(141) from None  # as of other programs that a pipe's end stops
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fail(f"the disk is full ({error.filename or 'while writing'}): free space and give the same command again")
    except KeyboardInterrupt:
        line, status = stopping.ended(signal.SIGINT)
        print(f"\n{line}", file=sys.stderr)
        raise SystemExit(status) from None
    except stopping.Terminated:
        line, status = stopping.ended(signal.SIGTERM)
        print(line, file=sys.stderr)
        raise SystemExit(status) from None


def _together(argv: list[str]) -> None:
    """`_method`; where it is one of several processes, none of them outlives what ends another."""
    try:
        _method(argv)
    except BaseException as error:
        if hosts.count() == 1 or (isinstance(error, SystemExit) and not error.code):
            raise
        if isinstance(error, UserError):
            hosts.end(f"error: {error}", 2)
        if isinstance(error, KeyboardInterrupt):
            hosts.end(*stopping.LINES[signal.SIGINT])
        if isinstance(error, stopping.Terminated):
            hosts.end(*stopping.LINES[signal.SIGTERM])
        if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):  # mostly another process that is gone
            said = " ".join(str(error).split()).rpartition("computation: ")[2][:120]
            hosts.end(f"error: lost touch with another process ({said}); the same command, in all, continues", 1)
        traceback.print_exc()
        hosts.end("", 1)


def _method(argv: list[str]) -> None:
    """Find the method and hand it its flags, which it parses before it imports anything heavy."""
    if not argv or argv[0] in ("-h", "--help"):
        print(
            f"{USAGE}\n`{COMMAND} METHOD --help` lists the flags of a method; "
            f"`{COMMAND} --version` tells which seedloop this is.",
            flush=True,
        )
        raise SystemExit(0 if argv else 2)
    if "--version" in argv[:2]:  # also behind a method
        print(f"seedloop {VERSION}")
        return
    if fault := next(filter(None, map(broken, argv)), None):
        raise UserError(f"a word of the command holds {fault}: give a text in UTF-8 without it")
    method, *rest = argv
    known = METHODS | ALSO
    if method not in known:
        raise UserError(f"unknown method {quoted(method)}{meant(method, known)}; there are {', '.join(known)}")
    os.environ.update(compile_cache_environment())  # before jax is imported, which reads them then
    try:
        importlib.import_module(PACKAGE + known[method][0]).main(rest)
    except SystemExit:  # after --help
        sys.stdout.flush()
        raise
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        raise UserError(
            f"{quoted(error.name)} is not installed for {sys.executable}: give that"
            " `-m pip install -r requirements.txt`, or start the Python of the environment where it was done"
        ) from error
    except (RuntimeError, ValueError, AssertionError) as error:
        if isinstance(error, UserError) or (said := _start_up(error)) is None:
            raise
        raise UserError(said) from error
    except OSError as error:
        # Of a path that somebody gave, wherever it is touched; a full disk is told of by `main`.
        if not isinstance(error.filename, str | bytes | os.PathLike) or error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
        ):
            raise
        raise UserError(
            f"cannot use {quoted(os.fsdecode(error.filename))} ({error.strerror}): fix or change the path"
        ) from error


def _start_up(error: Exception) -> str | None:
    """What keeps JAX from starting, with the variables that tell it how; None of any other error."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if not frames or not frames[-1].endswith(("jax/_src/xla_bridge.py", "jax/_src/config.py")):
        return None
    told = [f"{k}={v}" for k, v in os.environ.items() if k.startswith("JAX_") and "_CACHE_" not in k]
    return f"JAX cannot start ({in_one_line(error)}): fix or unset {', '.join(told) or 'its settings'}"


def _reader_left() -> bool:
    """Whether it is our output that nobody reads any more; if so, nothing is written there from now on."""
    ends = select.poll()
    streams = {stream.fileno(): stream for stream in (sys.stdout, sys.stderr)}
    for number in streams:
        ends.register(number, 0)  # errors are told without being asked for
    closed = [number for number, event in ends.poll(0) if event & select.POLLERR]
    for number in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        streams[number].flush()
    return bool(closed)


if __name__ == "__main__":
    main()
