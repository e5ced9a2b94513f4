"""The stages that need no model: a pool is scored, then selected from, in parts that fit into memory.

    scored = score_pool(run, pool, scoring)
    selection = select_from(run, scored, rule, "repeat_1")
    for row in selection.rows("selected"): ...      # prompts with their texts, one part in memory at a time

A part holds the prompts of some two thousand answers. Parts are scored and selected by several processes, each
part an artifact of its own, so that a killed run loses the parts in work and no more; what a part holds depends on
nothing but the file and the settings.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from active_inheritance.forecast import Tally, tally
from active_inheritance.metrics import Scorers
from active_inheritance.pools import Group, Pool, guard
from active_inheritance.select import ARMS, Candidate, Choice, Rule, choose, mark
from active_inheritance.switches import Scoring
from common.errors import UserError
from common.progress import progress_bar
from common.results.files import Rows, read_json, read_jsonl, write_json, write_jsonl
from common.results.rundir import RunDir
from common.text.same import normal_form

PART = 2048
"""Answers in a part, about; a prompt is never split."""
SMALL = 4 << 20
"""Bytes of a pool below which starting processes takes longer than the work."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """A pool with its scores, in the run directory."""

    folder: pathlib.Path
    """Where pool/ lies: of a file all repeats use the same."""
    scoring: Scoring
    index: dict[str, Any]
    """pool/index.json: prompts, answers and parts, and what became of the answers of every source; and
    "repeated_prompts", where prompts ask what an earlier one asks."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a run selected, in its directory."""

    folder: pathlib.Path
    """Where pool/ lies."""
    chosen: pathlib.Path
    """Where selection/ lies, a folder for each repeat."""
    rule: Rule
    pool: dict[str, Any]
    """See `Scored.index`."""
    tally: Tally
    """Sums over all prompts, from which `active_inheritance.forecast` makes figures."""

    def prompts(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Every prompt's row of the pool and its row of the selection."""
        for number in range(self.pool["parts"]):
            pool = read_jsonl(self.folder / _name("pool", number))
            yield from zip(pool, read_jsonl(self.chosen / _name("selection", number)), strict=True)

    def rows(self, arm: str) -> Iterator[dict[str, Any]]:
        """What an arm of `select.ARMS` learns from: {"id", "prompt", "answer", "source", "index", "scores"}, the
        place among the answers of the prompt that the arm takes ("rank"), and of selected ones "reason" and
        "margin"."""
        for pool, chosen in self.prompts():
            for rank, i in enumerate(chosen["arms"].get(arm, ())):
                answer = pool["answers"][i]
                yield {
                    "id": pool["id"] if chosen["taken"] == 1 else f"{pool['id']}#{rank}",
                    "prompt": pool["prompt"],
                    "answer": answer["text"],
                    **{name: answer[name] for name in ("source", "index", "scores")},
                    "rank": rank,
                    **{name: chosen[name] if arm == "selected" else None for name in ("reason", "margin")},
                }

    def pairs(self) -> Iterator[dict[str, Any]]:
        """Preferences: the first selected answer of a prompt over the one that `Rule.rejected` finds, as far as
        there is one: {"id", "prompt", and by side the answer of the pool}."""
        for pool, chosen in self.prompts():
            if chosen.get("rejected") is not None:
                sides = {"chosen": chosen["arms"]["selected"][0], "rejected": chosen["rejected"]}
                answers = {side: pool["answers"][i] for side, i in sides.items()}
                yield {"id": pool["id"], "prompt": pool["prompt"]} | answers


def score_pool(run: RunDir, pool: Pool, scoring: Scoring, folder: str = "") -> Scored:
    """Score a pool; its parts lie in `folder` of the run, and those that are stored stay. Raises UserError for a
    file that cannot be read, and where no answer is usable."""
    place, file = run.path / folder, pool.file
    path = place / "pool" / "index.json"
    with run.timed("score"):
        if not path.exists():
            size = file.stat().st_size
            scorers = Scorers.open(scoring.names, scoring.toxicity, str(file))
            with _processes(scoring, size) as each:
                work = functools.partial(_score_part, place, scoring, scorers)
                asked: set[int] = set()
                parts = enumerate(_parts(_noted(pool.groups(), asked)))
                counted = list(progress_bar(each(work, parts), desc="scored", unit="part"))
            index = _index(counted, size)
            if again := index["prompts"] - len(asked):
                index["repeated_prompts"] = again
            if not index["usable_prompts"]:
                raise UserError(f"{file}: no answer is usable: see --drop, and --answer-tokens if all are cut")
            # Last: without the index a continued run goes through the parts again, and reads those that are there.
            write_json(path, index)
        within = place.relative_to(run.path)
        run.check_whole(str(within / "pool/index.json"))
        index = read_json(path, ("parts", "prompts", "answers", "sources", "bytes"))
        for number in range(index["parts"]):
            run.check_whole(str(within / _name("pool", number)))
        return Scored(place, scoring, index)


def select_from(run: RunDir, scored: Scored, rule: Rule, folder: str = "") -> Selection:
    """Select by `rule` from a scored pool; choices lie in `folder` of the run. Raises UserError where
    no prompt has an answer that can be taken."""
    own, index = run.path / folder, scored.index
    with run.timed("select"):
        # Some 4,000 prompts are enough for a picture.
        stride = max(1, index["prompts"] // 4000)
        work = functools.partial(_select_part, scored.folder, own, scored.scoring, rule, stride)
        with _processes(scored.scoring, index["bytes"]) as each:
            done = each(work, ((number,) for number in range(index["parts"])))
            found = Tally.joined(list(progress_bar(done, desc="selected", total=index["parts"], unit="part")))
    if not len(found.pool):
        raise UserError(
            f"no prompt has an answer that can be taken under {', '.join(map(str, rule.constraints)) or rule}: "
            f"relax --constraint or --min-words, or use another --fallback than {rule.fallback}"
        )
    return Selection(scored.folder, own, rule, index, found)


def _name(kind: str, number: int) -> str:
    return f"{kind}/part-{number:05}.jsonl"


# --- scoring ----------------------------------------------------------------------------------------------------


def _noted(groups: Iterable[Group], asked: set[int]) -> Iterator[Group]:
    """The prompts as they come; `asked` gets the hash, eight bytes, of what each asks."""
    for group in groups:
        asked.add(hash(normal_form(group.prompt)))
        yield group


def _parts(groups: Iterable[Group]) -> Iterator[list[Group]]:
    part, size = [], 0
    for group in groups:
        part.append(group)
        size += len(group.answers)
        if size >= PART:
            yield part
            part, size = [], 0
    if part:
        yield part


def _score_part(
    folder: pathlib.Path, scoring: Scoring, scorers: Scorers, number: int, part: Sequence[Group]
) -> dict[str, Any]:
    """Store a part; gives counts of its prompts and of the answers of every source by what became of them."""
    path = folder / _name("pool", number)
    rows = read_jsonl(path) if path.exists() else []
    if [row.get("id") for row in rows] != [group.id for group in part]:
        rows = [_scored_row(scoring, scorers, group) for group in part]
        write_jsonl(path, rows)
    return _counts(rows, scoring)


def _scored_row(scoring: Scoring, scorers: Scorers, group: Group) -> dict[str, Any]:
    flags = guard(group.answers, scoring.max_repeats)
    scores = scorers.score(group.prompt, group.answers)
    return {
        "id": group.id,
        "prompt": group.prompt,
        "answers": [
            {"source": a.source, "index": a.index, "text": a.text, "flags": list(f), "scores": s}
            for a, f, s in zip(group.answers, flags, scores, strict=True)
        ],
    }


def _counts(rows: Rows, scoring: Scoring) -> dict[str, Any]:
    sources: dict[str, collections.Counter] = {}
    for row in rows:
        for answer in row["answers"]:
            count = sources.setdefault(answer["source"], collections.Counter())
            count.update(["answers", *answer["flags"]])
            count["usable"] += not scoring.drops(answer["flags"])
            count["words"] += int(answer["scores"]["words"] or 0)
            count.update(f"without {name}" for name, value in answer["scores"].items() if value is None)
    sizes = collections.Counter(len(row["answers"]) for row in rows)
    usable = sum(not all(scoring.drops(answer["flags"]) for answer in row["answers"]) for row in rows)
    return {"prompts": len(rows), "usable_prompts": usable, "sizes": sizes, "sources": sources}


def _index(counted: Sequence[dict[str, Any]], size: int) -> dict[str, Any]:
    sources: dict[str, collections.Counter] = {}
    for entry in counted:
        for source, count in entry["sources"].items():
            sources.setdefault(source, collections.Counter()).update(count)
    sizes = sum((entry["sizes"] for entry in counted), collections.Counter())
    return {
        "parts": len(counted),
        "bytes": size,
        "prompts": sum(entry["prompts"] for entry in counted),
        "usable_prompts": sum(entry["usable_prompts"] for entry in counted),
        "answers": sum(size * count for size, count in sizes.items()),
        "answers_of_a_prompt": {str(size): sizes[size] for size in sorted(sizes)},
        "sources": {source: dict(sources[source]) for source in sorted(sources)},
    }


# --- selecting --------------------------------------------------------------------------------------------------


def _select_part(
    folder: pathlib.Path, own: pathlib.Path, scoring: Scoring, rule: Rule, stride: int, number: int
) -> Tally:
    """Select from a part, store the choices, and sum the part up."""
    rows = read_jsonl(folder / _name("pool", number))
    # Also where they are stored: the sums need them, and what was stored may be damaged.
    choices = [choose(rule, row["id"], _candidates(row, scoring)) for row in rows]
    path = own / _name("selection", number)
    write_jsonl(path, (_selected_row(rule, row, c) for row, c in zip(rows, choices, strict=True)))
    return tally(scoring.names, rule, rows, choices, stride)


def _candidates(row: dict[str, Any], scoring: Scoring) -> list[Candidate]:
    return [
        Candidate(
            answer["source"],
            answer["index"],
            mark(answer["text"]),
            answer["scores"],
            not scoring.drops(answer["flags"]),
            not scoring.drops(flag for flag in answer["flags"] if flag != "duplicate"),
        )
        for answer in row["answers"]
    ]


def _selected_row(rule: Rule, row: dict[str, Any], choice: Choice | None) -> dict[str, Any]:
    """A prompt's attribution: what every arm takes (places among its answers), and why the selected one was."""
    if choice is None:
        return {"id": row["id"], "arms": {}, "taken": 0, "usable": 0, "feasible": 0, "reason": "nothing usable"}
    name = lambda i: {key: row["answers"][i][key] for key in ("source", "index")}
    arms = {arm: list(choice.arm(arm)) for arm in ARMS}
    entry = {
        "id": row["id"],
        "arms": arms if choice.selected else {},
        "taken": len(choice.selected),
        "usable": len(choice.order),
        "feasible": choice.feasible,
        "reason": choice.reason,
        "selected": [name(i) | {"scores": row["answers"][i]["scores"]} for i in choice.selected],
        "runner_up": next((name(i) for i in choice.order[: choice.feasible] if i not in choice.selected), None),
        "margin": choice.margin,
        "rejected": choice.rejected,
    }
    return entry | ({"front": [name(i) for i in choice.front]} if rule.combine == "pareto" else {})


# --- processes --------------------------------------------------------------------------------------------------

Each = Callable[[Callable[..., Any], Iterable[tuple]], Iterator[Any]]


@contextlib.contextmanager
def _processes(scoring: Scoring, size: int) -> Iterator[Each]:
    """Gives `each(function, arguments)`: the results in order, by several processes where that is worth it. Few
    arguments are in memory at a time.

    Functions of the user's and scorers of toxicity stay in this process: they may hold a model, or count their
    calls.
    """
    here = scoring.toxicity or any(name.startswith("python:") for name in scoring.names)
    if here or size < SMALL or scoring.workers == 1:
        yield lambda function, arguments: itertools.starmap(function, arguments)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    pool = concurrent.futures.ProcessPoolExecutor(scoring.workers, context, _follow_parent)

    def each(function: Callable[..., Any], arguments: Iterable[tuple]) -> Iterator[Any]:
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        for given in arguments:
            waiting.append(pool.submit(function, *given))
            # Enough ahead to keep every process busy, and no more than fits into memory.
            if len(waiting) > 2 * scoring.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield each
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """End with the process that started this one, even when that is killed."""

    parent = multiprocessing.parent_process()
    assert parent is not None, "only a child process follows its parent"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
