"""Names and attributes: what the guest does is what the host sees, and the other way round."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vmsim.check.case import SHARE, Group
from vmsim.check.cases.common import raises
from vmsim.check.outcome import NotOffered, check, same
from vmsim.check.rigs import GuestRig
from vmsim.guest.calls.posix import GuestFs

CASES = Group("fuse")
NEEDS = (SHARE,)


def seen(path: Path) -> tuple[int, ...]:
    """What a guest must see of a file's attributes."""
    found = path.lstat()
    return (stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode), found.st_nlink, found.st_uid,
            found.st_gid, found.st_size, found.st_mtime_ns)  # fmt: skip


def guest_sees(fs: GuestFs, name: str) -> tuple[int, ...]:
    """The same as ``seen``, in the guest."""
    found = fs.lstat(name)
    return (stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode), found.st_nlink, found.st_uid,
            found.st_gid, found.st_size, found.st_mtime_ns)  # fmt: skip


@CASES.case("init", "FUSE INIT", needs=NEEDS)
def init(rig: GuestRig) -> None:
    """INIT gives major 7, a minor that virtio-fs needs (27 and up), and a sensible max_write."""
    rig.boot()
    session = rig.vm.kernel.state.session
    same(session.major, 7, "the major version")
    check(session.minor >= 27, "a minor of 27 or more", session.minor)
    check(4096 <= session.max_write <= 1 << 24, "a max_write of 4 KiB to 16 MiB", session.max_write)


@CASES.case("attributes", "FUSE GETATTR, LOOKUP", needs=NEEDS)
def attributes(rig: GuestRig) -> None:
    """Mode, links, owner, size and times of files of every kind that the host made."""
    share = rig.share
    (share / "file").write_bytes(b"x" * 12345)
    (share / "file").chmod(0o640)
    (share / "dir").mkdir(mode=0o711)
    os.symlink("file", share / "link")
    os.mkfifo(share / "fifo", 0o600)
    os.link(share / "file", share / "hard")
    os.utime(share / "file", ns=(10**18 + 1, 10**18 + 123456789))
    fs = rig.boot()
    for name in ("file", "dir", "link", "fifo", "hard"):
        same(guest_sees(fs, name), seen(share / name), f"attributes of {name}")


@CASES.case("create", "FUSE CREATE", needs=NEEDS)
def create(rig: GuestRig) -> None:
    """A file that the guest creates is there, with its mode; O_EXCL refuses a second one."""
    fs = rig.boot()
    fs.umask(0)
    fs.close(fs.open("new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o604))
    same(stat.S_IMODE((rig.share / "new").stat().st_mode), 0o604, "its mode on the host")
    raises("EEXIST", lambda: fs.open("new", os.O_CREAT | os.O_EXCL | os.O_WRONLY))


@CASES.case("missing", "FUSE LOOKUP", needs=NEEDS)
def missing_name(rig: GuestRig) -> None:
    """A name that does not exist is ENOENT; one made on the host meanwhile is found."""
    fs = rig.boot()
    raises("ENOENT", lambda: fs.stat("later"))
    (rig.share / "later").touch()
    same(fs.stat("later").st_size, 0, "its size")


@CASES.case("long-names", "FUSE LOOKUP", needs=NEEDS)
def long_names(rig: GuestRig) -> None:
    """Names of 255 bytes work, of any bytes but slash and NUL; 256 are ENAMETOOLONG."""
    fs = rig.boot()
    for name in (b"n" * 255, b"\xff\xfe odd \x01\n", "äöü €".encode()):
        fs.close(fs.open(name, os.O_CREAT | os.O_WRONLY))
        same(os.path.lexists(os.fsencode(rig.share) + b"/" + name), True, f"{name[:20]!r} on the host")
    raises("ENAMETOOLONG", lambda: fs.mkdir("n" * 256))


@CASES.case("directories", "FUSE MKDIR, RMDIR", needs=NEEDS)
def directories(rig: GuestRig) -> None:
    """Directories are made and removed; a full one is ENOTEMPTY, a file ENOTDIR."""
    fs = rig.boot()
    fs.makedirs("a/b/c")
    check((rig.share / "a/b/c").is_dir(), "a/b/c on the host")
    raises("ENOTEMPTY", lambda: fs.rmdir("a/b"))
    fs.close(fs.open("file", os.O_CREAT | os.O_WRONLY))
    raises("ENOTDIR", lambda: fs.rmdir("file"))
    raises("EEXIST", lambda: fs.mkdir("a"))
    fs.rmdir("a/b/c")
    check(not (rig.share / "a/b/c").exists(), "a/b/c gone on the host")


@CASES.case("unlink", "FUSE UNLINK", needs=NEEDS)
def unlink(rig: GuestRig) -> None:
    """An unlinked file is gone on the host; a directory is EISDIR or EPERM."""
    fs = rig.boot()
    (rig.share / "file").touch()
    fs.unlink("file")
    check(not (rig.share / "file").exists(), "the file gone")
    fs.mkdir("dir")
    raises("EISDIR EPERM", lambda: fs.unlink("dir"))


@CASES.case("unlinked-open", "FUSE UNLINK, READ, WRITE", needs=NEEDS)
def unlinked_open(rig: GuestRig) -> None:
    """A file that is unlinked while open can be read and written, and has no links."""
    fs = rig.boot()
    fd = fs.open("file", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"before")
    fs.unlink("file")
    fs.write(fd, b" after")
    same(fs.pread(fd, 100, 0), b"before after", "what is read")
    same(fs.fstat(fd).st_nlink, 0, "links")
    fs.close(fd)


@CASES.case("rename", "FUSE RENAME", needs=NEEDS)
def rename(rig: GuestRig) -> None:
    """Renaming moves a file into another directory, over another file, and its open descriptor stays."""
    fs = rig.boot()
    fs.mkdir("dir")
    fd = fs.open("one", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"one")
    fs.close(fs.open("dir/two", os.O_CREAT | os.O_WRONLY))
    fs.rename("one", "dir/two")
    same((rig.share / "dir/two").read_bytes(), b"one", "the file at its new place")
    check(not (rig.share / "one").exists(), "the old name gone")
    fs.write(fd, b" more")
    same((rig.share / "dir/two").read_bytes(), b"one more", "what is written afterwards")


@CASES.case("rename-flags", "FUSE RENAME2", needs=NEEDS)
def rename_flags(rig: GuestRig) -> None:
    """RENAME_NOREPLACE refuses, RENAME_EXCHANGE exchanges."""
    fs = rig.boot()
    for name in ("one", "two"):
        (rig.share / name).write_text(name)
    raises("EEXIST", lambda: fs.renameat2("one", "two", 1))
    fs.renameat2("one", "two", 2)
    same((rig.share / "one").read_text(), "two", "the content of one")


@CASES.case("link", "FUSE LINK", needs=NEEDS)
def link(rig: GuestRig) -> None:
    """A hard link is the same file, for guest and host."""
    fs = rig.boot()
    (rig.share / "one").write_text("content")
    fs.link("one", "two")
    same(fs.stat("one").st_ino, fs.stat("two").st_ino, "the inode")
    same(os.stat(rig.share / "two").st_nlink, 2, "links on the host")
    raises("EEXIST", lambda: fs.link("one", "two"))


@CASES.case("symlink", "FUSE SYMLINK, READLINK", needs=NEEDS)
def symlink(rig: GuestRig) -> None:
    """A symlink holds its target, whatever it is; the server does not follow it."""
    fs = rig.boot()
    for number, target in enumerate(("plain", "/absolute/not/there", "../../etc/passwd", "x" * 1000)):
        fs.symlink(target, f"l{number}")
        same(os.readlink(rig.share / f"l{number}"), target, "the target on the host")
        same(fs.readlink(f"l{number}"), target, "the target in the guest")


@CASES.case("mknod", "FUSE MKNOD", needs=NEEDS)
def mknod(rig: GuestRig) -> None:
    """A FIFO and a plain file by MKNOD have their kind and mode."""
    fs = rig.boot()
    fs.umask(0)
    fs.mkfifo("fifo", 0o640)
    fs.mknod("file", stat.S_IFREG | 0o600)
    for name, mode in (("fifo", stat.S_IFIFO | 0o640), ("file", stat.S_IFREG | 0o600)):
        same((rig.share / name).lstat().st_mode, mode, f"kind and mode of {name}")


@CASES.case("chmod", "FUSE SETATTR", needs=NEEDS)
def chmod(rig: GuestRig) -> None:
    """chmod reaches the host, with all twelve bits."""
    fs = rig.boot()
    (rig.share / "f").touch()
    for mode in (0o0, 0o777, 0o4755, 0o1644):
        fs.chmod("f", mode)
        same(stat.S_IMODE((rig.share / "f").stat().st_mode), mode, "the mode on the host")


@CASES.case("chown", "FUSE SETATTR", needs=NEEDS)
def chown(rig: GuestRig) -> None:
    """chown by the guest's root sets owner and group on the host, where the back-end may do that."""
    if os.geteuid():
        raise NotOffered("needs root")
    fs = rig.boot()
    (rig.share / "f").touch()
    fs.chown("f", 1234, 2345)
    found = (rig.share / "f").stat()
    same((found.st_uid, found.st_gid), (1234, 2345), "owner and group")


@CASES.case("times", "FUSE SETATTR", needs=NEEDS)
def times(rig: GuestRig) -> None:
    """Access and modification times are set to the nanosecond."""
    fs = rig.boot()
    (rig.share / "f").touch()
    fs.utime("f", ns=(10**18 + 1, 10**18 + 999999999))
    found = (rig.share / "f").stat()
    same((found.st_atime_ns, found.st_mtime_ns), (10**18 + 1, 10**18 + 999999999), "the times on the host")


@CASES.case("truncate", "FUSE SETATTR", needs=NEEDS)
def truncate(rig: GuestRig) -> None:
    """Files are cut and made longer, by name and by descriptor; what is new reads as zeros."""
    fs = rig.boot()
    (rig.share / "f").write_bytes(b"abcdef")
    fs.truncate("f", 3)
    fd = fs.open("f", os.O_RDWR)
    fs.ftruncate(fd, 5)
    same((rig.share / "f").read_bytes(), b"abc\0\0", "the content")
    same(fs.fstat(fd).st_size, 5, "the size")


@CASES.case("statfs", "FUSE STATFS", needs=NEEDS)
def statfs(rig: GuestRig) -> None:
    """statvfs gives the numbers of the host's file system."""
    fs = rig.boot()
    mine, theirs = fs.statvfs("."), os.statvfs(rig.share)
    same((mine.f_bsize, mine.f_blocks, mine.f_namemax), (theirs.f_bsize, theirs.f_blocks, theirs.f_namemax),
         "block size, blocks, longest name")  # fmt: skip


@CASES.case("credentials", "FUSE in_header", needs=NEEDS)
def credentials(rig: GuestRig) -> None:
    """What a guest's user makes belongs to that user on the host."""
    if os.geteuid():
        raise NotOffered("needs root")
    fs = rig.boot()
    rig.share.chmod(0o777)
    with fs.as_user(1234, 2345):
        fs.mkdir("theirs")
        fs.close(fs.open("theirs/file", os.O_CREAT | os.O_WRONLY))
        fs.symlink("x", "theirs/link")
    for name in ("theirs", "theirs/file", "theirs/link"):
        found = (rig.share / name).lstat()
        same((found.st_uid, found.st_gid), (1234, 2345), f"owner and group of {name}")
