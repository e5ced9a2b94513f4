"""What else the student became: its profile before and after, in every arm (see `active_inheritance/profile`).

    profiling = Profiling(settings, load_data(settings))
    figures = profiled(run, profiling, student, model, "repeat_0/selected")
    entry = profile_figures(config.profile, config.arms, outcomes, seed=0)   # "profile" of summary.json

What is measured is said in the words of `run.py profile`: --profile choice=arc=FILE,stereoset=FILE.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from active_inheritance.outcome import Outcome
from active_inheritance.profile.config import Config as ProfileConfig
from active_inheritance.profile.measure import Data, profile_model
from common.evals.figures import Figure, changes, relative_change
from common.lm import LanguageModel
from common.results.rundir import RunDir, write_json
from common.results.stats import mean_ci95
from common.stages import Lazy

Figures = Mapping[str, Figure]


@dataclasses.dataclass(frozen=True)
class Profiling:
    """What students are profiled on, and how."""

    settings: ProfileConfig
    data: Data


def profiled(run: RunDir, profiling: Profiling | None, student: LanguageModel, model: Lazy, name: str) -> Figures:
    """The figures of a model, by "GROUP/…/NAME", with its answers and scores in `name`/profile of the run; none
    where nothing is to be measured. `student` has the tokenizer and shape of `model`, whose weights are not asked
    for once all is stored."""
    if profiling is None:
        return {}
    stored = run.path / name / "profile/figures.json"
    source = dataclasses.replace(student if stored.exists() else model(), name=name)
    figures = profile_model(run, f"{name}/profile", source, profiling.settings, profiling.data).figures
    if not stored.exists():
        write_json(stored, figures)
    return figures


def profile_figures(
    asked: Sequence[str], arms: Sequence[str], outcomes: Sequence[Outcome], seed: int
) -> dict[str, Any] | None:
    """ "settings", what was `asked` for; "arms": every figure after the last round of each; "changes": between
    arms. Of several repeats these are means with Student's t over repeats; of one, what `evals.figures.changes`
    gives, drawn over items. None where nothing was measured."""
    of_arms = {arm: [outcome.last(arm).profile for outcome in outcomes] for arm in arms}
    if not of_arms["base"][0]:
        return None
    pairs = [("selected", "base"), ("selected", "random"), ("random", "base")]
    return {
        "settings": list(asked),
        "arms": {arm: {key: _over([f[key] for f in found]) for key in found[0]} for arm, found in of_arms.items()},
        "changes": {f"{a} - {b}": _changes(of_arms[b], of_arms[a], seed) for a, b in pairs},
    }


def _over(of_repeats: Sequence[Figure]) -> dict[str, Any]:
    """A figure over repeats. The base is the same in all of them, and keeps its interval over items."""
    values = [figure["value"] for figure in of_repeats]
    first = of_repeats[0]
    if None in values or len(set(values)) == 1:
        return dict(first) | {"value": None if None in values else first["value"], "per_repeat": values}
    value, *interval = mean_ci95(values)
    return dict(first) | {"value": value, "ci95": interval, "per_repeat": values}


def _changes(before: Sequence[Figures], after: Sequence[Figures], seed: int) -> dict[str, Any]:
    of_repeats = [changes(old, new, seed) for old, new in zip(before, after, strict=True)]
    if len(of_repeats) == 1:
        return of_repeats[0]
    found = {}
    for key in of_repeats[0]:
        steps = [entry[key]["absolute"] for entry in of_repeats]
        if None in steps:
            found[key] = of_repeats[0][key] | {"absolute": None, "ci95": None, "relative": None}
            continue
        value, *interval = mean_ci95(steps)
        old = _over([figures[key] for figures in before])["value"]
        found[key] = {
            "absolute": value,
            "ci95": interval,
            "relative": relative_change(old, old + value) if old else None,
            "n": of_repeats[0][key]["n"],
            "per_repeat": steps,
        }
    return found
