"""How long the stages of a run took, all of its starts together.

    by_stage(rows)               # {"train the proposer": (72.9, 21.4), …}: seconds, those of compiling among them
    draw(run)                    # timing.svg, which the page shows

The page itself holds no times, so that the same run gives the same page: it shows this picture, which lies beside
it and differs from run to run, as timing.jsonl does.
"""

import collections
import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from common.results.files import write_bytes
from common.results.plots import alone, share_figure
from common.results.rundir import TIMES, RunDir

DRAWING = "timing.svg"
DRAWN = 12
"""Stages with a bar of their own, those that took longest."""


def by_stage(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Seconds by stage, and how many of them went into compiling, the longest first: of all repeats, arms and
    models together. `rows`: those of timing.jsonl; one that is none counts for nothing."""
    took: dict[str, tuple[float, float]] = collections.defaultdict(lambda: (0.0, 0.0))
    for row in rows:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            kind = _kind(str(row["stage"]))
            seconds, compiling = took[kind]
            took[kind] = seconds + float(row["seconds"]), compiling + float(row.get("compiling", 0))
    return dict(sorted(took.items(), key=lambda pair: -pair[1][0]))


def _kind(stage: str) -> str:
    """A stage without whose it is."""
    return re.sub(r"^(repeat_\d+/(round_\d+/)?|models/)[^/]+/", "", stage)


def draw(run: RunDir) -> None:
    """Store the drawing. Raises UserError when the disk is full."""
    took = by_stage(run.journal(TIMES).rows())
    stages = list(took)[:DRAWN]
    seconds, compiling = ([took[stage][i] for stage in stages] for i in range(2))
    whole = sum(seconds for seconds, _ in took.values())
    labels = ("work", "of it compiling", f"seconds, {whole:.0f} in all")
    drawing = alone(share_figure(stages, seconds, compiling, labels), "Seconds by stage")
    write_bytes(run.path / DRAWING, drawing.encode())
