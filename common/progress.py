"""Progress bars: every bar of the project is made here.

    with progress_bar(total=len(requests), desc="teacher", unit="sample") as bar:
        bar.update()

One is drawn in a terminal and in Jupyter, once; where standard error goes to a file or a pipe there is none, nor
in any but the first of several processes.
"""

import importlib.util
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from common import hosts

Bar = tqdm


def progress_bar(iterable: Iterable[Any] | None = None, **settings: Any) -> Bar:
    """A tqdm bar with `settings` of tqdm's own, over `iterable` or updated by hand.

    Jupyter gets a widget if ipywidgets is there, else a line of text: `tqdm.auto` would warn of what is missing.
    """
    kernel = _in_jupyter()
    kind = tqdm
    if kernel and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as kind
    return kind(iterable, disable=not (hosts.is_writer() and (kernel or sys.stderr.isatty())), **settings)


def _in_jupyter() -> bool:
    """Whether this process is the kernel of a notebook. Its standard error is no terminal, yet somebody looks."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
