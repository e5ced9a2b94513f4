"""One round of the teacher: ask for new examples, read them strictly, filter them, keep the reasons.

A slot is one wanted example for one seed. Every slot is asked up to `attempts` times; all open slots of an attempt
form one batch. Whatever the teacher says is stored before it is judged.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from common.config import SampleConfig
from common.filters import KnownTexts
from common.generate import Generator, Record, Request
from common.rundir import RunDir
from common.tasks.base import Example, NewExample, Task
from llm2llm.config import Config

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Who writes (and solves, for the label check), and how near-duplicates are told."""

    generator: Generator
    task: Task
    config: Config

    @property
    def near_duplicate(self) -> float:
        given = self.config.rouge_l
        return self.task.near_duplicate if given is None else given


@dataclasses.dataclass(frozen=True)
class Augmented:
    """Outcome of a round: accepted rows (see `_row`), refused rows with reasons, calls and tokens spent."""

    accepted: list[Row]
    refused: list[Row]
    calls: int
    prompt_tokens: int
    completion_tokens: int


def augment(
    run: RunDir,
    folder: str,
    teacher: Teacher,
    slots: Sequence[Example],
    known: KnownTexts,
    seed: int,
    round_number: int,
    attempts: int,
) -> Augmented:
    """Fill `slots` (the seed of each wanted example; a seed may stand there several times).

    `known` holds the questions that must not come again; accepted ones are added to it.
    """
    task = teacher.task
    open_slots = list(enumerate(slots))
    accepted: list[Row] = []
    refused: list[Row] = []
    calls = prompt_tokens = completion_tokens = 0
    for attempt in range(1, attempts + 1):
        if not open_slots:
            break
        requests = [
            Request(f"{folder}/{attempt}/{slot}/{parent.id}", task.teacher_messages(parent), example=parent)
            for slot, parent in open_slots
        ]
        sampling = teacher.config.writing(task.example_tokens)
        records = collect(run, f"{folder}/teacher_{attempt}.jsonl", teacher.generator, requests, sampling, seed)
        calls += len(records)
        prompt_tokens += sum(r.prompt_tokens for r in records)
        completion_tokens += sum(r.completion_tokens for r in records)
        read = [_read(task, r, parent) for r, (_, parent) in zip(records, open_slots, strict=True)]
        read = [_drop_known(new, known, teacher.near_duplicate) for new in read]
        checks = _check_labels(run, folder, attempt, teacher, read, seed)
        again = []
        for (slot, parent), record, request, new, check in zip(
            open_slots, records, requests, read, checks, strict=True
        ):
            row = _row(f"{folder}/{attempt}/{slot}", parent, record, request, round_number, attempt, teacher)
            if new.refused is None and check["refused"] is None:
                score, nearest = known.nearest(new.question)
                if score > teacher.near_duplicate:
                    new = NewExample(refused="near-duplicate")
                else:
                    known.add(new.question, row["id"])
                    accepted.append(row | _content(task, new, score, nearest, check["answer"]))
                    continue
            refused.append(row | {"reason": new.refused or check["refused"], "text": record.text})
            again.append((slot, parent))
        open_slots = again
    run.once(f"{folder}/new.jsonl", lambda: accepted)
    run.once(f"{folder}/refused.jsonl", lambda: refused)
    return Augmented(accepted, refused, calls, prompt_tokens, completion_tokens)


def collect(
    run: RunDir,
    name: str,
    generator: Generator,
    requests: Sequence[Request],
    sampling: SampleConfig,
    seed: int,
) -> list[Record]:
    """The records of `requests`, bought once: stored wave by wave and read back when the run continues."""

    def waves(done: int) -> Iterator[list[Row]]:
        stored = [Record(**row) for row in run.journal(f"{name}.part").rows()]
        generator.seen(stored)
        if requests[done:]:
            for records in generator.generate(requests[done:], sampling, seed):
                yield [dataclasses.asdict(r) for r in records]

    records = [Record(**row) for row in run.collect(name, waves)]
    generator.seen(records)
    return records


def _read(task: Task, record: Record, parent: Example) -> NewExample:
    if record.status == "failed":
        return NewExample(refused="teacher failed")
    if record.status == "length":
        return NewExample(refused="cut off")
    return task.parse_example(record.text, parent)


def _drop_known(new: NewExample, known: KnownTexts, limit: float) -> NewExample:
    if new.refused is None and known.nearest(new.question)[0] > limit:
        return NewExample(refused="near-duplicate")
    return new


def _check_labels(
    run: RunDir, folder: str, attempt: int, teacher: Teacher, read: Sequence[NewExample], seed: int
) -> list[Row]:
    """For each example: what the check answered, and the reason to refuse it if it disagrees."""
    task, how = teacher.task, teacher.config.label_check
    good = [i for i, new in enumerate(read) if new.refused is None]
    answers: dict[int, str | None] = {}
    if how == "resolve":
        requests = [Request(f"{i}", tuple(task.messages(read[i].question))) for i in good]
        sampling = SampleConfig(task.answer_tokens)
        name = f"{folder}/check_{attempt}.jsonl"
        records = collect(run, name, teacher.generator, requests, sampling, seed)
        for i, record in zip(good, records, strict=True):
            agrees = record.text is not None and task.correct(record.text, read[i].label)
            answers[i] = read[i].label if agrees else record.text and task.parse(record.text)
    elif how == "program":
        answers = {i: task.truth(read[i].question) for i in good}
    result: list[Row] = []
    for i, new in enumerate(read):
        if new.refused is not None or how == "none":
            result.append({"answer": None, "refused": None})
        elif answers[i] is None or not task.correct(answers[i], new.label):
            result.append({"answer": answers[i], "refused": "label check"})
        else:
            result.append({"answer": answers[i], "refused": None})
    return result


def _row(
    name: str,
    parent: Example,
    record: Record,
    request: Request,
    round_number: int,
    attempt: int,
    teacher: Teacher,
) -> Row:
    """The lineage of one reply."""
    prompt = json.dumps(request.messages, ensure_ascii=False).encode()
    return {
        "id": name,
        "parent": parent.id,
        "round": round_number,
        "attempt": attempt,
        "teacher": teacher.generator.name,
        "prompt_hash": hashlib.sha256(prompt).hexdigest()[:16],
    }


def _content(task: Task, new: NewExample, rouge_l: float, nearest: str, check: str | None) -> Row:
    """The example itself with its filter scores; `truth` is the exact answer where a program knows it."""
    truth = task.truth(new.question)
    return {
        "question": new.question,
        "answer": new.answer,
        "label": new.label,
        "group": new.group,
        "rouge_l": round(rouge_l, 4),
        "nearest": nearest,
        "label_check": check,
        "truth": truth,
        "label_correct": None if truth is None else task.correct(truth, new.label),
    }


def as_example(row: Row) -> Example:
    """A stored row as training data."""
    return Example(row["id"], row["question"], row["answer"], row["label"], row["group"])
