"""Execute the notebooks as a reader would, each from top to bottom in a fresh copy of this checkout:

    python notebooks/execute.py                     # all of them; ends with the first error
    python notebooks/execute.py --keep profile      # one, and keep its outputs in its file

It needs nbclient, nbformat and ipykernel. What is kept is free of what differs from one execution to the next:
times, and what is told while a run works.
"""

import argparse
import pathlib
import re
import shutil
import tempfile
import time

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).resolve().parent
NAMES = sorted(file.stem for file in HERE.glob("*.ipynb"))
TIMEOUT = 3600
"""Seconds that a cell may take, and the kernel to start, on a machine that does other work too."""
LEFT_OUT = (".*", "__pycache__", "runs", "venv", "build", "*.egg-info")


def execute(name: str) -> nbformat.NotebookNode:
    """The notebook `name` with its new outputs. Raises nbclient's CellExecutionError for a cell that fails."""
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "seedloop"
        shutil.copytree(HERE.parent, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        notebook = nbformat.read(copy / f"notebooks/{name}.ipynb", as_version=4)
        settings = {
            "timeout": TIMEOUT,
            "startup_timeout": TIMEOUT,
            "kernel_name": "python3",
            "resources": {"metadata": {"path": str(copy / "notebooks")}},
            "record_timing": False,
        }
        NotebookClient(notebook, **settings).execute()
    return notebook


def settled(text: str) -> str:
    """Output without addresses of objects, and with the tables of pandas numbered as they come instead of at
    random."""
    tables = {
        found: f"T_{number:05}" for number, found in enumerate(dict.fromkeys(re.findall(r"T_[0-9a-f]{5}", text)))
    }
    text = re.sub(r"T_[0-9a-f]{5}", lambda found: tables[found[0]], text)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def keep(name: str, notebook: nbformat.NotebookNode) -> None:
    """Store the notebook with its outputs, but for what goes to standard error."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    # Of the kernel only what does not depend on the version of Python.
    notebook.metadata["language_info"] = {"name": "python"}
    text = nbformat.writes(notebook)
    (HERE / f"{name}.ipynb").write_text(settled(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all if not given: {', '.join(NAMES)}")
    parser.add_argument("--keep", action="store_true", help="store the outputs in the notebooks")
    given = parser.parse_args()
    if unknown := {*given.names} - {*NAMES}:
        parser.error(f"no such notebook: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    for name in given.names or NAMES:
        start = time.monotonic()
        notebook = execute(name)
        if given.keep:
            keep(name, notebook)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
