"""Rings of any legal size, through a whole machine and its migration (virtio 1.3 sections 2.7 and 2.8)."""

from __future__ import annotations

import os

import pytest

from vmsim.errors import UsageError
from vmsim.guest.config import GuestConfig
from vmsim.machine import Machine
from vmsim.virtio.constants import F_VERSION_1

CONTENT = bytes(range(256)) * 3000


SIZES = [("split", 8), ("split", 1024), ("packed", 5), ("packed", 7), ("packed", 100), ("packed", 1023)]


@pytest.mark.parametrize(("ring", "size"), SIZES)
def test_any_legal_size(tmp_path, ring, size):
    with Machine(tmp_path, memory="8M", ring=ring, queue_size=size) as vm:
        assert vm.device.virtio.queues[1].size == min(size, vm.config.guest.queue_size)
        fs = vm.mount()
        fd = fs.open("/file", os.O_RDWR | os.O_CREAT)
        assert fs.write(fd, CONTENT) == len(CONTENT)
        with vm.migrate() as there:
            assert there.mount().pread(fd, len(CONTENT), 0) == CONTENT


def test_a_driver_of_split_rings_takes_the_next_power_of_two(tmp_path):
    guest = GuestConfig(features=F_VERSION_1)
    with Machine(tmp_path, memory="8M", ring="packed", queue_size=100, guest=guest) as vm:
        assert vm.device.virtio.queues[1].size == 64
        assert vm.mount().listdir("/") == []


@pytest.mark.parametrize(("ring", "size"), [("split", 100), ("split", 0), ("packed", 0), ("packed", 1025)])
def test_any_other_size_is_refused(tmp_path, ring, size):
    with pytest.raises(UsageError):
        Machine(tmp_path, memory="8M", ring=ring, queue_size=size)
