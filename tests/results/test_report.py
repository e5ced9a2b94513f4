"""The report page: nothing a model wrote gets out of its place, and the same calls give the same bytes."""

import html.parser
import math
import re
import subprocess
import sys

import pytest

from common.results.report import (
    Report,
    _width,
    figure_svg,
    histogram_figure,
    line_figure,
    scatter_figure,
    share_figure,
    stacked_bar_figure,
    table_cells,
    terminal_table,
    visible,
)

EVIL = (
    "</p><script>alert('x')</script> \"q\" & <img src=x onerror=alert(1)> {{ 7 * 7 }} $x^ "
    "a\u202eb\x1b[31m\x00\ud800"
)
VOID = {"meta", "br", "img", "link"}


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
    report.add_table(text, [text, "n"], [[text, 1], ["plain", None]], note=text)
    report.add_figure(text, line_figure({text: ([0, 1], [0.5, 1.0])}, text, text))
    report.add_figure(text, histogram_figure({text: [0.0, 1.0, None], "_b": [math.nan]}, text))
    report.add_figure(text, scatter_figure({text: ([0, 1], [1, 2]), "_b": ([], [])}, text, text))
    report.add_figure(text, share_figure([text, "_b"], [30, 70], [50, 50], [text, text, text]))
    report.add_figure(text, stacked_bar_figure([text, "_b"], {text: [1, 2], "_c": [3, 4]}, text))
    report.add_examples(text, [text, "b"], [[text, text]])
    return report


def test_everything_written_by_others_is_escaped():
    text = build(EVIL).html()
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    shown = "".join(page.text)
    # title, subtitle, heading, text, table caption, header, cell, note, 5 figure captions, and three of examples
    assert shown.count(visible(EVIL)) == 18
    assert "{{ 7 * 7 }}" in shown
    assert "49" not in shown
    for hidden in "\u202e\x1b\x00\ud800":
        assert hidden not in text


def test_page_stands_alone():
    page = Page(build("plain").html())
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action"):
            assert value.startswith("#")
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
        "import sys, common.results.report as r; assert not {'matplotlib', 'jax'} & set(sys.modules);"
        "r.figure_svg(r.line_figure({}, '', ''), 'f'); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
