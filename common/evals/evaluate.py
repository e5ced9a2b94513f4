"""Let a model answer a task's questions and grade the answers, by what it writes or by what it finds likely.

rows = run.collect("test.jsonl", answer_batches(generator, task, examples))
rows = run.collect("test.jsonl", scored_batches(model, task, examples))
accuracy(rows)
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config import SampleConfig
from common.evals.likelihood import DIGITS
from common.generate import Generator, Message, Request
from common.sample.score import score_shared
from common.tasks.base import Example, Task
from common.tasks.replies import bare

if TYPE_CHECKING:
    from common.lm import LanguageModel

Row = dict[str, Any]
Scores = Sequence[tuple[float, int]]
"""Of every choice the summed log-probability of its tokens in nats, and how many they are."""
NO_QUESTION = "N/A"
"""What stands in a prompt to see how likely answers are whatever is asked."""


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
        # Tasks that list their answers list them in front of the question.
        blank = tuple(task.messages(NO_QUESTION)) if task.choices else ()
        requests = [Request(e.id, tuple(task.messages(e.question)), n, blank=blank) for e in rest]
        answered, stored = 0, done % n  # a torn batch may have left a part of a question's answers
        for records in generator().generate(requests, sampling, seed):
            rows = [
                {
                    "id": example.id,
                    "group": example.group,
                    "label": example.label,
                    "status": record.status,
                    "text": record.text,
                    "parsed": None if said is None else task.parse(said),
                    "correct": said is not None and task.correct(said, example.label),
                    "mean_logp": record.mean_logp,
                }
                for i, record in enumerate(records)
                for example in [rest[(answered + i) // n]]
                for said in [None if record.text is None else bare(record.text)]
            ]
            yield rows[stored:]
            answered, stored = answered + len(records), 0

    return batches


def scored_batches(
    model: "Callable[[], LanguageModel]",
    task: Task,
    examples: Sequence[Example],
    sampling: SampleConfig | None = None,
    seed: int = 0,
    *,
    learned: bool = False,
) -> Callable[[int], Iterator[list[Row]]]:
    """As `answer_batches`, but the answer is the one of `task.choices` that the question makes most likely; what
    the model writes stands beside it.

    Of a model that was trained on the task (`learned`) that is the likeliest choice. For others it is decided by
    how much the question raises the log-probability of a choice over that after the same prompt with `NO_QUESTION`
    in it (contextual calibration, Zhao et al. 2021, arXiv 2102.09690; domain-conditional PMI, Holtzman et al.
    2021, arXiv 2104.08315). Untrained models find some labels likely whatever is asked: by plain likelihood
    SmolLM2-135M answers 98 of 100 questions of TREC with the first label listed. A trained one knows how often
    labels occur, and what it makes of a prompt without a question says nothing any more. Sums of tokens are
    compared: length costs a choice the same with the question and without.

    A row's `text` and `parsed` are that choice. `logps`: of every choice the summed log-probability of its tokens
    in nats; `pmi`: by how much that is raised. `mean_logp`: the log of the choice's share in the exponentials of
    what decides, how sure the model is of it. `likeliest`, `per_token`: the choices of highest sum, and of highest
    mean of a token.
    `reply`: what the model wrote, and `read` the answer stated there; `status` is the reply's.
    """

    def batches(done: int) -> Iterator[list[Row]]:
        rest = examples[done:]
        if not rest:
            return
        ready, place = model(), 0
        for rows in answer_batches(lambda: ready.generator(), task, rest, sampling, seed)(0):
            questions = [example.question for example in rest[place : place + len(rows)]]
            asked = [task.messages(question) for question in (*questions, NO_QUESTION)]
            *scores, blank = choice_logps(ready, asked, task.choices)
            yield [_by_score(task, row, found, blank, learned) for row, found in zip(rows, scores, strict=True)]
            place += len(rows)

    return batches


def choice_logps(
    model: "LanguageModel", asked: Sequence[Sequence[Message]], choices: Sequence[str]
) -> list[Scores]:
    """The scores of `choices` after every conversation, with tokens as in training but for the end token."""
    groups = []
    for messages in asked:
        encoded = [model.tokenizer.encode_example(messages, choice) for choice in choices]
        start = encoded[0][1]
        groups.append((encoded[0][0][:start], [tokens[start:-1] for tokens, _ in encoded]))
    return [
        [(round(float(logps.sum(dtype=np.float64)), DIGITS), len(logps)) for logps in own]
        for own in score_shared(model.params, model.config, groups)
    ]


def _by_score(
    task: Task, row: Row, scores: Sequence[tuple[float, int]], blank: Sequence[tuple[float, int]], learned: bool
) -> Row:
    sums = np.array([logp for logp, _ in scores])
    pmi = (sums - [logp for logp, _ in blank]).round(DIGITS)
    decides = sums if learned else pmi
    best = int(decides.argmax())
    chosen = task.choices[best]
    return row | {
        "text": chosen,
        "parsed": chosen,
        "correct": task.correct(chosen, row["label"]),
        "mean_logp": round(float(decides[best] - np.logaddexp.reduce(decides)), 5),
        "logps": dict(zip(task.choices, sums.tolist(), strict=True)),
        "pmi": dict(zip(task.choices, pmi.tolist(), strict=True)),
        "likeliest": task.choices[int(sums.argmax())],
        "per_token": task.choices[int((sums / [count for _, count in scores]).argmax())],
        "reply": row["text"],
        "read": row["parsed"],
    }


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
