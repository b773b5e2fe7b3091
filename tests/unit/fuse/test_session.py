"""The session over a file system in memory: every opcode, life cycle, sizes."""

from __future__ import annotations

import errno
import os

import pytest

from tests.support.fuse_rig import Rig, cut_views
from vmsim.errors import StreamError
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags as flag
from vmsim.fuse.abi.flags import FATTR_MODE, FATTR_MTIME, FATTR_MTIME_NOW, FATTR_SIZE, FATTR_UID
from vmsim.fuse.abi.requests import SetattrIn
from vmsim.fuse.filesystem import FileSystem
from vmsim.fuse.handlers import HANDLERS
from vmsim.fuse.init import InitOptions

NOTHING = SetattrIn(*[0] * 16)


def setattr_in(**fields):
    return NOTHING._replace(**fields)


def test_every_row_has_its_handler_and_method():
    for row in op.OPCODES:
        if row.method:
            assert row.name in HANDLERS
            assert callable(getattr(FileSystem, row.method))
        else:
            assert row.name in ("INIT", "DESTROY", "INTERRUPT")
    assert set(HANDLERS) == {row.name for row in op.OPCODES if row.method}


def test_an_empty_file_system_answers_enosys_to_everything():
    rig = Rig(InitOptions(posix_acl=True), fs=FileSystem())
    for row in op.OPCODES:
        if not row.method or row.reply is op.Reply.NONE:
            continue
        names = [b"a", b"b"][: row.names]
        args = row.args.unpack(bytes(row.args_size)) if row.args else ()
        assert rig.error(row.number, 1, args, names, size=64) == errno.ENOSYS, row.name


@pytest.mark.parametrize("cuts", [(), (40,), (40, 3), (1, 2, 3, 40), (8,)])
@pytest.mark.parametrize("reply_cuts", [(), (16,), (16, 3), (5, 5, 5, 5)])
def test_any_cut_of_the_buffers_gives_the_same(cuts, reply_cuts):
    rig = Rig()
    nodeid, fh = rig.create(data=b"0123456789")
    cut = {"cuts": cuts, "reply_cuts": reply_cuts}
    assert rig.ok(op.GETATTR, nodeid, (0, 0, 0), **cut).size == 10
    assert rig.ok(op.LOOKUP, 1, (), (b"f",), **cut).nodeid == nodeid
    assert rig.ok(op.READ, nodeid, (fh, 2, 5, 0, 0, 0, 0), size=5, **cut) == b"23456"
    assert rig.ok(op.WRITE, nodeid, (fh, 1, 3, 0, 0, 0, 0), (), b"abc", **cut).size == 3
    assert rig.ok(op.READ, nodeid, (fh, 0, 10, 0, 0, 0, 0), size=10, **cut) == b"0abc456789"
    assert rig.ok(op.STATFS, 1, **cut).blocks == 100
    assert rig.ok(op.RELEASE, nodeid, (fh, 0, 0, 0), **cut) is None


def test_nodes():
    rig = Rig()
    directory = rig.ok(op.MKDIR, 1, (0o777, 0o22), (b"d",))
    assert directory.mode & 0o777 == 0o755
    assert directory.ctime == -3  # before 1970
    node = rig.ok(op.MKNOD, directory.nodeid, (0o100644, 0, 0, 0), (b"n",))
    link = rig.ok(op.LINK, 1, (node.nodeid,), (b"l",))
    assert link.nodeid == node.nodeid
    symlink = rig.ok(op.SYMLINK, 1, (), (b"s", b"../target"))
    assert rig.ok(op.READLINK, symlink.nodeid) == b"../target"
    rig.ok(op.RENAME, 1, (directory.nodeid,), (b"s", b"t"))
    rig.ok(op.RENAME2, directory.nodeid, (1, 1, 0), (b"t", b"s"))
    assert rig.fs.log[-1] == ("rename", 1)
    rig.ok(op.UNLINK, 1, (), (b"s",))
    rig.ok(op.RMDIR, 1, (), (b"d",))
    assert rig.error(op.LOOKUP, 1, (), (b"d",)) == errno.ENOENT
    assert rig.ok(op.ACCESS, 1, (4, 0)) is None
    assert rig.ok(op.STATX, 1, (0, 0, 0, 0, 0xFFF)).mask == 0xFFF
    assert rig.ok(op.BMAP, 1, (5, 512, 0)).block == 6
    rig.ok(op.SYNCFS, 1, (0,))
    change = setattr_in(valid=FATTR_SIZE | FATTR_MODE, size=5, mode=1)
    assert rig.ok(op.SETATTR, node.nodeid, change).size == 5


def test_files():
    rig = Rig()
    nodeid, fh = rig.create(data=b"hello")
    again = rig.ok(op.OPEN, nodeid, (0, 0))
    assert again.fh != fh
    assert rig.ok(op.READ, nodeid, (again.fh, 3, 100, 0, 0, 0, 0), size=100) == b"lo"
    rig.ok(op.FSYNC, nodeid, (fh, 1, 0))
    assert rig.fs.log[-1] == ("fsync", True)
    rig.ok(op.FLUSH, nodeid, (fh, 0, 0, 9))
    rig.ok(op.FALLOCATE, nodeid, (fh, 0, 10, 0, 0))
    assert rig.ok(op.LSEEK, nodeid, (fh, 7, os.SEEK_SET, 0)).offset == 7
    assert rig.error(op.LSEEK, nodeid, (fh, -7, os.SEEK_SET, 0)) == errno.EINVAL
    assert rig.ok(op.COPY_FILE_RANGE, nodeid, (fh, 0, nodeid, fh, 0, 1 << 40, 0)).size == 3
    assert rig.fs.log[-1] == ("copy", 0xFFFFF000)
    out, data = rig.ok(op.IOCTL, nodeid, (fh, 0, 1, 2, 3, 8), (), b"abc", size=8)
    assert (out.result, data) == (7, b"cba")
    assert rig.ok(op.POLL, nodeid, (fh, 1, 0, 7)).revents == 5
    made = rig.ok(op.TMPFILE, 1, (2, 0o600, 0, 0), (b"/",))
    assert rig.ok(op.GETATTR, made.nodeid, (1, 0, made.fh)).ino == made.nodeid
    assert rig.error(op.GETATTR, made.nodeid, (1, 0, 99)) == errno.EBADF


def test_write_goes_by_what_is_there():
    """WRITE size beyond the data is a short write; data beyond the size are not written."""
    rig = Rig()
    nodeid, fh = rig.create()
    assert rig.ok(op.WRITE, nodeid, (fh, 0, 100, 0, 0, 0, 0), (), b"abcdef", cuts=(43, 40)).size == 6
    assert rig.ok(op.WRITE, nodeid, (fh, 0, 2, 0, 0, 0, 0), (), b"XYZ", cuts=(80, 1)).size == 2
    assert bytes(rig.fs.node(nodeid).data) == b"XYcdef"


def test_read_and_write_do_not_copy():
    """The file system sees the guest's own memory."""
    seen = {}

    class Watching(FileSystem):
        def read(self, ctx, nodeid, fh, offset, views, flags, lock_owner):
            seen["read"] = views
            return 0

        def write(self, ctx, nodeid, fh, offset, views, size, write_flags, flags, lock_owner):
            seen["write"] = views
            return size

    rig = Rig(fs=Watching())
    request = bytearray(client.encode(op.WRITE, 9, 1, 0, 0, 0, (1, 0, 6, 0, 0, 0, 0), (), b"abcdef"))
    reply = bytearray(64)
    rig.session.handle(cut_views(request, (80, 2)), cut_views(reply, (16,)), None)
    request[80:] = b"ABCDEF"
    assert b"".join(seen["write"]) == b"ABCDEF"
    request = client.encode(op.READ, 9, 1, 0, 0, 0, (1, 0, 40, 0, 0, 0, 0))
    rig.session.handle([memoryview(request)], cut_views(reply, (10, 20)), None)
    assert [len(view) for view in seen["read"]] == [14, 26]
    seen["read"][0][:2] = b"zz"
    assert reply[16:18] == b"zz"


def test_arguments_and_names_cannot_change_any_more():
    """Another process may write into guest memory while we work on a request."""
    request = bytearray()
    seen = []

    class Racing(FileSystem):
        def rename(self, ctx, parent, name, newparent, newname, flags):
            request[40:] = b"/" * (len(request) - 40)
            seen.append((name, newparent, newname))

    rig = Rig(fs=Racing())
    request += client.encode(op.RENAME, 9, 1, 0, 0, 0, (5,), (b"one", b"two"))
    assert rig.session.handle([memoryview(request)], [memoryview(bytearray(16))], None) == 16
    assert seen == [(b"one", 5, b"two")]


def test_directories():
    rig = Rig()
    for index in range(20):
        rig.ok(op.MKDIR, 1, (0, 0), (b"dir%d" % index,))
    fh = rig.ok(op.OPENDIR, 1, (0, 0)).fh
    names, offset = [], 0
    while body := rig.ok(op.READDIR, 1, (fh, offset, 200, 0, 0, 0, 0), size=200):
        assert len(body) <= 200
        for dirent, name in client.decode_dirents(body):
            names.append(name)
            offset = dirent.off
    assert names == sorted(b"dir%d" % index for index in range(20))
    rig.ok(op.FSYNCDIR, 1, (fh, 0, 0))
    rig.ok(op.RELEASEDIR, 1, (fh, 0, 0, 0))
    assert rig.error(op.RELEASEDIR, 1, (fh, 0, 0, 0)) == errno.EBADF


def test_an_entry_that_does_not_fit_takes_no_lookup_count():
    rig = Rig()
    for index in range(5):
        rig.ok(op.MKDIR, 1, (0, 0), (b"%d" % index,))
    before = dict(rig.fs.counts)
    body = rig.ok(op.READDIRPLUS, 1, (0, 0, 500, 0, 0, 0, 0), size=500)
    told = [entry.nodeid for entry, _, _ in client.decode_direntplus(body)]
    assert len(told) == 3
    taken = [nodeid for nodeid, count in rig.fs.counts.items() if count != before[nodeid]]
    assert taken == told


def test_a_late_error_does_not_lose_counted_entries():
    class Failing(type(Rig().fs)):
        def readdirplus(self, ctx, nodeid, fh, offset, sink):
            super().readdirplus(ctx, nodeid, fh, offset, sink)
            raise OSError(errno.EIO, "disk")

    rig = Rig(fs=Failing())
    assert rig.error(op.READDIRPLUS, 1, (0, 0, 500, 0, 0, 0, 0), size=500) == errno.EIO
    rig.ok(op.MKDIR, 1, (0, 0), (b"d",))
    assert rig.ok(op.READDIRPLUS, 1, (0, 0, 500, 0, 0, 0, 0), size=500)


def test_xattrs():
    rig = Rig()
    rig.ok(op.SETXATTR, 1, (5, 1), (b"user.x",), b"value", compat=True)
    assert rig.fs.log[-1] == ("setxattr", 1, 0)
    assert rig.ok(op.GETXATTR, 1, (0, 0), (b"user.x",), size_query=True).size == 5
    assert rig.ok(op.GETXATTR, 1, (64, 0), (b"user.x",), size=64) == b"value"
    assert rig.error(op.GETXATTR, 1, (4, 0), (b"user.x",), size=4) == errno.ERANGE
    assert rig.ok(op.LISTXATTR, 1, (64, 0), size=64) == b"user.x\0"
    assert rig.ok(op.LISTXATTR, 1, (0, 0), size_query=True).size == 7
    rig.ok(op.REMOVEXATTR, 1, (), (b"user.x",))
    assert rig.error(op.GETXATTR, 1, (0, 0), (b"user.x",)) == errno.ENODATA
    rig.ok(op.SETXATTR, 1, (0, 0), (b"user.empty",), compat=True)


def test_no_reply_requests_write_nothing():
    rig = Rig()
    nodeid, _ = rig.create()
    rig.ok(op.LOOKUP, 1, (), (b"f",))
    assert rig.fs.counts[nodeid] == 2
    rig.call(op.FORGET, nodeid, (1,), room=64)
    assert rig.fs.counts[nodeid] == 1
    one = nodeid.to_bytes(8, "little") + (1).to_bytes(8, "little")
    rig.call(op.BATCH_FORGET, 0, (2, 0), (), one + one)
    assert rig.fs.counts[nodeid] == 0
    rig.call(op.NOTIFY_REPLY, nodeid, (0, 5, 3, 0, 0, 0), (), b"abcd")
    assert rig.fs.log[-1] == ("notify_reply", rig.unique, nodeid, 5, b"abc")


def test_mappings():
    rig = Rig()
    rig.ok(op.SETUPMAPPING, 1, (1, 0, 4096, 3, 8192))
    assert rig.fs.log[-1] == ("setupmapping", 0, 4096, 3, 8192)
    pair = (4096).to_bytes(8, "little") * 2
    rig.ok(op.REMOVEMAPPING, 1, (2,), (), pair * 2)
    assert rig.fs.log[-1] == ("removemapping", [(4096, 4096)] * 2)
    assert rig.error(op.REMOVEMAPPING, 1, (3,), (), pair * 2) == errno.EINVAL


@pytest.mark.parametrize(
    "attr",
    [
        {"valid": FATTR_SIZE, "size": 1 << 63}, {"valid": FATTR_MODE, "mode": 1 << 20},
        {"valid": FATTR_UID, "uid": 0xFFFFFFFF}, {"valid": FATTR_MTIME, "mtimensec": 1_000_000_000},
    ],
)  # fmt: skip
def test_setattr_refuses(attr):
    assert Rig().error(op.SETATTR, 1, setattr_in(**attr)) == errno.EINVAL


def test_setattr_ignores_what_is_not_valid():
    Rig().ok(op.SETATTR, 1, setattr_in(valid=FATTR_MTIME | FATTR_MTIME_NOW, mtimensec=1 << 31, size=1 << 63))


def test_dot_is_looked_up_only_with_export_support():
    assert Rig().error(op.LOOKUP, 1, (), (b"..",)) == errno.EINVAL
    assert Rig(InitOptions(export_support=True)).ok(op.LOOKUP, 1, (), (b"..",)).nodeid == 1


def test_destroy_and_second_init():
    rig = Rig()
    nodeid, _ = rig.create()
    used, _ = rig.raw(client.encode(op.DESTROY, 77, 0, 0, 0, 0), 64)
    assert used == 0
    assert not rig.session.state.initialized
    assert rig.error(op.GETATTR, 1, (0, 0, 0)) == errno.EBADF
    rig.call(op.FORGET, nodeid, (1,))
    rig.init()
    rig.create(b"g")
    rig.init()
    assert rig.fs.log[-2:] == ["destroy", "init"]
    assert rig.error(op.LOOKUP, 1, (), (b"g",)) == errno.ENOENT


def test_an_init_that_fails_leaves_the_session_alone():
    rig = Rig()
    rig.create()
    assert rig.init(minor=26).error == errno.EPROTO
    assert rig.init(major=8).body.major == 7
    assert rig.ok(op.LOOKUP, 1, (), (b"f",)).nodeid == 2


def test_a_file_system_that_refuses_init():
    class Refusing(FileSystem):
        def init(self, ctx, negotiated):
            raise OSError(errno.EROFS, "no")

    rig = Rig(fs=Refusing(), init=False)
    assert rig.init().error == errno.EROFS
    assert rig.error(op.GETATTR, 1, (0, 0, 0)) == errno.EBADF


def test_faults_become_eio_and_are_reported():
    class Broken(FileSystem):
        def getattr(self, ctx, nodeid, fh):
            raise ZeroDivisionError

        def lookup(self, ctx, parent, name):
            return (1, 2)

        def statfs(self, ctx, nodeid):
            raise OSError

    rig = Rig(fs=Broken())
    for opcode, names in ((op.GETATTR, ()), (op.LOOKUP, (b"x",)), (op.STATFS, ())):
        args = (0, 0, 0) if opcode == op.GETATTR else ()
        request = client.encode(opcode, 5, 1, 0, 0, 0, args, names)
        used, reply = rig.raw(request, 200)
        assert client.decode(opcode, bytes(reply[:used]), 5).error == errno.EIO
    assert [opcode for _, opcode in rig.faults] == [op.GETATTR, op.LOOKUP]


def test_saved_and_restored_sessions_read_the_same_requests():
    """Defects D1 and D2 of virtiofsd: what INIT agreed on must come along."""
    options = InitOptions(posix_acl=True, security_label=True)
    source = Rig(options)
    rig = Rig(options, init=False)
    rig.session.restore(source.session.save())
    assert rig.session.state == source.session.state
    assert rig.fs.log == ["adopt"]
    rig.ok(op.SETXATTR, 1, (5, 1, 1, 0), (b"user.x",), b"value")
    assert rig.fs.log[-1] == ("setxattr", 1, 1)
    extensions = client.encode_extensions((1000,), [(b"security.selinux", b"label")])
    rig.ok(op.CREATE, 1, (2, 0o644, 0, 0), (b"f",), extensions=extensions)
    assert rig.fs.log[-1] == ((1000,), ((b"security.selinux", b"label"),))


def test_a_session_that_this_server_cannot_go_on_with():
    state = Rig(InitOptions(writeback=True)).session.save()
    with pytest.raises(StreamError) as caught:
        Rig(init=False).session.restore(state)
    assert "WRITEBACK_CACHE" in str(caught.value)
    assert "writeback" in caught.value.hint
    Rig(InitOptions(writeback=True), init=False).session.restore(state)


def test_a_session_before_init_is_restored_as_such():
    rig = Rig(init=False)
    rig.session.restore(Rig(init=False).session.save())
    assert rig.error(op.GETATTR, 1, (0, 0, 0)) == errno.EBADF
    rig.init()
    rig.ok(op.GETATTR, 1, (0, 0, 0))


def test_flags_are_kept_as_negotiated():
    rig = Rig(InitOptions(posix_locks=True), offer=flag.POSIX_LOCKS | flag.INIT_EXT)
    assert rig.session.state.flags == flag.POSIX_LOCKS | flag.INIT_EXT
    assert rig.fs.negotiated == rig.session.state
