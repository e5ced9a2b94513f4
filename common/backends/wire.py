"""The wire to a chat endpoint: one client, its key, and what its errors mean.

Retries of 408, 409, 429, 5xx, timeouts and lost connections are the client library's, Retry-After included.
"""

import os
import re
import urllib.parse
from typing import Any

from common.backends.chat import KEPT, NO_CREDIT, dialect, is_hopeless, unfit
from common.config import SampleConfig
from common.errors import UserError, quoted
from common.generate import Request
from common.secret import masked

DEFAULT_URL = "https://api.openai.com/v1"
RETRIES = 5
"""Further tries of a request."""

_TERMINAL = {
    401: ("does not accept the key", "set OPENAI_API_KEY to a key of that service"),
    402: ("wants payment", "top up the account"),
    403: ("forbids the request", "check what the key may use"),
    404: ("knows no such model or path", "check the model's name and the address, which mostly ends in /v1"),
}


def read_key(name: str) -> str:
    """The key that the environment variable `name` holds, "" if there is none. Raises UserError, without the key,
    if it cannot be sent."""
    key = os.environ.get(name, "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise UserError(f"{name} holds characters that no key has: copy it again")
    return key


def access(url: str | None) -> tuple[str, str]:
    """The address of an endpoint, OPENAI_BASE_URL's or OpenAI's own if none is given, and the key for it, "" for
    none. Raises UserError for a malformed address and for a missing key; nobody is asked."""
    # With and without a slash it is one address, and finds the same stored replies.
    url = (url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL).rstrip("/")
    _without_login(url)
    key = read_key("OPENAI_API_KEY")
    if not key and url == DEFAULT_URL:
        raise UserError(f"{url} wants a key: set the environment variable OPENAI_API_KEY")
    return url, key


class LostError(Exception):
    """No reply came, after all retries."""


class UnfitError(Exception):
    """The server cannot take this one prompt."""


class Wire:
    """Connections to one model at one address; call `close` when done. Any number of threads may send.

    The key comes from OPENAI_API_KEY and goes into requests only: `line` and `chat.read_reply` clear it from what
    comes back.
    """

    def __init__(self, model: str, url: str | None, timeout: float):
        """`timeout` in seconds. Raises UserError for a malformed address and for a missing key."""
        self.url, key = access(url)
        self.shown_url = _without_login(self.url)
        self._model, self._timeout = model, timeout
        self._dialect = dialect(self.url, model)

        import openai  # takes a second, for which runs without an endpoint need not wait

        self._client = openai.OpenAI(
            base_url=self.url,
            # The client wants one; a local server does not look at it.
            api_key=key or "none",
            max_retries=RETRIES,
            timeout=openai.Timeout(timeout, connect=min(timeout, 20.0)),
            http_client=openai.DefaultHttpxClient(event_hooks={"response": [_no_vain_retry]}),
        )

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        self._client.close()

    def check(self) -> None:
        """Ask for the list of models, which costs nothing. Raises UserError if the server cannot be reached or
        does not accept the key; a server without such a list passes."""
        import openai

        try:
            # Few retries: a wrong address should show soon.
            self._client.with_options(max_retries=1).models.with_raw_response.list(timeout=min(self._timeout, 20))
        except openai.APIConnectionError as error:
            reason = self._reason(error)
            raise UserError(
                f"{self.shown_url} cannot be reached ({reason}): check the address and the network"
            ) from None
        except openai.APIStatusError as error:
            if error.status_code in (401, 402, 403):
                raise self._terminal(error.status_code, self._words(error)) from None

    def send(self, request: Request, sampling: SampleConfig) -> str:
        """Ask once and return the body of the answer, which may be anything.

        Raises LostError, UnfitError, and UserError for a refusal that concerns every request.
        """
        import openai

        while True:  # ends, as every further turn follows a change that `Dialect.learn` makes only once
            body = self._dialect.body(request, sampling)
            try:
                raw = self._client.chat.completions.with_raw_response.create(**body)
                self._dialect.worked(body)
                return raw.content.decode("utf-8", "replace")
            except openai.APIConnectionError as error:
                raise LostError(f"no reply after all retries ({self._reason(error)})") from None
            except openai.APIStatusError as error:
                status, words = error.status_code, self._words(error)
                # It may come with status 429, but no waiting helps.
                if error.code in NO_CREDIT:
                    raise self._terminal(status, words, as_if=402) from None
                if status == 400 and (wrong := unfit(error.code, words)):
                    raise UnfitError(wrong) from None
                # Another thread may have learned the same meanwhile; what counts is whether the body differs now.
                self._dialect.learn(status, f"{error.param} {error.message}", body)
                if self._dialect.body(request, sampling) != body:
                    continue
                if status in (408, 409, 429) or status >= 500:
                    raise LostError(f"no reply after all retries (HTTP {status}: {words})") from None
                raise self._terminal(status, words) from None

    def line(self, text: str) -> str:
        """What a server said as it may be shown: one short line without the key."""
        line = re.sub(r"\bsk-[\w*-]+", "[key]", " ".join(masked(text).split()))
        return line if len(line) <= 300 else line[:297] + "..."

    def _terminal(self, status: int, words: str, as_if: int | None = None) -> UserError:
        what, fix = _TERMINAL.get(as_if or status, ("refuses the request", "change the setting it names"))
        return UserError(f"{self.shown_url} {what} for model {self._model} ({status}: {words}): {fix}; {KEPT}")

    def _words(self, error: Any) -> str:
        """The server's own words on what is wrong."""
        said = error.body.get("message") if isinstance(error.body, dict) else None
        return self.line(said if isinstance(said, str) else error.message)

    def _reason(self, error: Any) -> str:
        """Why the connection failed."""
        import openai

        if isinstance(error, openai.APITimeoutError):
            return f"timed out, {self._timeout:g} s"
        return self.line(str(error.__cause__) or type(error.__cause__).__name__)


def _no_vain_retry(response: Any) -> None:
    """Tell the client library, in the header that it obeys, that another try would be refused too."""
    if response.status_code in (429, 500):
        response.read()
        if is_hopeless(response.status_code, response.text):
            response.headers["x-should-retry"] = "false"


def split_address(url: str) -> urllib.parse.SplitResult | None:
    """The parts of an http address; None if it is malformed, its port included."""
    try:
        parts = urllib.parse.urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets without an end, a port that is no number or above 65535
        return None
    return parts if sound and not re.search(r"\s", url) else None


def _without_login(url: str) -> str:
    """The address as it may be shown, without login and query. Raises UserError if it is malformed."""
    parts = split_address(url)
    if parts is None:
        raise UserError(f"{quoted(url)} is no address of an endpoint: give one like http://localhost:8000/v1")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
