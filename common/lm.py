"""A language model as the methods use it: folder, shape, weights and tokenizer together.

student = LanguageModel.load("embedded:student")
generator = student.generator()
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from common import runtime
from common.config import ModelConfig, TrainConfig
from common.errors import UserError
from common.generate import Message
from common.model import checkpoint, hf
from common.model.decoder import Params
from common.model.sharding import mesh_of
from common.model.tokenizer import Tokenizer
from common.sample.embed import embed
from common.sample.local import LocalGenerator
from common.sample.score import score
from common.tasks.base import Example, Task
from common.train.data import Encoded
from common.train.loop import fine_tune
from common.train.preference import Preference, prefer, reference_logps


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """`folder` is the checkpoint that config and tokenizer come from; `weights` is where `params` are from, None
    where they are in memory alone."""

    name: str
    folder: pathlib.Path
    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    weights: pathlib.Path | None

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
        if settings.lora is not None or not runtime.on_accelerator():
            return self.params
        if self.weights is None:
            return jax.tree.map(lambda w: w.astype(jnp.float32), self.params)
        return hf.load_params(self.weights, self.config, mesh=mesh_of(self.params))

    def fine_tuned(self, rows: Sequence[tuple[Sequence[Message], str]], settings: TrainConfig) -> "LanguageModel":
        """This model after supervised training on (messages, answer) rows, in memory; see `save`.

        Raises UserError for a row of more than `settings.max_length` tokens, and for a loss that is not finite.
        """
        examples = [self.tokenizer.encode_example(messages, answer) for messages, answer in rows]
        encoded = [Encoded(tuple(tokens), start) for tokens, start in examples]
        self._check_lengths([len(row.tokens) for row in encoded], settings.max_length)
        start = self.starting_weights(settings)
        params = fine_tune(start, self.config, encoded, settings, pad_id=self.tokenizer.pad_id)
        return dataclasses.replace(self, params=params, weights=None)

    def preference_tuned(
        self, rows: Sequence[tuple[Sequence[Message], str, str]], settings: TrainConfig, beta: float = 0.1
    ) -> "LanguageModel":
        """This model after DPO on (messages, better answer, worse answer) rows, with itself as the reference, in
        memory. Raises UserError as `fine_tuned` does."""
        pairs = []
        for messages, better, worse in rows:
            (chosen, start), (rejected, _) = (self.tokenizer.encode_example(messages, x) for x in (better, worse))
            pairs.append(Preference(tuple(chosen[:start]), tuple(chosen[start:]), tuple(rejected[start:])))
        longest = [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
        self._check_lengths(longest, settings.max_length)
        reference = reference_logps(self.params, self.config, pairs)
        start = self.starting_weights(settings)
        pad_id = self.tokenizer.pad_id
        params = prefer(start, self.config, pairs, reference, settings, pad_id=pad_id, beta=beta)
        return dataclasses.replace(self, params=params, weights=None)

    def _check_lengths(self, lengths: Sequence[int], max_length: int) -> None:
        limit = min(max_length, self.config.max_positions)
        for number, length in enumerate(lengths, 1):
            if length > limit:
                raise UserError(f"row {number} has {length} tokens, more than the limit of {limit}: shorten it")

    def save(self, folder: str | os.PathLike) -> "LanguageModel":
        """Write a Hugging Face folder with these weights, and this tokenizer and settings; returns the model that
        lies there. Raises UserError for a folder that cannot be written."""
        path = hf.save(pathlib.Path(folder), self.params, self.folder)
        return dataclasses.replace(self, name=str(folder), folder=path, weights=path)

    def generator(self) -> LocalGenerator:
        """This model as a back end of `common.generate`; all but the embedded ones are held to the form of a
        reply."""
        held = not checkpoint.is_embedded(self.folder)
        return LocalGenerator(self.name, self.params, self.config, self.tokenizer, held=held)

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

    def text_logps(self, texts: Sequence[str]) -> np.ndarray:
        """Mean log-probability a token (N,), in nats, of plain texts without a template; NaN for a text of one
        token. A text beyond the model's positions is cut there."""
        start = self.tokenizer.start_ids
        tokens = [(start + self.tokenizer.encode_text(text))[: self.config.max_positions] for text in texts]
        long = [ids for ids in tokens if len(ids) > 1]
        found = iter(score(self.params, self.config, [(ids[:1], ids[1:]) for ids in long]) if long else ())
        return np.array([float(next(found).mean()) if len(ids) > 1 else np.nan for ids in tokens])

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
