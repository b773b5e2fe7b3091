"""What odd or hostile drivers write into registers never stands in the way of saving the device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsim.errors import StreamError
from vmsim.memory import GuestMemory, Region
from vmsim.migration.byteio import StreamOutput
from vmsim.migration.vmio import VmWriter
from vmsim.virtio.constants import F_RING_PACKED, F_RING_RESET, F_VERSION_1, RING_FEATURES
from vmsim.virtio.device import VirtioDevice
from vmsim.virtio.device_state import load_state, save_state
from vmsim.virtio.mmio import REGISTERS, MmioRegisters
from vmsim.virtio.vmstate import virtio_save

QUEUE_SEL, QUEUE_SIZE, QUEUE_READY, STATUS = 0x30, 0x38, 0x44, 0x70
OFFSETS = st.one_of(st.sampled_from([row.offset for row in REGISTERS]), st.integers(-8, 0x200))
VALUES = st.one_of(
    st.integers(0, 16), st.sampled_from([0x40, 0x8000, 0xFFFF, 0x10000, 0x80000000, 0xFFFFFFFF]),
    st.integers(0, 0xFFFFFFFF),
)  # fmt: skip
ACCESSES = st.lists(st.tuples(OFFSETS, st.sampled_from([4, 4, 4, 4, 0, 1, 2, 8]), VALUES), max_size=40)


class Sink:
    """Takes a stream."""

    def write(self, data):
        pass


def make():
    device = VirtioDevice(26, RING_FEATURES, b"myfs".ljust(40, b"\0"), [128, 128, 64])
    return device, MmioRegisters(device)


def accept(regs, features):
    for word in (0, 1):
        regs.write(0x24, 4, word)
        regs.write(0x20, 4, features >> 32 * word & 0xFFFFFFFF)
    regs.write(STATUS, 4, 11)


def memory():
    return GuestMemory([Region("ram", 0, 1 << 20, memoryview(bytearray(1 << 20)))])


def save(device):
    """The state, written into a stream as well."""
    state = save_state(device)
    virtio_save(VmWriter(StreamOutput(Sink())), state)
    return state


@given(st.sampled_from([0, F_VERSION_1, F_VERSION_1 | F_RING_PACKED, F_VERSION_1 | F_RING_RESET]), ACCESSES)
def test_any_accesses(features, accesses):
    device, regs = make()
    accept(regs, features)
    for offset, size, value in accesses:
        regs.read(offset, size)
        regs.write(offset, size, value)
    other, _ = make()
    load_state(other, save(device))
    assert [vars_of(queue) for queue in other.queues] == [vars_of(queue) for queue in device.queues]
    assert other.live == device.live


def vars_of(queue):
    base = queue.base if queue.ready else 0
    return queue.size, queue.ready, queue.desc, queue.driver, queue.device, base


def test_a_queue_that_does_not_exist_can_be_selected():
    device, regs = make()
    regs.write(QUEUE_SEL, 4, 0xFFFFFFFF)
    assert regs.read(0x34, 4) == 0
    assert save(device).queue_sel == 1023


@pytest.mark.parametrize("size", [0, 32769, 0x10000, 0xFFFFFFFF])
def test_sizes_that_no_queue_has(size):
    device, regs = make()
    regs.write(QUEUE_SEL, 4, 1)
    regs.write(QUEUE_SIZE, 4, size)
    assert regs.read(STATUS, 4) & 64
    assert f"queue 1: {size} entries" in device.reset_reason
    assert save(device).queues[1].num == 128


def test_rings_that_do_not_run_may_lie_anywhere():
    device, regs = make()
    accept(regs, F_VERSION_1)
    regs.write(0x84, 4, 0xFFFF)
    regs.write(QUEUE_READY, 4, 1)
    other, _ = make()
    load_state(other, save(device), memory())
    assert other.queues[0].ready
    device.write_status(15)
    with pytest.raises(StreamError, match="not in guest memory"):
        load_state(other, save(device), memory())
    device.needs_reset("they are not in memory")
    load_state(other, save(device), memory())
    assert not other.live


@pytest.mark.parametrize("base", [0x0005_0000, 0x8005_8000])
def test_packed_positions_that_contradict_each_other(base):
    device, regs = make()
    accept(regs, F_VERSION_1 | F_RING_PACKED)
    regs.write(QUEUE_READY, 4, 1)
    state = save(device)
    queue = state.queues[0]
    queue.last_avail_idx, queue.last_avail_wrap = base & 0x7FFF, base >> 15 & 1
    queue.used_idx, queue.used_wrap = base >> 16 & 0x7FFF, base >> 31
    with pytest.raises(StreamError, match="has -5 entries in use"):
        load_state(make()[0], state)
