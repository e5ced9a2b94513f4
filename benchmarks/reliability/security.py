"""Keys, pages, pickles and paths: what a run writes and opens, tried with what nobody should trust.

    python benchmarks/reliability/security.py --seed 1

- keys: a value that stands nowhere else in every variable that holds a key, small runs of every method with a
  teacher, judge, scorer and server that say it aloud, and errors that quote it; then every file, the cache, both
  streams, the pieces of the page that a notebook shows and a notebook made of them are searched, in the forms of
  JSON, HTML, addresses and base64.
- pages: hostile text in every text field of runs of all methods (scripts, handlers, styles, links, right-to-left
  marks, a line of a megabyte), opened in Chromium: nothing is run and nothing is asked for.
- pickles: a pickle that leaves a mark when it is opened, in the place of every file that is read.
- paths: names in configurations, data and indexes of checkpoints that lead out of the run directory.
- code: a command that runs a file of the user's says so.
- packages, by `--only packages` alone, as it wants the network: pip-audit over requirements-lock.txt.
"""

import base64
import html
import http.server
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

import proof
from proof import ROOT, lines_of

Found = tuple[int, list[str]]
"""How much was tried, and what is wrong."""

VARIABLES = (
    "OPENAI_API_KEY HF_TOKEN HUGGING_FACE_HUB_TOKEN PERSPECTIVE_API_KEY GOOGLE_API_KEY "
    "GEMINI_API_KEY AZURE_OPENAI_API_KEY MISTRAL_API_KEY GROQ_API_KEY TOGETHER_API_KEY OPENROUTER_API_KEY "
    "DEEPSEEK_API_KEY COHERE_API_KEY REPLICATE_API_TOKEN WANDB_API_KEY GITHUB_TOKEN AWS_SECRET_ACCESS_KEY "
    "AWS_ACCESS_KEY_ID AWS_SESSION_TOKEN AZURE_STORAGE_KEY GCS_TOKEN KAGGLE_KEY NGC_API_KEY VLLM_API_KEY "
    "PGPASSWORD DB_PASS MY_CLIENT_SECRET SLACK_TOKEN"
).split()


# --- keys ---------------------------------------------------------------------------------------------------


def keys() -> dict[str, str]:
    """A key for every variable, with characters that formats write in other ways."""
    found = {name: f'Canary{i:02}/x+9"{i * 7919:05}' for i, name in enumerate(VARIABLES)}
    # These go into headers as they are.
    found |= {
        name: f"Canary{i:02}-header-{i * 7919:05}"
        for i, name in enumerate(VARIABLES)
        if name.startswith(("OPENAI", "HF", "HUGG", "PERS"))
    }
    return found | {"HTTPS_PROXY": "http://me:CanaryProxyPassword1@127.0.0.1:1"}


def forms(key: str) -> set[bytes]:
    found = {key, json.dumps(key)[1:-1], html.escape(key), urllib.parse.quote(key, safe="")}
    return {form.encode() for form in found} | {base64.b64encode(key.encode()).rstrip(b"=")}


LOUD = """import os

def said():
    return " ".join(f"{name}={value}" for name, value in os.environ.items() if "Canary" in value)

def teach(messages):
    if len(messages[-1]["content"]) % 3 == 0:
        raise RuntimeError("401 " + said())
    return "Question: Tom has 2 apples and gets 3, says " + said() + ". How many?\\nAnswer: 2 + 3 = 5\\n#### 5"

def answer(messages):
    return "The owl said: " + said()

def label(messages):
    # Of all keys it would be too long to be learned.
    return "The owl said: " + max(said().split(), key=lambda word: ("HF_TOKEN" in word, word))

def judge(query, answer):
    from reversegen.judge import Verdict
    # What the labeler answers passes, so that there is something to learn.
    return Verdict("pass" if answer.startswith("The owl") else "fail", reason=said())

def score(texts):
    return [len(text) % 10 / 10 for text in texts]

def fails(texts):
    raise OSError("cannot reach " + said())

def length(prompt, answer):
    return float(len(answer))
"""


def check_keys(folder: pathlib.Path) -> Found:
    asked = [{"text": f"Tell me a story about number {i}."} for i in range(24)]
    prompts = lines_of([{"prompt": f"Name {i} birds."} for i in range(8)])
    commands = {}
    words, files = proof.small("llm2llm")
    commands["llm2llm"] = (
        [
            *words,
            "--teacher",
            "python:loud.py:teach",
            "--label-check",
            "none",
        ],
        files,
    )
    words, files = proof.small("reversegen")
    own = {"seeds.jsonl": lines_of(asked), "test.jsonl": lines_of(asked[:4])}
    words += "--task own --judge python:loud.py:judge --labeler python:loud.py:label".split()
    commands["reversegen"] = (words, own)
    select = (
        "active-inheritance --prompts-file prompts.jsonl --k 2 --objective python:loud.py:length:max "
        "--min-words 0 --drop none --select-only"
    )
    commands["source"] = ([*select.split(), "--source", "python:loud.py:answer"], {"prompts.jsonl": prompts})
    commands["server"] = (
        [*select.split(), "--source", "openai:m", "--source-url", "{url}"],
        {"prompts.jsonl": prompts},
    )
    commands["profile"] = proof.small("profile")
    commands["scorer fails"] = (
        [*proof.small("profile")[0], "--toxicity-scorer", "python:loud.py:fails"],
        proof.small("profile")[1],
    )
    odd = f"--instruction {keys()['WANDB_API_KEY']} --task x{keys()['HF_TOKEN']}"
    commands["in flags"] = (["llm2llm", *odd.split(), "--dry-run"], {})
    commands["in a path"] = (["llm2llm", "--train-file", keys()["KAGGLE_KEY"], "--dry-run"], {})
    commands["in an address"] = (
        ["llm2llm", "--teacher", "openai:m", "--teacher-url", f"http://u:{keys()['OPENAI_API_KEY']}@[/v1"],
        {},
    )
    commands["in settings"] = (
        ["profile", "--config", "s.yaml"],
        {"s.yaml": f"model: {keys()['NGC_API_KEY']}\nx: 1\n"},
    )
    faults = []
    secrets = {
        form: name
        for name, key in keys().items()
        for form in forms("CanaryProxyPassword1" if name == "HTTPS_PROXY" else key)
    }
    for name, (words, files) in commands.items():
        place = folder / name.replace(" ", "_")
        proof.write(place, files | {"loud.py": LOUD})
        with Server(LoudHandler) as server:
            words = [word.replace("{url}", server.url) for word in words]
            home = {"XDG_CACHE_HOME": str(place / "cache"), "HOME": str(place / "home")}
            run = [] if "--dry-run" in words else ["--run-dir", "out"]
            outcome = proof.apart(
                [*words, *run],
                place,
                keys() | home | {"HTTPS_PROXY": "", "NO_PROXY": "*", "ALL_PROXY_URL": keys()["HTTPS_PROXY"]},
            )
        # A server that refuses a request as bad ends the run, and is quoted.
        if outcome.code != (2 if name.startswith(("in ", "scorer", "server")) else 0):
            faults.append(f"{name}: status {outcome.code}: {outcome.err[-300:]}")
        if outcome.code == 0:
            (place / "notebook.ipynb").write_text(notebook(place / "out"), encoding="utf-8")
        (place / "streams").write_text(outcome.out + outcome.err)
        # What the run was given is not searched, only what it made.
        for file in (
            file
            for file in place.rglob("*")
            if file.is_file()
            and file.relative_to(place).parts[0] in ("out", "cache", "home", "streams", "notebook.ipynb")
        ):
            data = file.read_bytes()
            faults += [
                f"{name}: {file.relative_to(place)} holds {secret}"
                for form, secret in secrets.items()
                if form in data
            ]
    return len(commands) * len(keys()), faults


def notebook(run: pathlib.Path) -> str:
    """A notebook that shows a run's figures, as it is saved."""
    code = (
        "import sys; from common.results.report import figures; print('\\n'.join(map(str, "
        "figures(sys.argv[1]).values())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)],
        cwd=ROOT,
        env=os.environ | keys() | {"HTTPS_PROXY": ""},
        capture_output=True,
        text=True,
    )
    cell = {"cell_type": "code", "source": "figures(run)", "metadata": {}, "execution_count": 1}
    shown = [
        {
            "output_type": "display_data",
            "metadata": {},
            "data": {"text/html": done.stdout, "text/plain": done.stderr},
        }
    ]
    return json.dumps({"cells": [cell | {"outputs": shown}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


class Server:
    """A loopback server, and what it was asked for."""

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]):
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.asked = self.asked = []  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "Server":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class LoudHandler(http.server.BaseHTTPRequestHandler):
    """Says the key that came in a text, in reasoning, and as an error in one of three answers."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers["Authorization"]
        message = {
            "role": "assistant",
            "content": f"Your key is {key}, said the owl, {len(asked)}.",
            "reasoning_content": key,
        }
        body = {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        }
        self.server.asked.append(1)  # type: ignore[attr-defined]
        status = 200
        if len(self.server.asked) % 3 == 0:  # type: ignore[attr-defined]
            status, body = 400, {"error": {"message": f"bad request of {key}", "code": "x", "type": key}}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


# --- pages --------------------------------------------------------------------------------------------------

MARK = "data-pwned"


def hostile(url: str) -> list[str]:
    """Texts of which none may do anything."""
    run = f"document.documentElement.setAttribute('{MARK}', '1');fetch('{url}/ran')"
    return [
        f"<script>{run}</script>",
        f"</script><script>{run}</script>",
        f'<img src={url}/img onerror="{run}">',
        f"<svg onload=\"{run}\"><image href='{url}/svg'/></svg>",
        (
            f"</svg></table></pre></code></details></style><style>@import "
            f"url({url}/css);body{{background:url({url}/bg)}}</style>"
        ),
        f"<link rel=stylesheet href={url}/link><link rel=preload as=script href={url}/preload>",
        f"<iframe src={url}/frame></iframe><object data={url}/object></object><embed src={url}/embed>",
        f"<meta http-equiv=refresh content='0;url={url}/meta'><base href={url}/>",
        f'" onmouseover="{run}" autofocus onfocus="{run}" x="',
        f"' onload='{run}' style='background:url({url}/attr)",
        f'<a href="javascript:{run}">click</a> [click](javascript:{run}) ![x]({url}/md)',
        f"--><script>{run}</script><!--",
        f"]]><script>{run}</script>",
        f"{{{{ ''.__class__ }}}} {{% include '/etc/passwd' %}} ${{{run}}}",
        "\u202etxt.exe\u202c \u2066hidden\u2069 \u200b\ufeff\x1b[2J\x07",
        (
            f"<video src={url}/video autoplay></video><audio src={url}/audio></audio><form "
            f"action={url}/form><input autofocus></form>"
        ),
        f"data:text/html,<script>{run}</script>",
    ]


def hostile_runs(url: str, folder: pathlib.Path) -> dict[str, list[str]]:
    """Commands of every method of which every text is hostile; files are written."""
    bad = hostile(url)
    pick = lambda i: bad[i % len(bad)]
    long = "x" * 1_000_000
    mails = [
        # Not more than the embedded student can read.
        {"id": f"{split}{i} {pick(i)}", "text": f"{split} {i} {pick(i)[:120]}", "label": pick(i % 2)[:120]}
        for split in "abc"
        for i in range(12)
    ]
    splits = {"train.jsonl": mails[:12], "dev.jsonl": mails[12:24], "test.jsonl": mails[24:]}
    pool = [
        {
            "id": f"{i} {pick(i)}",
            "prompt": f"{i} {pick(i)}",
            "outputs": {
                bad[0]: [f"{i}{j} {pick(i + j)}" for j in range(3)],
                "b": [f"{i} {pick(j)}" for j in range(3)],
            },
        }
        for i in range(20)
    ]
    pool += [{"id": "long", "prompt": "long", "outputs": {bad[0]: [long, "a b"], "b": ["c", long + "y"]}}]
    asked, test = ([{"text": f"{i} {name} {pick(i)[:60]}"} for i in range(30)] for name in ("seed", "other"))
    judge = (
        f"from reversegen.judge import Verdict\n\nBAD = {bad!r}\n\n\ndef judge(query, answer):\n    return "
        f"Verdict('pass' if answer in BAD else 'fail', reason=BAD[len(query) % len(BAD)])\n\n\ndef "
        f"answer(messages):\n    return BAD[len(messages[-1]['content']) % len(BAD)]\n\n\ndef "
        f"teach(messages):\n    n = len(messages[-1]['content'])\n    return f'Text: {{n}} "
        f"{{BAD[n % len(BAD)]}}\\nLabel: {{BAD[n % 2]}}'\n"
    )
    prompts = [{"id": f"{i} {pick(i)}", "prompt": f"{i} {pick(i)}"} for i in range(len(bad))]
    choice = [
        {"question": f"{i} {pick(i)}", "choices": [pick(i), pick(i + 1), "none"], "answer": i % 3}
        for i in range(9)
    ]
    content = {
        name: lines_of(rows)
        for name, rows in (
            splits
            | {"pool.jsonl": pool, "asked.jsonl": asked, "other.jsonl": test}
            | {"prompts.jsonl": prompts, "choice.jsonl": choice}
        ).items()
    }
    proof.write(folder, content | {"bad.py": judge})
    text = (
        "llm2llm --task text --train-file train.jsonl --dev-file dev.jsonl --test-file test.jsonl "
        "--seed-examples 6 --rounds 2 --per-wrong 1 --epochs 1 --batch-size 8 --teacher python:bad.py:teach "
        "--label-check none --arms base,llm2llm --max-length 512"
    ).split()
    own = (
        "reversegen --task own --judge python:bad.py:judge --labeler python:bad.py:answer --seeds-file "
        "asked.jsonl --test-file other.jsonl --seed-instructions 16 --rounds 1 --prompts 4 --samples 4 "
        "--final-prompts 8 --pairing fallback --min-pairs 1 --warm-up-epochs 1 --dpo-epochs 1 --epochs 1 "
        "--batch-size 8 --label-votes 1 --arms target-before,target-after"
    ).split()
    select = "active-inheritance --pool pool.jsonl --objective words:max --min-words 0 --drop none --select-only"
    profile = "profile --model embedded:student --model embedded:teacher --prompts-file prompts.jsonl "
    profile += "--choice x=choice.jsonl --answer-tokens 8 --choice-layout plain"
    return {
        "llm2llm": [*text, "--instruction", bad[0]],
        "reversegen": [*own, "--label-instruction", bad[1]],
        "active-inheritance": select.split(),
        "profile": profile.split(),
    }


def check_pages(folder: pathlib.Path) -> Found:
    if (chromium := browser()) is None:
        return 0, ["there is no Chromium on the path: install one"]
    faults, opened = [], 0

    class Deaf(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.server.asked.append(self.path)  # type: ignore[attr-defined]
            self.send_error(404)

    with Server(Deaf) as server:
        url = server.url.removesuffix("/v1")
        for method, words in hostile_runs(url, folder).items():
            run = f"run_{method}"
            outcome = proof.apart([*words, "--run-dir", run], folder, {})
            if outcome.code != 0:
                faults.append(f"{method}: status {outcome.code}: {outcome.err[-300:]}")
                continue
            pieces = folder / f"{method}.html"
            pieces.write_text(notebook_page(folder / run), encoding="utf-8")
            for page in (folder / run / "report.html", pieces):
                opened += 1
                faults += [f"{method}: {page.name}: {fault}" for fault in look(chromium, page, folder / "profile")]
        control = folder / "control.html"
        control.write_text(f"<html><body>{hostile(url)[0]}</body></html>")
        asked = list(server.asked)
        dom = dumped(chromium, control, folder / "profile")
        if f'{MARK}="1"' not in dom or server.asked == asked:
            faults.append("the browser runs no script at all, so that nothing is shown")
        faults += [f"a page asked for {path}" for path in sorted(set(asked))]
    return opened, faults


def browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def dumped(chromium: str, page: pathlib.Path, profile: pathlib.Path) -> str:
    """The document after its scripts ran and its sources were asked for."""
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--virtual-time-budget=4000",
    ]
    words = [chromium, *flags, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    return subprocess.run(words, capture_output=True, timeout=600).stdout.decode("utf-8", "replace")


def look(chromium: str, page: pathlib.Path, profile: pathlib.Path) -> list[str]:
    dom = dumped(chromium, page, profile)
    faults = [] if len(dom) > 2000 else ["the browser shows nothing"]
    if f'{MARK}="1"' in dom[:2000].partition(">")[0] + dom[:4000].partition("<html")[2].partition(">")[0]:
        faults.append("a script of a text was run")
    source = page.read_text(encoding="utf-8")
    for mark in ("\u202e", "\u2066", "\u200b", "\x1b", "\x07"):
        if mark in source:
            faults.append(f"U+{ord(mark):04X} stands in it")
    tags = r"<(script|iframe|object|embed|link|base|form|video|audio|meta http-equiv=.?refresh)\b"
    faults += [f"a tag {tag}" for tag in sorted(set(re.findall(tags, dom)))]
    if re.search(r"<a [^>]*href=.?\s*(javascript|data):", dom):
        faults.append("a link that runs something")
    return faults


def notebook_page(run: pathlib.Path) -> str:
    """All pieces that a notebook shows, in a page."""
    shown = json.loads(notebook(run))["cells"][0]["outputs"][0]["data"]
    assert shown["text/html"], shown["text/plain"][-500:]
    return f"<html><meta charset=utf-8><body>{shown['text/html']}</body></html>"


# --- pickles ------------------------------------------------------------------------------------------------


class Bomb:
    """Opening its pickle makes the file that `pickled` names."""

    def __init__(self, mark: str):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.mark,)


def pickled(mark: pathlib.Path) -> dict[str, bytes]:
    """The bomb in the forms in which libraries pickle: bare, as torch and numpy write it."""
    import io
    import zipfile

    import numpy as np

    bare = pickle.dumps(Bomb(str(mark)), protocol=2)
    torch, numpy = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(torch, "w") as archive:
        archive.writestr("archive/data.pkl", bare)
        archive.writestr("archive/version", "3\n")
    np.save(numpy, np.array([Bomb(str(mark))], dtype=object), allow_pickle=True)
    return {"pickle": bare, "torch": torch.getvalue(), "numpy": numpy.getvalue()}


PLACES = (
    *(
        f"model/{name}"
        for name in (
            "model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "config.json",
            "generation_config.json",
            "adapter_model.bin",
            "training_args.bin",
            "vocab.json",
            "model.gguf",
            "spiece.model",
        )
    ),
    *(
        f"train{suffix}"
        for suffix in (
            ".jsonl",
            ".json",
            ".csv",
            ".tsv",
            ".parquet",
            ".pkl",
            ".pickle",
            ".npy",
            ".npz",
            ".pt",
            ".bin",
            ".arrow",
        )
    ),
    *(
        "settings.yaml",
        "settings.json",
        "task.yaml",
        "model.gguf",
        "adapter/adapter_model.bin",
        "adapter/adapter_model.safetensors",
        "state",
        "replies.sqlite",
    ),
)


def check_pickles(folder: pathlib.Path) -> Found:
    mark, tried, faults = folder / "opened", 0, []
    sums = {
        f"{name}.jsonl": lines_of(proof.sums(split, n))
        for name, split, n in (("train", "train", 12), ("test", "test", 4))
    }
    size = "--test-file test.jsonl --seed-examples 6 --rounds 1 --epochs 1 --arms base,fine-tune".split()
    for place in PLACES:
        for form, data in pickled(mark).items():
            here = proof.cleared(folder / "case")
            proof.write(here, sums)
            shutil.copytree(ROOT / "tests/fixtures/qwen2", here / "model")
            shutil.copytree(ROOT / "tests/fixtures/adapter_qwen2", here / "adapter")
            words = [
                "llm2llm",
                *size,
                "--train-file",
                place if place.startswith("train") else "train.jsonl",
                "--run-dir",
                "out",
            ]
            if place.startswith("model/"):
                words += ["--student", "model"]
                if place in ("model/pytorch_model.bin", "model/model.gguf"):
                    (here / "model/model.safetensors").unlink()
                if place in ("model/tokenizer.model", "model/spiece.model"):
                    (here / "model/tokenizer.json").unlink()
            words += {
                "settings.yaml": ["--config", place],
                "settings.json": ["--config", place],
                "task.yaml": ["--task", place],
                "model.gguf": ["--student", place],
            }.get(place, [])
            if place.startswith("adapter/"):
                words += ["--student", "model+adapter"]
                (here / "adapter/adapter_model.safetensors").unlink()
            if place == "state":  # as orbax leaves it in the middle of a training
                for name in (
                    "manifest.ocdbt",
                    "_METADATA",
                    "_sharding",
                    "d/0",
                    "_CHECKPOINT_METADATA",
                    "array_metadatas/process_0",
                    "state.pkl",
                ):
                    file = here / "out/repeat_0/fine-tune/round_0/training_state" / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data)
            elif place == "replies.sqlite":
                (here / "out").mkdir()
                (here / "out" / place).write_bytes(data)
            else:
                (here / place).write_bytes(data)
            if place in ("state", "replies.sqlite"):
                outcome = _continued(words, here)
            else:
                outcome = proof.forked(words, here)
            tried += 1
            faults += [f"{place} as {form}: {fault}" for fault in proof.faults(outcome)]
            if mark.exists():
                faults.append(f"{place} as {form} was opened")
                mark.rmdir()
    return tried, faults


def _continued(words: list[str], here: pathlib.Path) -> proof.Outcome:
    """A run in a folder that holds something already: its config.json is made as the run would."""

    def before() -> None:
        from common.cli import parse
        from common.results.rundir import _stated
        from llm2llm.config import PRESETS, Config
        from llm2llm.experiment import run_identity

        config = parse(Config, words[1:], "p", presets=PRESETS).resolved()
        pathlib.Path("out/config.json").write_text(json.dumps(_stated("llm2llm", run_identity(config))))

    return proof.forked(words, here, before=before)


# --- paths, code, packages ----------------------------------------------------------------------------------


def check_paths(folder: pathlib.Path) -> Found:
    out = "../../../evil"
    pool = [
        {
            "id": f"{out}{i}",
            "prompt": f"Name {i} birds.",
            "outputs": {out: [f"{i} robins " * n for n in (1, 2)], "/evil": [f"{i} wrens"]},
        }
        for i in range(6)
    ]
    secret = "only the user reads this 8231"
    cases = {
        "sources and ids": (
            "active-inheritance --pool pool.jsonl --objective words:max --min-words 0 --select-only".split(),
            {"pool.jsonl": lines_of(pool)},
            0,
        ),
        "a set's name": (
            f"profile --model embedded:student --choice {out}=choice.jsonl".split(),
            {"choice.jsonl": lines_of([{"question": "a", "choices": ["b", "c"], "answer": 0}] * 3)},
            2,
        ),
        "a model's name": (
            "profile --model ../case/models/../models/m --choice x=choice.jsonl --limit 2".split(),
            {"choice.jsonl": lines_of([{"question": "a", "choices": ["b", "c"], "answer": 0}] * 3)},
            0,
        ),
        "a task's name": (
            "llm2llm --task t.yaml --train-file t.jsonl --test-file t.jsonl --seed-examples 2 --dry-run".split(),
            {
                "t.yaml": f"name: {out}\ninstruction: x\nlabels: [a, b]\n",
                "t.jsonl": lines_of([{"text": f"{i}", "label": "ab"[i % 2]} for i in range(6)]),
            },
            2,
        ),
        "an index of weights": (
            "profile --model models/i --choice x=choice.jsonl --limit 2".split(),
            {"choice.jsonl": lines_of([{"question": "a", "choices": ["b", "c"], "answer": 0}] * 3)},
            2,
        ),
        "settings": (
            "llm2llm --config c.json --dry-run".split(),
            {"c.json": json.dumps({"train_file": "/etc/shadow.jsonl", "run_dir": out})},
            2,
        ),
    }
    faults = []
    for name, (words, files, status) in cases.items():
        area = proof.cleared(folder / "area")
        here = area / "a/b/case"
        proof.write(here, files)
        shutil.copytree(ROOT / "tests/fixtures/qwen2", here / "models/m")
        shutil.copytree(ROOT / "tests/fixtures/llama_sharded", here / "models/i")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ROOT / "tests/fixtures/qwen2" / file, here / "models/i" / file)
        index = here / "models/i/model.safetensors.index.json"
        moved = json.loads(index.read_text())
        (here / "models/i" / "model-00001-of-00004.safetensors").rename(here / "away.safetensors")
        moved["weight_map"] = {
            k: "../../away.safetensors" if "00001" in v else v for k, v in moved["weight_map"].items()
        }
        index.write_text(json.dumps(moved))
        before = {file for file in area.rglob("*") if file.is_file()}
        run = [] if "--dry-run" in words else ["--run-dir", "out"]
        outcome = proof.forked([*words, *run], here, {"XDG_CACHE_HOME": str(folder / "cache")})
        if outcome.code != status:
            faults.append(f"{name}: status {outcome.code}, not {status}: {(outcome.err or outcome.out)[-300:]}")
        made = {file for file in area.rglob("*") if file.is_file()} - before
        faults += [
            f"{name}: made {file.relative_to(area)}"
            for file in made
            if not file.is_relative_to(here / "out") and file.parent != here
        ]
        faults += [f"{name}: {secret}"] * (secret in outcome.err)
    return len(cases), faults


def check_code(folder: pathlib.Path) -> Found:
    select = (
        "active-inheritance --pool pool.jsonl --objective python:own.py:length:max --min-words 0 --select-only"
    )
    pool = lines_of([{"prompt": f"Name {i} birds.", "outputs": ["one", "one two"]} for i in range(4)])
    commands = {
        "a metric": (select, {"pool.jsonl": pool}),
        "a task": ("llm2llm --task own.py --dry-run", {}),
        "a teacher": ("llm2llm --teacher python:own.py:teach --dry-run", {}),
        "a judge": (
            "reversegen --task own --judge python:own.py:judge --seeds-file s.jsonl --seed-instructions 16 "
            "--prompts 4 --final-prompts 4 --rounds 1 --dry-run",
            {"s.jsonl": lines_of([{"text": f"t {i}"} for i in range(40)])},
        ),
    }
    code = "from common.tasks.worked import WorkedAnswer\n\n"
    code += "TASK = WorkedAnswer(name='own', question_columns=('question',), answer_columns=('answer',))\n\n\n"
    code += "def length(prompt, answer):\n    return float(len(answer))\n\n\n"
    code += "def teach(messages):\n    return ''\n\n\ndef judge(query, answer):\n    return None\n"
    faults = []
    for name, (words, files) in commands.items():
        here = proof.cleared(folder / "case")
        proof.write(here, files | {"own.py": code})
        run = [] if "--dry-run" in words else ["--run-dir", "out"]
        said = proof.forked([*words.split(), *run], here, {}).err
        if len(re.findall(r"own\.py.*runs as code|running.*own\.py", said)) != 1:
            faults.append(f"{name}: {said[-200:]!r}")
    return len(commands), faults


def check_packages(_: pathlib.Path) -> Found:
    lock = ROOT / "requirements-lock.txt"
    words = [
        sys.executable,
        "-m",
        "pip_audit",
        "-r",
        str(lock),
        "--no-deps",
        "--disable-pip",
        "-f",
        "json",
        "--progress-spinner",
        "off",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return 0, [f"pip-audit did not run: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}"]
    asked = [one for one in found if "skip_reason" not in one]
    faults = [f"{one['name']} {one['version']}: {fault['id']}" for one in asked for fault in one["vulns"]]
    return len(asked), faults + [f"{len(found) - len(asked)} packages could not be asked about"] * (asked != found)


CHECKS = {
    "keys": check_keys,
    "pages": check_pages,
    "pickles": check_pickles,
    "paths": check_paths,
    "code": check_code,
    "packages": check_packages,
}


def main() -> None:
    args = proof.arguments(__doc__, ("--only", {"choices": CHECKS}))
    proof.warm_up()
    rows, all_faults = [], {}
    with proof.place(args.keep) as made:
        for name, check in CHECKS.items():
            if args.only == name or (args.only is None and name != "packages"):
                tried, faults = check(proof.cleared(made / name))
                rows.append((name, tried, len(faults)))
                all_faults[name] = faults[:40]
                print("\n".join(f"{name}: {fault}" for fault in faults[:40]), file=sys.stderr)
    result = {
        "seed": args.seed,
        "tried": {name: tried for name, tried, _ in rows},
        "found": all_faults,
        "faults": sum(row[2] for row in rows),
    }
    proof.tell(f"security_{args.only}" if args.only else "security", rows, ("check", "tried", "faults"), result)


if __name__ == "__main__":
    main()
