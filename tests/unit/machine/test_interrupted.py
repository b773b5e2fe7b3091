"""An interrupt at every line of the source's code: one machine has the guest, or nobody."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

import vmsim
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


def interrupt(do, number):
    """Raise KeyboardInterrupt at line ``number`` of those that ``do`` executes; whether it got that far."""
    with (
        contextlib.suppress(KeyboardInterrupt, MigrationInDoubt),
        counted_lines(FILES, KeyboardInterrupt, before=number) as lines,
    ):
        do()
    return lines.raised


def started(tmp_path, number):
    share = tmp_path / f"share{number}"
    share.mkdir()
    (share / "f").write_text("hello")
    vm = Machine(str(share), memory="1M")
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
