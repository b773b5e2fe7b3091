"""Descriptor chains as the device sees them, and as plain data while nobody may hold a view."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from vmsim.limits import CHAIN_BYTES_MAX
from vmsim.virtio.constants import DESC_F_NEXT, DESC_F_WRITE

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
    ``writable`` and then tell :meth:`DeviceRing.push` how many bytes. ``write_ranges``: (gpa, bytes) that
    ``writable`` covers.
    """

    __slots__ = (
        "_rows",
        "_source",
        "count",
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
    _rows: struct.Struct
    _source: bytes | list[Descriptor]

    @property
    def descriptors(self) -> list[Descriptor]:
        """Every element as it stood in the ring when it was read, before merging."""
        source = self._source
        if isinstance(source, list):
            return list(source)
        descriptors = []
        for gpa, length, flags in self._rows.iter_unpack(source):
            descriptors.append((gpa, length, bool(flags & DESC_F_WRITE)))
            if not flags & DESC_F_NEXT:
                break
        return descriptors

    def park(self) -> ParkedChain:
        """The chain as plain data."""
        return ParkedChain(self.head, self.count, self.descriptors)

    def __repr__(self) -> str:
        return f"Chain({self.head}, readable={self.readable_bytes}, writable={self.writable_bytes})"


def scan_chain(memory: GuestMemory, rows: struct.Struct, window: bytes, mask: int, want: int) -> Chain | None:
    """The hot path: a plain chain whose descriptors lie in a row at the start of the snapshot ``window``.

    ``rows`` yields (gpa, length, flags). None for everything unusual, to be looked at again at leisure: flags
    of which ``mask`` are not ``want``, an empty element, readable after writable, memory outside the region
    used last, a chain that is longer than the window or has too many bytes. The caller sets ``head`` and
    checks what links the descriptors.
    """
    region = memory.hot
    if region is None:
        return None
    base = region.gpa
    limit = region.end
    view = region.view
    readable: list[memoryview] = []
    writable: list[memoryview] = []
    ranges: list[tuple[int, int]] = []
    reads = writes = count = 0
    start = end = -1
    for gpa, length, flags in rows.iter_unpack(window):
        stop = gpa + length
        if flags & mask != want or gpa < base or stop > limit or not length:
            return None
        count += 1
        if flags & DESC_F_WRITE:
            if gpa == end and writable:
                writable[-1] = view[start - base : stop - base]
                ranges[-1] = (start, stop - start)
            else:
                start = gpa
                writable.append(view[gpa - base : stop - base])
                ranges.append((gpa, length))
            writes += length
        elif writable:
            return None
        else:
            if gpa == end:
                readable[-1] = view[start - base : stop - base]
            else:
                start = gpa
                readable.append(view[gpa - base : stop - base])
            reads += length
        if not flags & DESC_F_NEXT:
            break
        end = stop
    else:
        return None
    if reads + writes > CHAIN_BYTES_MAX:
        return None
    chain = Chain()
    chain.count = count
    chain.readable = readable
    chain.writable = writable
    chain.write_ranges = ranges
    chain.readable_bytes = reads
    chain.writable_bytes = writes
    chain._rows = rows
    chain._source = window
    return chain


def build_chain(memory: GuestMemory, head: int, count: int, descriptors: list[Descriptor]) -> Chain:
    """Resolve any list of elements to views of guest memory, merging neighbours.

    MemoryAccessError if one is outside. Elements of length 0 add nothing. Readable and writable elements may
    come in any order.
    """
    merged: list[tuple[int, int, bool]] = []
    start, end, kind = 0, -1, False
    for descriptor in descriptors:
        gpa, length, is_write = descriptor
        if gpa == end and is_write == kind:
            end += length
            merged[-1] = (start, end - start, kind)
        elif length:
            start, end, kind = gpa, gpa + length, is_write
            merged.append(descriptor)
    chain = Chain()
    chain.head = head
    chain.count = count
    chain.readable = []
    chain.writable = []
    chain._source = descriptors
    chain.write_ranges = [(gpa, length) for gpa, length, is_write in merged if is_write]
    chain.writable_bytes = sum(length for _, length in chain.write_ranges)
    chain.readable_bytes = sum(length for _, length, is_write in merged if not is_write)
    # A guest may send tables of 32,768 elements: what each of them costs counts.
    region = memory.hot
    base, limit, view = (0, -1, None) if region is None else (region.gpa, region.end, region.view)
    for gpa, length, is_write in merged:
        views = chain.writable if is_write else chain.readable
        if view is not None and base <= gpa and gpa + length <= limit:
            views.append(view[gpa - base : gpa + length - base])
        else:
            views += memory.views(gpa, length)
    return chain
