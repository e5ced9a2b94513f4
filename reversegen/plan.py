"""What a run will do at most, line by line, before any model is loaded: `--dry-run`."""

from typing import TYPE_CHECKING, NamedTuple

from common.backends.open import is_model, model_name
from common.memory import Model, Need, sampling, tokens_in, training
from common.rates import OTHER, cost
from common.settings import given
from reversegen.config import Config
from reversegen.switches import Switches

if TYPE_CHECKING:
    from reversegen.applications.base import Application, Data


class Counts(NamedTuple):
    """At most, in a repeat and for one proposer: queries sampled, the target's answers to them, updates of the
    warm-up, of DPO in a round and of a target, and new examples that a target learns."""

    sampled: int
    answers: int
    warm_up: int
    preferring: int
    target: int
    learned: int


def counts(config: Config, switches: Switches) -> Counts:
    """What a repeat comes to."""
    exploring, learning = switches.exploring, switches.learning
    sampled = exploring.prompts * exploring.samples * (exploring.rounds + 1) + exploring.final_prompts
    pairs = min(exploring.max_pairs, exploring.prompts * (exploring.samples // 2))
    failures = min(learning.failures, exploring.final_prompts)
    # In honesty as many passing queries are learned as failing ones.
    learned = failures * (2 if config.task == "honesty" else 1)
    return Counts(
        sampled,
        sampled * given(config.target_samples),
        exploring.warm_up.total_steps(switches.seeds),
        exploring.preferring.train.total_steps(pairs),
        learning.train.total_steps(learned + learning.mixed(learned, switches.seeds)),
        learned,
    )


def calls(config: Config, switches: Switches) -> int:
    """Of the labeler in a repeat, about."""
    if config.labeler == "program":
        return 0
    found, votes = counts(config, switches), config.label_votes
    judging = (config.reference == "labeler" and config.task == "math") * votes
    judging += config.validity == "labeler" and config.task in ("math", "honesty")
    return 2 * found.sampled * judging + votes * found.learned * len(switches.arms)


def work(config: Config, switches: Switches, data: "Data") -> dict[str, float]:
    """Units of work by stage (see `common.rates`): queries, answers, examples and pairs seen, labels, and answers
    that are measured."""
    found, exploring, repeats = counts(config, switches), switches.exploring, config.repeats
    seen = found.warm_up * exploring.warm_up.batch_size
    seen += exploring.rounds * found.preferring * 2 * exploring.preferring.train.batch_size
    trained = (len(switches.arms) - 1) * found.target * switches.learning.train.batch_size
    asked = len(data.test) + len(data.general) + exploring.final_prompts
    return {
        "propose": repeats * 2 * found.sampled,
        "target answers": repeats * 2 * found.answers,
        "train the proposer": repeats * 2 * seen,
        "train the target": repeats * trained,
        "label": repeats * calls(config, switches),
        "measure": repeats * len(switches.arms) * asked,
        OTHER: repeats * 2 * found.sampled,
    }


def spending(config: Config, app: "Application", switches: Switches, data: "Data") -> list[tuple[str, str]]:
    """What a hosted labeler may cost."""
    asked = config.repeats * calls(config, switches)
    if not config.labeler.startswith("openai:") or not asked:
        return []
    some = data.seeds[:50]
    letters = sum(len(m["content"]) for e in some for m in app.messages(e.question)) // len(some)
    return [("cost", cost(asked, tokens_in(letters), app.answers.tokens, config.labeler_price))]


def plan(config: Config, switches: Switches) -> list[tuple[str, str]]:
    """Names and what they come to, for one repeat where nothing else is said."""
    exploring, found = switches.exploring, counts(config, switches)
    models = f"{config.task} ({config.data or 'own data'}), {config.proposer}, {config.target}"
    asked = f"{found.sampled} queries, at most {found.answers} target answers"
    each = f"in each of {len(switches.arms) - 1} arms"
    lines = [
        ("task, proposer, target", models),
        ("seeds, rounds, repeats", f"{switches.seeds}, {exploring.rounds}, {config.repeats}"),
        ("exploration", f"{asked}; as much for the independent proposer"),
        ("proposer", f"{found.warm_up} updates of warm-up, at most {found.preferring} of DPO a round, twice"),
        ("target", f"at most {found.learned} new examples and {found.target} updates {each}"),
    ]
    if config.labeler != "program":
        judging = "labeler" in (config.reference, config.validity) and config.task in ("math", "honesty")
        lines.append(
            ("labeler", f"about {calls(config, switches)} calls, mostly for {'judging' if judging else 'labels'}")
        )
    if config.guard:
        judged = f"at most {2 * found.answers} verdicts while exploring, and one for every answer measured"
        lines.append(("guard", judged))
    if config.budget:
        lines.append(("budget", f"{config.budget} for the whole run, in equal shares for repeats"))
    return lines


def needs(config: Config, app: "Application", data: "Data", device: str = "cpu", shards: int = 1) -> list[Need]:
    """Memory of the stages, of models that are on this machine."""
    switches, where = config.switches(app.query_tokens), {"device": device, "shards": shards}
    exploring, rank = switches.exploring, given(config.lora_rank)
    letters = lambda messages: sum(len(message["content"]) for message in messages)
    longest = sorted(data.seeds, key=lambda e: len(e.question))[-exploring.shots :]
    written = exploring.writing.max_new_tokens
    prompt = tokens_in(letters(app.prompt(longest)))
    asked = max(data.test, key=lambda e: len(e.question) + len(e.answer))
    question = tokens_in(letters(app.messages(asked.question)) + len(asked.answer))
    answer = app.answers.tokens
    found = []
    proposer = Model.read(model_name(config.proposer, "teacher"))
    if proposer is not None:
        warm_up, preferring = exploring.warm_up, exploring.preferring.train
        shown, asks = prompt + tokens_in(len(longest[-1].question)), prompt + written
        found += [
            training(proposer, warm_up, shown, stage="training the proposer", shortest=prompt, **where),
            training(proposer, preferring, asks, stage="DPO", pairs=True, shortest=prompt, **where),
        ]
        found.append(sampling(proposer, prompt, written, stage="proposing", rank=rank, **where))
    target = Model.read(model_name(config.target, "student"))
    if target is not None:
        learned = question + answer
        settings = switches.learning.train
        found.append(training(target, settings, learned, stage="training the target", shortest=question, **where))
        found.append(sampling(target, question, answer, stage="answering", rank=rank, **where))
    labeler = Model.read(model_name(config.labeler, "teacher")) if is_model(config.labeler) else None
    if labeler is not None:
        found.append(sampling(labeler, question, answer, stage="labelling", **where))
    return found
