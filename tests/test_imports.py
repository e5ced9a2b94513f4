"""Which module may import which: the rooms of the house, and the arrows between them."""

import ast
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLOORS = (
    *(
        "characters",
        "secret",
        "errors",
        "mapping",
        "config",
        "buckets",
        "hosts",
        "generate",
        "usercode",
        "progress",
        "cli",
        "runtime",
    ),
    "streams",
    "stopping",
    *(
        "results",
        "model",
        "sample",
        "train",
        "tasks",
        "text",
        "memory",
        "reading",
        "lm",
        "backends",
        "rates",
        "defaults",
        "settings",
        "stages",
    ),
    *("stages", "experiment", "evals", "embedded"),
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
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno} imports relatively: name the whole module"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
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
    """Not even for types: one method takes from another what the caller hands it."""
    for name, arrows in ARROWS.items():
        top = name.partition(".")[0]
        others = {to for to in arrows if to.partition(".")[0] in METHODS and to.partition(".")[0] != top}
        assert top == "common" or not others, f"{name} imports {', '.join(others)}"


def test_nothing_of_ours_is_imported_by_a_string():
    """Such an import would be an arrow that no test here sees; other packages may be looked for in this way."""
    for name, file in MODULES.items():
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        asked = [
            ast.unparse(call) for call in calls if ast.unparse(call.func).endswith(("import_module", "__import__"))
        ]
        ours = [call for call in asked if re.search(r"\b(common|llm2llm|reversegen|active_inheritance)\b", call)]
        assert not ours, f"{name} imports by a string: {ours}"


@pytest.mark.parametrize("room", sorted(file.parent.name for file in (ROOT / "common").glob("*/__init__.py")))
def test_a_room_says_which_rooms_it_imports(room):
    """In its __init__ those that stand in backticks after "Imports", unless it imports all below it."""
    paragraph = ast.get_docstring(ast.parse((ROOT / f"common/{room}/__init__.py").read_text())) or ""
    said = paragraph.partition("Imports ")[2]
    within = [name for name in MODULES if name.startswith(f"common.{room}.")]
    arrows = {to.split(".")[1] for name in within for to in ARROWS[name] if to.startswith("common.")}
    above_the_ground = arrows - {room} - set(FLOORS[: FLOORS.index("results")])
    assert said, f"{room} does not say what it imports"
    missing = set() if "all rooms below" in said else above_the_ground - set(re.findall(r"`(\w+)`", said))
    assert not missing, f"{room} imports {', '.join(missing)} and does not say so"
