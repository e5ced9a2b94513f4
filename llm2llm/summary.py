"""The figures of a finished run: what `summary.json` holds, and what to know before believing them."""

from collections.abc import Sequence
from typing import Any

from common.results.rundir import RunDir, read_jsonl
from common.results.stats import arm_summary, gain, macro_f1, per_class
from common.text.diversity import self_bleu
from llm2llm.select import Row
from llm2llm.students import Setting

SCHEMA = 1

BLEU_SAMPLE = 100
"""New questions of a repeat that self-BLEU is taken of; fewer have none, as it grows with their number."""


def summarise(run: RunDir, setting: Setting, repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """The documented, versioned figures of a run (see README, "summary.json")."""
    answers = {
        name: [read_jsonl(run.path / repeat["arms"][name]["test"]) for repeat in repeats]
        for name in setting.config.arms
    }
    arms = {}
    for name in setting.config.arms:
        results = [repeat["arms"][name] for repeat in repeats]
        arms[name] = arm_summary([r["accuracy"] for r in results], results[0]["n"])
        arms[name] |= {
            "examples": [r["examples"] for r in results],
            "updates": [r["updates"] for r in results],
            "tokens": [r["tokens"] for r in results],
            "cut_off": [r["truncated"] for r in results],
            "by_group": _mean_by_group(results),
            "answers": [r["test"] for r in results],
        }
        if setting.task.kind == "class":
            arms[name] |= _class_figures(answers[name])
        if setting.config.official:
            arms[name]["regraded"] = [_regraded(setting, rows) for rows in answers[name]]
    entries = [entry for repeat in repeats for entry in repeat["rounds"]]
    written = list(dict.fromkeys(entry["arm"] for entry in entries))
    return {
        "schema": SCHEMA,
        "method": "llm2llm",
        "status": "complete",
        "task": setting.task.name,
        "arms": arms,
        "gains": _gains(arms, answers),
        "rounds": entries,
        "seed_words": _seed_words(run, len(repeats)),
        "new_questions": {name: _new_questions(run, setting, name, len(repeats)) for name in written},
        "accounting": _accounting(setting, repeats),
    }


def _gains(arms: dict[str, Any], answers: dict[str, list[list[Row]]]) -> dict[str, Any]:
    """By how much llm2llm is ahead of every other arm: Student's t interval over repeats, and the paired bootstrap
    over repeats and questions."""
    if "llm2llm" not in arms:
        return {}
    correct = {name: [[row["correct"] for row in rows] for rows in of_arm] for name, of_arm in answers.items()}
    ours = arms["llm2llm"]["per_repeat"]
    return {
        f"llm2llm - {other}": gain(ours, arms[other]["per_repeat"], correct["llm2llm"], correct[other])
        for other in arms
        if other != "llm2llm"
    }


def _class_figures(of_repeats: list[list[Row]]) -> dict[str, Any]:
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


def _new_questions(run: RunDir, setting: Setting, arm: str, repeats: int) -> dict[str, list[float | None]]:
    """Of the accepted questions of every repeat the mean length in words, and how alike they are."""
    found: dict[str, list[float | None]] = {"words": [], "self_bleu": []}
    for repeat in range(repeats):
        folders = [run.path / f"repeat_{repeat}/{arm}/round_{number}" for number in range(setting.config.rounds)]
        files = [folder / "new.jsonl" for folder in folders if (folder / "new.jsonl").exists()]
        texts = [row["question"] for file in files for row in read_jsonl(file)]
        words = round(sum(len(text.split()) for text in texts) / len(texts), 2) if texts else None
        enough = len(texts) >= BLEU_SAMPLE
        found["words"].append(words)
        found["self_bleu"].append(round(self_bleu(texts, sample=BLEU_SAMPLE), 4) if enough else None)
    return found


def _accounting(setting: Setting, repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """What every arm cost, summed over repeats."""
    return {
        name: {
            key: sum(repeat["arms"][name][field] for repeat in repeats)
            for key, field in (
                ("teacher_calls", "teacher_calls"),
                ("check_calls", "check_calls"),
                ("teacher_tokens", "teacher_tokens"),
                ("optimizer_updates", "updates_of_all_rounds"),
                ("answers_cut_off", "truncated"),
            )
        }
        for name in setting.config.arms
    }


def _mean_by_group(results: Sequence[Row]) -> dict[str, float]:
    groups = results[0]["by_group"]
    return {g: round(sum(r["by_group"][g] for r in results) / len(results), 4) for g in groups}


def warnings(run: RunDir, setting: Setting, summary: dict[str, Any]) -> list[str]:
    """What a reader of the table should know before believing it, a line each."""
    lines = []
    settings = setting.config.training(0)
    first = settings.total_steps(setting.config.seed_examples)
    if first < 10:
        lines.append(f"note: the first training had {first} updates only; see --epochs and --batch-size")
    for name, arm in summary["arms"].items():
        rows = [row for file in arm["answers"] for row in read_jsonl(run.path / file)]
        mute = sum(row["parsed"] is None for row in rows)
        if mute > len(rows) / 5:
            cut = sum(row["status"] == "length" for row in rows)
            lines.append(
                f"note: {mute} of {len(rows)} test answers of {name} hold nothing that can be read as an answer"
                + (f" ({cut} cut off)" if cut else "")
            )
    for name in summary["arms"]:
        entries = [e for e in summary["rounds"] if e["arm"] == name and e["teacher_calls"]]
        kept, calls = (sum(e[key] for e in entries) for key in ("accepted", "teacher_calls"))
        handed_on = calls // setting.samples
        if calls and kept < handed_on / 2:
            reasons = ", ".join(f"{reason} {count}" for reason, count in refusals(entries, name).items())
            lines.append(
                f"note: {name} kept {kept} of {handed_on} replies ({reasons}); see refused.jsonl of its rounds"
            )
    return lines and ["", *lines]


def refusals(entries: Sequence[Row], arm: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for entry in entries:
        if entry["arm"] == arm:
            for reason, count in entry["refused"].items():
                total[reason] = total.get(reason, 0) + count
    return dict(sorted(total.items()))
