"""Preference pairs: failing over passing queries, within a prompt first."""

import collections
import random

import pytest

from reversegen.explore import mixed
from reversegen.pairs import pair_up

HOWS = ("within", "fallback", "pooled")


def rows(*prompts: str, scores: dict[str, float] | None = None) -> list[dict]:
    """A prompt is a word of outcomes, one letter a sample: f(ail), p(ass), i(nvalid), d(ropped)."""
    names = {"f": "fail", "p": "pass", "i": "invalid", "d": None}
    return [
        {
            "id": f"{prompt}-{sample}",
            "prompt": prompt,
            "outcome": names[letter],
            "score": (scores or {}).get(f"{prompt}-{sample}", float(letter == "f")),
        }
        for prompt, word in enumerate(prompts)
        for sample, letter in enumerate(word)
    ]


def drawn(failing: float, prompts: int, samples: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    return rows(*("".join("pf"[rng.random() < failing] for _ in range(samples)) for _ in range(prompts)))


def test_the_worst_failure_is_paired_with_the_best_pass():
    scores = {"0-0": 0.75, "0-1": 1.0, "0-2": 0.25, "0-3": 0.0, "0-4": 0.3}
    pairs = pair_up(rows("ffppp", scores=scores), "within", 0, 100)
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("0-1", "0-3"), ("0-0", "0-2")]
    assert {pair["kind"] for pair in pairs} == {"within"}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("failing", [0.02, 0.26, 0.5, 0.9])
def test_failures_stand_over_passes_and_a_query_in_one_pair(how, failing):
    judged = drawn(failing, 200, 5, seed=1)
    for row in judged[::7]:
        row["outcome"] = random.Random(row["id"]).choice(["invalid", None])
    of = {row["id"]: row for row in judged}
    pairs = pair_up(judged, how, 0, 10_000)
    used = collections.Counter(pair[side] for pair in pairs for side in ("chosen", "rejected"))
    assert set(used.values()) == {1}
    for pair in pairs:
        chosen, rejected = of[pair["chosen"]], of[pair["rejected"]]
        assert (chosen["outcome"], rejected["outcome"]) == ("fail", "pass")
        if pair["kind"] == "within":
            assert chosen["prompt"] == rejected["prompt"] == pair["prompt"]


@pytest.mark.parametrize("failing", [0.02, 0.26, 0.5, 0.9])
def test_counts(failing):
    """At most two of five samples within a prompt, and as many as the rarer outcome has when pooled."""
    judged = drawn(failing, 300, 5, seed=2)
    outcomes = collections.Counter(row["outcome"] for row in judged)
    most = min(outcomes["fail"], outcomes["pass"])
    within = collections.Counter(pair["prompt"] for pair in pair_up(judged, "within", 0, 10_000))
    for prompt in range(300):
        own = collections.Counter(row["outcome"] for row in judged if row["prompt"] == prompt)
        assert within[prompt] == min(own["fail"], own["pass"]) <= 2
    assert len(pair_up(judged, "pooled", 0, 10_000)) == most
    fallback = pair_up(judged, "fallback", 0, 10_000)
    assert [pair["kind"] for pair in fallback] == ["within"] * within.total() + ["across"] * (
        most - within.total()
    )


def test_fallback_uses_what_is_left_under_the_prompt_of_the_chosen():
    pairs = pair_up(rows("fff", "pppf", "i"), "fallback", 0, 100)
    assert [pair["kind"] for pair in pairs] == ["within", "across", "across"]
    for pair in pairs[1:]:
        assert pair["prompt"] == 0 == int(pair["chosen"][0])
        assert pair["rejected"][0] == "1"
    assert pair_up(rows("fff", "ppp"), "within", 0, 100) == []


def test_pooled_pairs_are_across_prompts_of_the_round():
    pairs = pair_up(rows("fp", "fp", "fp"), "pooled", 0, 100)
    assert len(pairs) == 3
    assert {pair["kind"] for pair in pairs} == {"across"}
    assert {pair["prompt"] for pair in pairs} <= {0, 1, 2}


@pytest.mark.parametrize("how", HOWS)
def test_nothing_to_pair(how):
    for judged in (rows("fff"), rows("ppp"), rows("iiid"), []):
        assert pair_up(judged, how, 0, 100) == []


@pytest.mark.parametrize("how", HOWS)
def test_most_pairs_and_the_same_ones_again(how):
    judged = drawn(0.4, 100, 5, seed=3)
    every, some = pair_up(judged, how, 0, 10_000), pair_up(judged, how, 0, 20)
    assert len(some) == 20
    assert all(pair in every for pair in some)
    assert pair_up(judged, how, 0, 20) == some
    assert pair_up(judged, how, 1, 20) != some


@pytest.mark.parametrize("outcomes", ["ff", "pp"])
def test_no_score_makes_a_pair_of_one_outcome(outcomes):
    assert pair_up(rows(outcomes, scores={"0-0": 9.0, "0-1": 0.0}), "within", 0, 100) == []


def test_scores_rank_failures_and_passes():
    judged = rows("ffpp", scores={"0-0": 0.6, "0-1": 1.0, "0-2": 0.4, "0-3": 0.0})
    pairs = [(pair["chosen"], pair["rejected"]) for pair in pair_up(judged, "within", 0, 100)]
    assert pairs == [("0-1", "0-3"), ("0-0", "0-2")]


def test_a_pass_is_never_chosen_whatever_a_judge_scores():
    odd = rows("pfp", scores={"0-0": 9.0, "0-1": 1.0, "0-2": 0.0})
    assert [(pair["chosen"], pair["rejected"]) for pair in pair_up(odd, "within", 0, 100)] == [("0-1", "0-2")]


def test_share_of_prompts_with_both_outcomes():
    """1 - 0.26^5 - 0.74^5 = 0.777 of prompts, at five draws each, within three standard errors."""
    share = 1 - 0.26**5 - 0.74**5
    assert round(share, 3) == 0.777
    prompts = 4000
    error = (share * (1 - share) / prompts) ** 0.5
    assert abs(mixed(drawn(0.26, prompts, 5, seed=4)) - share) < 3 * error
    assert mixed(rows("fp", "ff", "pi", "id")) == 0.25
