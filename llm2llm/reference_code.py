"""What the authors' released GSM8K code does with questions and answers, flaws included, for comparison.

    same_as_reference("5", "-5")                                   # True: signs are dropped
    REFERENCE_GSM8K.evaluation_messages(question)                  # not the prompt that was trained

The shapes are those of the released code; every sentence here is this project's own. Use `GSM8K` for anything
but the comparison.
"""

import dataclasses
import re

from common.generate import Message
from common.tasks.base import Example, NewExample
from common.tasks.grading import MARK
from common.tasks.replies import read_fields
from common.tasks.worked import GSM8K, WorkedAnswer


def reference_answer(text: str) -> str | None:
    """The text after the first run of hash marks, up to the next; None without a mark, which counts as wrong."""
    parts = re.split("#+", text)
    return parts[1].strip() if len(parts) > 1 else None


def same_as_reference(stated: str | None, gold: str) -> bool:
    """The released judge: digits and points alone, as floats; where that fails, lower-cased text without
    commas. So 5 is -5, 12 is 1/2, 20 is 20%, but 5 is not "5 apples and 3 oranges"."""
    if stated is None:
        return False
    try:
        one, other = (float(re.sub(r"[^0-9.]", "", text)) for text in (stated, gold))
    except ValueError:
        one, other = (text.lower().replace(",", "").strip() for text in (stated, gold))
    return one == other


@dataclasses.dataclass(frozen=True)
class ReferenceWorkedAnswer(WorkedAnswer):
    """A worked-answer task as the released code treats it: answers cut at 100 tokens, gold solutions with
    their calculator annotations, evaluation under another prompt than training, no check of new examples."""

    keep_annotations: bool = True
    answer_tokens: int = 100
    near_duplicate: float = 0.95

    def messages(self, question: str) -> tuple[Message, ...]:
        """The training prompt; the answer follows its last sign without a space."""
        return ({"role": "user", "content": f"Read this text and reply to it.\n\n{question}\n\nReply:"},)

    def evaluation_messages(self, question: str) -> tuple[Message, ...]:
        """The other prompt, under which the released code looks for mistakes and measures the student."""
        content = f"Work through this question one step after the other.\n\nQuestion: {question}\n\nAnswer:"
        return ({"role": "user", "content": content},)

    def parse(self, text: str) -> str | None:
        return reference_answer(text)

    def correct(self, text: str, label: str) -> bool:
        return same_as_reference(reference_answer(text), label)

    def parse_example(self, text: str, parent: Example) -> NewExample:
        """One label each and one mark are all that is asked: 2 + 2 = 5 and "four dollars" pass."""
        fields = read_fields(text, self.reply_fields)
        if fields is None or fields["Solution"].count(MARK) != 1:
            return NewExample(refused="format")
        label = reference_answer(fields["Solution"])
        if not fields["Problem"] or not label:
            return NewExample(refused="format")
        return NewExample(fields["Problem"], fields["Solution"], label, parent.group)


@dataclasses.dataclass(frozen=True)
class _Evaluated(ReferenceWorkedAnswer):
    def messages(self, question: str) -> tuple[Message, ...]:
        return self.evaluation_messages(question)


def as_in_reference_code(task: WorkedAnswer) -> ReferenceWorkedAnswer:
    """`task` with its data and columns, treated as the released code would."""
    kept = ("name", "hub", "question_columns", "context_columns", "answer_columns", "equation_columns")
    return ReferenceWorkedAnswer(**{name: getattr(task, name) for name in kept})


def as_evaluated(task: ReferenceWorkedAnswer) -> ReferenceWorkedAnswer:
    """The same task for evaluation: its `messages` are the evaluation prompt."""
    return _Evaluated(**{field.name: getattr(task, field.name) for field in dataclasses.fields(task)})


REFERENCE_GSM8K = as_in_reference_code(GSM8K)
