"""Where a checkpoint lies, and whether it is still the same. Nothing here loads jax: a plan or a selection does
without.

    folder = resolve("Qwen/Qwen2.5-0.5B-Instruct")            # or a local folder, or embedded:NAME
    fingerprint(folder)                                       # changes when the weights do
"""

import hashlib
import json
import math
import os
import pathlib
import re

from common.errors import UserError

EMBEDDED = pathlib.Path(__file__).parents[1] / "embedded"
_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors itself takes no longer header."""
_HUB_PATTERNS = ("model*.safetensors", "*.json", "tokenizer*", "vocab.*", "merges.txt", "*.jinja")


def resolve(name_or_path: str | os.PathLike) -> pathlib.Path:
    """The folder of a checkpoint: a local folder, `embedded:NAME`, or a hub id (fetched into the hub's cache).

    Raises UserError when there is no such folder, embedded model or hub model, or the hub cannot be reached.
    """
    name = os.fspath(name_or_path)
    if name.startswith("embedded:"):
        return _resolve_embedded(name.removeprefix("embedded:"))
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{name} is a file: name the checkpoint's folder")
    if not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name):
        raise UserError(f"no such folder: {name}")
    return _fetch(name)


def is_embedded(folder: pathlib.Path) -> bool:
    """Whether the checkpoint in `folder` is one that comes with seedloop."""
    return folder.parent == EMBEDDED


def _resolve_embedded(name: str) -> pathlib.Path:
    present = sorted(file.parent.name for file in EMBEDDED.glob("*/model.safetensors"))
    if name not in present:
        raise UserError(f"no embedded model {name!r}: there are {', '.join(present) or 'none'}")
    return EMBEDDED / name


def _fetch(repo: str) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(repo, allow_patterns=list(_HUB_PATTERNS)))
    except errors.GatedRepoError:
        raise UserError(
            f"model {repo} is gated: accept its licence on the hub, then run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"no model {repo}: neither a local folder nor on the hub (a private one needs `hf auth login`)"
        ) from None
    except Exception as error:  # the hub's HTTP client, hence its network errors, differs between versions
        raise UserError(
            f"cannot fetch {repo} from the hub ({first_line(error)}): check the network, or name a local folder"
        ) from None


def fingerprint(folder: str | os.PathLike) -> str:
    """A short hash of a checkpoint: names and sizes of its files (weights, settings, tokenizer, chat template),
    and the first and last megabyte of each.

    Two trainings of one model differ in it, and 16 GB are looked at in no time; single changed weights in the
    middle of a large file are not seen.
    """
    digest = hashlib.sha256()
    for file in sorted(pathlib.Path(folder).iterdir()):
        matters = file.suffix in (".json", ".safetensors") or any(map(file.match, _HUB_PATTERNS))
        if matters and file.is_file():
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as data:
                digest.update(data.read(2**20))
                data.seek(max(0, size - 2**20))
                digest.update(data.read())
    return digest.hexdigest()[:16]


def parameters(folder: str | os.PathLike) -> int | None:
    """How many parameters the safetensors files of a folder hold, by their headers alone; None without such files.

    A header is JSON, before which its length stands in 8 bytes (format of safetensors). Files that cannot be read
    are left for the loader to complain about.
    """
    total = 0
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        try:
            with file.open("rb") as data:
                size = int.from_bytes(data.read(8), "little")
                header = json.loads(data.read(min(size, _LONGEST_HEADER)))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
    return total or None


def has_template(folder: str | os.PathLike) -> bool:
    """Whether a checkpoint comes with a chat template, in a file of its own or among the tokenizer's settings."""
    folder = pathlib.Path(folder)
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    file = folder / "tokenizer_config.json"
    return file.exists() and b'"chat_template"' in file.read_bytes()


def first_line(error: Exception) -> str:
    """The first line of an error's message, without a full stop at its end."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
