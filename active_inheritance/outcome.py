"""What a run gives, repeat by repeat: selections, and what students learned and answered."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from active_inheritance.scoring import Selection
from common.evals.figures import Figure
from common.tasks.prompts import Prompt

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Student:
    """An arm's student after a round; the base, which has learned nothing, has no round.

    `learned`: rows of data.jsonl; `answers`, `drift`: see `active_inheritance.student`; `profile`: figures by
    "GROUP/…/NAME".
    """

    learned: Sequence[Row]
    answers: Sequence[Row]
    drift: Sequence[Row]
    profile: Mapping[str, Figure]
    updates: int
    round: int | None


@dataclasses.dataclass(frozen=True)
class Round:
    """By arm its student and the selection it learned from; how many answers were left out of all arms as too
    long, and how many prompts as held out; after the first round also by arm what it cost that students answered
    ("sampling")."""

    students: Mapping[str, Student]
    selections: Mapping[str, Selection]
    left_out: int
    held_out: int
    sampling: Mapping[str, Row]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A repeat. `selection`: of its first round. Without a student there are no rounds and no base."""

    selection: Selection
    held_out: Sequence[Prompt] = ()
    base: Student | None = None
    rounds: Sequence[Round] = ()

    def last(self, arm: str) -> Student:
        """An arm's student after the last round that the arm has. Raises KeyError where it has none."""
        if arm == "base" and self.base is not None:
            return self.base
        for found in reversed(self.rounds):
            if arm in found.students:
                return found.students[arm]
        raise KeyError(arm)


def folder_of(repeat: int, number: int) -> str:
    """Where a round of a repeat lies in the run."""
    return f"repeat_{repeat}/round_{number}" if number else f"repeat_{repeat}"
