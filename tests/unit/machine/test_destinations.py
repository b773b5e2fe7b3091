"""What the destination's user says: another share, other options, another clock; and what is refused."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from tests.support.leaks import no_leaks
from tests.support.machine_rig import FEW_KINDS, Life, make
from vmsim.errors import MigrationError
from vmsim.guest.config import GuestConfig
from vmsim.machine import Machine
from vmsim.machine.states import RUNNING
from vmsim.schedule.clock import VirtualClock
from vmsim.schedule.immediate import ImmediateSchedule


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


def test_the_same_tree_under_another_path(tmp_path, share):
    with no_leaks():
        vm = make(share)
        fs = vm.mount()
        fs.mkdir("/d")
        fd = fs.open("/d/f", os.O_RDWR | os.O_CREAT)
        fs.write(fd, b"content")
        other = tmp_path / "elsewhere"
        shutil.copytree(share, other)
        vm2 = vm.migrate(share=other)
        vm.close()
        assert vm2.share == str(other)
        fs = vm2.mount()
        fs.write(fd, b" and more")
        assert (other / "d/f").read_bytes() == b"content and more"
        assert (share / "d/f").read_bytes() == b"content"
        vm2.close()


@pytest.mark.parametrize("kind", FEW_KINDS, ids=str)
def test_a_share_that_is_not_there(tmp_path, share, kind):
    with no_leaks():
        vm = make(share, kind)
        life = Life(vm)
        for place in ("missing", "share/notes"):
            with pytest.raises(MigrationError, match="is not a directory") as caught:
                vm.migrate(share=tmp_path / place)
            assert caught.value.side == "destination"
            assert caught.value.step == "building the machine"
            assert vm.state == RUNNING
            life.check(vm)
        life.finish(vm)
        vm.close()


def test_files_that_are_missing_at_the_destination(tmp_path, share):
    with no_leaks():
        vm = make(share)
        fs = vm.mount()
        fds = {name: fs.open(f"/{name}", os.O_RDWR | os.O_CREAT) for name in ("here", "lost")}
        for fd in fds.values():
            fs.write(fd, b"content")
        other = tmp_path / "other"
        shutil.copytree(share, other)
        (other / "lost").unlink()
        with pytest.raises(MigrationError, match="lost") as caught:
            vm.migrate(share=other)
        assert caught.value.side == "destination"
        assert "back-end state" in str(caught.value)
        fs.write(fds["lost"], b"!")
        vm2 = vm.migrate(share=other, options={"migration_on_error": "guest-error"})
        vm.close()
        assert any("lost" in note for note in vm2.notes())
        fs = vm2.mount()
        assert fs.pread(fds["here"], 10, 0) == b"content"
        with pytest.raises(OSError) as broken:
            fs.pread(fds["lost"], 10, 0)
        assert broken.value.errno == errno.EIO
        with pytest.raises(OSError):
            fs.close(fds["lost"])  # as FLUSH answers, and closed it is
        vm3 = vm2.migrate()
        vm2.close()
        assert vm3.mount().pread(fds["here"], 10, 0) == b"content"
        vm3.close()


def test_a_different_file_under_the_name_is_noticed_with_verify_handles(share):
    with make(share, options={"migration_verify_handles": True}) as vm:
        fs = vm.mount()
        fd = fs.open("/f", os.O_RDWR | os.O_CREAT)

        def swap(report):
            if report.phase == "ready" or (report.phase == "device" and not (share / "kept").exists()):
                (share / "f").rename(share / "kept")
                (share / "f").write_bytes(b"an impostor")

        with pytest.raises(MigrationError):
            vm.migrate(progress=swap, options={"migration_verify_handles": True})
        assert fs.pread(fd, 20, 0) == b""


def test_another_clock(tmp_path, share):
    """Times in the guest's state are the clock's of the machine that wrote them: ours started elsewhere."""
    guest = GuestConfig(cache="writethrough", cache_pages=32, dentries=64)
    path = tmp_path / "file"
    there = ImmediateSchedule(VirtualClock(10**18))
    with make(share, guest=guest, schedule=there, options={"timeout_s": 10}) as vm:
        fs = vm.mount()
        fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
        fs.write(fd, b"before")
        fs.stat("/f")
        vm.save(path)
    (share / "f").write_bytes(b"changed meanwhile")
    schedule = ImmediateSchedule(VirtualClock(5))
    with Machine.restore(path, share=share, schedule=schedule) as vm:
        fs = vm.mount()
        assert fs.stat("/f").st_size == 17, "by our clock nobody knows how long ago it was saved"
        assert fs.lseek(fd, 0, os.SEEK_CUR) == 6
        (share / "f").write_bytes(b"somebody else was here")
        assert fs.stat("/f").st_size == 17, "still believed"
        schedule.clock.advance_to(schedule.now_ns() + 11_000_000_000)
        assert fs.stat("/f").st_size == 22, "what was cached has expired after 10 s of our clock"
