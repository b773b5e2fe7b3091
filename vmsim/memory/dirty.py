"""The dirty log: one byte per page and source in Python, vhost's bitmap at the seams.

vhost's layout (vhost-user, "Migration"): page = address / 4096; bit (page % 8) of byte (page / 8); the log's
base stands for guest address 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vmsim.errors import MemoryAccessError, StateError
from vmsim.memory.guest import PAGE_SIZE, DirtySink, GuestMemory, Region

CHUNK_BYTES = 4096
"""How much of a bitmap is looked at in one go."""

_PAGE_SHIFT = 12
_TO_DIGITS = bytes.maketrans(b"\0\1", b"01")
_FROM_DIGITS = bytes.maketrans(b"01", b"\0\1")


def bitmap_bytes(memory: GuestMemory) -> int:
    """The size of a vhost log for ``memory``: whole 64-bit words up to the end of the highest region."""
    end = max((region.end for region in memory.regions), default=0)
    return ((end - 1) // (PAGE_SIZE * 64) + 1) * 8 if end else 0


def taker(bitmap: memoryview) -> Callable[[], bytes]:
    """What takes the bits of ``bitmap`` and clears them. Exact while nobody else writes just now."""

    def take() -> bytes:
        bits = bytes(bitmap)
        bitmap[:] = bytes(len(bits))
        return bits

    return take


class BitmapSink:
    """Marks pages in a vhost log that somebody else harvests (the back-end's side).

    Python has no atomic OR. In one process nothing runs between our load and store, so bits are exact. With
    ``shared`` the harvester is another process that exchanges words meanwhile: whole bytes of ones are
    stored, a superset (eight pages), because a lost bit would lose guest data and a spare one only sends a
    page again.
    """

    __slots__ = ("_bits", "_limit", "shared")

    def __init__(self, bitmap: memoryview, *, shared: bool = False) -> None:
        self._bits = bitmap.cast("B")
        self._limit = len(self._bits) * 8 * PAGE_SIZE
        self.shared = shared

    def mark(self, gpa: int, size_bytes: int) -> None:
        """Mark the pages of ``size_bytes`` bytes at ``gpa``; MemoryAccessError past the end of the log."""
        if size_bytes <= 0:
            return
        last = gpa + size_bytes - 1
        if gpa < 0 or last >= self._limit:
            raise MemoryAccessError(
                f"write at {gpa:#x} + {size_bytes:#x} lies past the dirty log", gpa=gpa, size_bytes=size_bytes
            )
        bits = self._bits
        page, last_page = gpa >> _PAGE_SHIFT, last >> _PAGE_SHIFT
        if page == last_page:
            bits[page >> 3] = 0xFF if self.shared else bits[page >> 3] | (1 << (page & 7))
            return
        first, final = page >> 3, last_page >> 3
        for index in range(first, final + 1):
            mask = 0xFF
            if not self.shared:
                if index == first:
                    mask &= 0xFF << (page & 7)
                if index == final:
                    mask &= 0xFF >> (7 - (last_page & 7))
                mask |= bits[index]
            bits[index] = mask & 0xFF


class _Source:
    """One named source: a byte per page for each region that it ever touched."""

    __slots__ = ("log", "maps", "name")

    def __init__(self, log: DirtyLog, name: str) -> None:
        self.log = log
        self.name = name
        self.maps: dict[Region, bytearray] = {}

    def mark(self, gpa: int, size_bytes: int) -> None:
        """Mark the pages of ``size_bytes`` bytes at ``gpa`` while the log runs."""
        log = self.log
        if not log.running or size_bytes <= 0:
            return
        region = log.memory.region_at(gpa)
        pages = self.maps.get(region)
        if pages is None:
            pages = self.maps[region] = bytearray(region.size_bytes >> _PAGE_SHIFT)
        first = (gpa - region.gpa) >> _PAGE_SHIFT
        if gpa + size_bytes > region.end:
            rest = gpa + size_bytes - region.end
            log.memory.region_at(region.end)
            self.mark(region.end, rest)
            size_bytes -= rest
        last = (gpa + size_bytes - 1 - region.gpa) >> _PAGE_SHIFT
        if first == last:
            pages[first] = 1
        else:
            pages[first : last + 1] = b"\1" * (last + 1 - first)


class DirtyLog:
    """Which pages were written since the last harvest, from several named sources.

    ``epoch`` counts harvests. ``last_pages`` says how many pages each source reported in the last one (a page
    may come from two sources).
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.running = False
        self.epoch = 0
        self.last_pages: dict[str, int] = {}
        self._sources: dict[str, _Source] = {}
        self._bitmaps: dict[str, Callable[[], bytes]] = {}

    def source(self, name: str) -> DirtySink:
        """The sink of one named source; asking again gives the same one."""
        return self._source(name)

    def _source(self, name: str) -> _Source:
        if name not in self._sources:
            self._sources[name] = _Source(self, name)
        return self._sources[name]

    def attach_bitmap(self, name: str, take: Callable[[], bytes]) -> None:
        """Harvest a vhost bitmap that somebody else fills; its pages count for source ``name``.

        ``take()`` gives what the bitmap says and makes it say nothing (see ``taker``), without losing a bit
        that is set meanwhile; what it raises goes through.
        """
        self._source(name)
        self._bitmaps[name] = take

    def detach_bitmap(self, name: str) -> None:
        """Forget the bitmap; harvest before what it still holds. Nothing happens if there is none."""
        self._bitmaps.pop(name, None)

    def start(self, *, all_dirty: bool = False) -> None:
        """Begin to log, with nothing dirty (or everything). Includes writes through the memory object."""
        if self.running:
            raise StateError("the dirty log runs already")
        if self.memory.dirty is not None:
            raise StateError("another dirty log watches this memory")
        for source in self._sources.values():
            source.maps.clear()
        self.running = True
        self.memory.dirty = self.source("memory")
        if all_dirty:
            for region in self.memory.regions:
                self.memory.dirty.mark(region.gpa, region.size_bytes)

    def stop(self) -> None:
        """Stop logging; what is dirty stays readable until the next start."""
        if self.running:
            self.running = False
            self.memory.dirty = None

    def harvest(self) -> list[tuple[int, int]]:
        """Runs ``(gpa, size_bytes)`` of pages written since the last harvest, ascending; clears them."""
        runs = list(self._runs(count=True))
        for source in self._sources.values():
            for pages in source.maps.values():
                pages[:] = bytes(len(pages))
        self.epoch += 1
        return runs

    def dirty_bytes(self) -> int:
        """How many bytes a harvest would return now."""
        return sum(size for _, size in self._runs(count=False))

    def export_bitmap(self) -> bytes:
        """What is dirty now as a vhost bitmap (bitmap_bytes() long); clears nothing."""
        size = bitmap_bytes(self.memory)
        out = bytearray(size)
        for region, pages in self._merged():
            digits = bytes(pages).translate(_TO_DIGITS)[::-1]
            first = region.gpa >> _PAGE_SHIFT
            word = int(digits, 2) << (first & 7)
            begin = first >> 3
            length = ((first & 7) + len(pages) + 7) // 8
            old = int.from_bytes(out[begin : begin + length], "little")
            out[begin : begin + length] = (word | old).to_bytes(length, "little")
        return bytes(out)

    def import_bitmap(self, name: str, bitmap: bytes | memoryview) -> None:
        """Add the pages of a vhost bitmap to source ``name``; bits outside memory mean nothing."""
        self._merge_bits(name, 0, bytes(bitmap))

    def _take_bitmap(self, name: str) -> None:
        bits = self._bitmaps[name]()
        for start in range(0, len(bits), CHUNK_BYTES):
            chunk = bits[start : start + CHUNK_BYTES]
            if chunk.count(0) != len(chunk):
                self._merge_bits(name, start * 8, chunk)

    def _merge_bits(self, name: str, first_page: int, bits: bytes) -> None:
        """OR the bitmap ``bits`` (whose bit 0 is ``first_page``) into a source; spare bits are ignored."""
        source = self._source(name)
        digits = bin(int.from_bytes(bits, "little") | 1 << len(bits) * 8)[:2:-1].encode()
        page_bytes = digits.translate(_FROM_DIGITS)
        for region in self.memory.regions:
            low = max(region.gpa >> _PAGE_SHIFT, first_page)
            high = min(region.end >> _PAGE_SHIFT, first_page + len(page_bytes))
            part = page_bytes[low - first_page : max(high - first_page, 0)] if low < high else b""
            if 1 not in part:
                continue
            pages = source.maps.setdefault(region, bytearray(region.size_bytes >> _PAGE_SHIFT))
            begin = low - (region.gpa >> _PAGE_SHIFT)
            both = int.from_bytes(part, "little") | int.from_bytes(pages[begin : begin + len(part)], "little")
            pages[begin : begin + len(part)] = both.to_bytes(len(part), "little")

    def _merged(self) -> Iterator[tuple[Region, bytearray]]:
        for name in self._bitmaps:
            self._take_bitmap(name)
        for region in self.memory.regions:
            maps = [source.maps[region] for source in self._sources.values() if region in source.maps]
            maps = [pages for pages in maps if 1 in pages]
            if not maps:
                continue
            if len(maps) == 1:
                yield region, maps[0]
                continue
            both = 0
            for pages in maps:
                both |= int.from_bytes(pages, "little")
            yield region, bytearray(both.to_bytes(len(maps[0]), "little"))

    def _runs(self, *, count: bool) -> Iterator[tuple[int, int]]:
        merged = list(self._merged())
        if count:
            self.last_pages = {
                name: sum(pages.count(1) for pages in source.maps.values())
                for name, source in self._sources.items()
            }
        for region, pages in merged:
            begin = pages.find(1)
            while begin >= 0:
                end = pages.find(0, begin)
                if end < 0:
                    end = len(pages)
                yield region.gpa + (begin << _PAGE_SHIFT), (end - begin) << _PAGE_SHIFT
                begin = pages.find(1, end)
