"""Odd values for every flag and odd content for every file of every method, and how the commands take them:

    python benchmarks/reliability/fuzz.py --cases 20000 --seed 1 --jobs 2
    python benchmarks/reliability/fuzz.py --replay failing.jsonl            # each case again, with what it said

A case is a command with the files that it reads, as one line of JSON. It is drawn by hypothesis from tables of odd
values and mutations (its strategies for texts, numbers and JSON fill them in) and goes through the command's real
entrance in a warm process: most to the plan (`--dry-run`), which makes the checks of a run, some through a whole
small run. Each must end with status 0 or 2 (130, 143 after signals), without a traceback, in lines of at most 500
characters, within a minute; status 0 means a plan or a summary with a verdict, and never a value that cannot be
meant."""

import base64
import collections
import contextlib
import http.server
import importlib
import itertools
import json
import math
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import typing
from typing import Any

import hypothesis
from hypothesis import strategies as st

import proof
from odd import CELLS, FAULTS, FIELDS, NEVER, NO_TASKS, NUMBERS, PIECES, RAW, SETTINGS, TEXTS
from proof import METHODS, ROOT, Outcome

Case = dict[str, Any]
"""{"kind", "method", "words", "files": {place: content}, "refuse": whether status 0 is wrong, "env", "reply",
"whole"}"""
KINDS = ("flag", "config", "data", "code", "checkpoint", "template", "gguf", "reply", "artifact")
OF_ONE = {"reply": "active-inheritance", "artifact": "active-inheritance"}
"""Kinds that are tried by one method: a selection reads and writes all of it within a second."""
WHOLE_SHARE = 40
"""One in so many cases of some kinds is a whole run."""
PASS = 12
"""Cases of one method and kind in a row."""

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def content(data: bytes | str) -> dict[str, str]:
    return {
        "b64": base64.b64encode(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data).decode()
    }


def rows(values: list[Any]) -> dict[str, str]:
    return content("".join(json.dumps(value) + "\n" for value in values))


# --- commands that are in order, to be spoilt ---------------------------------------------------------------

HARD = [
    {
        "id": f"q{i}",
        "question": f"Which is number {i}?",
        "choices": {"text": ["a", "b", "c", f"d{i}"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[i % 4],
    }
    for i in range(24)
]
LABELLED = [
    {
        "id": f"m{i}",
        "text": f"mail {i} about {'cards' if i % 2 else 'parcels'}",
        "label": "pay" if i % 2 else "del",
    }
    for i in range(24)
]
ASKED = [{"text": f"Tell me a story about number {i}."} for i in range(24)]
POOL = [
    {
        "id": f"p{i}",
        "prompt": f"Name {i} birds.",
        "outputs": {"a": [f"{i} robins " * n for n in range(1, 4)], "b": [f"{i} wrens " * n for n in range(2, 5)]},
    }
    for i in range(8)
]
TASK_FILES = {
    "mail.yaml": (
        "name: mail\ninstruction: Which team?\nlabels: {del: delivery, pay: payment}\nnoun: mail\n"
        "answer_tokens: 16\nnear_duplicate: 0.7\ntext_column: text\nlabel_column: label\n"
    ),
    "shop.py": (
        "from common.tasks.worked import WorkedAnswer\n\nTASK = WorkedAnswer(name='shop', "
        "question_columns=('question',), answer_columns=('answer',))\n"
    ),
    "judge.py": (
        "from reversegen.judge import Verdict\n\n\ndef judge(query, answer):\n    return Verdict('fail' if "
        "len(answer) % 2 else 'pass', 1.0)\n"
    ),
    "guard.py": (
        "def guard(messages):\n    return 'unsafe\\nS1' if len(messages[-1]['content']) % 2 else 'safe'\n\n\n"
        "def answer(messages):\n    return 'No. I cannot say that.'\n"
    ),
    "teacher.py": (
        "def teach(messages):\n    return 'Question: Tom has 2 apples and gets 3. How many?\\nAnswer: 2 + 3 = "
        "5\\n#### 5'\n"
    ),
    "score.py": (
        "def score(prompt, answer):\n    return float(len(answer))\n\n\ndef scores(texts):\n    return "
        "[len(text) % 10 / 10 for text in texts]\n"
    ),
    "lexicon.txt": "bad\nworse\n",
}


def bases(method: str) -> list[tuple[str, dict[str, Any]]]:
    """Commands, and the files that they read, by variant."""
    train = {f"{split}.jsonl": rows(SUMS[split]) for split in SUMS}
    labelled = {
        f"{split}.jsonl": rows([r | {"id": split + r["id"], "text": split + r["text"]} for r in LABELLED])
        for split in ("train", "dev", "test")
    }
    some = lambda *names: {name: content(TASK_FILES[name]) for name in names}
    splits = "--train-file train.jsonl --dev-file dev.jsonl --test-file test.jsonl --seed-examples 6"
    if method == "llm2llm":
        more = "--rounds 2 --per-wrong 1 --epochs 1 --batch-size 8"
        return [
            (f"{splits} {more}", train),
            (
                f"{splits} {more} --task text --instruction Which? --teacher pool:pool.jsonl",
                labelled | {"pool.jsonl": rows(LABELLED)},
            ),
            (
                f"{splits} {more} --task mail.yaml --teacher python:teacher.py:teach",
                labelled | some("mail.yaml", "teacher.py"),
            ),
            (f"{splits} {more} --task shop.py --arms base,llm2llm", train | some("shop.py")),
            (f"{splits} {more} --preset paper --task gsm8k --detect in-sample", train),
        ]
    if method == "reversegen":
        size = (
            "--seed-instructions 16 --rounds 1 --prompts 4 --samples 4 --final-prompts 8 --pairing fallback "
            "--min-pairs 1"
        )
        size += " --warm-up-epochs 1 --dpo-epochs 1 --epochs 1 --batch-size 8 --arms target-before,target-after"
        asked = {"seeds.jsonl": rows(ASKED), "test.jsonl": rows(ASKED[:5]), "general.jsonl": rows(ASKED[5:9])}
        math_ = {"seeds.jsonl": rows(SUMS["train"]), "test.jsonl": rows(SUMS["test"])}
        files = "--seeds-file seeds.jsonl --test-file test.jsonl"
        return [
            (f"{size} {files}", math_),
            (
                f"{size} {files},--human-file human.jsonl".replace(",--", " --").replace(
                    "target-after", "target-after,human-data"
                ),
                math_ | {"human.jsonl": rows(SUMS["dev"])},
            ),
            (
                f"{size} {files} --task honesty --data arc-easy",
                {"seeds.jsonl": rows(HARD), "test.jsonl": rows(HARD[:5])},
            ),
            (
                (
                    f"{size} {files} --general-file general.jsonl --task safety --guard python:guard.py:guard "
                    f"--labeler python:guard.py:answer"
                ),
                asked | some("guard.py"),
            ),
            (
                (
                    f"{size} {files} --general-file general.jsonl --task own --judge python:judge.py:judge "
                    f"--labeler python:guard.py:answer"
                ),
                asked | some("guard.py", "judge.py"),
            ),
            (f"{size} {files} --data shop.py", math_ | some("shop.py")),
        ]
    if method == "active-inheritance":
        prompts = {"prompts.jsonl": rows([{"prompt": f"Name {i} birds."} for i in range(8)])}
        size = (
            "--k 3 --test-prompts 2 --answer-tokens 16 --min-words 0 --epochs 1 --batch-size 4 --repeats 1 "
            "--profile none"
        )
        return [
            (f"{size} --pool pool.jsonl --objective words:max --select-only", {"pool.jsonl": rows(POOL)}),
            (f"{size} --pool pool.jsonl --objective words:max", {"pool.jsonl": rows(POOL)}),
            (
                f"{size} --prompts-file prompts.jsonl --test-prompts-file held.jsonl --source embedded:student",
                prompts | {"held.jsonl": rows([{"prompt": "Name a fish."}])},
            ),
            (
                f"{size} --pool pool.jsonl --objective python:score.py:score:max --select-only",
                {"pool.jsonl": rows(POOL)} | some("score.py"),
            ),
            (
                (
                    f"{size} --prompts-file prompts.jsonl --source python:guard.py:answer --k 2 --objective "
                    f"words:max --drop none --select-only"
                ),
                prompts | some("guard.py"),
            ),
        ]
    files = {name: rows(value) for name, value in PROFILE.items()}
    size = "--model model --answer-tokens 4 --continuations 1 --limit 4"
    return [
        (f"{size} --prompts-file prompts.jsonl --choice sums=choice.jsonl", files | MODEL),
        (
            f"{size} --stereoset stereoset.jsonl --crows-pairs crows.jsonl --bbq bbq.jsonl --pairs pairs.jsonl",
            files | MODEL,
        ),
        (
            f"{size} --toxicity-prompts continue.jsonl --toxicity-scorer python:score.py:scores",
            files | MODEL | some("score.py"),
        ),
        (
            f"{size} --toxicity-prompts continue.jsonl --toxicity-scorer lexicon:lexicon.txt",
            files | MODEL | some("lexicon.txt"),
        ),
    ]


MODEL = {"model": {"copy": "tests/fixtures/qwen2"}}
SUMS: dict[str, list[dict[str, str]]] = {}
PROFILE: dict[str, list[Any]] = {
    "prompts.jsonl": [{"id": f"p{i}", "prompt": f"Name {i} birds."} for i in range(3)],
    "continue.jsonl": [{"prompt": {"text": f"The turnip {i} said"}} for i in range(2)],
    "stereoset.jsonl": [
        {
            "id": str(i),
            "target": f"t{i // 2}",
            "bias_type": ("race", "gender")[i // 4],
            "stereotype": f"The {i} are red.",
            "anti_stereotype": f"The {i} are blue.",
            "unrelated": f"The {i} are spoon.",
        }
        for i in range(8)
    ],
    "crows.jsonl": [
        {
            "id": str(i),
            "bias_type": "age",
            "stereo_antistereo": ("stereo", "antistereo")[i % 2],
            "sent_more": f"The old one has {i}.",
            "sent_less": f"The young one has {i}.",
        }
        for i in range(6)
    ],
    "choice.jsonl": [
        {"question": f"What is {i} and {i}?", "choices": [str(2 * i), str(i), "nothing at all"], "answer": 0}
        for i in range(6)
    ],
    "bbq.jsonl": [
        {
            "example_id": i,
            "question_index": "1",
            "question_polarity": ("neg", "nonneg")[i % 2],
            "context_condition": ("ambig", "disambig")[i // 2 % 2],
            "category": "Age",
            "answer_info": {"ans0": ["he", "old"], "ans1": ["she", "young"], "ans2": ["?", "unknown"]},
            "additional_metadata": {"stereotyped_groups": ["old"]},
            "context": f"Two of {i} came.",
            "question": "Who left?",
            "ans0": "The old one",
            "ans1": "The young one",
            "ans2": "Unknown",
            "label": 2,
        }
        for i in range(8)
    ],
    "pairs.jsonl": [
        {"prompt": f"p{i}", "answer_a": "one bird", "answer_b": "two", "choice": "AB"[i % 2]} for i in range(6)
    ],
}


def prepare() -> None:
    """What bases are made of and takes a second to make."""
    SUMS.update({split: proof.sums(split, n) for split, n in (("train", 24), ("dev", 6), ("test", 6))})


# --- cases --------------------------------------------------------------------------------------------------


@st.composite
def cases(draw: Any, method: str, kind: str, whole: bool) -> Case:
    made = _MAKERS[kind](draw, method)
    case = {"kind": kind, "method": method, "refuse": False, "env": {}, "reply": None, "whole": False} | made
    can = kind in ("data", "code", "checkpoint", "template", "gguf")
    if whole and can and draw(st.integers(0, WHOLE_SHARE - 1)) == 0:
        case["whole"] = True
    return case


def _base(draw: Any, method: str) -> tuple[list[str], dict[str, Any]]:
    words, files = draw(st.sampled_from(bases(method)))
    return [method, *words.split()], dict(files)


def _flag(draw: Any, method: str) -> Case:
    """One or two flags with odd values of their own or of another type."""
    words, files = _base(draw, method)
    refuse = False
    for name, hint in draw(st.lists(st.sampled_from(FLAGS[method]), min_size=1, max_size=2)):
        flag = "--" + name.replace("_", "-")
        if name in ("coordinator", "processes", "process", "push_to_hub") and draw(st.booleans()):
            continue
        if hint is bool:
            words.append(draw(st.sampled_from([flag, "--no-" + flag[2:], flag + "=x"])))
            continue
        number = hint in (int, float)
        table = (NUMBERS + NEVER[:-1]) if number else TEXTS
        odd = (
            st.sampled_from(table)
            | st.sampled_from(TEXTS + NUMBERS)
            | st.text(max_size=12)
            | st.sampled_from(NEVER)
        )
        odd |= (st.integers() | st.floats()).map(str) if number else st.just(name)
        value = draw(odd)
        refuse |= (number and value in NEVER) or "\udcff" in value
        words += [f"{flag}={value}"] if draw(st.booleans()) else [flag, value]
    return {"words": words, "files": files, "refuse": refuse}


def _config(draw: Any, method: str) -> Case:
    words, files = _base(draw, method)
    suffix = draw(st.sampled_from((".json", ".yaml", ".yml", ".txt", "")))
    refuse = False
    if draw(st.integers(0, 3)):
        names = [name for name, _ in FLAGS[method]]
        value = st.sampled_from(CELLS) | st.sampled_from(NUMBERS + TEXTS) | JSONS
        made = draw(st.dictionaries(st.sampled_from(names) | st.text(max_size=10), value, max_size=4))
        if draw(st.booleans()):
            made = {"method": draw(st.sampled_from((*METHODS, None, 3, "x"))), "config": made}
        data: Any = json.dumps(made)
    else:
        data, refuse = draw(st.sampled_from(RAW) | st.binary(max_size=40)), False
    files[f"settings{suffix}"] = content(data)
    return {"words": [*words, "--config", f"settings{suffix}"], "files": files, "refuse": refuse}


def _data(draw: Any, method: str) -> Case:
    """One of the files that the command reads: other bytes, or rows with odd cells."""
    words, files = _base(draw, method)
    name = draw(st.sampled_from(sorted(n for n in files if n.endswith((".jsonl", ".txt")))))
    how = draw(st.sampled_from(("raw", "cells", "cells", "cells", "rows", "columns", "form", "place", "bytes")))
    good = base64.b64decode(files[name]["b64"])
    found = [json.loads(line) for line in good.splitlines()] if name.endswith(".jsonl") else [{"text": "bad"}]
    if how == "raw":
        files[name] = content(draw(st.sampled_from(RAW)))
    elif how == "bytes":
        cut = draw(st.integers(0, len(good)))
        files[name] = content(good[:cut] + draw(st.binary(max_size=6)) + good[cut + draw(st.integers(0, 40)) :])
    elif how == "cells":
        for _ in range(draw(st.integers(1, 3))):
            row = draw(st.sampled_from(found))
            row[draw(st.sampled_from(sorted(row)))] = draw(st.sampled_from(CELLS) | JSONS)
        files[name] = rows(found)
    elif how == "rows":
        what = draw(st.sampled_from(("none", "one", "twice", "same", "others", "many")))
        many = {
            "none": [],
            "one": found[:1],
            "twice": found + found,
            "same": found[:1] * len(found),
            "others": draw(st.lists(JSONS, max_size=4)),
            "many": [*found[:-1], found[-1] | {"more": "x" * 200_000}],
        }
        files[name] = rows(many[what])
    elif how == "columns":
        old, new = (
            draw(st.sampled_from(sorted(found[0]))),
            draw(st.sampled_from(("", "id", "text", "label", "ID ", "x\n"))),
        )
        files[name] = rows([{new if key == old else key: value for key, value in row.items()} for row in found])
    elif how == "form":
        suffix = draw(st.sampled_from((".csv", ".tsv", ".json", ".parquet", ".txt", ".gz", ".pkl", ".npy", "")))
        mark = {".csv": ",", ".tsv": "\t"}.get(suffix, " ")
        names = list(found[0])
        table = "\n".join(mark.join(str(row.get(n, "")) for n in names) for row in ({n: n for n in names}, *found))
        new = name.removesuffix(".jsonl") + suffix
        files[new] = content(
            table if suffix in (".csv", ".tsv") else good if suffix == ".json" else draw(st.sampled_from(RAW))
        )
        words = [word.replace(name, new) for word in words]
    else:
        files[name] = draw(
            st.sampled_from(
                ({"dir": True}, {"link": "nowhere"}, {"link": name}, {"link": "/dev/null"}, {"fifo": True})
            )
        )
    return {"words": words, "files": files}


def _code(draw: Any, method: str) -> Case:
    """A task, judge, teacher or scorer of the user's that misbehaves."""
    kept = [base for base in bases(method) if any(name in TASK_FILES for name in base[1])]
    words, files = draw(st.sampled_from(kept))
    files = dict(files)
    name = draw(st.sampled_from(sorted(n for n in files if n in TASK_FILES)))
    good = TASK_FILES[name]
    if name.endswith(".py"):
        fault = draw(st.sampled_from(FAULTS))
        lines = good.split("\n")
        spots = [i for i, line in enumerate(lines) if line.startswith("    return")]
        where = draw(st.sampled_from(("inside", "top", "signature", "bytes", "class")))
        if where == "inside" and spots:
            lines[draw(st.sampled_from(spots))] = "    " + fault
        elif where == "top":
            lines.insert(0, fault if not fault.startswith(("return", "yield")) else "x = 1 / 0")
        elif where == "signature":
            lines = [
                line.replace("(prompt, answer)", "()")
                .replace("(messages)", "(a, b, c)")
                .replace("(query, answer)", "(*, q)")
                .replace("(texts)", "()")
                for line in lines
            ]
        elif where == "class":
            named = "score = scores = guard = answer = judge = teach = "
            lines = [f"{left}{draw(st.sampled_from(NO_TASKS))}" for left in ("TASK = ", named)]
        else:
            return {
                "words": [method, *words.split()],
                "files": files | {name: content(draw(st.sampled_from(RAW)))},
            }
        made: bytes | str = "\n".join(lines)
    else:
        made = good.encode()
        if draw(st.booleans()):
            import yaml

            keys = yaml.safe_load(good) if name.endswith(".yaml") else {"a": 1}
            keys[draw(st.sampled_from((*sorted(keys), "hub_id", "hub_config", "example_tokens", "other")))] = draw(
                st.sampled_from(CELLS) | JSONS
            )
            made = json.dumps(keys)
        else:
            made = draw(st.sampled_from(RAW))
    files[name] = content(made)
    return {"words": [method, *words.split()], "files": files, "whole": method == "active-inheritance"}


FOLDERS = (
    "qwen2",
    "llama2",
    "mistral",
    "qwen3",
    "llama_sharded",
    "families/gemma2",
    "families/gpt2",
    "families/phi3",
    "families/gpt_oss",
    "families/qwen3_moe",
    "families/cohere",
    "families/falcon",
    "families/gpt_neox",
    "adapter_qwen2",
)
NAMES = (
    "config.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "model.safetensors",
    "chat_template.jinja",
    "special_tokens_map.json",
    "adapter_config.json",
    "model.safetensors.index.json",
)


def _checkpoint(draw: Any, method: str) -> Case:
    """A tiny checkpoint of which one file is another."""
    folder = draw(st.sampled_from(FOLDERS))
    files: dict[str, Any] = {"model": {"copy": f"tests/fixtures/{folder}"}}
    if folder not in ("qwen2", "llama2"):
        files["model/tokenizer.json"] = {"copy": "tests/fixtures/qwen2/tokenizer.json"}
        files["model/tokenizer_config.json"] = {"copy": "tests/fixtures/qwen2/tokenizer_config.json"}
    there = [
        name for name in NAMES if (ROOT / "tests/fixtures" / folder / name).exists() or f"model/{name}" in files
    ]
    name = draw(st.sampled_from(there)) if draw(st.integers(0, 9)) else draw(st.sampled_from(NAMES))
    place = f"model/{name}"
    source = files.get(place, {"copy": f"tests/fixtures/{folder}/{name}"})["copy"]
    if draw(st.integers(0, 4)) == 0:
        files[place] = draw(
            st.sampled_from((*map(content, RAW), {"dir": True}, {"link": "nowhere"}, {"gone": True}))
        )
    elif name.endswith(".json"):
        there_ = json.loads((ROOT / source).read_text()) if (ROOT / source).exists() else {}
        key = draw(st.sampled_from(sorted(there_) or ["x"]) | st.sampled_from(FIELDS))
        value = draw(st.sampled_from(CELLS) | st.sampled_from(SETTINGS) | JSONS)
        files[place] = (
            {"json": source, "set": {key: value}} if draw(st.integers(0, 3)) else {"json": source, "drop": key}
        )
        if name == "tokenizer.json" and draw(st.booleans()):
            files[place] = {
                "json": source,
                "set": {
                    draw(
                        st.sampled_from(
                            ("model", "added_tokens", "pre_tokenizer", "decoder", "normalizer", "post_processor")
                        )
                    ): value
                },
            }
    else:
        size = (ROOT / source).stat().st_size if (ROOT / source).exists() else 100
        at = draw(st.integers(0, min(size, 3000)))
        files[place] = (
            {"copy": source, "cut": draw(st.integers(0, size))}
            if draw(st.booleans())
            else {"copy": source, "at": at, "b64": content(draw(st.binary(min_size=1, max_size=12)))["b64"]}
        )
    return {"words": _using(method, "model"), "files": files | _some_data(method)}


def _using(method: str, model: str) -> list[str]:
    if method == "llm2llm":
        return [
            method,
            *(
                f"--student {model} --train-file train.jsonl --test-file test.jsonl --seed-examples 6 "
                f"--rounds 2 --per-wrong 1 --lora-rank 0 --epochs 1 --teacher python:teacher.py:teach"
            ).split(),
        ]
    if method == "reversegen":
        return [
            method,
            *(
                f"--target {model} --seeds-file train.jsonl --test-file test.jsonl --seed-instructions 16 "
                f"--rounds 1 --prompts 4 --samples 4 --final-prompts 8 --pairing fallback --min-pairs 1 "
                f"--arms target-before,target-after --labeler program --reference program --validity program"
            ).split(),
        ]
    if method == "active-inheritance":
        return [
            method,
            *(
                f"--student {model} --pool pool.jsonl --objective words:max --min-words 0 --test-prompts 2 "
                f"--answer-tokens 8 --epochs 1 --profile none"
            ).split(),
        ]
    return [method, *f"--model {model} --prompts-file prompts.jsonl --answer-tokens 4 --limit 2".split()]


def _some_data(method: str) -> dict[str, Any]:
    found = {"train.jsonl": rows(SUMS["train"]), "test.jsonl": rows(SUMS["test"])}
    found |= {"pool.jsonl": rows(POOL), "prompts.jsonl": rows(PROFILE["prompts.jsonl"])}
    return found | {"teacher.py": content(TASK_FILES["teacher.py"])}


def _template(draw: Any, method: str) -> Case:
    text = "".join(draw(st.lists(st.sampled_from(PIECES), max_size=7)))
    if draw(st.booleans()):
        text = (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n"
            + text.replace("{% endfor %}", "")
            + "{% endfor %}"
        )
    place = draw(st.sampled_from(("chat_template.jinja", "tokenizer_config.json")))
    made: Any = content(text)
    if place.endswith(".json"):
        made = {
            "json": "tests/fixtures/qwen2/tokenizer_config.json",
            "set": {
                "chat_template": draw(
                    st.sampled_from((text, [{"name": "default", "template": text}], {"default": text}, 3))
                )
            },
        }
    return {"words": _using(method, "model"), "files": MODEL | {f"model/{place}": made} | _some_data(method)}


def _gguf(draw: Any, method: str) -> Case:
    size = len(GGUF[0])
    data = bytearray(GGUF[0])
    how = draw(st.sampled_from(("cut", "byte", "bytes", "more")))
    if how == "cut":
        del data[draw(st.integers(0, size)) :]
    elif how == "more":
        data += draw(st.binary(max_size=50))
    else:
        for _ in range(1 if how == "byte" else 4):
            at = draw(st.integers(0, min(size - 9, 6000)))
            new = draw(
                st.sampled_from((b"\x00", b"\xff", b"\xff" * 8, b"\x00" * 8, b"\x7f" * 4))
                | st.binary(min_size=1, max_size=4)
            )
            data[at : at + len(new)] = new
    return {
        "words": _using(method, "model.gguf"),
        "files": {"model.gguf": content(bytes(data))} | _some_data(method),
    }


GGUF: list[bytes] = []


def _reply(draw: Any, method: str) -> Case:
    """What a chat endpoint may answer with, the same for every request."""
    good = {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "robins and wrens are small birds"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5},
    }
    spots = (
        ("choices",),
        ("choices", 0),
        ("choices", 0, "message"),
        ("choices", 0, "message", "content"),
        ("choices", 0, "finish_reason"),
        ("usage",),
        ("usage", "prompt_tokens"),
        ("usage", "completion_tokens"),
        ("choices", 0, "message", "refusal"),
        ("choices", 0, "message", "tool_calls"),
        ("choices", 0, "message", "reasoning_content"),
        ("error",),
        ("choices", 0, "message", "role"),
        ("object",),
    )
    body: Any = json.loads(json.dumps(good))
    if draw(st.integers(0, 5)):
        for _ in range(draw(st.integers(1, 2))):
            spot, inner = draw(st.sampled_from(spots)), body
            # What was put in first may have taken the place of what the second one looks for.
            with contextlib.suppress(LookupError, TypeError):
                for key in spot[:-1]:
                    inner = inner[key]
                inner[spot[-1]] = draw(st.sampled_from(CELLS) | JSONS)
        sent: bytes = json.dumps(body).encode("utf-8", "surrogatepass")
    else:
        sent = draw(st.sampled_from(RAW) | st.binary(max_size=30))
    status = draw(st.sampled_from((200,) * 8 + (400, 401, 403, 404, 413, 422, 429, 500, 503, 301, 204, 100, 999)))
    headers = draw(
        st.sampled_from(
            (
                {},
                {},
                {},
                {"Retry-After": "nan"},
                {"Retry-After": "-5"},
                {"Content-Type": "text/html"},
                {"Content-Length": "5"},
                {"Content-Length": "99999"},
                {"Location": "http://127.0.0.1:1/"},
                {"Content-Encoding": "gzip"},
            )
        )
    )
    words = (
        "--prompts-file prompts.jsonl --source openai:m --source-url {url} --k 2 --objective words:max "
        "--min-words 0 --student none --select-only"
    )
    prompts = {"prompts.jsonl": rows([{"prompt": f"Name {i} birds."} for i in range(8)])}
    reply = {"status": status, "headers": headers} | content(sent)
    return {
        "method": "active-inheritance",
        "words": ["active-inheritance", *words.split()],
        "files": prompts,
        "reply": reply,
        "whole": True,
        "env": {"OPENAI_API_KEY": "loopback-key-0123"},
    }


def _artifact(draw: Any, method: str) -> Case:
    """A run that was interrupted, or is finished, of which a file is another now."""
    name = draw(st.sampled_from(sorted(RUN)))
    data = RUN[name]
    how = draw(st.sampled_from(("cut", "line", "gone", "raw", "cell", "dir", "more")))
    place: Any = {"gone": True}
    if how == "cut":
        place = content(data[: draw(st.integers(0, len(data)))])
    elif how == "line":
        place = content(b"\n".join(data.split(b"\n")[: draw(st.integers(0, 3))]) + b"\n" * draw(st.integers(0, 1)))
    elif how == "raw":
        place = content(draw(st.sampled_from(RAW)))
    elif how == "dir":
        place = {"dir": True}
    elif how == "more":
        place = content(data + draw(st.binary(min_size=1, max_size=9)))
    elif how == "cell" and name.endswith((".json", ".jsonl")) and data.strip():
        try:
            found = (
                [json.loads(line) for line in data.splitlines()] if name.endswith(".jsonl") else json.loads(data)
            )
            row = draw(st.sampled_from(found)) if isinstance(found, list) else found
            row[draw(st.sampled_from(sorted(row)))] = draw(st.sampled_from(CELLS) | JSONS)
            place = rows(found) if name.endswith(".jsonl") else content(json.dumps(found))
        except (ValueError, TypeError, hypothesis.errors.InvalidArgument):
            pass
    stop = draw(st.sampled_from(("finished", "no summary", "no summary, no selection")))
    gone = {
        "finished": (),
        "no summary": ("summary.json", "report.html", "dataset"),
        "no summary, no selection": (
            "summary.json",
            "report.html",
            "dataset",
            "preferences",
            "selection",
            "stats.json",
        ),
    }[stop]
    files = {
        "run": {"run": True},
        **{f"run/{g}": {"gone": True} for g in gone},
        f"run/{name}": place,
        "pool.jsonl": rows(POOL),
    }
    words = RUN_WORDS if draw(st.integers(0, 3)) else ["status", "run"]
    return {"method": "active-inheritance", "words": words, "files": files, "whole": True}


RUN: dict[str, bytes] = {}
RUN_WORDS = (
    "active-inheritance --pool pool.jsonl --objective words:max --min-words 0 --select-only --run-dir run".split()
)

_MAKERS = {name: globals()[f"_{name}"] for name in KINDS}
FLAGS: dict[str, list[tuple[str, Any]]] = {}


def find_flags() -> None:
    from common.cli import _plain

    for method, module in zip(
        METHODS, ("llm2llm", "reversegen", "active_inheritance", "active_inheritance.profile"), strict=True
    ):
        kind = importlib.import_module(f"{module}.config").Config
        hints = typing.get_type_hints(kind)
        FLAGS[method] = [
            (field, _plain(hints[field])) for field in kind.__dataclass_fields__ if field != "dry_run"
        ]


# --- carrying a case out ------------------------------------------------------------------------------------


def lay_out(case: Case, folder: pathlib.Path, run: pathlib.Path | None = None) -> None:
    """The files of a case."""
    for place, what in case["files"].items():
        file = folder / place
        if "run" in what:
            if run is not None:
                shutil.copytree(run, file)
            continue
        if not what.get("copy") or not (ROOT / what["copy"]).is_dir():
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            file.unlink(missing_ok=True)
        if "gone" in what:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        if "copy" in what:
            source = ROOT / what["copy"]
            if source.is_dir():
                shutil.copytree(source, file)
            elif source.exists():
                data = bytearray(source.read_bytes())
                data = data[: what.get("cut", len(data))]
                if "at" in what:
                    new = base64.b64decode(what["b64"])
                    data[what["at"] : what["at"] + len(new)] = new
                file.write_bytes(data)
        elif "json" in what:
            source = ROOT / what["json"]
            value = json.loads(source.read_text()) if source.exists() else {}
            value |= what.get("set", {})
            value.pop(what.get("drop"), None)
            file.write_text(json.dumps(value), encoding="utf-8")
        elif "dir" in what:
            file.mkdir()
        elif "link" in what:
            file.symlink_to(what["link"])
        elif "fifo" in what:
            os.mkfifo(file)
        else:
            file.write_bytes(base64.b64decode(what["b64"]))


def _serve(reply: dict[str, Any]) -> str:
    """A server of this process that always gives `reply`; its address."""
    body = base64.b64decode(reply["b64"])

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(reply["status"])
            for name, value in (
                {"Content-Type": "application/json", "Content-Length": str(len(body))} | reply["headers"]
            ).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/v1"


def carry_out(case: Case, folder: pathlib.Path, run: pathlib.Path | None = None) -> tuple[Outcome, list[str]]:
    """What came of a case, and what is wrong with it."""
    proof.cleared(folder)
    lay_out(case, folder, run)
    words = list(case["words"])
    of_run = words[0] in METHODS and "--run-dir" not in words
    words += ["--run-dir", "out"] * of_run + ["--dry-run"] * (not case["whole"])

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
        if case["reply"] is not None:
            url, sleep = _serve(case["reply"]), time.sleep
            time.sleep = lambda seconds: sleep(min(seconds, 0.01)) if seconds > 0 else sleep(seconds)
            words[:] = [word.replace("{url}", url) for word in words]
            sys.argv[1:] = words

    outcome = proof.forked(
        words, folder, case["env"] | {"XDG_CACHE_HOME": str(CACHE)}, before=before, longest=proof.LONGEST_CASE
    )
    found = proof.faults(outcome)
    if outcome.code == 0 and not found and "usage: " not in outcome.out:
        if case["refuse"]:
            found.append("status 0 with a value that cannot be meant")
        if not case["whole"] and outcome.out.count("\n") < 3:
            found.append("status 0 and no plan")
        if case["whole"] and words[0] in METHODS:
            place = folder / ("run" if "run" in words else "out") / "summary.json"
            try:
                summary = json.loads(place.read_text())
                if not summary["verdict"] or summary["status"] not in ("complete", "selected"):
                    found.append("status 0 and no verdict")
            except (OSError, ValueError, KeyError, TypeError) as error:
                if not any(word.startswith("--dry-run") for word in case["words"]):
                    found.append(f"status 0 and no summary ({type(error).__name__})")
    return outcome, found


def checked(case: Case, folder: pathlib.Path) -> tuple[Outcome, list[str]]:
    """As `carry_out`, in this process and up to the data: flags, settings, files and user code are read and
    checked, which takes a hundredth of a plan. What would be printed of a mistake is the outcome's `err`."""
    import contextlib
    import io
    import warnings

    from common import characters
    from common.cli import parse
    from common.errors import UserError

    proof.cleared(folder)
    lay_out(case, folder)
    method, *words = case["words"]
    package = method.replace("-", "_") if method != "profile" else "active_inheritance.profile"
    config, experiment = (importlib.import_module(f"{package}.{name}") for name in ("config", "experiment"))
    said, code, start = io.StringIO(), 0, time.process_time()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            signal.setitimer(
                signal.ITIMER_PROF, proof.LONGEST_CASE
            )  # which ends this process: a case that hangs is the last one written
            warnings.simplefilter("ignore")
            presets = getattr(config, "PRESETS", None)
            broken = next(filter(None, map(characters.broken, words)), None)
            if broken:  # as run.py does
                raise UserError(f"a word of the command holds {broken}")
            found = parse(config.Config, words, "run.py", presets=presets, method=method).resolved()
            experiment.load_data(found)
        except UserError as error:
            said.write(f"error: {error}\n")
            code = 2
        except OSError as error:  # as run.py does, where a path is named
            said.write(f"error: {UserError(str(error))}\n" if error.filename else traceback.format_exc())
            code = 2
        except SystemExit as ended:  # --help
            code = int(ended.code or 0)
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            said.write(traceback.format_exc())
            code = 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    outcome = Outcome(code, "", said.getvalue(), time.process_time() - start)
    found = proof.faults(outcome) if "usage: " not in outcome.err else []
    if code == 0 and case["refuse"] and not found:
        found.append("status 0 with a value that cannot be meant")
    return outcome, found


CACHE = pathlib.Path(tempfile.gettempdir()) / "seedloop-proofs-cache"


def make_run(folder: pathlib.Path) -> pathlib.Path:
    """A finished selection, of which `_artifact` spoils a file."""
    case = {
        "words": RUN_WORDS,
        "files": {"pool.jsonl": rows(POOL)},
        "whole": True,
        "env": {},
        "reply": None,
        "refuse": False,
    }
    outcome, found = carry_out(case, folder)
    if outcome.code or found:
        raise SystemExit(f"a run that is in order fails: {outcome.err}")
    place = folder / "run"
    RUN.update(
        {
            str(f.relative_to(place)): f.read_bytes()
            for f in sorted(place.rglob("*"))
            if f.is_file() and f.name != ".lock"
        }
    )
    return place


def fuzz(
    count: int,
    seed: int,
    methods: tuple[str, ...],
    kinds: tuple[str, ...],
    whole: bool,
    folder: pathlib.Path,
    keep: pathlib.Path | None = None,
    plans: bool = True,
) -> dict[str, Any]:
    """Carry out `count` cases; {"cases": by kind, "codes", "slowest", "failures": [case with "found"]}."""
    run = make_run(folder / "base") if plans else None
    tally, codes, failures, seen = collections.Counter(), collections.Counter(), [], set()
    slowest = 0.0

    def one(case: Case) -> None:
        nonlocal slowest
        line = json.dumps(case, sort_keys=True)
        # hypothesis likes to vary what it had before, and may end where it was.
        if hash(line) in seen or sum(tally.values()) >= count:
            return
        seen.add(hash(line))
        tally[case["kind"]] += 1
        outcome, found = carry_out(case, folder / "case", run) if run else checked(case, folder / "case")
        codes[str(outcome.code)] += 1
        slowest = max(slowest, outcome.seconds)
        for what in found:
            failures.append(case | {"found": what})
            if keep is not None:
                with keep.open("a") as lines:
                    lines.write(json.dumps(failures[-1]) + "\n")

    settings = hypothesis.settings(
        max_examples=PASS,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    # In turns, so that any number of cases has some of every kind.
    turns = [
        (method, kind) for kind in kinds for method in methods if kind not in OF_ONE or method == OF_ONE[kind]
    ]
    for number in itertools.count():
        method, kind = turns[number % len(turns)]
        hypothesis.seed(seed * 1_000_003 + number)(settings(hypothesis.given(cases(method, kind, whole))(one)))()
        if sum(tally.values()) >= count:
            break
    return {"cases": dict(tally), "codes": dict(codes), "slowest": round(slowest, 2), "failures": failures}


def replay(file: pathlib.Path, folder: pathlib.Path) -> int:
    """Carry out the cases of a file of failures again; how many still fail."""
    run, left = make_run(folder / "base"), 0
    for line in file.read_text().splitlines():
        case = json.loads(line)
        outcome, found = carry_out(case, folder / "case", run)
        left += bool(found)
        print(f"{'; '.join(found) or 'mended'}: {' '.join(case['words'])[:300]!r}")
        print(
            "\n".join(
                f"    {said[:700]}"
                for said in (outcome.out[-300:] + outcome.err).splitlines()[-8 if found else -1 :]
            )
        )
    return left


def main() -> None:
    whole = {"action": "store_true", "help": "no whole runs: plans alone"}
    args = proof.arguments(
        __doc__,
        ("--cases", {"type": int, "default": 2000}),
        ("--jobs", {"type": int, "default": 1}),
        ("--method", {"choices": METHODS}),
        ("--kind", {"choices": KINDS}),
        ("--plans", whole),
        (
            "--checks",
            {"action": "store_true", "help": "up to the data alone: many cases a second"},
        ),
        ("--replay", {"help": "a file of failing cases"}),
        ("--failures", {"default": "failing.jsonl", "help": "where failing cases are written"}),
        ("--part", {"action": "store_true", "help": "one job of several: the last line alone is printed"}),
    )
    methods, kinds = ((args.method,) if args.method else METHODS), ((args.kind,) if args.kind else KINDS)
    start = time.monotonic()
    with proof.place(args.keep) as made:
        if args.jobs > 1:
            words = [w for w in sys.argv[1:] if w]
            jobs = [
                subprocess.Popen(
                    [
                        sys.executable,
                        __file__,
                        *words,
                        "--jobs",
                        "1",
                        "--part",
                        "--seed",
                        str(args.seed * 1000 + job),
                        "--cases",
                        str(math.ceil(args.cases / args.jobs)),
                    ],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for job in range(args.jobs)
            ]
            parts = [json.loads(job.communicate()[0].splitlines()[-1]) for job in jobs]
        else:
            if args.checks:
                kinds = tuple(kind for kind in kinds if kind in ("flag", "config", "data", "code"))
            else:
                proof.warm_up()
            prepare()
            find_flags()
            if not args.checks:
                GGUF.append(tiny_gguf(made / "tiny.gguf"))
            if args.replay:
                raise SystemExit(bool(replay(pathlib.Path(args.replay), made)))
            parts = [
                fuzz(
                    args.cases,
                    args.seed,
                    methods,
                    kinds,
                    not args.plans,
                    made,
                    pathlib.Path(args.failures),
                    not args.checks,
                )
            ]
    if args.part:
        print(json.dumps(parts[0]))
        return
    counts = {
        name: sum((collections.Counter(part[name]) for part in parts), collections.Counter())
        for name in ("cases", "codes")
    }
    failures = [failure for part in parts for failure in part["failures"]]
    by = collections.Counter((f["method"], f["kind"], f["found"]) for f in failures)
    for (method, kind, what), n in by.most_common():
        print(f"{n} of {method}, {kind}: {what}")
    kinds_of = counts["cases"]
    result = {
        "seed": args.seed,
        "cases": sum(kinds_of.values()),
        "by_kind": dict(sorted(kinds_of.items())),
        "by_status": dict(counts["codes"]),
        "faults": len(failures),
        "slowest_seconds": max(part["slowest"] for part in parts),
        "minutes": round((time.monotonic() - start) / 60, 1),
    }
    failed = collections.Counter(f["kind"] for f in failures)
    proof.tell(
        "fuzz_checks" if args.checks else "fuzz",
        [(kind, n, failed[kind]) for kind, n in sorted(kinds_of.items())],
        ("kind", "cases", "faults"),
        result,
    )


def tiny_gguf(place: pathlib.Path) -> bytes:
    from model.test_gguf import convert

    convert(ROOT / "tests/fixtures/llama2", place)
    return place.read_bytes()


if __name__ == "__main__":
    main()
