"""Random bytes and damaged requests: no exception, nothing outside the buffer, a well-formed reply."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fuse_rig import Rig
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.headers import IN_HEADER
from vmsim.fuse.init import InitOptions

OPTIONS = InitOptions(posix_acl=True, security_label=True, export_support=True, posix_locks=True)
U64 = (1 << 64) - 1
EDGES = [0, 1, 2, 7, 8, 16, 40, 80, 255, 4096, 1 << 20, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, U64]


def check(rig, request, room, cuts=(), reply_cuts=()):
    used, reply = rig.raw(request, room, cuts, reply_cuts)
    opcode = struct.unpack_from("<I", request, 4)[0] if len(request) >= 8 else 0
    row = op.BY_NUMBER.get(opcode)
    if used is None:
        assert row is not None
        assert row.waits
        return
    if used == 0:
        assert room < 16 or (row is not None and row.reply is op.Reply.NONE)
        return
    assert used >= 16
    length, error, unique = struct.unpack_from("<IiQ", reply)
    if opcode == op.FUSE_INIT_BSWAP_RESERVED:
        length, error, unique = struct.unpack_from(">IiQ", reply)
        unique = int.from_bytes(unique.to_bytes(8, "little"), "big")
    assert length == used
    assert -4096 < error <= 0
    assert error == 0 or used == 16
    if len(request) >= 40:
        assert unique == struct.unpack_from("<Q", request, 8)[0]
    if error == 0 and row is not None and row.reply is op.Reply.RECORD:
        assert used == 16 + row.record_size


sizes = st.lists(st.integers(0, 60), max_size=4)
numbers = st.sampled_from(EDGES) | st.integers(0, U64)


@given(st.binary(max_size=300), st.integers(0, 300), st.booleans())
@settings(max_examples=300)
def test_random_bytes(data, room, initialized):
    check(Rig(OPTIONS, init=initialized), data, room)


@st.composite
def requests(draw):
    """A request that its row could have, with numbers from anywhere; then perhaps damaged."""
    row = draw(st.sampled_from(op.OPCODES))
    args = []
    for field in row.args.fields if row.args else ():
        if field.format.endswith("s"):
            args.append(b"")
            continue
        value = draw(numbers) & ((1 << 8 * field.size) - 1)
        signed = field.format in "bhiq"
        args.append(value - (1 << 8 * field.size) if signed and value >> (8 * field.size - 1) else value)
    names = [draw(st.binary(max_size=10) | st.sampled_from([b"f", b"d", b"..", b"x" * 300]))
             for _ in range(row.names)]  # fmt: skip
    data = draw(st.binary(max_size=80)) if row.tail or row.payload else b""
    extensions = b""
    if row.extensions and draw(st.booleans()):
        extensions = client.encode_extensions((1, 2), [(b"security.x", b"label")])
    nodeid = draw(st.sampled_from([0, 1, 2, 3, U64]))
    request = bytearray(client.encode(
        row.number, draw(numbers), nodeid, 0, 0, 0, args, names, data, extensions=extensions))  # fmt: skip
    for _ in range(draw(st.integers(0, 3))):
        request[draw(st.integers(0, len(request) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del request[draw(st.integers(0, len(request))) :]
    elif draw(st.booleans()):
        IN_HEADER.pack_into(request, 0, len(request), *IN_HEADER.unpack_from(request)[1:])
    return bytes(request)


@given(st.lists(st.tuples(requests(), st.integers(0, 400), sizes, sizes), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_damaged_requests(steps):
    rig = Rig(OPTIONS)
    rig.create(data=b"hello")
    rig.ok(op.MKDIR, 1, (0o755, 0), (b"d",))
    for request, room, cuts, reply_cuts in steps:
        cuts = [size for size in cuts if size] if sum(cuts) <= len(request) else ()
        check(rig, request, room, cuts, reply_cuts if sum(reply_cuts) <= room else ())
    assert rig.faults == []


@given(st.lists(st.tuples(st.sampled_from(op.OPCODES), st.integers(0, 200)), max_size=8))
@settings(max_examples=100)
def test_zeros_of_every_size(steps):
    rig = Rig(OPTIONS)
    for row, size in steps:
        check(rig, struct.pack("<IIQ", 40 + size, row.number, 7) + bytes(24 + size), 200)
    assert rig.faults == []
