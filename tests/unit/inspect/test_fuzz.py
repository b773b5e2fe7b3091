"""Whatever the bytes are: a capture with findings or a usage error, never anything else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.inspect.states import GOLDEN, STATES, WORKED, encoded, look, small, state_bytes
from vmsim.errors import UsageError
from vmsim.inspect.diff import diff
from vmsim.inspect.render import hex_dump, lines

STREAM = (GOLDEN / "qemu10.0.2-microvm-mmio-split.bin").read_bytes()
DEVICE = STREAM.index(b"virtio-mmio@00000000feb02e00/vhost-user-fs")
SEEDS = [WORKED, encoded(small()), *(state_bytes(path) for path in STATES)]


def bear(data: bytes, kind: str = "auto") -> None:
    try:
        capture = look(data, kind)
    except UsageError:
        return
    for finding in capture.findings:
        assert -1 <= finding.offset <= len(data)
    for line in lines(capture.root.children, True):
        assert line.isprintable()
    for _ in hex_dump(capture, capture.root.children):
        pass


def mutate(data: bytes, edits: list[tuple[int, bytes]], cut: int) -> bytes:
    changed = bytearray(data)
    for at, piece in edits:
        at %= len(changed)
        changed[at : at + len(piece)] = piece
    return bytes(changed[: len(changed) - cut % len(changed)] if cut else changed)


EDITS = st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=9)), max_size=6)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), EDITS, st.integers(0, 60))
def test_states(seed, edits, cut):
    bear(mutate(seed, edits, cut), "state")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data):
    bear(data, "state")
    bear(data, "stream")
    bear(data)


@settings(max_examples=40, deadline=None)
@given(EDITS, st.integers(0, 1 << 19), st.booleans())
def test_streams(edits, cut, near_device):
    if near_device:
        edits = [(DEVICE + at % 300, piece) for at, piece in edits]
    bear(mutate(STREAM, edits, cut))


@settings(max_examples=15, deadline=None)
@given(EDITS)
def test_descriptions(edits):
    """The JSON at the end is as hostile as the rest."""
    begin = len(STREAM) - 15_000
    bear(mutate(STREAM, [(begin + at % 15_000, piece) for at, piece in edits], 0))


@pytest.mark.parametrize("step", [7])
def test_truncations_of_the_device_section(step):
    for size in range(DEVICE, len(STREAM), 997 * step):
        bear(STREAM[:size])


@settings(max_examples=10, deadline=None)
@given(EDITS)
def test_differences(edits):
    try:
        a, b = look(WORKED), look(mutate(WORKED, edits, 0), "state")
    except UsageError:
        return
    changes, memory = diff(a, b)
    assert memory == []
    assert not diff(a, a)[0]
    assert all(change.path for change in changes)
