"""The skeleton of every command: check, load, lock, work, conclude.

    summary = carry_out("llm2llm", config.run_dir, identity, prepare, work)

A method supplies `prepare` (load what it needs, and refuse what the user must fix) and `work` (its repeats, and
what they show as a `Conclusion`). The order, the lock, what is printed and what is stored are the same for all.
"""

import dataclasses
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, Self, TypeVar

from common import VERSION, hosts, rates
from common.backends.open import absent, check_backend, file_hashes, fingerprints, is_model
from common.backends.replies import unbought
from common.cli import PROG, item, parse
from common.model import checkpoint
from common.progress import clock, patience, running, say, within_another
from common.results.conclusion import Conclusion, conclude, counted, finished, tell
from common.results.hub import Push, push
from common.results.mirror import is_url
from common.results.rundir import RunDir, damaged_outputs
from common.runtime import accelerators
from common.settings import idle

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

    def idle(self) -> dict[str, str]: ...


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
    config = parse(kind, argv, f"{PROG} {method}", about, presets, method).resolved()
    hosts.connect(config.coordinator, config.processes, config.process)
    if config.dry_run:
        lines = [*plan(config), *config.reasons(), *idle(config, presets)]
        if config.mesh is not None or hosts.count() > 1 or accelerators():  # only then jax is worth its loading
            lines.append(("devices", str(config.devices())))
        for name, what in lines:
            print(item(name, what, 28))
    else:
        # In a run too: whoever gave no learning rate should see which one it has, and why.
        for name, what in config.reasons() if hosts.is_writer() else ():
            print(item(name, what, 28, sys.stderr), file=sys.stderr)
        run(config)


def identity(
    settings: Mapping[str, Any],
    files: Iterable[str | None],
    code: Iterable[str],
    models: Mapping[str, str],
    fetch: bool = True,
) -> dict[str, Any]:
    """What the run directory holds against the next command: `settings`, and hashes of what they name.

    `files`: data files, None for those not given. `code`: names of back ends, of which `python:` ones are hashed.
    `models`: name by role; those that are checkpoints are fingerprinted, and those of the hub fetched for it
    (`fetch`).
    """
    hashes = {"file_hashes": file_hashes(files, code), "models": fingerprints(models, fetch=fetch)}
    return dict(settings) | hashes


def check_start(
    method: str,
    run_dir: str,
    models: Mapping[str, str],
    backends: Iterable[tuple[str | None, str | None]],
    identity: Callable[[], Mapping[str, Any]],
) -> str | None:
    """For a plan: raises UserError where the run would be refused at its start, by the same checks: for its
    folder, a model that is nowhere (`models`, name by role), a function or a key that is missing (`backends`:
    names and addresses), its configuration. Nothing is fetched.

    Returns what its time is known by (`common.rates.key_of`); None where a model is still on the hub, whose files
    are a part of the configuration.
    """
    RunDir.check_place(run_dir)
    missing = absent(models)
    for name, url in backends:
        if name is not None:
            check_backend(name, url)
    if missing:
        return None
    stored = dict(identity())
    RunDir.check(run_dir, method, stored)
    return rates.key_of(method, stored)


def check_models(models: Mapping[str, str]) -> None:
    """For a plan: raises UserError, with the role, for settings or a tokenizer of a model that cannot be read.
    `models`: name by role. What comes with seedloop, and what is not on this machine, is passed over."""
    from common.reading import Reader

    with checkpoint.in_roles(models):
        for name in filter(is_model, models.values()):
            if "+" in name or not name.startswith("embedded:"):
                Reader.read(name)


def carry_out(
    method: str,
    run_dir: str,
    identity: Mapping[str, Any],
    prepare: Callable[[], S],
    work: Callable[[RunDir, S], Conclusion],
    units: Mapping[str, float] | None = None,
    to_hub: Push | None = None,
    models: Mapping[str, str] = MappingProxyType({}),
    told: Iterable[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Begin or continue the run in `run_dir`; returns what `summary.json` holds. `to_hub`: where its products are
    pushed at last. `models`: names by role, which is said of one that is refused. `told`: warnings of settings
    that change nothing (`common.settings.idle`); of a run within another its settings are not the user's, and
    nothing is said.

    A run that is complete is told again from its summary alone. Whatever the user may have to fix is found before
    the run directory exists, the cheapest first: another configuration in the folder before anything is loaded,
    then what `prepare` refuses. Raises UserError. `units`: of work by stage, of which the time is remembered.
    """
    start = time.monotonic()
    for name, what in () if within_another() else told:
        say(item(name, what, 28, sys.stderr))
    # Nothing is touched yet, and no model loaded, which may take minutes.
    RunDir.check(run_dir, method, dict(identity))
    if not is_url(run_dir) and (summary := hosts.share(lambda: finished(pathlib.Path(run_dir)))):
        print(f"{run_dir} is finished already: nothing is left to be done")
        tell(pathlib.Path(run_dir), summary)
        _push(pathlib.Path(run_dir), summary, to_hub)
        return summary
    with checkpoint.in_roles(models), patience("reading data and models ..."):
        ready = prepare()
    with RunDir.open(run_dir, method, dict(identity)) as run, checkpoint.in_roles(models):
        for place in damaged_outputs(run.path) if hosts.is_writer() else ():
            say(f"{place} is not as it was made: it is made again")
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        key, timing = rates.key_of(method, identity), run.journal("timing.jsonl")
        begun_before, repeats = bool(timing.rows()), identity.get("repeats") or 1
        # What is left of a run that is continued is not known.
        seconds = rates.expected(key, units or {}) if not begun_before else None
        opening = _opening(method, run_dir, repeats, units or {}, begun_before, seconds)
        say(item("", opening, stream=sys.stderr))
        with running(repeats, seconds, start):
            found = work(run, ready)
            if units:
                rates.learn(key, timing.rows(stage=str, seconds=(int, float)), units, time.monotonic() - start)
            found = dataclasses.replace(found, warnings=[*unbought(run.path), *found.warnings])
            summary = conclude(run, found)
        _push(run.path, summary, to_hub)
        sys.stdout.flush()  # before the last line also where both streams go into one file
        say(f"finished in {clock(time.monotonic() - start)}, results in {run_dir}")
        return summary


def _opening(
    method: str, run_dir: str, repeats: int, units: Mapping[str, float], again: bool, seconds: float | None
) -> str:
    """The first line of a run: who works, where, and on what; `again`: after an earlier process."""
    stages = ", ".join(name for name, count in units.items() if count and name != rates.OTHER)
    does = "continues" if again else "begins"
    what = f"{counted(repeats, 'repeat')}{f' of {stages}' if stages else ''}"
    about = "" if seconds is None or seconds < 1 else f", about {clock(seconds)}"
    return f"{method} (seedloop {VERSION}) {does} in {run_dir}: {what}{about}"


def _push(path: pathlib.Path, summary: Mapping[str, Any], to_hub: Push | None) -> None:
    if to_hub is not None:
        for place in hosts.share(lambda: push(path, summary["files"].values(), to_hub)):
            print(f"pushed: {place}")
