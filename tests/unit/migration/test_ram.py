from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.migration_rig import contents, make_memory
from vmsim.errors import StreamError, StreamTruncated, UsageError
from vmsim.memory import GuestMemory, Region
from vmsim.migration.byteio import StreamInput, StreamOutput
from vmsim.migration.errors import BadField, UnexpectedRecord, UnknownSection
from vmsim.migration.ram import RamLoader, RamSaver, all_runs, merged, sliced

PAGE = 4096


class Bytes:
    def __init__(self, data: bytes = b"", step: int = 1 << 20) -> None:
        self.data = bytearray(data)
        self.step = step

    def write(self, data) -> None:
        self.data += data

    def read_some(self, limit: int) -> bytes:
        piece = bytes(self.data[: min(limit, self.step)])
        del self.data[: len(piece)]
        return piece


def encode(memory: GuestMemory, runs=None) -> tuple[bytes, RamSaver]:
    sink = Bytes()
    output = StreamOutput(sink)
    saver = RamSaver(memory, output)
    saver.start()
    for gpa, size in runs if runs is not None else all_runs(memory):
        saver.send(gpa, size)
    saver.end_of_part()
    output.flush()
    return bytes(sink.data), saver


def decode(data: bytes, memory: GuestMemory, step: int = 1 << 20) -> RamLoader:
    source = StreamInput(Bytes(data, step))
    loader = RamLoader(memory, source)
    loader.load_start()
    loader.load_part()
    assert source.at_end()
    return loader


def pattern(memory: GuestMemory, kinds: list[int]) -> None:
    """Fill pages by kind: 0 zero, 1 full, 2 only the last byte set, 3 only the first byte set."""
    pages = [(region, at) for region in memory.regions for at in range(0, region.size_bytes, PAGE)]
    for (region, at), kind in zip(pages, kinds, strict=False):
        if kind == 1:
            region.view[at : at + PAGE] = bytes([1 + at // PAGE % 255]) * PAGE
        elif kind == 2:
            region.view[at + PAGE - 1] = 1
        elif kind == 3:
            region.view[at] = 1


@pytest.mark.parametrize("step", [997, 4104, 5000, 1 << 20])
def test_every_mixture_of_pages_arrives(step):
    kinds = [random.Random(step).choice((0, 0, 1, 1, 1, 2, 3)) for _ in range(300)]
    memory, other = make_memory((250, 50)), make_memory((250, 50))
    pattern(memory, kinds)
    data, saver = encode(memory)
    loader = decode(data, other, step)
    assert contents(other) == contents(memory)
    zeros = kinds.count(0)
    assert (saver.pages, saver.zero_pages) == (loader.pages, loader.zero_pages) == (300 - zeros, zeros)


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.integers(0, 3), min_size=48, max_size=48), step=st.integers(1, 20_000),
    runs=st.lists(st.tuples(st.integers(0, 39), st.integers(1, 40)), max_size=6),
)
def test_any_runs_arrive_however_they_are_cut(kinds, step, runs):
    memory, other = make_memory(), make_memory()
    pattern(memory, kinds)
    wanted = merged((0x1000 + first * PAGE, min(count, 40 - first) * PAGE) for first, count in runs)
    data, _ = encode(memory, wanted)
    decode(data, other, step)
    for gpa, size in wanted:
        assert other.read(gpa, size) == memory.read(gpa, size)
    sent = sum(size for _, size in wanted)
    assert len(data) <= 100 + sent + sent // PAGE * 20


def test_a_page_that_became_zero_again_is_cleared():
    memory, other = make_memory(), make_memory()
    pattern(memory, [1] * 48)
    sink = Bytes()
    output = StreamOutput(sink)
    saver = RamSaver(memory, output)
    saver.start()
    saver.send(0x1000, 40 * PAGE)
    memory.regions[0].view[PAGE : 3 * PAGE] = bytes(2 * PAGE)
    saver.send(0x1000, 8 * PAGE)
    saver.end_of_part()
    output.flush()
    decode(bytes(sink.data), other)
    assert bytes(other.regions[0].view) == bytes(memory.regions[0].view)


def test_the_bytes_are_those_of_the_format():
    memory = make_memory((2, 1))
    memory.write(0x1000 + PAGE, b"A" * PAGE)
    data, _ = encode(memory)

    def word(value: int) -> bytes:
        return value.to_bytes(8, "big")

    assert data == b"".join((
        word(3 * PAGE | 4), b"\4ram0", word(2 * PAGE), b"\4ram1", word(PAGE), word(0x10),
        word(0 | 2), b"\4ram0", b"\0", word(PAGE | 0x28), b"A" * PAGE,
        word(0 | 2), b"\4ram1", b"\0", word(0x10),
    ))


START = (48 * PAGE | 4).to_bytes(8, "big") + b"\4ram0" + (40 * PAGE).to_bytes(8, "big")
START += b"\4ram1" + (8 * PAGE).to_bytes(8, "big") + (0x10).to_bytes(8, "big")


def word(value: int) -> bytes:
    return value.to_bytes(8, "big")


@pytest.mark.parametrize(
    ("records", "kind"),
    [
        (word(0x28) + bytes(PAGE), UnexpectedRecord),
        (word(0x22) + b"\0", UnexpectedRecord),
        (word(0x08) + b"\4ram9" + bytes(PAGE), UnknownSection),
        (word(40 * PAGE | 0x08) + b"\4ram0" + bytes(PAGE), BadField),
        (word((1 << 63) | 0x08) + b"\4ram0" + bytes(PAGE), BadField),
        (word(0x02) + b"\4ram0\7", BadField),
        (word(0x48) + b"\4ram0" + bytes(PAGE), UnexpectedRecord),
        (word(0x0A) + b"\4ram0" + bytes(PAGE), UnexpectedRecord),
        (word(0x04), UnexpectedRecord),
        (word(0x80), UnexpectedRecord),
        (word(0x08) + b"\4ram0" + bytes(PAGE - 1), StreamTruncated),
        (b"\0\0", StreamTruncated),
    ],
)
def test_bad_records_are_refused(records, kind):
    memory = make_memory()
    with pytest.raises(kind) as caught:
        decode(START + records, memory)
    assert isinstance(caught.value, StreamError)
    assert caught.value.offset >= len(START) - 8
    assert contents(memory) == contents(make_memory())


def test_a_run_past_the_end_of_a_block_is_refused():
    memory = make_memory()
    first = word(38 * PAGE | 0x08) + b"\4ram0" + b"a" * PAGE
    rest = b"".join(word((39 + n) * PAGE | 0x28) + b"b" * PAGE for n in range(3))
    with pytest.raises(BadField, match="outside block 'ram0'"):
        decode(START + first + rest + word(0x10), memory)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (word(8 * PAGE | 4) + b"\4ram1" + word(8 * PAGE) + word(0x10), UnknownSection),
        (word(9 * PAGE | 4) + b"\4ram1" + word(9 * PAGE) + word(0x10), BadField),
        (word(8 * PAGE | 4) + b"\4ramX" + word(8 * PAGE) + word(0x10), UnknownSection),
        (word(4 * PAGE | 4) + b"\4ram1" + word(8 * PAGE) + word(0x10), BadField),
        (word(80 * PAGE | 4) + (b"\4ram0" + word(40 * PAGE)) * 2 + word(0x10), UnknownSection),
        (word(0x10), UnexpectedRecord),
    ],
)
def test_the_blocks_must_be_those_of_the_machine(start, kind):
    with pytest.raises(kind):
        decode(start + word(0x10), make_memory())


def test_a_multifd_flush_mark_is_tolerated():
    decode(START + word(0x200) + word(0x10), make_memory())


def test_region_names_must_be_fit_for_a_stream():
    buffer = memoryview(bytearray(PAGE))
    for names in (["a", "a"], [""], ["x" * 200]):
        regions = [Region(name, index * PAGE, PAGE, buffer) for index, name in enumerate(names)]
        with pytest.raises(UsageError):
            RamSaver(GuestMemory(regions), StreamOutput(Bytes()))


def test_runs_are_merged_without_losing_or_doubling_a_page():
    assert merged([(0, PAGE), (2 * PAGE, PAGE)], [(0, 3 * PAGE)]) == [(0, 3 * PAGE)]
    assert merged([(4 * PAGE, PAGE)], [(0, PAGE)]) == [(0, PAGE), (4 * PAGE, PAGE)]
    assert merged([(0, PAGE)], [(PAGE, PAGE)]) == [(0, PAGE), (PAGE, PAGE)]


@given(
    runs=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 30)), max_size=10),
    limit=st.integers(1, 20),
)
def test_slices_hold_the_same_pages_in_order(runs, limit):
    groups = list(sliced(runs, limit))
    assert all(0 < sum(size for _, size in group) <= limit for group in groups)
    pages = [(gpa + n) for gpa, size in runs for n in range(size)]
    assert [gpa + n for group in groups for gpa, size in group for n in range(size)] == pages


def test_holes_are_rounded_outwards_to_whole_pages():
    memory = make_memory()

    def finder(region):
        return [(100, 50), (PAGE * 3 + 1, PAGE)] if region.name == "ram0" else [(7 * PAGE, 5 * PAGE)]

    base = memory.regions[1].gpa
    assert list(all_runs(memory, finder)) == [
        (0x1000, PAGE), (0x1000 + 3 * PAGE, 2 * PAGE), (base + 7 * PAGE, PAGE),
    ]
