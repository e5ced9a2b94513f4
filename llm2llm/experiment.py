"""An LLM2LLM run, from its settings to what it shows.

    summary = run(Config(rounds=3, run_dir="runs/demo"))

Data are read and checked first, then models are loaded, then the repeats run (`llm2llm.loop`). Importing this
loads no jax.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from common.backends.open import Backend, ReplyCache, Write, model_name, open_backend
from common.errors import UserError
from common.experiment import carry_out, check_models, check_start, identity
from common.generate import Generator
from common.memory import room_for
from common.settings import idle
from common.tasks.base import Example, Task
from common.tasks.files import check_ids
from common.tasks.registry import get_task
from llm2llm.config import PRESETS, Config
from llm2llm.plan import needs
from llm2llm.plan import work as units_of
from llm2llm.switches import Switches

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from common.lm import LanguageModel
    from common.reading import Reader
    from common.results.conclusion import Conclusion
    from common.results.rundir import RunDir
    from llm2llm.augment import Refine

Teachers = Callable[[set[str], str], Generator]
"""From questions that must not be given out, and the name of an account, to the teacher of an arm."""


class Data(NamedTuple):
    """The task as it is taught, as students are asked and graded, and with this project's grader (the three differ
    for the authors' program only), and its splits. `doubts`: what the files give reason to warn of. `pool`: the
    examples of a pool teacher, without those of dev and test."""

    task: Task
    evaluated: Task
    judge: Task
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    doubts: list[str]
    pool: list[Example]

    @property
    def examples(self) -> list[Example]:
        """Of all splits."""
        return [*self.train, *self.dev, *self.test]


def run(
    config: Config, teacher: Write | None = None, cache: ReplyCache | None = None, refine: "Refine | None" = None
) -> dict[str, Any]:
    """Carry out (or continue) the run that `config` describes; returns what `summary.json` holds.

    `teacher`: a function from chat messages to the reply, in place of the teacher that `config` names. `cache`: by
    default the replies lie in the run directory and each arm of each repeat has an equal share of the budget.
    `refine`: what every reply that is to be a new example comes through (see `llm2llm.augment.Refine`); the label
    check asks the teacher itself. It is not for a pool, whose examples are given out once.

    Raises UserError for settings and data that do not fit, before the run directory exists.
    """
    if teacher is not None:
        # Who wrote the data is part of a run's identity, so the function's name takes the place of the model's.
        config = dataclasses.replace(config, teacher=f"function:{getattr(teacher, '__qualname__', 'teacher')}")
    config = config.resolved()
    if refine is not None and config.pool is not None:
        raise UserError("a pool gives out every example once, so there is nothing to refine: leave out refine")
    data = load_data(config)
    stored = run_identity(config) | ({} if refine is None else {"refine": dict(refine.stored)})
    switches = config.switches(data.task)
    if cache is None:
        check_budget(config, data)

    def prepare() -> "tuple[LanguageModel, Backend]":
        stages = lambda device, shards: needs(config, data.task, data.examples, device, shards)
        mesh = room_for(stages, config.devices)
        if config.pool is not None:
            asked = pool_teacher(config, data)
        else:
            asked = open_backend(config.teacher, "teacher", url=config.teacher_url, function=teacher, mesh=mesh)
        return load_student(config.student, data, switches, config.repeats, mesh), asked

    def work(run: "RunDir", ready: "tuple[LanguageModel, Backend]") -> "Conclusion":
        from llm2llm.loop import run_repeat
        from llm2llm.report import conclusion
        from llm2llm.students import Setting

        base, backend = ready
        with backend(cache or ReplyCache(run.path / "replies.sqlite", config.share())) as made:
            # Only a pool could give out a question that it must not.
            teachers = made if config.pool is not None else lambda exclude, account: made(account)
            read = {name: value for name, value in data._asdict().items() if name != "pool"}
            setting = Setting(**read, switches=switches, base=base, teachers=teachers, refine=refine)
            repeats = [run_repeat(run, setting, 0)]
            # The base is asked alike in every repeat, unless questions stand behind some of its seeds.
            same = None if config.few_shot else repeats[0]["arms"].get("base")
            repeats += [run_repeat(run, setting, repeat, same) for repeat in range(1, config.repeats)]
            return conclusion(run, config, setting, repeats)

    units = units_of(config, len(data.dev), len(data.test))
    named, told = models(config), idle(config, PRESETS)
    return carry_out("llm2llm", config.run_dir, stored, prepare, work, units, config.push, named, told)


def models(config: Config) -> dict[str, str]:
    """Names of models by role, hosted ones and functions among them."""
    return {name: model_name(getattr(config, name), name) for name in ("student", "teacher")}


def run_identity(config: Config, fetch: bool = True) -> dict[str, Any]:
    """What the run directory holds against the next command (see `common.experiment.identity`)."""
    files = [config.train_file, config.dev_file, config.test_file, config.pool]
    files += [config.task] if pathlib.Path(config.task).suffix else []
    return identity(config.stored(), files, [config.teacher], models(config), fetch)


def load_data(config: Config) -> Data:
    """The task and its splits. Raises UserError for rows that do not fit and for too few of them."""
    as_path = lambda name: None if name is None else pathlib.Path(name)
    train_file = as_path(config.train_file)
    judge: Task = get_task(config.task, train_file, config.text_column, config.label_column, config.instruction)
    task = evaluated = judge
    if config.reference_code:
        from llm2llm.reference_code import REFERENCE_GSM8K, as_evaluated

        task, evaluated = REFERENCE_GSM8K, as_evaluated(REFERENCE_GSM8K)
    from common.text.same import apart

    files = {"train": train_file, "dev": as_path(config.dev_file), "test": as_path(config.test_file)}
    splits = {split: task.load(split, file, config.seed) for split, file in files.items()}
    for examples in splits.values():
        check_ids(examples)
    # Real sets repeat a few questions across splits; such rows become no seeds, so that the test stays unseen.
    rest = apart(splits["train"], [*splits["dev"], *splits["test"]])
    if len(rest) < config.seed_examples:
        shared = len(splits["train"]) - len(rest)
        also = f" ({shared} more are dev or test questions too)" if shared else ""
        raise UserError(
            f"{config.train_file or f'task {config.task}'} has {len(rest)} training examples{also}, fewer "
            f"than --seed-examples {config.seed_examples}: lower it to that"
        )
    if "eda" in config.arms and len(task.reply_fields) > 2:
        raise UserError(f"arm eda would edit words inside the options of task {task.name}: leave it out")
    # Fifty questions tell whether there is a program at all; it need not know every single one.
    if config.label_check == "program" and not any(task.truth(example.question) for example in rest[:50]):
        raise UserError(f"no program knows the answers of task {task.name}: use --label-check resolve or none")
    if config.answer_by == "score" and not task.choices:
        raise UserError(f"task {task.name} lists no answers to choose from: leave out --answer-by score")
    told = _doubts(config, files, splits, len(rest))
    pool, of_pool = read_pool(config, task, [*splits["dev"], *splits["test"]])
    return Data(task, evaluated, judge, rest, splits["dev"], splits["test"], told + of_pool, pool)


def read_pool(config: Config, task: Task, held_out: list[Example]) -> tuple[list[Example], list[str]]:
    """The examples of a pool teacher that ask nothing of `held_out`, and what its file gives reason to warn of;
    nothing of another teacher. Raises UserError for rows that do not fit, and where none is left."""
    from common.text.same import apart, torn

    if config.pool is None:
        return [], []
    file = pathlib.Path(config.pool)
    found = task.load("train", file, config.seed)
    left, told = apart(found, held_out), torn(file.name, found)
    if not left:
        raise UserError(f"{file}: all of its {len(found)} rows are dev or test questions too: give another pool")
    if shared := len(found) - len(left):
        told.append(f"{file.name}: {shared} of {len(found)} rows are dev or test questions too, and were left out")
    return left, told


def _doubts(
    config: Config, files: Mapping[str, pathlib.Path | None], splits: Mapping[str, list[Example]], left: int
) -> list[str]:
    """What the files give reason to warn of: rows that repeat others, and rows of one split in another. `left`:
    training examples that are asked nowhere else."""
    from common.text.same import CHOSEN_BY, LEARNED, TESTED, apart, doubts

    named = {split: file.name if file else f"task {config.task}, {split}" for split, file in files.items()}
    train, dev, test = splits["train"], splits["dev"], splits["test"]
    told = []
    for split, so in (("train", LEARNED), ("dev", CHOSEN_BY), ("test", TESTED)):
        told += doubts(named[split], splits[split], so)
    if shared := len(dev) - len(apart(dev, test)):
        told.append(
            f"{named['dev']}: {shared} of {len(dev)} rows are test questions: the round is chosen on what it is "
            "tested on; take them out"
        )
    if shared := len(train) - left:
        told.append(
            f"{named['train']}: {shared} of {len(train)} rows are dev or test questions too, and were left out"
        )
    return told


def load_student(
    name: str, data: Data, switches: Switches, repeats: int, mesh: "Mesh | None" = None
) -> "LanguageModel":
    """The base of all students. Raises UserError for a seed that it cannot learn, or a question without room for
    its answer, naming the row."""
    from common.lm import LanguageModel

    base = LanguageModel.load(model_name(name, "student"), mesh=mesh)
    check_lengths(base, data, switches, repeats)
    return base


def check_lengths(base: "Reader", data: Data, switches: Switches, repeats: int) -> None:
    """Raises UserError for a seed that the student cannot learn, or a question without room for its answer."""
    from llm2llm.select import as_asked, draw_seeds

    learning = switches.learning
    # The seeds of all repeats now: a row that is too long should not stop the last repeat after hours.
    for seed in range(switches.seed, switches.seed + repeats):
        seeds = draw_seeds(data.train, switches.seeds, seed)
        task = as_asked(data.task, learning, seeds, seed)
        base.encode(task, seeds, learning.train.max_length)
        for examples in (seeds, data.dev, data.test):
            base.check_prompts(task, examples, learning.answering.max_new_tokens)


def check_plan(config: Config, data: Data) -> str | None:
    """What a run would refuse, as far as it is known without weights and without asking a hosted teacher. Returns
    what its time is known by."""
    from common.reading import Reader

    # What a pool holds was bought before.
    hosted = [(config.teacher, config.teacher_url)] if config.pool is None else []
    stored = lambda: run_identity(config, fetch=False)
    key = check_start("llm2llm", config.run_dir, models(config), hosted, stored)
    check_models(models(config))
    student = Reader.read(model_name(config.student, "student"))
    if student is not None:
        check_lengths(student, data, config.switches(data.task), config.repeats)
    check_budget(config, data)
    return key


def check_budget(config: Config, data: Data) -> None:
    """Raises UserError for a budget whose share does not cover the cheapest new example with its label check."""
    share = config.share()
    if share is None or not config.teaching_arms or not data.train:
        return
    from common.backends.chat import estimate
    from common.generate import Request

    task, asking = data.task, config.switches(data.task).asking
    # Hints come on top of it in a later round.
    writing = lambda e: estimate(Request("", tuple(task.teacher_messages(e))), asking.sampling)
    costs = (writing(example) + asking.check_cost(task, example) for example in data.train)
    share.check(min(costs, key=lambda cost: cost.prompt_tokens), "one new example with its label check")


def pool_teacher(config: Config, data: Data) -> Backend:
    """What is returned opens teachers of the pool, which no cache limits."""
    from llm2llm.pool import PoolGenerator

    make = lambda exclude, account: PoolGenerator(config.teacher, data.task, data.pool, exclude)
    return lambda cache: contextlib.nullcontext(make)
