"""SIGKILL at random instants of small runs, and the same command again, until it is finished with the same bytes:

    python benchmarks/reliability/kills.py --kills 100 --seed 1                    # of every method
    python benchmarks/reliability/kills.py --minutes 30 --seed 1                   # the same command goes on

Half the instants are drawn by the clock, half by what the process does: a folder made, a file opened, renamed or
deleted, a reply about to be stored or just stored in SQLite, up to a few milliseconds later, so that many lie
within a save of orbax, a Parquet file or a commit. A run is killed up to --in-a-row times before it may end; then
every artifact is compared, byte for byte, with those of a run that was left alone. Where a method asks a teacher,
labeler, source or judge, that is a server on the loopback which counts what it is paid for: what was stored
before a kill is never bought again, and what was in flight is counted apart. SIGTERM and Ctrl-C are tried last,
each at its instants: one line within three seconds. Every run that is done is a line of kills.jsonl beside the
results, from which a later start goes on.
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import proof
from proof import METHODS

APART = (
    "timing.jsonl",
    "timing.svg",
    ".lock",
    "replies.sqlite",
    "replies.sqlite-wal",
    "replies.sqlite-shm",
    ".seedloop.json",
)
"""Files that may differ between two runs of one command."""
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "reply")
"""Audit events of Python after which a process may be killed; `reply` is ours, on both sides of a commit."""
WITHIN = 3.0
"""Seconds in which a signal ends a command."""
IN_FLIGHT = 8
"""Requests that a generator has open at a time."""
Row = dict[str, Any]
"""What came of one run."""
ANSWERS = {
    "llm2llm": "Question: Tom has {} apples and buys 3 more. How many has he?\nAnswer: {} + 3 = {}\n#### {}",
    "reversegen": "It is {}.\n#### {}",
    "active-inheritance": "A robin and {} wrens sat in a tree and sang until the sun went down. They were {}.",
    "profile": "AB",
}


def command(method: str, url: str) -> tuple[list[str], dict[str, str]]:
    """A small run of which a part is asked of the server at `url`."""
    words, files = proof.small(method)
    role = {"llm2llm": "teacher", "reversegen": "labeler", "active-inheritance": "source", "profile": "judge"}[
        method
    ]
    words += [f"--{role}", "openai:m", f"--{role}-url", url]
    if method == "active-inheritance":
        words += ["--source", "embedded:student"]
    if method == "llm2llm":
        words += ["--label-check", "none"]
    if method == "reversegen":
        words += ["--reference", "labeler", "--validity", "program", "--label-votes", "1"]
    return words, files


# --- the server, a process of its own -----------------------------------------------------------------------


def serve(method: str, port: int) -> None:
    """Answer every request with what follows from it alone, and note each that was paid for on standard output."""
    import hashlib
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = json.dumps(json.loads(body)["messages"], sort_keys=True)
            # A labeler must agree with itself, however it is asked.
            n = 7 if method == "reversegen" else int(hashlib.sha256(asked.encode()).hexdigest(), 16) % 50
            numbers = (n, n, n + 3, n + 3)
            text = ANSWERS[method]
            text = (
                text[n % 2]
                if method == "profile"
                else text.format(*numbers[-text.count("{}") :] if method == "llm2llm" else (n,) * text.count("{}"))
            )
            reply = {
                "object": "chat.completion",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                ],
            }
            data = json.dumps(reply | {"usage": {"prompt_tokens": 9, "completion_tokens": 9}}).encode()
            time.sleep(0.02)
            with contextlib.suppress(OSError):
                print("paid", flush=True)
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            """A client that was killed is what this is for."""

    Server(("127.0.0.1", port), Handler).serve_forever()


class Till:
    """The server's process, and how many replies it was paid for."""

    def __init__(self, method: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.paid = f"http://127.0.0.1:{port}/v1", 0
        words = [sys.executable, __file__, "--serve", method, "--port", str(port)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        os.set_blocking(self._process.stdout.fileno(), False)
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return
            time.sleep(0.05)
        raise SystemExit("the loopback server does not start")

    def count(self) -> int:
        """All that was paid so far. No thread reads: processes are forked here."""
        time.sleep(0.1)
        self.paid += (self._process.stdout.read() or b"").count(b"paid")
        return self.paid

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def stored(folder: pathlib.Path) -> int:
    """Replies that the run has stored."""
    file = folder / "replies.sqlite"
    if not file.exists():
        return 0
    with contextlib.closing(sqlite3.connect(file)) as db, contextlib.suppress(sqlite3.OperationalError):
        return db.execute("SELECT COUNT(*) FROM replies").fetchone()[0]
    return 0  # killed before the table was made


# --- killing ------------------------------------------------------------------------------------------------


class Tracer:
    """Counts the events of a process, in the process; kills it `delay` seconds after event number `at`, if any."""

    def __init__(self, folder: pathlib.Path, at: int | None, delay: float, log: pathlib.Path | None, number: int):
        self.folder, self.at, self.delay, self.log, self.number = str(folder), at, delay, log, number
        self.count, self.within = 0, False

    def install(self) -> None:
        from common.backends.replies import Replies

        put = Replies.put

        def noted(*given: Any) -> None:
            sys.audit("reply", self.folder)
            put(*given)
            sys.audit("reply", self.folder)

        Replies.put = noted
        sys.addaudithook(self._see)

    def _see(self, event: str, given: tuple[Any, ...]) -> None:
        if event not in EVENTS or not given or self.within or self.folder not in str(given[0]):
            return
        if event == "open" and not (isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        self.count += 1
        if self.log is not None:
            self.within = True
            with open(self.log, "a") as lines:
                lines.write(f"{event} {str(given[0])[len(self.folder) :]}\n")
            self.within = False
        if self.count == self.at:
            if self.delay:
                threading.Timer(self.delay, os.kill, (os.getpid(), self.number)).start()
            else:
                os.kill(os.getpid(), self.number)


def started(
    words: Sequence[str], folder: pathlib.Path, run: pathlib.Path, before: Callable[[], object] | None = None
) -> int:
    """A process at work on the run, that first calls `before`; its id."""
    child = os.fork()
    if not child:
        env = {"OPENAI_API_KEY": "loopback-key-0123"}
        logs = [run.with_name(f"{run.name}.{name}") for name in ("out", "err")]
        proof.run([*words, "--run-dir", str(run)], folder, env, logs, before)
    return child


def wait(child: int, seconds: float | None = None) -> int | None:
    """The exit status, minus the signal's number where one ended it; None if it still runs after `seconds`."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            return None
        time.sleep(0.002)


def bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in APART]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def differences(found: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


@dataclasses.dataclass(frozen=True)
class Whole:
    """A run of a method that was left alone, which killed ones are compared with."""

    method: str
    folder: pathlib.Path
    words: list[str]
    till: Till
    wanted: dict[str, bytes]
    replies: int
    events: int
    seconds: float


def left_alone(method: str, folder: pathlib.Path) -> Whole:
    till = Till(method)
    words, files = command(method, till.url)
    proof.write(proof.cleared(folder), files)
    run, log, start = folder / "whole", folder / "events.txt", time.monotonic()
    code = wait(started(words, folder, run, Tracer(run, None, 0, log, 0).install))
    seconds = time.monotonic() - start
    if code != 0:
        till.close()
        raise SystemExit(
            f"{method}: a run that is left alone ends with {code}: {(folder / 'whole.err').read_text()}"
        )
    events = log.read_text().count("\n")
    return Whole(method, folder, words, till, bytes_of(run), till.count(), events, seconds)


def kill(whole: Whole, number: int, most: int, rng: random.Random) -> Row:
    """A run that is killed up to `most` times, finished, and compared."""
    run, till, words = whole.folder / f"run_{number}", whole.till, whole.words
    kills = lost = kept = 0
    before, start, where, faults = till.count(), time.monotonic(), collections.Counter(), []
    while True:
        by_event = rng.random() < 0.5
        at = rng.randrange(1, whole.events + 1) if by_event else None
        tracer = Tracer(run, at, rng.choice((0.0, 0.001, 0.005, 0.02)), None, signal.SIGKILL)
        last = kills >= most
        child = started(words, whole.folder, run, tracer.install if by_event and not last else None)
        code = wait(child, None if last or by_event else rng.uniform(0, whole.seconds))
        if code is None:
            os.kill(child, signal.SIGKILL)
            code = wait(child)
        now, own = till.count(), stored(run)
        # What came and was not stored any more; nothing is ever bought that was stored.
        in_flight, before, kept = now - before - (own - kept), now, own
        if code != -signal.SIGKILL:
            break
        kills, lost = kills + 1, lost + in_flight
        where[_place(run)] += 1
        if not 0 <= in_flight <= IN_FLIGHT:
            faults.append(f"{in_flight} replies in flight at a kill")
    if code != 0:
        faults.append(f"it ended with {code}: {run.with_name(f'{run.name}.err').read_text()[-300:]}")
    if in_flight or own != whole.replies:
        faults.append(f"{own} replies stored, {whole.replies} wanted, {in_flight} lost without a kill")
    differ = differences(bytes_of(run), whole.wanted)
    faults += [f"it differs in {name}" for name in differ]
    if not faults:
        shutil.rmtree(run)
    return {
        "kills": kills,
        "in_flight_at_kills": lost,
        "bought_twice": max(0, in_flight) + max(0, own - whole.replies),
        "differences": len(differ),
        "where": dict(where),
        "found": faults,
        "seconds": round(time.monotonic() - start, 1),
    }


def _place(run: pathlib.Path) -> str:
    """Where a killed run stands: the file that was written last."""
    files = [file for file in run.rglob("*") if file.is_file()] if run.exists() else []
    if not files:
        return "before the folder"
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    return "orbax" if "training_state" in str(newest) else newest.name.lstrip(".").split(".jsonl")[0]


def asked_to_stop(whole: Whole, number: int, rng: random.Random, which: int) -> tuple[float, str]:
    """Send a signal at a random instant; seconds until the end, and what is wrong."""
    folder = whole.folder
    run = folder / f"stopped_{which}"

    def cold() -> None:
        """Without what was compiled before, so that many of the instants lie in a compilation."""
        import jax

        jax.config.update("jax_compilation_cache_dir", str(folder / f"cold_{which}"))

    child = started(whole.words, folder, run, cold if which % 4 > 1 else None)
    time.sleep(rng.uniform(0.5, whole.seconds))
    if (code := wait(child, 0)) is not None:
        return 0.0, "" if code == 0 else f"{run.name} ended with {code} before it was asked to"
    start = time.monotonic()
    os.kill(child, number)
    code, took = wait(child), time.monotonic() - start
    said = [line for line in run.with_name(f"{run.name}.err").read_text().splitlines() if "top" in line]
    wanted = {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    fault = ""
    if code not in (wanted, 0):
        # Of a crash Python says first what it was.
        crash = [line for line in run.with_name(f"{run.name}.err").read_text().splitlines() if "Fatal" in line]
        fault = f"{run.name}: status {code} after {signal.Signals(number).name}: {(crash or said[-1:])[:1]}"
    elif code and (took > WITHIN or not said or not said[-1].endswith("continues where it left off")):
        fault = f"{run.name}: {took:.1f} s after {signal.Signals(number).name}: {said[-1:]}"
    return took, fault


def total(method: str, rows: list[Row]) -> Row:
    """What came of all runs of a method."""
    of = [row for row in rows if row["method"] == method]
    add = lambda key: sum(row.get(key, 0) for row in of)
    where = sum((collections.Counter(row.get("where", {})) for row in of), collections.Counter())
    counts = {key: add(key) for key in ("kills", "in_flight_at_kills", "bought_twice", "differences")}
    return {
        "method": method,
        **counts,
        "runs": sum("kills" in row for row in of),
        "signals": sum("signal" in row for row in of),
        "slowest_signal_s": max((row["seconds"] for row in of if "signal" in row), default=0.0),
        "seconds": round(add("seconds")),
        "where": dict(where.most_common(12)),
        "found": [f"run {row['run']}: {fault}" for row in of for fault in row["found"]],
    }


def main() -> None:
    if "--serve" in sys.argv:
        serve(sys.argv[2], int(sys.argv[4]))
    args = proof.arguments(
        __doc__,
        ("--method", {"choices": METHODS}),
        ("--kills", {"type": int, "default": 100, "help": "of each method"}),
        ("--in-a-row", {"type": int, "default": 6, "help": "kills of one run at most"}),
        ("--signals", {"type": int, "default": 4, "help": "SIGTERM and Ctrl-C, so many of each for a method"}),
        ("--minutes", {"type": float, "default": math.inf, "help": "begin no run after so many"}),
        ("--afresh", {"action": "store_true", "help": "forget the runs that earlier starts have finished"}),
    )
    start, done = time.monotonic(), proof.RESULTS / "kills.jsonl"
    if args.afresh:
        done.unlink(missing_ok=True)
    rows = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    rows = [row for row in rows if row["seed"] == args.seed]
    wanted = [args.method] if args.method else list(METHODS)
    wholes: dict[str, Whole] = {}

    def left(method: str) -> tuple[int, int]:
        """Kills and signals that a method lacks."""
        of = total(method, rows)
        return max(0, args.kills - of["kills"]), max(0, 2 * args.signals - of["signals"])

    def turn(method: str, folder: pathlib.Path) -> Row:
        whole = wholes.get(method) or wholes.setdefault(method, left_alone(method, folder / method))
        number = sum(row["method"] == method for row in rows)
        rng, (kills, _) = random.Random(f"{args.seed}/{method}/{number}"), left(method)
        row = {"seed": args.seed, "method": method, "run": number}
        if kills:
            return row | kill(whole, number, min(kills, args.in_a_row), rng)
        sent = total(method, rows)["signals"]
        seconds, fault = asked_to_stop(whole, (signal.SIGTERM, signal.SIGINT)[sent % 2], rng, sent)
        return row | {"signal": sent, "seconds": round(seconds, 2), "found": [fault] * bool(fault)}

    proof.RESULTS.mkdir(parents=True, exist_ok=True)
    if any(any(left(method)) for method in wanted):
        proof.warm_up()
        from common.results import origin
        from common.train import loop

        # The trainings are short: their states are stored after every third update, not every few minutes.
        loop._due = lambda step, then: step % 3 == 2
        origin._commit = lambda: None  # which may change meanwhile, and stands on the page
    with proof.place(args.keep) as folder:
        try:
            while short := [method for method in wanted if any(left(method))]:
                # In turns, so that a start that is cut short has tried all methods alike.
                for method in short:
                    if time.monotonic() - start > 60 * args.minutes:
                        short = []
                        break
                    rows.append(turn(method, folder))
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
                    with done.open("a") as lines:
                        lines.write(proof.as_stored(rows[-1]) + "\n")
                if not short:
                    break
        finally:
            for whole in wholes.values():
                whole.till.close()
    found = [total(method, rows) for method in METHODS]
    header = (
        "method kills runs in_flight_at_kills bought_twice differences signals slowest_signal_s seconds".split()
    )
    result = {"seed": args.seed, "methods": found, "faults": sum(len(one["found"]) for one in found)}
    proof.tell("kills", [[one[key] for key in header] for one in found], header, result)


if __name__ == "__main__":
    main()
