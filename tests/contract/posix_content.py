"""Checks of the facade against ``os``: opening files, their content, their attributes."""

from __future__ import annotations

import os

import pytest

from tests.support.posix_both import P, expect_equal

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
