"""Threads for host calls that may sleep for long: a dead NFS server, a FUSE server that hangs, a busy disk.

Nothing of a device runs on them but single system calls. Their results wait until the loop asks for them
(``join``), so that everything else stays with one thread. A thread is made when a call finds none free, and
ends when it has had nothing to do for a while. One whose call never ends is lost: it is a daemon, so that it
holds up nobody's end, and a dead mount holds WORKERS_PER_KEY of them at most.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

from vmsim.host.eventfd import EventFd
from vmsim.host.waits import wait_ready
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


class _Crew:
    """The threads, and the calls that wait for one of them.

    A thread leaves, and a call comes, only under the lock: none is left to a thread that is about to go.
    """

    __slots__ = ("lock", "threads", "todo")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.todo: SimpleQueue[_Job | None] = SimpleQueue()
        self.threads: set[threading.Thread] = set()

    def next(self) -> _Job | None:
        """The next call for this thread; None if it may leave, as there was none for a while."""
        try:
            job = self.todo.get(timeout=IDLE_S)
        except Empty:
            job = None
        if job is None:
            with self.lock:
                try:  # one may have come since
                    job = self.todo.get_nowait()
                except Empty:
                    pass
                if job is None:
                    self.threads.discard(threading.current_thread())
        return job


class Workers:
    """Runs calls aside. ``make`` gives each thread what its calls get as their argument.

    All methods belong to the loop's thread. A forked child's have calls, threads and an event of their own:
    what it finds here is its parent's.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._event: EventFd | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        if self._event is not None:
            self._event.close()  # a copy of the parent's, whose count both would share
            self._event = None
        self._pid = os.getpid()
        self._crew = _Crew()
        self._finished: deque[_Job] = deque()
        self._held: deque[_Job] = deque()
        self._by_key: dict[object, int] = {}
        self._pending = 0

    def _leave_parents(self) -> None:
        if os.getpid() != self._pid:
            self._begin_anew()

    def _own_event(self) -> EventFd:
        self._leave_parents()
        if self._event is None:
            self._event = EventFd()
        return self._event

    @property
    def pending(self) -> int:
        """Calls whose results have not been handed over."""
        self._leave_parents()
        return self._pending

    @property
    def fd(self) -> int:
        """Readable when results wait to be handed over."""
        return self._own_event().fd

    def submit(self, key: object, call: Callable[[Any], Any], done: Done) -> None:
        """Run ``call`` aside; ``join`` calls ``done(result, error)``. ``key``: what may hang as a whole."""
        self._own_event()
        self._pending += 1
        self._begin(_Job(key, call, done))

    def _begin(self, job: _Job) -> None:
        running = sum(self._by_key.values())
        if running >= WORKERS_MAX or self._by_key.get(job.key, 0) >= WORKERS_PER_KEY:
            self._held.append(job)
            return
        self._by_key[job.key] = self._by_key.get(job.key, 0) + 1
        crew = self._crew
        with crew.lock:
            if len(crew.threads) > running or self._start() or crew.threads:
                crew.todo.put(job)
                return
        job.error = OSError(errno.EAGAIN, "no thread for the call")
        self._finished.append(job)
        self.wake()

    def _start(self) -> bool:
        """One more thread; whether there may be one."""
        crew = self._crew
        thread = threading.Thread(
            target=_work, args=(self._make, crew, self._finished, self._event), daemon=True, name="vmsim-host"
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads for this user
            return False
        crew.threads.add(thread)
        return True

    def join(self) -> bool:
        """Hand the results that there are to those who wait for them; whether there were any."""
        self._leave_parents()
        if self._event is not None:
            self._event.drain()
        found = False
        while self._finished:
            job = self._finished.popleft()
            found = True
            self._pending -= 1
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
        # A thread signals after it has left its result: the signal may come when that was handed over before.
        while not self.join():
            left_ns = deadline - time.monotonic_ns()
            if left_ns <= 0 or not wait_ready(self.fd, left_ns / 1e9):
                return self.join()
        return True

    def wake(self) -> None:
        """Make ``fd`` readable, as if there were results."""
        self._own_event().signal()

    def close(self) -> None:
        """Hand over nothing more; threads end as soon as their calls do."""
        self._leave_parents()
        with self._crew.lock:
            for _ in self._crew.threads:
                self._crew.todo.put(None)
            if self._event is not None and not self._pending:
                self._event.close()
                self._event = None


def _work(make: Callable[[], Any], crew: _Crew, finished: deque[_Job], event: EventFd) -> None:
    """A thread's life. Between two calls it holds nothing."""
    own: Any = None
    while (job := crew.next()) is not None:
        try:
            if own is None:
                own = make()
            job.result = job.call(own)
        except BaseException as error:  # whoever waits for it gets it
            job.error = error
        # Whoever has the result may close the event: by the lock it waits until it has been signalled.
        with crew.lock:
            finished.append(job)
            event.signal()
        del job
