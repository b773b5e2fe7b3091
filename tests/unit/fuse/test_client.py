"""The client's codec, row by row."""

from __future__ import annotations

import struct

import pytest

from vmsim.errors import PeerError
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.headers import IN_HEADER
from vmsim.fuse.abi.init_flags import CREATE_SUPP_GROUP, SECURITY_CTX
from vmsim.fuse.dirsink import DirentPlusSink, DirentSink
from vmsim.fuse.extensions import parse_extensions


@pytest.mark.parametrize("row", op.OPCODES, ids=lambda row: row.name)
def test_every_row_encodes(row):
    args = row.args.unpack(bytes(range(row.args_size))) if row.args else ()
    names = [b"one", b"two"][: row.names]
    request = client.encode(row.number, 1 << 63, 5, 1, 2, 3, args, names, b"data", data_size=100)
    header = IN_HEADER.unpack(request)
    assert header == (len(request) + 100, row.number, 1 << 63, 5, 1, 2, 3, 0, 0)
    assert request[40 : 40 + row.args_size] == bytes(range(row.args_size))
    assert request[40 + row.args_size :] == b"".join(name + b"\0" for name in names) + b"data"


@pytest.mark.parametrize("row", op.OPCODES, ids=lambda row: row.name)
def test_every_row_decodes(row):
    if row.reply is op.Reply.NONE:
        assert client.decode(row.number, b"", 1) == (0, None)
        assert client.reply_room(row.number) == 0
        return
    body = bytes(16 if row.number == op.IOCTL else row.record_size)
    reply = struct.pack("<IiQ", 16 + len(body), 0, 9) + body
    answer = client.decode(row.number, memoryview(reply), 9, size_query=True)
    assert answer.error == 0
    assert client.reply_room(row.number) >= len(reply)
    assert client.reply_room(row.number, 10_000) >= 10_016
    error = struct.pack("<IiQ", 16, -2, 9)
    assert client.decode(row.number, error, 9) == (2, None)


@pytest.mark.parametrize(
    "reply",
    [
        b"", bytes(15), struct.pack("<IiQ", 17, 0, 9), struct.pack("<IiQ", 16, 0, 8),
        struct.pack("<IiQ", 16, 1, 9), struct.pack("<IiQ", 16, -4096, 9), struct.pack("<IiQ", 16, 0, 9),
        struct.pack("<IiQ", 17, 0, 9) + b"x",
    ],
)  # fmt: skip
def test_replies_that_are_none(reply):
    with pytest.raises(PeerError):
        client.decode(op.GETATTR, reply, 9)


def test_empty_replies_have_no_body():
    with pytest.raises(PeerError):
        client.decode(op.UNLINK, struct.pack("<IiQ", 17, 0, 9) + b"x", 9)


def test_dirents_round_trip():
    sink = DirentSink(200)
    names = [b"a", b"seven77", b"eight888", b"x" * 40]
    for index, name in enumerate(names):
        assert sink.add(index + 10, index + 1, 8, name)
    found = list(client.decode_dirents(bytes(sink.buffer)))
    assert [name for _, name in found] == names
    assert [(d.ino, d.off, d.type, d.namelen) for d, _ in found][1] == (11, 2, 8, 7)
    assert len(sink.buffer) == 32 + 32 + 32 + 64
    assert not sink.add(1, 2, 3, b"y" * 20)
    assert sink.add(1, 2, 3, b"y" * 16)
    assert len(sink.buffer) == 200
    assert sink.count == 5


def test_direntplus_round_trip():
    sink = DirentPlusSink(160 + 160)
    entry = tuple(range(100, 122))
    assert sink.add(entry, 1, 4, b"name")
    assert sink.fits(b"12345678")
    assert not sink.fits(b"123456789")
    assert not sink.add(entry, 2, 4, b"123456789")
    assert sink.add(entry, 2, 4, b"12345678")
    found = list(client.decode_direntplus(bytes(sink.buffer)))
    assert found[0][0] == entry
    assert found[0][1].ino == 106
    assert [name for _, _, name in found] == [b"name", b"12345678"]


@pytest.mark.parametrize(
    "body",
    [
        bytes(10), struct.pack("<QQII", 1, 1, 0, 8), struct.pack("<QQII", 1, 1, 9, 8) + b"12345678",
        struct.pack("<QQII", 1, 1, 3, 8) + b"a/b\0\0\0\0\0", struct.pack("<QQII", 1, 1, 0xFFFFFFFF, 8),
    ],
)  # fmt: skip
def test_bad_dirents(body):
    with pytest.raises(PeerError):
        list(client.decode_dirents(body))
    with pytest.raises(PeerError):
        list(client.decode_direntplus(bytes(128) + body))
    with pytest.raises(PeerError):
        list(client.decode_direntplus(bytes(20)))


@pytest.mark.parametrize("size", [8, 24, 64])
def test_init_replies_of_all_sizes(size):
    body = struct.pack("<II", 7, 41).ljust(size, b"\1")
    decoded = client.decode_init(body)
    assert (decoded.major, decoded.minor) == (7, 41)
    assert bool(decoded.max_readahead) == (size > 8)
    with pytest.raises(PeerError):
        client.decode_init(body + b"x")


def test_ioctl_reply():
    record, data = client.decode_ioctl(struct.pack("<iIII", -5, 0, 0, 0) + b"abc")
    assert (record.result, data) == (-5, b"abc")
    with pytest.raises(PeerError):
        client.decode_ioctl(bytes(15))


def test_extensions_round_trip():
    labels = [(b"security.selinux", b"system_u"), (b"security.capability", b"")]
    data = client.encode_extensions((1000, 1001, 1002), labels)
    assert len(data) % 8 == 0
    found = parse_extensions(data, CREATE_SUPP_GROUP | SECURITY_CTX)
    assert found == ((1000, 1001, 1002), tuple(labels))
    assert parse_extensions(client.encode_extensions((), []), SECURITY_CTX) == ((), ())
    assert client.encode_extensions() == b""
    with pytest.raises(OSError):
        parse_extensions(data, SECURITY_CTX)
