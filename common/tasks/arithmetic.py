"""The embedded task: short word problems of twelve skills, data written by rule, every answer exactly known."""

import dataclasses
import pathlib
import random
import re

from common.embedded.text import similar_prompt, similar_reply
from common.errors import UserError
from common.generate import Message
from common.tasks.base import Example, NewExample
from common.tasks.files import read_rows, require
from common.tasks.grading import MARK, final_answer, same_number, wrong_equation
from common.tasks.problems import SKILLS, recognise, write

SIZES = {"train": 2400, "dev": 192, "test": 480}
_REPLY = re.compile(r"\s*Problem:\s*(?P<question>.+?)\s*\n\s*Solution:\s*(?P<solution>.*?)\s*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Implements `common.tasks.base.Task`."""

    name: str = "arithmetic"
    answer_tokens: int = 40
    example_tokens: int = 96
    near_duplicate: float = 0.85

    def load(self, split: str, file: pathlib.Path | None, seed: int) -> list[Example]:
        if file is not None:
            return [self._from_row(row, place) for row, place in read_rows(file)]
        # Splits come from one stream without repetition, so that no test problem can be a training one.
        rng = random.Random(f"arithmetic {seed}")
        seen: set[str] = set()
        found: dict[str, list[Example]] = {}
        for name in ("test", "dev", "train"):
            found[name] = []
            for i in range(SIZES[name]):
                skill = list(SKILLS)[i % len(SKILLS)]
                problem = write(rng, skill)
                while problem.question in seen:
                    problem = write(rng, skill)
                seen.add(problem.question)
                found[name].append(
                    Example(f"{name}-{i}", problem.question, problem.solution, str(problem.answer), skill)
                )
            if name == split:
                break
        return found[split]

    def _from_row(self, row: dict, place: str) -> Example:
        question, answer = require(row, "question", place), require(row, "answer", place)
        label = final_answer(answer)
        if label is None:
            raise UserError(f"{place}: the answer holds no number: end it with '#### NUMBER'")
        solution = answer if MARK in answer else f"{answer} {MARK} {label}"
        known = recognise(question)
        group = known.skill if known else "other"
        return Example(str(row.get("id", place)), question, solution, label, group, place)

    def messages(self, question: str) -> tuple[Message, ...]:
        return ({"role": "user", "content": question},)

    def parse(self, text: str) -> str | None:
        return final_answer(text)

    def correct(self, text: str, label: str) -> bool:
        return same_number(final_answer(text), label)

    def teacher_messages(self, example: Example) -> tuple[Message, ...]:
        return ({"role": "user", "content": similar_prompt(example.question, example.answer)},)

    def write_example(self, example: Example) -> str:
        return similar_reply(example.question, example.answer)

    def parse_example(self, text: str, parent: Example) -> NewExample:
        match = _REPLY.fullmatch(text)
        if match is None:
            return NewExample(refused="format")
        question, solution = " ".join(match["question"].split()), " ".join(match["solution"].split())
        rationale, mark, stated = solution.partition(MARK)
        if not mark or not question.endswith("?"):
            return NewExample(refused="format")
        if not rationale.strip():
            return NewExample(refused="no rationale")
        label = final_answer(solution)
        if label is None or label != stated.strip():
            return NewExample(refused="answer is not a number")
        if wrong_equation(rationale):
            return NewExample(refused="wrong equation")
        return NewExample(question, f"{rationale.strip()} {MARK} {label}", label, parent.group)

    def truth(self, question: str) -> str | None:
        problem = recognise(question)
        return None if problem is None else str(problem.answer)
