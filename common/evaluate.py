"""Let a model answer a task's questions and grade the answers.

rows = run.collect("test.jsonl", answer_waves(generator, task, examples))
accuracy(rows)
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from common.config import SampleConfig
from common.generate import Generator, Request
from common.tasks.base import Example, Task

Row = dict[str, Any]


def answer_waves(
    generator: Callable[[], Generator], task: Task, examples: Sequence[Example]
) -> Callable[[int], Iterator[list[Row]]]:
    """Graded greedy answers in waves, as `RunDir.collect` takes them: called with the number of rows there are.

    `generator` is called only when there is something to answer. A row holds id, group, status, the reply,
    what was read from it (`parsed`), the right label and whether they agree (`correct`).
    """

    def waves(done: int) -> Iterator[list[Row]]:
        rest = examples[done:]
        if not rest:
            return
        requests = [Request(e.id, tuple(task.messages(e.question))) for e in rest]
        sampling = SampleConfig(max_new_tokens=task.answer_tokens)
        start = 0
        for records in generator().generate(requests, sampling, seed=0):
            wave = rest[start : start + len(records)]
            start += len(records)
            yield [
                {
                    "id": example.id,
                    "group": example.group,
                    "label": example.label,
                    "status": record.status,
                    "text": record.text,
                    "parsed": None if record.text is None else task.parse(record.text),
                    "correct": record.text is not None and task.correct(record.text, example.label),
                }
                for example, record in zip(wave, records, strict=True)
            ]

    return waves


def accuracy(rows: Sequence[Row]) -> float:
    """Share of correct rows; raises ZeroDivisionError for none."""
    return sum(row["correct"] for row in rows) / len(rows)


def accuracy_by_group(rows: Sequence[Row]) -> dict[str, float]:
    """Accuracy of each class or skill, by name."""
    groups: dict[str, list[bool]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row["correct"])
    return {name: sum(marks) / len(marks) for name, marks in sorted(groups.items())}
