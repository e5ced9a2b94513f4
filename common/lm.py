"""A language model as the methods use it: folder, shape, weights and tokenizer together.

student = LanguageModel.load("embedded:student")
generator = student.generator()
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from common import runtime
from common.config import ModelConfig, TrainConfig
from common.errors import UserError
from common.model import checkpoint, hf
from common.model.decoder import Params
from common.model.sharding import mesh_of
from common.model.tokenizer import Tokenizer
from common.sample.embed import embed
from common.sample.local import LocalGenerator
from common.tasks.base import Example, Task
from common.train.data import Encoded


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """`folder` is the checkpoint that config and tokenizer come from; `weights` is where `params` are from."""

    name: str
    folder: pathlib.Path
    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    weights: pathlib.Path

    @classmethod
    def load(cls, name: str, dtype: Any = None, *, mesh: Mesh | None = None) -> "LanguageModel":
        """Load a hub id, a local folder or `embedded:NAME`; by default in the dtype of this machine's computing.

        With a `mesh` (`common.model.sharding.make_mesh`) the weights are read onto its devices, and sampling,
        scoring and training of this model take place there.

        Raises UserError if it cannot be found, read or understood.
        """
        folder = checkpoint.resolve(name)
        config = hf.load_config(folder)
        tokenizer = Tokenizer.load(folder)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}: they "
                "do not belong together, or the embedding was not resized"
            )
        params = hf.load_params(folder, config, dtype=dtype or runtime.compute_dtype(), mesh=mesh)
        return cls(name, folder, config, params, tokenizer, folder)

    def with_weights(self, name: str, folder: pathlib.Path) -> "LanguageModel":
        """The same model with the weights stored in `folder`, on the same devices."""
        params = hf.load_params(folder, self.config, dtype=runtime.compute_dtype(), mesh=mesh_of(self.params))
        return dataclasses.replace(self, name=name, params=params, weights=folder)

    def starting_weights(self, settings: TrainConfig) -> Params:
        """The weights to start a training from: in float32 when all are trained, as loaded when adapters are."""
        if settings.lora is None and runtime.on_accelerator():  # where they were loaded in bfloat16
            return hf.load_params(self.weights, self.config, mesh=mesh_of(self.params))
        return self.params

    def generator(self) -> LocalGenerator:
        """This model as a back end of `common.generate`."""
        return LocalGenerator(self.name, self.params, self.config, self.tokenizer)

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

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (N, D) of unit length, see `sample.embed`. A text beyond the model's positions is cut there."""
        limit = self.config.max_positions
        tokens = [self.tokenizer.encode_text(text)[:limit] or [self.tokenizer.pad_id] for text in texts]
        return embed(self.params, self.config, tokens)

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
