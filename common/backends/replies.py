"""The cache of replies that were paid for, so that nothing is bought twice.

    with Replies(folder / "replies.sqlite") as replies:
        key = reply_key(url=url, model=model, messages=messages, ...)
        reply = replies.get(key) or buy_and_put(...)

Every reply is committed as it arrives, before it is used. Failures in transit (timeouts, refused connections,
server errors) are never stored: another try may succeed.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

from common.backends.budget import BUDGET_SPENT, Spent, unpaid
from common.errors import UserError

log = logging.getLogger(__name__)

_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, scope TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    reply TEXT NOT NULL
) WITHOUT ROWID
"""


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply that was paid for. `text` is None for a reply without content, `finish` for one without choices.
    `instead`: what came beside the text or in its place, such as reasoning."""

    text: str | None
    finish: str | None
    refusal: str | None
    prompt_tokens: int
    completion_tokens: int
    instead: str | None = None


def reply_key(**parts: Any) -> str:
    """A hash of everything a reply depends on; `parts` are JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def unbought(folder: pathlib.Path) -> list[str]:
    """A warning where the budget of the run in `folder` did not cover all that was to be asked of hosted models:
    which limits were reached, after how many calls, and how many requests were not made."""
    store = folder / "replies.sqlite"
    if not store.exists():
        return []
    limits: collections.Counter[str] = collections.Counter()
    for file in folder.rglob("*.jsonl"):
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                # Records alone: what was refused for want of a reply names the same error.
                with contextlib.suppress(ValueError):  # a line that was cut is named where it is read
                    if (
                        BUDGET_SPENT in line
                        and "attempts" in (row := json.loads(line))
                        and unpaid(row.get("error"))
                    ):
                        limits[row["error"].removeprefix(f"{BUDGET_SPENT}: ")] += 1
    if not limits:
        return []
    with Replies(store) as replies:
        bought = replies.spent()
    count, tokens = limits.total(), bought.prompt_tokens + bought.completion_tokens
    names = sorted({name for several in limits for name in several.split(" and ")})
    return [
        f"the budget is spent: {count} {'request was' if count == 1 else 'requests were'} not made, for want of "
        f"{' and '.join(names)} in the shares of --budget, after {bought.calls} paid "
        f"{'call' if bought.calls == 1 else 'calls'} and {tokens} tokens in all"
    ]


class Replies:
    """A store in one SQLite file, for any number of threads. Close it, or use it in a `with` block.

    Raises UserError when the file cannot be used or the disk is full.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._lock = threading.Lock()
        self._told = False  # that some cannot be read
        with self._explained():
            # Threads take turns under the lock; autocommit makes every statement a transaction.
            self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        try:
            with self._explained():
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")  # a reply outlives a power cut, not only the process
                self._db.execute(_TABLE)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> "Replies":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        with self._lock:
            self._db.close()

    def get(self, key: str) -> Reply | None:
        """The reply stored under `key`, if there is one."""
        with self._lock, self._explained():
            row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            return Reply(**json.loads(row[0]))
        except (TypeError, ValueError):
            self._set_aside(key)
            return None

    def _set_aside(self, key: str) -> None:
        """Keep a reply that cannot be read, which was paid for, under another name."""
        if not self._told:
            log.warning(
                "%s holds replies that cannot be read, perhaps of another version: bought again", self.path
            )
            self._told = True
        with self._lock, self._explained():
            self._db.execute("UPDATE OR REPLACE replies SET key = ? WHERE key = ?", (f"unreadable {key}", key))

    def put(self, key: str, scope: str, reply: Reply) -> None:
        """Store a reply for good, charged to the account `scope`."""
        # As JSON in ASCII, because a text may hold half a surrogate pair, which SQLite does not take.
        values = (key, scope, reply.prompt_tokens, reply.completion_tokens, json.dumps(dataclasses.asdict(reply)))
        # The first reply under a key stays: a record may have been made of it already.
        with self._lock, self._explained():
            self._db.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", values)

    def spent(self, scope: str | None = None) -> Spent:
        """What all processes so far have charged to the account `scope`; without one, to all accounts."""
        with self._lock, self._explained():
            row = self._db.execute(
                "SELECT COUNT(*), COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0) "
                "FROM replies WHERE scope = COALESCE(?, scope)",
                (scope,),
            ).fetchone()
        return Spent(*row)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what SQLite says about a file that cannot be used into a UserError."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a mistake of the code, such as use after close
        except sqlite3.OperationalError as error:
            raise UserError(
                f"cannot use {self.path} ({error}): free some space or fix the permissions, then give the same "
                "command again, it continues there"
            ) from error
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path} is damaged ({error}): restore it, or delete it to buy its replies again"
            ) from error
