"""What may be bought and what was: budgets and the store of paid replies."""

import contextlib
import json
import pathlib
import sqlite3
import subprocess
import sys

import pytest

from active_inheritance.config import Config as Active
from active_inheritance.profile.config import Config as Profile
from common.backends.budget import Budget, Spent
from common.backends.replies import Replies, Reply, unbought
from common.errors import UserError
from llm2llm.config import Config as LLM2LLM
from llm2llm.experiment import check_budget, load_data
from reversegen.config import Config as ReverseGen

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "price", "message"),
    [
        ("calls=0", None, "budget calls=0 must be above 0"),
        ("tokens=-5", None, "budget tokens=-5 must be above 0"),
        ("usd=nan", "1,1", "budget usd=nan must be above 0"),
        ("usd=2", None, r"budget usd=2\.0 needs a price"),
        ("usd=2", "0,0", r"budget usd=2\.0 needs a price"),
        ("usd=2", "1", "price '1': give US dollars"),
        ("usd=2", "1,-1", r"price 1\.0,-1\.0 must not be below 0"),
        ("euros=2", None, "budget 'euros=2': give calls=N, tokens=N, usd=X"),
        ("calls=1,calls=2", None, "each once at most"),
        ("", None, "budget '': give"),
        ("calls=1.5", None, "calls must be a whole number, not '1.5'"),
        ("usd=much", "1,1", "usd must be a number, not 'much'"),
    ],
)
def test_nonsense_for_a_budget_is_one_line(text, price, message):
    with pytest.raises(UserError, match=message) as raised:
        Budget.parse(text, price)
    assert "\n" not in str(raised.value)


def test_shares_and_costs():
    budget = Budget.parse(" calls=10, tokens=2000, usd=3 ", price="0.15, 0.6")
    assert budget.share(4) == Budget(2, 500, 0.75, (0.15, 0.6))
    assert budget.cost(Spent(1, 1_000_000, 500_000)) == pytest.approx(0.45)
    with pytest.raises(UserError, match="calls=10 cannot be shared by 11"):
        budget.share(11)


def test_limits_that_are_exceeded_are_named():
    budget = Budget.parse("calls=2,tokens=100,usd=0.0001", price="1,2")
    assert budget.short(Spent(2, 40, 20)) == []
    assert budget.short(Spent(3, 40, 20)) == ["calls"]
    assert budget.short(Spent(1, 90, 20)) == ["tokens", "usd"]
    budget.check(Spent(2, 40, 20), "one reply")
    with pytest.raises(
        UserError, match="buys nothing: one reply may take a call and 110 tokens, which the tokens=100"
    ):
        Budget(tokens=100).check(Spent(1, 90, 20), "one reply")


@pytest.mark.parametrize(
    "config",
    [
        lambda: LLM2LLM(teacher="openai:m", budget="tokens=10", arms=("llm2llm",)),
        lambda: ReverseGen(task="math", labeler="openai:m", budget="tokens=8"),
        lambda: Active(source=("openai:m",), source_tokens=20, budget="tokens=20"),
        lambda: Profile(model=("a", "b"), prompts_file="embedded:stories", judge="openai:m", budget="tokens=8"),
    ],
)
def test_a_budget_that_covers_no_request_is_refused(config):
    """By the plan as well, wherever it is known."""

    def checked():
        settings = config().resolved()
        if isinstance(settings, LLM2LLM):  # what its prompts take is known with the data
            check_budget(settings, load_data(settings))

    with pytest.raises(UserError, match="budget buys nothing"):
        checked()


def test_a_warning_tells_which_limit_ended_a_budget_and_what_was_not_asked(tmp_path):
    assert unbought(tmp_path) == []  # nothing hosted
    with Replies(tmp_path / "replies.sqlite") as replies:
        replies.put("k", "a", Reply("x", "stop", None, 3, 4))
        replies.put("l", "b", Reply("x", "stop", None, 3, 4))
    assert unbought(tmp_path) == []
    record = {"id": "r", "attempts": 0, "error": "budget spent: usd"}
    refused = {"reason": "budget spent", "error": "budget spent: usd"}
    (tmp_path / "round_0").mkdir()
    (tmp_path / "round_0/teacher_1.jsonl").write_text(f"{json.dumps(record)}\n" * 3 + json.dumps(refused) + "\n")
    (line,) = unbought(tmp_path)
    assert line == (
        "the budget is spent: 3 requests were not made, for want of usd in the shares of --budget, after 2 paid "
        "calls and 14 tokens in all"
    )


def test_a_budget_loads_nothing_heavy():
    code = (
        "import sys, common.backends.budget, common.backends.endpoint; print({'jax', 'openai'} & set(sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"
    )


def test_replies_outlive_their_store(tmp_path):
    path = tmp_path / "replies.sqlite"
    reply = Reply("half a \ud800 pair\n", "stop", None, 3, 4)
    with Replies(path) as replies:
        assert replies.get("a") is None
        assert replies.spent("x") == Spent()
        replies.put("a", "x", reply)
        replies.put("b", "y", Reply(None, None, "no", 1, 0))
    with Replies(path) as replies:
        assert replies.get("a") == reply
        assert replies.spent("x") == Spent(1, 3, 4)
    assert [file.name for file in tmp_path.iterdir()] == ["replies.sqlite"]


def test_a_store_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(UserError, match="text is damaged"):
        Replies(tmp_path / "text")
    with pytest.raises(UserError, match="cannot use"):
        Replies(tmp_path / "nowhere" / "replies.sqlite")


def test_a_stored_reply_that_cannot_be_read_is_set_aside(tmp_path, caplog):
    """Of an earlier version, or damaged: it stays, is told of once, counts, and is bought again."""
    path, reply = tmp_path / "replies.sqlite", Reply("new", "stop", None, 1, 1)
    with Replies(path) as replies:
        for key in "ab":
            replies.put(key, "x", reply)
    for key, stored in (("a", '{"text": "old", "words": 3}'), ("b", '{"text": "ha')):
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE replies SET reply = ? WHERE key = ?", (stored, key))
    with Replies(path) as replies:
        assert replies.get("a") is None
        assert replies.get("b") is None
        replies.put("a", "x", reply)
        assert replies.get("a") == reply
        assert replies.spent("x").calls == 3
    assert [r.getMessage().count("bought again") for r in caplog.records] == [1]
