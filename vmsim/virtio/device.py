"""The life of a virtio device without I/O: status, features, configuration, queues (virtio 1.3, 2 and 3).

The owner sets the hooks and reacts; the register file (:mod:`vmsim.virtio.mmio`) calls the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from vmsim.errors import StateError
from vmsim.limits import QUEUE_SIZE_MAX
from vmsim.virtio.constants import (
    F_ACCESS_PLATFORM,
    F_RING_PACKED,
    F_RING_RESET,
    F_VERSION_1,
    ISR_CONFIG_CHANGE,
    ISR_USED_BUFFER,
    SPEC,
    STATUS_DEVICE_NEEDS_RESET,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    STATUS_FEATURES_OK,
)

STATUS_BITS: Final = 0xFF & ~STATUS_DEVICE_NEEDS_RESET
"""What a driver may write into the status; the device alone sets DEVICE_NEEDS_RESET."""

PACKED_BASE: Final = 0x8000_8000
"""A fresh packed ring in the encoding of GET_VRING_BASE: both indices 0, both wrap counters 1."""


def _nothing(*_: object) -> None:
    """Stands for a hook that the owner does not use."""


class QueueConfig:
    """One virtqueue as the driver sets it up: sizes in entries, areas as guest-physical addresses.

    ``base`` says where a stopped ring stands, in the encoding of vhost's GET_VRING_BASE; ``notifications``
    counts what the driver sent, ``notified`` are the upper 16 bits of the last one.
    """

    __slots__ = ("base", "desc", "device", "driver", "notifications", "notified", "ready", "size", "size_max")

    def __init__(self, size_max: int) -> None:
        self.size_max = size_max
        self.size = size_max
        self.ready = False
        self.desc = self.driver = self.device = 0
        self.base = 0
        self.notifications = self.notified = 0

    def reset(self) -> None:
        """Back to what the driver found."""
        self.size = self.size_max
        self.ready = False
        self.desc = self.driver = self.device = 0
        self.base = 0

    def problem(self, packed: bool) -> str:
        """Why these values cannot be a queue (sections 2.7, 2.8); empty if they can."""
        if not 0 < self.size <= self.size_max:
            return f"{self.size} entries, at most {self.size_max} are offered"
        if not packed and self.size & (self.size - 1):
            return f"{self.size} entries in a split queue, not a power of 2"
        areas = (
            ("descriptor", self.desc, 16),
            ("driver", self.driver, 4 if packed else 2),
            ("device", self.device, 4),
        )
        for name, address, align in areas:
            if address % align:
                return f"{name} area at {address:#x} is not aligned to {align} bytes"
        return ""


class VirtioDevice:
    """One device between its driver and its owner.

    Hooks of the owner: ``on_activate()`` when DRIVER_OK is set, ``on_reset()`` before everything is cleared,
    ``on_queue_reset(queue)`` before a queue that is ready is cleared, ``on_queue_ready(queue)`` when a queue
    becomes ready while the device is live, ``on_notify(queue)`` for available-buffer notifications (what
    NOTIFICATION_DATA says besides is the queue's ``notified``), ``on_interrupt()`` when the driver should
    look.
    """

    __slots__ = (
        "config", "config_generation", "device_features_sel", "device_id", "driver_features_sel",
        "features_accepted", "features_offered", "isr", "live", "on_activate", "on_interrupt", "on_notify",
        "on_queue_ready", "on_queue_reset", "on_reset", "queue_sel", "queues", "reset_reason", "status",
        "vendor_id",
    )

    def __init__(
        self, device_id: int, features_offered: int, config: bytes, queue_sizes: Sequence[int],
        vendor_id: int = 0x554D4551,
    ) -> None:
        for size in queue_sizes:
            if not 0 < size <= QUEUE_SIZE_MAX:
                raise StateError(f"a queue of {size} entries", spec=SPEC + "2.6")
        self.device_id = device_id
        self.vendor_id = vendor_id
        self.features_offered = features_offered
        self.features_accepted = 0
        self.status = 0
        self.isr = 0
        self.live = False
        """DRIVER_OK is set and the device does not need a reset."""
        self.config = bytearray(config)
        self.config_generation = 0
        self.queues = [QueueConfig(size) for size in queue_sizes]
        self.queue_sel = self.device_features_sel = self.driver_features_sel = 0
        self.reset_reason = ""
        """Why DEVICE_NEEDS_RESET is set."""
        self.on_activate: Callable[[], None] = _nothing
        self.on_reset: Callable[[], None] = _nothing
        self.on_queue_reset: Callable[[int], None] = _nothing
        self.on_queue_ready: Callable[[int], None] = _nothing
        self.on_notify: Callable[[int], None] = _nothing
        self.on_interrupt: Callable[[], None] = _nothing

    # -- the driver's side

    def write_status(self, value: int) -> None:
        """The driver writes the status (sections 2.1, 3.1.1): 0 resets; bits are added, never taken away."""
        if value == 0:
            self.reset()
            return
        added = value & STATUS_BITS & ~self.status
        if added & STATUS_FEATURES_OK and self.feature_problem():
            added &= ~STATUS_FEATURES_OK
        self.status |= added
        if not added & STATUS_DRIVER_OK:
            if added & STATUS_FAILED:
                self.live = False
            return
        if not self.status & STATUS_FEATURES_OK:
            self.needs_reset("DRIVER_OK before FEATURES_OK")
        elif not self.status & (STATUS_DEVICE_NEEDS_RESET | STATUS_FAILED):
            self.live = True
            self.on_activate()

    def write_features(self, word: int, value: int) -> None:
        """The driver writes feature bits (word 0 or 1); ignored once FEATURES_OK is set (section 3.1.1)."""
        if self.status & STATUS_FEATURES_OK or word > 1:
            return
        shift = 32 * word
        self.features_accepted = self.features_accepted & ~(0xFFFF_FFFF << shift) | value << shift

    def feature_problem(self) -> str:
        """Why the device does not take the accepted features (section 2.2.2); empty if it does."""
        accepted, offered = self.features_accepted, self.features_offered
        if accepted & ~offered:
            return f"{accepted & ~offered:#x} was not offered"
        if not accepted & F_VERSION_1:
            return "VERSION_1 was not accepted"
        if offered & F_ACCESS_PLATFORM and not accepted & F_ACCESS_PLATFORM:
            return "ACCESS_PLATFORM was not accepted"
        return ""

    def set_queue_size(self, index: int, size: int) -> None:
        """The driver writes QueueSize; what no queue can have (a saved state neither) needs a reset."""
        if 0 < size <= QUEUE_SIZE_MAX:
            self.queues[index].size = size
        else:
            self.needs_reset(f"queue {index}: {size} entries")

    def set_queue_ready(self, index: int, ready: bool) -> None:
        """The driver writes QueueReady (section 4.2.2); values that make no queue need a reset."""
        queue = self.queues[index]
        if ready == queue.ready:
            return
        if not ready:
            self.reset_queue(index)
            return
        if self.status & STATUS_DEVICE_NEEDS_RESET:
            return
        packed = bool(self.features_accepted & F_RING_PACKED)
        problem = queue.problem(packed)
        if problem:
            self.needs_reset(f"queue {index}: {problem}")
            return
        queue.base = PACKED_BASE if packed else 0
        queue.ready = True
        if self.live:
            self.on_queue_ready(index)

    def reset_queue(self, index: int) -> None:
        """Take one queue out of use (section 2.6.1), also in a device that needs a reset."""
        if self.queues[index].ready:
            self.on_queue_reset(index)
        self.queues[index].reset()

    def write_queue_reset(self, index: int) -> None:
        """The driver writes QueueReset; ignored unless RING_RESET was negotiated."""
        if self.features_accepted & F_RING_RESET:
            self.reset_queue(index)

    def notify(self, value: int) -> None:
        """The driver notifies: queue in bits 0 to 15, NOTIFICATION_DATA above (sections 2.9, 4.2.3.3)."""
        if self.live:
            index = value & 0xFFFF
            if index < len(self.queues):
                queue = self.queues[index]
                if queue.ready:
                    queue.notifications += 1
                    queue.notified = value >> 16
                    self.on_notify(index)

    def reset(self) -> None:
        """Device reset (section 2.4): everything as the driver found it."""
        self.live = False
        self.on_reset()
        self.status = self.isr = self.features_accepted = 0
        self.queue_sel = self.device_features_sel = self.driver_features_sel = 0
        self.reset_reason = ""
        for queue in self.queues:
            queue.reset()

    # -- the device's side

    def used_buffers(self) -> None:
        """Used-buffer notification (section 2.3)."""
        self.isr |= ISR_USED_BUFFER
        self.on_interrupt()

    def update_config(self, offset: int, data: bytes) -> None:
        """Change the configuration space; the driver sees a new generation and an interrupt (section 2.5)."""
        if offset < 0 or offset + len(data) > len(self.config):
            raise StateError(f"{len(data)} bytes at {offset} of a configuration space of {len(self.config)}")
        self.config[offset : offset + len(data)] = data
        self.config_generation = self.config_generation + 1 & 0xFFFF_FFFF
        self._config_interrupt()

    def needs_reset(self, reason: str) -> None:
        """Give up until the driver resets the device (section 2.1.2); tells the driver if it is running."""
        if self.status & STATUS_DEVICE_NEEDS_RESET:
            return
        self.reset_reason = reason
        self.live = False
        self.status |= STATUS_DEVICE_NEEDS_RESET
        self._config_interrupt()

    def _config_interrupt(self) -> None:
        if self.status & STATUS_DRIVER_OK:
            self.isr |= ISR_CONFIG_CHANGE
            self.on_interrupt()
