"""The loop of LLM2LLM and the arms it is compared with.

    for each repeat:
        fine-tune            student = train(base, seeds)
        llm2llm              data = seeds
                             for each round: student = train(base, data)      always from the base
                                             wrong = seeds that student answers wrongly
                                             data += teacher's new examples like each wrong one
        fine-tune-matched    student = train(base, seeds), as many updates as llm2llm's student
        untargeted           as llm2llm, with as many teacher calls, on seeds drawn at random

Only seeds become prompts of the teacher. The round is chosen on the development split (without one: the last),
and every arm's student answers the test questions once.
"""

import dataclasses
import random
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from common import hf, runtime
from common.evaluate import accuracy, accuracy_by_group, answer_waves
from common.filters import KnownTexts
from common.generate import Generator
from common.models import LanguageModel
from common.rundir import RunDir
from common.tasks.base import Example, Task
from common.train import fine_tune
from llm2llm.augment import Augmented, Row, Teacher, as_example, augment
from llm2llm.config import ARMS, Config


@dataclasses.dataclass(frozen=True)
class Setting:
    """Everything that does not change during a run. `teacher` makes a fresh back end for an arm, given the
    questions that it must not give out."""

    config: Config
    task: Task
    base: LanguageModel
    teacher: Callable[[set[str]], Generator]
    train: list[Example]
    dev: list[Example]
    test: list[Example]


@dataclasses.dataclass(frozen=True)
class Student:
    """A student: the folder of its round, what it learns from, and for how many updates."""

    folder: str
    data: tuple[Example, ...]
    updates: int

    @property
    def weights(self) -> str:
        return f"{self.folder}/student"


def draw_seeds(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """`count` examples, drawn without repetition and spread as evenly as can be over the groups."""
    rng = random.Random(f"seeds {seed}")
    groups: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda e: e.id):
        groups.setdefault(example.group, []).append(example)
    for members in groups.values():
        rng.shuffle(members)
    names = sorted(groups)
    rng.shuffle(names)
    drawn: list[Example] = []
    while len(drawn) < count:
        for name in names:
            if groups[name] and len(drawn) < count:
                drawn.append(groups[name].pop())
    return drawn


def run_repeat(run: RunDir, setting: Setting, repeat: int) -> dict[str, Any]:
    """All arms of one repeat. Returns {"arms": {name: result}, "rounds": [...]}."""
    config = setting.config
    seed = config.seed + repeat
    top = f"repeat_{repeat}"
    drawn = draw_seeds(setting.train, config.seed_examples, seed)
    seeds = [Example(**row) for row in run.once(f"{top}/seeds.jsonl", lambda: _as_rows(drawn))]
    arms = {name: _Arm(run, setting, seeds, seed, repeat, name) for name in ARMS}
    results: dict[str, Any] = {}
    rounds: list[Row] = []
    first = arms["fine-tune"].student(0, seeds)
    if "fine-tune" in config.arms:
        results["fine-tune"] = arms["fine-tune"].test(first)
    if "llm2llm" in config.arms:
        results["llm2llm"], targeted = arms["llm2llm"].loop(first)
        rounds += targeted
    if "fine-tune-matched" in config.arms:
        matched = arms["fine-tune-matched"].student(0, seeds, updates=results["llm2llm"]["updates"])
        results["fine-tune-matched"] = arms["fine-tune-matched"].test(matched)
    if "untargeted" in config.arms:
        budgets = [entry["teacher_calls"] for entry in targeted]
        results["untargeted"], untargeted = arms["untargeted"].loop(first, budgets)
        rounds += untargeted
    return {"arms": {name: results[name] for name in config.arms}, "rounds": rounds}


class _Arm:
    """One arm of one repeat: its folder, its data, and the stages on them."""

    def __init__(self, run: RunDir, setting: Setting, seeds: list[Example], seed: int, repeat: int, name: str):
        self.run, self.setting, self.seeds = run, setting, seeds
        self.seed, self.repeat, self.name = seed, repeat, name
        self.folder = f"repeat_{repeat}/{name}"

    def student(self, number: int, data: Sequence[Example], updates: int | None = None) -> Student:
        """The student of round `number`. It is trained when its answers are first needed."""
        settings = self.setting.config.training(self.seed)
        steps = settings.total_steps(len(data)) if updates is None else updates
        return Student(f"{self.folder}/round_{number}", tuple(data), steps)

    def train(self, student: Student) -> LanguageModel:
        """The student's weights: read back, or fine-tuned from the base and stored."""
        base, config, task = self.setting.base, self.setting.config, self.setting.task
        path = self.run.path / student.weights
        if not path.exists():
            order = list(student.data)
            random.Random(f"order {self.seed}").shuffle(order)
            state = path.parent / "training_state"
            with self.run.timed(f"train {self.name}"):
                params = fine_tune(
                    hf.load_params(base.folder, base.config) if runtime.on_accelerator() else base.params,
                    base.config,
                    base.encode(task, order, config.max_length),
                    config.training(self.seed),
                    pad_id=base.tokenizer.pad_id,
                    steps=student.updates,
                    checkpoint=state,
                    log=lambda first: self.run.metrics(student.folder, first).log,
                    label=student.folder,
                )
                self.run.once_folder(student.weights, lambda place: hf.save(place, params, base.folder))
            shutil.rmtree(state, ignore_errors=True)
        return base.with_weights(student.folder, path)

    def answers(self, student: Student, split: str, examples: Sequence[Example]) -> list[Row]:
        """The student's graded answers, stored beside its weights."""
        with self.run.timed(f"evaluate {self.name}"):
            waves = answer_waves(lambda: self.train(student).generator(), self.setting.task, examples)
            return self.run.collect(f"{student.folder}/{split}.jsonl", waves)

    def test(self, student: Student, rounds: Sequence[Row] = ()) -> Row:
        """The arm's final figures: its student's one pass over the test questions."""
        rows = self.answers(student, "test", self.setting.test)
        return {
            "accuracy": accuracy(rows),
            "n": len(rows),
            "by_group": accuracy_by_group(rows),
            "truncated": sum(row["status"] == "length" for row in rows),
            "examples": len(student.data),
            "updates": student.updates,
            "student": student.weights,
            "teacher_calls": sum(r["teacher_calls"] for r in rounds),
            "teacher_tokens": sum(r["teacher_prompt_tokens"] + r["teacher_completion_tokens"] for r in rounds),
            "updates_of_all_rounds": sum(r["updates"] for r in rounds) or student.updates,
        }

    def loop(self, first: Student, budgets: Sequence[int] | None = None) -> tuple[Row, list[Row]]:
        """The rounds of `llm2llm`, or of `untargeted` with the teacher calls of each round in `budgets`.

        Returns the arm's result and one entry a round.
        """
        setting, config = self.setting, self.setting.config
        known = KnownTexts()
        for example in (*setting.test, *self.seeds):
            known.add(example.question, example.id)
        given = {example.question for example in (*self.seeds, *setting.test, *setting.dev)}
        teacher = Teacher(setting.teacher(given), setting.task, config)
        data, rounds, students = list(self.seeds), [], []
        limit = config.rounds if budgets is None else len(budgets)
        for number in range(limit):
            student = first if number == 0 else self.student(number, data)
            students.append(student)
            entry: Row = {"repeat": self.repeat, "arm": self.name, "round": number}
            entry |= {"examples": len(data), "updates": student.updates}
            rounds.append(entry)
            if setting.dev:
                entry["dev"] = accuracy(self.answers(student, "dev", setting.dev))
            slots, stop = [], None
            if budgets is None:
                graded = self.answers(student, "seeds", self.seeds)
                entry["seeds_correct"] = sum(row["correct"] for row in graded)
                wrong = [s for s, row in zip(self.seeds, graded, strict=True) if not row["correct"]]
                slots = [seed for seed in wrong for _ in range(config.per_wrong)]
                stop = self._stops(rounds, wrong)
            elif number + 1 < limit:
                slots = self._draw_slots(number, budgets[number])
            if number + 1 == limit or stop is not None:
                entry |= _teacher_figures(Augmented([], [], 0, 0, 0)) | {"stopped": stop}
                break
            attempts = config.max_attempts if budgets is None else 1
            folder = f"{self.folder}/round_{number}"
            with self.run.timed(f"teach {self.name}"):
                made = augment(self.run, folder, teacher, slots, known, self.seed, number, attempts)
            data += [as_example(row) for row in made.accepted]
            entry |= _teacher_figures(made) | {"stopped": None}
            self._forget(students, _best(rounds))
        best = _best(rounds)
        return self.test(students[best], rounds) | {"round": best}, rounds

    def _forget(self, students: list[Student], best: int) -> None:
        """Delete the weights of rounds that can no longer be chosen; the first belongs to `fine-tune`."""
        for number, student in enumerate(students[1:], start=1):
            if number != best:
                shutil.rmtree(self.run.path / student.weights, ignore_errors=True)

    def _draw_slots(self, number: int, calls: int) -> list[Example]:
        """As many seeds at random as there are calls, each as often as another, give or take one."""
        rng = random.Random(f"untargeted {self.seed} {number}")
        order = rng.sample(self.seeds, len(self.seeds))
        return [order[i % len(order)] for i in range(calls)]

    def _stops(self, rounds: list[Row], wrong: list[Example]) -> str | None:
        """Why the loop ends after this round, if it does before the last."""
        if not wrong:
            return "no seed is answered wrongly"
        if self.setting.dev:
            scores = [entry["dev"] for entry in rounds]
            if len(scores) - 1 - scores.index(max(scores)) >= self.setting.config.patience:
                return "no better on the development split"
        return None


def _best(rounds: Sequence[Row]) -> int:
    """The round that counts: the first with the best dev accuracy; without a dev split the last."""
    return max(range(len(rounds)), key=lambda i: (rounds[i].get("dev", i), -i))


def _teacher_figures(made: Augmented) -> Row:
    reasons: dict[str, int] = {}
    for row in made.refused:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    judged = [row for row in made.accepted if row["label_correct"] is not None]
    return {
        "teacher_calls": made.calls,
        "teacher_prompt_tokens": made.prompt_tokens,
        "teacher_completion_tokens": made.completion_tokens,
        "accepted": len(made.accepted),
        "refused": dict(sorted(reasons.items())),
        "labels_known": len(judged),
        "labels_wrong": sum(not row["label_correct"] for row in judged),
    }


def _as_rows(examples: Sequence[Example]) -> list[Row]:
    return [dataclasses.asdict(example) for example in examples]
