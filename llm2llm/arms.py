"""The arms that spend what llm2llm spent on something else. All start from the base and train for as many updates
(or tokens, see `--match`) as the llm2llm student.

    fine-tune-matched   the seeds alone, again and again
    eda                 seeds and as many edited copies of them (`llm2llm.eda`) as llm2llm had new examples
    auggpt              seeds and the teacher's rephrasings of them, for as many teacher calls
    more-data           seeds and as many real examples as llm2llm had new ones, or all that the training data have
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from common.tasks.base import Example
from common.text.same import apart
from llm2llm.augment import as_example, augment, figures
from llm2llm.eda import eda_examples, neighbour_synonyms, wordnet_synonyms
from llm2llm.known import Known
from llm2llm.select import Row, draw_seeds, spread
from llm2llm.students import Arm, Student, as_rows

REPHRASED = 0.99
"""ROUGE-L above which a rephrasing counts as the same text. The limit is high since it should be near its seed."""


def equal_budget_arms(arm: Callable[[str], Arm], target: Row, student: Student) -> dict[str, Any]:
    """The results of those arms that the settings ask for, by name; `target` and `student` are llm2llm's."""
    results = {}
    # Functions, so that an arm which was not asked for costs nothing. Examples are counted in the tested student's
    # data: llm2llm may have had more in a later round.
    makers = {
        "fine-tune-matched": lambda a: ([], None),
        "eda": lambda a: (_eda(a, len(student.data) - len(a.seeds)), None),
        "auggpt": lambda a: _auggpt(a, target["teacher_calls"]),
        "more-data": lambda a: (_more_data(a, len(student.data) - len(a.seeds)), None),
    }
    for name, make in makers.items():
        own = arm(name)
        if name not in own.setting.switches.comparison.arms:
            continue
        extra, teacher = make(own)
        data = [*own.seeds, *extra]
        # From the base on: a student that was continued has the updates of earlier rounds behind it.
        updates = student.all_updates
        if own.setting.switches.comparison.match == "tokens":
            updates = own.updates_for_tokens(data, own.tokens(student))
        results[name] = own.test(own.student(0, data, updates), teacher=teacher)
    return results


def _eda(arm: Arm, count: int) -> list[Example]:
    wordnet = arm.setting.switches.comparison.wordnet

    def make() -> list[Row]:
        if wordnet is not None:
            synonyms = wordnet_synonyms(wordnet)
        else:
            synonyms = neighbour_synonyms(arm.setting.base, [example.question for example in arm.seeds])
        made = eda_examples(arm.seeds, count, arm.seed, synonyms)
        # An edit may turn a seed into a question that is held out.
        made = apart(made, [*arm.setting.dev, *arm.setting.test])
        return as_rows([example for example in made if arm.fits(example)])

    return [Example(**row) for row in arm.run.once(f"{arm.folder}/new.jsonl", make)]


def _more_data(arm: Arm, count: int) -> list[Example]:
    rest = apart(arm.setting.train, arm.seeds)

    def make() -> list[Row]:
        # Some to spare are drawn, since a few are too long or too near a test question; checking every example of
        # a large set would take minutes.
        some = dataclasses.replace(arm.setting.switches.seeds, count=min(2 * count, len(rest)))
        test = Known(arm.setting.switches.likeness.rouge_l, [(e.id, e.question) for e in arm.setting.test])
        drawn = draw_seeds(rest, some, arm.seed)
        good = (e for e in drawn if arm.fits(e) and test.repeats([e.question]) == [None])
        return as_rows(list(itertools.islice(good, count)))

    return [Example(**row) for row in arm.run.once(f"{arm.folder}/new.jsonl", make)]


def _auggpt(arm: Arm, calls: int) -> tuple[list[Example], Row]:
    slots = spread(arm.seeds, calls // arm.setting.samples, f"auggpt {arm.seed}")
    # A rephrasing should mean what its seed means, so that only near copies of the words are refused.
    folder, known = f"{arm.folder}/round_0", arm.known(limit=REPHRASED, semantic=False)
    with arm.run.timed(f"teach {arm.name}"):
        request = arm.setting.task.rephrase_messages
        # One attempt for each slot, as the number of calls is the budget.
        made = augment(arm.run, folder, arm.teacher(), slots, known, arm.seed, 0, 1, request)
    return [as_example(row) for row in made.accepted], figures(made)
