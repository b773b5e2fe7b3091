"""What a machine is started with: every name reaches what it is for, and no other is accepted."""

import pytest

from tests.support.machine_rig import make
from vmsim.errors import UsageError
from vmsim.guest.config import GuestConfig
from vmsim.machine import ArrivalOptions, LaunchOptions, Machine, MachineConfig
from vmsim.machine.launch import config_of
from vmsim.machine.remote import command_options
from vmsim.schedule.immediate import ImmediateSchedule

OTHER = {
    "memory": [(0, 1 << 20)], "device": "other", "ring": "packed", "queues": 3, "queue_size": 64,
    "notification": True, "tag": "other", "dialect": "rfc2023", "migration": "none",
    "migration_save": "internal", "migration_load": "external", "policy": "lenient",
    "options": {"readonly": True}, "guest": GuestConfig(cache="none", realtime_ns=5),
}  # fmt: skip
"""Each but what is not written down: another value than the usual one."""


def test_each_option_is_in_the_description():
    usual, config = config_of({}, ImmediateSchedule()), config_of(OTHER, ImmediateSchedule())
    assert set(OTHER) == set(MachineConfig.__struct_fields__) - {"version"}
    for name, value in OTHER.items():
        assert getattr(config, name) == value != getattr(usual, name)


def test_a_size_is_regions():
    assert config_of({"memory": "1M"}, ImmediateSchedule()).memory == [(0, 1 << 20)]


def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no device 'other'") as caught:
        Machine(tmp_path, device="other")
    assert "virtio-fs" in caught.value.hint
    with pytest.raises(UsageError, match="vmsim serve has no device 'other'"):
        command_options(MachineConfig(memory=[], device="other"))


def test_a_name_that_is_none_is_pythons_own_error(tmp_path):
    with pytest.raises(TypeError, match=r"Machine\(\) got an unexpected keyword argument 'memroy'"):
        Machine(tmp_path, memroy="1M")
    with pytest.raises(TypeError, match=r"receive\(\) got an unexpected keyword argument 'ring'"):
        Machine.receive("unix:nothing", tmp_path, ring="split")
    assert "ring" not in ArrivalOptions.__annotations__


def test_what_is_not_written_down_is_taken_as_it_is(tmp_path):
    schedule = ImmediateSchedule()
    taken = set(LaunchOptions.__annotations__) - set(MachineConfig.__struct_fields__)
    assert taken == {"schedule", "seams", "backend", "transport", "backend_command"}
    with make(tmp_path, schedule=schedule) as vm:
        assert vm.schedule is schedule
