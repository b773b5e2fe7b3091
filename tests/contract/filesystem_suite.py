"""What every FileSystem must do, driven through a session. ``make()`` gives an empty writable file system.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check(make)
"""

from __future__ import annotations

import errno
import stat

from tests.support.fuse_rig import Rig
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import FATTR_MODE, FATTR_SIZE
from vmsim.fuse.abi.requests import SetattrIn

NO_SUCH_NODE = 1 << 40


def setattr_in(**fields):
    return SetattrIn(*[0] * 16)._replace(**fields)


def read(rig, nodeid, fh, offset=0, size=4096):
    return rig.ok(op.READ, nodeid, (fh, offset, size, 0, 0, 0, 0), size=size)


def check_root(make):
    rig = Rig(fs=make())
    attr = rig.ok(op.GETATTR, 1, (0, 0, 0))
    assert stat.S_ISDIR(attr.mode)
    assert rig.error(op.LOOKUP, 1, (), (b"missing",)) == errno.ENOENT


def check_a_node_keeps_its_id(make):
    rig = Rig(fs=make())
    made = rig.ok(op.MKDIR, 1, (0o755, 0), (b"d",))
    assert made.nodeid > 1
    assert rig.ok(op.LOOKUP, 1, (), (b"d",)).nodeid == made.nodeid
    assert rig.error(op.MKDIR, 1, (0o755, 0), (b"d",)) == errno.EEXIST
    assert rig.ok(op.GETATTR, made.nodeid, (0, 0, 0)).ino == made.ino


def check_write_and_read(make):
    rig = Rig(fs=make())
    nodeid, fh = rig.create(data=b"hello, world")
    assert read(rig, nodeid, fh) == b"hello, world"
    assert read(rig, nodeid, fh, 7, 3) == b"wor"
    assert read(rig, nodeid, fh, 100) == b""
    assert rig.ok(op.WRITE, nodeid, (fh, 14, 2, 0, 0, 0, 0), (), b"!!", reply_cuts=(3,)).size == 2
    assert read(rig, nodeid, fh, 10, 6) == b"ld\0\0!!"
    assert rig.ok(op.GETATTR, nodeid, (1, 0, fh)).size == 16


def check_scattered_data(make):
    rig = Rig(fs=make())
    data = bytes(range(256)) * 40
    nodeid, fh = rig.create()
    args = (fh, 0, len(data), 0, 0, 0, 0)
    assert rig.ok(op.WRITE, nodeid, args, (), data, cuts=(40, 41, 1000, 4096)).size == len(data)
    assert rig.ok(op.READ, nodeid, args, size=len(data), reply_cuts=(16, 1, 4096, 100)) == data


def check_setattr(make):
    rig = Rig(fs=make())
    nodeid, fh = rig.create(data=b"hello")
    assert rig.ok(op.SETATTR, nodeid, setattr_in(valid=FATTR_SIZE, size=2)).size == 2
    assert read(rig, nodeid, fh) == b"he"
    mode = stat.S_IFREG | 0o600
    assert rig.ok(op.SETATTR, nodeid, setattr_in(valid=FATTR_MODE, mode=mode)).mode == mode


def check_a_handle_belongs_to_its_node(make):
    rig = Rig(fs=make())
    one, fh_one = rig.create(b"one")
    two, _ = rig.create(b"two")
    args = (fh_one, 0, 8, 0, 0, 0, 0)
    assert rig.error(op.READ, two, args, size=8) == errno.EBADF
    assert rig.error(op.READ, one, (fh_one + 1000, *args[1:]), size=8) == errno.EBADF
    rig.ok(op.RELEASE, one, (fh_one, 0, 0, 0))
    assert rig.error(op.READ, one, args, size=8) == errno.EBADF


def check_unknown_nodes(make):
    rig = Rig(fs=make())
    assert rig.error(op.GETATTR, NO_SUCH_NODE, (0, 0, 0)) == errno.EBADF
    assert rig.error(op.LOOKUP, NO_SUCH_NODE, (), (b"x",)) == errno.EBADF
    assert rig.error(op.MKDIR, NO_SUCH_NODE, (0o755, 0), (b"x",)) == errno.EBADF


def check_rename_unlink_link(make):
    rig = Rig(fs=make())
    nodeid, fh = rig.create(b"a", b"data")
    rig.ok(op.LINK, 1, (nodeid,), (b"b",))
    rig.ok(op.RENAME, 1, (1,), (b"a", b"c"))
    assert rig.error(op.LOOKUP, 1, (), (b"a",)) == errno.ENOENT
    assert rig.ok(op.LOOKUP, 1, (), (b"c",)).nodeid == nodeid
    rig.ok(op.UNLINK, 1, (), (b"b",))
    rig.ok(op.UNLINK, 1, (), (b"c",))
    assert rig.error(op.UNLINK, 1, (), (b"c",)) == errno.ENOENT
    assert read(rig, nodeid, fh) == b"data"


def check_symlinks(make):
    rig = Rig(fs=make())
    made = rig.ok(op.SYMLINK, 1, (), (b"s", b"/anywhere/else"))
    assert stat.S_ISLNK(made.mode)
    assert rig.ok(op.READLINK, made.nodeid) == b"/anywhere/else"


def check_directory_positions(make):
    """Small buffers, and starting again from any position, give every name exactly once."""
    rig = Rig(fs=make())
    names = {b"name-%03d" % index for index in range(50)}
    for name in names:
        rig.ok(op.MKDIR, 1, (0o755, 0), (name,))
    fh = rig.ok(op.OPENDIR, 1, (0, 0)).fh
    seen, offset = [], 0
    while body := rig.ok(op.READDIR, 1, (fh, offset, 180, 0, 0, 0, 0), size=180):
        entries = list(client.decode_dirents(body))
        half = entries[: max(1, len(entries) // 2)]
        seen += [name for _, name in half]
        offset = half[-1][0].off
    assert sorted(set(seen) - {b".", b".."}) == sorted(names)
    assert len(seen) == len(set(seen))
    rig.ok(op.RELEASEDIR, 1, (fh, 0, 0, 0))


def check_a_buffer_without_room_for_one_entry(make):
    """EINVAL as getdents(2): an empty reply would be the end of the directory."""
    rig = Rig(fs=make())
    rig.ok(op.MKDIR, 1, (0o755, 0), (b"a-directory",))
    fh = rig.ok(op.OPENDIR, 1, (0, 0)).fh
    for opcode in (op.READDIR, op.READDIRPLUS):
        assert rig.error(opcode, 1, (fh, 0, 20, 0, 0, 0, 0), size=20) == errno.EINVAL
        assert rig.ok(opcode, 1, (fh, 0, 0, 0, 0, 0, 0), size=0) == b""
        assert b"a-directory" in rig.ok(opcode, 1, (fh, 0, 4096, 0, 0, 0, 0), size=4096)


def check_readdirplus_looks_up(make):
    rig = Rig(fs=make())
    made = rig.ok(op.MKDIR, 1, (0o755, 0), (b"d",))
    fh = rig.ok(op.OPENDIR, 1, (0, 0)).fh
    body = rig.ok(op.READDIRPLUS, 1, (fh, 0, 4096, 0, 0, 0, 0), size=4096)
    found = {name: entry for entry, _, name in client.decode_direntplus(body)}
    assert found[b"d"].nodeid == made.nodeid
    for name in (b".", b".."):
        assert name not in found or found[name].nodeid == 0


def check_forget_cannot_hurt(make):
    """More FORGETs than lookups, also of the root and of nodes that never were."""
    rig = Rig(fs=make())
    nodeid, _ = rig.create()
    for victim in (1, nodeid, nodeid, NO_SUCH_NODE):
        rig.call(op.FORGET, victim, ((1 << 64) - 1,))
    assert rig.ok(op.GETATTR, 1, (0, 0, 0)).ino
    assert rig.ok(op.LOOKUP, 1, (), (b"f",)).nodeid > 1


def check_a_new_session_starts_afresh(make):
    rig = Rig(fs=make())
    nodeid, fh = rig.create()
    rig.init()
    assert rig.error(op.GETATTR, nodeid, (1, 0, fh)) == errno.EBADF
    rig.call(op.DESTROY, 0)
    assert rig.error(op.GETATTR, 1, (0, 0, 0)) == errno.EBADF
    rig.init()
    assert rig.ok(op.GETATTR, 1, (0, 0, 0)).ino


def check_statfs(make):
    st = Rig(fs=make()).ok(op.STATFS, 1)
    assert st.namelen == 255
    assert st.bsize
    assert st.blocks >= st.bfree


CHECKS = [function for name, function in list(globals().items()) if name.startswith("check_")]
