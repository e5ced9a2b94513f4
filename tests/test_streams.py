"""Work side by side: in whose thread, in what order, and what becomes of errors."""

import threading

import pytest

from common import streams


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order_and_few_items_are_taken_ahead(count):
    first, taken = threading.Event(), []

    def items():
        for i in range(9):
            taken.append(i)
            yield i

    def run(i):
        # The first waits for the second, where there are two at a time.
        if i == 0 and count > 1:
            assert first.wait(30)
        first.set()
        return i * i

    found = streams.in_order(run, items(), count)
    assert next(found) == 0
    assert len(taken) <= count + 1
    assert list(found) == [i * i for i in range(1, 9)]


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_comes_in_the_place_of_its_result(count):
    found = streams.in_order(lambda i: 6 // (3 - i), range(9), count)
    assert [next(found) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.parametrize("count", [1, 2])
def test_tasks_are_sent_what_their_work_returns(count):
    """Work of two tasks at the same time, and what is between it in the thread of the caller."""
    both = threading.Barrier(count, timeout=30)
    here, seen, apart = threading.get_ident(), [], []

    def task(number):
        for step in range(3):

            def work(step=step):
                both.wait()
                apart.append(threading.get_ident() != here)
                return 10 * number + step

            seen.append(((yield work), threading.get_ident() == here))

    streams.side_by_side([task(number) for number in range(count)])
    assert sorted(seen) == [(10 * number + step, True) for number in range(count) for step in range(3)]
    assert apart == [count > 1] * (3 * count)


def test_tasks_may_have_no_work_and_one_that_fails_ends_all():
    def nothing():
        return
        yield

    def failing():
        yield lambda: 1 // 0

    def endless():
        while True:
            yield lambda: None

    streams.side_by_side([nothing(), nothing()])
    with pytest.raises(ZeroDivisionError):
        streams.side_by_side([endless(), failing()])


def test_an_accelerator_has_one_stream(monkeypatch):
    assert 1 <= streams.most() <= 2
    monkeypatch.setattr(streams.runtime, "on_accelerator", lambda: True)
    assert streams.most() == 1
