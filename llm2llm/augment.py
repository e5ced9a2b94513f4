"""One round of the teacher: request new examples, parse them strictly, filter them, keep the reasons.

A slot is one wanted example for one seed. Every slot is requested up to `attempts` times; all open slots of an
attempt form one batch. Every reply is stored before it is checked.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from common.backends.budget import BUDGET_SPENT, unpaid
from common.evals.evaluate import NO_QUESTION, majority
from common.generate import Generator, Message, Record, Request
from common.results.rundir import RunDir
from common.stages import collect
from common.tasks.base import Example, NewExample, Task
from common.tasks.replies import bare
from common.text.filters import rouge_l, words_of
from common.text.nonsense import Gate
from llm2llm.known import Known
from llm2llm.switches import Asking

Row = dict[str, Any]


class Refine(Protocol):
    """What may stand between the teacher and the checks of its replies, such as a choice among several. Called
    with the teacher's generator, it returns the generator that writes: one record a request, whose `attempts` are
    the replies asked of the teacher. `str` of it goes into the report."""

    samples: int
    """Replies asked of the teacher for each one that is passed on."""
    stored: Mapping[str, Any]
    """JSON values that determine the result; a run folder refuses another refinement."""

    def __call__(self, generator: Generator) -> Generator: ...


@dataclasses.dataclass(frozen=True)
class Teacher:
    """`generator` solves, for the label check; `writer` writes an example in `samples` calls at most. `fits` tells
    whether the student can learn and answer an example of that length. `gate`: refuses nonsense; None: nothing
    does."""

    generator: Generator
    writer: Generator
    samples: int
    task: Task
    asking: Asking
    fits: Callable[[Example], bool]
    gate: Gate | None = None


@dataclasses.dataclass(frozen=True)
class Augmented:
    """Outcome of a round: rows of accepted examples, and of refused replies with reasons; what the teacher
    replied, each in `samples` calls at most, and what it answered in the label check."""

    accepted: list[Row] = dataclasses.field(default_factory=list)
    refused: list[Row] = dataclasses.field(default_factory=list)
    replies: list[Record] = dataclasses.field(default_factory=list)
    checks: list[Record] = dataclasses.field(default_factory=list)
    samples: int = 1

    @property
    def exhausted(self) -> bool:
        """Whether the budget ended before the slots did."""
        return any(unpaid(record.error) for record in (*self.replies, *self.checks))


def augment(
    run: RunDir,
    folder: str,
    teacher: Teacher,
    slots: Sequence[Example],
    known: Known,
    seed: int,
    round_number: int,
    attempts: int,
    messages: Callable[[Example], tuple[Message, ...]],
) -> Augmented:
    """Fill `slots` (the seed of each wanted example; a seed may stand there several times).

    `known` holds the questions that must not be repeated; accepted ones are added to it. `messages` gives the
    request for a new example like a seed.
    """
    task, made = teacher.task, Augmented(samples=teacher.samples)
    open_slots = list(enumerate(slots))
    for attempt in range(1, attempts + 1):
        # With the budget spent, every further request would come back as failed.
        if not open_slots or made.exhausted:
            break
        # What is written and cannot be checked would be paid for in vain: later requests leave more for checks.
        reserves = itertools.accumulate((teacher.asking.check_cost(task, parent) for _, parent in open_slots))
        requests = [
            # The id seeds sampling and names the stored reply: without the attempt, the old text would come back.
            Request(
                f"{folder}/{attempt}/{slot}/{parent.id}",
                messages(parent),
                example=parent,
                fields=task.reply_fields,
                choices=_closed(task),
                reserve=dataclasses.astuple(reserve),
            )
            for (slot, parent), reserve in zip(open_slots, reserves, strict=True)
        ]
        name = f"{folder}/teacher_{attempt}.jsonl"
        records = collect(run, name, teacher.writer, requests, teacher.asking.sampling, seed)
        read = [_read(teacher, r, parent) for r, (_, parent) in zip(records, open_slots, strict=True)]
        if teacher.gate is not None:
            reasons = teacher.gate.reasons([new.question if new.refused is None else None for new in read])
            read = [
                new if why is None else dataclasses.replace(new, refused=why)
                for new, why in zip(read, reasons, strict=True)
            ]
        # Before the label check, which should not be paid for a repetition.
        repeats = known.repeats([new.question if new.refused is None else None for new in read])
        read = [
            new if found is None else dataclasses.replace(new, refused=found.reason)
            for new, found in zip(read, repeats, strict=True)
        ]
        verdicts, checks = _check_labels(run, folder, attempt, teacher, read, seed)
        made.replies.extend(records)
        made.checks.extend(checks)
        asked, open_slots = open_slots, []
        for (slot, parent), record, request, new, (answer, disagrees), repeat in zip(
            asked, records, requests, read, verdicts, repeats, strict=True
        ):
            prompt = json.dumps(request.messages, ensure_ascii=False).encode()
            row = {
                "id": f"{folder}/{attempt}/{slot}",
                "parent": parent.id,
                "round": round_number,
                "attempt": attempt,
                "teacher": teacher.writer.name,
                "prompt_hash": hashlib.sha256(prompt).hexdigest()[:16],
            }
            reason = new.refused or disagrees
            if reason is None:
                # The question may repeat one accepted a moment ago, in this very attempt.
                (repeat,) = known.repeats([new.question])
                if repeat is None:
                    known.add(new.question, row["id"])
                    made.accepted.append(row | _content(task, new, parent, answer))
                    continue
                reason = repeat.reason
            row |= {"reason": reason, "text": record.text, "error": record.error}
            if repeat is not None:
                row |= {"nearest": repeat.name, "similarity": round(repeat.score, 4)}
            elif disagrees is not None:
                row |= {"check_answer": answer}
            made.refused.append(row)
            open_slots.append((slot, parent))
    run.once(f"{folder}/new.jsonl", lambda: made.accepted)
    run.once(f"{folder}/refused.jsonl", lambda: made.refused)
    return made


def _closed(task: Task) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The field of a reply that takes one of a few answers, the last one, with these; () where they are open."""
    return ((task.reply_fields[-1], task.choices),) if task.choices else ()


def _read(teacher: Teacher, record: Record, parent: Example) -> NewExample:
    # A spent budget is a failed record, too, but ends the round: it is looked for first.
    if unpaid(record.error):
        return NewExample(refused=BUDGET_SPENT)
    if record.status == "failed":
        return NewExample(refused="teacher failed")
    if record.status == "length":
        return NewExample(refused="cut off")
    new = teacher.task.parse_example(bare(record.text or ""), parent)
    if new.refused is None and not teacher.fits(Example("", new.question, new.answer, new.label, new.group)):
        return NewExample(refused="too long for the student")
    return new


Check = tuple[str | None, str | None]
"""What a label check answered, and the reason to refuse the example if it disagrees."""


def _check_labels(
    run: RunDir, folder: str, attempt: int, teacher: Teacher, read: Sequence[NewExample], seed: int
) -> tuple[list[Check], list[Record]]:
    """The check of each example, and what the teacher answered for it. Examples refused before are not checked."""
    task, votes = teacher.task, teacher.asking.votes
    good = {i: new for i, new in enumerate(read) if new.refused is None}
    found: dict[int, Check] = {}
    records: list[Record] = []
    if teacher.asking.label_check == "resolve":
        # Only a single answer: of a closed set the likeliest is taken, and several would all be the same.
        closed = _closed(task) if votes == 1 else ()
        fields = tuple(name for name, _ in closed)
        requests = [
            Request(
                f"{folder}/check_{attempt}/{i}",
                task.solve_messages(new.question),
                votes,
                fields=fields,
                choices=closed,
                blank=task.solve_messages(NO_QUESTION) if closed else (),
            )
            for i, new in good.items()
        ]
        sampling = teacher.asking.checking(task)
        records = collect(run, f"{folder}/check_{attempt}.jsonl", teacher.generator, requests, sampling, seed)
        for turn, (i, new) in enumerate(good.items()):
            found[i] = _vote(task, records[turn * votes : (turn + 1) * votes], new.label)
    elif teacher.asking.label_check == "program":
        for i, new in good.items():
            truth = task.truth(new.question)
            # Where the program has no answer, nothing vouches for the label: refused like a wrong one.
            agrees = truth is not None and task.correct(truth, new.label)
            found[i] = truth, None if agrees else "label check"
    return [found.get(i, (None, None)) for i in range(len(read))], records


def _vote(task: Task, records: Sequence[Record], label: str) -> Check:
    """Whether the answer that more than half of `records` give is `label`."""
    # Votes that were cut short by the budget must not decide.
    if any(unpaid(record.error) for record in records):
        return None, BUDGET_SPENT
    texts = [bare(record.text) for record in records if record.text is not None]
    # More than half of all that were asked: an answer that failed counts against each label.
    place = majority(task, texts, len(records))
    if place is None:
        return task.parse(texts[0]) if len(texts) == 1 else None, "label check"
    if task.correct(texts[place], label):
        return label, None
    return task.parse(texts[place]), "label check"


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
        # For the report alone: whether it refuses an example is for the label check to say.
        "label_correct": None if truth is None else task.correct(truth, new.label),
    }


def as_example(row: Row) -> Example:
    """A stored row as training data."""
    return Example(row["id"], row["question"], row["answer"], row["label"], row["group"])


def figures(made: Augmented) -> Row:
    """What a round of the teacher cost and brought, for the entry of the round."""
    reasons = collections.Counter(row["reason"] for row in made.refused)
    judged = [row for row in made.accepted if row["label_correct"] is not None]
    spent = [*made.replies, *made.checks]

    def calls(records: Sequence[Record], samples: int) -> int:
        # A record of one reply may have taken two attempts; it counts as the one call that was wanted.
        return sum(min(record.attempts, samples) for record in records if not unpaid(record.error))

    def words(part: str) -> float:
        lengths = [len(row[part].split()) for row in made.accepted]
        return round(sum(lengths) / max(1, len(lengths)), 2)

    return {
        "teacher_calls": calls(made.replies, made.samples),
        "check_calls": calls(made.checks, 1),
        "teacher_prompt_tokens": sum(record.prompt_tokens for record in spent),
        "teacher_completion_tokens": sum(record.completion_tokens for record in spent),
        "accepted": len(made.accepted),
        "refused": dict(sorted(reasons.items())),
        "labels_known": len(judged),
        "labels_wrong": sum(not row["label_correct"] for row in judged),
        "question_words": words("question"),
        "answer_words": words("answer"),
    }
