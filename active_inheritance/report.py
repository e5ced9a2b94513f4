"""What a run leaves behind: the data sets of the arms, the student, and the printed tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from active_inheritance.outcome import Outcome, Row, folder_of
from active_inheritance.page import (
    CHANCE_NOTE,
    OBJECTIVE_NOTE,
    SCORE_NOTE,
    faults,
    objectives_of,
    page_of,
    scores_of,
    sources_of,
)
from active_inheritance.select import ARMS, FAR, Rule
from active_inheritance.student_figures import AGAINST
from active_inheritance.student_report import (
    TRANSFER_NOTE,
    arm_note,
    arms_of,
    decimals,
    metrics_of,
    of_first,
    profile_of,
    rounds_of,
    student_warnings,
)
from active_inheritance.summary import StudentSummary, Summary, unmatched, warnings
from active_inheritance.switches import Switches
from common import progress
from common.backends.open import model_name
from common.results.card import ModelCard
from common.results.conclusion import Conclusion, counted, verdict
from common.results.dataset import LEARNED, PREFERRED, DatasetCard, Field, reply, write_dataset
from common.results.estimate import Gain
from common.results.rundir import RunDir
from common.results.tables import terminal_table
from common.tasks.prompts import messages
from common.text.glossary import told

if TYPE_CHECKING:
    pass

SIDES = ("chosen", "rejected")
INSTRUCTION = Field("string", "The prompt as a text.")


def conclusion(
    run: RunDir,
    summary: Summary,
    switches: Switches,
    first: Outcome,
    redact: bool,
    command: str,
    doubts: Sequence[str] = (),
) -> Conclusion:
    """What a finished run shows; stores the data sets and the selected student. `first`: the first repeat, where
    the page shows one; `redact`: it shows hashes in place of texts; `command`: what made the run; `doubts`:
    warnings from before the work."""
    trained = isinstance(summary, StudentSummary)
    of_student = student_warnings(switches, summary) if trained else []
    notes = [*doubts, *of_student, *warnings(switches, summary, first)]
    # Of no repeat; and what is read for it lies in all of them.
    with run.timed("write"), progress.at("dataset"):
        for arm, folder in (("selected", "dataset"), *((arm, f"controls/{arm}") for arm in ARMS[:-1])):
            if not (run.path / folder).exists():
                write_dataset(run.path / folder, map(_learned, first.selection.rows(arm)), _card(summary, arm))
        preferred = {}  # no reader loads a split without rows
        if any(True for _ in first.selection.pairs()):
            preferred = {"preferences": "preferences"}
            if not (run.path / "preferences").exists():
                rule = first.selection.rule
                pairs = (_preferred(pair, rule.names) for pair in first.selection.pairs())
                write_dataset(run.path / "preferences", pairs, _pair_card(summary, rule))
        products = {"data set": "dataset", **preferred, "controls": "controls"}
        if trained:
            from common.stages import publish  # a selection alone needs no jax

            products["student"] = "model"
            card = _model_card(summary, notes, command)
            products |= publish(run, f"{folder_of(0, switches.rounds - 1)}/selected/student", card)
        page = page_of(summary, first, switches, redact)
    return Conclusion(summary, final_tables(summary), page, notes, _verdict(summary), products, command)


def _verdict(summary: Summary) -> str | None:
    """Whether selection is shown to do more than distillation does, by the first objective; of a selection alone
    what is shown of the data."""
    if not isinstance(summary, StudentSummary):
        name = next(iter(summary.data.objectives)).rpartition(":")[0]
        lift = summary.data.scores[name]["selected - random"]
        gain = Gain(value=lift["value"], ci95=lift["ci95"], bootstrap95=None, items=summary.data.prompts)
        places = decimals(gain.value or 0.0)
        said = verdict(
            [("selected", AGAINST, gain)],
            f"{name} in the data",
            1,
            places,
            ("above", "below"),
            "prompts",
            "prompts",
        )
        return None if said is None else f"{said[:-1]}; what a student learns from it was not measured."
    compared = []
    for other in (AGAINST, "base"):
        if (found := summary.gains.get(f"selected - {other}")) is None:
            continue
        # With one repeat the interval is over prompts and says nothing about other seeds.
        over = (None, found.ci95) if summary.student.repeats == 1 else (found.ci95, None)
        lead = Gain(value=found.value, ci95=over[0], bootstrap95=over[1], items=found.n)
        compared.append(("selected", other, lead))
    metric, places = summary.arms["selected"].metric, decimals(compared[0][2].value or 0.0)
    return verdict(compared, metric, 1, places, ways=("above", "below"), items="prompts")


# --- data sets ------------------------------------------------------------------------------------------------


def _learned(row: Row) -> Row:
    """A row of `Selection.rows` as it is written."""
    chat = {"prompt": messages(row["prompt"]), "completion": reply(row["answer"]), "instruction": row["prompt"]}
    return {name: value for name, value in (row | chat).items() if name != "scores"} | row["scores"]


def _preferred(pair: Row, names: Sequence[str]) -> Row:
    """A row of `Selection.pairs` as it is written. `names`: of the scores that stand beside it."""
    found = {"prompt": messages(pair["prompt"]), "id": pair["id"], "instruction": pair["prompt"]}
    for side in SIDES:
        answer = pair[side]
        found |= {side: reply(answer["text"])} | {f"{side}_{key}": answer[key] for key in ("source", "index")}
        found |= {f"{side}_{name}": answer["scores"][name] for name in names}
    return found


def _pair_card(summary: Summary, rule: Rule) -> DatasetCard:
    fields = PREFERRED | {"id": Field("string", "The prompt's id in the pool."), "instruction": INSTRUCTION}
    for side in SIDES:
        fields |= {
            f"{side}_source": Field("string", f"Who wrote the {side} answer."),
            f"{side}_index": Field("int64", "Which of this source's answers to the prompt it is, from 0."),
        }
        fields |= {
            f"{side}_{name}": Field("float64", f"Score of the {side} answer, by {summary.scorers[name]}.")
            for name in rule.names
        }
    against = {
        "far": f"the one nearest to {FAR:g} standard deviations below the mean of them",
        "worst": "the last of them",
        "random": "a uniform draw of them",
    }[rule.rejected]
    return DatasetCard(
        title=f"Preferences by Active Inheritance: {', '.join(map(str, rule.objectives))}",
        made_by=(
            f"Of each prompt's answers {_pool_name(summary)}, the one selected by {rule}, chosen, against one of "
            f"those that meet the constraints as well and rank behind it: {against}, rejected. Prompts without "
            "such an answer have no pair."
        ),
        fields=fields,
        lineage="id, source and index name the answers; pool/ of the run holds all answers with their scores.",
    )


def _model_card(summary: StudentSummary, notes: Sequence[str], command: str) -> ModelCard:
    rounds = f" after {summary.student.rounds} rounds" if summary.student.rounds > 1 else ""
    return ModelCard(
        title=f"{', '.join(summary.rule['objectives'])} by Active Inheritance",
        base=model_name(summary.student.name, "student"),
        method="active-inheritance",
        learned=(
            f"The arm selected of the first repeat{rounds}: fine-tuned on the best of several answers to each "
            f"prompt, by {', '.join(summary.rule['objectives'])}. Sources: {', '.join(summary.pool['sources'])}."
        ),
        tables={"Every arm on held-out prompts": arms_of(summary)},
        verdict=_verdict(summary),
        warnings=notes,
        command=command,
    )


def _card(summary: Summary, arm: str) -> DatasetCard:
    rule = summary.rule
    fields = LEARNED | {
        "id": Field("string", "The prompt's id in the pool; with #rank where several answers are taken."),
        "instruction": INSTRUCTION,
        "answer": Field("string", "The answer that this arm takes, as a text."),
        "source": Field("string", "Who wrote it."),
        "index": Field("int64", "Which of this source's answers to the prompt it is, from 0."),
        "rank": Field("int64", "Which of the answers taken for the prompt it is, from 0."),
        "reason": Field("string", "Why the selected answer was taken."),
        "margin": Field("float64", "By how much the best answer is ahead of the next; null where there is none."),
    }
    fields |= {name: Field("float64", f"Score, by {version}.") for name, version in summary.scorers.items()}
    how = {
        "selected": f"best by {', '.join(rule['objectives'])}",
        "first": "the first answer of the first source",
        "random": "a uniform draw of the usable answers",
        "matched": f"the answer, other than the selected one, nearest to it in words{unmatched(summary)}",
    }[arm]
    under = f" under {', '.join(rule['constraints'])}" if rule["constraints"] and arm == "selected" else ""
    return DatasetCard(
        title=f"Answers by Active Inheritance: {arm}",
        made_by=(
            f"Of each prompt's answers {_pool_name(summary)}, {how}{under}. Sources: "
            f"{', '.join(summary.pool['sources'])}."
        ),
        fields=fields,
        lineage="id, source and index name the answer; pool/ of the run holds all answers with their scores.",
        counts={
            f"answers: {name}": sum(count.get(name, 0) for count in summary.pool["sources"].values())
            # An answer with two faults counts under both.
            for name in ("answers", *faults(summary.pool), "usable")
            if arm == "selected"
        },
    )


def _pool_name(summary: Summary) -> str:
    made = summary.sampling
    if made is None:
        return f"in the pool {summary.pool['file']} (SHA-256 {summary.pool['sha256']}…)"
    if made["method"] == "diverse-beam":
        return f"({made['k']}, by diverse beam search with penalty {made['diversity_penalty']:g})"
    return f"({made['k']}, sampled at temperature {made['temperature']:g} and top-p {made['top_p']:g})"


# --- what is printed -------------------------------------------------------------------------------------------


def final_tables(summary: Summary) -> str:
    """What is printed at the end of a run."""
    data, rule = summary.data, summary.rule
    under = f" under {', '.join(rule['constraints'])}" if rule["constraints"] else ""
    of = of_first(summary.student if isinstance(summary, StudentSummary) else None)
    usable = f"{data.answers_usable} usable answers from {counted(len(summary.pool['sources']), 'source')}"
    tables = [
        (
            f"the objective in the data{of}: what was to be expected of selection, and what came of it",
            objectives_of(summary),
            f"{OBJECTIVE_NOTE} {told('spread', 'lift', 'headroom')}",
        ),
        (f"scores of the answers{of}, on average, by how they were chosen", scores_of(summary), SCORE_NOTE),
        (f"who wrote them{of}", sources_of(summary), CHANCE_NOTE),
    ]
    if isinstance(summary, StudentSummary):
        own = summary.student
        came_over = "scores of its answers"
        tables += [
            (
                f"the student, {counted(own.repeats, 'repeat')}",
                arms_of(summary),
                f"{arm_note(summary)} {told('drift')}",
            ),
            (came_over, metrics_of(summary), f"{told('transfer')} {TRANSFER_NOTE}"),
            ("its profile, before and after", profile_of(summary), None),
            ("round by round", rounds_of(summary), None),
        ]
    parts = [
        f"{counted(data.prompts, 'prompt')}, {usable}{of}, selected by {', '.join(rule['objectives'])}{under}"
    ]
    parts += [f"{caption}\n\n{terminal_table(*table, note=note)}" for caption, table, note in tables if table[1]]
    return "\n\n".join(parts)
