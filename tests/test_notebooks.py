"""The notebooks as they lie in the repository. `python notebooks/execute.py` executes them (.ci/run does)."""

import ast
import json
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
BADGE = "](https://colab.research.google.com/github/YOUR/seedloop/blob/main/notebooks/{}.ipynb)"


def read(file):
    return nbformat.read(file, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_is_a_notebook_for_each_method_the_profile_and_data_of_ones_own():
    names = {file.stem for file in FILES}
    assert names == {"llm2llm", "reversegen", "active_inheritance", "profile", "own_data"}
    page = (ROOT / "notebooks/README.md").read_text(encoding="utf-8")
    assert all(BADGE.format(name) in page and f"({name}.ipynb)" in page for name in names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestNotebook:
    def test_it_opens_with_its_title_and_badge_and_sets_up_like_the_others(self, file):
        notebook = read(file)
        nbformat.validate(notebook)
        assert notebook.cells[0].source.startswith("# ")
        assert BADGE.format(file.stem) in notebook.cells[0].source
        first = read(FILES[0])
        assert [cell.source for cell in code(notebook)[:2]] == [cell.source for cell in code(first)[:2]]

    def test_it_uses_imports_and_starts_no_command(self, file):
        setup, *rest = code(read(file))
        assert "REPOSITORY" in setup.source
        for cell in rest:
            ast.parse(cell.source)  # so there is neither ! nor %
            assert not re.search(r"run\.py|subprocess|os\.system", cell.source), cell.source

    def test_it_ends_with_a_real_model_that_is_not_run_unasked(self, file):
        last = code(read(file))[-1].source
        assert re.search(r"^REAL = False", last, re.MULTILINE)
        assert re.search(r"^if REAL:\n(    .*\n)*    run\(real\)$", last, re.MULTILINE)
        assert '"smollm2"' in last

    def test_its_outputs_are_kept_whole_and_say_nothing_of_the_machine(self, file):
        notebook = read(file)
        cells = code(notebook)
        assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
        outputs = [output for cell in cells for output in cell.outputs]
        assert not {"error", "stderr"} & {output.get("name", output.output_type) for output in outputs}
        told = json.dumps(outputs)
        assert not re.search(r'[\\"\' ](/(tmp|home|root|work|usr|Users)/|[A-Z]:\\)', told)
        data = [output.data for output in outputs if "data" in output]
        assert any("<svg" in shown.get("text/html", "") for shown in data)  # a chart of the report
        assert any("report: runs/" in output.get("text", "") for output in outputs)
        assert file.stat().st_size < 600_000

    def test_its_links_lead_to_files(self, file):
        texts = [cell.source for cell in read(file).cells if cell.cell_type == "markdown"]
        for link in re.findall(r"\]\(([^)\s]+)\)", "\n".join(texts)):
            assert link.startswith("https://") or (file.parent / link.partition("#")[0]).exists(), link


def test_without_a_checkout_the_first_cell_clones_and_installs(tmp_path, monkeypatch):
    """As on Colab, with the commands noted instead of carried out."""
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
    monkeypatch.setattr(sys, "path", [*sys.path])
    scope = {}
    exec(code(read(FILES[0]))[0].source, scope)
    clone, install = asked
    assert clone == ["git", "clone", "-q", "https://github.com/YOUR/seedloop", str(tmp_path / "seedloop")]
    assert install[1:6] == ["-m", "pip", "install", "-q", "-r"]
    assert install[6] == str(tmp_path / "seedloop/requirements.txt")


def test_within_a_checkout_the_first_cell_finds_it_and_installs_nothing(monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is to be run"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    scope = {}
    exec(code(read(FILES[0]))[0].source, scope)
    assert scope["ROOT"] == ROOT.resolve()
