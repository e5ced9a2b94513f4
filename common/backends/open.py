"""Back ends by name: a model in this process, a hosted one, a Python function. Importing it loads nothing heavy.

    backend = open_backend("openai:gpt-4o-mini", "teacher")           # loads or probes it now
    with backend(ReplyCache(folder / "replies.sqlite", share)) as generator:
        generator("repeat_0/llm2llm").generate(...)             # `share` is the limit of this account

Names: `embedded` and whatever `common.model.checkpoint.resolve` finds, `openai:MODEL`, `python:FILE.py:FUNCTION`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from common import hosts
from common.backends.budget import Budget
from common.backends.shared import shared
from common.errors import UserError
from common.generate import Generator, Message
from common.model import checkpoint
from common.model.checkpoint import fingerprint, resolve
from common.usercode import load_callable

if TYPE_CHECKING:
    from jax.sharding import Mesh

T = TypeVar("T")

Write = Callable[[list[Message]], str]


@dataclasses.dataclass(frozen=True)
class ReplyCache:
    """Where a hosted model's replies are kept, what each account may spend, and the prefix of account names."""

    replies: pathlib.Path
    share: Budget | None = None
    account: str = ""


Backend = Callable[[ReplyCache], Any]
"""A context manager over a reply cache; it gives a function from an account's name to its generator."""


def model_name(given: str, role: str) -> str:
    """ "embedded" is the embedded model of that role, "embedded+ADAPTER" the same with an adapter."""
    first, plus, adapter = given.partition("+")
    return f"embedded:{role}{plus}{adapter}" if first == "embedded" else given


def is_model(name: str) -> bool:
    """Whether `name` is a checkpoint, to be loaded into this process."""
    return name.partition(":")[0] not in ("openai", "python", "function", "pool", "program")


def check_name(name: str, flag: str, url: str | None = None) -> None:
    """Raise UserError for a back end that cannot exist, where that can be told without loading it."""
    kind, _, rest = name.partition(":")
    if kind == "python" and not pathlib.Path(rest.rpartition(":")[0]).is_file():
        raise UserError(f"no such file: {rest.rpartition(':')[0] or rest} (given as {flag} {name})")
    if kind == "openai":
        if not rest:
            raise UserError(f"{flag} openai: names no model: give one, such as openai:gpt-4o-mini")
        if url is not None:
            check_url(url, f"{flag}-url", "OPENAI_API_KEY")


def check_url(url: str, flag: str, key: str) -> None:
    """Raise UserError for a malformed address, and for one that holds a secret, which belongs in the environment
    variable `key`."""
    from common.backends.wire import split_address

    parts = split_address(url)
    if parts is None:
        raise UserError(f"{flag} is no address: give one like http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query:
        raise UserError(f"{flag} holds a login or a query, which would be stored: use {key}")


def check_backend(name: str, url: str | None = None) -> Write | None:
    """What `open_backend` checks before it loads a model or asks anybody; returns the function that a "python:"
    name names. Raises UserError for one that cannot be loaded, for a malformed address and for a missing key."""
    kind = name.partition(":")[0]
    if kind == "openai":
        from common.backends.wire import access

        access(url)
    return load_callable(name) if kind == "python" else None


def open_backend(
    name: str, role: str, *, url: str | None = None, function: Write | None = None, mesh: "Mesh | None" = None
) -> Backend:
    """Load or probe the back end `name` now; what it returns gives its generators.

    `role` is the embedded model's when `name` is "embedded"; `function` is called in place of what `name` names.
    A model in this process lies on `mesh`.
    Raises UserError for whatever cannot be found, loaded or reached.
    """
    kind, _, model = name.partition(":")
    called = function or check_backend(name, url)
    if called is not None:
        from common.backends.callback import CallbackGenerator

        return _the_same(lambda account: shared(name, lambda: CallbackGenerator(name, called)))
    if kind == "openai":
        return _hosted(model, url)
    from common.lm import LanguageModel

    generator = LanguageModel.load(model_name(name, role), mesh=mesh).generator()
    return _the_same(lambda account: generator)


def _the_same(make: Callable[[str], Generator]) -> Backend:
    return lambda cache: contextlib.nullcontext(make)


def _hosted(model: str, url: str | None) -> Backend:
    """The endpoint, after one probe of whether it can be reached."""
    from common.backends.endpoint import TIMEOUT, EndpointGenerator
    from common.backends.replies import Replies
    from common.backends.wire import Wire

    def check() -> None:
        with contextlib.closing(Wire(model, url, TIMEOUT)) as probe:
            probe.check()

    hosts.share(check)

    @contextlib.contextmanager
    def opened(cache: ReplyCache) -> Iterator[Callable[[str], Generator]]:
        with contextlib.ExitStack() as stack:

            @functools.cache
            def replies() -> Replies:
                return stack.enter_context(Replies(cache.replies))

            def asking(account: str) -> EndpointGenerator:
                scope = cache.account + account
                return stack.enter_context(
                    EndpointGenerator(model, url=url, replies=replies(), scope=scope, budget=cache.share)
                )

            if hosts.is_writer():
                replies()  # by the process that asks, and there before the work begins
            yield lambda account: shared(f"openai:{model}", lambda: asking(account))

    return opened


def fingerprints(models: Mapping[str, str], *, fetch: bool = True) -> dict[str, str]:
    """Hashes of the checkpoints among `models` (role: name), so that a run is not continued with others.

    Raises UserError, with the role, for one that cannot be found; without `fetch`, on this machine.
    """
    return _of_checkpoints(models, lambda name: fingerprint(resolve(name, fetch=fetch)))


def absent(models: Mapping[str, str]) -> list[str]:
    """Those checkpoints of `models` (role: name) that a run would fetch first. Raises UserError, with the role,
    for one that it would not find."""
    found = _of_checkpoints(models, checkpoint.absent)
    return list(dict.fromkeys(models[role] for role, is_absent in found.items() if is_absent))


def _of_checkpoints(models: Mapping[str, str], of: Callable[[str], T]) -> dict[str, T]:
    """What `of` gives for each checkpoint, by its role."""
    found = {}
    for role, name in models.items():
        if is_model(name):
            with checkpoint.in_roles(models), checkpoint.opened(name):
                found[role] = of(name)
    return found


def file_hashes(files: Iterable[str | None], backends: Iterable[str] = ()) -> dict[str, str]:
    """The start of the SHA-256 of every file a run reads, those of Python back ends included."""
    code = [name.removeprefix("python:").rpartition(":")[0] for name in backends if name.startswith("python:")]
    given = [file for file in (*files, *code) if file]
    hashes = {}
    for file in given:
        try:
            with pathlib.Path(file).open("rb") as data:
                hashes[file] = hashlib.file_digest(data, "sha256").hexdigest()[:16]
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): fix or change it") from None
    return hashes
