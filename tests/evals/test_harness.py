"""EleutherAI's harness on our models: against its own back end, against our profile, order, windows, mistakes."""

import dataclasses
import functools
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.config import SampleConfig
from common.errors import UserError
from common.evals import choice, harness
from common.evals.harness import Config, wrap
from common.evals.measure import Store
from common.generate import Request
from common.lm import LanguageModel
from common.results.files import read_jsonl
from common.results.rundir import RunDir
from common.sample import score

ROOT = Path(__file__).parents[2]
CHOICE = """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WRITE = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{reply}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 24}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
"""


@pytest.fixture(scope="module")
def student():
    return LanguageModel.load("embedded:student")


@pytest.fixture
def lm_eval():
    return pytest.importorskip("lm_eval", reason="needs the harness: pip install '.[harness]'")


def _ask(lm, kind, requests):
    from lm_eval.api.instance import Instance

    return getattr(lm, kind)([Instance(request_type=kind, doc={}, arguments=tuple(r), idx=0) for r in requests])


# ---- greedy flags beside scores


def test_greedy_flags_are_those_of_the_full_softmax(student, monkeypatch, quick_jit):
    rng = np.random.default_rng(0)
    text = student.tokenizer.encode_text("<|user|>Be short.<|user|>What is 2 and 2?<|reply|>2 + 12 = 14. #### 10")
    pairs = [(text[:4], text[4:]), (text[:1], rng.integers(3, 2000, len(text) - 1).tolist()), (text, [])]
    found = score.score_greedy(student.params, student.config, pairs, batch_size=4)
    all_logps = quick_jit(score.all_logps, static_argnums=1)
    seen = set()
    for (prompt, answer), (logps, likeliest) in zip(pairs, found, strict=True):
        tokens, places = np.array([*prompt, *answer]), len(prompt) - 1 + np.arange(len(answer))
        want = np.asarray(all_logps(student.params, student.config, tokens))[places]
        np.testing.assert_allclose(logps, want[np.arange(len(answer)), answer], atol=2e-4)
        np.testing.assert_array_equal(likeliest, want.argmax(1) == answer)
        seen |= set(likeliest.tolist())
    assert seen == {False, True}
    monkeypatch.setattr(score, "logits_at_once", lambda: 50 * student.config.vocab_size)  # in several chunks
    chunked = score.score_greedy(student.params, student.config, pairs, batch_size=5)
    for got, want in zip(chunked, found, strict=True):
        np.testing.assert_allclose(got[0], want[0], atol=1e-4)
        np.testing.assert_array_equal(got[1], want[1])


def test_the_last_token_need_not_have_a_position(student):
    tokens = [5] * (student.config.max_positions + 1)
    [(logps, _)] = score.score_greedy(student.params, student.config, [(tokens[:-3], tokens[-3:])], batch_size=2)
    assert np.isfinite(logps).all()
    with pytest.raises(UserError, match="exceeds the model's 512"):
        score.score_greedy(student.params, student.config, [(tokens, tokens[:1])])


# ---- against the harness's own back end


@pytest.mark.parametrize(("name", "batch_size"), [("student", 2), ("llama2", 1)])
def test_answers_are_those_of_the_own_model_of_the_harness(name, batch_size, lm_eval, student, fixtures, caplog):
    golden = json.loads((fixtures / "harness.json").read_text(encoding="utf-8"))[name]
    lm = wrap(student if name == "student" else LanguageModel.load(str(fixtures / name)), batch_size)
    with caplog.at_level(logging.WARNING, logger=harness.__name__):
        found = _ask(lm, "loglikelihood", [row[:2] for row in golden["loglikelihood"]])
        written = _ask(lm, "generate_until", [row[:2] for row in golden["generate_until"]])
    for (logp, greedy), (*_, want, want_greedy) in zip(found, golden["loglikelihood"], strict=True):
        assert logp == pytest.approx(want, abs=1e-3)
        assert greedy is want_greedy
    assert written == [row[2] for row in golden["generate_until"]]
    assert [record.message for record in caplog.records] == [
        f"{kind}: 1 of {count} requests are longer than the model's {lm.max_length} positions "
        "and lose their beginning"
        for kind, count in (("loglikelihood", len(found)), ("generate_until", 4))
    ]
    assert lm.cut == {"loglikelihood": 1, "generate_until": 1}
    sums = _ask(lm, "loglikelihood_rolling", [row[:1] for row in golden["loglikelihood_rolling"]])
    np.testing.assert_allclose(sums, [row[1] for row in golden["loglikelihood_rolling"]], atol=1e-3, rtol=1e-6)
    for turns, to_answer, text in golden["chat"]:
        assert lm.apply_chat_template(turns, to_answer) == text


def test_results_come_in_the_order_of_the_requests(lm_eval, student):
    texts = [("word " * (5 * i % 17), f"no. {i}") for i in range(14)]
    writing = [(context + "Go", {"until": ["."], "max_gen_toks": 3 + i}) for i, (context, _) in enumerate(texts)]
    logps, written = [], []
    for batch_size, step in ((2, 1), (32, -1)):
        lm = wrap(student, batch_size)
        logps.append([logp for logp, _ in _ask(lm, "loglikelihood", texts[::step])[::step]])
        written.append(_ask(lm, "generate_until", writing[::step])[::step])
    np.testing.assert_allclose(*logps, atol=2e-4)
    assert len(set(logps[0])) == 14
    assert written[0] == written[1]


def test_samples_depend_on_seed_context_and_number(lm_eval, student):
    asked = [("Once upon a time", {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0})] * 3
    first = _ask(wrap(student), "generate_until", asked)
    assert len(set(first)) == 3
    assert _ask(wrap(student, batch_size=2), "generate_until", asked[:2]) == first[:2]
    assert _ask(wrap(student, seed=1), "generate_until", asked) != first
    [greedy] = _ask(wrap(student), "generate_until", [(asked[0][0], {"max_gen_toks": 8, "temperature": 0.0})])
    [whole] = _ask(wrap(student), "generate_until", [("", {"max_gen_toks": 4, "num_beams": 1})])
    assert greedy not in first
    assert whole


# ---- tasks of one's own


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, student):
    """A folder with tasks of three kinds about the same rows, whose options have as many tokens as each other."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for i in range(12):
        options = [str(2 * i + 10), str(3 * i + 10), str(i + 20), str(5 * i + 11)]
        rows.append({"question": f"What is {i + 5} and {i + 5}?", "choices": options, "answer": i % 4})
    requests = [Request(str(i), ({"role": "user", "content": row["question"]},)) for i, row in enumerate(rows)]
    sampling = SampleConfig(max_new_tokens=24, stop=("\n\n",))
    for batch in student.generator().generate(requests, sampling, seed=0):
        for record in batch:
            rows[int(record.id)]["reply"] = record.text
    rows[3]["reply"] = "something else"
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {json.dumps(str(folder / 'rows.jsonl'))}}}\n"
    )
    files += f"  cache_dir: {json.dumps(str(folder / 'cache'))}\ntest_split: test\n"
    for name, text in (("choice", CHOICE), ("write", WRITE), ("rolling", ROLLING)):
        (folder / f"own_{name}.yaml").write_text(f"task: own_{name}\n{files}{text}", encoding="utf-8")
    return folder


def _evaluate(lm, name, folder, **settings):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=0, **settings)


def test_multiple_choice_is_that_of_our_profile(lm_eval, student, tasks, tmp_path):
    results = _evaluate(wrap(student), "own_choice", tasks)
    measure = choice.MultipleChoice.load(tasks / "rows.jsonl", layout="answer")
    with RunDir.open(tmp_path / "run", "test", {}) as run:
        found = measure.measure(student, Store(run))
        rows = read_jsonl(run.path / "choice.jsonl")
    samples = sorted(results["samples"]["own_choice"], key=lambda sample: sample["doc_id"])
    logps = [[float(response[0][0]) for response in sample["resps"]] for sample in samples]
    np.testing.assert_allclose(logps, [row["logps"] for row in rows], atol=2e-4)
    right = [
        int(np.argmax(row["logps"]) == question.gold)
        for row, question in zip(rows, measure.questions, strict=True)
    ]
    assert results["results"]["own_choice"]["acc,none"] == pytest.approx(np.mean(right))
    assert all(len(set(row["tokens"])) == 1 for row in rows)  # so that means rank options as sums do
    assert found.figures["accuracy"].value == found.figures["acc"].value
    assert found.figures["accuracy"].value == pytest.approx(np.mean(right), abs=1e-4)
    assert results["config"]["model"] == "embedded:student"
    assert results["config"]["requests_cut"] == {"loglikelihood": 0}


@pytest.mark.parametrize("name", ["student", "llama2"])
def test_acc_and_acc_norm_of_our_profile_are_those_of_the_harness(
    name, lm_eval, student, tasks, fixtures, tmp_path
):
    """Options of very different lengths, so that sums, means by tokens and means by characters differ."""
    rng = np.random.default_rng(0)
    words = "one two three and is 12 7 cups pens of the ünter".split()
    rows = []
    for i in range(40):
        options = [" ".join(rng.choice(words, n)) for n in rng.permutation([1, 2, 4, 7])]
        rows.append({"question": f"What is {i}?", "choices": options, "answer": i % 4})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = (tasks / "own_choice.yaml").read_text(encoding="utf-8").replace(str(tasks), str(tmp_path))
    (tmp_path / "own_choice.yaml").write_text(text, encoding="utf-8")
    model = student if name == "student" else LanguageModel.load(str(fixtures / name))
    results = _evaluate(wrap(model), "own_choice", tmp_path)["results"]["own_choice"]
    found = choice.MultipleChoice.load(tmp_path / "rows.jsonl", layout="answer").measure(model).figures
    for figure in ("acc", "acc_norm"):
        assert found[figure].value == pytest.approx(results[f"{figure},none"], abs=1e-4)
        assert found[figure].n == 40
        assert "harness" in found[figure].scorer
    assert len({found[figure].value for figure in ("accuracy", "acc", "acc_norm")}) > 1


def test_answers_in_the_chat_template_are_those_of_our_generator(lm_eval, student, tasks):
    results = _evaluate(wrap(student), "own_write", tasks, apply_chat_template=True)
    assert results["results"]["own_write"]["exact_match,none"] == pytest.approx(11 / 12)


def test_perplexity_of_whole_texts(lm_eval, student, tasks):
    lm = wrap(student)
    results = _evaluate(lm, "own_rolling", tasks, limit=5)
    texts = [question.context for question in choice.MultipleChoice.load(tasks / "rows.jsonl", limit=5).questions]
    pairs = [([lm.prefix_token_id], student.tokenizer.encode_text(text)) for text in texts]
    nats = -sum(float(logps.sum()) for logps in score.score(student.params, student.config, pairs))
    words = sum(len(text.split()) for text in texts)
    found = results["results"]["own_rolling"]["word_perplexity,none"]
    assert found == pytest.approx(np.exp(nats / words), rel=1e-4)


# ---- the command, and mistakes


@pytest.fixture
def own_only(lm_eval, monkeypatch):
    """The tasks of the harness itself left out: reading their names takes seconds."""
    import lm_eval.tasks as module

    manager = functools.partial(module.TaskManager, include_defaults=False)
    monkeypatch.setattr(module, "TaskManager", manager)


def test_the_command_prints_and_writes_results(own_only, tasks, tmp_path, capsys):
    file = tmp_path / "new" / "results.json"
    words = ["--tasks", "own_cho*", "--include-path", str(tasks), "--limit", "4", "--num-fewshot", "1"]
    harness.main([*words, "--batch-size", "3", "--apply-chat-template", "--output", str(file)])
    assert "|own_choice|" in capsys.readouterr().out
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert stored["results"]["own_choice"]["sample_len"] == 4
    assert stored["n-shot"] == {"own_choice": 1}
    assert stored["config"]["batch_size"] == 3
    assert "samples" not in stored


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no task"),
        ({"tasks": ("x",), "include_path": "no/such"}, "there is no such folder"),
        ({"tasks": ("x",), "limit": 0}, "--limit must be at least 1, not 0"),
        ({"tasks": ("x",), "batch_size": 0}, "--batch-size must be at least 1"),
        ({"tasks": ("x",), "output": str(ROOT)}, "--output .* cannot be written"),
        ({"tasks": ("x",), "output": f"{__file__}/results.json"}, "--output .* cannot be written"),
    ],
)
def test_settings_are_checked_first(settings, message):
    with pytest.raises(UserError, match=message):
        harness.run(Config(**settings))


def test_without_the_harness_one_line_says_how_to_get_it(student, monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    for start in (lambda: wrap(student), lambda: harness.run(Config(tasks=("x",)))):
        with pytest.raises(UserError, match=r"not installed: pip install '\.\[harness\]'"):
            start()


def test_a_mistake_is_one_line_and_status_2():
    words = [
        sys.executable,
        "-m",
        "common.evals.harness",
        "--tasks",
        "x",
        "--include-path",
        "no/such",
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: --include-path no/such: there is no such folder\n"


def test_unknown_tasks_and_missing_data(own_only, tasks, tmp_path):
    with pytest.raises(UserError, match="unknown task 'own_choise': did you mean own_choice"):
        harness.run(Config(tasks=("own_choise",), include_path=str(tasks)))
    text = (tasks / "own_choice.yaml").read_text(encoding="utf-8").replace("rows.jsonl", "none.jsonl")
    (tmp_path / "own_choice.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="cannot read or run own_choice "):
        harness.run(Config(tasks=("own_choice",), include_path=str(tmp_path)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "test_split: test",
            "test_split: dev",
            r"cannot read or run own_choice \(KeyError: 'dev'\): fix the task",
        ),
        ("{{question}}", "{{other}}", "UndefinedError: 'other' is undefined"),
        ("multiple_choice", "several", "ValueError: Got invalid output_type"),
        ("rows.jsonl", "torn.jsonl", "JSON parse error"),
        ("test_split", "process_docs: !function own.leave\ntest_split", r"own_choice \(SystemExit: 0\)"),
        ("", "", "Sample larger than population.*, or --num-fewshot 99 if rows are fewer"),
    ],
)
def test_mistakes_in_tasks_and_data(old, new, message, own_only, tasks, tmp_path):
    (tasks / "torn.jsonl").write_text('{"question": "x"\nnot JSON\n', encoding="utf-8")
    text = (tasks / "own_choice.yaml").read_text(encoding="utf-8").replace(old, new)
    (tmp_path / "own_choice.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "own.py").write_text("def leave(rows):\n    raise SystemExit(0)\n")
    with pytest.raises(UserError, match=message) as raised:
        harness.run(Config(tasks=("own_choice",), include_path=str(tmp_path), num_fewshot=None if old else 99))
    assert "\n" not in str(raised.value)


def test_an_error_of_our_own_is_no_mistake_in_a_task(own_only, tasks, monkeypatch):
    def fail(*_):
        raise ValueError("ours")

    monkeypatch.setattr(harness, "score_greedy", fail)
    with pytest.raises(ValueError, match="ours"):
        harness.run(Config(tasks=("own_choice",), include_path=str(tasks)))


@pytest.mark.parametrize(
    ("kind", "request_", "message"),
    [
        ("loglikelihood", ("a", "word " * 600), "continuation of .* tokens cannot be scored by a model of 512"),
        ("loglikelihood", ("a", ""), "a continuation of 0 tokens"),
        ("generate_until", ("a", {"typical_p": 0.5}), "generation settings typical_p: there are do_sample"),
        (
            "generate_until",
            ("a", {"temperature": "hot"}),
            "could not convert string to float: 'hot'",
        ),
        ("generate_until", ("a", {"max_gen_toks": 512}), "leave no room .* --gen-kwargs max_gen_toks=N"),
    ],
)
def test_requests_that_cannot_be_met(kind, request_, message, lm_eval, student):
    with pytest.raises(UserError, match=message):
        _ask(wrap(student), kind, [request_])


def test_a_model_without_a_template(own_only, tasks, fixtures):
    settings = Config(model=str(fixtures / "llama2"), tasks=("own_write",), include_path=str(tasks))
    with pytest.raises(UserError, match="no chat template: leave out --apply-chat-template"):
        harness.run(dataclasses.replace(settings, apply_chat_template=True))
    with pytest.raises(UserError, match="max_gen_toks=N"):
        harness.run(dataclasses.replace(settings, gen_kwargs="max_gen_toks=300"))
