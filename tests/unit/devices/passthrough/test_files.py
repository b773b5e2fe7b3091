"""Open flags, appending, caching, and what else belongs to open files."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat

import pytest

from tests.support.direct_fs import refused, setattr_args
from tests.unit.devices.passthrough.helpers import PRIVILEGED, needs_privilege
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import flags as f

NOBODY = 0xFFFFFFFF
"""The caller's id where Linux tells none, since id-mapped mounts are allowed."""


def open_file(fs, flags, name=b"a", open_flags=0):
    node = fs.ask(op.LOOKUP, 1, (), (name,)).nodeid
    return node, fs.ask(op.OPEN, node, (flags, open_flags)).fh


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def write(fs, node, fh, offset, data, flags=0, write_flags=0):
    return fs.ask(op.WRITE, node, (fh, offset, len(data), write_flags, 0, flags, 0), (), data).size


def read(fs, node, fh, size=64):
    return fs.ask(op.READ, node, (fh, 0, size, 0, 0, 0, 0), size=size)


def host_flags(fs, fh):
    return fcntl.fcntl(fs.fs.handles.get(fh).fd, fcntl.F_GETFL)


def test_effective_flags_are_recorded(fs, share):
    (share / "a").write_bytes(b"data")
    asked = os.O_WRONLY | os.O_APPEND | os.O_NOATIME | os.O_DIRECT | os.O_TRUNC | os.O_NONBLOCK
    _, fh = open_file(fs, asked)
    handle = fs.fs.handles.get(fh)
    assert handle.guest_flags == asked
    assert handle.flags == os.O_WRONLY | os.O_NONBLOCK
    assert host_flags(fs, fh) & (os.O_ACCMODE | os.O_APPEND | os.O_NOATIME | os.O_DIRECT) == os.O_WRONLY
    assert (share / "a").read_bytes() == b""


def test_writeback_reads_through_handles_for_writing(serve, share):
    fs = serve(writeback=True)
    (share / "a").write_bytes(b"data")
    node, fh = open_file(fs, os.O_WRONLY)
    assert fs.fs.handles.get(fh).flags == os.O_RDWR
    assert fs.fs.handles.get(fh).guest_flags == os.O_WRONLY
    assert read(fs, node, fh) == b"data"
    made = fs.ask(op.CREATE, 1, (os.O_WRONLY, 0o644, 0, 0), (b"new",))
    assert fs.fs.handles.get(made.fh).flags == os.O_RDWR


@pytest.mark.skipif(PRIVILEGED, reason="nothing is unreadable with privilege")
def test_writeback_of_an_unreadable_file(serve, share):
    fs = serve(writeback=True)
    (share / "a").touch(0o200)
    _, fh = open_file(fs, os.O_WRONLY)
    assert fs.fs.handles.get(fh).flags == os.O_WRONLY


def test_append_is_done_write_by_write(fs, share):
    (share / "a").write_bytes(b"12")
    node, fh = open_file(fs, os.O_RDWR | os.O_APPEND)
    with open(share / "a", "ab") as other:
        other.write(b"34")
    write(fs, node, fh, 2, b"56", os.O_APPEND)
    assert (share / "a").read_bytes() == b"123456"
    write(fs, node, fh, 0, b"C", os.O_APPEND, f.WRITE_CACHE)
    write(fs, node, fh, 1, b"D", 0)
    assert (share / "a").read_bytes() == b"CD3456"


def test_writeback_never_appends(serve, share):
    fs = serve(writeback=True)
    made = fs.ask(op.CREATE, 1, (os.O_RDWR | os.O_APPEND, 0o644, 0, 0), (b"a",))
    write(fs, made.nodeid, made.fh, 0, b"AAAA", os.O_APPEND)
    write(fs, made.nodeid, made.fh, 0, b"BB", os.O_APPEND)
    assert (share / "a").read_bytes() == b"BBAA"


def test_create(fs, share):
    made = fs.ask(op.CREATE, 1, (os.O_RDWR, 0o100640, 0o77, 0), (b"a",))
    write(fs, made.nodeid, made.fh, 0, b"x")
    assert stat.S_IMODE((share / "a").stat().st_mode) == 0o640
    again = fs.ask(op.CREATE, 1, (os.O_RDWR | os.O_TRUNC, 0o600, 0, 0), (b"a",))
    assert again.nodeid == made.nodeid
    assert again.size == 0
    with refused(errno.EEXIST):
        fs.ask(op.CREATE, 1, (os.O_RDWR | os.O_EXCL, 0o600, 0, 0), (b"a",))
    assert fs.fs.inodes.get(made.nodeid).nlookup == 2


def test_create_onto_a_directory_leaves_no_trace(fs, share):
    (share / "d").mkdir()
    with refused(errno.EISDIR):
        fs.ask(op.CREATE, 1, (os.O_RDWR, 0o600, 0, 0), (b"d",))
    assert [inode.id for inode in fs.fs.inodes] == [1]


def test_process_umask_does_not_matter(fs, share, set_umask):
    set_umask(0o77)
    fs.ask(op.MKDIR, 1, (0o755, 0), (b"d",))
    fs.ask(op.CREATE, 1, (os.O_RDWR, 0o666, 0, 0), (b"a",))
    fs.ask(op.MKNOD, 1, (0o100666, 0, 0, 0), (b"n",))
    assert set_umask(0) == 0o77
    modes = [stat.S_IMODE((share / name).stat().st_mode) for name in ("d", "a", "n")]
    assert modes == [0o755, 0o666, 0o666]


def test_umask_counts_with_posix_acl(serve, share):
    fs = serve(posix_acl=True)
    fs.ask(op.MKDIR, 1, (0o777, 0o27), (b"d",))
    assert stat.S_IMODE((share / "d").stat().st_mode) == 0o750


def test_tmpfile(fs, share):
    try:
        made = fs.ask(op.TMPFILE, 1, (os.O_RDWR, 0o600, 0, 0), (b"",))
    except OSError as error:
        pytest.skip(f"no O_TMPFILE here: {error}")
    write(fs, made.nodeid, made.fh, 0, b"data")
    assert os.listdir(share) == []
    assert made.nlink == 0
    assert fs.ask(op.LINK, 1, (made.nodeid,), (b"a",)).nodeid == made.nodeid
    assert (share / "a").read_bytes() == b"data"
    with refused(errno.EINVAL):
        fs.ask(op.TMPFILE, 1, (os.O_RDONLY, 0o600, 0, 0), (b"",))


@pytest.mark.parametrize(
    ("cache", "file_flags", "dir_flags", "validity"),
    [
        ("never", f.FOPEN_DIRECT_IO, 0, 0),
        ("metadata", f.FOPEN_DIRECT_IO, f.FOPEN_CACHE_DIR | f.FOPEN_KEEP_CACHE, 86400),
        ("auto", 0, 0, 1),
        ("always", f.FOPEN_KEEP_CACHE, f.FOPEN_CACHE_DIR | f.FOPEN_KEEP_CACHE, 86400),
    ],
)
def test_cache_policies(serve, share, cache, file_flags, dir_flags, validity):
    fs = serve(cache=cache)
    (share / "a").touch()
    entry = fs.ask(op.LOOKUP, 1, (), (b"a",))
    assert (entry.entry_valid, entry.attr_valid) == (validity, validity)
    assert fs.ask(op.GETATTR, 1, (0, 0, 0)).attr_valid == validity
    assert fs.ask(op.OPEN, entry.nodeid, (0, 0)).open_flags == file_flags
    assert fs.ask(op.OPENDIR, 1, (0, 0)).open_flags == dir_flags


def test_statx_and_statfs(fs, share):
    (share / "a").write_bytes(b"12345")
    node, fh = open_file(fs, os.O_RDONLY)
    there = (share / "a").stat()
    for args in ((0, 0, 0, 0, 0xFFF), (1, 0, fh, 0, 0xFFF)):
        answer = fs.ask(op.STATX, node, args)
        assert (answer.ino, answer.size, answer.mode) == (there.st_ino, 5, there.st_mode)
        assert answer.mtime * 10**9 + answer.mtimensec == there.st_mtime_ns
        assert answer.mask & 0x7FF == 0x7FF
        assert not answer.mask & ~0xFFF
        assert os.makedev(answer.dev_major, answer.dev_minor) == there.st_dev
    here = fs.ask(op.STATFS, 1)
    assert (here.bsize, here.namelen) == (os.statvfs(share).f_bsize, os.statvfs(share).f_namemax)
    assert here.blocks == os.statvfs(share).f_blocks


def test_set_times(fs, share):
    (share / "a").touch()
    os.utime(share / "a", ns=(111, 222))
    fs.setattr("/a", f.FATTR_MTIME, mtime=5 * 10**9 + 7)
    assert ((share / "a").stat().st_atime_ns, (share / "a").stat().st_mtime_ns) == (111, 5 * 10**9 + 7)
    fs.setattr("/a", f.FATTR_ATIME | f.FATTR_ATIME_NOW)
    assert (share / "a").stat().st_atime > 10**9
    os.utime(share / "a", ns=(111, 222))
    fs.setattr("/a", f.FATTR_MTIME | f.FATTR_ATIME_NOW, mtime=333)
    assert (share / "a").stat().st_atime > 10**9
    assert (share / "a").stat().st_mtime_ns == 333
    (share / "s").symlink_to("nowhere")
    fs.setattr("/s", f.FATTR_MTIME, mtime=-3 * 10**9)
    assert (share / "s").lstat().st_mtime_ns == -3 * 10**9


def test_what_has_no_size_is_not_changed_half(fs, share):
    os.mkfifo(share / "p", 0o600)
    (share / "d").mkdir(0o700)
    for name, error in (("p", errno.EINVAL), ("d", errno.EISDIR)):
        before = (share / name).stat().st_mode
        with pytest.raises(OSError) as caught:
            fs.setattr("/" + name, f.FATTR_MODE | f.FATTR_SIZE, mode=0o644, size=0)
        assert caught.value.errno == error
        assert (share / name).stat().st_mode == before


def test_truncate_through_the_handle(fs, share):
    """ftruncate works on a handle that was opened for writing before the mode forbade it."""
    (share / "a").write_bytes(b"123456")
    node, fh = open_file(fs, os.O_RDWR)
    (share / "a").chmod(0o400)
    fs.ask(op.SETATTR, node, setattr_args(f.FATTR_SIZE | f.FATTR_FH, fh=fh, size=3))
    assert (share / "a").read_bytes() == b"123"


@pytest.mark.parametrize("killpriv", [False, True])
@pytest.mark.parametrize("cut", [b"write", b"truncate", b"open"])
@needs_privilege
def test_suid_is_cleared_when_the_guest_asks(serve, share, cut, killpriv):
    """Whatever was negotiated: Linux says it of direct writes without HANDLE_KILLPRIV_V2 as well."""
    fs = serve(killpriv_v2=killpriv)
    for kill, before, after in ((0, 0o6777, 0o6777), (1, 0o6777, 0o777), (1, 0o2666, 0o2666)):
        (share / "a").write_bytes(b"data")
        (share / "a").chmod(before)
        if cut == b"open":
            open_file(fs, os.O_WRONLY | os.O_TRUNC, open_flags=kill)
        elif cut == b"write":
            node, fh = open_file(fs, os.O_WRONLY)
            write(fs, node, fh, 0, b"x", write_flags=f.WRITE_KILL_SUIDGID * kill)
        else:
            fs.setattr("/a", f.FATTR_SIZE | f.FATTR_KILL_SUIDGID * kill, size=1)
        assert mode_of(share / "a") == after, (kill, before)


@pytest.mark.parametrize(
    ("killpriv", "change", "losers"),
    [
        (False, "open", {1000}), (True, "open", set()), (False, "fallocate", set()), (False, "copy", set()),
        (True, "fallocate", {1000, NOBODY}), (True, "copy", {1000, NOBODY}),
    ],
)  # fmt: skip
@needs_privilege
def test_set_id_bits_where_the_request_says_nothing_of_them(serve, share, killpriv, change, losers):
    """What Linux leaves to the server: O_TRUNC without HANDLE_KILLPRIV_V2, and with it what has no flag."""
    fs = serve(killpriv_v2=killpriv)
    (share / "b").write_bytes(b"more")
    for uid in (0, 1000, NOBODY):
        (share / "a").write_bytes(b"data")
        (share / "a").chmod(0o6777)
        fs.uid = uid
        if change == "open":
            open_file(fs, os.O_WRONLY | os.O_TRUNC)
        else:
            node, fh = open_file(fs, os.O_WRONLY)
            if change == "copy":
                source, source_fh = open_file(fs, os.O_RDONLY, b"b")
                fs.ask(op.COPY_FILE_RANGE, source, (source_fh, 0, node, fh, 0, 4, 0))
            else:
                fs.ask(op.FALLOCATE, node, (fh, 0, 10, 0, 0))
        assert mode_of(share / "a") == (0o777 if uid in losers else 0o6777), uid


@needs_privilege
def test_a_write_through_what_is_only_read_changes_no_mode(serve, share):
    fs = serve(killpriv_v2=True)
    (share / "a").write_bytes(b"data")
    (share / "a").chmod(0o6777)
    node, fh = open_file(fs, os.O_RDONLY)
    with refused(errno.EBADF):
        write(fs, node, fh, 0, b"x", write_flags=f.WRITE_KILL_SUIDGID)
    assert mode_of(share / "a") == 0o6777


def test_lseek_finds_holes(fs, share):
    with open(share / "a", "wb") as file:
        file.seek(1 << 20)
        file.write(b"x" * 4096)
    node, fh = open_file(fs, os.O_RDONLY)
    try:
        data = fs.ask(op.LSEEK, node, (fh, 0, os.SEEK_DATA, 0)).offset
    except OSError as error:
        pytest.skip(f"no SEEK_DATA here: {error}")
    assert data in (0, 1 << 20)
    assert fs.ask(op.LSEEK, node, (fh, 1 << 20, os.SEEK_HOLE, 0)).offset == (1 << 20) + 4096
    with refused(errno.ENXIO):
        fs.ask(op.LSEEK, node, (fh, 1 << 30, os.SEEK_DATA, 0))


def test_ioctl_flags(fs, share):
    (share / "a").touch()
    node, fh = open_file(fs, os.O_RDWR)
    there = array.array("i", [0])
    with open(share / "a") as file:
        try:
            fcntl.ioctl(file, 0x80086601, there)
        except OSError as error:
            pytest.skip(f"no inode flags here: {error}")
    header, data = fs.ask(op.IOCTL, node, (fh, 0, 0x80086601, 0, 0, 4), size=4)
    assert (header.result, data) == (0, there.tobytes())
    _, version = fs.ask(op.IOCTL, node, (fh, 0, 0x80087601, 0, 0, 8), size=8)
    assert len(version) == 8


def test_poll_is_always_ready(fs, share):
    (share / "a").touch()
    node, fh = open_file(fs, os.O_RDWR)
    assert fs.ask(op.POLL, node, (fh, 0, 0, 0x5)).revents == 0x5


def test_broken_handles_can_only_be_released(fs, share):
    (share / "a").touch()
    node, _ = open_file(fs, os.O_RDONLY)
    fs.fs.restore_broken_handle(40, node, os.O_RDWR)
    with refused(errno.EIO):
        read(fs, node, 40)
    fs.ask(op.RELEASE, node, (40, 0, 0, 0))
    with refused(errno.EBADF):
        read(fs, node, 40)


def test_restored_handles_neither_create_nor_truncate(fs, share):
    (share / "a").write_bytes(b"data")
    node = fs.ask(op.LOOKUP, 1, (), (b"a",)).nodeid
    handle = fs.fs.restore_handle(9, node, os.O_RDWR | os.O_TRUNC | os.O_CREAT | os.O_APPEND)
    assert handle.flags == os.O_RDWR
    assert read(fs, node, 9) == b"data"
    assert fs.ask(op.OPEN, node, (0, 0)).fh == 10
    os.mkfifo(share / "p")
    fifo = fs.ask(op.LOOKUP, 1, (), (b"p",)).nodeid
    with refused(errno.EBADF):
        fs.fs.restore_handle(11, fifo, os.O_RDWR)
