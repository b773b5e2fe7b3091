"""A machine's state goes ahead of its stop: what arrives is the same, and what is left to do is little."""

from __future__ import annotations

import os

import pytest

from devices.virtio_fs.backend import VirtioFsBackend
from vmsim import Machine
from vmsim.errors import MigrationError
from vmsim.guest.config import GuestConfig
from vmsim.guest.kernel import node_groups
from vmsim.guest.kernel.kernel import GuestKernel
from vmsim.migration.report import MigrationParameters
from vmsim.schedule.seeded import SeededSchedule

FILES = 300
AHEAD = MigrationParameters(early_inodes=1)
LATE = MigrationParameters(early_inodes=1 << 62)
OPTIONS = {"cache": "always"}


def machine(share, count=FILES, **options):
    for number in range(count):
        (share / f"f{number}").write_text(str(number))
    vm = Machine(
        str(share), guest=GuestConfig(dentries=count + 100, cache="none"), options=OPTIONS | options
    )
    fs = vm.mount()
    for number in range(count):
        fs.stat(f"/f{number}")
    return vm, fs


def decoded_groups(monkeypatch):
    """How many groups of nodes are decoded from now on."""
    calls = []
    real = node_groups.decoded
    monkeypatch.setattr(node_groups, "decoded", lambda data: calls.append(data) or real(data))
    return calls


def test_all_that_the_guest_knows_arrives_and_is_not_looked_for_again(tmp_path, monkeypatch):
    vm, fs = machine(tmp_path)
    fd = fs.open("/f7", os.O_RDONLY)
    calls = decoded_groups(monkeypatch)
    told = []

    def progress(report):
        if report.phase == "stop":
            told.append(len(calls))

    with vm.migrate(parameters=AHEAD, progress=progress) as vm:
        assert vm.migration_stats.section_bytes["vmsim/early"] > 0
        assert set(told) == {2}, "the groups of 300 nodes are decoded before the guest stops"
        assert len(calls) == 2, "and not again"
        assert vm.facts()["inodes"] == FILES + 1
        assert fs.read(fd, 10) == b"7"
        assert sorted(fs.listdir("/")) == sorted(f"f{number}" for number in range(FILES))


@pytest.mark.parametrize("parameters", [AHEAD, LATE], ids=["ahead", "late"])
@pytest.mark.parametrize("mode", ["find-paths", "file-handles"])
def test_whether_it_goes_ahead_changes_nothing_for_the_guest(parameters, mode, tmp_path):
    vm, fs = machine(tmp_path, migration_mode=mode)
    fd = fs.open("/f1", os.O_RDONLY)
    fs.unlink("/f1")
    for _ in range(3):
        before = {inode.id: (inode.name, inode.nlookup) for inode in vm.backend.served.fs.inodes}
        vm = vm.migrate(parameters=parameters)
        after = {inode.id: (inode.name, inode.nlookup) for inode in vm.backend.served.fs.inodes}
        if mode == "find-paths":
            assert before.keys() == after.keys()
            assert {nodeid: each[1] for nodeid, each in before.items()} == {
                nodeid: each[1] for nodeid, each in after.items()
            }
        fs.rename("/f2", "/moved")
        fs.rename("/moved", "/f2")
        assert fs.read(fd, 10) in (b"1", b"")
        assert ("vmsim/early" in vm.migration_stats.section_bytes) == (parameters is AHEAD)
    vm.close()


def test_the_guest_works_while_state_goes_ahead(tmp_path):
    for number in range(FILES):
        (tmp_path / f"f{number}").touch()
    schedule = SeededSchedule(3)
    vm = Machine(str(tmp_path), schedule=schedule, guest=GuestConfig(dentries=1000), options=OPTIONS)
    fs = vm.mount()
    for number in range(FILES):
        fs.stat(f"/f{number}")
    done = []

    def work(fs):
        number = 0
        while not done:
            number += 1
            fs.close(fs.open(f"/new{number}", os.O_RDWR | os.O_CREAT))
            fs.rename(f"/new{number}", f"/f{number % FILES}")
            if number % 5 == 0:
                fs.unlink(f"/f{number % FILES}")
        return number

    task = vm.spawn("work", work)
    for _ in range(3):
        vm = vm.migrate(parameters=MigrationParameters(early_inodes=1, part_bytes=16384))
    done.append(True)
    schedule.wait(lambda: task.done, "the work to end")
    assert task.result() > 5
    assert sorted(fs.listdir("/")) == sorted(os.listdir(tmp_path))
    vm.close()


def test_a_file_that_is_replaced_on_the_host_after_it_was_found_is_never_served_for_the_old_one(tmp_path):
    vm, fs = machine(tmp_path)
    fd = fs.open("/f9", os.O_RDONLY)
    (tmp_path / "other").write_text("an impostor")

    def replace(report):
        if report.phase == "stop" and (tmp_path / "other").exists():
            os.rename(tmp_path / "other", tmp_path / "f9")

    vm = vm.migrate(parameters=AHEAD, progress=replace)
    assert fs.read(fd, 20) in (b"9", b"an impostor"), "what is at its place, as without verify-handles"
    vm.close()


def test_and_with_verify_handles_it_is_noticed(tmp_path):
    vm, _ = machine(tmp_path, migration_verify_handles=True)
    (tmp_path / "other").write_text("an impostor")

    def replace(report):
        if report.phase == "stop" and (tmp_path / "other").exists():
            os.rename(tmp_path / "other", tmp_path / "f9")

    with pytest.raises(MigrationError, match="another file has taken its place"):
        vm.migrate(parameters=AHEAD, progress=replace)
    assert vm.state == "running"
    vm.close()


def test_a_reset_of_the_device_forgets_what_was_found(tmp_path):
    vm, _ = machine(tmp_path, 10)
    vm.backend.served.log_started()
    pieces = [piece for piece in vm.backend.early() if piece]
    assert pieces
    other = VirtioFsBackend(vm.backend.served.fs.host, str(tmp_path))
    for piece in pieces:
        other.take_early(piece)
    assert len(other.fs.inodes) == 11
    other.reset()
    assert len(other.fs.inodes) == 1
    other.load_state(vm.backend.served.collector.save())
    assert len(other.fs.inodes) == 11
    other.close()
    vm.close()


def test_kernel_keeps_nothing_that_came_early(tmp_path):
    vm, _ = machine(tmp_path, 10)
    with vm.migrate(parameters=AHEAD) as vm:
        assert isinstance(vm.kernel, GuestKernel)
        assert vm.kernel.known._groups == {}
        assert vm.backend.served._early is None
