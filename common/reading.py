"""What of a language model is known without its weights: its shape and its tokenizer, and so what fits into it.

    reader = Reader.read("smollm2")             # None for a model that is not on this machine
    reader.check_prompts(task, examples, 64)

Loads no jax: a plan makes the checks of a run.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from common.config import ModelConfig
from common.errors import UserError
from common.memory import Model
from common.model import checkpoint
from common.model.tokenizer import Tokenizer
from common.tasks.base import Example, Task
from common.train.data import Encoded


@dataclasses.dataclass(frozen=True)
class Reader:
    """`folder` is the checkpoint that config and tokenizer come from."""

    name: str
    folder: pathlib.Path
    config: ModelConfig
    tokenizer: Tokenizer

    @classmethod
    def read(cls, name: str) -> "Reader | None":
        """That of a checkpoint; None for one that is not here yet, or whose shape only transformers knows. Raises
        UserError for a folder or a tokenizer that cannot be read."""
        with checkpoint.opened(name):
            found = Model.read(name)
            if found is None and pathlib.Path(os.path.expanduser(name)).exists():
                Tokenizer.load(checkpoint.resolve(name))
            if found is None:
                return None
            folder = checkpoint.resolve(name)
            return cls(name, folder, found.config, Tokenizer.load(folder))

    def encode(self, task: Task, examples: Sequence[Example], max_length: int) -> list[Encoded]:
        """Training sequences of `examples` under the task's one template.

        Raises UserError, naming the row, for an example of more than `max_length` tokens.
        """
        limit = min(max_length, self.config.max_positions)
        encoded: list[Encoded] = []
        for example in examples:
            tokens, prompt_length = self.tokenizer.encode_example(task.messages(example.question), example.answer)
            if len(tokens) > limit:
                raise UserError(
                    f"{example.place or example.id}: {len(tokens)} tokens with its answer, more than the limit of "
                    f"{limit}: shorten the row or raise --max-length (the model takes {self.config.max_positions})"
                )
            encoded.append(Encoded(tuple(tokens), prompt_length))
        return encoded

    def fits(self, task: Task, example: Example, max_length: int) -> bool:
        """Whether `example` can be learned within `max_length` tokens, and its question leaves room to answer."""
        tokens, prompt_length = self.tokenizer.encode_example(task.messages(example.question), example.answer)
        room = self.config.max_positions - prompt_length - task.answer_tokens
        return len(tokens) <= min(max_length, self.config.max_positions) and room >= 0

    def check_prompts(self, task: Task, examples: Sequence[Example], answer_tokens: int) -> None:
        """Raises UserError, naming the row, for a question that leaves no room for its answer."""
        for example in examples:
            count = len(self.tokenizer.encode_prompt(task.messages(example.question)))
            if count + answer_tokens > self.config.max_positions:
                raise UserError(
                    f"{example.place or example.id}: a question of {count} tokens leaves no room for "
                    f"{answer_tokens} more within the {self.config.max_positions} the model takes: shorten the row"
                )
