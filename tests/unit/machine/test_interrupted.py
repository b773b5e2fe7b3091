"""An interrupt at every line of the source's code: one machine has the guest, or nobody."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

import vmsim
from tests.support.leaks import no_leaks
from tests.support.lines import counted_lines
from tests.support.sampling import sample
from vmsim.errors import StateError
from vmsim.machine import Machine
from vmsim.machine.states import FINISHED, IN_DOUBT, RUNNING
from vmsim.migration.report import MigrationInDoubt

ROOT = Path(vmsim.__file__).parent
FILES = {
    str(ROOT / name)
    for name in ("migration/source.py", "machine/moving.py", "machine/machine.py", "machine/assembled.py",
                 "machine/roles.py")
}  # fmt: skip

WIDE = {str(path) for part in ("machine", "migration") for path in (ROOT / part).glob("*.py")}
"""Of both sides, if they are in one process."""


def interrupt(do, number, files=FILES):
    """Raise KeyboardInterrupt at line ``number`` of those that ``do`` executes; whether it got that far."""
    with (
        contextlib.suppress(KeyboardInterrupt, MigrationInDoubt),
        counted_lines(files, KeyboardInterrupt, before=number) as lines,
    ):
        do()
    return lines.raised


def started(tmp_path, number, **launch):
    share = tmp_path / f"share{number}"
    share.mkdir()
    (share / "f").write_text("hello")
    vm = Machine(str(share), memory="1M", **launch)
    return vm, vm.mount().open("/f", os.O_RDWR), tmp_path / f"saved{number}"


def count_lines(tmp_path, act):
    """How many lines there are to be interrupted at."""
    vm, _, place = started(tmp_path, "whole")
    with vm, counted_lines(FILES) as lines:
        act(vm, place)
    return lines.count


def reads(vm, fd):
    return vm.mount().pread(fd, 5, 0) == b"hello"


def test_saving_a_machine_that_is_to_leave(tmp_path):
    """Once what is written counts, the machine does not run; before, it does."""

    def act(vm, place):
        vm.save(place, keep_running=False)

    lines = count_lines(tmp_path, act)
    for number in sample(range(1, lines + 1), 60, "interrupts: save"):
        vm, fd, place = started(tmp_path, number)
        with vm:
            interrupt(lambda vm=vm, place=place: act(vm, place), number)
            if place.exists():
                assert vm.state in (FINISHED, IN_DOUBT), f"line {number}: {vm.state}"
                with pytest.raises(StateError):
                    vm.resume()
            elif vm.state == RUNNING:
                assert reads(vm, fd), f"line {number}"
            else:
                assert vm.state == IN_DOUBT, f"line {number}: {vm.state}"


@pytest.mark.parametrize("destination_runs", [True, False])
def test_settling_a_doubt(tmp_path, destination_runs):
    """It can be done again, and then it is done."""
    number, went = 0, True
    while went:
        number += 1
        vm, fd, _ = started(tmp_path, number)
        with vm:
            with pytest.raises(MigrationInDoubt):
                vm.send("exec:cat >/dev/null; exit 3")
            went = interrupt(lambda vm=vm: vm.settle(destination_runs=destination_runs), number)
            if vm.state == IN_DOUBT:
                vm.settle(destination_runs=destination_runs)
            if destination_runs:
                assert vm.state == FINISHED, f"line {number}"
            else:
                assert vm.state == RUNNING, f"line {number}"
                assert reads(vm, fd), f"line {number}"


@pytest.mark.timeout(400)  # all of it takes a minute and a half where nothing else runs
@pytest.mark.parametrize("kind", ["internal", "external"])
@pytest.mark.parametrize("which", ["first", "last"])
def test_migrating_within_the_process(tmp_path, kind, which):
    """Exactly one of both machines runs, wherever it came, and can migrate; all is given back.

    It comes when each line is executed for the first, and for the last time.
    """
    vm, _, _ = started(tmp_path, "whole", migration=kind)
    with vm, counted_lines(WIDE) as lines:
        other = vm.migrate()
    other.close()
    at = {}
    for number, place in enumerate(lines.places, 1):
        if which == "last" or place not in at:
            at[place] = number
    for number in sample(sorted(at.values()), 40, f"interrupts: migrate {kind} {which}"):
        with no_leaks():
            _interrupted_migration(tmp_path, kind, number)


def _interrupted_migration(tmp_path, kind, number):
    vm, fd, _ = started(tmp_path, number, migration=kind)
    try:
        assert interrupt(vm.migrate, number, WIDE)
        other = vm.moved_to
        states = vm.state, other and other.state
        assert states in ((RUNNING, None), (FINISHED, RUNNING)), f"line {number}"
        runs = other or vm
        assert reads(runs, fd), f"line {number}"
        with runs.migrate() as again:
            assert reads(again, fd), f"line {number}"
    finally:
        if vm.moved_to:
            vm.moved_to.close()
        vm.close()
