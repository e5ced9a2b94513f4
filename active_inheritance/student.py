"""What the student becomes: an arm for each way to choose its data, trained alike, measured on held-out prompts.

    held_out = choose_held_out(selection, student, testing, seed=0)
    evaluation = Evaluation(held_out, testing, scoring)
    learned, left_out = learned_rows(student, {arm: selection for arm in arms}, held_out, learning)
    students = train_students(run, student, learned, learning, evaluation, "repeat_0", seed=0)

    base        the student as it came
    first       it after the first answer to every prompt
    random      … after a uniform draw of the usable answers
    matched     … after other answers of about the selected one's length
    selected    … after the selected answer

All learn from the same prompts, as many answers, for as many updates, with the loss on the answer's tokens only;
random numbers of training and of answering are the same in all arms.
"""

import dataclasses
import heapq
from collections.abc import Iterable, Mapping, Sequence

from active_inheritance.metrics import Scorers
from active_inheritance.outcome import Row, Student
from active_inheritance.pools import Answer
from active_inheritance.prompts import OTHERS, room
from active_inheritance.scoring import Selection
from active_inheritance.student_profile import profiled
from active_inheritance.switches import Learning, Scoring, Testing, measurable
from common import progress
from common.errors import UserError
from common.evals.figures import Figure
from common.evals.measure import Measure
from common.generate import Request
from common.lm import LanguageModel
from common.results.rundir import RunDir
from common.sample.score import score
from common.stages import Lazy, collect, fine_tuned
from common.tasks.prompts import Prompt, drawn_by, messages
from common.tasks.replies import without_thoughts
from common.text.same import normal_form
from common.text.textstats import METRICS
from common.train.data import Encoded


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What every student is measured by: its answers to held-out prompts, scored as the pool was, and its
    profile by `measures`."""

    held_out: Sequence[Prompt]
    testing: Testing
    scoring: Scoring
    measures: Sequence[Measure] = ()


def choose_held_out(selection: Selection, student: LanguageModel, testing: Testing, seed: int) -> list[Prompt]:
    """Held-out prompts for a pool: some of its own that leave the student room to answer, at most half of those
    that have a selected answer. Raises UserError where there is none."""
    answer_tokens = testing.sampling.max_new_tokens
    fitting = (
        Prompt(row["id"], row["prompt"])
        for row, chosen in selection.prompts()
        if chosen["taken"] and room(row["prompt"], student, answer_tokens)
    )
    # At most half: the rest is what the students learn from.
    count = min(testing.prompts, sum(bool(chosen["taken"]) for _, chosen in selection.prompts()) // 2)
    held_out = heapq.nsmallest(count, fitting, key=lambda prompt: drawn_by(prompt.id, seed))
    if not held_out:
        raise UserError(
            "none of the pool's prompts can be held out for the student (they are too few, or too long "
            "for it): give --test-prompts-file FILE"
        )
    return held_out


def learned_rows(
    student: LanguageModel, selections: Mapping[str, Selection], held_out: Sequence[Prompt], learning: Learning
) -> tuple[dict[str, list[Row]], int, int]:
    """By arm what it learns of its selection; how many answers are left out of all arms because one of them is
    too long; and how many prompts because they ask what a held-out one asks.

    Every arm has the same prompts in the same order: those that all selections have. Where long answers are cut,
    only prompts that leave no room for an answer are too long. Raises UserError where nothing is left."""
    apart = {normal_form(prompt.text) for prompt in held_out}
    keep = ("id", "prompt", "answer", "source", "index", "scores")
    kept: dict[str, list[Row]] = {arm: [] for arm in selections}
    left_out = asked = 0
    shared = set.intersection(*({row["id"] for row in s.rows(arm)} for arm, s in selections.items()))
    streams = [(row for row in s.rows(arm) if row["id"] in shared) for arm, s in selections.items()]
    for rows in zip(*streams, strict=True):
        # By text: held-out prompts of a file have ids of their own.
        if normal_form(rows[0]["prompt"]) in apart:
            asked += rows[0]["rank"] == 0
            continue
        sequences = [encoded(student, row, learning) for row in rows]
        fitting = [found for found in sequences if found is not None]
        if len(fitting) < len(sequences):
            left_out += 1
            continue
        for arm, row, (sequence, cut) in zip(selections, rows, fitting, strict=True):
            tokens = sequence.tokens[sequence.prompt_length :]
            entry = {name: row[name] for name in keep} | {"cut": cut, "tokens": len(tokens)}
            if cut:  # what the data teach is told by what is left of them
                entry["scores"] = _scores_of(student.tokenizer.decode(tokens), row["scores"])
            kept[arm].append(entry)
    if not kept["selected"] and asked:
        too_long = f", and {left_out} answers too long" if left_out else ""
        raise UserError(
            f"nothing is left for the student to learn: {asked} prompts are held out{too_long}: {OTHERS}"
        )
    if not kept["selected"] and not left_out:
        raise UserError(
            "no prompt has an answer that every arm can learn: relax --constraint or --min-words, or use another "
            f"--fallback than {selections['selected'].rule.fallback}"
        )
    if not kept["selected"]:
        raise UserError(
            f"nothing is left for the student to learn: {left_out} answers or their prompts are longer than "
            f"--max-length {learning.train.max_length} or the student takes"
        )
    return kept, left_out, asked


def _scores_of(text: str, names: Iterable[str]) -> dict[str, float | None]:
    """The metrics of a text; None for scores from elsewhere, as scoring a cut answer would take another call."""
    (scores,) = Scorers.open(tuple(name for name in names if name in METRICS)).score("", [Answer("", 0, text)])
    return {name: scores.get(name) for name in names}


def encoded(student: LanguageModel, row: Row, learning: Learning) -> tuple[Encoded, bool] | None:
    """A prompt with its answer as a training sequence, and whether it was cut; None where it is too long. What is
    cut has no end token: the student must not learn to stop there."""
    limit = min(learning.train.max_length, student.config.max_positions)
    tokens, start = student.tokenizer.encode_example(messages(row["prompt"]), row["answer"])
    cut = len(tokens) > limit
    if cut and (not learning.cut or start >= limit):
        return None
    return Encoded(tuple(tokens[:limit]), start), cut


def answer_and_profile(
    run: RunDir,
    base: LanguageModel,
    evaluation: Evaluation,
    folder: str,
    seed: int,
    profile: Mapping[str, Figure] | None = None,
) -> Student:
    """The base as it came. Its profile, which no seed of a repeat changes, is made once for all repeats: `profile`
    where there is one."""
    as_it_came = Lazy(lambda: base)
    answers = measure(run, as_it_came, evaluation, f"{folder}/base", seed)
    if profile is None:
        profile = profiled(run, evaluation.measures, base, as_it_came, "repeat_0/base")
    return Student([], answers, [], profile, updates=0, round=None)


def train_students(
    run: RunDir,
    base: LanguageModel,
    learned: Mapping[str, Sequence[Row]],
    learning: Learning,
    evaluation: Evaluation,
    folder: str,
    seed: int,
    number: int = 0,
) -> dict[str, Student]:
    """Train and measure a student for each arm in `learned`, all from `base`, in the round of that number.

    Weights are in `folder`/ARM/student; the caller deletes them when they are no longer needed.
    """
    settings = dataclasses.replace(learning.train, seed=seed)
    # Every arm has as many rows, so one number of updates holds for all.
    updates = settings.total_steps(len(learned["selected"]))

    def become(arm: str) -> Student:
        name = f"{folder}/{arm}"
        rows = run.once(f"{name}/data.jsonl", lambda: learned[arm])
        examples = lambda: [found[0] for row in rows if (found := encoded(base, row, learning)) is not None]
        model = Lazy(lambda: fine_tuned(run, f"{name}/student", base, examples, settings, updates))
        answers = measure(run, model, evaluation, name, seed)
        drifted = drift(run, base, model, answers, name)
        profile = profiled(run, evaluation.measures, base, model, name)
        model.release()  # one student in memory at a time
        return Student(rows, answers, drifted, profile, updates, number)

    return {arm: become(arm) for arm in learned}


def measure(run: RunDir, model: Lazy, evaluation: Evaluation, name: str, seed: int) -> list[Row]:
    """An arm's answers to the held-out prompts with their scores: answers.jsonl. The prompts, not their order,
    seed the answers."""
    held_out, samples = evaluation.held_out, evaluation.testing.samples
    ask = [Request(f"{p.id}#{i}", messages(p.text)) for p in held_out for i in range(samples)]
    if not (run.path / f"{name}/raw.jsonl").exists():
        model()  # trained outside of what is timed below
    with run.timed("test"):
        generator = lambda: dataclasses.replace(model(), name=name).generator()
        records = collect(run, f"{name}/raw.jsonl", generator, ask, evaluation.testing.sampling, seed)

    def scored() -> list[Row]:
        names, rows = measurable(evaluation.scoring.names), []
        scorers = Scorers.open(names, evaluation.scoring.toxicity, str(run.path / f"{name}/raw.jsonl"))
        for n, prompt in enumerate(held_out):
            own = records[n * samples : (n + 1) * samples]
            answers = [Answer("student", i, without_thoughts(record.text or "")) for i, record in enumerate(own)]
            rows += [
                {
                    "id": prompt.id,
                    "prompt": prompt.text,
                    "sample": answer.index,
                    "answer": answer.text,
                    "truncated": record.status == "length",
                    "tokens": record.completion_tokens,
                    "scores": scores,
                }
                for record, answer, scores in zip(own, answers, scorers.score(prompt.text, answers), strict=True)
            ]
        return rows

    rows = run.once(f"{name}/answers.jsonl", scored)
    main = measurable(evaluation.scoring.names)[0]
    values = [row["scores"][main] for row in rows if row["scores"][main] is not None]
    if values:
        progress.tell(f"{name.rpartition('/')[2]} {main}", f"{sum(values) / len(values):.4g}")
    return rows


def drift(run: RunDir, base: LanguageModel, model: Lazy, answers: Sequence[Row], name: str) -> list[Row]:
    """How far a student is from what it was, by its own answers y: drift.jsonl with the number of tokens of each
    and its log-likelihood under both models, in nats. Over answers sampled at temperature 1 the mean of
    log p_student(y) - log p_base(y) estimates the Kullback-Leibler divergence of the base from the student.

    Answers are encoded anew, with the end token unless they were cut; one beyond the model's positions is left
    out.
    """

    def scored() -> list[Row]:
        pairs, rows = [], []
        for row in answers:
            tokens, start = base.tokenizer.encode_example(messages(row["prompt"]), row["answer"])
            # An answer that was cut had no end token, which encoding gives it.
            tokens = tokens[:-1] if row["truncated"] else tokens
            if start < len(tokens) <= base.config.max_positions:
                pairs.append((tokens[:start], tokens[start:]))
                rows.append({"id": row["id"], "sample": row["sample"], "tokens": len(tokens) - start})
        for key, of in (("logp", model()), ("base_logp", base)):
            logps = score(of.params, of.config, pairs)
            for row, values in zip(rows, logps, strict=True):
                # In float64, as what counts is the small difference of two long sums.
                row[key] = round(float(values.sum(dtype="float64")), 4)
        return rows

    with run.timed("drift"):
        return run.once(f"{name}/drift.jsonl", scored)
