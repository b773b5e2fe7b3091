"""What a shared directory must do, whoever shows it to the guest.

``fs`` has the functions of ``os`` (absolute paths, starting at the share); ``share`` is the directory on the
host (a Path), with which every effect is compared. Each check begins with an empty share.
"""

from __future__ import annotations

import errno
import os
import stat

from tests.support.direct_fs import refused

TIMES = (1_000_000_000_123_456_789, 1_600_000_000_987_654_321)


def put(fs, path, data=b"", mode=0o644):
    fd = fs.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)
    if data:
        assert fs.pwrite(fd, data, 0) == len(data)
    fs.close(fd)


def check_create_and_read(fs, share):
    fd = fs.open("/a", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    assert fs.pwrite(fd, b"hello", 3) == 5
    assert fs.pread(fd, 100, 0) == b"\0\0\0hello"
    assert fs.pread(fd, 2, 4) == b"el"
    assert fs.pread(fd, 10, 8) == b""
    fs.close(fd)
    assert (share / "a").read_bytes() == b"\0\0\0hello"
    assert stat.S_IMODE((share / "a").stat().st_mode) == 0o640
    with refused(errno.EEXIST):
        fs.open("/a", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)


def check_large_transfers(fs, share):
    data = bytes(range(256)) * 4096 + b"tail"
    put(fs, "/big", data)
    fd = fs.open("/big", os.O_RDONLY)
    assert fs.pread(fd, 1 << 20, 0) == data[: 1 << 20]
    assert fs.pread(fd, 1 << 20, 1 << 20) == b"tail"
    fs.close(fd)
    assert (share / "big").read_bytes() == data


def check_open_existing(fs, share):
    (share / "a").write_bytes(b"0123456789")
    fd = fs.open("/a", os.O_RDWR)
    fs.pwrite(fd, b"AB", 2)
    fs.fsync(fd)
    fs.close(fd)
    assert (share / "a").read_bytes() == b"01AB456789"
    put(fs, "/a", b"new")
    assert (share / "a").read_bytes() == b"new"
    with refused(errno.ENOENT):
        fs.open("/missing", os.O_RDONLY)
    fd = fs.open("/a", os.O_RDONLY)
    with refused(errno.EBADF):
        fs.pwrite(fd, b"x", 0)
    fs.close(fd)


def check_directories(fs, share):
    fs.mkdir("/d", 0o755)
    fs.mkdir("/d/e")
    put(fs, "/d/f", b"x")
    assert sorted(fs.listdir("/d")) == ["e", "f"]
    assert sorted(os.listdir(share / "d")) == ["e", "f"]
    with refused(errno.ENOTEMPTY):
        fs.rmdir("/d")
    with refused(errno.EEXIST):
        fs.mkdir("/d")
    with refused(errno.ENOTDIR):
        fs.rmdir("/d/f")
    with refused(errno.EISDIR):
        fs.unlink("/d/e")
    with refused(errno.ENOTDIR):
        fs.lstat("/d/f/x")
    fs.unlink("/d/f")
    fs.rmdir("/d/e")
    fs.rmdir("/d")
    assert list(share.iterdir()) == []


def check_many_entries(fs, share):
    names = {f"file-{n:04}-{'x' * (n % 90)}" for n in range(700)}
    for name in names:
        (share / name).touch()
    listed = fs.listdir("/")
    assert len(listed) == len(names)
    assert set(listed) == names


def check_names(fs, share):
    for name in ("blank here", "ünïcode", "new\nline", "x (deleted)", "y" * 255, "-"):
        put(fs, "/" + name, name.encode())
        assert (share / name).read_bytes() == name.encode()
    (share / os.fsdecode(b"\xff\xfe")).write_bytes(b"raw")
    assert os.fsdecode(b"\xff\xfe") in fs.listdir("/")
    with refused(errno.ENAMETOOLONG):
        fs.lstat("/" + "z" * 256)


def check_stat(fs, share):
    put(fs, "/a", b"12345")
    os.utime(share / "a", ns=TIMES)
    os.link(share / "a", share / "b")
    here, there = fs.lstat("/a"), os.lstat(share / "a")
    for field in ("mode", "ino", "nlink", "uid", "gid", "size", "mtime_ns", "atime_ns"):
        assert getattr(here, "st_" + field) == getattr(there, "st_" + field), field
    assert here.st_blocks == there.st_blocks
    fd = fs.open("/a", os.O_RDONLY)
    assert fs.fstat(fd).st_size == 5
    fs.close(fd)


def check_change_attributes(fs, share):
    put(fs, "/a", b"12345")
    fs.chmod("/a", 0o751)
    assert stat.S_IMODE((share / "a").stat().st_mode) == 0o751
    fs.truncate("/a", 2)
    assert (share / "a").read_bytes() == b"12"
    fs.truncate("/a", 4)
    assert (share / "a").read_bytes() == b"12\0\0"
    fs.utime("/a", ns=TIMES)
    there = (share / "a").stat()
    assert (there.st_atime_ns, there.st_mtime_ns) == TIMES
    fs.chown("/a", os.getuid(), os.getgid())
    with refused(errno.EISDIR):
        fs.truncate("/", 0)


def check_links(fs, share):
    put(fs, "/a", b"data")
    fs.link("/a", "/b")
    assert fs.lstat("/b").st_nlink == 2
    assert (share / "b").read_bytes() == b"data"
    fs.symlink("/etc/passwd", "/s")
    assert os.readlink(share / "s") == "/etc/passwd"
    assert fs.readlink("/s") == "/etc/passwd"
    assert stat.S_ISLNK(fs.lstat("/s").st_mode)
    fs.link("/s", "/s2")
    assert os.readlink(share / "s2") == "/etc/passwd"
    with refused(errno.EINVAL):
        fs.readlink("/a")
    with refused(errno.EEXIST):
        fs.link("/a", "/b")
    fs.unlink("/a")
    assert fs.lstat("/b").st_nlink == 1


def check_rename(fs, share):
    put(fs, "/a", b"A")
    put(fs, "/b", b"B")
    fs.mkdir("/d")
    fd = fs.open("/a", os.O_RDONLY)
    fs.rename("/a", "/d/c")
    assert fs.pread(fd, 9, 0) == b"A"
    assert (share / "d/c").read_bytes() == b"A"
    fs.rename("/b", "/d/c")
    assert (share / "d/c").read_bytes() == b"B"
    assert fs.pread(fd, 9, 0) == b"A"
    fs.close(fd)
    with refused(errno.EINVAL):
        fs.rename("/d", "/d/x")
    with refused(errno.ENOENT):
        fs.rename("/a", "/x")


def check_rename_flags(fs, share):
    put(fs, "/a", b"A")
    put(fs, "/b", b"B")
    with refused(errno.EEXIST):
        fs.renameat2("/a", "/b", 1)
    fs.renameat2("/a", "/b", 2)
    assert ((share / "a").read_bytes(), (share / "b").read_bytes()) == (b"B", b"A")
    assert fs.lstat("/a").st_ino == (share / "a").stat().st_ino


def check_unlinked_but_open(fs, share):
    put(fs, "/a", b"gone")
    fd = fs.open("/a", os.O_RDWR)
    fs.unlink("/a")
    with refused(errno.ENOENT):
        fs.lstat("/a")
    assert fs.pread(fd, 9, 0) == b"gone"
    assert fs.fstat(fd).st_nlink == 0
    fs.pwrite(fd, b"still", 0)
    assert fs.pread(fd, 9, 0) == b"still"
    put(fs, "/a", b"other")
    assert fs.pread(fd, 9, 0) == b"still"
    fs.close(fd)


def check_special_files(fs, share):
    fs.mkfifo("/p", 0o600)
    assert stat.S_ISFIFO((share / "p").lstat().st_mode)
    assert stat.S_ISFIFO(fs.lstat("/p").st_mode)
    fs.chmod("/p", 0o640)
    assert stat.S_IMODE((share / "p").lstat().st_mode) == 0o640
    fs.unlink("/p")


def check_allocation(fs, share):
    put(fs, "/a", b"x" * 8192)
    fd = fs.open("/a", os.O_RDWR)
    fs.fallocate(fd, 0, 0, 16384)
    assert (share / "a").stat().st_size == 16384
    fs.fallocate(fd, 3, 0, 4096)
    assert fs.pread(fd, 8192, 0) == bytes(4096) + b"x" * 4096
    fs.close(fd)


def check_copy_file_range(fs, share):
    put(fs, "/a", b"0123456789")
    put(fs, "/b")
    source, target = fs.open("/a", os.O_RDONLY), fs.open("/b", os.O_RDWR)
    assert fs.copy_file_range(source, target, 5, 2, 1) == 5
    fs.close(source)
    fs.close(target)
    assert (share / "b").read_bytes() == b"\00023456"


def check_third_party_changes(fs, share):
    put(fs, "/a", b"old")
    fd = fs.open("/a", os.O_RDONLY)
    (share / "a").rename(share / "elsewhere")
    (share / "a").write_bytes(b"new")
    assert fs.pread(fd, 9, 0) == b"old"
    fs.close(fd)
    (share / "fresh").mkdir()
    assert "fresh" in fs.listdir("/")


def check_xattrs(fs, share):
    put(fs, "/a")
    fs.setxattr("/a", "user.one", b"1")
    assert os.getxattr(share / "a", "user.one") == b"1"
    fs.setxattr("/a", "user.two", b"22", os.XATTR_CREATE)
    assert fs.getxattr("/a", "user.two") == b"22"
    assert {"user.one", "user.two"} <= set(fs.listxattr("/a"))
    with refused(errno.EEXIST):
        fs.setxattr("/a", "user.two", b"3", os.XATTR_CREATE)
    fs.removexattr("/a", "user.one")
    with refused(errno.ENODATA):
        fs.getxattr("/a", "user.one")


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]
