"""An Active Inheritance run, from its settings to what it shows.

    summary = run(Config(pool="pool.jsonl", objective=("mtld:max",), run_dir="runs/demo"))

A run samples a pool or reads one, selects from it, and trains a student on every arm of the selection
(`active_inheritance.loop`). Importing this loads no jax and no numpy.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from active_inheritance.config import Config
from active_inheritance.profile.config import Config as ProfileConfig
from active_inheritance.switches import COLUMN
from common.backends.open import Backend, is_model, model_name
from common.errors import UserError
from common.experiment import carry_out, check_models, check_start, identity
from common.memory import Model, Need, room_for, sampling, tokens_in, training
from common.rates import OTHER
from common.settings import command, given, idle

if TYPE_CHECKING:
    from active_inheritance.loop import Setting
    from active_inheritance.pools import PoolFile
    from common.results.conclusion import Conclusion
    from common.results.rundir import RunDir
    from common.tasks.prompts import Prompt

LETTERS = 1500
"""Of a pool's prompt, where they have not been read yet."""


class Data(NamedTuple):
    """What a run reads. `pool`: a file of the user's, in place of which sources answer `prompts`. `held_out`: the
    held-out prompts that are known before the pool. `doubts`: what the files give reason to warn of."""

    pool: "PoolFile | None"
    prompts: "list[Prompt]"
    held_out: "list[Prompt]"
    doubts: list[str]


def run(config: Config, sources: Mapping[str, Backend] | None = None) -> dict[str, Any]:
    """Carry out (or continue) the run that `config` describes; returns what `summary.json` holds. `sources`: in
    place of those that `config` names, under the same names.

    Raises UserError for settings and data that do not fit, before the run directory exists.
    """
    config = config.resolved()
    data = load_data(config)
    stored = run_identity(config)

    def work(run: "RunDir", setting: "Setting") -> "Conclusion":
        from active_inheritance.loop import run_repeat
        from active_inheritance.report import conclusion
        from active_inheritance.summary import summarise

        switches, too_long = setting.switches, len(data.held_out) - len(setting.held_out)
        outcomes = []
        for repeat in range(switches.repeats if setting.student else 1):
            outcomes.append(run_repeat(run, setting, repeat))
            first = outcomes[0]
            # Prompts that are held out of a pool are the same in all repeats, and so is the student as it came.
            profile = first.base and first.base.profile
            setting = dataclasses.replace(setting, held_out=first.held_out, base_profile=profile)
        summary = summarise(run, config, switches, outcomes, stored["file_hashes"], too_long)
        made_by = command("active-inheritance", config, also=("select_only",))
        doubts = list(data.doubts)
        # Those that are drawn from the pool itself are no surprise.
        asked = max((found.held_out for found in outcomes[0].rounds), default=0)
        if config.pool is not None and data.held_out and asked:
            name, count = pathlib.Path(config.pool).name, summary.pool["prompts"]
            doubts.append(f"{name}: {asked} of {count} prompts ask what a held-out prompt asks, and were left out")
        if setting.measures:
            from active_inheritance.profile.warnings import repeated

            doubts += repeated(setting.measures)
        return conclusion(run, summary, switches, outcomes[0], config.redact, made_by, doubts)

    prepared = lambda: prepare(config, data, sources)
    estimate = units(config, data)
    named, told = models(config), idle(config, None)
    return carry_out(
        "active-inheritance", config.run_dir, stored, prepared, work, estimate, config.push, named, told
    )


def models(config: Config) -> dict[str, str]:
    """Names of models by role, hosted ones and functions among them."""
    found = {f"source {name}": name for name in config.source}
    for number, name in enumerate(config.students or (config.student,)):
        if name != "none":
            found[f"student {number}" if config.students else "student"] = model_name(name, "student")
    return found


def run_identity(config: Config, fetch: bool = True) -> dict[str, Any]:
    """What the run directory holds against the next command (see `common.experiment.identity`)."""
    files: list[str | None] = [config.pool, config.prompts_file, config.test_prompts_file]
    code = [*config.scores(), *config.source]
    for settings in (config.profile_settings(), ProfileConfig(toxicity_scorer=config.toxicity_scorer)):
        more_files, more_code = settings.read()
        files, code = files + more_files, code + more_code
    return identity(config.stored(), files, code, models(config), fetch)


def load_data(config: Config) -> Data:
    """The pool or the prompts for the sources, and held-out prompts. Raises UserError for files that do not fit
    the settings."""
    from active_inheritance.pools import LOOKED_AT
    from active_inheritance.prompts import OTHERS, PROMPTS, load_prompts, read_held_out
    from common.text.same import normal_form

    named, test = (config.prompt_column,) if config.prompt_column else PROMPTS, config.test_prompts_file
    pool = pool_of(config)
    if pool is None:
        most, count = config.prompts, config.test_prompts
        return Data(None, *load_prompts(config.prompts_file, test, named, most, count, config.seed))
    first = pool.beginning(config.top)
    held_out, told = ([], []) if test is None else read_held_out(test, named)
    taken = {normal_form(prompt.text) for prompt in held_out}
    if config.trains and len(first) < LOOKED_AT and all(normal_form(group.prompt) in taken for group in first):
        raise UserError(
            f"{config.pool}: all of its {len(first)} prompts ask what a held-out prompt asks: {OTHERS}"
        )
    return Data(pool, [], held_out, told)


def pool_of(config: Config) -> "PoolFile | None":
    """The pool that the user names."""
    from active_inheritance.pools import Layout, PoolFile

    if config.pool is None:
        return None
    scores = [name.removeprefix(COLUMN) for name in config.scores() if name.startswith(COLUMN)]
    layout = Layout(config.prompt_column, config.answers_column, tuple(scores))
    return PoolFile(pathlib.Path(config.pool), layout, config.sources, config.k, config.seed)


def check_plan(config: Config, data: Data) -> str | None:
    """What a run would refuse, as far as it is known without weights and without asking a hosted source. Returns
    what its time is known by."""
    hosted = [(name, config.source_url) for name in config.source]
    stored = lambda: run_identity(config, fetch=False)
    named = models(config)
    key = check_start("active-inheritance", config.run_dir, named, hosted, stored)
    # A selection alone opens no student.
    check_models({role: name for role, name in named.items() if config.trains or name in config.source})
    if not config.trains:
        return key
    from active_inheritance.prompts import fitting
    from common.reading import Reader

    if config.profile_settings().files():  # what is embedded needs no check, and no jax
        from active_inheritance.profile.experiment import load_data as load_measures

        load_measures(config.profile_settings())
    for name in config.students or (config.student,):
        if (student := Reader.read(model_name(name, "student"))) is not None:
            fitting(data.held_out, student, config.switches().testing.sampling.max_new_tokens)
    return key


def units(config: Config, data: Data) -> dict[str, float]:
    """Units of work by stage (see `common.rates`): answers of sources, examples seen, answers of students. Of a
    pool, whose prompts are not counted yet, megabytes."""
    switches, repeats = config.switches(), given(config.repeats) if config.trains else 1
    prompts, k, rounds = len(data.prompts), switches.answering.k, switches.rounds
    examples = switches.rule.top * (prompts or 1000)
    held_out = len(data.held_out) or switches.testing.prompts
    size = 0.0 if config.pool is None else pathlib.Path(config.pool).stat().st_size / 1e6
    train, arms = switches.learning.train, len(switches.arms)
    trains = config.trains * repeats * (arms - 1 + 2 * (rounds - 1))
    return {
        "sample": repeats * k * prompts * (1 + 2 * (rounds - 1)),
        "train": trains * train.total_steps(examples) * train.batch_size,
        "test": config.trains * repeats * (arms + 2 * (rounds - 1)) * held_out * switches.testing.samples,
        OTHER: repeats * rounds * (k * prompts + size),
    }


def prepare(config: Config, data: Data, sources: Mapping[str, Backend] | None) -> "Setting":
    """Open the sources and load the student. Raises UserError for what cannot be found or reached, and where no
    held-out prompt leaves the student room to answer."""
    from active_inheritance.loop import Setting

    switches = config.switches()
    mesh = None
    if config.held():  # a selection alone needs no jax
        mesh = room_for(lambda device, shards: needs(config, data, device, shards), config.devices)
    if sources is None:
        sources = {}
        if config.source:
            from active_inheritance.sampling import open_sources

            sources = open_sources(config.source, config.source_url, switches.answering, mesh)
    setting = Setting(switches, data.pool, sources, config.share(), data.prompts, data.held_out)
    if not config.trains:
        return setting

    from active_inheritance.profile.experiment import load_data as load_measures
    from active_inheritance.prompts import fitting
    from common.lm import LanguageModel

    measures = load_measures(config.profile_settings()) if config.profile else ()
    student = LanguageModel.load(model_name(config.student, "student"), mesh=mesh)
    held_out = fitting(data.held_out, student, switches.testing.sampling.max_new_tokens)
    return dataclasses.replace(setting, held_out=held_out, student=student, measures=measures)


def needs(config: Config, data: Data, device: str = "cpu", shards: int = 1) -> list[Need]:
    """Memory of the stages, of models that are on this machine."""
    switches, where = config.switches(), {"device": device, "shards": shards}
    longest = max((len(prompt.text) for prompt in (*data.prompts, *data.held_out)), default=LETTERS)
    prompt, answer = tokens_in(longest), given(config.answer_tokens)
    length = prompt + answer
    found = []
    for name in filter(is_model, config.source):
        source = Model.read(name)
        if source is not None:
            found.append(sampling(source, prompt, answer, stage=f"sampling from {name}", **where))
    for name in (config.students or (config.student,)) if config.trains else ():
        student = Model.read(model_name(name, "student"))
        if student is not None:
            found.append(training(student, switches.learning.train, length, stage="training a student", **where))
            rank = given(config.lora_rank)
            found.append(sampling(student, prompt, answer, stage="answering", rank=rank, scored=length, **where))
    return found
