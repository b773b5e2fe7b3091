"""The locks that the guest holds, as plain records: by file, by owner, and by range.

No question and no change looks at all locks: what it costs depends on the ranges that it touches, so that a
guest (or a state) with as many as it may have pays as much for each as one with few.
"""

from __future__ import annotations

import errno
import fcntl
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from sortedcontainers import SortedKeyList

from vmsim.limits import LOCK_RANGES_MAX

from .handles import Handle
from .intervals import Intervals

END: Final = (1 << 63) - 1
"""``end`` of a lock that reaches to the end of the file, wherever that is."""

TOGETHER: Final = 256
"""Ranges that are taken again together: for how long nobody else gets what lies between them."""
FEW: Final = 32
"""Ranges that are taken again one by one: nobody is kept out of what lies between them."""


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
    """The locks of one owner on one inode: its own open file description ``fd`` holds them on the host.

    ``ranges`` are in order of their starts, and apart from each other.
    """

    __slots__ = ("fd", "ranges")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ranges: Any = SortedKeyList(key=_start)

    def overlapping(self, start: int, end: int) -> list[HeldLock]:
        """The ranges that share a byte with ``start`` to ``end``, in order."""
        ranges = self.ranges
        first = ranges.bisect_key_left(start)
        if first and ranges[first - 1].end >= start:
            first -= 1
        found: list[HeldLock] = ranges[first : ranges.bisect_key_right(end)]
        return found

    def splits(self, lock: HeldLock) -> bool:
        """Whether ``lock`` lies inside a range that is held, and would leave two pieces of it."""
        around = self.overlapping(lock.start, lock.start)
        return bool(around) and around[0].start < lock.start and lock.end < around[0].end

    def apply(self, lock: HeldLock) -> tuple[list[HeldLock], list[HeldLock]]:
        """Record that the host took this lock (or, with F_UNLCK, freed the range); what went, what came."""
        old = self.overlapping(lock.start - 1, lock.end + 1)  # neighbours too: they may become one with it
        pieces = []
        for held in old:
            if held.start < lock.start:
                pieces.append(held._replace(end=min(held.end, lock.start - 1)))
            if held.end > lock.end:
                pieces.append(held._replace(start=max(held.start, lock.end + 1)))
        if lock.kind != fcntl.F_UNLCK:
            pieces.append(lock)
        pieces.sort(key=_start)
        new = list(_merged(pieces))
        for held in old:
            self.ranges.remove(held)
        self.ranges.update(new)
        return old, new


def together(backwards: Iterable[HeldLock]) -> Iterator[list[HeldLock]]:
    """Those that can be taken together, in order: neighbours of one owner and kind, apart from each other.

    ``backwards``: by owner and start, the last first; so come the groups.
    """
    group: list[HeldLock] = []
    for lock in backwards:
        if group:
            above = group[-1]
            alike = (lock.inode_id, lock.owner, lock.kind) == (above.inode_id, above.owner, above.kind)
            if not alike or lock.end + 1 >= above.start or len(group) == TOGETHER:
                yield group[::-1]
                group = []
        group.append(lock)
    if group:
        yield group[::-1]


def _start(lock: HeldLock) -> int:
    return lock.start


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


class FileLocks:
    """The locks of one inode: ``owners`` of ranges, ``flocks`` by fh."""

    __slots__ = ("exclusive", "flocks", "owners", "reads", "writes")

    def __init__(self) -> None:
        self.owners: dict[int, Owner] = {}
        self.reads = Intervals()
        self.writes = Intervals()
        self.flocks: dict[int, int] = {}
        self.exclusive = -1
        """The fh that holds LOCK_EX, or -1."""

    def conflicts(self, owner: int, start: int, end: int, kind: int) -> Iterator[HeldLock]:
        """The locks of other owners that are in the way."""
        for found in self.writes.overlapping(start, end, owner):
            yield self.owners[found.tag].overlapping(found.start, found.start)[0]
        if kind == fcntl.F_WRLCK:
            for found in self.reads.overlapping(start, end, owner):
                yield self.owners[found.tag].overlapping(found.start, found.start)[0]

    def flock_conflict(self, fh: int, operation: int) -> int | None:
        """The fh of another handle whose flock is in the way of LOCK_SH or LOCK_EX."""
        if self.exclusive not in (-1, fh):
            return self.exclusive
        if operation == fcntl.LOCK_EX:
            return next((other for other in self.flocks if other != fh), None)
        return None


class LockTable:
    """All locks; ``owners`` by (nodeid, lock owner), ``flocks`` by fh, ``count`` of all ranges."""

    __slots__ = ("_files", "count", "flocks", "owners")

    def __init__(self) -> None:
        self.owners: dict[tuple[int, int], Owner] = {}
        self.flocks: dict[int, int] = {}
        self.count = 0
        self._files: dict[int, FileLocks] = {}

    def clear(self) -> list[Owner]:
        """Forget everything; the owners' descriptors are the caller's to close."""
        dropped = list(self.owners.values())
        self.owners.clear()
        self.flocks.clear()
        self._files.clear()
        self.count = 0
        return dropped

    def of_inode(self, nodeid: int) -> FileLocks:
        """The locks of one inode, a record of its own if there are none; see ``tidy``."""
        found = self._files.get(nodeid)
        if found is None:
            found = self._files[nodeid] = FileLocks()
        return found

    def tidy(self, nodeid: int) -> None:
        """Drop the record of an inode on which there is no lock."""
        found = self._files.get(nodeid)
        if found is not None and not found.owners and not found.flocks:
            del self._files[nodeid]

    # -- byte ranges -----------------------------------------------------------------------------

    def check_room(self, own: Owner, lock: HeldLock) -> None:
        """ENOLCK if the guest holds as many ranges as it may and this lock would make it one more."""
        if self.count < LOCK_RANGES_MAX or (lock.kind == fcntl.F_UNLCK and not own.splits(lock)):
            return
        raise OSError(errno.ENOLCK, "too many locks")

    def apply(self, own: Owner, lock: HeldLock) -> None:
        """Record what the host did for this owner; see ``Owner.apply``."""
        old, new = own.apply(lock)
        key = (lock.inode_id, lock.owner)
        file = self.of_inode(lock.inode_id)
        for held in old:
            _index(file, held).remove(held.start, held.end, held.owner)
        for held in new:
            _index(file, held).add(held.start, held.end, held.owner)
        self.count += len(new) - len(old)
        if own.ranges:
            self.owners[key] = file.owners[lock.owner] = own
        elif self.owners.pop(key, None) is not None:
            del file.owners[lock.owner]
        self.tidy(lock.inode_id)

    def restore(self, own: Owner, locks: list[HeldLock]) -> None:
        """Record that the host has these, which are apart from each other and from all that the owner has."""
        nodeid, owner = locks[0][:2]
        file = self.of_inode(nodeid)
        for lock in locks:
            own.ranges.add(lock)
            _index(file, lock).add(lock.start, lock.end, owner)
        self.count += len(locks)
        self.owners[nodeid, owner] = file.owners[owner] = own

    def drop(self, nodeid: int, owner: int) -> Owner | None:
        """Forget the locks of an owner on an inode; what they were, None if there were none."""
        own = self.owners.pop((nodeid, owner), None)
        if own is None:
            return None
        file = self.of_inode(nodeid)
        for held in own.ranges:
            _index(file, held).remove(held.start, held.end, owner)
        self.count -= len(own.ranges)
        del file.owners[owner]
        self.tidy(nodeid)
        return own

    def owners_of(self, nodeid: int) -> list[int]:
        """The owners of ranges of one inode."""
        file = self._files.get(nodeid)
        return [] if file is None else list(file.owners)

    def held(self) -> list[HeldLock]:
        """All POSIX locks, by inode, owner and start."""
        return [lock for key in sorted(self.owners) for lock in self.owners[key].ranges]

    def looks(self) -> int:
        """How many locks the host looks at when all are taken again: for each group, those of its file."""
        of_file: Counter[int] = Counter()
        looks = 0
        for group in together(reversed(self.held())):
            nodeid = group[0].inode_id
            of_file[nodeid] += len(group)
            looks += of_file[nodeid] * (1 if len(group) > FEW else len(group))
        return looks

    def conflict(self, nodeid: int, owner: int, start: int, end: int, kind: int) -> HeldLock | None:
        """A lock of another of our owners that is in the way."""
        return next(self.conflicts(nodeid, owner, start, end, kind), None)

    def conflicts(self, nodeid: int, owner: int, start: int, end: int, kind: int) -> Iterator[HeldLock]:
        """All of them; the locks must not change meanwhile."""
        file = self._files.get(nodeid)
        return iter(()) if file is None else file.conflicts(owner, start, end, kind)

    # -- whole files -----------------------------------------------------------------------------

    def set_flock(self, handle: Handle, kind: int) -> None:
        """The handle holds LOCK_SH or LOCK_EX now."""
        self.drop_flock(handle)
        file = self.of_inode(handle.inode_id)
        self.flocks[handle.id] = file.flocks[handle.id] = kind
        if kind == fcntl.LOCK_EX:
            file.exclusive = handle.id

    def drop_flock(self, handle: Handle) -> bool:
        """It holds none; whether it held one."""
        if self.flocks.pop(handle.id, None) is None:
            return False
        file = self.of_inode(handle.inode_id)
        del file.flocks[handle.id]
        if file.exclusive == handle.id:
            file.exclusive = -1
        self.tidy(handle.inode_id)
        return True

    def flock_conflict(self, handle: Handle, operation: int) -> int | None:
        """The fh of another handle whose flock is in the way."""
        file = self._files.get(handle.inode_id)
        return None if file is None else file.flock_conflict(handle.id, operation)

    def held_flocks(self) -> list[HeldFlock]:
        """All flocks, by fh."""
        return [HeldFlock(fh, kind) for fh, kind in sorted(self.flocks.items())]


def _index(file: FileLocks, lock: HeldLock) -> Intervals:
    return file.writes if lock.kind == fcntl.F_WRLCK else file.reads
