"""The page cache: frames and their records in guest memory, indexed by dicts that are rebuilt from them.

    record (24 bytes): node u64 | page index u64 | flags u32 | padding;  flags 0: the frame is free

A frame is *reserved* while somebody fills it, then *present*: clean, dirty (its content exists nowhere else),
or under write-out. This module never waits and sends nothing; :mod:`vmsim.guest.calls.cached_io` does.
"""

from __future__ import annotations

import struct
from itertools import compress
from operator import not_
from typing import Final

from vmsim.errors import StreamError, UsageError
from vmsim.guest.driver.alloc import PageAllocator, pages_bytes
from vmsim.guest.state import CacheState
from vmsim.memory import PAGE_SIZE, GuestMemory

_RECORD: Final = struct.Struct("<QQI4x")
RESERVED: Final = 1
PRESENT: Final = 2
DIRTY: Final = 4
WRITING: Final = 8
_LEGAL: Final = frozenset(
    (0, RESERVED, PRESENT, PRESENT | DIRTY, PRESENT | WRITING, PRESENT | WRITING | DIRTY)
)
FRAMES_MAX: Final = 1 << 20


class PageCache:
    """Frames by (node, page index)."""

    __slots__ = ("_clean", "_dirty", "_flags", "_free", "_keys", "_memory", "_nodes", "state")

    def __init__(self, memory: GuestMemory, state: CacheState) -> None:
        self.state = state
        self._memory = memory
        count = state.entries
        if not 0 < count <= FRAMES_MAX or state.data_gpa % PAGE_SIZE:
            raise StreamError(f"{count} page frames at {state.data_gpa:#x}", field="pages")
        memory.view(state.data_gpa, count * PAGE_SIZE)
        table = memory.view(state.table_gpa, count * _RECORD.size)
        self._flags: list[int] = table.cast("I")[4 :: _RECORD.size // 4].tolist()
        self._keys: list[tuple[int, int]] = [(0, 0)] * count
        self._nodes: dict[int, dict[int, int]] = {}
        self._clean: dict[int, None] = {}
        self._dirty: dict[int, None] = {}
        self._free = list(compress(range(count - 1, -1, -1), map(not_, reversed(self._flags))))
        for frame in compress(range(count), self._flags):
            node, index, flags = _RECORD.unpack_from(table, frame * _RECORD.size)
            if (
                flags not in _LEGAL
                or index >= 1 << 51
                or (flags & PRESENT and index in self._nodes.get(node, ()))
            ):
                raise StreamError(f"page frame record {frame} is malformed", field="pages")
            if flags & PRESENT:
                self._enter(frame, node, index)

    @classmethod
    def create(cls, memory: GuestMemory, allocator: PageAllocator, frames: int) -> CacheState:
        """Place an empty cache in guest memory; UsageError if it does not fit."""
        table = pages_bytes(frames * _RECORD.size)
        places = (
            [allocator.allocate(size) for size in (table, frames * PAGE_SIZE)]
            if 0 < frames <= FRAMES_MAX
            else [None]
        )
        if None in places:
            raise UsageError(f"guest memory is too small for a page cache of {frames} pages")
        table_gpa, data_gpa = places[0], places[-1]
        assert table_gpa is not None
        assert data_gpa is not None
        memory.write(table_gpa, bytes(table))
        return CacheState(table_gpa, frames, data_gpa)

    def gpa(self, frame: int) -> int:
        """Where a frame's content lies."""
        return self.state.data_gpa + frame * PAGE_SIZE

    def _set(self, frame: int, node: int, index: int, flags: int) -> None:
        self._flags[frame] = flags
        self._memory.write(self.state.table_gpa + frame * _RECORD.size, _RECORD.pack(node, index, flags))

    def _enter(self, frame: int, node: int, index: int) -> None:
        self._keys[frame] = (node, index)
        self._nodes.setdefault(node, {})[index] = frame
        self._sort(frame)

    def _sort(self, frame: int) -> None:
        """Put a present frame on the list that its flags call for."""
        flags = self._flags[frame]
        self._clean.pop(frame, None)
        self._dirty.pop(frame, None)
        if flags & DIRTY:
            self._dirty[frame] = None
        elif not flags & WRITING:
            self._clean[frame] = None

    # Frames

    def find(self, node: int, index: int) -> int | None:
        """The frame of a page, which counts as used just now."""
        pages = self._nodes.get(node)
        frame = pages.get(index) if pages else None
        if frame is not None and frame in self._clean:
            del self._clean[frame]
            self._clean[frame] = None
        return frame

    def reserve(self) -> int | None:
        """A frame to fill: a free one, or the clean one unused for longest; None if there is none."""
        if not self._free:
            if not self._clean:
                return None
            self._discard(next(iter(self._clean)))
        frame = self._free.pop()
        self._set(frame, 0, 0, RESERVED)
        return frame

    def has_room(self) -> bool:
        """Whether ``reserve`` would succeed, or there is something to write out."""
        return bool(self._free or self._clean) or self.oldest_dirty() is not None

    def enter(self, frame: int, node: int, index: int) -> None:
        """A reserved frame now holds this page, clean; one that held it before is dropped."""
        old = self._nodes.get(node, {}).get(index)
        if old is not None:
            self._discard(old)
        self._set(frame, node, index, PRESENT)
        self._enter(frame, node, index)

    def release(self, frame: int) -> None:
        """A reserved frame is not needed after all."""
        if self._flags[frame] == RESERVED:
            self._set(frame, 0, 0, 0)
            self._free.append(frame)

    def _discard(self, frame: int) -> None:
        node, index = self._keys[frame]
        pages = self._nodes[node]
        del pages[index]
        if not pages:
            del self._nodes[node]
        self._clean.pop(frame, None)
        self._dirty.pop(frame, None)
        self._keys[frame] = (0, 0)
        written = self._flags[frame] & WRITING  # by a request that still reads from it
        self._set(frame, 0, 0, RESERVED if written else 0)
        if not written:
            self._free.append(frame)

    # Dirty pages

    def set_dirty(self, frame: int) -> None:
        """The page's content exists only here from now on."""
        self._change(frame, self._flags[frame] | DIRTY)

    def begin_write(self, frame: int) -> None:
        """The page is being written out; it may get dirty again meanwhile."""
        self._change(frame, PRESENT | WRITING)

    def end_write(self, frame: int, node: int, index: int) -> None:
        """The write-out of this page is over; if the page was dropped meanwhile, its frame is free now."""
        if self._keys[frame] == (node, index) and self._flags[frame] & WRITING:
            self._change(frame, self._flags[frame] & ~WRITING)
        else:
            self.release(frame)

    def _change(self, frame: int, flags: int) -> None:
        node, index = self._keys[frame]
        self._set(frame, node, index, flags)
        self._sort(frame)

    def is_writing(self, frame: int) -> bool:
        """Whether the frame is under write-out."""
        return bool(self._flags[frame] & WRITING)

    def writing(self, node: int) -> bool:
        """Whether any page of the node is under write-out."""
        return any(self._flags[frame] & WRITING for frame in self._nodes.get(node, {}).values())

    def dirty_pages(self, node: int) -> list[int]:
        """The indices of the node's dirty pages, ascending."""
        pages = self._nodes.get(node, {})
        return sorted(index for index, frame in pages.items() if self._flags[frame] & DIRTY)

    def oldest_dirty(self) -> int | None:
        """The node with the page that is dirty for longest and not under write-out."""
        for frame in self._dirty:
            if not self._flags[frame] & WRITING:
                return self._keys[frame][0]
        return None

    def dirty_nodes(self) -> list[int]:
        """Nodes with dirty pages."""
        return sorted({self._keys[frame][0] for frame in self._dirty})

    # Dropping

    def drop_clean(self, node: int, first: int = 0, last: int = 1 << 52) -> None:
        """Drop the node's clean pages with indices first to last."""
        for index, frame in list(self._nodes.get(node, {}).items()):
            if first <= index <= last and self._flags[frame] == PRESENT:
                self._discard(frame)

    def drop(self, node: int, first: int = 0) -> None:
        """Drop the node's pages from index ``first`` on, dirty or not (truncation, last use)."""
        for index, frame in list(self._nodes.get(node, {}).items()):
            if index >= first:
                self._discard(frame)

    def clear(self) -> None:
        """Drop everything."""
        for node in list(self._nodes):
            self.drop(node)

    def abandon(self, gpa: int, size: int) -> None:
        """Nobody is left who would finish what is under way with the frames in this part of guest memory, and
        no request uses them: what was to be filled is free, write-outs restart."""
        first = gpa - self.state.data_gpa
        if not 0 <= first < self.state.entries * PAGE_SIZE:
            return
        for frame in range(first // PAGE_SIZE, (first + size - 1) // PAGE_SIZE + 1):
            self.release(frame)
            if self._flags[frame] & WRITING:
                self._change(frame, PRESENT | DIRTY)

    def under_way(self) -> list[int]:
        """The frames that are being filled or written out."""
        return [at for at, flags in enumerate(self._flags) if flags == RESERVED or flags & WRITING]

    def cached_nodes(self) -> list[int]:
        """Nodes with pages."""
        return list(self._nodes)
