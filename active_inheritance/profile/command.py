"""`python run.py profile`: from flags to a finished run directory.

From Python the same in two lines:

    from active_inheritance.profile.command import run
    summary = run(Config(model=("embedded:student",), prompts_file="prompts.jsonl", run_dir="runs/profile"))

Without a model and without data it is a demonstration on the embedded ones.
"""

import dataclasses
import re
import sys
from typing import TYPE_CHECKING, Any

from active_inheritance.profile.config import Config
from common.cli import parse

if TYPE_CHECKING:
    from active_inheritance.profile.measure import Data, Profile
    from common.backends.open import Opener
    from common.evals.figures import Figure
    from common.results.rundir import RunDir

ABOUT = "Measure what models are like: text, toxicity, social bias, calibration, utility, preference."


def main(argv: list[str]) -> None:
    """Parse, check, plan; only then load jax and work."""
    config = parse(Config, argv, "run.py profile", ABOUT).resolved()
    if config.dry_run:
        from active_inheritance.profile.measure import load_data

        print(f"{'models':28}{', '.join(config.model)}")
        data = load_data(config)
        for name, count in data.sizes().items():
            times = f", {config.continuations} continuations each" if name == "toxicity" else ""
            print(f"{name.replace('_', ' '):28}{count} rows{times}")
        if config.judge is not None:
            calls = 2 * len(data.prompts) * (len(config.model) - 1)
            print(f"{'judge':28}{config.judge}, at most {calls} calls")
            if config.judge.startswith("openai:"):
                print(f"{'budget':28}{config.budget or 'none: nothing limits what is bought'}")
    else:
        run(config)


def run(config: Config) -> dict[str, Any]:
    """Carry out (or continue) the run that `config` describes; returns what `summary.json` holds."""
    config = config.resolved()

    from active_inheritance.profile.measure import check_tokens, load_data, profile_model, tokens_for
    from active_inheritance.profile.report import finish
    from common import runtime
    from common.backends.open import backend
    from common.lm import LanguageModel
    from common.results.rundir import RunDir

    # Whatever the user may have to mend is found before the run directory exists, the cheapest first.
    data = load_data(config)
    stored = identity(config)
    RunDir.check(config.run_dir, "profile", stored)
    runtime.enable_compile_cache()
    positions = {name: _positions(name) for name in config.model}
    check_tokens(config, positions)
    tokens = tokens_for(config, list(positions.values()))
    open_judge = None if config.judge is None else backend(config.judge, "teacher", url=config.judge_url)
    with RunDir.open(config.run_dir, "profile", stored) as place:
        if sys.stderr.isatty():
            print(f"run directory: {config.run_dir}", file=sys.stderr)
        profiles = {}
        settings = dataclasses.replace(config, answer_tokens=tokens)
        for number, name in enumerate(config.model):
            model = LanguageModel.load(name)
            profiles[name] = profile_model(place, folder_of(number, name), model, settings, data)
        judged = None if open_judge is None else _judged(place, settings, data, profiles, open_judge)
        return finish(place, settings, data, profiles, judged)


def _positions(name: str) -> int:
    """Positions of a model. Raises UserError if it, its settings or its tokenizer cannot be found or read."""
    from common.model import checkpoint, hf
    from common.model.tokenizer import Tokenizer

    folder = checkpoint.resolve(name)
    Tokenizer.load(folder)
    return hf.load_config(folder).max_positions


def _judged(
    place: "RunDir", config: Config, data: "Data", profiles: "dict[str, Profile]", open_judge: "Opener"
) -> "dict[str, Figure]":
    """The share of prompts on which the judge prefers each other model's answer to the first one's."""
    from common.backends.open import Purse
    from common.evals.figures import Scorer
    from common.evals.preference import verdicts, win_rate

    first, *others = config.model
    prompts = {prompt.id: prompt.text for prompt in data.prompts}
    version = judge_version(config.judge)
    found = {}
    with open_judge(Purse(place.path / "replies.sqlite", config.share(), "judge/")) as generator:
        judge = generator("judge")
        for name in others:
            ours, theirs = profiles[name].answers, profiles[first].answers
            file = f"{folder_of(config.model.index(name), name)}/verdicts.jsonl"
            with place.timed("judge"):
                rows = verdicts(place, file, judge, prompts, ours, theirs, config.seed)
            found[name] = win_rate(rows, Scorer(config.judge, version), config.seed)
    return found


def judge_version(name: str) -> str:
    """Which judge it was: the hash of its file, or of its checkpoint; a hosted one is what answered."""
    from common.backends.open import file_hashes, fingerprints, model_name

    if name.startswith("python:"):
        (digest,) = file_hashes((), [name]).values()
        return f"sha256 {digest}"
    found = fingerprints({"judge": model_name(name, "teacher")})
    return f"fingerprint {found['judge']}" if found else "as answered"


def folder_of(number: int, name: str) -> str:
    """Where a model's artifacts lie: its number, and as much of its name as a folder may have."""
    return f"models/{number}_{re.sub(r'[^a-zA-Z0-9.]+', '_', name)[-40:].strip('_.')}"


def identity(config: Config) -> dict[str, Any]:
    """What the run directory holds against the next command: settings, and hashes of files and checkpoints."""
    from common.backends.open import file_hashes, fingerprints, is_model, model_name

    files, named = config.read()
    models = {f"model {name}": name for name in config.model}
    if config.judge is not None and is_model(config.judge):
        models["judge"] = model_name(config.judge, "teacher")
    return config.stored() | {"file_hashes": file_hashes(files, named), "models": fingerprints(models)}
