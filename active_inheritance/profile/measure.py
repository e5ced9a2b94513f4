"""The profile of one model, for the command and for other methods before and after a training.

data = load_data(config)
profile = profile_model(run, "profile/before", model, config, data)
profile.figures["text/mtld"]["value"], profile.counts["text"]["truncated_share"]
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from active_inheritance.profile.config import ARITHMETIC, STORIES, Config
from common.cli import flag_name
from common.errors import UserError
from common.evals import bbq, bias, choice, preference, text, toxicity
from common.evals import embedded_sets as embedded
from common.evals.figures import Figure
from common.evals.likelihood import ModelLikelihood, scored
from common.evals.scorers import open_scorer
from common.results.rundir import RunDir

if TYPE_CHECKING:
    from common.lm import LanguageModel

ANSWER_TOKENS = 512


@dataclasses.dataclass(frozen=True)
class Data:
    """What models are measured on; what is empty is not measured."""

    prompts: Sequence[text.Prompt] = ()
    toxicity: Sequence[text.Prompt] = ()
    stereoset: Sequence[bias.Triplet] = ()
    crows_pairs: Sequence[bias.Pair] = ()
    bbq: "Sequence[bbq.Question]" = ()
    choice: "Mapping[str, Sequence[choice.Question]]" = dataclasses.field(default_factory=dict)
    pairs: Sequence[preference.Pair] = ()

    def sizes(self) -> dict[str, int]:
        """Rows of every set that is there."""
        own = {f.name: len(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "choice"}
        own |= {f"choice {name}": len(questions) for name, questions in self.choice.items()}
        return {name: count for name, count in own.items() if count}


@dataclasses.dataclass(frozen=True)
class Profile:
    """`figures`: by "GROUP/…/NAME". `counts`: by group, what was asked and what was left out. `series`: what the
    page draws. `answers`: the texts by prompt, None where one was left out."""

    figures: dict[str, Figure]
    counts: dict[str, dict[str, Any]]
    series: dict[str, Any]
    answers: dict[str, str | None]


def load_data(config: Config) -> Data:
    """All data that `config` names. Raises UserError, naming the row, for what cannot be read."""
    limit = config.limit
    path = lambda given: None if given is None else pathlib.Path(given)
    of = lambda load, given: () if given is None else load(pathlib.Path(given), limit=limit)
    prompts = functools.partial(text.load_prompts, column=config.prompt_column)
    stories = config.prompts_file == STORIES
    return Data(
        prompts=embedded.story_requests(limit) if stories else of(prompts, config.prompts_file),
        toxicity=of(prompts, config.toxicity_prompts),
        stereoset=of(bias.load_stereoset, config.stereoset),
        crows_pairs=of(bias.load_crows, config.crows_pairs),
        bbq=bbq.load_bbq([pathlib.Path(f) for f in config.bbq], path(config.bbq_targets), limit),
        choice={
            name: embedded.problem_questions(limit)
            if file == ARITHMETIC
            else choice.load_questions(pathlib.Path(file), limit)
            for name, file in config.choices().items()
        },
        pairs=of(preference.load_pairs, config.pairs),
    )


def tokens_for(config: Config, positions: Sequence[int]) -> int:
    """Longest answer: as the settings say, else 512 or half the positions of the smallest model."""
    return config.answer_tokens or min(ANSWER_TOKENS, min(positions) // 2)


def check_tokens(config: Config, positions: Mapping[str, int]) -> None:
    """Raises UserError, naming the flag, for answers or continuations that leave no room for a prompt in the
    smallest model. `positions`: of every model."""
    asked = ["answer_tokens"] if config.prompts_file else []
    if config.toxicity_prompts:
        asked.append("continuation_tokens" if config.continuation_tokens else "answer_tokens")
    smallest = min(positions, key=positions.get)
    for name in asked:
        tokens = getattr(config, name)
        if tokens is not None and tokens >= positions[smallest]:
            raise UserError(
                f"{flag_name(name)} {tokens} leaves no room for a prompt within the {positions[smallest]} "
                f"positions of {smallest}: give a smaller one"
            )


def profile_model(
    run: RunDir, folder: str, model: "LanguageModel", config: Config, data: Data | None = None
) -> Profile:
    """Measure `model` on `data` (by default the files of `config`); artifacts lie in `folder` of the run.

    What is there already is read back. Raises UserError for a scorer that fails.
    """
    data = load_data(config) if data is None else data
    found = Profile({}, {}, {}, {})
    tokens = tokens_for(config, [model.config.max_positions])
    if data.prompts:
        with run.timed(f"{folder}/text"):
            _text(run, folder, model, config, data, tokens, found)
    if data.toxicity:
        with run.timed(f"{folder}/toxicity"):
            _toxicity(run, folder, model, config, data, tokens, found)
    likelihood = functools.cache(lambda: ModelLikelihood(model, config.batch_size))
    lazily = lambda texts: likelihood()(texts)
    sets = {
        "stereoset": (data.stereoset, bias.stereoset_items, bias.stereoset_figures),
        "crows_pairs": (data.crows_pairs, bias.crows_items, bias.crows_figures),
        "bbq": (data.bbq, bbq.items_of, bbq.figures),
        "pairs": (data.pairs, preference.items_of, preference.figures),
    }
    for name, (rows, items_of, figures_of) in sets.items():
        if rows:
            with run.timed(f"{folder}/{name}"):
                made = scored(run, f"{folder}/{name}.jsonl", items_of(rows), lazily)
                _add(found, name, figures_of(rows, made, config.seed))
                found.counts[name] = _left_out(made)
                if name == "bbq":
                    found.counts[name]["without_target"] = bbq.without_target(rows)
                if name == "pairs":
                    found.series["pairs"] = preference.choices(made)
    for name, questions in data.choice.items():
        with run.timed(f"{folder}/choice_{name}"):
            items = choice.items_of(questions, config.layout(config.choices().get(name, "")))
            made = scored(run, f"{folder}/choice/{name}.jsonl", items, lazily)
            answers = choice.Answers.of(questions, made)
            found.counts[f"choice/{name}"] = _left_out(made)
            if answers is not None:
                _add(found, f"choice/{name}", choice.figures(answers, config.seed))
                found.series[f"choice/{name}"] = choice.reliability(answers)
    return found


def _text(
    run: RunDir, folder: str, model: "LanguageModel", config: Config, data: Data, tokens: int, found: Profile
) -> None:
    records = text.answers(
        run, f"{folder}/answers.jsonl", model, data.prompts, tokens, config.seed, config.batch_size
    )
    given = [record for record in records if record.status != "failed"]
    texts = [record.text for record in given]
    if texts:
        ids = [record.id for record in given]
        tokens_of = [record.completion_tokens - (record.status == "ok") for record in given]  # without the end
        _add(found, "text", text.figures(texts, config.mode, config.seed, ids, tokens_of))
    found.counts["text"] = text.counts(records) | {"answer_tokens": tokens}
    found.series["text"] = text.scores(texts, config.mode)
    found.answers.update({r.id: None if r.status == "failed" else r.text for r in records})


def _toxicity(
    run: RunDir, folder: str, model: "LanguageModel", config: Config, data: Data, tokens: int, found: Profile
) -> None:
    sampling, file = config.sampling(tokens), f"{folder}/continuations.jsonl"
    records = toxicity.continuations(
        run, file, model, data.toxicity, config.continuations, sampling, config.seed, config.batch_size
    )
    rows = toxicity.scored_continuations(
        run,
        f"{folder}/toxicity.jsonl",
        records,
        config.toxicity_scorer,
        lambda: open_scorer(config.toxicity_scorer, str(run.path / file)),
    )
    _add(found, "toxicity", toxicity.figures(rows, config.threshold, config.seed))
    found.counts["toxicity"] = toxicity.counts(rows) | {
        "continuation_tokens": sampling.max_new_tokens,
        "of_a_prompt": config.continuations,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    found.series["toxicity"] = list(toxicity.maxima(rows).values())


def _add(found: Profile, group: str, figures: Mapping[str, Figure]) -> None:
    found.figures.update({f"{group}/{name}": entry for name, entry in figures.items()})


def _left_out(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """`left_out`: items with a text that does not fit into the model."""
    missing = sum(row["logps"] is None for row in rows)
    return {"items": len(rows), "left_out": missing}
