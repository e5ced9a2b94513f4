"""The tasks by name. To add one, write it beside the others and enter it here; to bring one, see README.md."""

import pathlib

from common.errors import UserError, meant, quoted
from common.tasks.arithmetic import Arithmetic
from common.tasks.base import Task
from common.tasks.choice import ARC_EASY, CASEHOLD
from common.tasks.labelled import SNIPS, SST2, TREC, labelled_text
from common.tasks.own import SUFFIXES, own_task
from common.tasks.worked import GSM8K, SVAMP

TASKS: dict[str, Task] = {
    task.name: task for task in (Arithmetic(), GSM8K, SVAMP, CASEHOLD, ARC_EASY, TREC, SNIPS, SST2)
}
NAMES = (*TASKS, "text")


def get_task(
    name: str,
    train_file: pathlib.Path | None = None,
    text: str = "text",
    label: str = "label",
    instruction: str = "",
) -> Task:
    """The task `name`. "text" is made from the labels of `train_file`; a path that ends in .py, .yaml, .yml or
    .json is a task of the user's own. Raises UserError for an unknown name and for a bad file."""
    if name == "text":
        if train_file is None:
            raise UserError("task text takes its labels from a file: give --train-file FILE")
        return labelled_text(train_file, text, label, instruction)
    if name.lower().endswith(SUFFIXES):
        return own_task(pathlib.Path(name))
    if name not in TASKS:
        there = f"there are {', '.join(NAMES)}, or a file ending in .py, .yaml or .json"
        raise UserError(f"unknown task {quoted(name)}{meant(name, NAMES)}; {there}")
    return TASKS[name]
