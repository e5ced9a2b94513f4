"""The format of chat endpoints, without the network: request bodies, replies, and what refusals mean.

Servers that call themselves compatible differ in what they accept. A `Dialect` starts with the common form and
learns from refusals, which cost nothing.
"""

import functools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from common.backends.budget import Spent
from common.backends.replies import Reply
from common.characters import mended
from common.config import SampleConfig
from common.generate import Record, Request, system_into_user
from common.secret import masked, masked_value
from common.tasks.replies import bare

ASKS = 2
"""How often one sample is paid for at most: after a reply without text there is a second try."""

NOTHING = "no "
"""How the error of a reply begins in which nothing was said."""
MORE = (
    "allow it more (--teacher-tokens, --labeler-tokens, --guard-tokens, --source-tokens, --judge-tokens), or "
    "switch its reasoning off at the server"
)
"""What helps where reasoning uses up the length of a reply."""

MOST_TOKENS = 10_000_000
"""Of one reply or prompt that a server is believed to have counted: no model takes as many."""

KEPT = "everything bought so far is kept; the same command continues"

log = logging.getLogger(__name__)

_UNSUPPORTED = re.compile(
    r"support|recogni[sz]|unknown|unexpected|extra|permitted|allowed|deprecated|compatible|cannot", re.IGNORECASE
)
_SCHEMA = re.compile(r"response_format|json_schema|structured|grammar|guided", re.IGNORECASE)
_SYSTEM = re.compile(r"system (role|message|prompt|turn)|roles must alternate", re.IGNORECASE)
NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")


def is_hopeless(status: int, body: str) -> bool:
    """Whether a refusal comes back however often the same is sent, though its status says that it may pass."""
    if status == 429:
        return any(f'"{code}"' in body for code in NO_CREDIT)
    return status == 500 and (_SCHEMA.search(body) or _SYSTEM.search(body)) is not None


class Dialect:
    """What one model at one address accepts. Threads share it without a lock: it only ever drops features."""

    def __init__(self, model: str):
        self._model = model
        self._limit = "max_tokens"  # first, as servers that do not know max_completion_tokens may ignore it
        self._schema: str | None = "json_schema"
        self._schema_worked = False
        self._system = True
        self._refused: set[str] = set()

    def body(self, request: Request, sampling: SampleConfig) -> dict[str, Any]:
        """Arguments of the client's `chat.completions.create`."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": (None if self._system else system_into_user(request.messages)) or list(request.messages),
            self._limit: sampling.max_new_tokens,
        }
        if "temperature" not in self._refused:
            body["temperature"] = sampling.temperature
        # Only where it cuts something: some servers refuse a parameter that others ignore.
        if sampling.top_p < 1 and "top_p" not in self._refused:
            body["top_p"] = sampling.top_p
        if sampling.top_k > 0 and "top_k" not in self._refused:
            # Not one of OpenAI's parameters: the client passes on what stands here.
            body["extra_body"] = {"top_k": sampling.top_k}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if request.fields and self._schema:
            body["response_format"] = _schema(request.fields, dict(request.choices), self._schema)
        return body

    def learn(self, status: int, words: str, sent: dict[str, Any]) -> None:
        """Drop what a refusal of the body `sent` names; `words` is all that the server said."""
        # Others are not about the body. Some servers that stumble over a feature call it a fault of their own.
        if status not in (400, 404, 422, 500):
            return
        if sent["messages"][0]["role"] == "system" and _SYSTEM.search(words):
            log.warning("model %s takes no system turn: its text goes into the user's", self._model)
            self._system = False
            return
        if status == 500:
            if "response_format" in sent and (_SCHEMA.search(words) or not self._schema_worked):
                self._drop_schema(words, sent)
            return
        names = lambda parameter: re.search(rf"\b{parameter}\b", words) is not None
        if _UNSUPPORTED.search(words):
            for name in ("top_k", "top_p", "temperature"):
                if names(name) and (name in sent or name in sent.get("extra_body", {})):
                    if name not in self._refused:
                        log.warning("model %s refuses %s: its own default is used", self._model, name)
                    self._refused.add(name)
                    return
            if names("max_tokens") and "max_tokens" in sent:
                self._limit = "max_completion_tokens"
                return
        # Many servers refuse a schema without naming it. A 404 must name it: it mostly means the model.
        if "response_format" in sent and (status != 404 or _SCHEMA.search(words)):
            self._drop_schema(words, sent)

    def worked(self, sent: dict[str, Any]) -> None:
        """A body that the server took."""
        self._schema_worked |= "response_format" in sent

    def _drop_schema(self, words: str, sent: dict[str, Any]) -> None:
        if sent["response_format"]["type"] == "json_schema" and "json_object" in words:
            self._schema = "json_object"  # the form of llama-cpp-python, which says so
        elif self._schema is not None:
            log.warning("model %s is not held to the form of a reply: the server refuses a schema", self._model)
            self._schema = None


@functools.cache
def dialect(url: str, model: str) -> Dialect:
    """The one dialect of this model at this address in this process."""
    return Dialect(model)


def _schema(fields: Sequence[str], choices: Mapping[str, Sequence[str]], kind: str) -> dict[str, Any]:
    """A strict JSON schema of one string for each field, of a few in which `choices` names them; `kind` says where
    it stands."""
    text = lambda field: {"type": "string"} | ({"enum": list(choices[field])} if field in choices else {})
    schema = {
        "type": "object",
        "properties": {field: text(field) for field in fields},
        "required": list(fields),
        "additionalProperties": False,
    }
    if kind == "json_object":
        return {"type": kind, "schema": schema}
    return {"type": kind, "json_schema": {"name": "reply", "strict": True, "schema": schema}}


def estimate(request: Request, sampling: SampleConfig) -> Spent:
    """What one sample may cost: a token for about four bytes, and as long an answer as is allowed."""
    size = sum(len(message["content"].encode("utf-8", "replace")) for message in request.messages)
    return Spent(1, size // 4 + 1, sampling.max_new_tokens)


def read_reply(text: str, expected: Spent) -> Reply:
    """The body of an answer with status 200, with keys masked. Raises ValueError if it is not a reply.

    A server that does not count tokens, or counts what cannot be, is charged by the estimate `expected` and the
    length of the text: else no budget would bind.
    """
    data = masked_value(json.loads(text))
    # Some servers send an error with status 200. What nobody counted is not charged either.
    if not isinstance(data, dict) or (not data.get("choices") and (data.get("error") or not data.get("usage"))):
        raise ValueError(f"not a chat completion: {masked(text)[:200]}")
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    message, usage = _get(choice, "message", dict) or {}, data.get("usage")
    content = _text(message.get("content"))
    completed = "" if content is None else content
    prompt = _tokens(usage, "prompt_tokens", least=1)
    completion = _tokens(usage, "completion_tokens", least=1 if completed else 0)
    return Reply(
        text=content,
        finish=_get(choice, "finish_reason", str) or ("unknown" if choice else None),
        refusal=_get(message, "refusal", str),
        prompt_tokens=expected.prompt_tokens if prompt is None else prompt,
        completion_tokens=len(completed) // 4 + 1 if completion is None else completion,
        instead=_instead(message),
    )


def _tokens(usage: Any, name: str, least: int) -> int | None:
    """What a server counted, None where it did not or where that cannot be: no whole number, below `least`, or
    beyond reason."""
    count = _get(usage, name, int)
    return count if count is not None and least <= count <= MOST_TOKENS and not isinstance(count, bool) else None


def _text(content: Any) -> str | None:
    """What a message says: a text, or a list of parts, of which some are the model's thinking."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    kinds = ("text", "output_text")
    said = [_get(part, "text", str) for part in content if isinstance(part, dict) and part.get("type") in kinds]
    return "".join(filter(None, said)) or None


def _instead(message: dict[str, Any]) -> str | None:
    """What a message holds beside its text, or in its place."""
    if message.get("tool_calls") or message.get("function_call"):
        return "a tool call"
    parts = message["content"] if isinstance(message.get("content"), list) else []
    thinks = any(isinstance(part, dict) and part.get("type") in ("thinking", "reasoning") for part in parts)
    return "reasoning" if thinks or message.get("reasoning_content") or message.get("reasoning") else None


def _get(data: Any, name: str, kind: type) -> Any:
    """`data[name]` if it is there and of that type, else None."""
    value = data.get(name) if isinstance(data, dict) else None
    return value if isinstance(value, kind) else None


def to_record(request: Request, sample: int, asks: Sequence[Reply]) -> Record | None:
    """The record of a sample from the replies bought for it, or None when it takes one more."""
    if not asks:
        return None
    reply = asks[-1]
    make = functools.partial(
        Record,
        request.id,
        sample,
        attempts=len(asks),
        prompt_tokens=sum(reply.prompt_tokens for reply in asks),
        completion_tokens=sum(reply.completion_tokens for reply in asks),
    )
    # Asked again, it would be paid for and refused again.
    if reply.refusal or reply.finish == "content_filter":
        return make("failed", None, f"refused: {' '.join(mended(reply.refusal or 'content filter').split())}")
    text = bare(mended(reply.text or ""))
    if reply.finish == "length":
        if not text.strip() and reply.instead == "reasoning":
            used = f"reasoning used up all {reply.completion_tokens} tokens of the reply"
            return make("failed", None, f"{used}: {MORE}")
        return make("length", text)
    if text.strip():
        return make("ok", labelled(text, request.fields))
    if len(asks) < ASKS:
        return None
    missing = "choices" if reply.finish is None else "text"
    instead = f" but {reply.instead}" if reply.instead else ""
    return make("failed", None, f"{NOTHING}{missing}{instead} in the reply, asked {len(asks)} times")


def labelled(text: str, fields: Sequence[str]) -> str:
    """A JSON object of exactly these fields as "Field: value" lines; anything else as it came."""
    try:
        values = json.loads(text) if fields else None
    except ValueError:
        return text
    if not isinstance(values, dict) or set(values) != set(fields):
        return text
    if not all(isinstance(value, str | int | float) for value in values.values()):
        return text
    return "\n".join(f"{field}: {values[field]}" for field in fields)


def unfit(code: str | None, words: str) -> str | None:
    """What is wrong if a refusal (status 400) is about this one prompt and no other."""
    if code == "context_length_exceeded" or "maximum context length" in words:
        return f"the prompt is too long: {words}"
    if code in ("content_filter", "content_policy_violation"):
        return f"refused: {words}"
    return None
