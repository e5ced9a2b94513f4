"""The shipped models: their files, their cards, and the text they are made from."""

import hashlib
import itertools
import random
import re

import pytest

from common.model.checkpoint import EMBEDDED
from common.tasks.arithmetic import Arithmetic
from common.tasks.embedded_text import paragraphs_of, similar_prompt, similar_reply, story, stream
from common.tasks.problems import SKILLS, recognise, write

NAMES = ("student", "teacher")


@pytest.mark.parametrize("name", NAMES)
def test_checksum_is_that_of_the_card(name):
    stated = re.search(r"`([0-9a-f]{64})`", (EMBEDDED / name / "README.md").read_text())[1]
    assert hashlib.sha256((EMBEDDED / name / "model.safetensors").read_bytes()).hexdigest() == stated


def test_all_models_together_are_small():
    files = [file for name in NAMES for file in (EMBEDDED / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 16e6


@pytest.mark.parametrize("name", NAMES)
def test_models_read_every_text_and_take_digits_one_by_one(name):
    from common.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(EMBEDDED / name)
    text = "Zoë has 125 “marbles”.\n 7 * 8 = 56. #### 56 日本"
    ids, start = tokenizer.encode_example(({"role": "user", "content": text},), text)
    assert tokenizer.decode(ids[start:-1]) == text
    assert ids[-1] in tokenizer.eos_ids
    digits = tokenizer.encode_prompt(({"role": "user", "content": "125"},))
    assert len(digits) == 3 + 2


def test_documents_are_fixed_by_the_seed_and_of_every_kind():
    kinds = dict.fromkeys(("solve", "similar", "propose", "story", "equation", "corpus"), 1)
    first = list(itertools.islice(stream(kinds, 5, paragraphs=["A paragraph."]), 200))
    assert first == list(itertools.islice(stream(kinds, 5, paragraphs=["A paragraph."]), 200))
    assert first != list(itertools.islice(stream(kinds, 6, paragraphs=["A paragraph."]), 200))
    users = [user for user, _ in first]
    for start in ("Write a new problem like", "Write one more problem"):
        assert any(user and user.startswith(start) for user in users)
    assert any(recognise(user or "") for user in users)
    assert users.count(None) > 20


def test_equations_hold():
    for _, text in itertools.islice(stream({"equation": 1}, 0), 50):
        for left, right in re.findall(r"([\d+*/ -]+) = (\d+)\.", text):
            assert eval(left.replace("/", "//")) == int(right)


def test_stories_differ_in_length():
    rng = random.Random(0)
    lengths = [len(story(rng)[1].split()) for _ in range(200)]
    assert min(lengths) < 10
    assert max(lengths) > 60


def test_similar_documents_are_what_the_task_asks_and_reads():
    rng = random.Random(0)
    for skill in SKILLS:
        shown, new = write(rng, skill), write(rng, skill)
        from common.tasks.base import Example

        parent = Example("p", shown.question, shown.solution, str(shown.answer), skill)
        task = Arithmetic()
        assert task.teacher_messages(parent)[0]["content"] == similar_prompt(shown.question, shown.solution)
        read = task.parse_example(similar_reply(new.question, new.solution), parent)
        assert (read.refused, read.question) == (None, new.question)


def test_paragraphs_are_plain_and_of_bounded_length(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("short\n\n" + "It’s a long one. " * 60 + "\n\n<|endoftext|>\n\nUn café " + "x " * 40)
    (paragraph,) = paragraphs_of([file])
    assert paragraph.isascii()
    assert 40 <= len(paragraph) <= 600
    assert paragraph.endswith(".")


@pytest.mark.parametrize(("name", "least"), [("student", 0.5), ("teacher", 0.9)])
def test_models_can_what_their_cards_say(name, least):
    """Four problems of each skill; the cards say 66% and 99% of the whole test set."""
    from common.evals.evaluate import accuracy, answer_batches
    from common.lm import LanguageModel

    task = Arithmetic()
    examples = task.load("test", None, 0)[: 4 * len(SKILLS)]
    model = LanguageModel.load(f"embedded:{name}")
    rows = [row for batch in answer_batches(model.generator, task, examples)(0) for row in batch]
    assert accuracy(rows) >= least


def test_the_teacher_writes_problems_that_hold():
    """One new problem for each of 48: most are in form and, where a program knows the answer, right."""
    from common.config import SampleConfig
    from common.generate import Request
    from common.lm import LanguageModel

    task = Arithmetic()
    examples = task.load("train", None, 0)[: 4 * len(SKILLS)]
    generator = LanguageModel.load("embedded:teacher").generator()
    requests = [Request(e.id, task.teacher_messages(e)) for e in examples]
    sampling = SampleConfig(task.example_tokens, temperature=0.8, top_p=0.95)
    records = [record for batch in generator.generate(requests, sampling, 0) for record in batch]
    made = [task.parse_example(r.text, e) for r, e in zip(records, examples, strict=True)]
    kept = [new for new in made if new.refused is None]
    assert len(kept) >= 0.7 * len(made)
    known = [new for new in kept if task.truth(new.question) is not None]
    assert len(known) >= 0.4 * len(made)
    assert sum(task.correct(task.truth(new.question), new.label) for new in known) >= 0.9 * len(known)
