"""What fits into the models: seeds that can be shown and learned, and questions that leave room for an
Loads no weights, for a plan."""

from collections.abc import Sequence

from common.errors import UserError
from common.generate import Message
from common.reading import Reader
from common.tasks.base import Example
from common.train.data import Encoded
from reversegen.applications.base import Application


def that_fit(
    app: Application, proposer: Reader, seeds: Sequence[Example], shots: int, query_tokens: int
) -> list[Example]:
    """The seeds so short that any `shots` of them leave room for a query within the proposer's positions, and that
    are no longer than a query themselves."""
    size = lambda seed: len(proposer.tokenizer.encode_text(app.completion(seed)))
    short = min(seeds, key=size)
    frame = len(proposer.tokenizer.encode_prompt(app.prompt([short] * shots))) - shots * size(short)
    most = min((proposer.config.max_positions - frame - query_tokens) // shots - 1, query_tokens - 2)
    return [seed for seed in seeds if size(seed) <= most]


def encoded(model: Reader, messages: Sequence[Message], answer: str) -> Encoded:
    """A conversation as it is learned, or its likelihood taken: the answer with its end."""
    tokens, start = model.tokenizer.encode_example(messages, answer)
    return Encoded(tuple(tokens), start)


def fits(app: Application, target: Reader, example: Example, most: int) -> bool:
    """Whether an example with its answer has at most `most` tokens, and no more than the target takes."""
    tokens = encoded(target, app.messages(example.question), example.answer).tokens
    return len(tokens) <= min(most, target.config.max_positions)


def check_lengths(
    app: Application, target: Reader, seeds: Sequence[Example], asked: Sequence[Example], max_length: int
) -> None:
    """Raises UserError, naming the row, for a seed that is too long to be learned and for a question that leaves
    the target no room to answer."""
    for seed in seeds:
        if not fits(app, target, seed, max_length):
            raise UserError(
                f"{seed.place or seed.id}: with its answer longer than --max-length {max_length} or the "
                f"target's {target.config.max_positions} positions: shorten the row or raise --max-length"
            )
    room = target.config.max_positions - app.answers.tokens
    for example in asked:
        count = len(target.tokenizer.encode_prompt(app.messages(example.question)))
        if count > room:
            raise UserError(
                f"{example.place or example.id}: a question of {count} tokens leaves no room for an answer within "
                f"the {target.config.max_positions} the target takes: shorten the row or lower --answer-tokens"
            )
