"""What a run will do at most, line by line, before any model is loaded: `--dry-run`."""

from typing import TYPE_CHECKING

from common.backends.open import is_model, model_name
from common.memory import Model, Need, sampling, tokens_in, training
from common.settings import given
from reversegen.config import Config
from reversegen.switches import Switches

if TYPE_CHECKING:
    from reversegen.applications.base import Application, Data


def plan(config: Config, switches: Switches) -> list[tuple[str, str]]:
    """Names and what they come to, for one repeat where nothing else is said."""
    exploring, learning = switches.exploring, switches.learning
    sampled = exploring.prompts * exploring.samples * (exploring.rounds + 1) + exploring.final_prompts
    answers = sampled * given(config.target_samples)
    pairs = min(exploring.max_pairs, exploring.prompts * (exploring.samples // 2))
    warm_up = exploring.warm_up.total_steps(switches.seeds)
    failures = min(learning.failures, exploring.final_prompts)
    # In honesty as many passing queries are learned as failing ones.
    learned = failures * (2 if config.task == "honesty" else 1)
    updates = learning.train.total_steps(learned + learning.mixed(learned, switches.seeds))
    most = exploring.preferring.train.total_steps(pairs)
    models = f"{config.task} ({config.data or 'own data'}), {config.proposer}, {config.target}"
    asked = f"{sampled} queries, at most {answers} target answers"
    each = f"in each of {len(switches.arms) - 1} arms"
    lines = [
        ("task, proposer, target", models),
        ("seeds, rounds, repeats", f"{switches.seeds}, {exploring.rounds}, {config.repeats}"),
        ("exploration", f"{asked}; as much for the independent proposer"),
        ("proposer", f"{warm_up} updates of warm-up, at most {most} of DPO a round, twice"),
        ("target", f"at most {learned} new examples and {updates} updates {each}"),
    ]
    if config.labeler != "program":
        votes = config.label_votes
        judging = (config.reference == "labeler" and config.task == "math") * votes
        judging += config.validity == "labeler" and config.task in ("math", "honesty")
        calls = 2 * sampled * judging + votes * learned * len(switches.arms)
        lines.append(("labeler", f"about {calls} calls, mostly for {'judging' if judging else 'labels'}"))
    if config.guard:
        judged = f"at most {2 * answers} verdicts while exploring, and one for every answer measured"
        lines.append(("guard", judged))
    if config.budget:
        lines.append(("budget", f"{config.budget} for the whole run, in equal shares for repeats"))
    return lines


def needs(config: Config, app: "Application", data: "Data", device: str = "cpu", shards: int = 1) -> list[Need]:
    """Memory of the stages, of models that are on this machine."""
    switches, where = config.switches(app.query_tokens), {"device": device, "shards": shards}
    exploring, rank = switches.exploring, given(config.lora_rank)
    letters = lambda messages: sum(len(message["content"]) for message in messages)
    seed = max(data.seeds, key=lambda e: len(e.question))
    written = exploring.writing.max_new_tokens
    prompt = tokens_in(letters(app.prompt([seed] * exploring.shots)))
    asked = max(data.test, key=lambda e: len(e.question) + len(e.answer))
    question = tokens_in(letters(app.messages(asked.question)) + len(asked.answer))
    answer = app.answers.tokens
    found = []
    proposer = Model.read(model_name(config.proposer, "teacher"))
    if proposer is not None:
        warm_up, preferring = exploring.warm_up, exploring.preferring.train
        shown = prompt + tokens_in(len(seed.question))
        found.append(training(proposer, warm_up, shown, stage="training the proposer", **where))
        found.append(training(proposer, preferring, prompt + written, stage="DPO", pairs=True, **where))
        found.append(sampling(proposer, prompt + written, stage="proposing", rank=rank, **where))
    target = Model.read(model_name(config.target, "student"))
    if target is not None:
        learned = question + answer
        found.append(training(target, switches.learning.train, learned, stage="training the target", **where))
        found.append(sampling(target, learned, stage="answering", rank=rank, **where))
    labeler = Model.read(model_name(config.labeler, "teacher")) if is_model(config.labeler) else None
    if labeler is not None:
        found.append(sampling(labeler, question + answer, stage="labelling", **where))
    return found
