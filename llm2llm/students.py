"""One arm of one repeat: its folder, and the stages of a student in it (train, answer, measure)."""

import dataclasses
import random
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common.config import SampleConfig, TrainConfig
from common.evals.evaluate import accuracy, accuracy_by_group, answer_batches, scored_batches
from common.generate import Generator
from common.lm import LanguageModel
from common.results.rundir import RunDir
from common.sample.score import score
from common.stages import fine_tuned
from common.tasks.base import Example, Task
from common.text.nonsense import Gate
from common.train.data import Encoded
from llm2llm.augment import Refine, Teacher
from llm2llm.known import Known
from llm2llm.select import Row, as_asked, deal_folds
from llm2llm.switches import Switches

MIXED_SAMPLES = 8
"""Answers sampled for each example to see whether the student is right only at times."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Everything that does not change during a run.

    `evaluated` is the task as the student is asked and graded, `judge` the one with this project's grader; they
    differ from `task` only where the authors' program does. `teachers(given, account)` makes the back end of an
    arm: `given` are questions that it must not give out, `account` is the name its spending is booked under.
    `refine`, if given, stands between the teacher's replies and their checks. `doubts`: what the files give reason
    to warn of.
    """

    switches: Switches
    task: Task
    evaluated: Task
    judge: Task
    base: LanguageModel
    teachers: Callable[[set[str], str], Generator]
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    doubts: Sequence[str] = ()
    refine: Refine | None = None

    def asked(self, seeds: Sequence[Example], seed: int) -> "Setting":
        """With the task as students of a repeat are asked."""
        ask = lambda task: as_asked(task, self.switches.learning, seeds, seed)
        return dataclasses.replace(self, task=ask(self.task), evaluated=ask(self.evaluated))

    @property
    def samples(self) -> int:
        """Calls of the teacher for one new example."""
        return 1 if self.refine is None else self.refine.samples


@dataclasses.dataclass(frozen=True)
class Student:
    """A student: the folder of its round, what it learns from, for how many updates, and from which student it
    starts (None: the base)."""

    folder: str
    data: tuple[Example, ...]
    updates: int
    start: "Student | None" = None

    @property
    def weights(self) -> str:
        return f"{self.folder}/student"

    @property
    def all_updates(self) -> int:
        """Updates from the base to this student."""
        return self.updates + (self.start.all_updates if self.start else 0)


class Arm:
    """The stages of one arm of one repeat. Every artifact lies in `repeat_N/NAME`."""

    def __init__(self, run: RunDir, setting: Setting, seeds: Sequence[Example], repeat: int, name: str):
        self.run, self.setting, self.seeds, self.name, self.repeat = run, setting, list(seeds), name, repeat
        # The same for all arms of a repeat, so that they differ by their data alone.
        self.seed = setting.switches.seed + repeat
        self.folder = f"repeat_{repeat}/{name}"
        self._seed_ids = {example.id for example in seeds}

    @property
    def training(self) -> TrainConfig:
        return dataclasses.replace(self.setting.switches.learning.train, seed=self.seed)

    def student(
        self, number: int, data: Sequence[Example], updates: int | None = None, start: Student | None = None
    ) -> Student:
        """The student of round `number`. It is trained when its answers are first needed."""
        steps = self.training.total_steps(len(data)) if updates is None else updates
        return Student(f"{self.folder}/round_{number}", tuple(data), steps, start)

    def train(self, student: Student) -> LanguageModel:
        """The student's weights: read back, or fine-tuned from where it starts and stored."""
        start = self.setting.base
        if not student.updates:
            return start
        if student.start is not None and not (self.run.path / student.weights).exists():
            # The student that is continued may itself have been cut off before its weights were stored.
            start = self.train(student.start)
        encode, stage = lambda: self._encode(student), self._stage("train", student)
        return fine_tuned(self.run, student.weights, start, encode, self.training, student.updates, stage)

    def _stage(self, what: str, student: Student) -> str:
        """ "train llm2llm"; of a student that another arm has made, for whom that is."""
        owner = student.folder.split("/")[1]
        return f"{what} {owner}" if owner == self.name else f"{what} {owner}'s student for {self.name}"

    def _encode(self, student: Student) -> list[Encoded]:
        order = list(student.data)
        random.Random(f"order {self.seed}").shuffle(order)
        encoded = self.setting.base.encode(self.setting.task, order, self.training.max_length)
        weight = self.setting.switches.learning.seed_weight
        if weight == 1:
            return encoded
        return [
            dataclasses.replace(tokens, weight=weight) if example.id in self._seed_ids else tokens
            for example, tokens in zip(order, encoded, strict=True)
        ]

    def answers(
        self, student: Student, split: str, examples: Sequence[Example], sampling: SampleConfig | None = None, n=1
    ) -> list[Row]:
        """The student's graded answers, stored beside its weights: by likelihood if the settings say so, but what
        is sampled (with a `sampling` of its own) as it is written."""
        task, learning = self.setting.evaluated, self.setting.switches.learning
        how = sampling or learning.answering
        if task.choices and not self.setting.base.tokenizer.has_template:
            # A model of plain text goes on with a next question.
            how = dataclasses.replace(how, stop=("\n",))
        with self.run.timed(self._stage("evaluate", student)):
            # Functions: where all answers are stored, nothing is trained or loaded.
            model = lambda: self.train(student)
            if learning.answer_by == "score" and sampling is None:
                batches = scored_batches(model, task, examples, how, self.seed, learned=student.updates > 0)
            else:
                batches = answer_batches(lambda: model().generator(), task, examples, how, self.seed, n)
            return self.run.collect(f"{student.folder}/{split}.jsonl", batches)

    def out_of_fold(self, student: Student, seed_of: dict[str, str]) -> tuple[list[Row], int]:
        """Answers to every seed, in seed order, by a student trained without it and without what was made of it,
        and the optimizer updates this took.

        There is one training a fold, on the rest of `student.data`. These students are deleted once they have
        answered.
        """
        rows: dict[str, Row] = {}
        updates = 0
        for k, held in enumerate(deal_folds(self.seeds, self.setting.switches.targeting.folds, self.seed)):
            ids = {example.id for example in held}
            # What was made of a held-out seed goes with it: being so like it, it would give the answer away.
            rest = [e for e in student.data if seed_of.get(e.id, e.id) not in ids]
            steps = self.training.total_steps(len(rest))
            # From the base also where students are continued: the student before this one has seen every seed.
            blind = Student(f"{student.folder}/fold_{k}", tuple(rest), steps)
            rows |= {row["id"]: row for row in self.answers(blind, "seeds", held)}
            # Fold by fold, so that no more than one of these students lies on the disk.
            self.forget(blind)
            updates += steps
        return [rows[example.id] for example in self.seeds], updates

    def losses(self, student: Student, examples: Sequence[Example]) -> list[float]:
        """Mean negative log-likelihood of a token of each example's right answer, in nats."""

        def compute() -> list[Row]:
            model = self.train(student)
            encoded = model.encode(self.setting.task, examples, self.training.max_length)
            pairs = [(e.tokens[: e.prompt_length], e.tokens[e.prompt_length :]) for e in encoded]
            logps = score(model.params, model.config, pairs)
            found = zip(examples, logps, strict=True)
            return [{"id": e.id, "loss": round(-float(np.mean(values)), 5)} for e, values in found]

        return [row["loss"] for row in self.run.once(f"{student.folder}/losses.jsonl", compute)]

    def right_shares(self, student: Student, examples: Sequence[Example]) -> list[float]:
        """Share of `MIXED_SAMPLES` answers, sampled at temperature 1, that are right."""
        sampling = SampleConfig(self.setting.evaluated.answer_tokens, temperature=1.0)
        rows = self.answers(student, "sampled", examples, sampling, MIXED_SAMPLES)
        groups = [rows[i : i + MIXED_SAMPLES] for i in range(0, len(rows), MIXED_SAMPLES)]
        return [accuracy(group) for group in groups]

    def forget(self, student: Student) -> None:
        """Delete the weights of a student that is no longer needed."""
        shutil.rmtree(self.run.path / student.weights, ignore_errors=True)

    def test(self, student: Student, rounds: Sequence[Row] = (), teacher: Row | None = None) -> Row:
        """The arm's final figures: its student's one pass over the test questions, and what the arm cost."""
        rows = self.answers(student, "test", self.setting.test)
        spent = [teacher] if teacher else list(rounds)
        return {
            "accuracy": accuracy(rows),
            "n": len(rows),
            "by_group": accuracy_by_group(rows),
            "truncated": sum(row["status"] == "length" for row in rows),
            "examples": len(student.data),
            "updates": student.all_updates,
            "tokens": self.tokens(student),
            "student": student.weights,
            "test": f"{student.folder}/test.jsonl",
            "teacher_calls": sum(r["teacher_calls"] for r in spent),
            "check_calls": sum(r["check_calls"] for r in spent),
            "teacher_tokens": sum(r["teacher_prompt_tokens"] + r["teacher_completion_tokens"] for r in spent),
            # `updates` made the tested student; this is what the arm took to find it.
            "updates_of_all_rounds": sum(r["updates"] + r.get("fold_updates", 0) for r in rounds)
            or student.all_updates,
        }

    def teacher(self) -> Teacher:
        """Who writes for this arm; a pool gives out no seed, test or dev question."""
        setting = self.setting
        given = {example.question for example in (*self.seeds, *setting.test, *setting.dev)}
        generator = setting.teachers(given, self.folder)
        writer = generator if setting.refine is None else setting.refine(generator)
        gate, deviations = None, setting.switches.likelihood_guard
        if deviations:
            gate = Gate.of([seed.question for seed in self.seeds], setting.base.text_logps, deviations)
        return Teacher(generator, writer, setting.samples, setting.task, setting.switches.asking, self.fits, gate)

    def fits(self, example: Example) -> bool:
        """Whether the student can learn the example and, asked its question, has room to answer."""
        return self.setting.base.fits(self.setting.task, example, self.training.max_length)

    def known(
        self, only: Sequence[Example] | None = None, limit: float | None = None, semantic: bool = True
    ) -> Known:
        """What new questions must not repeat: test questions and seeds, or `only` these; above a ROUGE-L F1 of
        `limit` (default: as the settings or the task say), and by meaning if the settings say so. Quotes of test
        questions, and dev questions, are refused in any case."""
        setting, likeness = self.setting, self.setting.switches.likeness
        # A seed with several slots stands several times in `only`, and is to be known once.
        texts = (*setting.test, *self.seeds) if only is None else dict.fromkeys(only)
        named = [(example.id, example.question) for example in texts]
        test = [example.question for example in setting.test]
        held_out = [*test, *(example.question for example in setting.dev)]
        cosine = likeness.semantic if semantic else None
        return Known(limit or likeness.rouge_l, named, test, held_out, semantic=cosine, embed=setting.base.embed)

    def tokens(self, student: Student) -> int:
        """Tokens the student reads in training, padding not counted, up to the rounding of the last pass."""
        own = round(self._tokens_of_update(student.data) * student.updates)
        return own + (self.tokens(student.start) if student.start else 0)

    def updates_for_tokens(self, data: Sequence[Example], tokens: int) -> int:
        """Updates on `data` in which a student reads about as many tokens."""
        return max(1, round(tokens / self._tokens_of_update(data)))

    def _tokens_of_update(self, data: Sequence[Example]) -> float:
        if not data:
            return 0.0
        encoded = self.setting.base.encode(self.setting.task, data, self.training.max_length)
        steps = self.training.steps_per_epoch(len(data))
        # The share of an epoch that is read: less than all where the last, smaller batch is dropped.
        read = min(1.0, steps * self.training.batch_size / len(data))
        return read * sum(len(e.tokens) for e in encoded) / steps


def as_rows(examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(example) for example in examples]
