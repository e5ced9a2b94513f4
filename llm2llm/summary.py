"""The figures of a finished run: what `summary.json` holds, and what to know before relying on them."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from common.errors import quoted
from common.results.conclusion import coarse, counted, flat
from common.results.estimate import ArmResult, Gain
from common.results.files import read_jsonl
from common.results.rundir import RunDir
from common.results.stats import gain, macro_f1, per_class, share_estimate
from common.text.diversity import self_bleu
from llm2llm.select import Row, best_round
from llm2llm.students import Setting

SCHEMA = 1

LEARNING = ("llm2llm", "untargeted", "eda", "auggpt", "more-data")
"""Arms that are to learn from more than the seeds."""
BLEU_SAMPLE = 100
"""Questions that self-BLEU is computed on; it grows with their number, so fewer have none."""
FEW_UPDATES = 10
"""A first training of fewer optimizer updates hardly moves the student."""
MUTE_SHARE = 1 / 5
"""Share of unparseable test answers above which an arm's accuracy says little."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm(ArmResult):
    """One arm; lists hold a value a repeat. `cut_off`: test answers that ran into the longest length. `answers`:
    files of the graded test answers. Of classes also `macro_f1` and, over all repeats, `per_class`. `regraded`:
    accuracy under this project's own judge, where another one graded. Where labels are scored, also the
    accuracy of what was written (`generated`), and of the labels of highest summed (`likeliest`) and mean
    (`per_token`) log-probability."""

    examples: list[int]
    updates: list[int]
    tokens: list[int]
    cut_off: list[int]
    by_group: dict[str, float]
    answers: list[str]
    macro_f1: list[float] | None = None
    per_class: dict[Any, dict[str, float]] | None = None
    regraded: list[float] | None = None
    generated: list[float] | None = None
    likeliest: list[float] | None = None
    per_token: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an arm cost, summed over repeats."""

    teacher_calls: int
    check_calls: int
    teacher_tokens: int
    optimizer_updates: int
    answers_cut_off: int


COSTS = ("teacher_calls", "check_calls", "teacher_tokens", "updates_of_all_rounds", "truncated")
"""What they are called in the result of an arm (`llm2llm.students.Arm.test`)."""


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
    results = {name: [repeat["arms"][name] for repeat in repeats] for name in setting.switches.comparison.arms}
    answers = {name: [read_jsonl(run.path / own["test"]) for own in found] for name, found in results.items()}
    entries = [entry for repeat in repeats for entry in repeat["rounds"]]
    total = lambda name, field: sum(own[field] for own in results[name])
    return Summary(
        schema=SCHEMA,
        method="llm2llm",
        status="complete",
        task=setting.task.name,
        arms={name: _arm(setting, results[name], answers[name]) for name in results},
        gains=_gains(results, answers),
        rounds=entries,
        seed_words=_seed_words(run, len(repeats)),
        new_questions={
            name: _new_questions(run, name, len(repeats)) for name in dict.fromkeys(e["arm"] for e in entries)
        },
        accounting={name: Cost(*(total(name, field) for field in COSTS)) for name in results},
    )


def _arm(setting: Setting, results: Sequence[Row], answers: Sequence[list[Row]]) -> Arm:
    """An arm from its result and its graded answers in every repeat."""
    each = lambda field: [result[field] for result in results]
    groups = each("by_group")
    return Arm(
        metric="accuracy",
        **vars(share_estimate(each("accuracy"), results[0]["n"])),
        examples=each("examples"),
        updates=each("updates"),
        tokens=each("tokens"),
        cut_off=each("truncated"),
        by_group={name: round(sum(own[name] for own in groups) / len(groups), 4) for name in groups[0]},
        answers=each("test"),
        # The authors' judge graded these; ours shows what is its and what is the student's.
        regraded=None if setting.judge is setting.task else [_regraded(setting, rows) for rows in answers],
        **(_class_figures(answers) if setting.task.kind == "class" else {}),
        **(_other_answers(answers) if setting.switches.learning.answer_by == "score" else {}),
    )


def _gains(results: dict[str, list[Row]], answers: dict[str, list[list[Row]]]) -> dict[str, Gain]:
    """By how much llm2llm is ahead of every other arm."""
    correct = {name: [[row["correct"] for row in rows] for rows in own] for name, own in answers.items()}
    shares = {name: [result["accuracy"] for result in own] for name, own in results.items()}
    return {
        f"llm2llm - {other}": gain(shares["llm2llm"], shares[other], correct["llm2llm"], correct[other])
        for other in results
        if "llm2llm" in results and other != "llm2llm"
    }


def _class_figures(of_repeats: Sequence[list[Row]]) -> dict[str, Any]:
    """Macro-F1 of every repeat, and precision, recall and F1 of each class over the answers of all repeats."""
    pairs = [([row["label"] for row in rows], [row["parsed"] for row in rows]) for rows in of_repeats]
    gold, predicted = ([x for pair in pairs for x in pair[i]] for i in (0, 1))
    return {"macro_f1": [macro_f1(*pair) for pair in pairs], "per_class": per_class(gold, predicted)}


def _other_answers(of_repeats: Sequence[list[Row]]) -> dict[str, Any]:
    """Accuracy of every repeat by what was written, and by log-probabilities as they are."""
    share = lambda rows, field: sum(row[field] == row["label"] for row in rows) / len(rows)
    return {
        name: [share(rows, field) for rows in of_repeats]
        for name, field in (("generated", "read"), ("likeliest", "likeliest"), ("per_token", "per_token"))
    }


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
    """Mean length in words and self-BLEU of the accepted questions of each repeat."""
    texts = [[row["question"] for row in new_rows(run, repeat, arm)] for repeat in range(repeats)]
    mean = lambda own: round(sum(len(text.split()) for text in own) / len(own), 2) if own else None
    alike = lambda own: round(self_bleu(own, sample=BLEU_SAMPLE), 4) if len(own) >= BLEU_SAMPLE else None
    return {"words": [mean(own) for own in texts], "self_bleu": [alike(own) for own in texts]}


def new_rows(run: RunDir, repeat: int, arm: str) -> list[Row]:
    """The accepted examples of an arm in the order in which they were made."""
    folder = run.path / f"repeat_{repeat}/{arm}"
    files = (folder / f"round_{number}/new.jsonl" for number in itertools.count())
    # The last round asks for nothing, so it has no such file.
    return [row for file in itertools.takewhile(pathlib.Path.exists, files) for row in read_jsonl(file)]


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Which student of a `repeat` was tested: that of `round`, which had `learned` so many new examples; `later`:
    how many more were kept that were written after it."""

    repeat: int
    round: int
    learned: int
    later: int


def chosen_rounds(rounds: Sequence[Row], arm: str) -> list[Chosen]:
    """Of every repeat, from the entries of all rounds; none for an arm without rounds."""
    found = []
    for repeat in sorted({entry["repeat"] for entry in rounds}):
        own = [entry for entry in rounds if entry["arm"] == arm and entry["repeat"] == repeat]
        if own:
            best = best_round(own)
            # Round 0 has learned the seeds; what a round asks for is learned by the next.
            learned = own[best]["examples"] - own[0]["examples"]
            found.append(Chosen(repeat, best, learned, sum(entry["accepted"] for entry in own[best:])))
    return found


def _unlearned(name: str, arm: Arm, rounds: Sequence[Row], seeds: int) -> list[str]:
    """Repeats in which an arm that is to learn from more than the seeds did not, and why."""
    of_repeats = chosen_rounds(rounds, name)
    lines = [
        f"{name}, repeat {own.repeat + 1}: the development split chose round 0, a training on the seeds alone: "
        f"{counted(own.later, 'new example')} were kept later, and not learned by the student that was tested"
        for own in of_repeats
        if own.later and not own.learned
    ]
    if min(arm.examples) <= seeds and (not of_repeats or any(not own.later + own.learned for own in of_repeats)):
        lines.append(f"{name} had no new example in a repeat: it is a training on the seeds alone")
    return lines


def warnings(run: RunDir, setting: Setting, summary: Summary) -> list[str]:
    """What a reader of the table should know before relying on it, a sentence each."""
    first = setting.switches.learning.train.total_steps(setting.switches.seeds.count)
    lines = []
    if first < FEW_UPDATES and any(any(arm.updates) for arm in summary.arms.values()):
        lines.append(f"the first training had only {counted(first, 'update')}; see --epochs and --batch-size")
    for name, arm in summary.arms.items():
        rows = [row for file in arm.answers for row in read_jsonl(run.path / file)]
        mute = sum(row["parsed"] is None for row in rows)
        if mute > MUTE_SHARE * len(rows):
            cut = sum(row["status"] == "length" for row in rows)
            lines.append(
                f"{mute} of {len(rows)} test answers of {name} hold nothing that can be read as an answer"
                + (f" ({cut} cut off)" if cut else "")
            )
        lines += one_answer(name, rows)
        if name in LEARNING:
            lines += _unlearned(name, arm, summary.rounds, setting.switches.seeds.count)
    for name in summary.arms:
        entries = [e for e in summary.rounds if e["arm"] == name and e["teacher_calls"]]
        kept, calls = (sum(e[key] for e in entries) for key in ("accepted", "teacher_calls"))
        handed_on = calls // setting.samples
        lines += _starved(entries, name)
        if calls and kept < handed_on / 2:
            reasons = ", ".join(f"{reason} {count}" for reason, count in refusals(entries, name).items())
            lines.append(f"{name} kept {kept} of {handed_on} replies ({reasons}); see refused.jsonl of its rounds")
    return lines + coarse(next(iter(summary.arms.values())).n or 0, "test question") + flat(summary.arms)


def one_answer(name: str, rows: Sequence[Row]) -> list[str]:
    """A warning on an arm that answers all of the test alike, where the right answers differ."""
    said, labels = {row["parsed"] for row in rows}, {row["label"] for row in rows}
    if len(rows) < 2 or len(said) > 1 or len(labels) == 1 or said == {None}:
        return []
    return [f"{name} gives every test question one answer, {quoted(*said)}: it tells none apart"]


def _starved(entries: Sequence[Row], name: str) -> list[str]:
    """Rounds in which the student's own answers to the seeds had too few mistakes left, and who was asked then."""
    lines = []
    for entry in entries:
        if "why" in entry:
            line = (
                f"{name}, repeat {entry['repeat'] + 1}, round {entry['round']}: {entry['why']}, so students that "
                f"had not seen them were asked, and answered {entry['right_out_of_fold']} rightly"
            )
            unsure = entry["rule"] == "low-confidence"
            lines.append(line + ("; the least sure answers were taken" if unsure else ""))
    return lines


def refusals(entries: Sequence[Row], arm: str) -> dict[str, int]:
    """How many replies for `arm` were refused, by reason."""
    total: collections.Counter[str] = collections.Counter()
    for entry in entries:
        if entry["arm"] == arm:
            total.update(entry["refused"])
    return dict(sorted(total.items()))
