"""Requests that no honest guest sends. The back-end answers with an error, or not at all, and lives on."""

from __future__ import annotations

import errno
import os
import struct

from vmsim.check.case import SHARE, Group
from vmsim.check.device import HIPRIO, REQUESTS, GivenUp, RawDriver
from vmsim.check.outcome import check, fail
from vmsim.check.rigs import RingRig
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.headers import OUT_HEADER

CASES = Group("hostile")
FUSE = "FUSE in_header; virtio 1.3 section 5.11.6"
NEEDS = (SHARE,)
ENTRY_ROOM = 16 + 128
FH = 12345
"""A handle that nobody gave out."""


def survives(
    device: RawDriver, readable: list[bytes], writable: list[int], *, ring: int = REQUESTS
) -> bytes | None:
    """Post a chain, and find the device working afterwards, if need be after a reset; what was written.

    None if the back-end gave the ring up.
    """
    posted = device.post(readable, writable, ring=ring)
    try:
        _, length = device.used(ring)
        reply = device.written(posted, length)
    except GivenUp:
        device.recover()
        reply = None
    device.getattr()
    return reply


def refused(device: RawDriver, request: bytes, room: int, *, errnos: tuple[int, ...] = ()) -> None:
    """The request must be answered with an error (one of ``errnos``), or the ring given up; both survived."""
    reply = survives(device, [request], [room])
    if reply is None:
        return
    if len(reply) < OUT_HEADER.size:
        return  # an answer without a header is no success either
    error = -OUT_HEADER.unpack(reply).error
    if not error or (errnos and error not in errnos):
        names = " or ".join(errno.errorcode[each] for each in errnos) or "an error"
        fail(names, errno.errorcode.get(error, "success") if error else "success")


def sized(request: bytes, length: int | None = None) -> bytes:
    """The request with another length in its header, by default the right one."""
    return struct.pack("<I", len(request) if length is None else length) + request[4:]


def file(rig: RingRig, device: RawDriver, content: bytes = b"content") -> tuple[int, int]:
    """A file's nodeid, and a handle for reading and writing."""
    (rig.share / "f").write_bytes(content)
    nodeid = device.lookup(f"{rig.home}/f").nodeid
    return nodeid, device.ok(op.OPEN, nodeid, (os.O_RDWR, 0)).fh


@CASES.case("lookup-without-nul", "FUSE LOOKUP")
def lookup_without_nul(rig: RingRig) -> None:
    """LOOKUP of a name without NUL at its end."""
    device = rig.device()
    refused(device, sized(device.request(op.LOOKUP, 1, (), (b"no-end",))[:-1]), ENTRY_ROOM)


@CASES.case("lookup-interior-nul", "FUSE LOOKUP")
def lookup_interior_nul(rig: RingRig) -> None:
    """LOOKUP of a name with a NUL in its middle."""
    device = rig.device()
    refused(device, device.request(op.LOOKUP, 1, (), (b"in\0side",)), ENTRY_ROOM)


@CASES.case("lookup-empty", "FUSE LOOKUP")
def lookup_empty(rig: RingRig) -> None:
    """LOOKUP of an empty name."""
    device = rig.device()
    refused(device, device.request(op.LOOKUP, 1, (), (b"",)), ENTRY_ROOM)


@CASES.case("lookup-no-name", "FUSE LOOKUP")
def lookup_no_name(rig: RingRig) -> None:
    """LOOKUP without any name."""
    device = rig.device()
    refused(device, sized(device.request(op.LOOKUP, 1)), ENTRY_ROOM)


@CASES.case("write-offset-huge", "FUSE WRITE", needs=NEEDS)
def write_offset_huge(rig: RingRig) -> None:
    """WRITE at offset 2^64 - 1."""
    device = rig.device()
    nodeid, fh = file(rig, device)
    request = device.request(op.WRITE, nodeid, (fh, (1 << 64) - 1, 4, 0, 0, 0, 0), data=b"data")
    refused(device, request, 24)


@CASES.case("read-offset-huge", "FUSE READ", needs=NEEDS)
def read_offset_huge(rig: RingRig) -> None:
    """READ at offset 2^63."""
    device = rig.device()
    nodeid, fh = file(rig, device)
    refused(device, device.request(op.READ, nodeid, (fh, 1 << 63, 16, 0, 0, 0, 0)), 32)


@CASES.case("read-size-huge", "FUSE READ", needs=NEEDS)
def read_size_huge(rig: RingRig) -> None:
    """READ of 4 GiB into a small buffer: an error, or no more than fits."""
    device = rig.device()
    nodeid, fh = file(rig, device, b"x" * 8192)
    survives(device, [device.request(op.READ, nodeid, (fh, 0, 0xFFFFFFFF, 0, 0, 0, 0))], [16 + 4096])


@CASES.case("write-size-larger", "FUSE WRITE", needs=NEEDS)
def write_size_larger(rig: RingRig) -> None:
    """WRITE that announces more data than it brings writes no more than that."""
    device = rig.device()
    nodeid, fh = file(rig, device, b"")
    survives(device, [device.request(op.WRITE, nodeid, (fh, 0, 1 << 20, 0, 0, 0, 0), data=b"data")], [24])
    check((rig.share / "f").stat().st_size <= 4, "at most 4 bytes in the file", "there are more")


def setxattr(device: RawDriver, nodeid: int, name: bytes, size: int, value: bytes) -> bytes:
    """SETXATTR as it was negotiated."""
    extended = bool(device.flags >> 29 & 1)
    args = (size, 0, 0, 0) if extended else (size, 0)
    return device.request(op.SETXATTR, nodeid, args, (name,), value, compat=not extended)


@CASES.case("setxattr-name-bytes", "FUSE SETXATTR", needs=NEEDS, options=("--xattr",))
def setxattr_name_bytes(rig: RingRig) -> None:
    """SETXATTR with a name that is not UTF-8."""
    device = rig.device()
    nodeid, _ = file(rig, device)
    survives(device, [setxattr(device, nodeid, b"user.\xff\xfe", 1, b"x")], [16])


@CASES.case("setxattr-size", "FUSE SETXATTR", needs=NEEDS, options=("--xattr",))
def setxattr_size(rig: RingRig) -> None:
    """SETXATTR whose size is not that of its value."""
    device = rig.device()
    nodeid, _ = file(rig, device)
    refused(device, setxattr(device, nodeid, b"user.a", 1000, b"short"), 16)


@CASES.case("getxattr-size-huge", "FUSE GETXATTR", needs=NEEDS, options=("--xattr",))
def getxattr_size_huge(rig: RingRig) -> None:
    """GETXATTR that asks for 4 GiB."""
    device = rig.device()
    nodeid, _ = file(rig, device)
    refused(device, device.request(op.GETXATTR, nodeid, (0xFFFFFFFF, 0), (b"user.a",)), 24)


def bad_length(rig: RingRig, length: int) -> None:
    """GETATTR and LOOKUP whose header announces another length."""
    device = rig.device()
    survives(device, [sized(device.request(op.GETATTR, 1, (0, 0, 0)), length)], [120])
    survives(device, [sized(device.request(op.LOOKUP, 1, (), (b"name",)), length)], [ENTRY_ROOM])


@CASES.case("length-zero", FUSE)
def length_zero(rig: RingRig) -> None:
    """A request of length 0."""
    bad_length(rig, 0)


@CASES.case("length-short", FUSE)
def length_short(rig: RingRig) -> None:
    """A request of length 20, less than its header."""
    bad_length(rig, 20)


@CASES.case("length-larger", FUSE)
def length_larger(rig: RingRig) -> None:
    """A request that announces more bytes than it has."""
    bad_length(rig, 5000)


@CASES.case("length-2-mib", FUSE)
def length_2_mib(rig: RingRig) -> None:
    """A request that announces 2 MiB."""
    bad_length(rig, 2 << 20)


@CASES.case("header-cut", FUSE)
def header_cut(rig: RingRig) -> None:
    """A request of 12 bytes, not even a header."""
    device = rig.device()
    survives(device, [bytes(12)], [120])


@CASES.case("getattr-nothing-writable", FUSE)
def getattr_nothing_writable(rig: RingRig) -> None:
    """GETATTR without room for an answer."""
    device = rig.device()
    survives(device, [device.request(op.GETATTR, 1, (0, 0, 0))], [])


@CASES.case("read-nothing-writable", FUSE, needs=NEEDS)
def read_nothing_writable(rig: RingRig) -> None:
    """READ without room for an answer."""
    device = rig.device()
    nodeid, fh = file(rig, device)
    survives(device, [device.request(op.READ, nodeid, (fh, 0, 16, 0, 0, 0, 0))], [])


@CASES.case("room-too-small", FUSE)
def room_too_small(rig: RingRig) -> None:
    """GETATTR with 8 bytes of room, less than a header."""
    device = rig.device()
    survives(device, [device.request(op.GETATTR, 1, (0, 0, 0))], [8])


@CASES.case("room-for-header-alone", FUSE)
def room_for_header_alone(rig: RingRig) -> None:
    """GETATTR with room for the header of its reply alone."""
    device = rig.device()
    survives(device, [device.request(op.GETATTR, 1, (0, 0, 0))], [16])


@CASES.case("nothing-readable", FUSE)
def nothing_readable(rig: RingRig) -> None:
    """A chain with nothing to read."""
    device = rig.device()
    survives(device, [], [120])


@CASES.case("batch-forget-count", "FUSE BATCH_FORGET")
def batch_forget_count(rig: RingRig) -> None:
    """BATCH_FORGET that announces a million entries and brings one."""
    device = rig.device()
    request = device.request(op.BATCH_FORGET, 0, (1_000_000, 0), data=struct.pack("<QQ", 99, 1))
    survives(device, [request], [], ring=HIPRIO)


@CASES.case("extension-huge", "FUSE ext_header", needs=NEEDS)
def extension_huge(rig: RingRig) -> None:
    """CREATE with an extension record of 4 GiB."""
    device = rig.device()
    home = device.lookup(rig.home).nodeid if rig.home != "/" else 1
    record = struct.pack("<II", 0xFFFFFFF8, 32) + struct.pack("<II", 1, 5)
    request = device.request(
        op.CREATE, home, (os.O_RDWR, 0o600, 0, 0), (b"made",), extensions=record
    )
    survives(device, [request], [16 + 128 + 16])


@CASES.case("forget-root", "FUSE FORGET")
def forget_root(rig: RingRig) -> None:
    """FORGET of the root, 2^64 - 1 times: the root stays."""
    device = rig.device()
    survives(device, [device.request(op.FORGET, 1, ((1 << 64) - 1,))], [], ring=HIPRIO)


@CASES.case("forget-too-often", "FUSE FORGET", needs=NEEDS)
def forget_too_often(rig: RingRig) -> None:
    """FORGET more often than LOOKUP."""
    device = rig.device()
    nodeid, _ = file(rig, device)
    survives(device, [device.request(op.FORGET, nodeid, (1 << 40,))], [], ring=HIPRIO)
    device.lookup(f"{rig.home}/f")


@CASES.case("readdir-of-file", "FUSE READDIR", needs=NEEDS)
def readdir_of_file(rig: RingRig) -> None:
    """READDIR on the handle of a file, READ on that of a directory."""
    device = rig.device()
    nodeid, fh = file(rig, device)
    refused(device, device.request(op.READDIR, nodeid, (fh, 0, 4096, 0, 0, 0, 0)), 16 + 4096)
    handle = device.ok(op.OPENDIR, 1, (0, 0)).fh
    refused(device, device.request(op.READ, 1, (handle, 0, 16, 0, 0, 0, 0)), 32)


@CASES.case("readdir-huge", "FUSE READDIR")
def readdir_huge(rig: RingRig) -> None:
    """READDIR of 2 MiB into 4 KiB: an error, or no more than fits."""
    device = rig.device()
    fh = device.ok(op.OPENDIR, 1, (0, 0)).fh
    for opcode in (op.READDIR, op.READDIRPLUS):
        survives(device, [device.request(opcode, 1, (fh, 0, 2 << 20, 0, 0, 0, 0))], [16 + 4096])


@CASES.case("readdir-offset", "FUSE READDIR")
def readdir_offset(rig: RingRig) -> None:
    """READDIR at offsets that no entry has."""
    device = rig.device()
    fh = device.ok(op.OPENDIR, 1, (0, 0)).fh
    for offset in (1 << 63, (1 << 64) - 1, 12345678901234567):
        survives(device, [device.request(op.READDIR, 1, (fh, offset, 4096, 0, 0, 0, 0))], [16 + 4096])


@CASES.case("numbers-out-of-range", "FUSE LSEEK, FALLOCATE, SETATTR", needs=NEEDS)
def numbers_out_of_range(rig: RingRig) -> None:
    """LSEEK with whence 99, FALLOCATE and SETATTR with sizes of 2^63 and more."""
    device = rig.device()
    nodeid, fh = file(rig, device)
    huge = (1 << 63) + 5
    size_valid = 1 << 3
    setattr_args = (size_valid, 0, 0, huge, *[0] * 12)
    refused(device, device.request(op.LSEEK, nodeid, (fh, 0, 99, 0)), 24)
    refused(device, device.request(op.FALLOCATE, nodeid, (fh, huge, huge, 0, 0)), 16)
    refused(device, device.request(op.SETATTR, nodeid, setattr_args), 120)


@CASES.case("open-special", "FUSE OPEN", needs=NEEDS)
def open_special(rig: RingRig) -> None:
    """OPEN of a FIFO and of a symlink is refused: their other end would be on the host."""
    device = rig.device()
    os.mkfifo(rig.share / "fifo")
    os.symlink("fifo", rig.share / "link")
    for name in ("fifo", "link"):
        nodeid = device.lookup(f"{rig.home}/{name}").nodeid
        refused(device, device.request(op.OPEN, nodeid, (os.O_RDWR | os.O_NONBLOCK, 0)), 32)


@CASES.case("foreign-handle", "FUSE READ, GETATTR", needs=NEEDS)
def foreign_handle(rig: RingRig) -> None:
    """Handles that were never given out, for every request that has one."""
    device = rig.device()
    nodeid, _ = file(rig, device)
    for opcode, args, room in (
        (op.READ, (FH, 0, 16, 0, 0, 0, 0), 32), (op.WRITE, (FH, 0, 0, 0, 0, 0, 0), 24),
        (op.READDIR, (FH, 0, 16, 0, 0, 0, 0), 32), (op.FSYNC, (FH, 0, 0), 16),
        (op.FALLOCATE, (FH, 0, 1, 0, 0), 16), (op.LSEEK, (FH, 0, 0, 0), 24),
        (op.RELEASE, (FH, 0, 0, 0), 16), (op.RELEASEDIR, (FH, 0, 0, 0), 16),
    ):  # fmt: skip
        refused(device, device.request(opcode, nodeid, args), room)


@CASES.case("noise", FUSE)
def noise(rig: RingRig) -> None:
    """Random bytes behind headers of random opcodes, each time with room for an answer."""
    device = rig.device()
    opcodes = [row for row in op.BY_NUMBER if row not in (op.DESTROY, op.INIT, op.FORGET, op.BATCH_FORGET)]
    for _ in range(60):
        body = rig.random.randbytes(rig.random.choice((0, 8, 16, 24, 40, 64, 100)))
        opcode = rig.random.choice(opcodes)
        nodeid = rig.random.choice((0, 1, 2, 1 << 63))
        header = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 77, nodeid, 0, 0, 1, 0, 0)
        survives(device, [header + body], [4096])


@CASES.case("before-init", "FUSE INIT")
def before_init(rig: RingRig) -> None:
    """Requests before INIT are refused, or answered; INIT works afterwards."""
    device = rig.device(init=False)
    device.post([device.request(op.GETATTR, 1, (0, 0, 0))], [120])
    try:
        device.used()
    except GivenUp:
        device.recover()
    device.init()
    device.getattr()
