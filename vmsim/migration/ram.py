"""The ``ram`` section, version 4: saver and loader over guest memory.

A record is be64 (offset in block | flags); PAGE and ZERO name their block unless CONTINUE says that it is
the block of the record before. Runs of pages are written with one join and recognised with one comparison, so
that the cost per page is little more than its copy.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct
from typing import Final

from vmsim.errors import UsageError
from vmsim.memory.guest import PAGE_SIZE, GuestMemory, Region
from vmsim.migration.byteio import StreamInput, StreamOutput
from vmsim.migration.errors import BadField, UnexpectedRecord, UnknownSection
from vmsim.migration.stream import NAME_MAX

RAM_IDSTR: Final = "ram"
RAM_VERSION: Final = 4

ZERO: Final = 0x02
MEM_SIZE: Final = 0x04
PAGE: Final = 0x08
EOS: Final = 0x10
CONTINUE: Final = 0x20
XBZRLE: Final = 0x40
HOOK: Final = 0x80
MULTIFD_FLUSH: Final = 0x200
FLAG_MASK: Final = PAGE_SIZE - 1

BATCH_PAGES: Final = 64
"""Pages that are joined into one write."""
_RECORD_BYTES = 8 + PAGE_SIZE
_RECORD_WORDS = _RECORD_BYTES // 8
_ZERO_BYTES = 9
_RUN_BYTES = 2 * _ZERO_BYTES
_PAGE_WORDS = PAGE_SIZE // 8
_ZERO_PAGE = bytes(PAGE_SIZE)
_ZERO_BATCH = bytes(PAGE_SIZE * BATCH_PAGES)
_BE64 = Struct(">Q")

Run = tuple[int, int]
"""(guest-physical address, bytes): whole pages."""
PageWriter = Callable[[Region, int, Sequence[memoryview]], None]
"""Writes whole pages, one behind the other, from an offset of a region on: through its file, where that costs
less than the first touch of mapped pages."""
DataFinder = Callable[[Region], Iterable[tuple[int, int]]]
"""The parts of a region's file that hold data, as (offset, bytes); what it leaves out is a hole and zero."""


def block_names(memory: GuestMemory) -> list[str]:
    """One block per region, named like it; UsageError for names that a stream cannot carry."""
    names = [region.name for region in memory.regions]
    for name in names:
        if not 0 < len(name.encode()) <= NAME_MAX or names.count(name) > 1:
            raise UsageError(f"the memory region name {name!r} is not unique and 1 to {NAME_MAX} bytes long")
    return names


class RamSaver:
    """Writes the bodies of the RAM section's START, PART and END records."""

    def __init__(self, memory: GuestMemory, output: StreamOutput) -> None:
        self._names = dict(zip(memory.regions, block_names(memory), strict=True))
        self._memory = memory
        self._output = output
        self._block: Region | None = None
        self.pages = 0
        self.zero_pages = 0

    def start(self) -> None:
        """The body of START: all blocks with their sizes."""
        out = self._output
        total = sum(region.size_bytes for region in self._names)
        out.write(_BE64.pack(total | MEM_SIZE))
        for region, name in self._names.items():
            out.write(_counted(name) + _BE64.pack(region.size_bytes))
        self.end_of_part()

    def end_of_part(self) -> None:
        """The mark at the end of every body."""
        self._output.write(_BE64.pack(EOS))

    def send(self, gpa: int, size_bytes: int) -> None:
        """All pages of a run that lies in one region."""
        region = self._memory.region_at(gpa, size_bytes)
        begin = gpa - region.gpa
        for start in range(begin, begin + size_bytes, BATCH_PAGES * PAGE_SIZE):
            end = min(start + BATCH_PAGES * PAGE_SIZE, begin + size_bytes)
            first_words = region.words["Q"][start >> 3 : end >> 3 : _PAGE_WORDS].tolist()
            if 0 in first_words:
                self._send_mixed(region, start, end)
            else:
                self._send_pages(region, start, end)

    def _send_mixed(self, region: Region, start: int, end: int) -> None:
        view = region.view
        if view[start:end].tobytes() == _ZERO_BATCH[: end - start]:
            self._send_zeros(region, start, end)
            return
        begin = start
        was_zero = False
        for offset in range(start, end, PAGE_SIZE):
            is_zero = view[offset : offset + PAGE_SIZE].tobytes() == _ZERO_PAGE
            if is_zero != was_zero and offset > begin:
                (self._send_zeros if was_zero else self._send_pages)(region, begin, offset)
                begin = offset
            was_zero = is_zero
        (self._send_zeros if was_zero else self._send_pages)(region, begin, end)

    def _heads(self, region: Region, start: int, end: int, flags: int) -> list[bytes | memoryview]:
        """The record heads of consecutive pages; the first one names the block if that changes."""
        heads = _packed_heads(start | flags | CONTINUE, (end - start) // PAGE_SIZE)
        if self._block is not region:
            self._block = region
            heads[0] = _BE64.pack(start | flags) + _counted(self._names[region])
        return heads

    def _send_pages(self, region: Region, start: int, end: int) -> None:
        view = region.view
        parts: list[bytes | memoryview] = []
        offset = start
        for head in self._heads(region, start, end, PAGE):
            parts += (head, view[offset : offset + PAGE_SIZE])
            offset += PAGE_SIZE
        self.pages += (end - start) // PAGE_SIZE
        self._output.write(b"".join(parts))

    def _send_zeros(self, region: Region, start: int, end: int) -> None:
        heads = self._heads(region, start, end, ZERO)
        self.zero_pages += len(heads)
        self._output.write(b"\0".join(heads) + b"\0")


def _packed_heads(first: int, count: int) -> list[bytes | memoryview]:
    """be64 numbers from ``first`` on, one page apart."""
    numbers = array("Q", range(first, first + count * PAGE_SIZE, PAGE_SIZE))
    numbers.byteswap()
    packed = memoryview(numbers).cast("B")
    return [packed[at : at + 8] for at in range(0, len(packed), 8)]


def _counted(name: str) -> bytes:
    encoded = name.encode()
    return bytes((len(encoded),)) + encoded


class RamLoader:
    """Reads the bodies of the RAM section straight into guest memory.

    The memory must be all zeros at the beginning: a ZERO record for a page that was never written is free.
    ``write_pages`` is used for runs of pages if it is given.
    """

    def __init__(
        self, memory: GuestMemory, source: StreamInput, write_pages: PageWriter | None = None
    ) -> None:
        self._blocks = dict(zip(block_names(memory), memory.regions, strict=True))
        self._written = {region: bytearray(region.size_bytes // PAGE_SIZE) for region in memory.regions}
        self._input = source
        self._write_pages = write_pages if write_pages is not None else _store_pages
        self._block: Region | None = None
        self.pages = 0
        self.zero_pages = 0

    def load_start(self) -> None:
        """The body of START: exactly the blocks that this memory has, with the same sizes."""
        source = self._input
        word = source.be64("ram:total")
        if word & FLAG_MASK != MEM_SIZE:
            raise UnexpectedRecord(f"{word:#x} is no list of blocks", offset=source.offset - 8, field="ram")
        left = word & ~FLAG_MASK
        missing = dict(self._blocks)
        while left:
            name = source.counted_string("ram:block name")
            size = source.be64(f"ram:{name}")
            region = missing.pop(name, None)
            if region is None:
                raise self._unknown(name)
            if region.size_bytes != size or size > left:
                raise BadField(
                    f"memory block {name!r} has {size:#x} bytes in the stream, {region.size_bytes:#x} here",
                    offset=source.offset, field=f"ram:{name}",
                )
            left -= size
        if missing:
            lost = min(missing)
            message = f"memory block {lost!r} is not in the stream"
            raise UnknownSection(message, offset=source.offset, field="ram")
        self.load_part()

    def _unknown(self, name: str) -> UnknownSection:
        message = f"memory block {name!r} is not of this machine"
        return UnknownSection(message, offset=self._input.offset, field="ram")

    def load_part(self) -> None:
        """Records up to the end mark."""
        source = self._input
        while True:
            piece = source.available()
            if len(piece) >= _RUN_BYTES and self._load_run(piece):
                continue
            word = source.be64("ram:record")
            flags = word & FLAG_MASK
            if flags == EOS:
                return
            if flags & ~CONTINUE in (PAGE, ZERO):
                self._load_one(word & ~FLAG_MASK, flags)
            elif flags != MULTIFD_FLUSH or word & ~FLAG_MASK:
                raise UnexpectedRecord(f"RAM record {word:#x}", offset=source.offset - 8, field="ram:record")

    def _load_run(self, piece: memoryview) -> bool:
        """Take the consecutive pages at the beginning of ``piece``; False if there are not two."""
        block = self._block
        first: int = _BE64.unpack_from(piece)[0]
        if block is None:
            return False
        start = first & ~FLAG_MASK
        most = min(BATCH_PAGES, (block.size_bytes - start) // PAGE_SIZE)
        flags = first & FLAG_MASK
        if flags == PAGE | CONTINUE:
            count = min(most, len(piece) // _RECORD_BYTES)
            return count > 1 and self._load_pages(piece, block, first, count)
        if flags == ZERO | CONTINUE:
            count = min(most, len(piece) // _ZERO_BYTES)
            return count > 1 and self._load_zeros(piece, block, first, count)
        return False

    def _load_zeros(self, piece: memoryview, block: Region, first: int, count: int) -> bool:
        if piece[: count * _ZERO_BYTES].tobytes() != b"\0".join(_packed_heads(first, count)) + b"\0":
            return False
        start = first & ~FLAG_MASK
        written = self._written[block]
        page, end = start // PAGE_SIZE, start // PAGE_SIZE + count
        while (page := written.find(1, page, end)) >= 0:
            block.view[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = _ZERO_PAGE
            written[page] = 0
        self.zero_pages += count
        self._input.skip(count * _ZERO_BYTES)
        return True

    def _load_pages(self, piece: memoryview, block: Region, first: int, count: int) -> bool:
        words = piece[: count * _RECORD_BYTES].cast("Q")[::_RECORD_WORDS]
        expected = array("Q", range(first, first + count * PAGE_SIZE, PAGE_SIZE))
        expected.byteswap()
        if words.tolist() != expected.tolist():
            return False
        start = first & ~FLAG_MASK
        ends = range(_RECORD_BYTES, (count + 1) * _RECORD_BYTES, _RECORD_BYTES)
        self._write_pages(block, start, [piece[end - PAGE_SIZE : end] for end in ends])
        page = start // PAGE_SIZE
        self._written[block][page : page + count] = b"\1" * count
        self.pages += count
        self._input.skip(count * _RECORD_BYTES)
        return True

    def _load_one(self, offset: int, flags: int) -> None:
        source = self._input
        if not flags & CONTINUE:
            name = source.counted_string("ram:block name")
            self._block = self._blocks.get(name)
            if self._block is None:
                raise self._unknown(name)
        block = self._block
        if block is None:
            raise UnexpectedRecord("a page that continues no block", offset=source.offset, field="ram:record")
        if offset >= block.size_bytes:
            raise BadField(
                f"page {offset:#x} is outside block {block.name!r} of {block.size_bytes:#x} bytes",
                offset=source.offset, field=f"ram:{block.name}",
            )
        page = block.view[offset : offset + PAGE_SIZE]
        written = self._written[block]
        if flags & PAGE:
            source.read_into(page, f"ram:{block.name}")
            written[offset // PAGE_SIZE] = 1
            self.pages += 1
            return
        fill = source.u8(f"ram:{block.name}:fill")
        if fill:
            raise BadField(f"fill byte {fill:#04x} is not 0", offset=source.offset, field=f"ram:{block.name}")
        if written[offset // PAGE_SIZE]:
            page[:] = _ZERO_PAGE
            written[offset // PAGE_SIZE] = 0
        self.zero_pages += 1


def _store_pages(region: Region, start: int, pages: Sequence[memoryview]) -> None:
    """The page writer for memory without a file."""
    view = region.view
    for offset, page in enumerate(pages):
        begin = start + offset * PAGE_SIZE
        view[begin : begin + PAGE_SIZE] = page


def all_runs(memory: GuestMemory, data_of: DataFinder | None = None) -> Iterator[Run]:
    """All memory as runs; with a finder only the pages that may hold anything but zeros."""
    for region in memory.regions:
        if data_of is None:
            yield region.gpa, region.size_bytes
            continue
        end_before = 0
        for offset, size in data_of(region):
            start = max(offset & ~FLAG_MASK, end_before)
            end_before = min((offset + size + FLAG_MASK) & ~FLAG_MASK, region.size_bytes)
            if end_before > start:
                yield region.gpa + start, end_before - start


def merged(*groups: Iterable[Run]) -> list[Run]:
    """Runs of several harvests as one ascending list without overlaps (adjacent regions stay apart)."""
    result: list[Run] = []
    for gpa, size in sorted(run for group in groups for run in group):
        if result and gpa < result[-1][0] + result[-1][1]:
            begin = result[-1][0]
            result[-1] = (begin, max(begin + result[-1][1], gpa + size) - begin)
        else:
            result.append((gpa, size))
    return result


def sliced(runs: Iterable[Run], limit: int) -> Iterator[list[Run]]:
    """The same pages in groups of at most ``limit`` bytes (whole pages)."""
    group: list[Run] = []
    room = limit
    for begin, size in runs:
        gpa, left = begin, size
        while left:
            take = min(left, room)
            group.append((gpa, take))
            gpa, left, room = gpa + take, left - take, room - take
            if not room:
                yield group
                group, room = [], limit
    if group:
        yield group
