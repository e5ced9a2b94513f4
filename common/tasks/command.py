"""`python run.py tasks`: the tasks there are, a line each."""

from common.cli import no_words, wrapped
from common.tasks.base import Task
from common.tasks.hub import Hub
from common.tasks.registry import TASKS

KINDS = {"class": "a label", "number": "a number", "text": "a text"}


def main(argv: list[str]) -> None:
    """Print them. Raises UserError for words after the command."""
    no_words(argv, "tasks\n\nLists the tasks there are: what an answer is, and where the data come from.")
    for name, task in TASKS.items():
        print(wrapped(name, _about(task), 14))
    print(wrapped("text", "a label; any file with a column of texts and one of labels, by --train-file", 14))
    print(wrapped("FILE", "your own, in a .py, .yaml or .json file (common/tasks/README.md)", 14))


def _about(task: Task) -> str:
    hub, labels = getattr(task, "hub", None), task.choices
    answer = KINDS[task.kind] + (f" of {len(labels)}" if labels else "")
    where = (
        f"{' '.join(filter(None, (hub.id, hub.config)))} on the hub"
        if isinstance(hub, Hub)
        else "no files of its own: give --train-file"
    )
    return f"{answer}; {'made by rule, nothing is fetched' if task.name == 'arithmetic' else where}"
