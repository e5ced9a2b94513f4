"""Reading replies: without what stands around them, and strictly by labelled lines; what hints add to a request.

read_fields("**Problem:** How many?\\n**Solution:** 3 + 4 = 7. #### 7", ("Problem", "Solution"))
"""

import re
from collections.abc import Sequence

from common.tasks.base import Hints, NewExample
from common.tasks.equations import wrong_equation
from common.tasks.grading import MARK, stated_number

_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_TAG = "(?:think|thinking|reasoning|seed:think)"
_SIGN = re.compile(rf"</?{_TAG}>")
_THOUGHT = re.compile(rf"<{_TAG}>.*?(?:</{_TAG}>|\Z)", re.DOTALL)
_THOUGHT_END = re.compile(rf"\A.*</{_TAG}>", re.DOTALL)
_DRAFTED = (
    re.compile(r"\s*\[THINK\](?:.*?\[/THINK\](.*)|.*)", re.DOTALL),
    re.compile(
        r"\s*(?:<\|start\|>assistant)?(?=<\|channel\|>(?:analysis|commentary|final)\b)"
        r"(?:.*?<\|channel\|>final\b.*?<\|message\|>(.*?)(?:<\|(?:end|return|call)\|>.*)?|.*)",
        re.DOTALL,
    ),
    re.compile(r"analysis(?:.*?assistantfinal(.*)|[A-Z].*)", re.DOTALL),
)
"""Replies that begin with a draft in a form of their own, and the answer in them, if there is one: Mistral's, the
channels of GPT-OSS, and what is left of those where special tokens are not shown. Elsewhere in a text these signs
are spoken of."""
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n((?:(?!```).)*?)(?:\n?[ \t]*```)?", re.DOTALL)


def without_thoughts(text: str) -> str:
    """A reply without its block of thoughts (<think>, <thinking>, <reasoning>, <seed:think>, [THINK], the channels
    of GPT-OSS); any other text as it is. A block that is not closed is a draft to its end."""
    for form in _DRAFTED:
        if found := form.fullmatch(text):
            return (found[1] or "").strip()
    if not _SIGN.search(text):
        return text
    # Some templates open the block in the prompt, so that the reply only closes it.
    return _THOUGHT_END.sub("", _THOUGHT.sub("", text)).strip()


def bare(text: str) -> str:
    """The same without the code fence around all of it, as chat models put it there."""
    text = without_thoughts(text)
    fenced = _FENCE.fullmatch(text.strip()) if "```" in text else None
    return fenced[1] if fenced else text


def read_fields(text: str, names: Sequence[str]) -> dict[str, str] | None:
    """The texts after the labels `names`; None unless each label stands once, in order, and nothing before.

    Labels may carry what chat models put around them: "1. Problem:", "**Problem:**", "### Problem 1:".
    """
    label = "|".join(re.escape(name).replace(r"\ ", r"[ \t]+") for name in names)
    pattern = re.compile(
        rf"^[ \t>*_#-]*(?:\d+[.)][ \t]*)?[*_]*(?P<name>{label})(?:[ \t]*#?\d+)?[*_]*[ \t]*:[*_]*",
        re.IGNORECASE | re.MULTILINE,
    )
    found = list(pattern.finditer(text))
    written = [" ".join(match["name"].split()).lower() for match in found]
    if written != [name.lower() for name in names] or text[: found[0].start()].strip():
        return None
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {name: _unwrapped(text[match.end() : end]) for name, match, end in zip(names, found, ends, strict=True)}


def _unwrapped(text: str) -> str:
    """Without the half of a bold mark whose other half stood before the label."""
    text = text.strip()
    return text.removesuffix("**").rstrip() if text.count("**") % 2 else text


def write_fields(names: Sequence[str], texts: Sequence[str]) -> str:
    """What `read_fields` reads: a labelled line for each text."""
    return "\n".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True))


def read_worked(text: str, names: Sequence[str], group: str, joiner: str, asks: bool) -> NewExample:
    """A question with a worked solution that ends in the mark and a number; `joiner` stands before the mark.

    Refuses, by reason: "format", "several final answers", "no rationale", "answer is not a number", "wrong
    equation". `asks`: the question must end in a question mark.
    """
    fields = read_fields(text, names)
    if fields is None:
        return NewExample(refused="format")
    question, solution = (fields[name] for name in names)
    question = " ".join(question.split())
    rationale, *marked = _ANNOTATION.sub("", solution).split(MARK)
    if not marked or not question or MARK in question or (asks and not question.endswith("?")):
        return NewExample(refused="format")
    if len(marked) > 1:
        return NewExample(refused="several final answers")
    lines = [" ".join(line.split()) for line in rationale.strip().splitlines()]
    rationale = ("\n" if "\n" in joiner else " ").join(line for line in lines if line)
    if not re.search(r"\w", rationale):
        return NewExample(refused="no rationale")
    label = stated_number(marked[0])
    if label is None:
        return NewExample(refused="answer is not a number")
    if wrong_equation(rationale):
        return NewExample(refused="wrong equation")
    return NewExample(question, f"{rationale}{joiner}{MARK} {label}", label, group)


def without_annotations(solution: str) -> str:
    """A solution without calculator notes such as <<48/2=24>>."""
    return _ANNOTATION.sub("", solution)


def hint_lines(hints: Hints) -> str:
    """What a request says about the hints it was given; "" if there are none."""
    lines = []
    if hints.wrong_answer is not None:
        lines += [
            "A student answered the above wrongly. The student's answer was:",
            hints.wrong_answer.strip() or "(nothing)",
            "Write the new one so that it trains what this student got wrong.",
        ]
    if hints.earlier:
        lines.append("These were written before. The new one must resemble none of them:")
        lines += [f"- {' '.join(question.split())}" for question in hints.earlier]
    return "\n".join(lines)


def with_hints(request: str, hints: Hints) -> str:
    """`request`, followed by what there is of hints."""
    lines = hint_lines(hints)
    return f"{request}\n\n{lines}" if lines else request
