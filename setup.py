"""How the project is installed: all of it below one package, `seedloop`.

In the repository its packages lie at the top, and `python run.py` needs no installation. Installed like that,
`common` and `run` would take names that other projects use too. So the copies lie below `seedloop`, and what they
import of ours does too: `seedloop.llm2llm`, `seedloop.common`, with no other name in site-packages.
"""

import pathlib
import shutil
import sys

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel
from setuptools.errors import OptionError

ROOT = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from common.usercode import OURS, imports_below  # noqa: E402

ABOUT = '"""A model\'s mistakes and preferences, turned into training data."""\n'


class BuildBelow(build_py):
    """Copies every module below `seedloop`, with its imports."""

    def run(self) -> None:
        below = pathlib.Path(self.build_lib, "seedloop")
        shutil.rmtree(below, ignore_errors=True)  # what an earlier build left may be there no more
        super().run()
        (below / "__init__.py").write_text(ABOUT, encoding="utf-8")

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        copy, copied = super().build_module(module, module_file, package)
        path = pathlib.Path(copy)
        path.write_text(imports_below("seedloop.", path.read_text(encoding="utf-8")), encoding="utf-8")
        return copy, copied


class NotEditable(editable_wheel):
    """The modules of a checkout import each other from the top level, where -e would not put them."""

    def run(self) -> None:
        raise OptionError("seedloop is not installed with -e: in a checkout, python run.py works as it is")


setup(
    cmdclass={"build_py": BuildBelow, "editable_wheel": NotEditable},
    package_dir={"seedloop": "."},
    packages=[f"seedloop.{name}" for top in OURS for name in find_packages(str(ROOT), include=[top, f"{top}.*"])],
    py_modules=["seedloop.run"],
    package_data={
        "seedloop.common.embedded": ["rates.json", "student/*", "teacher/*"],
        "seedloop.common.results": ["*.jinja"],
        "seedloop.reversegen.demo": ["*.jsonl"],
    },
)
