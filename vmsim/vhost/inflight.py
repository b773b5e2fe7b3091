"""The in-flight buffer: which requests a back-end holds, in memory that outlives it.

vhost-user "Inflight I/O tracking". The buffer has one region per queue. The front-end keeps it and hands it
to the back-end that comes after one that died, which resubmits what was in flight: nothing is lost,
nothing answered twice. What lies there was written by whoever held it before, so all of it is checked.

    split    header 16 bytes, then per descriptor  inflight, next, counter                          (16 bytes)
    packed   header 32 bytes, then per entry       inflight, next, last, num, counter, descriptor  (32 bytes)

Its holder may be killed between any two stores: each step of the specification is one store here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from vmsim.vhost.messages import MessageError

SPEC: Final = "vhost-user 'Inflight I/O tracking'"
VERSION: Final = 1
ALIGN: Final = 64
"""Bytes; regions begin on a cache line."""

COUNTER_LIMIT: Final = 1 << 63
"""Nobody counts that far; so whoever goes on from below it never passes 64 bits either."""

Slot = tuple[int, int, int, int]
"""One descriptor of a packed ring: gpa, bytes, buffer id, flags."""


def region_bytes(queue_size: int, *, packed: bool) -> int:
    """The bytes of one queue's region."""
    head, entry = (PackedRegion.HEAD, PackedRegion.ENTRY) if packed else (SplitRegion.HEAD, SplitRegion.ENTRY)
    return (head.size + entry * queue_size + ALIGN - 1) // ALIGN * ALIGN


def region_of(buffer: memoryview, queue: int, queue_count: int) -> memoryview:
    """One queue's part of the buffer; MessageError if no part is large enough for anything."""
    stride = len(buffer) // queue_count
    if stride < PackedRegion.HEAD.size or stride % 8:
        raise MessageError(
            f"in-flight buffer of {len(buffer)} bytes for {queue_count} queues: {stride} for each", spec=SPEC
        )
    return buffer[queue * stride : (queue + 1) * stride]


class _Region:
    """What both formats share: features u64, version u16, desc_num u16; then entries with a counter."""

    HEAD: struct.Struct
    ENTRY: int
    COUNTER_AT: int

    def __init__(self, view: memoryview, size: int) -> None:
        needed = self.HEAD.size + self.ENTRY * size
        if len(view) < needed:
            raise MessageError(
                f"in-flight region of {len(view)} bytes, a ring of {size} needs {needed}", spec=SPEC
            )
        self._view = view[:needed]
        self._halves = self._view.cast("H")
        self._longs = self._view.cast("Q")
        self._size = size
        self._counter = 0

    def _at(self, index: int) -> int:
        return self.HEAD.size + self.ENTRY * index

    @property
    def used_before(self) -> bool:
        """Whether a back-end has left something here; MessageError if it is of no known form."""
        _, version, number = struct.unpack_from("=QHH", self._view)
        if version == 0:
            return False
        if version != VERSION or number < self._size:
            raise MessageError(
                f"in-flight region of version {version} for {number} descriptors, not {self._size}", spec=SPEC
            )
        return True

    def _clear(self) -> None:
        self._set_half(8, 0)
        self._view[:] = bytes(len(self._view))
        self._counter = 0

    def announce(self) -> None:
        """The last step of preparing a region: from now on its contents count."""
        self._set_half(10, self._size)
        self._set_half(8, VERSION)

    def _is_in_flight(self, index: int) -> bool:
        return self._view[self._at(index)] != 0

    def _begin(self, index: int) -> None:
        at = self._at(index)
        self._longs[at + self.COUNTER_AT >> 3] = self._counter
        self._counter += 1
        self._view[at] = 1

    def _end(self, index: int) -> None:
        self._view[self._at(index)] = 0

    def _in_order(self) -> list[int]:
        """The entries in flight, by their counters; those to come are counted on from there."""
        found = [index for index in range(self._size) if self._is_in_flight(index)]
        counters = {index: self._count_of(index) for index in found}
        if len(set(counters.values())) != len(found):
            raise MessageError("two requests in flight have the same counter", spec=SPEC)
        self._counter = max(counters.values(), default=-1) + 1
        if self._counter >= COUNTER_LIMIT:
            raise MessageError(f"a request in flight has the counter {self._counter - 1}", spec=SPEC)
        return sorted(found, key=counters.__getitem__)

    def _count_of(self, index: int) -> int:
        value: int = self._longs[self._at(index) + self.COUNTER_AT >> 3]
        return value

    def _half(self, offset: int) -> int:
        value: int = self._halves[offset >> 1]
        return value

    def _set_half(self, offset: int, value: int) -> None:
        self._halves[offset >> 1] = value


class SplitRegion(_Region):
    """The region of a split ring; an entry stands for the chain whose head has its index."""

    HEAD = struct.Struct("=QHHHH")  # features, version, desc_num, last_batch_head, used_idx
    ENTRY = 16  # inflight u8, padding, next u16 at 6, counter u64 at 8
    COUNTER_AT = 8
    NEXT_AT = 6
    BATCH_AT = 12
    USED_AT = 14

    def prepare(self, used_idx: int) -> None:
        """Begin a region for a ring whose used index is ``used_idx``; ``announce`` ends that."""
        self._clear()
        self._set_half(self.USED_AT, used_idx)

    def taken(self, head: int) -> None:
        """A chain was taken from the available ring."""
        self._begin(head)

    def giving(self, heads: Sequence[int]) -> None:
        """These chains are about to become visible in the used ring, by one store of its index."""
        halves = self._halves
        last = halves[self.BATCH_AT >> 1]
        for head in heads:
            halves[self._at(head) + self.NEXT_AT >> 1] = last
            last = head
        halves[self.BATCH_AT >> 1] = last

    def given(self, heads: Sequence[int], used_idx: int) -> None:
        """They are; ``used_idx`` is the ring's used index now."""
        for head in heads:
            self._end(head)
        self._set_half(self.USED_AT, used_idx)

    def recover(self, used_idx: int) -> list[int]:
        """The heads that were in flight, oldest first, when the ring's used index says ``used_idx``.

        If it moved past the recorded one, the back-end died between showing a batch and recording that.
        MessageError if the region cannot be that of this ring.
        """
        batch = (used_idx - self._half(self.USED_AT)) & 0xFFFF
        if batch > self._size:
            raise MessageError(f"in-flight region is {batch} used entries behind its ring", spec=SPEC)
        head = self._half(self.BATCH_AT)
        for _ in range(batch):
            if head >= self._size:
                raise MessageError(f"in-flight region: batch of descriptor {head}", spec=SPEC)
            self._end(head)
            head = self._half(self._at(head) + self.NEXT_AT)
        self._set_half(self.USED_AT, used_idx)
        return self._in_order()


class PackedRegion(_Region):
    """The region of a packed ring; an entry is a copy of one descriptor, as used ones overwrite the ring."""

    HEAD = struct.Struct("=QHHHHHHBB7x3x")
    ENTRY = 32
    COUNTER_AT = 8
    FREE, OLD_FREE = 12, 14
    """Offsets of free_head and old_free_head."""
    USED_WORD = 2
    """Index of the 64-bit word with used_idx, old_used_idx and their wrap counters: stored at once."""
    NEXT, LAST, NUM, DESC = 2, 4, 6, 16
    """Offsets within an entry; the descriptor is id u16, flags u16, len u32, addr u64."""
    _DESC = struct.Struct("=HHIQ")
    _USED = struct.Struct("=HHBB2x")
    _WORD = struct.Struct("=Q")

    def prepare(self, used_idx: int, used_wrap: int) -> None:
        """Begin a region for a ring whose used position is that; ``announce`` ends that."""
        self._clear()
        self._position = used_idx, used_wrap
        for index in range(self._size):
            self._set_half(self._at(index) + self.NEXT, index + 1)
        self._set_used((used_idx, used_wrap), (used_idx, used_wrap))

    def _set_used(self, new: tuple[int, int], old: tuple[int, int]) -> None:
        word = self._USED.pack(new[0], old[0], new[1], old[1])
        self._longs[self.USED_WORD] = self._WORD.unpack(word)[0]

    def _used(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The used position (slot, wrap counter), and the former one."""
        new, old, wrap, old_wrap = self._USED.unpack(self._WORD.pack(self._longs[self.USED_WORD]))
        return (new, wrap), (old, old_wrap)

    def taken(self, slots: Sequence[Slot]) -> int:
        """A list of descriptors was taken from the ring; the entry that stands for it."""
        head = last = entry = self._half(self.FREE)
        for gpa, size_bytes, buffer_id, flags in slots:
            at = self._at(entry)
            self._DESC.pack_into(self._view, at + self.DESC, buffer_id, flags, size_bytes, gpa)
            last, entry = entry, self._half(at + self.NEXT)
        self._set_half(self._at(head) + self.LAST, last)
        self._set_half(self._at(head) + self.NUM, len(slots))
        self._begin(head)
        self._set_half(self.FREE, entry)
        self._set_half(self.OLD_FREE, entry)
        return head

    def giving(self, entries: Sequence[int], used_idx: int, used_wrap: int) -> None:
        """These lists are about to become visible as used; the ring's used position will be that."""
        free = self._half(self.FREE)
        for entry in entries:
            last = self._half(self._at(entry) + self.LAST)
            self._set_half(self._at(last) + self.NEXT, free)
            free = entry
        self._set_half(self.FREE, free)
        former, self._position = self._position, (used_idx, used_wrap)
        self._set_used(self._position, former)

    def given(self, entries: Sequence[int]) -> None:
        """They are."""
        for entry in entries:
            self._end(entry)
        self._set_half(self.OLD_FREE, self._half(self.FREE))
        self._set_used(self._position, self._position)

    def recover(self, shown: Sequence[int]) -> tuple[int, int, dict[int, list[Slot]]]:
        """The used position (slot, wrap counter), and the lists in flight by their entries, oldest first.

        ``shown`` are the flags of all descriptors of the ring: they say whether a batch that the back-end was
        showing when it died was seen. MessageError if the region cannot be that of this ring.
        """
        new, old = self._used()
        if max(new[0], old[0]) >= self._size or max(new[1], old[1]) > 1:
            raise MessageError(f"in-flight region: used positions {new} and {old}", spec=SPEC)
        # An available descriptor's USED bit is not its lap's wrap counter; a used one's is, and stays so when
        # the driver makes the slot available again in the next lap.
        if new != old and shown[old[0]] >> 15 & 1 == old[1]:
            free, position = self._half(self.FREE), new
        else:
            free, position = self._half(self.OLD_FREE), old
        for entry in self._free_entries(free):
            self._end(entry)
        self._set_half(self.FREE, free)
        self._set_half(self.OLD_FREE, free)
        self._set_used(position, position)
        self._position = position
        return *position, {entry: self._slots_of(entry) for entry in self._in_order()}

    def _free_entries(self, entry: int) -> list[int]:
        free: dict[int, None] = {}
        while entry < self._size:
            if entry in free:
                raise MessageError(f"in-flight region: free entry {entry} comes twice", spec=SPEC)
            free[entry] = None
            entry = self._half(self._at(entry) + self.NEXT)
        return list(free)

    def _slots_of(self, head: int) -> list[Slot]:
        count = self._half(self._at(head) + self.NUM)
        if not 1 <= count <= self._size:
            raise MessageError(f"in-flight region: a request of {count} descriptors", spec=SPEC)
        slots: list[Slot] = []
        entry = head
        for _ in range(count):
            if entry >= self._size:
                raise MessageError(f"in-flight region: entry {entry} of {self._size}", spec=SPEC)
            at = self._at(entry)
            buffer_id, flags, size_bytes, gpa = self._DESC.unpack_from(self._view, at + self.DESC)
            slots.append((gpa, size_bytes, buffer_id, flags))
            entry = self._half(at + self.NEXT)
        return slots
