"""Prompts without a right answer: what they are, how they are put to a model, and the embedded set of requests for
stories.

    learned, held_out = story_prompts(80)
"""

import dataclasses
import hashlib

from common.generate import Message
from common.tasks.base import user_turn
from common.tasks.embedded_text import ASK_LONG, CREATURES, QUALITIES


@dataclasses.dataclass(frozen=True)
class Prompt:
    """`id` seeds and names its answers; `place` says where it stands (file and row), for messages."""

    id: str
    text: str
    place: str = ""


def messages(text: str) -> tuple[Message, ...]:
    """How a prompt is put to sources and to the student, and learned: one turn of the user's."""
    return user_turn(text)


def drawn_by(prompt_id: str, seed: int) -> bytes:
    """A hash by which prompts are drawn: a draw from a stream needs no list of all."""
    return hashlib.sha256(f"held out {seed} {prompt_id}".encode()).digest()


def story_prompts(count: int) -> tuple[list[Prompt], list[Prompt]]:
    """The embedded demonstration: long stories about somebody. The embedded models were trained on these
    instructions without the quality. Heroes and qualities of the held-out ones, at most `count`, are in none of
    the others; which they are does not depend on the run's seed."""
    heroes = CREATURES[2::4]
    qualities = [quality for quality in QUALITIES if quality[0] not in "aeiou"]  # so that "a" fits
    apart = qualities[2::4]
    ask = lambda of, who: [
        Prompt(f"{hero}-{quality}-{number}", form.format(hero=f"{quality} {hero}"))
        for number, form in enumerate(ASK_LONG)
        for quality in of
        for hero in who
    ]
    learned = ask([q for q in qualities if q not in apart], [c for c in CREATURES if c not in heroes])
    held_out = sorted(ask(apart, heroes), key=lambda prompt: drawn_by(prompt.id, 0))
    return learned, held_out[:count]
