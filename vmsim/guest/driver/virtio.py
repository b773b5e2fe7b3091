"""The virtio-mmio driver (virtio 1.3 sections 3.1 and 4.2): registers only; queue.py fills the queues."""

from __future__ import annotations

from typing import Final, NoReturn, Protocol

import msgspec

from vmsim.errors import PeerError, RingViolation, StateError, StreamError, UsageError
from vmsim.guest.config import DRIVER_FEATURES, GuestConfig
from vmsim.guest.driver.alloc import PageAllocator, pages_bytes
from vmsim.guest.driver.queue import SLOT_BYTES
from vmsim.guest.state import QueueState
from vmsim.memory import GuestMemory
from vmsim.virtio.constants import (
    DEVICE_ID_FS,
    F_RING_PACKED,
    F_RING_RESET,
    F_VERSION_1,
    ISR_CONFIG_CHANGE,
    STATUS_ACKNOWLEDGE,
    STATUS_DEVICE_NEEDS_RESET,
    STATUS_DRIVER,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    STATUS_FEATURES_OK,
)
from vmsim.virtio.mmio import CONFIG_OFFSET, MAGIC, REGISTERS, VERSION
from vmsim.virtio.ring_types import DriverRing, DriverRingState, Fence, RingConfig, ring_areas
from vmsim.virtio.rings import make_driver_ring

_OFFSETS: Final = {row.name: row.offset for row in REGISTERS}
REG_MAGIC: Final = _OFFSETS["MagicValue"]
REG_VERSION: Final = _OFFSETS["Version"]
REG_DEVICE_ID: Final = _OFFSETS["DeviceID"]
REG_DEVICE_FEATURES: Final = _OFFSETS["DeviceFeatures"]
REG_DEVICE_FEATURES_SEL: Final = _OFFSETS["DeviceFeaturesSel"]
REG_DRIVER_FEATURES: Final = _OFFSETS["DriverFeatures"]
REG_DRIVER_FEATURES_SEL: Final = _OFFSETS["DriverFeaturesSel"]
REG_QUEUE_SEL: Final = _OFFSETS["QueueSel"]
REG_QUEUE_SIZE_MAX: Final = _OFFSETS["QueueSizeMax"]
REG_QUEUE_SIZE: Final = _OFFSETS["QueueSize"]
REG_QUEUE_READY: Final = _OFFSETS["QueueReady"]
REG_QUEUE_NOTIFY: Final = _OFFSETS["QueueNotify"]
REG_INTERRUPT_STATUS: Final = _OFFSETS["InterruptStatus"]
REG_INTERRUPT_ACK: Final = _OFFSETS["InterruptACK"]
REG_STATUS: Final = _OFFSETS["Status"]
REG_QUEUE_DESC: Final = _OFFSETS["QueueDescLow"]
REG_QUEUE_DRIVER: Final = _OFFSETS["QueueDriverLow"]
REG_QUEUE_DEVICE: Final = _OFFSETS["QueueDeviceLow"]
REG_QUEUE_RESET: Final = _OFFSETS["QueueReset"]
REG_CONFIG_GENERATION: Final = _OFFSETS["ConfigGeneration"]
CONFIG_TAG_BYTES: Final = 36
CONFIG_REQUEST_QUEUES: Final = 36

MIN_QUEUE_SIZE: Final = 5
"""Linux' driver wants more than its four descriptors of overhead (virtio_fs.c)."""


class MmioBus(Protocol):
    """Where the device's registers answer; offsets are relative to its window."""

    def read(self, offset: int, size_bytes: int) -> int:
        """Load 1, 2, 4 or 8 bytes."""
        ...

    def write(self, offset: int, size_bytes: int, value: int) -> None:
        """Store 1, 2, 4 or 8 bytes."""
        ...


class VirtioDriver:
    """Talks to one virtio-mmio device; keeps nothing that would have to be saved.

    ``fence`` is for its rings, if somebody in another process or thread is at their other end.
    """

    __slots__ = ("bus", "fence")

    def __init__(self, bus: MmioBus, fence: Fence | None = None) -> None:
        self.bus = bus
        self.fence = fence

    def _read(self, offset: int) -> int:
        return self.bus.read(offset, 4)

    def _write(self, offset: int, value: int) -> None:
        self.bus.write(offset, 4, value)

    def _write64(self, offset: int, value: int) -> None:
        self.bus.write(offset, 4, value & 0xFFFFFFFF)
        self.bus.write(offset + 4, 4, value >> 32)

    def negotiate(self, wanted: int) -> int:
        """Reset, acknowledge, agree on features (steps 1 to 6 of 3.1.1); the accepted set.

        PeerError if this is no virtio-fs device of version 2, or it takes no subset that we can work with.
        """
        for offset, expected, what in (
            (REG_MAGIC, MAGIC, "magic value"), (REG_VERSION, VERSION, "version"),
            (REG_DEVICE_ID, DEVICE_ID_FS, "device id"),
        ):  # fmt: skip
            value = self._read(offset)
            if value != expected:
                raise PeerError(f"{what} is {value:#x}, not {expected:#x}", spec="virtio 1.3 section 4.2.2")
        self._write(REG_STATUS, 0)
        if self._read(REG_STATUS) != 0:
            raise PeerError("the device does not finish its reset", spec="virtio 1.3 section 4.2.2.1")
        self._write(REG_STATUS, STATUS_ACKNOWLEDGE)
        self._write(REG_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER)
        offered = 0
        for word in (0, 1):
            self._write(REG_DEVICE_FEATURES_SEL, word)
            offered |= self._read(REG_DEVICE_FEATURES) << (32 * word)
        accepted = offered & DRIVER_FEATURES & (wanted | F_VERSION_1)
        if not accepted & F_VERSION_1:
            self._fail("the device does not offer VIRTIO_F_VERSION_1", "virtio 1.3 section 6.1")
        for word in (0, 1):
            self._write(REG_DRIVER_FEATURES_SEL, word)
            self._write(REG_DRIVER_FEATURES, accepted >> (32 * word) & 0xFFFFFFFF)
        status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK
        self._write(REG_STATUS, status)
        if not self._read(REG_STATUS) & STATUS_FEATURES_OK:
            self._fail(f"the device refuses the features {accepted:#x}", "virtio 1.3 section 3.1.1")
        return accepted

    def _fail(self, message: str, spec: str) -> NoReturn:
        self._write(REG_STATUS, self._read(REG_STATUS) | STATUS_FAILED)
        raise PeerError(message, spec=spec)

    def read_config(self) -> tuple[bytes, int]:
        """Tag and number of request queues, read as one consistent set (section 4.2.2.2)."""
        while True:
            generation = self._read(REG_CONFIG_GENERATION)
            tag = bytes(self.bus.read(CONFIG_OFFSET + at, 1) for at in range(CONFIG_TAG_BYTES)).rstrip(b"\0")
            queues = self._read(CONFIG_OFFSET + CONFIG_REQUEST_QUEUES)
            if self._read(REG_CONFIG_GENERATION) == generation:
                break
        if not tag or b"\n" in tag or not queues:
            self._fail(f"tag {tag!r} with {queues} request queues", "virtio 1.3 section 5.11.4")
        return tag, queues

    def allocate_queue(
        self, index: int, config: GuestConfig, features: int, memory: GuestMemory, allocator: PageAllocator
    ) -> QueueState:
        """Choose a queue's size and place its parts in guest memory, all zero."""
        self._write(REG_QUEUE_SEL, index)
        limit = self._read(REG_QUEUE_SIZE_MAX)
        if self._read(REG_QUEUE_READY) or not limit:
            self._fail(f"queue {index} does not exist or is in use", "virtio 1.3 section 4.2.3.2")
        size = min(limit, config.queue_size)
        if not features & F_RING_PACKED:
            size = 1 << (size.bit_length() - 1)
        if size < MIN_QUEUE_SIZE and index:
            self._fail(f"queue {index} has only {size} entries", "virtio_fs.c: more than 4 are needed")
        areas = ring_areas(size, features)
        slots = max(1, min(config.slots, size))
        lengths = [*(area.size_bytes for area in areas), slots * SLOT_BYTES]
        places = []
        for length in lengths:
            gpa = allocator.allocate(length)
            if gpa is None:
                raise UsageError(
                    "guest memory is too small for the queues", hint="give the machine more memory"
                )
            memory.write(gpa, bytes(pages_bytes(length)))
            places.append(gpa)
        desc, driver, device, slots_gpa = places
        return QueueState(index, size, desc, driver, device, slots_gpa, slots, free_slots=list(range(slots)))

    def free_queue(self, queue: QueueState, features: int, allocator: PageAllocator) -> None:
        """Give back what ``allocate_queue`` took; the device must not use it any more."""
        areas = ring_areas(queue.size, features)
        for area, gpa in zip(areas, (queue.desc, queue.driver, queue.device), strict=True):
            allocator.free(gpa, area.size_bytes)
        allocator.free(queue.slots_gpa, queue.slot_count * SLOT_BYTES)

    def clear_ring(self, queue: QueueState, features: int, memory: GuestMemory) -> None:
        """Zero a queue's areas before it is used afresh."""
        areas = ring_areas(queue.size, features)
        for area, gpa in zip(areas, (queue.desc, queue.driver, queue.device), strict=True):
            memory.write(gpa, bytes(area.size_bytes))

    def enable_queue(self, queue: QueueState) -> None:
        """Tell the device where a queue lies and make it ready (section 4.2.3.2)."""
        self._write(REG_QUEUE_SEL, queue.index)
        self._write(REG_QUEUE_SIZE, queue.size)
        self._write64(REG_QUEUE_DESC, queue.desc)
        self._write64(REG_QUEUE_DRIVER, queue.driver)
        self._write64(REG_QUEUE_DEVICE, queue.device)
        self._write(REG_QUEUE_READY, 1)

    def driver_ok(self) -> None:
        """Step 8 of 3.1.1: the device may work from here on."""
        self._write(REG_STATUS, self._read(REG_STATUS) | STATUS_DRIVER_OK)

    def reset_queue(self, queue: QueueState, features: int) -> None:
        """Reset one queue (section 2.6.1.1); StateError without VIRTIO_F_RING_RESET."""
        if not features & F_RING_RESET:
            raise StateError("VIRTIO_F_RING_RESET was not negotiated", spec="virtio 1.3 section 2.6.1")
        self._write(REG_QUEUE_SEL, queue.index)
        self._write(REG_QUEUE_RESET, 1)
        if self._read(REG_QUEUE_RESET):
            raise PeerError(
                f"queue {queue.index} does not finish its reset", spec="virtio 1.3 section 4.2.3.4"
            )

    def notify(self, ring: DriverRing) -> None:
        """Ring the doorbell (section 4.2.3.3)."""
        self.bus.write(REG_QUEUE_NOTIFY, 4, ring.notification_data())

    def take_interrupt(self) -> bool:
        """Acknowledge what is pending; whether the device needs a reset (section 2.1.2)."""
        pending = self._read(REG_INTERRUPT_STATUS)
        if pending:
            self._write(REG_INTERRUPT_ACK, pending)
        return bool(pending & ISR_CONFIG_CHANGE and self._read(REG_STATUS) & STATUS_DEVICE_NEEDS_RESET)

    @staticmethod
    def make_ring(
        queue: QueueState, features: int, memory: GuestMemory, fence: Fence | None = None
    ) -> DriverRing:
        """The ring of a queue, at its saved position if it has one. StreamError if that is impossible."""
        config = RingConfig(queue.size, queue.desc, queue.driver, queue.device, features, index=queue.index)
        field = f"queues[{queue.index}].ring"
        try:
            ring = make_driver_ring(config, memory, fence=fence)
            if queue.ring:
                ring.restore(msgspec.msgpack.decode(queue.ring, type=DriverRingState))
        except (msgspec.ValidationError, msgspec.DecodeError, RingViolation) as error:
            raise StreamError(f"driver ring: {error}", field=field) from error
        return ring

    def attach_ring(self, queue: QueueState, features: int, memory: GuestMemory) -> DriverRing:
        """``make_ring``, asking for no interrupts until somebody waits."""
        ring = self.make_ring(queue, features, memory, self.fence)
        ring.suppress_interrupts()
        return ring
