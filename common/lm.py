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
from common.config import TrainConfig
from common.errors import UserError
from common.generate import Message
from common.model import checkpoint, hf, lora, sharding
from common.model.decoder import Params
from common.model.tokenizer import Tokenizer
from common.model.weights import Weights, release
from common.reading import Reader
from common.sample.embed import embed
from common.sample.local import LocalGenerator
from common.sample.score import score
from common.train.data import Encoded
from common.train.loop import fine_tune
from common.train.preference import Preference, prefer, reference_logps


@dataclasses.dataclass(frozen=True)
class LanguageModel(Reader):
    """`weights` is where `params` are from, None where they are in memory alone.

    `origin` is what it was loaded by. `base`: all weights, or those that `adapters` stand beside, which
    `config.lora` tells of then. Models of one folder share them, and they are read again after
    `common.model.weights.release`."""

    base: Weights
    weights: pathlib.Path | None
    origin: str
    adapters: Params | None = None

    @classmethod
    def load(cls, name: str, dtype: Any = None, *, mesh: Mesh | None = None) -> "LanguageModel":
        """Load whatever `common.model.checkpoint.resolve` finds, by default in the dtype of this machine's
        computing: bfloat16 on accelerators, float32 on CPU. (There, weights kept in bfloat16 would be cast for
        each product, and the compiler casts all of them at once: more memory than float32, and less speed.)

        With a `mesh` (`common.model.sharding.make_mesh`) the weights are read onto its devices, and sampling,
        scoring and training of this model take place there.

        Raises UserError if it cannot be found, read or understood.
        """
        with checkpoint.opened(name):
            folder = checkpoint.resolve(name)
            config = hf.load_config(folder)
            tokenizer = Tokenizer.load(folder)
            if tokenizer.vocab_size > config.vocab_size:
                raise UserError(
                    f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}: "
                    "they do not belong together, or the embedding was not resized"
                )
            base = Weights.of(folder, config, dtype or runtime.compute_dtype(), mesh)
            base()  # what is wrong with the files shows now
        return cls(name, folder, config, tokenizer, base, folder, name)

    @property
    def params(self) -> Params:
        """All parameters, read from the files if they are not in memory."""
        return self.base() if self.adapters is None else lora.join(self.base(), self.adapters)

    def with_weights(self, name: str, folder: pathlib.Path) -> "LanguageModel":
        """What was trained from this model and stored in `folder`, on the same devices: an adapter beside these
        weights, or weights of its own."""
        plain = dataclasses.replace(self.config, lora=None)
        if (folder / lora.CONFIG).exists():
            nothing: Params = {"layers": [{}] * plain.num_layers}  # the weights may stay unread
            adapters, config = lora.load_adapter(folder, nothing, plain)
            adapters = sharding.place(adapters, self.base())
            return dataclasses.replace(self, name=name, config=config, adapters=adapters, weights=folder)
        own = Weights.of(folder, plain, runtime.compute_dtype(), self.base.mesh)
        return dataclasses.replace(self, name=name, config=plain, base=own, adapters=None, weights=folder)

    def start(self, settings: TrainConfig) -> Params:
        """The weights that a training starts from, for it alone to hold where that spares memory: what is idle is
        let go of, this model's own weights too when all of them are trained, which are read anew."""
        dtype = jnp.dtype(settings.param_dtype)
        if settings.lora is not None:
            release(keep=(self.base,))
            return self.params
        if self.weights is None:
            return jax.tree.map(lambda w: jnp.array(w, dtype), self.params)
        release()
        runtime.trim()
        return hf.load_params(self.weights, self.config, dtype=dtype, mesh=self.base.mesh)

    def _merged_for(self, settings: TrainConfig) -> "LanguageModel":
        """This model, with its adapters merged into its weights unless `settings` go on with them."""
        if self.adapters is None or self.config.lora == settings.lora:
            return self
        base = Weights.held(lora.merge(self.params, self.config))
        config = dataclasses.replace(self.config, lora=None)
        return dataclasses.replace(self, base=base, config=config, adapters=None, weights=None)

    def with_params(self, params: Params, settings: TrainConfig) -> "LanguageModel":
        """This model with what a training by `settings` returned, in memory."""
        if settings.lora is None:
            return dataclasses.replace(self, base=Weights.held(params), weights=None)
        config, (_, adapters) = dataclasses.replace(self.config, lora=settings.lora), lora.split(params)
        return dataclasses.replace(self, config=config, adapters=adapters, weights=None)

    def fine_tuned(self, rows: Sequence[tuple[Sequence[Message], str]], settings: TrainConfig) -> "LanguageModel":
        """This model after supervised training on (messages, answer) rows, in memory; see `save`.

        Raises UserError for a row of more than `settings.max_length` tokens, and for a loss that is not finite.
        """
        examples = [self.tokenizer.encode_example(messages, answer) for messages, answer in rows]
        encoded = [Encoded(tuple(tokens), start) for tokens, start in examples]
        self._check_lengths([len(row.tokens) for row in encoded], settings.max_length)
        model, pad_id = self._merged_for(settings), self.tokenizer.pad_id
        start = lambda: model.start(settings)
        return model.with_params(fine_tune(start, model.config, encoded, settings, pad_id=pad_id), settings)

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
        model, pad_id = self._merged_for(settings), self.tokenizer.pad_id
        start = lambda: model.start(settings)
        params = prefer(start, model.config, pairs, reference, settings, pad_id=pad_id, beta=beta)
        return model.with_params(params, settings)

    def _check_lengths(self, lengths: Sequence[int], max_length: int) -> None:
        limit = min(max_length, self.config.max_positions)
        for number, length in enumerate(lengths, 1):
            if length > limit:
                raise UserError(f"row {number} has {length} tokens, more than the limit of {limit}: shorten it")

    def save(self, folder: str | os.PathLike) -> "LanguageModel":
        """Write a Hugging Face folder with these weights, adapters merged into them, and this tokenizer and
        settings; returns the model that lies there. Raises UserError for a folder that cannot be written."""
        params = self.params if self.adapters is None else lora.merge(self.params, self.config)
        path = hf.save(pathlib.Path(folder), params, self.folder)
        return dataclasses.replace(self.with_weights(str(folder), path), folder=path, origin=str(folder))

    def save_adapter(self, folder: str | os.PathLike) -> pathlib.Path:
        """Write the adapters alone, in PEFT's form; named `BASE+FOLDER`, it is this model again. Raises UserError
        for a model that was not trained with adapters, and for a folder that cannot be written."""
        if self.adapters is None:
            raise UserError(f"{self.name} has no adapters: train it with TrainConfig(lora=…), or save all of it")
        if self.base.folder is None:
            raise UserError(f"the adapters of {self.name} belong to weights that are in no folder: save all of it")
        base = self.origin if self.base.folder == self.folder else str(self.base.folder)
        return lora.save_adapter(folder, self.params, self.config, base)

    def generator(self) -> LocalGenerator:
        """This model as a back end of `common.generate`; all but the embedded ones are held to the form of a
        reply."""
        held = not checkpoint.is_embedded(self.folder)
        return LocalGenerator(self.name, lambda: self.params, self.config, self.tokenizer, held=held)

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
