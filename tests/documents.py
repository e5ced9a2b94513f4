"""The commands that the documents show, and a program that tries all of them:

    python tests/documents.py [PAGE ...]

It takes every block of commands of every page (or of those given) in a folder like a checkout. A block runs as it
stands unless `<!-- needs: WHAT -->` above it says what it asks for: then each of its `run.py` commands is planned
(--dry-run), with stand-ins for the reader's own files and models. Where it asks for one of `AWAY`, its flags and
settings alone are checked, which the tests do for every command.
"""

import contextlib
import dataclasses
import glob
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
if str(ROOT) not in sys.path:  # as a program
    sys.path.insert(0, str(ROOT))

import run  # noqa: E402
from common.cli import parse  # noqa: E402

PAGES = ("*.md", "docs/*.md", "*/README.md", "*/*/README.md")
AWAY = ("network", "accelerator", "hosts", "a server")
"""Needs that a plan has too."""
ROWS: dict[str, dict[str, Any]] = {
    "mail": {"text": "I paid 7 times", "label": "pay", "body": "I paid 7 times", "topic": "pay"},
    "held_out": {"text": "Parcel 7 is late", "label": "delivery", "body": "Parcel 7 is late", "topic": "delivery"},
    "prompts": {"prompt": "What is 7?"},
    "answers": {"prompt": "What is 7?", "completion_0": "7 is a number.", "completion_1": "It is one of many."},
    "arc": {"question": "What is 7?", "choices": ["a number", "an owl"], "answer": 0},
    "": {"question": "Ann has 7 apples. How many?", "answer": "She has 7. #### 7"},
}
"""A row of files that stand in for the reader's, by their names; "": of any other."""


@dataclasses.dataclass(frozen=True)
class Block:
    """`place`: "README.md:15". `needs`: what the mark above it names."""

    place: str
    language: str
    needs: tuple[str, ...]
    text: str


def pages() -> list[pathlib.Path]:
    """Every document."""
    found = {file for page in PAGES for file in ROOT.glob(page)}
    return sorted(
        file for file in found if not file.relative_to(ROOT).as_posix().startswith((".", "common/embedded"))
    )


def blocks(page: pathlib.Path) -> Iterator[Block]:
    """Those of a document."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(
        r"^(?:<!-- needs: ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE
    ):
        line = text[: found.start(3)].count("\n") + 1
        needs = tuple(found[1].split(", ")) if found[1] else ()
        yield Block(f"{page.relative_to(ROOT)}:{line}", found[2], needs, found[3])


def commands(text: str) -> list[list[str]]:
    """The words of each `python run.py …` and `seedloop …` in a text, also in the midst of a sentence."""
    lines = re.sub(r"\\\n\s*", " ", text)
    lines = re.sub(r"(?<!`)`[^`]+`(?!`)", lambda span: span[0].replace("\n", " "), lines)
    lines = lines.replace(" OBJECTIVE ", " --objective mtld:max ")  # one of those in a table beside it
    given = dict(re.findall(r"^(\w+)=(\S+)$", text, re.MULTILINE))
    variable = lambda name: given.get(name[1], "1")
    found = re.findall(r"(?:python run\.py|`seedloop) ([a-z][\w-]* ?[^\n;|&'`]*)", lines)
    return [shlex.split(re.sub(r"\$(\w+)", variable, line), comments=True) for line in found]


def named_files(text: str) -> dict[str, str]:
    """The files that a document writes out: each block after a sentence that names it and ends with a colon."""
    named = r"`([\w./]+\.(?:yaml|csv|py|jsonl))`[^`]*?:[^`]*\n\n```\w+\n(.*?)```"
    return dict(re.findall(named, text, re.DOTALL))


def check(words: list[str]) -> None:
    """Flags, values and settings of a command, as `run.py` checks them. Raises UserError."""
    name, *rest = words
    if name in run.METHODS:
        config = importlib.import_module(run.METHODS[name][0].replace(".command", ".config"))
        parse(config.Config, rest, name, "", getattr(config, "PRESETS", None), name).resolved()
    else:
        assert name in run.ALSO, words
        assert len(rest) == {"status": 1, "fetch": 1}.get(name, 0), words


@contextlib.contextmanager
def checkout(page: pathlib.Path) -> Iterator[None]:
    """Within the block, the working directory is a folder with all that the repository holds, the optional data
    beside it, and the files that `page` writes out. What is left there is gone afterwards."""
    before = pathlib.Path.cwd()
    with tempfile.TemporaryDirectory(prefix="documents-") as place:
        folder = pathlib.Path(place) / "checkout"
        folder.mkdir()
        for entry in ROOT.iterdir():
            if not entry.name.startswith(".") and entry.name != "runs":
                (folder / entry.name).symlink_to(entry)
        if (ROOT.parent / "shared/data").is_dir():
            (folder.parent / "shared").symlink_to(ROOT.parent / "shared")
        for name, content in named_files(page.read_text(encoding="utf-8")).items():
            if not (folder / name).exists():  # a file of the repository is the repository's
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(content, encoding="utf-8")
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def stood_in(words: list[str]) -> list[str]:
    """Make what a command names and is not there: rows, a model, a run. Returns its words, patterns expanded."""
    found = []
    for word in words:
        for part in re.split(r"[,=]", word.removeprefix("pool:")):
            file = pathlib.Path(part.replace("*", "1"))
            if file.is_absolute() or file.exists() or part.startswith(("python:", "gs:")):
                continue
            if re.fullmatch(r"(my|runs)/.*(folder|larger|model|student)", part):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.symlink_to(ROOT / "common/embedded/student")
            elif file.suffix in (".csv", ".jsonl", ".parquet"):
                _write(file, ROWS.get(file.stem, ROWS[""]))
            elif file.name == "config.json" or words[0] == "status":
                file = file if file.suffix else file / "config.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"method": "llm2llm", "config": {}}))
        found += glob.glob(word) if "*" in word else [word]
    return found


def _write(file: pathlib.Path, row: dict[str, Any]) -> None:
    """A file of rows like `row`, all of them different."""
    other = lambda value, i: value.replace("7", str(7 + i)) if isinstance(value, str) else value
    rows = [{key: other(value, i) for key, value in row.items()} for i in range(80)]
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".csv":
        file.write_text("\n".join(",".join(line) for line in (row, *(row.values() for row in rows))) + "\n")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def attempt(block: Block) -> str:
    """What became of a block: "ran", "planned" or "checked". Raises an exception where a command fails."""
    if not block.needs:
        _shell(block.text)
        return "ran"
    for words in commands(block.text):
        check(stood_in(words))
        if not set(block.needs) & set(AWAY):
            plan = ["--dry-run"] * (words[0] in run.METHODS and "--dry-run" not in words)
            _shell(shlex.join(["python", "run.py", *stood_in(words), *plan]))
    return "checked" if set(block.needs) & set(AWAY) else "planned"


def _shell(text: str) -> None:
    """Run it with this interpreter as `python`."""
    program = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}\nset -e\n{text}'
    keys = {"OPENAI_API_KEY": "sk-" + "x" * 30, "HF_TOKEN": "hf_" + "x" * 30}  # stand-ins too
    done = subprocess.run(["bash", "-c", program], env=os.environ | keys, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {(done.stdout + done.stderr).strip()[-300:]}")


def main(given: list[str]) -> int:
    """Try every block, say what became of it, and return how many failed."""
    failed = 0
    for page in [pathlib.Path(name).resolve() for name in given] or pages():
        with checkout(page):
            for block in (block for block in blocks(page) if block.language == "bash"):
                start = time.monotonic()
                try:
                    outcome = attempt(block)
                except Exception as error:
                    outcome, failed = f"FAILED: {error}", failed + 1
                took = time.monotonic() - start
                print(f"{block.place:40}{took:7.1f} s  {outcome:10}{', '.join(block.needs)}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
