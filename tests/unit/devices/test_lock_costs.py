"""What locks and those who wait for them cost the others: twice as many, at most twice the work.

Each row sets up ``count`` of something and counts what one kind of work then takes: for all of them together
(``total``: grows with their number and not with its square) or for one request (``one``: does not grow).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random

import pytest

from devices.virtio_fs.backend import VirtioFsBackend
from devices.virtio_fs.passthrough.lock_table import END
from tests.support.backend_rig import Driver
from tests.support.costs import work
from vmsim import limits
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import LK_FLOCK
from vmsim.host.fs import LinuxFs

RD, WR, UN = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
RINGS = 8
FAR = 1 << 40
"""Nobody but ``one_more`` goes beyond it."""


class World(Driver):
    """One file of a share, locked and waited for."""

    def __init__(self, share):
        super().__init__(VirtioFsBackend(LinuxFs(), share, request_queues=RINGS))
        self.path = share / "f"
        self.path.touch()
        self.init()
        self.node = self.send(op.LOOKUP, 1, (), (b"f",)).nodeid
        self.fh = self.open()

    def open(self):
        return self.send(op.OPEN, self.node, (os.O_RDWR, 0)).fh

    def range(self, owner, start, end, kind=WR, *, wait=False, ring=1, fh=None, flock=False):
        args = (self.fh if fh is None else fh, owner, start, end, kind, 1, LK_FLOCK if flock else 0, 0)
        return self.send(op.SETLKW if wait else op.SETLK, self.node, args, ring=ring)

    def apart(self, count):
        """One owner with so many ranges."""
        for at in range(count):
            self.range(1, 3 * at, 3 * at)

    def owners(self, count):
        """So many owners with a range each."""
        for at in range(count):
            self.range(100 + at, 3 * at, 3 * at)

    def readers(self, count):
        """So many owners that share one range."""
        for at in range(count):
            self.range(100 + at, 0, 9 + at, RD)

    def crowd(self, count):
        """One owner that all others wait for."""
        self.range(1, 0, FAR)
        for at in range(count):
            self.range(100 + at, 0, 9, wait=True, ring=1 + at % RINGS)

    def nested(self, count):
        """The same, each for another range."""
        self.range(1, 0, FAR)
        for at in range(count):
            self.range(100 + at, 0, 9 + at, wait=True, ring=1 + at % RINGS)

    def flock_crowd(self, count):
        """The same for the whole file."""
        self.range(1, 0, 0, flock=True)
        self.fhs = [self.open() for _ in range(count)]
        for fh in self.fhs:
            self.range(1, 0, 0, wait=True, flock=True, fh=fh)

    def outsiders(self, count):
        """All wait for somebody else on the host, each for another range."""
        self.fd = os.open(self.path, os.O_RDWR)
        self.backend.fs.host.set_lock(self.fd, WR, 0, FAR)
        for at in range(count):
            self.range(100 + at, 0, at, wait=True, ring=1 + at % RINGS)

    # -- what is counted ---------------------------------------------------------------------------

    def getattr(self):
        self.send(op.GETATTR, self.node, (0, 0, 0))

    def getlk(self):
        self.send(op.GETLK, self.node, (self.fh, 2, END - 9, END, WR, 0, 0, 0))

    def getlk_of_all(self):
        self.send(op.GETLK, self.node, (self.fh, 1, 0, END, WR, 0, 0, 0))

    def one_more(self):
        self.range(2, END - 9, END - 9)

    def one_is_refused(self):
        with contextlib.suppress(BlockingIOError):
            self.range(3, 0, FAR)

    def one_more_waits(self):
        self.range(3, 0, 9, wait=True)

    def flush(self):
        self.send(op.FLUSH, self.node, (self.fh, 0, 0, 1))

    def release(self):
        self.send(op.RELEASE, self.node, (self.fh, 0, 0, 0))

    def interrupt_all(self):
        for request in list(self.backend.session.waiting()):
            self.send(op.INTERRUPT, 0, (request,), ring=0)

    def drain(self):
        """Everybody gets it in turn and gives it back."""
        self.range(1, 0, FAR, UN)
        while self.backend.fs.waits.waiting:
            for held in self.backend.fs.locks.held():
                self.range(held.owner, 0, END, UN)
            self.backend.idle()

    def stop_rings(self):
        for ring in range(1, RINGS + 1):
            self.backend.parked(ring)

    def stop_one(self):
        self.backend.parked(0)

    def idle(self):
        self.backend.idle()

    def let_go(self):
        self.backend.fs.suspend_locks()
        self.backend.fs.resume_locks()

    def in_vain(self):
        with contextlib.suppress(BlockingIOError):
            self.backend.fs.resume_locks()

    def reset(self):
        self.backend.reset()

    def save(self):
        list(self.backend.save_state())


SETUP = ["apart", "owners", "readers", "crowd", "nested", "flock_crowd", "outsiders"]
ONE = [
    *((kind, what) for kind in SETUP for what in ("getattr", "stop_one", "one_more")),
    ("crowd", "one_more_waits"), ("owners", "getlk"), ("readers", "getlk"), ("apart", "getlk"),
    ("apart", "getlk_of_all"), *((kind, "one_is_refused") for kind in SETUP),
    ("outsiders", "idle"), ("crowd", "idle"), ("crowd", "flush"),
]  # fmt: skip
TOTAL = [
    ("crowd", "drain"), ("crowd", "interrupt_all"), ("crowd", "stop_rings"), ("crowd", "release"),
    ("crowd", "reset"), ("nested", "interrupt_all"), ("nested", "stop_rings"), ("nested", "release"),
    ("flock_crowd", "interrupt_all"), ("flock_crowd", "stop_rings"), ("outsiders", "stop_rings"),
    ("apart", "flush"), ("apart", "release"), ("owners", "release"), ("readers", "release"),
    ("owners", "let_go"), ("apart", "let_go"), ("owners", "save"), ("apart", "save"), ("crowd", "save"),
]  # fmt: skip


@pytest.fixture
def worlds(tmp_path):
    made = []

    def make(kind, count):
        share = tmp_path / str(len(made))
        share.mkdir()
        world = World(share)
        made.append(world)
        getattr(world, kind)(count)
        return world

    yield make
    for world in made:
        world.backend.close()
        if hasattr(world, "fd"):
            os.close(world.fd)


@pytest.mark.parametrize(("kind", "what"), ONE)
def test_one_request_costs_the_same_beside_many(worlds, kind, what):
    def cost(count):
        once = getattr(worlds(kind, count), what)
        if what != "stop_one":
            once()  # what all those before it left to be found out is theirs
        return work(once)

    few, many = cost(100), cost(400)
    assert many < 1.3 * few + 200, f"{few} steps beside 100, {many} beside 400"


@pytest.mark.parametrize(("kind", "what"), TOTAL)
def test_all_of_them_cost_what_their_number_says(worlds, kind, what):
    few, many = (work(getattr(worlds(kind, count), what)) for count in (150, 300))
    assert many < 2.3 * few + 300, f"{few} steps for 150, {many} for 300"


@pytest.mark.parametrize("kind", SETUP)
def test_to_take_them_costs_what_their_number_says(worlds, kind):
    few, many = (work(lambda count=count: worlds(kind, count)) for count in (150, 300))
    assert many < 2.3 * few, f"{few} steps for 150, {many} for 300"


@pytest.fixture
def taken(monkeypatch):
    """How often the host was asked for a lock: each time it looks at all that there are on the file."""
    asked = []
    set_lock = LinuxFs.set_lock

    def counted(self, fd, kind, start, length):
        if kind != UN:
            asked.append(kind)
        set_lock(self, fd, kind, start, length)

    monkeypatch.setattr(LinuxFs, "set_lock", counted)
    return asked


def load(world, state):
    backend = VirtioFsBackend(LinuxFs(), world.path.parent)
    backend.load_state(state)
    return backend


@pytest.mark.parametrize("way", ["load", "let_go"])
def test_the_host_looks_at_all_locks_a_few_times_only(worlds, taken, way):
    world = worlds("apart", 2000)
    state = b"".join(world.backend.save_state())
    taken.clear()
    if way == "load":
        load(world, state).close()
    else:
        world.backend.fs.resume_locks()
    assert len(taken) <= 2 * 2000 / 256 + 2


def held_on_the_host(path, count):
    """By byte: None, or the kind of lock."""
    probe, host = os.open(path, os.O_RDWR), LinuxFs()
    found = [host.get_lock(probe, WR, at, 1) for at in range(count)]
    os.close(probe)
    return [each and each[0] for each in found]


@pytest.mark.parametrize("seed", range(6))
def test_all_ranges_are_taken_again_and_nothing_else(worlds, seed):
    """Of several owners and both kinds, near each other and apart, also where somebody else is in between."""
    chance, world, size = random.Random(seed), worlds("apart", 0), 1500
    for owner in range(1, 2 + seed % 3):
        for at in range(0, size, 2 + seed % 2):
            start = at + chance.randrange(2)
            with contextlib.suppress(BlockingIOError):
                kind = WR if seed < 3 else chance.choice([RD, WR, UN])
                world.range(owner, start, start + chance.randrange(1 + seed), kind)
    outsider = os.open(world.path, os.O_RDWR)
    before = held_on_the_host(world.path, size)
    if seed % 2:
        LinuxFs().set_lock(outsider, RD, before.index(None, size // 2), 1)
    expected = held_on_the_host(world.path, size)
    assert None in expected
    state = b"".join(world.backend.save_state())
    other = load(world, state)
    assert held_on_the_host(world.path, size) == expected
    assert other.fs.locks.held() == world.backend.fs.locks.held()
    assert other.fs.locks.count == world.backend.fs.locks.count
    other.close()
    world.backend.fs.resume_locks()
    assert held_on_the_host(world.path, size) == expected
    os.close(outsider)


def test_what_the_guest_unlocked_meanwhile_is_not_taken_again(worlds):
    world = worlds("apart", 200)
    world.backend.fs.suspend_locks()
    world.range(1, 30, 300, UN)
    world.range(1, 330, 330, RD)
    world.backend.fs.resume_locks()
    ours = [held.start for held in world.backend.fs.locks.held()]
    found = held_on_the_host(world.path, 600)
    assert [at for at, kind in enumerate(found) if kind is not None] == ours
    assert found[330] == RD


def test_the_number_of_those_who_wait_is_bounded(worlds, monkeypatch):
    monkeypatch.setattr("devices.virtio_fs.passthrough.lock_waiters.LOCK_WAITERS_MAX", 20)
    world = worlds("crowd", 20)
    with pytest.raises(OSError) as refusal:
        world.one_more_waits()
    assert refusal.value.errno == errno.ENOLCK
    world.send(op.INTERRUPT, 0, (world.backend.session.waiting()[0],), ring=0)
    world.one_more_waits()
    assert len(world.backend.session.waiting()) == 20 <= limits.LOCK_WAITERS_MAX


def test_all_get_it_in_the_end_each_once(worlds):
    """However many wish for as many different ranges, and whatever was left for later."""
    count = 3 * limits.LOCK_TRIES
    world = worlds("nested", count)
    world.range(1, 0, END, UN)
    granted = []
    for _ in range(2 * count):
        world.backend.idle()
        for held in world.backend.fs.locks.held():
            granted.append(held.owner)
            world.range(held.owner, 0, END, UN)
    assert sorted(granted) == [100 + at for at in range(count)]
    assert len(world.done) == count
    assert not world.backend.fs.waits.waiting


def test_readers_get_it_all_at_once(worlds):
    """One unlock answers a bounded number of them; the rest does not wait for anybody."""
    world = worlds("apart", 1)
    count = 3 * limits.LOCK_TRIES
    for at in range(count):
        world.range(100 + at, 0, at, RD, wait=True)
    world.range(1, 0, 0, UN)
    assert 0 < len(world.done) < count
    while world.backend.idle():
        pass
    assert len(world.done) == count


def test_who_holds_it_itself_is_not_kept_out_by_the_others(worlds):
    """Two read, both want to write: the first waits for the second, which gets it when the first lets go."""
    world = worlds("apart", 0)
    world.range(1, 0, 9, RD)
    world.range(2, 0, 9, RD)
    world.range(3, 0, 9, RD)
    world.range(1, 0, 9, WR, wait=True)
    with pytest.raises(OSError) as refusal:
        world.range(2, 0, 9, WR, wait=True)
    assert refusal.value.errno == errno.EDEADLK
    world.range(4, 0, 9, WR, wait=True)
    world.range(2, 0, 9, UN)
    assert world.done == []
    world.range(3, 0, 9, UN)
    assert len(world.done) == 1, "the one who reads already may write"
    assert [held.owner for held in world.backend.fs.locks.held()] == [1]


def test_locks_that_cannot_be_taken_back_yet_cost_one_look(worlds):
    """The destination has not let go: each request meanwhile asks for one lock, not for all."""
    counts = []
    for count in (100, 400):
        world = worlds("owners", count)
        world.backend.fs.suspend_locks()
        fd = os.open(world.path, os.O_RDWR)
        world.backend.fs.host.set_lock(fd, WR, 0, 1)
        for _ in range(2):
            with pytest.raises(BlockingIOError):
                world.backend.fs.resume_locks()
        counts.append(work(world.in_vain))
        os.close(fd)
        world.backend.fs.resume_locks()
        probe = os.open(world.path, os.O_RDWR)
        for at in range(count):
            with pytest.raises(BlockingIOError):
                world.backend.fs.host.set_lock(probe, WR, 3 * at, 1)
        os.close(probe)
    assert counts[1] < 1.3 * counts[0]
