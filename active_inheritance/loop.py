"""A repeat of a run: a pool, the selection from it, students; in further rounds the students answer themselves.

    outcome = run_repeat(run, setting, repeat=0)

    round 0     the sources answer, or a file holds their answers; an arm for each way to choose
    round 1, …  the student of an arm answers the same prompts k times, and a new student learns from a choice of
                that: the random student from random answers of its own, the selected one from selected answers of
                its own, so that both have had as many rounds, answers and updates

Every student is trained from the base: what rounds change, they change through the data.
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from active_inheritance.config import Config, K
from active_inheritance.prompts import fitting
from active_inheritance.scoring import Selection, select_stage
from common.results.rundir import RunDir
from common.tasks.prompts import Prompt

if TYPE_CHECKING:
    from common.backends.open import Opener
    from common.evals.measure import Measure
    from common.lm import LanguageModel

LINEAGES = ("random", "selected")
"""Arms that have further rounds."""
NEW_SEED = 1_000_003
"""Between the seeds of two rounds: more than there are repeats."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What does not change in a run. `prompts`: those that sources answer, none of a pool file. `held_out`: those
    known before the pool. `student`: None where the selection is all that is wanted."""

    config: Config
    sources: "Mapping[str, Opener]"
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    student: "LanguageModel | None"
    profile: "Sequence[Measure] | None" = None
    """What students are profiled on, before and after."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A repeat. `selection`: of its first round. `rounds`: of every round what `run_students` gives, "selections"
    by arm, how many answers were "left_out" as too long, what sources cost ("sampling"); none without a student.
    `base`: what the student as it came answered, as `last` gives it."""

    selection: Selection
    held_out: Sequence[Prompt] = ()
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rounds: Sequence[dict[str, Any]] = ()

    def last(self, arm: str) -> dict[str, Any]:
        """The last round that the arm has, with what it learned and answered there as "learned", "answers",
        "drift", "profile", "updates" and "round"; the base has learned nothing."""
        if arm == "base":
            return self.base
        number, found = next((n, f) for n, f in reversed([*enumerate(self.rounds)]) if arm in f["answers"])
        return {key: found[key][arm] for key in (*self.base,) if key != "round"} | {"round": number}


def run_repeat(run: RunDir, setting: Setting, repeat: int) -> Outcome:
    """All rounds of a repeat. Trained weights are deleted once they have answered, but for the selected student's
    of the first repeat's last round."""
    config, student = setting.config, setting.student
    folder, seed = f"repeat_{repeat}", config.seed + repeat
    sampled = None
    if config.source:
        from active_inheritance.sampling import sample_pool

        sampled = sample_pool(run, config, setting.sources, setting.prompts, folder, seed)
    selection = select_stage(run, config, folder if repeat else "", seed, sampled)
    if student is None:
        return Outcome(selection)

    # A selection alone needs no jax.
    from active_inheritance.student import choose_held_out, learned_rows, measure, run_students
    from active_inheritance.student_profile import profiled
    from common.stages import Lazy

    held_out = choose_held_out(config, student, selection, setting.held_out)
    as_it_came = Lazy(lambda: student)
    base = {
        "learned": [],
        "answers": measure(run, config, as_it_came, held_out, f"{folder}/base", seed),
        "drift": [],
        "profile": profiled(run, student, as_it_came, setting.profile, "repeat_0/base"),
        "updates": 0,
        "round": None,
    }
    selections = {arm: selection for arm in config.arms if arm != "base"}
    rounds: list[dict[str, Any]] = []
    for number in range(config.rounds):
        place, costs = folder_of(repeat, number), {}
        if number:
            prompts = _learnable(rounds[0]["learned"]["selected"], config, student)
            own = {arm: _own_answers(run, config, prompts, repeat, number, arm) for arm in LINEAGES}
            selections = {arm: selection for arm, (selection, _) in own.items()}
            costs = {arm: cost for arm, (_, cost) in own.items()}
        learned, left_out = learned_rows(config, student, selections, held_out)
        found = run_students(run, config, student, learned, held_out, place, seed, setting.profile)
        rounds.append(found | {"selections": selections, "left_out": left_out, "sampling": costs})
        last = number == config.rounds - 1
        for arm in learned:
            if (last and (arm, repeat) != ("selected", 0)) or (not last and arm not in LINEAGES):
                shutil.rmtree(run.path / place / arm / "student", ignore_errors=True)
    return Outcome(selection, held_out, base, rounds)


def folder_of(repeat: int, number: int) -> str:
    return f"repeat_{repeat}/round_{number}" if number else f"repeat_{repeat}"


def _learnable(rows: Sequence[Mapping[str, Any]], config: Config, student: "LanguageModel") -> list[Prompt]:
    """The prompts of the first round's data that leave the student room to answer."""
    prompts: dict[str, Prompt] = {}
    for row in rows:  # several rows of a prompt where several of its answers are taken
        prompts.setdefault(row["prompt"], Prompt(row["id"], row["prompt"]))
    return fitting(list(prompts.values()), student, config.answer_tokens)


def _own_answers(
    run: RunDir, config: Config, prompts: Sequence[Prompt], repeat: int, number: int, arm: str
) -> tuple[Selection, dict[str, Any]]:
    """A pool of the arm's own student's answers, and the choice from it. The student is deleted after it."""
    from active_inheritance.sampling import accounts, from_folder, sample_pool

    before = run.path / folder_of(repeat, number - 1) / arm / "student"
    own, name = f"{folder_of(repeat, number)}/{arm}", f"{arm} student {number - 1}"
    later = dataclasses.replace(
        config,
        pool=None,
        source=(name,),
        sources=(),
        k=config.k or K,
        prompt_column=None,
        answers_column=None,
        budget=None,
    )
    seed = config.seed + repeat + NEW_SEED * number
    sampled = sample_pool(run, later, {name: from_folder(str(before), later)}, prompts, own, seed)
    shutil.rmtree(before, ignore_errors=True)
    return select_stage(run, later, own, seed, sampled), accounts(run, later.source, [own])[name]
