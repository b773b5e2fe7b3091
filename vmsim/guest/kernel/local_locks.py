"""Guest-local file locks, for servers that leave locking to the guest (no POSIX_LOCKS or FLOCK_LOCKS)."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from typing import Final

from vmsim.guest.state import LocalLock

END_MAX: Final = (1 << 63) - 1


def conflicts(locks: list[LocalLock], wanted: LocalLock) -> Iterator[LocalLock]:
    """The locks of others that ``wanted`` cannot live with."""
    for lock in locks:
        if (
            lock.nodeid == wanted.nodeid and lock.flock == wanted.flock and lock.owner != wanted.owner
            and lock.start <= wanted.end and wanted.start <= lock.end
            and fcntl.F_WRLCK in (lock.kind, wanted.kind)
        ):  # fmt: skip
            yield lock


def conflict(locks: list[LocalLock], wanted: LocalLock) -> LocalLock | None:
    """The first of them."""
    return next(conflicts(locks, wanted), None)


def deadlock(locks: list[LocalLock], waits: list[LocalLock], wanted: LocalLock) -> bool:
    """Whether those in the way of ``wanted`` wait, directly or not, for its owner; never with flock(2)."""
    seen: set[int] = set()
    wishes = [] if wanted.flock else [wanted]
    while wishes:
        found = {lock.owner for lock in conflicts(locks, wishes.pop())} - seen
        if wanted.owner in found:
            return True
        seen |= found
        wishes += [wish for wish in waits if wish.owner in found and not wish.flock]
    return False


def release(locks: list[LocalLock], gone: LocalLock) -> None:
    """Take ``gone``'s range away from its owner's locks, which may split them."""
    kept = []
    for lock in locks:
        same = lock.nodeid == gone.nodeid and lock.flock == gone.flock and lock.owner == gone.owner
        if not same or lock.end < gone.start or gone.end < lock.start:
            kept.append(lock)
            continue
        if lock.start < gone.start:
            kept.append(_cut(lock, lock.start, gone.start - 1))
        if gone.end < lock.end:
            kept.append(_cut(lock, gone.end + 1, lock.end))
    locks[:] = kept


def _cut(lock: LocalLock, start: int, end: int) -> LocalLock:
    return LocalLock(lock.nodeid, lock.owner, lock.pid, lock.kind, start, end, lock.flock)


def acquire(locks: list[LocalLock], wanted: LocalLock) -> None:
    """Enter a lock that is in conflict with none; it replaces its owner's locks in the range."""
    release(locks, wanted)
    locks.append(wanted)
