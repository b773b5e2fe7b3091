"""The back-end device: requests of rings, waiting ones, what travels with the state."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.virtio_fs import parked
from devices.virtio_fs.backend import VirtioFsBackend
from devices.virtio_fs.options import FsOptions
from devices.virtio_fs.state.options import StateOptions
from tests.support.backend_rig import Driver, FakeChain
from tests.support.leaks import Held
from vmsim.errors import StateError, StreamError, VmsimError
from vmsim.fuse import opcodes as op
from vmsim.host.fs import LinuxFs
from vmsim.virtio.chain import ParkedChain
from vmsim.virtio.rings import RingState

WR, UN = fcntl.F_WRLCK, fcntl.F_UNLCK


@pytest.fixture
def start(tmp_path):
    """``start()``: a Driver of a new back-end over the share; descriptors must be given back."""
    share = tmp_path / "share"
    share.mkdir()
    (share / "a").write_bytes(b"data")
    before = Held()
    backends = []

    def make(*, state_options=None, **kwargs):
        backend = VirtioFsBackend(LinuxFs(), share, FsOptions(), state_options, **kwargs)
        backends.append(backend)
        return Driver(backend)

    yield make
    for backend in backends:
        backend.close()
        backend.close()
    assert before.more() == []


def opened(driver):
    driver.init()
    node = driver.send(op.LOOKUP, 1, (), (b"a",)).nodeid
    return node, driver.send(op.OPEN, node, (os.O_RDWR, 0)).fh


def test_requests(start):
    driver = start()
    node, fh = opened(driver)
    assert driver.send(op.READ, node, (fh, 0, 8, 0, 0, 0, 0), size=8) == b"data"
    chain = driver.chain(op.FORGET, node, (1,))
    assert driver.backend.handle(0, chain, None) == 0
    assert driver.backend.fs.inodes.get(node) is None


def test_a_waiting_request_completes_later(start):
    driver = start()
    node, fh = opened(driver)
    driver.lock(node, fh, 1, WR)
    chain = driver.lock(node, fh, 2, WR)
    assert driver.done == []
    driver.lock(node, fh, 1, UN)
    assert driver.done == [(chain, 16)]
    assert driver.backend.parked(1) == []


def test_parking_one_ring_leaves_the_others_waiting(start):
    driver = start(request_queues=2)
    node, fh = opened(driver)
    driver.lock(node, fh, 1, WR)
    one = driver.lock(node, fh, 2, WR, ring=1)
    two = driver.lock(node, fh, 3, WR, ring=2)
    assert driver.backend.parked(1) == [one]
    assert bytes(one.reply) == bytes(16), "a parked request must not be answered"
    driver.lock(node, fh, 1, UN, ring=2)
    assert driver.done == [(two, 16)]


def test_waits_for_third_parties_end(start, tmp_path):
    driver = start()
    node, fh = opened(driver)
    fd = os.open(tmp_path / "share" / "a", os.O_RDWR)
    LinuxFs().set_lock(fd, WR, 0, 10)
    chain = driver.lock(node, fh, 1, WR)
    driver.backend.idle()
    assert driver.done == []
    os.close(fd)
    driver.backend.idle()
    assert driver.done == [(chain, 16)]


def test_kept_chains_are_handed_back_once(start):
    backend = start().backend
    state = RingState(5, 4, 1, 1, [ParkedChain(3, 1, [(4096, 64, False)])])
    backend.keep_parked(1, state)
    assert backend.resume_parked(1) == state
    assert backend.resume_parked(1) is None
    backend.keep_parked(1, state)
    backend.keep_parked(1, None)
    assert backend.resume_parked(1) is None


def test_locks_waits_and_files_travel(start):
    source, destination = start(), start()
    node, fh = opened(source)
    source.lock(node, fh, 1, WR)
    waiting = source.lock(node, fh, 2, WR)
    source.backend.log_started()
    source.send(op.GETATTR, node, (0, 0, 0))
    assert source.backend.parked(1) == [waiting]
    kept = RingState(9, 8, 1, 1, [ParkedChain(3, 1, [(4096, 88, False), (8192, 16, True)])])
    source.backend.keep_parked(1, kept)
    blob = b"".join(source.backend.save_state())
    destination.backend.load_state(blob)
    assert destination.backend.resume_parked(1) == kept
    again = FakeChain(bytes(waiting.readable[0]), 16)
    completed = []
    written = destination.backend.handle(1, again, lambda chain, count: completed.append(count))
    assert written is None
    destination.unique = 100
    destination.lock(node, fh, 1, UN)
    assert completed == [16]
    assert [lock.owner for lock in destination.backend.fs.locks.held()] == [2]
    assert destination.send(op.READ, node, (fh, 0, 8, 0, 0, 0, 0), size=8) == b"data"


def test_after_a_failed_migration_the_locks_are_ours_again(start, tmp_path):
    source = start()
    node, fh = opened(source)
    source.lock(node, fh, 1, WR)
    b"".join(source.backend.save_state())
    fd = os.open(tmp_path / "share" / "a", os.O_RDWR)
    LinuxFs().set_lock(fd, WR, 0, 10)
    source.backend.resume_parked(1)
    os.close(fd)
    source.send(op.GETATTR, node, (0, 0, 0))
    probe = os.open(tmp_path / "share" / "a", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        LinuxFs().set_lock(probe, WR, 0, 10)
    os.close(probe)


def test_the_destination_finds_the_locks_free_however_often_the_source_idles(start, tmp_path):
    source = start()
    node, fh = opened(source)
    source.lock(node, fh, 1, WR)
    b"".join(source.backend.save_state())
    for _ in range(3):
        assert not source.backend.busy
        source.backend.idle()
    fd = os.open(tmp_path / "share" / "a", os.O_RDWR)
    LinuxFs().set_lock(fd, WR, 0, 10)
    source.backend.resume_parked(1)
    assert source.backend.busy, "it wants them back"
    os.close(fd)
    source.backend.idle()
    assert not source.backend.busy


def test_cancelled_collection(start):
    driver = start()
    driver.init()
    driver.backend.log_started()
    assert driver.backend.fs.watch is not None
    driver.backend.log_stopped()
    assert driver.backend.fs.watch is None


def test_empty_state(start):
    options = StateOptions(empty_state=True)
    source, destination = start(state_options=options), start(state_options=options)
    node, fh = opened(source)
    source.lock(node, fh, 1, WR)
    assert b"".join(source.backend.save_state()) == b""
    destination.backend.load_state(b"")


def test_its_own_state_finds_the_session_as_it_was(start):
    """Saved and loaded by one back-end, which has stayed: nothing is made anew that is there."""
    driver = start()
    node, fh = opened(driver)
    driver.lock(node, fh, 1, WR)
    state = b"".join(driver.backend.save_state())
    inode = driver.backend.fs.inodes.get(node)
    driver.backend.load_state(state)
    assert driver.backend.fs.inodes.get(node) is inode
    driver.backend.resume_parked(1)
    driver.send(op.GETATTR, 1, (0, 0, 0))
    with pytest.raises(StateError):
        driver.backend.load_state(state)  # the guest has gone on
    state = b"".join(driver.backend.save_state())
    with pytest.raises(StateError):
        driver.backend.load_state(state + b"x")
    driver.backend.reset()
    driver.backend.load_state(state)
    assert driver.backend.fs.inodes.get(node) is not inode


def test_reset_forgets_the_session(start):
    driver = start()
    node, fh = opened(driver)
    driver.lock(node, fh, 1, WR)
    driver.lock(node, fh, 2, WR)
    driver.backend.keep_parked(1, RingState())
    driver.backend.reset()
    assert driver.done == []
    assert driver.backend.resume_parked(1) is None
    with pytest.raises(OSError) as caught:
        driver.send(op.GETATTR, 1, (0, 0, 0))
    assert caught.value.errno == errno.EBADF
    driver.init()
    driver.send(op.GETATTR, 1, (0, 0, 0))


def test_notification_buffers_are_kept(start):
    backend = start(notification=True).backend
    assert backend.virtio_features & 1
    assert backend.queue_count == 3
    backend.set_features(backend.virtio_features)
    buffer = FakeChain(b"", 4096)
    assert backend.handle(1, buffer, None) is None
    backend.parked(2)
    assert backend.parked(1) == [buffer]


RINGS = {0: RingState(), 1: RingState(9, 8, 1, 0, [ParkedChain(3, 2, [(4096, 88, False)])], [(3, 5)])}


def test_parked_section():
    section = parked.encode(RINGS)
    assert parked.split(b"state" + section, 2) == (b"state", RINGS)
    assert parked.split(b"state", 2) == (b"state", {})
    assert parked.encode({}) == b""
    with pytest.raises(StreamError, match="ring 1 of a device with 1"):
        parked.split(section, 1)
    for bad in (
        RingState(1 << 16), RingState(0, -1), RingState(in_flight=[ParkedChain(-1, 1, [])]),
        RingState(in_flight=[ParkedChain(1, 1, [(1 << 64, 1, False)])]),
        RingState(in_flight=[ParkedChain(1, 1, [(0, 1 << 32, False)])]),
    ):  # fmt: skip
        with pytest.raises((StreamError, OverflowError)):
            parked.split(parked.encode({0: bad}), 1)


@given(st.binary(max_size=80), st.integers(0, 79), st.integers(1, 255))
def test_a_damaged_section_is_refused_or_left_alone(state, at, flip):
    blob = bytearray(state + parked.encode(RINGS))
    blob[at % len(blob)] ^= flip
    try:
        rest, rings = parked.split(bytes(blob), 2)
    except VmsimError:
        return
    assert rings == RINGS or rest == bytes(blob)
