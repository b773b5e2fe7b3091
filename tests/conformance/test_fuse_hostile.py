"""Every input that kills or wedges virtiofsd 1.13.2, and the classes they stand for, get an errno.

Ring-level cases (descriptor loops, addresses outside memory, indirect tables) belong to the rings.
"""

from __future__ import annotations

import errno
import struct

import pytest

from tests.support.fuse_rig import Rig
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import FATTR_SIZE
from vmsim.fuse.abi.requests import SetattrIn
from vmsim.fuse.init import InitOptions

NAMED = [row for row in op.OPCODES if row.names and row.name != "TMPFILE"]


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    assert rig.ok(op.GETATTR, 1, (0, 0, 0)).ino == 1
    assert rig.faults == []


def refuse(rig, request, room=256):
    """The errno that ``request`` gets, or None when nothing was written."""
    used, reply = rig.raw(request, room)
    if used == 0:
        return None
    assert used == 16
    length, error, _ = struct.unpack_from("<IiQ", reply)
    assert length == 16
    return -error


def header(length, opcode, unique=9, nodeid=1, extlen=0):
    return struct.pack("<IIQQIIIHH", length, opcode, unique, nodeid, 0, 0, 0, extlen, 0)


def named(opcode, body):
    return header(40 + len(body), opcode) + body


def test_names_without_and_with_inner_nul(rig):
    assert refuse(rig, named(op.LOOKUP, b"name")) == errno.EINVAL
    assert refuse(rig, named(op.LOOKUP, b"na\0me\0")) == errno.EINVAL
    assert refuse(rig, named(op.LOOKUP, b"")) == errno.EINVAL
    assert refuse(rig, named(op.MKDIR, bytes(8) + b"na\0me\0")) == errno.EINVAL
    assert refuse(rig, named(op.RENAME, bytes(8) + b"one\0")) == errno.EINVAL
    assert refuse(rig, named(op.RENAME, bytes(8) + b"one\0two\0three\0")) == errno.EINVAL
    assert refuse(rig, named(op.SYMLINK, b"one\0")) == errno.EINVAL


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/abs", b"../g", b"/"])
@pytest.mark.parametrize("row", NAMED, ids=lambda row: row.name)
def test_names_that_are_none(row, name):
    """GHSA-2gv2-cffp-j227: SYMLINK and its like with an absolute or climbing name leave the share."""
    if "XATTR" in row.name and name:
        return
    rig = Rig(InitOptions(posix_acl=True))
    args = row.args.unpack(bytes(row.args_size)) if row.args else ()
    others = [b"x"] * (row.names - 1)
    wanted = errno.ERANGE if "XATTR" in row.name else errno.EINVAL
    assert rig.error(row.number, 1, args, [name, *others], size=64) == wanted
    if row.name in ("RENAME", "RENAME2"):
        assert rig.error(row.number, 1, args, [b"x", name]) == errno.EINVAL


def test_long_names(rig):
    assert rig.error(op.LOOKUP, 1, (), (b"x" * 256,)) == errno.ENAMETOOLONG
    assert rig.error(op.LOOKUP, 1, (), (b"x" * 255,)) == errno.ENOENT
    assert rig.error(op.SYMLINK, 1, (), (b"x", b"t" * 4096)) == errno.ENAMETOOLONG
    assert rig.error(op.SYMLINK, 1, (), (b"x", b"")) == errno.ENOENT


@pytest.mark.parametrize("length", [0, 20, 39, 57, 4096, 0xFFFF])
def test_lengths_that_lie(rig, length):
    request = header(length, op.GETATTR) + bytes(16)
    assert refuse(rig, request) == errno.EINVAL


@pytest.mark.parametrize("length", [2 << 20, 0xFFFFFFFF])
def test_lengths_beyond_the_limit(rig, length):
    assert refuse(rig, header(length, op.GETATTR) + bytes(16)) == errno.ENOMEM


def test_arguments_that_are_cut(rig):
    for row in op.OPCODES:
        if row.args is not None and row.reply is not op.Reply.NONE:
            request = named(row.number, bytes(row.args_size - 1))
            # SETXATTR is read with its older 8 bytes here, and then has an empty name.
            wanted = {op.SETXATTR: errno.ERANGE, op.INIT: errno.EPROTO}.get(row.number, errno.EINVAL)
            assert refuse(rig, request, 1 << 12) == wanted, row.name


@pytest.mark.parametrize("size", [0, 1, 39])
def test_requests_without_a_whole_header(rig, size):
    assert refuse(rig, bytes(size)) == errno.EINVAL
    assert refuse(rig, bytes(size), 0) is None


@pytest.mark.parametrize("opcode", [op.READ, op.GETATTR, op.LOOKUP, op.MKDIR, op.STATFS, op.INIT])
@pytest.mark.parametrize("room", [0, 1, 15])
def test_no_room_for_a_header(rig, opcode, room):
    """Nothing is written, and nothing is done either: a lookup count would be lost."""
    row = op.BY_NUMBER[opcode]
    args = row.args.unpack(bytes(row.args_size)) if row.args else ()
    request = client.encode(opcode, 9, 1, 0, 0, 0, args, [b"d"] * row.names)
    assert refuse(rig, request, room) is None
    assert rig.fs.counts == {}


def test_no_room_for_the_body(rig):
    """A bare header with ENOMEM, before anything was done."""
    for row in op.OPCODES:
        if row.reply is not op.Reply.RECORD:
            continue
        args = row.args.unpack(bytes(row.args_size)) if row.args else ()
        request = client.encode(row.number, 9, 1, 0, 0, 0, args, [b"d"] * row.names)
        assert refuse(rig, request, 16 + row.record_size - 1) == errno.ENOMEM, row.name
    assert rig.fs.counts == {}
    assert rig.error(op.READDIR, 1, (0, 0, 4096, 0, 0, 0, 0), room=4096) == errno.ENOMEM
    assert rig.error(op.GETXATTR, 1, (0, 0), (b"user.x",), room=20) == errno.ENOMEM
    assert rig.error(op.IOCTL, 1, (0, 0, 0, 0, 0, 64), room=16 + 16 + 63) == errno.ENOMEM
    assert rig.error(op.INIT, 0, (7, 41, 0, 0, 0, b""), room=79) == errno.ENOMEM


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 1])
def test_offsets_beyond_loff_t(rig, offset):
    nodeid, fh = rig.create()
    read = (fh, offset, 8, 0, 0, 0, 0)
    assert rig.error(op.WRITE, nodeid, read, (), b"12345678") == errno.EINVAL
    assert rig.error(op.READ, nodeid, read, size=8) == errno.EINVAL
    assert rig.error(op.READDIR, nodeid, read, size=8) == errno.EINVAL
    assert rig.error(op.READDIRPLUS, nodeid, read, size=8) == errno.EINVAL
    assert rig.error(op.FALLOCATE, nodeid, (fh, offset, 1, 0, 0)) == errno.EINVAL
    assert rig.error(op.FALLOCATE, nodeid, (fh, 1, offset, 0, 0)) == errno.EINVAL
    assert rig.error(op.COPY_FILE_RANGE, nodeid, (fh, offset, nodeid, fh, 0, 1, 0)) == errno.EINVAL
    assert rig.error(op.COPY_FILE_RANGE, nodeid, (fh, 0, nodeid, fh, offset, 1, 0)) == errno.EINVAL
    attr = SetattrIn(*[0] * 16)._replace(valid=FATTR_SIZE, size=offset)
    assert rig.error(op.SETATTR, nodeid, attr) == errno.EINVAL


def test_numbers_that_mean_nothing(rig):
    nodeid, fh = rig.create()
    assert rig.error(op.LSEEK, nodeid, (fh, 0, 99, 0)) == errno.EINVAL
    assert rig.error(op.OPEN, nodeid, (0xFFFFFFFF, 0)) == errno.EINVAL
    assert rig.error(op.RENAME2, 1, (1, 8, 0), (b"a", b"b")) == errno.EINVAL
    assert rig.error(op.ACCESS, 1, (8, 0)) == errno.EINVAL
    assert rig.error(op.COPY_FILE_RANGE, nodeid, (fh, 0, nodeid, fh, 0, 1, 1)) == errno.EINVAL
    assert rig.error(op.MKNOD, 1, (0xFFFFFFFF, 0, 0, 0), (b"n",)) == errno.EINVAL


def test_sizes(rig):
    nodeid, fh = rig.create(data=b"abc")
    big = (fh, 0, 0xFFFFFFFF, 0, 0, 0, 0)
    assert rig.ok(op.READ, nodeid, big, size=100) == b"abc"
    assert rig.ok(op.WRITE, nodeid, big, (), b"xyz").size == 3
    for opcode in (op.READDIR, op.READDIRPLUS):
        assert rig.error(opcode, 1, (0, 0, 2 << 20, 0, 0, 0, 0), size=(2 << 20)) == errno.ENOMEM
    assert rig.error(op.GETXATTR, 1, (2 << 20, 0), (b"user.x",), size=2 << 20) == errno.ENOMEM
    assert rig.error(op.LISTXATTR, 1, (2 << 20, 0), size=2 << 20) == errno.ENOMEM
    assert rig.error(op.IOCTL, 1, (fh, 0, 0, 0, 5, 0), (), b"1234") == errno.EINVAL


def test_setxattr_size_against_data(rig):
    for size, data in ((4, b"12345"), (6, b"12345"), (0xFFFF, b"")):
        assert rig.error(op.SETXATTR, 1, (size, 0), (b"user.x",), data, compat=True) == errno.EINVAL
    assert rig.error(op.SETXATTR, 1, (65537, 0), (b"user.x",), b"", compat=True) == errno.E2BIG
    rig.ok(op.SETXATTR, 1, (1, 0), (b"user.\xff\xfe",), b"v", compat=True)


def test_forget(rig):
    nodeid, _ = rig.create()
    assert refuse(rig, named(op.BATCH_FORGET, struct.pack("<IIQQ", 1000, 0, nodeid, 1))) is None
    assert refuse(rig, named(op.BATCH_FORGET, struct.pack("<II", 0xFFFFFFFF, 0))) is None
    assert rig.fs.counts[nodeid] == 1
    for victim in (1, nodeid, 999):
        rig.call(op.FORGET, victim, ((1 << 64) - 1,))
    assert rig.fs.counts[nodeid] == 0


EXTENSIONS = {
    "huge size": struct.pack("<II", 0xFFFFFFF8, 32),
    "size 0": struct.pack("<II", 0, 32),
    "unknown type": struct.pack("<II", 8, 33),
    "too many groups": struct.pack("<IIII", 16, 32, 0xFFFFFFFF, 0),
    "no group count": struct.pack("<II", 8, 32),
    "doubled": struct.pack("<IIII", 16, 32, 1, 5) * 2,
    "label cut": struct.pack("<II", 8, 1),
    "label without NUL": struct.pack("<IIII", 24, 1, 0, 0) + b"security",
    "label without name": struct.pack("<IIII", 24, 1, 0, 0) + bytes(8),
    "label value cut": struct.pack("<IIII", 24, 1, 1000, 0) + b"abc\0\0\0\0\0",
    "31 labels": struct.pack("<IIII", 24, 31, 0, 0) + b"abc\0\0\0\0\0",
}


@pytest.mark.parametrize("name", EXTENSIONS)
@pytest.mark.parametrize("stated", [True, False])
def test_extensions(name, stated):
    rig = Rig(InitOptions(security_label=True))
    data = EXTENSIONS[name]
    body = struct.pack("<IIII", 2, 0o644, 0, 0) + b"f\0" + data
    request = header(40 + len(body), op.CREATE, extlen=len(data) // 8 if stated else 0) + body
    assert refuse(rig, request) == errno.EINVAL
    assert rig.fs.counts == {}


def test_extensions_that_were_not_negotiated_or_are_not_there(rig):
    groups = client.encode_extensions((1, 2))
    rig.ok(op.CREATE, 1, (2, 0o644, 0, 0), (b"f",), extensions=groups)
    assert rig.fs.log[-1] == ((1, 2), ())
    label = client.encode_extensions((), [(b"security.x", b"v")])
    assert rig.error(op.CREATE, 1, (2, 0o644, 0, 0), (b"g",), extensions=label) == errno.EINVAL
    body = struct.pack("<IIII", 2, 0o644, 0, 0) + b"g\0" + groups
    for extlen in (1, 0xFFFF):
        assert refuse(rig, header(40 + len(body), op.CREATE, extlen=extlen) + body) == errno.EINVAL


@pytest.mark.parametrize("opcode", [0, 7, 19, max(op.BY_NUMBER) + 1, 200, 4096, 1048576, -1 & 0xFFFFFFFF])
def test_unknown_opcodes(rig, opcode):
    assert refuse(rig, header(40, opcode)) == errno.ENOSYS


def test_after_destroy_everything_is_ebadf_until_the_next_init(rig):
    assert refuse(rig, header(40, op.DESTROY)) is None
    for row in op.OPCODES:
        if row.reply is op.Reply.NONE or row.number == op.INIT:
            continue
        args = row.args.unpack(bytes(row.args_size)) if row.args else ()
        request = client.encode(row.number, 9, 1, 0, 0, 0, args, [b"d"] * row.names)
        assert refuse(rig, request, 1 << 12) == errno.EBADF
    rig.init()


def test_the_other_byte_order_is_refused_in_that_byte_order():
    """virtio 1.3 section 5.11.6.2: INIT's opcode tells the driver's byte order."""
    rig = Rig(init=False)
    request = struct.pack(">IIQQIIIHH", 104, op.INIT, 0x0102030405060708, 0, 0, 0, 0, 0, 0) + bytes(64)
    used, reply = rig.raw(request, 80)
    assert used == 16
    assert struct.unpack(">IiQ", reply[:16]) == (16, -errno.EPROTO, 0x0102030405060708)
    assert rig.raw(request, 8)[0] == 0
    assert not rig.session.state.initialized
    rig.init()
