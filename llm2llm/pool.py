"""A teacher that invents nothing: it answers with the nearest unused real examples of the same class or skill.

It is an upper bound for a teacher with the same label distribution, and a way to run the loop on real data
without a large model.

    teacher = PoolGenerator("pool:train.jsonl", task, task.load("train", file, 0), exclude={seed questions})
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse

from common.config import SampleConfig
from common.generate import Record, Request
from common.tasks.base import Example, Task
from common.text.filters import words_of
from common.text.same import normal_form


class PoolGenerator:
    """Implements `common.generate.Generator` over `examples`, none of which is given out twice."""

    def __init__(self, name: str, task: Task, examples: Sequence[Example], exclude: set[str]):
        """`exclude`: questions never to be given out, such as the seeds, however they are written."""
        self.name = name
        self._task = task
        known = {normal_form(question) for question in exclude}
        # Real data repeat questions. One of each is enough, and a reply then identifies its example.
        unique = {task.write_example(e): e for e in examples if normal_form(e.question) not in known}
        self._examples = list(unique.values())
        self._texts = {task.write_example(e): i for i, e in enumerate(self._examples)}
        self._used: set[int] = set()
        questions = [example.question for example in self._examples]
        words = dict.fromkeys(word for question in questions for word in words_of(question))
        self._vocabulary = {word: i for i, word in enumerate(words)}
        self._weight = np.ones(len(words), np.float32)
        documents = self._vectors(questions).astype(bool).sum(axis=0)
        self._weight = np.log((1 + len(questions)) / (1 + documents)).astype(np.float32) + 1
        self._matrix = self._vectors(questions)

    def _vectors(self, texts: Sequence[str]) -> sparse.csr_array:
        """TF-IDF rows of unit length (zero for a text without a known word)."""
        rows, columns = [], []
        for row, text in enumerate(texts):
            known = [self._vocabulary[w] for w in words_of(text) if w in self._vocabulary]
            rows += [row] * len(known)
            columns += known
        values = self._weight[columns] if columns else np.zeros(0, np.float32)
        matrix = sparse.csr_array((values, (rows, columns)), shape=(len(texts), len(self._vocabulary)))
        norms = np.sqrt(np.asarray((matrix * matrix).sum(axis=1)).ravel())
        return sparse.csr_array(matrix / np.where(norms > 0, norms, 1)[:, None])

    def seen(self, records: Sequence[Record]) -> None:
        """Take the examples of these records out of the pool: they were given out before."""
        self._used |= {self._texts[r.text] for r in records if r.text in self._texts}

    def generate(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        """One batch: for each request the `n` nearest unused examples of the class or skill of `request.example`.

        The look-up is deterministic, so `sampling` and `seed` change nothing. Examples given out count as used
        within this call; `seen` marks them as used for later ones.
        """
        used = set(self._used)
        records = []
        queries = self._vectors([r.example.question for r in requests])
        for i, request in enumerate(requests):
            row = (queries[[i]] @ self._matrix.T).toarray()[0]  # one at a time: all would not fit into memory
            group = request.example.group
            order = np.argsort(-row, kind="stable")
            free = (i for i in order if i not in used and self._examples[i].group == group)
            for sample in range(request.n):
                chosen = next(free, None)
                if chosen is None:
                    error = f"the pool holds no more unused examples of {group!r}"
                    records.append(Record(request.id, sample, "failed", None, error))
                    continue
                used.add(chosen)
                records.append(Record(request.id, sample, "ok", self._task.write_example(self._examples[chosen])))
        yield records
