"""The property ``migration``: none, external, internal; for saving and for loading; kept back-ends."""

from __future__ import annotations

import itertools

import pytest

from tests.support.leaks import no_leaks
from tests.support.machine_rig import FEW_KINDS, Kind, Life, make
from vmsim.errors import MigrationBlocked, MigrationError, UsageError
from vmsim.machine import Machine
from vmsim.machine.states import RUNNING

KINDS = ("none", "external", "internal")
PATH = "/machine/peripheral/fs0"


@pytest.mark.parametrize("dialect", ["upstream", "rfc2023"])
@pytest.mark.parametrize(("here", "there"), list(itertools.product(KINDS, KINDS)))
def test_every_combination_of_saving_and_loading(tmp_path, here, there, dialect):
    with no_leaks():
        vm = make(tmp_path, Kind("split", dialect, "find-paths", None), migration=here)
        life = Life(vm)
        if here == there != "none":
            before, vm = vm, vm.migrate(migration=there)
            before.close()
        else:
            with pytest.raises(MigrationError) as caught:
                vm.migrate(migration=there)
            error = caught.value
            assert vm.state == RUNNING
            text = f"{error} {error.hint} {error.__cause__}"
            if here == "none":
                assert isinstance(error, MigrationBlocked)
                assert str(error) == f"Migration is blocked by device {PATH}"
                assert "migration=internal" in error.hint
                assert error.side == "source"
            elif there == "none":
                assert f"Migration is blocked by device {PATH}" in text
                assert "on the destination to external or internal" in error.hint
                assert error.side == "destination"
            else:
                assert error.side == "destination"
                says = "none was expected" if here == "internal" else "has no back-end state"
                assert says in text
                assert "set migration=" in error.hint
        life.check(vm)
        life.go_on(vm)
        vm.migration = "internal"
        before, vm = vm, vm.migrate()
        before.close()
        life.check(vm)
        life.finish(vm)
        vm.close()


def test_the_property_can_be_set_while_the_machine_runs(tmp_path):
    with make(tmp_path, migration="none") as vm:
        assert vm.migration == "none"
        with pytest.raises(MigrationBlocked):
            vm.migrate()
        with pytest.raises(MigrationBlocked):
            vm.save(tmp_path / "file")
        assert not (tmp_path / "file").exists()
        with pytest.raises(UsageError, match="sideways"):
            vm.migration = "sideways"
        vm.migration = "external"
        before, vm2 = vm, vm.migrate()
        before.close()
        assert vm2.migration == "external"
        vm2.close()


@pytest.mark.parametrize("kind", FEW_KINDS, ids=str)
@pytest.mark.parametrize("kept", [{"migration": "external"}, {"options": {"migration_empty_state": True}}])
def test_a_back_end_that_is_kept_goes_on_with_all_its_handles(tmp_path, kind, kept):
    with no_leaks():
        vm = make(tmp_path, kind, **kept)
        life = Life(vm)
        backend, handles = vm.backend, dict(vm.backend.served.fs.handles._by_id)
        for _ in range(3):
            before, vm = vm, vm.migrate()
            before.close()
            assert vm.backend is backend
            assert backend.connected
            assert dict(backend.served.fs.handles._by_id) == handles, "the very same open files"
            size = vm.migration_stats.section_bytes[vm.section.idstr]
            assert size < 60_000, "virtio state only"
            life.check(vm)
            life.go_on(vm)
        life.finish(vm)
        vm.close()
        assert not backend.connected


@pytest.mark.parametrize("kept", [{"migration": "external"}, {"options": {"migration_empty_state": True}}])
def test_a_kept_back_end_is_taken_by_hand_after_a_save(tmp_path, kept):
    share = tmp_path / "share"
    share.mkdir()
    with no_leaks():
        vm = make(share, **kept)
        life = Life(vm)
        vm.save(tmp_path / "file")
        life.check(vm)
        life.go_on(vm)
        backend = vm.backend
        vm.save(tmp_path / "file", keep_running=False)
        vm.close()
        with pytest.raises(MigrationError, match="keeps its session") as caught:
            Machine.restore(tmp_path / "file", share=share)
        assert "backend=" in caught.value.hint
        vm2 = Machine.restore(tmp_path / "file", share=share, backend=backend)
        fs = vm2.mount()
        assert fs.pread(life.fd, 100, 0) == life.written
        assert fs.pread(life.unlinked, 100, 0) == b"only here"
        assert fs.write(life.append, b"x") == 1
        vm2.close()
        backend.close()


def test_a_refused_destination_gives_the_kept_back_end_back(tmp_path):
    with no_leaks():
        vm = make(tmp_path, migration="external")
        life = Life(vm)
        for _ in range(3):
            with pytest.raises(MigrationError, match="is not a directory"):
                vm.migrate(share=tmp_path / "missing")
            life.check(vm)
            life.go_on(vm)
        assert vm.owns_backend
        vm.close()
