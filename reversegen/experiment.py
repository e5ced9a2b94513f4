"""A ReverseGen run, from its settings to what it shows.

    summary = run(Config(rounds=2, run_dir="runs/demo"))

Data are read and checked first, then models are loaded, then the repeats run (`reversegen.loop`). Importing this
loads no jax.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from common.backends.budget import Budget
from common.backends.open import Backend, ReplyCache, model_name, open_backend
from common.errors import UserError
from common.experiment import carry_out, check_models, check_start, identity
from common.memory import room_for
from common.settings import given, idle
from reversegen.config import PRESETS, Config
from reversegen.plan import needs
from reversegen.plan import work as units_of
from reversegen.switches import Files, Switches

if TYPE_CHECKING:
    from common.reading import Reader
    from common.results.conclusion import Conclusion
    from common.results.rundir import RunDir
    from common.tasks.base import Example
    from reversegen.applications.base import Application, Data, Make


def run(config: Config) -> dict[str, Any]:
    """Carry out (or continue) the run that `config` describes; returns what `summary.json` holds.

    Raises UserError for settings and data that do not fit, before the run directory exists.
    """
    config = config.resolved()
    app, data = load_data(config)
    prepared = lambda: prepare(config, app, data)
    units = units_of(config, config.switches(app.query_tokens), data)
    stored = run_identity(config)
    work = lambda place, work: work(place)
    named, told = models(config), idle(config, PRESETS)
    return carry_out("reversegen", config.run_dir, stored, prepared, work, units, config.push, named, told)


def models(config: Config) -> dict[str, str]:
    """Names of models by role, hosted ones and functions among them."""
    found = {"proposer": model_name(config.proposer, "teacher"), "labeler": model_name(config.labeler, "teacher")}
    found |= {f"target {name}": model_name(name, "student") for name in (config.target, *config.transfer_targets)}
    return found | ({} if config.guard is None else {"guard": model_name(config.guard, "teacher")})


def run_identity(config: Config, fetch: bool = True) -> dict[str, Any]:
    """What the run directory holds against the next command (see `common.experiment.identity`)."""
    files = [config.seeds_file, config.test_file, config.general_file, config.human_file]
    if config.data is not None and pathlib.Path(config.data).suffix:
        files.append(config.data)
    code = [name for name in (config.labeler, config.guard, config.judge) if name]
    return identity(config.stored(), files, code, models(config), fetch)


def application(config: Config) -> "Application":
    """What failing means in this run (see `applications.base`). Raises UserError for a task or judge that does not
    fit."""
    train = config.files().seeds
    if config.task == "math":
        from reversegen.applications.math import Solving, number_task

        task = number_task(given(config.data), train)
        asked = config.answers(task.answer_tokens), config.votes(task.answer_tokens)
        worked_by = "program" if config.labeler == "program" else "labeler"
        return Solving(task, *asked, given(config.reference), given(config.validity), worked_by)
    if config.task == "honesty":
        from reversegen.applications.honesty import Certainty, choice_task

        task = choice_task(given(config.data), train)
        asked = config.answers(task.answer_tokens), config.votes(task.answer_tokens)
        cut = config.entropy_cut, config.entropy_quantile
        return Certainty(task, *asked, *cut, config.none_option, config.validity == "labeler")
    from common.usercode import load_callable
    from reversegen.applications.conduct import ANSWER_TOKENS, SAFE_ANSWER, Conduct

    answers = config.answers(ANSWER_TOKENS)
    judge = None if config.judge is None else load_callable(config.judge)
    instruction = config.label_instruction or (SAFE_ANSWER if judge is None else None)
    votes = config.votes(answers.tokens)
    return Conduct(config.task, answers, votes, judge, instruction, guard_tokens=config.guard_tokens)


def load_data(config: Config) -> "tuple[Application, Data]":
    """What failing means, and the data. Raises UserError for rows that do not fit, and for too few of them."""
    with _own_flags():
        app = application(config)
        data = app.load(config.files())
    if len(data.seeds) < config.seed_instructions:
        also = f"; {data.shared} more ask what the test or general file asks" if data.shared else ""
        raise UserError(_too_few(len(data.seeds), config.seed_instructions) + also)
    if not data.test:
        raise UserError(f"there is no ordinary test for --task {config.task}: give --test-file FILE")
    return app, dataclasses.replace(data, doubts=_doubts(app.name, config.files(), data))


def _doubts(name: str, files: Files, data: "Data") -> tuple[str, ...]:
    """What the files give reason to warn of: rows that repeat others, questions under several labels."""
    from common.text.same import LEARNED, TESTED, doubts

    told = []
    for kind, so in (("seeds", LEARNED), ("test", TESTED), ("general", TESTED), ("human", LEARNED)):
        file = getattr(files, kind)
        told += doubts(f"{name}, {kind}" if file is None else file.name, getattr(data, kind), so)
    if data.shared:
        where = "seeds" if files.seeds is None else files.seeds.name
        rows = "1 row asks" if data.shared == 1 else f"{data.shared} rows ask"
        told.append(f"{where}: {rows} what the test or general file asks, and were left out")
    return tuple(told)


@contextlib.contextmanager
def _own_flags() -> Iterator[None]:
    """What tasks call training data is the seeds' file here."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("--train-file", "--seeds-file").replace("--task)", "--data)")) from None


def _too_few(count: int, wanted: int) -> str:
    found = f"there are {count} seed instructions, fewer than --seed-instructions {wanted}"
    return f"{found}: lower it to that" if count else f"{found}: give more"


def prepare(config: Config, app: "Application", data: "Data") -> "Callable[[RunDir], Conclusion]":
    """Load models; what is returned carries out all repeats. Raises UserError for whatever the user must
    fix."""
    from common.lm import LanguageModel
    from reversegen.applications.base import Context
    from reversegen.loop import Models, run_repeat
    from reversegen.report import conclusion

    switches = config.switches(app.query_tokens)
    mesh = room_for(lambda device, shards: needs(config, app, data, device, shards), config.devices)
    labeler = guard = None
    if config.labeler != "program":
        labeler = open_backend(config.labeler, "teacher", url=config.labeler_url, mesh=mesh)
    if config.guard is not None:
        guard = open_backend(config.guard, "teacher", url=config.guard_url, mesh=mesh)
    loaded = Models(
        LanguageModel.load(model_name(config.proposer, "teacher"), mesh=mesh),
        LanguageModel.load(model_name(config.target, "student"), mesh=mesh),
        {name: LanguageModel.load(model_name(name, "student"), mesh=mesh) for name in config.transfer_targets},
    )
    fitting = seeds_that_fit(config, app, data, loaded.proposer, loaded.target)
    warnings = list(data.doubts)
    if left := len(data.seeds) - len(fitting):
        warnings.append(f"{left} of {len(data.seeds)} seeds were left out, as they are too long to be shown")
    data = dataclasses.replace(data, seeds=fitting)

    def work(place: "RunDir") -> "Conclusion":
        with contextlib.ExitStack() as stack:

            def opened(backend: Backend | None, share: Budget | None, account: str) -> "Make | None":
                """One generator for each account, as a hosted model's spending is counted by account."""
                cache = ReplyCache(place.path / "replies.sqlite", share, account)
                return None if backend is None else functools.cache(stack.enter_context(backend(cache)))

            asked = opened(labeler, config.share(), "labeler/"), opened(guard, None, "guard/")
            make = lambda repeat: Context(place, repeat, config.seed + repeat, *asked, config.labeler_tokens)
            contexts = [make(repeat) for repeat in range(config.repeats)]
            repeats = [run_repeat(ctx, app, switches, loaded, data) for ctx in contexts]
        return conclusion(place, config, app, repeats, [*data.test, *data.general], warnings)

    return work


def check_plan(config: Config, app: "Application", data: "Data") -> str | None:
    """What a run would refuse, as far as it is known without weights and without asking a hosted labeler. Returns
    what its time is known by."""
    from common.reading import Reader

    hosted = [(config.labeler, config.labeler_url), (config.guard, config.guard_url)]
    stored = lambda: run_identity(config, fetch=False)
    key = check_start("reversegen", config.run_dir, models(config), hosted, stored)
    check_models(models(config))
    proposer = Reader.read(model_name(config.proposer, "teacher"))
    target = Reader.read(model_name(config.target, "student"))
    if proposer is not None and target is not None:
        seeds_that_fit(config, app, data, proposer, target)
    return key


def seeds_that_fit(
    config: Config, app: "Application", data: "Data", proposer: "Reader", target: "Reader"
) -> "list[Example]":
    """The seeds that can be shown to the proposer. Raises UserError for too few of them, for one that is too long
    to be learned, and for a question without room for its answer."""
    from reversegen.lengths import check_lengths
    from reversegen.loop import draw_seeds

    switches = config.switches(app.query_tokens)
    fitting = seeds_to_show(app, data.seeds, switches, proposer)
    drawn = [draw_seeds(fitting, switches.seeds, config.seed + repeat)[0] for repeat in range(config.repeats)]
    learned = dict.fromkeys(seed for seeds in drawn for seed in seeds if seed.answer)
    asked = [*data.test, *data.general]
    check_lengths(app, target, list(learned), asked, switches.learning.train.max_length)
    return fitting


def seeds_to_show(
    app: "Application", seeds: "list[Example]", switches: Switches, proposer: "Reader"
) -> "list[Example]":
    """The seeds that leave room for a query in the proposer's prompt. Raises UserError for too few of them."""
    from reversegen.lengths import that_fit

    shots, tokens = switches.exploring.shots, switches.exploring.writing.max_new_tokens
    fitting = that_fit(app, proposer, seeds, shots, tokens)
    if len(fitting) < switches.seeds:
        raise UserError(
            f"{_too_few(len(fitting), switches.seeds)}; {len(seeds) - len(fitting)} more are too long for --shots "
            f"{shots} and --query-tokens within the proposer's {proposer.config.max_positions} positions"
        )
    return fitting
