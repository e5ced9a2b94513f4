"""The switches of the method, grouped by the stage that reads them.

`Config.switches` makes them from flags; the loop hands each stage its own group and no more.
"""

import dataclasses
from typing import Literal

from common.backends.budget import Spent
from common.backends.chat import estimate
from common.config import SampleConfig, TrainConfig
from common.generate import Request
from common.tasks.base import Example, Task

Rule = Literal["wrong", "low-confidence", "high-loss", "mixed", "all"]
AnswerBy = Literal["score", "generate"]
LabelCheck = Literal["resolve", "program", "none"]


VOTE_TEMPERATURE = 0.7
"""Of the teacher where it solves a new example several times and the majority counts."""


@dataclasses.dataclass(frozen=True)
class Targeting:
    """Which examples the teacher is shown (`llm2llm.select.choose`).

    `share`: of examples that low-confidence and high-loss take. `folds`: students of out-of-fold detection.
    `newer`: whether new examples may be shown too, not seeds alone.
    """

    rule: Rule = "wrong"
    share: float = 0.3
    when_none_wrong: Literal["low-confidence", "stop", "retrain"] = "low-confidence"
    detect: Literal["in-sample", "out-of-fold", "auto"] = "in-sample"
    folds: int = 3
    newer: bool = False


@dataclasses.dataclass(frozen=True)
class Quota:
    """How many new examples a round asks for (`llm2llm.select.share_out`): `per_example` for each that was chosen,
    within the caps of the whole run for a seed and for a class. `balance`: no more of a class than evens out."""

    per_example: int
    per_seed: int | None = None
    per_class: int | None = None
    balance: bool = False


@dataclasses.dataclass(frozen=True)
class Asking:
    """How the teacher is asked, and how what it writes is checked (`llm2llm.augment`).

    `attempts`: requests for one new example before it is given up. `show_earlier`: new questions of the same seed
    that it is shown. `votes`: answers in the label check, of which more than half must agree. `check_tokens`: the
    longest of these, by task where None.
    """

    sampling: SampleConfig
    attempts: int = 2
    show_wrong_answer: bool = False
    show_earlier: int = 0
    label_check: LabelCheck = "resolve"
    votes: int = 1
    check_tokens: int | None = None

    def checking(self, task: Task) -> SampleConfig:
        """How the teacher's answers in the label check are sampled."""
        # At temperature 0 all votes would be the same answer.
        temperature = 0.0 if self.votes == 1 else VOTE_TEMPERATURE
        return SampleConfig(self.check_tokens or task.answer_tokens, temperature=temperature)

    def check_cost(self, task: Task, like: Example) -> Spent:
        """What the label check of an example as long as `like` may cost."""
        if self.label_check != "resolve":
            return Spent()
        one = estimate(Request("", tuple(task.solve_messages(like.question))), self.checking(task))
        return sum([one] * self.votes, Spent())


@dataclasses.dataclass(frozen=True)
class Likeness:
    """What counts as a near-duplicate (`llm2llm.known`): a ROUGE-L F1 above `rouge_l`, a cosine of hidden states
    above `semantic` (None: words alone). `this_round`: of this round's questions and their seeds only."""

    rouge_l: float
    semantic: float | None = None
    this_round: bool = False


@dataclasses.dataclass(frozen=True)
class Rounds:
    """`trainings` of the student at most, the first on the seeds alone; the loop ends after `patience` of them
    without a better dev accuracy. `continued`: each starts from the last student, not from the base."""

    trainings: int
    patience: int
    continued: bool = False


@dataclasses.dataclass(frozen=True)
class Learning:
    """How students learn and answer. `seed_weight`: of a seed in the loss, where a new example has 1. `answer_by`:
    whether the most likely of the task's choices is the answer, or what is written. `system` and `few_shot`: what
    stands in front of a question, a text and so many seeds with their answers."""

    train: TrainConfig
    answering: SampleConfig
    seed_weight: float = 1.0
    answer_by: AnswerBy = "generate"
    system: str = ""
    few_shot: int = 0


@dataclasses.dataclass(frozen=True)
class Seeds:
    """`count` seeds, drawn evenly over groups ("balanced") or at random."""

    count: int
    sampler: Literal["balanced", "random"] = "balanced"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Which arms are trained, what the matched ones spend as llm2llm does, and where the arm eda finds synonyms
    (a folder of WordNet's files; None: the student's embeddings)."""

    arms: tuple[str, ...]
    match: Literal["updates", "tokens"] = "updates"
    wordnet: str | None = None


@dataclasses.dataclass(frozen=True)
class Switches:
    """All groups, and the seed of the first repeat. `likelihood_guard`: standard deviations below the seeds at
    which a new question is nonsense (`common.text.nonsense`); 0: nothing is."""

    seeds: Seeds
    rounds: Rounds
    targeting: Targeting
    quota: Quota
    asking: Asking
    likeness: Likeness
    learning: Learning
    comparison: Comparison
    seed: int
    likelihood_guard: float = 0.0
