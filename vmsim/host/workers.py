"""Threads for host calls that may sleep for long: a dead NFS server, a FUSE server that hangs, a busy disk.

Nothing of a device runs on them but single system calls. Their results wait until the loop asks for them
(``join``), so that everything else stays with one thread. A thread is made when a call finds none free, and
ends when it has had nothing to do for a while. One whose call never ends is lost: it is a daemon, so that it
holds up nobody's end, and a dead mount holds WORKERS_PER_KEY of them at most.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from vmsim.host.eventfd import EventFd
from vmsim.host.waits import wait_in_slices
from vmsim.limits import WORKERS_MAX, WORKERS_PER_KEY

IDLE_S: Final = 10.0
Done: TypeAlias = Callable[[Any, BaseException | None], object]


class _Job:
    __slots__ = ("call", "done", "error", "key", "result")

    def __init__(self, key: object, call: Callable[[Any], Any], done: Done) -> None:
        self.key = key
        self.call = call
        self.done = done
        self.result: Any = None
        self.error: BaseException | None = None


class Workers:
    """Runs calls aside. ``make`` gives each thread what its calls get as their argument.

    All methods belong to the loop's thread. After a fork the child's calls get threads of their own.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._event: EventFd | None = None
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._todo: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._finished: deque[_Job] = deque()
        self._held: deque[_Job] = deque()
        self._by_key: dict[object, int] = {}
        self._threads: set[threading.Thread] = set()
        self.pending = 0
        """Calls whose results have not been handed over."""

    @property
    def fd(self) -> int:
        """Readable when results wait to be handed over."""
        if self._event is None:
            self._event = EventFd()
        return self._event.fd

    def submit(self, key: object, call: Callable[[Any], Any], done: Done) -> None:
        """Run ``call`` aside; ``join`` calls ``done(result, error)``. ``key``: what may hang as a whole."""
        if os.getpid() != self._pid:
            self._forget()
        assert self.fd >= 0
        self.pending += 1
        self._begin(_Job(key, call, done))

    def _begin(self, job: _Job) -> None:
        running = sum(self._by_key.values())
        if running >= WORKERS_MAX or self._by_key.get(job.key, 0) >= WORKERS_PER_KEY:
            self._held.append(job)
            return
        self._by_key[job.key] = self._by_key.get(job.key, 0) + 1
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        if len(self._threads) <= running:
            event = self._event
            assert event is not None
            thread = threading.Thread(
                target=_work,
                args=(self._make, self._todo, self._finished, event),
                daemon=True,
                name="vmsim-host",
            )
            try:
                thread.start()
            except RuntimeError as error:  # no more threads for this user
                if not self._threads:
                    self._by_key[job.key] -= 1
                    job.error = OSError(11, f"no thread: {error}")
                    self._finished.append(job)
                    event.signal()
                    return
            else:
                self._threads.add(thread)
        self._todo.put(job)

    def join(self) -> bool:
        """Hand the results that there are to those who wait for them; whether there were any."""
        if self._event is not None:
            self._event.drain()
        found = False
        while self._finished:
            job = self._finished.popleft()
            found = True
            self.pending -= 1
            left = self._by_key.get(job.key, 1) - 1
            if left > 0:
                self._by_key[job.key] = left
            else:
                self._by_key.pop(job.key, None)
            held, self._held = self._held, deque()
            for other in held:
                self._begin(other)
            try:
                job.done(job.result, job.error)
            except BaseException:
                self.wake()  # the others are not lost
                raise
        return found

    def wait(self, limit_ns: int) -> bool:
        """Wait for a result at most so long, and hand it over; whether there was one."""
        deadline = time.monotonic_ns() + limit_ns
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        # A thread signals after it has left its result: the signal may come when that was handed over before.
        while not self.join():
            left_ns = deadline - time.monotonic_ns()
            if left_ns <= 0 or not wait_in_slices(poll, left_ns / 1e6):
                return self.join()
        return True

    def wake(self) -> None:
        """Make ``fd`` readable, as if there were results."""
        assert self.fd >= 0
        if self._event is not None:
            self._event.signal()

    def close(self) -> None:
        """Hand over nothing more; threads end as soon as their calls do."""
        for _ in self._threads:
            self._todo.put(None)
        if self._event is not None and not self.pending:
            self._event.close()
            self._event = None


def _work(
    make: Callable[[], Any], todo: queue.SimpleQueue[_Job | None], finished: deque[_Job], event: EventFd
) -> None:
    """A thread's life. Between two calls it holds nothing."""
    own = make()
    while True:
        try:
            job = todo.get(timeout=IDLE_S)
        except queue.Empty:
            return
        if job is None:
            return
        try:
            job.result = job.call(own)
        except BaseException as error:  # whoever waits for it gets it
            job.error = error
        finished.append(job)
        del job
        event.signal()
