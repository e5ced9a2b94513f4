"""The best of k replies: the rule of Active Inheritance between any generator and its caller.

pick = PickBest(k=4, objective=("mtld:max",))
generator = pick(generator)                         # asked as before, answers with one reply in four
llm2llm.run(config, refine=pick)            # the same for LLM2LLM's teacher
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from active_inheritance.metrics import Scorers, check_scorer
from active_inheritance.pools import Answer, guard
from active_inheritance.select import Candidate, Rule, choose, mark
from active_inheritance.switches import COLUMN, Scoring
from common.backends.budget import unpaid
from common.backends.open import file_hashes
from common.config import SampleConfig
from common.errors import UserError
from common.generate import Generator, Record, Request


@dataclasses.dataclass(frozen=True)
class PickBest:
    """How to pick: of `k` replies the one that is best by `objective` and meets `constraint`, both written as for
    `select.Objective.parse` and `select.Constraint.parse`; several objectives are summed in standard deviations.

    No floor on words is added: replies may be far shorter than what MTLD is meant for. Raises UserError for a k
    below 1, for what cannot be read, and for scores that a fresh reply has not.
    """

    k: int
    objective: tuple[str, ...]
    constraint: tuple[str, ...] = ()

    def __post_init__(self):
        if isinstance(self.objective, str) or isinstance(self.constraint, str):
            raise UserError("PickBest: give objective and constraint as tuples, such as objective=('mtld:max',)")
        if not isinstance(self.k, int) or self.k < 1 or not self.objective:
            raise UserError(f"the best of {self.k} by {self.objective}: give a k of at least 1 and an objective")
        for name in self.scores:
            if name.startswith(COLUMN):
                raise UserError(f"{name!r} is a score that a pool brings along: a fresh reply has none")
            check_scorer(name)

    def __call__(self, generator: Generator) -> "BestOf":
        return BestOf(generator, self)

    def __str__(self) -> str:
        return f"best of {self.k} by {', '.join([*self.objective, *self.constraint])}"

    @functools.cached_property
    def rule(self) -> Rule:
        return Rule.parse(self.objective, self.constraint)

    @functools.cached_property
    def scores(self) -> tuple[str, ...]:
        """All that is scored; the words break ties."""
        return tuple(dict.fromkeys([*self.rule.names, "words"]))

    @property
    def samples(self) -> int:
        """Replies asked for each one that is handed on."""
        return self.k

    @property
    def stored(self) -> dict[str, Any]:
        """Everything that decides the pick, as JSON values; the files of functions as hashes."""
        return dataclasses.asdict(self) | {"files": file_hashes((), self.scores)}


class BestOf:
    """Implements `common.generate.Generator` over another generator, which is asked for k times as many samples.

    A record is the picked one, with the tokens of all k and, as `attempts`, how many of them were asked for: a
    budget may not cover all. Failed, empty, cut, repeating and duplicate samples are not picked; where there is
    nothing else the first with a text is handed on, so that the caller can say what is wrong with it. The same
    requests, sampling and seed give the same records, wherever the other generator cuts its batches. A hosted
    generator stores each of the k replies as it comes, so that a killed run buys none of them again.
    """

    def __init__(self, generator: Generator, pick: PickBest):
        self.name = f"{generator.name}, {pick}"
        self._generator, self._pick = generator, pick
        self._scorers = Scorers.open(pick.scores)

    def seen(self, records: Sequence[Record]) -> None:
        self._generator.seen(records)

    def generate(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        """See `common.generate.Generator`. Raises UserError at temperature 0, where all k samples are alike, and
        where a function of the user's fails several times in a row."""
        if self._pick.k > 1 and sampling.temperature == 0:
            raise UserError(f"the {self._pick}: at temperature 0 all replies are alike; set one above 0")
        return self._batches(requests, sampling, seed)

    def _batches(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        k = self._pick.k
        slots = ((request, sample) for request in requests for sample in range(request.n))
        wanted = [dataclasses.replace(request, n=k * request.n) for request in requests]
        held: list[Record] = []
        for batch in self._generator.generate(wanted, sampling, seed):
            held += batch
            whole = len(held) // k * k
            if whole:
                yield [self._picked(*next(slots), held[i : i + k], seed) for i in range(0, whole, k)]
                del held[:whole]

    def _picked(self, request: Request, sample: int, records: Sequence[Record], seed: int) -> Record:
        answers = [Answer("", i, r.text or "", r.status == "length") for i, r in enumerate(records)]
        guards = Scoring(self._pick.scores)
        flags = guard(answers, guards.max_repeats)
        usable = [a for a, found in zip(answers, flags, strict=True) if not guards.drops(found)]
        scores = self._scorers.score(request.messages[-1]["content"], usable)
        candidates = [
            Candidate(a.source, a.index, mark(a.text), found) for a, found in zip(usable, scores, strict=True)
        ]
        choice = choose(dataclasses.replace(self._pick.rule, seed=seed), f"{request.id}/{sample}", candidates)
        if choice is not None:
            best = records[usable[choice.selected[0]].index]
        else:
            best = min(records, key=lambda r: (r.text is None, unpaid(r.error)))
        return dataclasses.replace(
            best,
            sample=sample,
            attempts=sum(not unpaid(r.error) for r in records),
            prompt_tokens=sum(r.prompt_tokens for r in records),
            completion_tokens=sum(r.completion_tokens for r in records),
        )
