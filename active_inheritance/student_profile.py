"""What else the student became: its profile before and after, in every arm (see `active_inheritance/profile`).

    data = load_data(config.profile_settings())
    figures = profiled(run, config, student, model, data, "repeat_0/selected")
    entry = profile_figures(config, outcomes)          # "profile" of summary.json

What is measured is said in the words of `run.py profile`: --profile choice=arc=FILE,stereoset=FILE.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from active_inheritance.config import Config
from active_inheritance.profile.measure import Data, profile_model
from common.evals.figures import Figure, changes, relative_change
from common.lm import LanguageModel
from common.results.rundir import RunDir, write_json
from common.results.stats import mean_ci95
from common.stages import Lazy

if TYPE_CHECKING:
    from active_inheritance.loop import Outcome

Figures = Mapping[str, Figure]


def profiled(
    run: RunDir, config: Config, student: LanguageModel, model: Lazy, data: Data | None, name: str
) -> Figures:
    """The figures of a model, by "GROUP/…/NAME", with its answers and scores in `name`/profile of the run; none
    where nothing is to be measured. `student` has the tokenizer and shape of `model`, whose weights are not asked
    for once all is stored."""
    if data is None:
        return {}
    stored = run.path / name / "profile/figures.json"
    source = student if stored.exists() else model()
    settings = config.profile_settings()
    figures = profile_model(run, f"{name}/profile", dataclasses.replace(source, name=name), settings, data).figures
    if not stored.exists():
        write_json(stored, figures)
    return figures


def profile_figures(config: Config, outcomes: "Sequence[Outcome]") -> dict[str, Any] | None:
    """ "arms": every figure after the last round of each; "changes": between arms. Of several repeats these are
    means with Student's t over repeats; of one, what `profile.figures.changes` gives, drawn over items."""
    of_arms = {arm: [outcome.last(arm)["profile"] for outcome in outcomes] for arm in config.arms}
    if not of_arms["base"][0]:
        return None
    pairs = [("selected", "base"), ("selected", "random"), ("random", "base")]
    return {
        "settings": list(config.profile),
        "arms": {arm: {key: _over([f[key] for f in found]) for key in found[0]} for arm, found in of_arms.items()},
        "changes": {f"{a} - {b}": _changes(config, of_arms[b], of_arms[a]) for a, b in pairs},
    }


def _over(of_repeats: Sequence[Figure]) -> dict[str, Any]:
    """A figure over repeats. The base is the same in all of them, and keeps its interval over items."""
    values = [figure["value"] for figure in of_repeats]
    first = of_repeats[0]
    if None in values or len(set(values)) == 1:
        return dict(first) | {"value": None if None in values else first["value"], "per_repeat": values}
    value, *interval = mean_ci95(values)
    return dict(first) | {"value": value, "ci95": interval, "per_repeat": values}


def _changes(config: Config, before: Sequence[Figures], after: Sequence[Figures]) -> dict[str, Any]:
    of_repeats = [changes(old, new, config.seed) for old, new in zip(before, after, strict=True)]
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
