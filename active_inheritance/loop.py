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
from typing import TYPE_CHECKING

from active_inheritance.outcome import Outcome, Round, Row, Student, folder_of
from active_inheritance.pools import PoolFile
from active_inheritance.prompts import fitting
from active_inheritance.scoring import Selection, score_pool, select_from
from active_inheritance.switches import Switches
from common import progress
from common.backends.budget import Budget
from common.backends.open import Backend
from common.results.rundir import RunDir
from common.tasks.prompts import Prompt

if TYPE_CHECKING:
    from common.evals.figures import Figure
    from common.evals.measure import Measure
    from common.lm import LanguageModel

LINEAGES = ("random", "selected")
"""Arms that have further rounds."""
NEW_SEED = 1_000_003
"""Between the seeds of two rounds: more than there are repeats."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What does not change in a run. `pool`: a file of the user's, in place of which `sources` answer `prompts`, a
    hosted one for `share` in each repeat. `held_out`: prompts known before the pool that leave the student room
    to answer. `student`: the base of all
    students, None where the selection is all that is wanted. `measures`: those of students' profiles, before and
    after. `base_profile`: the one before, where an earlier repeat has made it."""

    switches: Switches
    pool: PoolFile | None
    sources: Mapping[str, Backend]
    share: Budget | None
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    student: "LanguageModel | None" = None
    measures: "Sequence[Measure]" = ()
    base_profile: "Mapping[str, Figure] | None" = None


def run_repeat(run: RunDir, setting: Setting, repeat: int) -> Outcome:
    """All rounds of a repeat. Trained weights are deleted once they have answered, but for the selected student's
    of the first repeat's last round."""
    switches, folder = setting.switches, folder_of(repeat, 0)
    seed = switches.rule.seed + repeat
    with progress.at(f"{folder}/pool"):
        selection = _first_selection(run, setting, folder, repeat, seed)
    if setting.student is None:
        return Outcome(selection)

    # A selection alone needs no jax.
    from active_inheritance.student import (
        Evaluation,
        answer_and_profile,
        choose_held_out,
        learned_rows,
        train_students,
    )

    student, learning, testing = setting.student, switches.learning, switches.testing
    # By the run's seed: repeats that share a pool are tested on the same prompts.
    held_out = setting.held_out or choose_held_out(selection, student, testing, switches.rule.seed)
    evaluation = Evaluation(held_out, testing, switches.scoring, setting.measures)
    base = answer_and_profile(run, student, evaluation, folder, seed, setting.base_profile)
    selections = {arm: selection for arm in switches.arms if arm != "base"}
    rounds: list[Round] = []
    for number in range(switches.rounds):
        place, costs = folder_of(repeat, number), {}
        if number:
            # Any arm would do: all of them learned from the same prompts.
            prompts = _learnable(rounds[0].students["selected"], student, testing.sampling.max_new_tokens)
            own = {arm: _own_answers(run, switches, student, prompts, repeat, number, arm) for arm in LINEAGES}
            selections = {arm: selection for arm, (selection, _) in own.items()}
            costs = {arm: cost for arm, (_, cost) in own.items()}
        learned, left_out, asked = learned_rows(student, selections, held_out, learning)
        students = train_students(run, student, learned, learning, evaluation, place, seed, number)
        rounds.append(Round(students, selections, left_out, asked, costs))
        last = number == switches.rounds - 1
        for arm in learned:
            # Those of a lineage answer first, in the next round, which deletes them then.
            if (last and (arm, repeat) != ("selected", 0)) or (not last and arm not in LINEAGES):
                shutil.rmtree(run.path / place / arm / "student", ignore_errors=True)
    return Outcome(selection, held_out, base, rounds)


def _first_selection(run: RunDir, setting: Setting, folder: str, repeat: int, seed: int) -> Selection:
    """Of a file, which is scored once for all repeats, or of what this repeat's sources answer. The first repeat's
    lies at the top of the run, where a run without a student looks for it."""
    switches, own = setting.switches, folder if repeat else ""
    if setting.pool is not None:
        scored = score_pool(run, setting.pool, switches.scoring)
    else:
        from active_inheritance.sampling import sample_pool

        sampled = sample_pool(
            run, switches.answering, setting.sources, setting.prompts, folder, seed, setting.share
        )
        scored = score_pool(run, sampled, switches.scoring, own)
    return select_from(run, scored, dataclasses.replace(switches.rule, seed=seed), own)


def _learnable(first: Student, student: "LanguageModel", answer_tokens: int) -> list[Prompt]:
    """The prompts of the first round's data that leave the student room to answer."""
    prompts: dict[str, Prompt] = {}
    for row in first.learned:  # several rows of a prompt where several of its answers are taken
        prompts.setdefault(row["prompt"], Prompt(row["id"], row["prompt"]))
    return fitting(list(prompts.values()), student, answer_tokens)


def _own_answers(
    run: RunDir,
    switches: Switches,
    base: "LanguageModel",
    prompts: Sequence[Prompt],
    repeat: int,
    number: int,
    arm: str,
) -> tuple[Selection, Row]:
    """A pool that the arm's own student answers, the choice from it, and what it cost. The student is deleted once
    it has answered."""
    from active_inheritance.sampling import accounts, from_folder, sample_pool

    before = run.path / folder_of(repeat, number - 1) / arm / "student"
    own, name = f"{folder_of(repeat, number)}/{arm}", f"{arm} student {number - 1}"
    seed = switches.rule.seed + repeat + NEW_SEED * number
    trained = str(before) if switches.learning.train.lora is None else f"{base.origin}+{before}"
    source = {name: from_folder(trained, switches.answering, base.base.mesh)}
    sampled = sample_pool(run, switches.answering, source, prompts, own, seed)
    shutil.rmtree(before, ignore_errors=True)
    scored = score_pool(run, sampled, switches.scoring, own)
    selection = select_from(run, scored, dataclasses.replace(switches.rule, seed=seed), own)
    return selection, accounts(run, [name], [own])[name]
