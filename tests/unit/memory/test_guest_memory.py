"""Guest memory: regions, holes, views across borders, whole words, errors that name the address."""

from __future__ import annotations

import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsim.errors import MemoryAccessError, UsageError
from vmsim.memory import PAGE_SIZE, GuestMemory, Region

P = PAGE_SIZE


def region(name, first_page, pages, **extra):
    return Region(name, first_page * P, pages * P, memoryview(bytearray(pages * P)), **extra)


def make():
    """Two adjacent regions, a hole, a third, and one at the very end of the address space."""
    return GuestMemory(
        [
            region("third", 16, 4, user_addr=0x7000_0000_0000),
            region("first", 1, 2, user_addr=0x5000_0000),
            region("second", 3, 1),
            region("top", (1 << 52) - 2, 2),
        ]
    )


class Sink:
    def __init__(self):
        self.marks = []

    def mark(self, gpa, size_bytes):
        self.marks.append((gpa, size_bytes))


def test_regions_are_sorted_and_checked():
    assert [r.name for r in make().regions] == ["first", "second", "third", "top"]
    with pytest.raises(UsageError, match="overlap"):
        GuestMemory([region("a", 0, 2), region("b", 1, 1)])
    with pytest.raises(UsageError, match="regions"):
        GuestMemory([region(str(n), n, 1) for n in range(510)])


@pytest.mark.parametrize(
    ("gpa", "size", "buffer"),
    [
        (1, P, bytearray(P)),
        (-P, P, bytearray(P)),
        (0, 0, bytearray()),
        (0, 100, bytearray(100)),
        (0, P, bytearray(2 * P)),
        (0, P, bytes(P)),
        ((1 << 64) - P, 2 * P, bytearray(2 * P)),
    ],
)
def test_impossible_regions(gpa, size, buffer):
    with pytest.raises(UsageError, match="region x"):
        Region("x", gpa, size, memoryview(buffer))


def test_views_share_memory_and_cross_adjacent_regions():
    memory = make()
    border = 3 * P
    memory.write(border - 3, b"abcdef")
    assert memory.read(border - 3, 6) == b"abcdef"
    assert [bytes(view) for view in memory.views(border - 3, 6)] == [b"abc", b"def"]
    assert [len(view) for view in memory.views(P, 3 * P)] == [2 * P, P]
    memory.view(P, 4)[:] = b"wxyz"
    assert memory.read(P, 4) == b"wxyz"
    assert [len(view) for view in memory.views(4 * P, 0)] == [0]
    assert memory.holds(P, 2 * P)
    assert not memory.holds(P, 2 * P + 1)
    assert not memory.holds(0, 1)


@pytest.mark.parametrize(
    ("gpa", "size", "says"),
    [
        (0, 1, "outside"),
        (P - 1, 2, "outside"),
        (4 * P - 1, 2, "outside"),
        (4 * P, 1, "outside"),
        (P, 16 * P, "outside"),
        (20 * P, 1, "outside"),
        (15 * P, 2 * P, "outside"),
        ((1 << 64) - 1, 2, "wraps"),
        ((1 << 64) - 4, 1 << 40, "wraps"),
        (1 << 64, 1, "wraps"),
        (P, -1, "negative"),
    ],
)
def test_every_access_outside_names_the_address(gpa, size, says):
    memory = make()
    calls = [memory.view, memory.views, memory.read, memory.region_at]
    if 0 <= size < 1 << 20:
        calls.append(lambda gpa, size: memory.write(gpa, bytes(size)))
    for call in calls:
        with pytest.raises(MemoryAccessError, match=says) as caught:
            call(gpa, size)
        assert (caught.value.gpa, caught.value.size_bytes) == (gpa, size)
        assert f"{gpa:#x}" in str(caught.value)


def test_a_refused_write_changes_nothing():
    memory = make()
    memory.dirty = sink = Sink()
    with pytest.raises(MemoryAccessError):
        memory.write(4 * P - 8, b"x" * 16)
    assert memory.read(4 * P - 8, 8) == bytes(8)
    assert sink.marks == []


def test_view_does_not_cross_regions():
    with pytest.raises(MemoryAccessError):
        make().view(3 * P - 1, 2)


def test_words_and_alignment():
    memory = make()
    memory.store_u16(P + 2, 0x1234)
    memory.store_u32(P + 4, 0x89ABCDEF)
    memory.store_u64(P + 8, 0x1122334455667788)
    assert memory.read(P, 16) == bytes.fromhex("0000 3412 efcdab89 8877665544332211")
    assert memory.load_u16(P + 2) == 0x1234
    assert memory.load_u32(P + 4) == 0x89ABCDEF
    assert memory.load_u64(P + 8) == 0x1122334455667788
    top = (1 << 64) - 8
    memory.store_u64(top, 5)
    assert memory.load_u64(top) == 5
    words = memory.words(P, 8, "H")
    assert words[1] == 0x1234
    words[0] = 0xFFFF
    assert memory.load_u16(P) == 0xFFFF
    assert list(memory.words(16 * P + 16, 2, "Q")) == [0, 0]
    for call in (
        lambda: memory.load_u16(P + 1),
        lambda: memory.store_u32(P + 2, 0),
        lambda: memory.load_u64(P + 4),
        lambda: memory.words(P + 2, 1, "I"),
    ):
        with pytest.raises(MemoryAccessError, match="aligned"):
            call()
    for call in (
        lambda: memory.load_u64(4 * P),
        lambda: memory.words(3 * P - 2, 2, "H"),
        lambda: memory.store_u16(0, 0),
    ):
        with pytest.raises(MemoryAccessError, match="outside"):
            call()


def test_writes_are_marked():
    memory = make()
    memory.write(P, b"before")
    memory.dirty = sink = Sink()
    memory.write(P + 5, b"abc")
    memory.write(3 * P - 1, b"xy")
    memory.write(P, b"")
    memory.store_u16(P, 1)
    memory.store_u32(P + 4, 1)
    memory.store_u64(P + 8, 1)
    memory.mark_dirty(17 * P, 100)
    assert sink.marks == [(P + 5, 3), (3 * P - 1, 2), (P, 2), (P + 4, 4), (P + 8, 8), (17 * P, 100)]


def test_user_addresses():
    memory = make()
    assert memory.gpa_of_user(0x5000_0010, 16) == P + 0x10
    assert memory.gpa_of_user(0x7000_0000_0000 + 4 * P - 1, 1) == 20 * P - 1
    for address, size in ((0x5000_0000 + 2 * P - 1, 2), (0x4FFF_FFFF, 1), (0x7000_0000_0000 + 4 * P, 1)):
        with pytest.raises(MemoryAccessError, match=f"{address:#x}"):
            memory.gpa_of_user(address, size)


def test_close():
    memory = make()
    memory.dirty = Sink()
    kept = memory.view(P, 4)
    memory.close()
    memory.close()
    kept[:] = b"live"
    for call in (
        lambda: memory.read(P, 1),
        lambda: memory.view(P, 1),
        lambda: memory.views(P, 1),
        lambda: memory.load_u16(P),
        lambda: memory.words(P, 1, "H"),
        lambda: memory.gpa_of_user(0x5000_0000, 1),
    ):
        with pytest.raises(MemoryAccessError):
            call()
    assert GuestMemory([]).regions == ()


def test_close_lets_the_mapping_go():
    buffer = mmap.mmap(-1, P)
    memory = GuestMemory([Region("ram", 0, P, memoryview(buffer))])
    words = memory.words(0, 4, "H")
    memory.close()
    words.release()
    buffer.close()  # BufferError if a view were left


def test_tens_of_gib_are_only_addresses():
    size = 48 << 30
    fd = os.memfd_create("high")
    os.ftruncate(fd, size)
    buffer = mmap.mmap(fd, size)
    os.close(fd)
    memory = GuestMemory([region("low", 0, 16), Region("high", 4 << 30, size, memoryview(buffer))])
    last = (4 << 30) + size - 8
    memory.store_u64(last, 77)
    assert memory.load_u64(last) == 77
    with pytest.raises(MemoryAccessError):
        memory.read(last, 9)
    memory.close()
    buffer.close()


@given(st.integers(0, 24 * P), st.binary(max_size=5 * P))
def test_write_then_read_anywhere(gpa, data):
    memory = make()
    inside = all(
        any(r.gpa <= at < r.end for r in memory.regions)
        for at in {gpa, gpa + max(len(data) - 1, 0), *range(gpa // P * P + P, gpa + len(data), P)}
    )
    if inside:
        memory.write(gpa, data)
        assert memory.read(gpa, len(data)) == data
        assert b"".join(memory.views(gpa, len(data))) == data
    elif data:
        with pytest.raises(MemoryAccessError):
            memory.write(gpa, data)
