"""Settings of an LLM2LLM run: the one source of its command line, its stored configuration and its checks.

    config = Config(rounds=3, seed=1).resolved()

Importing this loads no jax. Values of `None` are filled in by `resolved()`, by the kind of student and task.
"""

import dataclasses
import math
import pathlib
from typing import Any, Literal

from common.cli import flag
from common.config import SampleConfig, TrainConfig
from common.errors import UserError

ARMS = ("fine-tune", "fine-tune-matched", "llm2llm", "untargeted")


@dataclasses.dataclass(frozen=True)
class Config:
    """Defaults are this project's own and fit the embedded demonstration; the paper's are 10 rounds, 1 example
    per wrong seed, and for GSM8K 3 epochs at batch size 128 and learning rate 2e-5."""

    task: str = flag("arithmetic", "arithmetic, trec, snips, or text (any labelled file)")
    student: str = flag("embedded", "embedded, a Hugging Face id, or a folder")
    teacher: str = flag("embedded", "embedded, a Hugging Face id, a folder, or pool:FILE of real examples")
    train_file: str | None = flag(None, "file the seeds are drawn from (.jsonl, .csv, .parquet)")
    dev_file: str | None = flag(None, "file for choosing the round; without it the last round counts")
    test_file: str | None = flag(None, "file for the final figures, used once")
    text_column: str = flag("text", "task text: the column with the text")
    label_column: str = flag("label", "task text: the column with the label")
    instruction: str = flag("Which label fits this text?", "task text: the line put before every text")
    seed_examples: int = flag(60, "seeds, drawn evenly from the classes or skills")
    rounds: int = flag(4, "trainings of the student, the first on the seeds alone")
    per_wrong: int = flag(12, "new examples asked for each seed answered wrongly, in each round")
    max_attempts: int = flag(2, "requests for one new example before it is given up")
    patience: int = flag(3, "rounds without a better dev accuracy before the loop stops")
    arms: tuple[str, ...] = flag(ARMS, "what is trained and compared")
    repeats: int = flag(1, "repeats with other seeds, for intervals; paired across arms")
    rouge_l: float | None = flag(
        None, "ROUGE-L above which a new question is a near-duplicate; by task if not given"
    )
    label_check: Literal["resolve", "program", "none"] | None = flag(
        None, "who confirms a new example's answer: the teacher solving it again, a program, or nobody"
    )
    teacher_temperature: float = flag(0.8, "of the teacher when it writes")
    teacher_top_p: float = flag(0.95, "of the teacher when it writes")
    learning_rate: float | None = flag(None, "peak; 3e-4 for the embedded student, else 2e-5")
    epochs: float | None = flag(None, "passes over the data in each training; 2 for the embedded student, else 3")
    batch_size: int | None = flag(None, "examples in an optimizer update; 12 for the embedded student, else 16")
    micro_batch_size: int | None = flag(None, "examples on the device at once; the whole batch if not given")
    max_length: int = flag(512, "longest example in tokens, answer included")
    seed: int = flag(0, "random seed of everything")
    run_dir: str = flag("runs/llm2llm", "folder of the run; the same command continues it")
    dry_run: bool = flag(False, "show the plan and stop")

    def resolved(self) -> "Config":
        """The same settings without gaps. Raises UserError for a value out of range or a missing file."""
        embedded = self.student == "embedded"
        fill = {
            "learning_rate": 3e-4 if embedded else 2e-5,
            "epochs": 2.0 if embedded else 3.0,
            "batch_size": 12 if embedded else 16,
            "micro_batch_size": self.batch_size or (12 if embedded else 16),
            "label_check": "none" if self.teacher.startswith("pool:") else "resolve",
        }
        missing = {k: v for k, v in fill.items() if getattr(self, k) is None}
        config = dataclasses.replace(self, **missing)
        config._check()
        return config

    def _check(self) -> None:
        positive = ("seed_examples", "rounds", "per_wrong", "max_attempts", "patience", "repeats", "batch_size")
        for name in (*positive, "micro_batch_size", "max_length", "epochs", "learning_rate"):
            if not getattr(self, name) > 0 or not math.isfinite(getattr(self, name)):
                raise UserError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        if self.rouge_l is not None and not 0 < self.rouge_l <= 1:
            raise UserError(f"--rouge-l must lie above 0 and at most at 1, not {self.rouge_l}")
        if self.teacher_temperature < 0 or not 0 < self.teacher_top_p <= 1:
            raise UserError("--teacher-temperature must be at least 0 and --teacher-top-p in (0, 1]")
        if self.micro_batch_size > self.batch_size or self.batch_size % self.micro_batch_size:
            raise UserError(
                f"--batch-size {self.batch_size} must be a multiple of --micro-batch-size {self.micro_batch_size}"
            )
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms:
            raise UserError(f"unknown arm {', '.join(unknown) or '(none)'}: choose from {', '.join(ARMS)}")
        needs = [arm for arm in ("fine-tune-matched", "untargeted") if arm in self.arms]
        if needs and "llm2llm" not in self.arms:
            raise UserError(f"arm {needs[0]} is matched to llm2llm: add llm2llm to --arms")
        pool = self.teacher.removeprefix("pool:") if self.teacher.startswith("pool:") else None
        if pool is not None and self.label_check == "resolve":
            raise UserError("a pool of examples cannot solve them again: use --label-check none or program")
        for name, file in (
            ("train-file", self.train_file),
            ("dev-file", self.dev_file),
            ("test-file", self.test_file),
            ("teacher pool", pool),
        ):
            if file is not None and not pathlib.Path(file).is_file():
                raise UserError(
                    f"no such file: {file} (given as --{name.replace('teacher pool', 'teacher pool:')})"
                )

    def stored(self) -> dict[str, Any]:
        """What the run directory records: everything that decides the results."""
        values = dataclasses.asdict(self)
        del values["run_dir"], values["dry_run"]
        return values

    def training(self, seed: int) -> TrainConfig:
        return TrainConfig(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            max_length=self.max_length,
            seed=seed,
        )

    def writing(self, tokens: int) -> SampleConfig:
        return SampleConfig(tokens, temperature=self.teacher_temperature, top_p=self.teacher_top_p)


def plan(config: Config) -> list[tuple[str, str]]:
    """What a run will do at most, line by line, before anything is loaded."""
    per_round = config.seed_examples * config.per_wrong
    sizes = [config.seed_examples + i * per_round for i in range(config.rounds)]
    settings = config.training(config.seed)
    updates = [settings.total_steps(size) for size in sizes]
    calls = (config.rounds - 1) * per_round * config.max_attempts
    lines = [
        ("task, student, teacher", f"{config.task}, {config.student}, {config.teacher}"),
        ("seeds, rounds, repeats", f"{config.seed_examples}, {config.rounds}, {config.repeats}"),
    ]
    by_arm = {
        "fine-tune": (updates[0], 0),
        "fine-tune-matched": (updates[0] + updates[-1], 0),
        "llm2llm": (sum(updates), calls),
        "untargeted": (sum(updates), calls),
    }
    for arm in config.arms:
        arm_updates, arm_calls = by_arm[arm]
        lines.append((arm, f"at most {arm_updates} optimizer updates and {arm_calls} teacher calls a repeat"))
    if updates[0] < 10:
        lines.append(
            (
                "warning",
                f"the first training has only {updates[0]} updates: raise --epochs or lower --batch-size, or its "
                "result says little about the data",
            )
        )
    return lines
