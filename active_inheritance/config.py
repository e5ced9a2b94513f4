"""Settings of an Active Inheritance run: the one source of its command line, its stored configuration, its checks.

    config = Config(pool="pool.jsonl", objective=("mtld:max",)).resolved()
    config = Config(source=("openai:gpt-4o-mini", "my/folder"), prompts_file="prompts.jsonl").resolved()

Importing this loads no jax. Values of `None` are filled in by `resolved()`.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
from typing import ClassVar, Literal

from active_inheritance.profile.config import ARITHMETIC
from active_inheritance.profile.config import Config as ProfileConfig
from active_inheritance.select import Constraint, Objective, Rule
from active_inheritance.switches import COLUMN, Answering, Learning, Scoring, Switches, Testing, measurable
from common.backends.budget import Budget
from common.backends.open import check_name, is_model, model_name
from common.cli import (
    COMPARED,
    DATA,
    DEVICES,
    LOOP,
    MODEL,
    OUTPUT,
    TRAINING,
    check_number,
    check_ranges,
    flag,
    flag_name,
)
from common.config import SampleConfig
from common.defaults import GUARD, Default, adapters, kind_of, reasons, training, values, writing
from common.errors import UserError, meant
from common.settings import HubSettings, RunSettings, TrainSettings, check_files, filled, given, hosted_share
from common.tasks.files import stream_rows

ARMS = ("base", "first", "random", "matched", "selected")
"""base: the student as it came. The others: the student after the answers of that name, see `select.ARMS`."""
DEMO_FLOOR = 25
"""Words that the embedded models' stories must have in the demonstration: most have 25 to 75, and 50, the floor of
MTLD elsewhere, would leave too few to choose from."""
DEMO_PROMPTS = 200
"""Of the embedded set, where the user does not say."""
COUNTED = 1000
"""Rows of a file that are counted: a pass over as many prompts has enough updates with any batch."""
K = 10
"""Answers to a prompt in total, where they are sampled."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunSettings, TrainSettings, HubSettings):
    """Defaults are this project's own; the authors' k is 10, their objectives are length, MTLD and toxicity.

    Without --pool, --source and --prompts-file they are those of the embedded demonstration."""

    UNSTORED: ClassVar[tuple[str, ...]] = (*RunSettings.UNSTORED, "workers", "select_only")
    """A selection may be followed by its student."""

    source: tuple[str, ...] = flag(
        (),
        "who answers the prompts: embedded:student, embedded:teacher, smollm2, a Hugging Face id, a folder, "
        "openai:MODEL, python:FILE.py:FUNCTION; several share k",
        MODEL,
    )
    source_url: str | None = flag(None, "base URL of sources openai:MODEL; else OPENAI_BASE_URL or the client's")
    budget: str | None = flag(None, "limits for hosted sources, such as calls=500,tokens=200000,usd=2.5")
    source_price: str | None = flag(None, "USD for a million prompt and completion tokens, such as 0.15,0.6")
    prompts_file: str | None = flag(
        None, "file of the prompts that sources answer; an embedded set if not given", DATA
    )
    prompts: int | None = flag(None, "most prompts of it, drawn by the seed; embedded: 200, else all")
    sampling: Literal["sample", "diverse-beam"] = flag(
        "sample", "how models in this process answer: by chance, or by diverse beam search with k groups", MODEL
    )
    diversity_penalty: float = flag(1.0, "diverse-beam: price of a token that an earlier group took")
    source_temperature: float | None = flag(None, "of sources; 1, and 0.8 where a small model is among them")
    source_top_p: float = flag(0.9, "of sources")
    source_tokens: int | None = flag(
        None, "longest reply of a source in tokens, its reasoning included; as --answer-tokens if not given"
    )
    answer_tokens: int | None = flag(
        None, "longest answer in tokens, of sources and student; embedded models: 160, else 512"
    )
    pool: str | None = flag(
        None, "file with several answers to every prompt (.jsonl, .csv, .parquet), in place of sources", DATA
    )
    prompt_column: str | None = flag(None, "column of the prompt; prompt, instruction, question or query")
    answers_column: str | None = flag(
        None,
        "column of the answers, or the part before _0, _1, …; outputs, responses, completion_0, completion, …",
    )
    sources: tuple[str, ...] = flag(
        (), "sources of the file whose answers are used, the first of them first; all if not given"
    )
    k: int | None = flag(
        None, f"answers of a prompt in total, evenly from its sources; {K} if they are sampled, all of a file's"
    )
    objective: tuple[str, ...] = flag(
        ("mtld:max",), "what to select by: SCORE:max, SCORE:min, SCORE:target=NUMBER; several are combined", LOOP
    )
    constraint: tuple[str, ...] = flag((), "what a selected answer must meet: SCORE>=NUMBER, SCORE<=NUMBER")
    min_words: int | None = flag(
        None, "floor on words; what the objectives' metrics need if not given (mtld: 50), 0: none"
    )
    toxicity_scorer: str | None = flag(
        None, "who makes the score toxicity, from 0 to 1: as of run.py profile, such as hf:FOLDER"
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
    rejected: Literal["far", "worst", "random"] = flag(
        "far",
        "which answer a preference pair sets against the selected one: near two standard deviations below the "
        "mean of the prompt's answers, the worst, or a draw of those that rank behind it",
    )
    metrics: tuple[str, ...] | None = flag(
        None, "scores made besides those of objectives and constraints, to see side effects; none: none"
    )
    drop: tuple[str, ...] = flag(Scoring.drop, "answers that are not used; also refusal; none: keep all")
    max_repeats: float = flag(
        Scoring.max_repeats, "share of repeated runs of four words above which an answer is repeating"
    )
    likelihood_guard: float | None = flag(
        None,
        "standard deviations below a source's mean log-probability at which its answer is unlikely and not used; "
        "models in this process only; 0: off, as for the embedded ones, else 3",
    )
    select_only: bool = flag(
        False, "stop with the selected data set; the command without this goes on from it", OUTPUT
    )
    student: str = flag("embedded", "who is trained: embedded, a Hugging Face id, a folder, or none", MODEL)
    students: tuple[str, ...] = flag(
        (), "in place of one student: each learns from each --source alone, and a table shows what it takes over"
    )
    arms: tuple[str, ...] = flag(
        ("base", "first", "random", "selected"), f"students compared, of {', '.join(ARMS)}", COMPARED
    )
    test_prompts_file: str | None = flag(None, "file of the held-out prompts; else a part of the prompts")
    test_prompts: int = flag(80, "held-out prompts where no file is given, at most half of all")
    test_samples: int | None = flag(None, "answers of a student to a held-out prompt; embedded: 8, else 1")
    test_temperature: float | None = flag(
        None, "of the student there, 0: greedy; 1 where it answers several times"
    )
    profile: tuple[str, ...] | None = flag(
        None,
        "measured of the student before and after, in the flags of run.py profile: choice=NAME=FILE, "
        "stereoset=FILE, toxicity_prompts=FILE, …; embedded word problems if not given, none: nothing",
    )
    rounds: int = flag(
        1, "of all: after the first, students answer the prompts themselves and new ones learn from that", LOOP
    )
    repeats: int | None = flag(None, "repeats with other seeds, for intervals; embedded: 3, else 1", COMPARED)
    learning_rate: float | None = flag(None, "peak; embedded student: 1e-3, else by its size", TRAINING)
    epochs: float | None = flag(None, "passes over the data; embedded student: 4, else by its size")
    batch_size: int | None = flag(
        None, "examples in an update; embedded student: 16, else by its size and the prompts"
    )
    max_length: int | None = flag(None, "longest training sequence in tokens; embedded student: 512, else 1024")
    too_long: Literal["cut", "drop"] = flag(
        "cut", "longer ones: learn their beginning, without an end, or leave the prompt out of every arm"
    )
    workers: int = flag(2, "processes that score and select; changes no result", DEVICES)
    redact: bool = flag(False, "show hashes instead of texts in the report", OUTPUT)
    run_dir: str = flag(
        "runs/active-inheritance", "folder or URL of the run; the same command continues it", OUTPUT
    )

    def resolved(self) -> "Config":
        """The same settings without gaps. Raises UserError for a value out of range or a missing file."""
        from active_inheritance.metrics import USUAL, least_words

        sampled = self.pool is None
        demo = sampled and self.prompts_file is None
        floor = least_words([objective.name for objective in self.objectives])
        samples = self.test_samples if self.test_samples is not None else 8 if demo else 1
        fill = values(self._defaults()) | {
            "prompts": DEMO_PROMPTS if demo else None,
            "k": K if sampled else None,
            "min_words": min(floor, DEMO_FLOOR) if demo else floor,
            "test_samples": samples,
            "test_temperature": 1.0 if samples > 1 else 0.0,
            "repeats": 3 if demo else 1,
            "metrics": USUAL,
            "profile": (f"choice=arithmetic={ARITHMETIC}",),
        }
        emptied = {name: () for name in ("metrics", "drop", "profile") if getattr(self, name) == ("none",)}
        source = self.source or ("embedded:student", "embedded:teacher") if sampled else self.source
        config = filled(dataclasses.replace(self, **emptied, source=source), fill)
        config._check()
        return config

    def _defaults(self) -> dict[str, Default]:
        """What follows the models; the embedded ones have the values of the demonstration."""
        named = self.students or (self.student,) * (self.student != "none")
        students = [kind_of(model_name(name, "student")) for name in named]
        sources = [kind_of(name) for name in self.source if is_model(name)]
        real = [kind for kind in students if not kind.embedded]
        demo = self.pool is None and self.prompts_file is None and not real
        demo = demo and all(name.startswith("embedded:") for name in self.source)
        # Of a pool alone nothing is answered, and nothing is to be said of it.
        asked = self.pool is None or self.trains
        tokens = Default(160, "") if demo else Default(512, "an answer that is cut off is not used" * asked)
        small = next((kind for kind in sources if kind.small), None)
        heat = Default(1.0, "") if small is None else writing(small)["temperature"]
        found = {"answer_tokens": tokens, "source_temperature": heat, "likelihood_guard": Default(0.0, "")}
        if any(not kind.embedded for kind in sources):
            why = "standard deviations below a source's other answers; what is less likely is nonsense"
            found["likelihood_guard"] = Default(GUARD, why)
        if not real:
            shown = {"lora_rank": 0, "learning_rate": 1e-3, "epochs": 4.0, "batch_size": 16, "max_length": 512}
            return found | {name: Default(value, "") for name, value in shown.items()}
        # One setting for all students: what the largest of them needs.
        largest = min(real, key=lambda kind: kind.small)
        rank = adapters(largest)
        taken = rank.value if self.lora_rank is None else self.lora_rank
        found |= {"lora_rank": rank} | training(largest, taken, self._examples())
        return found | {"max_length": Default(1024, "room for a prompt beside an answer of --answer-tokens")}

    def _examples(self) -> int | None:
        """About how many answers a student learns from, as far as it decides the batch; None: many, or the file
        cannot be counted."""
        from active_inheritance.pools import PROMPTS  # loads numpy

        file, count = self.pool or self.prompts_file, self.prompts or DEMO_PROMPTS
        if file is not None:
            if not pathlib.Path(file).is_file():
                return None  # which is said when all settings are checked
            rows = itertools.islice(stream_rows(pathlib.Path(file)), COUNTED)
            columns = (self.prompt_column, *PROMPTS)
            # Of a pool with one answer a row a prompt has several rows.
            texts = {next((str(row[name]) for name in columns if name in row), "") for row, _ in rows}
            count = min(len(texts), self.prompts or len(texts))
        held_out = 0 if self.test_prompts_file else min(self.test_prompts, count // 2)
        return self.top * (count - held_out)

    def reasons(self) -> list[tuple[str, str]]:
        return reasons(self, self._defaults())

    def idle(self) -> dict[str, str]:
        found = TrainSettings.idle(self) if self.trains else {}
        if not self.source and self.rounds == 1:  # later rounds ask the student itself
            asked = ("sampling", "source_temperature", "source_top_p", "source_tokens")
            found |= dict.fromkeys(asked, "sources that are asked, not a --pool FILE")
        if self.sampling != "diverse-beam":
            found["diversity_penalty"] = "--sampling diverse-beam"
        else:
            found["source_top_p"] = "--sampling sample"
        if self.combine != "lexicographic":
            found["tolerance"] = "--combine lexicographic"
        if self.combine != "pareto":
            found["pick"] = "--combine pareto"
        if self.combine != "sum":
            found["normalise"] = "--combine sum"
        if self.test_prompts_file is not None:
            found["test_prompts"] = "a run without --test-prompts-file"
        if not self.trains:
            found |= dict.fromkeys(("test_samples", "test_temperature", "test_prompts"), "a run with a --student")
        return found

    def _check(self) -> None:
        from active_inheritance.metrics import check_scorer
        from active_inheritance.pools import GUARDS

        counts = (
            "k",
            "prompts",
            "top",
            "workers",
            "answer_tokens",
            "source_tokens",
            "test_prompts",
            "test_samples",
            "rounds",
        )
        counts += ("repeats", "batch_size", "max_length")
        least = ("min_words", "temperature", "tolerance", "max_repeats", "seed", "source_temperature")
        least += ("diversity_penalty", "test_temperature", "likelihood_guard")
        above = ("learning_rate", "epochs")
        check_ranges(self, counts=counts, above=above, least=least, shares=("source_top_p",))
        self.check_training()
        self.check_push("--students" if self.students else None)
        self._check_pool()
        if unknown := [name for name in self.drop if name not in GUARDS]:
            there = f"there are {', '.join(GUARDS)}, or none"
            raise UserError(f"--drop {','.join(unknown)}: {there}{meant(unknown[0], GUARDS)}")
        k = self.k or (K if self.rounds > 1 else None)
        if k is not None and self.top >= k:
            raise UserError(f"--top {self.top} of --k {k} answers selects nothing: use a smaller --top")
        self._check_rule()
        for name in self.scores():
            check_scorer(name, self.toxicity_scorer)
            if name.startswith(COLUMN) and (self.source or self.rounds > 1):
                more = f"; use --rounds 1, not {self.rounds}" if self.pool is not None else ""
                raise UserError(f"{name} names a score that a --pool FILE holds: sampled answers have none{more}")
        self._check_student()

    def _check_pool(self) -> None:
        check_files(self, ("pool", "prompts_file", "test_prompts_file"))
        for flag_, names in (("--sources", self.sources), ("--source", self.source)):
            if len(set(names)) < len(names):
                raise UserError(f"{flag_} {','.join(names)}: name each once")
        if self.pool is not None:
            for name in ("source", "prompts_file", "prompts"):
                if getattr(self, name):
                    raise UserError(f"--pool {self.pool} holds the answers already: leave out {flag_name(name)}")
        elif self.sources:
            raise UserError("--sources names those of a --pool FILE: use --source to name who answers")
        for name in self.source:
            check_name(name, "--source", self.source_url if name.startswith("openai:") else None)
        self.share()
        if not self.source:
            return
        if self.sampling == "diverse-beam":
            if odd := [name for name in self.source if not is_model(name)]:
                raise UserError(f"--sampling diverse-beam is for models in this process, not for {', '.join(odd)}")
            if given(self.k) % len(self.source):
                raise UserError(
                    f"--sampling diverse-beam: --k {self.k} is no multiple of {len(self.source)} sources"
                )
        elif self.source_temperature == 0 and given(self.k) > len(self.source):
            raise UserError(
                f"--source-temperature 0 gives equal answers: use one above 0, or --k {len(self.source)}"
            )

    def _check_student(self) -> None:
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise UserError(f"--arms {','.join(unknown)}: there are {', '.join(ARMS)}{meant(unknown[0], ARMS)}")
        if not {"base", "random", "selected"} <= {*self.arms} or len(set(self.arms)) < len(self.arms):
            raise UserError("--arms must hold base, random and selected, and each arm once")
        if given(self.test_samples) > 1 and self.test_temperature == 0:
            raise UserError(
                f"--test-temperature 0 gives {self.test_samples} equal answers: use one above 0, or "
                "--test-samples 1"
            )
        if self.profile:
            self.profile_settings().check_measures()
        if self.students:
            if self.pool is not None or self.select_only or len(set(self.students)) < len(self.students):
                raise UserError(
                    f"--students {','.join(self.students)}: name each once, and give --source, not --pool or "
                    "--select-only: every student learns from every source alone"
                )
            if self.budget is not None and len(self.source) > 1:
                raise UserError("--budget with --students is for one --source: give every hosted one its own run")
        if self.student != "none":
            for name in self.students or (self.student,):
                if not is_model(name):
                    raise UserError(f"--student {name} cannot be trained: name a checkpoint, or none")
            if not self.select_only and not measurable(objective.name for objective in self.objectives):
                raise UserError(
                    f"no score of --objective {','.join(self.objective)} can be made of a student's answers: use "
                    "--student none, or a function python:FILE.py:FUNCTION in place of the column"
                )

    def _check_rule(self) -> None:
        rule = self.rule
        names = [objective.name for objective in rule.objectives]
        if not names or len(set(names)) < len(names):
            raise UserError(f"--objective {','.join(self.objective)}: name at least one, and each score once")
        if rule.weights and (len(rule.weights) != len(names) or min(rule.weights) <= 0):
            raise UserError(
                f"--weights {','.join(self.weights)}: give {len(names)} numbers above 0, one an objective"
            )
        for name in dict.fromkeys(constraint.name for constraint in rule.constraints):
            own = [constraint for constraint in rule.constraints if constraint.name == name]
            floor = max((c.limit for c in own if c.sign == ">="), default=-math.inf)
            ceiling = min((c.limit for c in own if c.sign == "<="), default=math.inf)
            if floor > ceiling:
                hint = f"; lower --min-words {self.min_words}" if name == "words" and self.min_words else ""
                raise UserError(
                    f"no answer has {name}>={floor:g} and {name}<={ceiling:g}: change --constraint{hint}"
                )
        if self.temperature and len(names) > 1 and self.combine != "sum":
            raise UserError(f"--temperature draws by a sum: use it with --combine sum, not {self.combine}")

    # --- the rule and the scores ----------------------------------------------------------------------------

    @functools.cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """What is selected by. Raises UserError for what cannot be read."""
        return tuple(map(Objective.parse, self.objective))

    @functools.cached_property
    def rule(self) -> Rule:
        """How to choose, with the floor on words as a constraint. Raises UserError for what cannot be read."""
        constraints = [Constraint.parse(text) for text in self.constraint]
        if self.min_words:
            constraints.append(Constraint("words", ">=", self.min_words))
        try:
            weights = tuple(float(weight) for weight in self.weights)
        except ValueError:
            raise UserError(f"--weights {','.join(self.weights)}: not numbers") from None
        for weight in weights:
            check_number("--weights", weight, 10**9, "one objective alone would decide")
        return Rule(
            self.objectives,
            tuple(dict.fromkeys(constraints)),
            combine=self.combine,
            weights=weights,
            normalise=self.normalise,
            tolerance=self.tolerance,
            pick=self.pick,
            fallback=self.fallback,
            temperature=self.temperature,
            top=self.top,
            rejected=self.rejected,
            seed=self.seed,
        )

    def scores(self) -> tuple[str, ...]:
        """All scores that are made: of objectives, constraints, the words that break ties, and the metrics."""
        toxicity = ["toxicity"] if self.toxicity_scorer else []
        return tuple(dict.fromkeys([*self.rule.names, "words", *(self.metrics or ()), *toxicity]))

    # --- sources and student --------------------------------------------------------------------------------

    @property
    def trains(self) -> bool:
        """Whether this command trains a student."""
        return self.student != "none" and not self.select_only

    def profile_settings(self) -> ProfileConfig:
        """What --profile asks for. Raises UserError for what is no flag of a profile."""
        return dataclasses.replace(ProfileConfig.asked(self.profile or (), "--profile"), seed=self.seed)

    def held(self) -> dict[str, int]:
        found = {name: 2 for name in self.source if is_model(name)}
        learning = {model_name(self.student, "student"): self.trained_bytes()} if self.trains else {}
        return found | learning

    def share(self) -> Budget | None:
        """What one hosted source may spend in one repeat. Raises UserError for a bad budget."""
        hosted = sum(name.startswith("openai:") for name in self.source)
        tokens = self.source_tokens or self.answer_tokens or 1
        return hosted_share(self, "source", self.source, given(self.repeats) * hosted, tokens)

    def switches(self) -> Switches:
        """The settings by the stage that reads them."""
        tokens = given(self.answer_tokens)
        beams = self.sampling == "diverse-beam"
        sizes = given(self.learning_rate), given(self.epochs), given(self.batch_size)
        train = self.train_config(*sizes, max_length=given(self.max_length), seed=self.seed)
        return Switches(
            rule=self.rule,
            answering=Answering(
                self.k or K,  # students of later rounds answer K times where the file is used as it is
                SampleConfig(
                    self.source_tokens or tokens,
                    temperature=given(self.source_temperature),
                    top_p=self.source_top_p,
                ),
                self.diversity_penalty if beams else None,
                given(self.likelihood_guard),
            ),
            scoring=Scoring(self.scores(), self.toxicity_scorer, self.drop, self.max_repeats, self.workers),
            learning=Learning(train, self.too_long == "cut"),
            testing=Testing(
                self.test_prompts,
                given(self.test_samples),
                SampleConfig(tokens, temperature=given(self.test_temperature)),
            ),
            arms=self.arms,
            rounds=self.rounds,
            repeats=given(self.repeats),
        )
