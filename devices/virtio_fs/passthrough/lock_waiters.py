"""The requests that wait for a lock, by what they wish for: few of them are tried when one comes free.

Requests for the same range (or whole file) of the same kind share a *wish*. If the first of them cannot have
it because of somebody's lock, none but that somebody can, so a wish is two attempts, however many share it.
Either one of our own locks is in the way of a wish, and it is looked at again when that goes; or it is
*stale*: something went, and it is to be tried; or *outside*: somebody else on the host is in its way.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Final

from vmsim.limits import LOCK_WAITERS_MAX

from .handles import Handle
from .intervals import Interval, Intervals
from .lock_table import HeldLock

FLOCK: Final = 16
"""Added to LOCK_SH or LOCK_EX in the kind of a wish for a whole file, beside F_RDLCK and F_WRLCK."""


class Waiter:
    """A request that waits: ``attempt`` tries once more (BlockingIOError: not yet), ``done`` answers it.

    ``lock`` is the byte range that it wants, or None for a flock, ``operation``; ``owner`` whose own locks
    are not in its way: the lock owner, or the fh of a flock.
    """

    __slots__ = ("attempt", "done", "handle", "lock", "operation", "owner", "unique", "wish")

    def __init__(
        self, unique: int, handle: Handle, lock: HeldLock | None, operation: int,
        attempt: Callable[[], None], done: Callable[[OSError | None], None],
    ) -> None:  # fmt: skip
        self.unique = unique
        self.handle = handle
        self.lock = lock
        self.operation = operation
        self.owner = handle.id if lock is None else lock.owner
        self.attempt = attempt
        self.done = done
        self.wish: Wish | None = None


class Wish:
    """What some requests wait for: ``key`` (start, end, kind) on inode ``nodeid``; the oldest comes first."""

    __slots__ = ("by_owner", "key", "nodeid", "waiters")

    def __init__(self, nodeid: int, key: Interval) -> None:
        self.nodeid = nodeid
        self.key = key
        self.waiters: dict[int, Waiter] = {}
        self.by_owner: dict[int, dict[int, Waiter]] = {}

    def first(self, owner: int | None = None) -> Waiter | None:
        """The oldest of an owner, or of all."""
        waiters = self.waiters if owner is None else self.by_owner.get(owner)
        return next(iter(waiters.values())) if waiters else None


class _Wishes:
    """The wishes of one inode."""

    __slots__ = ("by_key", "flocks", "ranges")

    def __init__(self) -> None:
        self.by_key: dict[Interval, Wish] = {}
        self.ranges = Intervals()
        self.flocks: dict[Interval, None] = {}


class WaitTable:
    """All that wait: ``waiting`` by unique. ``stale`` and ``outside`` are queues of wishes, see above."""

    __slots__ = ("_by_handle", "_by_inode", "_by_owner", "outside", "stale", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[int, Waiter] = {}
        self.stale: dict[Wish, None] = {}
        self.outside: dict[Wish, None] = {}
        self._by_inode: dict[int, _Wishes] = {}
        self._by_handle: dict[int, dict[int, Waiter]] = {}
        self._by_owner: dict[int, dict[int, Waiter]] = {}

    def clear(self) -> list[Waiter]:
        """Forget all; who waited is the caller's to answer."""
        dropped = list(self.waiting.values())
        for table in (
            self.waiting, self.stale, self.outside, self._by_inode, self._by_handle, self._by_owner
        ):  # fmt: skip
            table.clear()
        return dropped

    def check_room(self) -> None:
        """ENOLCK when as many requests wait as may."""
        if len(self.waiting) >= LOCK_WAITERS_MAX:
            raise OSError(errno.ENOLCK, "too many requests wait for locks")

    def add(self, waiter: Waiter) -> Wish:
        """Queue a request up; what it wishes for."""
        lock, nodeid = waiter.lock, waiter.handle.inode_id
        wishes = self._by_inode.setdefault(nodeid, _Wishes())
        if lock is None:
            key = Interval(0, 0, FLOCK | waiter.operation)
        else:
            key = Interval(lock.start, lock.end, lock.kind)
            self._by_owner.setdefault(lock.owner, {})[waiter.unique] = waiter
        wish = wishes.by_key.get(key)
        if wish is None:
            wish = wishes.by_key[key] = Wish(nodeid, key)
            if lock is None:
                wishes.flocks[key] = None
            else:
                wishes.ranges.add(*key)
        waiter.wish = wish
        wish.waiters[waiter.unique] = waiter
        wish.by_owner.setdefault(waiter.owner, {})[waiter.unique] = waiter
        self._by_handle.setdefault(waiter.handle.id, {})[waiter.unique] = waiter
        self.waiting[waiter.unique] = waiter
        return wish

    def remove(self, unique: int) -> Waiter | None:
        """Take a request out; None if it does not wait."""
        waiter = self.waiting.pop(unique, None)
        if waiter is None:
            return None
        _take(self._by_handle, waiter.handle.id, unique)
        if waiter.lock is not None:
            _take(self._by_owner, waiter.owner, unique)
        wish = waiter.wish
        assert wish is not None
        del wish.waiters[unique]
        _take(wish.by_owner, waiter.owner, unique)
        if not wish.waiters:
            self._drop(wish)
        return waiter

    def _drop(self, wish: Wish) -> None:
        self.stale.pop(wish, None)
        self.outside.pop(wish, None)
        wishes = self._by_inode[wish.nodeid]
        del wishes.by_key[wish.key]
        if wish.key.tag & FLOCK:
            del wishes.flocks[wish.key]
        else:
            wishes.ranges.remove(*wish.key)
        if not wishes.by_key:
            del self._by_inode[wish.nodeid]

    def freed(self, nodeid: int, start: int, end: int) -> None:
        """Locks of ours on these bytes went: who wishes for some of them is to be tried."""
        wishes = self._by_inode.get(nodeid)
        if wishes is not None:
            by_key, stale = wishes.by_key, self.stale
            for key in wishes.ranges.overlapping(start, end):
                stale[by_key[key]] = None

    def flock_freed(self, nodeid: int) -> None:
        """A flock of ours went."""
        wishes = self._by_inode.get(nodeid)
        if wishes is not None:
            self.stale.update((wishes.by_key[key], None) for key in wishes.flocks)

    def of_owner(self, owner: int) -> Iterator[Waiter]:
        """The requests for byte ranges in which this owner waits."""
        return iter(self._by_owner.get(owner, {}).values())

    def of_handle(self, fh: int) -> list[Waiter]:
        """The requests that came through this handle."""
        return list(self._by_handle.get(fh, {}).values())


def _take(table: dict[int, dict[int, Waiter]], key: int, unique: int) -> None:
    waiters = table[key]
    del waiters[unique]
    if not waiters:
        del table[key]
