"""One line for everything, whatever the bytes are."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsim.fuse import client, notify
from vmsim.fuse import opcodes as op
from vmsim.fuse.printing import describe_notification, describe_reply, describe_request


def test_lines():
    request = client.encode(op.RENAME2, 7, 1, 0, 0, 0, (5, 1, 0), (b"a", b"b\xff"))
    assert describe_request(request) == "RENAME2 unique=7 node=1 newdir=5 flags=0x1 'a' 'b\\\\xff'"
    assert describe_request(request[:30]) == "request of 30 bytes without header"
    assert describe_request(request[:41]) == "RENAME2 unique=7 node=1 (cut)"
    assert describe_request(client.encode(op.STATFS, 8, 1, 0, 0, 0)) == "STATFS unique=8 node=1"
    assert describe_reply(op.GETATTR, struct.pack("<IiQ", 16, -2, 7)) == "GETATTR unique=7 -> ENOENT"
    assert describe_reply(op.WRITE, struct.pack("<IiQII", 24, 0, 7, 5, 0)) == "WRITE unique=7 -> size=5"
    assert describe_reply(op.READ, struct.pack("<IiQ", 20, 0, 7) + b"abcd") == "READ unique=7 -> 4 bytes"
    assert describe_reply(op.UNLINK, struct.pack("<IiQ", 16, 0, 7)) == "UNLINK unique=7 -> ok"
    assert describe_reply(op.FORGET, b"") == "FORGET -> nothing"
    made = notify.encode(notify.NOTIFY_INVAL_ENTRY, notify.InvalEntryOut(1, 1, 0), b"x")
    assert describe_notification(made) == "INVAL_ENTRY parent=1 namelen=1 flags=0x0 b'x'"
    assert describe_notification(b"").startswith("bad notification")


@pytest.mark.parametrize("row", op.OPCODES, ids=lambda row: row.name)
def test_every_row_prints(row):
    args = row.args.unpack(bytes(row.args_size)) if row.args else ()
    request = client.encode(row.number, 7, 1, 0, 0, 0, args, [b"x"] * row.names)
    assert describe_request(request).startswith(f"{row.name} unique=7 node=1")
    reply = struct.pack("<IiQ", 16 + row.record_size, 0, 7) + bytes(row.record_size)
    assert describe_reply(row.number, reply).startswith(f"{row.name} unique=7 ->")


@given(st.binary(max_size=200), st.integers(0, 60))
def test_any_bytes_print(data, opcode):
    describe_request(data)
    describe_reply(opcode, data)
    describe_notification(data)
    describe_request(struct.pack("<II", len(data), opcode) + data)
