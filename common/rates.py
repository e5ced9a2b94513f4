"""How long a run may take, from what runs on this machine took, and what a hosted model may cost.

    key = key_of("llm2llm", identity)
    learn(key, timing, {"train": 4200, "teach": 900, "other": 1}, 70)  # of a finished run, from its timing.jsonl
    told(key, {"train": 8400, "teach": 1800, "other": 2})              # "about 2 min, as the last run … took here"

A stage has units of work, of which a plan knows how many there are at most. Seconds a unit are kept for each
combination of method, models and lengths, in rates.json of the user's cache folder: a plan that is too high by as
much as the last one was gives the right time. Compiling, loading and writing take as long however much is done and
are kept apart. The runs that are made with their defaults alone are known of before any has ended here, from
another machine; without a run of the same models nothing is said.
"""

import collections
import contextlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from common.backends.budget import Budget, Spent
from common.results.files import write_json
from common.runtime import accelerators, cache_dir

FILE = "rates.json"
SHIPPED = pathlib.Path(__file__).parent / "embedded" / FILE
"""What the default runs took on two cores (AMD EPYC) without any program in the cache: written by
`python benchmarks/rates.py`."""
DECIDE = ("task", "data", "answer_tokens", "max_length", "lora_rank", "remat", "param_dtype", "mode")
"""Settings beside models that a unit's time depends on."""
OTHER = "other"
"""Stages that have no units of their own."""


def key_of(method: str, identity: Mapping[str, Any]) -> str:
    """What runs have in common whose units take equally long. `identity`: see `common.experiment.identity`."""
    settings = {name: identity[name] for name in DECIDE if name in identity}
    where = "accelerator" if accelerators() else "cpu"
    return json.dumps([method, where, identity["models"], settings], sort_keys=True)


def learn(key: str, timing: Iterable[Mapping[str, Any]], units: Mapping[str, float], whole: float) -> None:
    """Keep what the stages of a finished run took: `timing`, stages with seconds, of which some were spent
    compiling; `whole`, seconds of the run in this process. A run of less than half the units teaches nothing where
    a larger one is known: what it took is mostly of the kind that does not grow."""
    kept = _kept(cache_dir() / FILE)
    if key in kept and 2 * sum(units.values()) < sum(kept[key]["units"].values()):
        return
    took: dict[str, float] = collections.defaultdict(float)
    compiling = 0.0
    for row in timing:
        took[_unit(row["stage"], units)] += max(0.0, row["seconds"] - row.get("compiling", 0))
        compiling += row.get("compiling", 0)
    # Of a run in two goes the stages took longer than its last go.
    fixed = compiling + max(0.0, whole - sum(took.values()) - compiling)
    entry = {"seconds": dict(took), "units": dict(units), "fixed": round(fixed, 3)}
    with contextlib.suppress(OSError, ValueError):  # it is a convenience
        cache_dir().mkdir(parents=True, exist_ok=True)
        write_json(cache_dir() / FILE, kept | {key: entry})


def _unit(stage: str, units: Iterable[str]) -> str:
    """Whose units a stage's seconds belong to: the longest name within its own, as "train the proposer" is not
    "propose"."""
    return max((name for name in units if name in stage), key=len, default=OTHER)


def _kept(file: pathlib.Path) -> dict[str, dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads(file.read_bytes())
        return {key: run for key, run in found.items() if run.keys() == {"seconds", "units", "fixed"}}
    return {}


def _known(key: str | None) -> tuple[dict[str, Any] | None, bool]:
    """The run that tells of `key`, and whether it was on this machine."""
    if key is None:
        return None, False
    own = _kept(cache_dir() / FILE).get(key)
    return (own, True) if own is not None else (_kept(SHIPPED).get(key), False)


def expected(key: str | None, units: Mapping[str, float]) -> float | None:
    """Seconds that a run takes, as the last one of that key; None where there is none. `key`: None for models that
    are not on this machine yet."""
    run, _ = _known(key)
    if run is None:
        return None
    rates = {name: run["seconds"].get(name, 0) / count for name, count in run["units"].items() if count}
    return run["fixed"] + sum(rate * units.get(name, 0) for name, rate in rates.items())


def _apart(key: str | None, units: Mapping[str, float]) -> bool:
    """Whether the run that is known was of quite another size, so that what it took says little."""
    run, _ = _known(key)
    known = 0.0 if run is None else sum(run["units"].values())
    return not known / 3 <= sum(units.values()) <= 3 * known


def told(key: str | None, units: Mapping[str, float]) -> str:
    """`expected` in words."""
    seconds = expected(key, units)
    if seconds is None:
        return "unknown: no run of these models has ended on this machine; the first one measures it"
    shown = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    shown = shown if seconds < 6000 else f"{seconds / 3600:.1f} h"
    rough = ", which was of quite another size" if _apart(key, units) else ""
    if not _known(key)[1]:
        return f"about {shown} on two cores of a server, where it was measured{rough}; no such run has ended here"
    return f"about {shown}, as the last run of these models took here{rough}"


def cost(calls: float, prompt: float, completion: float, price: str | None) -> str:
    """What so many calls of a hosted model may come to; tokens a call."""
    spent = Spent(round(calls), round(calls * prompt), round(calls * completion))
    tokens = f"about {spent.prompt_tokens:,} tokens sent, at most {spent.completion_tokens:,} received"
    if price is None:
        return f"{spent.calls:,} calls at most: {tokens}; money unknown without a price"
    usd = Budget.parse("calls=1", price).cost(spent)
    return f"{spent.calls:,} calls at most: {tokens}, {usd:.2f} USD"
