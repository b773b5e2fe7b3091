"""Leases of other processes (Samba's, an NFS server's): who opens such a file waits, and nobody else does."""

from __future__ import annotations

import errno
import fcntl
import os
import signal

import pytest

from devices.virtio_fs.backend import VirtioFsBackend
from tests.support.backend_rig import Driver
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import flags as f
from vmsim.fuse.client import decode
from vmsim.host.fs import LinuxFs

RD, WR = fcntl.F_RDLCK, fcntl.F_WRLCK
F_SETSIG = 10


class Lease:
    """A lease on ``path``; its holder is told by a signal that nobody minds."""

    def __init__(self, path, kind):
        self.fd = os.open(path, os.O_RDWR if kind == WR else os.O_RDONLY)
        fcntl.fcntl(self.fd, F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, kind)
        except OSError as error:
            os.close(self.fd)
            pytest.skip(f"no leases on this file system: {error}")

    def release(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@pytest.fixture
def share(tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    (share / "a").write_bytes(b"0123456789")
    (share / "b").write_bytes(b"other")
    return share


@pytest.fixture
def start(share):
    backends = []

    def make():
        driver = Driver(VirtioFsBackend(LinuxFs(), share))
        backends.append(driver.backend)
        driver.init()
        driver.node = driver.send(op.LOOKUP, 1, (), (b"a",)).nodeid
        driver.other = driver.send(op.LOOKUP, 1, (), (b"b",)).nodeid
        return driver

    yield make
    for backend in backends:
        backend.close()


@pytest.fixture
def lease(share):
    held = []

    def take(kind):
        held.append(Lease(share / "a", kind))
        return held[-1]

    yield take
    for one in held:
        one.release()


def opening(flags):
    return lambda driver: driver.send(op.OPEN, driver.node, (flags, 0))


def truncating(driver):
    return driver.send(op.SETATTR, driver.node, (f.FATTR_SIZE, 0, 0, 3, *[0] * 12))


def creating(driver):
    return driver.send(op.CREATE, 1, (os.O_RDWR, 0o600, 0, 0), (b"a",))


def changing_mode(driver):
    return driver.send(op.SETATTR, driver.node, (f.FATTR_MODE, *[0] * 10, 0o640, *[0] * 4))


def renaming(driver):
    return driver.send(op.RENAME, 1, (1,), (b"a", b"c"))


def unlinking(driver):
    return driver.send(op.UNLINK, 1, (), (b"a",))


REQUESTS = {
    "open for reading": (opening(os.O_RDONLY), {WR}),
    "open for writing": (opening(os.O_WRONLY), {RD, WR}),
    "open for both": (opening(os.O_RDWR), {RD, WR}),
    "open and truncate": (opening(os.O_RDWR | os.O_TRUNC), {RD, WR}),
    "truncate": (truncating, {RD, WR}),
    "create what is there": (creating, {RD, WR}),
    "change the mode": (changing_mode, set()),
    "rename": (renaming, set()),
    "unlink": (unlinking, set()),
}
"""What a request is, and the kinds of leases that it has to wait for on Linux (fcntl(2), Leases)."""


def is_waiting(answer):
    return hasattr(answer, "reply")


@pytest.mark.parametrize("kind", [RD, WR], ids=["read lease", "write lease"])
@pytest.mark.parametrize("name", REQUESTS)
def test_who_has_to_wait_waits_alone(start, lease, name, kind):
    send, waits_for = REQUESTS[name]
    driver = start()
    held = lease(kind)
    chain = send(driver)
    assert is_waiting(chain) == (kind in waits_for)
    if not is_waiting(chain):
        return
    assert driver.backend.busy
    assert driver.send(op.GETATTR, driver.other, (0, 0, 0)).size == 5
    for _ in range(3):
        driver.backend.idle()
        assert driver.backend.look()
    assert driver.done == []
    held.release()
    driver.backend.idle()
    ((done, written),) = driver.done
    assert done is chain
    assert int.from_bytes(chain.reply[4:8], "little", signed=True) == 0
    assert written > 16
    assert not driver.backend.look()
    assert not driver.backend.busy


def test_a_guest_that_does_not_want_to_wait_is_told(start, lease):
    driver = start()
    lease(WR)
    with pytest.raises(BlockingIOError):
        driver.send(op.OPEN, driver.node, (os.O_RDWR | os.O_NONBLOCK, 0))


def test_interrupt(start, lease):
    driver = start()
    lease(WR)
    chain = driver.send(op.OPEN, driver.node, (os.O_RDWR, 0))
    unique = driver.unique
    interrupt = driver.chain(op.INTERRUPT, 0, (unique,))
    driver.backend.handle(0, interrupt, None)
    assert driver.done == [(chain, 16)]
    assert decode(op.OPEN, bytes(chain.reply[:16]), unique).error == errno.EINTR
    driver.backend.idle()
    assert not driver.backend.busy


def test_an_interrupt_that_overtakes_its_request(start, lease):
    driver = start()
    lease(WR)
    driver.backend.handle(0, driver.chain(op.INTERRUPT, 0, (driver.unique + 2,)), None)
    with pytest.raises(InterruptedError):
        driver.send(op.OPEN, driver.node, (os.O_RDWR, 0))


def test_it_is_parked_for_a_migration_and_waits_again_there(start, lease):
    source = start()
    held = lease(WR)
    chain = source.send(op.OPEN, source.node, (os.O_RDWR, 0))
    assert source.backend.parked(1) == [chain]
    held.release()
    source.backend.idle()
    assert source.done == []
    assert list(source.backend.fs.handles) == []
    destination = start()
    destination.backend.reset()
    destination.backend.load_state(b"".join(source.backend.save_state()))
    lease(WR)
    assert is_waiting(destination.send(op.OPEN, source.node, (os.O_RDWR, 0)))


def test_the_other_rings_requests_go_on_waiting(share, start, lease):
    driver = Driver(VirtioFsBackend(LinuxFs(), share, request_queues=2))
    try:
        driver.init()
        driver.node = driver.send(op.LOOKUP, 1, (), (b"a",)).nodeid
        held = lease(WR)
        first = driver.send(op.OPEN, driver.node, (os.O_RDWR, 0), ring=1)
        second = driver.send(op.OPEN, driver.node, (os.O_RDWR, 0), ring=2)
        assert driver.backend.parked(1) == [first]
        held.release()
        driver.backend.idle()
        assert [chain for chain, _ in driver.done] == [second]
    finally:
        driver.backend.close()


def test_the_end_of_the_session_answers(start, lease):
    driver = start()
    lease(WR)
    chain = driver.send(op.OPEN, driver.node, (os.O_RDWR, 0))
    driver.backend.handle(1, driver.chain(op.DESTROY, 0), None)
    assert driver.done == [(chain, 16)]
    assert not driver.backend.look()


def test_many_that_wait_cost_the_others_no_more_than_few(start, lease):
    """Each is tried in turn, some at a time: counted in openings of the host."""
    driver = start()
    host = driver.backend.fs.host
    tried = []
    reopen = host.reopen
    host.reopen = lambda fd, flags: (tried.append(flags), reopen(fd, flags))[1]
    lease(WR)
    counts = []
    for waiting in (10, 100):
        for _ in range(waiting):
            driver.send(op.OPEN, driver.node, (os.O_RDONLY, 0))
        tried.clear()
        for _ in range(10):
            driver.send(op.GETATTR, driver.other, (0, 0, 0))
        counts.append(len(tried))
    assert counts[0] == counts[1] > 0
