"""Will it migrate? Asked of a running machine, and compared with what a migration then does."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.support.leaks import no_leaks
from tests.support.machine_rig import Kind, Life, make
from vmsim.errors import MigrationError, StateError

HANDLES = Kind("split", "upstream", "file-handles", None)


def findings(vm):
    return [(finding.severity, finding.name, finding.why) for finding in vm.preflight()]


def test_a_machine_that_migrates_well(tmp_path):
    with no_leaks(), make(tmp_path) as vm:
        life = Life(vm)
        found = vm.preflight()
        assert {finding.severity for finding in found} == {"info"}
        text = " ".join(finding.why for finding in found)
        assert "unlinked; its 9 bytes travel along" in text
        assert "waits for a lock" in text
        life.check(vm)
        vm2 = vm.migrate()
        life.check(vm2)
        life.finish(vm2)
        vm2.close()


def test_what_will_not_survive_is_named_before_anything_stops(tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    vm = make(share)
    fs = vm.mount()
    fs.mkdir("/d")
    fd = fs.open("/d/f", os.O_RDWR | os.O_CREAT)
    assert vm.preflight() == []
    shutil.move(share / "d" / "f", tmp_path / "outside")
    errors = [finding for finding in vm.preflight() if finding.severity == "error"]
    assert [finding.name for finding in errors] == ["f"]
    assert errors[0].what
    assert fs.write(fd, b"the guest works on") == 18
    with pytest.raises(MigrationError):
        vm.migrate()
    shutil.move(tmp_path / "outside", share / "d" / "g")
    assert [severity for severity, _, _ in findings(vm)] == ["info"]
    vm2 = vm.migrate()
    assert vm2.mount().pread(fd, 30, 0) == b"the guest works on"
    vm.close()
    vm2.close()


def test_it_does_not_disturb_a_collection_that_is_under_way(tmp_path):
    seen = []
    with make(tmp_path) as vm:
        life = Life(vm)
        vm2 = vm.migrate(progress=lambda report: seen.append(report.phase == "precopy" and vm.preflight()))
        assert any(seen)
        life.check(vm2)
        life.finish(vm2)
        vm2.close()
        with pytest.raises(StateError):
            vm.preflight()


def test_without_state_the_back_end_must_be_kept(tmp_path):
    with make(tmp_path, options={"migration_empty_state": True}) as vm:
        (finding,) = vm.preflight()
        assert finding.severity == "warning"
        assert "no back-end state" in finding.why
    with make(tmp_path, HANDLES) as vm:
        Life(vm)
        assert not any(finding.severity == "error" for finding in vm.preflight())
