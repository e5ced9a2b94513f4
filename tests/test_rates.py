"""How long a plan says that a run takes, and what a hosted model may cost."""

import pytest

import run
from common import rates

IDENTITY = {"models": {"student": "abc"}, "task": "t", "rounds": 3}
KEY = rates.key_of("m", IDENTITY)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "seedloop" / rates.FILE


def test_a_run_twice_as_long_takes_twice_the_time():
    timing = [{"stage": "train a", "seconds": 30.0}, {"stage": "train b", "seconds": 10.0}]
    timing += [{"stage": "teach a", "seconds": 20.0}, {"stage": "write", "seconds": 5.0}]
    rates.learn(KEY, timing, {"train": 100, "teach": 50, "other": 1}, 65)
    assert rates.expected(KEY, {"train": 200, "teach": 100, "other": 2}) == pytest.approx(130)
    assert rates.told(KEY, {"train": 200, "teach": 100, "other": 2}).startswith("about 2 min, as the last run")
    assert rates.told(KEY, {"train": 10, "teach": 0, "other": 1}).startswith("about 9 s")


def test_compiling_loading_and_writing_do_not_grow_with_the_work():
    timing = [{"stage": "train", "seconds": 30.0, "compiling": 20.0}, {"stage": "write", "seconds": 2.0}]
    rates.learn(KEY, timing, {"train": 100, "other": 1}, 37)
    assert rates.expected(KEY, {"train": 1000, "other": 1}) == pytest.approx(100 + 20 + 2 + 5)


def test_a_stage_counts_for_the_longest_name_within_its_own():
    timing = [
        {"stage": "repeat_0/train the proposer", "seconds": 30.0},
        {"stage": "repeat_0/propose", "seconds": 5.0},
    ]
    rates.learn(KEY, timing, {"propose": 10, "train the proposer": 10}, 35)
    assert rates.expected(KEY, {"propose": 20, "train the proposer": 10}) == pytest.approx(40)


def test_the_default_runs_are_known_before_any_has_ended(monkeypatch, capsys):
    for method in ("llm2llm", "reversegen", "active-inheritance", "profile"):
        run.main([method, "--dry-run", "--run-dir", "no such folder"])
        assert "on two cores of a server, where it was measured; no such run" in " ".join(
            capsys.readouterr().out.split()
        )


def test_a_small_run_does_not_replace_a_large_one_and_one_of_another_size_is_called_so():
    rates.learn(KEY, [{"stage": "train", "seconds": 30.0}], {"train": 10}, 30)
    assert rates.told(KEY, {"train": 100}).endswith("took here, which was of quite another size")
    rates.learn(KEY, [{"stage": "train", "seconds": 100.0}], {"train": 100}, 100)
    rates.learn(KEY, [{"stage": "train", "seconds": 30.0}], {"train": 10}, 30)  # mostly compiling
    assert rates.told(KEY, {"train": 100}) == "about 2 min, as the last run of these models took here"


def test_other_models_lengths_and_methods_are_unknown():
    rates.learn(KEY, [{"stage": "train", "seconds": 1.0}], {"train": 1, "other": 1}, 1)
    assert rates.expected(rates.key_of("m", IDENTITY | {"rounds": 9}), {"train": 2}) == pytest.approx(2)
    for other in (
        rates.key_of("n", IDENTITY),
        rates.key_of("m", IDENTITY | {"models": {"student": "abd"}}),
        rates.key_of("m", IDENTITY | {"max_length": 64}),
        None,
    ):
        assert rates.told(other, {"train": 1}).startswith("unknown: no run of these models")


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_a_damaged_file_is_as_none(text, cache):
    cache.parent.mkdir()
    cache.write_text(text)
    assert rates.expected(KEY, {"train": 1}) is None
    rates.learn(KEY, [{"stage": "train", "seconds": 3.0}], {"train": 1}, 3)
    assert rates.expected(KEY, {"train": 1}) == pytest.approx(3)


def test_a_cache_that_cannot_be_written_does_no_harm(cache):
    cache.parent.write_text("a file")
    rates.learn(KEY, [{"stage": "train", "seconds": 3.0}], {"train": 1}, 3)
    assert rates.expected(KEY, {"train": 1}) is None


def test_money_is_told_where_there_is_a_price():
    assert rates.cost(1000, 500, 100, "0.15,0.6").endswith("100,000 received, 0.14 USD")
    assert rates.cost(1000, 500, 100, None).endswith("money unknown without a price")
