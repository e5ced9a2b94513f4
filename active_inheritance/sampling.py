"""A pool made by the run itself: every prompt answered k times in total, evenly by the sources.

    pool = sample_pool(run, answering, sources, prompts, "repeat_0", seed=0)   # repeat_0/samples/pool.jsonl
    for group in pool.groups(): ...

A source is a model in this process, a hosted one, or a function (`common.backends`). Its answers are stored batch
by batch. Models in this process are loaded one after another, and only while something of theirs is missing.
"""

import contextlib
import dataclasses
import math
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from active_inheritance.pools import Answer, Group
from active_inheritance.switches import Answering
from common.backends.budget import Budget
from common.backends.open import Backend, ReplyCache, is_model, open_backend
from common.generate import Generator, Record, Request
from common.model import checkpoint, hf
from common.model.tokenizer import Tokenizer
from common.results.files import write_jsonl
from common.results.rundir import RunDir
from common.stages import collect
from common.tasks.files import stream_rows
from common.tasks.prompts import Prompt, messages
from common.tasks.replies import without_thoughts
from common.text.nonsense import FEWEST

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class SampledPool:
    """The pool of a run's own: rows {"id", "prompt", "outputs": {source: [{"text", "finish_reason"}, …]}}."""

    file: pathlib.Path

    def groups(self) -> Iterator[Group]:
        """See `active_inheritance.pools.Pool`. Every answer is used: k of them were asked for."""
        for row, _ in stream_rows(self.file, mend=True):
            answers = [
                Answer(
                    source,
                    index,
                    entry["text"],
                    truncated=entry["finish_reason"] == "length",
                    unlikely=entry["finish_reason"] == "unlikely",
                )
                for source, entries in row["outputs"].items()
                for index, entry in enumerate(entries)
            ]
            yield Group(row["id"], row["prompt"], tuple(answers))


def open_sources(
    names: Sequence[str], url: str | None, answering: Answering, mesh: "Mesh | None" = None
) -> dict[str, Backend]:
    """Every source by its name, hosted ones (at `url`) and functions probed, models in this process looked at.

    Raises UserError for what cannot be found or reached.
    """
    sources = {}
    for name in names:
        if is_model(name):
            # Looked at and not loaded: models take turns later, but what is wrong with one must show now.
            with checkpoint.opened(name):
                folder = checkpoint.resolve(name)
                hf.load_config(folder)
                Tokenizer.load(folder)
            sources[name] = from_folder(name, answering, mesh)
        else:
            sources[name] = open_backend(name, "teacher", url=url)
    return sources


def from_folder(name: str, answering: Answering, mesh: "Mesh | None" = None) -> Backend:
    """A checkpoint as a source, loaded when it is asked: it may not be there yet."""

    def loaded(account: str) -> Generator:
        from common.lm import LanguageModel

        model = LanguageModel.load(name, mesh=mesh)
        if answering.penalty is None:
            return model.generator()
        from common.sample.beam import BeamGenerator

        return BeamGenerator(model.name, model.params, model.config, model.tokenizer, penalty=answering.penalty)

    return lambda cache: contextlib.nullcontext(loaded)


def requests_of(
    name: str, names: Sequence[str], prompts: Sequence[Prompt], k: int, together: bool = False
) -> list[Request]:
    """What one of the sources `names` is asked: k answers a prompt over all of them. Where k is no multiple, they
    take turns in giving one more. `together`: its answers to a prompt are made by one search."""
    place, count = names.index(name), len(names)
    requests = []
    for number, prompt in enumerate(prompts):
        share = k // count + ((place - number) % count < k % count)
        if together:
            requests.append(Request(f"{prompt.id}#", messages(prompt.text), share))
            continue
        requests += [Request(f"{prompt.id}#{i}", messages(prompt.text)) for i in range(share)]
    return requests


def sample_pool(
    run: RunDir,
    answering: Answering,
    sources: Mapping[str, Backend],
    prompts: Sequence[Prompt],
    folder: str,
    seed: int,
    share: Budget | None = None,
) -> SampledPool:
    """The pool in `folder` of the run, made where it is not there. An answer that failed is an empty one. `share`:
    what each hosted source may spend on it."""
    file = run.path / folder / "samples/pool.jsonl"
    if file.exists():
        return SampledPool(file)
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {prompt.id: {} for prompt in prompts}
    for number, (name, backend) in enumerate(sources.items()):
        requests = requests_of(name, list(sources), prompts, answering.k, answering.penalty is not None)
        # Accounts of its own for each source, so that none spends another's share.
        cache = ReplyCache(run.path / "replies.sqlite", share, f"source_{number}/")
        with run.timed("sample"), backend(cache) as account:
            # Called only where an answer is missing: then alone a model is loaded.
            make = lambda account=account: account(folder)
            records = collect(run, file_of(folder, number), make, requests, answering.sampling, seed)
        floor = _floor(records, answering.likelihood_guard)
        for record in records:
            unlikely = record.mean_logp is not None and record.mean_logp < floor
            finish = "length" if record.status == "length" else "unlikely" if unlikely else "stop"
            entry = {"text": without_thoughts(record.text or ""), "finish_reason": finish}
            # From the right, as a prompt's id may hold a # itself.
            answers[record.id.rpartition("#")[0]].setdefault(name, []).append(entry)
    write_jsonl(file, ({"id": p.id, "prompt": p.text, "outputs": answers[p.id]} for p in prompts))
    return SampledPool(file)


def _floor(records: Sequence[Record], deviations: float) -> float:
    """The mean log-probability a token below which an answer of a source is unlikely: a sample that drifted into
    nonsense is, to the very model that wrote it. A source that tells no likelihoods has no floor."""
    values = [record.mean_logp for record in records if record.mean_logp is not None]
    if not deviations or len(values) < FEWEST:
        return -math.inf
    return statistics.fmean(values) - deviations * statistics.stdev(values)


def file_of(folder: str, number: int) -> str:
    """Where the answers of a pool's source of that number lie."""
    return f"{folder}/samples/source_{number}.jsonl"


def accounts(run: RunDir, names: Sequence[str], folders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each of the sources `names` was asked for and gave, summed over the pools in `folders`.
    `prompt_tokens` count a prompt once for each of its answers, as hosted models do."""
    table = {}
    for number, name in enumerate(names):
        files = [file_of(folder, number) for folder in folders]
        rows = [row for file in files if (run.path / file).exists() for row in run.once(file, list)]
        table[name] = {
            "calls": len(rows),
            "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
            "completion_tokens": sum(row["completion_tokens"] for row in rows),
            "truncated_share": sum(row["status"] == "length" for row in rows) / max(1, len(rows)),
            "failed": sum(row["status"] == "failed" for row in rows),
        }
    return table
