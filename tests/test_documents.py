"""What the documents show: Python runs as it stands, commands are understood, links lead somewhere."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys

import pytest
from documents import ROOT, blocks, check, checkout, commands, pages, stood_in
from huggingface_hub import constants

PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
NEEDS = "# needs "
"""How a block begins that asks for a hosted model, hours, or files that are not there: it is compiled only."""


def _python():
    for page in pages():
        for block in blocks(page):
            # A file that a page writes out is run by the commands that name it.
            if block.language == "python" and page.parent.name != "tasks":
                yield pytest.param(block, id=block.place)


@pytest.mark.parametrize("block", list(_python()))
def test_a_block_of_the_documentation_runs_from_an_empty_folder(block, tmp_path):
    """In a process of its own, without warnings; one with needs is compiled only."""
    compile(block.text, "block", "exec")
    if block.needs or block.text.startswith(NEEDS):
        return
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error:::__main__", "-c", block.text],
        cwd=tmp_path,
        env=settings,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("llm2llm", "Config, preset, run"),
        ("reversegen", "Config, preset, run, Verdict"),
        ("active_inheritance", "Config, run"),
        ("active_inheritance.profile", "Config, run"),
    ],
)
def test_importing_a_method_is_quick_and_loads_nothing_heavy(module, names):
    code = (
        f"import sys, time; began = time.perf_counter(); from {module} import {names}; "
        "took = time.perf_counter() - began; "
        "heavy = {'jax', 'numpy', 'flax', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy; assert took < 1.5, took; assert run.__doc__ and Config()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def _prose(file):
    return re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def _anchors(file):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", _prose(file), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_a_link_within_the_repository_leads_to_a_file_and_a_heading(page):
    file = PAGES[page]
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", _prose(file)):
        path, _, anchor = "".join(link).partition("#")
        if not path.startswith("http"):
            target = file.parent / path if path else file
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_document_has_flags_that_exist_and_settings_that_are_allowed(page, monkeypatch):
    """Those in sentences too; with stand-ins for files and models that are the reader's."""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-" + "x" * 30)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with checkout(PAGES[page]):
        for words in commands(PAGES[page].read_text(encoding="utf-8")):
            try:
                check(stood_in(words))
            except ValueError as error:
                pytest.fail(f"{shlex.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES)
def test_a_block_names_its_language_and_the_programs_of_a_command_are_there(page):
    """So that a block of commands is told from what a command prints."""
    for block in blocks(PAGES[page]):
        assert block.language, block.place
        for program, flags in re.findall(r"^python (\w+/\S+\.py)(.*)", block.text, re.MULTILINE):
            text = (ROOT / program).read_text(encoding="utf-8")
            missing = [flag for flag in re.findall(r"--[a-z-]+", flags.partition("#")[0]) if flag not in text]
            assert not missing, f"{block.place}: {program} has no {', '.join(missing)}"


def test_the_pictures_of_the_loops_are_those_that_their_program_draws():
    spec = importlib.util.spec_from_file_location("loops", ROOT / "docs/pictures/loops.py")
    loops = importlib.util.module_from_spec(spec)
    sys.modules["loops"] = loops
    spec.loader.exec_module(loops)
    for scheme, colours in loops.SCHEMES.items():
        assert (ROOT / f"docs/pictures/loops-{scheme}.svg").read_text(encoding="utf-8") == loops.draw(colours)
    for file, loop in loops.ALONE.items():
        assert (ROOT / f"docs/pictures/{file}.svg").read_text(encoding="utf-8") == loops.draw_alone(loop)


def test_the_memory_that_the_readme_names_is_what_a_plan_says(capsys, tmp_path):
    import run

    rows = re.findall(r"^\| `python run\.py ([\w-]+)` \|.*\| ([\d.]+) GB", PAGES["README.md"].read_text(), re.M)
    assert {method for method, _ in rows} == set(run.METHODS)
    for method, told in rows:
        run._method([method, "--dry-run", "--run-dir", str(tmp_path / "run")])
        assert f"{told} GB at most" in capsys.readouterr().out, method


def test_every_test_that_the_table_of_faults_names_exists():
    """And every row names one: a test that is renamed or goes takes its row along."""
    rows = [line for line in (ROOT / "docs/reliability.md").read_text().splitlines() if "::" in line]
    assert len(rows) > 45
    for row in rows:
        held = row.split(" | ")[2]
        assert "::test_" in held, row
        for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", row):
            assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), (
                f"{file}::{name}"
            )
