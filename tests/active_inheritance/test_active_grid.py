"""Students by sources: one small run a cell."""

import pytest
from test_active_run import FLAGS

import run as program
from active_inheritance.config import Config
from active_inheritance.grid import grid
from common.errors import UserError
from common.results.files import read_json, read_jsonl
from common.results.plots import figure_svg, heat_figure
from killing import bytes_of

SMALL = FLAGS | {
    "repeats": 1,
    "prompts": 8,
    "students": ("embedded:student", "embedded:teacher"),
    "source": ("embedded:teacher", "python:{}:answer"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    code = folder / "source.py"
    code.write_text(
        "import pathlib\n"
        "def answer(messages):\n"
        f"    with open({str(folder / 'calls')!r}, 'a') as file:\n"
        "        file.write('x')\n"
        "    words = messages[-1]['content'].split()\n"
        "    return ' '.join(words[i % len(words)] + str(i) for i in range(20)) + '.'\n"
    )
    source = tuple(name.format(code) for name in SMALL["source"])
    config = Config(**SMALL | {"source": source, "drop": ("empty",)}, run_dir=str(folder / "grid"))
    return config, grid(config), folder


@pytest.mark.long
def test_every_student_learns_from_every_source(finished):
    config, result, folder = finished
    assert result == read_json(folder / "grid/summary.json")
    assert list(result["grid"]) == list(config.students)
    for of_sources in result["grid"].values():
        assert list(of_sources) == list(config.source)
        for source, cell in of_sources.items():
            summary = read_json(folder / "grid" / cell["run"] / "summary.json")
            assert list(summary["sampling"]["sources"]) == [source]
            for name in ("mtld", "words", "lix"):
                entry, pair = cell["figures"][name], summary["gains"]["random - base"]["metrics"][name]
                assert entry["passive"] == {key: pair[key] for key in ("value", "ci95", "relative")}
                way = summary["data"]["scores"][name]["pool"] - summary["arms"]["base"]["metrics"][name]["value"]
                assert entry["of_the_way"] == pytest.approx(pair["value"] / way)
            assert "choice/arithmetic/accuracy" in cell["figures"]
    page = (folder / "grid/report.html").read_text()
    assert page.count("<svg") == 2


@pytest.mark.long
def test_a_source_answers_once_for_all_students(finished):
    config, _, folder = finished
    assert len((folder / "calls").read_text()) == config.k * SMALL["prompts"]
    for j in range(2):
        first, second = (folder / f"grid/cells/{i}_{j}/repeat_0/samples/source_0.jsonl" for i in range(2))
        assert read_jsonl(first) == read_jsonl(second)


@pytest.mark.long
def test_the_same_command_again_changes_nothing(finished):
    config, result, folder = finished
    before = bytes_of(folder / "grid")
    assert grid(config) == result
    assert bytes_of(folder / "grid") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--students", "embedded:student", "--pool", "x.jsonl"], "no such file: x.jsonl"),
        (["--students", "embedded:student,embedded:student"], "name each once"),
        (["--students", "embedded:student", "--select-only"], "not --pool or --select-only"),
        (["--students", "openai:x"], "openai:x cannot be trained"),
    ],
)
def test_a_mistake_is_one_line(words, said, capsys, tmp_path):
    with pytest.raises(SystemExit) as left:
        program.main(["active-inheritance", *words, "--run-dir", str(tmp_path / "run")])
    assert left.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_hosted_grid_has_no_budget_to_share():
    with pytest.raises(UserError, match="--budget with --students is for one --source"):
        Config(students=("embedded:student",), source=("openai:a", "openai:b"), budget="calls=9").resolved()


def test_a_heat_table_shows_every_number_and_leaves_gaps_white():
    figure = heat_figure([[10.0, -5.0], [None, 0.25]], ["a", "b"], ["x", "y"])
    shown = figure_svg(figure, "p")
    assert all(f">{text}<" in shown for text in ("+10.0", "-5.0", "+0.2"))
    assert "<image" not in shown
