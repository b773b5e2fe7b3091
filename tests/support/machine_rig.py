"""A machine whose guest keeps everything alive that a migration can lose, and a look at whether it did."""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from vmsim.errors import MigrationError, VmsimError
from vmsim.host.fs import LinuxFs
from vmsim.machine import Machine, Seams
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.schedule.seeded import SeededSchedule
from vmsim.wrappers.faults import Fault, FaultPlan, FaultyChannel, FaultyHostFs, FaultyTransport

MEMORY = "2M"
HANDLES_ALLOWED = LinuxFs().handles_allowed()
MODES = ("find-paths", "file-handles") if HANDLES_ALLOWED else ("find-paths",)
"""Without privilege nothing can be found again by file handle."""


class Kind(NamedTuple):
    """One way to run a machine."""

    ring: str
    dialect: str
    mode: str
    seed: int | None

    def schedule(self) -> Any:
        return ImmediateSchedule() if self.seed is None else SeededSchedule(self.seed)

    def __str__(self) -> str:
        schedule = "immediate" if self.seed is None else "seeded"
        return f"{self.ring}-{self.dialect}-{self.mode}-{schedule}"


ALL_KINDS = [
    Kind(*row)
    for row in itertools.product(
        ("split", "packed"), ("upstream", "rfc2023"), MODES, (None, 7)
    )
]
FEW_KINDS = [
    Kind("split", "upstream", "find-paths", None), Kind("packed", "rfc2023", MODES[-1], None),
    Kind("packed", "upstream", "find-paths", 7), Kind("split", "rfc2023", "find-paths", 8),
]  # fmt: skip
"""Each value of each choice, and most pairs, at a quarter of the time."""


def make(share: Any, kind: Kind = FEW_KINDS[0], *, schedule: Any = None, **changes: Any) -> Machine:
    arguments: dict[str, Any] = {
        "memory": MEMORY, "ring": kind.ring, "dialect": kind.dialect, "queue_size": 32,
        "options": {"migration_mode": kind.mode}, "schedule": schedule or kind.schedule(),
    }  # fmt: skip
    return Machine(share, **(arguments | changes))


def host_lock(path: Any) -> bool:
    """Whether a third party could lock the file now."""
    with open(path, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class Life:
    """What the guest has open: everything by plain numbers, as a program in the guest would keep it.

    ``check`` looks at all of it through any later machine; ``go_on`` changes it a little, and may be called
    any number of times in between.
    """

    def __init__(self, vm: Machine, waiter: bool = True) -> None:
        fs = vm.mount()
        self.written = b""
        fs.mkdir("/d")
        for number in range(3):
            fs.close(fs.open(f"/d/f{number}", os.O_CREAT | os.O_RDWR))
        self.fd = fs.open("/notes", os.O_RDWR | os.O_CREAT, 0o640)
        self.unlinked = fs.open("/gone", os.O_RDWR | os.O_CREAT)
        fs.write(self.unlinked, b"only here")
        fs.unlink("/gone")
        self.renamed = fs.open("/before", os.O_RDWR | os.O_CREAT)
        fs.write(self.renamed, b"renamed")
        fs.rename("/before", "/d/after")
        self.append = fs.open("/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.folder = fs.open("/d", os.O_RDONLY | os.O_DIRECTORY)
        self.locked = fs.open("/locked", os.O_RDWR | os.O_CREAT)
        fs.setlk(self.locked, fcntl.F_WRLCK, 10, 20)
        fs.flock(self.locked, fcntl.LOCK_EX)
        self.appended = 0
        self.go_on(vm)
        self.got_it = False
        self.waiter = vm.spawn("waiter", self._wait_for_lock, pid=2) if waiter else None
        if waiter:  # its request is in flight from now on, and stays there
            vm.schedule.wait(lambda: vm.facts()["waiting"] > 0, "the waiter's request")

    def _wait_for_lock(self, fs: Any) -> None:
        fd = fs.open("/locked", os.O_RDWR)
        fs.setlk(fd, fcntl.F_WRLCK, 0, 15, wait=True)
        self.got_it = True

    def go_on(self, vm: Machine) -> None:
        fs = vm.mount()
        fs.write(self.fd, b"some text ")
        self.written += b"some text "
        fs.write(self.append, b"x")
        self.appended += 1

    def check(self, vm: Machine) -> None:
        fs = vm.mount()
        assert fs.lseek(self.fd, 0, os.SEEK_CUR) == len(self.written)
        assert fs.pread(self.fd, len(self.written) + 1, 0) == self.written
        assert fs.pread(self.unlinked, 100, 0) == b"only here"
        assert fs.fstat(self.unlinked).st_nlink == 0
        assert fs.pread(self.renamed, 100, 0) == b"renamed"
        assert fs.fstat(self.renamed).st_ino == fs.stat("/d/after").st_ino
        assert fs.fstat(self.append).st_size == self.appended
        assert sorted(fs.listdir(self.folder)) == ["after", "f0", "f1", "f2"]
        assert fs.getlk(self.fd, fcntl.F_WRLCK, 0, 0).kind == fcntl.F_UNLCK
        assert not host_lock(os.path.join(vm.share, "locked"))
        assert not self.got_it
        assert len(vm.kernel.requests) == (self.waiter is not None)

    def finish(self, vm: Machine) -> None:
        """Let the waiting request end: its reply must still find its program."""
        vm.mount().setlk(self.locked, fcntl.F_UNLCK, 0, 0)
        if self.waiter is None:
            return
        vm.schedule.wait(lambda: self.waiter.done, "the waiter")
        self.waiter.result()
        assert self.got_it
        assert vm.kernel.requests == {}


class Switch(FaultPlan):
    """A fault plan that sleeps until it is switched on."""

    def __init__(self, faults: Any = ()) -> None:
        super().__init__(faults)
        self.on = False

    def cross(self, seam: str, operation: str) -> Fault | None:
        return super().cross(seam, operation) if self.on else None

    def is_cut(self, seam: str) -> bool:
        return self.on and super().is_cut(seam)


def faulty(plan: FaultPlan, side: str) -> Seams:
    """All seams of one side under one plan. Every connection is a seam of its own, as after a reconnect."""
    connection = itertools.count(1)
    return Seams(
        transport=lambda inner: FaultyTransport(inner, plan, f"vhost {side} {next(connection)}"),
        channel=lambda inner, role: FaultyChannel(inner, plan, f"channel {role}"),
        host_fs=lambda inner: FaultyHostFs(inner, plan, f"host {side}"),
    )


class Campaign:
    """One machine under test: all its faults come from one plan, on while it migrates."""

    def __init__(self, share: Any, kind: Kind, faults: Any = (), **changes: Any) -> None:
        self.plan = Switch(faults)
        self.error: VmsimError | None = None
        self.vm = make(share, kind, seams=faulty(self.plan, "source"), **changes)

    def migrate(self, **arguments: Any) -> Machine | None:
        """The destination, or None after a failure, which is kept."""
        self.plan.on = True
        try:
            return self.vm.migrate(seams=faulty(self.plan, "destination"), **arguments)
        except MigrationError as error:
            self.error = error
            return None
        finally:
            self.plan.on = False


Check = Callable[[Machine], None]
