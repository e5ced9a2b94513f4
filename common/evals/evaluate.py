"""Let a model answer a task's questions and grade the answers, by what it writes or by what it finds likely.

rows = run.collect("test.jsonl", answer_batches(generator, task, examples))
rows = run.collect("test.jsonl", scored_batches(model, task, examples))
accuracy(rows)
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common.config import SampleConfig
from common.evals.likelihood import DIGITS
from common.generate import Generator, Message, Record, Request
from common.sample.local import BATCH
from common.sample.score import score_shared_greedy
from common.tasks.base import Example, Task
from common.tasks.replies import bare

if TYPE_CHECKING:
    from common.lm import LanguageModel

Row = dict[str, Any]
NO_QUESTION = "N/A"
"""What stands in a prompt to see how likely answers are whatever is asked."""


class Choice(NamedTuple):
    """Of a choice after a prompt: the summed log-probability of its tokens in nats, and how many they are;
    `written`: its text if greedy decoding would write it and end, else None."""

    logp: float
    tokens: int
    written: str | None


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
            rows = [_graded(task, rest[(answered + i) // n], record) for i, record in enumerate(records)]
            yield rows[stored:]
            answered, stored = answered + len(records), 0

    return batches


def _graded(task: Task, example: Example, record: Record) -> Row:
    said = None if record.text is None else bare(record.text)
    return {
        "id": example.id,
        "group": example.group,
        "label": example.label,
        "status": record.status,
        "text": record.text,
        "parsed": None if said is None else task.parse(said),
        "correct": said is not None and task.correct(said, example.label),
        "mean_logp": record.mean_logp,
    }


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
    the model writes stands beside it. It is asked to write only where that does not follow from the likelihoods:
    where each token of a choice and the end behind it are the likeliest, that choice is what it writes.

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
        ready, how = model(), sampling or SampleConfig(max_new_tokens=task.answer_tokens)
        for start in range(0, len(rest), BATCH):
            part = rest[start : start + BATCH]
            asked = [task.messages(question) for question in (*(e.question for e in part), NO_QUESTION)]
            *scores, blank = choice_scores(ready, asked, task.choices)
            read = [_read_off(own, how) for own in scores]
            others = [example for example, text in zip(part, read, strict=True) if text is None]
            batches = answer_batches(lambda: ready.generator(), task, others, how, seed)(0)
            written = itertools.chain.from_iterable(batches)
            rows = [
                next(written) if text is None else _graded(task, example, Record(example.id, 0, "ok", text))
                for example, text in zip(part, read, strict=True)
            ]
            yield [_by_score(task, row, own, blank, learned) for row, own in zip(rows, scores, strict=True)]

    return batches


def choice_scores(
    model: "LanguageModel", asked: Sequence[Sequence[Message]], choices: Sequence[str]
) -> list[list[Choice]]:
    """What `choices` score after every conversation, with tokens as in training; the end token behind them counts
    for `written` alone."""
    groups = []
    for messages in asked:
        encoded = [model.tokenizer.encode_example(messages, choice) for choice in choices]
        start = encoded[0][1]
        groups.append((encoded[0][0][:start], [tokens[start:] for tokens, _ in encoded]))
    found = []
    scored = score_shared_greedy(model.params, model.config, groups)
    for (_, answers), own in zip(groups, scored, strict=True):
        found.append([])
        for tokens, (logps, likeliest) in zip(answers, own, strict=True):
            written = model.tokenizer.decode(tokens[:-1]) if likeliest.all() else None
            logp = round(float(logps[:-1].sum(dtype=np.float64)), DIGITS)
            found[-1].append(Choice(logp, len(tokens) - 1, written))
    return found


def _read_off(scores: Sequence[Choice], how: SampleConfig) -> str | None:
    """What the model would write, if that is one of the choices; None where it has to be asked."""
    for own in scores if how.temperature == 0 else ():
        fits = own.tokens < how.max_new_tokens  # with the end
        if own.written is not None and fits and not any(stop in own.written for stop in how.stop):
            return own.written
    return None


def _by_score(task: Task, row: Row, scores: Sequence[Choice], blank: Sequence[Choice], learned: bool) -> Row:
    sums = np.array([own.logp for own in scores])
    pmi = (sums - [own.logp for own in blank]).round(DIGITS)
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
        "per_token": task.choices[int((sums / [own.tokens for own in scores]).argmax())],
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
