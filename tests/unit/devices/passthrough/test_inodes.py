"""Nodeids, lookup counts, and inodes that are found again after their descriptor was given up."""

from __future__ import annotations

import errno
import os

import pytest

from devices.virtio_fs.options import FsOptions
from devices.virtio_fs.passthrough.fs import PassthroughFs
from tests.support.direct_fs import refused
from tests.unit.devices.passthrough.helpers import HANDLES
from vmsim.errors import UsageError
from vmsim.fuse import opcodes as op
from vmsim.host.fs import LinuxFs

MODES = ["never", *(["mandatory"] if HANDLES else [])]


def lookup(fs, name, parent=1):
    return fs.ask(op.LOOKUP, parent, (), (name,)).nodeid


def size_of(fs, node):
    return fs.ask(op.GETATTR, node, (0, 0, 0)).size


def crowd_out(fs, share, count=64):
    """Look up so many files that every other inode loses its descriptor."""
    for n in range(count):
        (share / f"crowd{n}").touch()
        lookup(fs, b"crowd%d" % n)


def test_counts(fs, share):
    (share / "a").touch()
    node = lookup(fs, b"a")
    assert lookup(fs, b"a") == node
    inode = fs.fs.inodes.get(node)
    assert inode.nlookup == 2
    fs.rig.call(op.FORGET, node, (1,))
    assert fs.fs.inodes.get(node) is inode
    fs.rig.call(op.BATCH_FORGET, 0, (1, 0), data=node.to_bytes(8, "little") + (1).to_bytes(8, "little"))
    assert fs.fs.inodes.get(node) is None
    again = lookup(fs, b"a")
    assert again > node


def test_forget_stops_at_zero_and_spares_the_root(fs, share):
    (share / "a").touch()
    node = lookup(fs, b"a")
    fs.rig.call(op.FORGET, node, (2**64 - 1,))
    fs.rig.call(op.FORGET, node, (1,))
    fs.rig.call(op.FORGET, 1, (2**64 - 1,))
    with refused(errno.EBADF):
        size_of(fs, node)
    assert fs.lstat("/").st_ino == share.stat().st_ino


def test_every_way_in_counts(fs, share):
    """All entry replies count, READDIRPLUS without '.' and '..'; nothing else does."""
    (share / "a").touch()
    fs.symlink("x", "/s")
    fs.link("/a", "/b")
    fs.mkdir("/d")
    fs.mkfifo("/p")
    fs.close(fs.open("/c", os.O_CREAT | os.O_RDWR))
    assert len(fs.fs.inodes) == 1
    fh = fs.ask(op.OPENDIR, 1, (0, 0)).fh
    fs.ask(op.READDIRPLUS, 1, (fh, 0, 4096, 0, 0, 0, 0), size=4096)
    # a and b are one inode with two lookups.
    assert sorted(inode.nlookup for inode in fs.fs.inodes if inode.id != 1) == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("mode", MODES)
def test_found_again_without_descriptor(serve, share, mode):
    fs = serve(inode_fds=16, inode_file_handles=mode)
    (share / "d" / "e").mkdir(parents=True)
    (share / "d" / "e" / "f").write_bytes(b"123")
    node = lookup(fs, b"f", lookup(fs, b"e", lookup(fs, b"d")))
    crowd_out(fs, share)
    assert fs.fs.inodes.get(node).fd < 0
    assert len(fs.fs.fds) <= 16
    assert size_of(fs, node) == 3
    crowd_out(fs, share)
    assert lookup(fs, b"f", lookup(fs, b"e", lookup(fs, b"d"))) == node


@pytest.mark.parametrize("mode", MODES)
def test_an_impostor_is_never_served(serve, share, mode):
    fs = serve(inode_fds=16, inode_file_handles=mode)
    (share / "a").write_bytes(b"real")
    node = lookup(fs, b"a")
    crowd_out(fs, share)
    os.unlink(share / "a")
    (share / "a").write_bytes(b"impostor")
    with refused(errno.ESTALE):
        size_of(fs, node)
    new = lookup(fs, b"a")
    assert new != node
    assert size_of(fs, new) == len(b"impostor")


def test_a_reused_inode_number_is_another_inode(serve, share):
    """ext4 gives a freed number to the next file; without comparing generations it would be the old one."""
    fs = serve(inode_fds=16, inode_file_handles="never")
    (share / "a").write_bytes(b"old")
    number = (share / "a").stat().st_ino
    node = lookup(fs, b"a")
    crowd_out(fs, share)
    os.unlink(share / "a")
    for n in range(64):
        path = share / f"new{n}"
        path.write_bytes(b"x" * n)
        if path.stat().st_ino == number:
            break
    else:
        pytest.skip("this file system does not give inode numbers again")
    path.rename(share / "a")
    with refused(errno.ESTALE):
        size_of(fs, node)
    assert lookup(fs, b"a") != node


@pytest.mark.parametrize("mode", MODES)
def test_renamed_by_somebody_else(serve, share, mode):
    fs = serve(inode_fds=16, inode_file_handles=mode)
    (share / "d").mkdir()
    (share / "d" / "a").write_bytes(b"12345")
    (share / "far" / "away").mkdir(parents=True)
    node = lookup(fs, b"a", lookup(fs, b"d"))
    crowd_out(fs, share)
    os.rename(share / "d" / "a", share / "far" / "away" / "b")
    (share / "d" / "a").write_bytes(b"other")
    assert size_of(fs, node) == 5
    crowd_out(fs, share)
    os.rename(share / "far" / "away" / "b", share / "d" / "c")
    assert size_of(fs, node) == 5


def test_search_is_bounded(serve, share):
    fs = serve(inode_fds=16, inode_file_handles="never", search_entries=10)
    (share / "a").write_bytes(b"1")
    (share / "d").mkdir()
    node = lookup(fs, b"a")
    crowd_out(fs, share)
    os.rename(share / "a", share / "d" / "a")
    with refused(errno.ESTALE):
        size_of(fs, node)


def test_hints_that_form_a_circle_end(serve, share):
    fs = serve(inode_fds=16, inode_file_handles="never")
    (share / "d" / "e").mkdir(parents=True)
    outer = lookup(fs, b"d")
    inner = lookup(fs, b"e", outer)
    crowd_out(fs, share)
    os.rename(share / "d" / "e", share / "x")
    os.rename(share / "d", share / "x" / "y")
    table = fs.fs.inodes
    table.get(outer).parent_id, table.get(outer).name = inner, b"y"
    assert fs.ask(op.GETATTR, inner, (0, 0, 0)).ino == (share / "x").stat().st_ino
    assert fs.ask(op.GETATTR, outer, (0, 0, 0)).ino == (share / "x" / "y").stat().st_ino


@pytest.mark.parametrize("mode", MODES)
def test_unlinked_nodes_stay_reachable(serve, share, mode):
    """Even without any open file, as long as the guest knows the node (a removed working directory)."""
    fs = serve(inode_fds=16, inode_file_handles=mode)
    (share / "a").write_bytes(b"1234")
    (share / "d").mkdir()
    node, directory = lookup(fs, b"a"), lookup(fs, b"d")
    crowd_out(fs, share)
    fs.ask(op.UNLINK, 1, (), (b"a",))
    fs.ask(op.RMDIR, 1, (), (b"d",))
    crowd_out(fs, share)
    assert size_of(fs, node) == 4
    assert fs.ask(op.GETATTR, directory, (0, 0, 0)).nlink == 0


def test_no_more_descriptors_is_enfile(serve, share):
    fs = serve(inode_fds=16)
    nodes = []
    for n in range(16):
        (share / f"u{n}").touch()
        nodes.append(lookup(fs, b"u%d" % n))
        fs.ask(op.UNLINK, 1, (), (b"u%d" % n,))
    (share / "one").touch()
    with refused(errno.ENFILE):
        lookup(fs, b"one")
    fs.forget(nodes[:1])
    lookup(fs, b"one")


def test_depth_does_not_matter(serve, share):
    """A thousand levels deep, with sixteen descriptors, without any recursion."""
    fs = serve(inode_fds=16, inode_file_handles="never")
    node, nodes = 1, []
    for _ in range(1200):
        node = fs.ask(op.MKDIR, node, (0o755, 0), (b"d",)).nodeid
        nodes.append(node)
    try:
        assert fs.ask(op.GETATTR, node, (0, 0, 0)).nlink == 2
        assert len(fs.fs.fds) <= 16
    finally:
        for parent, child in reversed(list(zip([1, *nodes], nodes, strict=False))):
            fs.ask(op.RMDIR, parent, (), (b"d",))
            fs.forget([child])


def test_too_many_open_files(serve, share):
    fs = serve(guest_fds=4)
    (share / "a").touch()
    node = lookup(fs, b"a")
    handles = [fs.ask(op.OPEN, node, (0, 0)).fh for _ in range(4)]
    assert handles == [0, 1, 2, 3]
    with refused(errno.ENFILE):
        fs.ask(op.OPEN, node, (0, 0))
    fs.ask(op.RELEASE, node, (handles[0], 0, 0, 0))
    assert fs.ask(op.OPEN, node, (0, 0)).fh == 4


def test_a_new_session_begins_with_the_root(fs, share):
    (share / "a").touch()
    node = lookup(fs, b"a")
    fs.ask(op.OPEN, node, (0, 0))
    fs.rig.init()
    assert [inode.id for inode in fs.fs.inodes] == [1]
    assert len(fs.fs.handles) == 0
    assert lookup(fs, b"a") == 2


def test_destroy(fs, share):
    (share / "a").touch()
    node = lookup(fs, b"a")
    fs.ask(op.OPEN, node, (0, 0))
    fs.rig.call(op.DESTROY)
    with refused(errno.EBADF):
        size_of(fs, 1)


@pytest.mark.skipif(HANDLES, reason="this process may open by handle")
def test_mandatory_handles_need_privilege(share):
    with pytest.raises(UsageError, match="CAP_DAC_READ_SEARCH"):
        PassthroughFs(LinuxFs(), share, FsOptions(inode_file_handles="mandatory"))


def test_a_share_that_is_no_directory(share):
    (share / "a").touch()
    with pytest.raises(NotADirectoryError):
        PassthroughFs(LinuxFs(), share / "a")
