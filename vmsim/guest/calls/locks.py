"""File locks: fcntl (POSIX) and flock, on the server when it takes part, else in the guest."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final, NamedTuple

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags
from vmsim.fuse.abi.flags import LK_FLOCK
from vmsim.guest.calls.context import ProcessContext, fail
from vmsim.guest.kernel.kernel import GuestKernel
from vmsim.guest.kernel.local_locks import END_MAX, acquire, conflict, deadlock, release
from vmsim.guest.state import LocalLock, OpenFile

KINDS: Final = {fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_UN: fcntl.F_UNLCK}


class LockInfo(NamedTuple):
    """What ``getlk`` found: F_UNLCK, or kind and range of a conflicting lock; ``length`` 0: to the end."""

    kind: int
    start: int
    length: int
    pid: int


class Locks:
    """lockf, flock, and fcntl's F_GETLK, F_SETLK, F_SETLKW."""

    def __init__(self, ctx: ProcessContext) -> None:
        self._ctx = ctx

    def lockf(self, fd: int, cmd: int, length: int) -> None:
        """``os.lockf``: F_LOCK, F_TLOCK, F_ULOCK, F_TEST on ``length`` bytes from the file's offset."""
        file = self._ctx.usable(fd)
        if cmd in (os.F_LOCK, os.F_TLOCK):
            if file.flags & 3 == 0:
                fail(errno.EBADF)
            self.setlk(fd, fcntl.F_WRLCK, file.offset, length, wait=cmd == os.F_LOCK)
        elif cmd == os.F_ULOCK:
            self.setlk(fd, fcntl.F_UNLCK, file.offset, length)
        elif cmd == os.F_TEST:
            found = self.getlk(fd, fcntl.F_WRLCK, file.offset, length)
            if found.kind != fcntl.F_UNLCK:
                fail(errno.EACCES)
        else:
            fail(errno.EINVAL)

    def flock(self, fd: int, operation: int) -> None:
        """``fcntl.flock``: LOCK_SH, LOCK_EX, LOCK_UN, with LOCK_NB; belongs to the open file description."""
        file = self._ctx.usable(fd)
        kind = KINDS.get(operation & ~fcntl.LOCK_NB)
        if kind is None:
            fail(errno.EINVAL)
        remote = self._ctx.kernel.state.session.flags & init_flags.FLOCK_LOCKS
        wanted = LocalLock(file.nodeid, file.id, self._ctx.pid, kind, 0, END_MAX, True)
        file.flocked = True
        with self._ctx.held(file) as number:
            self._lock(number, wanted, not operation & fcntl.LOCK_NB, bool(remote))

    def setlk(self, fd: int, kind: int, start: int, length: int, wait: bool = False) -> None:
        """Set or release a POSIX lock (F_RDLCK, F_WRLCK, F_UNLCK) as fcntl(2); EAGAIN if it is taken.

        ``length`` 0 reaches to the end of the file, wherever that is; a negative one lies before ``start``.
        With ``wait`` the call waits, and EINTR tells that ``interrupt`` ended that; EDEADLK if who is in the
        way waits for us, directly or not.
        """
        file = self._ctx.usable(fd)
        access = file.flags & 3
        if (kind == fcntl.F_RDLCK and access == 1) or (kind == fcntl.F_WRLCK and access == 0):
            fail(errno.EBADF)
        with self._ctx.held(file) as number:
            self._lock(number, self.lock_range(file, kind, start, length), wait, self.remote_posix())

    def getlk(self, fd: int, kind: int, start: int, length: int) -> LockInfo:
        """F_GETLK: the first lock that would keep us from setting this one."""
        file = self._ctx.usable(fd)
        wanted = self.lock_range(file, kind, start, length)
        if not self.remote_posix():
            found = conflict(self._ctx.kernel.state.local_locks, wanted)
            if found is None:
                return LockInfo(fcntl.F_UNLCK, start, length, 0)
            return _info(found.kind, found.start, found.end, found.pid)
        with self._ctx.held(file) as number:
            request = self._ctx.call(op.GETLK, file.nodeid, self.lock_args(number, wanted))
        reply = self._ctx.record(op.GETLK, request)
        if reply.type == fcntl.F_UNLCK:
            return LockInfo(fcntl.F_UNLCK, start, length, 0)
        return _info(reply.type, reply.start, reply.end, reply.pid)

    def interrupt(self, pid: int) -> int:
        """Interrupt what process ``pid`` waits for; the number of requests and local waits that were told."""
        kernel = self._ctx.running()
        return kernel.send_interrupt(pid) + kernel.interrupt_local(pid)

    def remote_posix(self) -> bool:
        """Whether the server takes part in POSIX locks."""
        return bool(self._ctx.kernel.state.session.flags & init_flags.POSIX_LOCKS)

    def lock_range(self, file: OpenFile, kind: int, start: int, length: int) -> LocalLock:
        """The lock that fcntl's arguments mean; EINVAL or EOVERFLOW as fcntl(2)."""
        if length < 0:
            start, length = start + length, -length
        if start < 0 or kind not in (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK):
            fail(errno.EINVAL)
        end = END_MAX if not length else start + length - 1
        if end > END_MAX:
            fail(errno.EOVERFLOW)
        return LocalLock(file.nodeid, self._ctx.pid, self._ctx.pid, kind, start, end)

    def lock_args(self, number: int, lock: LocalLock) -> tuple[int | None, ...]:
        """The arguments of a lock request through description ``number``."""
        fh = self._ctx.kernel.state.files[number].fh
        flags = LK_FLOCK if lock.flock else 0
        return (fh, lock.owner, lock.start, lock.end, lock.kind, lock.pid, flags, 0)

    def _lock(self, number: int, wanted: LocalLock, wait: bool, remote: bool) -> None:
        if not remote:
            self._lock_local(wanted, wait)
            return
        opcode = op.SETLKW if wait and wanted.kind != fcntl.F_UNLCK else op.SETLK
        self._ctx.call(opcode, wanted.nodeid, self.lock_args(number, wanted))

    def _lock_local(self, wanted: LocalLock, wait: bool) -> None:
        while True:
            kernel = self._ctx.running()
            locks = kernel.state.local_locks
            if wanted.kind == fcntl.F_UNLCK:
                release(locks, wanted)
                return
            if conflict(locks, wanted) is None:
                acquire(locks, wanted)
                return
            if not wait:
                fail(errno.EAGAIN)
            self._wait_local(kernel, wanted)

    def _wait_local(self, kernel: GuestKernel, wanted: LocalLock) -> None:
        """Wait until the lock may be had; EINTR when interrupted, EDEADLK if that would never be."""
        interrupts = kernel.state.interrupts.get(self._ctx.pid, 0)
        pid = self._ctx.pid

        def may_go_on(now: GuestKernel) -> bool:
            interrupted = now.state.interrupts.get(pid, 0) != interrupts
            return interrupted or conflict(now.state.local_locks, wanted) is None

        waits = self._ctx.cell.lock_waits
        if deadlock(kernel.state.local_locks, waits, wanted):
            fail(errno.EDEADLK)
        waits.append(wanted)
        try:
            self._ctx.wait_until(may_go_on, "a lock")
        finally:
            waits.remove(wanted)
        if self._ctx.kernel.state.interrupts.get(pid, 0) != interrupts:
            fail(errno.EINTR)

    def unlock_local(self, number: int, nodeid: int) -> None:
        """close(2): the process loses its POSIX locks on the file, the last descriptor its flock."""
        kernel = self._ctx.kernel
        locks = kernel.state.local_locks
        if not locks:
            return
        release(locks, LocalLock(nodeid, self._ctx.pid, self._ctx.pid, fcntl.F_UNLCK, 0, END_MAX))
        file = kernel.state.files.get(number)
        if file is not None and file.refs <= 1:
            release(locks, LocalLock(nodeid, number, self._ctx.pid, fcntl.F_UNLCK, 0, END_MAX, True))


def _info(kind: int, start: int, end: int, pid: int) -> LockInfo:
    return LockInfo(kind, start, 0 if end >= END_MAX else end - start + 1, pid)
