"""Classification of short texts: TREC, SNIPS, and any file with a text and a label column.

task = TASKS["trec"]
task = labelled_text(text="sentence", label="topic", train_file=path)     # labels read from the file
"""

import dataclasses
import pathlib
import re

from common.errors import UserError
from common.generate import Message
from common.tasks.base import Example, NewExample
from common.tasks.files import Row, read_rows, require

_REPLY = re.compile(r"\s*Text:\s*(?P<text>.+?)\s*\n\s*Label:\s*(?P<label>[^\n]+?)\s*", re.DOTALL)


def normalise(label: str) -> str:
    """Labels are compared without case, punctuation and surplus spaces."""
    return " ".join(re.sub(r"[^\w\s]", " ", label.replace("_", " ")).lower().split())


@dataclasses.dataclass(frozen=True)
class LabelledText:
    """Implements `common.tasks.base.Task`. `labels` maps the label as stored to the words the model writes."""

    name: str
    instruction: str
    noun: str
    labels: tuple[tuple[str, str], ...]
    text_columns: tuple[str, ...] = ("text",)
    label_columns: tuple[str, ...] = ("label",)
    hub_id: str | None = None
    answer_tokens: int = 12
    example_tokens: int = 128
    near_duplicate: float = 0.7

    def load(self, split: str, file: pathlib.Path | None, seed: int) -> list[Example]:
        if file is not None:
            rows = read_rows(file)
        elif self.hub_id is not None and split in ("train", "test"):
            rows = _hub_rows(self.hub_id, split)
        elif split == "dev":
            return []
        else:
            raise UserError(f"task {self.name} has no {split} data of its own: give --{split}-file FILE")
        return [self._from_row(row, place, split, i) for i, (row, place) in enumerate(rows)]

    def _from_row(self, row: Row, place: str, split: str, number: int) -> Example:
        text = require(row, _present(row, self.text_columns), place)
        stored = require(row, _present(row, self.label_columns), place)
        word = self._word(stored)
        if word is None:
            known = ", ".join(code for code, _ in self.labels)
            raise UserError(f"{place}: label {stored!r} is not one of the task's: {known}")
        return Example(str(row.get("id", f"{split}-{number}")), " ".join(text.split()), word, word, word, place)

    def _word(self, label: str | None) -> str | None:
        wanted = normalise(label or "")
        return next((word for code, word in self.labels if wanted in (normalise(code), normalise(word))), None)

    def messages(self, question: str) -> tuple[Message, ...]:
        return ({"role": "user", "content": f"{self.instruction}\n{question}"},)

    def parse(self, text: str) -> str | None:
        return self._word(text.strip().partition("\n")[0])

    def correct(self, text: str, label: str) -> bool:
        return self.parse(text) == label

    def teacher_messages(self, example: Example) -> tuple[Message, ...]:
        labels = ", ".join(word for _, word in self.labels)
        return (
            {
                "role": "user",
                "content": (
                    f"Below is a {self.noun} with its label. The labels are: {labels}.\n"
                    f"Write one new {self.noun} for which the same label is right. Change the subject and the "
                    f"wording, keep it natural and of similar length. Reply in just these two lines:\n"
                    f"Text: the new {self.noun}\nLabel: {example.label}\n\n{self.write_example(example)}"
                ),
            },
        )

    def write_example(self, example: Example) -> str:
        return f"Text: {example.question}\nLabel: {example.label}"

    def parse_example(self, text: str, parent: Example) -> NewExample:
        match = _REPLY.fullmatch(text)
        if match is None:
            return NewExample(refused="format")
        label = self._word(match["label"])
        if label is None:
            return NewExample(refused="unknown label")
        if label != parent.label:
            return NewExample(refused="label changed")
        return NewExample(" ".join(match["text"].split()), label, label, label)

    def truth(self, question: str) -> str | None:
        return None


def _present(row: Row, columns: tuple[str, ...]) -> str:
    """The first of `columns` that the row has; the first of all for the error message if it has none."""
    return next((c for c in columns if c in row), columns[0])


def _hub_rows(hub_id: str, split: str) -> list[tuple[Row, str]]:
    import datasets

    try:
        table = datasets.load_dataset(hub_id, split=split)
    except Exception as error:  # the hub's errors differ between versions of its client
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot fetch data set {hub_id} ({reason}): check the network or give --{split}-file FILE"
        ) from None
    return [(row, f"{hub_id} {split} row {i}") for i, row in enumerate(table, start=1)]


def labelled_text(train_file: pathlib.Path, text: str, label: str, instruction: str) -> LabelledText:
    """A task from a file's own labels. Raises UserError if the file has fewer than two."""
    rows = read_rows(train_file)
    found = sorted({require(row, label, place) for row, place in rows})
    if len(found) < 2:
        raise UserError(
            f"{train_file}: column {label!r} holds one label only ({found[0]!r}): it takes two or more"
        )
    if len(found) > 1000:
        raise UserError(
            f"{train_file}: column {label!r} holds {len(found)} different labels: is it the text column?"
        )
    words = [" ".join(name.replace("_", " ").split()) for name in found]
    if len({normalise(word) for word in words}) < len(words):
        raise UserError(f"{train_file}: labels of column {label!r} differ in case or punctuation only: merge them")
    return LabelledText(
        name="text",
        instruction=instruction,
        noun="text",
        labels=tuple(zip(found, words, strict=True)),
        text_columns=(text,),
        label_columns=(label,),
    )


TREC = LabelledText(
    name="trec",
    instruction="What kind of thing does this question ask for?",
    noun="question",
    labels=(
        ("ABBR", "abbreviation"),
        ("DESC", "description"),
        ("ENTY", "entity"),
        ("HUM", "human"),
        ("LOC", "location"),
        ("NUM", "number"),
    ),
    label_columns=("label", "label_coarse_original", "label_name"),
    hub_id="SetFit/TREC-QC",
)

SNIPS = LabelledText(
    name="snips",
    instruction="What does the speaker want to do?",
    noun="request to a voice assistant",
    labels=(
        ("AddToPlaylist", "add to playlist"),
        ("BookRestaurant", "book restaurant"),
        ("GetWeather", "get weather"),
        ("PlayMusic", "play music"),
        ("RateBook", "rate book"),
        ("SearchCreativeWork", "search creative work"),
        ("SearchScreeningEvent", "search screening event"),
    ),
    label_columns=("label", "category", "intent"),
    hub_id="benayas/snips",
)
