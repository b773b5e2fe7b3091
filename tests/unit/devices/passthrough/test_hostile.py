"""What a hostile guest sends gets an errno, stays beneath the share, and leaves the server alive."""

from __future__ import annotations

import errno
import os
import socket
import stat

import pytest

from tests.support.direct_fs import refused, setattr_args
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import flags as f

BAD_NAMES = (b"..", b".", b"a/b", b"../esc", b"/etc", b"a/../../esc")
FAR = 2**63


def lookup(fs, name, parent=1):
    return fs.ask(op.LOOKUP, parent, (), (name,)).nodeid


@pytest.fixture
def outside(share):
    """Something beside the share that must never be seen or changed."""
    path = share.parent / "outside"
    path.mkdir()
    (path / "secret").write_bytes(b"secret")
    return path


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_of_more_than_one_component(fs, share, outside, name):
    (share / "a").mkdir()
    (share / "file").touch()
    before = sorted(os.listdir(share.parent))
    ctx_calls = [
        lambda: fs.fs.lookup(None, 1, name),
        lambda: fs.fs.mkdir(None, 1, name, 0o755, 0),
        lambda: fs.fs.mknod(None, 1, name, 0o100644, 0, 0),
        lambda: fs.fs.symlink(None, 1, name, b"x"),
        lambda: fs.fs.create(None, 1, name, os.O_RDWR, 0o644, 0, 0),
        lambda: fs.fs.unlink(None, 1, name),
        lambda: fs.fs.rmdir(None, 1, name),
        lambda: fs.fs.rename(None, 1, b"file", 1, name, 0),
        lambda: fs.fs.rename(None, 1, name, 1, b"x", 0),
        lambda: fs.fs.link(None, lookup(fs, b"file"), 1, name),
    ]
    for call in ctx_calls:
        with refused(errno.EINVAL):
            call()
    assert sorted(os.listdir(share.parent)) == before


def test_symlinks_are_not_followed(fs, share, outside):
    (share / "link").symlink_to(outside)
    node = lookup(fs, b"link")
    assert stat.S_ISLNK(fs.ask(op.GETATTR, node, (0, 0, 0)).mode)
    with refused(errno.ENOTDIR):
        lookup(fs, b"secret", node)
    with refused(errno.ENOTDIR):
        fs.ask(op.OPENDIR, node, (0, 0))
    with refused(errno.EBADF):
        fs.ask(op.OPEN, node, (0, 0))
    (share / "file").symlink_to(outside / "secret")
    with refused(errno.EBADF):
        fs.ask(op.CREATE, 1, (os.O_RDWR, 0o644, 0, 0), (b"file",))
    assert (outside / "secret").read_bytes() == b"secret"


def test_special_files_are_never_opened(fs, share):
    os.mkfifo(share / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(share)
        try:
            server.bind("sock")
        finally:
            os.chdir(here)
    for name in (b"fifo", b"sock"):
        node = lookup(fs, name)
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_NONBLOCK, os.O_PATH):
            with refused(errno.EBADF):
                fs.ask(op.OPEN, node, (flags, 0))
            with refused(errno.EBADF):
                fs.ask(op.CREATE, 1, (flags, 0o644, 0, 0), (name,))
        with refused(errno.EINVAL):
            fs.ask(op.SETATTR, node, setattr_args(f.FATTR_SIZE, size=1))


def test_offsets_and_sizes(fs, share):
    (share / "a").write_bytes(b"0123")
    node = lookup(fs, b"a")
    fh = fs.ask(op.OPEN, node, (os.O_RDWR, 0)).fh
    for offset in (FAR, 2**64 - 1):
        for opcode, args, data in (
            (op.WRITE, (fh, offset, 1, 0, 0, 0, 0), b"x"),
            (op.READ, (fh, offset, 1, 0, 0, 0, 0), b""),
            (op.FALLOCATE, (fh, offset, 1, 0, 0), b""),
        ):
            answer = fs.rig.call(opcode, node, args, data=data, size=16)
            assert answer.error in (errno.EINVAL, errno.EFBIG)
            assert not fs.rig.faults
    for call in (
        lambda: fs.fs.write(None, node, fh, FAR, [memoryview(b"x")], 1, 0, 0, None),
        lambda: fs.fs.read(None, node, fh, FAR, [memoryview(bytearray(1))], 0, None),
        lambda: fs.fs.lseek(None, node, fh, FAR, 0),
        lambda: fs.fs.lseek(None, node, fh, 0, 99),
        lambda: fs.fs.lseek(None, node, fh, -1, 0),
        lambda: fs.fs.copy_file_range(None, node, fh, FAR, node, fh, 0, 1, 0),
        lambda: fs.fs.copy_file_range(None, node, fh, 0, node, fh, 0, 1, 7),
    ):
        with refused(errno.EINVAL):
            call()
    with refused(errno.EINVAL):
        fs.ask(op.SETATTR, node, setattr_args(f.FATTR_SIZE, size=FAR))
    assert (share / "a").read_bytes() == b"0123"


def test_more_pieces_than_the_kernel_takes(fs, share):
    (share / "a").touch()
    node = lookup(fs, b"a")
    fh = fs.ask(op.OPEN, node, (os.O_RDWR, 0)).fh
    data = bytes(n % 251 for n in range(3000))
    pieces = [memoryview(data)[n : n + 1] for n in range(3000)]
    assert fs.fs.write(None, node, fh, 5, pieces, 3000, 0, 0, None) == 3000
    assert (share / "a").read_bytes() == bytes(5) + data
    target = bytearray(4000)
    pieces = [memoryview(target)[n : n + 1] for n in range(4000)]
    assert fs.fs.read(None, node, fh, 5, pieces, 0, None) == 3000
    assert target == data + bytes(1000)


def test_handles_belong_to_their_node(fs, share):
    (share / "a").write_bytes(b"a")
    (share / "b").write_bytes(b"b")
    a, b = lookup(fs, b"a"), lookup(fs, b"b")
    fh = fs.ask(op.OPEN, a, (os.O_RDWR, 0)).fh
    for node, handle in ((b, fh), (a, fh + 1), (99, fh), (a, 2**64 - 1)):
        for opcode, args, data in (
            (op.READ, (handle, 0, 1, 0, 0, 0, 0), b""),
            (op.WRITE, (handle, 0, 1, 0, 0, 0, 0), b"x"),
            (op.GETATTR, (1, 0, handle), b""),
            (op.RELEASE, (handle, 0, 0, 0), b""),
            (op.FSYNC, (handle, 0, 0), b""),
            (op.FLUSH, (handle, 0, 0, 0), b""),
            (op.READDIR, (handle, 0, 512, 0, 0, 0, 0), b""),
            (op.POLL, (handle, 0, 0, 1), b""),
        ):
            assert fs.rig.call(opcode, node, args, data=data, size=512).error == errno.EBADF
    assert (share / "b").read_bytes() == b"b"


def test_directories_and_files_are_not_mixed_up(fs, share):
    (share / "a").touch()
    (share / "d").mkdir()
    a, d = lookup(fs, b"a"), lookup(fs, b"d")
    file_fh = fs.ask(op.OPEN, a, (0, 0)).fh
    dir_fh = fs.ask(op.OPENDIR, d, (0, 0)).fh
    with refused(errno.EISDIR):
        fs.ask(op.OPEN, d, (0, 0))
    with refused(errno.ENOTDIR):
        fs.ask(op.OPENDIR, a, (0, 0))
    with refused(errno.ENOTDIR):
        fs.ask(op.READDIR, a, (file_fh, 0, 512, 0, 0, 0, 0), size=512)
    with refused(errno.EISDIR):
        fs.ask(op.READ, d, (dir_fh, 0, 8, 0, 0, 0, 0), size=8)
    with refused(errno.EINVAL):
        fs.ask(op.LSEEK, d, (dir_fh, 0, 0, 0))
    with refused(errno.EINVAL):
        fs.ask(op.OPEN, a, (os.O_ACCMODE, 0))


def test_the_guests_flags_cannot_create_or_truncate_elsewhere(fs, share):
    (share / "a").write_bytes(b"data")
    node = lookup(fs, b"a")
    fs.ask(op.OPEN, node, (os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECTORY | os.O_NOFOLLOW, 0))
    with refused(errno.EBADF):
        fs.ask(op.OPEN, 77, (os.O_TRUNC, 0))
    assert (share / "a").read_bytes() == b"data"


def test_ioctls_are_few(fs, share):
    (share / "a").touch()
    node = lookup(fs, b"a")
    fh = fs.ask(op.OPEN, node, (os.O_RDWR, 0)).fh
    for cmd in (0x5401, 0x00000001, 0xC020660B, 0x80086603):
        with refused(errno.ENOTTY):
            fs.ask(op.IOCTL, node, (fh, 0, cmd, 0, 0, 64), size=64)
    with refused(errno.EINVAL):
        fs.ask(op.IOCTL, node, (fh, 0, 0x80086601, 0, 0, 2), size=2)


def test_readonly(serve, share):
    fs = serve(readonly=True)
    (share / "a").write_bytes(b"data")
    (share / "d").mkdir()
    node = lookup(fs, b"a")
    fh = fs.ask(op.OPEN, node, (os.O_RDONLY, 0)).fh
    assert fs.ask(op.READ, node, (fh, 0, 8, 0, 0, 0, 0), size=8) == b"data"
    for call in (
        lambda: fs.ask(op.OPEN, node, (os.O_RDWR, 0)),
        lambda: fs.ask(op.OPEN, node, (os.O_TRUNC, 0)),
        lambda: fs.ask(op.CREATE, 1, (os.O_RDONLY, 0o644, 0, 0), (b"new",)),
        lambda: fs.mkdir("/new"),
        lambda: fs.mkfifo("/new"),
        lambda: fs.symlink("x", "/new"),
        lambda: fs.link("/a", "/new"),
        lambda: fs.unlink("/a"),
        lambda: fs.rmdir("/d"),
        lambda: fs.rename("/a", "/b"),
        lambda: fs.chmod("/a", 0o600),
        lambda: fs.truncate("/a", 0),
        lambda: fs.setxattr("/a", "user.x", b"1"),
        lambda: fs.removexattr("/a", "user.x"),
        lambda: fs.ask(op.ACCESS, node, (os.W_OK, 0)),
    ):
        with refused(errno.EROFS):
            call()
    assert sorted(os.listdir(share)) == ["a", "d"]
