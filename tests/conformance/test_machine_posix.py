"""The whole machine on a real directory: facade, rings, vhost and server together do what ``os`` does.

The reusable suites of the facade and of the file system, on machines of several makes; and once more on a
machine that migrates before every few calls, which nobody may notice.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading

import pytest

from tests.contract import posix
from tests.support.sampling import product
from vmsim.guest.config import DRIVER_FEATURES, GuestConfig
from vmsim.machine import Machine
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.schedule.seeded import SeededSchedule

CACHED = {"cache": "writethrough", "cache_pages": 32, "dentries": 64}
BACK = {"cache": "writeback", "cache_pages": 32, "dentries": 64}
MACHINES = {
    "split": ({}, {}),
    "packed, small ring": ({"ring": "packed", "queue_size": 8}, {"queue_size": 5, "linux_chains": True}),
    "in order": ({"ring": "packed"}, {"features": DRIVER_FEATURES, "indirect": False}),
    "four queues, write-through": ({"queues": 4}, CACHED),
    "packed, writeback": ({"ring": "packed", "options": {"writeback": True, "cache": "always"}}, BACK),
}
EVERY = 7
"""Calls between two migrations."""


@pytest.fixture
def machine(tmp_path):
    """Makes machines on ``tmp_path/share``; those that were left open are closed."""
    share = tmp_path / "share"
    share.mkdir()
    made = []

    def make(kind="split", **changes):
        arguments, guest = MACHINES[kind]
        arguments = {"memory": "8M", "guest": GuestConfig(**guest), **arguments, **changes}
        made.append(Machine(share, **arguments))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def host(tmp_path):
    """An empty directory for the other side of a comparison."""
    folder = tmp_path / "host"
    folder.mkdir()
    return folder


class Moving:
    """The facade of a machine that migrates before every few calls."""

    def __init__(self, machine):
        self.machine = machine
        self.hops = 0
        self._calls = itertools.count(1)
        self._fs = machine.mount()

    def __getattr__(self, name):
        method = getattr(self._fs, name)
        if not callable(method):
            return method

        def call(*words, **named):
            if next(self._calls) % EVERY == 0:
                self.machine = self.machine.migrate()
                self.hops += 1
            return method(*words, **named)

        return call


@pytest.mark.parametrize(
    ("check", "kind"), product("POSIX on machines", 3, posix.CHECKS, MACHINES),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_guest_sees_what_os_sees(check, kind, machine, host, tmp_path):
    fs = machine(kind).mount()
    check(posix.Both(fs, host))
    posix.left_as_by_os(fs, tmp_path / "share", host)


@pytest.mark.parametrize("check", posix.CHECKS, ids=lambda check: check.__name__)
def test_it_sees_the_same_while_it_migrates(check, machine, host, tmp_path):
    """With all caches, which have to move as well; one without any moves in the next suite."""
    fs = Moving(machine("packed, writeback"))
    try:
        check(posix.Both(fs, host))
        posix.left_as_by_os(fs, tmp_path / "share", host)
    finally:
        fs.machine.close()


@pytest.mark.parametrize("check", posix.WITH_OTHERS, ids=lambda check: check.__name__)
def test_the_share_is_as_the_guest_left_it(check, machine, tmp_path):
    kind = "four queues, write-through"
    options = {"cache": "never"}  # the host changes things behind the guest's back
    vm = machine(kind, options=options, guest=GuestConfig(**{**MACHINES[kind][1], "dentries": 0}))
    posix.supported(check, vm.mount(), tmp_path / "share")


@pytest.mark.parametrize("check", posix.WITH_OTHERS, ids=lambda check: check.__name__)
def test_the_share_is_as_a_migrating_guest_left_it(check, machine, tmp_path):
    fs = Moving(machine(options={"cache": "never"}))
    try:
        posix.supported(check, fs, tmp_path / "share")
    finally:
        fs.machine.close()


def test_the_moving_machine_does_move(machine):
    fs = Moving(machine())
    for number in range(3 * EVERY):
        fs.mkdir(f"/{number}")
    assert fs.hops == 3
    assert len(fs.listdir("/")) == 3 * EVERY
    fs.machine.close()


# File objects


@pytest.mark.parametrize("kind", MACHINES)
def test_file_objects_live_through_migrations(kind, machine, tmp_path):
    vm = machine(kind)
    fs = vm.mount()
    with fs.open_file("/log.txt", "w+", encoding="utf-8") as text, fs.open_file("/data", "xb") as binary:
        lines = [f"line {number} äöü\n" for number in range(200)]
        for number, line in enumerate(lines):
            text.write(line)
            binary.write(bytes([number]) * 100)
            if number % 60 == 59:
                text.flush()
                vm = vm.migrate()
        text.seek(0)
        assert list(text) == lines
    assert (tmp_path / "share" / "log.txt").read_text(encoding="utf-8") == "".join(lines)
    assert (tmp_path / "share" / "data").stat().st_size == 200 * 100
    with fs.open_file("/log.txt") as again:
        assert again.readline() == lines[0]
        vm = vm.migrate()
        assert again.readline() == lines[1]
    vm.close()


# Users


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")
@pytest.mark.parametrize("kind", ["split", "packed, writeback"])
def test_users_are_who_they_are_on_the_host(kind, machine, tmp_path):
    share = tmp_path / "share"
    share.chmod(0o777)
    vm = machine(kind)
    fs = vm.mount()
    fs.close(fs.open("/roots", os.O_CREAT | os.O_WRONLY, 0o600))
    with fs.as_user(1234, 2345):
        fs.mkdir("/theirs", 0o750)
        fs.close(fs.open("/theirs/f", os.O_CREAT | os.O_WRONLY, 0o640))
        with pytest.raises(PermissionError):
            fs.open("/roots", os.O_RDONLY)
    vm = vm.migrate()
    with fs.as_user(1234, 2345):
        fs.close(fs.open("/theirs/f", os.O_RDWR))
        with pytest.raises(PermissionError):
            fs.open("/roots", os.O_RDONLY)
    with fs.as_user(999, 999), pytest.raises(PermissionError):
        fs.listdir("/theirs")
    there = (share / "theirs" / "f").stat()
    assert (there.st_uid, there.st_gid, stat.S_IMODE(there.st_mode)) == (1234, 2345, 0o640)
    assert (share / "roots").stat().st_uid == 0
    vm.close()


# Queues


def test_every_process_has_its_queue_and_all_are_used(machine):
    vm = machine("four queues, write-through")
    facades = [vm.mount(pid) for pid in range(1, 9)]
    for pid, fs in enumerate(facades, 1):
        fs.mkdir(f"/{pid}")
    positions = [queue.ring.save().next_used for queue in vm.kernel.queues]
    assert len(positions) == 5
    assert all(position > 0 for position in positions[1:])
    vm = vm.migrate()
    after = [queue.ring.save().next_used for queue in vm.kernel.queues]
    assert after == positions
    for pid, fs in enumerate(facades, 1):
        fs.rmdir(f"/{pid}")
    vm.close()


def test_a_queue_that_waits_for_a_lock_holds_up_no_other(machine):
    schedule = SeededSchedule(3)
    vm = machine("four queues, write-through", schedule=schedule)
    one, two = vm.mount(1), vm.mount(2)
    fd = one.open("/f", os.O_RDWR | os.O_CREAT)
    one.lockf(fd, os.F_LOCK, 0)
    task = vm.spawn("waiter", lambda fs: fs.lockf(fs.open("/f", os.O_RDWR), os.F_LOCK, 0), pid=5)
    schedule.settle()
    assert not task.done
    two.mkdir("/meanwhile")
    one.lockf(fd, os.F_ULOCK, 0)
    schedule.join(task)
    schedule.close()


# Pages that exist nowhere else


def ram(vm):
    return [bytes(region.view) for region in vm.memory.regions]


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_dirty_pages_are_in_the_guests_memory_alone(ring, machine, tmp_path):
    """Writeback: what a program wrote is in guest RAM and nowhere else until fsync, across migrations."""
    secret = os.urandom(3000)
    vm = machine("packed, writeback", ring=ring)
    fs = vm.mount()
    fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
    assert fs.write(fd, secret) == len(secret)
    on_host = tmp_path / "share" / "f"
    assert on_host.read_bytes() == b""
    assert any(secret in region for region in ram(vm))
    assert secret not in vm.kernel.save()
    for _ in range(3):
        old = vm
        vm = vm.migrate()
        old.close()
        assert on_host.read_bytes() == b""
        assert any(secret in region for region in ram(vm))
    path = tmp_path / "saved"
    vm.save(path, keep_running=False)
    vm.close()
    assert secret in path.read_bytes()
    assert on_host.read_bytes() == b""
    with Machine.restore(path, share=tmp_path / "share") as back:
        again = back.mount()
        assert again.pread(fd, 4000, 0) == secret
        assert on_host.read_bytes() == b""
        again.fsync(fd)
        assert on_host.read_bytes() == secret


def test_without_its_memory_the_pages_are_lost(machine, tmp_path):
    """The proof that nothing else has them: with those pages zeroed, zeros are what comes out."""
    secret = os.urandom(4096)
    vm = machine("packed, writeback")
    fs = vm.mount()
    fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
    fs.write(fd, secret)
    for region in vm.memory.regions:
        while (at := bytes(region.view).find(secret)) >= 0:
            region.view[at : at + len(secret)] = bytes(len(secret))
    vm = vm.migrate()
    fs.fsync(fd)
    assert (tmp_path / "share" / "f").read_bytes() == bytes(4096)
    vm.close()


# Two machines at once


def test_two_machines_share_a_directory(machine, tmp_path):
    one, two = machine("split"), machine("packed, small ring", options={"cache": "never"})
    a, b = one.mount(), two.mount()
    fd = a.open("/f", os.O_RDWR | os.O_CREAT)
    a.write(fd, b"from one")
    other = b.open("/f", os.O_RDWR)
    assert b.read(other, 20) == b"from one"
    a.lockf(fd, os.F_LOCK, 0)
    with pytest.raises(BlockingIOError):
        b.lockf(other, os.F_TLOCK, 0)
    one.migrate().close()
    b.lockf(other, os.F_TLOCK, 0)


def test_machines_run_on_threads_of_their_own(tmp_path):
    """No state is shared between machines, not even by accident."""
    results = []

    def run(number):
        share = tmp_path / str(number)
        share.mkdir()
        with Machine(share, memory="2M", schedule=ImmediateSchedule()) as vm:
            fs = vm.mount()
            for step in range(100):
                fd = fs.open(f"/{step}", os.O_RDWR | os.O_CREAT)
                fs.write(fd, bytes([number]) * step)
                fs.close(fd)
            moved = vm.migrate()
            results.append(sum(fs.stat(f"/{step}").st_size for step in range(100)))
            moved.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [4950] * 4
