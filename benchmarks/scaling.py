"""How cost grows: with the seeds of a round, with samples a prompt, with the length of texts. A table and a plot.

    python benchmarks/scaling.py seeds [--save]      # a round of LLM2LLM on 100 to 10,000 seeds
    python benchmarks/scaling.py k [--save]          # 1 to 64 samples of 64 tokens for each of 32 prompts
    python benchmarks/scaling.py length [--save]     # training and scoring on texts of 64 to 2,048 tokens

Seconds are those of all cores together (processor time), which other work on the machine disturbs less than the
clock; each size is run once before, so that compiling is not measured. `--save` writes results/scaling_NAME.json
and .svg beside this file, with machine and commit. Duplicates: `dedup.py`.

A round is one on the embedded task: train the student for one pass over the seeds, let it answer them, ask the
embedded teacher for one new example of each, read, filter and check it.
"""

import argparse
import json
import os
import pathlib
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from common import runtime
from common.config import ModelConfig, SampleConfig, TrainConfig
from common.lm import LanguageModel
from common.model.decoder import init
from common.results.plots import figure_svg, line_figure
from common.results.rundir import RunDir
from common.sample.prompt import Prompt
from common.sample.sampler import Sampler
from common.sample.score import score
from common.tasks.arithmetic import Arithmetic
from common.tasks.base import Example
from common.tasks.problems import SKILLS, write
from common.train.data import Encoded
from common.train.loop import fine_tune
from llm2llm.augment import augment
from llm2llm.config import Config
from llm2llm.students import Arm, Setting

RESULTS = pathlib.Path(__file__).parent / "results"
Row = tuple[int, dict[str, float]]


def spent(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    start = time.process_time()
    jax.block_until_ready(work())
    return round(time.process_time() - start, 2)


def problems(count: int) -> list[Example]:
    """As many different word problems, evenly over the skills."""
    rng, found = random.Random("scaling"), {}
    skills = list(SKILLS)
    while len(found) < count:
        skill = skills[len(found) % len(skills)]
        made = write(rng, skill)
        name = f"train-{len(found)}"
        found.setdefault(made.question, Example(name, made.question, made.solution, str(made.answer), skill))
    return list(found.values())


def one_round(setting: Setting, seeds: list[Example]) -> dict[str, float]:
    """Seconds by stage of a round on `seeds`, in a run directory of its own."""
    with tempfile.TemporaryDirectory() as folder, RunDir.open(folder, "llm2llm", {}) as run:
        arm = Arm(run, setting, seeds, 0, "llm2llm")
        student = arm.student(0, seeds)
        place, request = f"{arm.folder}/round_0", setting.task.teacher_messages
        return {
            "train": spent(lambda: arm.train(student)),
            "evaluate": spent(lambda: arm.answers(student, "seeds", seeds)),
            "teach": spent(lambda: augment(run, place, arm.teacher(), seeds, arm.known(), 0, 0, 1, request)),
        }


def seeds() -> Iterator[Row]:
    sizes = (100, 250, 500, 1000, 2500, 5000, 10_000)
    pool = problems(sizes[-1])
    config = Config(epochs=1.0, arms=("llm2llm",)).resolved()
    base = LanguageModel.load("embedded:student")
    teacher = LanguageModel.load("embedded:teacher").generator()
    task = Arithmetic()
    setting = Setting(config.switches(task), task, task, task, base, lambda given, scope: teacher, pool, [], [])
    one_round(setting, pool[:300])
    for size in sizes:
        yield size, one_round(setting, pool[:size])


def samples() -> Iterator[Row]:
    model = LanguageModel.load("embedded:teacher")
    prompts = [model.tokenizer.encode_text(example.question) for example in problems(32)]
    sampler = Sampler(model.params, model.config, eos_ids=())

    def sample(k: int) -> None:
        sampler.sample([Prompt(prompt, SampleConfig(64, 1.0), tuple(range(k))) for prompt in prompts])

    for k in (1, 2, 4, 8, 16, 32, 64):
        sample(k)
        yield k, {"sample": spent(lambda k=k: sample(k))}


def lengths() -> Iterator[Row]:
    """16,384 tokens at each length, so that a straight line would be a level one."""
    config = ModelConfig(
        family="llama",
        vocab_size=4096,
        hidden_size=192,
        intermediate_size=512,
        num_layers=6,
        num_heads=6,
        num_kv_heads=6,
        head_dim=32,
        max_positions=4096,
    )
    params, rng = init(config, jax.random.key(0)), np.random.default_rng(0)
    for length in (64, 128, 256, 512, 1024, 2048):
        texts = [tuple(map(int, row)) for row in rng.integers(1, 4096, (16_384 // length, length))]
        size = max(1, 2048 // length)
        settings = TrainConfig(epochs=1, batch_size=size, micro_batch_size=size, max_length=length, remat="none")
        rows, halves = [Encoded(text, length // 2) for text in texts], [length // 2] * len(texts)
        pairs = [(text[:half], text[half:]) for text, half in zip(texts, halves, strict=True)]
        work = {
            "train": lambda rows=rows, settings=settings: fine_tune(params, config, rows, settings, pad_id=0),
            "score": lambda pairs=pairs: score(params, config, pairs),
        }
        for each in work.values():
            each()
        yield length, {name: spent(each) for name, each in work.items()}


AXES = {"seeds": (seeds, "seeds"), "k": (samples, "samples a prompt"), "length": (lengths, "tokens a text")}


def save(name: str, rows: list[Row], label: str) -> None:
    """Write results/NAME.json and .svg."""
    RESULTS.mkdir(exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {"seconds": dict(rows), "python": platform.python_version(), "machine": platform.machine()}
    result |= {"cores": len(os.sched_getaffinity(0)), "jax": jax.__version__, "commit": commit}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    at = [size for size, _ in rows]
    series = {stage: (at, [found[stage] for _, found in rows]) for stage in rows[0][1]}
    drawing = figure_svg(line_figure(series, label, "seconds of processor time"), name)
    drawing = drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:white" ', 1)
    (RESULTS / f"{name}.svg").write_text(drawing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axis", choices=AXES)
    parser.add_argument("--save", action="store_true", help="write the results beside this file")
    args = parser.parse_args()
    runtime.enable_compile_cache()
    measure, label = AXES[args.axis]
    rows = []
    for size, found in measure():
        rows.append((size, found))
        each = 1000 * sum(found.values()) / size
        print(f"{size:6} {label}  {found}  {each:.1f} ms each", flush=True)
    if args.save:
        save(f"scaling_{args.axis}", rows, label)
    print(json.dumps({args.axis: dict(rows)}))


if __name__ == "__main__":
    main()
