"""The Python that the documentation shows runs as it stands, and its links lead somewhere."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ("README.md", "*/README.md", "active_inheritance/profile/README.md")
NEEDS = "# needs "
"""How a block begins that asks for a hosted model, hours, or files that are not there: it is compiled only."""


def _blocks():
    for file in sorted({file for page in PAGES for file in ROOT.glob(page)}):
        text = file.read_text(encoding="utf-8")
        for found in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text[: found.start()].count("\n") + 2
            yield pytest.param(found[1], id=f"{file.relative_to(ROOT)}:{line}")


@pytest.mark.parametrize("block", list(_blocks()))
def test_a_block_of_the_documentation_runs_from_an_empty_folder(block, tmp_path):
    """In a process of its own, without warnings."""
    compile(block, "block", "exec")
    if block.startswith(NEEDS):
        return
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error:::__main__", "-c", block],
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


@pytest.mark.parametrize("page", [*PAGES, "*.md", "docs/*.md", "common/*/README.md"])
def test_a_link_within_the_repository_leads_to_a_file_and_a_heading(page):
    for file in ROOT.glob(page):
        for link in re.findall(r"\]\(([^)\s]+)\)", _prose(file)):
            path, _, anchor = link.partition("#")
            if not path.startswith("http"):
                target = file.parent / path if path else file
                assert target.exists(), f"{file}: {link}"
                assert not anchor or anchor in _anchors(target), f"{file}: {link}"
