"""What runs in the guest during a job."""

from __future__ import annotations

import errno
import os

from vmsim.errors import VmsimError
from vmsim.guest.calls.posix import GuestFs
from vmsim.machine import Machine
from vmsim.schedule.seeded import SeededSchedule
from vmsim.workload.checks import Discrepancy, verify
from vmsim.workload.reader import Reader
from vmsim.workload.writer import Workload, WorkloadError

Work = Workload | Reader

CONTENDER_PID = 2
PEER_PID = 3


class Worker:
    """The workload as a guest program: works until it is told to stop, or until an answer is wrong."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.stop = False
        self.found: list[Discrepancy] = []
        """At most one: what the guest noticed itself."""

    def __call__(self, fs: GuestFs) -> None:
        """Run in process 1."""
        while not self.stop and not self.found:
            self.step(fs)

    def step(self, fs: GuestFs) -> None:
        """One operation."""
        try:
            self.work.step(fs)
        except WorkloadError as error:
            self.found.append(_of_step(self.work, "an answer as recorded", error.message))
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error.errno))
            self.found.append(_of_step(self.work, "success", f"{name} ({error})"))


def _of_step(work: Work, expected: str, found: str) -> Discrepancy:
    return Discrepancy(f"the guest's operation {work.state.steps}", expected, found)


class Contender:
    """A second process that waits for a lock of the first, across every migration."""

    def __init__(self, machine: Machine, path: str) -> None:
        self.path = path
        self.got_it = False
        fs = machine.mount()
        self._fd = fs.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fs.lockf(self._fd, os.F_TLOCK, 0)
        self._task = machine.spawn("contender", self._wait, pid=CONTENDER_PID)

    def _wait(self, fs: GuestFs) -> None:
        fd = fs.open(self.path, os.O_RDWR)
        fs.lockf(fd, os.F_LOCK, 0)
        self.got_it = True
        fs.close(fd)

    def settle(self, machine: Machine, schedule: SeededSchedule) -> list[Discrepancy]:
        """Give the lock back: now, and not before, the other process must get it."""
        found = []
        if self.got_it:
            found.append(Discrepancy("the contended lock", "held by process 1", "process 2 has it"))
        fs = machine.mount()
        try:
            fs.lockf(self._fd, os.F_ULOCK, 0)
            schedule.wait(lambda: self._task.done, "process 2 to get the lock")
            self._task.result()
            fs.close(self._fd)
            fs.unlink(self.path)
        except (VmsimError, OSError) as error:
            found.append(Discrepancy("the request that waits for the lock", "answered", str(error)))
        return found


def check(work: Work, machine: Machine) -> list[Discrepancy]:
    """Every handle, offset, lock and byte against the record; what differs."""
    fs = machine.mount()
    if isinstance(work, Reader):
        return work.verify(fs, machine.share)
    return verify(work, fs, machine.share, peer=machine.mount(PEER_PID))
