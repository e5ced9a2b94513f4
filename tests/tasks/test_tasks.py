"""Tasks: problems and their recognition, prompts, strict reading of replies, files."""

import json
import pathlib
import random
import re

import pytest

from common.errors import UserError
from common.tasks.arithmetic import Arithmetic
from common.tasks.asked import asked
from common.tasks.base import MEMBERS, Example, Hints
from common.tasks.choice import CASEHOLD, MultipleChoice
from common.tasks.embedded_text import similar_prompt
from common.tasks.files import read_rows
from common.tasks.free import FreeAnswer
from common.tasks.grading import final_answer
from common.tasks.labelled import SNIPS, SST2, TREC, LabelledText, labelled_text
from common.tasks.problems import SKILLS, recognise, write
from common.tasks.registry import TASKS, get_task
from common.tasks.replies import bare
from common.tasks.worked import GSM8K
from llm2llm.reference_code import REFERENCE_GSM8K

ARITHMETIC = Arithmetic()
FREE = FreeAnswer(name="free", instruction="Reply in a word.")
ALL = (*TASKS.values(), FREE, REFERENCE_GSM8K)
PARENT = Example(
    "p", "Ana has 3 pens. Ben gives Ana 4 more pens. How many pens does Ana have now?", "", "7", "add"
)


@pytest.mark.parametrize("skill", list(SKILLS))
def test_every_problem_is_recognised_with_its_answer(skill):
    rng = random.Random(1)
    for _ in range(200):
        problem = write(rng, skill)
        assert recognise(problem.question) == problem
        assert final_answer(problem.solution) == str(problem.answer)
        assert 0 <= problem.answer < 200
        # The answer is also that of the solution's last equation, read by Python instead of by us.
        last = re.findall(r"([\d+*/ -]+) = (\d+)\.", problem.solution)[-1]
        assert eval(last[0].replace("/", "//")) == int(last[1]) == problem.answer


@pytest.mark.parametrize(
    "question",
    [
        "",
        "How many?",
        "Ana has 3 pens. Ben gives Ana 4 more cups. How many pens does Ana have now?",  # things differ
        "Ana has 3 pens. Ana gives Ana 4 more pens. How many pens does Ana have now?",  # one person
        "Ana has 3 pens. Ana gives 5 pens to Ben. How many pens does Ana have left?",  # below zero
        "Ana shares 7 pens equally among 2 friends. How many pens does each friend get?",  # remainder
        "Ana shares 7 pens equally among 0 friends. How many pens does each friend get?",
    ],
)
def test_what_is_no_problem_has_no_answer(question):
    assert recognise(question) is None
    assert ARITHMETIC.truth(question) is None


def test_new_names_and_things_are_recognised():
    known = recognise("Zed has 3 zorks. Quo gives Zed 4 more zorks. How many zorks does Zed have now?")
    assert known is not None
    assert known.answer == 7


def test_splits_do_not_share_questions_and_are_fixed_by_the_seed():
    splits = {name: [e.question for e in ARITHMETIC.load(name, None, 3)] for name in ("train", "dev", "test")}
    everything = [question for questions in splits.values() for question in questions]
    assert len(set(everything)) == len(everything)
    assert splits["test"] == [e.question for e in ARITHMETIC.load("test", None, 3)]
    assert splits["test"] != [e.question for e in ARITHMETIC.load("test", None, 4)]


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        ("Problem: How many?\nSolution: 3 + 4 = 7. #### 7", None),
        ("  Problem:  How\nmany? \n Solution:  3 + 4 = 7.  #### 7 ", None),
        ("How many? 3 + 4 = 7. #### 7", "format"),
        ("Problem: How many\nSolution: 3 + 4 = 7. #### 7", "format"),
        ("Problem: How many?\nSolution: 3 + 4 = 7.", "format"),
        ("Problem: How many?\nSolution: #### 7", "no rationale"),
        ("Problem: How many?\nSolution: 3 + 4 = 7. #### four dollars", "answer is not a number"),
        ("Problem: How many?\nSolution: 3 + 4 = 7. #### 7 pens", "answer is not a number"),
        ("Problem: How many?\nSolution: 2 + 2 = 5. #### 5", "wrong equation"),
    ],
)
def test_replies_of_an_arithmetic_teacher(reply, refused):
    new = ARITHMETIC.parse_example(reply, PARENT)
    assert new.refused == refused
    if refused is None:
        assert (new.question, new.label, new.group) == ("How many?", "7", "add")
        assert new.answer == "3 + 4 = 7. #### 7"


def example_of(task):
    """An example such as `task` would load."""
    if task is FREE:
        return Example("x", "What is red?", "a rose", "a rose", "all")
    if isinstance(task, MultipleChoice):
        options = "\n".join(f"{letter}. holding that {i}" for i, letter in enumerate(task.letters))
        return Example("x", f"The court agrees. See A v. B (<HOLDING>)\n{options}", "C", "C", "C")
    if task.kind == "number":
        problem = write(random.Random(0), "compare")
        solution = problem.solution if task == ARITHMETIC else problem.solution.replace(" ####", "\n####")
        return Example("x", problem.question, solution, str(problem.answer), "compare")
    word = task.labels[0][1]
    return Example("x", "What is it ?", word, word, word)


@pytest.mark.parametrize("task", ALL, ids=lambda t: type(t).__name__ + " " + t.name)
def test_a_written_example_is_read_back(task):
    example = example_of(task)
    new = task.parse_example(task.write_example(example), example)
    assert new.refused is None
    assert (new.question, new.answer, new.label, new.group) == (
        example.question,
        example.answer,
        example.label,
        example.group,
    )
    assert task.correct(example.answer, example.label)


def test_labels_are_matched_without_case_and_punctuation():
    assert TREC.parse("Location.") == "location"
    assert TREC.parse(" LOC \nmore") == "location"
    assert SNIPS.parse("PlayMusic") == "play music"
    assert TREC.parse("**Location**") == "location"
    assert TREC.parse("Label: location") == "location"
    assert TREC.parse("The answer is location, since it asks where.") == "location"
    assert TREC.parse("location - it asks where") == "location"
    assert SST2.parse("1") == "positive"
    assert SST2.parse("not positive") is None
    assert TREC.parse("place") is None
    assert TREC.parse("This question asks for a human being.") == "human"
    assert SNIPS.parse("The user wants to Search Creative Work, I think") == "search creative work"
    assert TREC.parse("This asks for the location of a human.") is None
    assert TREC.parse("It is certainly no location and isn't a number") is None
    assert SST2.parse("The review is not positive at all") is None
    assert not TREC.correct("", "location")
    assert TREC.parse_example("Text: Where ?\nLabel: human", Example("x", "", "", "location", "")).refused == (
        "label changed"
    )
    assert TREC.parse_example("Text: Where ?\nLabel: cat", Example("x", "", "", "location", "")).refused == (
        "unknown label"
    )


def test_files_of_every_format_give_the_same_rows(tmp_path):
    rows = [{"text": "a, b", "label": "x"}, {"text": "c “d”", "label": "y"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text('text,label\n"a, b",x\nc “d”,y\n', encoding="utf-8")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
        assert [row for row, _ in read_rows(tmp_path / name)] == rows


def test_a_quote_in_a_tab_separated_file_is_a_character_like_any_other(tmp_path):
    lines = ['"Where is it?\tLOC', "Who?\tHUM", '"Who" is it?\tHUM', 'When "?\tNUM', '""\tNUM']
    (tmp_path / "a.tsv").write_text("\ufefftext\tlabel\n\n" + "\r\n".join(lines) + "\n")
    assert [[row["text"], row["label"]] for row, _ in read_rows(tmp_path / "a.tsv")] == [
        line.split("\t") for line in lines
    ]


@pytest.mark.parametrize("first", ["caf\u00e9", "cafe\u0301"])
def test_a_label_that_unicode_writes_in_two_ways_is_one(tmp_path, first):
    """It is written as where it comes first; labels that differ in case or spaces are refused."""
    second = "cafe\u0301" if first == "caf\u00e9" else "caf\u00e9"
    file = tmp_path / "a.csv"
    file.write_text(f"text,label\na,{first}\nb,{second}\nc,a bar\nd,a  bar\n", encoding="utf-8")
    task = labelled_text(file, "text", "label", "Where?")
    assert sorted(task.choices) == sorted(["a bar", first])
    assert [e.label for e in task.load("train", file, 0)] == [first, first, "a bar", "a bar"]
    assert task.parse(second) == first
    for other in ("A_bar", "A bar"):
        file.write_text(f"text,label\na,a bar\nb,{other}\n", encoding="utf-8")
        with pytest.raises(UserError, match=f"labels 'a bar' and '{other}' of column 'label' differ in case"):
            labelled_text(file, "text", "label", "Where?")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b'{"text": "a"}\n{broken\n', "line 2: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: not an object"),
        ("a.jsonl", b'{"text": "a"}\n', "row 1: field .* 'label' or 'label_name' is missing; the row has text"),
        ("a.jsonl", b'{"text": " ", "label": "LOC"}\n', "row 1: field 'text' is empty"),
        ("a.jsonl", b'{"text": "a", "label": "LOC"}\n{"text": "b", "label": "cat"}\n', "row 2: label 'cat'"),
        ("a.csv", b"text,label\na,LOC,more\n", "row 1: more cells"),
        ("a.csv", b"text,label\n\xff,LOC\n", "not UTF-8"),
        ("a.csv", b'text,label\na,LOC\n"b,LOC\nc,LOC\n', "row 2: a quote opens a cell and is not closed"),
        ("a.csv", b'text,label\n"a,LOC\nb,LOC\nc",LOC\nd,LOC\n', "row 1: a quote joins 3 lines to one cell"),
        ("a.csv", b'text,label\n"a,LOC\nb,LOC\n"\n', "row 1: a quote joins 3 lines to one cell"),
        ("a.csv", b'"text,label\na",LOC\nb,LOC\n', "header: a quote joins 2 lines"),
        ("a.csv", b'label,text\nLOC,"Great\n\nHUM,bad"\nLOC,x\n', "row 1: a quote joins 3 lines"),
        ("a.csv", b'label,text\nLOC,"Great\nHUM,Slow, and dear\nLOC,Fine"\n', "row 1: a quote joins 3 lines"),
        ("a.csv", b'text,label\n"Dear all,\nwhere is it?",LOC\n', "row 1: a quote joins 2 lines to one cell"),
        ("a.csv", b'text,label\na,LOC\n"b" she said,LOC\n', "row 2: a quoted cell goes on after its end"),
        ("a.csv", b"text,label\n" + b"a" * 140_000 + b",LOC\n", "row 1: a cell is too long"),
        ("a.csv", b"text,label,text\na,LOC,b\n", "header: column 'text' comes twice"),
        ("a.tsv", b"text\tlabel\na\tLOC\tmore\n", "row 1: more cells"),
        ("a.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("a.txt", b"a", "unknown format"),
    ],
)
def test_bad_files_are_named_with_their_row(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        TREC.load("train", tmp_path / name, 0)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


def test_missing_file_and_unknown_task():
    with pytest.raises(UserError, match="no such file"):
        read_rows(pathlib.Path("nowhere.jsonl"))
    with pytest.raises(UserError, match="unknown task 'x'"):
        get_task("x", None, "text", "label", "")
    with pytest.raises(UserError, match="--train-file"):
        get_task("text", None, "text", "label", "")


def test_a_task_from_a_file(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("sentence,mood\ngood,very_glad\nbad,sad\n")
    task = labelled_text(file, "sentence", "mood", "Mood?")
    assert task.labels == (("sad", "sad"), ("very_glad", "very_glad"))
    assert [e.label for e in task.load("train", file, 0)] == ["very_glad", "sad"]
    form = "Reply with one of these labels and nothing else: sad, very_glad."
    assert task.messages("hm")[0]["content"] == f"Mood? {form}\n\nhm"
    assert [task.parse(said) for said in ("very_glad", "Very glad.", "It is very glad")] == ["very_glad"] * 3
    file.write_text("sentence,mood\ngood,glad\n")
    with pytest.raises(UserError, match="one label only"):
        labelled_text(file, "sentence", "mood", "Mood?")


@pytest.mark.parametrize("task", ALL, ids=lambda t: type(t).__name__ + " " + t.name)
def test_prompts_hold_all_that_they_are_given(task):
    """Hints are in the request, nothing else changes, and no placeholder is left unfilled."""
    assert all(hasattr(task, member) for member in MEMBERS)
    example = example_of(task)
    plain = task.teacher_messages(example)
    told = task.teacher_messages(example, Hints("I say\n-17", ("An old one", "Another\nold one")))
    assert plain == task.teacher_messages(example, Hints())
    assert plain[:-1] == told[:-1]
    assert example.question.split("\n")[0] in plain[-1]["content"]
    for part in ("I say\n-17", "wrong", "- An old one", "- Another old one", "resemble none"):
        assert part in told[-1]["content"]
    assert "wrong" not in task.teacher_messages(example, Hints(earlier=("An old one",)))[-1]["content"]
    assert "(nothing)" in task.teacher_messages(example, Hints(wrong_answer=" "))[-1]["content"]
    again = task.rephrase_messages(example)[-1]["content"]
    assert task.write_example(example) in again
    assert "other words" in again
    for field in task.reply_fields:
        assert f"{field}:" in again
        assert f"{field}:" in "".join(message["content"] for message in plain)
    for messages in (plain, told, task.rephrase_messages(example), task.messages(example.question)):
        for message in messages:
            assert not re.search(r"[{}]|None", message["content"])


def test_requests_have_their_form():
    example = example_of(ARITHMETIC)
    request = similar_prompt(example.question, example.answer)
    assert ARITHMETIC.teacher_messages(example) == ({"role": "user", "content": request},)
    told = ARITHMETIC.teacher_messages(example, Hints("4"))[0]["content"]
    assert told.startswith(request + "\n")
    roles = [message["role"] for message in GSM8K.teacher_messages(example)]
    assert roles == ["system", "user", "assistant", "user"]
    shown = GSM8K.teacher_messages(example)
    assert GSM8K.parse_example(shown[2]["content"], example).refused is None
    assert (
        GSM8K.parse_example(shown[1]["content"].partition("\n")[2].partition("\n\n")[0], example).refused is None
    )


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("B. holding that", "B"),
        ("B - holding that", "B"),
        ("Answer: B", "B"),
        ("The answer is B because option C is too wide.", "B"),
        ("The correct option is (B)", "B"),
        (r"\boxed{B}", "B"),
        ("Option B", "B"),
        ("A court may do so", None),
        ("Option A or option B", None),
        ("F", None),
        ("", None),
    ],
)
def test_letters_are_read(said, letter):
    assert CASEHOLD.parse(said) == letter


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (("", ""), None),
        (("Option B: holding that 1", "Option B: B. holding that 9"), None),
        (("Option B: holding that 1", "Option B: Holding  that 0"), "options not all different"),
        (("Answer: C", "Answer: F"), "answer is not one of the letters"),
        (("<HOLDING>", "x"), "nothing left blank"),
        (("Option C: ", ""), "format"),
        (("Option C: holding that 2", "Option C:"), "format"),
    ],
)
def test_replies_with_options(change, refused):
    example = example_of(CASEHOLD)
    new = CASEHOLD.parse_example(CASEHOLD.write_example(example).replace(*change), example)
    assert new.refused == refused
    assert refused or "B. B." not in new.question


def test_the_only_label_of_a_sentence_counts_unless_it_is_a_word_like_any_other():
    yes_no = LabelledText(name="x", instruction="Well?", noun="text", labels=(("y", "yes"), ("n", "no")))
    assert yes_no.parse("I would say yes to that") == "yes"
    assert yes_no.parse("I would say yes or no") is None
    assert yes_no.parse("There is no doubt") is None
    same = LabelledText(name="x", instruction="Well?", noun="text", labels=(("C", "C"), ("C++", "C++")))
    assert same.parse("It is written in C++") is None
    assert same.parse("C++") == "C++"


def test_a_task_lists_its_labels_unless_there_are_too_many():
    for task in (TREC, SNIPS, SST2):
        (turn,) = task.messages("hm")
        assert ", ".join(task.choices) in turn["content"]
        assert [task.parse(choice) for choice in task.choices] == list(task.choices)
    assert MultipleChoice(name="x", instruction="", noun="", columns=(), count=3).choices == ("A", "B", "C")
    assert (ARITHMETIC.choices, GSM8K.choices, FREE.choices) == ((), (), ())
    labels = tuple((str(i), f"label {i}") for i in range(101))
    many = LabelledText(name="x", instruction="Which?", noun="text", labels=labels)
    assert many.choices == ()
    assert many.messages("hm")[0]["content"] == "Which?\n\nhm"


@pytest.mark.parametrize(
    ("reply", "left"),
    [
        ("plain `code` and ```x``` text", "plain `code` and ```x``` text"),
        ("<think>#### 5</think>The answer is 6", "The answer is 6"),
        ("so 5\n</think>\n\nThe answer is 6", "The answer is 6"),
        ("<think>#### 5, or is it", ""),
        ("it may be 5\n</thinking>\n#### 6", "#### 6"),
        ("<think>a</think> 6 <think>b", "6"),
        ("<seed:think>so <seed:cot_budget_reflect>5</seed:cot_budget_reflect></seed:think>6", "6"),
        ("[THINK]#### 5\n[/THINK]\n\n#### 6", "#### 6"),
        ("[THINK]#### 5, or is it", ""),
        ("Close a [THINK] with [/THINK].", "Close a [THINK] with [/THINK]."),
        (
            "<|channel|>analysis<|message|>#### 5?<|end|><|start|>assistant"
            "<|channel|>final<|message|>#### 6<|return|>",
            "#### 6",
        ),
        ("<|channel|>final <|constrain|>json<|message|>{}", "{}"),
        ("<|channel|>analysis<|message|>#### 5, or is it", ""),
        ("It opens with <|channel|>final<|message|>.", "It opens with <|channel|>final<|message|>."),
        ("analysisWe have 5.\nOr 6.assistantfinal#### 6", "#### 6"),
        ("analysisWe have #### 5, or", ""),
        ("analysis of the text: #### 6", "analysis of the text: #### 6"),
        ("```\nText: hm\nLabel: human\n```", "Text: hm\nLabel: human"),
        ("<think>x</think>\n```text\nhuman", "human"),
        ("```python\nx = 1\n```\nso 6", "```python\nx = 1\n```\nso 6"),
    ],
)
def test_drafts_and_fences_around_a_reply_are_left_out(reply, left):
    assert bare(reply) == left


# ---- what stands in front of a question

SHOTS = [
    Example(f"{group}{i}", f"{group} {i}?", f"it is {group}", group, group) for i in range(2) for group in "ab"
]


def test_a_system_text_and_examples_stand_in_front_of_a_question():
    task = asked(FREE, "Be brief.", SHOTS, 2)
    assert [(turn["role"], turn["content"]) for turn in task.messages("c?")] == [
        ("system", "Be brief."),
        ("user", "Reply in a word.\na 0?"),
        ("assistant", "it is a"),
        ("user", "Reply in a word.\nb 0?"),
        ("assistant", "it is b"),
        ("user", "Reply in a word.\nc?"),
    ]
    assert (task.name, task.parse("x."), task.answer_tokens) == (FREE.name, "x", FREE.answer_tokens)
    assert asked(FREE) is FREE


def test_an_example_is_not_shown_in_front_of_its_own_question():
    answers = lambda task, question: [t["content"] for t in task.messages(question) if t["role"] == "assistant"]
    first = [turn["content"] for turn in asked(FREE, "", SHOTS, 2).messages("a 0?")]
    assert first[0] == "Reply in a word.\na 1?"  # the other of its group
    assert answers(asked(FREE, "", SHOTS, 2), "a 0?") == ["it is a", "it is b"]
    assert answers(asked(FREE, "", SHOTS[:2], 2), "a 0?") == ["it is b"]  # where the group has no other


def test_a_system_text_of_the_tasks_own_is_joined_to_the_one_given():
    class Own(FreeAnswer):
        def messages(self, question):
            return ({"role": "system", "content": "Own."}, *super().messages(question))

    own = Own(name="own", instruction="Reply.")
    roles = [turn["role"] for turn in asked(own, "Given.", SHOTS, 1).messages("c?")]
    assert roles == ["system", "user", "assistant", "user"]
    assert asked(own, "Given.").messages("c?")[0]["content"] == "Given.\n\nOwn."
