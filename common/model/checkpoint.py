"""Where a checkpoint lies, and whether it is still the same. Nothing here loads jax: a plan or a selection does
without.

    folder = resolve("Qwen/Qwen2.5-0.5B-Instruct")            # or see `resolve`
    fingerprint(folder)                                       # changes when the weights do

Whatever is named, there is a folder with config.json and a tokenizer: for a GGUF file one in the user's cache,
with those two made from the file and a link to it; for a base with an adapter one with links to the files of both.
`common.model.tensors` reads the weights of all of them.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from common.errors import UserError, in_one_line, meant, quoted
from common.mapping import read_object
from common.model import smollm2
from common.runtime import cache_dir

T = TypeVar("T")

EMBEDDED = pathlib.Path(__file__).parents[1] / "embedded"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LINKED_ADAPTER = ("merged_adapter.json", "merged_adapter.safetensors")
"""What an adapter's settings and weights are called beside the base that they are merged into when it is read."""
INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors itself takes no longer header."""
_HUB_PATTERNS = ("model*.safetensors", "*.json", "tokenizer*", "vocab.*", "merges.txt", "*.jinja")
_CARD = "README.md"
"""Fetched beside them for the licence; what it says makes no other model."""
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
)

_HUB_ID = r"[\w][\w.-]*(/[\w][\w.-]*)?"
_ANSWER = 20.0
"""Seconds that the hub has to say whether it knows a model."""
_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
"""The end of the name of one file of a split GGUF file."""


class NotHereError(UserError):
    """A model of the hub is not on this machine, and was not to be fetched."""


class ModelError(UserError):
    """What is wrong with a model. `name`: what it was given as."""

    def __init__(self, message: str, name: str):
        super().__init__(message)
        self.name = name


@contextlib.contextmanager
def opened(name: str) -> Iterator[None]:
    """In the block a model is opened: what is wrong with it is a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except UserError as error:
        raise ModelError(str(error), name) from None


@contextlib.contextmanager
def in_roles(models: Mapping[str, str]) -> Iterator[None]:
    """In the block models are opened for a run: what is wrong with one is said with its role. `models`: names by
    role."""
    try:
        yield
    except ModelError as error:
        roles = [role for role, name in models.items() if name == error.name]
        if not roles:
            raise
        raise UserError(f"{error} (given as the {' and the '.join(roles)})") from None


def resolve(name_or_path: str | os.PathLike, *, fetch: bool = True) -> pathlib.Path:
    """The folder of a checkpoint: a local folder, a GGUF file, `embedded:NAME`, `smollm2`, a hub id (fetched into
    the hub's cache), or any of these and the folder of an adapter in PEFT's form, joined by a plus.

    A path that exists is taken as it is, whatever its name. Without `fetch` a model of the hub is found only if it
    was fetched before (else NotHereError). Raises UserError when there is no such folder, file, embedded model or
    hub model, when a file is not understood, or the hub cannot be reached.
    """
    name = os.fspath(name_or_path)
    path = pathlib.Path(os.path.expanduser(name))
    if path.is_dir():
        return _folder(path)
    if path.exists():
        return _converted(path)
    if "+" in name:
        return _adapted(name, fetch)
    if name.startswith("embedded:"):
        return _resolve_embedded(name.removeprefix("embedded:"))
    if name == smollm2.NAME:
        return _converted(smollm2.find())
    if name.endswith(".gguf"):
        raise UserError(f"no such file: {name}")
    if not re.fullmatch(_HUB_ID, name):
        raise UserError(f"no such folder: {name}")
    if "/" not in name and (like := meant(name, ("embedded", smollm2.NAME))):
        raise UserError(f"no model {name}{like}")  # before the hub is asked, which takes its time
    return _fetch(name, fetch)


def _folder(path: pathlib.Path) -> pathlib.Path:
    """The folder itself, or the one made of the GGUF file that is all there is in it."""
    files = sorted(path.glob("*.gguf"))
    if not files or (path / "config.json").exists():
        return path
    firsts = [file for file in files if _PART.search(file.name) is None or "-00001-of-" in file.name]
    if len(firsts) != 1:
        raise UserError(f"{path} holds several GGUF files: name one, {firsts[0] if firsts else files[0]}")
    return _converted(firsts[0])


def _converted(file: pathlib.Path) -> pathlib.Path:
    """The folder made of a GGUF file. It is made anew when the file changes, or the code that makes it."""
    if file.suffix != ".gguf":
        raise UserError(f"{file} is a file: name the checkpoint's folder, or a GGUF file (*.gguf)")
    from common.model import gguf, gguf_tokenizer

    parts = [part.absolute() for part in gguf.parts(file)]
    states = [f"{part} {part.stat().st_size} {part.stat().st_mtime_ns}" for part in parts]
    code = [_hash(file.read_bytes()) for file in sorted(pathlib.Path(__file__).parent.glob("gguf*.py"))]

    def fill(folder: pathlib.Path) -> None:
        content = gguf.read(file)
        try:
            gguf.write_config(content, folder)
            gguf_tokenizer.write(content, folder)
        except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError) as error:
            if isinstance(error, UserError):
                raise
            # A number where a list should be: what comes of it differs from setting to setting.
            raise UserError(
                f"{file} is damaged: a setting has a value that it cannot have ({in_one_line(error)})"
            ) from None
        for part in parts:
            number = _PART.search(part.name)
            (folder / f"model{number[0] if number else ''}.gguf").symlink_to(part)

    return _cached("gguf", states + code, fill)


def split_adapter(name: str) -> tuple[str, pathlib.Path]:
    """Base and adapter of BASE+ADAPTER. Names may hold a plus themselves: the first one that has an adapter's
    folder behind it counts."""
    places = [i for i, letter in enumerate(name) if letter == "+"]
    halves = [(name[:i], pathlib.Path(os.path.expanduser(name[i + 1 :]))) for i in places]
    return next((half for half in halves if half[1].is_dir()), halves[-1])


def _adapted(name: str, fetch: bool) -> pathlib.Path:
    """The folder of a base with an adapter."""
    base, adapter = split_adapter(name)
    if not (adapter / ADAPTER_CONFIG).is_file():
        what = f"no {ADAPTER_CONFIG} in the folder" if adapter.is_dir() else "no such folder:"
        raise UserError(f"{name} is read as BASE+ADAPTER, and there is {what} {adapter}")
    below = resolve(base, fetch=fetch)
    if (below / LINKED_ADAPTER[0]).exists():
        raise UserError(f"{name} names two adapters: merge the first into its base, or name one alone")
    links = {file.name: file for file in below.iterdir() if file.is_file() and file.name != ADAPTER_CONFIG}
    own = [file for file in adapter.iterdir() if file.is_file() and any(map(file.match, _TOKENIZER))]
    if any(file.name == "tokenizer_config.json" for file in own):
        # Trainers write the tokenizer beside the adapter, with the template that it was trained under.
        links = {key: file for key, file in links.items() if not any(map(file.match, _TOKENIZER))}
        links |= {file.name: file for file in own}
    links |= dict(zip(LINKED_ADAPTER, (adapter / ADAPTER_CONFIG, adapter / ADAPTER_WEIGHTS), strict=True))
    targets = {key: file.absolute() for key, file in sorted(links.items())}

    def fill(folder: pathlib.Path) -> None:
        for key, target in targets.items():
            (folder / key).symlink_to(target)

    return _cached("adapted", [f"{key}\n{target}" for key, target in targets.items()], fill)


def _cached(kind: str, key: list[str], fill: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The folder of the user's cache for `key`, whole or not there. Several processes may make it at once."""
    folder = cache_dir() / kind / _hash("\n".join(key).encode())
    if folder.is_dir():
        return folder
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = pathlib.Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        fill(partial)
        partial.chmod(0o755)
        partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise UserError(
                f"cannot write {folder} ({in_one_line(error)}): give XDG_CACHE_HOME a folder that can be written"
            ) from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def is_embedded(folder: pathlib.Path) -> bool:
    """Whether the checkpoint in `folder` is one that comes with seedloop."""
    return folder.parent == EMBEDDED


def _resolve_embedded(name: str) -> pathlib.Path:
    present = sorted(file.parent.name for file in EMBEDDED.glob("*/model.safetensors"))
    if name not in present:
        raise UserError(
            f"no embedded model {name!r}: there are {', '.join(present) or 'none'}{meant(name, present)}"
        )
    return EMBEDDED / name


def _fetch(repo: str, fetch: bool) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub import errors

    def get() -> str:
        patterns: list[str] = [*_HUB_PATTERNS, _CARD]
        try:
            return huggingface_hub.snapshot_download(repo, allow_patterns=patterns, local_files_only=not fetch)
        except errors.LocalEntryNotFoundError:  # also without a network, which is another thing
            if fetch:
                raise
            raise NotHereError(f"model {repo} is not on this machine") from None

    return pathlib.Path(_of_hub(repo, get))


def absent(name: str) -> bool:
    """Whether `resolve` would fetch a model from the hub, which is asked for it, and nothing is fetched. Raises
    UserError as `resolve`: for a model that is nowhere, and where the hub cannot be asked."""
    import huggingface_hub

    try:
        resolve(name, fetch=False)
    except NotHereError:
        repo = hub_id(name) or name
        _of_hub(repo, lambda: huggingface_hub.model_info(repo, timeout=_ANSWER))
        return True
    return False


def _of_hub(repo: str, ask: Callable[[], T]) -> T:
    """What the hub gives. Raises UserError where it gives nothing."""
    from huggingface_hub import errors

    try:
        return ask()
    except UserError:
        raise
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
            f"cannot fetch {repo} from the hub ({in_one_line(error)}): check the network, or name a local folder"
        ) from None


def hub_id(name: str) -> str | None:
    """The id on the Hub of what `resolve` gives for a name, of the base where an adapter is joined to it; None for
    what is local."""
    base = name.partition("+")[0]
    if base == smollm2.NAME:
        return smollm2.HUB_ID
    return base if re.fullmatch(_HUB_ID, base) and not pathlib.Path(base).exists() else None


def licence(name: str) -> str | None:
    """The licence of a model that `resolve` gives, as its card or GGUF file states it; None where neither does.
    Raises UserError as `resolve`."""
    import yaml

    if name.partition("+")[0] == smollm2.NAME:
        return smollm2.LICENCE
    folder = resolve(name, fetch=False)
    card = folder / _CARD
    stated: object = None
    if card.is_file():
        front = re.match(r"---\s*\n(.*?)\n---\s*\n", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        with contextlib.suppress(yaml.YAMLError, AttributeError):  # no front matter, or no mapping in it
            stated = yaml.safe_load(front[1]).get("license") if front else None
    elif ggufs := sorted(folder.glob("*.gguf")):
        from common.model import gguf

        stated = gguf.read(ggufs[0]).fields.get("general.license")
    return stated if isinstance(stated, str) and stated else None


def fingerprint(folder: str | os.PathLike) -> str:
    """A short hash of a checkpoint: names and sizes of its files (weights, settings, tokenizer, chat template),
    and the first and last megabyte of each.

    Two trainings of one model differ in it, and 16 GB are looked at in no time; single changed weights in the
    middle of a large file are not seen.
    """
    digest = hashlib.sha256()
    for file in sorted(pathlib.Path(folder).iterdir()):
        matters = file.suffix in (".json", ".safetensors", ".gguf") or any(map(file.match, _HUB_PATTERNS))
        if matters and file.is_file():
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as data:
                digest.update(data.read(2**20))
                data.seek(max(0, size - 2**20))
                digest.update(data.read())
    return digest.hexdigest()[:16]


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors of a folder; none where it has others. With one file and an index of several, the one file
    is read, as in transformers: the index may be left over from an older model. Raises UserError where one that
    the index names is missing."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).exists():
        return []
    for name in (names := _indexed(folder / INDEX)):
        if not (folder / name).exists():
            raise UserError(f"{folder / name} is missing, though {INDEX} names it: fetch the checkpoint again")
    return [folder / name for name in names]


def _indexed(file: pathlib.Path) -> list[str]:
    """Names of the files that an index lists."""
    weight_map = read_object(file).get("weight_map")
    if not weight_map or not isinstance(weight_map, dict):
        raise UserError(f"{file} has no weight_map: fetch the checkpoint again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        place = pathlib.PurePath(name)
        if place.is_absolute() or ".." in place.parts:
            raise UserError(
                f"{file} names {quoted(name)}, a file outside of its folder: fetch the checkpoint again"
            )
    return names


def parameters(folder: str | os.PathLike) -> int | None:
    """How many parameters the files of a folder hold, by their headers alone; None where there are none to read.
    Raises UserError where one that the index names is missing.

    A header is JSON, before which its length stands in 8 bytes (format of safetensors). Files that cannot be read
    are left for the loader to complain about.
    """
    total, ggufs = 0, sorted(pathlib.Path(folder).glob("*.gguf"))
    if ggufs:
        from common.model import gguf

        return sum(math.prod(tensor.shape) for tensor in gguf.open_tensors(gguf.read(ggufs[0])).values())
    for file in weight_files(pathlib.Path(folder)):
        try:
            with file.open("rb") as data:
                size = int.from_bytes(data.read(8), "little")
                header = json.loads(data.read(min(size, _LONGEST_HEADER)))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
    return total or None


def has_template(folder: str | os.PathLike) -> bool:
    """Whether a checkpoint comes with a chat template, in a file of its own or among the tokenizer's settings."""
    folder = pathlib.Path(folder)
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    file = folder / "tokenizer_config.json"
    return file.exists() and b'"chat_template"' in file.read_bytes()
