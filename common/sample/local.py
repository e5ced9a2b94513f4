"""A model in this process as a generator.

generator = LocalGenerator("embedded/student", params, config, tokenizer)
for records in generator.generate(requests, SampleConfig(temperature=1.0), seed=0):
    ...
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

from common.buckets import beginning
from common.config import ModelConfig, SampleConfig
from common.errors import UserError
from common.generate import Record, Request
from common.model.decoder import Params
from common.model.tokenizer import Tokenizer
from common.progress import Bar, progress_bar
from common.sample.form import end_finder, fill
from common.sample.prompt import Completion, Prompt, check
from common.sample.sampler import Sampler
from common.sample.score import score

BATCH = 256
"""Requests sampled together and yielded at one time. Fixed, so that a run that was killed between batches goes on
with the same batches, and so with the same bits."""


class LocalGenerator:
    """Samples from `params` through the tokenizer's chat template. At most `slots` samples decode together (see
    `Sampler`). A function in place of the parameters is asked for them for every batch.

    The seed of a sample is a hash of the run's seed, the request's id and the sample's number. Requests whose
    prompts are equal share one prefill within a batch.

    `held`: requests with `fields` are answered in that form (`common.sample.form`). Not for models that were
    trained to write it, as the embedded ones were.
    """

    def __init__(
        self,
        name: str,
        params: Params | Callable[[], Params],
        config: ModelConfig,
        tokenizer: Tokenizer,
        *,
        slots: int | None = None,
        held: bool = False,
    ):
        self.name = name
        self._params, self._config, self._tokenizer, self._held = params, config, tokenizer, held
        self._slots = slots

    def generate(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        """Yield the records of `BATCH` requests at a time; see `common.generate.Generator`.

        A prompt that does not fit into the model gives failed records. Raises UserError for settings out of
        range, several greedy samples of one request, or an id that comes twice.
        """
        check(Prompt([0], sampling), self._config, "a prompt")
        ids = set()
        for request in requests:
            if request.n > 1 and sampling.temperature == 0:
                raise UserError(
                    f"request {request.id!r} asks for {request.n} greedy samples, which are all alike: "
                    "set a temperature above 0 or n to 1"
                )
            if request.id in ids:
                raise UserError(
                    f"request id {request.id!r} comes twice: ids must differ, samples are seeded by them"
                )
            ids.add(request.id)
        return self._batches(requests, sampling, seed)

    def seen(self, records: Sequence[Record]) -> None:
        """Nothing to remember: samples depend on their request alone."""

    def _batches(self, requests: Sequence[Request], sampling: SampleConfig, seed: int) -> Iterator[list[Record]]:
        total = sum(request.n for request in requests)
        with progress_bar(total=total, desc=self.name, unit="sample") as bar:
            for start in range(0, len(requests), BATCH):
                yield self._batch(requests[start : start + BATCH], sampling, seed, bar)

    def _batch(self, requests: Sequence[Request], sampling: SampleConfig, seed: int, bar: Bar) -> list[Record]:
        held = [request for request in requests if self._held and request.fields]
        free = [request for request in requests if not (self._held and request.fields)]
        seed_of = functools.partial(sample_seed, seed)
        likelihoods = lambda *given: score(self._weights(), self._config, *given)
        positions = self._config.max_positions
        found = fill(held, sampling, self._tokenizer, seed_of, self._draw, likelihoods, positions)
        bar.update(sum(map(len, found)))
        found += self._written(free, sampling, seed, bar)
        by_id = dict(zip((request.id for request in (*held, *free)), found, strict=True))
        return [record for request in requests for record in by_id[request.id]]

    def _written(
        self, requests: Sequence[Request], sampling: SampleConfig, seed: int, bar: Bar
    ) -> list[list[Record]]:
        """The records of each request, whose replies are whatever the model writes."""
        stop_at = _stop_finder(self._tokenizer.decode, sampling.stop) if sampling.stop else None
        blanks: dict[str, list[int]] = {}  # one for all, mostly
        prompts = []
        for request in requests:
            tokens, shared = self._tokenizer.encode_prompt(request.messages), 0
            if request.blank:
                key = str(request.blank)
                if key not in blanks:
                    blanks[key] = self._tokenizer.encode_prompt(request.blank)
                shared = len(beginning([tokens, blanks[key]]))
            seeds = tuple(sample_seed(seed, request.id, sample) for sample in range(request.n))
            prompts.append(Prompt(tokens, sampling, seeds, stop_at, shared))
        records = []
        for request, prompt, found in zip(requests, prompts, self._draw(prompts, bar), strict=True):
            count = len(prompt.tokens)
            if isinstance(found, str):
                bar.update(request.n)
                records.append(
                    [
                        Record(request.id, sample, "failed", None, found, prompt_tokens=count)
                        for sample in range(request.n)
                    ]
                )
            else:
                records.append(
                    [
                        self._record(request, sample, completion, count, sampling.stop)
                        for sample, completion in enumerate(found)
                    ]
                )
        return records

    def _draw(self, prompts: Sequence[Prompt], bar: Bar | None = None) -> list[list[Completion] | str]:
        """The samples of each prompt, or why there are none: one that is too long fails alone."""
        errors = []
        for prompt in prompts:
            try:
                check(prompt, self._config, "the prompt")
                errors.append(None)
            except UserError as error:
                errors.append(str(error))
        fitting = [prompt for prompt, error in zip(prompts, errors, strict=True) if not error]
        if not fitting:
            return [str(error) for error in errors]
        # For this batch only, so that it holds no weights while others work.
        sampler = Sampler(self._weights(), self._config, eos_ids=self._tokenizer.eos_ids, slots=self._slots)
        completions = iter(sampler.sample(fitting, on_done=bar.update if bar else None))
        return [error or next(completions) for error in errors]

    def _weights(self) -> Params:
        return self._params() if callable(self._params) else self._params

    def _record(
        self, request: Request, sample: int, completion: Completion, prompt_tokens: int, stop: tuple[str, ...]
    ) -> Record:
        tokens = completion.tokens
        # The end token is no part of the answer, even where the tokenizer would write it out.
        if tokens[-1] in self._tokenizer.eos_ids:
            tokens = tokens[:-1]
        text = _before_stop(self._tokenizer.decode(tokens), stop)
        return Record(
            request.id,
            sample,
            "ok" if completion.finish == "stop" else "length",
            text,
            prompt_tokens=prompt_tokens,
            completion_tokens=len(completion.tokens),
            mean_logp=round(sum(completion.logps) / len(completion.logps), 5),
        )


def sample_seed(seed: int, request_id: str, sample: int) -> int:
    """A 64-bit seed that depends on nothing but the run's seed, the request and the sample's number."""
    digest = hashlib.blake2b(f"{seed}\0{request_id}\0{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _before_stop(text: str, stop: tuple[str, ...]) -> str:
    """The text in front of the stop string that comes first, if any does."""
    places = [text.find(string) for string in stop]
    return text[: min((place for place in places if place >= 0), default=None)]


def _stop_finder(decode: Callable[[list[int]], str], stop: tuple[str, ...]) -> Callable[[list[int]], int | None]:
    """`Prompt.stop_at` for stop strings: the fewest tokens whose text, by `decode`, contains one."""
    return end_finder(decode, lambda text: next((0 for string in stop if string in text), None))
