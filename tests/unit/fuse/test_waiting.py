"""Requests whose reply comes later: SETLKW, POLL, INTERRUPT, parking."""

from __future__ import annotations

import errno

import pytest

from tests.support.fuse_rig import Rig
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import F_UNLCK, F_WRLCK
from vmsim.fuse.filesystem import DEFERRED, FileSystem
from vmsim.limits import FUSE_INTERRUPTS_MAX


def lock(owner, kind=F_WRLCK, start=0, end=10):
    return (1, owner, start, end, kind, 7, 0, 0)


def wait_for_lock(rig, unique, owner=2):
    return rig.raw(client.encode(op.SETLKW, unique, 1, 0, 0, 7, lock(owner)), 16)


def error_of(reply, unique):
    return client.decode(op.SETLKW, bytes(reply[:16]), unique).error


@pytest.fixture
def rig():
    rig = Rig()
    rig.ok(op.SETLK, 1, lock(1))
    assert rig.error(op.SETLK, 1, lock(2)) == errno.EAGAIN
    return rig


def test_a_lock_that_comes_free(rig):
    used, reply = wait_for_lock(rig, 100)
    assert used is None
    assert rig.session.waiting() == [100]
    assert rig.completed == []
    rig.ok(op.SETLK, 1, lock(1, F_UNLCK))
    assert rig.completed == [16]
    assert error_of(reply, 100) == 0
    assert rig.session.waiting() == []


def test_a_free_lock_needs_no_waiting():
    rig = Rig()
    assert rig.ok(op.SETLKW, 1, lock(1)) is None
    assert rig.ok(op.GETLK, 1, lock(1)).type == F_UNLCK


def test_interrupt(rig):
    _, reply = wait_for_lock(rig, 100)
    rig.call(op.INTERRUPT, 0, (100,))
    assert rig.completed == [16]
    assert error_of(reply, 100) == errno.EINTR
    rig.call(op.INTERRUPT, 0, (100,))
    assert rig.completed == [16]


def test_an_interrupt_that_overtakes_its_request(rig):
    """hiprio is looked at first, so INTERRUPT may come before what it interrupts."""
    rig.call(op.INTERRUPT, 0, (100,))
    used, reply = wait_for_lock(rig, 100)
    assert used == 16
    assert rig.completed == []
    assert error_of(reply, 100) == errno.EINTR
    assert wait_for_lock(rig, 101)[0] is None


def test_an_early_interrupt_survives_migration(rig):
    rig.call(op.INTERRUPT, 0, (100,))
    other = Rig(init=False)
    other.session.restore(rig.session.save())
    other.fs.locks[1] = 1
    used, reply = wait_for_lock(other, 100)
    assert used == 16
    assert error_of(reply, 100) == errno.EINTR


def test_early_interrupts_are_bounded(rig):
    for unique in range(1000, 1000 + 2 * FUSE_INTERRUPTS_MAX):
        rig.call(op.INTERRUPT, 0, (unique,))
    assert len(rig.session.save().interrupted) == FUSE_INTERRUPTS_MAX
    assert wait_for_lock(rig, 1000)[0] is None


def test_the_same_unique_cannot_wait_twice(rig):
    wait_for_lock(rig, 100)
    used, reply = wait_for_lock(rig, 100)
    assert used == 16
    assert error_of(reply, 100) == errno.EINVAL
    assert rig.session.waiting() == [100]


def test_parked_requests_wait_again_when_they_come_again(rig):
    _, reply = wait_for_lock(rig, 100)
    assert rig.session.park() == [100]
    assert rig.completed == []
    assert bytes(reply) == b"\xa5" * 16
    assert rig.fs.waits == {}
    used, reply = wait_for_lock(rig, 100)
    assert used is None
    rig.ok(op.SETLK, 1, lock(1, F_UNLCK))
    assert rig.completed == [16]


@pytest.mark.parametrize("opcode", [op.DESTROY, op.INIT])
def test_the_end_of_the_session_answers_who_waits(rig, opcode):
    _, reply = wait_for_lock(rig, 100)
    rig.call(op.DESTROY, 0) if opcode == op.DESTROY else rig.init()
    assert rig.completed == [16]
    assert error_of(reply, 100) == errno.ECONNABORTED


def test_a_reset_answers_nobody(rig):
    _, reply = wait_for_lock(rig, 100)
    rig.session.reset()
    assert rig.completed == []
    assert bytes(reply) == b"\xa5" * 16
    assert not rig.session.state.initialized


def test_poll_that_waits():
    rig = Rig()
    used, reply = rig.raw(client.encode(op.POLL, 5, 1, 0, 0, 0, (1, 2, 0, 0)), 24)
    assert used is None
    rig.fs.waits.pop(5)(4)
    assert rig.completed == [24]
    assert client.decode(op.POLL, bytes(reply), 5).body.revents == 4


def test_done_at_once_and_twice():
    class Hasty(FileSystem):
        def setlk(self, ctx, nodeid, fh, owner, lock, lk_flags, done):
            done(OSError(errno.EDEADLK, "deadlock"))
            done(None)
            return DEFERRED

    rig = Rig(fs=Hasty())
    assert rig.error(op.SETLKW, 1, lock(1)) == errno.EDEADLK
    assert rig.completed == []
    assert rig.session.waiting() == []


@pytest.mark.parametrize("bad", [lock(1, 3), lock(1, start=5, end=4), lock(1, end=1 << 63)])
@pytest.mark.parametrize("opcode", [op.GETLK, op.SETLK, op.SETLKW])
def test_bad_locks(opcode, bad):
    assert Rig().error(opcode, 1, bad) == errno.EINVAL
