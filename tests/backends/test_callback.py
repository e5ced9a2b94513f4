"""A Python function as a generator: records, failures, batches, and loading it from a file."""

import pytest

from common import stopping
from common.backends.callback import BATCH, BREAKER, CallbackGenerator
from common.config import SampleConfig
from common.errors import UserError
from common.generate import Request, sample_texts
from common.usercode import load_callable

SAMPLING = SampleConfig()


def _requests(count, n=1):
    return [Request(f"r{i}", ({"role": "user", "content": f"q{i}"},), n) for i in range(count)]


def _records(generator, requests):
    return [record for batch in generator.generate(requests, SAMPLING, 0) for record in batch]


def test_one_record_a_sample_in_order(capfd):
    generator = CallbackGenerator("mine", lambda messages: f"to {messages[0]['content']}")
    records = _records(generator, _requests(3, n=2))
    assert [(r.id, r.sample, r.text) for r in records] == [
        (f"r{i}", sample, f"to q{i}") for i in range(3) for sample in range(2)
    ]
    assert {r.status for r in records} == {"ok"}
    assert _records(generator, []) == []
    assert capfd.readouterr() == ("", "")


def test_waves_are_small_and_cut_between_requests():
    generator = CallbackGenerator("mine", lambda messages: "x")
    batches = [len(batch) for batch in generator.generate(_requests(10, n=3), SAMPLING, 0)]
    assert sum(batches) == 30
    assert all(size % 3 == 0 for size in batches)
    assert max(batches) < BATCH + 3


def test_the_function_cannot_change_the_request():
    requests = _requests(1)
    _records(CallbackGenerator("mine", lambda messages: messages[0].pop("content")), requests)
    assert requests[0].messages[0] == {"role": "user", "content": "q0"}


class Bare(BaseException):
    """No Exception: what asyncio cancels with is of the kind."""


def _faulty(messages):
    number = int(messages[0]["content"][1:])
    if number % 4 == 1:
        raise ValueError("no idea\nwhat to write") if number < 4 else Bare
    return {2: 7, 3: " "}.get(number % 4, "fine")


def test_failures_are_records_with_a_reason():
    records = _records(CallbackGenerator("mine", _faulty), _requests(8))
    assert [r.text for r in records] == ["fine", None, None, None] * 2
    assert [r.error for r in records[:4]] == [
        None,
        "ValueError: no idea what to write",
        "the function gave int, not str",
        "the function gave an empty text",
    ]
    assert records[5].error == "Bare"


def test_failures_in_a_row_stop_the_run_and_lose_nothing_good():
    def write(messages):
        if int(messages[0]["content"][1:]) >= 3:
            raise RuntimeError("broken")
        return "fine"

    generator = CallbackGenerator("mine", write)
    batches = generator.generate(_requests(20), SAMPLING, 0)
    assert [record.id for record in next(batches)] == ["r0", "r1", "r2"]
    with pytest.raises(UserError, match=f"mine failed {BREAKER} times in a row, .* broken; fix that"):
        next(batches)


@pytest.mark.parametrize("signal", [KeyboardInterrupt, stopping.Terminated])
def test_ctrl_c_and_sigterm_pass(signal):
    def write(messages):
        raise signal

    with pytest.raises(signal):
        _records(CallbackGenerator("mine", write), _requests(1))


def test_a_function_from_a_file(tmp_path):
    file = tmp_path / "teacher.py"
    file.write_text("def write(messages):\n    return messages[-1]['content'].upper()\n")
    name = f"python:{file}:write"
    (record,) = _records(CallbackGenerator(name, load_callable(name)), _requests(1))
    assert record.text == "Q0"


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ("", "{file}:write", "names no function: give python:FILE.py:FUNCTION"),
        ("", "python:{file}", "names no function|no such file"),
        ("", "python:{file}x:write", r"no such file: .*teacher\.pyx \(given as"),
        ("x = 1\n", "python:{file}:write", r"teacher\.py has no function 'write'"),
        ("write = 'text'\n", "python:{file}:write", r"holds something that is no function as 'write'"),
        ("x = 1\nx = 1 / 0\n", "python:{file}:write", r"teacher\.py, line 2 fails .*\(ZeroDivisionError: "),
        ("import nothing_like_it\n", "python:{file}:write", r"line 1 fails .*\(ModuleNotFoundError: "),
        ("\n\ndef write(:\n", "python:{file}:write", r"teacher\.py, line 3 fails .*\(SyntaxError: "),
        ("class Bare(BaseException): ...\nraise Bare\n", "python:{file}:write", r"line 2 fails .*\(Bare\)"),
        ("raise SystemExit(2)\n", "python:{file}:write", r"line 1 fails .*\(SystemExit: 2\)"),
    ],
)
def test_mistakes_in_the_file_are_one_line(source, given, message, tmp_path):
    file = tmp_path / "teacher.py"
    file.write_text(source)
    with pytest.raises(UserError, match=message) as raised:
        load_callable(given.format(file=file))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_python(tmp_path):
    file = tmp_path / "teacher.txt"
    file.write_text("")
    with pytest.raises(UserError, match=r"must end in \.py"):
        load_callable(f"python:{file}:write")


def test_texts_go_in_and_texts_come_out():
    """One list a prompt, in order; a failed answer is None, and not left out."""
    answers = iter(["A", 3, "C", "D"])
    generator = CallbackGenerator("python:t.py:write", lambda messages: next(answers))
    assert sample_texts(generator, ["x", "y"], SAMPLING, n=2) == [["A", None], ["C", "D"]]
    assert sample_texts(generator, [], SAMPLING) == []
