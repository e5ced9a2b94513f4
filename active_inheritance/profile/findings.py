"""What a profile found: figures of models and their changes, their names, and the verdict on them."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from common.evals.choice import MultipleChoice
from common.evals.figures import Change, Figure
from common.evals.measure import Measure, Profile
from common.evals.preference import Wins

LEADING = (
    "choice/",
    "toxicity/expected_maximum",
    "stereoset/overall/icat",
    "crows_pairs/",
    "bbq/",
    "text/mtld",
    "",
)
"""Beginnings of keys of figures: the first figure of the first that there is stands in the verdict."""
NEUTRAL = {
    "stereoset/overall/ss": 50.0,
    "crows_pairs/overall/stereotype": 50.0,
    "bbq/overall/s_amb": 0.0,
    "bbq/overall/s_dis": 0.0,
}
"""Figures of which it is known what a model without a lean has."""
NAMED = 3
"""Figures that the verdict names where more are alike."""


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
    """The first figure of `LEADING` that there is, of all models, and how the others differ from the first; of one
    model alone how its figures compare with what guessing, or a model without a lean, has."""
    first, *others = found.profiles
    figures = found.profiles[first].figures
    if not figures:
        return None
    lead = min(figures, key=lambda key: next(i for i, end in enumerate((*LEADING, "")) if key.startswith(end)))
    if not others:
        return _alone(found, lead)
    parts = [_compared(found, other, lead) for other in others if found.changes[other]]
    return " ".join(parts) or None


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
        here = "it" if key == lead else f"{label(key)}, {shown(entry.value, entry.ci95)},"
        place = decimals([value, entry.value])
        if low <= value <= high:
            level.append(f"that {here} differs from {value:.{place}f}, {whose}")
        else:
            beside.append(f"{here} is {'above' if entry.value > value else 'below'} {value:.{place}f}, {whose}")
    if not beside + level:
        return f"{told}; nothing is known that it could be compared with: a second --model would be."
    parts = [f"shown: {'; '.join(beside)}"] if beside else []
    parts += [f"not shown: {'; '.join(level)}"] if level else []
    return f"{told}; {'; '.join(parts)}."


def known(found: Findings) -> dict[str, tuple[float, str]]:
    """By figure a value that is known beforehand, and whose it is: of guessing, or of a model without a lean."""
    guessed = {
        f"{own.name}/accuracy": sum(1 / len(question.options) for question in own.questions) / len(own)
        for own in found.measures
        if isinstance(own, MultipleChoice) and len(own)
    }
    values = {key: (value, "which guessing has") for key, value in guessed.items()}
    return values | {key: (value, "which a model without a lean has") for key, value in NEUTRAL.items()}


def _compared(found: Findings, other: str, lead: str) -> str:
    """One model against the first."""
    first, steps, named = next(iter(found.profiles)), found.changes[other], found.named
    known = {
        key: (step.absolute, step.ci95) for key, step in steps.items() if step.absolute is not None and step.ci95
    }
    level = [key for key, (_, (low, high)) in known.items() if low <= 0 <= high]
    differ = [key for key in known if key not in level]
    by = lambda key: shown(*known[key], "+")
    parts = []
    if lead in differ:
        of = lambda model: f"{shown(found.profiles[model].figures[lead].value, None)} of {named[model]}"
        parts.append(f"{label(lead)} is {of(other)} and {of(first)}, a difference of {by(lead)}")
    if differ:
        parts.append(f"{named[other]} differs from {named[first]} in {len(differ)} of {len(known)} figures")
    if rest := [key for key in differ if key != lead]:
        # By how many lengths of its interval it is away from 0.
        away = lambda key: abs(known[key][0]) / max(known[key][1][1] - known[key][1][0], 1e-9)
        most = max(rest, key=away)
        parts[-1] += f", most clearly in {label(most)}, by {by(most)}"
    parts = [f"shown, with 95% intervals over items: {'; '.join(parts)}"] if parts else []
    if level:
        level.sort(key=lambda key: key != lead)
        more = f" and {len(level) - NAMED} more" if len(level) > NAMED else ""
        told = ", ".join(f"{label(key)} ({by(key)})" for key in level[:NAMED])
        parts.append(f"not shown: a difference in {told}{more}")
    if not parts:
        return f"Not shown: any difference of {named[other]} from {named[first]}, for want of intervals."
    told = "; ".join(parts)
    return f"{told[0].upper()}{told[1:]}."
