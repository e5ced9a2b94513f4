"""Pushing to the Hub, against a stand-in for it on this machine: a name and a folder of files a repository."""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse

import pytest

from common.errors import UserError
from common.results.hub import Push, check
from killing import ROOT, bytes_of

TOKEN = "hf_0123456789abcdef"


class Hub:
    """What the Hub's client asks of the Hub in a push, by HTTP on a port of its own. `files`: of every repository
    by place and content; `private`: whether it is; `commits`: how many there were; `tokens`: all that were sent.
    `down`: answers nothing but this status from commit number `after` on."""

    def __init__(self, down: int = 0, after: int = 0):
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits, self.tokens = 0, set()
        self.down, self.after = down, after

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict | list]:
        parts = path.strip("/").split("/")
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            kind, name = asked.get("type") or "model", asked["name"]
            name = "/".join(filter(None, [asked.get("organization") or "me", name]))
            if self.down and self.commits >= self.after:
                return self.down, {"error": "no"}
            key = f"{kind}s/{name}"
            there = key in self.files
            self.files.setdefault(key, {})
            self.private.setdefault(key, asked.get("visibility") == "private" or asked.get("private", False))
            return (409 if there else 200), {
                "url": f"https://huggingface.co/{key.removeprefix('models/')}",
                "name": name,
            }
        if parts[1] == "validate-yaml":
            return 200, {"errors": [], "warnings": []}
        key = "/".join(parts[1:4])
        if key not in self.files:
            return 404, {"error": "Repository not found"}
        files = self.files[key]
        if parts[4] == "preupload":
            asked = [entry["path"] for entry in json.loads(body)["files"]]
            oid = lambda data: hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            return 200, {
                "files": [
                    {"path": place, "uploadMode": "regular", "shouldIgnore": False}
                    | ({"oid": oid(files[place])} if place in files else {})
                    for place in asked
                ]
            }
        if parts[4] == "commit":
            self.commits += 1
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            return 200, {
                "commitUrl": f"https://huggingface.co/{key}/commit/{0:040}",
                "commitOid": "0" * 40,
                "success": True,
            }
        if parts[4] == "tree":
            tree = [
                {"type": "file", "path": place, "size": len(data), "oid": "0" * 40}
                for place, data in files.items()
            ]
            return 200, tree
        return 200, {"id": "/".join(parts[2:4]), "sha": "0" * 40, "siblings": [{"rfilename": n} for n in files]}


@contextlib.contextmanager
def serving(hub: Hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self):
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.tokens.add(self.headers.get("Authorization"))
            status, content = hub.answer(self.command, urllib.parse.urlsplit(self.path).path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _answer

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def python(code: str, address: str, *words: str) -> subprocess.CompletedProcess:
    """In a process of its own: the Hub's address is read when its client is first imported."""
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    env |= {"HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, env=env, capture_output=True, text=True)


PUSH = """
import pathlib, sys
from common.errors import UserError
from common.results.hub import Push, push
try:
    print(*push(pathlib.Path(sys.argv[1]), sys.argv[3:], Push(sys.argv[2], False)), sep="\\n")
except UserError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def run(tmp_path):
    """What a run leaves, as small files."""
    for name, content in {
        "dataset/data/train-1111aaaa.parquet": b"rows",
        "dataset/README.md": b"---\ntags: [seedloop]\n---\n# Data\n",
        "preferences/README.md": b"# Pairs\n",
        "model/model.safetensors": b"weights",
        "model/README.md": b"# Model\n",
        "controls/first/README.md": b"# First\n",
    }.items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(content)
    return tmp_path / "run"


def test_data_sets_and_model_are_pushed_privately_and_again_only_what_changed(run):
    hub, folders = Hub(), ("dataset", "preferences", "controls", "model")
    with serving(hub) as address:
        done = python(PUSH, address, str(run), "me/stories", *folders)
        assert done.returncode == 0, done.stderr
        assert hub.files.keys() == {"datasets/me/stories", "datasets/me/stories-preferences", "models/me/stories"}
        assert hub.files["datasets/me/stories"] == {
            "data/train-1111aaaa.parquet": b"rows",
            "README.md": b"---\ntags: [seedloop]\n---\n# Data\n",
        }
        assert hub.files["models/me/stories"]["model.safetensors"] == b"weights"
        assert set(hub.private.values()) == {True}
        assert len(done.stdout.splitlines()) == 3
        assert hub.tokens == {f"Bearer {TOKEN}"}
        assert TOKEN not in done.stdout + done.stderr
        assert hub.commits == 3
        (run / "dataset/data/train-1111aaaa.parquet").rename(run / "dataset/data/train-2222bbbb.parquet")
        done = python(PUSH, address, str(run), "me/stories", *folders)
        assert done.returncode == 0, done.stderr
        assert hub.commits == 4, "what is there already is not sent again"
        assert set(hub.files["datasets/me/stories"]) == {"data/train-2222bbbb.parquet", "README.md"}


@pytest.mark.parametrize(
    ("status", "said"), [(403, "a token that may write there as HF_TOKEN"), (500, "check the network")]
)
def test_a_push_that_fails_says_what_is_left_and_goes_on_later(run, status, said):
    hub = Hub(down=status, after=1)
    with serving(hub) as address:
        done = python(PUSH, address, str(run), "stories", "dataset", "model")
        assert done.returncode == 1
        line = done.stderr.splitlines()[-1]
        assert line.startswith("error: the run is finished, but ")
        assert said in line
        assert "model could not be pushed to stories" in line
        assert TOKEN not in done.stdout + done.stderr
        assert set(hub.files) == {"datasets/me/stories"}
        hub.down = 0
        assert python(PUSH, address, str(run), "stories", "dataset", "model").returncode == 0
    assert set(hub.files) == {"datasets/me/stories", "models/me/stories"}


def test_nobody_there_is_one_line(run):
    done = python(PUSH, "http://127.0.0.1:9", str(run), "me/stories", "dataset")
    assert done.returncode == 1
    assert "the run is finished, but " in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        ("a/b/c", TOKEN, "--push-to-hub a/b/c: give NAME or OWNER/NAME"),
        ("me/my stories", TOKEN, "give NAME or OWNER/NAME"),
        ("me/" + "x" * 90, TOKEN, "give NAME or OWNER/NAME"),
        ("me/stories", "", "needs a token that may write there, in the variable HF_TOKEN"),
        ("me/stories", TOKEN, "the Hub is switched off by HF_HUB_OFFLINE"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_any_work(name, token, said, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as raised:
        check(Push(name, False))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


RUN = """
import pathlib, sys
from common.errors import UserError
from common.experiment import carry_out
from common.results.conclusion import Conclusion
from common.results.hub import Push
from common.results.report import Report

def work(run, ready):
    run.once_folder("dataset", lambda folder: (folder / "README.md").write_text("# Data"))
    return Conclusion({"status": "complete"}, "a table", Report("A page"), products={"data set": "dataset"})

try:
    carry_out("test", sys.argv[1], {"models": {}}, lambda: None, work, to_hub=Push("me/stories", True))
except UserError as error:
    sys.exit(f"error: {error}")
"""


def test_a_run_pushes_last_and_the_same_command_pushes_what_is_missing(tmp_path):
    hub = Hub(down=403)
    with serving(hub) as address:
        done = python(RUN, address, str(tmp_path / "run"))
        assert done.returncode == 1
        assert "a table" in done.stdout, "all else is done"
        assert "give the same command again" in done.stderr
        hub.down, before = 0, bytes_of(tmp_path / "run")
        done = python(RUN, address, str(tmp_path / "run"))
        assert done.returncode == 0, done.stderr
        assert "is finished already" in done.stdout
        assert done.stdout.splitlines()[-1].startswith("pushed: ")
    assert hub.files == {"datasets/me/stories": {"README.md": b"# Data"}}
    assert set(hub.private.values()) == {False}
    assert bytes_of(tmp_path / "run") == before, "a push leaves nothing in the run"
    assert TOKEN.encode() not in b"".join(before.values())


def test_flags_are_checked_before_anything_is_read(monkeypatch):
    from active_inheritance import Config as Selecting
    from llm2llm import Config
    from reversegen import Config as Exploring

    monkeypatch.delenv("HF_TOKEN", raising=False)
    for kind in (Config, Exploring, Selecting):
        with pytest.raises(UserError, match="needs a token"):
            kind(push_to_hub="me/stories").resolved()
        with pytest.raises(UserError, match="--hub-public is for --push-to-hub"):
            kind(hub_public=True).resolved()
        assert "push_to_hub" not in kind().stored(), "a finished run may be pushed later"
    with pytest.raises(UserError, match="with --sweep there is nothing to be pushed"):
        Config(push_to_hub="me/stories", sweep=True).resolved()
    with pytest.raises(UserError, match="with --arms base there is nothing"):
        Config(push_to_hub="me/stories", arms=("base",)).resolved()
    with pytest.raises(UserError, match="with --students there is nothing"):
        Selecting(push_to_hub="me/stories", students=("a/b", "c/d")).resolved()
