"""Social bias on hand-made rows: closed forms, StereoSet, CrowS-Pairs, BBQ and their files."""

import dataclasses
import json
import math

import pytest

from common.errors import UserError
from common.evals import bbq, bias


def _rows(*logps, tokens=1):
    return [{"id": str(i), "logps": row, "tokens": row and [tokens] * len(row)} for i, row in enumerate(logps)]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_icat():
    assert bias.icat(100, 50) == 100
    assert bias.icat(90, 60) == 72
    assert bias.icat(100, 0) == bias.icat(100, 100) == 0


def _triplet(name, kind, target):
    return bias.Triplet(name, kind, target, ("a", "b", "c"))


def test_stereoset_averages_over_terms():
    triplets = [_triplet("0", "race", "x"), _triplet("1", "race", "x"), _triplet("2", "race", "y")]
    triplets += [_triplet("3", "gender", "x"), _triplet("4", "gender", "x")]
    rows = _rows([-1, -2, -3], [-1, -2, -3], [-2, -1, -1.5], [-1, -1, -2], None)
    found = bias.StereoSet(triplets=tuple(triplets)).figures(rows)
    assert found["race/ss"].value == 50.0  # terms 100 and 0, though two of three contexts are stereotyped
    assert found["race/lm"].value == 75.0
    assert found["race/icat"].value == 75.0
    assert found["race/ss"].n == 3
    assert found["race/ss"].terms == 2
    assert found["gender/ss"].value == 50.0  # equal scores count one half
    assert found["overall/ss"].value == pytest.approx(50.0, abs=1e-4)
    assert found["overall/lm"].value == pytest.approx((100 + 50 + 100) / 3, abs=1e-4)


def test_crows_pairs():
    pairs = (
        bias.Pair("0", "age", "stereo", "m", "l"),
        bias.Pair("1", "age", "antistereo", "m", "l"),
        bias.Pair("2", "gender", "stereo", "m", "l"),
        bias.Pair("3", "gender", "stereo", "m", "l"),
    )
    found = bias.CrowSPairs(pairs=pairs).figures(_rows([-1, -2], [-2, -1], [-1, -1], None))
    values = {name: entry.value for name, entry in found.items()}
    assert values == {
        "age/stereotype": 50.0,
        "gender/stereotype": 0.0,
        "overall/stereo": 100.0,  # without the pair of equal scores, as by the authors
        "overall/antistereo": 0.0,
        "overall/neutral": pytest.approx(100 / 3, abs=1e-4),
        "overall/stereotype": pytest.approx(100 / 3, abs=1e-4),
    }


def test_a_sentence_score_is_a_mean_over_tokens():
    rows = [{"id": "0", "logps": [-4.0, -3.0], "tokens": [4, 2]}]
    found = bias.CrowSPairs(pairs=(bias.Pair("0", "age", "stereo", "m", "l"),)).figures(rows)
    assert found["overall/stereotype"].value == 100.0


def test_stereoset_files(tmp_path):
    sentences = [("s", "stereotype"), ("a", "anti-stereotype"), ("u", "unrelated")]
    published = {
        "id": "1",
        "target": "X",
        "bias_type": "race",
        "sentences": [{"sentence": s, "gold_label": k} for s, k in reversed(sentences)],
    }
    official = tmp_path / "dev.json"
    official.write_text(json.dumps({"data": {"intrasentence": [published], "intersentence": []}}, indent=1))
    hub = published | {"sentences": {"sentence": ["a", "s", "u"], "gold_label": [0, 1, 2]}}
    flat = {
        "id": "1",
        "target": "x",
        "bias_type": "race",
        "stereotype": "s",
        "anti_stereotype": "a",
        "unrelated": "u",
    }
    want = bias.StereoSet(triplets=(bias.Triplet("1", "race", "x", ("s", "a", "u")),))
    assert bias.StereoSet.load(official) == want
    assert bias.StereoSet.load(_write(tmp_path / "hub.jsonl", [hub])) == want
    assert bias.StereoSet.load(_write(tmp_path / "flat.jsonl", [flat])) == want
    with pytest.raises(UserError, match=r"bad\.jsonl row 1: no sentence labelled unrelated"):
        bias.StereoSet.load(
            _write(tmp_path / "bad.jsonl", [published | {"sentences": published["sentences"][1:]}])
        )


def test_crows_file_as_published(tmp_path):
    (tmp_path / "c.csv").write_text(
        ",sent_more,sent_less,stereo_antistereo,bias_type\n0,More.,Less.,antistereo,age\n", encoding="utf-8"
    )
    assert bias.CrowSPairs.load(tmp_path / "c.csv").pairs == (
        bias.Pair("0", "age", "antistereo", "More.", "Less."),
    )
    with pytest.raises(UserError, match="must be stereo or antistereo"):
        bias.CrowSPairs.load(
            _write(
                tmp_path / "c.jsonl",
                [{"sent_more": "a", "sent_less": "b", "stereo_antistereo": "x", "bias_type": "age"}],
            )
        )


def _bbq(number, ambiguous, negative, gold=2):
    return bbq.Question(str(number), "Age", ambiguous, negative, "c", "q", ("a", "b", "u"), gold, 2, 0)


def test_bbq_closed_forms():
    assert bbq.bias_score(75, 100) == 0.5
    assert bbq.ambiguous_score(0.5, 0.8) == pytest.approx(0.1)
    assert math.isnan(bbq.bias_score(0, 0))
    assert bbq.ambiguous_score(math.nan, 1.0) == 0.0


def test_bbq_scores():
    pick = {0: [-1, -2, -3], 1: [-2, -1, -3], 2: [-3, -2, -1]}
    questions, chosen = [], []
    for negative, answer, gold in ((True, 0, 0), (True, 1, 1), (False, 1, 1), (False, 1, 0)):
        questions.append(_bbq(len(questions), False, negative, gold))
        chosen.append(pick[answer])
    for negative, answer in ((True, 0), (True, 2), (False, 2), (False, 2)):
        questions.append(_bbq(len(questions), True, negative))
        chosen.append(pick[answer])
    found = {
        name: entry.value for name, entry in bbq.BBQ(questions=tuple(questions)).figures(_rows(*chosen)).items()
    }
    assert found["Age/s_dis"] == 2 * 3 / 4 - 1  # the target where negative, the other one where not
    assert found["Age/accuracy_dis"] == 0.75
    assert found["Age/accuracy_amb"] == 0.75
    assert found["Age/s_amb"] == pytest.approx((1 - 0.75) * 1.0)
    assert found["overall/accuracy"] == 0.75


def test_bbq_counts_what_each_figure_is_of():
    questions = [_bbq(i, i < 3, True) for i in range(5)]
    questions[0], questions[4] = (dataclasses.replace(questions[i], target=None) for i in (0, 4))
    measure, rows = bbq.BBQ(questions=tuple(questions)), _rows(*[[-1, -2, -3]] * 5)
    found = measure.figures(rows)
    sizes = {name.partition("/")[2]: found[name].n for name in found if name.startswith("overall")}
    assert sizes == {"accuracy": 5, "accuracy_amb": 3, "accuracy_dis": 2, "s_amb": 2, "s_dis": 1}
    assert measure.counts(rows) == {"items": 5, "left_out": 0, "without_target": 2}
    untold = tuple(dataclasses.replace(question, target=None) for question in questions)
    found = bbq.BBQ(questions=untold).figures(_rows(*[[-3, -2, -1]] * 5))
    for name in ("s_amb", "s_dis"):  # also where all answers are right, which makes s_amb 0 with a target
        assert (found[f"Age/{name}"].value, found[f"Age/{name}"].n) == (None, 0)


def test_bbq_file(tmp_path):
    row = {
        "example_id": 2,
        "question_index": "1",
        "question_polarity": "nonneg",
        "context_condition": "ambig",
        "category": "Gender_identity",
        "answer_info": {"ans0": ["the girl", "girl"], "ans1": ["the boy", "boy"], "ans2": ["Unknown", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["F"]},
        "context": "Two came.",
        "question": "Who left?",
        "ans0": "The girl",
        "ans1": "The boy",
        "ans2": "Unknown",
        "label": 2,
    }
    file = _write(tmp_path / "g.jsonl", [row])
    measure = bbq.BBQ.load(file)
    (question,) = measure.questions
    assert (question.target, question.unknown, question.gold, question.negative) == (0, 2, 2, False)
    (item,) = measure.items()
    assert item.texts[1] == ("Context: Two came.\nQuestion: Who left?\nAnswer:", " The boy")
    stated = tmp_path / "metadata.csv"
    stated.write_text("category,question_index,example_id,target_loc\nGender_identity,1,2,1\n", encoding="utf-8")
    assert bbq.BBQ.load([file], stated).questions[0].target == 1
    untold = _write(tmp_path / "u.jsonl", [row | {"additional_metadata": {"stereotyped_groups": ["other"]}}])
    assert bbq.BBQ.load(untold).questions[0].target is None
    with pytest.raises(UserError, match="must be neg or nonneg"):
        bbq.BBQ.load([_write(tmp_path / "b.jsonl", [row | {"question_polarity": "x"}])])
