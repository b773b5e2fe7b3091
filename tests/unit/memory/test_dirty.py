"""The dirty log: sources, epochs, vhost bitmaps in and out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsim.errors import MemoryAccessError, StateError
from vmsim.memory import PAGE_SIZE, BitmapSink, DirtyLog, GuestMemory, Region, bitmap_bytes, taker

P = PAGE_SIZE


def region(name, first_page, pages):
    return Region(name, first_page * P, pages * P, memoryview(bytearray(pages * P)))


def make():
    return GuestMemory([region("a", 3, 10), region("b", 13, 4), region("c", 100, 33)])


PAGES = [*range(3, 17), *range(100, 133)]


def pages_of(runs):
    return [page for gpa, size in runs for page in range(gpa // P, (gpa + size) // P)]


def test_writes_through_memory_and_sources():
    memory = make()
    log = DirtyLog(memory)
    memory.write(5 * P, b"not yet")
    log.start()
    device = log.source("device")
    assert log.source("device") is device
    memory.write(4 * P + 10, b"x")
    memory.write(13 * P - 1, b"xy")
    device.mark(101 * P, 2 * P + 1)
    device.mark(4 * P, 1)
    device.mark(4 * P, 0)
    assert log.dirty_bytes() == 6 * P
    assert log.harvest() == [(4 * P, P), (12 * P, P), (13 * P, P), (101 * P, 3 * P)]
    assert log.last_pages == {"memory": 3, "device": 4}
    assert log.epoch == 1
    assert log.harvest() == []
    assert log.epoch == 2


def test_start_and_stop():
    memory = make()
    log = DirtyLog(memory)
    log.start(all_dirty=True)
    assert pages_of(log.harvest()) == PAGES
    with pytest.raises(StateError):
        log.start()
    with pytest.raises(StateError):
        DirtyLog(memory).start()
    memory.write(3 * P, b"x")
    log.stop()
    log.stop()
    memory.write(4 * P, b"x")
    log.source("late").mark(5 * P, 1)
    assert log.harvest() == [(3 * P, P)]
    memory.write(3 * P, b"x")
    log.start()
    assert log.harvest() == []
    log.stop()
    DirtyLog(memory).start()


@pytest.mark.parametrize(
    ("gpa", "size"), [(0, 1), (17 * P, 1), (16 * P, P + 1), (12 * P, 6 * P), (1 << 63, 1)]
)
def test_marks_outside_memory_name_the_address(gpa, size):
    memory = make()
    log = DirtyLog(memory)
    log.start()
    with pytest.raises(MemoryAccessError, match="0x"):
        log.source("device").mark(gpa, size)


def test_bitmap_size():
    """QEMU: (last byte) / (4096 * 64) + 1 words of 8 bytes; 64 MiB gives 2048 bytes."""
    assert bitmap_bytes(GuestMemory([region("ram", 0, 16384)])) == 2048
    assert bitmap_bytes(GuestMemory([region("ram", 0, 64)])) == 8
    assert bitmap_bytes(GuestMemory([region("ram", 0, 65)])) == 16
    assert bitmap_bytes(make()) == 24
    assert bitmap_bytes(GuestMemory([])) == 0


def test_export_is_vhost_layout():
    memory = make()
    log = DirtyLog(memory)
    log.start()
    memory.write(9 * P, b"x")
    memory.write(16 * P, b"x")
    log.source("device").mark(132 * P, 1)
    bitmap = log.export_bitmap()
    assert len(bitmap) == 24
    assert {i: b for i, b in enumerate(bitmap) if b} == {1: 1 << 1, 2: 1 << 0, 16: 1 << 4}
    assert log.dirty_bytes() == 3 * P  # nothing was cleared


def test_attached_bitmap_is_exchanged_with_zero():
    memory = make()
    log = DirtyLog(memory)
    log.start()
    bitmap = bytearray(bitmap_bytes(memory))
    log.attach_bitmap("vhost", taker(memoryview(bitmap)))
    sink = BitmapSink(memoryview(bitmap))
    sink.mark(12 * P + 5, 2 * P)
    sink.mark(101 * P, 1)
    bitmap[0] |= 1  # page 0 is not memory: means nothing
    memory.write(14 * P, b"x")
    assert pages_of(log.harvest()) == [12, 13, 14, 101]
    assert not any(bitmap)
    assert log.last_pages == {"memory": 1, "vhost": 4}
    sink.mark(100 * P, 1)
    assert log.dirty_bytes() == P
    log.detach_bitmap("vhost")
    log.detach_bitmap("vhost")
    sink.mark(105 * P, 1)
    assert pages_of(log.harvest()) == [100], "what had been taken counts"


def test_a_bitmap_of_more_than_one_chunk():
    memory = GuestMemory([Region("far", 1 << 30, P, memoryview(bytearray(P)))])
    log = DirtyLog(memory)
    log.start()
    bitmap = bytearray(bitmap_bytes(memory))
    log.attach_bitmap("vhost", taker(memoryview(bitmap)))
    BitmapSink(memoryview(bitmap)).mark(1 << 30, 1)
    assert log.harvest() == [(1 << 30, P)]


def test_shared_sink_never_marks_too_little():
    bitmap = bytearray(24)
    BitmapSink(memoryview(bitmap), shared=True).mark(9 * P, 8 * P)
    assert bitmap[:4] == b"\0\xff\xff\0"


@pytest.mark.parametrize("shared", [False, True])
def test_sink_past_the_log(shared):
    sink = BitmapSink(memoryview(bytearray(8)), shared=shared)
    sink.mark(63 * P, P)
    for gpa, size in ((64 * P, 1), (63 * P, P + 1), (-1, 1), (1 << 63, 1)):
        with pytest.raises(MemoryAccessError, match="past the dirty log"):
            sink.mark(gpa, size)
    sink.mark(1 << 63, 0)


MARKS = st.lists(st.tuples(st.sampled_from(PAGES), st.integers(0, P - 1), st.integers(1, 3 * P)), max_size=12)


@given(MARKS, MARKS, MARKS)
def test_against_a_set_of_pages(first, second, third):
    memory = make()
    log = DirtyLog(memory)
    log.start()
    bitmap = bytearray(bitmap_bytes(memory))
    log.attach_bitmap("vhost", taker(memoryview(bitmap)))
    expected = set()
    for marks, sink in (
        (first, log.source("x")),
        (second, memory.dirty),
        (third, BitmapSink(memoryview(bitmap))),
    ):
        for page, offset, size in marks:
            pages = set(range(page, (page * P + offset + size - 1) // P + 1))
            if pages <= set(PAGES):
                sink.mark(page * P + offset, size)
                expected |= pages
    exported = log.export_bitmap()
    assert {i * 8 + b for i, byte in enumerate(exported) for b in range(8) if byte >> b & 1} == expected
    assert log.dirty_bytes() == len(expected) * P
    runs = log.harvest()
    assert pages_of(runs) == sorted(expected)
    other = DirtyLog(make())
    other.import_bitmap("peer", exported)
    assert pages_of(other.harvest()) == sorted(expected)
