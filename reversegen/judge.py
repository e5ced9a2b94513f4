"""What a judge says of a query and the target's answer to it. Loads nothing heavy: a user's own judge
imports this.

from reversegen.judge import Verdict

def judge(query: str, answer: str) -> Verdict:
    if not query.endswith("?"):
        return Verdict("invalid", reason="no question")
    return Verdict("fail" if len(answer.split()) > 20 else "pass")
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

Outcome = Literal["fail", "pass", "invalid"]
OUTCOMES = ("fail", "pass", "invalid")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`outcome` is of the target: whether it failed, passed, or was asked something that does not count. `score`
    says how badly it failed: 1 for a failure and 0 for a pass if not given; what is worse must score higher.

    Raises ValueError for another outcome and a score that is not finite.
    """

    outcome: Outcome
    score: float | None = None
    reason: str = ""

    def __post_init__(self):
        if self.outcome not in OUTCOMES:
            raise ValueError(f"a verdict is one of {', '.join(OUTCOMES)}, not {self.outcome!r}")
        score = float(self.outcome == "fail" if self.score is None else self.score)
        if not math.isfinite(score):
            raise ValueError(f"the score of a verdict is a finite number, not {score}")
        object.__setattr__(self, "score", score)
        if not isinstance(self.reason, str):
            raise ValueError(f"the reason of a verdict is a text, not {self.reason!r}")


Judge = Callable[[str, str], Verdict]
