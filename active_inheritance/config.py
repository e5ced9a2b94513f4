"""Settings of an Active Inheritance run: the one source of its command line, its stored configuration, its checks.

    config = Config(pool="pool.jsonl", objective=("mtld:max",)).resolved()

Importing this loads no jax. Values of `None` are filled in by `resolved()`.
"""

import dataclasses
import math
import pathlib
from typing import TYPE_CHECKING, Any, Literal

from common.cli import flag
from common.errors import UserError

if TYPE_CHECKING:
    from active_inheritance.pools import Layout
    from active_inheritance.select import Rule


@dataclasses.dataclass(frozen=True)
class Config:
    """Defaults are this project's own; the authors' k is 10, their objectives are length, MTLD and toxicity."""

    pool: str | None = flag(None, "file with several answers to every prompt (.jsonl, .csv, .parquet)")
    prompt_column: str | None = flag(None, "column of the prompt; prompt, instruction, question or query")
    answers_column: str | None = flag(
        None,
        "column of the answers, or the part before _0, _1, …; outputs, responses, completion_0, completion, …",
    )
    sources: tuple[str, ...] = flag(
        (), "sources whose answers are used, the first of them first; all if not given"
    )
    k: int | None = flag(None, "answers of a prompt in total, evenly from its sources; all if not given")
    objective: tuple[str, ...] = flag(
        ("mtld:max",), "what to select by: SCORE:max, SCORE:min, SCORE:target=NUMBER; several are combined"
    )
    constraint: tuple[str, ...] = flag((), "what a selected answer must meet: SCORE>=NUMBER, SCORE<=NUMBER")
    min_words: int | None = flag(
        None, "floor on words; what the objectives' metrics need if not given (mtld: 50), 0: none"
    )
    combine: Literal["sum", "product", "lexicographic", "pareto"] = flag(
        "sum", "how several objectives become one"
    )
    weights: tuple[str, ...] = flag((), "weight of each objective in a sum, a product or the Chebyshev pick; 1")
    normalise: Literal["z", "rank", "minmax"] = flag("z", "scale of an objective in a sum, within the prompt")
    tolerance: float = flag(0.1, "lexicographic: share of the prompt's range within which answers are equal")
    pick: Literal["chebyshev", "knee"] = flag("chebyshev", "which answer of the Pareto front is taken")
    fallback: Literal["baseline", "violation", "drop"] = flag(
        "baseline",
        "where no answer meets the constraints: the random control's, the one that violates least, or no answer",
    )
    temperature: float = flag(
        0.0, "draw answers with odds exp(gain in standard deviations / temperature); 0: best"
    )
    top: int = flag(1, "answers of a prompt that are taken, in every arm")
    metrics: tuple[str, ...] | None = flag(
        None, "scores made besides those of objectives and constraints, to see side effects; none: none"
    )
    drop: tuple[str, ...] = flag(
        ("empty", "truncated", "repeating", "duplicate"), "answers that are not used; also refusal; none: keep all"
    )
    max_repeats: float = flag(0.5, "share of repeated runs of four words above which an answer is repeating")
    select_only: bool = flag(False, "stop with the selected data set")
    workers: int = flag(2, "processes that score and select; changes no result")
    redact: bool = flag(False, "show hashes instead of texts in the report")
    seed: int = flag(0, "random seed of everything")
    run_dir: str = flag("runs/active-inheritance", "folder of the run; the same command continues it")
    dry_run: bool = flag(False, "show the plan and stop")

    def resolved(self) -> "Config":
        """The same settings without gaps. Raises UserError for a value out of range or a missing file."""
        from active_inheritance.scores import USUAL, least_words
        from active_inheritance.select import Objective

        names = [Objective.parse(text).name for text in self.objective]
        none = ("none",)
        fill = {
            "metrics": USUAL if self.metrics is None else () if self.metrics == none else self.metrics,
            "min_words": least_words(names) if self.min_words is None else self.min_words,
            "drop": () if self.drop == none else self.drop,
        }
        config = dataclasses.replace(self, **fill)
        config._check()
        return config

    def _check(self) -> None:
        from active_inheritance.pools import GUARDS
        from active_inheritance.scores import check_scorer

        if self.pool is None:
            raise UserError("--pool FILE is missing: name the file with the answers to choose from")
        if not pathlib.Path(self.pool).is_file():
            raise UserError(f"no such file: {self.pool} (given as --pool)")
        for name in ("top", "workers", *(("k",) if self.k is not None else ())):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        for name in ("min_words", "temperature", "tolerance", "max_repeats", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be at least 0, not {getattr(self, name)}")
        if unknown := [name for name in self.drop if name not in GUARDS]:
            raise UserError(f"--drop {','.join(unknown)}: there are {', '.join(GUARDS)}, or none")
        if len(set(self.sources)) < len(self.sources):
            raise UserError(f"--sources {','.join(self.sources)}: name each once")
        if self.k is not None and self.top >= self.k:
            raise UserError(f"--top {self.top} of --k {self.k} answers selects nothing: use a smaller --top")
        self._check_rule()
        for name in self.scores():
            check_scorer(name)

    def _check_rule(self) -> None:
        rule = self.rule()
        names = [objective.name for objective in rule.objectives]
        if not names or len(set(names)) < len(names):
            raise UserError(f"--objective {','.join(self.objective)}: name at least one, and each score once")
        if rule.weights and (len(rule.weights) != len(names) or min(rule.weights) <= 0):
            raise UserError(
                f"--weights {','.join(self.weights)}: give {len(names)} numbers above 0, one an objective"
            )
        for name in dict.fromkeys(constraint.name for constraint in rule.constraints):
            floor = max(
                (c.limit for c in rule.constraints if c.name == name and c.sign == ">="), default=-math.inf
            )
            ceiling = min(
                (c.limit for c in rule.constraints if c.name == name and c.sign == "<="), default=math.inf
            )
            if floor > ceiling:
                hint = f"; lower --min-words {self.min_words}" if name == "words" and self.min_words else ""
                raise UserError(
                    f"no answer has {name}>={floor:g} and {name}<={ceiling:g}: mend --constraint{hint}"
                )
        if self.temperature and len(names) > 1 and self.combine != "sum":
            raise UserError(f"--temperature draws by a sum: use it with --combine sum, not {self.combine}")

    def rule(self) -> "Rule":
        """How to choose. Raises UserError for what cannot be read."""
        from active_inheritance.select import Constraint, Objective, Rule

        given = [Constraint.parse(text) for text in self.constraint]
        if self.min_words:
            given.append(Constraint("words", ">=", self.min_words))
        try:
            weights = tuple(float(weight) for weight in self.weights)
        except ValueError:
            raise UserError(f"--weights {','.join(self.weights)}: not numbers") from None
        return Rule(
            tuple(Objective.parse(text) for text in self.objective),
            tuple(dict.fromkeys(given)),
            combine=self.combine,
            weights=weights,
            normalise=self.normalise,
            tolerance=self.tolerance,
            pick=self.pick,
            fallback=self.fallback,
            temperature=self.temperature,
            top=self.top,
            seed=self.seed,
        )

    def scores(self) -> tuple[str, ...]:
        """All scores that are made: of objectives, constraints, the words that break ties, and the metrics."""
        rule = self.rule()
        needed = [o.name for o in rule.objectives] + [c.name for c in rule.constraints]
        return tuple(dict.fromkeys([*needed, "words", *(self.metrics or ())]))

    def layout(self) -> "Layout":
        from active_inheritance.pools import Layout

        columns = [name.removeprefix("column:") for name in self.scores() if name.startswith("column:")]
        return Layout(self.prompt_column, self.answers_column, tuple(columns))

    def stored(self) -> dict[str, Any]:
        """What the run directory records: everything that decides the results."""
        values = dataclasses.asdict(self)
        for name in ("run_dir", "dry_run", "workers", "select_only"):  # a selection may be followed by its student
            del values[name]
        return values
