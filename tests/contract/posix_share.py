"""What others do in the shared directory, as the guest sees it, and what only they can see of the guest.

``fs`` has the functions of ``os`` (absolute paths, starting at the share): a guest without caches, or a
client of the bare server; ``share`` is the directory on the host (a Path), empty at first. What needs nobody
but the guest is in ``posix_content`` and ``posix_names``, and compared with ``os``.
"""

from __future__ import annotations

import errno
import os

from tests.support.direct_fs import refused

TIMES = (1_000_000_000_123_456_789, 1_600_000_000_987_654_321)
NAMES = ("blank here", "ünïcode", "new\nline", "x (deleted)", "y" * 255, "-", os.fsdecode(b"\xff\xfe"))


def read(fs, path):
    fd = fs.open(path, os.O_RDONLY)
    try:
        return fs.pread(fd, 1 << 16, 0)
    finally:
        fs.close(fd)


def check_names_that_others_make(fs, share):
    names = {f"file-{n:04}-{'x' * (n % 90)}" for n in range(250)} | set(NAMES)
    for name in names:
        (share / name).touch()
    for name in NAMES:
        (share / name).write_bytes(os.fsencode(name))
    listed = fs.listdir("/")
    assert len(listed) == len(names)
    assert set(listed) == names
    for name in NAMES:
        assert read(fs, "/" + name) == os.fsencode(name)
        fs.unlink("/" + name)
    assert not set(NAMES) & set(os.listdir(share))


def check_attributes_are_the_hosts(fs, share):
    """All of them, also the number of the inode and its blocks, as they are now."""

    def alike():
        here, there = fs.lstat("/a"), os.lstat(share / "a")
        for field in ("mode", "ino", "nlink", "uid", "gid", "size", "mtime_ns", "atime_ns", "blocks"):
            assert getattr(here, "st_" + field) == getattr(there, "st_" + field), field

    (share / "a").write_bytes(b"12345")
    os.utime(share / "a", ns=TIMES)
    alike()
    os.link(share / "a", share / "b")
    alike()
    (share / "a").chmod(0o604)
    os.truncate(share / "a", 100_000)
    alike()
    assert fs.lstat("/b").st_ino == fs.lstat("/a").st_ino
    fs.truncate("/a", 3)
    fs.utime("/a", ns=TIMES)
    fs.chmod("/b", 0o640)
    alike()
    os.setxattr(share / "a", "user.theirs", b"1")
    assert fs.getxattr("/a", "user.theirs") == b"1"


def check_content_that_others_change(fs, share):
    (share / "a").write_bytes(b"0123456789")
    fd = fs.open("/a", os.O_RDWR)
    fs.pwrite(fd, b"AB", 2)
    fs.fsync(fd)
    assert (share / "a").read_bytes() == b"01AB456789"
    with open(share / "a", "r+b") as theirs:
        theirs.write(b"xy")
    assert fs.pread(fd, 4, 0) == b"xyAB"
    os.truncate(share / "a", 1)
    assert fs.pread(fd, 4, 0) == b"x"
    fs.close(fd)


def check_names_that_others_move(fs, share):
    (share / "a").write_bytes(b"old")
    fd = fs.open("/a", os.O_RDONLY)
    (share / "a").rename(share / "elsewhere")
    (share / "a").write_bytes(b"new")
    assert fs.pread(fd, 9, 0) == b"old"
    assert read(fs, "/a") == b"new"
    (share / "elsewhere").unlink()
    assert fs.fstat(fd).st_nlink == 0
    assert fs.pread(fd, 9, 0) == b"old"
    fs.close(fd)
    (share / "a").unlink()
    with refused(errno.ENOENT):
        fs.lstat("/a")
    (share / "fresh").mkdir()
    assert fs.listdir("/") == ["fresh"]
    fs.symlink("/etc/passwd", "/fresh/s")
    assert os.readlink(share / "fresh" / "s") == "/etc/passwd"


def check_exchanged_names(fs, share):
    (share / "a").write_bytes(b"A")
    (share / "b").write_bytes(b"B")
    fs.renameat2("/a", "/b", 2)
    assert ((share / "a").read_bytes(), (share / "b").read_bytes()) == (b"B", b"A")
    assert fs.lstat("/a").st_ino == (share / "a").stat().st_ino


def check_a_hole_is_a_hole(fs, share):
    (share / "a").write_bytes(b"x" * 8192)
    fd = fs.open("/a", os.O_RDWR)
    fs.fallocate(fd, 0, 0, 16384)
    assert (share / "a").stat().st_size == 16384
    fs.fallocate(fd, 3, 0, 4096)
    assert fs.pread(fd, 8192, 0) == bytes(4096) + b"x" * 4096
    with open(share / "a", "rb") as theirs:
        assert os.lseek(theirs.fileno(), 0, os.SEEK_DATA) == 4096
    fs.close(fd)


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]
