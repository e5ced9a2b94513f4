"""The stages that every method has: replies bought once, and a model trained once.

records = collect(run, "round_0/teacher.jsonl", generator, requests, sampling, seed)
model = fine_tuned(run, "round_0/student", base, lambda: base.encode(task, examples, 512), settings)
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from common import progress, runtime, stopping
from common.backends.budget import unpaid
from common.config import SampleConfig, TrainConfig
from common.errors import UserError
from common.generate import Generator, Record, Request, unnumbered
from common.lm import LanguageModel
from common.model import checkpoint, hf, lora, peft
from common.model.decoder import Params
from common.results.card import ModelCard, render
from common.results.files import write_folder
from common.results.rundir import RunDir
from common.train.data import Encoded
from common.train.loop import Log, fine_tune

ALIKE = 5
"""Requests of a stage that all fail for one reason before that is taken for the reason of all of them."""
Fit = Callable[[pathlib.Path, Callable[[int], Log]], Params]
"""Gives trained weights; told where the state of an unfinished training lies and how to log (see `fine_tune`)."""


def collect(
    run: RunDir,
    name: str,
    generator: Generator | Callable[[], Generator],
    requests: Sequence[Request],
    sampling: SampleConfig,
    seed: int,
) -> list[Record]:
    """The records of `requests`, bought once: stored batch by batch and read back when the run continues.

    A function in place of the generator is called only when something is left to be generated.
    """

    def batches(done: int) -> Iterator[list[dict[str, Any]]]:
        # A batch may have ended within a request: that one is generated again, without what is stored of it.
        first, torn = divmod(done, requests[0].n) if requests else (0, 0)
        if requests[first:]:
            source = _opened(generator)
            # What an earlier process received is not given out again by a source that remembers.
            part = run.journal(f"{name}.part")
            source.seen(_records(part.rows(), part.path))
            for records in source.generate(requests[first:], sampling, seed):
                yield [dataclasses.asdict(r) for r in records[torn:]]
                torn = 0

    records = _records(run.collect(name, batches), run.path / name)
    reasons = {unnumbered(record.error) if record.status == "failed" else None for record in records}
    if len(records) >= ALIKE and len(reasons) == 1 and not any(r is None or unpaid(r) for r in reasons):
        raise UserError(
            f"{run.path / name}: each of {len(records)} requests failed, and for one reason: {records[0].error}; "
            "nothing can come of that: change what it is about, and give another --run-dir"
        )
    if not callable(generator):
        generator.seen(records)
    return records


def _records(rows: Sequence[Mapping[str, Any]], file: pathlib.Path) -> list[Record]:
    try:
        return [Record(**row) for row in rows]
    except TypeError as error:
        raise UserError(f"{file} is of another version ({error}): give another --run-dir") from None


def _opened(generator: Generator | Callable[[], Generator]) -> Generator:
    return generator() if callable(generator) else generator


def trained(
    run: RunDir, name: str, base: LanguageModel, fit: Fit, settings: TrainConfig, stage: str = "train"
) -> LanguageModel:
    """`base` after the training that is stored as the folder `name` of the run, made by `fit` if it is not there:
    an adapter in PEFT's form where `settings` train one, else a Hugging Face folder in the dtype of computing.

    The state of an unfinished training lies beside the folder and is deleted with the finished one; updates are
    logged under the name of the folder above.
    """
    path = run.path / name
    state, logged = path.with_name("training_state"), str(pathlib.PurePosixPath(name).parent)
    if not path.exists():
        with progress.at(name), run.timed(stage):
            params = fit(state, lambda first: run.metrics(logged, first).log)
            with stopping.deferred():  # a training's last updates may be in no state
                run.once_folder(name, lambda place: _store(place, params, base, settings))
            del params
    # Only now: until the weights are stored, the state is all there is.
    shutil.rmtree(state, ignore_errors=True)
    # Read back even when just trained, so that a continued run works on the very same weights.
    return base.with_weights(logged, path)


def _store(place: pathlib.Path, params: Params, base: LanguageModel, settings: TrainConfig) -> None:
    if settings.lora is None:
        dtype = params["embed"].dtype if settings.param_dtype == "bfloat16" else runtime.compute_dtype()
        hf.save(place, params, base.folder, dtype=dtype)
    else:
        config = dataclasses.replace(base.config, lora=settings.lora)
        lora.save_adapter(place, params, config, base.origin)


def fine_tuned(
    run: RunDir,
    name: str,
    base: LanguageModel,
    examples: Callable[[], Sequence[Encoded]],
    settings: TrainConfig,
    steps: int | None = None,
    stage: str = "train",
) -> LanguageModel:
    """`base` after supervised training on `examples`, which are encoded only if the folder `name` is not there."""

    def fit(state: pathlib.Path, log: Callable[[int], Log]) -> Params:
        return fine_tune(
            lambda: base.start(settings),
            base.config,
            examples(),
            settings,
            pad_id=base.tokenizer.pad_id,
            steps=steps,
            checkpoint=state,
            log=log,
            label=str(pathlib.PurePosixPath(name).parent),
        )

    return trained(run, name, base, fit, settings, stage)


def publish(run: RunDir, stored: str, card: ModelCard, name: str = "model") -> dict[str, str]:
    """Copy the trained model in the folder `stored` to the folder `name` at the top of the run, as transformers
    and vLLM load it, with its card. What is stored as an adapter is merged there, and copied beside it to
    `adapter` (of another name than `model`: NAME_adapter). Returns the names of adapters by what they are."""
    chosen, beside = run.path / stored, "adapter" if name == "model" else f"{name}_adapter"
    text = render(card, checkpoint.hub_id(card.base), checkpoint.licence(card.base))
    copied = lambda place: shutil.copytree(chosen, place, dirs_exist_ok=True)
    adapted = (chosen / lora.CONFIG).exists()
    whole = f"{peft.base_of(chosen / lora.CONFIG)}+{chosen}"

    def fill(place: pathlib.Path) -> None:
        if adapted:
            LanguageModel.load(whole).save(place)
        else:
            copied(place)
        (place / "README.md").write_text(text, encoding="utf-8", newline="\n")

    if adapted:
        write_folder(run.path / beside, copied)
    write_folder(run.path / name, fill)
    return {beside.replace("_", " "): beside} if adapted else {}


class Lazy:
    """A model that is made, or read back, when it is first called for; `release` lets go of its weights.

    A continued run asks for few of its models: what they generated is stored.
    """

    def __init__(self, make: Callable[[], LanguageModel]):
        self._make, self._model = make, None

    def __call__(self) -> LanguageModel:
        if self._model is None:
            self._model = self._make()
        return self._model

    def release(self) -> None:
        self._model = None
