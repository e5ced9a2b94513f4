"""Text to token ids and back, with the model's own chat template.

Training and evaluation go through the same two functions, so that an example's prompt is, token for token, the
prompt that the model later sees.

    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode_prompt([{"role": "user", "content": "2 + 3?"}])
    ids, prompt_length = tokenizer.encode_example([{"role": "user", "content": "2 + 3?"}], "5")
    text = tokenizer.decode(ids[prompt_length:])              # "5"
"""

import functools
import logging
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from common.errors import UserError, in_one_line, quoted
from common.generate import system_into_user
from common.mapping import read_object

Messages = Sequence[dict[str, str]]

_THOUGHTS = ("<think>", "</think>")
"""What templates of reasoning models look for in an answer: they drop what stands in front of the second."""
_FIRST_MARK = 0x100000
"""Characters from here on, in Unicode's last private area, stand for control tokens that a text mentions."""
_PROBE = "seedlooptext"
"""A text to see what a template makes of one."""
LONG = 10_000
"""Characters of one to see whether a template writes all of it."""


def import_transformers() -> Any:
    """transformers, imported late (it takes a second) and without its notice that PyTorch is absent."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    # Their remarks on odd fields of a configuration quote all of them.
    logger = logging.getLogger("transformers")
    if not any(isinstance(known, _Short) for handler in logger.handlers for known in handler.filters):
        for handler in logger.handlers:
            handler.addFilter(_Short())
    return transformers


class _Short(logging.Filter):
    """Of a message what fits into a few lines of a terminal."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = in_one_line(Warning(record.getMessage())), None
        return True


class Tokenizer:
    """A checkpoint's tokenizer and chat template.

    eos_ids: tokens that end an answer, the tokenizer's own first, then those that the folder names, then what the
    template writes behind a turn; empty if there is none of these.
    pad_id: fills rows on the right; never attended to. vocab_size: number of tokens, added ones included.
    bos_id: the token that it names as the start of a text, None without one; see `start_ids`.
    """

    def __init__(self, backend: Any, eos_ids: tuple[int, ...] = ()):
        own = () if backend.eos_token_id is None else (backend.eos_token_id,)
        self._backend = backend
        added = backend.added_tokens_decoder.values()
        self._control = sorted({*backend.all_special_tokens, *(str(token) for token in added if token.special)})
        self._marks = {text: chr(_FIRST_MARK + i) for i, text in enumerate((*self._control, *_THOUGHTS))}
        self._mentioned = _any_of(self._marks)
        self._shown: dict[tuple[str, ...], bool] = {}
        self._turn_end = self._find_turn_end(str(token) for token in added)
        turn_end = () if self._turn_end is None else (self._turn_end,)
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(own + eos_ids + turn_end))
        pad = backend.pad_token_id
        self.pad_id: int = pad if pad is not None else (self.eos_ids or (0,))[0]
        self.vocab_size: int = len(backend)
        self.bos_id: int | None = backend.bos_token_id

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Tokenizer":
        """Read the tokenizer of a checkpoint folder. Raises UserError when its files are missing or broken."""
        folder = pathlib.Path(folder)
        if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            raise UserError(f"{folder} holds no tokenizer (tokenizer.json): copy the base model's there")
        transformers = import_transformers()
        # A folder that declares the general class means its tokenizer.json as it stands. For some architectures
        # (qwen2) AutoTokenizer would put their own class in its place, with other rules and added tokens.
        declared = _read_json(folder / "tokenizer_config.json").get("tokenizer_class")
        general = declared in ("PreTrainedTokenizerFast", "TokenizersBackend")
        loader = transformers.PreTrainedTokenizerFast if general else transformers.AutoTokenizer
        try:
            backend = loader.from_pretrained(folder, trust_remote_code=False)
            # Settings of another type than they should have, and an unknown token that is none, show only in use.
            backend("a \N{ALCHEMICAL SYMBOL FOR AIR}")
        except Exception as error:  # errors of three libraries, most of them plain Exception
            reason = in_one_line(error)
            raise UserError(f"cannot read the tokenizer in {folder}: {reason}") from None
        return cls(backend, _stated_eos(folder))

    def encode_prompt(self, messages: Messages) -> list[int]:
        """Token ids of a conversation up to where the assistant's answer begins.

        With a chat template, the template's; otherwise the turns with blank lines between them, "Answer:" in front
        of the assistant's, and at the end. A control token that a content mentions is text, not that token.
        Raises UserError when the template refuses the conversation, or leaves out what is said in it.
        """
        return self._encode(self._prompt_text(messages))

    def encode_begun(self, messages: Messages, answer: str) -> list[int]:
        """Token ids of a conversation and the beginning `answer` of the assistant's turn, which is to go on.

        The ids begin with those of `encode_prompt(messages)`. Raises UserError as that does.
        """
        prompt_text, begun = self.written(messages, answer)
        prompt, ids = self._encode(prompt_text), self._encode(prompt_text + begun)
        return ids if ids[: len(prompt)] == prompt else prompt + self._encode(begun, bos=False)

    def encode_example(self, messages: Messages, answer: str) -> tuple[list[int], int]:
        """Token ids of prompt, answer and end token, and the prompt's length.

        The ids begin with those of `encode_prompt(messages)`; all that follows is to be learned.
        Raises UserError when the tokenizer has no end token.
        """
        if not self.eos_ids:
            raise UserError("the tokenizer has no end token: set eos_token in tokenizer_config.json")
        prompt_text = self._prompt_text(messages)
        prompt = self._encode(prompt_text)
        answer_text = self._answer_text(messages, prompt_text, answer)
        ids = self._encode(prompt_text + answer_text)
        if ids[: len(prompt)] != prompt:  # a token would span the border between prompt and answer
            ids = prompt + self._encode(answer_text, bos=False)
        # Templates may write more after the end token; generation stops before it, so it is not learned. One that
        # the answer mentions is text, and none of these.
        ends = (i for i in range(len(prompt), len(ids)) if ids[i] in self.eos_ids)
        end = next(ends, None)
        last = self.eos_ids[0] if self._turn_end is None else self._turn_end
        return ([*ids, last] if end is None else ids[: end + 1]), len(prompt)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text, without a template and without special tokens."""
        return self._backend(text, add_special_tokens=False, verbose=False)["input_ids"]

    def encode_with_places(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """For each text its token ids, as `encode_text` gives them, and the place of every token in it: from which
        character to before which.

        Raises UserError for a tokenizer that does not keep count of places (one without a tokenizer.json).
        """
        if not getattr(self._backend, "is_fast", False):
            raise UserError("the tokenizer cannot tell where its tokens stand: the folder needs a tokenizer.json")
        if not texts:
            return []
        found = self._backend(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(zip(found["input_ids"], found["offset_mapping"], strict=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        # No clean-up: it would take away blanks that the model wrote.
        return self._backend.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @functools.cached_property
    def start_ids(self) -> list[int]:
        """What stands in front of plain text: `bos_id` if the tokenizer puts it there, else nothing. Templates
        write their own. The tokenizer's `add_bos_token` does not tell."""
        bos = self.bos_id
        return [bos] if bos is not None and self._backend("a")["input_ids"][:1] == [bos] else []

    @property
    def has_template(self) -> bool:
        """Whether conversations go through a chat template."""
        return bool(self._backend.chat_template)

    def written(self, messages: Messages, answer: str) -> tuple[str, str]:
        """The text of a conversation up to where the assistant's answer begins, and the answer as it stands there
        (some templates put a blank in front), without what follows it. Raises UserError as `encode_prompt`."""
        prompt = self._prompt_text(messages)
        text = self._answer_text(messages, prompt, answer)
        prompt, text = self._unmarked(prompt), self._unmarked(text)
        place = text.find(answer)
        return prompt, text[: place + len(answer)] if place >= 0 else answer

    def _encode(self, text: str, bos: bool = True) -> list[int]:
        if self._marked(text):
            ids = self._encode_marked(text)
        else:
            ids = self._backend(text, add_special_tokens=False, verbose=False)["input_ids"]
        return self.start_ids + ids if bos and not self.has_template else ids

    def _encode_marked(self, text: str) -> list[int]:
        """Cut at the control tokens that stand there as such, as the tokenizer cuts; the rest is text."""
        text_ids = functools.partial(
            self._backend, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        ids = []
        for piece in re.split(f"({_any_of(self._control).pattern})", text):
            if piece in self._control:
                ids.append(self._backend.convert_tokens_to_ids(piece))
            elif piece:
                ids += text_ids(self._unmarked(piece))["input_ids"]
        return ids

    def _mark(self, text: str) -> str:
        """`text` with a character in place of each control token, and of each sign of a thought, that it mentions:
        neither the template nor the tokenizer shall take it for one."""
        return self._mentioned.sub(lambda found: self._marks[found[0]], text)

    def _marked(self, text: str) -> bool:
        return any(_FIRST_MARK <= ord(letter) < _FIRST_MARK + len(self._marks) for letter in text)

    def _unmarked(self, text: str) -> str:
        return (
            text.translate({ord(mark): said for said, mark in self._marks.items()}) if self._marked(text) else text
        )

    def _prompt_text(self, messages: Messages) -> str:
        if not self.has_template:
            return _plain_text([message | {"content": self._mark(message["content"])} for message in messages])
        text = self._render(messages, add_generation_prompt=True)
        if text.rstrip().endswith(_THOUGHTS[0]):
            # Answers are direct ones: where a template leaves the thought open, it is closed as Qwen3's does.
            return text.rstrip() + f"\n\n{_THOUGHTS[1]}\n\n"
        return text

    def _answer_text(self, messages: Messages, prompt_text: str, answer: str) -> str:
        """What follows the prompt: the answer as the template writes it, or as it is."""
        if self.has_template:
            turn = {"role": "assistant", "content": answer}
            text = self._render([*messages, turn], add_generation_prompt=False)
            rest, said = text[len(prompt_text) :], self._mark(answer)
            # Some write the prompt alone, without what the assistant says.
            shown = said.strip() in rest or self._shows_all(*(m["role"] for m in messages), "assistant")
            return rest if text.startswith(prompt_text) and shown else said
        # One blank, also in front of an answer that was generated with it.
        return self._mark(answer if answer[:1].isspace() else f" {answer}")

    def _rendered(self, messages: Messages, add_generation_prompt: bool, parts: Collection[str]) -> str:
        """The template's text of a conversation; turns of the roles `parts` are handed over as a list."""
        listed = lambda text: [{"type": "text", "text": text}]
        turns = [
            message | {"content": listed(message["content"]) if message["role"] in parts else message["content"]}
            for message in messages
        ]
        # enable_thinking: answers are direct ones, so templates of reasoning models (Qwen3) close the
        # thinking block in the prompt, and write the same in the training text; others ignore it.
        return self._backend.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
        )

    def _shows(self, role: str, parts: Collection[str]) -> bool:
        """Whether the template writes what is said in a turn of `role` where turns of `parts` are lists."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        try:
            text = self._rendered(
                turns if role == "assistant" else [{"role": role, "content": _PROBE}], False, parts
            )
        except Exception:  # templates fail in many ways; whether this one matters shows with a real conversation
            return False
        return _PROBE in text and f"'{_PROBE}'" not in text  # a list printed as it is would be in quotes

    @functools.cached_property
    def _parts(self) -> tuple[str, ...]:
        """The roles whose turns the template wants as a list of parts: of a plain text it would write nothing."""
        parts: tuple[str, ...] = ()
        for role, more in (("user", ("user", "system")), ("assistant", ("assistant",))):
            if not self._shows(role, parts) and self._shows(role, parts + more):
                parts += more
        return parts

    def _shows_all(self, *roles: str) -> bool:
        """Whether the template writes what is said in every turn of a conversation, but for the system's."""
        if roles not in self._shown:
            # Long, or a template that cuts texts would pass.
            turns = [
                {"role": role, "content": f"{_PROBE}{place}{LONG * '.'}{place}"}
                for place, role in enumerate(roles)
            ]
            try:
                text = self._rendered(turns, False, self._parts)
            except Exception:  # as in `_shows`
                text = ""
            self._shown[roles] = all(turn["content"] in text for turn in turns if turn["role"] != "system")
        return self._shown[roles]

    def _find_turn_end(self, added: Iterable[str]) -> int | None:
        """The token that the template writes behind an answer."""
        if not self.has_template:
            return None
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        try:
            text = self._rendered(turns, False, self._parts)
        except Exception:  # as in `_parts`
            return None
        _, answer, behind = text.rpartition(_PROBE)
        found = _any_of(added).match(behind.lstrip())
        return self._backend.convert_tokens_to_ids(found[0]) if answer and found else None

    def _render(self, messages: Messages, add_generation_prompt: bool) -> str:
        import jinja2

        def render(messages: Messages) -> str:
            try:
                text = self._rendered(messages, add_generation_prompt, self._parts)
            except jinja2.TemplateError:
                raise
            except Exception as error:  # of Python, where a template adds a text to a number
                raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from None
            # Of an answer the caller looks at itself.
            asked = messages if add_generation_prompt else messages[:-1]
            said = [turn["content"].strip() for turn in asked if turn["role"] != "system"]
            # Of one turn its own words tell; a short answer among several may stand there by chance.
            if (len(said) > 1 or any(content not in text for content in said)) and not self._shows_all(
                *(turn["role"] for turn in asked)
            ):
                raise UserError(
                    "the chat template leaves out what the user says, or turns before that: give the model "
                    "another one, or ask without examples"
                )
            return text

        messages = [message | {"content": self._mark(message["content"])} for message in messages]
        merged = system_into_user(messages)
        try:
            text = render(messages)
            # Some templates leave a system turn out without a word.
            if merged is None or messages[0]["content"].strip() in text:
                return text
        except jinja2.TemplateError as error:
            if merged is None:
                raise UserError(f"the chat template refuses the conversation: {error}") from None
        try:
            return render(merged)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses the conversation: {error}") from None


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """An expression for any of `texts`, the longest that fits; one that fits nothing if there is none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _plain_text(messages: Messages) -> str:
    """A conversation for a model that knows no turns, up to where the answer begins."""
    parts = []
    for message in messages:
        spoken = message["role"] == "assistant"
        parts.append(f"\nAnswer: {message['content']}" if spoken else f"\n\n{message['content']}")
    return "".join(parts).lstrip("\n") + "\nAnswer:"


def _stated_eos(folder: pathlib.Path) -> tuple[int, ...]:
    """End tokens in generation_config.json, else in config.json: a number or a list of numbers."""
    for name in ("generation_config.json", "config.json"):
        stated = _read_json(folder / name).get("eos_token_id")
        ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
        if not all(isinstance(number, int) and number >= 0 for number in ids):
            raise UserError(
                f"{folder / name}: eos_token_id {quoted(stated)} is no token's number, and no list of them"
            )
        if ids:
            return tuple(ids)
    return ()


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    """A JSON object; an empty one when there is no such file."""
    return read_object(file) if os.path.lexists(file) else {}
