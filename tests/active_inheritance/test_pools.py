"""Pools: the forms of a file, what is drawn of them, what is flagged."""

import collections
import json
import math
import random
import types

import pytest

from active_inheritance import pools, student
from active_inheritance.config import Config
from active_inheritance.experiment import load_data
from active_inheritance.pools import Answer, Group, Layout, draw, guard, read_pool
from active_inheritance.prompts import read_prompts
from active_inheritance.sampling import _floor
from active_inheritance.switches import Scoring
from common.errors import UserError
from common.generate import Record
from common.tasks.prompts import Prompt


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(group):
    return {(a.source, a.index): a.text for a in group.answers}


WIDE = {"prompt": "p", "completion_0": "a", "source_0": "x", "completion_1": "b", "source_1": "y"}
MAP = {"instruction": "p", "outputs": {"x": "a", "y": "b"}}
LONG = [{"prompt": "p", "source": "x", "completion": "a"}, {"prompt": "p", "source": "y", "completion": "b"}]


@pytest.mark.parametrize("rows", [[WIDE], [MAP], LONG], ids=["wide", "map", "long"])
def test_all_forms_give_the_same_pool(tmp_path, rows):
    (group,) = read_pool(write(tmp_path / "pool.jsonl", rows), Layout())
    assert (group.prompt, texts(group)) == ("p", {("x", 0): "a", ("y", 0): "b"})
    assert len(group.id) == 16


@pytest.mark.parametrize("form", ["wide", "long"])
def test_parquet_and_csv(tmp_path, form):
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    table = pa.Table.from_pylist([WIDE] if form == "wide" else LONG)
    pa.parquet.write_table(table, tmp_path / "pool.parquet")
    pa.csv.write_csv(table, tmp_path / "pool.csv")
    for name in ("pool.parquet", "pool.csv"):
        (group,) = read_pool(tmp_path / name, Layout())
        assert texts(group) == {("x", 0): "a", ("y", 0): "b"}


def test_a_map_from_parquet_leaves_out_sources_without_an_answer(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    rows = [{"prompt": "p", "outputs": {"x": "a"}}, {"prompt": "q", "outputs": {"y": "b"}}]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    assert [texts(g) for g in read_pool(tmp_path / "pool.parquet", Layout())] == [{("x", 0): "a"}, {("y", 0): "b"}]


def test_several_answers_of_a_source_truncation_and_scores(tmp_path):
    row = {
        "id": 7,
        "prompt": "p",
        "outputs": {"x": ["a", {"text": "b", "finish_reason": "length", "tox": 0.5}], "y": "c"},
        "tox": {"x": [0.1, 0.2], "y": 0.3},
    }
    (group,) = read_pool(write(tmp_path / "pool.jsonl", [row]), Layout(scores=("tox",)))
    assert group.id == "7"
    assert [(a.source, a.index, a.truncated, a.columns["tox"]) for a in group.answers] == [
        ("x", 0, False, 0.1),
        ("x", 1, True, 0.5),
        ("y", 0, False, 0.3),
    ]


def test_scores_and_truncation_beside_completions(tmp_path):
    row = WIDE | {"tox_0": 0.25, "truncated_1": True}
    (group,) = read_pool(write(tmp_path / "pool.jsonl", [row]), Layout(scores=("tox",)))
    assert group.answers[0].columns["tox"] == 0.25
    assert math.isnan(group.answers[1].columns["tox"])
    assert [a.truncated for a in group.answers] == [False, True]


def test_where_a_number_is_missing_the_other_answers_keep_their_places(tmp_path):
    """Exporters that write no nulls leave gaps, in the first row too; a pool may also be numbered with gaps."""
    rows = [
        {"prompt": "p", "completion_1": "b", "completion_2": "c"},
        {"prompt": "q", **{f"completion_{i}": str(i) for i in (0, 1, 2, 8, 9)}},
        {"prompt": "r", "completion_0": "a", "source_0": "x", "completion_2": "c", "source_2": "x", "tox_2": 0.5},
        {"prompt": "s", "completion_00": "a", "completion_01": "b", "source_01": "y"},
    ]
    found = [texts(g) for g in read_pool(write(tmp_path / "pool.jsonl", rows), Layout(scores=("tox",)))]
    assert found == [
        {("pool", 1): "b", ("pool", 2): "c"},
        {("pool", i): str(i) for i in (0, 1, 2, 8, 9)},
        {("x", 0): "a", ("x", 1): "c"},
        {("pool", 0): "a", ("y", 0): "b"},
    ]


def test_rows_of_a_long_file_may_stand_in_any_order(tmp_path, monkeypatch):
    rows = [
        {"prompt": f"p{p}", "source": source, "completion": f"{p} {source} {i}"}
        for p in range(300)
        for source in "xy"
        for i in range(2)
    ]
    random.Random(0).shuffle(rows)
    file = write(tmp_path / "pool.jsonl", rows)
    whole = {g.prompt: texts(g) for g in read_pool(file, Layout())}
    monkeypatch.setattr(pools, "BUCKET", 4000)
    assert file.stat().st_size > 3 * 4000
    parts = {g.prompt: texts(g) for g in read_pool(file, Layout())}
    assert parts == whole
    assert len(whole) == 300
    assert all(len(found) == 4 for found in whole.values())


def test_a_repeated_prompt_without_ids_is_another_prompt(tmp_path):
    groups = list(read_pool(write(tmp_path / "pool.jsonl", [MAP, MAP]), Layout()))
    assert len({group.id for group in groups}) == 2


@pytest.mark.parametrize(
    ("rows", "layout", "said"),
    [
        ([{"text": "p", "completion_0": "a"}], Layout(), "no column .*--prompt-column"),
        ([{"prompt": "p", "text": "a"}], Layout(), "no answers under .*--answers-column"),
        ([{"prompt": "p", "completion": "a"}], Layout(), "needs a column source"),
        ([MAP | {"id": "a"}, MAP | {"id": "a"}], Layout(), "ids must differ"),
        ([WIDE, {"prompt": "q", "completion_99999": "a"}], Layout(), "row 2: number the answers completion_0"),
        ([{"prompt": "q", "completion_1": "a", "completion_01": "b"}], Layout(), "once each"),
        ([MAP, {"instruction": "p", "outputs": "a"}], Layout(), "no map of source to answer"),
        ([MAP | {"tox": {"x": "much"}}], Layout(scores=("tox",)), "score 'tox' is 'much'"),
        ([{"prompt": "", "outputs": {"x": "a"}}], Layout(), "field 'prompt' is empty"),
        ([{"prompt": "p", "outputs": {"x": [["a"]]}}], Layout(), "an answer is a list"),
    ],
)
def test_mistakes_are_one_line(tmp_path, rows, layout, said):
    with pytest.raises(UserError, match=said) as error:
        list(read_pool(write(tmp_path / "pool.jsonl", rows), layout))
    assert "\n" not in str(error.value)


# --- drawing --------------------------------------------------------------------------------------------------


def group(name="g", **counts):
    answers = [Answer(source, i, f"{source}{i}") for source, count in counts.items() for i in range(count)]
    return Group(name, "p", tuple(answers))


def test_the_budget_of_one_and_of_several_sources_is_the_same():
    """k answers in total, as many of each source as of the others."""
    whole = [group(f"g{i}", a=10, b=10, c=10) for i in range(200)]
    for sources in (("a",), ("b", "a"), ()):
        drawn = [draw(g, sources, 10, seed=0) for g in whole]
        assert {len(g.answers) for g in drawn} == {10}
        counts = collections.Counter(a.source for g in drawn for a in g.answers)
        assert set(counts) == set(sources or "abc")
        for g in drawn:
            each = collections.Counter(a.source for a in g.answers).values()
            assert max(each) - min(each) <= 1
    assert max(counts.values()) - min(counts.values()) < 40  # who gives the tenth changes from prompt to prompt


def test_what_a_source_lacks_the_others_give():
    drawn = draw(group(a=1, b=9), (), 6, seed=0)
    assert collections.Counter(a.source for a in drawn.answers) == {"a": 1, "b": 5}
    assert len(draw(group(a=1, b=2), (), 6, seed=0).answers) == 3


def test_the_draw_is_uniform_and_does_not_depend_on_the_order():
    counts = collections.Counter()
    for i in range(2000):
        g = group(f"g{i}", a=5)
        drawn = {a.index for a in draw(g, (), 2, seed=1).answers}
        other = Group(g.id, g.prompt, g.answers[::-1])
        assert {a.index for a in draw(other, (), 2, seed=1).answers} == drawn
        counts.update(drawn)
    assert sum((count - 800) ** 2 / 800 for count in counts.values()) < 18.5  # chi-square, 4 degrees, 0.1%


def test_the_first_source_named_comes_first():
    assert draw(group(a=2, b=1), ("b", "a"), None, 0).answers[0].source == "b"


# --- guards ---------------------------------------------------------------------------------------------------


def test_guards():
    answers = [
        Answer("b", 0, "the same"),
        Answer("a", 0, " the same\n"),
        Answer("a", 1, " \n"),
        Answer("a", 2, "cut of", truncated=True),
        Answer("a", 3, "go on and on " * 10),
        Answer("a", 4, "I'm sorry, but I cannot help."),
        Answer("a", 5, "}{ ]( ;;~ =>"),
    ]
    flags = guard(answers, 0.5)
    assert flags == [("duplicate",), (), ("empty",), ("truncated",), ("repeating",), ("refusal",), ("empty",)]
    assert guard(answers, 1.0)[4] == (), "a limit of 1 lets an answer repeat itself"


def test_an_answer_far_less_likely_than_its_source_s_others_is_unusable():
    records = [Record(f"p{i}#0", 0, "ok", "text", mean_logp=-1.0 - i % 3 / 10) for i in range(30)]
    floor = _floor([*records, Record("odd#0", 0, "ok", "salad", mean_logp=-6.0)], 4.0)
    assert -6.0 < floor < -1.3
    assert _floor(records, 0.0) == _floor([Record("a#0", 0, "ok", "text")] * 9, 4.0) == -math.inf
    assert guard([Answer("a", 0, "salad", unlikely=True)], 0.5) == [("unlikely",)]
    assert Scoring(("words",), drop=()).drops(["unlikely"])
    assert not Scoring(("words",), drop=()).drops(["empty"])


def test_chats_of_trainers_are_passed_over_for_the_texts_beside_them(tmp_path):
    """A data set of ours is a pool of one answer a row, and a file of prompts."""
    turn = lambda role, text: [{"role": role, "content": text}]
    row = {"prompt": turn("user", "p"), "completion": turn("assistant", "a")}
    file = write(tmp_path / "pool.jsonl", [row | {"instruction": "p", "answer": "a", "source": "x"}])
    (group,) = read_pool(file, Layout())
    assert (group.prompt, texts(group)) == ("p", {("x", 0): "a"})
    assert [prompt.text for prompt in read_prompts(str(file), pools.PROMPTS)] == ["p"]
    with pytest.raises(UserError, match="no column"):
        read_pool(write(tmp_path / "chats.jsonl", [row]), Layout()).__next__()


def test_a_pool_that_asks_twice_is_told_once(tmp_path):
    from active_inheritance.config import Config
    from active_inheritance.experiment import run

    rows = [
        {
            "prompt": prompt,
            "completion_0": "A cat sat there.",
            "completion_1": f"It was a very long {i}.",
            "source": "x",
        }
        for i, prompt in enumerate(("Say it.", "Tell it.", "SAY IT", "Say  it!"))
    ]
    file = write(tmp_path / "pool.jsonl", rows)
    settings = {"objective": ("words:max",), "min_words": 0, "select_only": True}
    summary = run(Config(pool=str(file), **settings, run_dir=str(tmp_path / "run")))
    said = "2 of 4 rows repeat another one: the interval is narrower than it should be; take them out"
    assert [line for line in summary["warnings"] if "repeat" in line] == [f"{file}: {said}"]
    assert summary["pool"]["repeated_prompts"] == 2
    write(file, rows[:2])
    alone = run(Config(pool=str(file), **settings, run_dir=str(tmp_path / "alone")))
    assert "repeated_prompts" not in alone["pool"]


# --- held out -------------------------------------------------------------------------------------------------


def test_a_pool_whose_prompts_are_all_held_out_is_refused_for_that(tmp_path):
    rows = [WIDE | {"prompt": text} for text in ("What is 2+3?", "Why?")]
    pool = write(tmp_path / "pool.jsonl", rows)
    test = write(tmp_path / "test.jsonl", [{"prompt": "WHAT is 2 + 3"}, {"prompt": "why"}])
    settings = {"objective": ("words:max",), "pool": str(pool), "test_prompts_file": str(test)}
    with pytest.raises(UserError, match=r"pool.jsonl: all of its 2 prompts ask what a held-out prompt asks: give"):
        load_data(Config(**settings).resolved())
    write(pool, [*rows, WIDE | {"prompt": "Who?"}])
    assert len(load_data(Config(**settings).resolved()).held_out) == 2


def test_prompts_that_are_held_out_are_counted_and_the_cause_where_none_is_left(monkeypatch):
    """With several answers a prompt it counts once."""
    row = lambda name, text, rank: (
        dict.fromkeys(("answer", "source", "index", "scores"))
        | {
            "id": f"{name}#{rank}",
            "prompt": text,
            "rank": rank,
        }
    )
    taken = [row(name, text, rank) for name, text in (("a", "What is 2+3?"), ("b", "Why?")) for rank in (0, 1)]
    selection = types.SimpleNamespace(rows=lambda arm: iter(taken))
    encoded = types.SimpleNamespace(tokens=(1, 2), prompt_length=1)
    monkeypatch.setattr(student, "encoded", lambda *given: (encoded, False))
    held_out = [Prompt("x", "what is 2 + 3")]
    learned, left_out, asked = student.learned_rows(None, {"selected": selection}, held_out, None)
    assert ([row["id"] for row in learned["selected"]], left_out, asked) == (["b#0", "b#1"], 0, 1)
    held_out.append(Prompt("y", "why"))
    with pytest.raises(
        UserError, match="nothing is left for the student to learn: 2 prompts are held out: give more"
    ):
        student.learned_rows(None, {"selected": selection}, held_out, None)
