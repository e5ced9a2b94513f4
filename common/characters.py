"""Characters that no text may hold, where texts come in: flags, files, ids, replies, functions of the user's.

    broken("a \\ud83d b")       # "half a character (a lone surrogate)": what a file of the user's is refused for
    mended("a \\ud83d b")       # "a \\ufffd b": what is made of a model's reply

Half a character, of a pair or of a name that is no UTF-8, has no form in UTF-8: whatever writes, hashes or
tokenizes it fails, hours after it came in. NUL ends a text for many programs.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

_BAD = re.compile("[\0\ud800-\udfff]")
NUL, HALF = "a NUL character", "half a character (a lone surrogate)"


def broken(value: Any) -> str | None:
    """What a text, or the first bad one in lists, mappings and dataclasses, holds and may not; None of others."""
    if isinstance(value, str):
        found = None if value.isascii() and "\0" not in value else _BAD.search(value)
        return None if found is None else NUL if found[0] == "\0" else HALF
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = list(vars(value).values()) if hasattr(value, "__dict__") else []
    if isinstance(value, list | tuple):
        return next((found for part in value if (found := broken(part))), None)
    return None


def mended(value: Any) -> Any:
    """A text, or a JSON value with its texts, that has U+FFFD in place of each such character."""
    if isinstance(value, str):
        return value if value.isascii() and "\0" not in value else _BAD.sub("\ufffd", value)
    if isinstance(value, dict):
        return {mended(name): mended(inner) for name, inner in value.items()}
    return [mended(inner) for inner in value] if isinstance(value, list) else value
