"""What may be saved and what may be loaded are set apart: of a machine, a command, a back-end."""

from __future__ import annotations

import errno
import itertools
import json

import pytest

from tests.support.leaks import no_leaks
from tests.support.machine_rig import Kind, Life, make
from vmsim.cli.program import run
from vmsim.errors import MigrationBlocked, MigrationError, UsageError
from vmsim.machine import Machine
from vmsim.machine.states import RUNNING
from vmsim.schedule.seeded import SeededSchedule

KINDS = ("none", "external", "internal")


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("by", ["argument", "property"])
@pytest.mark.parametrize(("save", "load"), list(itertools.product(KINDS, KINDS)))
def test_every_combination_within_one_machine(share, save, load, by):
    with no_leaks():
        if by == "argument":
            vm = make(share, migration_save=save, migration_load=load)
        else:
            vm = make(share)
            vm.migration_save, vm.migration_load = save, load
        assert (vm.migration_save, vm.migration_load) == (save, load)
        assert vm.migration == (save if save == load else f"{save}/{load}")
        life = Life(vm)
        if save == load != "none":
            before, vm = vm, vm.migrate()
            before.close()
            assert (vm.migration_save, vm.migration_load) == (save, load)
        else:
            with pytest.raises(MigrationError) as caught:
                vm.migrate()
            assert isinstance(caught.value, MigrationBlocked) == (save == "none")
            assert caught.value.side == ("source" if save == "none" else "destination")
            assert vm.state == RUNNING
            if save == "internal":  # the destination's user may say otherwise
                before, vm = vm, vm.migrate(migration_load="internal")
                before.close()
                assert vm.migration_load == "internal"
        life.check(vm)
        life.finish(vm)
        vm.close()


def test_what_was_saved_says_what_may_be_loaded(tmp_path, share):
    with make(share, migration_load="none") as vm:
        vm.mount().mkdir("/there")
        vm.save(tmp_path / "file", keep_running=False)
    with pytest.raises(MigrationError, match="Migration is blocked"):
        Machine.restore(tmp_path / "file", share=share)
    with Machine.restore(tmp_path / "file", share=share, migration_load="internal") as vm:
        assert vm.mount().listdir("/") == ["there"]
        assert vm.migration_save == "internal"
    with Machine.restore(tmp_path / "file", share=share, migration="internal") as vm:
        assert vm.migration == "internal"


def test_kinds_that_do_not_exist(share):
    for name in ("migration_save", "migration_load"):
        with pytest.raises(UsageError, match="sideways"):
            make(share, **{name: "sideways"})
        with make(share) as vm, pytest.raises(UsageError, match="sideways"):
            setattr(vm, name, "sideways")


@pytest.mark.parametrize("dialect", ["upstream", "rfc2023"])
@pytest.mark.parametrize("transport", ["inproc", "vhost-user"])
@pytest.mark.parametrize("direction", ["save", "load"])
def test_a_back_end_that_may_not(share, direction, transport, dialect):
    """``serve --migration-save none``: the back-end itself refuses, and says so."""
    kind = Kind("split", dialect, "find-paths", None)
    option = {f"migration_{direction}": "none"}
    here, there = (option, {}) if direction == "save" else ({}, option)
    vm = make(share, kind, transport=transport, options=here)
    life = Life(vm)
    with pytest.raises(MigrationError) as caught:
        vm.migrate(options={f"migration_{direction}": "internal"} | there)
    assert caught.value.side == ("source" if direction == "save" else "destination")
    if transport == "inproc":
        assert f"may not be {direction}" in str(caught.value)
        assert f"--migration-{direction}" in caught.value.hint
    assert vm.state == RUNNING
    life.check(vm)
    life.finish(vm)
    vm.close()


def test_on_the_command_line(tmp_path, share, capsys):
    saved = str(tmp_path / "saved")

    def told(status: int, *words: str) -> str:
        assert run([*words, "--json"]) == status
        return json.loads(capsys.readouterr().out).get("error", {}).get("message", "")

    migrate = ["migrate", "--inodes", "5", "--hops", "1", str(share)]
    restore = ["restore", saved, "--share", str(share)]
    assert "Migration is blocked" in told(1, *migrate, "--migration-save", "none")
    assert "Migration is blocked" in told(1, *migrate, "--migration-load", "none")
    assert told(0, *migrate, "--migration-save", "internal", "--save", saved) == ""
    assert "Migration is blocked" in told(1, *restore, "--migration-load", "none")
    assert told(0, *restore) == ""


@pytest.mark.parametrize("opcode", [51, 4242, 0xFFFFFFFF])
def test_a_request_of_a_newer_kernel_moves_like_any_other(share, opcode):
    """One in flight, with an opcode that this guest's model has not: it arrives, and is answered there."""
    with no_leaks():
        vm = make(share)
        life = Life(vm)
        (request,) = vm.kernel.requests.values()
        request.opcode = opcode
        for _ in range(2):
            before, vm = vm, vm.migrate()
            before.close()
            life.check(vm)
        (request,) = vm.kernel.requests.values()
        assert request.opcode == opcode
        life.finish(vm)
        vm.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_request_of_a_newer_kernel_that_is_sent_and_answered_elsewhere(share, seed):
    """Wherever the migration finds it, posted, taken or answered: the guest gets its ENOSYS."""
    vm = make(share, schedule=SeededSchedule(seed))
    fs = vm.mount()
    fs.mkdir("/d")
    process = vm.kernel.state.processes[1]
    sent = [vm.kernel.submit(4242, 1, data=b"what is this?", process=process, room=64) for _ in range(3)]
    before, vm = vm, vm.migrate()
    before.close()
    vm.schedule.wait(lambda: all(vm.kernel.ended(each.unique) for each in sent), "the replies")
    for each in sent:
        assert vm.kernel.requests[each.unique].error == errno.ENOSYS
    assert vm.mount().listdir("/") == ["d"]
    vm.close()


def test_a_request_of_a_newer_kernel_whose_caller_is_gone(tmp_path, share):
    vm = make(share)
    Life(vm)
    (request,) = vm.kernel.requests.values()
    request.opcode = 4242
    vm.save(tmp_path / "file", keep_running=False)
    vm.close()
    with Machine.restore(tmp_path / "file", share=share) as vm:
        assert vm.kernel.requests == {}
