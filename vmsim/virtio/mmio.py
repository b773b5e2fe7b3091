"""The virtio-mmio register file, version 2 (virtio 1.3 section 4.2.2): one row per register."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from vmsim.limits import VIRTIO_QUEUE_MAX
from vmsim.virtio.device import QueueConfig, VirtioDevice

MAGIC: Final = 0x74726976
VERSION: Final = 2
CONFIG_OFFSET: Final = 0x100
WORD: Final = 0xFFFF_FFFF
NO_SHARED_MEMORY: Final = 0xFFFF_FFFF_FFFF_FFFF
NO_QUEUE: Final = QueueConfig(1)
NO_QUEUE.size_max = 0


class SharedMemoryRegion(NamedTuple):
    """A window of the device into guest-physical space (section 2.10), by its id."""

    id: int
    gpa: int
    size_bytes: int


class MmioRegisters:
    """Loads and stores of one device's register window.

    Registers are 32 bits wide and aligned; other accesses below the configuration space read 0 and write
    nothing, as do registers that do not exist. The configuration space takes 1, 2, 4 and 8 bytes.
    """

    __slots__ = ("_readers", "_writers", "device", "shared_memory", "shm_sel")

    def __init__(self, device: VirtioDevice, shared_memory: Sequence[SharedMemoryRegion] = ()) -> None:
        self.device = device
        self.shared_memory = {region.id: region for region in shared_memory}
        self.shm_sel = 0
        self._readers = {row.offset: row.read for row in REGISTERS if row.read is not None}
        self._writers: dict[int, Callable[[int], None]] = {}
        for row in REGISTERS:
            if row.command is not None:
                self._writers[row.offset] = partial(row.command, device)
            elif row.write is not None:
                self._writers[row.offset] = partial(row.write, self)

    def read(self, offset: int, size_bytes: int) -> int:
        """The value at ``offset`` of the window, little-endian."""
        if offset >= CONFIG_OFFSET:
            start = offset - CONFIG_OFFSET
            return int.from_bytes(self.device.config[start : start + size_bytes], "little")
        reader = self._readers.get(offset)
        return reader(self) & WORD if reader is not None and size_bytes == 4 else 0

    def write(self, offset: int, size_bytes: int, value: int) -> None:
        """Store ``value``; the configuration space of a file system is not writable."""
        writer = self._writers.get(offset)
        if writer is not None and size_bytes == 4:
            writer(value & WORD)

    @property
    def queue(self) -> QueueConfig:
        """The selected queue; one of size 0 if there is none."""
        device = self.device
        return device.queues[device.queue_sel] if device.queue_sel < len(device.queues) else NO_QUEUE

    @property
    def settable_queue(self) -> QueueConfig | None:
        """The selected queue while its registers may be written: it exists and is not ready."""
        queue = self.queue
        return None if queue is NO_QUEUE or queue.ready else queue

    def shared(self, high: bool, base: bool) -> int:
        """Half of the selected shared memory region's base or length; all ones if it does not exist."""
        region = self.shared_memory.get(self.shm_sel)
        value = NO_SHARED_MEMORY if region is None else region.gpa if base else region.size_bytes
        return value >> 32 if high else value


class Register(NamedTuple):
    """One register: offset in the window, the specification's name, what reading and writing do."""

    offset: int
    name: str
    read: Callable[[MmioRegisters], int] | None = None
    write: Callable[[MmioRegisters, int], None] | None = None
    command: Callable[[VirtioDevice, int], None] | None = None
    """What writing does where the device's own method does it, called directly."""


def _read_features(regs: MmioRegisters) -> int:
    word = regs.device.device_features_sel
    return regs.device.features_offered >> 32 * word if word < 2 else 0


def _select(name: str) -> Callable[[MmioRegisters, int], None]:
    def write(regs: MmioRegisters, value: int) -> None:
        setattr(regs.device, name, value)

    return write


def _select_queue(regs: MmioRegisters, value: int) -> None:
    regs.device.queue_sel = min(value, VIRTIO_QUEUE_MAX - 1)  # beyond that is no queue, and no saved state


def _select_shm(regs: MmioRegisters, value: int) -> None:
    regs.shm_sel = value


def _write_features(regs: MmioRegisters, value: int) -> None:
    regs.device.write_features(regs.device.driver_features_sel, value)


def _write_size(regs: MmioRegisters, value: int) -> None:
    queue = regs.settable_queue
    if queue is not None:
        regs.device.set_queue_size(regs.device.queue_sel, value)


def _write_ready(regs: MmioRegisters, value: int) -> None:
    if regs.queue is not NO_QUEUE:
        regs.device.set_queue_ready(regs.device.queue_sel, bool(value & 1))


def _write_queue_reset(regs: MmioRegisters, value: int) -> None:
    if value & 1 and regs.queue is not NO_QUEUE:
        regs.device.write_queue_reset(regs.device.queue_sel)


def _area(name: str, *, high: bool) -> Callable[[MmioRegisters, int], None]:
    shift = 32 if high else 0
    keep = WORD if high else WORD << 32

    def write(regs: MmioRegisters, value: int) -> None:
        queue = regs.settable_queue
        if queue is not None:
            setattr(queue, name, getattr(queue, name) & keep | value << shift)

    return write


def _ack_interrupt(regs: MmioRegisters, value: int) -> None:
    regs.device.isr &= ~value


REGISTERS: Final = (
    Register(0x000, "MagicValue", lambda regs: MAGIC),
    Register(0x004, "Version", lambda regs: VERSION),
    Register(0x008, "DeviceID", lambda regs: regs.device.device_id),
    Register(0x00C, "VendorID", lambda regs: regs.device.vendor_id),
    Register(0x010, "DeviceFeatures", _read_features),
    Register(0x014, "DeviceFeaturesSel", write=_select("device_features_sel")),
    Register(0x020, "DriverFeatures", write=_write_features),
    Register(0x024, "DriverFeaturesSel", write=_select("driver_features_sel")),
    Register(0x030, "QueueSel", write=_select_queue),
    Register(0x034, "QueueSizeMax", lambda regs: regs.queue.size_max),
    Register(0x038, "QueueSize", write=_write_size),
    Register(0x044, "QueueReady", lambda regs: int(regs.queue.ready), _write_ready),
    Register(0x050, "QueueNotify", command=VirtioDevice.notify),
    Register(0x060, "InterruptStatus", lambda regs: regs.device.isr),
    Register(0x064, "InterruptACK", write=_ack_interrupt),
    Register(0x070, "Status", lambda regs: regs.device.status, command=VirtioDevice.write_status),
    Register(0x080, "QueueDescLow", write=_area("desc", high=False)),
    Register(0x084, "QueueDescHigh", write=_area("desc", high=True)),
    Register(0x090, "QueueDriverLow", write=_area("driver", high=False)),
    Register(0x094, "QueueDriverHigh", write=_area("driver", high=True)),
    Register(0x0A0, "QueueDeviceLow", write=_area("device", high=False)),
    Register(0x0A4, "QueueDeviceHigh", write=_area("device", high=True)),
    Register(0x0AC, "SHMSel", write=_select_shm),
    Register(0x0B0, "SHMLenLow", lambda regs: regs.shared(high=False, base=False)),
    Register(0x0B4, "SHMLenHigh", lambda regs: regs.shared(high=True, base=False)),
    Register(0x0B8, "SHMBaseLow", lambda regs: regs.shared(high=False, base=True)),
    Register(0x0BC, "SHMBaseHigh", lambda regs: regs.shared(high=True, base=True)),
    # A queue reset is finished when the write returns, so it always reads 0 (section 4.2.2).
    Register(0x0C0, "QueueReset", lambda regs: 0, _write_queue_reset),
    Register(0x0FC, "ConfigGeneration", lambda regs: regs.device.config_generation),
)
"""All registers of version 2; those of the legacy interface read as 0 and ignore writes."""
