"""The Python that the documentation shows runs as it stands."""

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
