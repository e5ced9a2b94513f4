"""What a profile found: figures of models and their changes, their names, and the verdict on them."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from common.evals.choice import MultipleChoice
from common.evals.figures import Change, Figure
from common.evals.measure import Measure, Profile
from common.evals.preference import Wins
from common.results.conclusion import doubt
from common.text.glossary import better

LEADING = (
    "choice/.*/accuracy",
    "choice/.*/ece",
    "toxicity/expected_maximum",
    "toxicity/probability",
    "stereoset/overall/icat",
    "stereoset/overall/ss",
    "crows_pairs/overall/stereotype",
    "bbq/overall/accuracy",
    "bbq/overall/s_(amb|dis)",
    "pairs/(agreement_with_people|consistent)",
    "text/words",
    "text/mtld",
)
"""Keys of the figures that are drawn and stand in the verdict, those of most weight first. The others measure the
same things once more, in parts or otherwise."""
NEUTRAL = {
    "stereoset/overall/ss": 50.0,
    "crows_pairs/overall/stereotype": 50.0,
    "bbq/overall/s_amb": 0.0,
    "bbq/overall/s_dis": 0.0,
}
"""Figures of which it is known what a model without a lean has."""
NAMED, NAMED_ALONE = 4, 2
"""Figures that the verdict names where more are alike: of models that are compared, of one alone, where each takes
half a line."""


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a profile shows. `profiles`: by model, the first of which is what the others are compared with;
    `changes`: from it, by model; `agreement` of every two models as judges, by "ONE | OTHER"; `wins` of a model's
    answers over the first model's."""

    measures: Sequence[Measure]
    profiles: Mapping[str, Profile]
    changes: Mapping[str, Mapping[str, Change]]
    agreement: Mapping[str, Figure]
    wins: Mapping[str, Wins]

    @property
    def named(self) -> dict[str, str]:
        """Short names of the models: the last parts of a path, as many as tell it from the others, at least
        two."""
        models = list(self.profiles)
        parts = [name.rstrip("/").split("/") for name in models]
        for count in range(2, max(map(len, parts)) + 1):
            short = ["/".join(part[-count:]) for part in parts]
            if len(set(short)) == len(models):
                return dict(zip(models, short, strict=True))
        return {name: name for name in models}


# --- what figures are called, and how they are shown ----------------------------------------------------------


def label(key: str) -> str:
    """ "stereoset/gender/ss" as a row's name: without its group, in words."""
    return key.partition("/")[2].replace("/", ": ").replace("_", " ")


def term(key: str) -> str:
    """What the glossary calls a figure."""
    name = key.rpartition("/")[2]
    called = {"self_bleu": "self-BLEU", "corpus_compression_ratio": "compression"}.get(name)
    if called or key.startswith("text/"):
        return called or name
    return re.sub(r"_(amb|dis|all_prompts)$", "", name).replace("_", " ")


def shown(value: float | None, ci95: tuple[float, float] | None, sign: str = "") -> str:
    """Value and interval, "12.3 [11.0, 13.5]"; with the sign "+" also that of what is above 0."""
    if value is None:
        return "–"
    numbers = [value, *(ci95 or ())]
    first, *interval = (f"{number:{sign}.{decimals(numbers)}f}" for number in numbers)
    return f"{first} [{', '.join(interval)}]" if interval else first


def decimals(numbers: Sequence[float]) -> int:
    """As many as the largest of the numbers asks for."""
    scale = max(map(abs, numbers), default=0.0)
    return 1 if scale >= 20 else 2 if scale >= 2 else 3 if scale else 0


# --- the verdict ----------------------------------------------------------------------------------------------


def verdict(found: Findings) -> str | None:
    """How the other models differ from the first in the figures of `LEADING`, or in all where there is none of
    these; of one model alone how its figures compare with what guessing, or a model without a lean, has."""
    first, *others = found.profiles
    figures = found.profiles[first].figures
    if not figures:
        return None
    leading = sorted(filter(leads, figures), key=_rank) or list(figures)
    if not others:
        return _alone(found, leading[0])
    parts = [_compared(found, other, leading) for other in others if found.changes[other]]
    return " ".join(parts) or None


def leads(key: str) -> bool:
    """Whether a figure is one of `LEADING`."""
    return _rank(key) < len(LEADING)


def _rank(key: str) -> int:
    return next((place for place, form in enumerate(LEADING) if re.fullmatch(form, key)), len(LEADING))


def _alone(found: Findings, lead: str) -> str:
    ((model, profile),) = found.profiles.items()
    own, name = profile.figures, found.named[model]
    told = (
        f"Measured: {label(lead)} of {name} is {shown(own[lead].value, own[lead].ci95)}, 95% interval in brackets"
    )
    beside, level = [], []
    for key, (value, whose) in known(found).items():
        entry = own.get(key)
        if entry is None or entry.value is None or entry.ci95 is None:
            continue
        low, high = entry.ci95
        doubted = doubt(entry.ci95, entry.n if entry.terms is None else entry.terms)
        here = "it" if key == lead else f"{label(key)}, {shown(entry.value, entry.ci95)},"
        place = decimals([value, entry.value])
        if doubted or low <= value <= high:
            level.append(
                f"that {here} differs from {value:.{place}f}, {whose}" + (f" ({doubted})" if doubted else "")
            )
        else:
            beside.append(f"{here} is {'above' if entry.value > value else 'below'} {value:.{place}f}, {whose}")
    if not beside + level:
        return f"{told}; nothing is known that it could be compared with: a second --model would be."
    parts = [f"{which}: {_first(named)}" for which, named in (("shown", beside), ("not shown", level)) if named]
    return f"{told}; {'; '.join(parts)}."


def _first(named: Sequence[str]) -> str:
    """The first few findings, and how many there are more."""
    more = [f"and {len(named) - NAMED_ALONE} more, in the tables"] if len(named) > NAMED_ALONE else []
    return "; ".join([*named[:NAMED_ALONE], *more])


def known(found: Findings) -> dict[str, tuple[float, str]]:
    """By figure a value that is known beforehand, and whose it is: of guessing, or of a model without a lean."""
    guessed = {
        f"{own.name}/accuracy": sum(1 / len(question.options) for question in own.questions) / len(own)
        for own in found.measures
        if isinstance(own, MultipleChoice) and len(own)
    }
    values = {key: (value, "which guessing has") for key, value in guessed.items()}
    return values | {key: (value, "which a model without a lean has") for key, value in NEUTRAL.items()}


def _compared(found: Findings, other: str, leading: Sequence[str]) -> str:
    """One model against the first: in which figures it is better, worse, or higher and lower where neither is
    good, and in which nothing is shown."""
    first, steps, named = next(iter(found.profiles)), found.changes[other], found.named
    told: dict[str, list[str]] = {}
    for key in leading:
        step = steps.get(key)
        if step is None or step.absolute is None or step.ci95 is None:
            continue
        low, high = step.ci95
        by, aim = shown(step.absolute, step.ci95, "+"), better(term(key))
        doubted = doubt(step.ci95, step.n)
        if doubted or low <= 0 <= high:
            told.setdefault("level", []).append(f"{_said(key)} ({by}" + (f": {doubted})" if doubted else ")"))
            continue
        here, there = (shown(found.profiles[model].figures[key].value, None) for model in (other, first))
        way = "higher" if step.absolute > 0 else "lower"
        told.setdefault(way if aim is None else "better" if way == aim else "worse", []).append(
            f"{_said(key)} ({here} against {there}, {by})"
        )
    whom = f"{named[other]} against {named[first]}"
    if not told:
        return f"Not shown: any difference of {whom}, for want of intervals."
    ways = [f"{way} in {_some(told[way])}" for way in ("better", "worse", "higher", "lower") if way in told]
    level = told.get("level", [])
    parts = [f"shown: {'; '.join(ways)}"] if ways else []
    parts += [f"not shown: a difference in {_some(level)}"] if level else []
    return f"Of {whom}, with 95% intervals over items, {'; '.join(parts)}."


def _some(figures: Sequence[str]) -> str:
    more = f" and {len(figures) - NAMED} more" if len(figures) > NAMED else ""
    return ", ".join(figures[:NAMED]) + more


def _said(key: str) -> str:
    """A figure in a sentence: with its set, where the name alone does not tell it."""
    group = key.partition("/")[0]
    return label(key) if group in ("text", "choice") else f"{group.replace('_', ' ')} {label(key)}"
