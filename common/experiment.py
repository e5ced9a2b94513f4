"""The skeleton of every command: check, load, lock, work, conclude.

    summary = carry_out("llm2llm", config.run_dir, identity, prepare, work)

A method supplies `prepare` (load what it needs, and refuse what the user must fix) and `work` (its repeats, and
what they show as a `Conclusion`). The order, the lock, what is printed and what is stored are the same for all.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, Self, TypeVar

from common import hosts
from common.backends.open import file_hashes, fingerprints
from common.cli import PROG, parse
from common.results.conclusion import Conclusion, conclude
from common.results.hub import Push, push
from common.results.rundir import RunDir
from common.runtime import accelerators

C = TypeVar("C", bound="Settings")
S = TypeVar("S")


class Settings(Protocol):
    """A method's Config, as a command needs it."""

    @property
    def dry_run(self) -> bool: ...
    @property
    def coordinator(self) -> str | None: ...
    @property
    def processes(self) -> int | None: ...
    @property
    def process(self) -> int | None: ...
    @property
    def mesh(self) -> str | None: ...

    def devices(self) -> Any: ...

    def resolved(self) -> Self: ...

    def reasons(self) -> list[tuple[str, str]]: ...


def main(
    argv: list[str],
    kind: type[C],
    method: str,
    about: str,
    plan: Callable[[C], Iterable[tuple[str, str]]],
    run: Callable[[C], Any],
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """A command: parse and check; then print the plan (`--dry-run`), or run.

    `kind`: the method's Config, with `resolved()` and `dry_run`. `plan`: names and what they come to, having
    checked the data as a run would.
    """
    # Resolved here too: the plan shows the settings that a run would use.
    config = parse(kind, argv, f"{PROG} {method}", about, presets).resolved()
    hosts.connect(config.coordinator, config.processes, config.process)
    if config.dry_run:
        lines = [*plan(config), *config.reasons()]
        if config.mesh is not None or hosts.count() > 1 or accelerators():  # only then jax is worth its loading
            lines.append(("devices", str(config.devices())))
        for name, what in lines:
            print(f"{name:28}{what}")
    else:
        # In a run too: whoever gave no learning rate should see which one it has, and why.
        for name, what in config.reasons() if hosts.is_writer() else ():
            print(f"{name:28}{what}", file=sys.stderr)
        run(config)


def identity(
    settings: Mapping[str, Any],
    files: Iterable[str | None],
    code: Iterable[str],
    models: Mapping[str, str],
) -> dict[str, Any]:
    """What the run directory holds against the next command: `settings`, and hashes of what they name.

    `files`: data files, None for those not given. `code`: names of back ends, of which `python:` ones are hashed.
    `models`: name by role; those that are checkpoints are fingerprinted.
    """
    return dict(settings) | {"file_hashes": file_hashes(files, code), "models": fingerprints(dict(models))}


def carry_out(
    method: str,
    run_dir: str,
    identity: Mapping[str, Any],
    prepare: Callable[[], S],
    work: Callable[[RunDir, S], Conclusion],
    to_hub: Push | None = None,
) -> dict[str, Any]:
    """Begin or continue the run in `run_dir`; returns what `summary.json` holds. `to_hub`: where its products are
    pushed at last.

    Whatever the user may have to fix is found before the run directory exists, the cheapest first: another
    configuration in the folder before anything is loaded, then what `prepare` refuses. Raises UserError.
    """
    # Nothing is touched yet, and no model loaded, which may take minutes.
    RunDir.check(run_dir, method, dict(identity))
    ready = prepare()
    with RunDir.open(run_dir, method, dict(identity)) as run:
        if sys.stderr.isatty() and hosts.is_writer():
            print(f"run directory: {run_dir}", file=sys.stderr)
        found = work(run, ready)
        summary = conclude(run, found)
        if to_hub is not None:
            for place in hosts.share(lambda: push(run.path, found.products.values(), to_hub)):
                print(f"pushed: {place}")
        return summary
