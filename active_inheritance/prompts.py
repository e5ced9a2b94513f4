"""The prompts of a run: those that sources answer and arms learn, and those held out to measure the student on.

    learned, held_out, told = load_prompts("prompts.jsonl", None, PROMPTS, most=200, test_prompts=80, seed=0)

Nothing of what is held out is ever learned: prompts that ask the same (see
`common.text.same`) are left out of the data of every arm.
"""

import hashlib
import pathlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from active_inheritance.pools import PROMPTS, text_column
from common.errors import UserError
from common.tasks.files import require, row_id, stream_rows
from common.tasks.prompts import Prompt, drawn_by, messages, story_prompts
from common.text.same import TESTED, normal_form, repeats

if TYPE_CHECKING:
    from common.reading import Reader

OTHERS = "give more prompts, or other ones in --test-prompts-file"
"""What helps where all prompts are held out."""


def load_prompts(
    file: str | None, test_file: str | None, columns: Sequence[str], most: int | None, test_prompts: int, seed: int
) -> tuple[list[Prompt], list[Prompt], list[str]]:
    """Prompts to learn, at most `most`, and held-out ones of a run that samples its pool: of `file` (by default
    the embedded set) and `test_file` (by default
    `test_prompts` of the others, at most half of them). With them what the files give reason to warn of.

    Raises UserError for files that do not fit, and where too few are left to learn.
    """
    told, drawn_here = [], 0
    if file is None:
        learned, held_out = story_prompts(test_prompts)
    else:
        learned, held_out = read_prompts(file, columns), []
    if test_file is not None:
        held_out, told = read_held_out(test_file, columns)
    elif not held_out:
        by_hash = sorted(learned, key=lambda prompt: drawn_by(prompt.id, seed))
        held_out = by_hash[: min(test_prompts, len(learned) // 2)]
        drawn_here = len(held_out)
    taken = {normal_form(prompt.text) for prompt in held_out}
    count = len(learned)
    learned = [prompt for prompt in learned if normal_form(prompt.text) not in taken]
    if not learned:
        raise UserError(f"{file}: all of its prompts are held out: lower --test-prompts")
    if shared := count - len(learned) - drawn_here:
        named = "the prompts" if file is None else pathlib.Path(file).name
        told.append(f"{named}: {shared} of {count} ask what a held-out prompt asks, and were left out")
    if most is not None and len(learned) > most:
        drawn = set(random.Random(f"prompts {seed}").sample(range(len(learned)), most))
        learned = [prompt for i, prompt in enumerate(learned) if i in drawn]
    return learned, held_out, told


def read_held_out(file: str, columns: Sequence[str]) -> tuple[list[Prompt], list[str]]:
    """The prompts of a file of held-out ones, and what it gives reason to warn of."""
    held_out = read_prompts(file, (*columns, *PROMPTS))
    return held_out, repeats(pathlib.Path(file).name, [normal_form(prompt.text) for prompt in held_out], TESTED)


def read_prompts(name: str, columns: Sequence[str]) -> list[Prompt]:
    """The prompts of a file, from the first of `columns` that a row has, those of one text once. Raises UserError,
    naming the row, for one that is missing and for an id that comes twice."""
    found: dict[str, Prompt] = {}
    ids: set[str] = set()
    for row, place in stream_rows(pathlib.Path(name)):
        key = text_column(row, columns)
        if key is None:
            there = " or ".join(dict.fromkeys(columns))
            raise UserError(f"{place}: no column {there}: name the column of the prompt with --prompt-column")
        text = require(row, key, place)
        prompt = Prompt(row_id(row, hashlib.sha256(text.encode()).hexdigest()[:16]), text, place)
        if text not in found:
            if prompt.id in ids:
                raise UserError(f"{place}: id {prompt.id!r} is also that of an earlier prompt: ids must differ")
            found[text] = prompt
            ids.add(prompt.id)
    return list(found.values())


def fitting(prompts: Sequence[Prompt], student: "Reader", answer_tokens: int) -> list[Prompt]:
    """The prompts that leave the student room to answer. Raises UserError, naming the first, where none does."""
    found = [prompt for prompt in prompts if room(prompt.text, student, answer_tokens)]
    if prompts and not found:
        raise UserError(
            f"{prompts[0].place or prompts[0].id}: the prompt leaves no room for {answer_tokens} tokens within "
            f"the {student.config.max_positions} the student takes, nor does any other: lower --answer-tokens"
        )
    return found


def room(text: str, student: "Reader", answer_tokens: int) -> bool:
    """Whether a prompt leaves the student room for an answer of that length."""
    return len(student.tokenizer.encode_prompt(messages(text))) + answer_tokens <= student.config.max_positions
