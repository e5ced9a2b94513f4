"""EleutherAI's evaluation harness (lm_eval) on the models of this project: an adapter, and a command.

    python -m common.evals.harness --model embedded:student --tasks my_task --include-path tasks/

    lm_eval.simple_evaluate(wrap(LanguageModel.load("embedded:student")), tasks=["my_task"], task_manager=…)

The harness writes the prompts, reads the answers and keeps the score; tokens, likelihoods and samples are this
project's. Where a continuation begins in the tokens, what stands in front of a text, and what is done with one
that is too long are as in the harness's own Hugging Face back end (0.4.13), so that figures can be put beside
those of others. That differs from `likelihood.Reader` in two ways: a continuation begins after as many tokens as
the context has by itself, not at the first token that ends beyond the context; and where a tokenizer names no
start token, the end token stands in front of a text, where `Reader` takes the first token as a condition.
"""

import collections
import contextlib
import dataclasses
import difflib
import importlib.util
import json
import logging
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common import runtime
from common.buckets import power_of_two
from common.cli import check_ranges, check_values, fail, flag, parse
from common.config import SampleConfig
from common.errors import UserError, in_one_line
from common.evals.likelihood import BATCH, DIGITS
from common.lm import LanguageModel
from common.model.decoder import count_params
from common.progress import progress_bar
from common.results.files import write_bytes
from common.sample.local import _before_stop, _stop_finder, sample_seed
from common.sample.prompt import Prompt
from common.sample.sampler import Sampler
from common.sample.score import score_greedy
from common.secret import mask_output, masked_value
from common.usercode import STOPS

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM

Encoded = tuple[Any, list[int], list[int]]
"""What was asked (context and continuation, or None), and the token ids of both."""

SAMPLING = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}
WITHOUT_EFFECT = {"num_beams": 1, "repetition_penalty": 1.0}
"""Settings of other back ends that tasks state though they change nothing."""

log = logging.getLogger(__name__)


def wrap(model: LanguageModel, batch_size: int = 32, seed: int = 0) -> "TemplateLM":
    """`model` as `lm_eval.simple_evaluate` takes it.

    `batch_size` texts are scored together, and as many samples decoded (rounded up to a power of two); results do
    not depend on it, but for the last bits of float32. `seed` is that of samples at a temperature above 0.
    Raises UserError where the harness is not installed.
    """
    _check_installed()
    from lm_eval.api.model import TemplateLM

    return type("SeedloopLM", (HarnessModel, TemplateLM), {})(model, batch_size, seed)


def _check_installed() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("the harness is not installed: pip install '.[harness]'")


class HarnessModel:
    """What `lm_eval.api.model.TemplateLM` leaves open. `wrap` puts the two together, so that this module can be
    loaded without the harness.

    `cut`: by kind of request, how many were too long for the model and lost their beginning.
    """

    max_gen_toks = 256
    """New tokens where a task names no limit: the harness's own default."""

    def __init__(self, model: LanguageModel, batch_size: int, seed: int):
        super().__init__()
        self.tokenizer = model.tokenizer._backend  # the harness reads its special tokens and its template
        self.max_length = model.config.max_positions
        self.cut: collections.Counter[str] = collections.Counter()
        self._model, self._batch_size, self._seed = model, batch_size, seed

    # ---- tokens

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        return next(iter(self._model.tokenizer.eos_ids), None)

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text without a context. Raises UserError if the tokenizer names none."""
        named = (self._model.tokenizer.bos_id, self.eot_token_id)
        token = next((token for token in named if token is not None), None)
        if token is None:
            raise UserError("the tokenizer names no start and no end token: set one in tokenizer_config.json")
        return token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, after the start token if the tokenizer puts one there and the text has none yet,
        as text from a chat template has."""
        tokenizer, start = self._model.tokenizer, self.tokenizer.bos_token
        if add_special_tokens is None:
            add_special_tokens = not (start and string.startswith(start))
        return [*(tokenizer.start_ids if add_special_tokens else ()), *tokenizer.encode_text(string)]

    @property
    def tokenizer_name(self) -> str:
        return self._model.name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model's template writes it. Without `add_generation_prompt` its last turn is
        an answer that is to be continued."""
        tokenizer = self._model.tokenizer
        if not tokenizer.has_template:
            raise UserError(f"{self._model.name} has no chat template: leave out --apply-chat-template")
        if add_generation_prompt:
            return tokenizer.written(chat_history, "")[0]
        *before, answer = chat_history
        return "".join(tokenizer.written(before, answer["content"]))

    # ---- likelihoods

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **_: Any) -> list[tuple[float, bool]]:
        """Summed log-probability in nats of each continuation, and whether all its tokens are the likeliest.

        A context that is too long loses its beginning. Raises UserError for a continuation that has no token, or
        more than the model has positions.
        """
        pairs = [self._fitting(*request) for request in requests]
        cut = sum(len(before) < len(context) for (before, _), (_, context, _) in zip(pairs, requests, strict=True))
        self._count("loglikelihood", cut, len(pairs))
        found: list[tuple[float, bool]] = []
        with progress_bar(total=len(pairs), desc="likelihoods", unit="text") as bar:
            for start in range(0, len(pairs), BATCH):
                part = pairs[start : start + BATCH]
                scores = score_greedy(self._model.params, self._model.config, part, self._batch_size)
                found += [
                    (round(float(l.sum(dtype=np.float64)), DIGITS), bool(likeliest.all()))
                    for l, likeliest in scores
                ]
                bar.update(len(part))
        return found

    def _fitting(self, asked: Any, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The pair with as much of the context's end as fits: the last token is predicted, and not read."""
        if not 0 < len(continuation) <= self.max_length:
            raise UserError(
                f"a continuation of {len(continuation)} tokens cannot be scored by a model of {self.max_length} "
                f"positions: {str(asked)[:200]!r}"
            )
        return context[-(self.max_length + 1 - len(continuation)) :], continuation

    def loglikelihood_rolling(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each whole text, in windows if it is longer than the model: every token is
        predicted once, those of the last window from as much before them as fits."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, (logp, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += logp
        return sums

    # ---- samples

    def generate_until(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first stop string, the end token or the limit.

        A sample's seed depends on its context and on how often that came before. A context that leaves no room
        loses its beginning. Raises UserError for settings that `common.sample.sampler` does not have.
        """
        times: collections.Counter[str] = collections.Counter()
        prompts, cut = [], 0
        for request in requests:
            context, given = request.arguments
            sampling = self._sampling(given)
            tokens = self.tok_encode(context) or [self.prefix_token_id]
            room = self.max_length - sampling.max_new_tokens
            cut += len(tokens) > room
            seeds = (sample_seed(self._seed, context, times[context]),)
            times[context] += 1
            stop_at = _stop_finder(self._decode_all, sampling.stop)
            prompts.append(Prompt(tokens[-room:], sampling, seeds, stop_at if sampling.stop else None))
        self._count("generate_until", cut, len(prompts))
        model = self._model
        slots = power_of_two(self._batch_size)
        sampler = Sampler(model.params, model.config, eos_ids=model.tokenizer.eos_ids, slots=slots)
        with progress_bar(total=len(prompts), desc="samples", unit="sample") as bar:
            completions = sampler.sample(prompts, on_done=bar.update)
        return [
            _before_stop(model.tokenizer.decode(completion.tokens), prompt.sampling.stop)
            for prompt, [completion] in zip(prompts, completions, strict=True)
        ]

    def _decode_all(self, ids: Sequence[int]) -> str:
        """Text with special tokens: a task may stop at one that is no end token."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _sampling(self, given: dict[str, Any]) -> SampleConfig:
        from lm_eval.models.utils import normalize_gen_kwargs

        try:
            settings: dict[str, Any] = dict(normalize_gen_kwargs(given, self.max_gen_toks))
            limit = settings["max_gen_toks"]
            chosen = SampleConfig(
                temperature=float(settings.get("temperature", 0.0)),
                top_p=float(settings.get("top_p", 1.0)),
                top_k=int(settings.get("top_k", 0)),
                max_new_tokens=limit,
                stop=tuple(string for string in settings["until"] if string),
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"generation settings {given}: {error}") from None
        unknown = [k for k in settings if k not in SAMPLING and settings[k] != WITHOUT_EFFECT.get(k, ...)]
        if unknown:
            raise UserError(f"generation settings {', '.join(unknown)}: there are {', '.join(sorted(SAMPLING))}")
        if limit >= self.max_length:
            raise UserError(
                f"{limit} new tokens leave no room for a prompt in the model's {self.max_length} positions: "
                "give --gen-kwargs max_gen_toks=N"
            )
        return chosen

    def _count(self, kind: str, cut: int, total: int) -> None:
        self.cut[kind] += cut
        if cut:
            log.warning(
                f"{kind}: {cut} of {total} requests are longer than the model's {self.max_length} positions "
                "and lose their beginning"
            )

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes under "config" in its results."""
        return {
            "model": self._model.name,
            "model_num_parameters": count_params(self._model.params),
            "model_dtype": str(runtime.compute_dtype()),
            "requests_cut": dict(self.cut),
        }


# ---- the command


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured on which model."""

    model: str = flag("embedded:student", "embedded:student, a Hugging Face id, or a folder")
    tasks: tuple[str, ...] = flag((), "names (with * for any letters) of the harness's tasks or your own")
    include_path: str | None = flag(None, "folder with task files of your own (.yaml)")
    num_fewshot: int | None = flag(None, "solved examples in front of each question; the task's own number")
    limit: int | None = flag(None, "only so many questions of each task")
    batch_size: int = flag(32, "texts scored, or samples decoded, together")
    apply_chat_template: bool = flag(False, "write prompts in the model's chat template")
    gen_kwargs: str | None = flag(None, "sampling beside the task's own: temperature=0.8,max_gen_toks=64")
    seed: int = flag(0, "of samples at a temperature above 0")
    output: str | None = flag(None, "file for the harness's results (.json)")

    def check(self) -> None:
        """Raises UserError for what can be seen to be wrong before anything is loaded."""
        check_values(self)
        if not self.tasks:
            raise UserError("no task: give --tasks NAME")
        if self.include_path is not None and not pathlib.Path(self.include_path).is_dir():
            raise UserError(f"--include-path {self.include_path}: there is no such folder")
        check_ranges(self, counts=("limit", "batch_size"), least=("num_fewshot",))
        if self.output is not None:
            file = pathlib.Path(self.output)
            there = next(place for place in (file, *file.absolute().parents) if place.exists())
            if (there == file) == there.is_dir() or not os.access(there, os.W_OK):
                raise UserError(f"--output {self.output} cannot be written: name a file that can")


def main(argv: list[str]) -> None:
    """Parse, run, print the harness's tables."""
    config = parse(Config, argv, "python -m common.evals.harness", "Evaluate with lm_eval.")
    runtime.enable_compile_cache()
    results = run(config)
    from lm_eval.utils import make_table

    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))


def run(config: Config) -> dict[str, Any]:
    """The harness's results, without its samples; also written to `config.output`.

    Raises UserError for an unknown task, a task that cannot be run or whose data cannot be read, and as `wrap` and
    the model do.
    """
    config.check()
    _check_installed()
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable

    simple_evaluate: Any = lm_eval.simple_evaluate  # its decorator hides the parameters from type checkers
    with _explained(config):
        manager = TaskManager(include_path=config.include_path)
        names = [name for given in config.tasks for name in _matching(given, manager)]
    adapter = wrap(LanguageModel.load(config.model), config.batch_size, config.seed)
    if config.apply_chat_template:
        adapter.apply_chat_template([{"role": "user", "content": ""}])  # says what is wrong, if anything is
    with _explained(config):
        results = simple_evaluate(
            adapter,
            tasks=names,
            num_fewshot=config.num_fewshot,
            batch_size=config.batch_size,
            limit=config.limit,
            apply_chat_template=config.apply_chat_template,
            gen_kwargs=config.gen_kwargs,
            task_manager=manager,
            log_samples=False,
        )
    if config.output is not None:
        plain = masked_value(json.loads(json.dumps(results, default=handle_non_serializable)))
        text = json.dumps(plain, indent=2, ensure_ascii=False)
        write_bytes(pathlib.Path(config.output), text.encode("utf-8", "backslashreplace") + b"\n")
    return results


@contextlib.contextmanager
def _explained(config: Config) -> Iterator[None]:
    """What the harness says of tasks and data is the user's to fix: its errors become a UserError. Those of this
    project's own code stay as they are."""
    try:
        yield
    except (UserError, *STOPS):
        raise
    except BaseException as error:  # of the harness, datasets, jinja2, yaml, and whatever a task calls
        frames = traceback.extract_tb(error.__traceback__)
        if any(frame.filename == __file__ and frame.name not in ("run", "_explained") for frame in frames):
            raise
        cause = error.__cause__ or error
        reason = in_one_line(cause)
        reason = reason if isinstance(cause, OSError) else f"{type(cause).__name__}: {reason}"
        shots = "" if config.num_fewshot is None else f", or --num-fewshot {config.num_fewshot} if rows are fewer"
        raise UserError(
            f"cannot read or run {', '.join(config.tasks)} ({reason}): fix the task or its data{shots}"
        ) from error


def _matching(given: str, manager: Any) -> list[str]:
    """Names of tasks that are meant by one word. Raises UserError, with names like it, if none is."""
    found = manager.match_tasks([given])
    if not found:
        like = difflib.get_close_matches(given, manager.all_tasks, n=3)
        hint = f"did you mean {', '.join(like)}?" if like else "for your own give their folder, --include-path"
        raise UserError(f"unknown task {given!r}: {hint}")
    return found


if __name__ == "__main__":
    mask_output()
    try:
        main(sys.argv[1:])
    except UserError as error:
        fail(str(error))
