"""What a voyage takes along that a migration easily loses: locks, requests that wait, one not yet seen.

Program 5 holds a lock of a range and one of a whole file. Then either program 6 waits for one of them, or for
a file that the host keeps it from opening: its request stays in the ring, and moves as a parked one. Or it
asks in the last moment before the guest stops: only the kick after the migration gets that answered.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from tests.support.machine_rig import host_lock
from vmsim.host.lease import Lease
from vmsim.schedule.seeded import SeededSchedule
from vmsim.schedule.tasks import SimTask

HOLDER, OTHER = 5, 6
HELD: Final = "/held"
START, LENGTH = 10, 20
OFFSET: Final = 7
SOON_TURNS: Final = 100
WAITS: Final = ("lock", "flock", "open")


class VoyageSchedule(SeededSchedule):
    """While ``late`` is set, kicks come last: a draw like any other, made sure of."""

    late = False

    def _choose(self, runnable: list[SimTask]) -> SimTask:
        if self.late:
            runnable = [task for task in runnable if not task.urgent] or runnable
        return super()._choose(runnable)


def host_flock(path: str) -> bool:
    """Whether a third party could lock the whole file now."""
    with open(path, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class Cargo:
    """Loaded before a migration, looked at after it, then unloaded. ``carried`` counts what has arrived."""

    def __init__(self, schedule: VoyageSchedule, share: str) -> None:
        self._schedule = schedule
        self._numbers = schedule.rng("cargo")
        self._path = share + HELD
        self.carried: Counter[str] = Counter()
        self._task: SimTask | None = None
        self._lease: Lease | None = None
        self.waits = ""
        """What program 6 waits for."""

    def load(self, machine: Any, *, wait: bool) -> None:
        """Take the locks; then let program 6 wait, or get ready to ask in the last moment."""
        if not os.path.exists(self._path):
            with open(self._path, "wb"):
                pass
        fs = machine.mount(HOLDER)
        self.fd, self.flocked = (fs.open(HELD, os.O_RDWR) for _ in range(2))
        fs.setlk(self.fd, fcntl.F_WRLCK, START, LENGTH)
        fs.flock(self.flocked, fcntl.LOCK_EX)
        fs.lseek(self.fd, OFFSET, os.SEEK_SET)
        self.waits = self._numbers.choice(WAITS) if wait else ""
        self._may_ask = self._ready = False
        if not wait:
            self._task = machine.spawn("last moment", self._ask, pid=OTHER)
            self._schedule.wait(lambda: self._ready, "the open file of the last moment")
            return
        if self.waits == "open":
            os.close(os.open(self._path + ".leased", os.O_CREAT | os.O_WRONLY, 0o644))
            self._lease = Lease(self._path + ".leased")
        self._task = machine.spawn("waiter", getattr(self, f"_wait_{self.waits}"), pid=OTHER)
        self._schedule.wait(lambda: self._waits(machine), "the waiter's request")

    def _waits(self, machine: Any) -> bool:
        """Whether the back-end has the request, and cannot answer it."""
        if self._lease is not None:
            return self._lease.wanted and len(machine.kernel.requests) > 0
        return bool(machine.facts()["waiting"])

    def _wait_lock(self, fs: Any) -> None:
        fd = fs.open(HELD, os.O_RDWR)
        fs.setlk(fd, fcntl.F_WRLCK, 0, START + 5, wait=True)
        fs.close(fd)

    def _wait_flock(self, fs: Any) -> None:
        fd = fs.open(HELD, os.O_RDWR)
        fs.flock(fd, fcntl.LOCK_SH)
        fs.close(fd)

    def _wait_open(self, fs: Any) -> None:
        fs.close(fs.open(HELD + ".leased", os.O_WRONLY))

    def _ask(self, fs: Any) -> Any:
        fd = fs.open(HELD, os.O_RDWR)
        self._ready = True
        self._schedule.wait(lambda: self._may_ask, "the last moment")
        found = fs.getlk(fd, fcntl.F_WRLCK, 0, 0)
        fs.close(fd)
        return found

    def progress(self, machine: Any, report: Any) -> None:
        """Of the migration: in the last moment before the guest stops, program 6 asks."""
        self._schedule.late = False
        if report.phase == "stop" and self._task is not None and not self.waits:
            self._schedule.late = self._may_ask = True
            self._schedule.wait(lambda: len(machine.kernel.requests) > 0, "the last request")

    def arrived(self, parked: int) -> None:
        """The migration succeeded, with so many requests parked in the rings."""
        self.carried["held lock"] += 1
        self.carried["held flock"] += 1
        if self.waits:
            self.carried[f"waiting {self.waits}"] += 1
            self.carried["parked"] += parked
        else:
            self.carried["unseen"] += 1

    def check(self, machine: Any) -> None:
        """Everything is as it was, here or there."""
        task = self._task
        assert task is not None
        if self.waits:
            self._schedule.wait(lambda: self._waits(machine), "the waiter's request, once more")
            assert not task.done, f"program {OTHER} waits no more for the {self.waits}"
        else:
            self._may_ask = True  # it may have failed before the last moment
            self._schedule.wait(lambda: task.done, "the answer to the last request")
            found: Any = task.result()
            assert found[:3] == (fcntl.F_WRLCK, START, LENGTH), f"the lock is {found}"
        assert machine.mount(HOLDER).lseek(self.fd, 0, os.SEEK_CUR) == OFFSET
        # A source that goes on may have to wait for its destination to let go of them.
        self._soon(lambda: not host_lock(self._path), "a third party can have the lock")
        self._soon(lambda: not host_flock(self._path), "a third party can have the flock")

    def _soon(self, ready: Callable[[], bool], trouble: str) -> None:
        """In a number of turns: who waits for the host's lease may wait for ever, so nobody would stall."""
        for _ in range(SOON_TURNS):
            if ready():
                return
            self._schedule.sleep_ns(1000)
        raise AssertionError(trouble)

    def unload(self, machine: Any) -> None:
        """Let go of everything; who waits gets what it waited for. With rings in order, that comes first."""
        fs = machine.mount(HOLDER)
        releases = {
            "open": self._release,
            "flock": lambda: fs.flock(self.flocked, fcntl.LOCK_UN),
            "lock": lambda: fs.setlk(self.fd, fcntl.F_UNLCK, START, LENGTH),
        }
        for name in sorted(releases, key=lambda name: name != self.waits):
            releases[name]()
            self._schedule.wait(lambda: self._task is None or self._task.done, f"program {OTHER}'s end")
        assert self._task is not None
        self._task.result()
        self._task = None
        fs.close(self.fd)
        fs.close(self.flocked)

    def _release(self) -> None:
        if self._lease is not None:
            self._lease.give_back()
            self._lease = None

    def close(self) -> None:
        """After a failure too."""
        self._release()
