"""What a finished run says, in the terminal, on the page and in summary.json."""

import dataclasses
import json
import xml.etree.ElementTree

import pytest

from common.experiment import carry_out
from common.results.conclusion import (
    Conclusion,
    arm_table,
    by_round,
    checked,
    coarse,
    conclude,
    counted,
    finished,
    flat,
    gain_cell,
    lost,
    mean_cell,
    points,
    verdict,
)
from common.results.estimate import ArmResult, Estimate, Gain, as_json
from common.results.files import read_json
from common.results.report import Report, figures
from common.results.rundir import RunDir

SHOWN = Gain(value=0.042, ci95=(0.01, 0.074), bootstrap95=None)


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (SHOWN, "Shown: a is ahead of b by +4.2 points, 95% interval over repeats [+1.0, +7.4]."),
        (Gain(value=-0.02, ci95=(-0.03, -0.01), bootstrap95=None), "Shown: a is behind b"),
        (Gain(value=0.02, ci95=(-0.01, 0.05), bootstrap95=None), "Not shown: a difference of a from b"),
        (
            Gain(value=0.02, ci95=None, bootstrap95=(0.01, 0.03)),
            "Within this one training (3 repeats would tell of other random seeds), shown: a is ahead of "
            "b by +2.0 points, 95% interval over questions [+1.0, +3.0].",
        ),
        (
            Gain(value=0.02, ci95=None, bootstrap95=None),
            "other random seeds), not shown: a difference of a from b, +2.0 points without an interval.",
        ),
    ],
)
def test_a_verdict_says_no_more_than_its_interval(gain, words):
    """An interval that contains 0 shows nothing, and one training says nothing about other seeds."""
    assert words in verdict([("a", "b", gain)])


def test_of_data_alone_no_training_is_spoken():
    few = Gain(value=2.0, ci95=None, bootstrap95=None, items=3)
    assert verdict([("a", "b", few)], "words", 1, over="prompts", items="prompts") == (
        "Not shown: a difference of a from b, +2.0 words, as 3 prompts are too few to tell."
    )


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (Gain(value=1.0, ci95=None, bootstrap95=(0.9, 1.0), items=1), "as 1 question is too few to tell."),
        (Gain(value=1.0, ci95=(0.9, 1.0), bootstrap95=None, items=19), "as 19 questions are too few to tell."),
        (
            Gain(value=-1.0, ci95=(-1.0, -1.0), bootstrap95=None),
            "as an interval without any width proves nothing.",
        ),
    ],
)
def test_few_items_or_no_width_show_nothing(gain, words):
    said = verdict([("a", "b", gain)])
    assert said is not None
    assert f"ot shown: a difference of a from b, {100 * gain.value:+.1f} points, {words}" in said
    assert not lost(gain)
    enough = dataclasses.replace(gain, items=20, ci95=(0.9, 1.0))
    assert (verdict([("a", "b", enough)]) or "").startswith("Shown: ")


def test_a_lead_that_is_the_same_in_all_repeats_says_what_its_interval_is_over():
    alike = Gain(value=1.0, ci95=(0.8, 1.0), bootstrap95=(0.8, 1.0), items=40)
    assert "95% interval over repeats and questions [+80.0, +100.0]" in (verdict([("a", "b", alike)]) or "")


def test_a_small_test_says_how_exactly_it_tells_a_share():
    """Half of the widest interval of a binomial share: what scipy's is, but for its approximation."""
    from scipy.stats import binom

    assert coarse(385, "test question") == []
    (line,) = coarse(100, "test question")
    assert line == (
        "only 100 test questions, which tell a share of right answers to within 9.8 points (95%): 385 would tell "
        "it to within 5"
    )
    low, high = binom.interval(0.95, 100, 0.5)
    assert (high - low) / 2 == pytest.approx(9.8, abs=0.5)


def test_label_noise_stands_beside_the_share_that_could_be_checked():
    assert checked(40, 10, 2) == [10, 25.0, 2, 20.0]
    assert checked(40, 0, 0) == [0, 0.0, 0, None]


def test_one_is_told_in_the_singular():
    assert [counted(n, "round") for n in (1, 0, 2, 1.0, 0.5)] == [
        "1 round",
        "0 rounds",
        "2 rounds",
        "1 round",
        "0.5 rounds",
    ]


def test_a_loss_is_an_interval_below_0():
    assert lost(Estimate(value=-0.02, ci95=(-0.03, -0.01)))
    assert lost(Gain(value=-0.02, ci95=None, bootstrap95=(-0.03, -0.01)))
    for interval in (None, (-0.03, 0.01), (0.01, 0.02)):
        assert not lost(Estimate(value=-0.02, ci95=interval))


def test_no_verdict_on_what_is_not_defined():
    assert verdict([("a", "b", Estimate(value=None, ci95=None))]) is None


def test_a_verdict_on_a_score_speaks_of_more_and_less_in_its_unit():
    """Where more is not better, with the decimals that the score asks for."""
    gain = Estimate(value=-0.0123, ci95=(-0.02, -0.0046))
    said = verdict([("a", "b", gain)], "ttr", 1, decimals=3, ways=("above", "below"))
    assert said == "Shown: a is below b by -0.012 ttr, 95% interval over repeats [-0.020, -0.005]."


def test_a_verdict_on_several_says_of_each_whether_it_is_shown():
    """In one sentence, what is shown first; of one training with every interval over questions."""
    open_ = Gain(value=0.02, ci95=(-0.01, 0.05), bootstrap95=None)
    said = verdict([("a", "c", open_), ("a", "b", SHOWN), ("a", "d", SHOWN)])
    assert said is not None
    assert said.startswith("Shown: a is ahead of b by +4.2 points")
    assert "; a is ahead of d by +4.2 points [+1.0, +7.4]; " in said
    # What the intervals are is said once.
    assert said.endswith("; not shown: a difference of a from c, +2.0 points, as [-1.0, +5.0] contains 0.")
    assert verdict([("a", "c", open_)]) == (
        "Not shown: a difference of a from c, +2.0 points, as the 95% interval over repeats [-1.0, +5.0] contains "
        "0."
    )
    one = [Gain(value=0.02, ci95=None, bootstrap95=(low, 0.03)) for low in (-0.01, 0.01)]
    assert verdict([("a", "b", one[0]), ("a", "c", one[1])]) == (
        "Within this one training (3 repeats would tell of other random seeds), shown: a is ahead of c by "
        "+2.0 points, 95% interval over questions [+1.0, +3.0]; not shown: a difference of a from b, +2.0 points, "
        "as [-1.0, +3.0] contains 0."
    )


def test_arms_that_are_all_at_nothing_are_a_warning():
    arm = lambda value: ArmResult(metric="accuracy", value=value, ci95=None)
    assert "every arm is at 0%" in flat({"a": arm(0.0), "b": arm(0.0)})[0]
    assert "every arm is at 50%" in flat(dict.fromkeys("abc", arm(0.5)))[0]  # two may meet by chance
    assert not flat({"a": arm(0.0), "b": arm(0.1)}) + flat({"a": arm(0.5), "b": arm(0.5)}) + flat({"a": arm(0.0)})


def test_a_run_is_finished_when_all_of_its_files_are_there(tmp_path):
    """A file that is gone, an empty folder or a damaged summary mean that there is something left to do."""
    with RunDir.open(tmp_path, "m", {}) as run:
        conclude(run, Conclusion({"status": "complete"}, "a table", Report("A title"), products={"data": "d"}))
    assert finished(tmp_path) is None
    (tmp_path / "d").mkdir()
    assert finished(tmp_path) is None
    (tmp_path / "d/rows").write_text("1")
    whole = read_json(tmp_path / "summary.json")
    assert finished(tmp_path) == whole
    for damage in ({"files": 1.5}, {"files": {"data": 1}}, {"warnings": "none"}, {"verdict": None}):
        (tmp_path / "summary.json").write_text(json.dumps(whole | damage))
        assert finished(tmp_path) is None
    (tmp_path / "summary.json").write_text("[")
    assert finished(tmp_path) is None


@pytest.mark.parametrize("place", ["report.html", "d/rows"])
def test_an_output_that_was_emptied_is_made_again(place, tmp_path, capsys):
    """Not told as finished: what is there is nothing."""

    def work(run, ready):
        run.once_folder("d", lambda folder: (folder / "rows").write_text("1"))
        return Conclusion({"status": "complete"}, "a table", Report("A title"), products={"data": "d"})

    made = lambda: carry_out("m", str(tmp_path / "run"), {"models": {}}, lambda: None, work)
    made()
    whole = (tmp_path / "run" / place).read_bytes()
    capsys.readouterr()
    made()
    assert "finished already" in capsys.readouterr().out
    (tmp_path / "run" / place).write_bytes(b"")
    made()
    assert "is not as it was made: it is made again" in capsys.readouterr().err
    assert (tmp_path / "run" / place).read_bytes() == whole


def test_the_page_shows_how_long_it_took_and_is_the_same_for_the_same_run(tmp_path):
    """The times are in a picture beside it, which takes on the colours of a dark page."""
    pages = []
    for seconds in (1.5, 600.0):
        folder = tmp_path / str(seconds)
        with RunDir.open(folder, "m", {}) as run:
            rows = [{"stage": f"repeat_{i}/a/train", "seconds": seconds, "compiling": 0.5} for i in range(2)]
            run.journal("timing.jsonl").append([*rows, {"stage": "<b>&", "seconds": 1}])
            conclude(run, Conclusion({"status": "complete"}, "a table", Report("A title")))
        pages.append((folder / "report.html").read_text())
        drawing = xml.etree.ElementTree.parse(folder / "timing.svg").getroot()
        texts = [text.strip() for text in drawing.itertext()]
        assert {"train", "<b>&", f"seconds, {2 * seconds + 1:.0f} in all"} <= {*texts}
        assert "prefers-color-scheme: dark" in "".join(texts)
        assert not figures(folder)  # which a notebook shows, without what lies beside the page
    assert pages[0] == pages[1]
    assert '<img class="chart" src="timing.svg" alt=' in pages[0]
    assert "img-src 'self' file:\"" in pages[0]


def test_defaults_are_left_out_of_json_and_intervals_are_not():
    """An interval that is not there is stored as null; figures without repeats have no list of them."""
    assert as_json({"x": [Estimate(value=1.0, ci95=None)]}) == {"x": [{"value": 1.0, "ci95": None}]}
    assert as_json(SHOWN) == {"value": 0.042, "ci95": [0.01, 0.074], "bootstrap95": None}


def test_verdict_and_warnings_stand_in_all_three_places(tmp_path, capsys):
    """A warning holds a model's name, so it is escaped on the page."""
    page = Report("A title")
    page.add_table("Arms", ["arm"], [["a"]])
    with RunDir.open(tmp_path / "run", "m", {}) as run:
        told = conclude(run, Conclusion({"schema": 1}, "a table", page, ["few <b>"], "Shown: x.", {"data": "d"}))
    stored = read_json(tmp_path / "run/summary.json")
    files = {"report": "report.html", "figures": "summary.json", "data": "d"}
    said = {"verdict": "Shown: x. To be read with 1 warning.", "warnings": ["few <b>"], "files": files}
    assert stored == told == {"schema": 1} | said
    html = (tmp_path / "run/report.html").read_text()
    assert "few &lt;b&gt;" in html
    assert html.index("Shown: x.") < html.index("Arms")
    printed = capsys.readouterr().out
    assert "warning: few <b>" in printed
    assert f"data: {tmp_path / 'run/d'}" in printed


def test_the_arm_table_has_a_row_an_arm():
    arms = {name: ArmResult(metric="accuracy", value=0.5, ci95=None, per_repeat=(0.5, 0.6)) for name in "ab"}
    headers, rows = arm_table(
        arms, [("ahead", gain_cell({"a - b": SHOWN}, "a")), ("mean", mean_cell("per_repeat"))]
    )
    assert headers == ["arm", "ahead", "mean"]
    assert rows == [["a", "", 1], ["b", "+4.2 [+1.0, +7.4]", 1]]
    assert points(Gain(value=0.1, ci95=None, bootstrap95=(0.0, 0.2))) == "+10.0 [+0.0, +20.0]"


def test_rounds_are_means_over_repeats_and_gaps_stay_gaps():
    entries = [{"round": 0, "x": 1.0}, {"round": 1, "x": None}, {"round": 0, "x": 2.0}, {"round": 1, "x": 3.0}]
    assert by_round(entries, lambda entry: entry["x"]) == ([0, 1], [1.5, None])
