"""Locks: GETLK, SETLK, SETLKW, flock, and INTERRUPT for those that wait.

A POSIX lock of the guest is an open-file-description lock here: one description per inode and lock owner, so
that owners exclude each other and everybody else on the host. A flock lives on the handle's own description.
Nothing ever blocks, and no request looks at all that wait: those are tried again for which a lock of ours in
their way has gone, and, a few at a time (``retry_waiting``), those that third parties hold up.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from vmsim.fuse.abi.flags import LK_FLOCK
from vmsim.fuse.abi.replies import FileLock
from vmsim.fuse.filesystem import DEFERRED, Context, Deferred, FileSystem, LockReply
from vmsim.limits import DEADLOCK_LOCKS_MAX, LOCK_TRIES

from .core import Core
from .handles import Handle
from .inodes import Inode
from .lock_table import END, FEW, HeldLock, Owner, together
from .lock_waiters import Waiter, Wish

FLOCKS: Final = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}


class LockOps(FileSystem):
    """Byte-range and whole-file locks."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._to_resume: list[HeldLock] = []
        self._flocks_to_resume: list[int] = []
        """What ``suspend_locks`` let go of and is to be taken again, the last one first."""

    def forget_suspended(self) -> None:
        """Nothing is to be taken again."""
        self._to_resume = []
        self._flocks_to_resume = []

    def getlk(
        self, ctx: Context, nodeid: int, fh: int, owner: int, lock: FileLock, lk_flags: int
    ) -> LockReply:
        """GETLK; locks of others on the host are told with pid 0."""
        handle = self._core.require_handle(fh, nodeid)
        if lock.type not in (fcntl.F_RDLCK, fcntl.F_WRLCK):
            raise OSError(errno.EINVAL, "no such lock")
        ours = self._core.locks.conflict(nodeid, owner, lock.start, lock.end, lock.type)
        if ours is not None:
            return (ours.start, ours.end, ours.kind, ours.pid)
        own = self._core.locks.owners.get((nodeid, owner))
        fd = own.fd if own is not None else handle.fd
        found = self._core.host.get_lock(fd, lock.type, lock.start, _length(lock.start, lock.end))
        if found is None:
            return (lock.start, lock.end, fcntl.F_UNLCK, 0)
        kind, start, length, _ = found
        return (start, start + length - 1 if length else END, kind, 0)

    def setlk(
        self, ctx: Context, nodeid: int, fh: int, owner: int, lock: FileLock, lk_flags: int,
        done: Callable[[OSError | None], None] | None,
    ) -> Deferred | None:  # fmt: skip
        """SETLK and SETLKW; EDEADLK if a POSIX lock would wait for somebody who waits for its owner."""
        handle = self._core.require_handle(fh, nodeid)
        if lock.type not in FLOCKS or lock.start > lock.end:
            raise OSError(errno.EINVAL, "no such lock")
        wanted = HeldLock(nodeid, owner, lock.start, lock.end, lock.type, lock.pid)
        flock = FLOCKS[lock.type] if lk_flags & LK_FLOCK else 0

        def attempt() -> None:
            if flock:
                self.set_flock(handle, flock)
            else:
                self.set_posix(handle, wanted)

        try:
            attempt()
        except BlockingIOError:
            if done is None:
                raise
            if not flock and self._would_deadlock(wanted):
                raise OSError(errno.EDEADLK, "the holder waits for us") from None
            self._core.waits.check_room()
            waiter = Waiter(ctx.unique, handle, None if flock else wanted, flock, attempt, done)
            wish = self._core.waits.add(waiter)
            if self._in_the_way(waiter) is None:
                self._core.waits.outside[wish] = None
            return DEFERRED
        finally:
            self.retry_stale()
        return None

    def set_flock(self, handle: Handle, operation: int) -> None:
        """flock(2) on the handle; a conversion that fails has lost the old lock, as on Linux."""
        if self._core.locks.drop_flock(handle):
            self._core.waits.flock_freed(handle.inode_id)
        if operation != fcntl.LOCK_UN and self._core.locks.flock_conflict(handle, operation) is not None:
            self._core.host.flock(handle.fd, fcntl.LOCK_UN)
            raise BlockingIOError(errno.EAGAIN, "locked")
        self._core.host.flock(handle.fd, operation)
        if operation != fcntl.LOCK_UN:
            self._core.locks.set_flock(handle, operation)

    def set_posix(self, handle: Handle, lock: HeldLock) -> None:
        """Lock or unlock a range for its owner; EBADF unless the handle is open for that sort of lock."""
        own = self._core.locks.owners.get((lock.inode_id, lock.owner))
        if own is None:
            if lock.kind == fcntl.F_UNLCK:
                return
            own = Owner(self._lock_fd(handle))
        try:
            _check_access(handle, lock.kind)
            if lock.kind != fcntl.F_UNLCK and self._core.locks.conflict(*lock[:5]):
                raise BlockingIOError(errno.EAGAIN, "locked")  # the host may not know it: see suspend_locks
            self._core.locks.check_room(own, lock)
            self._core.host.set_lock(own.fd, lock.kind, lock.start, _length(lock.start, lock.end))
            self._core.locks.apply(own, lock)
            if lock.kind != fcntl.F_WRLCK:
                self._core.waits.freed(lock.inode_id, lock.start, lock.end)
        except OSError as error:
            if error.errno == errno.EACCES:
                raise BlockingIOError(errno.EAGAIN, "locked") from None
            raise
        finally:
            if not own.ranges:
                self._core.host.close(own.fd)

    def _lock_fd(self, handle: Handle) -> int:
        """A description of its own for an owner's locks, open for both sorts if we may."""
        if len(self._core.handles) + len(self._core.locks.owners) >= self._core.handles.limit:
            raise OSError(errno.ENOLCK, "too many lock owners")
        try:
            return self._core.host.reopen(handle.fd, os.O_RDWR | os.O_NONBLOCK)
        except OSError:
            return self._core.host.reopen(handle.fd, handle.flags & os.O_ACCMODE | os.O_NONBLOCK)

    # -- waiting ---------------------------------------------------------------------------------

    def _in_the_way(self, waiter: Waiter) -> int | None:
        """The owner (fh, for a flock) of a lock of ours that ``waiter`` waits for; None if it is nobody's."""
        if waiter.lock is None:
            return self._core.locks.flock_conflict(waiter.handle, waiter.operation)
        conflict = self._core.locks.conflict(*waiter.lock[:5])
        return None if conflict is None else conflict.owner

    def _would_deadlock(self, wanted: HeldLock) -> bool:
        """Whether those in the way of ``wanted`` wait, directly or not, for its owner themselves.

        At most DEADLOCK_LOCKS_MAX locks are looked at; Linux gives up after ten owners.
        """
        seen = {wanted.owner}
        wishes = [wanted]
        left = DEADLOCK_LOCKS_MAX
        while wishes and left > 0:
            wish = wishes.pop()
            found = set()
            for held in islice(self._core.locks.conflicts(*wish[:5]), left):
                left -= 1
                found.add(held.owner)
            if wanted.owner in found:
                return True
            for owner in found - seen:
                waiters = islice(self._core.waits.of_owner(owner), left)
                wishes += [waiter.lock for waiter in waiters if waiter.lock is not None]
            seen |= found
        return False

    def retry_waiting(self, tries: int = LOCK_TRIES) -> None:
        """Try some of those again, in turn, that third parties kept out; then those that ours did."""
        outside = self._core.waits.outside
        for wish in list(islice(outside, tries)):
            if wish in outside:
                del outside[wish]
                self._try(wish)
        self.retry_stale(tries)

    def retry_stale(self, tries: int = LOCK_TRIES) -> None:
        """Try some of those for which a lock of ours has gone; the others stay for the next time."""
        stale = self._core.waits.stale
        while stale and tries > 0:
            tries -= 1
            wish = next(iter(stale))
            del stale[wish]
            if self._try(wish):
                stale[wish] = None
        if stale or self._core.waits.outside:
            self._core.on_waits()

    def _try(self, wish: Wish) -> bool:
        """Try the oldest request of a wish; whether one was answered, so that others may be next."""
        waiter = wish.first()
        if waiter is None:
            return False
        holder = self._in_the_way(waiter)
        if holder is not None:
            # Of all these, only the holder itself is not kept out by its lock.
            waiter = wish.first(holder)
            if waiter is None or self._in_the_way(waiter) is not None:
                return False
        error: OSError | None = None
        try:
            waiter.attempt()
        except BlockingIOError:
            self._core.waits.outside[wish] = None
            return False
        except OSError as failure:
            error = failure
        self._core.waits.remove(waiter.unique)
        waiter.done(error)
        return bool(wish.waiters)

    def waits_outside(self) -> bool:
        """Whether a request waits for a lock that none of ours is in the way of: somebody else holds it."""
        return bool(self._core.waits.outside)

    def interrupt(self, unique: int) -> None:
        """INTERRUPT: the wait ends with EINTR; unknown ones are ignored."""
        waiter = self._core.waits.remove(unique)
        if waiter is not None:
            waiter.done(InterruptedError(errno.EINTR, "interrupted"))

    # -- the end of locks ------------------------------------------------------------------------

    def release_locks(self, inode: Inode, lock_owner: int) -> None:
        """Drop the POSIX locks of an owner on an inode."""
        own = self._core.locks.drop(inode.id, lock_owner)
        if own is not None:
            self._core.close_file(own.fd)
            self._core.waits.freed(inode.id, own.ranges[0].start, own.ranges[-1].end)
            self.retry_stale()

    def end_handle_locks(self, handle: Handle) -> None:
        """The handle is closed: its flock and waiters end, with an inode's last handle all its locks."""
        nodeid = handle.inode_id
        if self._core.locks.drop_flock(handle):
            self._core.waits.flock_freed(nodeid)
        for waiter in self._core.waits.of_handle(handle.id):
            if self._core.waits.remove(waiter.unique) is not None:
                waiter.done(OSError(errno.EBADF, "the handle was closed"))
        if not self._core.handles.of_inode(nodeid):
            for lock_owner in self._core.locks.owners_of(nodeid):
                self.release_locks(handle.inode, lock_owner)

    def suspend_locks(self) -> None:
        """Free all locks on the host but keep their records, so that another back-end can take them."""
        self._to_resume = self._core.locks.held()
        self._flocks_to_resume = list(self._core.locks.flocks)
        for own in self._core.locks.owners.values():
            self._core.host.set_lock(own.fd, fcntl.F_UNLCK, 0, 0)
        for fh in self._core.locks.flocks:
            handle = self._core.handles.get(fh)
            if handle is not None:
                self._core.host.flock(handle.fd, fcntl.LOCK_UN)

    def resume_locks(self) -> None:
        """Take all locks of the records again; BlockingIOError names the first that is taken.

        The next call goes on with that one, so that to ask now and then costs little.
        """
        rest = self._to_resume
        while rest:
            self._resume(rest[-1])  # alone, so that it costs little while it is taken
            rest.pop()
            group = next(together(reversed(rest)), [])
            if self._resume_together(group):
                del rest[-len(group) :]
                continue
            for lock in reversed(group):
                self._resume(lock)
                rest.pop()
        while self._flocks_to_resume:
            self._resume_flock(self._flocks_to_resume[-1])
            self._flocks_to_resume.pop()

    def _resume_together(self, group: list[HeldLock]) -> bool:
        """Take what is left of these: the guest may have changed them meanwhile."""
        own = self._core.locks.owners.get(group[0][:2]) if len(group) > FEW else None
        return own is not None and self._take(own.fd, own.overlapping(group[0].start, group[-1].end))

    def _take(self, fd: int, locks: Sequence[HeldLock]) -> bool:
        """Lock all of these on the host, all that an owner has from the first to the last; or (False) none.

        Linux looks at all locks of a file when one is taken, but at few when one of the first is freed. So
        all are taken as one, and what lies between them is freed, from the end: thousands of ranges take
        what their number says and not its square. Others are kept out of the gaps for that moment.
        """
        if not locks or any(lock.kind != locks[0].kind for lock in locks):
            return False
        set_lock = self._core.host.set_lock
        try:
            set_lock(fd, locks[0].kind, locks[0].start, _length(locks[0].start, locks[-1].end))
        except OSError:
            return False
        for before, after in zip(locks[-2::-1], locks[:0:-1], strict=True):
            if before.end + 1 < after.start:
                set_lock(fd, fcntl.F_UNLCK, before.end + 1, after.start - before.end - 1)
        return True

    def _resume_flock(self, fh: int) -> None:
        handle, kind = self._core.handles.get(fh), self._core.locks.flocks.get(fh)
        if handle is not None and kind is not None:
            self._core.host.flock(handle.fd, kind)

    def _resume(self, lock: HeldLock) -> None:
        """Take one again, or what is left of it: the guest may have changed it meanwhile."""
        own = self._core.locks.owners.get((lock.inode_id, lock.owner))
        if own is None:
            return
        for held in own.overlapping(lock.start, lock.end):
            try:
                self._core.host.set_lock(own.fd, held.kind, held.start, _length(held.start, held.end))
            except OSError:
                raise BlockingIOError(
                    errno.EAGAIN, f"a lock on node {lock.inode_id} is taken: {held}"
                ) from None

    def lender(self, nodeid: int, kind: int) -> Handle | None:
        """A handle through which a migrated lock of this kind may be taken again."""
        for handle in self._core.handles.of_inode(nodeid):
            if not handle.is_dir and _permits(handle, kind):
                return handle
        return None

    def restore_locks(self, locks: list[HeldLock], lender: Handle) -> bool:
        """Hold migrated locks again that can be taken ``together``; or (False) none of them."""
        if len(locks) <= FEW:
            return False
        first, last = locks[0], locks[-1]
        own = self._core.locks.owners.get(first[:2])
        if own is None:
            own = Owner(self._lock_fd(lender))
        elif own.overlapping(first.start - 1, last.end + 1):
            return False
        try:
            taken = self._take(own.fd, locks)
            if taken:
                self._core.locks.restore(own, locks)
            return taken
        finally:
            if not own.ranges:
                self._core.host.close(own.fd)

    def restore_lock(self, lock: HeldLock, lender: Handle | None = None) -> None:
        """Hold a migrated lock again; BlockingIOError if it is taken, EBADF without a usable handle."""
        handle = lender if lender is not None else self.lender(lock.inode_id, lock.kind)
        if handle is None:
            raise OSError(errno.EBADF, f"no handle of node {lock.inode_id} for a lock")
        self.set_posix(handle, lock)

    def restore_flock(self, fh: int, kind: int) -> None:
        """Hold a migrated flock again; see ``restore_lock``."""
        handle = self._core.handles.get(fh)
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
