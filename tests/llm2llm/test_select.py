"""Which examples the teacher is asked about, on hand-made answers."""

import types

import pytest

from common.errors import UserError
from common.tasks.arithmetic import Arithmetic
from common.tasks.base import Example
from llm2llm import arms
from llm2llm.config import Config
from llm2llm.experiment import load_data
from llm2llm.select import choose, deal_folds, draw_seeds, flow, share_out, spread
from llm2llm.students import Arm
from llm2llm.switches import Likeness, Seeds

POOL = [Example(f"s{i}", f"question {i}", "a", "a", "ab"[i % 2]) for i in range(6)]
# id, right?, mean log-probability of the answer
GRADED = [
    {"id": f"s{i}", "correct": right, "mean_logp": logp}
    for i, (right, logp) in enumerate([(1, -0.1), (0, -0.2), (1, -0.9), (1, -0.5), (0, None), (1, -0.3)])
]
ALL_RIGHT = [row | {"correct": True} for row in GRADED]
LOSSES = [0.1, 5.0, 0.2, 3.0, 0.3, 4.0]
SHARES = [1.0, 0.0, 0.5, 1.0, 0.125, 0.875]


def names(config, graded=GRADED):
    targeting = config.resolved().switches(Arithmetic()).targeting
    chosen, rule = choose(targeting, POOL, graded, lambda: LOSSES, lambda: SHARES)
    return [example.id for example in chosen], rule


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"target": "wrong"}, ["s1", "s4"]),
        ({"target": "all"}, ["s0", "s1", "s2", "s3", "s4", "s5"]),
        ({"target": "high-loss", "target_share": 0.5}, ["s1", "s3", "s5"]),
        ({"target": "mixed"}, ["s2", "s4", "s5"]),
        # no answer at all is the least confident one
        ({"target": "low-confidence", "target_share": 0.5}, ["s2", "s3", "s4"]),
    ],
)
def test_every_target_chooses_by_its_own_measure(settings, expected):
    assert names(Config(**settings)) == (expected, settings["target"])


def test_nothing_wrong_falls_back_to_low_confidence_or_stops():
    assert names(Config(target_share=0.3), ALL_RIGHT) == (["s2", "s4"], "low-confidence")
    assert names(Config(when_none_wrong="stop"), ALL_RIGHT) == ([], "wrong")


def new(i, parent, group):
    return Example(f"n{i}", f"new {i}", "a", "a", group), parent


def slots(config, chosen, made=()):
    quota = config.resolved().switches(Arithmetic()).quota
    seed_of = {example.id: parent for example, parent in made}
    data = [*POOL, *(example for example, _ in made)]
    return [example.id for example in share_out(quota, chosen, data, POOL, seed_of)]


def test_slots_without_caps():
    assert slots(Config(per_wrong=2), POOL[:2]) == ["s0", "s0", "s1", "s1"]
    one_shot = Config(per_wrong=2, rounds=4, mode="one-shot")
    assert len(slots(one_shot, POOL[:2])) == 2 * 2 * 3


def test_cap_of_a_seed_counts_what_was_made_of_it_directly_or_not():
    grandchild = Example("n1", "new", "a", "a", "a")
    made = [new(0, "s0", "a"), (grandchild, "s0")]
    assert slots(Config(per_wrong=3, max_per_seed=3), [POOL[0], POOL[1]], made) == ["s0", "s1", "s1", "s1"]
    assert slots(Config(per_wrong=3, max_per_seed=3), [grandchild], made) == ["n1"]


def test_cap_of_a_class_takes_from_every_example_alike():
    chosen = [POOL[0], POOL[2], POOL[1]]  # classes a, a, b
    assert slots(Config(per_wrong=2, max_per_class=2), chosen) == ["s0", "s2", "s1", "s1"]


def test_balance_asks_most_for_the_class_that_has_least():
    made = [new(i, "s0", "a") for i in range(4)]  # 7 of class a, 3 of class b
    got = slots(Config(per_wrong=3, balance=True), [POOL[0], POOL[1]], made)
    assert got == ["s0", "s1", "s1", "s1"]  # 16 in all would be 8 each


def test_seeds_are_spread_over_the_groups():
    examples = Arithmetic().load("train", None, 0)
    drawn = draw_seeds(examples, Seeds(30), seed=1)
    counts = {}
    for example in drawn:
        counts[example.group] = counts.get(example.group, 0) + 1
    assert len({e.id for e in drawn}) == 30
    assert set(counts.values()) == {2, 3}
    assert drawn == draw_seeds(list(reversed(examples)), Seeds(30), seed=1)
    assert drawn != draw_seeds(examples, Seeds(30), seed=2)


def test_random_seeds_are_uniform_and_reproducible():
    examples = [Example(f"e{i}", "q", "a", "a", "rare" if i < 5 else "common") for i in range(100)]
    drawn = draw_seeds(examples, Seeds(20, "random"), seed=1)
    assert len({e.id for e in drawn}) == 20
    assert drawn == draw_seeds(list(reversed(examples)), Seeds(20, "random"), seed=1)
    rare = [sum(e.group == "rare" for e in draw_seeds(examples, Seeds(20, "random"), s)) for s in range(200)]
    assert 0.7 < sum(rare) / 200 < 1.3  # 20 × 5 / 100


def test_folds_partition_the_seeds_and_mix_the_groups():
    folds = deal_folds(POOL, 3, seed=0)
    assert sorted(e.id for fold in folds for e in fold) == [e.id for e in POOL]
    assert [len(fold) for fold in folds] == [2, 2, 2]
    assert all({e.group for e in fold} == {"a", "b"} for fold in folds)


def test_random_slots_fall_on_all_seeds_alike():
    drawn = [e.id for e in spread(POOL, 8, "x")]
    assert sorted(drawn.count(e.id) for e in POOL) == [1, 1, 1, 1, 2, 2]
    assert drawn == [e.id for e in spread(POOL, 8, "x")]


def test_flow_between_rounds():
    before = [{"correct": c} for c in (True, True, False, False)]
    now = [{"correct": c} for c in (True, False, True, False)]
    assert flow(before, now) == {"fixed": 1, "still_wrong": 1, "regressed": 1, "still_right": 1}
    assert flow(None, now) == {}


def write(folder, split, rows):
    file = folder / f"{split}.csv"
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return str(file)


def test_no_seed_is_a_held_out_question_however_it_is_written_and_the_run_says_what_its_files_repeat(tmp_path):
    """Upper case and a blank before the mark hide no question; dev rows that are test rows are told, and so is a
    question under two labels."""
    train = [
        ("Where is the Nile?", "place"),
        ("Who is he?", "person"),
        ("Where is Rome?", "place"),
        ("Who?", "person"),
    ]
    files = {
        "train_file": write(tmp_path, "train", [*train, ("who", "place")]),
        "dev_file": write(tmp_path, "dev", [("WHO IS HE ?", "person")]),
        "test_file": write(tmp_path, "test", [("WHERE IS THE NILE ?", "place"), ("Who is he?", "person")] * 2),
    }
    data = load_data(Config(task="text", seed_examples=3, student="smollm2", **files).resolved())
    assert [example.question for example in data.train] == ["Where is Rome?", "Who?", "who"]
    assert data.doubts == [
        "train.csv: 1 question stands under different labels, such as 'Who?' under 'person' and 'place': "
        "correct them",
        "test.csv: 2 of 4 rows repeat another one: the interval is narrower than it should be; take them out",
        "dev.csv: 1 of 1 rows are test questions: the round is chosen on what it is tested on; take them out",
        "train.csv: 2 of 5 rows are dev or test questions too, and were left out",
    ]


def test_a_run_of_our_own_data_has_nothing_to_warn_of():
    assert load_data(Config().resolved()).doubts == []


@pytest.mark.parametrize("round_alone", [False, True])
def test_test_and_dev_questions_are_refused_whatever_duplicates_are_of(round_alone):
    """Also those whose words are all of a sort that ROUGE passes over."""
    ask = lambda text: Example(text, text, "a", "a", "a")
    long = "a b c d e f g h i j k l m n o p"
    switches = types.SimpleNamespace(likeness=Likeness(1.0, this_round=round_alone), seed=0)
    test, dev = [ask("Where is the Nile ?"), ask(long)], [ask("5 + 3")]
    setting = types.SimpleNamespace(switches=switches, test=test, dev=dev, base=types.SimpleNamespace(embed=None))
    arm = Arm(None, setting, POOL, 0, "llm2llm")
    known = arm.known(POOL[:1]) if round_alone else arm.known()
    asked = ["WHERE is the Nile?", f"Tell me: {long}?", "5 + 3 .", "5 - 3"]
    reasons = [found and found.reason for found in known.repeats(asked)]
    held_out = "is a test or development question"
    assert reasons == ["quotes a test question", "quotes a test question", held_out, None]


def test_edits_of_seeds_that_ask_what_is_held_out_are_no_examples(monkeypatch):
    """Nor those that are too long."""
    ask = lambda text: Example(text, text, "a", "a", "a")
    made = [ask(text) for text in ("WHERE is the Nile", "5+3.", "Where is Rome?", "too long")]
    monkeypatch.setattr(arms, "eda_examples", lambda *given: made)
    monkeypatch.setattr(arms, "neighbour_synonyms", lambda *given: None)
    comparison = types.SimpleNamespace(wordnet=None)
    setting = types.SimpleNamespace(
        switches=types.SimpleNamespace(comparison=comparison),
        base=None,
        test=[ask("Where is the Nile?")],
        dev=[ask("5 + 3")],
    )
    run = types.SimpleNamespace(once=lambda name, make: make())
    fits = lambda example: example.question != "too long"
    arm = types.SimpleNamespace(setting=setting, run=run, folder="x", seeds=[], seed=0, fits=fits)
    assert [example.question for example in arms._eda(arm, 4)] == ["Where is Rome?"]


def test_what_a_pool_holds_of_dev_and_test_and_under_several_labels_is_told(tmp_path):
    rows = [("Where is Rome?", "place"), ("Who is he?", "person"), ("Who?", "person"), ("Who", "place")]
    files = {
        "train_file": write(tmp_path, "train", [("Where is Oslo?", "place"), ("Who is she?", "person")]),
        "test_file": write(tmp_path, "test", [("WHO IS HE ?", "person"), ("Where is Bonn?", "place")]),
    }
    settings = {"task": "text", "seed_examples": 1, "arms": ("base", "llm2llm"), **files}
    teacher = f"pool:{write(tmp_path, 'pool', rows)}"
    data = load_data(Config(**settings, teacher=teacher).resolved())
    assert [example.question for example in data.pool] == ["Where is Rome?", "Who?", "Who"]
    assert data.doubts == [
        "pool.csv: 1 question stands under different labels, such as 'Who?' under 'person' and 'place': "
        "correct them",
        "pool.csv: 1 of 4 rows are dev or test questions too, and were left out",
    ]
    teacher = f"pool:{write(tmp_path, 'pool', rows[1:2])}"
    with pytest.raises(
        UserError, match=r"pool.csv: all of its 1 rows are dev or test questions too: give another"
    ):
        load_data(Config(**settings, teacher=teacher).resolved())
