"""Math: the target fails where its final answer differs from the reference.

A reference is worked out by a program, or agreed on by more than half of the labeler's answers; queries without
one are invalid, as no failure could be told. The label is a worked answer of the labeler with that result.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Literal

from common.config import SampleConfig
from common.errors import UserError
from common.evals.evaluate import answer_batches, majority
from common.generate import Message, Record
from common.tasks.base import Example, Task
from common.tasks.embedded_text import propose_prompt
from common.tasks.registry import get_task
from reversegen.applications.asking import of_labeler, of_target, said_yes
from reversegen.applications.base import Context, Data, Model, Read, Row, Taught, human_data, invalid, load_splits
from reversegen.switches import Answers, Files, Knower

MARK = "Problem:"

VALID = (
    "Below is a problem that somebody wrote. Is it a problem of mathematics that can be solved from what it says, "
    "with one number as its answer? Reply yes or no and nothing else.\n\n{query}"
)
INVALID = {
    "program": "no program reads it as a problem that it can solve",
    "labeler": "the labeler does not find that it can be solved",
    "none": "",
}
"""Why a query does not count, by who looked at it."""


def number_task(name: str, train: pathlib.Path | None) -> Task:
    """The task by its name, or its file. Raises UserError for one whose answers are no numbers."""
    task = get_task(name, train, "text", "label", "")
    if task.kind != "number":
        raise UserError(f"--task math compares numbers; the answers of {name} are none: use --task own")
    return task


@dataclasses.dataclass(frozen=True)
class Solving:
    """Implements `base.Application` on any task of `common.tasks` whose answers are numbers.

    `votes`: answers of the labeler, of which more than half must agree. `reference` and `validity`: who is asked
    for the right answer, and whether a query is a problem at all. `worked_by`: who writes the labels.
    """

    task: Task
    answers: Answers
    votes: Answers
    reference: Knower = "program"
    validity: Knower | Literal["none"] = "program"
    worked_by: Knower = "labeler"
    metric: str = "accuracy"

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def query_tokens(self) -> int:
        return self.task.example_tokens

    def load(self, files: Files) -> Data:
        train, test, shared = load_splits(self.task, files)
        uses_program = "program" in (self.reference, self.validity, self.worked_by)
        # Fifty questions tell whether there is a program at all; it need not know every single one.
        if uses_program and not any(self.task.truth(example.question) for example in train[:50]):
            raise UserError(f"no program knows the answers of {self.name}: use the labeler for --reference")
        return Data(train, test, [], human_data(self.task, files), shared)

    def prompt(self, shown: Sequence[Example]) -> tuple[Message, ...]:
        return ({"role": "user", "content": propose_prompt([example.question for example in shown])},)

    def completion(self, seed: Example) -> str:
        return f"{MARK} {seed.question}"

    def read(self, reply: str) -> Read:
        text = reply.strip()
        # A model may go on with the next problem: the first one counts.
        text = " ".join(text.removeprefix(MARK).partition(f"\n{MARK}")[0].split())
        return Read(text) if text else Read(refused="empty")

    def first(self, reply: str) -> str | None:
        whole, next_one, _ = reply.strip().partition(f"\n{MARK}")
        return whole if next_one else None

    def messages(self, query: str) -> tuple[Message, ...]:
        return self.task.messages(query)

    def verdicts(self, ctx: Context, folder: str, queries: Sequence[Row], target: Model) -> list[Row]:
        # In the order of cost: only valid queries get a reference, and only those with one are put to the target.
        found = {row["id"]: invalid(INVALID[self.validity]) for row in queries}
        valid = [row for row, good in zip(queries, self._valid(ctx, folder, queries), strict=True) if good]
        references = self._references(ctx, folder, valid)
        found |= {row["id"]: invalid("no reference answer") for row in valid}
        known = [row for row in valid if references[row["id"]]["label"] is not None]
        asked = of_target(ctx, folder, known, lambda row: self.messages(row["query"]), self.answers, target)
        for row, answers in zip(known, asked, strict=True):
            found[row["id"]] = self._verdict(answers, references[row["id"]])
        return [found[row["id"]] for row in queries]

    def _verdict(self, answers: Sequence[Record], reference: Row) -> Row:
        """An answer without a final number is a wrong one; a target that could not answer has not failed."""
        if any(record.status == "failed" for record in answers):
            return invalid("the target could not answer")
        texts = [record.text or "" for record in answers]
        wrong = [not self.task.correct(text, reference["label"]) for text in texts]
        share = sum(wrong) / len(wrong)
        outcome = "fail" if share >= 0.5 else "pass"
        told = {"reference": reference["label"], "reference_answer": reference["answer"]}
        return {"outcome": outcome, "score": share, "reason": "", "answers": texts} | told

    def _valid(self, ctx: Context, folder: str, queries: Sequence[Row]) -> list[bool]:
        if self.validity == "none":
            return [True] * len(queries)
        if self.validity == "program":
            return [self.task.truth(row["query"]) is not None for row in queries]
        return said_yes(ctx, f"{folder}/validity", queries, VALID)

    def _references(self, ctx: Context, folder: str, queries: Sequence[Row]) -> dict[str, Row]:
        """By query the right answer, and where the labeler worked it out its words."""
        if self.reference == "program":
            return {row["id"]: {"label": self.task.truth(row["query"]), "answer": None} for row in queries}
        return self._agreed(ctx, f"{folder}/reference", queries)

    def _agreed(self, ctx: Context, name: str, queries: Sequence[Row]) -> dict[str, Row]:
        """By query what more than half of the labeler's answers agree on; None where they do not."""
        ask = lambda row: self.task.solve_messages(row["query"])
        found = {}
        for row, group in zip(queries, of_labeler(ctx, name, queries, ask, self.votes), strict=True):
            texts = [record.text for record in group if record.status == "ok" and record.text is not None]
            place = majority(self.task, texts, self.votes.n)
            label = None if place is None else self.task.parse(texts[place])
            found[row["id"]] = {"label": label, "answer": None if place is None else texts[place]}
        return found

    def labels(self, ctx: Context, folder: str, judged: Sequence[Row]) -> list[Row]:
        if self.worked_by == "program":
            worked = {row["id"]: self._program(row["query"]) for row in judged}
        else:
            worked = {r["id"]: {"label": r["reference"], "answer": r["reference_answer"]} for r in judged}
            # Where the labeler worked out the reference, its words are the label, and nothing is asked again.
            new = [row for row in judged if row["reference_answer"] is None]
            worked |= self._agreed(ctx, f"{folder}/labels", new)
        return [self._label(row, worked[row["id"]]) for row in judged]

    def _program(self, query: str) -> Row:
        solution = getattr(self.task, "solution", lambda question: None)(query)
        truth = self.task.truth(query)
        return {"label": truth, "answer": solution or (None if truth is None else f"#### {truth}")}

    def _label(self, row: Row, worked: Row) -> Row:
        truth = self.task.truth(row["query"])
        if worked["answer"] is None:
            return worked | {"refused": "labelers disagree", "truth": truth, "label_correct": None}
        # It is by this reference that the target failed: a label with another result would contradict that.
        same = self.task.correct(worked["answer"], row["reference"])
        right = None if truth is None else self.task.correct(worked["answer"], truth)
        refused = None if same else "not the reference answer"
        return worked | {"refused": refused, "truth": truth, "label_correct": right}

    def taught(self, ctx: Context, folder: str, target: Model, examples: Sequence[Example]) -> Taught:
        return list(examples), []

    def partners(self, judged: Sequence[Row]) -> list[Row]:
        return []

    def measure(self, ctx: Context, name: str, kind: str, model: Model, examples: Sequence[Example]) -> list[Row]:
        sampling = SampleConfig(self.answers.tokens)
        batches = answer_batches(lambda: model().generator(), self.task, examples, sampling, ctx.seed)
        with ctx.run.timed("measure"):
            return ctx.run.collect(name, batches)

    def figures(self, rows: Sequence[Row]) -> dict[str, float | None]:
        return {"unreadable": sum(row["parsed"] is None for row in rows) / len(rows)}
