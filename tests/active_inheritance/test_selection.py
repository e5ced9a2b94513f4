"""Choices among a prompt's answers, and what they are forecast to do: properties that hold for any pool."""

import collections
import dataclasses
import itertools
import math
import random
import statistics
import subprocess
import sys
import types

import numpy as np
import pytest

from active_inheritance import page
from active_inheritance.config import Config
from active_inheritance.forecast import Tally, best_of, column_intervals, expected_max, forecast, kl_bound, tally
from active_inheritance.select import ARMS, Candidate, Constraint, Objective, Rule, choose, dominates, select
from common.errors import UserError
from common.results.estimate import as_json
from common.results.report import Report
from common.results.stats import bootstrap_ci95
from common.text.textstats import METRICS
from killing import ROOT

MAX, MIN = (Objective("s", "max"),), (Objective("s", "min"),)
TWO = (Objective("s", "max"), Objective("t", "min"))


def pool(seed, n=10, names=("s", "t"), steps=None):
    """Candidates with random scores; `steps` makes ties."""
    rng = random.Random(seed)
    draw = lambda: rng.gauss(0, 1) if steps is None else float(rng.randrange(steps))
    return [
        Candidate(
            "abc"[i % 3],
            i // 3,
            f"{rng.random()}",
            {"words": float(rng.randrange(20, 200))} | {k: draw() for k in names},
        )
        for i in range(n)
    ]


def key(candidate):
    return candidate.source, candidate.index


# --- one objective --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_the_best_is_taken(seed):
    """No answer of a prompt is better than the one that is taken."""
    found = pool(seed, steps=None if seed % 2 else 4)
    scores = [c.scores["s"] for c in found]
    assert scores[choose(Rule(MAX), "p", found).selected[0]] == max(scores)
    assert scores[choose(Rule(MIN), "p", found).selected[0]] == min(scores)
    target = choose(Rule((Objective("s", "target", 0.7),)), "p", found).selected[0]
    assert abs(scores[target] - 0.7) == min(abs(s - 0.7) for s in scores)
    top = choose(Rule(MAX, top=3), "p", found)
    assert sorted(scores[i] for i in top.selected) == sorted(scores)[-3:]
    assert [len(top.arm(arm)) for arm in ARMS] == [3] * 4


def test_margin_is_the_lead_over_the_runner_up():
    found = pool(0)
    choice = choose(Rule(MAX), "p", found)
    ranked = sorted((c.scores["s"] for c in found), reverse=True)
    assert choice.margin == ranked[0] - ranked[1]
    assert [found[i].scores["s"] for i in choice.order] == ranked
    assert choice.reason == "best"


@pytest.mark.parametrize("objectives", [MAX, MIN])
def test_a_constant_score_gives_the_tie_break(objectives):
    """Nearest to the median length, then source, then text."""
    found = [dataclasses.replace(c, scores=c.scores | {"s": 1.0}) for c in pool(3)]
    middle = statistics.median(c.scores["words"] for c in found)
    order = sorted(
        range(10), key=lambda i: (abs(found[i].scores["words"] - middle), found[i].source, found[i].mark)
    )
    choice = choose(Rule(objectives), "p", found)
    assert list(choice.order) == order
    assert choice.reason == "tie, nearest to the median length"


RULES = [
    Rule(MAX),
    Rule(MIN, top=3),
    Rule((Objective("s", "target", 1.0),)),
    Rule(MAX, temperature=0.5),
    Rule(TWO, temperature=1.0, top=2),
    Rule(MAX, (Constraint("words", ">=", 100), Constraint("t", "<=", 0)), fallback="violation"),
    Rule(MAX, (Constraint("words", ">=", 150),), fallback="drop"),
    *(Rule(TWO, normalise=how, weights=(1.0, 0.3)) for how in ("z", "rank", "minmax")),
    Rule(TWO, combine="product"),
    Rule(TWO, combine="lexicographic", tolerance=0.2),
    *(Rule(TWO, combine="pareto", pick=pick) for pick in ("chebyshev", "knee")),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("steps", [None, 3])
def test_the_order_of_the_candidates_changes_nothing(rule, steps):
    """Nor does it change the random control and the matched one; the first answer alone goes by its place."""
    for seed in range(15):
        found = pool(seed, steps=steps)
        shuffled = random.Random(seed).sample(found, len(found))
        one, other = choose(rule, "p", found), choose(rule, "p", shuffled)
        for arm in ("selected", "random", "matched", "order"):
            assert [key(found[i]) for i in one.arm(arm)] == [key(shuffled[i]) for i in other.arm(arm)]
        assert (one.margin, one.reason, one.feasible) == (other.margin, other.reason, other.feasible)


def test_no_score_never_wins():
    found = pool(0)
    found[4] = dataclasses.replace(found[4], scores=found[4].scores | {"s": None})
    assert choose(Rule(MAX), "p", found).order[-1] == 4
    none = [dataclasses.replace(c, scores=c.scores | {"s": None}) for c in found]
    choice = choose(Rule(MAX), "p", none)
    assert (choice.feasible, choice.selected) == (0, choice.random)
    assert choose(Rule(MAX, fallback="drop"), "p", none).selected == ()


def test_unusable_answers_are_in_no_arm():
    found = [
        dataclasses.replace(c, usable=False, original=False) if i in (0, 3) else c for i, c in enumerate(pool(0))
    ]
    for seed in range(50):
        choice = choose(Rule(MAX, seed=seed, top=2), "p", found)
        assert not {0, 3} & {i for arm in ARMS for i in choice.arm(arm)}
    assert choice.first == (1, 2)
    assert choose(Rule(MAX), "p", [dataclasses.replace(c, usable=False) for c in found]) is None


# --- controls -------------------------------------------------------------------------------------------------


def test_the_random_control_is_uniform():
    """Chi-square over prompts, 9 degrees of freedom, 0.1%; and over seeds."""
    found = pool(0)
    for draws in (
        [choose(Rule(MAX), f"p{i}", found) for i in range(3000)],
        [choose(Rule(MAX, seed=i), "p", found) for i in range(3000)],
    ):
        counts = collections.Counter(choice.random[0] for choice in draws)
        assert sum((counts[i] - 300) ** 2 / 300 for i in range(10)) < 27.9


def test_the_matched_control_is_about_as_long():
    found = pool(1)
    choice = choose(Rule(MAX), "p", found)
    words = [c.scores["words"] for c in found]
    chosen = words[choice.selected[0]]
    others = [abs(w - chosen) for i, w in enumerate(words) if i != choice.selected[0]]
    assert abs(words[choice.matched[0]] - chosen) == min(others)
    assert choice.matched != choice.selected


def test_soft_selection_draws_by_its_odds():
    found = pool(2, n=3)
    gains = np.array([c.scores["s"] for c in found])
    odds = np.exp((gains - gains.mean()) / gains.std() / 0.8)
    expected = 4000 * odds / odds.sum()
    counts = collections.Counter(
        choose(Rule(MAX, temperature=0.8), f"p{i}", found).selected[0] for i in range(4000)
    )
    assert sum((counts[i] - expected[i]) ** 2 / expected[i] for i in range(3)) < 13.8  # 2 degrees, 0.1%
    cold = choose(Rule(MAX, temperature=1e-6), "p", found)
    assert cold.selected[0] == int(gains.argmax())


# --- constraints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_constraints_come_before_objectives(seed):
    found = pool(seed)
    rule = Rule(MAX, (Constraint("words", ">=", 60), Constraint("words", "<=", 140)))
    choice = choose(rule, "p", found)
    fits = [i for i in range(10) if 60 <= found[i].scores["words"] <= 140]
    assert choice.feasible == len(fits)
    if fits:
        assert found[choice.selected[0]].scores["s"] == max(found[i].scores["s"] for i in fits)


def test_fallbacks_of_a_prompt_without_a_feasible_answer():
    found = pool(0)
    limits = (Constraint("words", ">=", 1000),)
    baseline = choose(Rule(MAX, limits), "p", found)
    assert (baseline.selected, baseline.feasible) == (baseline.random, 0)
    least = choose(Rule(MAX, limits, fallback="violation"), "p", found)
    assert found[least.selected[0]].scores["words"] == max(c.scores["words"] for c in found)
    dropped = choose(Rule(MAX, limits, fallback="drop"), "p", found)
    assert [dropped.arm(arm) for arm in ARMS] == [()] * 4


def test_a_guard_keeps_mtld_from_short_answers():
    """Of ten texts of one kind, the highest MTLD of 25 words is above that of 800 in the mean (135 and
    102)."""
    # MTLD deletes digits, so the words are spelled with letters.
    words = [f"{rank}".translate({ord(str(d)): "abcdefghij"[d] for d in range(10)}) for rank in range(5000)]
    weights = [1 / (rank + 1) for rank in range(5000)]
    objective, rng = (Objective.parse("mtld:max"),), random.Random(0)
    best, guarded = {25: [], 800: []}, []
    for prompt in range(20):
        found = []
        for length in (25, 800):
            texts = [" ".join(rng.choices(words, weights, k=length)) for _ in range(10)]
            found += [
                Candidate("x", length, text, {n: METRICS[n].function(text) for n in ("words", "mtld")})
                for text in texts
            ]
            (place,) = choose(Rule(objective), f"{prompt}", found[-10:]).selected
            best[length].append(found[-10:][place].scores["mtld"])
        rule = Rule(objective, (Constraint("words", ">=", METRICS["mtld"].least_words),))
        guarded += [found[i].index for i in choose(rule, f"{prompt}", found).selected]
    assert statistics.mean(best[25]) > 1.2 * statistics.mean(best[800])
    assert set(guarded) == {800}


# --- several objectives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pick", ["chebyshev", "knee"])
@pytest.mark.parametrize("steps", [None, 4])
def test_pareto_picks_are_beaten_by_none(pick, steps):
    """Answers of a further front are beaten only by those of fronts before it."""
    for seed in range(40):
        found = pool(seed, n=12, names=("s", "t", "u"), steps=steps)
        rule = Rule((*TWO, Objective("u", "max")), combine="pareto", pick=pick)
        choice = choose(rule, "p", found)
        gains = [[o.gain(c.scores[o.name]) for o in rule.objectives] for c in found]
        assert set(choice.front) == {i for i in range(12) if not any(dominates(g, gains[i]) for g in gains)}
        assert choice.selected[0] in choice.front
        for a, b in itertools.combinations(choice.order, 2):
            assert not dominates(gains[b], gains[a])


def test_picks_of_a_front_by_hand():
    points = [(0.0, 1.0), (0.3, 0.9), (0.7, 0.6), (1.0, 0.0), (0.2, 0.2)]
    found = [Candidate("x", i, str(i), {"words": 9.0, "s": s, "t": -t}) for i, (s, t) in enumerate(points)]
    for pick, weights, best in (("knee", (), 2), ("chebyshev", (), 2), ("chebyshev", (1.0, 5.0), 1)):
        choice = choose(Rule(TWO, combine="pareto", pick=pick, weights=weights), "p", found)
        assert choice.selected == (best,)
        assert set(choice.front) == {0, 1, 2, 3}


def test_among_extremes_the_least_shortfall_in_sum_is_taken():
    """Each is the worst in one objective, so that the largest shortfall is 1 for all."""
    points = [(1.0, 0.0, 0.1), (0.0, 1.0, 0.1), (0.9, 0.8, 0.0), (0.0, 0.0, 0.2)]
    found = [
        Candidate("x", i, str(i), {"words": 9.0, "s": s, "t": -t, "u": u}) for i, (s, t, u) in enumerate(points)
    ]
    rule = Rule((*TWO, Objective("u", "max")), combine="pareto")
    assert choose(rule, "p", found).selected == (2,)


def test_a_sum_weighs_normalised_objectives():
    found = pool(5)
    s, t = (np.array([c.scores[name] for c in found]) for name in ("s", "t"))
    z = lambda x: (x - x.mean()) / x.std()
    choice = choose(Rule(TWO, weights=(2.0, 0.5)), "p", found)
    assert choice.selected[0] == int((2 * z(s) - 0.5 * z(t)).argmax())
    scaled = lambda x: (x - x.min()) / (x.max() - x.min())
    assert choose(Rule(TWO, normalise="minmax"), "p", found).selected[0] == int((scaled(s) - scaled(t)).argmax())
    ranks = lambda x: x.argsort().argsort()
    best = (ranks(s) - ranks(t)).max()
    assert (ranks(s) - ranks(t))[choose(Rule(TWO, normalise="rank"), "p", found).selected[0]] == best
    assert choose(Rule(TWO, combine="product"), "p", found).selected[0] == int((scaled(s) * scaled(-t)).argmax())
    tiny = choose(Rule(TWO, weights=(1.0, 1e-9)), "p", found)
    assert tiny.selected == choose(Rule(MAX), "p", found).selected


def test_lexicographic_lets_the_next_objective_decide_among_equals():
    values = [(1.0, 5.0), (0.95, 4.0), (0.5, 0.0), (0.0, -3.0)]
    found = [Candidate("x", i, str(i), {"words": 9.0, "s": s, "t": t}) for i, (s, t) in enumerate(values)]
    pick = lambda tolerance: choose(Rule(TWO, combine="lexicographic", tolerance=tolerance), "p", found).selected
    assert (pick(0.0), pick(0.1), pick(0.6)) == ((0,), (1,), (2,))


@pytest.mark.parametrize(
    "text", ["mtld", "mtld:up", "mtld:max=3", "words:target", "words:target=x", ":max", "s:target=nan"]
)
def test_objectives_that_are_none(text):
    with pytest.raises(UserError, match="--objective"):
        Objective.parse(text)


@pytest.mark.parametrize("text", ["words", "words>50", "words>=", ">=5", "words>=a", "words>=5<=7"])
def test_constraints_that_are_none(text):
    with pytest.raises(UserError, match="--constraint"):
        Constraint.parse(text)


def test_names_may_hold_colons():
    assert Objective.parse("column:toxicity:min") == Objective("column:toxicity", "min")
    assert Objective.parse("python:a.py:f:target=-1.5") == Objective("python:a.py:f", "target", -1.5)
    assert Constraint.parse("python:a.py:f <= 0.2") == Constraint("python:a.py:f", "<=", 0.2)


# --- forecasts ------------------------------------------------------------------------------------------------


def test_expected_maximum_of_normals():
    """The values of order statistics tables (Tippett 1925)."""
    table = {2: 0.56, 4: 1.03, 5: 1.16, 8: 1.42, 10: 1.54, 16: 1.77, 25: 1.97, 50: 2.25, 100: 2.51}
    assert {k: round(expected_max(k), 2) for k in table} == table
    assert expected_max(1) == pytest.approx(0, abs=1e-12)
    assert expected_max(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-9)


def test_kl_bound():
    """ln k - (k - 1) / k for one score, ln k otherwise."""
    assert (round(kl_bound(10), 2), round(kl_bound(25), 2), kl_bound(1)) == (1.40, 2.26, 0)
    # Two sources that always give one answer each, and the choice always takes the first's: ln 2 from their mean.
    assert kl_bound(2, one_score=False) == pytest.approx(math.log(2))


def test_the_kl_bound_of_a_pool_counts_what_was_drawn(tmp_path):
    """Answers that a guard drops were drawn: dropping them is choosing, too."""
    prompts = [[(float(i), 0.0) for i in range(4)] for _ in range(3)]
    found, _ = forecast_of(prompts, tmp_path)
    assert found["kl_bound_nats"] == pytest.approx(math.log(4))  # of two sources


@pytest.mark.parametrize("fallback", ["baseline", "violation", "drop"])
@pytest.mark.parametrize("feasible", [1, 3, 5])
def test_best_of_k_against_all_subsets(fallback, feasible):
    table = best_of(5, feasible, fallback)
    for k in range(1, 8):
        subsets = list(itertools.combinations(range(5), min(k, 5)))
        chance = np.zeros(5)
        for subset in subsets:
            if min(subset) < feasible or fallback == "violation":
                chance[min(subset)] += 1
            elif fallback == "baseline":
                chance[list(subset)] += 1 / len(subset)
        np.testing.assert_allclose(table[k - 1], chance / len(subsets), atol=1e-12)


def test_intervals_of_columns_are_those_of_each():
    x = np.random.default_rng(0).gamma(2.0, size=(80, 3))
    for column, interval in zip(x.T, column_intervals(x, seed=5), strict=True):
        np.testing.assert_allclose(interval, bootstrap_ci95(column, seed=5), rtol=1e-12)
    x[:40, 1] = np.nan
    assert column_intervals(x)[1][0] == pytest.approx(x[40:, 1].mean())


def forecast_of(prompts, tmp_path, **settings):
    file = tmp_path / "pool.jsonl"
    file.touch()
    columns = tuple(f"column:{name}" for name in "st")
    config = Config(
        pool=str(file), objective=("column:s:max",), metrics=columns, select_only=True, **settings
    ).resolved()
    rule, names = config.rule, config.scores()
    rows, choices = [], []
    for number, scores in enumerate(prompts):
        answers = [
            {"source": "ab"[i % 2], "index": i // 2, "scores": {"words": 60.0 + i, "column:s": s, "column:t": t}}
            for i, (s, t) in enumerate(scores)
        ]
        rows.append({"answers": answers})
        found = [Candidate(a["source"], a["index"], str(i), a["scores"]) for i, a in enumerate(answers)]
        choices.append(choose(rule, f"p{number}", found))
    half = len(rows) // 2
    parts = [tally(names, rule, rows[s], choices[s], 1) for s in (slice(half), slice(half, None))]
    found = (Tally.joined(parts), tally(names, rule, rows, choices, 1))
    return tuple(as_json(forecast(rule, own)) for own in found)


def test_the_forecast_of_normal_scores_comes_true(tmp_path):
    """The predicted lift is within the interval of the one that came of it."""
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(400, 1, 2)) * 3 + rng.normal(size=(400, 10, 2)) * (2.0, 1.0)
    prompts[:, :, 1] += prompts[:, :, 0]
    figures, same = forecast_of(prompts.tolist(), tmp_path)
    entry = figures["objectives"]["column:s:max"]
    low, high = figures["scores"]["column:s"]["selected - pool"]["ci95"]
    assert low < entry["lift_predicted"] < high
    assert entry["lift_predicted"] == pytest.approx(2 * 1.539, rel=0.03)
    assert entry["lift_realised"] == pytest.approx((prompts[..., 0].max(1) - prompts[..., 0].mean(1)).mean())
    assert entry["headroom"] == 0
    # t = noise + s: within a prompt it correlates by 2 / √5 with s, and follows it with slope 1.
    assert figures["correlations"]["column:s"]["column:t"] == pytest.approx(2 / math.sqrt(5), abs=0.02)
    lifts = [figures["scores"][name]["selected - pool"]["value"] for name in ("column:s", "column:t")]
    assert lifts[1] == pytest.approx(lifts[0], rel=0.05)
    assert figures["kl_bound_nats"] == pytest.approx(math.log(10))  # two sources
    sweep = figures["sweep"]["scores"]["column:s"]
    assert sweep[0] == pytest.approx(prompts[..., 0].mean())
    assert sweep[-1] == pytest.approx(prompts[..., 0].max(1).mean())
    for k in (2, 5):
        spread = prompts[..., 0].std(1, ddof=1).mean()
        assert sweep[k - 1] - sweep[0] == pytest.approx(expected_max(k) * spread, rel=0.04)
    assert close(same, figures)  # in one part and in two


def close(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b or a == pytest.approx(b)


def test_prompts_without_spread_and_constraints_are_counted(tmp_path):
    prompts = [[(1.0, 0.0)] * 4] * 3 + [[(float(i), -float(i)) for i in range(4)]] * 5
    figures, _ = forecast_of(prompts, tmp_path, constraint=("column:t>=-1.5",))
    entry = figures["objectives"]["column:s:max"]
    assert entry["without_spread_share"] == 3 / 8
    assert entry["lift_realised"] == pytest.approx(5 / 8 * (1.0 - 1.5))
    assert entry["headroom"] == pytest.approx(5 / 8 * 2)
    assert figures["infeasible_share"] == 0
    assert figures["sources"]["a"]["usable"] == 16


# --- plain data -----------------------------------------------------------------------------------------------


def test_plain_data_is_selected_from_without_a_run():
    """Rows of a user's own in, the chosen answers out, as they were given."""
    rows = [
        {"prompt": "A bird?", "answers": [{"text": "A crow.", "likes": 3}, {"text": "An owl.", "likes": 5}]},
        {"prompt": "A fish?", "answers": [{"text": " ", "likes": 9}, {"text": "A carp or so.", "likes": None}]},
        {"prompt": "A tree?", "answers": [{"text": "", "likes": 1}]},
    ]
    best = select(rows, "likes:max")
    assert best == [[{"text": "An owl.", "likes": 5}], [{"text": "A carp or so.", "likes": None}], []]
    assert best[0][0] is rows[0]["answers"][1]
    assert select(rows, "words:max", ("likes>=4",), fallback="drop") == [[rows[0]["answers"][1]], [], []]
    assert select(rows[:1], ("likes:min",), top=2) == [rows[0]["answers"]]


@pytest.mark.parametrize(
    ("objective", "likes", "said"),
    [
        ("likes:up", 1, "--objective 'likes:up'"),
        ("hearts:max", 1, "no answer has a score hearts"),
        ("likes:max", "many", "row 0, score 'likes': 'many' is no number"),
    ],
)
def test_plain_data_that_does_not_fit_is_one_line(objective, likes, said):
    """What is wrong, and in which row."""
    with pytest.raises(UserError, match=said):
        select([{"prompt": "p", "answers": [{"text": "a", "likes": likes}]}], objective)


def test_selecting_from_plain_data_needs_no_numpy():
    """`active_inheritance.select` is plain Python."""
    code = "import sys; from active_inheritance.select import select; print({'jax', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


# --- preference pairs -----------------------------------------------------------------------------------------


def test_the_rejected_answer_is_worse_and_chosen_by_its_rule():
    """By one objective: the last, a draw of those behind the best, or the one nearest to two standard deviations
    below the mean; the order of the candidates plays no part."""
    for seed in range(30):
        found = pool(seed, n=24)
        scores = [c.scores["s"] for c in found]
        rejected = {
            how: choose(Rule(MAX, rejected=how), "p", found).rejected for how in ("far", "worst", "random")
        }
        assert scores[rejected["worst"]] == min(scores)
        near = statistics.fmean(scores) - 2 * statistics.pstdev(scores)
        assert rejected["far"] == min(range(24), key=lambda i: abs(scores[i] - near))
        assert scores[rejected["random"]] < max(scores)
        turned = choose(Rule(MAX, rejected="random"), "p", found[::-1])
        assert key(found[::-1][turned.rejected]) == key(found[rejected["random"]])
    drawn = {choose(Rule(MAX, rejected="random", seed=seed), "p", found).rejected for seed in range(200)}
    assert len(drawn) == 23, "any of those behind the best"


def test_an_outlier_is_no_rejected_answer():
    """Ten usual answers and one that fell apart: the worst is that one, "far" is the lowest of the others."""
    scores = [10, 9, 9, 8, 8, 7, 7, 6, 6, 5, -400]
    found = [Candidate("a", i, str(i), {"words": 9.0, "s": float(s)}) for i, s in enumerate(scores * 3)]
    assert found[choose(Rule(MAX, rejected="worst"), "p", found).rejected].scores["s"] == -400
    usual = [c for c in found if c.scores["s"] > 0] + found[10:11]
    assert usual[choose(Rule(MAX, rejected="far"), "p", usual).rejected].scores["s"] == 5


@pytest.mark.parametrize(
    "rule",
    [
        Rule(TWO, rejected="far"),
        Rule(TWO, combine="pareto", rejected="worst"),
        Rule(TWO, combine="lexicographic", tolerance=0.2),
        Rule(MAX, (Constraint("words", ">=", 100),), top=3, rejected="worst"),
        Rule(MAX, temperature=1.0),
    ],
)
def test_a_pair_is_of_feasible_answers_with_the_better_one_first(rule):
    for seed in range(40):
        found = pool(seed)
        made = choose(rule, f"p{seed}", found)
        feasible = made.order[: made.feasible]
        if made.rejected is None:
            assert not made.feasible or made.selected[0] not in feasible[: -len(made.selected)]
            continue
        assert feasible.index(made.selected[0]) < feasible.index(made.rejected)
        assert made.rejected not in made.selected


def test_answers_that_are_equal_by_the_objectives_are_no_pair():
    found = [Candidate("a", i, str(i), {"words": float(i), "s": 1.0}) for i in range(4)]
    assert choose(Rule(MAX), "p", found).rejected is None


def test_a_score_that_few_prompts_have_is_drawn_without_an_interval():
    """mtld, say, where one prompt alone has answers that are long enough."""
    lift = lambda ci95: {"selected - random": {"value": 2.0, "ci95": ci95}, "spread": 4.0}
    data = types.SimpleNamespace(objectives=["words:max"], scores={"words": lift([1.0, 3.0]), "mtld": lift(None)})
    drawn = Report("T")
    page._lifts(drawn, data, "")
    assert "+0.50 [+0.25, +0.75]" in drawn.html()
    assert "+0.50 (no interval)" in drawn.html()
