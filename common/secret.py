"""Keys held in environment variables, and how they stay out of all that is written or printed.

    masked("401: bad key sk-live-0123456789")       # "401: bad key [key]", where a variable holds that key

A key may come back in any text: an exception of the user's function, an error of a server, a traceback. So texts
are masked where they leave the program and not where they come in: files (`results.rundir`, `results.dataset`),
pages and tables (`results.tables.visible`), `UserError`, and what a command prints (`mask_output`). Replies that
were bought (`backends.chat`) are masked before they are stored.
"""

import functools
import html
import json
import os
import re
import sys
import urllib.parse
from typing import Any, TextIO

MASK = "[key]"
SHORTEST = 8
"""Characters of a key. A shorter value, such as EMPTY for a server of one's own, may well be part of a text."""
_PLACEHOLDERS = {"anything", "dummy-key", "lm-studio", "not-needed", "placeholder"}
_NAMES = re.compile(r"(KEY|KEYS|TOKEN|TOKENS|SECRET|PASS|PASSWORD|PAT)(_ID)?(_?\d+)?$")
_ADDRESSES = ("_URL", "_URI", "_PROXY")


def keys() -> tuple[str, ...]:
    """All forms of all keys that the environment holds now, the longest first.

    A key is what stands in a variable whose name ends like OPENAI_API_KEY, OPENAI_KEY_2, HF_TOKEN or PGPASSWORD,
    and the password of a login in a variable such as HTTPS_PROXY.
    """
    values = []
    for name in os.environ:  # user code may set one at any time, so they are looked up each time: microseconds
        upper = name.upper()
        if _NAMES.search(upper):
            values.append(os.environ[name])
        elif upper.endswith(_ADDRESSES) and (login := re.search(r"://[^/@\s]*:([^/@\s]+)@", os.environ[name])):
            values.append(urllib.parse.unquote(login[1]))
    return _forms(tuple(values)) if values else ()


@functools.lru_cache
def _forms(values: tuple[str, ...]) -> tuple[str, ...]:
    """The keys among `values`, each line of one by itself, in the forms in which a text may hold it: as it is, as
    in JSON, as Python shows it in a message, as in an address, and as in a page."""
    lines = {line.strip() for value in values for line in value.splitlines()}
    found = {line for line in lines if len(line) >= SHORTEST and line not in _PLACEHOLDERS}
    found |= {
        form(key)
        for key in found
        for form in (
            lambda key: json.dumps(key, ensure_ascii=False)[1:-1],
            lambda key: repr(key)[1:-1],
            lambda key: urllib.parse.quote(key, safe="", errors="replace"),
            html.escape,
        )
    }
    return tuple(sorted(found, key=lambda form: (-len(form), form)))


def masked(text: str, hidden: tuple[str, ...] | None = None) -> str:
    """`text` with [key] in place of every key. `hidden`: what `keys` gave, for many texts in a row."""
    for form in keys() if hidden is None else hidden:
        text = text.replace(form, MASK)
    return text


def masked_value(value: Any, hidden: tuple[str, ...] | None = None) -> Any:
    """The same for all texts, names included, of a JSON value."""
    hidden = keys() if hidden is None else hidden
    if not hidden:
        return value
    if isinstance(value, str):
        return masked(value, hidden)
    if isinstance(value, dict):
        return {masked(name, hidden): masked_value(inner, hidden) for name, inner in value.items()}
    return [masked_value(inner, hidden) for inner in value] if isinstance(value, list) else value


class _MaskedStream:
    """A text stream that masks what is written to it; everything else is the stream's own."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mask_output() -> None:
    """From now on mask all that this process prints: tables, warnings, progress, tracebacks."""
    sys.stdout, sys.stderr = _MaskedStream(sys.stdout), _MaskedStream(sys.stderr)
