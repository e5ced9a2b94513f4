"""Settings of a ReverseGen run: the one source of its command line, its stored configuration and its checks.

    config = Config(rounds=2, seed=1).resolved()
    config = preset("paper", task="math", data="gsm8k", target="my/folder", proposer="my/other").resolved()

Importing this loads no jax. Values of `None` are filled in by `resolved()`, by the task and the kind of models.
"""

import dataclasses
import math
import pathlib
from typing import Any, Literal

from common.backends.budget import Budget
from common.backends.open import check_name, is_model, model_name
from common.cli import COMPARED, DATA, LOOP, MODEL, OUTPUT, TRAINING, check_ranges, flag
from common.config import SampleConfig, TrainConfig
from common.defaults import GUARD, Default, adapters, kind_of, preferring, reasons, training, values, writing
from common.errors import UserError, meant
from common.settings import (
    PRESET,
    HubSettings,
    RunSettings,
    TrainSettings,
    check_files,
    check_preset,
    filled,
    given,
    hosted_share,
)
from common.settings import preset as preset_of
from reversegen.switches import (
    WORD,
    Answers,
    Exploring,
    Files,
    GuardedBy,
    Knower,
    Learning,
    PairingRule,
    Preferring,
    Switches,
)

CONTROLS = ("seed-only", "warm-up", "warm-up-failures", "few-shot", "human-data")
ARMS = ("target-before", "target-after", *CONTROLS)

ENTROPY_CUT = 1.193
"""In nats, of ten answers to five options: between (5, 3, 1, 1) and (4, 4, 1, 1)."""
VOTE_TEMPERATURE = 0.7
"""Of the labeler where it answers more than once, as the authors' program samples more answers."""
WARM_UP_BATCH = 8
"""Seeds in an update of the proposer's warm-up."""

PRESETS: dict[str, dict[str, Any]] = {
    "embedded": {},
    "paper": {
        "seed_instructions": 2400,
        "prompts": 10_000,
        "final_prompts": 10_000,
        "max_failures": 10_000,
        "samples": 5,
        "rounds": 3,
        "pairing": "fallback",
        "temperature": 1.0,
        "top_p": 0.95,
        "lora_rank": 0,
        "likelihood_guard": 4.0,
        "guarded_by": "warm-up",
        "batch_size": 16,
        "query_tokens": 512,
        "max_length": 2048,
        "mix": 0.0,
        "warm_up_epochs": 1.0,
        "dpo_epochs": 1.0,
        "epochs": 1.0,
        "dpo_batch_size": 8,
    },
}
PRESETS["reference-code"] = PRESETS["paper"] | {
    "rounds": 1,
    "pairing": "pooled",
    "top_p": 0.9,
    "lora_rank": 0,
    "optimizer": "rmsprop",
    "warm_up_learning_rate": 5e-7,
    "dpo_learning_rate": 5e-5,
    "learning_rate": 5e-5,
    "warmup_steps": 150,
    "schedule": "constant",
    "clip_norm": 10.0,
    "sum_loss": True,
    "batch_size": 8,
    "semantic": 1.0,
    "likelihood_guard": 0.0,
}
"""`paper`: the method at the size of the authors' runs, with this project's choices where the paper is silent.
`reference-code`: what their released program says, which does not run; README.md names the flaws left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunSettings, TrainSettings, HubSettings):
    """Defaults are this project's own and fit the embedded demonstration; see PRESETS for the authors'."""

    preset: Literal["embedded", "paper", "reference-code"] = flag("embedded", PRESET, LOOP)
    task: Literal["math", "honesty", "safety", "own"] = flag(
        "math", "what failing means: a wrong answer, an unsure one, an unsafe one, or what --judge says", DATA
    )
    data: str | None = flag(
        None,
        "math: arithmetic (the default), svamp, gsm8k; honesty: arc-easy (the default); or a task of your own "
        "(common/tasks/README.md); safety, own: none",
    )
    proposer: str = flag(
        "embedded",
        "the model that is trained to write queries: embedded, smollm2, a Hugging Face id, a folder, a file",
        MODEL,
    )
    target: str = flag("embedded", "the model that should fail, and is trained at the end: named likewise")
    transfer_targets: tuple[str, ...] = flag((), "other models that are asked the final queries as well")
    labeler: str = flag(
        "embedded",
        "what answers failing queries: embedded, smollm2, a Hugging Face id, a folder, openai:MODEL, "
        "python:FILE.py:FUNCTION, or program",
    )
    labeler_url: str | None = flag(None, "base URL of openai:MODEL; else OPENAI_BASE_URL or the client's own")
    budget: str | None = flag(None, "limits for a hosted labeler, such as calls=500,tokens=200000,usd=2.5")
    labeler_price: str | None = flag(None, "USD for a million prompt and completion tokens, such as 0.15,0.6")
    labeler_tokens: int | None = flag(
        None, "longest reply of the labeler in tokens, its reasoning included; as the target's if not given"
    )
    label_votes: int = flag(3, "answers of the labeler to a query; more than half must agree")
    label_instruction: str | None = flag(None, "safety, own: the system text the labeler answers under")
    reference: Knower | None = flag(None, "math: who knows the right answer; a program where the data have one")
    validity: Literal["program", "labeler", "none"] | None = flag(
        None, "math, honesty: who tells valid queries; a program where the data have one, else the labeler"
    )
    guard: str | None = flag(None, "safety: the judge, a model like Llama Guard: named as a labeler is")
    guard_url: str | None = flag(None, "base URL of a guard openai:MODEL")
    guard_tokens: int = flag(32, "longest reply of the guard in tokens, its reasoning included")
    judge: str | None = flag(None, "own: python:FILE.py:FUNCTION, judge(query, answer) -> Verdict")
    seeds_file: str | None = flag(None, "file the seed instructions are drawn from (.jsonl, .csv, .parquet)", DATA)
    test_file: str | None = flag(None, "file of the ordinary test, used once; safety, own: else unused seeds")
    general_file: str | None = flag(None, "safety, own: queries that must be answered (over-refusal)")
    human_file: str | None = flag(None, "arm human-data: questions with answers by people")
    text_column: str = flag("text", "safety, own: the column with the query")
    seed_instructions: int = flag(240, "seed instructions of a proposer")
    shots: int = flag(3, "seed instructions shown in a prompt", LOOP)
    rounds: int = flag(3, "rounds of proposing, judging and preference training")
    prompts: int = flag(200, "prompts of a round, never used before")
    samples: int = flag(5, "queries sampled for a prompt while exploring")
    final_prompts: int = flag(400, "prompts, one query each, of the last proposing")
    max_failures: int = flag(100, "most failing queries the target learns from")
    temperature: float | None = flag(None, "of the proposer; by its size, embedded: 1", MODEL)
    top_p: float | None = flag(None, "of the proposer; 0.95, embedded: 1")
    query_tokens: int | None = flag(None, "longest query in tokens; by data if not given")
    target_samples: int | None = flag(
        None, "answers of the target to a query: 1 is greedy, more give a soft failure rate; honesty: 10"
    )
    target_temperature: float = flag(0.7, "of the target where it answers more than once")
    answer_tokens: int | None = flag(None, "longest answer in tokens; by data if not given")
    entropy_cut: float = flag(ENTROPY_CUT, "honesty: entropy in nats from which an answer is unsure", LOOP)
    entropy_quantile: float | None = flag(None, "honesty: take this quantile of the seeds' entropies as the cut")
    none_option: bool = flag(True, "honesty: add the option 'None of the above'")
    co_train: bool = flag(False, "train the target after every round on all failures so far")
    pairing: PairingRule = flag(
        "within", "pairs within a prompt; fallback: what is left across prompts too; pooled: across only"
    )
    min_pairs: int = flag(8, "fewer pairs are no preference training")
    max_pairs: int = flag(10_000, "most pairs of a round")
    beta: float = flag(0.1, "of DPO")
    length_normalised: bool = flag(False, "DPO on mean instead of summed log-probabilities")
    reference_proposer: Literal["round", "warm-up"] = flag("round", "DPO's reference")
    jaccard: float | None = flag(
        None, "word overlap (MinHash) from which a query is a near-duplicate; 0.78, for arithmetic 0.85"
    )
    semantic: float | None = flag(
        None, "cosine of the proposer's hidden states above which it is one; 0.96, for arithmetic 0.99; 1: off"
    )
    likelihood_guard: float | None = flag(
        None, "standard deviations below a mean log-probability a token that are too odd; 0: off; 3, embedded: 4"
    )
    guarded_by: GuardedBy | None = flag(
        None,
        "whose likelihoods that guard compares with: of the warm-up proposer's own queries, as for the "
        "embedded one, or of the seeds, where text that turns in circles or is none is dropped too",
    )
    collapse: float = flag(0.15, "rise of self-BLEU over the warm-up proposer's that raises the alarm")
    arms: tuple[str, ...] | None = flag(
        None,
        f"what is trained and compared: {', '.join(ARMS)}; all if not given, human-data with --human-file alone",
        COMPARED,
    )
    mix: float = flag(1.0, "seed examples mixed into the target's training, for each failing query", TRAINING)
    repeats: int = flag(1, "repeats with other seeds, for intervals; paired across arms", COMPARED)
    warmup_steps: int | None = flag(None, "updates of the rate's warm-up; 3% of them if not given", TRAINING)
    sum_loss: bool = flag(False, "supervised loss summed over an answer's tokens, not averaged")
    warm_up_learning_rate: float | None = flag(None, "of the proposer's warm-up; by model if not given")
    warm_up_epochs: float = flag(2.0, "passes over the seeds in the warm-up")
    dpo_learning_rate: float | None = flag(None, "of preference training; by model if not given")
    dpo_epochs: float = flag(2.0, "passes over the pairs of a round")
    dpo_batch_size: int = flag(16, "pairs in an update")
    learning_rate: float | None = flag(None, "of the target's training; by model if not given")
    epochs: float | None = flag(None, "passes over the target's data; by model, embedded: 3")
    batch_size: int | None = flag(None, "examples in an update; by model and data, embedded: 16")
    max_length: int = flag(512, "longest training sequence in tokens")
    redact: bool = flag(False, "show hashes instead of texts in the report and the data card", OUTPUT)
    run_dir: str = flag("runs/reversegen", "folder or URL of the run; the same command continues it", OUTPUT)

    def resolved(self) -> "Config":
        """The same settings without gaps. Raises UserError for a value out of range or a missing file."""
        check_preset(PRESETS, self.preset)
        data = {"math": "arithmetic", "honesty": "arc-easy"}.get(self.task)
        known = self.task == "math" and (self.data or data) == "arithmetic"
        samples = 10 if self.task == "honesty" else 1
        fill = values(self._defaults()) | {
            "data": data,
            "reference": "program" if known else "labeler",
            "validity": "program" if known else ("labeler" if self.task in ("math", "honesty") else "none"),
            "target_samples": samples,
            # Problems from templates share most of their words, and all of their sense, with others of their kind.
            "jaccard": 0.85 if known else 0.78,
            "semantic": 0.99 if known else 0.96,
            "arms": tuple(arm for arm in ARMS if arm != "human-data" or self.human_file),
        }
        config = filled(self, fill)
        config._check()
        return config

    def _defaults(self) -> dict[str, Default]:
        """What follows the models; the embedded ones have the values of the demonstration."""
        proposer = kind_of(model_name(self.proposer, "teacher"))
        target = kind_of(model_name(self.target, "student"))
        # One rank for both: what the larger of them needs.
        real = [kind for kind in (proposer, target) if not kind.embedded]
        largest = min(real, key=lambda kind: kind.small, default=None)
        rank = Default(0, "") if largest is None else adapters(largest)
        taken = rank.value if self.lora_rank is None else self.lora_rank
        found = {"lora_rank": rank}
        if proposer.embedded:
            demo = {"warm_up_learning_rate": 3e-4, "dpo_learning_rate": 1.25e-4, "temperature": 1.0, "top_p": 1.0}
            demo |= {"guarded_by": "warm-up", "likelihood_guard": 4.0}
            found |= {name: Default(value, "") for name, value in demo.items()}
        else:
            found["warm_up_learning_rate"] = training(proposer, taken, None)["learning_rate"]
            found["dpo_learning_rate"] = preferring(proposer, taken)
            found |= writing(proposer)
            why = "standard deviations below the seeds; what is less likely is nonsense"
            found["likelihood_guard"] = Default(GUARD, why)
            found["guarded_by"] = Default("seeds", f"the first queries of {proposer} may be nonsense themselves")
        if target.embedded:
            demo = {"learning_rate": 3e-4, "epochs": 3.0, "batch_size": 16}
            return found | {name: Default(value, "") for name, value in demo.items()}
        failures = min(self.max_failures, self.final_prompts)
        return found | training(target, taken, round(failures * (1 + self.mix)))

    def reasons(self) -> list[tuple[str, str]]:
        return reasons(self, self._defaults())

    def idle(self) -> dict[str, str]:
        found = TrainSettings.idle(self)
        if self.target_samples == 1:
            found["target_temperature"] = "--target-samples above 1"
        if self.task != "honesty":
            found |= dict.fromkeys(("entropy_cut", "entropy_quantile", "none_option"), "--task honesty")
        elif self.entropy_quantile is not None:
            found["entropy_cut"] = "a run without --entropy-quantile"
        if self.task in ("math", "honesty"):
            found["label_instruction"] = "--task safety or own"
        if self.task != "safety":
            found["guard_tokens"] = "--task safety"
        return found

    def _check(self) -> None:
        positive = ("seed_instructions", "shots", "rounds", "prompts", "samples", "final_prompts", "label_votes")
        positive += ("max_failures", "target_samples", "min_pairs", "max_pairs", "beta", "repeats")
        positive += ("batch_size", "dpo_batch_size", "max_length", "epochs", "dpo_epochs", "warm_up_epochs")
        positive += ("learning_rate", "dpo_learning_rate", "warm_up_learning_rate", "temperature")
        positive += ("entropy_cut", "query_tokens", "answer_tokens", "warmup_steps")
        positive += ("labeler_tokens", "guard_tokens")
        least = ("mix", "likelihood_guard", "collapse", "target_temperature", "seed")
        shares = ("jaccard", "semantic", "top_p", "entropy_quantile")
        check_ranges(self, above=positive, least=least, shares=shares)
        self.check_training()
        self.check_push(None)
        if given(self.target_samples) > 1 and self.target_temperature == 0:
            raise UserError(
                f"--target-temperature 0 gives {self.target_samples} equal answers, whose entropy and failure "
                "rate say nothing: use a temperature above 0, such as 0.7"
            )
        if self.task in ("math", "honesty") and self.text_column != Config.text_column:
            raise UserError(
                f"--text-column is for --task safety or own: the data of task {self.task} say it themselves"
            )
        if self.task == "honesty":
            self._check_honesty()
        if self.samples < 2 and self.pairing == "within":
            raise UserError("--samples 1 leaves no pairs within a prompt: use 2 or more, or --pairing fallback")
        self._check_prompts()
        self._check_arms()
        self._check_judges()
        check_files(self, ("seeds_file", "test_file", "general_file", "human_file"))

    def _check_prompts(self) -> None:
        """Groups of seeds are drawn at random until an unused one comes, so there must be some to spare."""
        if self.seed_instructions <= self.shots:
            raise UserError(f"--seed-instructions {self.seed_instructions} must be more than --shots {self.shots}")
        arms, explored = given(self.arms), self.prompts * (self.rounds + 1)
        sampled = explored * self.samples + self.final_prompts
        pools = [2 * self.final_prompts] * ("few-shot" in arms)
        pools += [sampled] * bool({"warm-up", "warm-up-failures"} & {*arms})
        needed = self.seed_instructions + explored + self.final_prompts + max(pools, default=0)
        there = math.comb(self.seed_instructions, self.shots)
        if there < 1.1 * needed:
            raise UserError(
                f"{self.seed_instructions} seeds give {there} different prompts of {self.shots}, too few for the "
                f"{needed} that are needed: raise --seed-instructions or --shots, or lower "
                "--prompts, --final-prompts or --samples"
            )

    def _check_honesty(self) -> None:
        if given(self.target_samples) < 2:
            raise UserError("--task honesty looks at the spread of several answers: use --target-samples 10")
        most = math.log(given(self.target_samples))
        if self.entropy_quantile is None and self.entropy_cut > most:
            raise UserError(
                f"{self.target_samples} answers have an entropy of {most:.3f} nats at most, below --entropy-cut "
                f"{self.entropy_cut}: nothing could fail; use more --target-samples or --entropy-quantile"
            )
        if self.validity == "program" or self.labeler == "program":
            raise UserError("--labeler program and --validity program are for math: no program knows the answer")

    def _check_arms(self) -> None:
        arms = given(self.arms)
        unknown = [arm for arm in arms if arm not in ARMS]
        if unknown or len(set(arms)) < len(arms):
            like = meant(unknown[0], ARMS) if unknown else ""
            raise UserError(f"--arms {','.join(arms)}: name each at most once of {', '.join(ARMS)}{like}")
        if "target-after" not in arms or "target-before" not in arms:
            raise UserError("--arms must hold target-before and target-after: the others are compared to them")
        if ("human-data" in arms) != (self.human_file is not None):
            raise UserError("arm human-data and --human-file FILE belong together")

    def _check_judges(self) -> None:
        for name in ("proposer", "target"):
            if not is_model(getattr(self, name)):
                raise UserError(f"--{name} {getattr(self, name)} cannot be trained: name a checkpoint")
        if self.data is not None and self.task in ("safety", "own"):
            raise UserError(f"--data is for math and honesty: --task {self.task} takes --seeds-file")
        if self.task in ("safety", "own") and self.seeds_file is None:
            raise UserError(f"--task {self.task} has no seed instructions of its own: give --seeds-file FILE")
        if (self.task == "safety") != (self.guard is not None):
            raise UserError("--task safety and --guard NAME belong together: the guard is the judge")
        if (self.task == "own") != (self.judge is not None):
            raise UserError("--task own and --judge python:FILE.py:FUNCTION belong together")
        if self.task in ("safety", "own") and self.labeler == "program":
            raise UserError("--labeler program is for math: a program must know the answer")
        if self.labeler == "program" and "labeler" in (self.reference, self.validity):
            raise UserError(
                "--labeler program answers where a program knows: it needs --reference program and --validity "
                "program or none"
            )
        for name, url in (("labeler", self.labeler_url), ("guard", self.guard_url), ("judge", None)):
            named = getattr(self, name)
            if named is not None:
                check_name(named, f"--{name}", url)
        if self.guard_url is not None and not (self.guard or "").startswith("openai:"):
            raise UserError("--guard-url is for a hosted guard: use it with --guard openai:MODEL")
        if self.judge is not None and not self.judge.startswith("python:"):
            raise UserError(f"--judge {self.judge}: name a function as python:FILE.py:FUNCTION")
        self.share()

    def held(self) -> dict[str, int]:
        asked = [name for name in (self.labeler, self.guard) if name and is_model(name)]
        found = {model_name(name, "teacher"): 2 for name in asked}
        found[model_name(self.proposer, "teacher")] = self.trained_bytes()
        targets = (self.target, *self.transfer_targets)
        return found | {model_name(name, "student"): self.trained_bytes() for name in targets}

    def share(self) -> Budget | None:
        """What the labeler may spend in a repeat; None without a budget. Raises UserError for one that cannot be
        read or shared."""
        return hosted_share(self, "labeler", [self.labeler], self.repeats, self.labeler_tokens or WORD)

    # --- what the stages are handed, once resolved() has filled the gaps ---

    def files(self) -> Files:
        """Where the data are."""
        named = self.seeds_file, self.test_file, self.general_file, self.human_file
        places = (None if name is None else pathlib.Path(name) for name in named)
        return Files(*places, text_column=self.text_column, seed=self.seed)

    def answers(self, tokens: int) -> Answers:
        """Of the target while it is judged, in at most `tokens` unless the settings say otherwise."""
        return Answers(given(self.target_samples), self.answer_tokens or tokens, self.target_temperature)

    def votes(self, tokens: int) -> Answers:
        """Of the labeler, in at most `tokens` unless the settings say otherwise."""
        return Answers(self.label_votes, self.labeler_tokens or tokens, VOTE_TEMPERATURE)

    def switches(self, query_tokens: int) -> Switches:
        """All other settings, by stage. `query_tokens`: longest query of the application, unless --query-tokens
        says otherwise."""
        return Switches(
            seeds=self.seed_instructions,
            exploring=Exploring(
                shots=self.shots,
                rounds=self.rounds,
                prompts=self.prompts,
                samples=self.samples,
                final_prompts=self.final_prompts,
                writing=SampleConfig(
                    self.query_tokens or query_tokens,
                    temperature=given(self.temperature),
                    top_p=given(self.top_p),
                ),
                # The embedded proposer was trained to write a single query.
                keep_first=not kind_of(model_name(self.proposer, "teacher")).embedded,
                warm_up=self._training(given(self.warm_up_learning_rate), self.warm_up_epochs, WARM_UP_BATCH),
                preferring=Preferring(
                    self._training(given(self.dpo_learning_rate), self.dpo_epochs, self.dpo_batch_size),
                    self.beta,
                    self.length_normalised,
                    self.reference_proposer == "warm-up",
                ),
                pairing=self.pairing,
                min_pairs=self.min_pairs,
                max_pairs=self.max_pairs,
                jaccard=given(self.jaccard),
                semantic=given(self.semantic),
                likelihood_guard=given(self.likelihood_guard),
                guarded_by=given(self.guarded_by),
                collapse=self.collapse,
            ),
            learning=Learning(
                self._training(given(self.learning_rate), given(self.epochs), given(self.batch_size)),
                self.mix,
                self.max_failures,
            ),
            arms=given(self.arms),
            co_train=self.co_train,
        )

    def _training(self, rate: float, epochs: float, batch_size: int) -> TrainConfig:
        """One of the three trainings, which differ in these alone. A stage sets the seed of its repeat."""
        more = {"warmup_steps": self.warmup_steps, "max_length": self.max_length, "sum_loss": self.sum_loss}
        return self.train_config(rate, epochs, batch_size, **more)


def preset(name: str, **settings: Any) -> Config:
    """The settings of a preset with `settings` in place of its own. Raises UserError for an unknown name."""
    return preset_of(Config, PRESETS, name, settings)
