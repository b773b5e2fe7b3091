"""Guest memory: regions at guest-physical addresses, views without copies, whole-word access."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NoReturn, Protocol

from vmsim.errors import MemoryAccessError, UsageError
from vmsim.limits import MEMORY_REGIONS_MAX

PAGE_SIZE: Final = 4096
"""Bytes of one page of the dirty log and of the migration stream."""

ADDRESS_SPACE_END: Final = 1 << 64

_WORD_BYTES: Final = {"B": 1, "H": 2, "I": 4, "Q": 8}


class DirtySink(Protocol):
    """Somebody who wants to know which guest memory was written."""

    def mark(self, gpa: int, size_bytes: int) -> None:
        """``size_bytes`` bytes at ``gpa`` were written; called after the bytes are in place."""
        ...


class Region:
    """One contiguous piece of guest memory.

    ``view`` is a writable memoryview of format ``B`` with ``size_bytes`` bytes; ``fd``/``fd_offset`` say
    which file backs it (-1: none) and ``user_addr`` where it lies in the front-end's address space. ``gpa``
    and ``size_bytes`` are multiples of PAGE_SIZE. UsageError if they are not.
    """

    __slots__ = ("end", "fd", "fd_offset", "gpa", "name", "size_bytes", "user_addr", "view", "words")

    def __init__(
        self,
        name: str,
        gpa: int,
        size_bytes: int,
        view: memoryview,
        fd: int = -1,
        fd_offset: int = 0,
        user_addr: int = 0,
    ) -> None:
        if gpa < 0 or gpa % PAGE_SIZE or size_bytes <= 0 or size_bytes % PAGE_SIZE:
            raise UsageError(f"region {name}: {gpa:#x} + {size_bytes:#x} is not made of whole pages")
        if gpa + size_bytes > ADDRESS_SPACE_END:
            raise UsageError(f"region {name}: {gpa:#x} + {size_bytes:#x} passes the end of the address space")
        if view.format != "B" or view.readonly or view.nbytes != size_bytes or not view.c_contiguous:
            raise UsageError(f"region {name}: its buffer is not {size_bytes:#x} writable bytes")
        self.name = name
        self.gpa = gpa
        self.size_bytes = size_bytes
        self.end = gpa + size_bytes
        self.view = view
        self.fd = fd
        self.fd_offset = fd_offset
        self.user_addr = user_addr
        self.words: dict[str, memoryview] = {
            "B": view,
            "H": view.cast("H"),
            "I": view.cast("I"),
            "Q": view.cast("Q"),
        }

    def release(self) -> None:
        """Let go of the buffer (views that others took keep it alive)."""
        for words in self.words.values():
            words.release()

    def __repr__(self) -> str:
        return f"Region({self.name!r}, {self.gpa:#x}..{self.end:#x})"


class GuestMemory:
    """The guest's physical memory: several regions, holes between them.

    ``dirty``, when set, hears of every write that goes through this object. Views bypass it: who writes
    through a view marks afterwards with :meth:`mark_dirty`. Every method raises MemoryAccessError naming the
    address when an access leaves memory or wraps past 2**64. ``hot`` is the region used last (or None): the
    first place to look.
    """

    __slots__ = ("_starts", "dirty", "hot", "regions")

    def __init__(self, regions: Iterable[Region]) -> None:
        if sys.byteorder != "little":
            raise UsageError("guest memory words are little-endian; this host is not")
        self.regions: tuple[Region, ...] = tuple(sorted(regions, key=lambda region: region.gpa))
        if len(self.regions) > MEMORY_REGIONS_MAX:
            raise UsageError(f"{len(self.regions)} memory regions; at most {MEMORY_REGIONS_MAX}")
        for low, high in zip(self.regions, self.regions[1:], strict=False):
            if low.end > high.gpa:
                raise UsageError(f"{low!r} and {high!r} overlap")
        self._starts = [region.gpa for region in self.regions]
        self.hot: Region | None = self.regions[0] if self.regions else None
        self.dirty: DirtySink | None = None

    def region_at(self, gpa: int, size_bytes: int = 1) -> Region:
        """The region that holds all of ``size_bytes`` bytes at ``gpa``."""
        hot = self.hot
        if hot is not None and size_bytes >= 0 and hot.gpa <= gpa and gpa + size_bytes <= hot.end:
            return hot
        index = bisect_right(self._starts, gpa) - 1
        if size_bytes < 0 or index < 0 or gpa + size_bytes > self.regions[index].end:
            self._refuse(gpa, size_bytes)
        self.hot = self.regions[index]
        return self.hot

    def holds(self, gpa: int, size_bytes: int) -> bool:
        """Whether ``size_bytes`` bytes at ``gpa`` lie in one region."""
        index = bisect_right(self._starts, gpa) - 1
        return size_bytes >= 0 and index >= 0 and gpa + size_bytes <= self.regions[index].end

    def view(self, gpa: int, size_bytes: int) -> memoryview:
        """A writable view of ``size_bytes`` bytes that lie in one region."""
        hot = self.hot
        if hot is None or size_bytes < 0 or gpa < hot.gpa or gpa + size_bytes > hot.end:
            hot = self.region_at(gpa, size_bytes)
        offset = gpa - hot.gpa
        return hot.view[offset : offset + size_bytes]

    def views(self, gpa: int, size_bytes: int) -> list[memoryview]:
        """Writable views that together are ``size_bytes`` bytes; one per region touched, without gaps."""
        hot = self.hot
        if hot is not None and size_bytes >= 0 and hot.gpa <= gpa and gpa + size_bytes <= hot.end:
            offset = gpa - hot.gpa
            return [hot.view[offset : offset + size_bytes]]
        index = bisect_right(self._starts, gpa) - 1
        if size_bytes < 0 or index < 0:
            self._refuse(gpa, size_bytes)
        pieces = []
        position, left = gpa, size_bytes
        while True:
            if index >= len(self.regions):
                self._refuse(gpa, size_bytes)
            region = self.regions[index]
            if not region.gpa <= position <= region.end - (1 if left else 0):
                self._refuse(gpa, size_bytes)
            offset = position - region.gpa
            take = min(left, region.end - position)
            pieces.append(region.view[offset : offset + take])
            left -= take
            if not left:
                return pieces
            position += take
            index += 1

    def words(self, gpa: int, count: int, code: str) -> memoryview:
        """``count`` shared words at ``gpa`` as an aligned view of format ``code`` (``H``, ``I`` or ``Q``).

        Loads and stores through it are whole words, so another thread or process never sees half of one.
        """
        size = _WORD_BYTES[code]
        if gpa % size:
            raise MemoryAccessError(
                f"guest address {gpa:#x} is not aligned to {size} bytes", gpa=gpa, size_bytes=count * size
            )
        region = self.region_at(gpa, count * size)
        start = (gpa - region.gpa) // size
        return region.words[code][start : start + count]

    def read(self, gpa: int, size_bytes: int) -> bytes:
        """A copy of ``size_bytes`` bytes; may cross directly adjacent regions."""
        hot = self.hot
        if hot is not None and size_bytes >= 0 and hot.gpa <= gpa and gpa + size_bytes <= hot.end:
            offset = gpa - hot.gpa
            return hot.view[offset : offset + size_bytes].tobytes()
        return b"".join(self.views(gpa, size_bytes))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` and mark it dirty; all of it or, on an error, nothing."""
        size = len(data)
        hot = self.hot
        if hot is not None and hot.gpa <= gpa and gpa + size <= hot.end:
            offset = gpa - hot.gpa
            hot.view[offset : offset + size] = data
        else:
            done = 0
            source = memoryview(data)
            for piece in self.views(gpa, size):
                piece[:] = source[done : done + len(piece)]
                done += len(piece)
        if self.dirty is not None and size:
            self.dirty.mark(gpa, size)

    def load_u16(self, gpa: int) -> int:
        """The aligned 16-bit word at ``gpa``."""
        return self._load(gpa, 2, "H")

    def load_u32(self, gpa: int) -> int:
        """The aligned 32-bit word at ``gpa``."""
        return self._load(gpa, 4, "I")

    def load_u64(self, gpa: int) -> int:
        """The aligned 64-bit word at ``gpa``."""
        return self._load(gpa, 8, "Q")

    def store_u16(self, gpa: int, value: int) -> None:
        """Store the aligned 16-bit word at ``gpa`` and mark it dirty."""
        self._store(gpa, 2, "H", value)

    def store_u32(self, gpa: int, value: int) -> None:
        """Store the aligned 32-bit word at ``gpa`` and mark it dirty."""
        self._store(gpa, 4, "I", value)

    def store_u64(self, gpa: int, value: int) -> None:
        """Store the aligned 64-bit word at ``gpa`` and mark it dirty."""
        self._store(gpa, 8, "Q", value)

    def mark_dirty(self, gpa: int, size_bytes: int) -> None:
        """Tell the dirty sink, if there is one, of a write that went through a view."""
        if self.dirty is not None:
            self.dirty.mark(gpa, size_bytes)

    def gpa_of_user(self, user_addr: int, size_bytes: int) -> int:
        """The guest-physical address of ``size_bytes`` bytes at a front-end user address."""
        for region in self.regions:
            offset = user_addr - region.user_addr
            if offset >= 0 and offset + size_bytes <= region.size_bytes:
                return region.gpa + offset
        raise MemoryAccessError(
            f"user address {user_addr:#x} + {size_bytes:#x} is in no memory region",
            gpa=user_addr,
            size_bytes=size_bytes,
        )

    def close(self) -> None:
        """Let go of all regions; later accesses raise MemoryAccessError."""
        regions, self.regions = self.regions, ()
        self._starts = []
        self.hot = None
        self.dirty = None
        for region in regions:
            region.release()

    def _load(self, gpa: int, size: int, code: str) -> int:
        region = self.region_at(gpa, size)
        if gpa % size:
            self._misaligned(gpa, size)
        word: int = region.words[code][(gpa - region.gpa) // size]
        return word

    def _store(self, gpa: int, size: int, code: str, value: int) -> None:
        region = self.region_at(gpa, size)
        if gpa % size:
            self._misaligned(gpa, size)
        region.words[code][(gpa - region.gpa) // size] = value
        if self.dirty is not None:
            self.dirty.mark(gpa, size)

    def _misaligned(self, gpa: int, size: int) -> NoReturn:
        raise MemoryAccessError(
            f"guest address {gpa:#x} is not aligned to {size} bytes", gpa=gpa, size_bytes=size
        )

    def _refuse(self, gpa: int, size_bytes: int) -> NoReturn:
        if size_bytes < 0:
            reason = f"guest access at {gpa:#x} has the negative size {size_bytes}"
        elif gpa + size_bytes > ADDRESS_SPACE_END:
            reason = f"guest access {gpa:#x} + {size_bytes:#x} wraps past the end of the address space"
        else:
            reason = f"guest access {gpa:#x} + {size_bytes:#x} is outside guest memory"
        raise MemoryAccessError(reason, gpa=gpa, size_bytes=size_bytes)
