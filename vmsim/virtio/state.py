"""The saved state of one virtio device: plain numbers, as QEMU's ``virtio_save`` transports them.

:mod:`vmsim.virtio.vmstate` writes and reads these records as stream bytes; :mod:`vmsim.virtio.device_state`
fills them in and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class VirtioQueueState:
    """One virtqueue.

    ``num`` is its size in entries (0: the queue does not exist), ``num_default`` the largest size that the
    device offers. ``desc``, ``avail`` (driver area) and ``used`` (device area) are guest-physical addresses.
    The indices are what a vhost back-end reports: a split ring uses ``last_avail_idx`` alone (free running),
    a packed ring all four (``*_idx`` below 2**15).
    """

    num: int = 0
    num_default: int = 0
    desc: int = 0
    avail: int = 0
    used: int = 0
    last_avail_idx: int = 0
    last_avail_wrap: int = 1
    used_idx: int = 0
    used_wrap: int = 1
    inuse: int = 0
    enabled: int = 0


@dataclass(slots=True)
class VirtioState:
    """One virtio device with its virtio-mmio transport; features are 64-bit words.

    ``config`` is the raw configuration space, ``queues`` has one entry per queue of the device (in order,
    without the unused ones up to VIRTIO_QUEUE_MAX). ``device_endian`` is None for a modern little-endian
    device, else 1 (little) or 2 (big).
    """

    status: int = 0
    isr: int = 0
    queue_sel: int = 0
    guest_features: int = 0
    host_features: int = 0
    config: bytes = b""
    queues: list[VirtioQueueState] = field(default_factory=list)
    host_features_sel: int = 0
    guest_features_sel: int = 0
    guest_page_shift: int = 0
    broken: bool = False
    started: bool = True
    disabled: bool = False
    device_endian: int | None = None
