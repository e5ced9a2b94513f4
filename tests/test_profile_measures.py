"""The measures of a profile on hand-made rows: closed forms, denominators, files."""

import json
import math

import numpy as np
import pytest

from active_inheritance.profile import bbq, bias, choice, preference, scorers, text, toxicity
from active_inheritance.profile.figures import Scorer, drawn_figures, mean_figure, relative_change
from common.calibration import ece
from common.errors import UserError


def _rows(*logps, tokens=1):
    return [{"id": str(i), "logps": row, "tokens": row and [tokens] * len(row)} for i, row in enumerate(logps)]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- figures


def test_a_figure_has_value_interval_n_and_scorer():
    found = mean_figure([0.0, 1.0, math.nan, None] * 50, Scorer("mine", "3"), scale=100)
    assert found == found | {"value": 50.0, "n": 100, "scorer": "mine", "version": "3"}
    low, high = found["ci95"]
    assert 35 < low < 45 < 55 < high < 65
    assert mean_figure([math.nan], Scorer("mine"))["value"] is None
    assert mean_figure([2.0], Scorer("mine"))["ci95"] is None


def test_one_bootstrap_serves_several_figures():
    values = np.arange(40.0)
    found = drawn_figures(
        lambda d: {"mean": values[d].mean(), "double": 2 * values[d].mean()}, 40, 80, Scorer("x")
    )
    assert found["mean"]["value"] == 19.5
    assert found["mean"]["n"] == 80
    assert found["double"]["ci95"] == pytest.approx([2 * x for x in found["mean"]["ci95"]], abs=1e-4)
    assert drawn_figures(lambda d: {"none": math.nan}, 3, 3, Scorer("x"))["none"]["value"] is None
    assert drawn_figures(lambda d: {}, 0, 0, Scorer("x")) == {}


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [(65.2, 43.2, -33.7), (70.3, 43.2, -38.5), (71.7, 50.7, -29.3), (68.1, 50.7, -25.6)],
)
def test_relative_change(before, after, change):
    assert round(relative_change(before, after), 1) == change


# ---- toxicity


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
    assert found["expected_maximum"]["value"] == pytest.approx(60.0, abs=1e-5)
    assert found["probability"]["value"] == 50.0
    assert found["mean"]["value"] == pytest.approx(37.5, abs=1e-5)
    edge = toxicity.figures(_continuations({"a": [0.5], "b": [0.4999]}))
    assert edge["probability"]["value"] == 50.0


def test_empty_continuations_are_counted_and_both_denominators_shown():
    rows = _continuations(
        {"a": [0.9, "empty"], "b": ["empty", "empty"], "c": ["failed", "failed"], "d": [None, 0.3]}
    )
    found, counts = toxicity.figures(rows), toxicity.counts(rows)
    assert found["expected_maximum"]["value"] == pytest.approx(60.0, abs=1e-5)
    assert found["expected_maximum"]["n"] == 2
    assert found["expected_maximum_all_prompts"]["value"] == pytest.approx(40.0, abs=1e-5)
    assert found["expected_maximum_all_prompts"]["n"] == 3
    assert found["probability"]["value"] == 50.0
    assert found["probability_all_prompts"]["value"] == pytest.approx(100 / 3, abs=1e-5)
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


# ---- bias


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
    found = bias.stereoset_figures(triplets, rows)
    assert found["race/ss"]["value"] == 50.0  # terms 100 and 0, though two of three contexts are stereotyped
    assert found["race/lm"]["value"] == 75.0
    assert found["race/icat"]["value"] == 75.0
    assert found["race/ss"]["n"] == 3
    assert found["race/ss"]["terms"] == 2
    assert found["gender/ss"]["value"] == 50.0  # equal scores count one half
    assert found["overall/ss"]["value"] == pytest.approx(50.0, abs=1e-5)
    assert found["overall/lm"]["value"] == pytest.approx((100 + 50 + 100) / 3, abs=1e-5)


def test_crows_pairs():
    pairs = [
        bias.Pair("0", "age", "stereo", "m", "l"),
        bias.Pair("1", "age", "antistereo", "m", "l"),
        bias.Pair("2", "gender", "stereo", "m", "l"),
        bias.Pair("3", "gender", "stereo", "m", "l"),
    ]
    found = bias.crows_figures(pairs, _rows([-1, -2], [-2, -1], [-1, -1], None))
    values = {name: entry["value"] for name, entry in found.items()}
    assert values == {
        "age/stereotype": 50.0,
        "gender/stereotype": 0.0,
        "overall/stereo": 50.0,
        "overall/antistereo": 0.0,
        "overall/neutral": pytest.approx(100 / 3, abs=1e-5),
        "overall/stereotype": pytest.approx(100 / 3, abs=1e-5),
    }


def test_a_sentence_score_is_a_mean_over_tokens():
    rows = [{"id": "0", "logps": [-4.0, -3.0], "tokens": [4, 2]}]
    found = bias.crows_figures([bias.Pair("0", "age", "stereo", "m", "l")], rows)
    assert found["overall/stereotype"]["value"] == 100.0


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
    want = [bias.Triplet("1", "race", "x", ("s", "a", "u"))]
    assert bias.load_stereoset(official) == want
    assert bias.load_stereoset(_write(tmp_path / "hub.jsonl", [hub])) == want
    assert bias.load_stereoset(_write(tmp_path / "flat.jsonl", [flat])) == want
    with pytest.raises(UserError, match=r"bad\.jsonl row 1: no sentence labelled unrelated"):
        bias.load_stereoset(
            _write(tmp_path / "bad.jsonl", [published | {"sentences": published["sentences"][1:]}])
        )


def test_crows_file_as_published(tmp_path):
    (tmp_path / "c.csv").write_text(
        ",sent_more,sent_less,stereo_antistereo,bias_type\n0,More.,Less.,antistereo,age\n", encoding="utf-8"
    )
    assert bias.load_crows(tmp_path / "c.csv") == [bias.Pair("0", "age", "antistereo", "More.", "Less.")]
    with pytest.raises(UserError, match="must be stereo or antistereo"):
        bias.load_crows(
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
    found = {name: entry["value"] for name, entry in bbq.figures(questions, _rows(*chosen)).items()}
    assert found["Age/s_dis"] == 2 * 3 / 4 - 1  # the target where negative, the other one where not
    assert found["Age/accuracy_dis"] == 0.75
    assert found["Age/accuracy_amb"] == 0.75
    assert found["Age/s_amb"] == pytest.approx((1 - 0.75) * 1.0)
    assert found["overall/accuracy"] == 0.75


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
    (question,) = bbq.load_bbq([file])
    assert (question.target, question.unknown, question.gold, question.negative) == (0, 2, 2, False)
    (item,) = bbq.items_of([question])
    assert item.texts[1] == ("Context: Two came.\nQuestion: Who left?\nAnswer:", " The boy")
    stated = tmp_path / "metadata.csv"
    stated.write_text("category,question_index,example_id,target_loc\nGender_identity,1,2,1\n", encoding="utf-8")
    assert bbq.load_bbq([file], stated)[0].target == 1
    untold = _write(tmp_path / "u.jsonl", [row | {"additional_metadata": {"stereotyped_groups": ["other"]}}])
    assert bbq.load_bbq([untold])[0].target is None
    with pytest.raises(UserError, match="must be neg or nonneg"):
        bbq.load_bbq([_write(tmp_path / "b.jsonl", [row | {"question_polarity": "x"}])])


# ---- calibration and utility


def test_choice_rows_as_published_on_the_hub_and_flat():
    of = lambda row: choice.question_of(row, "here", "7")
    hella = {"ctx": "A man sits.", "activity_label": "Sitting", "endings": ["He", "She"], "label": "1"}
    assert of(hella) == choice.Question("7", "Sitting: A man sits.", ("He", "She"), 1)
    flat = {"id": "q", "question": "Which?", "choices": ["x", "y", "z"], "answer": 2}
    assert of(flat) == choice.Question("q", "Which?", ("x", "y", "z"), 2)
    hub = {"question_stem": "Which?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
    assert of(hub) == choice.Question("7", "Which?", ("x", "y"), 1)
    numbered = {"question": "Which?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"}
    assert of(numbered).gold == 0
    stem = {
        "question": {"stem": "Which?", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]},
        "answerKey": "A",
    }
    assert of(stem) == choice.Question("7", "Which?", ("x", "y"), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "no question"),
        ({"choices": ["x"]}, "two options"),
        ({"answer": 5}, "'5' is none of 0, 1"),
        ({"answer": None}, "no right option"),
        ({"choices": ["x", ""]}, "here option 1: field 'text' is empty"),
    ],
)
def test_bad_choice_rows(change, message):
    with pytest.raises(UserError, match=message):
        choice.question_of({"question": "Which?", "choices": ["x", "y"], "answer": 0} | change, "here", "0")


def test_accuracy_and_calibration_of_questions_that_fit():
    questions = [choice.Question(str(i), "q", ("x", "y"), gold) for i, gold in enumerate((0, 0, 1, 0))]
    likely = [2 * math.log(0.8), 2 * math.log(0.2)]  # of two tokens: 0.8 and 0.2 each
    rows = _rows(likely, likely, likely, None, tokens=2)
    answers = choice.Answers.of(questions, rows)
    found = choice.figures(answers)
    assert answers.left_out == 1
    assert found["accuracy"]["value"] == pytest.approx(2 / 3, abs=1e-5)
    assert found["accuracy"]["n"] == 3
    assert found["confidence"]["value"] == pytest.approx(0.8, abs=1e-5)
    assert found["ece_1_bin"]["value"] == pytest.approx(0.8 - 2 / 3, abs=1e-5)
    assert found["brier"]["value"] == pytest.approx((2 * (0.04 + 0.04) + 2 * 0.64) / 3, abs=1e-5)
    assert choice.Answers.of(questions[:1], _rows(None)) is None
    assert ece([0.8] * 5, [1, 1, 1, 0, 0], 1) == pytest.approx(0.2)
    confidence, accuracy = choice.reliability(answers, 2)
    assert confidence == pytest.approx([0.8, 0.8])
    assert accuracy == [1.0, 0.0]


def test_layouts():
    (plain,), (answer,) = (
        choice.items_of([choice.Question("0", "Why?", ("x", "y"), 0)], layout) for layout in ("plain", "answer")
    )
    assert plain.texts[0] == ("Why?", " x")
    assert answer.texts[1] == ("Question: Why?\nAnswer:", " y")


# ---- text


def test_prompts_of_real_toxicity_prompts_and_others(tmp_path):
    nested = _write(tmp_path / "n.jsonl", [{"prompt": {"text": "Once", "toxicity": 0.9}}])
    assert text.load_prompts(nested, None) == [text.Prompt("0", "Once")]
    named = _write(tmp_path / "d.jsonl", [{"id": 4, "inputs": "How?", "targets": "So."}])
    assert text.load_prompts(named, None) == [text.Prompt("4", "How?")]
    assert text.load_prompts(named, "targets")[0].text == "So."
    with pytest.raises(UserError, match="comes twice"):
        text.load_prompts(_write(tmp_path / "t.jsonl", [{"id": 1, "text": "a"}, {"id": 1, "text": "b"}]), None)
    with pytest.raises(UserError, match="--prompt-column"):
        text.load_prompts(_write(tmp_path / "x.jsonl", [{"words": "a"}]), None)


def test_text_figures_say_how_they_were_made():
    texts = ["The important cat sat. The dog ran."] * 2 + ["One two three, and four.", ""]
    found = text.figures(texts, "official")
    assert found["gunning_fog"]["n"] == 3
    assert found["tokens"]["n"] == 4
    assert found["tokens"]["version"].startswith("official")
    assert found["mtld"]["short"] == 4
    assert found["self_bleu"]["ci95"] is None
    assert found["self_bleu"]["n"] == 3
    assert found["self_bleu"]["value"] > 0.5


@pytest.mark.parametrize(("batch", "slots"), [(1, 1), (3, 2), (32, 32), (500, 128)])
def test_slots(batch, slots):
    assert text.slots_for(batch) == slots


# ---- preference


def test_preference_cancels_what_a_place_has_going_for_it():
    pairs = [preference.Pair(str(i), "p", "x", "y", human) for i, human in enumerate((1, 1, 0, None))]
    rows = _rows([-1, -3, -2, -1.5], [-1, -3, -1, -2], [-1, -2, -1, -2], None)
    assert preference.choices(rows) == [1.0, 1.0, 0.5, None]
    found = preference.figures(pairs, rows)
    assert found["consistent"]["value"] == pytest.approx(100 / 3, abs=1e-5)
    assert found["letter_a"]["value"] == pytest.approx(100 * 5 / 6, abs=1e-5)
    assert found["agreement_with_people"]["value"] == pytest.approx(100 * 2.5 / 3, abs=1e-5)
    assert preference.agreement([1.0, 0.0, 0.5, None], [1.0, 1.0, 1.0, 0.0])["value"] == pytest.approx(
        50.0, abs=1e-5
    )


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A", "A"),
        (" b.", "B"),
        ("Answer B is better", "B"),
        ("**A**", "A"),
        ("Both", None),
        (None, None),
        ("", None),
    ],
)
def test_letters(reply, letter):
    assert preference.letter_of(reply) == letter
