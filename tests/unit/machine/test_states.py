"""A machine: every call in every state, beside the table that says what comes of it."""

from __future__ import annotations

import os

import pytest

from vmsim.errors import StateError
from vmsim.machine import Machine, Seams
from vmsim.machine.config import MachineConfig, memory_layout
from vmsim.machine.states import (
    CLOSED,
    FINISHED,
    IN_DOUBT,
    INCOMING,
    PAUSED,
    RUNNING,
    TABLE,
    MachineEvent,
    after,
)
from vmsim.migration.report import MigrationInDoubt
from vmsim.schedule.immediate import ImmediateSchedule

SIZE = 8 << 20


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    (folder / "f").write_text("content")
    return str(folder)


def machine(share, state):
    """A machine that has come to ``state``."""
    if state == INCOMING:
        config = MachineConfig(memory=memory_layout(SIZE))
        return Machine.built(config, share, ImmediateSchedule(), Seams(), None)
    vm = Machine(share, memory=SIZE)
    if state == PAUSED:
        vm.pause()
    elif state == IN_DOUBT:
        with pytest.raises(MigrationInDoubt):
            vm.send("exec:cat >/dev/null; exit 3")
    elif state == FINISHED:
        vm.migrate().close()
    elif state == CLOSED:
        vm.close()
    assert vm.state == state
    return vm


def migrate(vm, place):
    vm.migrate().close()


# What each call leads to where it may be made; everywhere else it is refused, and changes nothing.
CALLS = {
    "pause": (lambda vm, place: vm.pause(), {RUNNING: PAUSED}),
    "resume": (lambda vm, place: vm.resume(), {PAUSED: RUNNING}),
    "mount": (lambda vm, place: vm.mount().stat("/f"), {RUNNING: RUNNING}),
    "migrate": (migrate, {RUNNING: FINISHED}),
    "send": (lambda vm, place: vm.send(f"file:{place}/stream"), {RUNNING: FINISHED}),
    "save": (lambda vm, place: vm.save(f"{place}/saved"), {RUNNING: RUNNING}),
    "save and leave": (lambda vm, place: vm.save(f"{place}/saved", keep_running=False), {RUNNING: FINISHED}),
    "cancel": (lambda vm, place: vm.cancel(), {}),
    "it runs there": (lambda vm, place: vm.settle(destination_runs=True), {IN_DOUBT: FINISHED}),
    "it does not run there": (lambda vm, place: vm.settle(destination_runs=False), {IN_DOUBT: RUNNING}),
    "close": (lambda vm, place: vm.close(), dict.fromkeys(TABLE, CLOSED)),
}


# The calls of a paused machine's programs wait until it goes on.
PAIRS = [(state, call) for state in TABLE for call in CALLS if (state, call) != (PAUSED, "mount")]


@pytest.mark.parametrize(("state", "call"), PAIRS)
def test_every_call_in_every_state(share, tmp_path, state, call):
    vm = machine(share, state)
    act, leads = CALLS[call]
    try:
        if state in leads:
            act(vm, tmp_path)
        else:
            before = os.listdir(tmp_path)
            with pytest.raises(StateError):
                act(vm, tmp_path)
            assert os.listdir(tmp_path) == before, "what is refused makes no file"
        assert vm.state == leads.get(state, state)
        if vm.state == RUNNING:
            assert vm.mount().stat("/f").st_size == 7, "and it does run"
    finally:
        vm.close()


@pytest.mark.parametrize("event", MachineEvent)
@pytest.mark.parametrize("state", TABLE)
def test_what_the_table_does_not_have_is_refused(state, event):
    if event in TABLE[state]:
        assert after(state, event) in TABLE
    else:
        with pytest.raises(StateError, match=state):
            after(state, event)
