"""The student's part of the page, of the printed tables, and of the warnings."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from active_inheritance.outcome import Outcome
from active_inheritance.select import Objective
from active_inheritance.student_figures import AGAINST, Arm, Corpus, RoundArm
from active_inheritance.summary import Measured, StudentSummary, unmatched
from active_inheritance.switches import Switches, measurable
from common.results.charts import dots
from common.results.conclusion import arm_table, flat, mean_cell
from common.results.estimate import Estimate
from common.results.plots import INK, PALETTE, histogram_figure, line_figure, share_figure
from common.results.report import Report
from common.text.glossary import explain

Table = tuple[list[str], list[list[Any]]]
"""Headers and rows."""
WANTED: dict[str, Literal["higher", "lower"]] = {"max": "higher", "min": "lower"}
"""Which way is good, by the direction of an objective."""
COLOURS = dict(zip(("selected", AGAINST, "first", "matched"), PALETTE, strict=False)) | {
    "base": INK,
    "pool": PALETTE[5],
    "by chance": PALETTE[1],
}
"""Of the arms, and of what they are drawn beside; a uniform draw has that of the random arm."""


def short(value: float | None) -> str | None:
    """Three or four digits."""
    if value is None:
        return None
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def decimals(value: float) -> int:
    """As many as a difference of that size asks for."""
    return 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3


def interval(value: float | None, ci95: Sequence[float] | None) -> str | None:
    """ "+3.21 [+1.15, +5.27]", with as many decimals as the value asks for."""
    if value is None:
        return None
    places = decimals(value)
    shown = f"{value:+.{places}f}"
    return shown if ci95 is None else f"{shown} [{ci95[0]:+.{places}f}, {ci95[1]:+.{places}f}]"


def of_first(own: Measured | None) -> str:
    """What is added to the title of a drawing that shows the first repeat, or round, of several."""
    several = {} if own is None else {"repeat": own.repeats, "round": own.rounds}
    named = [f"first {name}" for name, count in several.items() if count > 1]
    return f" ({', '.join(named)})" if named else ""


def difference(entry: Estimate) -> str | None:
    """An estimate as `interval` shows it."""
    return interval(entry.value, entry.ci95)


def percent(value: float | None, signed: bool = True) -> str | None:
    return None if value is None else f"{100 * value:{'+' if signed else ''}.1f}%"


def _mean(values: Sequence[float | None]) -> float | None:
    """Over repeats; None where one has none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if len(defined) == len(values) else None


def _share(values: Sequence[float]) -> float:
    """The mean of shares, in per cent with one decimal."""
    return round(100 * sum(values) / len(values), 1)


# --- tables ---------------------------------------------------------------------------------------------------


def arms_of(summary: StudentSummary) -> Table:
    """Every arm on the held-out prompts, and by how much the selected one differs."""
    gain = lambda name: summary.gains.get(f"selected - {name}")
    cell: Callable[[Callable[[Arm], Any]], Callable[[str, Any], Any]] = lambda of: lambda name, arm: of(arm)
    return arm_table(
        summary.arms,
        [
            (summary.arms["base"].metric, cell(lambda arm: short(arm.value))),
            ("selected - arm", lambda name, arm: "" if (g := gain(name)) is None else difference(g)),
            ("relative", lambda name, arm: "" if (g := gain(name)) is None else percent(g.relative)),
            ("words", cell(lambda arm: short(arm.metrics["words"].value))),
            ("drift, nats a token", cell(lambda arm: "" if arm.drift is None else short(arm.drift.value))),
            ("truncated, %", cell(lambda arm: _share(arm.truncated_share))),
            ("examples", mean_cell("examples")),
            ("tokens", mean_cell("tokens")),
            ("updates", mean_cell("updates")),
        ],
    )


def metrics_of(summary: StudentSummary) -> Table:
    """Every score of the students' answers, and how much of the data's change came over."""
    headers = ["score", "base", AGAINST, "selected", f"selected - {AGAINST}", "relative", "selected - base"]
    rows = []
    for name, transfer in summary.transfer.items():
        values = [short(summary.arms[arm].metrics[name].value) for arm in ("base", AGAINST, "selected")]
        over, base = (summary.gains[f"selected - {arm}"].metrics[name] for arm in (AGAINST, "base"))
        data = None if transfer.data is None else f"{transfer.data:+.3g}"
        ratio = None if transfer.ratio is None else f"{transfer.ratio:.2f}"
        rows.append([name, *values, difference(over), percent(over.relative), difference(base), data, ratio])
    return [*headers, f"data: selected - {AGAINST}", "transfer"], rows


def corpora_of(summary: StudentSummary) -> Table:
    """How much an arm's answers resemble each other, and what share of them is as it should be."""
    headers = ["student", "self-BLEU", "compression of all answers", "meets the constraints, %", "empty, %"]
    rows = [
        [name, *_alike(arm.corpus), _share(arm.feasible_share), _share(arm.empty_share)]
        for name, arm in summary.arms.items()
    ]
    return headers, rows


def _alike(of_repeats: Sequence[Corpus]) -> list[str | None]:
    """Self-BLEU and compression ratio."""
    columns = zip(*((corpus.self_bleu, corpus.compression_ratio) for corpus in of_repeats), strict=True)
    return [short(_mean(column)) for column in columns]


def profile_of(summary: StudentSummary) -> Table:
    """Every figure of the students' profiles, before and after; no rows where nothing was measured."""
    headers = ["profile", "base", AGAINST, "selected", f"selected - {AGAINST}", "selected - base", "n"]
    if summary.profile is None:
        return headers, []
    from active_inheritance.profile.findings import label  # loads jax, which a selection does without

    arms, changed = summary.profile.arms, summary.profile.changes
    rows = []
    for key, base in arms["base"].items():
        values = [short(arms[arm][key].value) for arm in ("base", AGAINST, "selected")]
        steps = (changed[f"selected - {arm}"][key] for arm in (AGAINST, "base"))
        shown = [interval(step.absolute, step.ci95) for step in steps]
        rows.append([f"{key.partition('/')[0].replace('_', ' ')}: {label(key)}", *values, *shown, base.n])
    return headers, rows


def rounds_of(summary: StudentSummary) -> Table:
    """Every round of both lineages; means over repeats."""
    headers = ["round", "student", "objective", f"selected - {AGAINST}", "pool", "learned", "spread"]
    headers += ["drift, nats a token", "self-BLEU: data", "answers", "compression: data", "answers"]
    rows = []
    for entry in summary.rounds:
        for arm, own in entry.arms.items():
            ahead = difference(entry.gain) if arm == "selected" else ""
            means = [short(_mean(x)) for x in (own.pool, own.learned, own.within_prompt_spread)]
            (bleu, compression), (bleu_after, compression_after) = _alike(own.data_corpus), _alike(own.corpus)
            alike = [bleu, bleu_after, compression, compression_after]
            rows.append([str(entry.round), arm, short(own.value), ahead, *means, short(own.drift.value), *alike])
    return headers, rows


def _round_figures(page: Report, summary: StudentSummary) -> None:
    """The objective, the drift and the likeness of answers, round after round."""
    base, rounds = summary.arms["base"], summary.rounds
    places = [0, *(entry.round + 1 for entry in rounds)]

    def draw(caption: str, axis: str, first: float | None, of: Callable[[RoundArm], float | None]) -> None:
        values = lambda arm: [first, *(of(entry.arms[arm]) for entry in rounds)]
        curves = {arm: (places, values(arm)) for arm in ("selected", AGAINST)}
        page.add_figure(caption, line_figure(curves, "trainings since the base", axis, COLOURS))

    bleu = lambda arm: _mean([corpus.self_bleu for corpus in arm.corpus])
    draw(f"{base.metric} of the students, round after round", base.metric, base.value, lambda own: own.value)
    draw("Drift from the base", "nats a token", 0.0, lambda own: own.drift.value)
    draw("How alike an arm's answers are", "self-BLEU", bleu(base), bleu)


# --- the page -------------------------------------------------------------------------------------------------


def add_student(page: Report, summary: StudentSummary, objectives: Sequence[Objective]) -> None:
    """The first part of the page: what came of it, by the first of `objectives` that is measured on students."""
    page.chapter("The students")
    metric = summary.arms["selected"].metric
    objective = next((objective for objective in objectives if objective.name == metric), None)
    wanted = None if objective is None else WANTED.get(objective.direction)
    target = objective.target if objective is not None and objective.direction == "target" else None
    axis = metric if target is None else f"{metric}, wanted: {target:g}"
    places = lambda rows: decimals(max(abs(e.value or 0.0) for e in rows.values()))
    digits = places(summary.arms)
    arms = dots(summary.arms, axis, wanted, ["selected"], line=target, decimals=digits, colours=COLOURS)
    page.add_chart("Arms on held-out prompts", arms)
    axis, digits = f"difference in {metric}", places(summary.gains)
    gains = dots(summary.gains, axis, wanted, line=0, decimals=digits, signed=True)
    page.add_chart("Differences on held-out prompts", gains)
    page.add_table(
        "What the student became",
        *arms_of(summary),
        note=arm_note(summary),
        terms=explain(metric, "95% interval", "drift", "updates"),
    )
    if summary.rounds:
        page.chapter("Round by round")
        _round_figures(page, summary)
        terms = explain("spread", "drift", "self-BLEU", "compression")
        page.add_table("Round after round", *rounds_of(summary), note=ROUND_NOTE, terms=terms)


def add_student_details(page: Report, summary: StudentSummary, first: Outcome) -> None:
    """Distributions and every score; `first`: the first repeat, where a figure shows one."""
    own = summary.student
    page.chapter("What else changed in the student")
    if summary.profile is not None:
        from active_inheritance.profile.findings import term  # loads jax, which a selection does without

        asked = ", ".join(summary.profile.settings)
        how = "over repeats" if own.repeats > 1 else "of one training, drawn over items"
        base = summary.profile.arms["base"]
        scorers = ", ".join(dict.fromkeys(f"{own.scorer} ({own.version})" for own in base.values()))
        page.add_table(
            "Before and after: what else changed",
            *profile_of(summary),
            note=f"Of every student: {asked}; 95% intervals {how}; measured by {scorers}.",
            terms=explain(*dict.fromkeys(map(term, base))),
        )
    tally = first.selection.tally
    for name in measurable(objective.name for objective in first.selection.rule.objectives)[:3]:
        answers = lambda arm, n=name: [row["scores"][n] for row in first.last(arm).answers]
        series = {"pool": tally.sample[:, tally.metrics.index(name)].tolist()}
        series |= {f"student: {arm}": answers(arm) for arm in (AGAINST, "selected", "base")}
        colours = COLOURS | {f"student: {arm}": colour for arm, colour in COLOURS.items()}
        page.add_figure(
            f"{name} of the students' answers{of_first(own)}", histogram_figure(series, name, colours=colours)
        )
    spreads = {name: summary.data.scores[name]["spread"] for name in summary.transfer}
    shown = [
        (name, entry.student / spreads[name], entry.data / spreads[name])
        for name, entry in summary.transfer.items()
        if spreads[name] and entry.student is not None and entry.data is not None
    ]
    if shown:
        labels = ("student, held-out prompts", "data it learned", "selected - random, in spreads")
        names, students, data = (list(column) for column in zip(*shown, strict=True))
        colours = {labels[0]: PALETTE[4], labels[1]: INK}  # differences, which are no arm's
        page.add_figure(
            "What of the data's change came over", share_figure(names, students, data, labels, colours)
        )
    page.add_table(
        "Every score of the student",
        *metrics_of(summary),
        note=TRANSFER_NOTE,
        terms=explain(*summary.transfer, "transfer"),
    )
    page.add_table(
        "The answers together", *corpora_of(summary), note=CORPUS_NOTE, terms=explain("self-BLEU", "compression")
    )


def arm_note(summary: StudentSummary) -> str:
    """What the arms are, and what their figures are over."""
    own = summary.student
    over = "95% bootstrap intervals over prompts, of one training of each arm: they say nothing about other seeds"
    if own.repeats > 1:
        over = f"95% intervals by Student's t over {own.repeats} repeats"
    return (
        f"{own.name} on {own.held_out_prompts} held-out prompts, {own.answers_of_a_prompt} answers "
        f"to each at temperature {own.temperature:g}; {over}. Trained arms learn from "
        f"the same prompts for as many updates{', within a round' if own.rounds > 1 else ''}: first, the first "
        "usable answer to each; random, a uniform draw; matched, others of about the selected one's "
        f"length{unmatched(summary)}."
    )


ROUND_NOTE = (
    "After round 0 an arm's own student writes its pool: the random student learns from random answers of its "
    "own, the selected one from selected ones. A rise of self-BLEU and compression from round to round is a loop "
    "that narrows. Means over repeats."
)
TRANSFER_NOTE = "A ratio of a small change of the data says little."
CORPUS_NOTE = "Self-BLEU of 200 answers and the compression ratio of all. Means over repeats."

ALARM = 0.1
"""Rise of self-BLEU over the base's, from which rounds are said to narrow."""
BETTER, WORSE = ("accuracy", "acc", "acc_norm"), ("ece", "ece_1_bin", "brier")
"""Figures of multiple choice of which more is better, and of which more is worse."""


# --- warnings --------------------------------------------------------------------------------------------------


def student_warnings(switches: Switches, summary: StudentSummary) -> list[str]:
    """What a reader should know before relying on the student's figures, a line each."""
    lines, own = [], summary.student
    if own.repeats == 1:
        lines.append("one repeat: the intervals of the student are over prompts and say nothing about other seeds")
    if own.held_out_too_long:
        lines.append(f"{own.held_out_too_long} held-out prompts leave the student no room and were not asked")
    lines += _narrowing(summary) + _costs(summary)
    if left := max(own.left_out_too_long):
        lines.append(f"{left} answers of each arm are left out: they or another arm's are too long to be learned")
    for name, arm in summary.arms.items():
        if any(arm.cut):
            share = 100 * sum(arm.cut) / sum(arm.examples)
            lines.append(
                f"{name}: {max(share, 1):.0f}% of the answers were learned up to --max-length "
                f"{switches.learning.train.max_length} only; the scores of what was learned are those of the "
                "beginning"
            )
    for name, arm in summary.arms.items():
        if (share := max(arm.truncated_share)) > 0.1:
            lines.append(
                f"{name}: {100 * share:.0f}% of the student's answers are cut at --answer-tokens {own.new_tokens}"
            )
    lines += flat(summary.arms, lambda value: f"{switches.measured[0]} {value:.4g}")
    if own.held_out_prompts < 50:
        lines.append(f"only {own.held_out_prompts} held-out prompts: raise --test-prompts")
    measured = switches.measured
    columns = [str(objective) for objective in switches.rule.objectives if objective.name not in measured]
    if columns:
        lines.append(f"{', '.join(columns)}: came with the pool and cannot be measured on the student's answers")
    if len(measured) > 1:
        lines.append(f"arms are compared by {measured[0]}, the first objective; the others stand below")
    return lines


def _narrowing(summary: StudentSummary) -> list[str]:
    """The alarm of a loop that feeds on itself."""
    if not summary.rounds:
        return []
    bleu = lambda corpora: sum(corpus.self_bleu or 0.0 for corpus in corpora) / len(corpora)
    base = bleu(summary.arms["base"].corpus)
    return [
        f"{arm}: self-BLEU of the answers rose from {base:.2f} to {bleu(own.corpus):.2f} over "
        f"{summary.student.rounds} rounds: the student's answers become alike"
        for arm, own in summary.rounds[-1].arms.items()
        if bleu(own.corpus) - base > ALARM
    ]


def _costs(summary: StudentSummary) -> list[str]:
    """What it costs elsewhere: figures of multiple choice that are worse than before, or than after random
    answers."""
    if summary.profile is None:
        return []
    from active_inheritance.profile.findings import label

    lines = []
    for other, than in (("base", "before"), (AGAINST, "after random answers")):
        for key, step in summary.profile.changes[f"selected - {other}"].items():
            name = key.rpartition("/")[2]
            if not key.startswith("choice/") or name not in BETTER + WORSE or step.ci95 is None:
                continue
            best = step.ci95[1] if name in BETTER else -step.ci95[0]
            if best < 0:
                shown = interval(step.absolute, step.ci95)
                lines.append(f"utility: {label(key)} of the selected student is worse than {than}, by {shown}")
    return lines
