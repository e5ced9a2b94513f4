"""What figures mean: every one that a page shows is explained, and by no word of another's."""

from common.text.glossary import REASONS, TERMS, better, explain, meaning, reason
from common.text.textstats import METRICS


def test_every_score_of_texts_is_explained_in_one_line():
    for name in METRICS:
        said = meaning(name)
        assert said, name
        assert "\n" not in said
        assert "`" not in said
        assert said.count("(") == said.count(")"), name
    assert meaning("mtld").endswith("(from 50 words)")


def test_terms_are_one_sentence_each():
    for name, term in TERMS.items():
        assert not term.meaning.endswith("."), name
        assert ". " not in term.meaning, name
    assert not TERMS.keys() & METRICS.keys()


def test_what_is_not_known_is_left_out():
    assert list(explain("accuracy", "column:likes", "words")) == ["accuracy", "words"]
    assert better("brier") == "lower"
    assert better("column:likes") is None


def test_a_reason_is_told_with_what_it_means():
    assert reason("format") == f"format: {REASONS['format']}"
    assert reason("near-duplicate") == "near-duplicate"
