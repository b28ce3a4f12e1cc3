"""One thread answers what waits together; an error or a gone client does not end it."""

import json
import threading
from concurrent.futures import CancelledError

import pytest

from sidrec.errors import RunError
from sidrec.generator.serving.answer_queue import AnswerQueue, TooManyWaitingError
from tests.generator.echo import Echo

WAIT_S = 30.0


class Gate(Echo):
    """Holds back each call until it is opened; may fail."""

    def __init__(self, *, error=None):
        super().__init__()
        self.open, self.entered, self.error = threading.Event(), threading.Event(), error
        self.sizes = []

    def answer(self, requests, **how):
        self.sizes.append(len(requests))
        self.entered.set()
        assert self.open.wait(WAIT_S)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return super().answer(requests, **how)


def line(query):
    return json.dumps({"id": query, "task": "search", "query": query}).encode()


def queue_of(retriever, **settings):
    return AnswerQueue(retriever, top_k=2, batch_size=4, **settings)


def ids(future):
    return [json.loads(one)["id"] for one in future.result(WAIT_S)]


def test_what_arrives_together_is_answered_together():
    gate = Gate()
    queue = queue_of(gate)
    first = queue.submit([line("a")])
    assert gate.entered.wait(WAIT_S)
    later = [queue.submit([line(name), line(name * 2)]) for name in "bcd"]
    called = queue.call(lambda: "explained")
    gate.open.set()
    assert ids(first) == ["a"]
    assert [ids(one) for one in later] == [["b", "bb"], ["c", "cc"], ["d", "dd"]]
    assert called.result(WAIT_S) == "explained"
    assert gate.sizes == [1, 6]


def test_an_error_reaches_those_who_wait_and_the_thread_goes_on():
    gate = Gate(error=RunError("full"))
    gate.open.set()
    queue = queue_of(gate)
    with pytest.raises(RunError, match="full"):
        queue.submit([line("a")]).result(WAIT_S)
    with pytest.raises(ZeroDivisionError):
        queue.call(lambda: 1 / 0).result(WAIT_S)
    assert ids(queue.submit([line("b")])) == ["b"]


def test_too_many_are_refused_and_a_client_that_left_is_skipped():
    gate = Gate()
    queue = queue_of(gate, max_waiting=2)
    queue.submit([line("a")])
    assert gate.entered.wait(WAIT_S)
    gone, kept = queue.submit([line("b")]), queue.submit([line("c")])
    with pytest.raises(TooManyWaitingError, match="2 requests wait already; ask again later"):
        queue.submit([line("d")])
    assert gone.cancel()
    gate.open.set()
    assert ids(kept) == ["c"]
    assert gate.sizes == [1, 1]
    with pytest.raises(CancelledError):
        gone.result(WAIT_S)
