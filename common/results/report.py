"""One self-contained HTML page about a run.

    report = Report("LLM2LLM", "run demo, seed 0")
    report.chapter("The arms")
    report.add_table("Accuracy", ["arm", "accuracy"], [["fine-tune", 0.61], ["llm2llm", 0.74]])
    report.add_figure("By round", line_figure({"llm2llm": ([0, 1, 2], [0.5, 0.6, 0.7])}, "round", "accuracy"))
    report.add_examples("From mistake to new example", ["failed seed", "answer", "new example"], rows)
    report.write(run.path / "report.html")

The page has no script and loads nothing but a picture that lies beside it. All that a model or a user wrote is
escaped by the template, and characters that hide or reorder text are spelled out. The same calls give the same
bytes.
"""

import html
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import markupsafe

from common.errors import UserError
from common.results.charts import STYLE
from common.results.files import write_bytes
from common.results.plots import figure_svg
from common.results.tables import numeric_columns, table_cells, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURE = re.compile(r"<figure>\s*<figcaption>(.*?)</figcaption>(.*?)</figure>", re.DOTALL)
"""As the template writes one."""
_INTERVAL = re.compile(r"\[([+\-\d.e]+), ([+\-\d.e]+)\]")


class Report:
    """A page under construction: chapters and what stands in them appear in the order in which they are added."""

    def __init__(self, title: str, subtitle: str = ""):
        self.title, self.subtitle = title, subtitle
        self._sections: list[dict[str, Any]] = []
        self._verdict: str | None = None
        self._warnings: tuple[str, ...] = ()

    def lead(self, verdict: str | None, warnings: Sequence[str] = ()) -> None:
        """What appears above all chapters: what was shown, and what to know before relying on it."""
        self._verdict, self._warnings = verdict, tuple(warnings)

    def chapter(self, title: str) -> None:
        """What follows stands under this heading, which the table of contents names."""
        self._add("chapter", title, number=len(self._of("chapter")) + 1)

    def add_table(
        self,
        caption: str,
        headers: Sequence[str],
        rows: Sequence[Sequence[Any]],
        note: str | None = None,
        terms: Mapping[str, str] | None = None,
    ) -> None:
        """A table; see `table_cells` for how values are shown. `terms`: what its figures mean, a sentence each.
        Raises ValueError for a row of another length."""
        for row in rows:
            if len(row) != len(headers):
                raise ValueError(f"a row of {len(row)} cells under {len(headers)} headers: {row!r}")
        cells = table_cells(rows)
        numeric = numeric_columns(len(headers), cells)
        # Where room is short a line may end before an interval, not within it.
        cells = [[_INTERVAL.sub("[\\1,\u00a0\\2]", cell) for cell in row] for row in cells]
        headers = list(map(str, headers))
        self._add("table", caption, headers=headers, rows=cells, numeric=numeric, note=note, terms=terms)

    def add_figure(self, caption: str, figure: "Figure") -> None:
        """A matplotlib figure, drawn right away as SVG inside the page."""
        number = sum(len(section["figures"]) for section in self._of("figures")) + 1
        self.add_chart(caption, f'<div class="chart">{figure_svg(figure, f"figure{number}")}</div>')

    def add_chart(self, caption: str, chart: str) -> None:
        """A chart of `common.results.charts`, which has escaped what it shows. Charts and figures that follow one
        another stand side by side where there is room."""
        if not self._sections or self._sections[-1]["kind"] != "figures":
            self._add("figures", "", figures=[])
        self._sections[-1]["figures"].append({"caption": caption, "chart": markupsafe.Markup(chart)})

    def add_examples(self, caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Texts side by side, one card a column, stacked in a narrow window."""
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"an example of {len(row)} texts under {len(columns)} columns: {row!r}")
        self._add("examples", caption, columns=list(columns), rows=[list(row) for row in rows])

    def add_origin(
        self,
        caption: str,
        command: str | None,
        facts: Mapping[str, str],
        files: Mapping[str, str],
        picture: tuple[str, str, str] | None = None,
    ) -> None:
        """How the run was made. `command`: what makes it again; `files`: places in the run folder by label;
        `picture`: an image in the run folder, its caption, and what stands there where the image is not."""
        self._add("origin", caption, command=command, facts=facts, files=files, picture=picture)

    def _add(self, kind: str, caption: str, **content: Any) -> None:
        self._sections.append({"kind": kind, "caption": caption, **content})

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [section for section in self._sections if section["kind"] == kind]

    def html(self) -> str:
        """The whole page."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
            autoescape=True,
            # A name that is missing fails, and leaves no gap in the page.
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            # Every value passes through here before it is escaped, so none can be forgotten.
            finalize=lambda value: value if isinstance(value, markupsafe.Markup) else visible(str(value)),
        )
        lead = {
            "title": self.title,
            "subtitle": self.subtitle,
            "verdict": self._verdict,
            "warnings": self._warnings,
            "chapters": [section["caption"] for section in self._of("chapter")],
            "chart_style": markupsafe.Markup(STYLE),
        }
        return environment.get_template("report.html.jinja").render(**lead, sections=self._sections)

    def write(self, path: pathlib.Path) -> None:
        """Store the page atomically. Raises UserError when the disk is full."""
        write_bytes(path, self.html().encode("utf-8"))


def figures(run_dir: str | os.PathLike) -> dict[str, str]:
    """The charts and plots on the page of a finished run, as pieces of HTML by their titles.

        from IPython.display import HTML, display
        for title, piece in figures("runs/llm2llm").items():
            display(HTML(piece))

    Each stands alone, on a light and on a dark ground, and loads nothing. Raises UserError where the folder holds
    no page.
    """
    page = pathlib.Path(run_dir) / "report.html"
    try:
        text = page.read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"{run_dir} holds no report.html: finish the run first, or name its --run-dir") from None
    found: dict[str, str] = {}
    for caption, drawn in _FIGURE.findall(text):
        title = html.unescape(caption)
        again = sum(name == title or name.startswith(f"{title} (") for name in found)
        title += f" ({again + 1})" if again else ""
        found[title] = f"<style>{STYLE}</style>\n<h4>{caption}</h4>\n{drawn.strip()}"
    return found
