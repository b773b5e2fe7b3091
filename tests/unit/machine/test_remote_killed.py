"""A back-end is killed, on either side, at any moment: never both machines, never neither, and it is said."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from tests.support.machine_rig import FEW_KINDS, Life, make
from tests.support.remote_rig import Side, nothing_left
from tests.support.sampling import sample
from vmsim.errors import MigrationError, StallError
from vmsim.host.waits import FdWaits
from vmsim.machine.states import RUNNING
from vmsim.schedule.immediate import ImmediateSchedule

KILLED = "the back-end was killed by SIGKILL"


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def clean(tmp_path):
    with nothing_left(tmp_path / "temporary"):
        yield


def messages_of(share, *, source: bool) -> list[str]:
    """What a back-end gets during a migration."""
    here, there = Side(), Side()
    vm = make(share, seams=here.seams)
    here.moment.on, there.moment.on = source, not source
    vm.migrate(seams=there.seams).close()
    vm.close()
    return [name for name in (here if source else there).moment.seen if name != "kick"]


SOURCE = (
    "SET_LOG_BASE", "SET_FEATURES", "SET_VRING_ADDR", "SET_VRING_ENABLE", "GET_VRING_BASE", "SET_VRING_CALL",
    "SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE",
)  # fmt: skip
DESTINATION = (
    "GET_FEATURES", "SET_OWNER", "SET_VRING_CALL", "SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE",
    "ADD_MEM_REG", "SET_FEATURES", "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_KICK", "SET_VRING_ENABLE",
)  # fmt: skip


def test_these_are_the_messages_of_a_migration(share):
    assert set(SOURCE) <= set(messages_of(share, source=True))
    assert set(DESTINATION) <= set(messages_of(share, source=False))


@pytest.mark.parametrize("message", sample(DESTINATION, 5, "killed at: the destination's messages"))
def test_at_the_destination_the_source_goes_on_with_all_it_has(share, message):
    vm = make(share, seams=Side().seams)
    life = Life(vm)
    there = Side()
    there.kill_at(message)
    with pytest.raises(MigrationError) as caught:
        vm.migrate(seams=there.seams)
    assert there.moment.passed
    assert caught.value.side == "destination"
    assert KILLED in str(caught.value)
    assert vm.state == RUNNING
    life.check(vm)
    life.go_on(vm)
    vm = vm.migrate(seams=Side().seams)
    life.check(vm)
    life.finish(vm)
    vm.close()


def ends_with_eio(vm, life):
    """The request that waited in the back-end."""
    vm.schedule.wait(lambda: life.waiter.done, "the waiting request's end")
    with pytest.raises(OSError) as failed:
        life.waiter.result()
    assert failed.value.errno == errno.EIO


@pytest.mark.parametrize("message", sample(SOURCE, 4, "killed at: the source's messages"))
def test_at_the_source_the_guest_is_told(share, message):
    here, there = Side(), Side()
    vm = make(share, seams=here.seams)
    life = Life(vm)
    here.kill_at(message)
    with pytest.raises(MigrationError) as caught:
        vm.migrate(seams=there.seams)
    assert caught.value.side == "source"
    assert KILLED in str(caught.value)
    assert vm.state == RUNNING
    with pytest.raises(OSError) as failed:
        vm.mount().fstat(life.fd)
    assert failed.value.errno == errno.EIO
    assert KILLED in vm.device.virtio.reset_reason
    assert not any(backend.process.alive for backend in there.started)
    ends_with_eio(vm, life)
    vm.close()


@pytest.mark.parametrize("kind", FEW_KINDS[::2], ids=str)
def test_while_a_program_waits_it_gets_eio(share, kind):
    here = Side()
    vm = make(share, kind, seams=here.seams)
    life = Life(vm)
    vm.schedule.spawn("killer", here.process.kill)
    ends_with_eio(vm, life)
    with pytest.raises(OSError) as failed:
        vm.mount().mkdir("/d2")
    assert failed.value.errno == errno.EIO
    assert KILLED in vm.device.virtio.reset_reason
    vm.close()


def test_while_it_works_off_requests(share):
    here = Side()
    vm = make(share, seams=here.seams)

    def program(fs):
        while True:
            fs.stat("/")

    tasks = [vm.spawn(f"program {number}", program, pid=number) for number in (2, 3)]
    vm.schedule.sleep_ns(2_000_000)
    here.process.kill()
    vm.schedule.wait(lambda: all(task.done for task in tasks), "both programs' end")
    for task in tasks:
        with pytest.raises(OSError) as failed:
            task.result()
        assert failed.value.errno == errno.EIO
    vm.close()


def test_one_that_hangs_is_waited_for_so_long_and_may_go_on_later(share):
    schedule = ImmediateSchedule(descriptors=FdWaits(patience_ns=100_000_000))
    here = Side()
    vm = make(share, seams=here.seams, schedule=schedule)
    fs = vm.mount()
    fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
    here.process.send_signal(signal.SIGSTOP)
    with pytest.raises(StallError, match="FUSE"):
        fs.pwrite(fd, b"at last", 0)
    here.process.send_signal(signal.SIGCONT)
    assert fs.pread(fd, 9, 0) == b"at last"
    vm.close()


def test_a_kept_back_end_that_dies_between_the_machines(share):
    """The source has let go, the destination finds nobody: the guest is told, at the source."""
    here = Side()
    vm = make(share, seams=here.seams, migration="external")
    life = Life(vm)
    here.kill_at("GET_FEATURES")
    with pytest.raises(MigrationError, match=KILLED) as caught:
        vm.migrate()
    assert caught.value.side == "destination"
    assert vm.state == RUNNING
    with pytest.raises(OSError) as failed:
        vm.mount().fstat(life.fd)
    assert failed.value.errno == errno.EIO
    ends_with_eio(vm, life)
    vm.close()


def test_save_of_a_machine_whose_back_end_is_gone(share, tmp_path):
    here = Side()
    vm = make(share, seams=here.seams)
    here.process.kill()
    with pytest.raises(MigrationError, match=KILLED):
        vm.save(tmp_path / "file")
    assert not (tmp_path / "file").exists()
    vm.close()
