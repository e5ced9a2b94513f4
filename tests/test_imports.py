"""Which module may import which: the rooms of the house, and the arrows between them."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLOORS = (
    *("secret", "errors", "config", "buckets", "generate", "usercode", "progress", "cli", "runtime"),
    *("results", "model", "sample", "train", "tasks", "text", "lm", "backends", "settings", "stages"),
    *("experiment", "evals", "embedded"),
)
"""The files and rooms of common/, each above everything that it may import."""
METHODS = ("llm2llm", "reversegen", "active_inheritance")


def _modules() -> dict[str, pathlib.Path]:
    files = [file for top in ("common", *METHODS) for file in sorted((ROOT / top).rglob("*.py"))]
    dotted = lambda file: ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return {dotted(file).removesuffix(".__init__"): file for file in files}


MODULES = _modules()


def _imports(file: pathlib.Path) -> set[str]:
    """Modules of ours that `file` imports: at its top, in a function, or for types alone."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & MODULES.keys()


ARROWS = {name: _imports(file) - {name} for name, file in MODULES.items()}


def _floor(name: str) -> int:
    """The floor of a module of common/."""
    return FLOORS.index(name.split(".")[1])


def test_no_module_imports_itself_by_way_of_others():
    """The imports have an order, lazy ones and those for types included; a circle is named."""
    graphlib.TopologicalSorter(ARROWS).prepare()


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("common.")])
def test_arrows_between_rooms_run_down(name):
    """A module of common/ imports its own room and those below, and no method."""
    up = [to for to in ARROWS[name] if to.partition(".")[0] in METHODS]
    up += [to for to in ARROWS[name] if to.startswith("common.") and _floor(to) > _floor(name)]
    assert not up, f"{name} imports {', '.join(sorted(up))}, from above it"


def test_methods_do_not_import_one_another():
    """But for types: what composes methods is handed over by whoever composes them."""
    for name, arrows in ARROWS.items():
        top = name.partition(".")[0]
        others = {to for to in arrows if to.partition(".")[0] in METHODS and to.partition(".")[0] != top}
        assert top == "common" or not others, f"{name} imports {', '.join(others)}"


def test_every_room_says_what_it_is_for():
    """One paragraph in its __init__ names what the room may import."""
    for file in sorted((ROOT / "common").glob("*/__init__.py")):
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        assert "import" in text.lower(), f"{file} does not say what the room imports"
