"""A pool made by the run itself: every prompt answered k times in total, evenly by the sources.

    file = sample_pool(run, config, sources, prompts, "repeat_0", seed=0)   # repeat_0/samples/pool.jsonl, a map

A source is a model in this process, a hosted one, or a function (`common.backends`). Its answers are stored wave
by wave. Models in this process are loaded one after another, and only while something of theirs is missing.
"""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from active_inheritance.config import Config
from common.backends.open import Opener, Purse, backend, is_model
from common.generate import Record, Request
from common.model import checkpoint, hf
from common.model.tokenizer import Tokenizer
from common.results.rundir import RunDir, write_jsonl
from common.stages import collect
from common.tasks.prompts import Prompt, messages


def open_sources(config: Config) -> dict[str, Opener]:
    """Every source by its name, hosted ones and functions probed, models in this process looked at.

    Raises UserError for what cannot be found or reached.
    """
    return {
        name: _local(name, config) if is_model(name) else backend(name, "teacher", url=config.source_url)
        for name in config.source
    }


def _local(name: str, config: Config) -> Opener:
    folder = checkpoint.resolve(name)
    hf.load_config(folder)
    Tokenizer.load(folder)
    return from_folder(name, config)


def from_folder(name: str, config: Config) -> Opener:
    """A checkpoint as a source, loaded when it is asked: it may not be there yet."""

    def opened(purse: Purse) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext(lambda account: _generator(name, config))

    return opened


def _generator(name: str, config: Config) -> Any:
    from common.lm import LanguageModel

    model = LanguageModel.load(name)
    if config.sampling == "sample":
        return model.generator()
    from common.sample.beam import BeamGenerator

    return BeamGenerator(model.name, model.params, model.config, model.tokenizer, penalty=config.diversity_penalty)


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
    run: RunDir, config: Config, sources: Mapping[str, Opener], prompts: Sequence[Prompt], folder: str, seed: int
) -> pathlib.Path:
    """The pool file in `folder` of the run, made where it is not there. An answer that failed is an empty one."""
    file = run.path / folder / "samples/pool.jsonl"
    if file.exists():
        return file
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {prompt.id: {} for prompt in prompts}
    for name, records in _records(run, config, sources, prompts, folder, seed).items():
        for record in records:
            entry = {"text": record.text or "", "finish_reason": "length" if record.status == "length" else "stop"}
            answers[record.id.rpartition("#")[0]].setdefault(name, []).append(entry)
    write_jsonl(file, ({"id": p.id, "prompt": p.text, "outputs": answers[p.id]} for p in prompts))
    return file


def _records(
    run: RunDir, config: Config, sources: Mapping[str, Opener], prompts: Sequence[Prompt], folder: str, seed: int
) -> dict[str, list[Record]]:
    found = {}
    for number, (name, opener) in enumerate(sources.items()):
        requests = requests_of(name, list(sources), prompts, config.k, config.sampling == "diverse-beam")
        purse = Purse(run.path / "replies.sqlite", config.share(), f"source_{number}/")
        with run.timed("sample"), opener(purse) as account:
            found[name] = collect(
                run,
                file_of(folder, number),
                lambda account=account: account(folder),
                requests,
                config.answering(),
                seed,
            )
    return found


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
