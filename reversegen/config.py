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
from common.backends.open import check_name, is_model
from common.cli import check_ranges, flag, flag_name
from common.config import LoraConfig, SampleConfig, TrainConfig
from common.errors import UserError

CONTROLS = ("seed-only", "warm-up", "warm-up-failures", "few-shot", "human-data")
ARMS = ("target-before", "target-after", *CONTROLS)

ENTROPY_CUT = 1.193
"""In nats, of ten answers to five options: between (5, 3, 1, 1) and (4, 4, 1, 1)."""

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
        "top_p": 0.95,
        "query_tokens": 512,
        "max_length": 2048,
        "mix": 0.0,
        "warm_up_epochs": 1.0,
        "dpo_epochs": 1.0,
        "epochs": 1.0,
        "dpo_batch_size": 8,
    },
}
PRESETS["official-code"] = PRESETS["paper"] | {
    "rounds": 1,
    "pairing": "pooled",
    "top_p": 0.9,
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
"""`paper`: the method at the size of the authors' runs, with this project's stance where the paper is silent.
`official-code`: what their released program says (it does not run); see README.md for what is kept out."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Defaults are this project's own and fit the embedded demonstration; see PRESETS for the authors'."""

    preset: Literal["embedded", "paper", "official-code"] = flag("embedded", "defaults of the flags below")
    task: Literal["math", "honesty", "safety", "own"] = flag(
        "math", "what failing means: a wrong answer, an unsure one, an unsafe one, or what --judge says"
    )
    data: str | None = flag(
        None,
        "math: arithmetic (the default), svamp, gsm8k; honesty: arc-easy (the default); or a task of your own "
        "(common/tasks/README.md); safety, own: none",
    )
    proposer: str = flag("embedded", "who writes queries and is trained: embedded, a Hugging Face id, or a folder")
    target: str = flag("embedded", "who is to fail and is trained at the end: the same")
    transfer_targets: tuple[str, ...] = flag((), "more targets that the final queries are put to")
    labeler: str = flag(
        "embedded",
        "who answers failing queries: embedded, a Hugging Face id, a folder, openai:MODEL, "
        "python:FILE.py:FUNCTION, or program",
    )
    labeler_url: str | None = flag(None, "base URL of openai:MODEL; else OPENAI_BASE_URL or the client's own")
    budget: str | None = flag(None, "limits for a hosted labeler, such as calls=500,tokens=200000,usd=2.5")
    labeler_price: str | None = flag(None, "USD for a million prompt and completion tokens, such as 0.15,0.6")
    label_votes: int = flag(3, "answers of the labeler to a query; more than half must agree")
    label_instruction: str | None = flag(None, "safety, own: the system text the labeler answers under")
    reference: Literal["program", "labeler"] | None = flag(
        None, "math: who knows the right answer; a program where the data have one"
    )
    validity: Literal["program", "labeler", "none"] | None = flag(
        None, "math, honesty: who tells valid queries; a program where the data have one, else the labeler"
    )
    guard: str | None = flag(None, "safety: the judge, a model like Llama Guard: named as a labeler is")
    guard_url: str | None = flag(None, "base URL of a guard openai:MODEL")
    judge: str | None = flag(None, "own: python:FILE.py:FUNCTION, judge(query, answer) -> Verdict")
    seeds_file: str | None = flag(None, "file the seed instructions are drawn from (.jsonl, .csv, .parquet)")
    test_file: str | None = flag(None, "file of the ordinary test, used once; safety, own: else unused seeds")
    general_file: str | None = flag(None, "safety, own: queries that must be answered (over-refusal)")
    human_file: str | None = flag(None, "arm human-data: questions with answers by people")
    text_column: str = flag("text", "safety, own: the column with the query")
    seed_instructions: int = flag(240, "seed instructions of a proposer")
    shots: int = flag(3, "seed instructions shown in a prompt")
    rounds: int = flag(3, "rounds of proposing, judging and preference training")
    prompts: int = flag(200, "prompts of a round, never used before")
    samples: int = flag(5, "queries sampled for a prompt while exploring")
    final_prompts: int = flag(400, "prompts, one query each, of the last proposing")
    max_failures: int = flag(100, "most failing queries the target learns from")
    temperature: float = flag(1.0, "of the proposer")
    top_p: float = flag(1.0, "of the proposer")
    query_tokens: int | None = flag(None, "longest query in tokens; by data if not given")
    target_samples: int | None = flag(
        None, "answers of the target to a query: 1 is greedy, more give a soft failure rate; honesty: 10"
    )
    target_temperature: float = flag(0.7, "of the target where it answers more than once")
    answer_tokens: int | None = flag(None, "longest answer in tokens; by data if not given")
    entropy_cut: float = flag(ENTROPY_CUT, "honesty: entropy in nats from which an answer is unsure")
    entropy_quantile: float | None = flag(None, "honesty: take this quantile of the seeds' entropies as the cut")
    none_option: bool = flag(True, "honesty: add the option 'None of the above'")
    co_train: bool = flag(False, "train the target after every round on all failures so far")
    pairing: Literal["within", "fallback", "pooled"] = flag(
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
    likelihood_guard: float = flag(
        4.0, "standard deviations below the warm-up proposer's mean log-probability that are too odd; 0: off"
    )
    collapse: float = flag(0.15, "rise of self-BLEU over the warm-up proposer's that raises the alarm")
    arms: tuple[str, ...] | None = flag(None, f"what is trained and compared: {', '.join(ARMS)}")
    mix: float = flag(1.0, "seed examples mixed into the target's training, for each failing query")
    repeats: int = flag(1, "repeats with other seeds, for intervals; paired across arms")
    lora_rank: int = flag(0, "rank of adapters; 0 trains all weights")
    lora_alpha: float = flag(16.0, "scale of adapters, over their rank")
    optimizer: Literal["adamw", "rmsprop"] = flag("adamw", "of all trainings")
    schedule: Literal["cosine", "linear", "constant"] = flag("cosine", "of the learning rate after its warm-up")
    warmup_steps: int | None = flag(None, "updates of the rate's warm-up; 3% of them if not given")
    clip_norm: float = flag(1.0, "largest norm of a gradient")
    sum_loss: bool = flag(False, "supervised loss summed over an answer's tokens, not averaged")
    warm_up_learning_rate: float | None = flag(None, "of the proposer's warm-up; by model if not given")
    warm_up_epochs: float = flag(2.0, "passes over the seeds in the warm-up")
    dpo_learning_rate: float | None = flag(None, "of preference training; by model if not given")
    dpo_epochs: float = flag(2.0, "passes over the pairs of a round")
    dpo_batch_size: int = flag(16, "pairs in an update")
    learning_rate: float | None = flag(None, "of the target's training; by model if not given")
    epochs: float = flag(3.0, "passes over the target's data")
    batch_size: int = flag(16, "examples in an update")
    max_length: int = flag(512, "longest training sequence in tokens")
    redact: bool = flag(False, "show hashes instead of texts in the report and the data card")
    seed: int = flag(0, "random seed of everything")
    run_dir: str = flag("runs/reversegen", "folder of the run; the same command continues it")
    dry_run: bool = flag(False, "show the plan and stop")

    def resolved(self) -> "Config":
        """The same settings without gaps. Raises UserError for a value out of range or a missing file."""
        if self.preset not in PRESETS:
            raise UserError(f"unknown preset {self.preset!r}: there are {', '.join(PRESETS)}")
        data = {"math": "arithmetic", "honesty": "arc-easy"}.get(self.task)
        known = self.task == "math" and (self.data or data) == "arithmetic"
        samples = 10 if self.task == "honesty" else 1
        rates = lambda model, rate, tiny: tiny if model == "embedded" else rate[self.lora_rank > 0]
        fill = {
            "data": data,
            "reference": "program" if known else "labeler",
            "validity": "program" if known else ("labeler" if self.task in ("math", "honesty") else "none"),
            "target_samples": samples,
            # Problems from templates share most of their words, and all of their sense, with others of their kind.
            "jaccard": 0.85 if known else 0.78,
            "semantic": 0.99 if known else 0.96,
            "warm_up_learning_rate": rates(self.proposer, (2e-5, 2e-4), 3e-4),
            "dpo_learning_rate": rates(self.proposer, (1e-6, 5e-5), 1.25e-4),
            "learning_rate": rates(self.target, (2e-5, 2e-4), 3e-4),
            "arms": tuple(arm for arm in ARMS if arm != "human-data" or self.human_file),
        }
        missing = {k: v for k, v in fill.items() if getattr(self, k) is None}
        config = dataclasses.replace(self, **missing)
        config._check()
        return config

    def _check(self) -> None:
        positive = (
            "seed_instructions",
            "shots",
            "rounds",
            "prompts",
            "samples",
            "final_prompts",
            "label_votes",
            "max_failures",
        )
        positive += ("target_samples", "min_pairs", "max_pairs", "beta", "repeats", "clip_norm", "batch_size")
        positive += ("dpo_batch_size", "max_length", "epochs", "dpo_epochs", "warm_up_epochs", "learning_rate")
        positive += ("dpo_learning_rate", "warm_up_learning_rate", "temperature", "lora_alpha", "entropy_cut")
        positive += ("query_tokens", "answer_tokens", "warmup_steps")
        least = ("mix", "likelihood_guard", "collapse", "lora_rank", "target_temperature", "seed")
        shares = ("jaccard", "semantic", "top_p", "entropy_quantile")
        check_ranges(self, above=positive, least=least, shares=shares)
        if self.target_samples > 1 and self.target_temperature == 0:
            raise UserError(
                f"--target-temperature 0 gives {self.target_samples} equal answers, whose entropy and failure "
                "rate say nothing: use a temperature above 0, such as 0.7"
            )
        if self.task == "honesty":
            self._check_honesty()
        if self.samples < 2 and self.pairing != "pooled" and self.pairing != "fallback":
            raise UserError("--samples 1 leaves no pairs within a prompt: use 2 or more, or --pairing fallback")
        self._check_prompts()
        self._check_arms()
        self._check_judges()
        for name in ("seeds_file", "test_file", "general_file", "human_file"):
            file = getattr(self, name)
            if file is not None and not pathlib.Path(file).is_file():
                raise UserError(f"no such file: {file} (given as {flag_name(name)})")

    def _check_prompts(self) -> None:
        """Groups of seeds are drawn at random until an unused one comes, so there must be some to spare."""
        if self.seed_instructions <= self.shots:
            raise UserError(f"--seed-instructions {self.seed_instructions} must be more than --shots {self.shots}")
        explored = self.prompts * (self.rounds + 1)
        sampled = explored * self.samples + self.final_prompts
        pools = [2 * self.final_prompts] * ("few-shot" in self.arms)
        pools += [sampled] * bool({"warm-up", "warm-up-failures"} & {*self.arms})
        needed = self.seed_instructions + explored + self.final_prompts + max(pools, default=0)
        there = math.comb(self.seed_instructions, self.shots)
        if there < 1.1 * needed:
            raise UserError(
                f"{self.seed_instructions} seeds give {there} different prompts of {self.shots}, too few for the "
                f"{needed} that are needed: raise --seed-instructions or --shots, or lower --prompts"
            )

    def _check_honesty(self) -> None:
        if self.target_samples < 2:
            raise UserError("--task honesty looks at the spread of several answers: use --target-samples 10")
        most = math.log(self.target_samples)
        if self.entropy_quantile is None and self.entropy_cut > most:
            raise UserError(
                f"{self.target_samples} answers have an entropy of {most:.3f} nats at most, below --entropy-cut "
                f"{self.entropy_cut}: nothing could fail; use more --target-samples or --entropy-quantile"
            )
        if self.validity == "program" or self.labeler == "program":
            raise UserError("--labeler program and --validity program are for math: no program knows the answer")

    def _check_arms(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or len(set(self.arms)) < len(self.arms):
            raise UserError(f"--arms {','.join(self.arms)}: name each at most once of {', '.join(ARMS)}")
        if "target-after" not in self.arms or "target-before" not in self.arms:
            raise UserError("--arms must hold target-before and target-after: the others are compared to them")
        if ("human-data" in self.arms) != (self.human_file is not None):
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
            given = getattr(self, name)
            if given is not None:
                check_name(given, f"--{name}", url)
            if url is not None and not (given or "").startswith("openai:"):
                raise UserError(f"--{name}-url is for a hosted {name}: use it with --{name} openai:MODEL")
        if self.judge is not None and not self.judge.startswith("python:"):
            raise UserError(f"--judge {self.judge}: name a function as python:FILE.py:FUNCTION")
        hosted = self.labeler.startswith("openai:")
        if not hosted and (self.budget is not None or self.labeler_price is not None):
            raise UserError("--budget and --labeler-price are for a hosted labeler: --labeler openai:MODEL")
        if hosted:
            self.share()

    def share(self) -> Budget | None:
        """What each account of the labeler may spend: one a repeat. Raises UserError for a bad budget."""
        if self.labeler_price is not None:
            Budget.parse("calls=1", self.labeler_price)
        limits = None if self.budget is None else Budget.parse(self.budget, self.labeler_price)
        return None if limits is None else limits.share(self.repeats)

    def stored(self) -> dict[str, Any]:
        """What the run directory records: everything that decides the results."""
        values = dataclasses.asdict(self)
        del values["run_dir"], values["dry_run"]
        return values

    def training(self, rate: float, epochs: float, batch_size: int, seed: int) -> TrainConfig:
        """Settings of one training; the three kinds differ in these alone."""
        return TrainConfig(
            learning_rate=rate,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            epochs=epochs,
            batch_size=batch_size,
            micro_batch_size=max(n for n in range(1, 33) if batch_size % n == 0),
            max_length=self.max_length,
            clip_norm=self.clip_norm,
            optimizer=self.optimizer,
            sum_loss=self.sum_loss,
            lora=LoraConfig(self.lora_rank, self.lora_alpha) if self.lora_rank else None,
            seed=seed,
        )

    def warm_up(self, seed: int) -> TrainConfig:
        return self.training(self.warm_up_learning_rate, self.warm_up_epochs, 8, seed)

    def dpo(self, seed: int) -> TrainConfig:
        return self.training(self.dpo_learning_rate, self.dpo_epochs, self.dpo_batch_size, seed)

    def target_training(self, seed: int) -> TrainConfig:
        return self.training(self.learning_rate, self.epochs, self.batch_size, seed)

    def writing(self, tokens: int) -> SampleConfig:
        """How the proposer writes, at most `tokens` unless the settings say otherwise."""
        return SampleConfig(self.query_tokens or tokens, temperature=self.temperature, top_p=self.top_p)

    def answering(self, tokens: int) -> SampleConfig:
        """How the target answers while it is judged."""
        temperature = self.target_temperature if self.target_samples > 1 else 0.0
        return SampleConfig(self.answer_tokens or tokens, temperature=temperature)


def preset(name: str, **settings: Any) -> Config:
    """The settings of a preset with `settings` in place of its own. Raises UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: there are {', '.join(PRESETS)}")
    return Config(**PRESETS[name] | settings | {"preset": name})
