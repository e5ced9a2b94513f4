"""Scores of answers: by a metric of `common.text.textstats`, a function of the user's, a scorer of toxicity, or a
column of the pool.

    scorers = Scorers.open(("words", "mtld", "column:likes", "python:score.py:politeness"))
    scorers.score("Name a bird.", answers)      # [{"words": 31.0, "mtld": 74.2, "column:likes": 4.0, …}, …]

A score that is missing, no number or infinite is None: it never wins. A function of the user's takes (prompt,
answer) and gives a number; it is called once for each different answer to a prompt.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from active_inheritance.pools import Answer
from active_inheritance.switches import COLUMN
from common import VERSION, hosts
from common.errors import UserError, meant, quoted
from common.text.textstats import METRICS, profile
from common.usercode import FaultError, ask, load_callable

if TYPE_CHECKING:
    from common.evals.scorers import Score as ToxicityScore

USUAL = (
    "words",
    "characters",
    "sentence_length",
    "gunning_fog",
    "lix",
    "ttr",
    "mattr",
    "mtld",
    "compression_ratio",
)
"""Scored without being asked for: what selection does beside its aim."""

TOXICITY = "toxicity"
"""The score that --toxicity-scorer makes, see `common.evals.scorers`."""

BREAKER = 5
"""Failed calls of a function in a row before the run stops."""

Score = dict[str, float | None]


def check_scorer(name: str, toxicity: str | None = None) -> None:
    """Raises UserError for a name that is no scorer's, or whose function cannot be loaded. `toxicity`: the
    scorer of toxicity."""
    if name == TOXICITY:
        if toxicity is None:
            raise UserError(
                "toxicity is scored by whom you name: --toxicity-scorer hf:FOLDER, python:FILE.py:FUNCTION, … "
                "(see active_inheritance/profile/README.md)"
            )
        from common.evals.scorers import check_scorer as check_toxicity

        return check_toxicity(toxicity)
    if name.startswith("python:"):
        load_callable(name)
    elif not name.removeprefix(COLUMN):
        raise UserError(f"{name!r} names no column: give column:NAME")
    elif not name.startswith(COLUMN) and name not in METRICS:
        raise UserError(
            f"no metric {quoted(name)}{meant(name, METRICS)}; there are {', '.join(METRICS)}, column:NAME "
            "for a score that the pool holds, and python:FILE.py:FUNCTION for your own"
        )


def least_words(names: Sequence[str]) -> int:
    """The words below which one of the scores `names` says little: the floor of a selection by them."""
    return max((METRICS[name].least_words for name in names if name in METRICS), default=0)


def versions(names: Sequence[str], hashes: Mapping[str, str], toxicity: str | None = None) -> dict[str, str]:
    """What every score was made by. `hashes`: those of the files the run reads; a function is known by its
    file's. `toxicity`: the scorer of toxicity."""

    def version(name: str) -> str:
        if name == TOXICITY and toxicity is not None:
            from common.evals.scorers import open_scorer

            scorer = open_scorer(toxicity)[1]
            return f"{scorer.name}, {scorer.version}"
        if name.startswith("python:"):
            return f"sha256 {hashes[name.removeprefix('python:').rpartition(':')[0]]}"
        return "as in the pool" if name.startswith(COLUMN) else f"common.text.textstats, clean, seedloop {VERSION}"

    return {name: version(name) for name in names}


@dataclasses.dataclass(frozen=True)
class Scorers:
    """The scorers of a run, ready to be called."""

    names: tuple[str, ...]
    functions: Mapping[str, Callable[..., Any]]
    """Of the user's: (prompt, answer) to a number."""
    toxicity: "ToxicityScore | None" = None
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    """Failed calls of each function in a row."""

    @classmethod
    def open(cls, names: Sequence[str], toxicity: str | None = None, texts: str = "the answers") -> "Scorers":
        """Load the functions among `names`, and the scorer of toxicity. Raises UserError for what cannot be
        loaded. `texts`: where the texts lie, for scorers that ask the user to score them."""
        functions = {name: load_callable(name) for name in names if name.startswith("python:")}
        toxic = None
        if TOXICITY in names and toxicity is not None:
            from common.evals.scorers import open_scorer

            toxic, _ = open_scorer(toxicity, texts)
        return cls(tuple(names), functions, toxic)

    def score(self, prompt: str, answers: Sequence[Answer]) -> list[Score]:
        """All scores of every answer. Raises UserError when a function fails several times in a row."""
        measured = [name for name in self.names if name in METRICS]
        # Every different text once: a function of the user's may be slow, or cost money.
        texts = list(dict.fromkeys(answer.text for answer in answers))
        written, toxic = [text for text in texts if text.strip()], {}
        if self.toxicity is not None and written:
            toxic = dict(zip(written, self.toxicity(written), strict=True))
        by_text: dict[str, Score] = {
            text: profile(text, measured)
            | {name: hosts.share(lambda f=name, t=text: self._called(f, prompt, t)) for name in self.functions}
            | {TOXICITY: toxic.get(text)}
            for text in texts
        }
        rows = []
        for answer in answers:
            found = by_text[answer.text] | {f"{COLUMN}{name}": value for name, value in answer.columns.items()}
            rows.append({name: _finite(found.get(name)) for name in self.names})
        return rows

    def _called(self, name: str, prompt: str, text: str) -> float | None:
        try:
            value = ask(lambda: float(self.functions[name](prompt, text)))
        except FaultError as error:
            self.failures[name] = self.failures.get(name, 0) + 1
            # One failure may be the text's; several in a row are the function's.
            if self.failures[name] < BREAKER:
                return None
            raise UserError(
                f"{name} failed {BREAKER} times in a row, the last with: {error}; fix it and take a new "
                "--run-dir; what was sampled is in repeat_0/samples/pool.jsonl of this one, for --pool"
            ) from None  # whose message is not masked
        self.failures[name] = 0
        return value


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
