"""What a run leaves behind: the synthetic data set, the final model, the page and the table."""

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from common.results.card import ModelCard
from common.results.charts import confusion
from common.results.conclusion import (
    CHECKED,
    Conclusion,
    arm_dots,
    arm_table,
    by_round,
    checked,
    counted,
    gain_cell,
    lost,
    mean_cell,
    mixed,
    round_bars,
    verdict,
)
from common.results.dataset import LEARNED, DatasetCard, Field, reply, write_dataset
from common.results.estimate import ArmResult
from common.results.files import read_jsonl
from common.results.plots import BAD, GOOD, PALETTE, line_figure
from common.results.report import Report
from common.results.rundir import RunDir
from common.results.tables import percent_interval, terminal_table
from common.settings import command
from common.stages import publish
from common.tasks.base import Example
from common.text.glossary import explain, reason
from llm2llm.config import PRESETS, Config
from llm2llm.select import Row
from llm2llm.students import Setting
from llm2llm.summary import Chosen, Summary, chosen_rounds, new_rows, refusals, summarise, warnings
from llm2llm.switches import Comparison

TOLD = ("95% interval", "lead", "updates")
"""What the page explains beside the accuracy of arms."""
FIELDS = LEARNED | {
    "id": Field("string", "Repeat, arm, round, attempt and slot: unique."),
    "question": Field("string", "What is asked."),
    "answer": Field("string", "The full text the student learns."),
    "label": Field("string", "The part that is graded."),
    "group": Field("string", "Class or skill."),
    "parent": Field("string", "Id of the example that the teacher was shown: a seed, or an earlier new example."),
    "repeat": Field("int64", "Repeat of the run, from 0."),
    "round": Field("int64", "Round that wrote it, from 0."),
    "attempt": Field("int64", "Which request for this slot succeeded, from 1."),
    "teacher": Field("string", "Who wrote it."),
    "prompt_hash": Field("string", "Start of the SHA-256 of the teacher's prompt."),
    "rouge_l": Field("float64", "ROUGE-L F1 between the question and that of its seed."),
    "label_check": Field("string", "What the label check answered; null without one."),
    "truth": Field("string", "Exact answer where a program knows it; null elsewhere."),
    "label_correct": Field("bool", "Whether label and truth agree; null where unknown."),
}


def conclusion(run: RunDir, config: Config, setting: Setting, repeats: Sequence[dict[str, Any]]) -> Conclusion:
    """What a finished run shows; stores the data set and the model of the llm2llm arm."""
    summary = summarise(run, setting, repeats)
    written_by = config.teacher if setting.refine is None else f"{config.teacher} ({setting.refine})"
    rows, products, notes = [], {}, [*setting.doubts, *warnings(run, setting, summary)]
    if "llm2llm" in summary.arms:
        rows = _synthetic(run, setting, len(repeats))
        write_dataset(run.path / "dataset", rows, _card(config, written_by, summary, rows))
        model_card = _model_card(config, setting, written_by, summary, notes)
        adapter = publish(run, repeats[0]["arms"]["llm2llm"]["student"], model_card)
        products = {"data set": "dataset", "student": "model", **adapter}
    page = _page(run, config, written_by, setting, summary, rows)
    made_by = command("llm2llm", config, PRESETS)
    return Conclusion(summary, final_table(summary, setting), page, notes, _verdict(summary), products, made_by)


def _verdict(summary: Summary) -> str | None:
    """Against the arm that tells new examples from more training, and the one that tells targeting from other new
    examples, where they were trained; and against whatever it is behind."""
    others = [name for name in ("fine-tune-matched", "fine-tune", "base") if f"llm2llm - {name}" in summary.gains]
    others = others[:1] + ["untargeted"] * ("llm2llm - untargeted" in summary.gains)
    gains = {name: gain for name in summary.arms if (gain := summary.gains.get(f"llm2llm - {name}")) is not None}
    others += [name for name, gain in gains.items() if lost(gain) and name not in others]
    return verdict([("llm2llm", other, gains[other]) for other in others])


def arms_of(summary: Summary) -> tuple[list[str], list[list[Any]]]:
    """Headers and rows: every arm on the held-out questions."""

    def calls(name: str, arm: ArmResult) -> str:
        """Of the teacher in a repeat, for writing and for the label check."""
        cost, repeats = summary.accounting[name], len(arm.per_repeat or ())
        writing, checks = cost.teacher_calls // repeats, cost.check_calls // repeats
        return f"{writing} + {checks}" if checks else str(writing)

    # Only where labels are chosen by likelihood; what was written then stands beside it.
    written = [("as written, %", lambda name, arm: _percent(sum(arm.generated) / len(arm.generated)))]
    columns = [
        ("test accuracy, % [95%]", lambda name, arm: percent_interval(arm)),
        *(written if _has_written(summary) else ()),
        ("llm2llm - arm [95%]", gain_cell(summary.gains, "llm2llm")),
        ("examples", mean_cell("examples")),
        ("updates", mean_cell("updates")),
        ("teacher calls", calls),
    ]
    return arm_table(summary.arms, columns)


def _has_written(summary: Summary) -> bool:
    return any(arm.generated for arm in summary.arms.values())


def final_table(summary: Summary, setting: Setting) -> str:
    """The table printed at the end of a run, and what its arms are."""
    first = next(iter(summary.arms.values()))
    return (
        f"{summary.task}, {first.n} test questions, {counted(len(first.per_repeat or ()), 'repeat')}\n\n"
        + terminal_table(*arms_of(summary), note=_note(setting.switches.comparison, summary))
    )


def _synthetic(run: RunDir, setting: Setting, repeats: int) -> list[Row]:
    """All accepted examples of the llm2llm arm, in the order in which they were made."""
    rows = []
    for repeat in range(repeats):
        seeds = [Example(**row) for row in read_jsonl(run.path / f"repeat_{repeat}/seeds.jsonl")]
        task = setting.asked(seeds, setting.switches.seed + repeat).task
        for row in new_rows(run, repeat, "llm2llm"):
            made = {"prompt": task.messages(row["question"]), "completion": reply(row["answer"]), "repeat": repeat}
            rows.append({name: (row | made)[name] for name in FIELDS})
    return rows


def _card(config: Config, written_by: str, summary: Summary, rows: Sequence[Row]) -> DatasetCard:
    reasons = refusals(summary.rounds, "llm2llm")
    return DatasetCard(
        license="apache-2.0" if config.teacher == "embedded" else None,
        title=f"Synthetic {summary.task} data by LLM2LLM",
        made_by=(
            f"Written by {written_by} for seeds chosen by what {config.student} makes of them (target: "
            f"{config.target}), in up to {counted(config.trainings - 1, 'round')}. Label check: "
            f"{config.label_check}. Near-duplicates were refused."
            + "".join(
                f"\n\nNot all was learned: in repeat {own.repeat} (from 0) {_late(own)}."
                for own in chosen_rounds(summary.rounds, "llm2llm")
                if own.later
            )
        ),
        fields=FIELDS,
        lineage="parent names the seed (seeds.jsonl of the repeat), prompt_hash the request, id the reply.",
        counts={"accepted": len(rows)} | {f"refused: {reason}": n for reason, n in reasons.items()},
    )


def _model_card(
    config: Config, setting: Setting, written_by: str, summary: Summary, notes: Sequence[str]
) -> ModelCard:
    own = chosen_rounds(summary.rounds, "llm2llm")[0]
    data = f"fine-tuned on {config.seed_examples} seeds"
    data += f" and on the examples that {written_by} wrote for what it got wrong." if own.learned else " alone."
    if own.later:
        data += f" It is not of the last round: {_late(own)}."
    elif not own.learned:
        data += f" Nothing that {written_by} wrote was kept."
    return ModelCard(
        title=f"{summary.task} by LLM2LLM",
        base=setting.base.origin,
        method="llm2llm",
        learned=f"The arm llm2llm of the first repeat: {data}",
        tables={"Held-out accuracy of every arm": arms_of(summary)},
        verdict=_verdict(summary),
        warnings=notes,
        command=command("llm2llm", config, PRESETS),
    )


def _page(
    run: RunDir, config: Config, written_by: str, setting: Setting, summary: Summary, rows: Sequence[Row]
) -> Report:
    first = next(iter(summary.arms.values()))
    page = Report(
        f"LLM2LLM on {summary.task}",
        f"student {config.student}, teacher {written_by}, {counted(config.seed_examples, 'seed')}, "
        f"{counted(len(first.per_repeat or ()), 'repeat')}, seed {config.seed}",
    )
    page.chapter("The arms")
    colours = _colours(summary)
    arm_dots(page, summary.arms, summary.gains, "llm2llm", "held-out questions", colours=colours)
    page.add_table(
        "Held-out accuracy of every arm",
        *arms_of(summary),
        note=_note(setting.switches.comparison, summary),
        terms=explain("accuracy", *(["as written"] if _has_written(summary) else []), *TOLD),
    )
    if summary.rounds:
        page.chapter("Round by round")
        _round_figures(page, summary.rounds, bool(setting.dev), colours)
        _length_table(page, summary)
        _label_quality(page, summary.rounds)
    page.chapter("By class" if setting.task.kind == "class" else "By skill")
    if setting.task.kind == "class":
        _class_figures(page, run, summary)
    page.add_table(
        "Test accuracy by class or skill, %",
        ["group", *summary.arms],
        [[group, *(_percent(arm.by_group[group]) for arm in summary.arms.values())] for group in first.by_group],
        terms=explain("accuracy"),
    )
    if "llm2llm" in summary.arms:
        page.chapter("Examples")
        page.add_examples(
            "Kept: from a mistake to new training data (repeat 1)",
            ["Seed shown to the teacher", "The student's answer", "The teacher's new example"],
            _examples(run, rows),
        )
        page.add_examples(
            "Refused: replies of the teacher that no student learned (repeat 1)",
            ["Seed shown to the teacher", "The teacher's reply", "Why it was refused"],
            _refused(run, setting.test),
        )
    return page


def _colours(summary: Summary) -> dict[str, str]:
    """Of the arms that have rounds, which are drawn more than once, and of what became of things."""
    arms = sorted({entry["arm"] for entry in summary.rounds} - {"llm2llm"})
    drawn = dict(zip(["llm2llm", *arms], itertools.cycle(PALETTE), strict=False))
    return drawn | {"accepted": GOOD, "fixed": GOOD, "regressed": BAD, "still wrong": PALETTE[5]}


def _note(comparison: Comparison, summary: Summary) -> str:
    spent = "reads as many tokens" if comparison.match == "tokens" else "takes as many updates"
    notes = {
        "base": "base is the student as it came",
        "fine-tune-matched": f"fine-tune-matched {spent} as the llm2llm student, on the seeds alone",
        "untargeted": "untargeted asks the teacher as often, about seeds drawn at random",
        "eda": "eda learns from as many edited copies of seeds as llm2llm had new examples",
        "auggpt": "auggpt has the teacher rephrase seeds, in as many calls",
        "more-data": "more-data learns from as many real examples",
    }
    told = [notes[name] for name in comparison.arms if name in notes]
    always = "updates are those of the student that was tested; teacher calls: for writing + for the label check."
    found = [own for own in chosen_rounds(summary.rounds, "llm2llm") if own.later]
    return " ".join(["; ".join([*told, always]), *(f"In repeat {own.repeat + 1} {_late(own)}." for own in found)])


def _late(own: Chosen) -> str:
    """Where the development split chose a round before the last: which, and what its student had not learned."""
    learned = "the seeds alone" if not own.learned else counted(own.learned, "new example")
    return (
        f"the development split chose the llm2llm student of round {own.round}, which learned {learned}; "
        f"{own.later} more that were kept are of this round or later, and were not learned"
    )


def _class_figures(page: Report, run: RunDir, summary: Summary) -> None:
    """Which class is taken for which, and F1 by class; every arm of a task with classes has it."""
    name = "llm2llm" if "llm2llm" in summary.arms else list(summary.arms)[-1]
    rows = [row for file in summary.arms[name].answers for row in read_jsonl(run.path / file)]
    pairs = [(str(row["label"]), None if row["parsed"] is None else str(row["parsed"])) for row in rows]
    page.add_chart(f"What {name} answers, by class", confusion(pairs, sorted({label for label, _ in pairs})))
    arms = {name: (arm.macro_f1 or [], arm.per_class or {}) for name, arm in summary.arms.items()}
    macro = ["(macro-F1)", *(_percent(sum(macro) / len(macro)) for macro, _ in arms.values())]
    _, classes = next(iter(arms.values()))
    table = [[name, *(_percent(per_class[name]["f1"]) for _, per_class in arms.values())] for name in classes]
    page.add_table("F1 of every class, %", ["class", *arms], [macro, *table], terms=explain("F1", "macro-F1"))


def _percent(value: float) -> float:
    return round(100 * value, 1)


def _round_figures(page: Report, entries: Sequence[Row], has_dev: bool, colours: Mapping[str, str]) -> None:
    of_arm = {arm: [e for e in entries if e["arm"] == arm] for arm in sorted({e["arm"] for e in entries})}
    curves = lambda value: {arm: by_round(own, value) for arm, own in of_arm.items()}
    if has_dev:
        dev = line_figure(curves(lambda e: 100 * e["dev"]), "round", "accuracy, %", colours)
        page.add_figure("Accuracy on the development split by round, %", dev)
    grown = line_figure(curves(lambda e: e["examples"]), "round", "examples", colours)
    page.add_figure("Training examples by round", grown)
    teaching = [e for e in of_arm.get("llm2llm", ()) if e["teacher_calls"]]
    if teaching:
        reasons = sorted({reason for e in teaching for reason in e["refused"]})
        kinds = {"accepted": lambda e: e["accepted"]}
        kinds |= {reason: lambda e, r=reason: e["refused"].get(r, 0) for reason in reasons}
        bars = round_bars(teaching, kinds, "replies", colours)
        page.add_figure("What became of the teacher's replies (llm2llm)", bars)
    moved = [e for e in of_arm.get("llm2llm", ()) if "fixed" in e]
    kinds = ("fixed", "regressed", "still_wrong")
    if any(e[key] for e in moved for key in kinds):
        flows = {key.replace("_", " "): operator.itemgetter(key) for key in kinds}
        figure = round_bars(moved, flows, "seeds", colours)
        page.add_figure("What became of the seeds since the round before (llm2llm)", figure)


def _length_table(page: Report, summary: Summary) -> None:
    parts = ("question_words", "answer_words")
    rows = [["seeds", *(summary.seed_words[part] for part in parts)]]
    made = [e for e in summary.rounds if e["arm"] == "llm2llm" and e["accepted"]]
    for number in sorted({e["round"] for e in made}):
        here = [e for e in made if e["round"] == number]
        total = sum(e["accepted"] for e in here)
        means = [round(sum(e[part] * e["accepted"] for e in here) / total, 1) for part in parts]
        rows.append([f"accepted in round {number}", *means])
    if made:
        shorter = any(row[-1] < rows[0][-1] for row in rows[1:])
        note = "Shorter answers are easier to learn: a gain with them may be a gain of brevity." if shorter else ""
        page.add_table("Mean length in words", ["", "question", "answer"], rows, note=note)


def _label_quality(page: Report, entries: Sequence[Row]) -> None:
    rows = []
    for arm in sorted({e["arm"] for e in entries}):
        fields = ("accepted", "labels_known", "labels_wrong")
        accepted, known, wrong = (sum(e[field] for e in entries if e["arm"] == arm) for field in fields)
        if known:
            rows.append([arm, accepted, *checked(accepted, known, wrong)])
    if rows:
        headers = ["arm", "accepted", *CHECKED]
        page.add_table("Label noise of the accepted examples", headers, rows, terms=explain("label noise"))


def _examples(run: RunDir, rows: Sequence[Row], count: int = 8) -> list[list[str]]:
    """Up to `count` accepted examples of the first repeat, of different parents, beside seed and wrong answer."""
    place = run.path / "repeat_0"
    seeds = {row["id"]: row for row in read_jsonl(place / "seeds.jsonl")}
    first: dict[str, Row] = {}
    for row in rows:
        if row["repeat"] == 0 and row["parent"] in seeds:
            first.setdefault(row["parent"], row)
    cards = []
    for parent, row in itertools.islice(first.items(), count):
        # The first student is that of fine-tune; its answers are out of fold where there are folds.
        folder = place / (f"llm2llm/round_{row['round']}" if row["round"] else "fine-tune/round_0")
        files = [folder / "seeds.jsonl", *sorted(folder.glob("fold_*/seeds.jsonl"))]
        graded = {answer["id"]: answer for file in files for answer in read_jsonl(file)}
        shown = f"{seeds[parent]['question']}\n\nRight: {seeds[parent]['answer']}"
        cards.append([shown, graded[parent]["text"] or "", f"{row['question']}\n\n{row['answer']}"])
    return cards


def _refused(run: RunDir, test: Sequence[Example], count: int = 8) -> list[list[str]]:
    """Up to `count` refused replies of the first repeat, for all reasons in turn, beside seed and reason."""
    place = run.path / "repeat_0"
    known = {example.id: f"{example.question} (a test question)" for example in test}
    known |= {row["id"]: row["question"] for row in read_jsonl(place / "seeds.jsonl")}
    made = [row for file in sorted(place.glob("llm2llm/round_*/new.jsonl")) for row in read_jsonl(file)]
    known |= {row["id"]: row["question"] for row in made}
    rows = [row for file in sorted(place.glob("llm2llm/round_*/refused.jsonl")) for row in read_jsonl(file)]
    return [
        [known.get(row["parent"], ""), row["text"] or f"(nothing: {row['error']})", _why(row, known)]
        for row in mixed(rows, lambda row: row["reason"], count)
    ]


def _why(row: Row, known: Mapping[str, str]) -> str:
    """The reason of a refusal, and what it was found by."""
    if "nearest" in row:
        if row["nearest"] in known:
            return f"{row['reason']}, similarity {row['similarity']:.2f}\n\nNearest: {known[row['nearest']]}"
        return f"{row['reason']}\n\nQuoted: {row['nearest']}"
    if row.get("check_answer") is not None:
        return f"{row['reason']}\n\nThe check answered: {row['check_answer']}"
    return reason(row["reason"])
