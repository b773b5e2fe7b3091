"""A machine whose device has a notification queue: offered, refused by a guest like Linux, and migrated."""

from __future__ import annotations

import os

import pytest

from devices.virtio_fs.config import VIRTIO_FS_F_NOTIFICATION
from vmsim.machine import Machine
from vmsim.machine.config import MachineConfig


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_a_guest_without_notifications_takes_the_first_queues(tmp_path, ring):
    with Machine(tmp_path, memory="2M", ring=ring, queues=2, notification=True) as vm:
        virtio = vm.device.virtio
        assert virtio.features_offered & VIRTIO_FS_F_NOTIFICATION
        assert not virtio.features_accepted & VIRTIO_FS_F_NOTIFICATION
        assert [queue.ready for queue in virtio.queues] == [True, True, True, False]
        assert len(virtio.config) == 44
        for pid in (1, 2):  # each on a request queue of its own
            fs = vm.mount(pid)
            fd = fs.open(f"/{pid}", os.O_RDWR | os.O_CREAT)
            assert fs.write(fd, b"content") == 7
        with vm.migrate() as there:
            assert there.config.notification
            assert there.mount(2).pread(fd, 7, 0) == b"content"
            assert there.mount().stat("/1").st_size == 7


def test_it_is_not_offered_unless_asked_for(tmp_path):
    with Machine(tmp_path, memory="2M") as vm:
        assert not vm.device.virtio.features_offered & VIRTIO_FS_F_NOTIFICATION
        assert len(vm.device.virtio.queues) == 2
        assert len(vm.device.virtio.config) == 40


def test_descriptions_of_before_have_none():
    assert not MachineConfig(memory=[(0, 1 << 20)]).notification
