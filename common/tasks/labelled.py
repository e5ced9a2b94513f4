"""Classification of short texts: TREC, SNIPS, SST-2, and any file with a text and a label column.

task = TASKS["trec"]
task = labelled_text(train_file=path, text="sentence", label="topic", instruction="What is it about?")
"""

import dataclasses
import functools
import pathlib
import re

from common.errors import UserError, quoted
from common.generate import Message
from common.tasks.base import NO_HINTS, Example, Hints, Kind, NewExample, RowTask, user_turn
from common.tasks.files import Row, check_column, one_way, read_rows, require, row_id
from common.tasks.hub import Hub, require_any
from common.tasks.replies import read_fields, with_hints, write_fields

_LEAD = re.compile(r"^(?:the )?(?:final )?(?:label|answer|class|category|intent|sentiment)(?: is)?:? ", re.I)
_MARKS = " *_`\"'.,;:!\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
"""What may stand around a label and is no part of it."""


def normalise(label: str) -> str:
    """Labels are compared without case, punctuation and surplus spaces."""
    return " ".join(re.sub(r"[^\w\s]", " ", one_way(label).replace("_", " ")).lower().split())


@functools.cache
def _exact(labels: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """From every code and word as written, but for case and `one_way`, to the word. A word wins over a code like
    it."""
    codes = {one_way(code).lower(): word for code, word in reversed(labels)}
    return codes | {one_way(word).lower(): word for _, word in labels}


@functools.cache
def _normal(labels: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """From each normal form to its word, where the form tells labels apart: that of C and C++ does not."""
    forms: dict[str, set[str]] = {}
    for written, word in _exact(labels).items():
        forms.setdefault(normalise(written), set()).add(word)
    return {form: words.copy().pop() for form, words in forms.items() if form and len(words) == 1}


SENTENCE = 24
"""Tokens around a label that a model puts into a sentence, as chat models do before they are trained."""
_NEGATION = re.compile(r"\b(?:not|never|neither|nor|cannot|\w+n t)\b")
LISTED = 100
"""Most labels that a prompt lists, and that are compared by likelihood."""
SHORTEST = 3
"""Letters of a label that is told from other words where it stands in a sentence: not "a" or "no"."""


def tokens_for(labels: tuple[tuple[str, str], ...]) -> int:
    """A limit of tokens that no label exceeds, even in a sentence: small vocabularies take about two characters a
    token."""
    return SENTENCE + max(len(word) for _, word in labels) // 2


@functools.cache
def _anywhere(labels: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    """Any label in its normal form; of two at one place the longer."""
    forms = sorted(_normal(labels), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, forms)) or '(?!)'})\b")


@dataclasses.dataclass(frozen=True)
class LabelledText(RowTask):
    """Implements `common.tasks.base.Task`. `labels` maps the label as stored to the words the model writes."""

    name: str
    instruction: str
    noun: str
    labels: tuple[tuple[str, str], ...]
    text_columns: tuple[str, ...] = ("text",)
    label_columns: tuple[str, ...] = ("label",)
    hub: Hub | None = None
    kind: Kind = "class"
    reply_fields: tuple[str, ...] = ("Text", "Label")
    answer_tokens: int = 32
    example_tokens: int = 128
    near_duplicate: float = 0.7

    def _from_row(self, row: Row, place: str, name: str) -> Example:
        text = require_any(row, self.text_columns, place)
        stored = require_any(row, self.label_columns, place)
        # A minus sign is no punctuation here: -1 marks rows whose label is withheld, unless it is one.
        withheld = re.fullmatch(r"-\d+", stored) and stored not in _exact(self.labels)
        word = None if withheld else self._word(stored)
        if word is None:
            known = ", ".join(code for code, _ in self.labels)
            raise UserError(f"{place}: label {stored!r} is not one of the task's: {known}")
        return Example(row_id(row, name), " ".join(text.split()), word, word, word, place)

    def _word(self, label: str) -> str | None:
        return _exact(self.labels).get(one_way(label).lower()) or _normal(self.labels).get(normalise(label))

    @property
    def choices(self) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(word for _, word in self.labels))
        return words if len(words) <= LISTED else ()

    def messages(self, question: str) -> tuple[Message, ...]:
        # A model that has not been trained on the task cannot know what answers there are.
        form = f" Reply with one of these labels and nothing else: {', '.join(self.choices)}."
        return user_turn(f"{self.instruction}{form if self.choices else ''}\n\n{question}")

    def parse(self, text: str) -> str | None:
        """The label that a reply states: as its first line, before an explanation, or as the only label in it."""
        line = text.strip().partition("\n")[0]
        head = re.split(r"\s*[,;(]|\s+-+\s|[.:](?:\s|\W*$)", line.lstrip("*_` "))[0]
        # The line, and what comes before an explanation: as it is, without marks around it and a lead; then
        # without signs, which may tell labels apart: C++ is no C.
        for said in (line, head):
            plain = said.strip(_MARKS)
            for form in (said, plain, _LEAD.sub("", plain).strip(_MARKS)):
                if (word := _exact(self.labels).get(one_way(form).lower())) is not None:
                    return word
            for form in (normalise(said), _LEAD.sub("", normalise(said))):
                if (word := _normal(self.labels).get(form)) is not None:
                    return word
        return self._only_label(text)

    def _only_label(self, text: str) -> str | None:
        """The one label that a text names; None if it names several, or denies something."""
        said = normalise(text)
        found = {form: _normal(self.labels)[form] for form in _anywhere(self.labels).findall(said)}
        if len(set(found.values())) != 1 or _NEGATION.search(said):
            return None
        [(form, word), *_] = sorted(found.items(), key=lambda entry: -len(entry[0]))
        return word if len(form) >= SHORTEST else None

    def teacher_messages(self, example: Example, hints: Hints = NO_HINTS) -> tuple[Message, ...]:
        request = (
            "You write examples that train a text classifier.\n"
            f"The labels are: {', '.join(word for _, word in self.labels)}.\n"
            f"Below is a {self.noun} with its label. Write one new {self.noun}:\n"
            f'1. The label "{example.label}" is right for it, and no other label is.\n'
            "2. Its subject and wording differ from those below.\n"
            "3. It is natural, and of similar length and style.\n"
            "4. Reply in just two lines: Text: …, then Label: …\n\n"
            f"{self.write_example(example)}"
        )
        return user_turn(with_hints(request, hints))

    def rephrase_messages(self, example: Example) -> tuple[Message, ...]:
        request = (
            f"Say this {self.noun} in other words, so that its meaning and its label stay the same.\n"
            "Reply in just two lines: Text: …, then Label: …"
        )
        return user_turn(f"{request}\n\n{self.write_example(example)}")

    def write_example(self, example: Example) -> str:
        return write_fields(self.reply_fields, (example.question, example.label))

    def parse_example(self, text: str, parent: Example) -> NewExample:
        fields = read_fields(text, self.reply_fields)
        if fields is None or not fields["Text"] or "\n" in fields["Label"]:
            return NewExample(refused="format")
        label = self._word(fields["Label"])
        if label is None:
            return NewExample(refused="unknown label")
        if label != parent.label:
            return NewExample(refused="label changed")
        return NewExample(" ".join(fields["Text"].split()), label, label, label)


def labelled_text(train_file: pathlib.Path, text: str, label: str, instruction: str) -> LabelledText:
    """A task from a file's own labels, written as they are there; of several ways to write one (see `one_way`) the
    first in the file. Raises UserError for a column that is not there, for fewer than two labels, and for those
    that differ in case or spaces only."""
    rows = read_rows(train_file)
    check_column(train_file, rows, text, "--text-column")
    check_column(train_file, rows, label, "--label-column")
    written = dict.fromkeys(require(row, label, place) for row, place in rows)
    found = sorted(written)
    words: dict[str, str] = {}
    for name in written:
        words.setdefault(one_way(name), " ".join(name.split()))
    if len(words) < 2:
        raise UserError(
            f"{train_file}: column {label!r} holds one label only ({found[0]!r}): it takes two or more"
        )
    if len(found) > 1000:
        raise UserError(
            f"{train_file}: column {label!r} holds {len(found)} different labels: is it the text column?"
        )
    alike: dict[str, str] = {}
    for name, word in words.items():
        other = alike.setdefault(" ".join(name.replace("_", " ").lower().split()), word)
        if other != word:
            raise UserError(
                f"{train_file}: labels {quoted(other)} and {quoted(word)} of column {label!r} differ in case or "
                "spaces only: merge them"
            )
    labels = tuple((name, words[one_way(name)]) for name in found)
    return LabelledText(
        name="text",
        instruction=instruction,
        noun="text",
        labels=labels,
        text_columns=(text,),
        label_columns=(label,),
        answer_tokens=tokens_for(labels),
    )


def _pairs(listed: str) -> tuple[tuple[str, str], ...]:
    """From "CODE words, CODE words" to pairs of a code and its words."""
    return tuple((code, words) for code, _, words in (entry.partition(" ") for entry in listed.split(", ")))


TREC = LabelledText(
    name="trec",
    instruction="What kind of thing does this question ask for?",
    noun="question",
    labels=_pairs("ABBR abbreviation, DESC description, ENTY entity, HUM human, LOC location, NUM number"),
    # The hub's own "label" is the number of one of fifty fine classes.
    label_columns=("label_coarse_original", "label", "label_name"),
    hub=Hub("SetFit/TREC-QC"),
)

SNIPS = LabelledText(
    name="snips",
    instruction="What does the speaker want to do?",
    noun="request to a voice assistant",
    labels=_pairs(
        "AddToPlaylist add to playlist, BookRestaurant book restaurant, GetWeather get weather, "
        "PlayMusic play music, RateBook rate book, SearchCreativeWork search creative work, "
        "SearchScreeningEvent search screening event"
    ),
    label_columns=("label", "category", "intent"),
    hub=Hub("benayas/snips"),
)

SST2 = LabelledText(
    name="sst2",
    instruction="Is the opinion in this piece of a film review positive or negative?",
    noun="phrase or sentence of a film review",
    labels=_pairs("0 negative, 1 positive"),
    text_columns=("sentence", "text"),
    # The hub's test rows have no labels; published figures are on the validation rows.
    hub=Hub("stanfordnlp/sst2", splits=(("train", "train"), ("test", "validation"))),
)
