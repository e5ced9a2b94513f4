"""How long a run may take, from what runs on this machine took, and what a hosted model may cost.

    key = key_of("llm2llm", identity)
    learn(key, timing, {"train": 4200, "teach": 900, "other": 1}, 70)  # of a finished run, from its timing.jsonl
    told(key, {"train": 8400, "teach": 1800, "other": 2})              # "about 2 min, as the last run … took here"

A stage has units of work, of which a plan knows how many there are at most. Seconds a unit are kept for each
combination of method, models and lengths, in rates.json of the user's cache folder: a plan that is too high by as
much as the last one was gives the right time. Compiling, loading and writing take as long however much is done and
are kept apart. The runs that are made with their defaults alone are known of before any has ended here, from
another machine. Without a run of the same models and lengths one of other data that has a model in common tells
roughly; without that nothing is said.
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
ROUGHLY = "roughly: as a run with other data, lengths or models beside these took"
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
    a larger one is known, of another machine too: what it took is mostly of the kind that does not grow."""
    kept = _kept(cache_dir() / FILE)
    larger = kept.get(key) or _kept(SHIPPED).get(key)
    if larger is not None and 2 * _size(units) < _size(larger["units"]):
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


def _size(units: Mapping[str, float]) -> float:
    return sum(units.values())


def _known(key: str | None) -> tuple[dict[str, Any] | None, str]:
    """The run that tells of `key`, and which one it was, in words."""
    if key is None:
        return None, ""
    own, shipped = _kept(cache_dir() / FILE), _kept(SHIPPED)
    if key in own:
        return own[key], "as the last run of these models took here"
    if key in shipped:
        return shipped[key], "on two cores of a server, where it was measured; no such run has ended here"
    method, where, models, _ = json.loads(key)
    like: dict[str, tuple[int, int, bool]] = {}
    for other in shipped | own:
        its_method, its_place, its_models, _ = json.loads(other)
        if (its_method, its_place) == (method, where) and (shared := len(models.items() & its_models.items())):
            like[other] = shared, -len(its_models), other in own
    if not like:
        return None, ""
    nearest = max(like, key=lambda other: like[other])
    return (shipped | own)[nearest], ROUGHLY


def _seconds(run: Mapping[str, Any], units: Mapping[str, float]) -> float:
    rates = {name: run["seconds"].get(name, 0) / count for name, count in run["units"].items() if count}
    return run["fixed"] + sum(rate * units.get(name, 0) for name, rate in rates.items())


def _grown(run: Mapping[str, Any], units: Mapping[str, float]) -> bool:
    """Whether a stage has more than three times the units that its time is known of. A unit of few takes longer,
    with all that comes once a stage."""
    return any(units.get(name, 0) > 3 * count for name, count in run["units"].items() if run["seconds"].get(name))


def expected(key: str | None, units: Mapping[str, float]) -> float | None:
    """Seconds that a run takes, as the last one of that key; None where there is none, or one of which a stage did
    much less. `key`: None for models that are not on this machine yet."""
    run, which = _known(key)
    if run is None or which == ROUGHLY or _grown(run, units):
        return None
    return _seconds(run, units)


def told(key: str | None, units: Mapping[str, float]) -> str:
    """The seconds of a run in words, also where they are known roughly."""
    run, which = _known(key)
    if run is None:
        return "unknown: no run of these models has ended on this machine; the first one measures it"
    seconds = _seconds(run, units)
    shown = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    shown = shown if seconds < 6000 else f"{seconds / 3600:.1f} h"
    if _grown(run, units):
        return f"at most about {shown}, {which}, and did much less"
    return f"about {shown}, {which}" + (", and did much more" if 3 * _size(units) < _size(run["units"]) else "")


def cost(calls: float, prompt: float, completion: float, price: str | None) -> str:
    """What so many calls of a hosted model may come to; tokens a call."""
    spent = Spent(round(calls), round(calls * prompt), round(calls * completion))
    tokens = f"about {spent.prompt_tokens:,} tokens sent, at most {spent.completion_tokens:,} received"
    if price is None:
        return f"{spent.calls:,} calls at most: {tokens}; money unknown without a price"
    usd = Budget.parse("calls=1", price).cost(spent)
    return f"{spent.calls:,} calls at most: {tokens}, {usd:.2f} USD"
