"""The tasks by name. To add one, write it beside the others and enter it here."""

import pathlib

from common.errors import UserError
from common.tasks.arithmetic import Arithmetic
from common.tasks.base import Task
from common.tasks.labelled import SNIPS, TREC, labelled_text

TASKS: dict[str, Task] = {"arithmetic": Arithmetic(), "trec": TREC, "snips": SNIPS}
NAMES = (*TASKS, "text")


def get_task(name: str, train_file: pathlib.Path | None, text: str, label: str, instruction: str) -> Task:
    """The task `name`; "text" is made from the labels of `train_file`. Raises UserError for an unknown name."""
    if name == "text":
        if train_file is None:
            raise UserError("task text takes its labels from a file: give --train-file FILE")
        return labelled_text(train_file, text, label, instruction)
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}: there are {', '.join(NAMES)}")
    return TASKS[name]
