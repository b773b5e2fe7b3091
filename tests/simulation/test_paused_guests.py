"""A guest whose state is being saved stands still: no call that a program begins then changes anything.

Programs are not only stopped where they wait for the device: one that was doing something of its own may
begin a call at any moment of a migration.
"""

from __future__ import annotations

import fcntl
import os

import pytest

from tests.support.guest_rig import GuestRig
from vmsim.machine import Machine
from vmsim.schedule.seeded import SeededSchedule

CALLS = {
    "close": lambda fs: fs.close(0),
    "dup": lambda fs: fs.dup(0),
    "dup2": lambda fs: fs.dup2(0, 9),
    "pread": lambda fs: fs.pread(0, 10, 0),
    "read": lambda fs: fs.read(0, 10),
    "write": lambda fs: fs.write(0, b"x"),
    "pwrite": lambda fs: fs.pwrite(0, b"x", 0),
    "lseek": lambda fs: fs.lseek(0, 3, os.SEEK_SET),
    "fstat": lambda fs: fs.fstat(0),
    "fsync": lambda fs: fs.fsync(0),
    "ftruncate": lambda fs: fs.ftruncate(0, 1),
    "setlk": lambda fs: fs.setlk(0, fcntl.F_WRLCK, 0, 0, wait=True),
    "getlk": lambda fs: fs.getlk(0, fcntl.F_WRLCK, 0, 0),
    "flock": lambda fs: fs.flock(0, fcntl.LOCK_EX),
    "open": lambda fs: fs.open("/new", os.O_CREAT | os.O_RDWR),
    "open_file": lambda fs: fs.open_file("/f", "r+").close(),
    "stat": lambda fs: fs.stat("/f"),
    "access": lambda fs: fs.access("/f", os.R_OK),
    "listdir": lambda fs: fs.listdir("/"),
    "scandir": lambda fs: list(fs.scandir("/")),
    "mkdir": lambda fs: fs.mkdir("/d"),
    "unlink": lambda fs: fs.unlink("/f"),
    "rename": lambda fs: fs.rename("/f", "/g"),
    "link": lambda fs: fs.link("/f", "/h"),
    "symlink": lambda fs: fs.symlink("f", "/s"),
    "chmod": lambda fs: fs.chmod("/f", 0o600),
    "utime": lambda fs: fs.utime("/f", (1, 1)),
    "truncate": lambda fs: fs.truncate("/f", 1),
    "setxattr": lambda fs: fs.setxattr("/f", "user.a", b"v"),
    "chdir": lambda fs: fs.chdir("/"),
    "getcwd": lambda fs: fs.getcwd(),
    "umask": lambda fs: fs.umask(0o77),
    "fork": lambda fs: fs.fork(),
    "interrupt": lambda fs: fs.interrupt(1),
    "submit_read": lambda fs: fs.result(fs.submit_read(0, 10, 0)),
    "submit_lock": lambda fs: fs.result(fs.submit_lock(0, fcntl.F_RDLCK, 0, 0)),
    "statvfs": lambda fs: fs.statvfs("/"),
    "sync": lambda fs: fs.sync(),
    "drop_caches": lambda fs: fs.drop_caches(),
    "exit": lambda fs: fs.exit(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_a_call_of_a_paused_guest_waits(call, cache, tmp_path):
    rig = GuestRig(
        tmp_path, schedule=SeededSchedule(1), cache=cache, dentries=8, cache_pages=16,
        options={"writeback": cache == "writeback"},
    )  # fmt: skip
    fs, kernel, schedule = rig.fs, rig.kernel, rig.schedule
    assert fs.open("/f", os.O_RDWR | os.O_CREAT) == 0
    fs.write(0, b"content")
    kernel.pause()
    before = kernel.save(), [bytes(region.view) for region in rig.memory.regions]
    tasks = [schedule.spawn(f"program {n}", lambda: CALLS[call](fs)) for n in range(2)]
    schedule.settle()
    assert (kernel.save(), [bytes(region.view) for region in rig.memory.regions]) == before
    assert not any(task.done for task in tasks)
    kernel.resume()
    schedule.settle()
    assert all(task.done for task in tasks)
    tasks[0].result()
    rig.close()


def test_an_interrupt_comes_for_each_of_several_requests(tmp_path):
    """What is used while interrupts are asked for must not swallow the interrupt for what is used later."""
    rig = GuestRig(tmp_path)
    fs, kernel, device = rig.fs, rig.kernel, rig.device
    fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
    device.hold = True
    pending = [fs.submit_stat(fd) for _ in range(3)]
    (first, *rest), device.held = device.held, []
    device.answer(*first)  # nobody waits: no interrupt
    kernel.arm_interrupts()
    interrupts = []
    device.virtio.on_interrupt = lambda: (interrupts.append(True), kernel.interrupt())
    for index, chain in rest:
        device.answer(index, chain)
    assert interrupts
    kernel.arm_interrupts()
    assert [fs.done(each) for each in pending] == [True] * 3
    for each in pending:
        fs.result(each)
    rig.close()


def test_a_program_that_begins_a_call_during_a_migration_goes_on_at_the_destination(tmp_path):
    schedule = SeededSchedule(3)
    machine = Machine(tmp_path, memory="2M", schedule=schedule)
    done = []

    def program(fs):
        fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
        for _ in range(200):
            schedule.checkpoint("something of its own")
            fs.setlk(fd, fcntl.F_WRLCK, 0, 0)
            done.append(fs.write(fd, b"x"))
            schedule.checkpoint("something of its own")
            fs.setlk(fd, fcntl.F_UNLCK, 0, 0)

    tasks = [machine.spawn(f"program {pid}", program, pid=pid) for pid in (1,)]
    for _ in range(6):
        schedule.sleep_ns(30_000)
        machine = machine.migrate()
    for task in tasks:
        schedule.join(task)
    assert (tmp_path / "f").stat().st_size == 200
    machine.close()
