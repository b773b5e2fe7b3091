"""Defects D1 to D5 of virtiofsd 1.13.2 (reference section 2.5) are none of ours; D6: test_restore_hostile."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from devices.virtio_fs.state import blob, records
from devices.virtio_fs.state.records import HandleRecord, InodeRecord, NegotiatedOpts, StateBlob
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags as flag
from vmsim.fuse.client import decode, encode, encode_extensions, reply_room

ACL = bytes.fromhex("02000000" "01000600ffffffff" "04000400ffffffff" "20000400ffffffff")


def request(guest, opcode: int, nodeid: int, args=(), names=(), data=b"", uid=0, gid=0, **more):
    """One request through the session, as bytes, the way a guest sends it."""
    raw = encode(opcode, 77, nodeid, uid, gid, 1, args, names, data, **more)
    reply = bytearray(reply_room(opcode, 4096))
    written = guest.session.handle([memoryview(raw)], [memoryview(reply)], lambda count: None)
    return decode(opcode, memoryview(reply)[:written], 77)


@pytest.mark.parametrize("extension", [True, False])
def test_d1_setxattr_with_posix_acl_after_a_migration(make_guest, share, extension):
    """virtiofsd forgets SETXATTR_EXT, parses 16 bytes of arguments as 8, and dies."""
    guest = make_guest(boot=True, posix_acl=True)
    node = guest.lookup("g")
    other = make_guest(posix_acl=True).load(guest.save(extension=extension))
    for server in (guest, other):
        assert server.session.state.has(flag.SETXATTR_EXT)
        answer = request(
            server, op.SETXATTR, node, (len(ACL), 0, 1, 0), (b"system.posix_acl_access",), ACL
        )
        assert answer.error in (0, errno.EOPNOTSUPP)
    assert request(other, op.SETXATTR, node, (5, 0, 0, 0), (b"user.after",), b"value").error in (
        0, errno.EOPNOTSUPP,
    )  # fmt: skip
    assert request(other, op.GETATTR, node, (0, 0, 0)).error == 0


@pytest.mark.parametrize("extension", [True, False])
@pytest.mark.skipif(os.getuid() != 0, reason="acting for others needs root")
def test_d2_the_supplementary_group_of_a_creating_request(make_guest, share, tmp_path, extension):
    """virtiofsd ignores the extension record after a migration: EACCES in place of success."""
    for directory in (tmp_path.parent, tmp_path, share):
        directory.chmod(0o755)
    box = share / "box"
    box.mkdir()
    os.chown(box, 0, 4242)
    box.chmod(0o770)
    guest = make_guest(boot=True)
    node = guest.lookup("box")
    other = make_guest().load(guest.save(extension=extension))
    for number, server in enumerate((guest, other)):
        answer = request(
            server, op.MKDIR, node, (0o755, 0), (b"made-%d" % number,), uid=1000, gid=1000,
            extensions=encode_extensions(groups=[4242]),
        )
        assert answer.error == 0, errno.errorcode[answer.error]


def test_d3_a_handle_for_writing_only_is_read_through_with_writeback(make_guest):
    """virtiofsd opens it O_RDWR, writes O_WRONLY into the blob, and READ is EBADF afterwards."""
    guest = make_guest(boot=True, writeback=True)
    node, fh = guest.create(1, b"new", os.O_WRONLY)
    guest.write(node, fh, b"data")
    old = guest.lookup("g")
    old_fh = guest.open(old, os.O_WRONLY)
    data = guest.save()
    for record in blob.decode(data)[0].handles:
        assert record.flags & os.O_ACCMODE == os.O_RDWR
    other = make_guest(writeback=True).load(data)
    assert other.read(node, fh) == b"data"
    assert other.read(old, old_fh) == b"content of g"
    assert [(h.flags, h.guest_flags) for h in other.fs.handles] == [
        (h.flags, h.guest_flags) for h in guest.fs.handles
    ]


def test_d3_also_for_a_state_that_virtiofsd_wrote(make_guest):
    state = StateBlob(
        [InodeRecord(1, 3, records.ROOT), InodeRecord(2, 1, records.PATH, 1, b"g")], 3,
        [HandleRecord(0, 2, os.O_WRONLY)], 1, NegotiatedOpts(writeback=True),
    )  # fmt: skip
    other = make_guest(writeback=True).load(bytes(blob.encode(state)))
    assert other.read(2, 0) == b"content of g"


@pytest.mark.parametrize("writeback", [True, False])
def test_d4_a_file_made_with_o_append_is_not_reopened_with_it(make_guest, share, writeback):
    """virtiofsd reopens it O_APPEND, and a cached write at offset 0 lands at the end: BBAACC for CCAA."""
    guest = make_guest(boot=True, writeback=writeback)
    node, fh = guest.create(1, b"log", os.O_RDWR | os.O_APPEND)
    guest.write(node, fh, b"BBAA")
    data = guest.save()
    assert blob.decode(data)[0].handles[0].flags & os.O_APPEND == 0
    other = make_guest(writeback=writeback).load(data)
    other.write(node, fh, b"CC", 0)
    assert (share / "log").read_bytes() == b"CCAA"


def test_d4_also_for_a_state_that_virtiofsd_wrote(make_guest, share):
    state = StateBlob(
        [InodeRecord(1, 3, records.ROOT), InodeRecord(2, 1, records.PATH, 1, b"g")], 3,
        [HandleRecord(0, 2, os.O_RDWR | os.O_APPEND)], 1, NegotiatedOpts(writeback=True),
    )  # fmt: skip
    other = make_guest(writeback=True).load(bytes(blob.encode(state)))
    other.write(2, 0, b"CC", 0)
    assert (share / "g").read_bytes() == b"CCntent of g"


def test_a_file_without_permission_bits_is_opened_again_if_privileged(make_guest, share):
    guest = make_guest(boot=True)
    node, fh = guest.create(1, b"closed", os.O_RDWR, 0)
    guest.write(node, fh, b"data")
    assert stat.S_IMODE((share / "closed").stat().st_mode) == 0
    data = guest.save()
    if os.getuid() == 0:
        assert make_guest().load(data).read(node, fh) == b"data"


def test_d5_nothing_waits_when_the_state_is_written(make_guest):
    """What waits for a lock is parked and listed, so that nothing is lost or answered twice."""
    guest = make_guest(boot=True)
    node = guest.lookup("g")
    first, second = guest.open(node), guest.open(node)
    lock = (0, 9, 1, 1)
    assert request(guest, op.SETLKW, node, (first, 1, *lock, 0, 0)).error == 0
    answers: list[int] = []
    raw = encode(op.SETLKW, 99, node, 0, 0, 1, (second, 2, *lock, 0, 0))
    reply = bytearray(reply_room(op.SETLKW))
    assert guest.session.handle([memoryview(raw)], [memoryview(reply)], answers.append) is None
    data = guest.save()
    assert guest.session.waiting() == [99]
    assert guest.session.park() == [99]
    assert answers == []
    guest.fs.suspend_locks()
    other = make_guest().load(data)
    assert other.session.handle([memoryview(raw)], [memoryview(reply)], answers.append) is None
    assert request(other, op.SETLK, node, (first, 1, 0, 9, 2, 1, 0, 0)).error == 0
    assert len(answers) == 1
    assert decode(op.SETLKW, memoryview(reply)[: answers[0]], 99).error == 0
