"""What stands in front of every question put to the student: a system text, and examples with their answers.

task = asked(TASKS["trec"], system="You sort questions.", shots=seeds, few=6)
task.messages("Who wrote it?")             # system, six questions with answers as turns, and the question
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, cast

from common.generate import Message
from common.tasks.base import Example, Task


def asked(task: Task, system: str = "", shots: Sequence[Example] = (), few: int = 0) -> Task:
    """`task` whose `messages` begin with `system` and with the first `few` of `shots` as turns, in training and
    evaluation alike; all else is the task's own. An example is not shown in front of its own question: the next of
    its group after the first `few` takes its place, so that the pattern of groups says nothing of the answer."""
    return cast(Task, _Asked(task, system, tuple(shots), few)) if system or few else task


@dataclasses.dataclass(frozen=True)
class _Asked:
    task: Task
    system: str
    shots: tuple[Example, ...]
    few: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def messages(self, question: str) -> tuple[Message, ...]:
        own = self.task.messages(question)
        # Templates take one system turn: a task's own is joined to the one given.
        systems = [self.system, *(turn["content"] for turn in own if turn["role"] == "system")]
        text = "\n\n".join(filter(None, systems))
        turns: list[Message] = [{"role": "system", "content": text}] if text else []
        for shot in self._shown(question):
            turns += _without_system(self.task.messages(shot.question))
            turns.append({"role": "assistant", "content": shot.answer})
        return (*turns, *_without_system(own))

    def _shown(self, question: str) -> Iterator[Example]:
        spare = self.shots[self.few :]
        for shot in self.shots[: self.few]:
            if shot.question != question:
                yield shot
            elif other := next((s for s in spare if s.group == shot.group and s.question != question), None):
                yield other


def _without_system(turns: Sequence[Message]) -> list[Message]:
    return [turn for turn in turns if turn["role"] != "system"]
