"""The last value that is still served, and the first that is not."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.support.fuse_rig import Rig
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import FATTR_GID, FATTR_MTIME
from vmsim.fuse.abi.init_flags import SECURITY_CTX
from vmsim.fuse.abi.requests import SetattrIn
from vmsim.fuse.extensions import parse_extensions
from vmsim.fuse.filesystem import FileSystem

MIB = 1 << 20
LAST = (1 << 63) - 1


def test_a_write_of_all_that_was_offered():
    rig = Rig()
    nodeid, fh = rig.create()
    data = bytes(rig.session.state.max_write)
    assert rig.ok(op.WRITE, nodeid, (fh, 0, len(data), 0, 0, 0, 0), (), data, cuts=(40, 40)).size == MIB
    assert len(rig.ok(op.READ, nodeid, (fh, 0, MIB, 0, 0, 0, 0), size=MIB)) == MIB
    most = bytes(MIB + 4096 - 80)
    assert rig.ok(op.WRITE, nodeid, (fh, 0, len(most), 0, 0, 0, 0), (), most).size == len(most)
    assert rig.error(op.WRITE, nodeid, (fh, 0, MIB, 0, 0, 0, 0), (), most + b"x") == errno.ENOMEM


def test_data_that_the_caller_adds_are_counted():
    request = client.encode(op.WRITE, 1, 1, 0, 0, 0, (1, 0, 100, 0, 0, 0, 0), data_size=100)
    assert struct.unpack_from("<I", request)[0] == len(request) + 100 == 180


def test_buffers_of_one_mib():
    rig = Rig()
    rig.ok(op.READDIR, 1, (0, 0, MIB, 0, 0, 0, 0), size=MIB)
    rig.ok(op.LISTXATTR, 1, (MIB, 0), size=MIB)
    assert rig.error(op.READDIR, 1, (0, 0, MIB + 1, 0, 0, 0, 0), size=MIB + 1) == errno.ENOMEM
    assert rig.error(op.LISTXATTR, 1, (MIB + 1, 0), size=MIB + 1) == errno.ENOMEM


def test_the_longest_attribute():
    rig = Rig()
    rig.ok(op.SETXATTR, 1, (65536, 0), (b"user.x" + b"y" * 249,), bytes(65536), compat=True)
    assert rig.error(op.SETXATTR, 1, (1, 0), (b"user.x" + b"y" * 250,), b"v", compat=True) == errno.ERANGE


def test_an_ioctl_that_fills_its_room():
    rig = Rig()
    _, data = rig.ok(op.IOCTL, 1, (0, 0, 0, 0, 4, 4), (), b"abcd", size=4)
    assert data == b"dcba"


def test_mappings_at_the_end():
    rig = Rig()
    rig.ok(op.SETUPMAPPING, 1, (1, LAST - 1, 1, 1, LAST - 1))
    for args in ((1, LAST, 1, 1, 0), (1, 0, 1, 1, LAST), (1, 0, 1, 4, 0)):
        assert rig.error(op.SETUPMAPPING, 1, args) == errno.EINVAL


@pytest.mark.parametrize(
    ("fields", "served"),
    [
        ({"valid": FATTR_GID, "gid": 0xFFFFFFFE}, True), ({"valid": FATTR_GID, "gid": 0xFFFFFFFF}, False),
        ({"valid": FATTR_MTIME, "mtimensec": 999_999_999}, True),
        ({"valid": FATTR_MTIME, "mtimensec": 1_000_000_000}, False),
    ],
)  # fmt: skip
def test_attributes(fields, served):
    answer = Rig().call(op.SETATTR, 1, SetattrIn(*[0] * 16)._replace(**fields))
    assert answer.error == (0 if served else errno.EINVAL)


@pytest.mark.parametrize(("size", "served"), [(65536, True), (65537, False)])
def test_labels(size, served):
    data = client.encode_extensions((), [(b"security.x", bytes(size))])
    if served:
        assert parse_extensions(data, SECURITY_CTX).security == ((b"security.x", bytes(size)),)
    else:
        with pytest.raises(OSError):
            parse_extensions(data, SECURITY_CTX)


@pytest.mark.parametrize(("raised", "told"), [(4095, 4095), (4096, errno.EIO), (-1, errno.EIO), (0, 5)])
def test_error_numbers(raised, told):
    class Failing(FileSystem):
        def getattr(self, ctx, nodeid, fh):
            raise OSError(raised, "whatever")

    assert Rig(fs=Failing()).error(op.GETATTR, 1, (0, 0, 0)) == told


def test_callers_are_told_as_they_are():
    seen = []

    class Watching(FileSystem):
        def getattr(self, ctx, nodeid, fh):
            seen.append((ctx.unique, ctx.nodeid, ctx.uid, ctx.gid, ctx.pid, ctx.groups, ctx.security, fh))
            raise OSError(errno.EACCES, "no")

    rig = Rig(fs=Watching())
    request = client.encode(op.GETATTR, 3, 4, 0xFFFFFFFF, 6, 7, (1, 0, 8))
    rig.raw(request, 120)
    rig.raw(request, 120, cuts=(3,))
    assert seen == [(3, 4, 0xFFFFFFFF, 6, 7, (), (), 8)] * 2
