"""What a proposer is shown, what counts as new, and what it is trained to prefer."""

import numpy as np
import pytest

from common.errors import UserError
from common.lm import LanguageModel
from common.results.rundir import RunDir
from common.tasks.base import Example
from common.text.nonsense import Gate
from common.text.novelty import History
from reversegen.applications.base import Context
from reversegen.applications.conduct import Conduct
from reversegen.config import Config, preset
from reversegen.experiment import application
from reversegen.explore import _preference
from reversegen.lengths import that_fit
from reversegen.propose import (
    Fluency,
    exploration_prompts,
    fresh,
    propose,
    sift,
    warm_up_prompts,
)
from reversegen.switches import Answers

SEEDS = [Example(f"s{i}", f"seed number {i}", "#### 1", "1", "g") for i in range(20)]
PEARS = "There are 3 pears in a box and 4 pears on a table. How many pears are there in all?"
WRITING = Config().resolved().switches(96).exploring.writing
MUGS = "There are 6 drawers. Each one holds 4 mugs. How many mugs are there?"


@pytest.fixture(scope="module")
def teacher():
    return LanguageModel.load("embedded:teacher")


@pytest.fixture
def ctx(tmp_path):
    with RunDir.open(tmp_path / "run", "reversegen", {}) as run:
        yield Context(run, 0, 0)


@pytest.fixture
def app():
    return application(Config().resolved())


def test_of_a_list_that_was_cut_off_the_first_query_counts(app):
    """Only where it is whole: the beginning of the next one shows that."""
    assert app.first(f"Problem: {PEARS}\nProblem: {MUGS[:20]}") == f"Problem: {PEARS}"
    assert app.first(f"Problem: {PEARS[:30]}") is None
    own = Conduct("own", Answers(1, 8, 0.0), Answers(1, 8, 0.0))
    assert own.first("4. How do I bake bread?\n5. How do I") == "How do I bake bread?"
    assert own.first("How do I bake bread and then") is None
    letters = application(Config(task="honesty", validity="none").resolved())
    whole = "What is wet?\nA. sand\nB. water\nC. salt\nD. dust\nAnswer: B"
    assert letters.first(f"{whole}\nWhat is") == whole
    assert letters.first(whole) is None


def test_nonsense_is_dropped_with_its_reason(ctx, app):
    queries = [PEARS, "no no no no no no no no", MUGS]
    rows = [{"id": str(i), "query": query, "malformed": None} for i, query in enumerate(queries)]
    told = sift(ctx, app, rows, [], History(0.85), History(), None, "round_0", Gate())
    assert [row["dropped"] for row in told] == [None, "nonsense: repetition", None]


def groups(prompts):
    return [frozenset(seed.id for seed in shown) for shown in prompts]


def test_each_seed_is_written_once_in_the_warm_up_and_never_shown_to_itself():
    prompts = warm_up_prompts(SEEDS, 3, seed=0)
    assert [last for _, last in prompts] == SEEDS
    for shown, last in prompts:
        assert len({seed.id for seed in shown} | {last.id}) == 4
    assert warm_up_prompts(SEEDS, 3, 0) == prompts != warm_up_prompts(SEEDS, 3, 1)


def test_no_group_of_seeds_is_shown_twice():
    """Over the warm-up, all rounds and the last proposing; the slices of rounds follow each other."""
    sizes = Config(prompts=50, final_prompts=60, rounds=2).resolved().switches(96).exploring.sizes
    assert sizes == [50, 50, 50, 60]
    prompts = exploration_prompts(SEEDS, 3, sum(sizes), seed=0)
    used = groups([shown for shown, _ in warm_up_prompts(SEEDS, 3, 0)]) + groups(prompts)
    assert len(set(used)) == len(used) == 20 + 210
    parts = fresh(prompts, sizes)
    assert [len(part) for part in parts] == sizes
    assert [shown for part in parts for shown in part] == prompts
    assert exploration_prompts(SEEDS, 3, 300, 0)[:210] == prompts, "a control's prompts come after them"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed_instructions": 12}, "12 seeds give 220 different prompts of 3"),
        ({"shots": 1}, "240 seeds give 240 different prompts of 1"),
        ({"seed_instructions": 3}, "must be more than --shots 3"),
    ],
)
def test_too_few_seeds_are_found_before_any_work(change, message):
    with pytest.raises(UserError, match=message) as raised:
        Config(**change).resolved()
    assert "\n" not in str(raised.value)


def test_too_few_seeds_to_draw_from_are_one_line():
    with pytest.raises(UserError, match="6 seeds give too few different prompts of 3") as raised:
        exploration_prompts(SEEDS[:6], 3, 30, 0)
    assert "\n" not in str(raised.value)


def test_seeds_that_leave_no_room_for_a_query_are_left_out(teacher, app):
    long = [Example(f"l{i}", "many words " * 60, "", "", "g") for i in range(4)]
    assert that_fit(app, teacher, [*SEEDS, *long], 3, 96) == SEEDS
    assert that_fit(app, teacher, SEEDS, 3, 500) == []
    longest = [Example(f"m{i}", "word " * 90, "", "", "g") for i in range(3)]
    shown = [seed for seed in longest if seed in that_fit(app, teacher, longest, 3, 96)]
    if shown:
        assert len(teacher.tokenizer.encode_prompt(app.prompt(shown))) + 96 <= teacher.config.max_positions


@pytest.mark.parametrize(
    ("name", "examples", "updates"), [("reference-code", 2448, 306), ("paper", 6277, 785), ("paper", 9700, 1213)]
)
def test_updates_of_the_authors_settings(name, examples, updates):
    """One epoch in batches of eight, the last one kept."""
    config = preset(name, task="math", data="gsm8k", target="a/b", proposer="c/d").resolved()
    switches = config.switches(96)
    assert switches.exploring.warm_up.total_steps(examples) == updates
    assert switches.learning.train.max_length == 2048


def test_the_authors_program_s_settings():
    config = preset("reference-code", data="gsm8k", target="a/b", proposer="c/d", rounds=2).resolved()
    assert (config.rounds, config.pairing, config.top_p, config.preset) == (2, "pooled", 0.9, "reference-code")
    exploring = config.switches(96).exploring
    for training, rate in ((exploring.warm_up, 5e-7), (exploring.preferring.train, 5e-5)):
        assert (training.optimizer, training.schedule, training.warmup_steps) == ("rmsprop", "constant", 150)
        assert (training.learning_rate, training.batch_size, training.clip_norm) == (rate, 8, 10.0)


def test_proposals_have_their_provenance(ctx, app, teacher):
    prompts = exploration_prompts(app.task.load("train", None, 0)[:20], 3, 3, 0)
    rows = propose(ctx, app, lambda: teacher, prompts, 2, WRITING, "repeat_0/explore/round_1")
    assert [(row["prompt"], row["sample"]) for row in rows] == [(p, s) for p in range(3) for s in range(2)]
    assert len({row["id"] for row in rows}) == 6
    assert len({row["prompt_hash"] for row in rows}) == 3
    for row in rows:
        assert row["round"] == "1"
        assert row["shown"] == [seed.id for seed in prompts[row["prompt"]]]
        assert row["query"] is None or row["reply"].endswith(row["query"])
    assert rows == propose(ctx, app, None, prompts, 2, WRITING, "repeat_0/explore/round_1"), (
        "nothing is written twice"
    )


def proposal(number: int, query: str | None, malformed: str | None = None) -> dict:
    return {"id": f"q{number}", "prompt": 0, "query": query, "malformed": malformed, "mean_logp": -0.5} | {
        "reply": None if query is None else f"Problem: {query}"
    }


def kept(rows: list[dict]) -> list[str]:
    return [row["id"] for row in rows if row["dropped"] is None]


def test_what_is_not_new_is_dropped_with_reason_and_nearest(ctx, app):
    history = History(0.85)
    history.add_new([MUGS], ["seed"])
    rows = [
        proposal(0, PEARS),
        proposal(1, PEARS.replace("?", "")),
        proposal(2, MUGS),
        proposal(3, None, "empty"),
    ]
    told = sift(ctx, app, rows, [], history, History(), None, "round_0")
    assert kept(told) == ["q0"]
    assert [row["dropped"] for row in told] == [None, "near-duplicate", "near-duplicate", "malformed: empty"]
    assert [row.get("nearest") for row in told] == [None, "q0", "seed", None]
    assert told[1]["similarity"] == 1.0
    assert not any("dropped" in row for row in rows), "the rows that came are left as they were"
    later = [proposal(4, PEARS), proposal(5, "Ann has 2 cats. How many cats?")]
    told = sift(ctx, app, later, [], history, History(), None, "round_1")
    assert kept(told) == ["q5"]
    assert told[0]["nearest"] == "q0", "against earlier rounds too"


def test_what_is_near_a_test_question_is_dropped(ctx, app):
    held_out = History(0.85)
    held_out.add_new([PEARS], ["test-7"])
    rows = [proposal(0, PEARS.replace("?", "")), proposal(1, MUGS)]
    told = sift(ctx, app, rows, [], History(0.85), held_out, None, "round_0")
    assert kept(told) == ["q1"]
    assert (told[0]["dropped"], told[0]["nearest"]) == ("near a test question", "test-7")


def test_meaning_counts_beside_words(ctx, app, teacher):
    texts = [example.question for example in app.task.load("train", None, 0)[:40]]
    history = History(1.0, 0.95, teacher.embed, texts)
    rows = [proposal(0, PEARS), proposal(1, PEARS.replace("on a table", "on the table"))]
    told = sift(ctx, app, rows, [], history, History(), None, "round_0")
    assert kept(told) == ["q0"]
    assert (told[1]["dropped"], told[1]["nearest"]) == ("near-duplicate in meaning", "q0")


def test_word_salad_is_dropped_as_unlikely(ctx, app, teacher):
    prompts = exploration_prompts(app.task.load("train", None, 0)[:40], 3, 20, 0)
    written = propose(ctx, app, lambda: teacher, prompts, 2, WRITING, "round_0")
    fluency = Fluency.of(lambda: teacher, written, 4.0)
    assert kept(sift(ctx, app, written, prompts, History(1.0), History(), fluency, "round_0"))
    salad = " ".join(np.random.default_rng(0).permutation(f"{PEARS} {MUGS}".split()))
    rows = [proposal(0, PEARS), proposal(1, salad)]
    told = sift(ctx, app, rows, prompts, History(), History(), fluency, "round_1")
    assert kept(told) == ["q0"]
    assert told[1]["dropped"] == "unlikely text"
    assert told[1]["warm_up_logp"] < fluency.floor < told[0]["warm_up_logp"]


def test_the_guard_can_be_off_and_needs_something_to_go_by():
    rows = [proposal(0, PEARS), proposal(1, MUGS)]
    assert Fluency.of(None, rows, 0.0) is None
    assert Fluency.of(None, [proposal(2, None, "empty")], 4.0) is None
    assert Fluency.of(None, rows, 4.0).floor == -0.5


def test_queries_are_preferred_not_answers(app, teacher):
    """Chosen and rejected are what the proposer wrote, under the prompt it wrote them for."""
    shown = tuple(app.task.load("train", None, 0)[:3])
    pair = _preference(teacher, app, shown, f"Problem: {PEARS}", f"Problem: {MUGS}")
    decode = teacher.tokenizer.decode
    for seed in shown:
        assert seed.question in decode(pair.prompt)
    for tokens, query in ((pair.chosen, PEARS), (pair.rejected, MUGS)):
        assert tokens[-1] in teacher.tokenizer.eos_ids
        assert decode(tokens[:-1]) == f"Problem: {query}"
    assert list(pair.prompt) == teacher.tokenizer.encode_prompt(app.prompt(shown))
