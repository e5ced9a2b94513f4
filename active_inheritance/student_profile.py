"""What else the student became: its profile before and after, in every arm (see `active_inheritance/profile`).

    measures = load_data(config.profile_settings())
    figures = profiled(run, measures, student, model, "repeat_0/selected")
    found = profiles(config.profile, config.arms, outcomes, seed=0)          # "profile" of summary.json

What is measured is said in the words of `run.py profile`: --profile choice=arc=FILE,stereoset=FILE.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from active_inheritance.outcome import Outcome
from common.evals.figures import Change, Figure, changes, relative_change
from common.evals.measure import Measure, Store, profile_model
from common.lm import LanguageModel
from common.results.estimate import as_json, wide
from common.results.files import write_json
from common.results.rundir import RunDir
from common.results.stats import mean_ci95
from common.stages import Lazy

Figures = Mapping[str, Figure]


@dataclasses.dataclass(frozen=True)
class Profiles:
    """`settings`: what was asked for. `arms`: every figure after the last round of each; `changes`: between arms.
    Of several repeats these are means with Student's t over repeats; of one, what `evals.figures.changes` gives,
    drawn over items."""

    settings: list[str]
    arms: dict[str, dict[str, Figure]]
    changes: dict[str, dict[str, Change]]


def profiled(run: RunDir, measures: Sequence[Measure], student: LanguageModel, model: Lazy, name: str) -> Figures:
    """The figures of a model, by "GROUP/…/NAME", with its answers and scores in `name`/profile of the run; none
    where nothing is to be measured. `student` has the tokenizer and shape of `model`, whose weights are not asked
    for once all is stored."""
    if not measures:
        return {}
    stored = run.path / name / "profile/figures.json"
    source = dataclasses.replace(student if stored.exists() else model(), name=name)
    figures = profile_model(source, measures, Store(run, f"{name}/profile")).figures
    if not stored.exists():
        write_json(stored, as_json(figures))
    return figures


def profiles(asked: Sequence[str], arms: Sequence[str], outcomes: Sequence[Outcome], seed: int) -> Profiles | None:
    """The profiles of all arms; None where nothing was measured."""
    of_arms = {arm: [outcome.last(arm).profile for outcome in outcomes] for arm in arms}
    if not of_arms["base"][0]:
        return None
    pairs = [("selected", "base"), ("selected", "random"), ("random", "base")]
    return Profiles(
        settings=list(asked),
        arms={arm: {key: _over([f[key] for f in found]) for key in found[0]} for arm, found in of_arms.items()},
        changes={f"{a} - {b}": _changes(of_arms[b], of_arms[a], seed) for a, b in pairs},
    )


def _over(of_repeats: Sequence[Figure]) -> Figure:
    """A figure over repeats. The base is the same in all of them, and keeps its interval over items."""
    values = tuple(figure.value for figure in of_repeats)
    first = of_repeats[0]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return dataclasses.replace(first, value=None, per_repeat=values)
    if len(set(known)) == 1:
        return dataclasses.replace(first, per_repeat=values)
    value, low, high = mean_ci95(known)
    return dataclasses.replace(first, value=value, ci95=(low, high), per_repeat=values)


def _changes(before: Sequence[Figures], after: Sequence[Figures], seed: int) -> dict[str, Change]:
    of_repeats = [changes(old, new, seed) for old, new in zip(before, after, strict=True)]
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
            # Steps that are all alike leave no width: that of the first over its items is then the least.
            ci95=(low, high) if wide((low, high)) else first.ci95,
            relative=relative_change(old, old + value) if old else None,
            n=first.n,
            per_repeat=steps,
        )
    return found
