"""Why a query was refused, as the page tells it."""

from common.results.files import write_jsonl
from common.results.report import Report
from common.results.rundir import RunDir
from common.tasks.base import Example
from reversegen.examples import add_examples


def query(name, text, dropped=None, outcome=None, reason="", **more):
    found = {"id": name, "query": text, "reply": f"Problem: {text}", "dropped": dropped, "outcome": outcome}
    return found | {"reason": reason} | more


def test_a_refusal_shows_what_was_nearest_and_what_its_reason_means(tmp_path):
    """Queries, seeds and test questions by their texts; with --redact by their hashes."""
    rows = [
        query("q0", "How many figs?", outcome="pass"),
        query("q1", "How many figs are there?", "near-duplicate", nearest="q0", similarity=0.8125),
        query("q2", "How many hens?", "near a test question", nearest="test-1", similarity=0.9),
        query("q3", "How many ducks?", "near-duplicate in meaning", nearest="seed-1", similarity=0.97),
        query("q4", "Go home.", outcome="invalid", reason="no program reads it"),
        query("q5", "In and up?", "unlikely text"),
    ]
    test = [Example("test-1", "How many hens are left?", "2", "2", "g")]
    with RunDir.open(tmp_path, "m", {}) as run:
        folder = tmp_path / "repeat_0/explore"
        (folder / "final").mkdir(parents=True)
        write_jsonl(folder / "final/queries.jsonl", rows)
        write_jsonl(folder / "seeds.jsonl", [{"id": "seed-1", "question": "How many geese?"}])
        page, hidden = Report("t"), Report("t")
        add_examples(page, run, [], test, redact=False)
        add_examples(hidden, run, [], test, redact=True)
    text = page.html()
    for said in (
        "near-duplicate, similarity 0.81\n\nNearest: How many figs?",
        "near a test question, similarity 0.90\n\nNearest: How many hens are left?",
        "near-duplicate in meaning, similarity 0.97\n\nNearest: How many geese?",
        "invalid: no program reads it",
        "unlikely text: the proposer after warm-up finds it",
    ):
        assert said in text, said
    assert "How many" not in hidden.html()
    assert hidden.html().count("Nearest: sha256 ") == 3
