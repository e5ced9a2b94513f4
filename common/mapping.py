"""Files that hold keys with values: YAML, or JSON where the name ends in .json."""

import json
import pathlib
from typing import Any

from common.characters import broken
from common.errors import UserError, in_one_line, quoted

MOST = 100_000
"""Values that a YAML file may hold."""


def read_mapping(file: pathlib.Path, holds: str) -> dict[Any, Any]:
    """The keys and values of a file. Raises UserError, naming the line, for what cannot be read, and for a key
    that stands twice, of which one value would be lost; `holds`: which keys it should have."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}: convert it to UTF-8") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): name a file that can") from None
    found = _json(file, text) if file.suffix.lower() == ".json" else _yaml(file, text)
    if not isinstance(found, dict):
        raise UserError(f"{file}: it must hold keys with values: {holds}")
    for key, value in found.items():
        if fault := broken(key) or broken(value):
            raise UserError(f"{file}: {key!r} holds {fault}: repair the text")
    return found


def read_object(file: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint. Raises UserError, naming the file, where it holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such file: {file}") from None
    except (OSError, ValueError, RecursionError) as error:  # the last one of endless nesting
        raise UserError(f"{file} is not readable JSON ({in_one_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object")
    return content


def _json(file: pathlib.Path, text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(_twice(str(file), key))
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except UserError:
        raise
    except json.JSONDecodeError as error:
        raise UserError(f"{file} line {error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: a value in it cannot be read ({error})") from None


def _yaml(file: pathlib.Path, text: str) -> Any:
    import yaml

    class Once(yaml.SafeLoader):  # other loaders run what a tag in the file names
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                first = next(other for other in keys if (other.tag, other.value) == (key.tag, key.value))
                if first is not key:
                    raise UserError(_twice(f"{file} line {key.start_mark.line + 1}", key.value))
            return super().construct_mapping(node, deep)

    try:
        return _bounded(yaml.load(text, Once))
    except UserError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{line}: not YAML ({getattr(error, 'problem', None) or error})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: a value in it cannot be read ({error})") from None


def _bounded(value: Any) -> Any:
    """The value of a YAML file. Raises ValueError where it has no end: by references a list may hold itself, and a
    few lines stand for billions of values."""
    inner, count = [value], 0
    while inner:
        one, count = inner.pop(), count + 1
        if count > MOST:
            raise ValueError(f"by its references (*) it holds itself, or more than {MOST:,} values")
        inner += (
            [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list | tuple | set) else ()
        )
    return value


def _twice(place: str, key: str) -> str:
    return f"{place}: {quoted(key)} stands twice: keep one of them"
