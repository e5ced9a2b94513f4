"""Where a run stands, from its folder alone."""

import fcntl
import json
import re

import pytest

from common.errors import UserError
from common.results.conclusion import Conclusion, conclude
from common.results.report import Report
from common.results.rundir import RunDir
from common.results.status import main, status


@pytest.fixture
def begun(tmp_path):
    """A run that is open, has graded answers and is in the middle of others."""
    with RunDir.open(tmp_path / "run", "llm2llm", {"rounds": 2}) as run:
        with run.timed("train llm2llm"):
            run.metrics("repeat_0/llm2llm/round_1").log(4, loss=0.5)
        for stage in ("repeat_0/base/choice/arc", "repeat_0/round_1/random/choice/arc", "models/0_a/choice/arc"):
            with run.timed(stage):
                pass
        graded = [{"correct": True}, {"correct": False}]
        run.collect("repeat_0/llm2llm/round_0/seeds.jsonl", lambda done: [graded])
        run.journal("repeat_0/llm2llm/round_1/dev.jsonl.part").append(graded)
        yield run


def test_a_run_at_work_says_its_place_figures_and_times(begun):
    before = {file: file.stat().st_mtime_ns for file in begun.path.rglob("*")}
    said = "\n".join(status(begun.path))
    assert ": llm2llm, at work" in said
    assert "last         repeat 1 · llm2llm · round 1 · dev.jsonl, 2 rows so far" in said
    assert "figure       repeat 1 · llm2llm · round 0 · seeds.jsonl: 50.0% right" in said
    assert "update       5 of repeat 1 · llm2llm · round 1, loss 0.5" in said
    assert re.search(r"train llm2llm \d+ s", said)
    assert len(re.findall(r"[ ,]choice/arc \d+ s", said)) == 1, "of all repeats, arms and models together"
    assert {file: file.stat().st_mtime_ns for file in begun.path.rglob("*")} == before


def test_a_run_that_nobody_works_on_and_one_that_is_finished(begun):
    begun.close()
    assert "not finished, nobody is at work on it" in status(begun.path)[0]
    (begun.path / "adapter").mkdir()
    (begun.path / "adapter/a").write_text("")
    products = {"proposer adapter": "adapter"}
    conclude(begun, Conclusion({"status": "complete"}, "", Report("T"), ["few"], "Shown: x.", products))
    said = status(begun.path)
    assert said[0].endswith("llm2llm, finished")
    told = "verdict      Shown: x. To be read with 1 warning."
    assert {"warning      few", told, f"proposer adapter  {begun.path}/adapter"} <= {*said}
    (begun.path / "report.html").unlink()
    assert "some of its files are gone" in "\n".join(status(begun.path))


def test_damaged_files_do_no_harm(begun):
    """A row that was cut, and a summary that is none."""
    for name in ("timing.jsonl", "metrics.jsonl", "repeat_0/llm2llm/round_0/seeds.jsonl"):
        with (begun.path / name).open("ab") as file:
            file.write(b'{"stage": "x\xff')
    (begun.path / "summary.json").write_text("[1")
    assert "50.0% right" in "\n".join(status(begun.path))


@pytest.mark.parametrize("text", [None, "", "[]", "{}", json.dumps({"model_type": "llama"}), "\xff"])
def test_a_foreign_folder_is_one_clear_line(text, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"holds no seedloop run \(its config.json is missing") as raised:
        status(tmp_path)
    assert "\n" not in str(raised.value)


def test_asking_takes_no_lock_that_stays(begun):
    begun.close()
    status(begun.path)
    with (begun.path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_run_in_a_store_is_told_from_the_copy_on_this_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"file://{tmp_path / 'away'}"
    with pytest.raises(UserError, match=f"^this machine has no copy of a run at {url}: "):
        main([url])
    with RunDir.open(url, "llm2llm", {"rounds": 2}):
        main([f"{url}/"])
    assert ": llm2llm, at work" in capsys.readouterr().out
