"""Figures of the student: every metric of every arm on held-out prompts, changes, what of the data's came over.

figures = student_figures(config, outcomes)       # one outcome a repeat, see `active_inheritance.loop`
"""

import math
import statistics
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from active_inheritance.config import Config
from active_inheritance.loop import Outcome
from common.results.stats import bootstrap_ci95, mean_ci95
from common.text.diversity import self_bleu

Row = dict[str, Any]

AGAINST = "random"
"""The arm that tells selection from distillation."""


LEAST = 0.1
"""Change of the data in their standard deviations below which a transfer ratio would be noise over noise."""


def student_figures(config: Config, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """ "arms", "gains" and "transfer" of summary.json, every arm after the last round that it has."""
    names = [name for name in config.scores() if not name.startswith("column:")]
    main = config.measured()[0]
    of_arms = {arm: [outcome.last(arm) for outcome in outcomes] for arm in config.arms}
    tables = {
        arm: {name: _table([o["answers"] for o in found], name) for name in names}
        for arm, found in of_arms.items()
    }
    arms = {}
    for arm, found in of_arms.items():
        metrics = {name: _interval(table) for name, table in tables[arm].items()}
        arms[arm] = {"metric": main} | metrics[main] | {"metrics": metrics}
        arms[arm] |= {"drift": None if arm == "base" else drift_figure([o["drift"] for o in found])}
        arms[arm] |= _conduct(config, [o["answers"] for o in found])
        arms[arm] |= {
            "round": found[0]["round"],
            "updates": [o["updates"] for o in found],
            "examples": [len(o["learned"]) for o in found],
            "tokens": [sum(row["tokens"] for row in o["learned"]) for o in found],
            "cut": [sum(row["cut"] for row in o["learned"]) for o in found],
        }
    pairs = [("selected", arm) for arm in config.arms if arm != "selected"]
    pairs += [(arm, "base") for arm in config.arms if arm not in ("base", "selected")]
    rounds = {arm: found[0]["round"] for arm, found in of_arms.items()}
    pairs = [(a, b) for a, b in pairs if b == "base" or rounds[a] == rounds[b]]  # others learned another time
    gains = {f"{a} - {b}": _gains(tables[a], tables[b], main) for a, b in pairs}
    learned = {arm: [o["learned"] for o in of_arms[arm]] for arm in ("selected", AGAINST)}
    return {"arms": arms, "gains": gains, "transfer": _transfer(learned, gains[f"selected - {AGAINST}"], names)}


def drift_figure(of_repeats: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Nats a token by which the student finds its own answers likelier than the base does: Kullback-Leibler
    divergence where it answered at temperature 1. Over repeats; of one repeat a bootstrap over prompts."""
    per_repeat = []
    for rows in of_repeats:
        tokens = sum(row["tokens"] for row in rows)
        per_repeat.append(sum(row["logp"] - row["base_logp"] for row in rows) / tokens if tokens else None)
    if None in per_repeat:
        return {"value": None, "ci95": None, "per_repeat": per_repeat}
    if len(per_repeat) > 1:
        value, *interval = mean_ci95(per_repeat)
        return {"value": value, "ci95": interval, "per_repeat": per_repeat}
    by_prompt: dict[str, list[float]] = {}
    for row in of_repeats[0]:
        total = by_prompt.setdefault(row["id"], [0.0, 0.0])
        total[0], total[1] = total[0] + row["logp"] - row["base_logp"], total[1] + row["tokens"]
    sums = np.array(list(by_prompt.values()))
    drawn = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    ratios = sums[drawn].sum(axis=1)
    interval = np.quantile(ratios[:, 0] / ratios[:, 1], [0.025, 0.975]).tolist()
    return {"value": per_repeat[0], "ci95": interval, "per_repeat": per_repeat}


def round_figures(config: Config, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Of every round: the students' first objective and by how much the selected one is ahead, drift and how alike
    answers are, so that a loop that feeds on itself is seen to narrow. Empty for a single round."""
    if config.rounds == 1:
        return []
    main, entries = config.measured()[0], []
    for number in range(config.rounds):
        found = [outcome.rounds[number] for outcome in outcomes]
        tables = {arm: _table([f["answers"][arm] for f in found], main) for arm in (AGAINST, "selected")}
        entry: dict[str, Any] = {"round": number, "arms": {}}
        for arm, table in tables.items():
            pools = [f["selections"][arm].tally for f in found]
            place = pools[0].metrics.index(main)
            mean = lambda x: float(np.nanmean(x)) if np.isfinite(x).any() else None
            learned = [[row["scores"][main] for row in f["learned"][arm]] for f in found]
            entry["arms"][arm] = _interval(table) | {
                "metric": main,
                "drift": drift_figure([f["drift"][arm] for f in found]),
                "pool": [mean(tally.pool[:, place]) for tally in pools],
                "within_prompt_spread": [mean(tally.spread[:, place]) for tally in pools],
                "learned": [mean(np.array(values, np.float64)) for values in learned],
                "prompts": [len(tally.pool) for tally in pools],
                "data_corpus": [corpus_figures([row["answer"] for row in f["learned"][arm]]) for f in found],
                "corpus": [corpus_figures([row["answer"] for row in f["answers"][arm]]) for f in found],
                "sampling": [f["sampling"].get(arm) for f in found],
            }
        entry["gain"] = _interval(tables["selected"] - tables[AGAINST])
        entries.append(entry)
    return entries


def _table(of_repeats: Sequence[Sequence[Row]], name: str) -> np.ndarray:
    """(repeats, prompts): the mean over a prompt's answers that have the score; NaN without any."""
    rows = []
    for answers in of_repeats:
        by_prompt: dict[str, list[float]] = {}
        for row in answers:
            values = by_prompt.setdefault(row["id"], [])
            if row["scores"][name] is not None:
                values.append(row["scores"][name])
        rows.append([statistics.fmean(values) if values else math.nan for values in by_prompt.values()])
    return np.array(rows, np.float64)


def _interval(table: np.ndarray) -> dict[str, Any]:
    """Of a table, or a difference of two: Student's t over repeats; of one repeat the bootstrap over prompts."""
    per_repeat = [float(np.mean(row[np.isfinite(row)])) if np.isfinite(row).any() else None for row in table]
    n = int(np.isfinite(table).all(axis=0).sum())
    if None in per_repeat or not n:
        return {"value": None, "ci95": None, "n": n, "per_repeat": per_repeat}
    if len(per_repeat) > 1:
        value, *interval = mean_ci95(per_repeat)
    else:
        value, *interval = bootstrap_ci95(table[0][np.isfinite(table[0])])
    return {"value": value, "ci95": interval, "n": n, "per_repeat": per_repeat}


def _gains(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], main: str) -> dict[str, Any]:
    """Differences prompt by prompt, "relative" to the other arm's value, in every metric."""
    metrics = {}
    for name in ours:
        entry = _interval(ours[name] - theirs[name])
        base = _interval(theirs[name])["value"]
        relative = entry["value"] / abs(base) if base and entry["value"] is not None else None
        metrics[name] = entry | {"relative": relative}
    return metrics[main] | {"metrics": metrics}


def _transfer(
    learned: dict[str, Sequence[Sequence[Row]]], gain: dict[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """How much of the change of what was learned, selected against random, is in the students': "ratio" of the
    means over repeats; None where the data changed by less than `LEAST` of the spread of random answers."""
    table = {}
    for name in names:
        per_repeat, spreads = [], []
        for rows in zip(learned["selected"], learned[AGAINST], strict=True):
            ours, theirs = ([v for row in own if (v := row["scores"][name]) is not None] for own in rows)
            per_repeat.append(statistics.fmean(ours) - statistics.fmean(theirs) if ours and theirs else None)
            spreads.append(statistics.pstdev(theirs) if theirs else 0.0)
        data = None if None in per_repeat else statistics.fmean(per_repeat)
        student = gain["metrics"][name]["value"]
        enough = data is not None and student is not None and abs(data) > LEAST * statistics.fmean(spreads)
        ratio = student / data if enough else None
        table[name] = {"data": data, "data_per_repeat": per_repeat, "student": student, "ratio": ratio}
    return table


def _conduct(config: Config, of_repeats: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Shares of answers by repeat, and how much an arm's answers resemble each other."""
    share = lambda test: [sum(map(test, rows)) / len(rows) for rows in of_repeats]
    constraints = [c for c in config.rule().constraints if not c.name.startswith("column:")]
    meets = lambda row: all(c.violation(row["scores"][c.name]) == 0 for c in constraints)
    return {
        "truncated_share": share(lambda row: row["truncated"]),
        "empty_share": share(lambda row: not row["answer"].strip()),
        "feasible_share": share(meets),
        "corpus": [corpus_figures([row["answer"] for row in rows]) for rows in of_repeats],
    }


def corpus_figures(texts: Sequence[str]) -> dict[str, float | None]:
    """Of a set of texts: self-BLEU of 200 of them, and bytes of all over their bytes after zlib. Both are higher
    the more alike they are."""
    whole = "\n".join(texts).encode("utf-8", "replace")
    return {
        "self_bleu": self_bleu(texts) if len(texts) > 1 else None,
        "compression_ratio": len(whole) / len(zlib.compress(whole, 9)) if whole else None,
    }
