"""Toxicity of continuations: denominators, and scorers of every kind."""

import json

import pytest

from active_inheritance.profile.config import Config
from common.errors import UserError
from common.evals import scorers, toxicity
from common.evals.figures import Scorer
from common.evals.measure import Store
from common.generate import Record
from common.results.rundir import RunDir


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _continuations(scores):
    return [
        {
            "id": prompt,
            "sample": i,
            "status": "failed" if score == "failed" else "ok",
            "empty": score == "empty",
            "score": score if isinstance(score, float) else None,
            "scorer": "s",
            "version": "1",
        }
        for prompt, of_prompt in scores.items()
        for i, score in enumerate(of_prompt)
    ]


def test_expected_maximum_and_probability():
    found = toxicity.toxicity_figures(_continuations({"a": [0.1, 0.9], "b": [0.3, 0.2]}))
    assert found["expected_maximum"].value == pytest.approx(60.0, abs=1e-4)
    assert found["probability"].value == 50.0
    assert found["mean"].value == pytest.approx(37.5, abs=1e-4)
    edge = toxicity.toxicity_figures(_continuations({"a": [0.5], "b": [0.4999]}))
    assert edge["probability"].value == 50.0


def test_empty_continuations_are_counted_and_both_denominators_shown():
    rows = _continuations(
        {"a": [0.9, "empty"], "b": ["empty", "empty"], "c": ["failed", "failed"], "d": [None, 0.3]}
    )
    found, counts = toxicity.toxicity_figures(rows), toxicity.counts_of(rows)
    assert found["expected_maximum"].value == pytest.approx(60.0, abs=1e-4)
    assert found["expected_maximum"].n == 2
    assert found["expected_maximum_all_prompts"].value == pytest.approx(40.0, abs=1e-4)
    assert found["expected_maximum_all_prompts"].n == 3
    assert found["probability"].value == 50.0
    assert found["probability_all_prompts"].value == pytest.approx(100 / 3, abs=1e-4)
    assert found["mean"].n == 2
    assert counts == counts | {"prompts": 4, "left_out": 1, "prompts_without_score": 1, "empty": 3, "refused": 1}


def test_nothing_scored_gives_no_figures():
    found = toxicity.toxicity_figures(_continuations({"a": ["empty"], "b": ["failed"]}))
    assert found["expected_maximum"].value is None
    assert found["expected_maximum_all_prompts"].value is None
    assert found["probability_all_prompts"].value is None


def test_lexicon_scorer(tmp_path):
    (tmp_path / "words.txt").write_text("# harmless\nturnip\nold boot\n", encoding="utf-8")
    name = f"lexicon:{tmp_path / 'words.txt'}"
    scorers.check_scorer(name)
    score, about = scorers.open_scorer(name)
    assert score(["A Turnip!", "turnips", "an old boot and a turnip", ""]) == [0.5, 0.0, 0.75, 0.0]
    assert "smoke" in about.name
    assert about.version.startswith("sha256")
    assert "no toxicity" in scorers.note_of(name)


def test_scores_from_a_file(tmp_path):
    file = _write(tmp_path / "s.jsonl", [{"text": "a", "tox": 0.25}, {"text": "b", "tox": None}])
    score, _ = scorers.open_scorer(f"column:{file}:tox")
    assert score(["b", "a"]) == [None, 0.25]
    with pytest.raises(UserError, match="no score of 1 of 2 texts"):
        score(["a", "c"])
    with pytest.raises(UserError, match=r"score the texts of here\.jsonl"):
        scorers.open_scorer(f"column:{tmp_path / 'none.jsonl'}:tox", "here.jsonl")
    for make in (scorers.check_scorer, scorers.open_scorer):
        with pytest.raises(UserError, match=r"no field 'toxicity' in any row: it has text, tox"):
            make(f"column:{file}:toxicity")
    with pytest.raises(UserError, match="no field 'text'"):
        scorers.check_scorer(f"column:{_write(tmp_path / 'u.jsonl', [{'tox': 0.5}])}:tox")


def _records(*texts):
    return [Record(str(i), 0, "ok", text) for i, text in enumerate(texts)]


def test_a_file_of_scores_may_grow_and_not_change(tmp_path, monkeypatch):
    monkeypatch.setattr(toxicity, "BATCH", 2)
    file = tmp_path / "s.jsonl"
    name, records = f"column:{file}:tox", _records("a", "b", "", "c")
    known = [{"text": "a", "tox": 0.25}, {"text": "b", "tox": None}]
    score = lambda: toxicity.scored_continuations(records, name, lambda: scorers.open_scorer(name), Store(run))
    with RunDir.open(tmp_path / "run", "test", {}) as run:
        _write(file, known)
        with pytest.raises(UserError, match="no score of 1 of 1 texts"):
            score()
        _write(file, [*known[1:], {"text": "a", "tox": 0.5}, {"text": "c", "tox": 1}])
        with pytest.raises(UserError, match=r"other scores of 1 texts .*: delete .*toxicity\.jsonl\.part and"):
            score()
        _write(file, [{"text": "c", "tox": 1}, *known])
        assert [row["score"] for row in score()] == [0.25, None, None, 1.0]
        _write(file, [{"text": "c", "tox": 0.75}])  # without the others, which are stored
        with pytest.raises(
            UserError, match=r"delete .*toxicity\.jsonl and all is scored anew, or give another --run-dir"
        ):
            score()
        file.unlink()
        assert len(score()) == 4


def test_two_versions_of_a_scorer_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.setattr(toxicity, "BATCH", 1)

    def opened(version, most):
        left = iter([[0.5]] * most)
        return lambda: (lambda texts: next(left), Scorer("s", version))

    with RunDir.open(tmp_path / "run", "test", {}) as run:
        score = lambda *how: toxicity.scored_continuations(_records("a", "b"), "s", opened(*how), Store(run))
        with pytest.raises(RuntimeError):
            score("one", 1)
        with pytest.raises(UserError, match=r"s is two, and part of the texts was scored by one: delete"):
            score("two", 2)
        assert {row["version"] for row in score("one", 2)} == {"one"}


def test_the_folder_of_a_classifier_is_in_the_identity(tmp_path):
    for name in ("config.json", "model.safetensors", "vocab.txt", "README.md"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    for label in ("", "#toxic"):
        files, _ = Config(toxicity_scorer=f"hf:{tmp_path}{label}").read()
        assert files == [str(tmp_path / name) for name in ("config.json", "model.safetensors", "vocab.txt")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [0.5]", "gave 1 scores for 2 texts"),
        ("return [0.5, 3]", "from 0 to 1"),
        ("return [0.5, 'x']", "from 0 to 1"),
        ("raise ValueError('no')", "ValueError: no"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_what_a_function_must_give(tmp_path, body, message):
    (tmp_path / "f.py").write_text(f"def f(texts):\n    {body}\n", encoding="utf-8")
    score, _ = scorers.open_scorer(f"python:{tmp_path / 'f.py'}:f")
    with pytest.raises(UserError, match=message):
        score(["a", "b"])


def test_a_classifier_needs_pytorch(monkeypatch):
    monkeypatch.setattr(scorers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs PyTorch, .* pip install '\.\[toxicity\]'"):
        scorers.check_scorer("hf:some/model")


def test_the_http_adapter_asks_again_and_gives_up(monkeypatch):
    import http.server
    import threading

    seen, replies = [], [(503, {}), (200, {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.25}}}})]
    invalid = {"error": {"code": 400, "details": [{"reason": "API_KEY_INVALID"}]}}
    replies += [(400, {"error": {"code": 400}}), (403, {}), (400, invalid)]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(
                (self.headers["X-Goog-Api-Key"], json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            )
            status, body = replies.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *args):
            pass

    monkeypatch.setenv("PERSPECTIVE_API_KEY", "secret\n")  # a line end is no part of a key
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        waited = []
        score = scorers._perspective(f"http://127.0.0.1:{server.server_port}/", waited.append)
        assert score(["one", "two"]) == [0.25, None]
        with pytest.raises(UserError, match="31 December 2026") as raised:
            score(["three"])
        with pytest.raises(UserError, match="refuses the key: fix PERSPECTIVE_API_KEY"):
            score(["four"])
        server.shutdown()
    assert waited == [1.0]
    assert "secret" not in str(raised.value)
    assert seen[0][0] == "secret"
    assert seen[0][1]["comment"] == {"text": "one"}
    monkeypatch.delenv("PERSPECTIVE_API_KEY")
    with pytest.raises(UserError, match="PERSPECTIVE_API_KEY"):
        scorers.check_scorer("perspective:")
