"""Settings of a profile: the one source of its command line, its stored configuration and its checks.

    config = Config(model=("embedded:student",), prompts_file="prompts.jsonl").resolved()

Importing this loads no jax.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import ClassVar, Literal

from common.backends.budget import Budget
from common.backends.open import check_name, is_model, model_name
from common.cli import DATA, DEVICES, MEASURED, MODEL, OUTPUT, PROG, check_ranges, flag, flag_name, parse
from common.errors import UserError, meant, quoted
from common.model.checkpoint import EMBEDDED
from common.settings import RunSettings, hosted_share

STORIES, ARITHMETIC = "embedded:stories", "embedded:arithmetic"
"""What stands in the place of a file of prompts, and of a multiple-choice set; see `evals.embedded_sets`."""
FILES = ("prompts_file", "toxicity_prompts", "stereoset", "crows_pairs", "bbq_targets", "pairs")
CLASSIFIER_FILES = (".json", ".safetensors", ".txt", ".model")
"""Suffixes of the files in a classifier's folder that decide its scores: settings, weights, vocabularies."""

Layout = Literal["plain", "answer", "chat"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunSettings):
    """Defaults are those of the paper's toolbox where it states them, else this project's own.

    Without a model and without data they are those of the embedded demonstration."""

    UNSTORED: ClassVar[tuple[str, ...]] = (*RunSettings.UNSTORED, "batch_size")

    seed: int = flag(0, "random seed of samples and intervals", MEASURED)
    model: tuple[str, ...] = flag(
        (),
        "who is profiled: embedded:student, a Hugging Face id, or a folder; give it again for more, the first "
        "is what the others are compared with",
        MODEL,
    )
    prompts_file: str | None = flag(
        None, f"text: prompts that are answered (.jsonl, .csv, .parquet), or {STORIES}", DATA
    )
    prompt_column: str | None = flag(None, "column of the prompt; prompt, instruction, inputs, question, …")
    mode: Literal["clean", "official"] = flag("clean", "text: how words and sentences are counted", MEASURED)
    answer_tokens: int | None = flag(
        None, "longest answer in tokens; 512, or half the positions of the smallest model if that is less"
    )
    toxicity_prompts: str | None = flag(
        None, "toxicity: prompts that are continued, such as RealToxicityPrompts", DATA
    )
    toxicity_scorer: str | None = flag(
        None,
        "python:FILE.py:FUNCTION, column:FILE:COLUMN, hf:MODEL, perspective:, or lexicon:FILE (smoke runs)",
        MEASURED,
    )
    continuations: int = flag(25, "toxicity: continuations of a prompt")
    continuation_tokens: int | None = flag(None, "longest continuation in tokens; as --answer-tokens")
    temperature: float = flag(1.0, "toxicity: of continuations")
    top_p: float = flag(0.9, "toxicity: of continuations")
    threshold: float = flag(0.5, "toxicity: score from which a continuation is toxic")
    stereoset: str | None = flag(None, "bias: StereoSet, as published or as flat rows", DATA)
    crows_pairs: str | None = flag(None, "bias: CrowS-Pairs")
    bbq: tuple[str, ...] = flag((), "bias: BBQ, one file a category")
    bbq_targets: str | None = flag(None, "bias: additional_metadata.csv of BBQ")
    choice: tuple[str, ...] = flag(
        (), f"calibration and utility: NAME=FILE, rows like HellaSwag, ARC, OpenBookQA, or NAME={ARITHMETIC}"
    )
    choice_layout: Layout | None = flag(
        None,
        "plain: question, blank, option; answer: Question: …, Answer: option; chat: the option is the reply under "
        "the model's chat template; plain for files, chat for the embedded set if not given",
        MEASURED,
    )
    pairs: str | None = flag(
        None,
        "preference: rows with prompt, answer_a, answer_b (and choice, A or B, by people) that models judge",
        DATA,
    )
    judge: str | None = flag(
        None,
        "preference: compares answers to the prompts with the first model's: a model, openai:MODEL, "
        "python:FILE.py:FUNCTION",
        MODEL,
    )
    judge_url: str | None = flag(None, "base URL of a judge openai:MODEL")
    judge_tokens: int = flag(8, "longest reply of the judge in tokens, its reasoning included")
    budget: str | None = flag(None, "limits for a hosted judge, such as calls=500,tokens=200000,usd=2.5")
    judge_price: str | None = flag(None, "USD for a million prompt and completion tokens, such as 0.15,0.6")
    limit: int | None = flag(None, "first rows of every file", DATA)
    batch_size: int = flag(32, "texts computed together; changes no figure", DEVICES)
    run_dir: str = flag("runs/profile", "folder or URL of the run; the same command continues it", OUTPUT)

    def resolved(self) -> "Config":
        """The same settings, checked. Raises UserError for a value out of range or a missing file."""
        named = tuple(model_name(name, "student") for name in self.model)
        config = dataclasses.replace(self, model=named)
        if not named and not self.measures():
            config = dataclasses.replace(
                self,
                model=("embedded:student", "embedded:teacher"),
                prompts_file=STORIES,
                choice=(f"arithmetic={ARITHMETIC}",),
            )
        config._check()
        return config

    @classmethod
    def asked(cls, words: Sequence[str], asking: str) -> "Config":
        """What another command's flag of NAME=VALUE asks for: the flags that say what is measured, not on whom.
        Raises UserError for another name, and for a value that its flag does not take."""
        line = []
        for given in words:
            name, sign, value = given.partition("=")
            if name.replace("-", "_") not in MEASURING or not sign:
                like = meant(name, MEASURING)
                raise UserError(f"{asking} {quoted(given)}: give NAME=VALUE, of {', '.join(MEASURING)}{like}")
            line.append(f"{flag_name(name)}={value}")  # one word, so that no value is read as a flag
        return parse(cls, line, f"{PROG} profile")

    def idle(self) -> dict[str, str]:
        found = {}
        if self.toxicity_prompts is None:
            names = ("continuations", "continuation_tokens", "temperature", "top_p", "threshold")
            found |= dict.fromkeys(names, "--toxicity-prompts")
        if not self.choice:
            found["choice_layout"] = "--choice"
        if self.judge is None and self.pairs is None:
            found["judge_tokens"] = "--judge"
        if self.prompts_file is None:
            found["mode"] = "--prompts-file"
        return found

    def _check(self) -> None:
        if not self.model:
            raise UserError("--model is missing: name who is profiled, such as --model embedded:student")
        for name in self.model:
            if not is_model(name):
                raise UserError(f"--model {name} has no likelihoods: name a checkpoint")
            _check_there(name)
        if len(set(self.model)) < len(self.model):
            raise UserError(f"--model {','.join(self.model)}: name each once")
        self.check_measures()

    def check_measures(self) -> None:
        """The part that does not name models."""
        for name, file in self.files():
            if not pathlib.Path(file).is_file():
                raise UserError(f"no such file: {file} (given as {flag_name(name)})")
        if not self.measures():
            raise UserError(
                "nothing to measure: give --prompts-file, --toxicity-prompts, --stereoset, --crows-pairs, --bbq, "
                f"--choice NAME=FILE or --pairs; without files there are --prompts-file {STORIES} and --choice "
                f"arithmetic={ARITHMETIC}"
            )
        counts = ("continuations", "batch_size", "answer_tokens", "continuation_tokens", "limit")
        check_ranges(self, counts=counts, above=("temperature",), least=("seed",), shares=("top_p", "threshold"))
        if self.bbq_targets and not self.bbq:
            raise UserError("--bbq-targets belongs to --bbq FILE: give both")
        if (self.toxicity_prompts is None) != (self.toxicity_scorer is None):
            raise UserError("--toxicity-prompts FILE and --toxicity-scorer NAME belong together: give both")
        if self.toxicity_scorer is not None:
            from common.evals.scorers import check_scorer

            check_scorer(self.toxicity_scorer)
        self.share()
        if self.judge is not None:
            check_name(self.judge, "--judge", self.judge_url)
            if self.prompts_file is None or len(self.model) < 2:
                raise UserError("--judge compares answers of two models: give --prompts-file and --model twice")

    def held(self) -> dict[str, int]:
        judge = [model_name(self.judge, "teacher")] if self.judge and is_model(self.judge) else []
        return dict.fromkeys((*self.model, *judge), 2)

    def share(self) -> Budget | None:
        """What the judge may spend, on all models together. Raises UserError for a bad budget, and for settings of
        a hosted judge without one."""
        return hosted_share(self, "judge", [self.judge or ""], 1, self.judge_tokens)

    def choices(self) -> dict[str, str]:
        """Files of the multiple-choice sets, or `ARITHMETIC`, by name. Raises UserError for another form."""
        found: dict[str, str] = {}
        for given in self.choice:
            name, _, file = given.partition("=")
            if not re.fullmatch(r"\w[\w.-]*", name) or not file:
                raise UserError(f"--choice {given}: give NAME=FILE, such as arc_easy=test.jsonl")
            if name in found:
                raise UserError(f"--choice {given}: the name {name} is given twice")
            found[name] = file
        return found

    def layout(self, file: str) -> Layout:
        """How the questions of a multiple-choice set are put to the model."""
        return self.choice_layout or ("chat" if file == ARITHMETIC else "plain")

    def measures(self) -> list[str]:
        """The flags of what is to be measured."""
        single = [name for name in FILES if name != "bbq_targets" and getattr(self, name) is not None]
        return single + [name for name in ("bbq", "choice") if getattr(self, name)]

    def files(self) -> list[tuple[str, str]]:
        """(flag, file) of all files that are read; the embedded sets are none."""
        single = [(name, getattr(self, name)) for name in FILES if getattr(self, name) is not None]
        several = [("bbq", file) for file in self.bbq] + [("choice", file) for file in self.choices().values()]
        embedded = (("prompts_file", STORIES), ("choice", ARITHMETIC))
        return [given for given in single + several if given not in embedded]

    def read(self) -> tuple[list[str], list[str]]:
        """Files whose content decides the results, and names of Python back ends whose code does. A file of scores
        is left out, because it may grow."""
        scorer = self.toxicity_scorer or ""
        kind, _, rest = scorer.partition(":")
        files = [file for _, file in self.files()]
        files += [rest] if kind == "lexicon" else []
        folder = pathlib.Path(rest.partition("#")[0])
        if kind == "hf" and folder.is_dir():
            files += sorted(str(file) for file in folder.iterdir() if file.suffix in CLASSIFIER_FILES)
        return files, [name for name in (scorer, self.judge) if name]


def _check_there(name: str) -> None:
    """Raise UserError for a model that does not exist, where that can be told without the hub."""
    kind, colon, rest = name.partition(":")
    if colon and kind == "embedded":
        there = sorted(file.parent.name for file in EMBEDDED.glob("*/model.safetensors"))
        if rest not in there:
            raise UserError(
                f"--model {name}: no such embedded model: there are {', '.join(there)}{meant(rest, there)}"
            )
    elif not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not pathlib.Path(os.path.expanduser(name)).is_dir():
        raise UserError(f"--model {name}: no such folder")


MEASURING = tuple(
    field.name
    for field in dataclasses.fields(Config)
    if field.name not in ("model", "judge", "judge_url", "judge_price", "budget", "seed", *RunSettings.UNSTORED)
)
"""The flags that say what is measured."""
