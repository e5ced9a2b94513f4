"""Progress bars: drawn where somebody looks, and once."""

import io
import sys
import types

import pytest

from common.progress import progress_bar


class Screen(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("terminal", "kernel", "drawn"), [(True, False, True), (False, False, False), (False, True, True)]
)
def test_a_bar_is_drawn_in_a_terminal_and_in_jupyter_alone(terminal, kernel, drawn, monkeypatch):
    """In Jupyter standard error is no terminal; without ipywidgets the bar is a line of text there."""
    screen = Screen(terminal)
    shell = types.SimpleNamespace(config={"IPKernelApp": {}} if kernel else {})
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(progress_bar(range(3), desc="teacher")) == [0, 1, 2]
    assert screen.getvalue().count("100%") == drawn
    assert ("teacher" in screen.getvalue()) == drawn
