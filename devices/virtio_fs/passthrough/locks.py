"""Locks: GETLK, SETLK, SETLKW, flock, and INTERRUPT for those that wait.

A POSIX lock of the guest is an open-file-description lock here: one description per inode and lock owner, so
that owners exclude each other and everybody else on the host. A flock lives on the handle's own description.
Nothing ever blocks: a request that has to wait is tried again whenever a lock of ours is freed, and when
``retry_waiting`` is called for those that third parties hold.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from typing import Final

from vmsim.fuse.abi.flags import LK_FLOCK
from vmsim.fuse.abi.replies import FileLock
from vmsim.fuse.filesystem import DEFERRED, Context, Deferred, LockReply

from .attrs import AttrOps
from .handles import Handle
from .inodes import Inode
from .lock_table import END, HeldLock, LockTable, Owner, Waiter

FLOCKS: Final = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}


FEW_RANGES: Final = 64
"""So many ranges does an owner get without being asked how many there are altogether."""


class LockOps(AttrOps):
    """Byte-range and whole-file locks."""

    locks: LockTable

    def getlk(
        self, ctx: Context, nodeid: int, fh: int, owner: int, lock: FileLock, lk_flags: int
    ) -> LockReply:
        """GETLK; locks of others on the host are told with pid 0."""
        handle = self.require_handle(fh, nodeid)
        if lock.type not in (fcntl.F_RDLCK, fcntl.F_WRLCK):
            raise OSError(errno.EINVAL, "no such lock")
        ours = self.locks.conflict(nodeid, owner, lock.start, lock.end, lock.type)
        if ours is not None:
            return (ours.start, ours.end, ours.kind, ours.pid)
        own = self.locks.owners.get((nodeid, owner))
        fd = own.fd if own is not None else handle.fd
        found = self.host.get_lock(fd, lock.type, lock.start, _length(lock.start, lock.end))
        if found is None:
            return (lock.start, lock.end, fcntl.F_UNLCK, 0)
        kind, start, length, _ = found
        return (start, start + length - 1 if length else END, kind, 0)

    def setlk(
        self, ctx: Context, nodeid: int, fh: int, owner: int, lock: FileLock, lk_flags: int,
        done: Callable[[OSError | None], None] | None,
    ) -> Deferred | None:  # fmt: skip
        """SETLK and SETLKW; EDEADLK if a POSIX lock would wait for somebody who waits for its owner."""
        handle = self.require_handle(fh, nodeid)
        if lock.type not in FLOCKS or lock.start > lock.end:
            raise OSError(errno.EINVAL, "no such lock")
        wanted = HeldLock(nodeid, owner, lock.start, lock.end, lock.type, lock.pid)
        flock = FLOCKS[lock.type] if lk_flags & LK_FLOCK else 0

        def attempt() -> None:
            if flock:
                self.set_flock(handle, flock)
            else:
                self.set_posix(handle, wanted)

        def ours() -> bool:
            if flock:
                return self._flocked_by_others(handle, flock)
            return self.locks.conflict(*wanted[:5]) is not None

        try:
            attempt()
        except BlockingIOError:
            if done is None:
                raise
            if not flock and self.locks.deadlock(wanted):
                raise OSError(errno.EDEADLK, "the holder waits for us") from None
            waiter = Waiter(ctx.unique, handle, None if flock else wanted, ours, attempt, done)
            self.locks.waiting[ctx.unique] = waiter
            self.retry_waiting()
            return DEFERRED
        if lock.type != fcntl.F_WRLCK:
            self.retry_waiting()
        return None

    def set_flock(self, handle: Handle, operation: int) -> None:
        """flock(2) on the handle; a conversion that fails has lost the old lock, as on Linux."""
        self.locks.flocks.pop(handle.id, None)
        if operation != fcntl.LOCK_UN and self._flocked_by_others(handle, operation):
            self.host.flock(handle.fd, fcntl.LOCK_UN)
            raise BlockingIOError(errno.EAGAIN, "locked")
        self.host.flock(handle.fd, operation)
        if operation != fcntl.LOCK_UN:
            self.locks.flocks[handle.id] = operation

    def _flocked_by_others(self, handle: Handle, operation: int) -> bool:
        for other in self.handles.of_inode(handle.inode_id):
            kind = self.locks.flocks.get(other.id)
            if kind is not None and other is not handle and fcntl.LOCK_EX in (kind, operation):
                return True
        return False

    def set_posix(self, handle: Handle, lock: HeldLock, *, bounded: bool = True) -> None:
        """Lock or unlock a range for its owner; EBADF unless the handle is open for that sort of lock.

        ``bounded``: ENOLCK when the guest has too many ranges (they come back from a state in another order).
        """
        key = (lock.inode_id, lock.owner)
        own = self.locks.owners.get(key)
        if own is None:
            if lock.kind == fcntl.F_UNLCK:
                return
            own = Owner(self._lock_fd(handle))
        try:
            _check_access(handle, lock.kind)
            if lock.kind != fcntl.F_UNLCK and self.locks.conflict(*key, lock.start, lock.end, lock.kind):
                raise BlockingIOError(errno.EAGAIN, "locked")  # the host may not know it: see suspend_locks
            if bounded and len(own.ranges) >= FEW_RANGES:
                self.locks.check_room(own, lock)
            self.host.set_lock(own.fd, lock.kind, lock.start, _length(lock.start, lock.end))
            own.apply(lock)
        except OSError as error:
            if error.errno == errno.EACCES:
                raise BlockingIOError(errno.EAGAIN, "locked") from None
            raise
        finally:
            if own.ranges:
                self.locks.owners[key] = own
            else:
                self.locks.owners.pop(key, None)
                self.host.close(own.fd)

    def _lock_fd(self, handle: Handle) -> int:
        """A description of its own for an owner's locks, open for both sorts if we may."""
        if len(self.handles) + len(self.locks.owners) >= self.handles.limit:
            raise OSError(errno.ENOLCK, "too many lock owners")
        try:
            return self.host.reopen(handle.fd, os.O_RDWR | os.O_NONBLOCK)
        except OSError:
            return self.host.reopen(handle.fd, handle.flags & os.O_ACCMODE | os.O_NONBLOCK)

    # -- waiting ---------------------------------------------------------------------------------

    def retry_waiting(self) -> None:
        """Try the waiting requests again, oldest first."""
        waiting = self.locks.waiting
        if not waiting:
            return
        for waiter in list(waiting.values()):
            if waiting.get(waiter.unique) is not waiter:
                continue
            error: OSError | None = None
            try:
                waiter.attempt()
            except BlockingIOError:
                continue
            except OSError as failure:
                error = failure
            del waiting[waiter.unique]
            waiter.done(error)

    def waits_outside(self) -> bool:
        """Whether a request waits for a lock that none of ours is in the way of: somebody else holds it."""
        return any(not waiter.ours() for waiter in self.locks.waiting.values())

    def interrupt(self, unique: int) -> None:
        """INTERRUPT: the wait ends with EINTR; unknown ones are ignored."""
        waiter = self.locks.waiting.pop(unique, None)
        if waiter is not None:
            waiter.done(InterruptedError(errno.EINTR, "interrupted"))

    # -- the end of locks ------------------------------------------------------------------------

    def release_locks(self, inode: Inode, lock_owner: int) -> None:
        """Drop the POSIX locks of an owner on an inode."""
        own = self.locks.owners.pop((inode.id, lock_owner), None)
        if own is not None:
            self.host.close(own.fd)
            self.retry_waiting()

    def end_handle_locks(self, handle: Handle) -> None:
        """The handle is closed: its flock and waiters end, with an inode's last handle all its locks."""
        self.locks.flocks.pop(handle.id, None)
        for waiter in list(self.locks.waiting.values()):
            if waiter.handle is handle and self.locks.waiting.pop(waiter.unique, None) is not None:
                waiter.done(OSError(errno.EBADF, "the handle was closed"))
        if not self.handles.of_inode(handle.inode_id):
            for lock_owner, _ in self.locks.of_inode(handle.inode_id):
                self.release_locks(handle.inode, lock_owner)

    def suspend_locks(self) -> None:
        """Free all locks on the host but keep their records, so that another back-end can take them."""
        for own in self.locks.owners.values():
            self.host.set_lock(own.fd, fcntl.F_UNLCK, 0, 0)
        for fh in self.locks.flocks:
            handle = self.handles.get(fh)
            if handle is not None:
                self.host.flock(handle.fd, fcntl.LOCK_UN)

    def resume_locks(self) -> None:
        """Take all locks of the records again; BlockingIOError names the first that is taken."""
        for (nodeid, _), own in self.locks.owners.items():
            for held in own.ranges:
                try:
                    self.host.set_lock(own.fd, held.kind, held.start, _length(held.start, held.end))
                except OSError:
                    raise BlockingIOError(errno.EAGAIN, f"a lock on node {nodeid} is taken: {held}") from None
        for fh, kind in self.locks.flocks.items():
            handle = self.handles.get(fh)
            if handle is not None:
                self.host.flock(handle.fd, kind)

    def restore_lock(self, lock: HeldLock) -> None:
        """Hold a migrated lock again; BlockingIOError if it is taken, EBADF without a usable handle."""
        for handle in self.handles.of_inode(lock.inode_id):
            if handle.fd >= 0 and not handle.is_dir and _permits(handle, lock.kind):
                self.set_posix(handle, lock, bounded=False)
                return
        raise OSError(errno.EBADF, f"no handle of node {lock.inode_id} for a lock")

    def restore_flock(self, fh: int, kind: int) -> None:
        """Hold a migrated flock again; see ``restore_lock``."""
        handle = self.handles.get(fh)
        if handle is None or handle.fd < 0 or kind not in (fcntl.LOCK_SH, fcntl.LOCK_EX):
            raise OSError(errno.EBADF, f"no handle {fh} for a lock")
        self.set_flock(handle, kind)


def _length(start: int, end: int) -> int:
    return 0 if end >= END else end - start + 1


def _permits(handle: Handle, kind: int) -> bool:
    access = handle.guest_flags & os.O_ACCMODE
    if kind == fcntl.F_RDLCK:
        return access != os.O_WRONLY
    return kind == fcntl.F_UNLCK or access != os.O_RDONLY


def _check_access(handle: Handle, kind: int) -> None:
    if not _permits(handle, kind):
        raise OSError(errno.EBADF, "the file is not open for such a lock")
