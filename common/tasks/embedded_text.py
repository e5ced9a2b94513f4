"""The text that the embedded models are trained on: written here by rule, apart from optional public corpora.

Every kind of document is a chat of one user turn and one reply, except equations and corpus paragraphs, which
are plain text. `stream(kinds, seed)` mixes them endlessly.

    documents = stream({"solve": 5, "similar": 4, "equation": 1}, seed=0, skills=tuple(SKILLS))
"""

import pathlib
import random
import re
from collections.abc import Iterator

from common.tasks.problems import SKILLS, calculate, write

Document = tuple[str | None, str]
"""(user turn or None for plain text, reply or text)."""

CREATURES = "bear bird boy cat cow crow dog duck fish fox frog girl goat hen horse king lion man mouse owl".split()
PLACES = (
    "barn city field forest garden hill house island kitchen lake market park river road school valley".split()
)
QUALITIES = (
    "big brave bright calm clever cold dark fast funny gentle gray green happy hungry kind little loud old poor "
    "proud quick quiet red sad shy slow small soft strange strong tall tired warm wild wise young"
).split()
DEEDS = (
    "built a nest|called for help|chased a ball|climbed a tree|cooked some soup|crossed the bridge|dug a hole|"
    "fell asleep|felt happy|found a key|had a dream|heard a song|helped a friend|jumped over a log|laughed loudly|"
    "lit a lamp|looked at the moon|lost a shoe|made a plan|met a stranger|opened the gate|painted the wall|"
    "picked some flowers|planted a seed|read a letter|rested in the shade|sang a song|saw a star|shared bread|"
    "sold a hat|swam in the water|told a story|took a long walk|waited for the rain|washed the plates|went home"
).split("|")
TIMES = (
    "At night|Before noon|In autumn|In spring|In summer|In the evening|In the morning|In winter|Later|Long ago|"
    "Now and then|On Sunday|One day|Soon after|That day|Then|Today|Yesterday"
).split("|")


def _sentence(rng: random.Random, hero: str, varied: bool) -> str:
    deed = rng.choice(DEEDS if varied else DEEDS[:6])
    if not varied:
        return f"The {hero} {deed}."
    quality, place = rng.choice(QUALITIES), rng.choice(PLACES)
    form = rng.randrange(5)
    if form == 0:
        return f"{rng.choice(TIMES)} the {quality} {hero} {deed}."
    if form == 1:
        return f"The {hero} was {quality} and {deed} near the {place}."
    if form == 2:
        return f"In the {place} the {hero} met a {quality} {rng.choice(CREATURES)}, who {deed}."
    if form == 3:
        return f"The {hero} {deed} and {rng.choice(DEEDS)}."
    return f"{rng.choice(TIMES)} a {rng.choice(CREATURES)} came to the {quality} {place} and {deed}."


ASK_SHORT = ("Tell me a short story about a {hero}.", "Write a few words about a {hero}.")
ASK_LONG = ("Tell me a long story about a {hero}.", "Write a lot about a {hero}.")
ASK = ("Tell me a story about a {hero}.", "Write about a {hero}.", "What did the {hero} do?", "Describe a {hero}.")


def story(rng: random.Random) -> Document:
    """An open instruction; the reply's length and variety of words differ from one to the next."""
    hero = rng.choice(CREATURES)
    kind = rng.randrange(4)
    asks, low, high = ((ASK_SHORT, 1, 2), (ASK_LONG, 5, 9), (ASK, 1, 8), (ASK, 1, 8))[kind]
    varied = rng.random() < 0.7
    reply = " ".join(_sentence(rng, hero, varied or rng.random() < 0.3) for _ in range(rng.randint(low, high)))
    return rng.choice(asks).format(hero=hero), reply


def _equation(rng: random.Random) -> str:
    op = rng.choice("+-*/+-")
    if op in "*/":
        a, b = rng.randint(2, 10), rng.randint(2, 9)
        a = a * b if op == "/" else a
    else:
        a, b = rng.randint(2, 60), rng.randint(2, 30)
        a = a + b if op == "-" else a
    return f"{a} {op} {b} = {calculate(a, op, b)}."


def equations(rng: random.Random) -> Document:
    """Some lines' worth of plain arithmetic with numbers below 100."""
    return None, " ".join(_equation(rng) for _ in range(8))


def similar_prompt(question: str, solution: str) -> str:
    """How the embedded teacher is asked for a new problem; training and use share this one line."""
    return f"Write a new problem like this one.\nProblem: {question}\nSolution: {solution}"


def similar_reply(question: str, solution: str) -> str:
    """The form of the teacher's reply."""
    return f"Problem: {question}\nSolution: {solution}"


def propose_prompt(questions: list[str]) -> str:
    """How an embedded proposer is shown examples and asked for one more."""
    return "Write one more problem.\n" + "\n".join(f"Problem: {q}" for q in questions)


def _document(rng: random.Random, kind: str, skills: tuple[str, ...], paragraphs: list[str]) -> Document:
    if kind == "solve":
        problem = write(rng, rng.choice(skills))
        return problem.question, problem.solution
    if kind == "similar":
        shown, new = (write(rng, skill) for skill in [rng.choice(skills)] * 2)
        prompt = similar_prompt(shown.question, shown.solution)
        return prompt, similar_reply(new.question, new.solution)
    if kind == "propose":
        shown = [write(rng, rng.choice(skills)).question for _ in range(rng.randint(2, 4))]
        return propose_prompt(shown), "Problem: " + write(rng, rng.choice(skills)).question
    if kind == "story":
        return story(rng)
    if kind == "equation":
        return equations(rng)
    return None, rng.choice(paragraphs)


def paragraphs_of(files: list[pathlib.Path], shortest: int = 40, longest: int = 600) -> list[str]:
    """Paragraphs of public-domain and CC BY text, long ones cut after a sentence, typographic signs made ASCII."""
    plain = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "—": "-", "–": "-", "_": ""})
    found = []
    for file in files:
        for paragraph in re.split(r"\n\s*\n", file.read_text(encoding="utf-8").translate(plain)):
            text = " ".join(paragraph.replace("<|endoftext|>", " ").split())
            cut = text[:longest].rpartition(". ")[0] + "." if len(text) > longest else text
            if len(cut) >= shortest and cut.isascii():
                found.append(cut)
    return found


def stream(
    kinds: dict[str, float],
    seed: int,
    skills: tuple[str, ...] = tuple(SKILLS),
    paragraphs: list[str] | None = None,
) -> Iterator[Document]:
    """Endless documents, drawn by the weights of `kinds`: solve, similar, propose, story, equation, corpus."""
    rng = random.Random(seed)
    names, weights = list(kinds), list(kinds.values())
    while True:
        yield _document(rng, rng.choices(names, weights)[0], skills, paragraphs or [])
