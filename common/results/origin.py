"""What a run was made by, as its page says: versions and the device.

    facts()                     # {"seedloop": "0.2.0, commit 76733b3a91c0", "python": "3.11.7", …}

A run that is killed and continued on the same machine gives the same facts. How long it took is not among them:
see `common.results.times`.
"""

import importlib.metadata
import os
import pathlib
import platform
import subprocess

from common import VERSION
from common.runtime import accelerators

PACKAGES = ("jax", "flax", "numpy")
"""Those that decide figures."""
DESCRIBE = ("describe", "--always", "--abbrev=12", "--exclude=*", "--dirty")


def facts() -> dict[str, str]:
    """What made the run, by name."""
    return {
        "seedloop": version(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "device": _device(),
    }


def version() -> str:
    """ "0.2.0, commit 76733b3a91c0"; without the commit of an installed package."""
    commit = _commit()
    return VERSION + (f", commit {commit}" if commit else "")


def _commit() -> str | None:
    """The commit of the checkout that runs, and whether it was changed since; None of an installed package."""
    root = pathlib.Path(__file__).parents[2]
    if not (root / ".git").exists():  # git would look in folders above, of projects that use ours
        return None
    try:
        said = subprocess.run(
            ["git", "-C", str(root), *DESCRIBE],
            capture_output=True,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},  # so that it writes nothing there
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip().replace("-dirty", ", with changes") or None


def _device() -> str:
    """The accelerator's name. A machine without one has no need of jax, which a selection does without."""
    if accelerators():
        import jax

        return jax.devices()[0].device_kind
    return f"CPU, {platform.machine()}"
