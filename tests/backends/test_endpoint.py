"""Generation behind an endpoint: each fault ends in whole records or a named cause, nothing is bought twice."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from common.backends import endpoint, wire
from common.backends.budget import Budget, Spent
from common.backends.chat import labelled, read_reply
from common.backends.endpoint import BREAKER, BUDGET_SPENT, EndpointGenerator
from common.backends.replies import Replies
from common.config import SampleConfig
from common.errors import UserError
from common.generate import Request
from fault_server import FAULTS, FaultServer, completion

ROOT = pathlib.Path(__file__).parents[2]
SAMPLING = SampleConfig(max_new_tokens=20, temperature=0.7, top_p=0.9)
KEY = "my-dear-secret-0123456789"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """No waiting, and no settings from outside."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    # Reading the certificates takes longer than most tests, and the loopback has none.
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)
    monkeypatch.setattr(endpoint, "PAUSE", 0.0)
    monkeypatch.setattr(endpoint, "GRACE", 0.5)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def _requests(count, n=1, fields=()):
    return [Request(f"r{i}", ({"role": "user", "content": f"q{i}"},), n, fields=fields) for i in range(count)]


@contextlib.contextmanager
def _generator(server, folder, **settings):
    with Replies(folder / "replies.sqlite") as replies:
        settings = {"url": server.url, "replies": replies, "scope": "s", "concurrency": 1, **settings}
        with EndpointGenerator("m", **settings) as generator:
            yield generator


def _records(server, folder, requests, sampling=SAMPLING, **settings):
    with _generator(server, folder, **settings) as generator:
        return [record for batch in generator.generate(requests, sampling, 0) for record in batch]


def _spent(folder, scope="s"):
    with Replies(folder / "replies.sqlite") as replies:
        return replies.spent(scope)


# --- good replies ---------------------------------------------------------------------------------------------


def test_one_record_a_sample_in_order_whatever_the_concurrency(tmp_path, capfd):
    requests = _requests(8, n=2)
    with FaultServer(delay=lambda content: 0.02 * (int(content[1:]) % 3)) as server:
        for concurrency in (1, 8):
            folder = tmp_path / str(concurrency)
            folder.mkdir()
            records = _records(server, folder, requests, concurrency=concurrency)
            assert [(r.id, r.sample) for r in records] == [(r.id, i) for r in requests for i in (0, 1)]
            assert [r.text for r in records] == [f"to q{i}" for i in range(8) for _ in (0, 1)]
            assert {(r.status, r.error, r.attempts, r.prompt_tokens) for r in records} == {("ok", None, 1, 10)}
        assert _records(server, folder, []) == []
    assert server.bodies[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "q0"}],
        "max_tokens": 20,
        "temperature": 0.7,
        "top_p": 0.9,
    }
    assert capfd.readouterr() == ("", "")


def test_waves_hold_whole_requests(tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "BATCH", 8)
    with FaultServer() as server, _generator(server, tmp_path, concurrency=8) as generator:
        sizes = [len(batch) for batch in generator.generate(_requests(9, n=3), SAMPLING, 0)]
    assert sum(sizes) == 27
    assert all(size % 3 == 0 for size in sizes)
    assert min(sizes[:-1]) >= 8


def test_stored_replies_serve_the_same_request_only(tmp_path):
    requests = _requests(2, n=2)
    with FaultServer() as server:
        first = _records(server, tmp_path, requests)
        assert _records(server, tmp_path, requests[1:] + requests[:1], concurrency=4) == first[2:] + first[:2]
        assert server.paid.total() == 4
        _records(server, tmp_path, requests, SampleConfig(max_new_tokens=21))
        assert server.paid.total() == 8
        _records(server, tmp_path, [Request("other", requests[0].messages)])
        assert server.paid.total() == 9
    assert _spent(tmp_path) == Spent(9, 90, 18)


def test_an_id_that_comes_twice(tmp_path):
    with FaultServer() as server, pytest.raises(UserError, match="'r0' comes twice"):
        _records(server, tmp_path, _requests(1) * 2)


# --- faults ---------------------------------------------------------------------------------------------------

LOST = ["429", "500", "reset", "truncated", "html", "half", "error in 200", "nothing"]


@pytest.mark.parametrize("fault", [*LOST, "429 later", "hang"])
def test_a_passing_fault_leaves_no_trace(fault, tmp_path):
    # Only what hangs may run into the time limit: a busy machine can be slow to answer.
    seconds = 0.4 if fault == "hang" else 30
    with FaultServer([fault, fault if fault in LOST else None]) as server:
        records = _records(server, tmp_path, _requests(2), timeout=seconds)
        assert [r.text for r in records] == ["to q0", "to q1"]
        assert set(server.paid.values()) == {1}
        if fault == "429 later":
            assert server.times[1] - server.times[0] >= 0.4
    assert _spent(tmp_path).calls == 2


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("429", r"HTTP 429: slow down"),
        ("500", r"HTTP 500: out of order"),
        ("hang", r"timed out, 0\.1 s"),
        ("reset", r"no reply after all retries \(.*\)"),
        ("half", r"no readable reply in 3 tries"),
        ("html", r"no readable reply in 3 tries"),
    ],
)
def test_an_outage_stops_the_run_with_its_cause_and_keeps_what_was_bought(fault, cause, tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "RETRIES", 1)
    requests = _requests(12)
    # Only what hangs may run into the time limit: a busy machine can be slow to answer.
    seconds = 0.1 if fault == "hang" else 30
    with (
        FaultServer([None] * 3, always=fault) as server,
        _generator(server, tmp_path, timeout=seconds) as generator,
    ):
        batches = generator.generate(requests, SAMPLING, 0)
        with pytest.raises(
            UserError, match=f"{BREAKER} requests in a row failed at .*, model m.*{cause}"
        ) as raised:
            next(batches)
        assert "\n" not in str(raised.value)
        assert "everything bought so far is kept; the same command continues" in str(raised.value)
        server.always = None
        server.release()
        records = [record for batch in generator.generate(requests, SAMPLING, 0) for record in batch]
        assert [r.text for r in records] == [f"to q{i}" for i in range(12)]
        assert set(server.paid.values()) == {1}


def test_a_request_that_fails_alone_is_a_failed_record(tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "RETRIES", 1)
    with FaultServer([None, "500", "500"]) as server:
        records = _records(server, tmp_path, _requests(3))
        assert [r.status for r in records] == ["ok", "failed", "ok"]
        assert records[1].error == "no reply after all retries (HTTP 500: out of order)"
        assert _records(server, tmp_path, _requests(3))[1].text == "to q1"  # the failure was not stored
    assert _spent(tmp_path).calls == 3


@pytest.mark.parametrize(
    ("fault", "status", "text", "error"),
    [
        ("length", "length", "cut off in the", None),
        ("refusal", "failed", None, "refused: I will not say that"),
        ("filtered", "failed", None, "refused: content filter"),
        ("garbage", "ok", "%% \ufffd {{{ no form at all", None),
        ("no usage", "ok", "Text: long enough", None),
        ("400 long", "failed", None, "the prompt is too long: maximum context length is 4, you asked for 1"),
        ("400 filter", "failed", None, "refused: the prompt was filtered"),
    ],
)
def test_what_a_server_says_for_good_is_not_asked_again(fault, status, text, error, tmp_path):
    with FaultServer([fault]) as server:
        records = _records(server, tmp_path, _requests(2))
        assert (records[0].status, records[0].text, records[0].error) == (status, text, error)
        assert records[1].text == "to q1"
        assert len(server.bodies) == 2
        if FAULTS[fault][0] == 200:
            assert _records(server, tmp_path, _requests(2)) == records
            assert len(server.bodies) == 2
            assert records[0].completion_tokens > 0


@pytest.mark.parametrize("count", [0, -5, 10**30, 2.5, True, None, "7"])
def test_tokens_that_cannot_be_are_estimated(count, tmp_path):
    """Believed, nothing is charged and no budget binds; beyond what SQLite holds, a paid reply was lost."""
    body = json.dumps(completion("four words of text", prompt_tokens=count, completion_tokens=count))
    reply = read_reply(body, Spent(1, 33, 99))
    assert (reply.prompt_tokens, reply.completion_tokens) == (33, len("four words of text") // 4 + 1)
    with Replies(tmp_path / "replies.sqlite") as replies:
        replies.put("k", "a", reply)
        assert replies.spent("a") == Spent(1, 33, 5)
    nothing = read_reply(json.dumps(completion("", prompt_tokens=7, completion_tokens=0)), Spent(1, 33, 99))
    assert (nothing.prompt_tokens, nothing.completion_tokens) == (7, 0)


@pytest.mark.parametrize(
    ("fault", "missing"), [("no choices", "choices"), ("no content", "text"), ("empty", "text")]
)
def test_a_reply_without_text_is_asked_for_once_more(fault, missing, tmp_path):
    with FaultServer([fault, None, fault, fault]) as server:
        records = _records(server, tmp_path, _requests(3))
        assert [(r.text, r.attempts, r.prompt_tokens) for r in records] == [
            ("to q0", 2, 20),
            (None, 2, 20),
            ("to q2", 1, 10),
        ]
        assert records[1].error == f"no {missing} in the reply, asked 2 times"
        assert _records(server, tmp_path, _requests(3)) == records
        assert server.paid.total() == 5
    assert _spent(tmp_path).calls == 5


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("400", r"/v1 refuses the request for model m \(400: the moon is wrong\): change the setting it names"),
        ("401", r"/v1 does not accept the key for model m \(401: wrong key \[key\]\): set OPENAI_API_KEY"),
        ("402", r"/v1 wants payment for model m \(402: no money\): top up"),
        ("403", r"/v1 forbids the request for model m \(403: not for you\): check"),
        ("404", r"/v1 knows no such model or path for model m \(404: no such model\): check the model's name"),
        ("no credit", r"/v1 wants payment for model m \(429: no credit left\): top up"),
        ("hard limit", r"/v1 wants payment for model m \(429: limit reached\): top up"),
    ],
)
def test_a_refusal_for_all_stops_at_once_and_keeps_what_was_bought(fault, message, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultServer([None] * 2, always=fault) as server:
        with pytest.raises(UserError, match=message) as raised:
            _records(server, tmp_path, _requests(9))
        assert "\n" not in str(raised.value)
        assert "the same command continues" in str(raised.value)
        assert len(server.bodies) == 3
        server.always = None
        assert len(_records(server, tmp_path, _requests(9))) == 9
        assert set(server.paid.values()) == {1}


# --- forms ----------------------------------------------------------------------------------------------------


def test_fields_become_a_schema_and_the_object_becomes_lines(tmp_path):
    with FaultServer(answer='{{"Label": "x y", "Text": "say {}"}}') as server:
        (record,) = _records(server, tmp_path, _requests(1, fields=("Text", "Label")))
    assert record.text == "Text: say q0\nLabel: x y"
    schema = server.bodies[0]["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"] == {
        "type": "object",
        "properties": {"Text": {"type": "string"}, "Label": {"type": "string"}},
        "required": ["Text", "Label"],
        "additionalProperties": False,
    }


def test_choices_become_an_enumeration(tmp_path):
    request = Request(
        "r", ({"role": "user", "content": "q"},), fields=("Label",), choices=(("Label", ("x", "y")),)
    )
    with FaultServer(answer='{{"Label": "x"}}') as server:
        (record,) = _records(server, tmp_path, [request])
    assert record.text == "Label: x"
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"Label": {"type": "string", "enum": ["x", "y"]}}


@pytest.mark.parametrize(
    "text", ["Text: a\nLabel: b", '{"Text": "a"}', '["Text"]', '{"Text": {}, "Label": ""}', '{"Text": "a', "7"]
)
def test_other_texts_pass_as_they_came(text):
    assert labelled(text, ("Text", "Label")) == text


def test_a_server_without_schemas_is_asked_without_and_nothing_is_bought_again(tmp_path):
    requests = _requests(3, fields=("Text", "Label"))
    with FaultServer(answer='{{"Label": "b", "Text": "{}"}}') as server:
        first = _records(server, tmp_path, requests[:2])
        server.refuses = {"response_format"}
        server.answer = "Text: {}\nLabel: b"
        records = _records(server, tmp_path, requests, concurrency=4)
        assert records[:2] == first
        assert records[2].text == "Text: q2\nLabel: b"
        assert ["response_format" in body for body in server.bodies] == [True, True, True, False]
        _records(server, tmp_path, _requests(4, fields=("Text", "Label")))
        assert len(server.bodies) == 5  # the lesson is remembered
        assert set(server.paid.values()) == {1}


def test_parameters_that_a_server_does_not_know_are_given_up_once(tmp_path, caplog):
    sampling = SampleConfig(max_new_tokens=20, temperature=0.7, top_p=0.9, top_k=5, stop=("\n\n",))
    with FaultServer(refuses=["max_tokens", "temperature", "top_k"]) as server:
        assert len(_records(server, tmp_path, _requests(6), sampling, concurrency=3)) == 6
        assert server.paid.total() == 6
        assert set(server.bodies[-1]) == {"model", "messages", "max_completion_tokens", "top_p", "stop"}
        messages = [record.getMessage() for record in caplog.records if record.name == "common.backends.chat"]
        assert messages.count("model m refuses temperature: its own default is used") == 1
        server.refuses = {"stop"}
        with pytest.raises(UserError, match="400: 'stop' is not supported here"):
            _records(server, tmp_path, _requests(7), sampling)


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_without_structured_output_is_asked_for_it_once(status, tmp_path, caplog):
    """Also where it calls that a fault of its own, which is tried again elsewhere."""
    with FaultServer(refuses=["response_format"], refusal=status, answer="Text: {}\nLabel: b") as server:
        records = _records(server, tmp_path, _requests(3, fields=("Text", "Label")), concurrency=1)
        assert [record.status for record in records] == ["ok"] * 3
        assert ["response_format" in body for body in server.bodies] == [True, False, False, False]
    assert [r.getMessage() for r in caplog.records if r.name == "common.backends.chat"] == [
        "model m is not held to the form of a reply: the server refuses a schema"
    ]


def test_a_server_that_names_another_form_of_structured_output_is_given_that(tmp_path):
    """As llama-cpp-python's does, with status 500."""
    said = "response_format.type: Input should be 'text' or 'json_object', not '{}'"
    with FaultServer(refuses=["response_format"], refusal=500) as server:
        server.said = said
        _records(server, tmp_path, _requests(1, fields=("Text", "Label")), concurrency=1)
        kinds = [body.get("response_format", {}).get("type") for body in server.bodies]
        assert kinds == ["json_schema", "json_object", None]
        assert server.bodies[1]["response_format"]["schema"]["required"] == ["Text", "Label"]


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize(
    "said", ["System role not supported", "Conversation roles must alternate user/assistant/user/assistant/..."]
)
def test_a_server_without_system_turns_gets_their_text_from_the_user(status, said, tmp_path):
    """As local models without such a role do; the records are stored under the request as it was made."""
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
    with FaultServer(refuses=["system"], refusal=status) as server:
        server.said_of_system = said
        (record,) = _records(server, tmp_path, [Request("a", messages)])
        assert record.text == "to Be brief.\n\nWhy?"
        assert [len(body["messages"]) for body in server.bodies] == [2, 1]
        assert _records(server, tmp_path, [Request("a", messages)]) == [record]
        assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("parts", "in parts"),
        ("output parts", "in output"),
        ("thinks", "after thought"),
        ("fenced", "in a fence"),
    ],
)
def test_what_stands_around_a_reply_is_no_part_of_it(fault, text, tmp_path):
    """Parts are joined; thinking and a fence around all of it are left out. It is bought once."""
    with FaultServer([fault]) as server:
        (record,) = _records(server, tmp_path, _requests(1))
        assert (record.status, record.text.strip(), record.attempts) == ("ok", text, 1)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("reasons", "no text but reasoning in the reply, asked 2 times"),
        ("calls a tool", "no text but a tool call in the reply, asked 2 times"),
        ("no choices", "no choices in the reply, asked 2 times"),
        ("reasons to the end", "reasoning used up all 5 tokens of the reply"),
        ("400 long", "the prompt is too long"),
    ],
)
def test_a_server_that_never_gives_anything_of_use_is_named(fault, said, tmp_path):
    """Five requests in a row for one and the same reason; after a reply of use, what is about its own prompt fails
    by itself. Numbers in a reason, such as lengths, may differ."""
    with FaultServer(always=fault) as server:
        with pytest.raises(UserError, match=f"nothing of use for 5 requests in a row: {said}"):
            _records(server, tmp_path, _requests(30), concurrency=1)
        assert len(server.bodies) <= 10
    with FaultServer([None], always=fault) as server:
        if said.startswith("no "):
            with pytest.raises(UserError, match=f"nothing of use for 5 requests in a row: {said}"):
                _records(server, tmp_path, _requests(9), concurrency=1)
        else:
            records = _records(server, tmp_path, _requests(9), concurrency=1)
            assert [record.status for record in records] == ["ok", *["failed"] * 8]


# --- budgets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "bought"),
    [
        ("calls=7", 7),
        ("tokens=100", 7),  # 12 each, and 21 have to be free for the next
        ("usd=0.00006", 6),  # 7e-6 each, and 20.5e-6 have to be free for the next
    ],
)
def test_a_budget_is_kept_in_the_order_of_requests_and_over_restarts(budget, bought, tmp_path):
    budget = Budget.parse(budget, price="0.5,1")
    requests = _requests(10)
    with FaultServer(delay=lambda content: 0.01 * (int(content[1:]) % 3)) as server:
        for concurrency in (1, 4):
            folder = tmp_path / str(concurrency)
            folder.mkdir()
            settings = {"budget": budget, "concurrency": concurrency}
            records = _records(server, folder, requests, **settings)
            limit = f"{BUDGET_SPENT}: {'usd' if budget.usd else 'tokens' if budget.tokens else 'calls'}"
            assert [r.error for r in records] == [None] * bought + [limit] * (10 - bought)
            assert {r.status for r in records[bought:]} == {"failed"}
            assert _records(server, folder, requests, **settings) == records
            other = [Request("new", requests[0].messages)]
            assert _records(server, folder, other, **settings)[0].error == limit
            assert _records(server, folder, other, scope="another", **settings)[0].text == "to q0"
            assert budget.covers(_spent(folder))


def test_asking_again_is_within_the_budget(tmp_path):
    with FaultServer(["empty"]) as server:
        records = _records(server, tmp_path, _requests(2), budget=Budget(calls=1))
        assert [(r.error, r.attempts) for r in records] == [
            (f"{BUDGET_SPENT}: calls", attempts) for attempts in (1, 0)
        ]
        assert server.paid.total() == 1


@pytest.mark.parametrize("concurrency", [1, 4])
def test_what_is_bought_leaves_enough_for_what_it_is_bought_for(concurrency, tmp_path):
    """Ten calls are five replies and their checks; the run that continues after a kill reckons the same."""
    requests = [dataclasses.replace(r, reserve=(i, 0, 0)) for i, r in enumerate(_requests(10), 1)]
    with FaultServer() as server:
        settings = {"budget": Budget(calls=10), "concurrency": concurrency}
        _records(server, tmp_path, requests[:2], **settings)
        records = _records(server, tmp_path, requests, **settings)
        assert [r.status for r in records] == ["ok"] * 5 + ["failed"] * 5
        checks = [Request(f"check{i}", requests[i].messages) for i in range(5)]
        assert {r.status for r in _records(server, tmp_path, checks, **settings)} == {"ok"}
        assert server.paid.total() == 10


# --- kills, keys, checks --------------------------------------------------------------------------------------

CHILD = """
import sys
sys.path[:0] = ["tests", "tests/backends"]
from pathlib import Path
from test_endpoint import SAMPLING, EndpointGenerator, Replies, _requests
with Replies(Path(sys.argv[2]) / "replies.sqlite") as replies:
    with EndpointGenerator("m", url=sys.argv[1], replies=replies, scope="s", concurrency=4) as generator:
        list(generator.generate(_requests(24, n=2), SAMPLING, 0))
"""


def test_a_killed_process_has_bought_nothing_in_vain(tmp_path):
    with FaultServer(hold_after=20) as server:
        child = subprocess.Popen([sys.executable, "-c", CHILD, server.url, tmp_path], cwd=ROOT)
        with Replies(tmp_path / "replies.sqlite") as replies:
            deadline = time.monotonic() + 60
            while replies.spent("s").calls < 20:
                assert time.monotonic() < deadline
                assert child.poll() is None
                time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        server.release()
        records = _records(server, tmp_path, _requests(24, n=2), concurrency=4)
        assert [r.text for r in records] == [f"to q{i}" for i in range(24) for _ in (0, 1)]
        assert set(server.paid.values()) == {2}  # once for each sample
    assert _spent(tmp_path).calls == 48


def test_a_stopped_run_keeps_replies_on_their_way(tmp_path):
    with FaultServer(["401"], delay=lambda content: 0.2) as server:
        with pytest.raises(UserError, match="401"):
            _records(server, tmp_path, _requests(4), concurrency=4)
        assert _spent(tmp_path).calls == 3


def test_the_key_goes_into_requests_only(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    monkeypatch.setattr(wire, "RETRIES", 0)
    faults = {"wrong": (500, {}, {"error": {"message": f"bad {KEY} and sk-abc123***9"}})}
    monkeypatch.setattr("fault_server.FAULTS", FAULTS | faults)
    with FaultServer(["wrong"], answer=f"{{}} {KEY}") as server, _generator(server, tmp_path) as generator:
        records = [r for batch in generator.generate(_requests(2), SAMPLING, 0) for r in batch]
        assert records[0].error == "no reply after all retries (HTTP 500: bad [key] and [key])"
        assert records[1].text == "q1 [key]"
        files = list(tmp_path.iterdir())
        assert any(file.name == "replies.sqlite" for file in files)
        assert not any(KEY.encode() in file.read_bytes() for file in files)
        assert server.keys == {f"Bearer {KEY}"}


def test_a_placeholder_for_a_key_is_left_in_replies(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "content")
    with FaultServer(answer="{}: content") as server:
        assert _records(server, tmp_path, _requests(1))[0].text == "q0: content"


def test_where_the_key_and_the_address_come_from(tmp_path, monkeypatch):
    with Replies(tmp_path / "replies.sqlite") as replies:
        make = lambda url=None: EndpointGenerator("m", url=url, replies=replies, scope="s")
        with pytest.raises(UserError, match=r"https://api.openai.com/v1 wants a key: .* OPENAI_API_KEY"):
            make()
        with pytest.raises(UserError, match="'localhost:8000' is no address"):
            make("localhost:8000")
        with FaultServer() as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
            with make() as generator:
                assert generator.name == "openai:m"
            with contextlib.closing(wire.Wire("m", None, timeout=2)) as found:
                found.check()
            assert server.keys == {"Bearer none"}
        monkeypatch.setenv("OPENAI_API_KEY", "two words")
        with pytest.raises(UserError, match="characters that no key has") as raised:
            make()
        assert "two words" not in str(raised.value)


def test_check_buys_nothing_and_finds_what_would_fail(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultServer() as server:
        probe = wire.Wire("m", server.url, timeout=2)
        for status in (200, 404, 405, 500):
            server.models = (status, {"error": {"message": "no"}})
            probe.check()
        server.models = (401, {"error": {"message": f"no {KEY}"}})
        with pytest.raises(UserError, match=r"does not accept the key for model m \(401: no \[key\]\)"):
            probe.check()
        assert not server.bodies
    with pytest.raises(UserError, match="cannot be reached"):  # the connection is new, the server gone
        probe.check()
