"""Queries on the page: failures that were learned from, and what was refused and why."""

import hashlib
from collections.abc import Mapping, Sequence

from common.results.conclusion import mixed
from common.results.files import read_jsonl
from common.results.report import Report
from common.results.rundir import RunDir
from common.tasks.base import Example
from common.text.glossary import reason
from reversegen.applications.base import Row


def add_examples(
    page: Report, run: RunDir, rows: Sequence[Row], test: Sequence[Example], redact: bool, count: int = 8
) -> None:
    """A chapter of up to `count` failures of the first repeat that were learned from, of `rows` of the data set,
    and of as many queries that were not used. `test`: questions that queries are kept away from; `redact`:
    hashes stand in place of texts."""
    hashes = ", as hashes" if redact else ""
    page.chapter("Examples")
    texts = ("query", "target_answer", "answer")
    failed = [row for row in rows if row["repeat"] == 0 and row["outcome"] == "fail"]
    page.add_examples(
        f"Kept: failures and what was made of them (repeat 1){hashes}",
        ["Query of the best proposer", "The target's answer", "The label it learned"],
        [[shown(row[name], redact) for name in texts] for row in failed[:count]],
    )
    folder = run.path / "repeat_0/explore"
    queries = [row for file in sorted(folder.glob("*/queries.jsonl")) for row in read_jsonl(file)]
    known = {example.id: example.question for example in test}
    known |= {row["id"]: row["question"] for row in read_jsonl(folder / "seeds.jsonl")}
    known |= {row["id"]: row["query"] for row in queries if row["query"]}
    refused = [row for row in queries if row["outcome"] not in ("fail", "pass")]
    page.add_examples(
        f"Refused: what the proposer wrote and nobody learned (repeat 1){hashes}",
        ["What the proposer wrote", "Why it was refused"],
        [
            [shown(row["query"] or row["reply"], redact), _why(row) + _nearest(row, known, redact)]
            for row in mixed(refused, _why, count)
        ],
    )


def _why(row: Row) -> str:
    """Why a query was not used."""
    if row["dropped"] is not None:
        return reason(row["dropped"])
    return row["outcome"] + (f": {row['reason']}" if row.get("reason") else "")


def _nearest(row: Row, known: Mapping[str, str], redact: bool) -> str:
    """What a query is too near to, where it is."""
    if row.get("nearest") not in known:
        return ""
    return f", similarity {row['similarity']:.2f}\n\nNearest: {shown(known[row['nearest']], redact)}"


def shown(text: str | None, redact: bool) -> str:
    """The text, or where it is not to be read the start of its SHA-256."""
    text = text or ""
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}" if redact else text
