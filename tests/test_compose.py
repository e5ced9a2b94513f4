"""Methods together: the best of several replies as LLM2LLM's teacher, failing queries as its seeds."""

import dataclasses
import json
import pathlib
import re

import pytest

from active_inheritance.best_of import PickBest
from common.backends.budget import BUDGET_SPENT, Budget
from common.backends.callback import CallbackGenerator
from common.backends.endpoint import EndpointGenerator
from common.backends.replies import Replies
from common.config import SampleConfig
from common.errors import UserError
from common.generate import Record, Request
from common.lm import LanguageModel
from common.results.files import read_json, read_jsonl
from common.tasks.arithmetic import Arithmetic
from common.text.textstats import METRICS
from fault_server import FaultServer
from llm2llm.config import Config
from llm2llm.experiment import run
from run import main

ROOT = pathlib.Path(__file__).parent.parent
SECTION = (ROOT / "RESULTS.md").read_text("utf-8").partition("\n## The methods compose\n")[2]
LONGEST = PickBest(4, ("words:max",))
HOT = SampleConfig(32, temperature=1.0)
SMALL = {"seed_examples": 8, "rounds": 2, "per_wrong": 2, "epochs": 1.0, "batch_size": 8, "repeats": 1}


def ask(*names, n=1):
    return [Request(name, ({"role": "user", "content": f"Write {name}."},), n) for name in names]


def records_of(generator, requests, seed=0):
    return [record for batch in generator.generate(requests, HOT, seed) for record in batch]


class Canned:
    """A generator whose samples stand in a list for each request, in batches of `batch` records."""

    name = "canned"

    def __init__(self, replies, batch=100):
        self.replies, self.batch, self.told = replies, batch, []

    def generate(self, requests, sampling, seed):
        records = [
            dataclasses.replace(self.replies[request.id][sample], id=request.id, sample=sample)
            for request in requests
            for sample in range(request.n)
        ]
        for i in range(0, len(records), self.batch):
            yield records[i : i + self.batch]

    def seen(self, records):
        self.told += records


def reply(text, status="ok", error=None):
    return Record("", 0, status, text, error, prompt_tokens=10, completion_tokens=len((text or "").split()))


FAILED = reply(None, "failed", "no luck")
UNPAID = dataclasses.replace(reply(None, "failed", BUDGET_SPENT), attempts=0, prompt_tokens=0)


# --- the pick ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["words:max", "mtld:max", "characters:min", "words:target=20"])
def test_the_picked_reply_is_the_best_of_those_the_model_wrote(objective):
    teacher = LanguageModel.load("embedded:teacher").generator()
    pick = PickBest(4, (objective,))
    problems = Arithmetic().load("train", None, 3)[:8]
    requests = [Request(e.id, Arithmetic().teacher_messages(e)) for e in problems]
    wide = SampleConfig(96, temperature=0.8, top_p=0.95)
    picked = [r for batch in pick(teacher).generate(requests, wide, 7) for r in batch]
    sampled = [dataclasses.replace(request, n=4) for request in requests]
    every = [r for batch in teacher.generate(sampled, wide, 7) for r in batch]
    (aim,) = pick.rule.objectives
    gain = lambda record: aim.gain(METRICS[aim.name].function(record.text))
    assert [record.id for record in picked] == [request.id for request in requests]
    for i, record in enumerate(picked):
        group = every[4 * i : 4 * i + 4]
        assert record.text in [r.text for r in group]
        assert gain(record) == max(gain(r) for r in group if r.status == "ok")
        assert record.prompt_tokens == sum(r.prompt_tokens for r in group)
        assert record.completion_tokens == sum(r.completion_tokens for r in group)
        assert (record.sample, record.attempts) == (0, 4)


def test_a_constraint_is_met_where_any_reply_meets_it():
    replies = {"a": [reply("one two three four"), reply("one two three"), reply("one"), reply("one two")]}
    pick = PickBest(4, ("words:max",), ("words<=3",))
    assert [r.text for r in records_of(pick(Canned(replies)), ask("a"))] == ["one two three"]


def test_records_do_not_depend_on_waves_or_on_where_a_run_goes_on():
    replies = {f"r{i}": [reply(" ".join("abcdefgh"[: (3 * i + j) % 7 + 1])) for j in range(8)] for i in range(6)}
    whole = records_of(LONGEST(Canned(replies)), ask(*replies, n=2))
    assert [(r.id, r.sample) for r in whole] == [(f"r{i}", sample) for i in range(6) for sample in (0, 1)]
    for batch in (1, 3, 4, 7):
        assert records_of(LONGEST(Canned(replies, batch)), ask(*replies, n=2)) == whole
    assert records_of(LONGEST(Canned(replies)), ask(*list(replies)[2:], n=2)) == whole[4:]


def test_of_one_reply_it_is_that_reply():
    replies = {"a": [reply("one"), reply("two words")]}
    assert records_of(PickBest(1, ("words:max",))(Canned(replies)), ask("a", n=2)) == records_of(
        Canned(replies), ask("a", n=2)
    )


@pytest.mark.parametrize(
    ("samples", "text", "status", "error", "attempts"),
    [
        ([reply("a b c", "length"), reply("a b"), FAILED, reply("")], "a b", "ok", None, 4),
        ([reply("go on " * 9), reply("stop"), FAILED, UNPAID], "stop", "ok", None, 3),
        ([FAILED, reply("a b c", "length"), FAILED, FAILED], "a b c", "length", None, 4),
        ([FAILED, FAILED, UNPAID, UNPAID], None, "failed", "no luck", 2),
        ([UNPAID, FAILED, UNPAID, UNPAID], None, "failed", "no luck", 1),
        ([UNPAID] * 4, None, "failed", BUDGET_SPENT, 0),
    ],
)
def test_samples_that_fail_are_not_picked_and_are_counted(samples, text, status, error, attempts):
    (record,) = records_of(LONGEST(Canned({"a": samples})), ask("a"))
    assert (record.text, record.status, record.error, record.attempts) == (text, status, error, attempts)
    assert record.prompt_tokens == sum(s.prompt_tokens for s in samples)


def test_a_function_of_the_user_s_picks(tmp_path):
    file = tmp_path / "score.py"
    file.write_text("def last(prompt, answer):\n    assert prompt == 'Write a.'\n    return ord(answer[-1])\n")
    pick = PickBest(3, (f"python:{file}:last:max",))
    (record,) = records_of(pick(Canned({"a": [reply("b c"), reply("x z"), reply("y a")]})), ask("a"))
    assert record.text == "x z"
    before = pick.stored
    file.write_text(file.read_text().replace("-1", "0"))
    assert pick.stored["files"].keys() == before["files"].keys()
    assert pick.stored != before


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ((0, ("words:max",)), "k of at least 1"),
        ((4, ()), "an objective"),
        ((4, ("words",)), "give SCORE:max"),
        ((4, ("beauty:max",)), "no metric 'beauty'"),
        ((4, ("column:rating:max",)), "a fresh reply has none"),
        ((4, ("words:max",), ("words=3",)), "give SCORE>=NUMBER"),
    ],
)
def test_mistakes_are_one_line(settings, what):
    with pytest.raises(UserError, match=re.escape(what)) as raised:
        PickBest(*settings)
    assert "\n" not in str(raised.value)


def test_equal_replies_are_refused():
    with pytest.raises(UserError, match="all replies are alike"):
        LONGEST(Canned({})).generate(ask("a"), SampleConfig(8, temperature=0.0), 0)


def test_who_wrapped_it_is_told_what_was_stored():
    source = Canned({})
    LONGEST(source).seen([FAILED])
    assert source.told == [FAILED]


# --- in a run of LLM2LLM ----------------------------------------------------------------------------------------


def small_files(folder):
    files = {}
    for split, count in (("train", 24), ("test", 12)):
        rows = [dataclasses.asdict(e) for e in Arithmetic().load(split, None, 5)[:count]]
        file = folder / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[f"{split}_file"] = str(file)
    return files


@pytest.mark.long
def test_a_run_counts_every_call_and_holds_to_its_pick(tmp_path):
    """The label check asks the teacher itself; another pick, or none, is refused in the same folder."""
    calls, checks = [], []

    def write(messages):
        text = messages[-1]["content"]
        if "Problem:" not in text:
            checks.append(text)
            return "#### 7"
        calls.append(text)
        count = len(calls)
        more = " and cows" * (count % 4 == 2)
        return f"Problem: Ada has {count} hens{more}. How many has she?\nSolution: 3 + 4 = 7. #### 7"

    arms = ("llm2llm", "untargeted", "auggpt")
    given = SMALL | small_files(tmp_path) | {"target": "all", "rouge_l": 1.0, "arms": arms}
    config = Config(**given, run_dir=str(tmp_path / "run"))
    summary = run(config, write, refine=LONGEST)
    cost = summary["accounting"]
    assert [cost[arm]["teacher_calls"] for arm in arms] == [4 * 16] * 3
    assert len(calls) == 3 * 4 * 16
    assert sum(cost[arm]["check_calls"] for arm in arms) == len(checks)
    new = read_jsonl(tmp_path / "run/repeat_0/llm2llm/round_0/new.jsonl")
    assert len(new) == 16
    assert all("and cows" in row["question"] for row in new)
    assert {row["teacher"] for row in new} == {f"function:{write.__qualname__}, best of 4 by words:max"}
    assert read_json(tmp_path / "run/config.json")["config"]["refine"]["objective"] == ["words:max"]
    assert "best of 4 by words:max" in (tmp_path / "run/report.html").read_text()
    assert summary["new_questions"]["llm2llm"]["self_bleu"] == [None]
    assert run(config, write, refine=LONGEST) == summary
    for other in (None, PickBest(3, ("words:max",))):
        with pytest.raises(UserError, match="another configuration"):
            run(config, write, refine=other)


def test_a_pool_cannot_be_picked_from(tmp_path):
    files = small_files(tmp_path)
    config = Config(**SMALL, **files, teacher=f"pool:{files['train_file']}", run_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="gives out every example once"):
        run(config, refine=LONGEST)
    assert not (tmp_path / "run").exists()


def test_a_hosted_teacher_is_paid_for_every_reply_and_all_are_kept(tmp_path, monkeypatch):
    """20 calls for two arms. llm2llm buys two examples of four replies and half of a third; untargeted, which may
    ask for as many whole ones, two. All replies lie in the store, and a second run buys nothing."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    given = SMALL | small_files(tmp_path) | {"rounds": 3, "target": "all", "label_check": "none", "rouge_l": 1.0}
    with FaultServer(answer="Problem: {} again?\nSolution: #### 7") as server:
        config = Config(
            **given,
            teacher="openai:m",
            teacher_url=server.url,
            budget="calls=20",
            arms=("llm2llm", "untargeted"),
            run_dir=str(tmp_path / "run"),
        )
        summary = run(config, refine=LONGEST)
        assert server.paid.total() == 18
        assert run(config, refine=LONGEST) == summary
        assert server.paid.total() == 18
    assert [summary["accounting"][arm]["teacher_calls"] for arm in ("llm2llm", "untargeted")] == [10, 8]
    with Replies(tmp_path / "run/replies.sqlite") as replies:
        assert [replies.spent(f"repeat_0/{arm}").calls for arm in ("llm2llm", "untargeted")] == [10, 8]


def test_replies_that_were_bought_are_not_bought_again(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with FaultServer(answer="{}") as server, Replies(tmp_path / "r.sqlite") as replies:
        make = lambda calls: EndpointGenerator(
            "m", url=server.url, replies=replies, scope="s", budget=Budget(calls=calls)
        )
        with make(6) as poor:
            first = records_of(LONGEST(poor), ask("a", "b", "c"))
        assert [(r.status, r.attempts) for r in first] == [("ok", 4), ("ok", 2), ("failed", 0)]
        with make(99) as rich:
            again = records_of(LONGEST(rich), ask("a", "b", "c"))
        assert [(r.status, r.attempts) for r in again] == [("ok", 4)] * 3
        assert server.paid.total() == 12


def test_a_callback_is_called_k_times():
    texts = iter(["one", "one two three", "one two", "four five six seven eight"])
    (record,) = records_of(LONGEST(CallbackGenerator("f", lambda messages: next(texts))), ask("a"))
    assert record.text == "four five six seven eight"


# --- the examples of RESULTS.md ---------------------------------------------------------------------------------


@pytest.mark.long
def test_the_snippet_of_the_results_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llm2llm.Config", lambda **given: Config(**given | SMALL | small_files(tmp_path)))
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    names = {}
    exec(compile(code, "RESULTS.md", "exec"), names)
    assert names["summary"]["status"] == "complete"
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_json(folder / "config.json")["config"]["refine"]["k"] == 4
    assert names["summary"]["accounting"]["llm2llm"]["teacher_calls"] % 4 == 0


@pytest.mark.long
def test_the_commands_of_the_results_fit_together(tmp_path, monkeypatch):
    """ReverseGen's data set is read as it lies there; every seed of LLM2LLM is a query that the target failed."""
    monkeypatch.chdir(tmp_path)
    files = small_files(tmp_path)
    flags = {"reversegen": ["--seeds-file", files["train_file"], "--test-file", files["test_file"]]}
    flags["reversegen"] += "--seed-instructions 12 --rounds 1 --prompts 8 --samples 4 --final-prompts 24".split()
    flags["reversegen"] += "--min-pairs 1 --pairing fallback --warm-up-epochs 1 --dpo-epochs 1 --epochs 1".split()
    flags["reversegen"] += "--batch-size 8 --repeats 1".split()
    flags["llm2llm"] = ["--test-file", files["test_file"], "--seed-examples", "2", "--rounds", "2"]
    flags["llm2llm"] += "--per-wrong 1 --epochs 1 --batch-size 8 --repeats 1".split()
    commands = re.findall(r"^python run\.py ((?:.*\\\n)*.*)", SECTION, re.MULTILINE)
    commands = [command for command in commands if "runs/failures" in command]
    assert [command.split()[0] for command in commands] == ["reversegen", "llm2llm"]
    for command in commands:
        words = command.replace("\\\n", " ").split()
        # As the shell would: a data file is named by its content.
        words = [str(next(tmp_path.glob(word))) if "*" in word else word for word in words]
        main(words + flags[words[0]])
    seeds = read_jsonl(tmp_path / "runs/from-failures/repeat_0/seeds.jsonl")
    labelled = [row for file in tmp_path.rglob("labelled.jsonl") for row in read_jsonl(file)]
    failing = {row["query"] for row in labelled if row["outcome"] == "fail"}
    assert {seed["question"] for seed in seeds} <= failing
    assert read_json(tmp_path / "runs/from-failures/summary.json")["status"] == "complete"
