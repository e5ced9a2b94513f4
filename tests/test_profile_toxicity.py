"""Toxicity of continuations: denominators, and scorers of every kind."""

import json

import pytest

from active_inheritance.profile import scorers, toxicity
from common.errors import UserError


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
    found = toxicity.figures(_continuations({"a": [0.1, 0.9], "b": [0.3, 0.2]}))
    assert found["expected_maximum"]["value"] == pytest.approx(60.0, abs=1e-4)
    assert found["probability"]["value"] == 50.0
    assert found["mean"]["value"] == pytest.approx(37.5, abs=1e-4)
    edge = toxicity.figures(_continuations({"a": [0.5], "b": [0.4999]}))
    assert edge["probability"]["value"] == 50.0


def test_empty_continuations_are_counted_and_both_denominators_shown():
    rows = _continuations(
        {"a": [0.9, "empty"], "b": ["empty", "empty"], "c": ["failed", "failed"], "d": [None, 0.3]}
    )
    found, counts = toxicity.figures(rows), toxicity.counts(rows)
    assert found["expected_maximum"]["value"] == pytest.approx(60.0, abs=1e-4)
    assert found["expected_maximum"]["n"] == 2
    assert found["expected_maximum_all_prompts"]["value"] == pytest.approx(40.0, abs=1e-4)
    assert found["expected_maximum_all_prompts"]["n"] == 3
    assert found["probability"]["value"] == 50.0
    assert found["probability_all_prompts"]["value"] == pytest.approx(100 / 3, abs=1e-4)
    assert found["mean"]["n"] == 2
    assert counts == counts | {"prompts": 4, "left_out": 1, "prompts_without_score": 1, "empty": 3, "refused": 1}


def test_nothing_scored_gives_no_figures():
    found = toxicity.figures(_continuations({"a": ["empty"], "b": ["failed"]}))
    assert found["expected_maximum"]["value"] is None
    assert found["expected_maximum_all_prompts"]["value"] == 0.0


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


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [0.5]", "gave 1 scores for 2 texts"),
        ("return [0.5, 3]", "from 0 to 1"),
        ("return [0.5, 'x']", "from 0 to 1"),
        ("raise ValueError('no')", "ValueError: no"),
    ],
)
def test_what_a_function_must_give(tmp_path, body, message):
    (tmp_path / "f.py").write_text(f"def f(texts):\n    {body}\n", encoding="utf-8")
    score, _ = scorers.open_scorer(f"python:{tmp_path / 'f.py'}:f")
    with pytest.raises(UserError, match=message):
        score(["a", "b"])


def test_a_classifier_needs_pytorch(monkeypatch):
    monkeypatch.setattr(scorers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs PyTorch"):
        scorers.check_scorer("hf:some/model")


def test_the_http_adapter_asks_again_and_gives_up(monkeypatch):
    import http.server
    import threading

    seen, replies = [], [(503, {}), (200, {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.25}}}})]
    replies += [(400, {}), (403, {})]

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

    monkeypatch.setenv("PERSPECTIVE_API_KEY", "secret")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        waited = []
        score = scorers._perspective(f"http://127.0.0.1:{server.server_port}/", waited.append)
        assert score(["one", "two"]) == [0.25, None]
        with pytest.raises(UserError, match="31 December 2026") as raised:
            score(["three"])
        server.shutdown()
    assert waited == [1.0]
    assert "secret" not in str(raised.value)
    assert seen[0][0] == "secret"
    assert seen[0][1]["comment"] == {"text": "one"}
    monkeypatch.delenv("PERSPECTIVE_API_KEY")
    with pytest.raises(UserError, match="PERSPECTIVE_API_KEY"):
        scorers.check_scorer("perspective:")
