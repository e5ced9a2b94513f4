"""A profile, from its settings to what it shows.

    from active_inheritance.profile.config import Config
    from active_inheritance.profile.experiment import run

    summary = run(Config(model=("embedded:student",), prompts_file="prompts.jsonl", run_dir="runs/profile"))

Importing this loads no jax.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from active_inheritance.profile.config import ARITHMETIC, STORIES, Config
from common.backends.open import Backend, ReplyCache, file_hashes, fingerprints, is_model, model_name, open_backend
from common.cli import flag_name
from common.errors import UserError
from common.experiment import carry_out, check_models, check_start, identity
from common.memory import Model, Need, room_for, sampling
from common.rates import OTHER
from common.settings import idle

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from common.evals.measure import Measure, Profile, Store
    from common.evals.preference import Wins
    from common.results.conclusion import Conclusion
    from common.results.rundir import RunDir


LENGTH = 128
"""Tokens of a prompt or of a text that is scored, for the plan of memory."""


class Ready(NamedTuple):
    """What is measured, the settings with the longest answer filled in, and the judge."""

    config: Config
    measures: "Sequence[Measure]"
    open_judge: Backend | None
    mesh: "Mesh | None"


def run(config: Config) -> dict[str, Any]:
    """Carry out (or continue) the run that `config` describes; returns what `summary.json` holds.

    Raises UserError for settings, data and models that do not fit, before the run directory exists; later for a
    scorer or judge that fails.
    """
    config = config.resolved()

    def work(run: "RunDir", ready: Ready) -> "Conclusion":
        from active_inheritance.profile.report import conclusion
        from common.evals.measure import Store, profile_model
        from common.lm import LanguageModel

        profiles = {}  # without the models: one at a time is in memory
        stores = {name: Store(run, folder_of(number, name)) for number, name in enumerate(config.model)}
        for name, store in stores.items():
            profiles[name] = profile_model(LanguageModel.load(name, mesh=ready.mesh), ready.measures, store)
        wins = _judged(run, ready, stores, profiles)
        return conclusion(ready.config, ready.measures, profiles, wins)

    measures = load_data(config)
    prepared, estimate = lambda: _prepare(config, measures), units(config, measures)
    named, told = models(config), idle(config, None)
    stored = run_identity(config)
    return carry_out("profile", config.run_dir, stored, prepared, work, estimate, models=named, told=told)


def _prepare(config: Config, measures: "list[Measure]") -> Ready:
    from common.evals.measure import WritingMeasure, default_tokens

    positions = {name: _positions(name) for name in config.model}
    _check_tokens(config, positions)
    tokens = config.answer_tokens or default_tokens(min(positions.values()))
    mesh = room_for(lambda device, shards: needs(config, device, shards), config.devices)
    open_judge = (
        None if config.judge is None else open_backend(config.judge, "teacher", url=config.judge_url, mesh=mesh)
    )
    # One limit for all models, so that the lengths of their answers can be compared.
    for i, measure in enumerate(measures):
        if isinstance(measure, WritingMeasure):
            measures[i] = dataclasses.replace(measure, tokens=measure.tokens or tokens)
    return Ready(dataclasses.replace(config, answer_tokens=tokens), measures, open_judge, mesh)


def needs(config: Config, device: str = "cpu", shards: int = 1) -> list[Need]:
    """Memory of answering and scoring, of models that are on this machine, one of which is held at a time."""
    from common.evals.measure import MOST_TOKENS

    writes = config.prompts_file is not None or config.toxicity_prompts is not None
    answer = (config.answer_tokens or MOST_TOKENS) if writes else 0
    named = [(name, f"measuring {name}") for name in config.model]
    if config.judge is not None and is_model(config.judge):
        named.append((model_name(config.judge, "teacher"), "judging"))
    models = [(Model.read(name), stage) for name, stage in named]
    return [
        sampling(model, LENGTH, answer, stage=stage, device=device, shards=shards, scored=LENGTH // 2)
        for model, stage in models
        if model is not None
    ]


def check_plan(config: Config) -> str | None:
    """What a run would refuse, as far as it is known without weights and without asking a hosted judge. Returns
    what its time is known by."""
    from common.reading import Reader

    stored = lambda: run_identity(config, fetch=False)
    key = check_start("profile", config.run_dir, models(config), [(config.judge, config.judge_url)], stored)
    check_models(models(config))
    found = {name: Reader.read(name) for name in config.model}
    positions = {name: reader.config.max_positions for name, reader in found.items() if reader is not None}
    if positions:
        _check_tokens(config, positions)
    return key


def units(config: Config, measures: "Sequence[Measure]") -> dict[str, int]:
    """Units of work by stage (see `common.rates`): items of every measure, continuations of toxicity's."""
    times = {"toxicity": config.continuations}
    found = {own.name: len(config.model) * len(own) * times.get(own.name, 1) for own in measures}
    return found | {OTHER: max(found.values(), default=1)}


def load_data(config: Config) -> "list[Measure]":
    """The measures that `config` asks for, with their data. Raises UserError, naming the row, for what cannot be
    read."""
    from common.evals import embedded_sets
    from common.evals.bbq import BBQ
    from common.evals.bias import CrowSPairs, StereoSet
    from common.evals.choice import MultipleChoice
    from common.evals.preference import PreferenceJudge
    from common.evals.text import Answers, load_prompts
    from common.evals.toxicity import Toxicity

    limit = config.limit
    shared: dict[str, Any] = {"seed": config.seed, "batch_size": config.batch_size}
    found: list[Measure] = []
    if config.prompts_file is not None:
        prompts = (
            embedded_sets.story_requests(limit)
            if config.prompts_file == STORIES
            else load_prompts(config.prompts_file, config.prompt_column, limit)
        )
        found.append(Answers(prompts=prompts, mode=config.mode, tokens=config.answer_tokens, **shared))
    if config.toxicity_prompts is not None and config.toxicity_scorer is not None:
        found.append(
            Toxicity.load(
                config.toxicity_prompts,
                config.toxicity_scorer,
                limit,
                config.prompt_column,
                continuations=config.continuations,
                temperature=config.temperature,
                top_p=config.top_p,
                threshold=config.threshold,
                tokens=config.continuation_tokens or config.answer_tokens,
                **shared,
            )
        )
    if config.stereoset is not None:
        found.append(StereoSet.load(config.stereoset, limit, **shared))
    if config.crows_pairs is not None:
        found.append(CrowSPairs.load(config.crows_pairs, limit, **shared))
    if config.bbq:
        found.append(BBQ.load(config.bbq, config.bbq_targets, limit, **shared))
    if config.pairs is not None:
        found.append(PreferenceJudge.load(config.pairs, limit, **shared))
    for name, file in config.choices().items():
        settings: dict[str, Any] = {"name": f"choice/{name}", "layout": config.layout(file), **shared}
        found.append(
            MultipleChoice(questions=embedded_sets.problem_questions(limit), **settings)
            if file == ARITHMETIC
            else MultipleChoice.load(file, limit, **settings)
        )
    return found


def models(config: Config) -> dict[str, str]:
    """Names of models in this process by role."""
    found = {f"model {name}": name for name in config.model}
    if config.judge is not None and is_model(config.judge):
        found["judge"] = model_name(config.judge, "teacher")
    return found


def run_identity(config: Config, fetch: bool = True) -> dict[str, Any]:
    """What the run directory holds against the next command (see `common.experiment.identity`)."""
    files, code = config.read()
    return identity(config.stored(), files, code, models(config), fetch)


def folder_of(number: int, name: str) -> str:
    """Where a model's artifacts lie: its number, and as much of its name as a folder may have."""
    return f"models/{number}_{re.sub(r'[^a-zA-Z0-9.]+', '_', name)[-40:].strip('_.')}"


def _positions(name: str) -> int:
    """Positions of a model. Raises UserError if it, its settings or its tokenizer cannot be found or read."""
    from common.model import checkpoint, hf
    from common.model.tokenizer import Tokenizer

    with checkpoint.opened(name):
        folder = checkpoint.resolve(name)
        Tokenizer.load(folder)
        return hf.load_config(folder).max_positions


def _check_tokens(config: Config, positions: Mapping[str, int]) -> None:
    """Raises UserError, naming the flag, for answers or continuations that leave no room for a prompt in the
    smallest model. `positions`: of every model."""
    asked = ["answer_tokens"] if config.prompts_file else []
    if config.toxicity_prompts:
        asked.append("continuation_tokens" if config.continuation_tokens else "answer_tokens")
    smallest = min(positions, key=lambda name: positions[name])
    for name in asked:
        tokens = getattr(config, name)
        if tokens is not None and tokens >= positions[smallest]:
            raise UserError(
                f"{flag_name(name)} {tokens} leaves no room for a prompt within the {positions[smallest]} "
                f"positions of {smallest}: give a smaller one"
            )


# ---- the judge


def _judged(
    run: "RunDir", ready: Ready, stores: "Mapping[str, Store]", profiles: "Mapping[str, Profile]"
) -> "dict[str, Wins]":
    """The share of prompts on which the judge prefers each other model's answer to the first one's, by model; none
    without a judge."""
    from common.evals.figures import Scorer
    from common.evals.preference import verdicts, win_rate
    from common.evals.text import Answers

    config, judge = ready.config, ready.config.judge
    if ready.open_judge is None or judge is None:
        return {}
    first, *others = config.model
    texts = {p.id: p.text for measure in ready.measures if isinstance(measure, Answers) for p in measure.prompts}
    scorer = Scorer(judge, judge_version(judge))
    found = {}
    with ready.open_judge(ReplyCache(run.path / "replies.sqlite", config.share(), "judge/")) as generator:
        generate = generator("judge")
        for name in others:
            ours, theirs = profiles[name].answers, profiles[first].answers
            with run.timed("judge"):
                rows = verdicts(generate, texts, ours, theirs, config.seed, stores[name], config.judge_tokens)
            found[name] = win_rate(rows, scorer, config.seed)
    return found


def judge_version(name: str) -> str:
    """Which judge it was: the hash of its file, or of its checkpoint; a hosted one is what answered."""
    if name.startswith("python:"):
        (digest,) = file_hashes((), [name]).values()
        return f"sha256 {digest}"
    found = fingerprints({"judge": model_name(name, "teacher")})
    return f"fingerprint {found['judge']}" if found else "as answered"
