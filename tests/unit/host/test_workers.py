"""Calls on other threads: bounded in number, joined by one thread, lost by nobody."""

from __future__ import annotations

import errno
import os
import select
import threading
from queue import Empty, SimpleQueue

import pytest

from vmsim.host.eventfd import EventFd
from vmsim.host.workers import Workers
from vmsim.limits import WORKERS_MAX, WORKERS_PER_KEY

WAIT_NS = 20_000_000_000


class Landed:
    def __init__(self):
        self.results = []

    def __call__(self, result, error):
        self.results.append(result if error is None else error)


@pytest.fixture
def workers():
    workers = Workers(threading.current_thread)
    yield workers
    while workers.pending:
        assert workers.wait(WAIT_NS), f"{workers.pending} calls have not ended within 20 s"
    workers.close()


def wait(workers, ready, what):
    while not ready():
        assert workers.wait(WAIT_NS), f"{what}: nothing came within 20 s"


def test_a_call_gets_what_its_thread_made_and_its_result_is_joined(workers):
    landed = Landed()
    workers.submit("key", lambda thread: (thread, threading.current_thread()), landed)
    poll = select.poll()  # select takes no descriptor above 1023
    poll.register(workers.fd, select.POLLIN)
    assert poll.poll(20_000)
    assert landed.results == []
    assert workers.join()
    ((made, ran),) = landed.results
    assert made is ran is not threading.current_thread()
    assert ran.daemon
    assert not workers.join()


def test_what_a_call_raises_is_its_result(workers):
    landed = Landed()
    workers.submit("key", lambda _: os.close(-1), landed)
    wait(workers, lambda: landed.results, "the error")
    assert isinstance(landed.results[0], OSError)


def test_whoever_fails_with_a_result_loses_nobody_elses(workers):
    landed = Landed()

    def fail(result, error):
        raise ValueError("not mine")

    gate = threading.Event()
    workers.submit("key", lambda _: gate.wait(20), fail)
    workers.submit("key", lambda _: gate.wait(20), landed)
    gate.set()
    failures = 0
    while workers.pending:
        try:
            assert workers.wait(WAIT_NS), "nothing came within 20 s"
        except ValueError:
            failures += 1
    assert failures == 1
    assert landed.results == [True]


def test_a_late_signal_is_no_result(workers):
    landed = Landed()
    gate = threading.Event()
    workers.submit("key", lambda _: gate.wait(20), landed)
    workers.wake()
    threading.Timer(0.05, gate.set).start()
    assert workers.wait(WAIT_NS)
    assert landed.results == [True]


def test_a_key_that_hangs_leaves_threads_to_the_others(workers):
    gate = threading.Event()
    hanging, other = Landed(), Landed()
    before = set(threading.enumerate())
    try:
        for _ in range(3 * WORKERS_MAX):
            workers.submit("dead", lambda _: gate.wait(60), hanging)
        assert len(set(threading.enumerate()) - before) == WORKERS_PER_KEY
        workers.submit("alive", lambda _: "here", other)
        wait(workers, lambda: other.results, "the other key's result")
        assert hanging.results == []
    finally:
        gate.set()
    wait(workers, lambda: len(hanging.results) == 3 * WORKERS_MAX, "all results")
    assert len(set(threading.enumerate()) - before) <= WORKERS_MAX


def test_threads_are_used_again(workers):
    names = Landed()
    for _ in range(20):
        count = len(names.results)
        workers.submit("key", lambda thread: thread.ident, names)
        wait(workers, lambda count=count: len(names.results) > count, "a result")
    assert len(set(names.results)) == 1


class Gate(SimpleQueue):
    """A queue at which a thread that has had a call and finds no other one waits until ``leave`` is set."""

    def __init__(self):
        self.idle, self.leave = threading.Event(), threading.Event()
        self.served = False

    def get(self, block=True, timeout=None):
        if timeout is None or self.leave.is_set():
            return super().get(block, timeout)
        if not self.served:
            job = super().get(timeout=20)
            self.served = True
            return job
        try:
            return super().get(timeout=0.001)
        except Empty:
            self.idle.set()
            assert self.leave.wait(20)
            raise


@pytest.fixture
def gate(monkeypatch):
    monkeypatch.setattr("vmsim.host.workers.SimpleQueue", Gate)
    workers = Workers(threading.current_thread)
    yield workers, workers._crew.todo
    workers._crew.todo.leave.set()
    workers.close()


def test_a_call_that_comes_as_its_thread_is_about_to_leave_is_served(gate):
    """The thread has waited in vain and has not gone yet: to the loop it is there and free."""
    workers, todo = gate
    landed = Landed()
    workers.submit("key", lambda thread: thread, landed)
    wait(workers, lambda: landed.results, "the first call")
    assert todo.idle.wait(20), "the thread has not run out of work within 20 s"
    workers.submit("key", lambda thread: thread, landed)
    todo.leave.set()
    wait(workers, lambda: len(landed.results) == 2, "the second call")
    assert landed.results[0] is landed.results[1]


def test_a_call_that_comes_after_its_thread_has_left_gets_another(gate, monkeypatch):
    monkeypatch.setattr("vmsim.host.workers.IDLE_S", 0.001)
    workers, todo = gate
    landed = Landed()
    workers.submit("key", lambda thread: thread, landed)
    wait(workers, lambda: landed.results, "the first call")
    todo.leave.set()
    landed.results[0].join(20)
    assert not landed.results[0].is_alive(), "the thread has not left within 20 s"
    workers.submit("key", lambda thread: thread, landed)
    wait(workers, lambda: len(landed.results) == 2, "the second call")
    assert landed.results[0] is not landed.results[1]


def test_where_no_thread_can_be_made_the_call_fails_and_the_count_is_right(workers, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    landed = Landed()
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        for _ in range(3 * WORKERS_PER_KEY):
            workers.submit("key", lambda _: None, landed)
        wait(workers, lambda: len(landed.results) == 3 * WORKERS_PER_KEY, "the refusals")
    assert {error.errno for error in landed.results} == {errno.EAGAIN}
    gates = [threading.Event() for _ in range(WORKERS_PER_KEY)]
    for each in gates:
        workers.submit("key", lambda _, each=each: each.wait(20), landed)
    assert workers._by_key == {"key": WORKERS_PER_KEY}
    for each in gates:
        each.set()


def test_what_cannot_be_made_for_a_thread_fails_its_call_alone():
    tries = iter([OSError(errno.EMFILE, "no descriptor"), None])

    def make():
        error = next(tries)
        if error:
            raise error
        return "made"

    workers, landed = Workers(make), Landed()
    for count in (1, 2):
        workers.submit("key", lambda own: own, landed)
        wait(workers, lambda count=count: len(landed.results) == count, f"call {count}")
    assert landed.results[0].errno == errno.EMFILE
    assert landed.results[1] == "made"
    workers.close()


def test_the_event_is_not_closed_between_a_result_and_its_signal(monkeypatch):
    """The descriptor's number may be somebody else's the moment after."""
    order, appended, go = [], threading.Event(), threading.Event()

    class Event(EventFd):
        def signal(self):
            appended.set()
            assert go.wait(20)
            order.append("signal")
            super().signal()

        def close(self):
            order.append("close")
            super().close()

    monkeypatch.setattr("vmsim.host.workers.EventFd", Event)
    workers, landed = Workers(lambda: None), Landed()
    workers.submit("key", lambda _: None, landed)
    assert appended.wait(20), "the call has not ended within 20 s"
    workers.join()
    assert len(landed.results) == 1
    closing = threading.Thread(target=workers.close)
    closing.start()
    closing.join(0.05)
    go.set()
    closing.join(20)
    assert order == ["signal", "close"]


def submit_and_wait(workers):
    mine = Landed()
    workers.submit("key", lambda _: 2, mine)
    wait(workers, lambda: mine.results, "the child's result")
    assert mine.results == [2]


def close_and_begin_again(workers):
    workers.close()
    workers.close()
    submit_and_wait(workers)


USES = {
    "fd": lambda workers: os.eventfd_write(workers.fd, 1),
    "pending": lambda workers: workers.pending and pytest.fail("the child waits for its parent's calls"),
    "submit": submit_and_wait,
    "join": lambda workers: workers.join() and pytest.fail("the child has its parent's result"),
    "wait": lambda workers: workers.wait(0) and pytest.fail("the child has its parent's result"),
    "wake": Workers.wake,
    "close": close_and_begin_again,
}


def test_all_uses_are_tried_in_a_child():
    assert {name for name in vars(Workers) if not name.startswith("_")} == set(USES)


@pytest.mark.parametrize("signalled", [True, False])
@pytest.mark.parametrize("use", USES)
def test_a_forked_child_leaves_its_parents_alone(workers, use, signalled):
    """Whether there is a result that waits for the parent, or a call that still runs."""
    landed, gate = Landed(), threading.Event()
    poll = select.poll()
    poll.register(workers.fd, select.POLLIN)
    workers.submit("key", lambda _: signalled or gate.wait(20), landed)
    assert not signalled or poll.poll(20_000)
    child = os.fork()
    if not child:
        code = 1
        try:
            USES[use](workers)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert bool(poll.poll(0)) == signalled
    assert workers.pending == 1
    gate.set()
    wait(workers, lambda: landed.results, "the parent's result")
    submit_and_wait(workers)
    assert landed.results == [True]
