"""What a state easily forgets: what INIT agreed on, how files are really open, requests not yet answered."""

from __future__ import annotations

import errno
import os

from vmsim.check.case import PAIR, SHARE, Group
from vmsim.check.device import REQUESTS, RawDriver
from vmsim.check.outcome import NotOffered, check, same
from vmsim.check.rigs import RingRig
from vmsim.check.transfer import handed_over
from vmsim.errors import HostError
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags as flag
from vmsim.fuse.client import encode_extensions, reply_room
from vmsim.host.lease import Lease
from vmsim.vhost import payloads as p

CASES = Group("migration")
NEEDS = (SHARE, PAIR)
SPEC = "virtio 1.3 section 5.11: what INIT negotiated belongs to the state"
OPEN_FLAGS = "FUSE OPEN, CREATE"
ACL = bytes.fromhex("02000000" "01000600ffffffff" "04000400ffffffff" "20000400ffffffff")
WRITEBACK = ("--writeback",)
EARLY_S = 1.0
"""For a busy machine too this is long for an answer that waits for nothing."""


def negotiated(device: RawDriver, mask: int, name: str) -> None:
    """NotOffered unless INIT agreed on it."""
    if not device.flags & mask:
        raise NotOffered(f"INIT does not agree on {name} (for virtiofsd an option of its own)")


def home(rig: RingRig, device: RawDriver) -> int:
    """The nodeid of the case's directory."""
    return int(device.lookup(rig.home).nodeid) if rig.home != "/" else 1


@CASES.case("setxattr-size", SPEC, needs=NEEDS, options=("--xattr", "--posix-acl"))
def setxattr_size(rig: RingRig) -> None:
    """D1: SETXATTR has 16 bytes of arguments after a migration if it had before (SETXATTR_EXT)."""
    (rig.share / "f").touch()
    device = rig.device()
    negotiated(device, flag.SETXATTR_EXT, "SETXATTR_EXT")
    nodeid = device.lookup(f"{rig.home}/f").nodeid

    def set_acl(where: RawDriver) -> int:
        args = (len(ACL), 0, 0, 0)
        return where.fuse(op.SETXATTR, nodeid, args, (b"system.posix_acl_access",), ACL).error

    before = set_acl(device)
    check(before in (0, errno.EOPNOTSUPP), "SETXATTR works before", before)
    same(set_acl(handed_over(rig, device)), before, "SETXATTR's errno after the migration")


@CASES.case("supplementary-group", SPEC, needs=NEEDS)
def supplementary_group(rig: RingRig) -> None:
    """D2: the extension record with a group counts after a migration if it did before."""
    if os.geteuid():
        raise NotOffered("needs root")
    device = rig.device()
    negotiated(device, flag.CREATE_SUPP_GROUP, "CREATE_SUPP_GROUP")
    rig.share.chmod(0o755)
    box = rig.share / "box"
    box.mkdir()
    os.chown(box, 0, 4242)
    box.chmod(0o770)
    nodeid = device.lookup(f"{rig.home}/box").nodeid

    def make(where: RawDriver, name: bytes) -> int:
        extensions = encode_extensions(groups=[4242])
        return where.fuse_as(1000, 1000, op.MKDIR, nodeid, (0o755, 0), (name,), extensions=extensions).error

    same(make(device, b"before"), 0, "MKDIR's errno before")
    same(make(handed_over(rig, device), b"after"), 0, "MKDIR's errno after the migration")


@CASES.case("writeback-read", OPEN_FLAGS, needs=NEEDS, options=WRITEBACK)
def writeback_read(rig: RingRig) -> None:
    """D3: with WRITEBACK_CACHE a file opened for writing alone can be read, after a migration as before."""
    (rig.share / "f").write_bytes(b"content")
    device = rig.device()
    negotiated(device, flag.WRITEBACK_CACHE, "WRITEBACK_CACHE")
    nodeid = device.lookup(f"{rig.home}/f").nodeid
    fh = device.ok(op.OPEN, nodeid, (os.O_WRONLY, 0)).fh
    args = (fh, 0, 100, 0, 0, 0, 0)
    same(device.ok(op.READ, nodeid, args, size=100), b"content", "what is read before")
    arrived = handed_over(rig, device)
    same(arrived.ok(op.READ, nodeid, args, size=100), b"content", "what is read after the migration")


def append_case(rig: RingRig, mask: int, name: str) -> None:
    """Writes at offset 0 to files that CREATE made with O_APPEND do the same on both sides."""
    device = rig.device()
    if mask:
        negotiated(device, mask, name)
    parent = home(rig, device)
    made = {}
    for file in (b"before", b"after"):
        args = (os.O_RDWR | os.O_APPEND, 0o600, 0, 0)
        entry = device.ok(op.CREATE, parent, args, (file,))
        made[file] = (entry.nodeid, entry.fh)
        device.ok(op.WRITE, entry.nodeid, (entry.fh, 0, 4, 0, 0, 0, 0), data=b"BBAA")

    def write(where: RawDriver, file: bytes) -> bytes:
        nodeid, fh = made[file]
        where.ok(op.WRITE, nodeid, (fh, 0, 2, 0, 0, 0, 0), data=b"CC")
        return (rig.share / os.fsdecode(file)).read_bytes()

    before = write(device, b"before")
    same(write(handed_over(rig, device), b"after"), before, "the file after a write at offset 0")


@CASES.case("append-writeback", OPEN_FLAGS, needs=NEEDS, options=WRITEBACK)
def append_writeback(rig: RingRig) -> None:
    """D4: with WRITEBACK_CACHE a file made with O_APPEND is written where the guest says, also afterwards."""
    append_case(rig, flag.WRITEBACK_CACHE, "WRITEBACK_CACHE")


@CASES.case("append", OPEN_FLAGS, needs=NEEDS)
def append(rig: RingRig) -> None:
    """D4 without a write-back cache: a file made with O_APPEND behaves the same after a migration."""
    append_case(rig, 0, "")


@CASES.case("threads-drained", "vhost-user 'Ring states'", needs=(SHARE,), options=("--thread-pool-size=4",))
def threads_drained(rig: RingRig) -> None:
    """D5: once GET_VRING_BASE is answered no thread of the back-end writes to the ring."""
    (rig.share / "f").write_bytes(b"x")
    device = rig.device()
    nodeid = device.lookup(f"{rig.home}/f").nodeid
    try:
        lease = Lease(rig.share / "f")
    except HostError as error:
        raise NotOffered(f"needs a file that an open waits for: {error}") from error
    with lease:
        posted = device.post([device.request(op.OPEN, nodeid, (os.O_RDWR, 0))], [reply_room(op.OPEN)])
        device.poll(lambda: lease.wanted, "the back-end has not opened the file")
        device.front.send("GET_VRING_BASE", p.VringState(REQUESTS, 0))
        # It may wait for the request, or give it up until the ring starts again; not serve it later unasked.
        if not device.front.probe.wait((device.front.probe.fd,), EARLY_S):
            lease.give_back()
        base = device.front.reply("GET_VRING_BASE").payload.num
        at = device.config(REQUESTS).device + 2
        used = device.memory.load_u16(at)
    if used != base:
        device.front.probe.wait((), EARLY_S)
    same(device.memory.load_u16(at), used, "used index of a ring that has stopped")
    device.start_ring(REQUESTS, base)
    device.kick()
    same(device.used()[0], posted.id, "the buffer used")


@CASES.case("truncating-flag", OPEN_FLAGS, needs=NEEDS)
def truncating_flag(rig: RingRig) -> None:
    """A file opened with O_TRUNC is not truncated again when it is opened at the destination."""
    (rig.share / "f").write_bytes(b"old")
    device = rig.device()
    nodeid = device.lookup(f"{rig.home}/f").nodeid
    fh = device.ok(op.OPEN, nodeid, (os.O_RDWR | os.O_TRUNC, 0)).fh
    device.ok(op.WRITE, nodeid, (fh, 0, 3, 0, 0, 0, 0), data=b"new")
    arrived = handed_over(rig, device)
    same(arrived.ok(op.READ, nodeid, (fh, 0, 9, 0, 0, 0, 0), size=9), b"new", "what is read after")


@CASES.case("next-numbers", SPEC, needs=NEEDS)
def next_numbers(rig: RingRig) -> None:
    """Nodeids and handles given out after a migration are not those in use from before."""
    for name in "abc":
        (rig.share / name).touch()
    device = rig.device()
    first = device.lookup(f"{rig.home}/a").nodeid
    handle = device.ok(op.OPEN, first, (os.O_RDONLY, 0)).fh
    arrived = handed_over(rig, device)
    other = arrived.lookup(f"{rig.home}/b").nodeid
    check(other not in (first, 1), "a new nodeid", other)
    check(arrived.ok(op.OPEN, other, (os.O_RDONLY, 0)).fh != handle, "a new handle", handle)


@CASES.case("lookup-counts", "FUSE FORGET", needs=NEEDS)
def lookup_counts(rig: RingRig) -> None:
    """A node looked up three times survives two FORGETs at the destination, and ends with the third."""
    (rig.share / "f").write_bytes(b"x")
    device = rig.device()
    for _ in range(3):
        nodeid = device.lookup(f"{rig.home}/f").nodeid
    arrived = handed_over(rig, device)
    for _ in range(2):
        arrived.fuse(op.FORGET, nodeid, (1,))
    same(arrived.getattr(nodeid).size, 1, "its size after two FORGETs")
    arrived.fuse(op.FORGET, nodeid, (1,))
    check(arrived.fuse(op.GETATTR, nodeid, (0, 0, 0)).error, "an error after the third FORGET", "success")


@CASES.case("release", "FUSE RELEASE", needs=NEEDS)
def release(rig: RingRig) -> None:
    """Handles from before the migration can be released, once."""
    (rig.share / "f").write_bytes(b"x")
    device = rig.device()
    nodeid = device.lookup(f"{rig.home}/f").nodeid
    fh = device.ok(op.OPEN, nodeid, (os.O_RDONLY, 0)).fh
    arrived = handed_over(rig, device)
    arrived.ok(op.RELEASE, nodeid, (fh, os.O_RDONLY, 0, 0))
    answer = arrived.fuse(op.READ, nodeid, (fh, 0, 10, 0, 0, 0, 0), size=10)
    same(answer.error, errno.EBADF, "errno of READ after RELEASE")
