"""POSIX locks per owner, flock per handle, waiting without blocking, interruption, and moving them."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.virtio_fs.passthrough.lock_table import END, HeldLock, Owner
from tests.support.direct_fs import refused
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import LK_FLOCK, RELEASE_FLOCK_UNLOCK

RD, WR, UN = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


class Locker:
    """One file, opened by name of a handle; ``ask`` answers None when the request waits."""

    def __init__(self, fs, share):
        self.path = share / "a"
        self.path.write_bytes(b"0123456789")
        self.fs = fs
        self.node = fs.ask(op.LOOKUP, 1, (), (b"a",)).nodeid

    def other(self):
        """Another file's node."""
        (self.path.parent / "b").touch()
        return self.fs.ask(op.LOOKUP, 1, (), (b"b",)).nodeid

    @contextmanager
    def on(self, node):
        """The block works on this node."""
        before, self.node = self.node, node
        yield
        self.node = before

    def open(self, flags=os.O_RDWR):
        return self.fs.ask(op.OPEN, self.node, (flags, 0)).fh

    def lock(self, fh, owner, start, end, kind, *, wait=False, flock=False):
        args = (fh, owner, start, end, kind, 4711, LK_FLOCK if flock else 0, 0)
        answer = self.fs.rig.call(op.SETLKW if wait else op.SETLK, self.node, args)
        return None if answer is None else answer.error

    def query(self, fh, owner, start, end, kind):
        return tuple(self.fs.ask(op.GETLK, self.node, (fh, owner, start, end, kind, 0, 0, 0)))

    @property
    def completed(self):
        return self.fs.rig.completed


@pytest.fixture
def locker(fs, share):
    return Locker(fs, share)


def test_owners_exclude_each_other(locker):
    fh = locker.open()
    assert locker.lock(fh, 1, 0, 4, WR) == 0
    assert locker.lock(fh, 2, 4, 9, RD) == errno.EAGAIN
    assert locker.lock(fh, 2, 5, 9, RD) == 0
    assert locker.lock(fh, 1, 5, 9, RD) == 0
    assert locker.lock(fh, 1, 5, 9, WR) == errno.EAGAIN
    assert locker.query(fh, 2, 0, 9, RD) == (0, 4, WR, 4711)
    assert locker.query(fh, 1, 0, 4, WR) == (0, 4, UN, 0)
    assert locker.lock(fh, 1, 0, END, UN) == 0
    assert locker.lock(fh, 2, 0, END, WR) == 0


def test_locks_are_real_on_the_host(locker):
    fh = locker.open()
    assert locker.lock(fh, 1, 0, 4, WR) == 0
    fd = os.open(locker.path, os.O_RDWR)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5)
        start, end, kind, pid = locker.query(fh, 1, 0, END, RD)
        assert (start, end, kind, pid) == (5, 9, WR, 0)
        assert locker.lock(fh, 1, 5, 9, RD) == errno.EAGAIN
    finally:
        os.close(fd)


def test_waiting_for_another_owner(locker):
    fh = locker.open()
    locker.lock(fh, 1, 0, 9, WR)
    assert locker.lock(fh, 2, 0, 9, WR, wait=True) is None
    assert locker.lock(fh, 3, 0, 9, WR, wait=True) is None
    assert locker.completed == []
    locker.lock(fh, 1, 0, 9, UN)
    assert locker.completed == [16]
    assert [lock.owner for lock in locker.fs.fs.locks.held()] == [2]
    locker.lock(fh, 2, 0, 9, UN)
    assert [lock.owner for lock in locker.fs.fs.locks.held()] == [3]


def test_waiting_for_somebody_on_the_host(locker):
    fh = locker.open()
    fd = os.open(locker.path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert locker.lock(fh, 1, 0, 0, WR, wait=True, flock=True) is None
    locker.fs.fs.retry_waiting()
    assert locker.completed == []
    os.close(fd)
    locker.fs.fs.retry_waiting()
    assert locker.completed == [16]


def test_a_circle_of_waits_is_a_deadlock(locker):
    """fcntl(2): EDEADLK for the one who would close the circle, over any number of owners."""
    fh = locker.open()
    for owner in (1, 2, 3):
        assert locker.lock(fh, owner, owner, owner, WR) == 0
    assert locker.lock(fh, 1, 2, 2, WR, wait=True) is None
    assert locker.lock(fh, 2, 3, 3, RD, wait=True) is None
    assert locker.lock(fh, 3, 1, 1, RD, wait=True) == errno.EDEADLK
    assert locker.lock(fh, 3, 1, 1, RD) == errno.EAGAIN, "without waiting there is no circle"
    assert locker.lock(fh, 4, 1, 1, WR, wait=True) is None, "who stands beside the circle just waits"
    assert len(locker.fs.fs.waits.waiting) == 3
    locker.lock(fh, 3, 3, 3, UN)
    assert len(locker.fs.fs.waits.waiting) == 2


def test_a_circle_over_two_files(locker):
    one, other = locker.open(), locker.other()
    assert locker.lock(one, 1, 0, END, WR) == 0
    with locker.on(other):
        fh = locker.open()
        assert locker.lock(fh, 2, 0, END, WR) == 0
        assert locker.lock(fh, 1, 0, END, WR, wait=True) is None
    assert locker.lock(one, 2, 5, 5, WR, wait=True) == errno.EDEADLK


def test_flocks_have_no_deadlocks(locker):
    """flock(2) does not look for them, and one owner may have several handles."""
    one, two = locker.open(), locker.open()
    locker.lock(one, 1, 0, 0, WR, flock=True)
    assert locker.lock(two, 1, 0, 0, WR, wait=True, flock=True) is None
    assert not locker.fs.fs.waits_outside()


def test_who_waits_for_the_outside(locker):
    fh = locker.open()
    fd = os.open(locker.path, os.O_RDWR)
    locker.fs.fs.host.set_lock(fd, WR, 0, 1)
    locker.lock(fh, 1, 5, 9, WR)
    assert locker.lock(fh, 2, 5, 9, WR, wait=True) is None
    assert not locker.fs.fs.waits_outside()
    assert locker.lock(fh, 1, 0, 0, WR, wait=True) is None
    assert locker.fs.fs.waits_outside()
    os.close(fd)
    locker.fs.fs.retry_waiting()
    assert not locker.fs.fs.waits_outside()


def test_interrupt_ends_a_wait(locker):
    fh = locker.open()
    locker.lock(fh, 1, 0, 9, WR)
    locker.lock(fh, 2, 0, 9, WR, wait=True)
    unique = locker.fs.rig.unique
    locker.fs.rig.call(op.INTERRUPT, 0, (unique,))
    assert locker.completed == [16]
    assert not locker.fs.fs.waits.waiting
    locker.fs.rig.call(op.INTERRUPT, 0, (unique,))
    assert locker.completed == [16]


def test_flock(locker):
    one, two = locker.open(), locker.open(os.O_RDONLY)
    assert locker.lock(one, 1, 0, 0, RD, flock=True) == 0
    assert locker.lock(two, 2, 0, 0, RD, flock=True) == 0
    assert locker.lock(one, 1, 0, 0, WR, flock=True) == errno.EAGAIN
    assert locker.lock(two, 2, 0, 0, WR, wait=True, flock=True) == 0
    locker.fs.ask(op.RELEASE, locker.node, (two, 0, RELEASE_FLOCK_UNLOCK, 2))
    assert locker.lock(one, 1, 0, 0, WR, flock=True) == 0
    assert [tuple(row) for row in locker.fs.fs.locks.held_flocks()] == [(one, fcntl.LOCK_EX)]


def test_flush_ends_the_owners_locks(locker):
    fh = locker.open()
    locker.lock(fh, 1, 0, 9, WR)
    locker.lock(fh, 2, 10, 19, WR)
    locker.fs.ask(op.FLUSH, locker.node, (fh, 0, 0, 1))
    assert [lock.owner for lock in locker.fs.fs.locks.held()] == [2]
    locker.fs.ask(op.RELEASE, locker.node, (fh, 0, 0, 0))
    assert locker.fs.fs.locks.held() == []


def test_release_ends_waits_of_its_handle(locker):
    one, two = locker.open(), locker.open()
    locker.lock(one, 1, 0, 9, WR)
    locker.lock(two, 2, 0, 9, WR, wait=True)
    locker.fs.ask(op.RELEASE, locker.node, (two, 0, 0, 0))
    assert locker.completed == [16]
    assert not locker.fs.fs.waits.waiting


def test_the_handle_must_be_open_for_the_lock(locker):
    reader, writer = locker.open(os.O_RDONLY), locker.open(os.O_WRONLY)
    assert locker.lock(reader, 1, 0, 9, WR) == errno.EBADF
    assert locker.lock(writer, 1, 0, 9, RD) == errno.EBADF
    assert locker.lock(reader, 1, 0, 9, 7) == errno.EINVAL
    assert locker.lock(99, 1, 0, 9, RD) == errno.EBADF
    assert locker.fs.fs.locks.owners == {}


def test_owners_are_bounded(serve, share):
    locker = Locker(serve(guest_fds=4), share)
    fh = locker.open()
    results = [locker.lock(fh, owner, owner, owner, WR) for owner in range(6)]
    assert results == [0, 0, 0, errno.ENOLCK, errno.ENOLCK, errno.ENOLCK]


def test_let_go_and_take_again(locker):
    fh = locker.open()
    locker.lock(fh, 1, 0, 4, WR)
    locker.lock(fh, 1, 0, 0, WR, flock=True)
    fs = locker.fs.fs
    fs.suspend_locks()
    fd = os.open(locker.path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with refused(errno.EAGAIN):
        fs.resume_locks()
    os.close(fd)
    fs.resume_locks()
    probe = os.open(locker.path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(probe)


def test_restored_locks_hold(locker):
    fh = locker.open()
    fs = locker.fs.fs
    fs.restore_lock(HeldLock(locker.node, 9, 2, 5, WR, 11))
    fs.restore_flock(fh, fcntl.LOCK_SH)
    assert locker.lock(fh, 1, 5, 5, RD) == errno.EAGAIN
    assert locker.query(fh, 1, 0, END, RD) == (2, 5, WR, 11)
    with refused(errno.EAGAIN):
        fs.restore_lock(HeldLock(locker.node, 8, 5, 6, RD, 12))
    with refused(errno.EBADF):
        fs.restore_lock(HeldLock(locker.node + 1, 8, 5, 6, RD, 12))
    with refused(errno.EBADF):
        fs.restore_flock(77, fcntl.LOCK_SH)


def kernel_view(path):
    """The OFD locks on a file as /proc/locks tells them: {(start, end): kind}."""
    number = os.stat(path).st_ino
    found = {}
    with open("/proc/locks") as lines:
        for line in lines:
            _, sort, _, kind, _, where, start, end = line.split()[:8]
            if sort == "OFDLCK" and int(where.split(":")[2]) == number:
                found[int(start), END if end == "EOF" else int(end)] = RD if kind == "READ" else WR
    return found


def test_records_agree_with_the_kernel(locker):
    """Splitting, joining and replacing of ranges, as the kernel does it."""
    fh = locker.open()
    for start, end, kind in (
        (0, 9, RD), (3, 5, WR), (6, 6, WR), (2, 2, UN),
        (8, END, RD), (100, 200, UN), (150, 160, WR), (0, 1, WR),
    ):  # fmt: skip
        assert locker.lock(fh, 1, start, end, kind) == 0
        ours = {(lock.start, lock.end): lock.kind for lock in locker.fs.fs.locks.held()}
        assert ours == kernel_view(locker.path)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8), st.sampled_from([RD, WR, UN])), max_size=25))
def test_ranges_against_a_model(steps):
    owner, model = Owner(-1), {}
    for start, length, kind in steps:
        owner.apply(HeldLock(1, 1, start, start + length, kind, 5))
        for byte in range(start, start + length + 1):
            model[byte] = kind
    held = {byte: kind for byte, kind in model.items() if kind != UN}
    covered = {byte: lock.kind for lock in owner.ranges for byte in range(lock.start, lock.end + 1)}
    assert covered == held
    for before, after in zip(owner.ranges, owner.ranges[1:], strict=False):
        assert before.end < after.start
        assert before.end + 1 < after.start or before.kind != after.kind


def test_struct_flock_is_the_hosts():
    assert struct.calcsize("hhxxxxqqixxxx") == struct.calcsize("@hhqqi0q")


def test_the_number_of_ranges_is_bounded(locker, monkeypatch):
    """However a guest goes about it, by many locks or by punching holes into one."""
    monkeypatch.setattr("devices.virtio_fs.passthrough.lock_table.LOCK_RANGES_MAX", 100)
    fh = locker.open()
    answers = [locker.lock(fh, 1, at * 2, at * 2, WR) for at in range(102)]
    assert answers == [0] * 100 + [errno.ENOLCK] * 2
    assert locker.lock(fh, 1, 0, END, UN) == 0, "room again"
    assert locker.lock(fh, 2, 0, END, WR) == 0
    answers = [locker.lock(fh, 2, at * 2 + 1, at * 2 + 1, UN) for at in range(102)]
    assert answers == [0] * 99 + [errno.ENOLCK] * 3
    assert locker.lock(fh, 2, 0, 0, UN) == 0, "what frees a range is always possible"
    assert locker.lock(fh, 2, 0, END, UN) == 0
