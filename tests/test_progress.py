"""What a run tells of itself: one line where somebody looks, a line a stage elsewhere."""

import io
import sys
import threading
import time
import types

import pytest

from common import progress
from common.progress import Bar, place_of, progress_bar, running, stage, tell


class Screen(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when it is told to."""
    now = types.SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr("common.progress.time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr("common.progress._drawn_at", 0.0)
    return now


def work(clock, monkeypatch, terminal=False, kernel=False):
    """What a run of two repeats leaves on such a screen."""
    screen = Screen(terminal)
    shell = types.SimpleNamespace(config={"IPKernelApp": {}} if kernel else {})
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    with running(repeats=2):
        for repeat in range(2):
            with (
                progress.at(f"repeat_{repeat}/llm2llm/round_1/student"),
                stage("train llm2llm"),
                progress_bar(total=4, desc="x", unit="update") as bar,
            ):
                for _ in range(4):
                    clock.seconds += 10
                    bar.update()
            with stage("evaluate llm2llm"):
                tell("dev", "71.3%")
    return screen.getvalue()


def test_a_pipe_gets_a_line_a_stage_with_time_and_figures(clock, monkeypatch):
    assert work(clock, monkeypatch).splitlines() == [
        "[0:40] repeat 1/2 · llm2llm · round 1 · train: 40.0 s",
        "[0:40] repeat 1/2 · llm2llm · round 1 · evaluate: 0.0 s; dev 71.3%",
        "[1:20] repeat 2/2 · llm2llm · round 1 · train: 40.0 s",
        "[1:20] repeat 2/2 · llm2llm · round 1 · evaluate: 0.0 s; dev 71.3%",
    ]


def test_a_pipe_is_told_what_is_left_where_that_is_known(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", Screen(False))
    with running(repeats=1, expected=100.0):
        for _ in range(2):
            with stage("train"):
                clock.seconds += 60
    assert sys.stderr.getvalue().splitlines() == [
        "[1:00, about 0:40 left of all] train: 60.0 s",
        "[2:00] train: 60.0 s",
    ]


def test_a_line_names_the_place_of_its_own_work(clock, monkeypatch):
    """A model is trained, or read back, when it is first asked to write: that lies elsewhere, and is over before
    the writing is. What nothing is stored of is where the last artifact was."""
    monkeypatch.setattr("sys.stderr", Screen(False))

    def spent(name):
        with stage(name):
            clock.seconds += 2

    with running(repeats=1):
        with stage("propose"), progress.at("repeat_0/explore/round_1/proposals.jsonl"):
            with progress.at("repeat_0/explore/round_0/proposer"):
                spent("train the proposer")
            clock.seconds += 5
        spent("deduplicate")
    assert sys.stderr.getvalue().splitlines() == [
        "[0:02] repeat 1 · explore · round 0 · train the proposer: 2.0 s",
        "[0:07] repeat 1 · explore · round 1 · propose: 5.0 s",
        "[0:09] repeat 1 · explore · round 1 · deduplicate: 2.0 s",
    ]


def test_a_figure_stands_in_the_lines_of_its_own_arm_alone(clock, monkeypatch):
    """And one that is told between two stages has a line of its own, where nobody looks."""
    monkeypatch.setattr("sys.stderr", Screen(False))
    with running(repeats=1):
        with progress.at("repeat_0/base/test.jsonl"):
            tell("base mtld", "28.7")
        assert progress._line().endswith("base mtld 28.7")
        with progress.at("repeat_0/first/student"), stage("train"):
            assert "28.7" not in progress._line()
            clock.seconds += 2
    assert sys.stderr.getvalue().splitlines() == [
        "[0:00] repeat 1 · base · base mtld 28.7",
        "[0:02] repeat 1 · first · train: 2.0 s",
    ]


def test_a_terminal_gets_one_line_that_is_gone_at_the_end(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    drawn = work(clock, monkeypatch, terminal=True)
    assert "\n" not in drawn
    lines = [line.rstrip() for line in drawn.split("\r")]
    # The first update may have been compiled, so a rest is told from the second on.
    assert "repeat 1/2 · llm2llm · round 1 · train 1/4 updates · 0:10" in lines
    assert "repeat 1/2 · llm2llm · round 1 · train 3/4 updates, 0:10 left · 0:30" in lines
    # Figures of another repeat, or arm, are not this one's.
    assert any(line.endswith("train 3/4 updates, 0:10 left · 1:10, about 0:10 left of all") for line in lines)
    assert lines[-1] == ""


def test_a_narrow_terminal_gets_no_second_line(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, work(clock, monkeypatch, terminal=True).split("\r"))) < 40


def test_jupyter_gets_both(clock, monkeypatch):
    """There standard error is no terminal, yet somebody looks."""
    drawn = work(clock, monkeypatch, kernel=True)
    assert drawn.count("\n") == 4
    assert "3/4 updates" in drawn


def test_nothing_is_said_rather_than_nonsense(clock):
    """A first update that took long tells nothing of the others, nor do repeats that were only read back."""
    bar = Bar(None, 20, 0, "x", "update")
    clock.seconds += 60
    bar.update()
    assert bar.left() is None
    clock.seconds += 0.1
    bar.update(2)
    assert bar.left() is None, "measured for too short a time"
    clock.seconds += 1.9
    assert bar.left() == pytest.approx(17)
    assert Bar(None, 100, 5, "x", "update").left() is None
    with running(repeats=1, expected=60):
        clock.seconds += 20
        assert progress._run_left() == pytest.approx(40)
        clock.seconds += 50
        assert progress._run_left() is None, "it takes longer than was expected"
    with running(repeats=3):
        for name in ("repeat_0/a/x", "repeat_1/a/x"):
            with progress.at(name):
                pass
        clock.seconds += 30
        assert progress._run_left() is None


def test_compiling_is_said_and_counted_apart(clock, monkeypatch):
    """It is no part of the speed that a rest is told from."""
    screen = Screen(True)
    monkeypatch.setattr("sys.stderr", screen)
    with running(1), stage("train"), progress_bar(range(3), total=10, unit="update") as bar:
        bar.update()
        progress._on_event("/jax/compilation_cache/compile_requests_use_cache")
        assert "compiling …" in screen.getvalue().split("\r")[-1]
        clock.seconds += 30
        progress._on_duration("/jax/core/compile/backend_compile_duration", 30.0)
        clock.seconds += 4
        bar.update(2)
        assert bar.left() == pytest.approx(14)


def test_of_programs_that_are_compiled_side_by_side_one_counts(monkeypatch):
    """Or a stage would have compiled for longer than it took."""
    monkeypatch.setattr("sys.stderr", Screen(True))
    start, end = "/jax/compilation_cache/compile_requests_use_cache", "/jax/core/compile/backend_compile_duration"
    before = progress.compiled()
    progress._on_event(start)
    beside = threading.Thread(target=lambda: (progress._on_event(start), progress._on_duration(end, 4.0)))
    beside.start()
    beside.join()
    assert progress.compiling()
    progress._on_duration(end, 5.0)
    assert not progress.compiling()
    assert progress.compiled() - before == pytest.approx(5)


def test_jax_tells_when_it_compiles(clock, monkeypatch):
    import jax

    monkeypatch.setattr("sys.stderr", Screen(True))
    before = progress._compiled
    with running(1), stage("train"):
        jax.jit(lambda x: x * 3.25 + 1)(jax.numpy.ones(7))
    assert progress._compiled > before
    assert not progress._compiling


def test_artifacts_name_their_place():
    assert place_of("repeat_0/explore/round_2/student", 3) == ("repeat 1/3", "explore", "round 2")
    assert place_of("models/0_embedded/text.jsonl") == ("0_embedded",)
    assert place_of("repeat_0/samples/source_1.jsonl") == ("repeat 1",)
    assert place_of("summary.json") == ()


def test_a_silence_before_the_run_is_explained_and_a_short_one_is_not(monkeypatch):
    monkeypatch.setattr(progress, "WONDER", 0.05)
    screen = Screen(terminal=False)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.patience("reading"):
        pass
    assert screen.getvalue() == ""
    with progress.patience("reading"):
        time.sleep(0.3)
    assert screen.getvalue() == "reading\n"
