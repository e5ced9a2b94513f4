"""Math: the target fails where its final answer differs from the reference.

A reference is worked out by a program, or agreed on by more than half of the labeler's answers; queries without
one are invalid, as no failure could be told. The label is a worked answer of the labeler with that result.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from common.config import SampleConfig
from common.errors import UserError
from common.evals.evaluate import answer_waves, majority
from common.generate import Message, Record
from common.stages import collect
from common.tasks.base import Example, Task
from common.tasks.embedded_text import propose_prompt
from common.tasks.files import check_ids
from common.tasks.registry import get_task
from reversegen.applications.base import Context, Data, Model, Read, Row, in_groups, invalid, requests
from reversegen.config import Config

MARK = "Problem:"
VOTE_TEMPERATURE = 0.7
"""Of the labeler where it answers more than once, as the authors' program samples more answers."""

VALID = (
    "Below is a problem that somebody wrote. Is it a problem of mathematics that can be solved from what it says, "
    "with one number as its answer? Reply yes or no and nothing else.\n\n{query}"
)


@dataclasses.dataclass(frozen=True)
class Solving:
    """Implements `base.Application` on any task of `common.tasks` whose answers are numbers."""

    task: Task
    metric: str = "accuracy"

    @classmethod
    def of(cls, config: Config) -> "Solving":
        """Raises UserError for data whose answers are no numbers, or that lack the program asked for."""
        train = None if config.seeds_file is None else pathlib.Path(config.seeds_file)
        task = get_task(config.data, train, "text", "label", "")
        if task.kind != "number":
            raise UserError(f"--task math compares numbers; the answers of {config.data} are none: use --task own")
        return cls(task)

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def query_tokens(self) -> int:
        return self.task.example_tokens

    @property
    def answer_tokens(self) -> int:
        return self.task.answer_tokens

    def load(self, config: Config) -> Data:
        train, test = load_splits(self.task, config)
        uses_program = "program" in (config.reference, config.validity, config.labeler)
        if uses_program and not any(self.task.truth(example.question) for example in train[:50]):
            raise UserError(f"no program knows the answers of {config.data}: use the labeler for --reference")
        human = [] if config.human_file is None else self.task.load("train", pathlib.Path(config.human_file), 0)
        return Data(train, test, [], human)

    def prompt(self, shown: Sequence[Example]) -> tuple[Message, ...]:
        return ({"role": "user", "content": propose_prompt([example.question for example in shown])},)

    def completion(self, seed: Example) -> str:
        return f"{MARK} {seed.question}"

    def read(self, reply: str) -> Read:
        text = reply.strip()
        text = " ".join(text.removeprefix(MARK).partition(f"\n{MARK}")[0].split())
        return Read(text) if text else Read(refused="empty")

    def messages(self, query: str) -> tuple[Message, ...]:
        return self.task.messages(query)

    def verdicts(self, ctx: Context, folder: str, queries: Sequence[Row], target: Model) -> list[Row]:
        found = {row["id"]: invalid("not valid") for row in queries}
        valid = [row for row, good in zip(queries, self._valid(ctx, folder, queries), strict=True) if good]
        references = self._references(ctx, folder, valid)
        found |= {row["id"]: invalid("no reference answer") for row in valid}
        known = [row for row in valid if references[row["id"]]["label"] is not None]
        n = ctx.config.target_samples
        sampling = ctx.config.answering(self.answer_tokens)
        asked = requests(f"{folder}/target", known, lambda row: self.messages(row["query"]), n)
        with ctx.run.timed("target answers"):
            records = collect(
                ctx.run, f"{folder}/target.jsonl", lambda: target().generator(), asked, sampling, ctx.seed
            )
        for row, answers in zip(known, in_groups(records, n), strict=True):
            found[row["id"]] = self._verdict(answers, references[row["id"]])
        return [found[row["id"]] for row in queries]

    def _verdict(self, answers: Sequence[Record], reference: Row) -> Row:
        """An answer without a final number is a wrong one; a target that could not answer has not failed."""
        if any(record.status == "failed" for record in answers):
            return invalid("the target could not answer")
        texts = [record.text for record in answers]
        wrong = [not self.task.correct(text, reference["label"]) for text in texts]
        share = sum(wrong) / len(wrong)
        outcome = "fail" if share >= 0.5 else "pass"
        told = {"reference": reference["label"], "reference_answer": reference["answer"]}
        return {"outcome": outcome, "score": share, "reason": "", "answers": texts} | told

    def _valid(self, ctx: Context, folder: str, queries: Sequence[Row]) -> list[bool]:
        how = ctx.config.validity
        if how == "none":
            return [True] * len(queries)
        if how == "program":
            return [self.task.truth(row["query"]) is not None for row in queries]
        return said_yes(ctx, f"{folder}/validity", queries, VALID)

    def _references(self, ctx: Context, folder: str, queries: Sequence[Row]) -> dict[str, Row]:
        """By query the right answer ("label") and, where the labeler worked it out, its words ("answer")."""
        if ctx.config.reference == "program":
            return {row["id"]: {"label": self.task.truth(row["query"]), "answer": None} for row in queries}
        return self._agreed(ctx, f"{folder}/reference", queries)

    def _agreed(self, ctx: Context, name: str, queries: Sequence[Row]) -> dict[str, Row]:
        """By query what more than half of the labeler's answers agree on; None where they do not."""
        votes = ctx.config.label_votes
        sampling = SampleConfig(self.answer_tokens, temperature=VOTE_TEMPERATURE if votes > 1 else 0.0)
        asked = requests(name, queries, lambda row: self.task.solve_messages(row["query"]), votes)
        records = labeled(ctx, f"{name}.jsonl", asked, sampling)
        found = {}
        for row, group in zip(queries, in_groups(records, votes), strict=True):
            texts = [record.text for record in group if record.status == "ok"]
            place = majority(self.task, texts, votes)
            label = None if place is None else self.task.parse(texts[place])
            found[row["id"]] = {"label": label, "answer": None if place is None else texts[place]}
        return found

    def labels(self, ctx: Context, folder: str, judged: Sequence[Row]) -> list[Row]:
        if ctx.config.labeler == "program":
            worked = {row["id"]: self._program(row["query"]) for row in judged}
        else:
            worked = {r["id"]: {"label": r["reference"], "answer": r["reference_answer"]} for r in judged}
            new = [row for row in judged if row["reference_answer"] is None]
            worked |= self._agreed(ctx, f"{folder}/labels", new)
        return [self._label(row, worked[row["id"]]) for row in judged]

    def _program(self, query: str) -> Row:
        solution = getattr(self.task, "solution", lambda question: None)(query)
        truth = self.task.truth(query)
        return {"label": truth, "answer": solution or (None if truth is None else f"#### {truth}")}

    def _label(self, row: Row, worked: Row) -> Row:
        truth = self.task.truth(row["query"])
        right = None
        if truth is not None and worked["answer"] is not None:
            right = self.task.correct(worked["answer"], truth)
        refused = None
        if worked["answer"] is None:
            refused = "labelers disagree"
        elif not self.task.correct(worked["answer"], row["reference"]):
            refused = "not the reference answer"
        return worked | {"refused": refused, "truth": truth, "label_correct": right}

    def taught(self, ctx: Context, folder: str, target: Model, examples: Sequence[Example]) -> list[Example]:
        return list(examples)

    def partners(self, judged: Sequence[Row]) -> list[Row]:
        return []

    def measure(self, ctx: Context, name: str, kind: str, model: Model, examples: Sequence[Example]) -> list[Row]:
        sampling = SampleConfig(ctx.config.answer_tokens or self.answer_tokens)
        waves = answer_waves(lambda: model().generator(), self.task, examples, sampling, ctx.seed)
        with ctx.run.timed("measure"):
            return ctx.run.collect(name, waves)

    def figures(self, rows: Sequence[Row]) -> dict[str, float | None]:
        return {"unreadable": sum(row["parsed"] is None for row in rows) / len(rows)}


def load_splits(task: Task, config: Config) -> tuple[list[Example], list[Example]]:
    """Training and test examples of a task; training questions that are test questions too are left out.

    Raises UserError for rows that do not fit, and for ids that come twice.
    """
    file = lambda name: None if name is None else pathlib.Path(name)
    train = task.load("train", file(config.seeds_file), config.seed)
    test = task.load("test", file(config.test_file), config.seed)
    for examples in (train, test):
        check_ids(examples)
    held_out = {example.question for example in test}
    return [example for example in train if example.question not in held_out], test


def labeled(ctx: Context, name: str, asked: Sequence, sampling: SampleConfig) -> list[Record]:
    """Replies of the labeler, booked on the repeat's account."""
    with ctx.run.timed("label"):
        return collect(ctx.run, name, ctx.labeler(ctx.account), asked, sampling, ctx.seed)


def said_yes(ctx: Context, name: str, queries: Sequence[Row], question: str) -> list[bool]:
    """Whether the labeler answers `question`, which holds {query}, with yes."""
    ask = lambda row: ({"role": "user", "content": question.replace("{query}", row["query"])},)
    records = labeled(ctx, f"{name}.jsonl", requests(name, queries, ask, 1), SampleConfig(8))
    return [(record.text or "").strip().lower().startswith("yes") for record in records]
