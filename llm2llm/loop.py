"""The loop of LLM2LLM and the arms it is compared with.

    for each repeat:
        base                 the student as it came
        fine-tune            student = train(base, seeds)
        llm2llm              data = seeds
                             for each round: student = train(base, data)      always from the base
                                             wrong = seeds that student answers wrongly
                                             data += teacher's new examples like each wrong one
        untargeted           as llm2llm, with as many teacher calls, on seeds drawn at random
        the other arms       see `llm2llm.arms`

Only seeds become prompts of the teacher. The round is chosen on the development split (without one: the last),
and every arm's student answers the test questions once. The switches of the method change single lines of this:
`llm2llm.switches` names them.
"""

from collections.abc import Sequence
from typing import Any

from common.evals.evaluate import accuracy
from common.results.rundir import RunDir
from common.tasks.base import Example, Hints
from llm2llm.arms import equal_budget_arms
from llm2llm.augment import Augmented, as_example, augment, figures
from llm2llm.select import MEMORISED, Row, best_round, choose, draw_seeds, flow, share_out, spread
from llm2llm.students import Arm, Setting, Student, as_rows
from llm2llm.switches import Asking


def run_repeat(run: RunDir, setting: Setting, repeat: int, base: Row | None = None) -> dict[str, Any]:
    """All arms of one repeat. Returns {"arms": {name: result}, "rounds": [...]}. `base`: that arm's result, where
    it is known from an earlier repeat."""
    switches, arms = setting.switches, setting.switches.comparison.arms
    # Another draw in each repeat, so that the spread over repeats covers the choice of seeds as well.
    drawn = draw_seeds(setting.train, switches.seeds, switches.seed + repeat)
    seeds = [Example(**row) for row in run.once(f"repeat_{repeat}/seeds.jsonl", lambda: as_rows(drawn))]
    setting = setting.asked(seeds, switches.seed + repeat)
    arm = lambda name: Arm(run, setting, seeds, repeat, name)
    results: dict[str, Any] = {}
    rounds: list[Row] = []
    targeted: list[Row] = []
    # Round 0 of every loop has learned the seeds alone: one training serves fine-tune, llm2llm and untargeted.
    first = arm("fine-tune").student(0, seeds)
    if "base" in arms:
        results["base"] = base or arm("base").test(arm("base").student(0, (), updates=0))
    if "fine-tune" in arms:
        results["fine-tune"] = arm("fine-tune").test(first)
    if "llm2llm" in arms:
        results["llm2llm"], targeted, student = loop(arm("llm2llm"), first)
        rounds += targeted
        results |= equal_budget_arms(arm, results["llm2llm"], student)
    if "untargeted" in arms:
        # `teacher_calls` counts all samples behind a refined reply, and a slot is one reply.
        budgets = [entry["teacher_calls"] // setting.samples for entry in targeted]
        results["untargeted"], untargeted, _ = loop(arm("untargeted"), first, budgets)
        rounds += untargeted
    return {"arms": {name: results[name] for name in arms}, "rounds": rounds}


def loop(arm: Arm, first: Student, budgets: Sequence[int] | None = None) -> tuple[Row, list[Row], Student]:
    """The rounds of `llm2llm`, or of `untargeted` with the requests to the teacher of each round in `budgets`.

    Returns the arm's result, one entry a round, and the student that counts.
    """
    setting, switches = arm.setting, arm.setting.switches
    plan, asking = switches.rounds, switches.asking
    teacher = arm.teacher()
    known = arm.known()
    data, seed_of, earlier = list(arm.seeds), {}, {}
    rounds: list[Row] = []
    students: list[Student] = []
    # Untargeted has as many rounds as llm2llm came to, which may have stopped early.
    limit = plan.trainings if budgets is None else len(budgets)
    before, exhausted = None, False
    for number in range(limit):
        # By default every round starts from the base again: trained on and on, a student over-fits the few seeds.
        start = students[-1] if plan.continued and students else None
        student = first if number == 0 else arm.student(number, data, start=start)
        students.append(student)
        entry: Row = {"repeat": arm.repeat, "arm": arm.name, "round": number}
        entry |= {"examples": len(data), "updates": student.updates}
        rounds.append(entry)
        if setting.dev:
            entry["dev"] = accuracy(arm.answers(student, "dev", setting.dev))
        # Exhausted in the round before: the student of what was still bought is trained and graded, then it ends.
        slots, hints, stop = [], {}, "budget spent" if exhausted else None
        if budgets is None:
            # Untargeted never looks at what the student gets wrong, so its seeds need no grading.
            graded = arm.answers(student, "seeds", arm.seeds)
            entry["seeds_correct"] = sum(row["correct"] for row in graded)
            entry |= flow(before, graded)
            before = graded
            stop = stop or _plateau(rounds, plan.patience)
            if stop is None and number + 1 < limit:
                chosen, answers, how = _choose(arm, student, data, seed_of, graded)
                entry |= how
                retrain = switches.targeting.when_none_wrong == "retrain"
                stop = None if chosen or retrain else "nothing to improve was found"
                slots = share_out(switches.quota, chosen, data, arm.seeds, seed_of)
                hints = _hints(asking, chosen, answers, earlier)
        elif stop is None and number + 1 < limit:
            # Another order each round, or the same seeds would get the odd requests every time.
            slots = spread(arm.seeds, budgets[number], f"untargeted {arm.seed} {number}")
        if number + 1 == limit or stop is not None:
            entry |= figures(Augmented()) | {"stopped": stop}
            break
        # The authors' program compares with the seeds asked about and this round's new examples alone.
        here = arm.known(slots) if switches.likeness.this_round else known
        # What untargeted may spend is counted in calls: a second attempt would be one call more than llm2llm made.
        attempts = asking.attempts if budgets is None else 1
        request = lambda seed, h=hints: setting.task.teacher_messages(seed, h.get(seed.id, Hints()))
        with arm.run.timed(f"teach {arm.name}"):
            folder = f"{arm.folder}/round_{number}"
            made = augment(arm.run, folder, teacher, slots, here, arm.seed, number, attempts, request)
        # Lineage: a new example may have been made from one that was itself new.
        for row in made.accepted:
            seed_of[row["id"]] = seed_of.get(row["parent"], row["parent"])
            earlier.setdefault(row["parent"], []).append(row["question"])
        # Data only grow: a student learns from the new examples of all rounds before it.
        data += [as_example(row) for row in made.accepted]
        entry |= figures(made) | {"stopped": None}
        exhausted = made.exhausted
        _forget(arm, students, best_round(rounds))
    best = students[best_round(rounds)]
    return arm.test(best, rounds) | {"round": best_round(rounds)}, rounds, best


def _choose(
    arm: Arm, student: Student, data: Sequence[Example], seed_of: dict[str, str], graded: list[Row]
) -> tuple[list[Example], dict[str, Row], Row]:
    """The examples for the teacher, the student's answers by the example's id, and how they were chosen."""
    targeting = arm.setting.switches.targeting
    rows = list(graded)
    how: dict[str, Any] = {}
    # A student that knows its seeds by heart shows no errors on them; one trained without them does.
    memorised = accuracy(graded) >= MEMORISED
    if targeting.detect == "out-of-fold" or (targeting.detect == "auto" and memorised):
        rows, updates = arm.out_of_fold(student, seed_of)
        how = {"fold_updates": updates, "right_out_of_fold": sum(row["correct"] for row in rows)}
        if targeting.detect == "auto":
            how["why"] = f"{sum(row['correct'] for row in graded)} of {len(graded)} seeds are known by heart"
    pool = list(arm.seeds)
    if targeting.newer:
        made = [example for example in data if example.id in seed_of]
        # Pool and rows grow in the same order: `choose` matches them by place.
        pool += made
        rows += arm.answers(student, "synthetic", made)
    # Functions, as each costs a pass over the pool and few rules need one.
    losses = lambda: arm.losses(student, pool)
    right_shares = lambda: arm.right_shares(student, pool)
    chosen, rule = choose(targeting, pool, rows, losses, right_shares)
    return chosen, {row["id"]: row for row in rows}, {"rule": rule} | how


def _hints(
    asking: Asking, chosen: Sequence[Example], answers: dict[str, Row], earlier: dict[str, list[str]]
) -> dict[str, Hints]:
    """What the teacher is shown with each example: the student's answer if it is wrong, and earlier questions."""
    hints = {}
    for example in chosen:
        row = answers[example.id]
        wrong = row["text"] if asking.show_wrong_answer and not row["correct"] else None
        # Zero needs a case of its own: the slice [-0:] would show everything.
        shown = tuple(earlier.get(example.id, ())[-asking.show_earlier :]) if asking.show_earlier else ()
        hints[example.id] = Hints(wrong, shown)
    return hints


def _forget(arm: Arm, students: list[Student], best: int) -> None:
    """Delete the weights of rounds that can no longer be chosen or continued; the first belong to `fine-tune`."""
    needed = {best, len(students) - 1} if arm.setting.switches.rounds.continued else {best}
    for number, student in enumerate(students[1:], start=1):
        if number not in needed:
            arm.forget(student)


def _plateau(rounds: list[Row], patience: int) -> str | None:
    """Why the loop ends after this round, if the development split says so."""
    if "dev" not in rounds[0]:
        return None
    scores = [entry["dev"] for entry in rounds]
    # Counted from the first of the best: to reach it again is no progress.
    waited = len(scores) - 1 - scores.index(max(scores))
    return "no better on the development split" if waited >= patience else None
