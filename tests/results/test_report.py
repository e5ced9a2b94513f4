"""The report page: nothing a model wrote gets out of its place, and the same calls give the same bytes."""

import html
import html.parser
import math
import re
import shutil
import subprocess
import sys

import pytest

from common.errors import UserError
from common.results.axes import ANY, COUNT, POINTS, SHARE, axis, marks
from common.results.charts import CLASSES, confusion, dots
from common.results.estimate import Estimate
from common.results.plots import (
    BAD,
    GOOD,
    INK,
    PALETTE,
    figure_svg,
    histogram_figure,
    line_figure,
    scatter_figure,
    share_figure,
    stacked_bar_figure,
)
from common.results.report import Report, figures
from common.results.tables import _width, table_cells, terminal_table, visible

EVIL = (
    "</p><script>alert('x')</script> \"q\" & <img src=x onerror=alert(1)> {{ 7 * 7 }} $x^ "
    "a\u202eb\x1b[31m\x00\ud800"
)
VOID = {"meta", "br", "img", "link"}
ARMS = {
    "base": Estimate(value=0.5, ci95=None),
    "ours": Estimate(value=0.7, ci95=(0.6, 0.8)),
    "none": Estimate(value=None, ci95=None),
}


class Page(html.parser.HTMLParser):
    """Elements, attributes and text of a page; fails when tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def build(text):
    report = Report(text, text)
    report.lead(text, [text, "second"])
    report.chapter(text)
    report.add_table(text, [text, "n"], [[text, 1], ["plain", None]], note=text, terms={text: text})
    report.add_figure(text, line_figure({text: ([0, 1], [0.5, 1.0])}, text, text))
    report.add_figure(text, histogram_figure({text: [0.0, 1.0, None], "_b": [math.nan]}, text))
    report.add_figure(text, scatter_figure({text: ([0, 1], [1, 2]), "_b": ([], [])}, text, text))
    report.add_figure(text, share_figure([text, "_b"], [30, 70], [50, 50], [text, text, text]))
    report.add_figure(text, stacked_bar_figure([text, "_b"], {text: [1, 2], "_c": [3, 4]}, text))
    report.add_chart(text, dots({text: ARMS["ours"], "_b": ARMS["none"]}, text, "lower", [text]))
    report.add_chart(text, confusion([(text, "b"), ("b", None), ("b", "b")], [text, "b"]))
    report.add_examples(text, [text, "b"], [[text, text]])
    report.add_origin(text, text, {text: text}, {"figures": "summary.json"})
    return report


def test_everything_written_by_others_is_escaped():
    text = build(EVIL).html()
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    shown = "".join(page.text)
    # title twice, subtitle, verdict, warning, chapter and its link; of the table 6, of figures and charts 7
    # captions, 2 of dots, 2 of confusion, of examples 4, of the origin 4
    assert shown.count(visible(EVIL)) == 32
    assert "{{ 7 * 7 }}" in shown
    assert "49" not in shown
    for hidden in "\u202e\x1b\x00\ud800":
        assert hidden not in text


def test_page_stands_alone():
    page = Page(build("plain").html())
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action"):
            assert value.startswith("#") or value == "summary.json"
        assert "http" not in (value or "") or name.startswith("xmlns")
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 2
    used = [value[1:] for name, value in page.attributes if name == "xlink:href"]
    used += [value[5:-1] for name, value in page.attributes if name == "clip-path"]
    assert used
    assert set(used) <= set(ids)


def test_same_calls_give_same_bytes(tmp_path):
    for name in "a", "b":
        build("same").write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_sections_keep_their_order_and_empty_ones_say_so():
    report = Report("t")
    report.add_examples("first", ["a"], [])
    report.add_table("second", ["a"], [])
    report.add_figure("third", line_figure({}, "x", "y"))
    page = report.html()
    assert page.index("first") < page.index("No examples.") < page.index("second") < page.index("No rows.")
    assert page.index("No rows.") < page.index("third")


def test_the_table_of_contents_leads_to_every_chapter():
    report = Report("t")
    for name in "first", "second":
        report.chapter(name)
    page = report.html()
    for number, name in enumerate(("first", "second"), start=1):
        assert f'<a href="#part-{number}">{name}</a>' in page
        assert f'<h2 id="part-{number}">{name}</h2>' in page


def test_a_chart_has_every_arm_with_its_interval():
    chart = Page(dots(ARMS, "accuracy, %", "higher", ["ours"], scale=100))
    text = " ".join(chart.text)
    for words in ("base 50.0 (no interval)", "ours 70.0 [60.0, 80.0]", "none not defined", "higher is better →"):
        assert words in text, words
    circles = [value for name, value in chart.attributes if name == "cx"]
    assert len(circles) == 2, "what is not defined has no dot"
    ends = [float(value[:-1]) for name, value in chart.attributes if name in ("x1", "x2")]
    assert 0 <= min(ends) <= max(ends) <= 100, "nothing lies beyond the drawing"


def test_a_dot_lies_where_its_value_is():
    """The axis runs from 50 to 80 here, from 2% to 98% of the width."""
    chart = Page(dots({"a": Estimate(value=0.65, ci95=(0.5, 0.8))}, "x", scale=100))
    assert [value for name, value in chart.attributes if name == "cx"] == ["50.00%"]
    whisker = [(dict(chart.attributes))]
    assert whisker
    assert "← lower is better" in dots(ARMS, "toxicity", "lower")
    assert "is better" not in dots(ARMS, "words")


@pytest.mark.parametrize("values", [[], [0.0], [3.0, 3.0], [-1e-9, 1e9], [1e-12, 2e-12]])
def test_an_axis_holds_any_values(values):
    rows = {str(i): Estimate(value=value, ci95=(value, value)) for i, value in enumerate(values)}
    chart = Page(dots(rows, "x", line=0.0))
    places = [float(value[:-1]) for name, value in chart.attributes if name in ("cx", "x1", "x2")]
    assert all(0 <= place <= 100 for place in places)


@pytest.mark.parametrize(
    ("values", "kind", "numbers"),
    [
        ([71.333, 71.333], SHARE, "66 68 70 72 74 76 78"),  # one answer of hundreds is no slope
        ([99.5, 99.9], SHARE, "90 92 94 96 98 100"),  # nothing is right more often than always
        ([50, 61.2], SHARE, "50.0 52.5 55.0 57.5 60.0 62.5"),
        ([-0.2, 0.3, 0], POINTS, "-6 -4 -2 0 2 4 6"),
        ([0, 3], COUNT, "0 1 2 3"),
        ([0], COUNT, "0 1"),
        ([12, 13], COUNT, "11 12 13 14"),
        ([60, 461], COUNT, "0 100 200 300 400 500"),
        ([0.671, 0.675], ANY, "0.62 0.64 0.66 0.68 0.70 0.72"),
        ([0, 0], ANY, "0.0 0.2 0.4 0.6 0.8 1.0"),
        ([2e9, 3e9], ANY, "2e+09 2.2e+09 2.4e+09 2.6e+09 2.8e+09 3e+09"),
    ],
)
def test_an_axis_has_round_marks_and_draws_no_small_difference_large(values, kind, numbers):
    found = axis(values, kind)
    assert " ".join(number for _, number in marks(*found)) == numbers
    assert found[0] <= min(values) <= max(values) <= found[1]


def test_a_plot_has_the_same_marks_and_counts_in_whole_numbers():
    drawn = line_figure({"a": ([0, 1], [71.333, 71.333])}, "round", "accuracy, %")
    assert [text.get_text() for text in drawn.axes[0].get_yticklabels()] == "66 68 70 72 74 76 78".split()
    bars = stacked_bar_figure(["a", "b"], {"kept": [1, 2]}).axes[0]
    assert all(float(place).is_integer() for place in [*bars.get_yticks()])
    assert all(float(place).is_integer() for place in drawn.axes[0].get_xticks())


def test_a_confusion_matrix_counts_every_answer():
    pairs = [("a", "a"), ("a", "b"), ("b", "b"), ("b", None), ("c", "else")]
    cells = re.findall(r"<td style[^>]*>(\d+)</td>", confusion(pairs, ["a", "b", "c"]))
    assert list(map(int, cells)) == [1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]
    many = [(f"class {i}", f"class {i}") for i in range(30)]
    table = confusion(many, [name for name, _ in many])
    assert table.count("<tr>") == 1 + CLASSES
    assert "18 classes are not shown" in table


def test_plots_take_the_colours_of_what_is_around_them():
    """No text of a fixed colour, no ground, and no green: it would say that a thing is good."""
    drawn = figure_svg(line_figure({str(i): ([0, 1], [i, i]) for i in range(7)}, "x", "y"), "f")
    drawn += figure_svg(stacked_bar_figure(["a"], {str(i): [1] for i in range(7)}), "g")
    assert "fill: currentColor" in drawn
    for colour in set(re.findall(r"#[0-9a-f]{6}\b", drawn.lower())) - {"#ffffff"}:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        assert colour.upper() in PALETTE, colour
        assert green <= max(red, blue) + 8, colour


def test_a_notebook_gets_the_charts_of_the_page(tmp_path):
    build("a <b>").write(tmp_path / "report.html")
    found = figures(tmp_path)
    assert list(found) == ["a <b>"] + [f"a <b> ({i})" for i in range(2, 8)]
    for piece in found.values():
        page = Page(piece)
        assert {"style", "h4"} < set(page.tags)
        assert {"svg", "table"} & set(page.tags)
        assert "b" not in page.tags
    with pytest.raises(UserError, match="finish the run first"):
        figures(tmp_path / "none")


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_no_page_is_wider_than_a_phone(tmp_path):
    """At 420 pixels nothing reaches beyond the edge; the page is in a frame whose document a script may ask."""
    report = build("a word " * 20)
    report.add_table("wide", [f"column {i}" for i in range(14)], [[f"value {i}" for i in range(14)]] * 3)
    report.add_chart("classes", confusion([(f"class number {i}", None) for i in range(12)], []))
    ask = "document.documentElement.scrollWidth"
    assert _asked(report, 420, ask, tmp_path) == "420"


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_no_table_hides_a_column_on_a_desk(tmp_path):
    """At 1400 pixels nine columns with intervals and long names fit into their box, and so do 17 of scores."""
    report = Report("t")
    headers = ["score", "base", "random", "selected", "selected - random", "relative", "selected - base"]
    headers += ["data: selected - random", "transfer"]
    row = ["corpus_compression_ratio", 1.513, 1.423, 1.516, "+0.093 [+0.005, +0.182]", "+6.6%"]
    report.add_table("transfer", headers, [[*row, "-24.0 [-718.66, +236.62]", "+0.0347", "2.69"]])
    names = ["corpus_compression_ratio", "sentence_length", "unique_tokens", "characters"] * 4
    report.add_table("correlations", ["", *names], [[name, *["-0.05"] * len(names)] for name in names])
    ask = "[...document.querySelectorAll('.scroll')].map(box => box.scrollWidth - box.clientWidth)"
    assert _asked(report, 1400, ask, tmp_path) == "0,0"


def _asked(report, width, ask, tmp_path):
    """What a script says of a page in a frame of a width; the page itself runs none."""
    sized = f'scrolling="no" style="width: {width}px; height: 900px; border: 0"'
    frame = f'<iframe {sized} srcdoc="{html.escape(report.html())}"></iframe>'
    # `document` is the frame's.
    said = f"document.title = (document => {ask})(frames[0].document)"
    (tmp_path / "frame.html").write_text(f'<title>none</title><body onload="{said}">{frame}</body>')
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    where = [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'frame.html'}"]
    dom = subprocess.run(["chromium", *flags, *where], capture_output=True, text=True, timeout=300).stdout
    return dom.partition("<title>")[2].partition("</title>")[0]


def test_an_interval_stays_in_one_line():
    report = Report("t")
    report.add_table("t", ["a"], [["+1.2 [-0.3, +2e-05]"], ["[a, b] of words"]])
    assert "+1.2 [-0.3,\u00a0+2e-05]" in report.html()
    assert "[a, b] of words" in report.html()


def test_a_name_keeps_its_colour_in_every_drawing_and_no_other_has_it():
    """In curves, distributions, points, bars and dots, wherever the name stands among the others."""
    known = {"ours": PALETTE[0], "theirs": PALETTE[1], "base": INK}
    drawn = [
        line_figure({"new": ([0], [0]), "ours": ([0], [1])}, "x", "y", known),
        histogram_figure({"new": [0.0, 1.0], "ours": [1.0, 2.0]}, "x", colours=known),
        scatter_figure({"new": ([0], [1]), "ours": ([1], [2])}, "x", "y", known),
        stacked_bar_figure(["a"], {"new": [1], "ours": [2]}, colours=known),
        share_figure(["a"], [1], [2], ["new", "ours", "x"], known),
    ]
    for figure in drawn:
        svg = figure_svg(figure, "f").lower()
        assert PALETTE[0].lower() in svg
        assert PALETTE[2].lower() in svg  # the first that is left
        assert PALETTE[1].lower() not in svg
    chart = dots(ARMS, "x", ours=["ours"], colours={"ours": PALETTE[1], "base": PALETTE[3]})
    assert f'fill="{PALETTE[1]}" stroke="{PALETTE[1]}"' in chart
    assert f'stroke="{PALETTE[3]}" stroke-width="2"' in chart
    assert PALETTE[0] not in chart
    assert "currentColor" in figure_svg(line_figure({"base": ([0, 1], [0, 1])}, "x", "y", known), "f")


def test_right_and_wrong_have_colours_of_their_own():
    chart = confusion([("a", "a"), ("a", "b"), ("b", "b")], ["a", "b"])
    assert not {GOOD, BAD} & set(PALETTE)
    shades = set(re.findall(r"rgba\((\d+, \d+, \d+)", chart))
    rgb = lambda colour: ", ".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    assert shades == {rgb(GOOD), rgb(BAD)}


def test_rows_of_another_length_are_refused():
    report = Report("t")
    with pytest.raises(ValueError, match="2 cells under 1"):
        report.add_table("t", ["a"], [[1, 2]])
    with pytest.raises(ValueError, match="1 texts under 2"):
        report.add_examples("t", ["a", "b"], [["x"]])


def test_visible_spells_out_what_hides():
    assert visible("a\u202eb\u2066\u200b\ufeff\u2028") == "a[U+202E]b[U+2066][U+200B][U+FEFF][U+2028]"
    assert visible("\x00\x1b\x7f\x85\ud800\r") == "[U+0000][U+001B][U+007F][U+0085][U+D800][U+000D]"
    kept = "tab\tnew\nline é 日本 العربية \U0001f469\u200d\U0001f467"
    assert visible(kept) == kept
    assert visible("a\r\nb") == "a\nb"


def test_cells():
    rows = [[None, 0.412, 56.1, 2e-5, True], [math.nan, 0.5, 48.0, 1 / 3, "x"], [3, 0.0, 7, 1e9, ""]]
    assert table_cells(rows) == [
        ["–", "0.412", "56.1", "2e-05", "yes"],
        ["–", "0.500", "48.0", "0.333", "x"],
        ["3", "0.000", "7", "1e+09", ""],
    ]
    assert table_cells([]) == []


def test_figures_of_columns_are_aligned_to_the_right():
    report = Report("t")
    report.add_table("t", ["name", "value", "none"], [["a", "+1.2 (0.3 – 4)", None], ["2b or not", "", None]])
    assert report.html().count('class="num"') == 3  # one header, two cells


def test_terminal_table():
    rows = [["fine-tune", 0.41, "38%"], ["日本", None, "9%"], ["a\nb \x1b[1m", 0.5, "1%"], ["x" * 80, 12.0, "10%"]]
    lines = terminal_table(["arm", "accuracy", "share"], rows).split("\n")
    assert lines[0] == "arm" + " " * 57 + "  accuracy  share"
    assert lines[1] == "-" * 60 + "  --------  -----"
    assert lines[2] == "fine-tune" + " " * 51 + "      0.41    38%"
    assert lines[3] == "日本" + " " * 56 + "         –     9%"
    assert lines[4].startswith("a b [U+001B][1m ")
    assert lines[5].startswith("x" * 59 + "…  ")
    assert terminal_table(["a", "b"], []) == "a  b\n-  -"


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_table_fits_the_terminal_and_shows_every_figure_whole(width, monkeypatch):
    """Every arm, figure and word of a header is there; every part of the table begins with the arm."""
    monkeypatch.setenv("COLUMNS", str(width))
    headers = ["arm", "test accuracy, % [95%]", "llm2llm - arm [95%]", "examples", "updates", "teacher calls"]
    rows = [
        ["base", "65.6 [61.3, 69.7]", "+13.5 [+9.4, +17.5]", 0, 0, 0],
        ["fine-tune-matched", "62.1 [57.7, 66.3]", "+17.1 [+13.1, +21.2]", 60, 78, 0],
        ["untargeted", "75.8 [71.8, 79.4]", "+3.3 [+0.2, +6.7]", 493, 84, "562 + 444"],
        ["org/日本語-a_model-with-a-name-of-many-words", "–", None, 1, 2, "3"],
    ]
    table = terminal_table(headers, rows)
    assert max(_width(line) for line in table.split("\n")) <= width
    for row in rows[:3]:
        for figure in row[1:]:
            assert re.search(rf"(?m)(^| ){re.escape(str(figure))}( |$)", table)
    for word in " ".join(headers).split():
        assert word in table
    assert "…" not in table
    parts = table.split("\n\n")
    assert len(parts) == (2 if width == 60 else 1)
    assert all(line in part for part in parts for line in ("arm ", "\nbase ", "matched", "日本語-"))


def test_a_single_word_that_is_too_long_for_a_narrow_table_is_cut():
    table = terminal_table(["word", "n"], [["x" * 70, 1]], 30)
    assert table.split("\n")[2] == "x" * 26 + "…  1"


def test_figures_take_gaps_bands_and_many_series():
    gaps = {"a": ([0, 1, 2], [0.1, None, math.nan], [0, None, 0], [1, None, 1])}
    assert "<svg" in figure_svg(line_figure(gaps, "x", "y"), "f")
    many = {f"series {i}": (list(range(60)), [i] * 60) for i in range(16)}
    assert "<svg" in figure_svg(line_figure(many, "x", "y"), "f")
    bars = {f"reason {i}": [i, 1] for i in range(16)}
    assert "<svg" in figure_svg(stacked_bar_figure(["日本語" * 20, "b" * 30], bars), "f")
    assert "<svg" in figure_svg(line_figure({}, "x", "y"), "f")
    assert "<svg" in figure_svg(stacked_bar_figure([], {}), "f")


def test_names_reach_the_figure_as_they_are():
    svg = figure_svg(line_figure({"$x_1$ & <b>": ([1], [1]), "_hidden": ([1], [2])}, "$\\frac$", "y"), "f")
    for text in "$x_1$ &amp; &lt;b&gt;", " _hidden", "$\\frac$":
        assert f">{text}</text>" in svg


def test_matplotlib_is_loaded_late_and_without_pyplot():
    code = (
        "import sys, common.results.report, common.results.plots as r;"
        "assert not {'matplotlib', 'jax'} & set(sys.modules);"
        "r.figure_svg(r.line_figure({}, '', ''), 'f'); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
