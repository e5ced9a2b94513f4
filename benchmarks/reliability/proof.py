"""What all proofs of reliability share: warm processes that carry out a command, small runs of every method, and
how results are told.

A command goes through its real entrance, `run.main`, in a fork of this process, which has loaded everything that a
command may want but has started no jax: what takes ten seconds of imports then takes tenths of one.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
RESULTS = ROOT / "benchmarks" / "results" / "reliability"
METHODS = ("llm2llm", "reversegen", "active-inheritance", "profile")
LONGEST_LINE = 500
"""Characters of a line that a command may print."""
LONGEST_CASE, LONGEST_WAIT = 60, 1800
"""Seconds of computing that a command on a few small files may take, and seconds by the clock, on a busy
machine."""
ENDS = (0, 2, 130, 143)
"""Exit statuses of a command: done, a mistake of the user's in one line, Ctrl-C, SIGTERM."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended. `code` is minus the signal's number where one killed it, None where time was up."""

    code: int | None
    out: str
    err: str
    seconds: float  # of computing: on a busy machine the clock tells of others


# --- warm processes -----------------------------------------------------------------------------------------


def warm_up(plan: bool = True) -> None:
    """Load what commands may want; with `plan` also plan a run of each method, which loads what comes late."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.update({"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"})
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # a small run is of small programs
    from common.runtime import compile_cache_environment

    os.environ.update(compile_cache_environment())
    for name in (
        "jax",
        "transformers",
        "openai",
        "datasets",
        "orbax.checkpoint",
        "flax.nnx",
        "optax",
        "scipy.special",
    ):
        importlib.import_module(name)
    for top in ("common", "llm2llm", "reversegen", "active_inheritance"):
        for file in sorted((ROOT / top).rglob("*.py")):
            if "demo" not in file.parts:
                importlib.import_module(
                    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                )
    if plan:
        for method in METHODS:
            with (
                open(os.devnull, "w") as quiet,
                contextlib.redirect_stdout(quiet),
                contextlib.suppress(SystemExit),
            ):
                _main([method, "--dry-run", "--run-dir", str(ROOT / "no run")])


def forked(
    words: Sequence[str],
    folder: pathlib.Path,
    env: Mapping[str, str] | None = None,
    before: Callable[[], Any] | None = None,
    longest: int = 900,
) -> Outcome:
    """`run.py` with `words` in a fork whose working directory is `folder`. `before` is called in it first; after
    `longest` seconds of computing it is killed."""
    logs = [folder / f".{name}" for name in ("out", "err")]
    limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (longest, longest))
    child = os.fork()
    if not child:
        run(words, folder, env or {}, logs, lambda: (limit(), before and before()))
    code, seconds = _ended(child, time.monotonic() + LONGEST_WAIT)
    out, err = (log.read_bytes().decode("utf-8", "replace") if log.exists() else "" for log in logs)
    return Outcome(code, out, err, seconds)


def apart(words: Sequence[str], folder: pathlib.Path, env: Mapping[str, str]) -> Outcome:
    """`run.py` with `words` in a process of its own, started beside servers, which are threads that a fork would
    lose."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words],
        cwd=folder,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Outcome(done.returncode, done.stdout, done.stderr, end.ru_utime - start.ru_utime)


def run(words: Sequence[str], folder: pathlib.Path, env: Mapping[str, str], logs: Any, before: Any) -> None:
    """Be the process of a command, in a fork, and end."""
    code = 70  # of the harness, not of a command
    try:
        os.setpgid(0, 0)  # what it starts ends with it
        for number, log in zip((1, 2), logs, strict=True):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
        os.environ.update(env)
        os.chdir(folder)
        if before is not None:
            before()
        sys.argv = ["run.py", *words]
        code = 1
        _main(None)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _main(argv: Sequence[str] | None) -> None:
    importlib.import_module("run").main(None if argv is None else list(argv))


def _ended(child: int, deadline: float) -> tuple[int | None, float]:
    """The exit status, None where time was up, and seconds of computing."""
    code = None
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)
    if os.WIFEXITED(status):
        code = os.waitstatus_to_exitcode(status)
    elif os.WTERMSIG(status) not in (signal.SIGKILL, signal.SIGXCPU):
        code = -os.WTERMSIG(status)
    return code, used.ru_utime + used.ru_stime


# --- what every command must keep to ------------------------------------------------------------------------


def faults(outcome: Outcome) -> list[str]:
    """What of an outcome is wrong, whatever the command was."""
    said = f"{outcome.out}\n{outcome.err}"
    if outcome.code is None:
        return ["not done in time"]
    found = []
    if "Traceback (most recent call last)" in said:
        lines = [line for line in said.splitlines() if line and not line.startswith((" ", "Traceback"))]
        found.append(f"traceback: {lines[-1][:160] if lines else ''}")
    elif outcome.code not in ENDS:
        found.append(f"exit status {outcome.code}")
    long = max((len(line) for line in said.splitlines()), default=0)
    if long > LONGEST_LINE:
        found.append(f"a line of {long} characters")
    if outcome.code == 2 and said.count("error: ") and outcome.err.rstrip().rpartition("\n")[2][:7] != "error: ":
        found.append("a message of several lines")
    if outcome.code == 2 and "error: " not in outcome.err:
        found.append("exit status 2 without a message")
    return found


# --- small runs ---------------------------------------------------------------------------------------------


def lines_of(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def sums(split: str, count: int) -> list[dict[str, str]]:
    """Rows of worked problems, with ids, as ids made of the file's path would change what is drawn."""
    from common.tasks.arithmetic import Arithmetic

    drawn = Arithmetic().load(split, None, 5)[:count]
    return [{"id": e.id, "question": e.question, "answer": e.answer} for e in drawn]


ARMS = {
    "llm2llm": "base,llm2llm",
    "reversegen": "target-before,target-after",
    "active-inheritance": "base,random,selected",
}


def small(method: str, arms: str | None = None) -> tuple[list[str], dict[str, str]]:
    """The words of a run that is as small as it can be and still does everything, and the files it reads. A flag
    that is given again takes the place of the first, but for those that collect names: hence `arms`."""
    words, files = _small(method)
    arms = arms or ARMS.get(method)
    return [*words, *(["--arms", arms] if arms else [])], files


def _small(method: str) -> tuple[list[str], dict[str, str]]:
    if method == "llm2llm":
        files = {
            f"{split}.jsonl": lines_of(sums(split, n)) for split, n in (("train", 24), ("dev", 6), ("test", 6))
        }
        words = "--seed-examples 6 --rounds 2 --per-wrong 2 --epochs 2 --batch-size 8 --micro-batch-size 8 "
        return [
            method,
            *words.split(),
            *(w for s in ("train", "dev", "test") for w in (f"--{s}-file", f"{s}.jsonl")),
        ], files
    if method == "reversegen":
        files = {"seeds.jsonl": lines_of(sums("train", 40)), "test.jsonl": lines_of(sums("test", 6))}
        words = "--seed-instructions 16 --rounds 1 --prompts 6 --samples 4 --final-prompts 16 --pairing fallback "
        words += "--min-pairs 1 --warm-up-epochs 1 --dpo-epochs 1 --epochs 1 --batch-size 8 "
        words += "--seeds-file seeds.jsonl --test-file test.jsonl"
        return [method, *words.split()], files
    if method == "active-inheritance":
        words = (
            "--prompts 10 --k 4 --test-prompts 5 --test-samples 2 --answer-tokens 48 --min-words 10 --epochs 1 "
        )
        words += "--batch-size 4 --repeats 1 --metrics lix --profile choice=arithmetic=embedded:arithmetic,limit=8"
        return [method, *words.split()], {}
    prompts = [{"id": f"p{i}", "prompt": f"Tell me a story about {i} birds."} for i in range(6)]
    choice = [
        {"question": f"What is {i} and {i}?", "choices": [str(2 * i), str(i), "none"], "answer": 0}
        for i in range(9)
    ]
    words = "--model embedded:student --model embedded:teacher --prompts-file prompts.jsonl --answer-tokens 24 "
    words += "--choice sums=choice.jsonl --limit 4 --toxicity-prompts prompts.jsonl --continuations 2 "
    words += "--toxicity-scorer python:score.py:score"
    code = "def score(texts):\n    return [len(text) % 10 / 10 for text in texts]\n"
    return [method, *words.split()], {
        "prompts.jsonl": lines_of(prompts),
        "choice.jsonl": lines_of(choice),
        "score.py": code,
    }


def write(folder: pathlib.Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


# --- results ------------------------------------------------------------------------------------------------


def arguments(about: str | None, *more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, options in more:
        parser.add_argument(name, **options)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder for what is made; else a temporary one")
    return parser.parse_args()


@contextlib.contextmanager
def place(keep: str | None) -> Iterator[pathlib.Path]:
    """The folder for what is made, which `keep` names; else a temporary one."""
    if keep:
        pathlib.Path(keep).mkdir(parents=True, exist_ok=True)
        yield pathlib.Path(keep)
        return
    with tempfile.TemporaryDirectory() as made:
        yield pathlib.Path(made)


def as_stored(result: Mapping[str, Any], indent: int | None = None) -> str:
    """As JSON. A traceback's paths are those of this machine: what is stored names them from the checkout."""
    return json.dumps(result, indent=indent, ensure_ascii=True).replace(f"{ROOT}/", "")


def tell(name: str, rows: Sequence[Sequence[Any]], header: Sequence[str], result: Mapping[str, Any]) -> None:
    """A table, the result in a file, and as the last line that file's content as JSON. Exit status 1 where
    `result["faults"]` is not 0."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    whole = {"proof": name, **result, "commit": commit.strip(), "python": platform.python_version()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(as_stored(whole, 1) + "\n")
    print(as_stored(whole))
    raise SystemExit(bool(result["faults"]))


def cleared(folder: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
