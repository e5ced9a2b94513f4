"""Settings of an LLM2LLM run: the one source of its command line, its stored configuration and its checks.

    config = Config(rounds=3, seed=1).resolved()
    config = preset("paper", task="gsm8k", student="my/folder").resolved()

Importing this loads no jax. Values of `None` are filled in by `resolved()`, by the kind of student and task.
"""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any, Literal

from common.backends.budget import Budget
from common.backends.open import check_name, is_model, model_name
from common.cli import COMPARED, DATA, LOOP, MODEL, OUTPUT, TRAINING, check_ranges, flag, flag_name
from common.config import SampleConfig, TrainConfig
from common.defaults import GUARD, Default, adapters, kind_of, reasons, training, values
from common.errors import UserError, meant
from common.settings import (
    PRESET,
    HubSettings,
    RunSettings,
    TrainSettings,
    check_files,
    check_preset,
    filled,
    given,
    hosted_share,
)
from common.settings import preset as preset_of
from common.tasks.registry import NAMES
from llm2llm.switches import (
    AnswerBy,
    Asking,
    Comparison,
    LabelCheck,
    Learning,
    Likeness,
    Quota,
    Rounds,
    Rule,
    Seeds,
    Switches,
    Targeting,
)

if TYPE_CHECKING:
    from common.tasks.base import Task

ARMS = ("base", "fine-tune", "fine-tune-matched", "llm2llm", "untargeted", "eda", "auggpt", "more-data")
MATCHED = ("fine-tune-matched", "untargeted", "eda", "auggpt", "more-data")
"""Arms whose budget is that of llm2llm, so that they need it beside them."""

PRESETS: dict[str, dict[str, Any]] = {
    "embedded": {},
    "paper": {
        "seed_sampler": "random",
        "rounds": 10,
        "per_wrong": 1,
        "max_attempts": 5,
        "patience": 10,
        "label_check": "none",
        "teacher_temperature": 1.0,
        "teacher_top_p": 1.0,
        "show_wrong_answer": False,
        "when_none_wrong": "stop",
        "detect": "in-sample",
        "likelihood_guard": 0.0,
        "lora_rank": 0,
        "learning_rate": 2e-5,
        "epochs": 3.0,
        "batch_size": 128,
        "max_length": 1024,
    },
}
PRESETS["reference-code"] = PRESETS["paper"] | {
    "task": "gsm8k",
    "rouge_l": 0.95,
    "duplicates_of": "round",
    "reference_code": True,
    "when_none_wrong": "retrain",
    "student_temperature": 0.7,
    "student_top_p": 0.9,
    "answer_tokens": 100,
}
"""`paper`: the published method. `reference-code`: what the authors' released program does, flaws included
(`llm2llm/reference_code.py` names each)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunSettings, TrainSettings, HubSettings):
    """Defaults are this project's own and fit the embedded demonstration; see PRESETS for the paper's."""

    preset: Literal["embedded", "paper", "reference-code"] = flag("embedded", PRESET, LOOP)
    task: str = flag(
        "arithmetic", "a task by name (see common/tasks/README.md), or a .py, .yaml or .json file", DATA
    )
    student: str = flag(
        "embedded", "embedded, smollm2, a Hugging Face id, a folder, a GGUF file, MODEL+ADAPTER", MODEL
    )
    teacher: str = flag(
        "embedded",
        "embedded, smollm2, a Hugging Face id, a folder, a file, openai:MODEL, pool:FILE of real examples, or "
        "python:FILE.py:FUNCTION",
    )
    teacher_url: str | None = flag(None, "base URL of openai:MODEL; else OPENAI_BASE_URL or the client's own")
    budget: str | None = flag(None, "limits for a hosted teacher, such as calls=500,tokens=200000,usd=2.5")
    teacher_price: str | None = flag(None, "USD for a million prompt and completion tokens, such as 0.15,0.6")
    train_file: str | None = flag(None, "file the seeds are drawn from (.jsonl, .csv, .parquet)", DATA)
    dev_file: str | None = flag(None, "file for choosing the round; without it the last round counts")
    test_file: str | None = flag(None, "file for the final figures, used once")
    text_column: str = flag("text", "task text: the column with the text")
    label_column: str = flag("label", "task text: the column with the label")
    instruction: str = flag("Which label fits this text?", "task text: the line put before every text")
    seed_examples: int = flag(60, "seeds drawn from the training data")
    seed_sampler: Literal["balanced", "random"] = flag("balanced", "evenly from classes or skills, or at random")
    rounds: int | None = flag(
        None, "trainings of the student, the first on the seeds alone; 4 for the embedded student, else 3", LOOP
    )
    mode: Literal["iterative", "one-shot"] = flag(
        "iterative", "one-shot: all new examples after the first training, as many as all rounds would want"
    )
    init: Literal["scratch", "continue"] = flag(
        "scratch", "each training starts from the base or the last student"
    )
    augment_from: Literal["seeds", "all"] = flag("seeds", "examples that may be shown to the teacher")
    target: Rule = flag(
        "wrong", "which of them are: answered wrongly, least sure of, highest loss, right only at times, or all"
    )
    target_share: float = flag(0.3, "share of examples that low-confidence and high-loss take")
    when_none_wrong: Literal["low-confidence", "stop", "retrain"] = flag(
        "low-confidence", "when target wrong or mixed finds nothing: take the least sure, stop, or train once more"
    )
    detect: Literal["in-sample", "out-of-fold", "auto"] | None = flag(
        None,
        "who answers the seeds: the student itself (in-sample, the default of the embedded one), or students that "
        "have not seen them; auto: these as soon as the student itself answers five in six rightly",
    )
    folds: int = flag(3, "students of out-of-fold detection")
    per_wrong: int | None = flag(
        None, "new examples asked for each chosen example, in each round; 12 for the embedded student, else 4"
    )
    max_attempts: int = flag(2, "requests for one new example before it is given up")
    show_wrong_answer: bool | None = flag(
        None, "show the teacher the student's answer; yes if not given, but for embedded and pool teachers"
    )
    show_earlier: int = flag(0, "earlier new questions of the same seed shown to the teacher")
    label_check: LabelCheck | None = flag(
        None,
        "who confirms a new answer: the teacher solving the question again (resolve, the default but for a "
        "pool), a program, or nobody",
    )
    check_votes: int = flag(1, "answers of the teacher in the label check; the majority counts")
    rouge_l: float | None = flag(
        None, "ROUGE-L above which a new question is a near-duplicate; by task if not given"
    )
    duplicates_of: Literal["everything", "round"] = flag(
        "everything", "near-duplicates of all seeds, new and test questions, or only of this round's and its seeds"
    )
    semantic: float | None = flag(None, "cosine of hidden states above which a question is a near-duplicate")
    likelihood_guard: float | None = flag(
        None,
        "refuse nonsense: new questions that turn in circles or are no text, or this many standard deviations "
        "less likely than the seeds under the student as it came; 0: off, as for the embedded student, else 3",
    )
    balance: bool = flag(False, "ask for no more examples of a class than evens out the classes")
    max_per_seed: int | None = flag(None, "most new examples of one seed in the whole run")
    max_per_class: int | None = flag(None, "most new examples of one class in the whole run")
    seed_weight: float = flag(1.0, "weight of a seed in the loss; a new example has 1")
    patience: int = flag(3, "rounds without a better dev accuracy before the loop stops")
    arms: tuple[str, ...] = flag(ARMS[:5], f"what is trained and compared: {', '.join(ARMS)}", COMPARED)
    match: Literal["updates", "tokens"] = flag("updates", "what the matched arms spend as llm2llm does")
    wordnet: str | None = flag(
        None, "arm eda: folder of WordNet's files; without it the student's embeddings name synonyms"
    )
    sweep: bool = flag(False, "run the ablations of the method instead, as one table")
    repeats: int = flag(1, "repeats with other seeds, for intervals; paired across arms")
    teacher_temperature: float = flag(0.8, "of the teacher when it writes", MODEL)
    teacher_top_p: float = flag(0.95, "of the teacher when it writes")
    teacher_tokens: int | None = flag(
        None, "longest reply of the teacher in tokens, its reasoning included; by task if not given"
    )
    student_temperature: float = flag(0.0, "of the student when it answers; 0 is greedy")
    student_top_p: float = flag(1.0, "of the student when it answers")
    answer_tokens: int | None = flag(None, "longest answer in tokens; by task if not given")
    answer_by: AnswerBy | None = flag(
        None,
        "what the student's answer is: the label that the question makes most likely (score), or what it writes "
        "(generate); score for tasks with listed answers, unless the student is embedded",
    )
    system: str = flag("", "system text in front of every question to the student, in training too")
    few_shot: int = flag(0, "seeds with their answers in front of every question to the student, in training too")
    learning_rate: float | None = flag(None, "peak; 3e-4 for the embedded student, else by its size", TRAINING)
    epochs: float | None = flag(
        None, "passes over the data in each training; 2 for the embedded student, else by its size"
    )
    batch_size: int | None = flag(
        None, "examples in an optimizer update; 12 for the embedded student, else by its size and the seeds"
    )
    max_length: int = flag(512, "longest example in tokens, answer included")
    reference_code: bool = flag(
        False, "prompts, judge and schedule of the authors' program (preset reference-code)", LOOP
    )
    run_dir: str = flag("runs/llm2llm", "folder or URL of the run; the same command continues it", OUTPUT)

    def resolved(self) -> "Config":
        """The same settings without gaps. Raises UserError for a value out of range or a missing file."""
        check_preset(PRESETS, self.preset)
        plain = Config()
        named = [name for name in PRESETS[self.preset] if name != "task"]
        if named and all(getattr(self, name) == getattr(plain, name) for name in named):
            raise UserError(f"Config(preset={self.preset!r}) sets a name only: write preset({self.preset!r}, …)")
        silent = self.teacher == "embedded" or self.teacher.startswith("pool:")
        fill = values(self._defaults()) | {
            "label_check": "none" if self.teacher.startswith("pool:") else "resolve",
            "show_wrong_answer": not silent,
        }
        config = filled(self, fill)
        config._check()
        return config

    def _defaults(self) -> dict[str, Default]:
        """What follows the student; the embedded one has the values of the demonstration."""
        kind = kind_of(model_name(self.student, "student"))
        if kind.embedded:
            demo = {"lora_rank": 0, "rounds": 4, "per_wrong": 12, "detect": "in-sample", "likelihood_guard": 0.0}
            demo |= {"learning_rate": 3e-4, "epochs": 2.0, "batch_size": 12}
            return {name: Default(value, "") for name, value in demo.items()}
        # Other rules than these do not look at answers; folds are cut from the seeds.
        apart = self.target in ("wrong", "low-confidence") and 2 <= self.folds <= self.seed_examples
        unseen = "students that have not seen the seeds answer them once the student knows them by heart"
        rank = adapters(kind)
        taken = rank.value if self.lora_rank is None else self.lora_rank
        return training(kind, taken, self.seed_examples) | {
            "lora_rank": rank,
            "rounds": Default(3, f"{kind}, which learns in fewer rounds than the demonstration's"),
            "per_wrong": Default(4, f"{kind}, which needs fewer examples than the demonstration's"),
            "detect": Default("auto", unseen) if apart else Default("in-sample", ""),
            # A pool gives what people wrote.
            "likelihood_guard": Default(0.0, "")
            if self.pool is not None
            else Default(GUARD, "standard deviations below the seeds; what is less likely is nonsense"),
        }

    def reasons(self) -> list[tuple[str, str]]:
        found = reasons(self, self._defaults())
        # Of a task that there is not, another line tells.
        if self.task != "arithmetic" and (self.task in NAMES or pathlib.PurePath(self.task).suffix):
            if self.teacher in ("embedded", "embedded:teacher"):
                found.append(("warning", "the embedded teacher writes sums only: name another with --teacher"))
            if kind_of(model_name(self.student, "student")).embedded:
                told = (
                    "the embedded student has read sums and short stories only: for more than a try give --student"
                )
                found.append(("warning", told))
        return found

    def idle(self) -> dict[str, str]:
        if self.sweep:  # its rows try most of them
            return {"arms": "a run without --sweep, which has rows of its own"}
        found = TrainSettings.idle(self)
        if self.target not in ("low-confidence", "high-loss") and self.when_none_wrong != "low-confidence":
            found["target_share"] = "--target low-confidence or high-loss, or --when-none-wrong low-confidence"
        if self.detect == "in-sample":
            found["folds"] = "--detect out-of-fold or auto"
        if self.label_check != "resolve":
            found["check_votes"] = "--label-check resolve"
        if self.student_temperature == 0:
            found["student_top_p"] = "--student-temperature above 0"
        if self.pool is not None:
            found |= dict.fromkeys(
                ("teacher_temperature", "teacher_top_p", "teacher_tokens"), "a teacher that writes"
            )
        if not {*MATCHED} & {*self.arms}:
            found["match"] = f"arms that are matched: {', '.join(MATCHED)}"
        if "eda" not in self.arms:
            found["wordnet"] = "arm eda"
        if self.train_file is not None and self.dev_file is None:
            found["patience"] = "--dev-file"
        return found

    def _check(self) -> None:
        positive = ("seed_examples", "rounds", "per_wrong", "max_attempts", "patience", "repeats", "batch_size")
        positive += ("max_length", "epochs", "learning_rate", "check_votes", "seed_weight")
        positive += ("answer_tokens", "teacher_tokens", "max_per_seed", "max_per_class")
        least = ("teacher_temperature", "student_temperature", "show_earlier", "seed", "likelihood_guard")
        least += ("few_shot",)
        shares = ("rouge_l", "semantic", "target_share", "teacher_top_p", "student_top_p")
        check_ranges(self, above=positive, least=least, shares=shares)
        self.check_training()
        without = None if "llm2llm" in self.arms else f"--arms {','.join(self.arms)}"
        self.check_push("--sweep" if self.sweep else without)
        if given(self.rounds) > 1000:
            raise UserError(f"--rounds must be at most 1000, not {self.rounds}")
        if self.few_shot >= self.seed_examples:
            raise UserError(
                f"--few-shot {self.few_shot} shows seeds: it must be below --seed-examples {self.seed_examples}"
            )
        if self.detect != "in-sample":
            if self.folds < 2 or self.folds > self.seed_examples:
                raise UserError(f"--folds must lie between 2 and --seed-examples {self.seed_examples}")
            if self.target not in ("wrong", "low-confidence"):
                raise UserError(f"--detect {self.detect} finds answers, not what --target {self.target} looks at")
        if self.reference_code and self.task != "gsm8k":
            raise UserError(
                "the authors released their program for GSM8K only: use --task gsm8k with --reference-code"
            )
        if self.task != "text":
            for name in ("text_column", "label_column", "instruction"):
                if getattr(self, name) != getattr(Config, name):
                    raise UserError(f"{flag_name(name)} is for --task text: task {self.task} says it itself")
        self._check_arms()
        self._check_teacher()
        check_files(self, ("train_file", "dev_file", "test_file"))

    def _check_arms(self) -> None:
        if self.wordnet is not None and not (pathlib.Path(self.wordnet) / "data.noun").is_file():
            raise UserError(f"--wordnet {self.wordnet} holds no WordNet dictionary (data.noun is missing)")
        if len(set(self.arms)) < len(self.arms):
            raise UserError(f"--arms names an arm twice: {', '.join(self.arms)}")
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms:
            like = meant(unknown[0], ARMS) if unknown else ""
            raise UserError(f"unknown arm {', '.join(unknown) or '(none)'}{like}; choose from {', '.join(ARMS)}")
        if "llm2llm" in self.arms and given(self.rounds) < 2:
            raise UserError(
                f"--rounds {self.rounds} trains on the seeds alone: give 2 or more, or --arms base,fine-tune"
            )
        needs = [arm for arm in MATCHED if arm in self.arms]
        if needs and "llm2llm" not in self.arms:
            raise UserError(f"arm {needs[0]} is matched to llm2llm: add llm2llm to --arms")

    def _check_teacher(self) -> None:
        if self.pool is not None:
            if not pathlib.Path(self.pool).is_file():
                raise UserError(f"no such file: {self.pool} (given as --teacher pool:)")
            if self.label_check == "resolve":
                raise UserError("a pool of examples solves nothing again: use --label-check none or program")
            if self.show_wrong_answer or self.show_earlier:
                raise UserError(
                    "a pool of examples reads no requests: leave out --show-wrong-answer, --show-earlier"
                )
            if "auggpt" in self.arms:
                raise UserError("a pool of examples cannot say a question in other words: leave out arm auggpt")
        check_name(self.teacher, "--teacher", self.teacher_url)
        self.share()

    @property
    def pool(self) -> str | None:
        """The file of a pool teacher."""
        return self.teacher.removeprefix("pool:") if self.teacher.startswith("pool:") else None

    @property
    def slots_per_example(self) -> int:
        """New examples wanted for a chosen example in a round."""
        per_wrong = given(self.per_wrong)
        return per_wrong * (given(self.rounds) - 1) if self.mode == "one-shot" else per_wrong

    @property
    def trainings(self) -> int:
        """Trainings of the student, the first on the seeds alone."""
        return min(2, given(self.rounds)) if self.mode == "one-shot" else given(self.rounds)

    @property
    def teaching_arms(self) -> int:
        """How many arms ask the teacher; each has an equal share of a budget in every repeat."""
        return sum(arm in ("llm2llm", "untargeted", "auggpt") for arm in self.arms)

    def share(self, runs: int = 1) -> Budget | None:
        """What one arm of one repeat may spend where the budget serves `runs` such runs; None without a budget.
        Raises UserError for one that cannot be read or shared."""
        return hosted_share(self, "teacher", [self.teacher], runs * self.repeats * max(1, self.teaching_arms))

    def held(self) -> dict[str, int]:
        teacher = [self.teacher] if is_model(self.teacher) else []
        found = {model_name(name, "teacher"): 2 for name in teacher}
        return found | {model_name(self.student, "student"): self.trained_bytes()}

    def training(self) -> TrainConfig:
        """How a student is trained, in every arm and round; the seed is that of the first repeat."""
        return self.train_config(
            given(self.learning_rate),
            given(self.epochs),
            given(self.batch_size),
            max_length=self.max_length,
            zero_start=self.reference_code,
            drop_last=self.reference_code,
            seed=self.seed,
        )

    def switches(self, task: "Task") -> Switches:
        """The settings by the stage that reads them; `task` says what they leave open."""
        answer_tokens = self.answer_tokens or task.answer_tokens
        by_score = bool(task.choices) and self.student != "embedded"
        return Switches(
            seeds=Seeds(self.seed_examples, self.seed_sampler),
            rounds=Rounds(self.trainings, self.patience, self.init == "continue"),
            targeting=Targeting(
                rule=self.target,
                share=self.target_share,
                when_none_wrong=self.when_none_wrong,
                detect=given(self.detect),
                folds=self.folds,
                newer=self.augment_from == "all",
            ),
            quota=Quota(self.slots_per_example, self.max_per_seed, self.max_per_class, self.balance),
            asking=Asking(
                SampleConfig(
                    self.teacher_tokens or task.example_tokens,
                    temperature=self.teacher_temperature,
                    top_p=self.teacher_top_p,
                ),
                self.max_attempts,
                given(self.show_wrong_answer),
                self.show_earlier,
                given(self.label_check),
                self.check_votes,
                self.teacher_tokens,
            ),
            likeness=Likeness(self.rouge_l or task.near_duplicate, self.semantic, self.duplicates_of == "round"),
            likelihood_guard=given(self.likelihood_guard),
            learning=Learning(
                self.training(),
                SampleConfig(answer_tokens, temperature=self.student_temperature, top_p=self.student_top_p),
                self.seed_weight,
                self.answer_by or ("score" if by_score else "generate"),
                self.system,
                self.few_shot,
            ),
            comparison=Comparison(self.arms, self.match, self.wordnet),
            seed=self.seed,
        )


def preset(name: str, **settings: Any) -> Config:
    """The settings of a preset with `settings` in place of its own. Raises UserError for an unknown name."""
    return preset_of(Config, PRESETS, name, settings)
