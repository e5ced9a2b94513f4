"""What a run leaves behind: summary.json, the synthetic data set, the final model, the page and the table."""

import shutil
from typing import Any

from common.results.dataset import DatasetCard, Field, write_dataset
from common.results.report import Report, line_figure, percent_interval, stacked_bar_figure, terminal_table
from common.results.rundir import RunDir, read_jsonl, write_folder, write_json
from llm2llm.select import Row
from llm2llm.students import Setting
from llm2llm.summary import refusals, summarise, warnings

FIELDS = {
    "id": Field("string", "Repeat, arm, round, attempt and slot: unique."),
    "question": Field("string", "What is asked."),
    "answer": Field("string", "The full text the student learns."),
    "label": Field("string", "The part that is graded."),
    "group": Field("string", "Class or skill."),
    "parent": Field("string", "Id of the example that the teacher was shown: a seed, or an earlier new example."),
    "repeat": Field("int64", "Repeat of the run."),
    "round": Field("int64", "Round that wrote it, from 0."),
    "attempt": Field("int64", "Which request for this slot succeeded, from 1."),
    "teacher": Field("string", "Who wrote it."),
    "prompt_hash": Field("string", "Start of the SHA-256 of the teacher's prompt."),
    "rouge_l": Field("float64", "ROUGE-L F1 between the question and that of its seed."),
    "label_check": Field("string", "What the label check answered; null without one."),
    "truth": Field("string", "Exact answer where a program knows it; null elsewhere."),
    "label_correct": Field("bool", "Whether label and truth agree; null where unknown."),
}


def finish(run: RunDir, setting: Setting, repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """Write all products of a finished run and print its table; returns the summary."""
    summary = summarise(run, setting, repeats)
    rows = _synthetic(run, setting, len(repeats))
    if "llm2llm" in setting.config.arms:
        write_dataset(run.path / "dataset", rows, _card(setting, rows, summary))
        chosen = run.path / repeats[0]["arms"]["llm2llm"]["student"]
        write_folder(run.path / "model", lambda place: shutil.copytree(chosen, place, dirs_exist_ok=True))
    _page(run, setting, repeats, summary, rows).write(run.path / "report.html")
    write_json(run.path / "summary.json", summary)
    print(final_table(summary))
    for line in warnings(run, setting, summary):
        print(line)
    print(f"\nreport: {run.path / 'report.html'}   figures: {run.path / 'summary.json'}")
    return summary


def _arm_rows(summary: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for name, arm in summary["arms"].items():
        gain = summary["gains"].get(f"llm2llm - {name}")
        mean = lambda values: round(sum(values) / len(values))
        rows.append(
            [
                name,
                percent_interval(arm),
                "" if gain is None else percent_interval(gain, signed=True),
                mean(arm["examples"]),
                mean(arm["updates"]),
                _calls(summary["accounting"][name], len(arm["per_repeat"])),
            ]
        )
    return rows


def _calls(cost: Row, repeats: int) -> str:
    """Calls of the teacher a repeat, for writing and for the label check."""
    writing, checks = cost["teacher_calls"] // repeats, cost["check_calls"] // repeats
    return f"{writing} + {checks}" if checks else str(writing)


HEADERS = ["arm", "test accuracy, % [95%]", "llm2llm is ahead by", "examples", "updates", "teacher calls"]


def final_table(summary: dict[str, Any]) -> str:
    """The table printed at the end of a run."""
    first = next(iter(summary["arms"].values()))
    repeats = len(first["per_repeat"])
    return (
        f"\n{summary['task']}, {first['n']} test questions, {repeats} repeat{'s' if repeats > 1 else ''}\n\n"
        + terminal_table(HEADERS, _arm_rows(summary))
    )


def _synthetic(run: RunDir, setting: Setting, repeats: int) -> list[Row]:
    """All accepted examples of the llm2llm arm, in the order in which they were made."""
    if "llm2llm" not in setting.config.arms:
        return []
    rows = []
    for repeat in range(repeats):
        for number in range(setting.config.rounds):
            file = run.path / f"repeat_{repeat}/llm2llm/round_{number}/new.jsonl"
            if file.exists():
                rows += [{name: (row | {"repeat": repeat})[name] for name in FIELDS} for row in read_jsonl(file)]
    return rows


def _card(setting: Setting, rows: list[Row], summary: dict[str, Any]) -> DatasetCard:
    reasons = refusals(summary["rounds"], "llm2llm")
    config = setting.config
    return DatasetCard(
        license="apache-2.0" if config.teacher == "embedded" else None,
        title=f"Synthetic {setting.task.name} data by LLM2LLM",
        made_by=(
            f"Written by {setting.written_by} for seeds chosen by what {config.student} makes of them (target: "
            f"{config.target}), in up to {config.trainings - 1} rounds. Label check: {config.label_check}. "
            "Near-duplicates were refused."
        ),
        fields=FIELDS,
        lineage="`parent` names the seed (seeds.jsonl of the repeat), `prompt_hash` the request, `id` the reply.",
        counts={"accepted": len(rows)} | {f"refused: {reason}": n for reason, n in reasons.items()},
    )


def _page(
    run: RunDir, setting: Setting, repeats: list[dict[str, Any]], summary: dict[str, Any], rows: list[Row]
) -> Report:
    config = setting.config
    page = Report(
        f"LLM2LLM on {setting.task.name}",
        f"student {config.student}, teacher {setting.written_by}, {config.seed_examples} seeds, "
        f"{len(repeats)} repeat{'s' if len(repeats) > 1 else ''}, seed {config.seed}",
    )
    page.add_table(
        "Held-out accuracy of every arm",
        HEADERS,
        _arm_rows(summary),
        note=_note(setting),
    )
    if setting.task.kind == "class":
        _class_table(page, summary)
    entries = summary["rounds"]
    if entries:
        _round_figures(page, entries, bool(setting.dev))
        _flow_figure(page, entries)
        _length_table(page, entries, summary["seed_words"])
        _label_quality(page, entries)
    page.add_table(
        "Test accuracy by class or skill, %",
        ["group", *summary["arms"]],
        [
            [group, *(round(100 * arm["by_group"][group], 1) for arm in summary["arms"].values())]
            for group in next(iter(summary["arms"].values()))["by_group"]
        ],
    )
    if rows:
        page.add_examples(
            "From a mistake to new training data (repeat 0)",
            ["Seed shown to the teacher", "The student's answer", "The teacher's new example"],
            _examples(run, rows),
        )
    return page


def _note(setting: Setting) -> str:
    config = setting.config
    spent = "reads as many tokens" if config.match == "tokens" else "takes as many updates"
    notes = {
        "base": "base is the student as it came",
        "fine-tune-matched": f"fine-tune-matched {spent} as the llm2llm student, on the seeds alone",
        "untargeted": "untargeted asks the teacher as often, about seeds drawn at random",
        "eda": "eda learns from as many edited copies of seeds as llm2llm had new examples",
        "auggpt": "auggpt has the teacher rephrase seeds, in as many calls",
        "more-data": "more-data learns from as many real examples",
    }
    told = [notes[name] for name in config.arms if name in notes]
    told += [
        "updates are those of the student that was tested",
        "teacher calls: for writing + for the label check",
    ]
    return "; ".join(told) + "."


def _class_table(page: Report, summary: dict[str, Any]) -> None:
    arms = summary["arms"]
    macro = ["(macro-F1)", *(_percent(sum(a["macro_f1"]) / len(a["macro_f1"])) for a in arms.values())]
    names = next(iter(arms.values()))["per_class"]
    rows = [[name, *(_percent(a["per_class"][name]["f1"]) for a in arms.values())] for name in names]
    page.add_table("F1 of every class, %", ["class", *arms], [macro, *rows])


def _percent(value: float) -> float:
    return round(100 * value, 1)


def _flow_figure(page: Report, entries: list[Row]) -> None:
    moved = [e for e in entries if e["arm"] == "llm2llm" and "fixed" in e]
    if not moved:
        return
    numbers = sorted({e["round"] for e in moved})
    kinds = {"fixed": "fixed", "still_wrong": "still wrong", "regressed": "regressed"}
    counts = {
        shown: [sum(e[key] for e in moved if e["round"] == n) for n in numbers] for key, shown in kinds.items()
    }
    figure = stacked_bar_figure([f"round {n}" for n in numbers], counts, "seeds")
    page.add_figure("What became of the seeds since the round before (llm2llm)", figure)


def _length_table(page: Report, entries: list[Row], seed_words: dict[str, float]) -> None:
    made = [e for e in entries if e["arm"] == "llm2llm" and e["accepted"]]
    if not made:
        return
    rows = [["seeds", seed_words["question_words"], seed_words["answer_words"]]]
    for number in sorted({e["round"] for e in made}):
        here = [e for e in made if e["round"] == number]
        total = sum(e["accepted"] for e in here)
        means = [
            round(sum(e[key] * e["accepted"] for e in here) / total, 1)
            for key in ("question_words", "answer_words")
        ]
        rows.append([f"accepted in round {number}", *means])
    page.add_table(
        "Mean length in words",
        ["", "question", "answer"],
        rows,
        note="Shorter answers are easier to learn: a gain with them may be a gain of brevity.",
    )


def _round_figures(page: Report, entries: list[Row], has_dev: bool) -> None:
    def curve(arm: str, value) -> tuple[list[int], list[float]]:
        numbers = sorted({e["round"] for e in entries if e["arm"] == arm})
        means = []
        for number in numbers:
            values = [value(e) for e in entries if e["arm"] == arm and e["round"] == number]
            means.append(sum(values) / len(values))
        return numbers, means

    arms = sorted({e["arm"] for e in entries})
    if has_dev:
        series = {arm: curve(arm, lambda e: 100 * e["dev"]) for arm in arms}
        page.add_figure(
            "Accuracy on the development split by round, %", line_figure(series, "round", "accuracy, %")
        )
    series = {arm: curve(arm, lambda e: e["examples"]) for arm in arms}
    page.add_figure("Training examples by round", line_figure(series, "round", "examples"))
    teaching = [e for e in entries if e["arm"] == "llm2llm" and e["teacher_calls"]]
    if teaching:
        numbers = sorted({e["round"] for e in teaching})
        reasons = sorted({reason for e in teaching for reason in e["refused"]})
        counts = {
            "accepted": [sum(e["accepted"] for e in teaching if e["round"] == n) for n in numbers],
        } | {
            reason: [sum(e["refused"].get(reason, 0) for e in teaching if e["round"] == n) for n in numbers]
            for reason in reasons
        }
        figure = stacked_bar_figure([f"round {n}" for n in numbers], counts, "replies")
        page.add_figure("What became of the teacher's replies (llm2llm)", figure)


def _label_quality(page: Report, entries: list[Row]) -> None:
    rows = []
    for arm in sorted({e["arm"] for e in entries}):
        known = sum(e["labels_known"] for e in entries if e["arm"] == arm)
        wrong = sum(e["labels_wrong"] for e in entries if e["arm"] == arm)
        accepted = sum(e["accepted"] for e in entries if e["arm"] == arm)
        if known:
            rows.append([arm, accepted, known, wrong, round(100 * wrong / known, 1)])
    if rows:
        page.add_table(
            "Label noise of the accepted examples",
            ["arm", "accepted", "answer known to a program", "label wrong", "wrong, %"],
            rows,
        )


def _examples(run: RunDir, rows: list[Row], count: int = 8) -> list[list[str]]:
    """Up to `count` accepted examples of repeat 0, of different parents, beside seed and wrong answer."""
    seeds = {row["id"]: row for row in read_jsonl(run.path / "repeat_0/seeds.jsonl")}
    shown, cards = set(), []
    for row in rows:
        if row["repeat"] != 0 or row["parent"] in shown or row["parent"] not in seeds or len(cards) == count:
            continue
        shown.add(row["parent"])
        first = row["round"] == 0
        folder = "fine-tune/round_0" if first else f"llm2llm/round_{row['round']}"
        graded = {g["id"]: g for g in read_jsonl(run.path / f"repeat_0/{folder}/seeds.jsonl")}
        for fold in sorted((run.path / "repeat_0" / folder).glob("fold_*/seeds.jsonl")):
            graded |= {g["id"]: g for g in read_jsonl(fold)}
        seed = seeds[row["parent"]]
        cards.append(
            [
                f"{seed['question']}\n\nRight: {seed['answer']}",
                graded[row["parent"]]["text"] or "",
                f"{row['question']}\n\n{row['answer']}",
            ]
        )
    return cards
