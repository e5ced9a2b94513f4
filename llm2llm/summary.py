"""The figures of a finished run: what `summary.json` holds, and what to know before relying on them."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from common.results.estimate import ArmResult, Gain
from common.results.rundir import RunDir, read_jsonl
from common.results.stats import gain, macro_f1, per_class, share_estimate
from common.text.diversity import self_bleu
from llm2llm.select import Row
from llm2llm.students import Setting

SCHEMA = 1

BLEU_SAMPLE = 100
"""New questions of a repeat that self-BLEU is taken of; fewer have none, as it grows with their number."""
FEW_UPDATES = 10
"""A first training of fewer optimizer updates hardly moves the student."""
MUTE_SHARE = 1 / 5
"""Share of test answers without a readable answer above which an arm's accuracy says little."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm(ArmResult):
    """One arm; lists hold a value a repeat. `cut_off`: test answers that ran into the longest length. `answers`:
    files of the graded test answers. Of classes also `macro_f1` and, over all repeats, `per_class`. `regraded`:
    accuracy under this project's own judge, where another one graded."""

    examples: list[int]
    updates: list[int]
    tokens: list[int]
    cut_off: list[int]
    by_group: dict[str, float]
    answers: list[str]
    macro_f1: list[float] | None = None
    per_class: dict[Any, dict[str, float]] | None = None
    regraded: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an arm cost, summed over repeats."""

    teacher_calls: int
    check_calls: int
    teacher_tokens: int
    optimizer_updates: int
    answers_cut_off: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The documented, versioned figures of a run (see README, "summary.json")."""

    schema: int
    method: str
    status: str
    task: str
    arms: dict[str, Arm]
    gains: dict[str, Gain]
    rounds: list[Row]
    seed_words: dict[str, float]
    new_questions: dict[str, dict[str, list[float | None]]]
    accounting: dict[str, Cost]


def summarise(run: RunDir, setting: Setting, repeats: Sequence[dict[str, Any]]) -> Summary:
    """The figures of all repeats, as `llm2llm.loop.run_repeat` gives them."""
    names = setting.switches.comparison.arms
    answers = {name: [read_jsonl(run.path / repeat["arms"][name]["test"]) for repeat in repeats] for name in names}
    of_arms = {name: [repeat["arms"][name] for repeat in repeats] for name in names}
    arms = {name: _arm(setting, of_arms[name], answers[name]) for name in names}
    entries = [entry for repeat in repeats for entry in repeat["rounds"]]
    written = list(dict.fromkeys(entry["arm"] for entry in entries))
    return Summary(
        schema=SCHEMA,
        method="llm2llm",
        status="complete",
        task=setting.task.name,
        arms=arms,
        gains=_gains(of_arms, answers),
        rounds=entries,
        seed_words=_seed_words(run, len(repeats)),
        new_questions={name: _new_questions(run, name, len(repeats)) for name in written},
        accounting={name: _cost(results) for name, results in of_arms.items()},
    )


def _arm(setting: Setting, results: Sequence[Row], answers: Sequence[list[Row]]) -> Arm:
    """An arm from its result and its graded answers in every repeat."""
    share = share_estimate([r["accuracy"] for r in results], results[0]["n"])
    more = _class_figures(answers) if setting.task.kind == "class" else {}
    # The authors' judge graded these; ours shows what is its and what is the student's.
    regraded = None if setting.judge is setting.task else [_regraded(setting, rows) for rows in answers]
    return Arm(
        metric="accuracy",
        **vars(share),
        examples=[r["examples"] for r in results],
        updates=[r["updates"] for r in results],
        tokens=[r["tokens"] for r in results],
        cut_off=[r["truncated"] for r in results],
        by_group=_mean_by_group(results),
        answers=[r["test"] for r in results],
        regraded=regraded,
        **more,
    )


def _gains(arms: dict[str, list[Row]], answers: dict[str, list[list[Row]]]) -> dict[str, Gain]:
    """By how much llm2llm is ahead of every other arm."""
    if "llm2llm" not in arms:
        return {}
    correct = {name: [[row["correct"] for row in rows] for rows in of_arm] for name, of_arm in answers.items()}
    shares = {name: [result["accuracy"] for result in results] for name, results in arms.items()}
    return {
        f"llm2llm - {other}": gain(shares["llm2llm"], shares[other], correct["llm2llm"], correct[other])
        for other in arms
        if other != "llm2llm"
    }


def _class_figures(of_repeats: Sequence[list[Row]]) -> dict[str, Any]:
    """Macro-F1 of every repeat, and precision, recall and F1 of each class over the answers of all repeats."""
    pairs = [([row["label"] for row in rows], [row["parsed"] for row in rows]) for rows in of_repeats]
    gold, predicted = ([x for pair in pairs for x in pair[i]] for i in (0, 1))
    return {"macro_f1": [macro_f1(*pair) for pair in pairs], "per_class": per_class(gold, predicted)}


def _regraded(setting: Setting, rows: list[Row]) -> float:
    """Accuracy of the same answers under this project's own judge instead of the authors'."""
    right = [row["text"] is not None and setting.judge.correct(row["text"], row["label"]) for row in rows]
    return sum(right) / len(right)


def _seed_words(run: RunDir, repeats: int) -> dict[str, float]:
    """Mean length of the seeds, for comparison with the new examples: shorter answers are easier to learn."""
    seeds = [row for r in range(repeats) for row in read_jsonl(run.path / f"repeat_{r}/seeds.jsonl")]
    return {
        f"{part}_words": round(sum(len(row[part].split()) for row in seeds) / len(seeds), 2)
        for part in ("question", "answer")
    }


def _new_questions(run: RunDir, arm: str, repeats: int) -> dict[str, list[float | None]]:
    """Of the accepted questions of every repeat the mean length in words, and how alike they are."""
    found: dict[str, list[float | None]] = {"words": [], "self_bleu": []}
    for repeat in range(repeats):
        texts = [row["question"] for row in new_rows(run, repeat, arm)]
        words = round(sum(len(text.split()) for text in texts) / len(texts), 2) if texts else None
        enough = len(texts) >= BLEU_SAMPLE
        found["words"].append(words)
        found["self_bleu"].append(round(self_bleu(texts, sample=BLEU_SAMPLE), 4) if enough else None)
    return found


def new_rows(run: RunDir, repeat: int, arm: str) -> list[Row]:
    """The accepted examples of an arm in the order in which they were made."""
    folder = run.path / f"repeat_{repeat}/{arm}"
    files = (folder / f"round_{number}/new.jsonl" for number in itertools.count())
    # The last round asks for nothing, so it has no such file.
    return [row for file in itertools.takewhile(pathlib.Path.exists, files) for row in read_jsonl(file)]


def _cost(results: Sequence[Row]) -> Cost:
    total = lambda field: sum(result[field] for result in results)
    return Cost(
        teacher_calls=total("teacher_calls"),
        check_calls=total("check_calls"),
        teacher_tokens=total("teacher_tokens"),
        optimizer_updates=total("updates_of_all_rounds"),
        answers_cut_off=total("truncated"),
    )


def _mean_by_group(results: Sequence[Row]) -> dict[str, float]:
    groups = results[0]["by_group"]
    return {g: round(sum(r["by_group"][g] for r in results) / len(results), 4) for g in groups}


def caveats(run: RunDir, setting: Setting, summary: Summary) -> list[str]:
    """What a reader of the table should know before relying on it, a sentence each."""
    first = setting.switches.learning.train.total_steps(setting.switches.seeds.count)
    lines = []
    if first < FEW_UPDATES:
        lines.append(f"the first training had only {first} updates; see --epochs and --batch-size")
    for name, arm in summary.arms.items():
        rows = [row for file in arm.answers for row in read_jsonl(run.path / file)]
        mute = sum(row["parsed"] is None for row in rows)
        if mute > MUTE_SHARE * len(rows):
            cut = sum(row["status"] == "length" for row in rows)
            lines.append(
                f"{mute} of {len(rows)} test answers of {name} hold nothing that can be read as an answer"
                + (f" ({cut} cut off)" if cut else "")
            )
    for name in summary.arms:
        entries = [e for e in summary.rounds if e["arm"] == name and e["teacher_calls"]]
        kept, calls = (sum(e[key] for e in entries) for key in ("accepted", "teacher_calls"))
        handed_on = calls // setting.samples
        if calls and kept < handed_on / 2:
            reasons = ", ".join(f"{reason} {count}" for reason, count in refusals(entries, name).items())
            lines.append(f"{name} kept {kept} of {handed_on} replies ({reasons}); see refused.jsonl of its rounds")
    return lines


def refusals(entries: Sequence[Row], arm: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for entry in entries:
        if entry["arm"] == arm:
            for reason, count in entry["refused"].items():
                total[reason] = total.get(reason, 0) + count
    return dict(sorted(total.items()))
