"""Questions whose answer is a number reached by a worked solution: GSM8K, SVAMP, and any file of that form.

    TASK = WorkedAnswer(name="mine", question_columns=("problem",), answer_columns=("solution",))

The solution ends in the mark "####" and the number. A row that states only a number gets its solution from a
formula column, where there is one.
"""

import dataclasses
import re
from fractions import Fraction

from common.errors import UserError
from common.generate import Message
from common.tasks.base import NO_HINTS, Example, Hints, Kind, NewExample, RowTask, user_turn
from common.tasks.equations import infix, show, worked_out
from common.tasks.files import Row, row_id
from common.tasks.grading import MARK, final_answer, numbers_in, same_number, value
from common.tasks.hub import Hub, require_any
from common.tasks.replies import hint_lines, read_worked, without_annotations, write_fields

ROLE = """You write practice problems in mathematics for a student. Each time you are shown a problem with \
its solution, and you write one new problem that needs the same skills.
1. The new problem is in plain English and can be solved from its text alone, without a picture.
2. It has fewer than 100 words and asks for one thing.
3. Its people, objects, setting and numbers differ from those shown.
4. The answer is one number: no words, no fraction, no unit.
5. The solution is short and shows every calculation as an equation, such as 3 * 4 = 12.
6. Every calculation is right. Check each before you reply.
7. The solution ends in a line of its own with #### and the answer.
8. Reply in exactly the form "Problem: …" and on the next line "Solution: …", with nothing before or after."""

SHOWN = Example(
    id="demonstration",
    question=(
        "A bakery sells trays of rolls. On Friday it sold 14 trays of 6 rolls each. On Saturday it sold half as "
        "many trays. How many rolls did it sell on the two days?"
    ),
    answer=(
        "On Friday it sold 14 * 6 = 84 rolls.\nOn Saturday it sold 14 / 2 = 7 trays.\n"
        "That is 7 * 6 = 42 rolls.\nOn both days it sold 84 + 42 = 126 rolls.\n#### 126"
    ),
    label="126",
    group="",
)
REPLY = """Problem: Omar waters the plants of a hotel. In the morning he fills 18 cans of 5 litres each. In the \
evening he needs a third as many cans. How many litres of water does he use in the day?
Solution: In the morning he uses 18 * 5 = 90 litres.
In the evening he fills 18 / 3 = 6 cans.
That is 6 * 5 = 30 litres.
In the day he uses 90 + 30 = 120 litres.
#### 120"""


@dataclasses.dataclass(frozen=True)
class WorkedAnswer(RowTask):
    """Implements `common.tasks.base.Task`. Of each tuple of columns the first that a row has is read.

    `context_columns`: text that stands before the question, if the row has any. `equation_columns`: a formula,
    with brackets or in Polish notation over number0, number1, … of the question.
    """

    name: str
    hub: Hub | None = None
    question_columns: tuple[str, ...] = ("question", "query")  # ReverseGen's data sets have queries
    context_columns: tuple[str, ...] = ()
    answer_columns: tuple[str, ...] = ("answer",)
    equation_columns: tuple[str, ...] = ()
    instruction: str = "Solve this step by step. End with #### and the number that answers the question."
    role: str = ROLE
    keep_annotations: bool = False
    kind: Kind = "number"
    reply_fields: tuple[str, ...] = ("Problem", "Solution")
    answer_tokens: int = 256
    example_tokens: int = 512
    near_duplicate: float = 0.7

    def _from_row(self, row: Row, place: str, name: str) -> Example:
        written = require_any(row, self.question_columns, place)
        stated = require_any(row, self.answer_columns, place)
        context = next((str(row[c]).strip() for c in self.context_columns if row.get(c)), "")
        if context:
            written = f"{context}{'' if context[-1] in '.?!,' else ','} {written}"
        # SVAMP's training rows have a space before every punctuation mark.
        question = re.sub(r" ([.,?!;:])(?= |$)", r"\1", " ".join(written.split()))
        label = final_answer(stated)
        if label is None:
            raise UserError(f"{place}: the answer holds no number: end it with '{MARK} NUMBER'")
        solution = self._solution(row, written, stated, label)
        steps = max(1, len([line for line in solution.split("\n")[:-1] if line.strip()]))
        group = f"{steps} step{'s' * (steps > 1)}" if steps < 8 else "8 or more steps"
        number = solution.rpartition(MARK)[2].strip()
        return Example(row_id(row, str(row.get("ID", name))), question, solution, number, group, place)

    def _solution(self, row: Row, question: str, stated: str, label: str) -> str:
        """The answer to be learned: worked steps, one to a line, then the mark and the number without commas."""
        rationale, mark, _ = stated.rpartition(MARK)
        number = re.sub(r"[$€£,]", "", label)
        exact = value(number)
        if exact is not None and not mark and re.fullmatch(r"-?\d+\.\d+", number):
            number = show(exact)
        if not mark:
            formula = next((str(row[c]) for c in self.equation_columns if row.get(c)), None)
            steps = _steps(formula, question, exact) if formula else None
            rationale = steps or ("" if stated == label else stated)
        rationale = rationale.strip() if self.keep_annotations else without_annotations(rationale).strip()
        return f"{rationale}\n{MARK} {number}" if rationale else f"{MARK} {number}"

    def messages(self, question: str) -> tuple[Message, ...]:
        return user_turn(f"{self.instruction}\n\n{question}" if self.instruction else question)

    def solve_messages(self, question: str) -> tuple[Message, ...]:
        form = f"Work it out step by step and end with a line of {MARK} and the number alone."
        return user_turn(f"{form}\n\n{question}")

    def parse(self, text: str) -> str | None:
        return final_answer(text)

    def correct(self, text: str, label: str) -> bool:
        return same_number(final_answer(text), label)

    def teacher_messages(self, example: Example, hints: Hints = NO_HINTS) -> tuple[Message, ...]:
        ask = "Write one new problem that trains the same skills. Solve it, and reply in the form required."
        last = [self._shown(example), hint_lines(hints), ask]
        return (
            {"role": "system", "content": self.role},
            {"role": "user", "content": f"{self._shown(SHOWN)}\n\n{ask}"},
            {"role": "assistant", "content": REPLY},
            {"role": "user", "content": "\n\n".join(part for part in last if part)},
        )

    def _shown(self, example: Example) -> str:
        return f"Here is a problem with its solution.\n{self.write_example(example)}"

    def rephrase_messages(self, example: Example) -> tuple[Message, ...]:
        request = (
            "Say the problem below in other words. Keep every number, what is asked and the answer; adapt the "
            f"solution's wording if need be. End the solution with a line of {MARK} and the answer.\n"
            'Reply in exactly the form "Problem: …" and on the next line "Solution: …".'
        )
        return user_turn(f"{request}\n\n{self.write_example(example)}")

    def write_example(self, example: Example) -> str:
        return write_fields(self.reply_fields, (example.question, example.answer))

    def parse_example(self, text: str, parent: Example) -> NewExample:
        return read_worked(text, self.reply_fields, parent.group, joiner="\n", asks=False)


def _steps(formula: str, question: str, result: Fraction | None) -> str | None:
    """The formula worked out, one step on each line; None if it does not give the row's result."""
    try:
        written = infix(formula, numbers_in(question)) if "number" in formula else formula
    except ValueError:
        return None
    found = worked_out(written)
    if found is None or result is None or abs(found[1] - result) > abs(result) / 10**4:
        return None
    return found[0].replace(". ", ".\n")


GSM8K = WorkedAnswer(name="gsm8k", hub=Hub("openai/gsm8k", "main"))

SVAMP = WorkedAnswer(
    name="svamp",
    hub=Hub("ChilleD/SVAMP"),
    question_columns=("question", "Question", "query"),
    context_columns=("body", "Body"),
    answer_columns=("answer", "Answer"),
    equation_columns=("equation", "Equation"),
)
