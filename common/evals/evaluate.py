"""Let a model answer a task's questions and grade the answers.

rows = run.collect("test.jsonl", answer_batches(generator, task, examples))
accuracy(rows)
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from common.config import SampleConfig
from common.generate import Generator, Request, bare
from common.tasks.base import Example, Task

Row = dict[str, Any]


def answer_batches(
    generator: Callable[[], Generator],
    task: Task,
    examples: Sequence[Example],
    sampling: SampleConfig | None = None,
    seed: int = 0,
    n: int = 1,
) -> Callable[[int], Iterator[list[Row]]]:
    """Graded answers in batches, as `RunDir.collect` takes them: called with the number of rows there are.

    `n` answers to each question, side by side; greedy ones unless `sampling` says otherwise. `generator` is called
    only when there is something to answer. A row holds id, group, label, status, the reply, what was read from it
    (`parsed`), whether that is right (`correct`), and `mean_logp`, how sure the model was of its own words.
    """
    sampling = sampling or SampleConfig(max_new_tokens=task.answer_tokens)

    def batches(done: int) -> Iterator[list[Row]]:
        rest = examples[done // n :]
        if not rest:
            return
        requests = [Request(e.id, tuple(task.messages(e.question)), n) for e in rest]
        answered, stored = 0, done % n  # a torn batch may have left a part of a question's answers
        for records in generator().generate(requests, sampling, seed):
            rows = [
                {
                    "id": example.id,
                    "group": example.group,
                    "label": example.label,
                    "status": record.status,
                    "text": record.text,
                    "parsed": None if record.text is None else task.parse(bare(record.text)),
                    "correct": record.text is not None and task.correct(bare(record.text), example.label),
                    "mean_logp": record.mean_logp,
                }
                for i, record in enumerate(records)
                for example in [rest[(answered + i) // n]]
            ]
            yield rows[stored:]
            answered, stored = answered + len(records), 0

    return batches


def accuracy(rows: Sequence[Row]) -> float:
    """Share of correct rows; raises ZeroDivisionError for none."""
    return sum(row["correct"] for row in rows) / len(rows)


def accuracy_by_group(rows: Sequence[Row]) -> dict[str, float]:
    """Accuracy of each class or skill, by name."""
    groups: dict[str, list[bool]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row["correct"])
    return {name: sum(marks) / len(marks) for name, marks in sorted(groups.items())}


def majority(task: Task, texts: Sequence[str], of: int) -> int | None:
    """Place of the first of `texts` whose answer more than half of `of` texts state; None if there is none."""
    for place, text in enumerate(texts):
        answer = task.parse(text)
        if answer is not None and 2 * sum(task.correct(other, answer) for other in texts) > of:
            return place
    return None
