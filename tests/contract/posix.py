"""What a guest's facade must do: the same as Python's ``os`` on the directory itself.

Each check does everything twice: with ``os`` in a directory of the host, and with the guest's functions in
its mount of another one. Results and errnos must be equal.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_posix(check, fs, tmp_path):
        check(Both(fs, tmp_path))
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat

import pytest

LOWEST = 3


class P(str):
    """A path from the root of either side."""


class Fd:
    """A descriptor of either side."""

    def __init__(self, guest, host):
        self.guest, self.host = guest, host


class Files:
    """Two file objects that must behave alike."""

    def __init__(self, guest, host):
        self.pair = (guest, host)

    def __getattr__(self, name):
        def call(*args):
            results = [outcome(getattr(file, name), args, {}) for file in self.pair]
            assert results[0] == results[1], (name, args, results)
            return results[0][1]

        return call


def outcome(call, args, kwargs):
    """("is", value) or ("raises", errno or type of the exception)."""
    try:
        return "is", call(*args, **kwargs)
    except OSError as error:
        return "raises", type(error) if error.errno is None else error.errno
    except (ValueError, TypeError, StopIteration) as error:
        return "raises", type(error)


def plain(value):
    """A result without what may differ: numbers of devices and inodes, and times."""
    if isinstance(value, os.stat_result):
        size = 0 if stat.S_ISDIR(value.st_mode) else value.st_size
        return ("stat", value.st_mode, value.st_nlink, value.st_uid, value.st_gid, size, value.st_rdev)
    if isinstance(value, list):
        return sorted(value)
    return value


class Both:
    """``os`` twice. Paths are ``P``, ``open`` and ``dup`` give an ``Fd``; what is unequal fails the check."""

    def __init__(self, fs, host_root):
        self.fs = fs
        self.root = os.fspath(host_root)

    def guest_path(self, path):
        return "/" + path

    def host_path(self, path):
        return self.root + "/" + path

    def args(self, values, side):
        convert = self.guest_path if side == "guest" else self.host_path
        return [
            convert(v) if isinstance(v, P) else getattr(v, side) if isinstance(v, Fd) else v
            for v in values
        ]

    def results(self, name, args, kwargs):
        found = []
        for side, api in (("guest", self.fs), ("host", os)):
            named = dict(zip(kwargs, self.args(kwargs.values(), side), strict=True))
            found.append(outcome(getattr(api, name), self.args(args, side), named))
        return found

    def __getattr__(self, name):
        def call(*args, **kwargs):
            guest, host = self.results(name, args, kwargs)
            if name in ("open", "dup") and guest[0] == host[0] == "is":
                return Fd(guest[1], host[1])
            guest, host = (guest[0], plain(guest[1])), (host[0], plain(host[1]))
            assert guest == host, f"{name}{args}{kwargs}: guest {guest}, host {host}"
            return host[1]

        return call

    def flock(self, fd, operation):
        calls = ((self.fs.flock, fd.guest), (fcntl.flock, fd.host))
        results = [outcome(call, (number, operation), {}) for call, number in calls]
        assert results[0] == results[1], results
        return results[0][1]

    def file(self, path, *args, **kwargs):
        guest = outcome(self.fs.open_file, (self.guest_path(path), *args), kwargs)
        host = outcome(open, (self.host_path(path), *args), kwargs)
        if guest[0] == host[0] == "is":
            return Files(guest[1], host[1])
        assert guest == host
        return guest[1]

    def make(self, path, data=b"", mode=0o644):
        fd = self.open(P(path), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)
        assert self.write(fd, data) == len(data)
        self.close(fd)

    def content(self, path):
        fd = self.open(P(path), os.O_RDONLY)
        data = self.read(fd, 1 << 20)
        self.close(fd)
        return data


# -- opening


def check_open_flags(both):
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_TRUNC, os.O_CREAT | os.O_DIRECTORY):
        expect_equal(both, "open", P("none"), flags)
    fd = both.open(P("f"), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
    assert both.write(fd, b"0123456789") == 10
    assert both.lseek(fd, 0, os.SEEK_CUR) == 10
    both.fstat(fd)
    both.close(fd)
    expect_equal(both, "open", P("f"), os.O_CREAT | os.O_EXCL | os.O_RDWR)
    expect_equal(both, "open", P("f"), os.O_DIRECTORY)
    expect_equal(both, "open", P("f/"), os.O_RDONLY)
    expect_equal(both, "open", P("f/x"), os.O_RDONLY | os.O_CREAT)
    fd = both.open(P("f"), os.O_WRONLY | os.O_TRUNC)
    assert both.fstat(fd)[5] == 0
    both.read(fd, 1)
    both.close(fd)
    both.close(fd)
    both.read(fd, 1)
    both.mkdir(P("d"))
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_RDONLY | os.O_TRUNC):
        expect_equal(both, "open", P("d"), flags)
    expect_equal(both, "open", P("d/"), os.O_CREAT | os.O_WRONLY)
    expect_equal(both, "open", P("new/"), os.O_CREAT | os.O_WRONLY)
    fd = both.open(P("d"), os.O_RDONLY)
    both.read(fd, 1)
    both.write(fd, b"x")
    both.close(fd)


def expect_equal(both, name, *args, **kwargs):
    """A call that fails alike on both sides."""
    guest, host = both.results(name, args, kwargs)
    for result, close in ((guest, both.fs.close), (host, os.close)):
        if name == "open" and result[0] == "is":
            close(result[1])
    assert guest == host, f"{name}{args}{kwargs}: guest {guest}, host {host}"


def check_open_through_symlinks(both):
    both.symlink("f", P("to_f"))
    expect_equal(both, "open", P("to_f"), os.O_RDONLY)
    expect_equal(both, "open", P("to_f"), os.O_CREAT | os.O_EXCL | os.O_RDWR)
    fd = both.open(P("to_f"), os.O_CREAT | os.O_RDWR, 0o600)
    both.write(fd, b"through a link")
    both.close(fd)
    both.lstat(P("f"))
    both.lstat(P("to_f"))
    both.stat(P("to_f"))
    expect_equal(both, "open", P("to_f"), os.O_RDONLY | os.O_NOFOLLOW)
    expect_equal(both, "open", P("to_f"), os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW)
    both.mkdir(P("d"))
    both.symlink("../f", P("d/up"))
    both.symlink("d/up", P("chain"))
    assert both.content("chain") == b"through a link"
    both.symlink("loop2", P("loop1"))
    both.symlink("loop1", P("loop2"))
    expect_equal(both, "open", P("loop1"), os.O_RDONLY)
    expect_equal(both, "open", P("loop1"), os.O_CREAT | os.O_RDWR)
    expect_equal(both, "stat", P("loop1/x"))
    both.symlink("new_dir/file", P("into_missing"))
    expect_equal(both, "open", P("into_missing"), os.O_CREAT | os.O_RDWR)
    fd = both.open(P("to_f"), os.O_PATH | os.O_NOFOLLOW)
    both.fstat(fd)
    both.read(fd, 1)
    both.close(fd)
    expect_equal(both, "open", P("to_f"), os.O_DIRECTORY | os.O_NOFOLLOW)


def check_descriptors(both):
    both.make("f", b"abcdef")
    fd = both.open(P("f"), os.O_RDWR)
    again = both.dup(fd)
    assert both.read(fd, 2) == b"ab"
    assert both.read(again, 2) == b"cd"
    both.close(fd)
    assert both.read(again, 2) == b"ef"
    guest_only = both.fs.open("/f", os.O_RDONLY)
    assert guest_only < again.guest or guest_only == fd.guest
    both.fs.close(guest_only)
    assert both.fs.dup2(again.guest, 77) == 77
    assert both.fs.lseek(77, 0, os.SEEK_CUR) == 6
    both.fs.close(77)
    both.close(again)
    with pytest.raises(OSError, match="Bad file"):
        both.fs.fstat(again.guest)


def check_dir_fd(both):
    both.mkdir(P("d"))
    both.make("d/f", b"deep")
    fd = both.open(P("d"), os.O_RDONLY)
    both.stat("f", dir_fd=fd)
    both.stat("..", dir_fd=fd)
    inner = both.open("new", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd)
    both.close(inner)
    both.mkdir("sub", dir_fd=fd)
    both.rename("new", "sub/newer", src_dir_fd=fd, dst_dir_fd=fd)
    both.link("f", "hard", src_dir_fd=fd, dst_dir_fd=fd)
    both.symlink("f", "soft", dir_fd=fd)
    both.readlink("soft", dir_fd=fd)
    both.unlink("hard", dir_fd=fd)
    assert both.listdir(fd) == ["f", "soft", "sub"]
    both.chmod("f", 0o600, dir_fd=fd)
    both.rename(P("d"), P("moved"))
    both.stat("f", dir_fd=fd)
    file = both.open(P("moved/f"), os.O_RDONLY)
    expect_equal(both, "stat", "x", dir_fd=file)
    both.close(file)
    both.close(fd)


# -- content


def check_read_write(both):
    fd = both.open(P("f"), os.O_CREAT | os.O_RDWR)
    assert both.pwrite(fd, b"abc", 5) == 3
    assert both.read(fd, 100) == b"\0" * 5 + b"abc"
    assert both.read(fd, 100) == b""
    assert both.pread(fd, 2, 6) == b"bc"
    assert both.pread(fd, 2, 600) == b""
    assert both.writev(fd, [b"one", b"", b"two"]) == 6
    assert both.pwritev(fd, [b"X", b"YZ"], 1) == 3
    buffers = [[bytearray(3), bytearray(5)], [bytearray(3), bytearray(5)]]
    assert both.fs.preadv(fd.guest, buffers[0], 0) == os.preadv(fd.host, buffers[1], 0) == 8
    assert buffers[0] == buffers[1]
    assert both.fs.readv(fd.guest, buffers[0]) == os.readv(fd.host, buffers[1])
    assert both.lseek(fd, -4, os.SEEK_END) == 10
    assert both.lseek(fd, -1, os.SEEK_CUR) == 9
    both.lseek(fd, -1, os.SEEK_SET)
    both.lseek(fd, -100, os.SEEK_CUR)
    both.lseek(fd, 0, 17)
    assert both.lseek(fd, 1 << 40, os.SEEK_SET) == 1 << 40
    assert both.read(fd, 10) == b""
    both.pread(fd, 10, -1)
    both.pwrite(fd, b"x", -1)
    both.read(fd, -1)
    both.close(fd)
    fd = both.open(P("f"), os.O_RDONLY)
    both.write(fd, b"no")
    both.ftruncate(fd, 0)
    both.close(fd)
    assert both.content("f") == both.content("f")


def check_append(both):
    fd = both.open(P("log"), os.O_CREAT | os.O_RDWR | os.O_APPEND)
    other = both.open(P("log"), os.O_WRONLY | os.O_APPEND)
    assert both.write(fd, b"one ") == 4
    assert both.write(other, b"two ") == 4
    assert both.lseek(fd, 0, os.SEEK_SET) == 0
    assert both.write(fd, b"three") == 5
    assert both.lseek(fd, 0, os.SEEK_CUR) == 13
    assert both.pwrite(fd, b"!", 0) == 1
    assert both.pread(fd, 100, 0) == b"one two three!"
    both.close(fd)
    both.close(other)


def check_large_transfer(both):
    data = os.urandom(65536) * 40 + b"end"
    fd = both.open(P("big"), os.O_CREAT | os.O_RDWR)
    done = 0
    while done < len(data):
        done += both.write(fd, data[done:])
    assert both.fstat(fd)[5] == len(data)
    assert both.pread(fd, len(data), 0) == data
    assert both.pread(fd, 1 << 20, 12345) == data[12345 : 12345 + (1 << 20)]
    both.fsync(fd)
    both.fdatasync(fd)
    both.close(fd)


def check_truncate(both):
    both.make("f", b"0123456789" * 1000)
    fd = both.open(P("f"), os.O_RDWR)
    for size in (5000, 4096, 3, 4100, 0, 10):
        both.ftruncate(fd, size)
        assert both.fstat(fd)[5] == size
        both.pread(fd, 10000, 0)
    both.truncate(P("f"), 7)
    both.ftruncate(fd, -1)
    both.truncate(P("none"), 1)
    both.mkdir(P("d"))
    both.truncate(P("d"), 1)
    both.close(fd)


def check_sparse(both):
    fd = both.open(P("f"), os.O_CREAT | os.O_RDWR)
    both.pwrite(fd, b"data", 1 << 20)
    both.ftruncate(fd, 1 << 22)
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        for position in (0, 1 << 20, (1 << 20) + 2, 1 << 21, 1 << 22, 1 << 23):
            both.lseek(fd, position, whence)
    both.posix_fallocate(fd, 0, 1 << 23)
    both.posix_fallocate(fd, -1, 10)
    both.posix_fallocate(fd, 0, 0)
    both.fstat(fd)
    both.close(fd)


def check_copy_file_range(both):
    both.make("src", b"0123456789" * 3000)
    both.make("dst", b"abc")
    src, dst = both.open(P("src"), os.O_RDONLY), both.open(P("dst"), os.O_RDWR)
    assert both.copy_file_range(src, dst, 100, 5, 1) == 100
    assert both.copy_file_range(src, dst, 1 << 20) == 30000
    assert both.copy_file_range(src, dst, 10) == 0
    both.copy_file_range(dst, src, 10)
    assert both.pread(dst, 40000, 0) == both.pread(dst, 40000, 0)
    both.copy_file_range(dst, dst, 10, 0, 5)
    both.close(src)
    both.close(dst)
    assert len(both.content("dst")) == 30000


def check_many_files(both):
    both.mkdir(P("many"))
    fds = [both.open(P(f"many/{number}"), os.O_CREAT | os.O_RDWR) for number in range(200)]
    for number, fd in enumerate(fds):
        both.write(fd, b"%d" % number)
    for number, fd in enumerate(fds):
        assert both.pread(fd, 10, 0) == b"%d" % number
        both.close(fd)
    assert len(both.listdir(P("many"))) == 200


# -- attributes


def check_modes(both):
    both.make("f", mode=0o666)
    both.stat(P("f"))
    both.mkdir(P("d"), 0o777)
    both.stat(P("d"))
    for mode in (0o600, 0o4755, 0o2755, 0o1777, 0):
        both.chmod(P("f"), mode)
        both.stat(P("f"))
    fd = both.open(P("d"), os.O_RDONLY)
    both.fchmod(fd, 0o1770)
    both.chmod(fd, 0o1771)
    both.close(fd)
    both.stat(P("d"))
    both.chmod(P("none"), 0o600)
    both.symlink("f", P("l"))
    both.chmod(P("l"), 0o644)
    both.stat(P("l"))


def check_umask(both):
    old = both.umask(0o077)
    try:
        both.make("f", mode=0o666)
        both.mkdir(P("d"), 0o777)
        both.mkfifo(P("p"))
        for name in "fdp":
            both.stat(P(name))
    finally:
        both.umask(old)


def check_owners(both):
    if os.geteuid():
        pytest.skip("only root gives files away")
    both.make("f", mode=0o6755)
    both.chown(P("f"), 1234, 567)
    both.stat(P("f"))
    both.chown(P("f"), -1, 568)
    both.symlink("f", P("l"))
    both.lchown(P("l"), 7, 8)
    both.lstat(P("l"))
    fd = both.open(P("f"), os.O_RDWR)
    both.fchown(fd, 9, -1)
    both.fstat(fd)
    both.close(fd)


def check_times(both):
    both.make("f")
    both.utime(P("f"), (1, 2.5))
    guest, host = both.fs.stat("/f"), os.stat(both.host_path("f"))
    for name in ("st_atime", "st_mtime", "st_atime_ns", "st_mtime_ns"):
        assert getattr(guest, name) == getattr(host, name)
    both.utime(P("f"), ns=(123456789012345678, 1))
    guest, host = both.fs.stat("/f"), os.stat(both.host_path("f"))
    assert (guest.st_atime_ns, guest.st_mtime_ns) == (123456789012345678, 1)
    assert (host.st_atime_ns, host.st_mtime_ns) == (123456789012345678, 1)
    assert guest.st_atime == host.st_atime
    both.symlink("f", P("l"))
    both.utime(P("l"), (5, 6), follow_symlinks=False)
    assert both.fs.lstat("/l").st_mtime == 6
    assert both.fs.stat("/f").st_mtime_ns == 1
    both.utime(P("f"))
    assert both.fs.stat("/f").st_mtime > 1_000_000_000
    both.utime(P("none"))
    both.utime(P("f"), (1, 2), ns=(1, 2))


def check_access(both):
    both.make("f", mode=0o644)
    for mode in (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.X_OK):
        both.access(P("f"), mode)
        both.access(P("none"), mode)
    both.mkdir(P("d"))
    both.access(P("d"), os.X_OK)


def check_statvfs(both):
    guest, host = both.fs.statvfs("/"), os.statvfs(both.root)
    assert (guest.f_bsize, guest.f_blocks, guest.f_namemax) == (host.f_bsize, host.f_blocks, host.f_namemax)
    both.make("f")
    fd = both.fs.open("/f", os.O_RDONLY)
    assert both.fs.statvfs(fd).f_blocks == host.f_blocks
    both.fs.close(fd)


def check_xattrs(both):
    both.make("f")
    os_path = both.host_path("f")
    try:
        os.setxattr(os_path, "user.probe", b"")
        both.fs.setxattr("/f", "user.probe", b"")
    except OSError as error:
        pytest.skip(f"no user attributes here: {error}")
    assert both.getxattr(P("f"), "user.probe") == b""
    both.setxattr(P("f"), "user.a", b"value" * 100)
    both.setxattr(P("f"), b"user.b", b"\0\1")
    assert both.getxattr(P("f"), "user.a") == b"value" * 100
    assert both.listxattr(P("f")) == ["user.a", "user.b", "user.probe"]
    both.setxattr(P("f"), "user.a", b"x", os.XATTR_CREATE)
    both.setxattr(P("f"), "user.c", b"x", os.XATTR_REPLACE)
    both.removexattr(P("f"), "user.probe")
    both.removexattr(P("f"), "user.probe")
    both.getxattr(P("f"), "user.probe")
    fd = both.open(P("f"), os.O_RDONLY)
    both.getxattr(fd, "user.b")
    both.close(fd)
    both.symlink("f", P("l"))
    both.getxattr(P("l"), "user.b")
    both.setxattr(P("l"), "user.b", b"x", follow_symlinks=False)
    both.getxattr(P("none"), "user.b")


# -- names


def check_mkdir_rmdir(both):
    both.mkdir(P("d"))
    both.mkdir(P("d"))
    both.mkdir(P("d/"))
    both.mkdir(P("e/"))
    both.mkdir(P("d/x/y"))
    both.mkdir(P("d/x"))
    both.rmdir(P("d"))
    both.rmdir(P("d/x/"))
    both.rmdir(P("d/."))
    both.rmdir(P("d/e/.."))
    both.rmdir(P("d/.."))
    both.rmdir(P("none"))
    both.make("f")
    both.rmdir(P("f"))
    both.mkdir(P("f/x"))
    both.unlink(P("d"))
    both.rmdir(P("d"))
    both.mkdir(P("."))
    both.mkdir(P(""))
    both.makedirs(P("a/b/c"))
    both.makedirs(P("a/b/c"))
    both.makedirs(P("a/b/c"), exist_ok=True)
    both.makedirs(P("a/b/d/e/"), exist_ok=True)
    both.listdir(P("a/b"))


def check_unlink(both):
    both.make("f", b"still there")
    fd = both.open(P("f"), os.O_RDWR)
    both.unlink(P("f/"))
    both.unlink(P("f"))
    both.unlink(P("f"))
    assert both.fstat(fd)[2] == 0
    assert both.pread(fd, 100, 0) == b"still there"
    both.write(fd, b"STILL")
    both.ftruncate(fd, 5)
    both.fchmod(fd, 0o600)
    assert both.pread(fd, 100, 0) == b"STILL"
    both.close(fd)
    both.unlink(P("."))
    both.unlink(P(""))


def check_rename(both):
    both.make("a", b"a")
    both.make("b", b"b")
    both.mkdir(P("d"))
    both.mkdir(P("d/inner"))
    both.mkdir(P("e"))
    both.rename(P("a"), P("c"))
    both.rename(P("a"), P("c"))
    both.rename(P("c"), P("b"))
    assert both.content("b") == b"a"
    both.rename(P("b"), P("d"))
    both.rename(P("d"), P("b"))
    both.rename(P("d"), P("d/inner/x"))
    both.rename(P("e"), P("d"))
    both.rename(P("d"), P("e/"))
    assert both.listdir(P("e")) == ["inner"]
    both.rename(P("e/inner"), P("e"))
    both.rename(P("b/"), P("x"))
    both.rename(P("b"), P("x/"))
    both.rename(P("e/."), P("x"))
    both.rename(P("e"), P("e/.."))
    both.rename(P("b"), P("b"))
    both.link(P("b"), P("b2"))
    both.rename(P("b"), P("b2"))
    assert both.listdir(P("")) == ["b", "b2", "e"]
    both.replace(P("b2"), P("e/inner/b"))
    assert both.content("e/inner/b") == b"a"
    both.rename(P("none"), P("other"))


def check_rename_flags(both):
    """renameat2 has no counterpart in ``os``: guest only."""
    fs = both.fs
    for name in "ab":
        fs.close(fs.open(f"/{name}", os.O_CREAT | os.O_WRONLY))
    fs.mkdir("/d")
    with pytest.raises(FileExistsError):
        fs.renameat2("/a", "/b", 1)
    fs.renameat2("/a", "/c", 1)
    inodes = [fs.stat(path).st_ino for path in ("/c", "/d")]
    fs.renameat2("/c", "/d", 2)
    assert [fs.stat(path).st_ino for path in ("/d", "/c")] == inodes
    with pytest.raises(FileNotFoundError):
        fs.renameat2("/c", "/none", 2)
    with pytest.raises(OSError, match="Invalid"):
        fs.renameat2("/c", "/x", 3)
    fs.rmdir("/c")


def check_links(both):
    both.make("f", b"x")
    both.link(P("f"), P("g"))
    both.stat(P("g"))
    both.link(P("f"), P("g"))
    both.link(P("none"), P("h"))
    both.mkdir(P("d"))
    both.link(P("d"), P("d2"))
    both.link(P("f"), P("d/h"))
    both.link(P("f"), P("new/"))
    assert both.stat(P("f"))[2] == 3
    both.unlink(P("g"))
    assert both.stat(P("f"))[2] == 2
    both.symlink("f", P("s"))
    both.link(P("s"), P("s2"))
    both.lstat(P("s2"))
    both.symlink("x" * 4095, P("long"))
    assert both.readlink(P("long")) == "x" * 4095
    both.symlink("x" * 4096, P("longer"))
    both.symlink("", P("empty"))
    both.symlink("f", P("s"))
    both.symlink("f", P("t/"))
    both.readlink(P("f"))
    both.readlink(P("none"))
    both.readlink(P("s/"))
    both.lstat(P("s/"))
    both.symlink("d/", P("to_d"))
    both.lstat(P("to_d/"))
    both.lstat(P("to_d"))
    both.rmdir(P("to_d/"))
    both.rmdir(P("to_d"))
    both.unlink(P("to_d"))


def check_special_files(both):
    both.mkfifo(P("fifo"), 0o600)
    both.stat(P("fifo"))
    both.mknod(P("plain"), 0o640)
    both.stat(P("plain"))
    both.mknod(P("socket"), stat.S_IFSOCK | 0o600)
    both.stat(P("socket"))
    both.mknod(P("fifo"), stat.S_IFIFO | 0o600)
    both.mknod(P("dir"), stat.S_IFDIR | 0o700)
    both.unlink(P("fifo"))


def check_paths(both):
    both.mkdir(P("d"))
    both.make("d/f")
    for path in ("d//f", "./d/./f", "d/../d/f", "d/f/", "d/f/.", "d/f/..", "none/..", "d/", "d/.", ""):
        both.stat(P(path))
        both.lstat(P(path))
    both.stat("")
    both.stat(P("x" * 255))
    both.stat(P("x" * 256))
    both.mkdir(P("x" * 256))
    both.make("y" * 255)
    both.mkdir(P("é" * 127))
    both.stat(P("/".join(["d"] * 3000)))
    with pytest.raises(ValueError, match="null byte"):
        both.fs.stat("/nul\0byte")
    assert both.fs.stat(b"/d/f").st_size == 0
    assert both.fs.stat("/../../d/f").st_size == 0


def check_containment(both):
    """Symlinks never lead above the mount's root: absolute ones begin there."""
    fs = both.fs
    fs.mkdir("/etc")
    fs.symlink("/etc/passwd", "/absolute")
    fs.symlink("../../../../../../etc/passwd", "/etc/relative")
    with pytest.raises(FileNotFoundError):
        fs.stat("/absolute")
    with fs.open_file("/etc/passwd", "w") as file:
        file.write("the guest's own")
    for path in ("/absolute", "/etc/relative"):
        with fs.open_file(path) as file:
            assert file.read() == "the guest's own"


def check_cwd(both):
    fs = both.fs
    fs.makedirs("/d/e")
    assert fs.getcwd() == "/"
    fs.chdir("d")
    assert fs.getcwd() == "/d"
    fs.mkdir("here")
    assert sorted(fs.listdir()) == ["e", "here"]
    fs.rename("/d", "/moved")
    assert fs.getcwd() == "/moved"
    fs.chdir("e/..")
    fs.chdir("here")
    fs.rmdir("/moved/here")
    with pytest.raises(FileNotFoundError):
        fs.getcwd()
    with pytest.raises(FileNotFoundError):
        fs.mkdir("x")
    fs.chdir("/")
    fs.mknod("/f")
    with pytest.raises(NotADirectoryError) as caught:
        fs.chdir("/f")
    assert caught.value.filename == "/f"
    fd = fs.open("/moved", os.O_RDONLY)
    fs.fchdir(fd)
    fs.close(fd)
    assert fs.getcwd() == "/moved"
    fs.chdir("/")


def check_directories(both):
    both.makedirs(P("t/a/b"))
    both.make("t/f")
    both.symlink("a", P("t/to_a"))
    both.symlink("nowhere", P("t/dangling"))
    both.mkfifo(P("t/p"))
    found = []
    for scan, top in ((both.fs.scandir, "/t"), (os.scandir, both.host_path("t"))):
        with scan(top) as entries:
            found.append(sorted(
                (
                    entry.name, entry.path[len(top):], entry.is_dir(), entry.is_dir(follow_symlinks=False),
                    entry.is_file(), entry.is_symlink(), entry.inode() > 0,
                    entry.stat(follow_symlinks=False).st_mode,
                )
                for entry in entries
            ))
    assert found[0] == found[1]
    trees = [
        sorted((top.removeprefix(root), sorted(dirs), sorted(rest)) for top, dirs, rest in walk(root + "/t"))
        for walk, root in ((both.fs.walk, ""), (os.walk, both.root))
    ]
    assert trees[0] == trees[1]
    both.listdir(P("t"))
    both.listdir(P("t/f"))
    both.listdir(P("none"))
    assert both.fs.listdir(b"/t/a") == [b"b"]
    assert list(both.fs.walk("/t", topdown=False))[-1][0] == "/t"


def check_directory_positions(both):
    """A position taken in a directory leads back to the same entry."""
    fs = both.fs
    fs.mkdir("/many")
    names = {f"name{number:04}" for number in range(500)}
    for name in names:
        fs.mknod(f"/many/{name}")
    fd = fs.open("/many", os.O_RDONLY)
    entries = []
    while batch := fs.getdents(fd, 1024):
        entries += batch
    assert {entry.name for entry in entries} == names | {".", ".."}
    assert len(entries) == 502
    for at in (0, 100, 300):
        fs.lseek(fd, entries[at].offset, os.SEEK_SET)
        assert fs.getdents(fd, 1024)[0].name == entries[at + 1].name
    fs.lseek(fd, 0, os.SEEK_SET)
    assert fs.getdents(fd, 1024)[0].name == entries[0].name
    fs.close(fd)


# -- file objects, locks, processes


def check_file_objects(both):
    file = both.file("text", "w", encoding="utf-8")
    file.write("first\nsecond ünï\n")
    file.close()
    file = both.file("text", encoding="utf-8")
    assert file.readline() == "first\n"
    assert file.tell() == 6
    assert file.read() == "second ünï\n"
    file.seek(0)
    assert file.readlines() == ["first\n", "second ünï\n"]
    file.write("no")
    file.close()
    file = both.file("text", "r+b")
    file.seek(6)
    file.write(b"SECOND")
    file.seek(0)
    file.read()
    file.truncate(8)
    file.close()
    file = both.file("text", "ab")
    file.tell()
    file.write(b"more")
    file.close()
    assert both.content("text") == b"first\nSEmore"
    file = both.file("raw", "wb", buffering=0)
    assert file.write(b"123") == 3
    file.close()
    both.file("raw", "x")
    both.file("none")
    for mode in ("rw", "q", "", "rr"):
        both.file("raw", mode)
    both.mkdir(P("d"))
    both.file("d")
    both.file("d", "w")
    with both.fs.open_file("/text", "rb") as guest:
        assert isinstance(guest, io.BufferedReader)
    with pytest.raises(ValueError, match="closed"):
        guest.read()


def check_flock(both):
    both.make("f")
    one, two = both.open(P("f"), os.O_RDWR), both.open(P("f"), os.O_RDWR)
    both.flock(one, fcntl.LOCK_SH)
    both.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    both.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    both.flock(two, fcntl.LOCK_UN)
    both.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    both.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    both.flock(two, 77)
    both.close(one)
    both.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    both.close(two)


def check_posix_locks(both):
    """Between two processes of the guest; a process never collides with itself."""
    fs = both.fs
    other = fs.fork()
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fd2 = other.open("/f", os.O_RDWR)
    fs.lockf(fd, os.F_LOCK, 10)
    fs.lockf(fd, os.F_LOCK, 10)
    with pytest.raises(BlockingIOError):
        other.setlk(fd2, fcntl.F_WRLCK, 5, 10)
    other.setlk(fd2, fcntl.F_WRLCK, 10, 10)
    with pytest.raises(PermissionError):
        other.lockf(fd2, os.F_TEST, 10)
    found = other.getlk(fd2, fcntl.F_RDLCK, 0, 0)
    assert (found.kind, found.start, found.length) == (fcntl.F_WRLCK, 0, 10)
    fs.setlk(fd, fcntl.F_UNLCK, 3, 2)
    other.setlk(fd2, fcntl.F_WRLCK, 3, 2)
    with pytest.raises(BlockingIOError):
        other.setlk(fd2, fcntl.F_RDLCK, 5, 1)
    fs.close(fs.dup(fd))
    other.setlk(fd2, fcntl.F_WRLCK, 0, 0)
    fs.close(fd)
    other.exit()


def check_umount_of_names(both):
    """OSError tells which file, as it was given."""
    for path in ("/none", b"/none"):
        with pytest.raises(FileNotFoundError) as caught:
            both.fs.stat(path)
        assert caught.value.filename == path
    with pytest.raises(FileNotFoundError) as caught:
        both.fs.rename("/none", "/other")
    assert (caught.value.filename, caught.value.filename2) == ("/none", "/other")


def check_permissions(both):
    """Another user is held to the mode bits."""
    fs = both.fs
    fs.mkdir("/private", 0o700)
    fs.close(fs.open("/private/f", os.O_CREAT | os.O_WRONLY))
    fs.close(fs.open("/ro", os.O_CREAT | os.O_WRONLY, 0o644))
    fs.close(fs.open("/secret", os.O_CREAT | os.O_WRONLY, 0o600))
    fs.mkdir("/sticky")
    fs.chmod("/sticky", 0o1777)
    fs.mknod("/sticky/rooted", 0o666)
    with fs.as_user(1234, 1234):
        for call, args in (
            (fs.stat, ("/private/f",)), (fs.open, ("/ro", os.O_WRONLY)), (fs.open, ("/secret", os.O_RDONLY)),
            (fs.mkdir, ("/new",)), (fs.unlink, ("/ro",)), (fs.listdir, ("/private",)),
            (fs.truncate, ("/ro", 0)),
        ):  # fmt: skip
            with pytest.raises(PermissionError) as caught:
                call(*args)
            assert caught.value.errno == errno.EACCES
        for call, args in (
            (fs.chmod, ("/ro", 0)), (fs.chown, ("/ro", 1234, -1)), (fs.unlink, ("/sticky/rooted",)),
        ):  # fmt: skip
            with pytest.raises(PermissionError) as caught:
                call(*args)
            assert caught.value.errno == errno.EPERM
        assert not fs.access("/ro", os.W_OK)
        assert fs.access("/ro", os.R_OK)
        fs.close(fs.open("/ro", os.O_RDONLY))
    fs.truncate("/ro", 0)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
