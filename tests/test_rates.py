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
    assert rates.expected(KEY, {"train": 300, "other": 1}) == pytest.approx(30 + 20 + 2 + 5)


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
    told = rates.told(KEY, {"train": 100})
    assert told == "at most about 5 min, as the last run of these models took here, and did much less"
    assert rates.expected(KEY, {"train": 100}) is None  # nothing to count down from
    rates.learn(KEY, [{"stage": "train", "seconds": 100.0}], {"train": 100}, 100)
    rates.learn(KEY, [{"stage": "train", "seconds": 30.0}], {"train": 10}, 30)  # mostly compiling
    assert rates.told(KEY, {"train": 100}) == "about 2 min, as the last run of these models took here"


def test_a_small_run_teaches_nothing_of_what_was_measured_on_another_machine(capsys):
    key = next(key for key in rates._kept(rates.SHIPPED) if '"llm2llm"' in key)
    units = rates._kept(rates.SHIPPED)[key]["units"]
    before = rates.told(key, units)
    rates.learn(key, [{"stage": "teach", "seconds": 90.0}], {"teach": 48, "other": 1}, 120)
    assert rates.told(key, units) == before


def test_other_models_and_methods_are_unknown():
    rates.learn(KEY, [{"stage": "train", "seconds": 1.0}], {"train": 1, "other": 1}, 1)
    assert rates.expected(rates.key_of("m", IDENTITY | {"rounds": 9}), {"train": 2}) == pytest.approx(2)
    for other in (rates.key_of("n", IDENTITY), rates.key_of("m", IDENTITY | {"models": {"student": "abd"}}), None):
        assert rates.told(other, {"train": 1}).startswith("unknown: no run of these models")


def test_a_run_with_one_of_the_models_tells_roughly():
    """Of other data or lengths, or another teacher: the one with the most models in common."""
    rates.learn(KEY, [{"stage": "train", "seconds": 100.0}], {"train": 10}, 100)
    both = rates.key_of("m", {"models": {"student": "abc", "teacher": "t"}, "task": "t"})
    rates.learn(both, [{"stage": "train", "seconds": 50.0}], {"train": 10}, 50)
    for models, seconds in (({"student": "abc"}, 100), ({"student": "abc", "teacher": "t"}, 50)):
        key = rates.key_of("m", {"models": models, "task": "another"})
        assert rates.told(key, {"train": 10}).startswith(("about 2 min", "about 50 s")[seconds == 50])
        assert "roughly" in rates.told(key, {"train": 10})
        assert rates.expected(key, {"train": 10}) is None


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
