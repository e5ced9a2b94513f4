"""The one exception for mistakes a user can fix, how its line quotes what was given, and that of SIGTERM."""

import re
from collections.abc import Iterable
from typing import Any

from common.secret import masked

QUOTED, LONGEST = 80, 480
"""Characters of a value that are shown, and of a whole message."""
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""What breaks a line, or tells a terminal to do something."""


class UserError(ValueError):
    """Bad input, said in one line: what is wrong, where, and how to fix it.

    A ValueError, so that a program that calls seedloop needs no import of ours to catch it. `run.py` prints the
    message without a traceback and exits with status 2; a library call never exits. Raise it before any work is
    done whenever the mistake can be seen early. Code that reads numbers or JSON under `except ValueError`
    must let it through. Keys in the message are masked, and what is far too long in it is cut in its middle.
    """

    def __init__(self, message: str):
        # Whatever was given is echoed somewhere: 100 kB of it would hide what is wrong with it.
        short = re.sub(r"\S{200,}", lambda found: _cut(found[0], 2 * QUOTED), masked(message))
        # Other libraries' messages come in lines, and a name may hold anything.
        short = _CONTROLS.sub(" ", short)
        super().__init__(_cut(short, LONGEST))


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt no Exception, so that no `except Exception` takes it for a fault."""


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]}…{text[-limit // 3 :]}"


def quoted(value: Any) -> str:
    """A value as an error shows it: on one line, and cut if it is long."""
    try:
        shown = repr(value)
    except Exception:  # of a class of the user's own
        shown = f"<{type(value).__name__}>"
    return _cut(shown, QUOTED)


def in_one_line(error: BaseException) -> str:
    """What another library's error says, on one line; its kind where it says nothing."""
    try:
        said = " ".join(str(error).split())
    except Exception:  # of a class of the user's own
        said = ""
    return _cut(said, 400).rstrip(".") or type(error).__name__


def meant(word: str, known: Iterable[str]) -> str:
    """ "; did you mean NAME?" for a word like one of `known`, or made of the initials of its parts; else ""."""
    import difflib

    plain = lambda name: name.lower().replace("_", "-").lstrip("-")
    names = {plain(name): name for name in known}
    word = plain(word[:QUOTED])
    like = difflib.get_close_matches(word, names, n=1, cutoff=0.65)
    like = like or [name for name in names if "-" in name and word == "".join(p[:1] for p in name.split("-"))]
    return f"; did you mean {' or '.join(names[name] for name in like[:3])}?" if like else ""
