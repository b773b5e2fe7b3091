"""The guest's clocks: real time in the files that it writes, and none of the old clock after a restore."""

import os
import time

from vmsim.guest.config import GuestConfig
from vmsim.machine import Machine
from vmsim.schedule.clock import VirtualClock
from vmsim.schedule.immediate import ImmediateSchedule

CACHED = GuestConfig(cache="writeback", dentries=64)


def test_what_the_guest_writes_back_has_the_time_of_day(tmp_path):
    before = time.time() - 1
    with Machine(tmp_path, guest=CACHED, options={"writeback": True}) as vm:
        fs = vm.mount()
        fd = fs.open("/late", os.O_RDWR | os.O_CREAT)
        fs.write(fd, b"x" * 5000)
        fs.close(fd)
    assert before <= (tmp_path / "late").stat().st_mtime <= time.time() + 1


def test_nothing_is_believed_by_the_clock_of_another_process(tmp_path):
    (tmp_path / "file").write_bytes(b"short")
    saved = tmp_path / "machine.vmsim"
    share = tmp_path / "share"
    share.mkdir()
    (share / "file").write_bytes(b"short")
    late = ImmediateSchedule(VirtualClock(10**18))
    with Machine(share, guest=CACHED, options={"cache": "always"}, schedule=late) as vm:
        assert vm.mount().stat("/file").st_size == 5
        vm.save(saved)
    (share / "file").write_bytes(b"longer than before")
    early = ImmediateSchedule(VirtualClock(0))
    with Machine.restore(saved, share=share, schedule=early) as vm:
        assert vm.mount().stat("/file").st_size == 18
