"""The card of a model."""

import dataclasses

import pytest

from common import VERSION
from common.results.card import ModelCard, render
from common.results.tables import visible

CARD = ModelCard(
    title="Sums by LLM2LLM",
    base="my/base",
    method="llm2llm",
    learned="Sixty seeds.",
    tables={"Accuracy": (["arm", "%"], [["base", None], ["llm2llm", "70.5 [63.2, 77.8]"]])},
    verdict="Not shown: a difference.",
    warnings=["only 6 questions"],
    command="python run.py llm2llm --run-dir DIR",
)


def front_matter(text):
    import yaml

    return yaml.safe_load(text.split("---\n", 2)[1])


def test_a_card_names_base_data_arms_and_licence():
    text = render(CARD, "my/base", "mit")
    assert front_matter(text) == {
        "license": "mit",
        "base_model": "my/base",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["seedloop", "llm2llm"],
    }
    assert f"\n\nBy seedloop {VERSION}" in text
    assert "\n\n    python run.py llm2llm --run-dir DIR\n\n" in text
    for part in ("Trained from my/base.", "Sixty seeds.", "| base | – |", "Not shown: a difference.", "- only 6"):
        assert part in text
    assert "| 70.5 [63.2, 77.8] |" in text.replace("\\", "")


def test_an_unknown_licence_is_said_and_nothing_is_claimed():
    text = render(CARD, None, None)
    assert not {"license", "base_model"} & front_matter(text).keys()
    assert "Unknown: neither its folder nor its card names one." in text


@pytest.mark.parametrize("evil", ["a\n---\nlicense: mit", "# x | <b>", "\u202e\x00 `y`"])
def test_text_in_the_card_breaks_nothing(evil):
    card = dataclasses.replace(CARD, title=evil, learned=evil, warnings=[evil], verdict=evil, command=evil)
    text = render(dataclasses.replace(card, tables={evil: ([evil], [[evil]])}), None, evil)
    assert len(front_matter(text)["tags"]) == 2
    assert text.count("\n# ") == 1
    # The command is a block of code, which its indentation alone ends.
    outside = [line for line in text.split("---\n", 2)[2].split("\n") if not line.startswith("    ")]
    assert "<b>" not in "\n".join(outside)
    assert "\n".join(f"    {line}" for line in visible(evil).split("\n")) in text
