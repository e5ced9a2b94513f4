"""What a round of LLM2LLM costs as the seeds grow from 100 to 5,000: seconds a stage, and a plot.

    python benchmarks/scaling.py [--save]

One round on the embedded task: train the student for one pass over the seeds, let it answer them, ask the embedded
teacher for one new example of each, read, filter and check it. A small round goes first, so that compiling is not
measured. `--save` writes results/scaling.json and results/scaling.svg beside this file, with machine and commit.
"""

import argparse
import collections
import json
import os
import pathlib
import platform
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax

from common import runtime
from common.lm import LanguageModel
from common.results.files import read_jsonl
from common.results.plots import figure_svg, line_figure
from common.results.rundir import RunDir
from common.tasks.arithmetic import Arithmetic
from common.tasks.base import Example
from common.tasks.problems import SKILLS, write
from llm2llm.augment import augment
from llm2llm.config import Config
from llm2llm.students import Arm, Setting

SIZES = (100, 250, 500, 1000, 2500, 5000)
STAGES = ("train", "evaluate", "teach")
RESULTS = pathlib.Path(__file__).parent / "results"


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
        with run.timed("train"):
            arm.train(student)
        with run.timed("evaluate"):
            arm.answers(student, "seeds", seeds)
        with run.timed("teach"):
            request = setting.task.teacher_messages
            augment(run, f"{arm.folder}/round_0", arm.teacher(), seeds, arm.known(), 0, 0, 1, request)
        spent = collections.Counter()
        for row in read_jsonl(run.path / "timing.jsonl"):
            spent[row["stage"]] += row["seconds"]
        return {stage: round(spent[stage], 2) for stage in STAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write the results beside this file")
    save = parser.parse_args().save
    runtime.enable_compile_cache()
    pool = problems(SIZES[-1])
    config = Config(epochs=1.0, arms=("llm2llm",)).resolved()
    base = LanguageModel.load("embedded:student")
    teacher = LanguageModel.load("embedded:teacher").generator()
    task = Arithmetic()
    setting = Setting(config.switches(task), task, task, task, base, lambda given, scope: teacher, pool, [], [])
    one_round(setting, pool[:300])
    seconds = {}
    for size in SIZES:
        seconds[size] = one_round(setting, pool[:size])
        each = 1000 * sum(seconds[size].values()) / size
        print(f"{size:6} seeds  {seconds[size]}  {each:.1f} ms a seed", flush=True)
    if save:
        RESULTS.mkdir(exist_ok=True)
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
        result = {"seconds": seconds, "python": platform.python_version(), "machine": platform.machine()}
        result |= {"cores": len(os.sched_getaffinity(0)), "jax": jax.__version__, "commit": commit}
        (RESULTS / "scaling.json").write_text(json.dumps(result, indent=2) + "\n")
        series = {stage: (list(SIZES), [seconds[n][stage] for n in SIZES]) for stage in STAGES}
        drawing = figure_svg(line_figure(series, "seeds", "seconds"), "scaling")
        drawing = drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:white" ', 1)
        (RESULTS / "scaling.svg").write_text(drawing)


if __name__ == "__main__":
    main()
