"""The RAM section: what a stream carries of each block, without holding a page (reference 6.2 and 6.3).

The records are passed over one after another; of each page only the place of its latest contents is kept, in
arrays that exist where something was sent. A mapped-ram file does without: its bitmap says what is there.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from vmsim.errors import StreamError
from vmsim.inspect.source import Bytes, Cursor
from vmsim.migration.errors import UnexpectedRecord
from vmsim.migration.ram import CONTINUE, EOS, HOOK, MEM_SIZE, MULTIFD_FLUSH, PAGE, XBZRLE, ZERO
from vmsim.wire.tree import Finding, Severity

COMPRESSED: Final = 0x100
"""A page by zlib, of QEMU before 9.1."""
NEVER, ZEROED, UNREADABLE = 0, 1, 2
"""Places that are none: a page never sent, one of zeros, and one whose contents cannot be read from here."""

CHUNK_PAGES: Final = 512
CHUNKS_MAX: Final = 1 << 15
"""Arrays of places; a stream that needs more is not compared (64 GiB of memory need so many)."""
BLOCKS_MAX: Final = 4096
MAPPED_VERSION: Final = 1
MAPPED_HEADER: Final = Struct(">IQQQ")
"""version, page size, offset of the bitmap, offset of the pages."""

_BE64 = Struct(">Q")
_BITMAP_WINDOW = 1 << 20
_EMPTY = bytes(8 * CHUNK_PAGES)


class Places:
    """Where the latest contents of each page lie; ``budget`` is shared by the blocks of a file."""

    def __init__(self, budget: list[int]) -> None:
        self._chunks: dict[int, array[int]] = {}
        self._budget = budget

    def put(self, page: int, place: int) -> None:
        """Note ``place`` for ``page``."""
        chunk = self._chunks.get(page // CHUNK_PAGES)
        if chunk is None:
            if not self._budget[0]:
                return
            self._budget[0] -= 1
            chunk = self._chunks[page // CHUNK_PAGES] = array("Q", _EMPTY)
        chunk[page % CHUNK_PAGES] = place

    def get(self, page: int) -> int:
        """The place, or one of NEVER, ZEROED, UNREADABLE."""
        chunk = self._chunks.get(page // CHUNK_PAGES)
        return chunk[page % CHUNK_PAGES] if chunk is not None else NEVER

    def counts(self) -> tuple[int, int]:
        """Pages with contents, and pages of zeros."""
        zero = sum(chunk.count(ZEROED) for chunk in self._chunks.values())
        never = sum(chunk.count(NEVER) for chunk in self._chunks.values())
        return len(self._chunks) * CHUNK_PAGES - zero - never, zero

    def touched(self) -> list[int]:
        """The indices of the runs of CHUNK_PAGES pages of which something was sent."""
        return sorted(self._chunks)


@dataclass(slots=True)
class Block:
    """One block of guest memory: its size in bytes, the records about it, and where its pages lie."""

    name: str
    size: int
    offset: int
    places: Places
    page_size: int
    page_records: int = 0
    zero_records: int = 0
    outside: int = 0
    filled: int = 0
    bitmap_offset: int = 0
    pages_offset: int = 0
    mapped_pages: int = 0

    @property
    def pages(self) -> int:
        """How many pages it has."""
        return -(-self.size // self.page_size)

    @property
    def mapped(self) -> bool:
        """Whether its pages lie at fixed places (mapped-ram)."""
        return bool(self.pages_offset)

    def counts(self) -> tuple[int, int]:
        """Different pages with contents, and pages of zeros."""
        return (self.mapped_pages, self.pages - self.mapped_pages) if self.mapped else self.places.counts()

    def place(self, page: int, source: Bytes) -> int:
        """Where the contents of ``page`` lie; or NEVER, ZEROED, UNREADABLE."""
        if not self.mapped:
            return self.places.get(page)
        octet = source.read_at(self.bitmap_offset + page // 8, 1)
        present = octet and octet[0] >> page % 8 & 1
        return self.pages_offset + page * self.page_size if present else ZEROED

    def read(self, source: Bytes, offset: int, size_bytes: int) -> bytes | None:
        """Bytes within one page, None if the file does not have them."""
        page, within = divmod(offset, self.page_size)
        if within + size_bytes > self.page_size or offset + size_bytes > self.size:
            return None
        place = self.place(page, source)
        if place == ZEROED:
            return bytes(size_bytes)
        if place in (NEVER, UNREADABLE):
            return None
        data = source.read_at(place + within, size_bytes)
        return data if len(data) == size_bytes else None


@dataclass(slots=True)
class Ram:
    """The RAM section as a whole."""

    page_size: int = 4096
    mapped: bool = False
    ignore_shared: bool = False
    blocks: dict[str, Block] = field(default_factory=dict)
    rounds: int = 0
    total: int = 0
    findings: list[Finding] = field(default_factory=list)
    budget: list[int] = field(default_factory=lambda: [CHUNKS_MAX])
    _last: Block | None = None

    @property
    def comparable(self) -> bool:
        """Whether the places of all pages are known."""
        return self.budget[0] > 0

    def read_body(self, cursor: Cursor) -> None:
        """Pass over the body of one START, PART or END record; StreamError if it is none."""
        mask = self.page_size - 1
        while True:
            at = cursor.offset
            word = cursor.be64("ram")
            flags = word & mask
            if flags == EOS:
                return
            kind = flags & ~CONTINUE
            if kind in (PAGE, ZERO, XBZRLE, COMPRESSED):
                self._page(cursor, word & ~mask, flags, at)
            elif flags == MEM_SIZE:
                self._sizes(cursor, word & ~mask)
            elif flags != MULTIFD_FLUSH:
                name = "a record of an RDMA migration" if flags & HOOK else f"RAM record {word:#x}"
                raise UnexpectedRecord(f"{name} is not understood", offset=at, field="ram")

    def _page(self, cursor: Cursor, address: int, flags: int, at: int) -> None:
        if not flags & CONTINUE:
            name = cursor.counted_string("ram:block name")
            self._last = self.blocks.get(name)
            if self._last is None:
                raise UnexpectedRecord(f"a page of the unknown block {name!r}", offset=at, field="ram")
        block = self._last
        if block is None:
            raise UnexpectedRecord("a page that continues no block", offset=at, field="ram")
        place = self._contents(cursor, flags, block, at)
        if address >= block.size:
            block.outside += 1
            if block.outside == 1:
                self.findings.append(
                    Finding(
                        Severity.ERROR,
                        "page-outside",
                        f"a page at {address:#x} of a block of {block.size:#x} bytes:"
                        " QEMU refuses the stream",
                        f"ram/{block.name}",
                        at,
                        "the stream is damaged",
                    )
                )
        else:
            block.places.put(address // self.page_size, place)

    def _contents(self, cursor: Cursor, flags: int, block: Block, at: int) -> int:
        if flags & ZERO:
            block.zero_records += 1
            fill = cursor.u8("ram:fill")
            block.filled += bool(fill)
            if fill and block.filled == 1:
                self.findings.append(
                    Finding(
                        Severity.ERROR,
                        "page-fill",
                        f"a page filled with {fill:#04x}: QEMU takes zeros only",
                        f"ram/{block.name}",
                        at,
                        "the stream is damaged, or older than QEMU takes",
                    )
                )
            return ZEROED
        block.page_records += 1
        place = cursor.offset
        if flags & PAGE:
            cursor.skip(self.page_size, f"ram:{block.name}")
            return place
        if flags & XBZRLE:
            cursor.u8("ram:xbzrle")
            cursor.skip(cursor.be16("ram:xbzrle length"), "ram:xbzrle")
        else:
            cursor.skip(cursor.be32("ram:compressed length"), "ram:compressed")
        return UNREADABLE

    def _sizes(self, cursor: Cursor, total: int) -> None:
        self.total = left = total
        while left > 0:
            at = cursor.offset
            name, size = cursor.counted_string("ram:block name"), cursor.be64("ram:block size")
            if not size or name in self.blocks or len(self.blocks) >= BLOCKS_MAX or size > left:
                raise UnexpectedRecord(f"block {name!r} of {size} bytes", offset=at, field="ram")
            block = Block(name, size, at, Places(self.budget), self.page_size)
            if self.ignore_shared:
                cursor.be64("ram:address")
            self.blocks[name] = block
            if self.mapped:
                self._mapped_header(cursor, block)
            left -= size

    def _mapped_header(self, cursor: Cursor, block: Block) -> None:
        at = cursor.offset
        version, page_size, bitmap, pages = MAPPED_HEADER.unpack(
            cursor.read(MAPPED_HEADER.size, "ram:mapped")
        )
        if version != MAPPED_VERSION or page_size != self.page_size:
            raise UnexpectedRecord(
                f"mapped-ram header of version {version} with pages of {page_size} bytes"
                f" (expected: {MAPPED_VERSION}, {self.page_size})", offset=at, field=f"ram/{block.name}",
            )  # fmt: skip
        if not bitmap and not pages:  # a shared block that the stream leaves out
            return
        octets = -(-block.pages // 64) * 8
        # The file may end in a hole that was never written: only what follows the pages has to be there.
        if bitmap < cursor.offset or bitmap + octets > pages or pages + block.size > cursor.source.size:
            raise StreamError(
                f"bitmap at {bitmap:#x} and pages at {pages:#x} do not fit into the file",
                offset=at,
                field=f"ram/{block.name}",
                hint="the file is cut off, or was copied without its offset",
            )
        block.bitmap_offset, block.pages_offset = bitmap, pages
        for start in range(0, octets, _BITMAP_WINDOW):
            window = cursor.source.read_at(bitmap + start, min(_BITMAP_WINDOW, octets - start))
            block.mapped_pages += int.from_bytes(window, "little").bit_count()
        cursor.offset = pages + block.size
