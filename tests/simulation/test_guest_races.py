"""Two programs of one guest at the same file: what the voyages found, one by one."""

from __future__ import annotations

import os

import pytest

from tests.support.guest_rig import GuestRig
from vmsim.fuse import opcodes as op
from vmsim.guest.calls.posix import mount
from vmsim.schedule.seeded import SeededSchedule

PAGE = 4096


@pytest.fixture
def guest(tmp_path):
    """A guest with a writeback cache whose device answers when it is told to."""
    rig = GuestRig(
        tmp_path, schedule=SeededSchedule(1), cache="writeback", cache_pages=16, dentries=16,
        options={"writeback": True, "cache": "always"},
    )  # fmt: skip
    yield rig
    rig.schedule.close()
    rig.close()


def serve_all(rig, backwards=False):
    while rig.device.held:
        rig.device.serve(backwards)
        rig.schedule.settle()


def in_flight(rig):
    return [request.opcode for request in rig.kernel.requests.values()]


def cut(fs):
    fs.ftruncate(0, 100)


def reopen(fs):
    fs.close(fs.open("/f", os.O_WRONLY | os.O_TRUNC))


@pytest.mark.parametrize(("truncate", "size"), [(cut, 100), (reopen, 0)])
def test_nothing_is_written_out_while_a_file_is_truncated(guest, truncate, size, tmp_path):
    """A WRITE of what lies behind the new end would bring it back if it came after the truncation."""
    fs, schedule, device = guest.fs, guest.schedule, guest.device
    fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
    fs.write(fd, b"x" * 3 * PAGE)
    device.hold = True
    truncating = schedule.spawn("truncating", lambda: truncate(fs))
    schedule.settle()
    assert set(in_flight(guest)) <= {op.SETATTR, op.OPEN, op.LOOKUP}
    writing_out = schedule.spawn("writing out", lambda: mount(guest.kernel, 2).sync())
    schedule.settle()
    assert op.WRITE not in in_flight(guest)
    serve_all(guest)
    device.hold = False
    schedule.join(truncating)
    schedule.join(writing_out)
    fs.fsync(fd)
    assert fs.fstat(fd).st_size == size
    assert (tmp_path / "f").stat().st_size == size
    assert (tmp_path / "f").read_bytes() == b"x" * size


def test_a_truncation_that_fails_does_not_stop_write_out(guest, tmp_path):
    fs = guest.fs
    fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
    fs.write(fd, b"x" * PAGE)
    with pytest.raises(OSError, match="large"):
        fs.ftruncate(fd, (1 << 63) - 1)
    fs.fsync(fd)
    assert (tmp_path / "f").read_bytes() == b"x" * PAGE


def test_times_are_not_sent_through_a_file_that_is_being_closed(guest):
    """Whoever writes a file out uses a descriptor of somebody who wrote, and that one may close it."""
    fs, schedule, device = guest.fs, guest.schedule, guest.device
    other = mount(guest.kernel, 2)
    fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
    theirs = other.open("/f", os.O_RDWR)
    fs.write(fd, b"text")
    device.hold = True
    syncing = schedule.spawn("syncing", lambda: other.fsync(theirs))
    schedule.settle()
    assert in_flight(guest) == [op.WRITE]
    device.serve()
    schedule.settle()
    assert in_flight(guest) == [op.SETATTR]
    closing = schedule.spawn("closing", lambda: fs.close(fd))
    schedule.settle()
    assert in_flight(guest) == [op.SETATTR, op.FLUSH]
    device.answer(*device.held.pop())
    guest.kernel.poll()
    schedule.settle()
    serve_all(guest, backwards=True)
    device.hold = False
    for task in (syncing, closing):
        schedule.join(task)
    other.close(theirs)  # would report it


@pytest.mark.parametrize("writes", [1, 20])
def test_attributes_that_came_too_late_are_asked_for_again(writes, tmp_path):
    """A reply from before somebody's write is older in its size, and yet newer than what was known before."""
    rig = GuestRig(
        tmp_path, schedule=SeededSchedule(1), cache="writethrough", cache_pages=16, dentries=16,
        max_transfer=PAGE, options={"cache": "always"},
    )  # fmt: skip
    fs, other, schedule, device = rig.fs, mount(rig.kernel, 2), rig.schedule, rig.device
    fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
    theirs = other.open("/f", os.O_RDWR)
    assert fs.fstat(fd).st_nlink == 1
    fs.unlink("/f")
    device.hold = True
    looking = schedule.spawn("looking", lambda: fs.fstat(fd))
    writing = schedule.spawn("writing", lambda: [other.write(theirs, b"x" * PAGE) for _ in range(writes)])
    schedule.settle()
    assert sorted(in_flight(rig)) == [op.GETATTR, op.WRITE]
    while not looking.done:
        getattr_first = sorted(device.held, key=lambda held: bytes(held[1].readable[0][4:8]))
        device.held = []
        for index, chain in getattr_first:
            device.answer(index, chain)
        while not (looking.done or device.held):
            schedule.settle()
    found = looking.result()
    assert found.st_nlink == 0
    assert found.st_size % PAGE == 0
    serve_all(rig)
    schedule.join(writing)
    device.hold = False
    assert fs.fstat(fd).st_size == writes * PAGE
    schedule.close()
    rig.close()
