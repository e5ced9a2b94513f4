"""Preference pairs of queries: one on which the target failed, chosen, over one on which it passed, rejected.

Pairs share their prompt where that is possible, so that they compare like with like. The authors' released program
pools all queries instead and puts each pair under a prompt drawn at random: `pooled`.
"""

import random
from collections.abc import Sequence

from reversegen.applications.base import Row, failing, passing, valid
from reversegen.switches import PairingRule

ENDS = ("chosen", "rejected")


def pair_up(judged: Sequence[Row], rule: PairingRule, seed: int, most: int) -> list[Row]:
    """At most `most` pairs {"prompt", "chosen", "rejected", "kind"} of judged rows (ids, and the prompt's number).

    `rule`: "within" pairs the worst failure of a prompt with its best pass, the second worst with the second best,
    and so on; "fallback" then pairs what is left across prompts, under the prompt of the chosen one; "pooled"
    shuffles failures, passes and prompts and pairs them as they come. A query is in one pair at most; invalid ones
    are in none.
    """
    rng, judged = random.Random(f"pairs {seed}"), valid(judged)
    pairs = [] if rule == "pooled" else _within(judged)
    if rule != "within":
        used = {pair[end] for pair in pairs for end in ENDS}
        pairs += _across(rng, [row for row in judged if row["id"] not in used], rule == "pooled")
    if len(pairs) > most:
        # Drawn: the first ones would all be of the first prompts.
        pairs = [pairs[i] for i in sorted(rng.sample(range(len(pairs)), most))]
    return pairs


def _within(judged: Sequence[Row]) -> list[Row]:
    by_prompt: dict[int, list[Row]] = {}
    # The id decides between equal scores, so that the order of the rows plays no part.
    for row in sorted(judged, key=lambda row: (row["prompt"], -row["score"], row["id"])):
        by_prompt.setdefault(row["prompt"], []).append(row)
    pairs = []
    for prompt, ranked in by_prompt.items():
        # The worst come first in the ranking, so the best pass is the last one.
        best_first = passing(ranked)[::-1]
        # As many pairs as the smaller side has.
        pairs += [_pair(prompt, *ends, "within") for ends in zip(failing(ranked), best_first, strict=False)]
    return pairs


def _across(rng: random.Random, judged: Sequence[Row], shuffled_prompts: bool) -> list[Row]:
    fails, passes = failing(judged), passing(judged)
    # Rows come prompt by prompt: unshuffled, early prompts would be paired with one another and late ones left.
    rng.shuffle(fails)
    rng.shuffle(passes)
    prompts = [row["prompt"] for row in (judged if shuffled_prompts else fails)]
    if shuffled_prompts:
        rng.shuffle(prompts)
    return [_pair(*row, "across") for row in zip(prompts, fails, passes, strict=False)]


def _pair(prompt: int, chosen: Row, rejected: Row, kind: str) -> Row:
    return {"prompt": prompt, "chosen": chosen["id"], "rejected": rejected["id"], "kind": kind}
