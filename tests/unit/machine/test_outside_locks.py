"""Blocking locks really block: until somebody outside lets go, or the guest itself is at a deadlock."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from vmsim.errors import StallError
from vmsim.machine import Machine
from vmsim.schedule.seeded import SeededSchedule

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "r+")
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print(flush=True)
if len(sys.argv) > 3:
    time.sleep(float(sys.argv[3]))
else:
    sys.stdin.read()
file.write("let go of")
file.flush()
"""
HELD_S = 0.2
"""While this process waits in the same thread, it cannot say when."""


class Holder:
    """Another process that holds a lock until ``release``, or for a time; then it writes to the file."""

    def __init__(self, path, kind, *held_s):
        arguments = [sys.executable, "-c", HOLDER, str(path), kind, *map(str, held_s)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdout.readline()

    def release(self):
        self.process.stdin.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stdin.close()


@pytest.fixture(params=["immediate", "seeded"])
def machine(request, tmp_path):
    schedule = SeededSchedule(5) if request.param == "seeded" else None
    (tmp_path / "file").write_bytes(b"content")
    with Machine(tmp_path, memory="2M", schedule=schedule) as vm:
        yield vm


@pytest.mark.parametrize("kind", ["lockf", "flock"])
def test_a_blocking_lock_waits_for_another_process(machine, tmp_path, kind):
    fs = machine.mount()
    fd = fs.open("/file", os.O_RDWR)
    with Holder(tmp_path / "file", kind, HELD_S):
        if kind == "lockf":
            fs.lockf(fd, os.F_LOCK, 0)
        else:
            fs.flock(fd, fcntl.LOCK_EX)
        assert fs.pread(fd, 9, 0) == b"let go of"
    assert machine.facts()["waiting"] == 0
    assert machine.facts()["locks"] == 1


def test_other_programs_work_while_one_waits_for_another_process(machine, tmp_path):
    with Holder(tmp_path / "file", "lockf") as holder:
        fs = machine.mount()
        fd = fs.open("/file", os.O_RDWR)
        waiting = machine.spawn("waiting", lambda fs: fs.lockf(fd, os.F_LOCK, 0))
        rounds = machine.spawn("working", lambda fs: [fs.stat("/file") for _ in range(50)], pid=2)
        assert len(machine.schedule.join(rounds)) == 50
        assert not waiting.done
        holder.release()
        machine.schedule.join(waiting)


def test_a_wait_for_another_process_migrates(machine, tmp_path):
    fs = machine.mount()
    fd = fs.open("/file", os.O_RDWR)
    with Holder(tmp_path / "file", "lockf") as holder:
        waiting = machine.spawn("waiting", lambda fs: fs.lockf(fd, os.F_LOCK, 0))
        machine.schedule.settle()
        with machine.migrate() as there:
            assert there.arrived_requests == 1
            holder.release()
            there.schedule.join(waiting)
            assert there.facts() == {**there.facts(), "waiting": 0, "locks": 1}


def test_a_deadlock_of_two_programs_is_told(machine):
    """POSIX: the second one to wait gets EDEADLK, and the first goes on once it gives up."""
    fs, other = machine.mount(), machine.mount(2)
    mine, theirs = (side.open("/file", os.O_RDWR) for side in (fs, other))
    fs.setlk(mine, fcntl.F_WRLCK, 0, 1)
    other.setlk(theirs, fcntl.F_WRLCK, 1, 1)
    first = machine.spawn("first", lambda fs: fs.setlk(mine, fcntl.F_WRLCK, 1, 1, wait=True))
    machine.schedule.settle()
    with pytest.raises(OSError) as caught:
        other.setlk(theirs, fcntl.F_WRLCK, 0, 1, wait=True)
    assert caught.value.errno == errno.EDEADLK
    other.setlk(theirs, fcntl.F_UNLCK, 0, 0)
    machine.schedule.join(first)


def test_a_deadlock_by_flock_stalls(machine):
    """Linux waits for ever; the schedule can tell."""
    fs = machine.mount()
    one, two = (fs.open("/file", os.O_RDWR) for _ in range(2))
    fs.flock(one, fcntl.LOCK_EX)
    with pytest.raises(StallError):
        fs.flock(two, fcntl.LOCK_EX)


def test_a_closed_machine_looks_at_nothing(tmp_path):
    with Machine(tmp_path, memory="2M") as vm:
        schedule = vm.schedule
        fd = vm.mount().open("/file", os.O_RDWR | os.O_CREAT)
        task = vm.spawn("waiting", lambda fs: fs.lockf(fd, os.F_LOCK, 0))
        with Holder(tmp_path / "file", "lockf", 60):
            schedule.settle()
            assert vm.facts()["waiting"] == 1
    with pytest.raises(StallError):
        schedule.wait(lambda: False, "anything")
    schedule.kill(task)
    schedule.close()
