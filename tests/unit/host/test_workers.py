"""Calls on other threads: bounded in number, joined by one thread, lost by nobody."""

from __future__ import annotations

import os
import select
import threading

import pytest

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


def test_after_a_fork_the_child_has_threads_of_its_own(workers):
    landed = Landed()
    workers.submit("key", lambda _: 1, landed)
    wait(workers, lambda: landed.results, "the result")
    child = os.fork()
    if not child:
        code = 1
        try:
            mine = Landed()
            workers.submit("key", lambda _: 2, mine)
            wait(workers, lambda: mine.results, "the child's result")
            code = mine.results != [2]
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    workers.submit("key", lambda _: 3, landed)
    wait(workers, lambda: len(landed.results) == 2, "the parent's result")
