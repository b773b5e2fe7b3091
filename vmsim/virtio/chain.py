"""Descriptor chains as the device sees them, and as plain data while nobody may hold a view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from vmsim.memory import GuestMemory

Descriptor = tuple[int, int, bool]
"""One buffer element: guest-physical address, bytes, device-writable."""


class ParkedChain(msgspec.Struct, frozen=True):
    """An in-flight chain as plain data: what a ring needs to go on with it after a restore.

    ``head`` is the split head or the packed buffer id, ``count`` the ring slots that it takes.
    """

    head: int
    count: int
    descriptors: list[Descriptor]


class Chain:
    """One request taken from a ring. Read-only: the ring may hand out the same object for the next request.

    ``head``: split head index or packed buffer id. ``count``: ring slots used (an indirect table takes 1).
    ``readable``/``writable``: views of guest memory in order, adjacent descriptors merged; writers go through
    ``writable`` and then tell :meth:`DeviceRing.push` how many bytes. ``write_ranges``: (gpa, bytes) of
    ``writable``. ``descriptors``: every element as it stood in the ring, before merging.
    """

    __slots__ = (
        "count",
        "descriptors",
        "head",
        "readable",
        "readable_bytes",
        "writable",
        "writable_bytes",
        "write_ranges",
    )

    head: int
    count: int
    readable: list[memoryview]
    writable: list[memoryview]
    write_ranges: list[tuple[int, int]]
    readable_bytes: int
    writable_bytes: int
    descriptors: list[Descriptor]

    def park(self) -> ParkedChain:
        """The chain as plain data."""
        return ParkedChain(self.head, self.count, list(self.descriptors))

    def __repr__(self) -> str:
        return f"Chain({self.head}, readable={self.readable_bytes}, writable={self.writable_bytes})"


def build_chain(memory: GuestMemory, head: int, count: int, descriptors: Sequence[Descriptor]) -> Chain:
    """Resolve ``descriptors`` to views of guest memory, merging neighbours.

    MemoryAccessError if one is outside. Elements of length 0 add nothing. Readable and writable elements may
    come in any order.
    """
    chain = Chain()
    chain.head = head
    chain.count = count
    chain.descriptors = descriptors if isinstance(descriptors, list) else list(descriptors)
    chain.readable = readable = []
    chain.writable = writable = []
    chain.write_ranges = ranges = []
    reads = writes = start = 0
    end = -1
    kind = False
    for gpa, length, is_write in descriptors:
        if gpa == end and is_write == kind:
            end += length
            continue
        if end > start:
            if kind:
                writes += end - start
                ranges.append((start, end - start))
                writable += memory.views(start, end - start)
            else:
                reads += end - start
                readable += memory.views(start, end - start)
        start = gpa
        end = gpa + length
        kind = is_write
    if end > start:
        if kind:
            writes += end - start
            ranges.append((start, end - start))
            writable += memory.views(start, end - start)
        else:
            reads += end - start
            readable += memory.views(start, end - start)
    chain.readable_bytes = reads
    chain.writable_bytes = writes
    return chain
