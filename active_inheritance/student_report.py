"""The student's part of the page, of the printed tables, and of the warnings."""

from collections.abc import Sequence
from typing import Any

from active_inheritance.config import Config
from active_inheritance.loop import Outcome
from active_inheritance.student_figures import AGAINST
from common.results.report import Report, histogram_figure, line_figure, share_figure

Summary = dict[str, Any]


def short(value: float | None) -> str | None:
    """Three or four digits."""
    if value is None:
        return None
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def interval(entry: Summary) -> str | None:
    """ "+3.21 [+1.15, +5.27]", with as many decimals as the value asks for."""
    if entry["value"] is None:
        return None
    decimals = 1 if abs(entry["value"]) >= 10 else 2 if abs(entry["value"]) >= 1 else 3
    shown = f"{entry['value']:+.{decimals}f}"
    if entry["ci95"] is None:
        return shown
    return shown + " [{:+.{d}f}, {:+.{d}f}]".format(*entry["ci95"], d=decimals)


def percent(value: float | None, signed: bool = True) -> str | None:
    return None if value is None else f"{100 * value:{'+' if signed else ''}.1f}%"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --- tables ---------------------------------------------------------------------------------------------------


def arm_table(summary: Summary) -> tuple[list[str], list[list[Any]]]:
    """Every arm on the held-out prompts, and by how much the selected one differs."""
    metric = summary["arms"]["base"]["metric"]
    headers = ["student", metric, "selected - it", "relative", "words", "drift, nats a token", "truncated, %"]
    headers += ["examples", "tokens", "updates"]
    rows = []
    for name, arm in summary["arms"].items():
        gain = summary["gains"].get(f"selected - {name}")
        ahead = ["", ""] if gain is None else [interval(gain), percent(gain["relative"])]
        rows.append([name, short(arm["value"]), *ahead, short(arm["metrics"]["words"]["value"])])
        rows[-1] += [
            "" if arm["drift"] is None else short(arm["drift"]["value"]),
            round(100 * _mean(arm["truncated_share"]), 1),
            *(round(_mean(arm[k])) for k in ("examples", "tokens", "updates")),
        ]
    return headers, rows


METRIC_HEADERS = [
    *("score", "base", "random", "selected", "selected - random", "relative", "selected - base"),
    *("data: selected - random", "transfer"),
]


def metric_rows(summary: Summary) -> list[list[Any]]:
    """Every score of the students' answers, and how much of the data's change came over."""
    rows = []
    for name, transfer in summary["transfer"].items():
        values = [short(summary["arms"][arm]["metrics"][name]["value"]) for arm in ("base", AGAINST, "selected")]
        over, base = (summary["gains"][f"selected - {arm}"]["metrics"][name] for arm in (AGAINST, "base"))
        data = None if transfer["data"] is None else f"{transfer['data']:+.3g}"
        ratio = None if transfer["ratio"] is None else f"{transfer['ratio']:.2f}"
        rows.append([name, *values, interval(over), percent(over["relative"]), interval(base), data, ratio])
    return rows


CORPUS_HEADERS = ["student", "self-BLEU", "compression of all answers", "meets the constraints, %", "empty, %"]


def corpus_rows(summary: Summary) -> list[list[Any]]:
    """How much an arm's answers resemble each other, and what share of them is as it should be."""
    rows = []
    for name, arm in summary["arms"].items():
        means = []
        for key in ("self_bleu", "compression_ratio"):
            values = [entry[key] for entry in arm["corpus"]]
            means.append(None if None in values else short(_mean(values)))
        shares = [round(100 * _mean(arm[key]), 1) for key in ("feasible_share", "empty_share")]
        rows.append([name, *means, *shares])
    return rows


PROFILE_HEADERS = ["profile", "base", AGAINST, "selected", f"selected - {AGAINST}", "selected - base", "n"]


def profile_rows(summary: Summary) -> list[list[Any]]:
    """Every figure of the students' profiles, before and after."""
    from active_inheritance.profile.report import label  # loads jax, which a selection does without

    arms, changed = summary["profile"]["arms"], summary["profile"]["changes"]
    rows = []
    for key, base in arms["base"].items():
        values = [short(arms[arm][key]["value"]) for arm in ("base", AGAINST, "selected")]
        steps = (changed[f"selected - {arm}"][key] for arm in (AGAINST, "base"))
        shown = [interval({"value": step["absolute"], "ci95": step["ci95"]}) for step in steps]
        rows.append([f"{key.partition('/')[0].replace('_', ' ')}: {label(key)}", *values, *shown, base["n"]])
    return rows


ROUND_HEADERS = [
    *("round", "student", "objective", "selected - random", "pool", "learned", "spread", "drift, nats a token"),
    *("self-BLEU: data", "answers", "compression: data", "answers"),
]


def round_rows(summary: Summary) -> list[list[Any]]:
    """Every round of both lineages; means over repeats."""
    mean = lambda values: None if None in values else short(_mean(values))
    rows = []
    for entry in summary["rounds"]:
        for arm, own in entry["arms"].items():
            ahead = interval(entry["gain"]) if arm == "selected" else ""
            rows.append([str(entry["round"]), arm, short(own["value"]), ahead])
            rows[-1] += [mean(own[key]) for key in ("pool", "learned", "within_prompt_spread")]
            rows[-1].append(short(own["drift"]["value"]))
            for key in ("self_bleu", "compression_ratio"):
                rows[-1] += [mean([f[key] for f in own[of]]) for of in ("data_corpus", "corpus")]
    return rows


def _profiled_by(summary: Summary) -> str:
    entries = summary["profile"]["arms"]["base"].values()
    how = "over repeats" if summary["student"]["repeats"] > 1 else "of one training, drawn over items"
    scorers = dict.fromkeys(f"{entry['scorer']} ({entry['version']})" for entry in entries)
    return f"95% intervals {how}; measured by {', '.join(scorers)}"


def _round_figures(page: Report, summary: Summary) -> None:
    """The objective, the drift and the likeness of answers, round after round."""
    base, rounds = summary["arms"]["base"], summary["rounds"]
    places = [0, *(entry["round"] + 1 for entry in rounds)]
    mean = lambda values: None if None in values else _mean(values)
    series = lambda first, of: {
        arm: (places, [first, *(of(entry["arms"][arm]) for entry in rounds)]) for arm in rounds[0]["arms"]
    }
    bleu = lambda entry: mean([figures["self_bleu"] for figures in entry["corpus"]])
    named = "trainings since the base"
    for caption, curves, axis in (
        (f"{base['metric']} of the students, round after round", series(base["value"], _value), base["metric"]),
        ("Drift from the base", series(0.0, lambda own: own["drift"]["value"]), "nats a token"),
        ("How alike an arm's answers are", series(bleu(base), bleu), "self-BLEU"),
    ):
        page.add_figure(caption, line_figure(curves, named, axis))


def _value(entry: Summary) -> float | None:
    return entry["value"]


ACCOUNT_HEADERS = ["source", "calls", "tokens sent", "tokens received", "truncated, %", "failed"]


def account_rows(summary: Summary) -> list[list[Any]]:
    return [
        [
            name,
            *(entry[key] for key in ("calls", "prompt_tokens", "completion_tokens")),
            round(100 * entry["truncated_share"], 1),
            entry["failed"],
        ]
        for name, entry in summary["sampling"]["sources"].items()
    ]


def intervals_are(summary: Summary) -> str:
    repeats = summary["student"]["repeats"]
    if repeats > 1:
        return f"95% intervals by Student's t over {repeats} repeats"
    return "95% bootstrap intervals over prompts, of one training of each arm: they say nothing about other seeds"


# --- the page -------------------------------------------------------------------------------------------------


def add_student(page: Report, summary: Summary) -> None:
    """The first part of the page: what came of it."""
    own = summary["student"]
    page.add_table(
        "What the student became",
        *arm_table(summary),
        note=f"{own['name']} on {own['held_out_prompts']} held-out prompts, {own['answers_of_a_prompt']} answers "
        f"to each at temperature {own['temperature']:g}; {intervals_are(summary)}. Trained arms learn from "
        f"the same prompts for as many updates{', within a round' if own['rounds'] > 1 else ''}.",
    )


def add_student_details(page: Report, config: Config, summary: Summary, first: Outcome) -> None:
    """Distributions and every score; `first`: the first repeat, where a figure shows one."""
    if summary["profile"]:
        page.add_table(
            "Before and after: what else changed",
            PROFILE_HEADERS,
            profile_rows(summary),
            note=f"Of every student: {', '.join(summary['profile']['settings'])}; {_profiled_by(summary)}.",
        )
    if summary["rounds"]:
        page.add_table("Round after round", ROUND_HEADERS, round_rows(summary), note=ROUND_NOTE)
        _round_figures(page, summary)
    tally = first.selection.tally
    for name in config.measured()[:3]:
        answers = lambda arm, n=name: [row["scores"][n] for row in first.last(arm)["answers"]]
        series = {"pool": tally.sample[:, tally.metrics.index(name)]}
        # Colours go by the order, here as in the figures of the data.
        series |= {f"student: {arm}": answers(arm) for arm in (AGAINST, "selected", "base")}
        page.add_figure(f"{name} of the students' answers (first repeat)", histogram_figure(series, name))
    spreads = {name: summary["data"]["scores"][name]["spread"] for name in summary["transfer"]}
    shown = [
        (name, entry["student"] / spreads[name], entry["data"] / spreads[name])
        for name, entry in summary["transfer"].items()
        if spreads[name] and entry["student"] is not None and entry["data"] is not None
    ]
    if shown:
        labels = ("student, held-out prompts", "data it learned", "selected - random, in spreads")
        names, students, data = (list(column) for column in zip(*shown, strict=True))
        page.add_figure("What of the data's change came over", share_figure(names, students, data, labels))
    page.add_table("Every score of the student", METRIC_HEADERS, metric_rows(summary), note=TRANSFER_NOTE)
    page.add_table("The answers together", CORPUS_HEADERS, corpus_rows(summary), note=CORPUS_NOTE)


ROUND_NOTE = (
    "After round 0 an arm's own student writes its pool: the random student learns from random answers of its "
    "own, the selected one from selected ones. Drift: by how much a student finds its answers likelier than the "
    "base does. Self-BLEU and compression: higher is more alike; a rise from round to round is a loop that "
    "narrows. Means over repeats."
)
TRANSFER_NOTE = (
    "Transfer: the students' change over the data's, selected against random. A ratio of a small change of the "
    "data says little."
)
CORPUS_NOTE = (
    "Self-BLEU of 200 answers and the compression ratio of all: higher is more alike. Means over repeats."
)


ALARM = 0.1
"""Rise of self-BLEU over the base's, from which rounds are said to narrow."""


def _narrowing(summary: Summary) -> list[str]:
    """The alarm of a loop that feeds on itself."""
    if not summary["rounds"]:
        return []
    bleu = lambda entry: [figures["self_bleu"] or 0.0 for figures in entry["corpus"]]
    base, last = summary["arms"]["base"], summary["rounds"][-1]["arms"]
    return [
        f"{arm}: self-BLEU of the answers rose from {_mean(bleu(base)):.2f} to {_mean(bleu(own)):.2f} over "
        f"{summary['student']['rounds']} rounds: the student's answers become alike"
        for arm, own in last.items()
        if _mean(bleu(own)) - _mean(bleu(base)) > ALARM
    ]


UTILITY = ("accuracy", "ece", "ece_1_bin", "brier")
"""Figures of multiple choice; more is better in the first alone."""


def _costs(summary: Summary) -> list[str]:
    """What it costs elsewhere: figures of multiple choice that are worse than before, or than after random
    answers."""
    from active_inheritance.profile.report import label

    lines = []
    for other, than in (("base", "before"), (AGAINST, "after random answers")):
        found = summary["profile"] and summary["profile"]["changes"][f"selected - {other}"]
        for key, step in (found or {}).items():
            name = key.rpartition("/")[2]
            if not key.startswith("choice/") or name not in UTILITY or step["ci95"] is None:
                continue
            best = step["ci95"][1] if name == "accuracy" else -step["ci95"][0]
            if best < 0:
                shown = interval({"value": step["absolute"], "ci95": step["ci95"]})
                lines.append(f"utility: {label(key)} of the selected student is worse than {than}, by {shown}")
    return lines


# --- warnings -------------------------------------------------------------------------------------------------


def student_warnings(config: Config, summary: Summary) -> list[str]:
    """What a reader should know before believing the student's figures, a line each."""
    lines, own = [], summary["student"]
    if own["repeats"] == 1:
        lines.append("one repeat: the intervals of the student are over prompts and say nothing about other seeds")
    if own["held_out_too_long"]:
        lines.append(f"{own['held_out_too_long']} held-out prompts leave the student no room and were not asked")
    lines += _narrowing(summary) + _costs(summary)
    if left := max(own["left_out_too_long"]):
        lines.append(f"{left} answers of each arm are left out: they or another arm's are too long to be learned")
    for name, arm in summary["arms"].items():
        if any(arm["cut"]):
            share = 100 * sum(arm["cut"]) / sum(arm["examples"])
            lines.append(
                f"{name}: {max(share, 1):.0f}% of the answers were learned up to --max-length {config.max_length} "
                "only; the scores of what was learned are those of the beginning"
            )
    for name, arm in summary["arms"].items():
        if (share := max(arm["truncated_share"])) > 0.1:
            lines.append(
                f"{name}: {100 * share:.0f}% of the student's answers are cut at --answer-tokens "
                f"{config.answer_tokens}"
            )
    if own["held_out_prompts"] < 50:
        lines.append(f"only {own['held_out_prompts']} held-out prompts: raise --test-prompts")
    columns = [str(o) for o in config.rule().objectives if o.name.startswith("column:")]
    if columns:
        lines.append(f"{', '.join(columns)}: came with the pool and cannot be measured on the student's answers")
    if len(config.measured()) > 1:
        lines.append(f"arms are compared by {config.measured()[0]}, the first objective; the others stand below")
    gain = summary["gains"]["selected - random"]
    if gain["ci95"] is not None and gain["ci95"][0] <= 0 <= gain["ci95"][1]:
        lines.append("the interval of selected - random holds 0: no effect of the selection is shown")
    return lines
