"""The life cycle of a virtio device, and its register file."""

import pytest

from vmsim.errors import StateError, StreamError
from vmsim.memory import GuestMemory, Region
from vmsim.virtio.constants import (
    F_EVENT_IDX,
    F_NOTIFICATION_DATA,
    F_RING_PACKED,
    F_RING_RESET,
    F_VERSION_1,
    RING_FEATURES,
)
from vmsim.virtio.device import VirtioDevice
from vmsim.virtio.device_state import load_state, save_state
from vmsim.virtio.mmio import REGISTERS, MmioRegisters, SharedMemoryRegion

CONFIG = b"myfs".ljust(36, b"\0") + b"\1\0\0\0"


class Machine:
    """A device with three queues and a list of what its hooks heard."""

    def __init__(self, features=RING_FEATURES, **kwargs):
        self.device = VirtioDevice(26, features, CONFIG, [128, 128, 64])
        self.regs = MmioRegisters(self.device, **kwargs)
        self.heard = []
        device = self.device
        device.on_activate = lambda: self.heard.append("activate")
        device.on_reset = lambda: self.heard.append("reset")
        device.on_interrupt = lambda: self.heard.append("interrupt")
        device.on_queue_reset = lambda queue: self.heard.append(f"queue reset {queue}")
        device.on_queue_ready = lambda queue: self.heard.append(f"queue ready {queue}")
        device.on_notify = lambda queue: self.heard.append((queue, device.queues[queue].notified))

    def read(self, offset):
        return self.regs.read(offset, 4)

    def write(self, offset, value):
        self.regs.write(offset, 4, value)

    def accept(self, features):
        for word in (0, 1):
            self.write(0x24, word)
            self.write(0x20, features >> 32 * word & 0xFFFFFFFF)
        self.write(0x70, 1 | 2 | 8)
        return bool(self.read(0x70) & 8)

    def queue(self, number, size=64, desc=0x1000, driver=0x2000, device=0x3000, ready=1):
        self.write(0x30, number)
        self.write(0x38, size)
        for low, value in ((0x80, desc), (0x90, driver), (0xA0, device)):
            self.write(low, value & 0xFFFFFFFF)
            self.write(low + 4, value >> 32)
        self.write(0x44, ready)

    def boot(self, features=F_VERSION_1):
        assert self.accept(features)
        self.queue(0)
        self.queue(1, desc=1 << 40)
        self.write(0x70, 15)
        return self


@pytest.fixture
def machine():
    return Machine()


def test_identity(machine):
    assert [machine.read(offset) for offset in (0, 4, 8)] == [0x74726976, 2, 26]


def test_features_by_word(machine):
    words = []
    for select in (0, 1, 2):
        machine.write(0x14, select)
        words.append(machine.read(0x10))
    assert words[0] | words[1] << 32 == RING_FEATURES
    assert words[2] == 0


@pytest.mark.parametrize(
    ("features", "taken"),
    [
        (F_VERSION_1, True), (0, False), (F_EVENT_IDX, False), (F_VERSION_1 | 1 << 33, False),
        (RING_FEATURES, True),
    ],
)
def test_features_ok_is_refused_by_not_reading_back(machine, features, taken):
    assert machine.accept(features) is taken


def test_features_are_fixed_once_accepted(machine):
    machine.accept(F_VERSION_1)
    machine.write(0x24, 0)
    machine.write(0x20, F_EVENT_IDX)
    assert machine.device.features_accepted == F_VERSION_1


def test_driver_ok_activates_once(machine):
    machine.boot()
    machine.write(0x70, 15)
    assert machine.heard == ["activate"]
    assert machine.device.live


def test_driver_ok_without_features_ok_needs_a_reset(machine):
    machine.write(0x70, 1 | 2 | 4)
    assert machine.read(0x70) & 64
    assert not machine.device.live
    assert "activate" not in machine.heard


def test_status_bits_are_never_taken_away(machine):
    machine.boot()
    machine.write(0x70, 1)
    assert machine.read(0x70) == 15


def test_a_driver_cannot_set_needs_reset(machine):
    machine.write(0x70, 64)
    assert machine.read(0x70) == 0


def test_failed_stops_the_device(machine):
    machine.boot()
    machine.write(0x70, 128)
    assert not machine.device.live
    machine.write(0x50, 0)
    assert machine.heard == ["activate"]


def test_notifications_need_a_live_device_and_a_ready_queue(machine):
    machine.queue(0)
    machine.write(0x50, 0)
    machine.boot(F_VERSION_1 | F_NOTIFICATION_DATA)
    machine.heard.clear()
    for value in (0x8123_0001, 2, 77, 0xFFFF):
        machine.write(0x50, value)
    assert machine.heard == [(1, 0x8123)]
    assert machine.device.queues[1].notifications == 1


def test_interrupt_status_and_acknowledgement(machine):
    machine.boot()
    machine.device.used_buffers()
    machine.device.update_config(0, b"new")
    assert machine.read(0x60) == 3
    machine.write(0x64, 1)
    assert machine.read(0x60) == 2
    assert machine.heard[1:] == ["interrupt", "interrupt"]


def test_a_changed_configuration_has_a_new_generation(machine):
    before = machine.read(0xFC)
    machine.device.update_config(36, b"\2")
    assert machine.read(0xFC) == before + 1
    assert machine.regs.read(0x100 + 36, 4) == 2
    with pytest.raises(StateError):
        machine.device.update_config(39, b"xx")


def test_config_space_by_any_size(machine):
    assert machine.regs.read(0x100, 1) == ord("m")
    assert machine.regs.read(0x100, 2) == int.from_bytes(b"my", "little")
    assert machine.regs.read(0x100, 8) == int.from_bytes(b"myfs\0\0\0\0", "little")
    machine.regs.write(0x100, 1, 0xFF)
    assert machine.regs.read(0x100, 1) == ord("m"), "a file system's configuration is not writable"
    assert machine.regs.read(0x100 + 4000, 4) == 0


def test_needs_reset_interrupts_a_running_driver_once(machine):
    machine.boot()
    machine.device.needs_reset("because")
    machine.device.needs_reset("again")
    assert machine.heard == ["activate", "interrupt"]
    assert machine.read(0x60) == 2
    assert machine.device.reset_reason == "because"
    machine.write(0x50, 0)
    assert machine.heard == ["activate", "interrupt"], "nothing is done until the reset"
    machine.write(0x70, 0)
    machine.boot()
    assert machine.device.live


def test_reset_forgets_everything(machine):
    machine.boot()
    machine.device.used_buffers()
    machine.write(0x70, 0)
    assert machine.heard[-1] == "reset"
    assert machine.read(0x70) == machine.read(0x60) == machine.device.features_accepted == 0
    for queue in machine.device.queues:
        assert (queue.ready, queue.desc, queue.size) == (False, 0, queue.size_max)


def test_queue_registers(machine):
    machine.write(0x30, 2)
    assert machine.read(0x34) == 64
    machine.write(0x30, 3)
    assert machine.read(0x34) == machine.read(0x44) == 0, "no such queue"
    machine.queue(3)
    machine.queue(1, desc=0x12_3456_7890 & ~15)
    queue = machine.device.queues[1]
    assert (queue.size, queue.desc, queue.driver, queue.device) == (64, 0x1234567890, 0x2000, 0x3000)
    assert machine.read(0x44) == 1
    machine.queue(1, size=32, desc=0)
    assert queue.desc == 0x1234567890, "a ready queue does not change"


@pytest.mark.parametrize(
    "bad",
    [{"size": 0}, {"size": 63}, {"size": 256}, {"desc": 8}, {"driver": 1}, {"device": 2}],
    ids=str,
)
def test_impossible_queues_need_a_reset(machine, bad):
    machine.accept(F_VERSION_1)
    machine.queue(0, **bad)
    assert machine.read(0x44) == 0
    assert machine.read(0x70) & 64


def test_packed_queues_may_have_any_size_and_start_with_both_wraps(machine):
    machine.accept(F_VERSION_1 | F_RING_PACKED)
    machine.queue(0, size=63)
    assert machine.read(0x44) == 1
    assert machine.device.queues[0].base == 0x80008000


def test_queue_reset(machine):
    machine.boot(F_VERSION_1 | F_RING_RESET)
    machine.write(0x30, 1)
    machine.write(0xC0, 1)
    assert machine.read(0xC0) == machine.read(0x44) == 0
    assert machine.heard[-1] == "queue reset 1"
    machine.queue(1)
    assert machine.heard[-1] == "queue ready 1"


def test_queue_reset_needs_its_feature(machine):
    machine.boot()
    machine.write(0x30, 1)
    machine.write(0xC0, 1)
    assert machine.read(0x44) == 1


def test_shared_memory_registers():
    region = SharedMemoryRegion(0, 0x8_0000_0000, 0x2_0000_1000)
    machine = Machine(shared_memory=[region])
    assert [machine.read(offset) for offset in (0xB0, 0xB4, 0xB8, 0xBC)] == [0x1000, 2, 0, 8]
    machine.write(0xAC, 1)
    assert {machine.read(offset) for offset in (0xB0, 0xB4, 0xB8, 0xBC)} == {0xFFFFFFFF}


def test_one_row_per_register_and_nothing_else(machine):
    """Loads and stores of every offset and size do nothing that a row does not say, and never raise."""
    offsets = [row.offset for row in REGISTERS]
    assert len(set(offsets)) == len(offsets)
    readable = {row.offset for row in REGISTERS if row.read}
    for offset in range(0x100):
        for size in (1, 2, 4, 8):
            if size != 4 or offset not in readable:
                assert machine.regs.read(offset, size) == 0
    for offset in (0x28, 0x3C, 0x40, 0x54, 0xF0):
        machine.write(offset, 0xFFFFFFFF)
    assert machine.read(0x40) == 0, "legacy registers"


@pytest.mark.parametrize("features", [F_VERSION_1, F_VERSION_1 | F_RING_PACKED])
def test_state_round_trip(features):
    machine = Machine().boot(features)
    machine.device.used_buffers()
    machine.write(0x14, 1)
    machine.device.queues[1].base = 0x8003_0005 if features & F_RING_PACKED else 5
    state = save_state(machine.device)
    other = Machine()
    load_state(other.device, state)
    assert other.heard == [], "no hook is called"
    assert other.device.live
    assert save_state(other.device) == state
    if features & F_RING_PACKED:
        queue = state.queues[1]
        assert (queue.last_avail_idx, queue.last_avail_wrap, queue.used_idx, queue.used_wrap) == (5, 0, 3, 1)
        assert queue.inuse == 5 + 64 - 3


def tweak(state, path, value):
    target = state
    *parents, last = path
    for part in parents:
        target = target[part] if isinstance(part, int) else getattr(target, part)
    setattr(target, last, value)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("guest_features",), F_VERSION_1 | 1 << 5, "Features 0x100000020 unsupported. Allowed features: "),
        (("status",), 0x100, "status"),
        (("queue_sel",), 1024, "queue_sel"),
        (("device_endian",), 2, "little-endian"),
        (("disabled",), True, "disabled"),
        (("queues", 0, "num"), 63, "63 entries"),
        (("queues", 0, "num"), 65536, "65536 entries"),
        (("queues", 2, "last_avail_idx"), 1, "VQ 2 address 0x0 inconsistent with Host index 0x1"),
        (("queues", 0, "last_avail_idx"), 0x10000, "last_avail_idx"),
        (("queues", 0, "enabled"), 2, "enabled"),
    ],
)
def test_impossible_states_are_refused(path, value, match):
    state = save_state(Machine().boot().device)
    tweak(state, path, value)
    other = Machine()
    with pytest.raises(StreamError, match=match):
        load_state(other.device, state)
    assert other.device.status == 0, "unchanged"


def test_more_queues_than_there_are():
    state = save_state(Machine().boot().device)
    state.queues += state.queues
    with pytest.raises(StreamError, match="6 queues, this device has 3") as caught:
        load_state(Machine().device, state)
    assert "request queues" in caught.value.hint


def test_indices_against_guest_memory():
    state = save_state(Machine().boot().device)
    state.queues[1].desc = 0x11000
    memory = GuestMemory([Region("ram", 0, 1 << 20, memoryview(bytearray(1 << 20)))])
    state.queues[0].last_avail_idx = 65
    with pytest.raises(StreamError, match="VQ 0 size 0x40 < last_avail_idx 0x41 - used_idx 0x0"):
        load_state(Machine().device, state, memory)
    state.queues[0].last_avail_idx = 0
    memory.store_u16(0x2002, 65)
    other = Machine()
    load_state(other.device, state, memory)
    assert other.device.status & 64, "the driver broke the ring: it needs a reset, the machine does not"
    state.queues[0].desc = 1 << 40
    with pytest.raises(StreamError, match="descriptor table at 0x10000000000 is not in guest memory"):
        load_state(Machine().device, state, memory)
