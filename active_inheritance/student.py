"""What the student becomes: an arm for each way to choose its data, trained alike, measured on held-out prompts.

    held_out = choose_held_out(config, student, selection, given)
    found = run_students(run, config, student, selection, held_out, repeat=0)

    base        the student as it came
    first       it after the first answer to every prompt
    random      … after a uniform draw of the usable answers
    matched     … after other answers of about the selected one's length
    selected    … after the selected answer

All learn from the same prompts, as many answers, for as many updates, with the loss on the answer's tokens only;
random numbers of training and of answering are the same in all arms.
"""

import dataclasses
import heapq
import shutil
from collections.abc import Sequence
from typing import Any

from active_inheritance.config import Config
from active_inheritance.pools import Answer
from active_inheritance.prompts import Prompt, drawn_by, messages, room
from active_inheritance.scores import Scorers
from active_inheritance.stage import Selection
from common.data import Encoded
from common.errors import UserError
from common.generate import Request
from common.models import LanguageModel
from common.rundir import RunDir
from common.stages import Lazy, collect, trained
from common.train import fine_tune

Row = dict[str, Any]


def choose_held_out(
    config: Config, student: LanguageModel, selection: Selection, given: Sequence[Prompt]
) -> list[Prompt]:
    """The held-out prompts: `given`, else some of the pool's that leave the student room to answer.

    Of a pool only those are learned that are not among them. Raises UserError where none is left for either.
    """
    if given:
        return list(given)
    fitting = (
        Prompt(row["id"], row["prompt"])
        for row, chosen in selection.prompts()
        if chosen["taken"] and room(row["prompt"], student, config.answer_tokens)
    )
    count = min(config.test_prompts, sum(bool(chosen["taken"]) for _, chosen in selection.prompts()) // 2)
    held_out = heapq.nsmallest(count, fitting, key=lambda prompt: drawn_by(prompt.id, config.seed))
    if not held_out:
        raise UserError(
            f"{config.pool}: none of its prompts can be held out for the student (they are too few, or too long "
            "for it): give --test-prompts-file FILE"
        )
    return held_out


def learned_rows(
    config: Config, student: LanguageModel, selection: Selection, held_out: Sequence[Prompt]
) -> tuple[dict[str, list[Row]], int]:
    """By arm what it learns, and how many answers are left out of all arms because one of them is too long. Every
    arm has the same prompts in the same order. With --too-long cut only prompts that leave no room for an answer
    are too long."""
    arms = [arm for arm in config.arms if arm != "base"]
    apart = {prompt.text for prompt in held_out}
    keep = ("id", "prompt", "answer", "source", "index", "scores")
    kept: dict[str, list[Row]] = {arm: [] for arm in arms}
    left_out = 0
    for rows in zip(*(selection.rows(arm) for arm in arms), strict=True):
        if rows[0]["prompt"] in apart:
            continue
        sequences = [encoded(config, student, row) for row in rows]
        if None in sequences:
            left_out += 1
            continue
        for arm, row, (_, cut) in zip(arms, rows, sequences, strict=True):
            kept[arm].append({name: row[name] for name in keep} | {"cut": cut})
    return kept, left_out


def encoded(config: Config, student: LanguageModel, row: Row) -> tuple[Encoded, bool] | None:
    """A prompt with its answer as a training sequence, and whether it was cut; None where it is too long. What is
    cut has no end token: the student must not learn to stop there."""
    limit = min(config.max_length, student.config.max_positions)
    tokens, start = student.tokenizer.encode_example(messages(row["prompt"]), row["answer"])
    cut = len(tokens) > limit
    if cut and (config.too_long == "drop" or start >= limit):
        return None
    return Encoded(tuple(tokens[:limit]), start), cut


def run_students(
    run: RunDir,
    config: Config,
    student: LanguageModel,
    selection: Selection,
    held_out: Sequence[Prompt],
    repeat: int,
) -> dict[str, Any]:
    """Train and measure every arm of a repeat. Trained weights are deleted once they have answered, but for the
    selected arm's of the first repeat."""
    folder = f"repeat_{repeat}"
    learned, left_out = learned_rows(config, student, selection, held_out)
    if not learned["selected"]:
        raise UserError(
            f"nothing is left for the student to learn: {left_out} answers or their prompts are longer than "
            f"--max-length {config.max_length} or the student takes"
        )
    settings = config.training(config.seed + repeat)
    updates = settings.total_steps(len(learned["selected"]))
    measured: dict[str, list[Row]] = {}
    for arm in config.arms:
        name = f"{folder}/{arm}"
        model = Lazy(lambda: student)
        if arm != "base":
            rows = run.once(f"{name}/data.jsonl", lambda arm=arm: learned[arm])
            model = Lazy(lambda rows=rows, name=name: _fitted(run, student, rows, config, repeat, name, updates))
        measured[arm] = measure(run, config, model, held_out, name, repeat)
        if arm != "base" and (arm, repeat) != ("selected", 0):
            shutil.rmtree(run.path / name / "student", ignore_errors=True)
        model.release()
    return {
        "learned": {arm: run.once(f"{folder}/{arm}/data.jsonl", list) for arm in learned},
        "answers": measured,
        "updates": {arm: 0 if arm == "base" else updates for arm in config.arms},
        "left_out": left_out,
    }


def _fitted(
    run: RunDir, student: LanguageModel, rows: Sequence[Row], config: Config, repeat: int, name: str, updates: int
) -> LanguageModel:
    settings = config.training(config.seed + repeat)

    def fit(state, log):
        return fine_tune(
            student.starting_weights(settings),
            student.config,
            [encoded(config, student, row)[0] for row in rows],
            settings,
            pad_id=student.tokenizer.pad_id,
            steps=updates,
            checkpoint=state,
            log=log,
            label=name,
        )

    return trained(run, f"{name}/student", student, fit)


def measure(
    run: RunDir, config: Config, model: Lazy, held_out: Sequence[Prompt], name: str, repeat: int
) -> list[Row]:
    """An arm's answers to the held-out prompts with their scores: answers.jsonl. The prompts, not their order,
    seed the answers."""
    ask = [Request(f"{p.id}#{i}", messages(p.text)) for p in held_out for i in range(config.test_samples)]
    if not (run.path / f"{name}/raw.jsonl").exists():
        model()  # trained outside of what is timed below
    with run.timed("test"):
        generator = lambda: dataclasses.replace(model(), name=name).generator()
        records = collect(run, f"{name}/raw.jsonl", generator, ask, config.testing(), config.seed + repeat)

    def scored() -> list[Row]:
        names = [name for name in config.scores() if not name.startswith("column:")]
        scorers, rows = Scorers.open(names), []
        for n, prompt in enumerate(held_out):
            own = records[n * config.test_samples : (n + 1) * config.test_samples]
            answers = [Answer("student", i, record.text or "") for i, record in enumerate(own)]
            for record, answer, scores in zip(own, answers, scorers.score(prompt.text, answers), strict=True):
                rows.append(
                    {
                        "id": prompt.id,
                        "prompt": prompt.text,
                        "sample": answer.index,
                        "answer": answer.text,
                        "truncated": record.status == "length",
                        "tokens": record.completion_tokens,
                        "scores": scores,
                    }
                )
        return rows

    return run.once(f"{name}/answers.jsonl", scored)
