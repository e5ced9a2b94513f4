"""Files that hold keys with values: YAML, or JSON where the name ends in .json."""

import json
import pathlib
from typing import Any

from common.characters import broken
from common.errors import UserError, in_one_line


def read_mapping(file: pathlib.Path, holds: str) -> dict[Any, Any]:
    """The keys and values of a file. Raises UserError, naming the line, for what cannot be read; `holds`: which
    keys it should have."""
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
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file} line {error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: a value in it cannot be read ({error})") from None


def _yaml(file: pathlib.Path, text: str) -> Any:
    import yaml

    class Plain(yaml.SafeLoader):  # safe: other loaders run what a tag in the file names
        def compose_node(self, parent: Any, index: Any) -> Any:
            # By references a list may hold itself, and a few lines stand for billions of values.
            if self.check_event(yaml.AliasEvent):
                event = self.get_event()
                raise yaml.MarkedYAMLError(
                    problem="a reference (*) is not read: write the value", problem_mark=event.start_mark
                )
            return super().compose_node(parent, index)

    try:
        return yaml.load(text, Loader=Plain)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{line}: not YAML ({getattr(error, 'problem', None) or error})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: a value in it cannot be read ({error})") from None
