"""What is installed: one package, the command, and nothing under a name of other projects."""

import ast
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from active_inheritance.scoring import SMALL

ROOT = pathlib.Path(__file__).parent.parent
TOPS = ("common", "llm2llm", "reversegen", "active_inheritance")


def _run(*words: str, cwd: pathlib.Path, path: pathlib.Path | None = None) -> subprocess.CompletedProcess[str]:
    """A Python process that finds modules in `path`, and none in the repository."""
    settings = os.environ | {"PYTHONPATH": "" if path is None else str(path)}
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=settings, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of this tree, built without the network from a copy, which a build may write into."""
    setuptools = pytest.importorskip(
        "setuptools", "77", "building the wheel needs setuptools of requirements-dev.txt"
    )
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*TOPS, "run.py", "setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    _run("-c", build, str(out), cwd=source, path=pathlib.Path(setuptools.__file__).parents[1])
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel in it, as `pip install --target` leaves it."""
    target = tmp_path_factory.mktemp("installed")
    _run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=target)
    return target


def test_one_package_is_installed_with_every_module_and_data_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "seedloop = seedloop.run:main" in archive.read(points).decode()
    files = [file for top in TOPS for file in (ROOT / top).rglob("*") if file.is_file()]
    wanted = {
        f"seedloop/{file.relative_to(ROOT)}"
        for file in files
        if "__pycache__" not in file.parts and (file.suffix != ".md" or "embedded" in file.parts)
    }
    assert set(names) == wanted | {"seedloop/__init__.py", "seedloop/run.py"}


def test_no_installed_module_imports_ours_from_the_top_level(wheel):
    """Neither at the top nor lazily: the top level may hold somebody else's module of that name."""
    with zipfile.ZipFile(wheel) as archive:
        for name in (name for name in archive.namelist() if name.endswith(".py")):
            for node in ast.walk(ast.parse(archive.read(name))):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                assert not [module for module in modules if module.split(".")[0] in (*TOPS, "run")], name


def test_the_installed_command_selects_beside_modules_of_the_same_names(installed, tmp_path):
    """With a `common` and a `run` of the user's own on the path; a score function and a task file of theirs import
    ours by the documented names."""
    for name in ("common", "run", "reversegen"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not the one that was meant')\n")
    command = [str(installed / "bin" / "seedloop")]
    text = _run(*command, "--help", cwd=tmp_path, path=installed).stdout
    assert text.startswith("usage: seedloop METHOD")
    answers = {"Name a bird.": ["A robin is a small bird.", "Robin."], "Name a fish.": ["A trout, say.", "Trout"]}
    rows = [
        {"prompt": p, "answer": a, "source": str(i)} for p, both in answers.items() for i, a in enumerate(both)
    ]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "score.py").write_text(
        "from reversegen.judge import Verdict\n"
        "def long(prompt, answer):\n    return Verdict('fail', len(answer)).score\n"
    )
    flags = "--pool pool.jsonl --objective python:score.py:long:max --min-words 0 --select-only --run-dir out"
    _run(*command, "active-inheritance", *flags.split(), cwd=tmp_path, path=installed)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["status"] == "selected"
    assert (tmp_path / "out/report.html").stat().st_size > 1000


def test_an_installed_package_is_imported_from_seedloop(installed, tmp_path):
    code = (
        "import sys, seedloop.common.model.checkpoint as checkpoint\n"
        "from seedloop.llm2llm import preset, run\n"
        "from seedloop.reversegen import Verdict\n"
        "from seedloop.active_inheritance import Config\n"
        "assert checkpoint.resolve('embedded:student').is_dir()\n"
        f"assert not [name for name in sys.modules if name.split('.')[0] in {(*TOPS, 'run')}]\n"
        "assert 'jax' not in sys.modules\n"
        "Config(objective=('words:max',), pool='x')\n"
    )
    _run("-c", code, cwd=tmp_path, path=installed)


def test_several_processes_select_in_an_installed_package(installed, tmp_path):
    """They are started afresh, and must find the package as this one did."""
    row = lambda i: {"prompt": f"p{i // 2}", "answer": f"{i} and {i + 1}", "source": "s", "unread": "x" * 1600}
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(2700)))
    assert (tmp_path / "pool.jsonl").stat().st_size > SMALL
    flags = "--pool pool.jsonl --objective words:max --min-words 0 --workers 2 --select-only --run-dir out"
    command = str(installed / "bin" / "seedloop")
    _run(command, "active-inheritance", *flags.split(), cwd=tmp_path, path=installed)
    assert json.loads((tmp_path / "out/summary.json").read_text())["status"] == "selected"
