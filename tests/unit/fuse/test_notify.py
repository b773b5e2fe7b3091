"""Notifications as bytes and back."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsim.errors import PeerError
from vmsim.fuse import notify as n

GOOD = [
    (n.NOTIFY_POLL, n.PollWakeupOut(5), b"", 24),
    (n.NOTIFY_INVAL_INODE, n.InvalInodeOut(5, 0, -1), b"", 40),
    (n.NOTIFY_INVAL_ENTRY, n.InvalEntryOut(1, 4, 1), b"name", 37),
    (n.NOTIFY_STORE, n.StoreOut(5, 4096, 3, 0), b"abc", 43),
    (n.NOTIFY_RETRIEVE, n.RetrieveOut(9, 5, 0, 4096, 0), b"", 48),
    (n.NOTIFY_DELETE, n.DeleteOut(1, 5, 4, 0), b"name", 45),
    (n.NOTIFY_RESEND, None, b"", 16),
]


@pytest.mark.parametrize(("code", "record", "tail", "size"), GOOD)
def test_round_trip(code, record, tail, size):
    data = n.encode(code, record, tail)
    assert len(data) == size
    assert struct.unpack_from("<IiQ", data) == (size, code, 0)
    assert n.decode(memoryview(data)) == (code, record, tail)
    for cut in range(size):
        with pytest.raises(PeerError):
            n.decode(data[:cut])
    assert {row.code for row in n.NOTIFICATIONS} == {row[0] for row in GOOD}


@pytest.mark.parametrize(
    ("code", "record", "tail"),
    [
        (n.NOTIFY_INVAL_ENTRY, n.InvalEntryOut(1, 3, 1), b"name"),
        (n.NOTIFY_INVAL_ENTRY, n.InvalEntryOut(1, 0, 1), b""),
        (n.NOTIFY_DELETE, n.DeleteOut(1, 5, 256, 0), b"x" * 256),
        (n.NOTIFY_STORE, n.StoreOut(5, 0, 4, 0), b"abc"),
        (n.NOTIFY_POLL, n.PollWakeupOut(5), b"x"),
        (n.NOTIFY_POLL, None, b""),
        (n.NOTIFY_RESEND, n.PollWakeupOut(5), b""),
    ],
)
def test_records_that_do_not_fit(code, record, tail):
    with pytest.raises(ValueError):
        n.encode(code, record, tail)


def test_bad_names():
    good = n.encode(n.NOTIFY_INVAL_ENTRY, n.InvalEntryOut(1, 4, 0), b"name")
    for bad in (good[:-1] + b"x", good[:-3] + b"\0e\0"):
        with pytest.raises(PeerError):
            n.decode(bad)


@given(st.binary(max_size=80), st.integers(0, 8))
def test_anything_else_is_a_peer_error(data, code):
    for candidate in (data, struct.pack("<IiQ", 16 + len(data), code, 0) + data):
        try:
            decoded = n.decode(candidate)
        except PeerError:
            continue
        assert n.encode(*decoded) == candidate or decoded.code == n.NOTIFY_RESEND
