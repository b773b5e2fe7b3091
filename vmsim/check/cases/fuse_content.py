"""Content: reading, writing, directories, extended attributes, space; compared with the host's files."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

from vmsim.check.case import SHARE, Group
from vmsim.check.cases.common import raises
from vmsim.check.outcome import NotOffered, check, same
from vmsim.check.rigs import GuestRig, RingRig
from vmsim.fuse import opcodes as op
from vmsim.fuse.client import decode_dirents
from vmsim.guest.config import GuestConfig

CASES = Group("fuse")
NEEDS = (SHARE,)
XATTR = ("--xattr",)
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP)


def offered(what: str, act: Callable[[], object]) -> None:
    """NotOffered if the server does not know this request."""
    try:
        act()
    except OSError as error:
        if error.errno in UNSUPPORTED:
            raise NotOffered(f"{what} is not supported") from error
        raise


@CASES.case("read-write", "FUSE READ, WRITE", needs=NEEDS)
def read_write(rig: GuestRig) -> None:
    """Random reads and writes, also across the end of the file, leave the same bytes on guest and host."""
    fs = rig.boot()
    fd = fs.open("f", os.O_CREAT | os.O_RDWR)
    wanted = bytearray()
    for _ in range(60):
        offset, size = rig.random.randrange(20000), rig.random.randrange(1, 9000)
        if rig.random.random() < 0.5:
            data = rig.random.randbytes(size)
            wanted.extend(bytes(max(0, offset - len(wanted))))
            wanted[offset : offset + size] = data
            same(fs.pwrite(fd, data, offset), size, "bytes written")
        else:
            same(fs.pread(fd, size, offset), bytes(wanted[offset : offset + size]), f"bytes read at {offset}")
    same((rig.share / "f").read_bytes(), bytes(wanted), "the file on the host")


@CASES.case("large", "FUSE READ, WRITE", needs=NEEDS)
def large(rig: GuestRig) -> None:
    """Three megabytes in one call, in requests as large as was negotiated."""
    fs = rig.boot(memory="32M")
    data = rig.random.randbytes(3_000_001)
    fd = fs.open("f", os.O_CREAT | os.O_RDWR)
    done = 0
    while done < len(data):
        done += fs.pwrite(fd, data[done:], done)
    same((rig.share / "f").read_bytes() == data, True, "what was written is on the host")
    found = b""
    while piece := fs.pread(fd, len(data), len(found)):
        found += piece
    same(found == data, True, "what was written is read")


@CASES.case("append", "FUSE WRITE", needs=NEEDS)
def append(rig: GuestRig) -> None:
    """O_APPEND writes at the end, also after the host has written."""
    fs = rig.boot()
    fd = fs.open("f", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    fs.write(fd, b"one ")
    with (rig.share / "f").open("ab") as file:
        file.write(b"two ")
    fs.fstat(fd)
    fs.write(fd, b"three")
    same((rig.share / "f").read_bytes(), b"one two three", "the file")


@CASES.case("truncating-open", "FUSE OPEN", needs=NEEDS)
def truncating_open(rig: GuestRig) -> None:
    """O_TRUNC empties a file."""
    fs = rig.boot()
    (rig.share / "f").write_bytes(b"full")
    fs.close(fs.open("f", os.O_WRONLY | os.O_TRUNC))
    same((rig.share / "f").read_bytes(), b"", "the file")


@CASES.case("open-refused", "FUSE OPEN", needs=NEEDS)
def open_refused(rig: GuestRig) -> None:
    """A directory cannot be written, a missing file not opened, an unreadable one not by other users."""
    fs = rig.boot()
    (rig.share / "dir").mkdir()
    (rig.share / "secret").write_text("secret")
    (rig.share / "secret").chmod(0o600)
    raises("EISDIR", lambda: fs.open("dir", os.O_WRONLY))
    raises("ENOENT", lambda: fs.open("none", os.O_RDONLY))
    if not os.geteuid():
        with fs.as_user(4321, 4321):
            raises("EACCES", lambda: fs.open("secret", os.O_RDONLY))


@CASES.case("host-changes", "FUSE READ, GETATTR", needs=NEEDS)
def host_changes(rig: GuestRig) -> None:
    """Content and size that change on the host are seen by the guest that caches nothing."""
    fs = rig.boot()
    fd = fs.open("f", os.O_CREAT | os.O_RDWR)
    for number in range(5):
        (rig.share / "f").write_bytes(b"x" * number * 1000)
        same(fs.fstat(fd).st_size, number * 1000, "the size")
        same(len(fs.pread(fd, 9999, 0)), number * 1000, "bytes read")


@CASES.case("sync", "FUSE FSYNC, FLUSH, SYNCFS", needs=NEEDS)
def sync(rig: GuestRig) -> None:
    """fsync, fdatasync and sync succeed, on files and directories."""
    fs = rig.boot()
    fd = fs.open("f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"data")
    fs.fsync(fd)
    fs.fdatasync(fd)
    directory = fs.open(".", os.O_RDONLY | os.O_DIRECTORY)
    fs.fsync(directory)
    fs.sync()


@CASES.case("readdir", "FUSE READDIR, READDIRPLUS", needs=NEEDS)
def readdir(rig: GuestRig) -> None:
    """Every one of 1000 names is listed once, with READDIRPLUS as well as with READDIR."""
    names = {f"name-{number:04d}{'x' * (number % 90)}" for number in range(1000)}
    for name in names:
        (rig.share / name).touch()
    fs = rig.boot(guest=GuestConfig(readdirplus=True))
    found = fs.listdir(".")
    same((len(found), set(found) ^ names), (1000, set()), "how many names, and which are foreign or missing")


@CASES.case("readdir-plain", "FUSE READDIR", needs=NEEDS)
def readdir_plain(rig: GuestRig) -> None:
    """The same without READDIRPLUS, and entries know their kind."""
    (rig.share / "dir").mkdir()
    (rig.share / "file").touch()
    os.symlink("x", rig.share / "link")
    fs = rig.boot(guest=GuestConfig(readdirplus=False))
    with fs.scandir(".") as entries:
        found = {each.name: (each.is_dir(follow_symlinks=False), each.is_symlink()) for each in entries}
    same(found, {"dir": (True, False), "file": (False, False), "link": (False, True)}, "entries")


@CASES.case("readdir-positions", "FUSE READDIR", needs=NEEDS)
def readdir_positions(rig: RingRig) -> None:
    """Reading goes on at the offset of any entry: no name is missing and none comes twice."""
    for number in range(120):
        (rig.share / f"n{number:03d}").touch()
    device = rig.device()
    nodeid = device.lookup(rig.home).nodeid if rig.home != "/" else 1
    fh = device.ok(op.OPENDIR, nodeid, (0, 0)).fh
    names, offset = [], 0
    while True:
        body = device.ok(op.READDIR, nodeid, (fh, offset, 300, 0, 0, 0, 0), size=300)
        entries = list(decode_dirents(body))
        if not entries:
            break
        names.append(entries[0][1])
        offset = entries[0][0].off
        check(len(names) < 200, "the end of the directory")
    same(sorted(names), sorted(set(names)), "names, each once")
    same(len([name for name in names if name.startswith(b"n")]), 120, "names")
    device.ok(op.RELEASEDIR, nodeid, (fh, 0, 0, 0))


@CASES.case("xattr", "FUSE SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR", needs=NEEDS, options=XATTR)
def xattr(rig: GuestRig) -> None:
    """Extended attributes reach the host, are listed, replaced and removed; a short buffer is no problem."""
    fs = rig.boot()
    (rig.share / "f").touch()
    offered("SETXATTR", lambda: fs.setxattr("f", "user.one", b"1"))
    fs.setxattr("f", "user.two", b"x" * 3000)
    same(os.getxattr(rig.share / "f", "user.two"), b"x" * 3000, "the value on the host")
    same(sorted(fs.listxattr("f")), ["user.one", "user.two"], "names")
    raises("EEXIST", lambda: fs.setxattr("f", "user.one", b"2", os.XATTR_CREATE))
    raises("ENODATA", lambda: fs.getxattr("f", "user.three"))
    fs.removexattr("f", "user.one")
    same(os.listxattr(rig.share / "f"), ["user.two"], "names on the host")
    same(fs.getxattr("f", "user.two"), b"x" * 3000, "the value in the guest")


@CASES.case("fallocate", "FUSE FALLOCATE", needs=NEEDS)
def fallocate(rig: GuestRig) -> None:
    """Space is allocated, and punched out again."""
    fs = rig.boot()
    fd = fs.open("f", os.O_CREAT | os.O_RDWR)
    offered("FALLOCATE", lambda: fs.posix_fallocate(fd, 0, 65536))
    same((rig.share / "f").stat().st_size, 65536, "the size on the host")
    fs.pwrite(fd, b"x" * 65536, 0)
    offered("punching holes", lambda: fs.fallocate(fd, 3, 4096, 8192))
    wanted = b"x" * 4096 + bytes(8192) + b"x" * (65536 - 12288)
    same((rig.share / "f").read_bytes() == wanted, True, "a hole of two pages")


@CASES.case("lseek", "FUSE LSEEK", needs=NEEDS)
def lseek(rig: GuestRig) -> None:
    """SEEK_DATA and SEEK_HOLE find what the host finds; past the end is ENXIO."""
    with (rig.share / "f").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"x" * 4096)
        file.truncate(4 << 20)
    fs = rig.boot()
    fd, host = fs.open("f", os.O_RDONLY), os.open(rig.share / "f", os.O_RDONLY)
    try:
        offered("LSEEK", lambda: fs.lseek(fd, 0, os.SEEK_DATA))
        for offset in (0, 1 << 20, (1 << 20) + 4096):
            same(fs.lseek(fd, offset, os.SEEK_HOLE), os.lseek(host, offset, os.SEEK_HOLE), "the next hole")
        same(fs.lseek(fd, 0, os.SEEK_DATA), os.lseek(host, 0, os.SEEK_DATA), "the first data")
        raises("ENXIO", lambda: fs.lseek(fd, 8 << 20, os.SEEK_DATA))
    finally:
        os.close(host)


@CASES.case("copy-file-range", "FUSE COPY_FILE_RANGE", needs=NEEDS)
def copy_file_range(rig: GuestRig) -> None:
    """A range is copied from file to file by the server."""
    (rig.share / "from").write_bytes(b"0123456789" * 100)
    fs = rig.boot()
    source, target = fs.open("from", os.O_RDONLY), fs.open("to", os.O_CREAT | os.O_RDWR)
    offered("COPY_FILE_RANGE", lambda: fs.copy_file_range(source, target, 0, 5, 0))
    same(fs.copy_file_range(source, target, 500, 5, 5), 500, "bytes copied")
    same(fs.fstat(target).st_size, 505, "the size of the copy")
    same((rig.share / "to").read_bytes()[5:], (b"0123456789" * 100)[5:505], "the copy")


@CASES.case("forget", "FUSE FORGET, BATCH_FORGET", needs=NEEDS)
def forget(rig: RingRig) -> None:
    """A node stays while it was looked up more often than forgotten, and another LOOKUP finds it again."""
    (rig.share / "f").write_text("x")
    device = rig.device()
    path = f"{rig.home}/f"
    first = device.lookup(path)
    again = device.lookup(path)
    same(again.nodeid, first.nodeid, "the nodeid, looked up twice")
    device.fuse(op.FORGET, first.nodeid, (1,))
    same(device.getattr(first.nodeid).size, 1, "its size after one FORGET")
    device.fuse(op.BATCH_FORGET, 0, (1, 0), data=struct.pack("<QQ", first.nodeid, 1))
    device.front.barrier()
    same(device.lookup(path).size, 1, "its size, looked up afresh")


@CASES.case("stale", "FUSE GETATTR, READ", needs=NEEDS)
def stale(rig: RingRig) -> None:
    """Nodes and handles that were never given out are EBADF, ENOENT or ESTALE; so is a foreign handle."""
    (rig.share / "f").write_text("x")
    device = rig.device()
    nodeid = device.lookup(f"{rig.home}/f").nodeid
    fh = device.ok(op.OPEN, nodeid, (os.O_RDONLY, 0)).fh
    wrong = (errno.EBADF, errno.ENOENT, errno.ESTALE, errno.EINVAL)
    for opcode, node, args in (
        (op.GETATTR, 424242, (0, 0, 0)), (op.READ, nodeid, (fh + 77, 0, 16, 0, 0, 0, 0)),
        (op.READ, 424242, (fh, 0, 16, 0, 0, 0, 0)), (op.RELEASE, nodeid, (fh + 77, 0, 0, 0)),
    ):  # fmt: skip
        came = device.fuse(opcode, node, args, size=16).error
        check(came in wrong, "EBADF, ENOENT, ESTALE or EINVAL", came)
    same(device.ok(op.READ, nodeid, (fh, 0, 16, 0, 0, 0, 0), size=16), b"x", "what the right handle reads")


@CASES.case("unknown-opcode", "FUSE opcodes")
def unknown_opcode(rig: RingRig) -> None:
    """Opcodes that nobody knows are ENOSYS."""
    device = rig.device()
    for opcode in (7, 19, 60, 9999):
        request = bytearray(device.request(op.GETATTR, 1, (0, 0, 0)))
        request[4:8] = opcode.to_bytes(4, "little")
        reply = device.exchange([bytes(request)], [120])
        same(device.decoded(op.GETATTR, reply).error, errno.ENOSYS, f"errno of opcode {opcode}")


@CASES.case("init-again", "FUSE INIT")
def init_again(rig: RingRig) -> None:
    """A second INIT begins a new session; DESTROY ends it."""
    device = rig.device()
    device.ok(op.OPENDIR, 1, (0, 0))
    device.init()
    device.getattr()
    device.exchange([device.request(op.DESTROY, 0)], [])
    device.init()
    device.getattr()


@CASES.case("init-versions", "FUSE INIT")
def init_versions(rig: RingRig) -> None:
    """A newer major is answered with 7 alone; an older one and minor 5 are refused or answered so."""
    device = rig.device(init=False)
    reply = device.exchange([device.request(op.INIT, 0, (8, 0, 0, 0, 0, b""))], [80])
    check(reply[16:20] == b"\x07\0\0\0", "major 7", reply[16:24].hex())
    answer = device.fuse(op.INIT, 0, (6, 0, 0, 0, 0, b""))
    same(answer.error, errno.EPROTO, "errno of major 6")
    device.init()
    device.getattr()
