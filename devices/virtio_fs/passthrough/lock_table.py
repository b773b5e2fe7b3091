"""The locks that the guest holds, as plain records, and the requests that wait for one."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from vmsim.limits import LOCK_RANGES_MAX

from .handles import Handle

END: Final = (1 << 63) - 1
"""``end`` of a lock that reaches to the end of the file, wherever that is."""


class HeldLock(NamedTuple):
    """A byte range that an owner has locked: ``end`` inclusive, ``kind`` F_RDLCK or F_WRLCK."""

    inode_id: int
    owner: int
    start: int
    end: int
    kind: int
    pid: int


class HeldFlock(NamedTuple):
    """A whole-file lock of a handle: ``kind`` LOCK_SH or LOCK_EX."""

    fh: int
    kind: int


class Owner:
    """The locks of one owner on one inode: its own open file description ``fd`` holds them on the host."""

    __slots__ = ("fd", "ranges")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ranges: list[HeldLock] = []

    def splits(self, lock: HeldLock) -> bool:
        """Whether ``lock`` lies inside a range that is held, and would leave two pieces of it."""
        return any(held.start < lock.start and lock.end < held.end for held in self.ranges)

    def apply(self, lock: HeldLock) -> None:
        """Record that the host took this lock (or, with F_UNLCK, freed the range)."""
        ranges: list[HeldLock] = []
        for held in self.ranges:
            if held.end < lock.start or held.start > lock.end:
                ranges.append(held)
                continue
            if held.start < lock.start:
                ranges.append(held._replace(end=lock.start - 1))
            if held.end > lock.end:
                ranges.append(held._replace(start=lock.end + 1))
        if lock.kind != fcntl.F_UNLCK:
            ranges.append(lock)
        ranges.sort(key=lambda held: held.start)
        self.ranges = list(_merged(ranges))


def _merged(ranges: list[HeldLock]) -> Iterator[HeldLock]:
    last: HeldLock | None = None
    for held in ranges:
        if last is not None and last.end + 1 == held.start and last[4:] == held[4:]:
            last = last._replace(end=held.end)
            continue
        if last is not None:
            yield last
        last = held
    if last is not None:
        yield last


class Waiter:
    """A request that waits: ``attempt`` tries once more (BlockingIOError: not yet), ``done`` answers it.

    ``lock`` is the byte range that it wants, or None for a flock; ``ours`` says whether one of our own locks
    is in its way.
    """

    __slots__ = ("attempt", "done", "handle", "lock", "ours", "unique")

    def __init__(
        self, unique: int, handle: Handle, lock: HeldLock | None, ours: Callable[[], bool],
        attempt: Callable[[], None], done: Callable[[OSError | None], None],
    ) -> None:  # fmt: skip
        self.unique = unique
        self.handle = handle
        self.lock = lock
        self.ours = ours
        self.attempt = attempt
        self.done = done


class LockTable:
    """All locks and waiters; ``owners`` by (nodeid, lock owner), ``flocks`` by fh, ``waiting`` by unique."""

    __slots__ = ("flocks", "owners", "waiting")

    def __init__(self) -> None:
        self.owners: dict[tuple[int, int], Owner] = {}
        self.flocks: dict[int, int] = {}
        self.waiting: dict[int, Waiter] = {}

    def clear(self) -> tuple[list[Owner], list[Waiter]]:
        """Forget everything; who owned locks and who waited is the caller's to end."""
        dropped = list(self.owners.values()), list(self.waiting.values())
        self.owners.clear()
        self.flocks.clear()
        self.waiting.clear()
        return dropped

    def check_room(self, own: Owner, lock: HeldLock) -> None:
        """ENOLCK if the guest holds as many ranges as it may and this lock would make it one more."""
        if lock.kind == fcntl.F_UNLCK and not own.splits(lock):
            return
        if sum(len(owner.ranges) for owner in self.owners.values()) >= LOCK_RANGES_MAX:
            raise OSError(errno.ENOLCK, "too many locks")

    def held(self) -> list[HeldLock]:
        """All POSIX locks, by inode, owner and start."""
        return [lock for key in sorted(self.owners) for lock in self.owners[key].ranges]

    def held_flocks(self) -> list[HeldFlock]:
        """All flocks, by fh."""
        return [HeldFlock(fh, kind) for fh, kind in sorted(self.flocks.items())]

    def of_inode(self, nodeid: int) -> list[tuple[int, Owner]]:
        """The (lock owner, locks) of one inode."""
        return [(key[1], owner) for key, owner in self.owners.items() if key[0] == nodeid]

    def conflict(self, nodeid: int, owner: int, start: int, end: int, kind: int) -> HeldLock | None:
        """A lock of another of our owners that is in the way."""
        return next(self._conflicts(nodeid, owner, start, end, kind), None)

    def _conflicts(self, nodeid: int, owner: int, start: int, end: int, kind: int) -> Iterator[HeldLock]:
        for other, locks in self.of_inode(nodeid):
            if other == owner:
                continue
            for held in locks.ranges:
                overlap = held.start <= end and held.end >= start
                if overlap and fcntl.F_WRLCK in (held.kind, kind):
                    yield held

    def deadlock(self, wanted: HeldLock) -> bool:
        """Whether those in the way of ``wanted`` wait, directly or not, for its owner themselves."""
        seen: set[int] = set()
        wishes = [wanted]
        while wishes:
            found = {held.owner for held in self._conflicts(*wishes.pop()[:5])} - seen
            if wanted.owner in found:
                return True
            seen |= found
            waiting = (waiter.lock for waiter in self.waiting.values())
            wishes += [lock for lock in waiting if lock is not None and lock.owner in found]
        return False
