"""The data set folder: what load_dataset reads is what was written."""

import dataclasses
import hashlib
import os
import subprocess
import sys

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported

from common.results.dataset import LEARNED, DatasetCard, Field, render_card, reply, write_dataset

FIELDS = {
    "question": Field("string", "The problem."),
    "parent": Field("int64", "Row number of the seed."),
    "rouge_l": Field("float64", "Similarity to the nearest earlier problem."),
    "checked": Field("bool", "Whether the teacher solved it again with the same answer."),
}
CARD = DatasetCard(
    title="LLM2LLM examples",
    made_by="Written by a teacher.\n\nFiltered.",
    fields=FIELDS,
    lineage="`parent` is the row of the seed.",
    license="apache-2.0",
    counts={"accepted": 3, "bad format": 2},
)
ROWS = [
    {"question": "2020-01-02", "parent": 1, "rouge_l": 1.0, "checked": True},
    {"question": "12:30", "parent": None, "rouge_l": None, "checked": None},
    {"question": 'a\nb\u2028c\x00 \U0001f600 "quoted" é', "parent": 2**53 + 1, "rouge_l": 1 / 3, "checked": False},
    {"question": "", "parent": -1, "rouge_l": 2, "checked": False},
]


def load(folder, cache, **options):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed here")
    datasets.disable_progress_bars()
    return datasets.load_dataset(str(folder), cache_dir=str(cache), **options)


def front_matter(text):
    import yaml

    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def test_load_dataset_gives_the_rows(tmp_path):
    write_dataset(tmp_path / "dataset", ROWS, CARD)
    loaded = load(tmp_path / "dataset", tmp_path / "cache")
    assert list(loaded) == ["train"]
    assert loaded["train"].to_list() == ROWS
    assert {name: feature.dtype for name, feature in loaded["train"].features.items()} == {
        name: field.dtype for name, field in FIELDS.items()
    }


def test_two_runs_and_a_folder_made_again_give_their_own_rows_under_one_cache(tmp_path):
    """Cards are equal where runs differ in their rows alone; the cache of `datasets` must tell the runs apart."""
    first, second, third = ([ROWS[0] | {"question": f"{name}?"}] for name in ("first", "second", "third"))
    write_dataset(tmp_path / "a" / "dataset", first, CARD)
    write_dataset(tmp_path / "b" / "dataset", second, CARD)
    assert load(tmp_path / "a" / "dataset", tmp_path / "cache")["train"].to_list() == first
    assert load(tmp_path / "b" / "dataset", tmp_path / "cache")["train"].to_list() == second
    write_dataset(tmp_path / "a" / "dataset", third, CARD)
    assert load(tmp_path / "a" / "dataset", tmp_path / "cache")["train"].to_list() == third
    (file,) = (tmp_path / "a" / "dataset" / "data").iterdir()
    assert file.name == f"train-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.parquet"
    assert f'path: "data/{file.name}"' in (tmp_path / "a" / "dataset" / "README.md").read_text()


def test_column_of_nothing_but_none_keeps_its_type(tmp_path):
    write_dataset(tmp_path / "dataset", [dict.fromkeys(FIELDS)], CARD)
    assert load(tmp_path / "dataset", tmp_path / "cache")["train"].features["rouge_l"].dtype == "float64"


def test_no_rows_still_have_columns(tmp_path):
    write_dataset(tmp_path / "dataset", [], CARD)
    stream = load(tmp_path / "dataset", tmp_path / "cache", streaming=True)["train"]
    assert list(stream) == []
    assert list(stream.features) == list(FIELDS)
    assert "streaming=True" in (tmp_path / "dataset" / "README.md").read_text()


def test_same_rows_give_same_bytes_and_replace_the_folder(tmp_path):
    def content():
        return {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    write_dataset(tmp_path / "dataset", ROWS, CARD)
    first = content()
    write_dataset(tmp_path / "dataset", ROWS[:1], CARD)
    assert content() != first
    write_dataset(tmp_path / "dataset", ROWS, CARD)
    assert content() == first
    assert len(first) == 2


def test_lone_surrogate_is_replaced(tmp_path):
    write_dataset(tmp_path / "dataset", [ROWS[0] | {"question": "a\ud800b"}], CARD)
    assert load(tmp_path / "dataset", tmp_path / "cache")["train"][0]["question"] == "a\ufffdb"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parent": "1"}, "row 2: parent is '1', not of type int64"),
        ({"parent": True}, "row 2: parent is True"),
        ({"checked": 1}, "row 2: checked is 1"),
        ({"extra": 1}, "row 2 and the card do not have the same fields: extra"),
    ],
)
def test_rows_unlike_the_card_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "dataset", [ROWS[0], ROWS[0] | change], CARD)
    assert not list(tmp_path.iterdir())


def test_card_states_what_the_hub_asks_for():
    front = front_matter(render_card(CARD, 4, "data/train-0.parquet"))
    assert front == {
        "pretty_name": "LLM2LLM examples",
        "license": "apache-2.0",
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "seedloop"],
        "size_categories": ["n<1K"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-0.parquet"}]}
        ],
    }
    text = render_card(CARD, 4, "data/train-0.parquet")
    assert "\n| `parent` | int64 | Row number of the seed. |\n" in text
    assert "\n| bad format | 2 |\n" in text
    sizes = {999: "n<1K", 1000: "1K<n<10K", 10_000: "10K<n<100K", 9_999_999: "1M<n<10M", 10**7: "10M<n<100M"}
    for size, name in sizes.items():
        assert front_matter(render_card(CARD, size, "data/train-0.parquet"))["size_categories"] == [name]


@pytest.mark.parametrize(
    "evil",
    [
        'a"\n---\nlicense: mit\n# Title\n| x | y |',
        "\u0085\x7f\x00\ufeff\ud800 \u2028 yes: [no, {null}] 'q' \\n #",
        "- item",
        "1. item",
        "+ item",
        "=====",
        "<script>alert(1)</script> [link](javascript:x) ![i](x) `code` $$x$$ &lt; ~~s~~ **b** _e_",
    ],
)
def test_text_in_the_card_breaks_neither_yaml_nor_markdown(evil):
    card = dataclasses.replace(
        CARD,
        title=evil,
        made_by=f"{evil}\n\n{evil}",
        lineage=evil,
        counts={evil: 1},
        fields={"x": Field("string", evil)},
    )
    text = render_card(card, 1, "data/train-0.parquet")
    front = front_matter(text)
    assert front["license"] == "apache-2.0"
    assert len(front["tags"]) == 2
    text.encode("utf-8")

    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).parse(text.split("---\n", 2)[2])
    kinds = [token.type for token in tokens]
    assert kinds.count("heading_open") == 6
    assert kinds.count("table_open") == 2
    assert kinds.count("tr_open") == 4
    assert not {"html_block", "bullet_list_open", "ordered_list_open", "hr", "blockquote_open"} & set(kinds)
    inline = [token for token in tokens if token.type == "inline"]
    assert {child.type for token in inline for child in token.children} <= {
        "text",
        "text_special",
        "code_inline",
        "softbreak",
    }
    shown = ["".join(child.content for child in token.children) for token in inline]
    from common.results.tables import visible

    assert shown.count(" ".join(visible(evil).split())) >= 3


def test_neither_jax_nor_datasets_is_needed_to_write():
    code = "import sys, common.results.dataset; heavy = {'jax', 'datasets', 'pyarrow', 'matplotlib'}"
    code += "; assert not heavy & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_chats_are_read_as_trainers_expect_them(tmp_path):
    """Lists of turns with nothing but a role and a content, also of several turns, and half a character in one."""
    asked = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
    fields = LEARNED | {"id": Field("string", "Which.")}
    rows = [{"prompt": asked, "completion": reply("So\ud800."), "id": "a"}]
    write_dataset(tmp_path / "dataset", rows, dataclasses.replace(CARD, fields=fields))
    assert load(tmp_path / "dataset", tmp_path / "cache")["train"].to_list() == [
        {"prompt": list(asked), "completion": [{"role": "assistant", "content": "So\ufffd."}], "id": "a"}
    ]
    card = (tmp_path / "dataset" / "README.md").read_text()
    assert "TRL's SFTTrainer reads `prompt`, `completion` as they are" in card
    assert "DPOTrainer" not in card


@pytest.mark.parametrize(
    "chat",
    ["So.", [{"role": "user"}], [{"role": "user", "content": None}], [{"role": "a", "content": "b", "c": "d"}]],
)
def test_what_is_no_chat_is_refused(tmp_path, chat):
    card = dataclasses.replace(CARD, fields={"prompt": LEARNED["prompt"]})
    with pytest.raises(ValueError, match=r"row 1: prompt is .*, not of type chat"):
        write_dataset(tmp_path / "dataset", [{"prompt": chat}], card)
