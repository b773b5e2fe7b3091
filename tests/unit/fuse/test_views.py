"""Scattered buffers against one flat one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmsim.fuse.views import cut, gather, scatter

pieces = st.lists(st.binary(max_size=20), max_size=6)


@given(pieces, st.integers(0, 100), st.integers(0, 100))
def test_gather_and_cut(parts, start, size):
    views = [memoryview(bytearray(part)) for part in parts]
    flat = b"".join(parts)[start : start + size]
    assert gather(views, start, size) == flat
    found = cut(views, start, size)
    assert b"".join(found) == flat
    assert all(len(view) for view in found)
    for view in found:
        view[:] = bytes(len(view))
    whole = b"".join(parts)
    assert b"".join(views) == whole[:start] + bytes(len(flat)) + whole[start + len(flat) :]


@given(pieces, st.binary(max_size=60))
def test_scatter(parts, data):
    buffers = [bytearray(part) for part in parts]
    data = data[: sum(map(len, parts))]
    scatter([memoryview(buffer) for buffer in buffers], data)
    assert b"".join(buffers) == data + b"".join(parts)[len(data) :]
