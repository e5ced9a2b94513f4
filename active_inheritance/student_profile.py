"""What else the student became: its profile before and after, in every arm (see `active_inheritance/profile`).

    measures = load_data(config.profile_settings())
    figures = profiled(run, student, model, measures, "repeat_0/selected")
    entry = profile_figures(config, outcomes)          # "profile" of summary.json

What is measured is said in the words of `run.py profile`: --profile choice=arc=FILE,stereoset=FILE.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from active_inheritance.config import Config
from common.evals.figures import Change, Figure, changes, relative_change
from common.evals.measure import Measure, Store, profile_model
from common.lm import LanguageModel
from common.results.estimate import as_json
from common.results.rundir import RunDir, write_json
from common.results.stats import mean_ci95
from common.stages import Lazy

if TYPE_CHECKING:
    from active_inheritance.loop import Outcome

Figures = Mapping[str, Figure]


def profiled(
    run: RunDir, student: LanguageModel, model: Lazy, measures: Sequence[Measure] | None, name: str
) -> Figures:
    """The figures of a model, by "GROUP/…/NAME", with its answers and scores in `name`/profile of the run; none
    where nothing is to be measured. `student` has the tokenizer and shape of `model`, whose weights are not asked
    for once all is stored."""
    if measures is None:
        return {}
    stored = run.path / name / "profile/figures.json"
    source = student if stored.exists() else model()
    store = Store(run, f"{name}/profile")
    figures = profile_model(dataclasses.replace(source, name=name), measures, store).figures
    if not stored.exists():
        write_json(stored, as_json(figures))
    return figures


def profile_figures(config: Config, outcomes: "Sequence[Outcome]") -> dict[str, Any] | None:
    """ "arms": every figure after the last round of each; "changes": between arms. Of several repeats these are
    means with Student's t over repeats; of one, what `evals.figures.changes` gives, drawn over items."""
    of_arms = {arm: [outcome.last(arm)["profile"] for outcome in outcomes] for arm in config.arms}
    if not of_arms["base"][0]:
        return None
    pairs = [("selected", "base"), ("selected", "random"), ("random", "base")]
    found = {
        "settings": list(config.profile or ()),
        "arms": {arm: {key: _over([f[key] for f in found]) for key in found[0]} for arm, found in of_arms.items()},
        "changes": {f"{a} - {b}": _changes(config, of_arms[b], of_arms[a]) for a, b in pairs},
    }
    return as_json(found)


def _over(of_repeats: Sequence[Figure]) -> Figure:
    """A figure over repeats. The base is the same in all of them, and keeps its interval over items."""
    values = tuple(figure.value for figure in of_repeats)
    first = of_repeats[0]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return dataclasses.replace(first, value=None, per_repeat=values)
    if len(set(known)) == 1:
        return dataclasses.replace(first, per_repeat=values)
    value, *interval = mean_ci95(known)
    return dataclasses.replace(first, value=value, ci95=(interval[0], interval[1]), per_repeat=values)


def _changes(config: Config, before: Sequence[Figures], after: Sequence[Figures]) -> dict[str, Change]:
    of_repeats = [changes(old, new, config.seed) for old, new in zip(before, after, strict=True)]
    if len(of_repeats) == 1:
        return of_repeats[0]
    found = {}
    for key, first in of_repeats[0].items():
        steps = tuple(entry[key].absolute for entry in of_repeats)
        known = [step for step in steps if step is not None]
        old = _over([figures[key] for figures in before]).value
        if len(known) < len(steps) or old is None:
            found[key] = dataclasses.replace(first, absolute=None, ci95=None, relative=None)
            continue
        value, low, high = mean_ci95(known)
        found[key] = Change(
            absolute=value,
            ci95=(low, high),
            relative=relative_change(old, old + value) if old else None,
            n=first.n,
            per_repeat=steps,
        )
    return found
