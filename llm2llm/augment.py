"""One round of the teacher: ask for new examples, read them strictly, filter them, keep the reasons.

A slot is one wanted example for one seed. Every slot is asked up to `attempts` times; all open slots of an attempt
form one batch. Whatever the teacher says is stored before it is judged.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from common.backends.budget import BUDGET_SPENT
from common.config import SampleConfig
from common.evals.evaluate import majority
from common.generate import Generator, Record, Request
from common.results.rundir import RunDir
from common.stages import collect
from common.tasks.base import Example, Hints, NewExample, Task
from common.text.filters import rouge_l, words_of
from llm2llm.known import Known
from llm2llm.switches import Asking

Row = dict[str, Any]

VOTE_TEMPERATURE = 0.7
"""Of the teacher when it solves a new example several times and the majority counts."""


class Refine(Protocol):
    """What may stand between the teacher and the checks of what it writes, such as a choice among several replies.
    Called with the teacher's generator it gives the one that writes, a record a request, whose `attempts` are the
    replies asked of the teacher for it. `str` of it goes into the report."""

    samples: int
    """Replies asked of the teacher for each that is handed on."""
    stored: Mapping[str, Any]
    """JSON values that decide what comes out; another refinement is refused in the same run folder."""

    def __call__(self, generator: Generator) -> Generator: ...


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Who solves (for the label check), who writes and in how many calls an example, what about, and how it is
    asked. `fits` tells whether the student can learn and answer an example of that length."""

    generator: Generator
    writer: Generator
    samples: int
    task: Task
    asking: Asking
    fits: Callable[[Example], bool]


@dataclasses.dataclass(frozen=True)
class Augmented:
    """Outcome of a round: accepted rows (see `_row`), refused rows with reasons, calls and tokens spent, and
    whether the budget ended before the slots did."""

    accepted: list[Row] = dataclasses.field(default_factory=list)
    refused: list[Row] = dataclasses.field(default_factory=list)
    calls: int = 0
    check_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    exhausted: bool = False


class _Bill:
    """Counts what is asked for while a round runs."""

    def __init__(self) -> None:
        self.prompt_tokens = self.completion_tokens = 0
        self.exhausted = False

    def add(self, records: Sequence[Record], samples: int = 1) -> int:
        """Book these records, of `samples` replies each; returns how many replies were really asked."""
        asked = [r for r in records if r.error != BUDGET_SPENT]
        self.exhausted |= len(asked) < len(records)
        self.prompt_tokens += sum(r.prompt_tokens for r in records)
        self.completion_tokens += sum(r.completion_tokens for r in records)
        # A record of one reply may have taken two attempts; it counts as the one call that was wanted.
        return sum(min(r.attempts, samples) for r in asked)


def augment(
    run: RunDir,
    folder: str,
    teacher: Teacher,
    slots: Sequence[Example],
    known: Known,
    seed: int,
    round_number: int,
    *,
    attempts: int,
    hints: Mapping[str, Hints] | None = None,
    rephrase: bool = False,
    stage: str = "teach",
) -> Augmented:
    """Fill `slots` (the seed of each wanted example; a seed may stand there several times).

    `known` holds the questions that must not come again; accepted ones are added to it. `hints` says by the seed's
    id what the teacher is shown beside it; `rephrase` asks for the seed in other words instead.
    """
    with run.timed(stage):
        return _augment(run, folder, teacher, slots, known, seed, round_number, attempts, hints or {}, rephrase)


def _augment(run, folder, teacher, slots, known, seed, round_number, attempts, hints, rephrase) -> Augmented:
    task, bill = teacher.task, _Bill()
    open_slots = list(enumerate(slots))
    accepted: list[Row] = []
    refused: list[Row] = []
    calls = check_calls = 0

    def messages(parent: Example) -> tuple:
        if rephrase:
            return task.rephrase_messages(parent)
        return task.teacher_messages(parent, hints.get(parent.id, Hints()))

    for attempt in range(1, attempts + 1):
        if not open_slots or bill.exhausted:
            break
        requests = [
            Request(f"{folder}/{attempt}/{slot}/{parent.id}", messages(parent), 1, parent, task.reply_fields)
            for slot, parent in open_slots
        ]
        name = f"{folder}/teacher_{attempt}.jsonl"
        records = collect(run, name, teacher.writer, requests, teacher.asking.sampling, seed)
        calls += bill.add(records, teacher.samples)
        read = [_read(teacher, r, parent) for r, (_, parent) in zip(records, open_slots, strict=True)]
        repeats = known.repeats([new.question if new.refused is None else None for new in read])
        read = [
            new if found is None else dataclasses.replace(new, refused=found.reason)
            for new, found in zip(read, repeats, strict=True)
        ]
        checks, asked = _check_labels(run, folder, attempt, teacher, read, seed, bill)
        check_calls += asked
        again = []
        for (slot, parent), record, request, new, check, repeat in zip(
            open_slots, records, requests, read, checks, repeats, strict=True
        ):
            row = _row(f"{folder}/{attempt}/{slot}", parent, record, request, round_number, attempt, teacher)
            reason = new.refused or check["refused"]
            if reason is None:
                # The question may repeat one accepted a moment ago, in this very attempt.
                (repeat,) = known.repeats([new.question])
                if repeat is None:
                    known.add(new.question, row["id"])
                    accepted.append(row | _content(task, new, parent, check["answer"]))
                    continue
                reason = repeat.reason
            why = {"reason": reason, "text": record.text, "error": record.error}
            if repeat is not None:
                why |= {"nearest": repeat.name, "similarity": round(repeat.score, 4)}
            elif check["refused"] is not None:
                why |= {"check_answer": check["answer"]}
            refused.append(row | why)
            again.append((slot, parent))
        open_slots = again
    run.once(f"{folder}/new.jsonl", lambda: accepted)
    run.once(f"{folder}/refused.jsonl", lambda: refused)
    return Augmented(
        accepted, refused, calls, check_calls, bill.prompt_tokens, bill.completion_tokens, bill.exhausted
    )


def _read(teacher: Teacher, record: Record, parent: Example) -> NewExample:
    if record.error == BUDGET_SPENT:
        return NewExample(refused=BUDGET_SPENT)
    if record.status == "failed":
        return NewExample(refused="teacher failed")
    if record.status == "length":
        return NewExample(refused="cut off")
    new = teacher.task.parse_example(record.text or "", parent)
    if new.refused is None and not teacher.fits(Example("", new.question, new.answer, new.label, new.group)):
        return NewExample(refused="too long for the student")
    return new


def _check_labels(
    run: RunDir,
    folder: str,
    attempt: int,
    teacher: Teacher,
    read: Sequence[NewExample],
    seed: int,
    bill: _Bill,
) -> tuple[list[Row], int]:
    """For each example: what the check answered, and the reason to refuse it if it disagrees; calls made."""
    task, how, votes = teacher.task, teacher.asking.label_check, teacher.asking.votes
    good = [i for i, new in enumerate(read) if new.refused is None]
    verdicts: dict[int, Row] = {}
    calls = 0
    if how == "resolve":
        requests = [
            Request(f"{folder}/check_{attempt}/{i}", task.solve_messages(read[i].question), votes) for i in good
        ]
        temperature = 0.0 if votes == 1 else VOTE_TEMPERATURE
        sampling = SampleConfig(task.answer_tokens, temperature=temperature)
        name = f"{folder}/check_{attempt}.jsonl"
        records = collect(run, name, teacher.generator, requests, sampling, seed)
        calls = bill.add(records)
        for turn, i in enumerate(good):
            verdicts[i] = _vote(task, records[turn * votes : (turn + 1) * votes], read[i].label)
    elif how == "program":
        for i in good:
            truth = task.truth(read[i].question)
            agrees = truth is not None and task.correct(truth, read[i].label)
            verdicts[i] = {"answer": truth, "refused": None if agrees else "label check"}
    accepted = {"answer": None, "refused": None}
    return [verdicts.get(i, accepted) for i in range(len(read))], calls


def _vote(task: Task, records: Sequence[Record], label: str) -> Row:
    """The answer that more than half of `records` give, and whether it is `label`."""
    if any(record.error == BUDGET_SPENT for record in records):
        return {"answer": None, "refused": BUDGET_SPENT}
    texts = [record.text for record in records if record.text is not None]
    place = majority(task, texts, len(records))
    if place is None:
        return {"answer": task.parse(texts[0]) if len(texts) == 1 else None, "refused": "label check"}
    agrees = task.correct(texts[place], label)
    return {"answer": label if agrees else task.parse(texts[place]), "refused": None if agrees else "label check"}


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
        "teacher": teacher.writer.name,
        "prompt_hash": hashlib.sha256(prompt).hexdigest()[:16],
    }


def _content(task: Task, new: NewExample, parent: Example, check: str | None) -> Row:
    """The example itself, how near it is to its seed, and the exact answer where a program knows it."""
    truth = task.truth(new.question)
    return {
        "question": new.question,
        "answer": new.answer,
        "label": new.label,
        "group": new.group,
        "rouge_l": round(rouge_l(words_of(new.question), words_of(parent.question)), 4),
        "label_check": check,
        "truth": truth,
        "label_correct": None if truth is None else task.correct(truth, new.label),
    }


def as_example(row: Row) -> Example:
    """A stored row as training data."""
    return Example(row["id"], row["question"], row["answer"], row["label"], row["group"])


def figures(made: Augmented) -> Row:
    """What a round of the teacher cost and brought, for the entry of the round."""
    reasons = collections.Counter(row["reason"] for row in made.refused)
    judged = [row for row in made.accepted if row["label_correct"] is not None]
    count = max(1, len(made.accepted))
    return {
        "teacher_calls": made.calls,
        "check_calls": made.check_calls,
        "teacher_prompt_tokens": made.prompt_tokens,
        "teacher_completion_tokens": made.completion_tokens,
        "accepted": len(made.accepted),
        "refused": dict(sorted(reasons.items())),
        "labels_known": len(judged),
        "labels_wrong": sum(not row["label_correct"] for row in judged),
        "question_words": round(sum(len(row["question"].split()) for row in made.accepted) / count, 2),
        "answer_words": round(sum(len(row["answer"].split()) for row in made.accepted) / count, 2),
    }
