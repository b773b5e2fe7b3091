"""Factories: the ring that the negotiated features ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsim.virtio.chain import Chain, ParkedChain
from vmsim.virtio.constants import F_RING_PACKED
from vmsim.virtio.packed_device import PackedDeviceRing
from vmsim.virtio.packed_driver import PackedDriverRing
from vmsim.virtio.ring_types import (
    Area,
    DeviceRing,
    DriverRing,
    DriverRingState,
    Fence,
    Outstanding,
    QueueFull,
    RingConfig,
    RingState,
    ring_areas,
)
from vmsim.virtio.split_device import SplitDeviceRing
from vmsim.virtio.split_driver import SplitDriverRing

if TYPE_CHECKING:
    from vmsim.memory import DirtySink, GuestMemory

__all__ = [
    "Area",
    "Chain",
    "DeviceRing",
    "DriverRing",
    "DriverRingState",
    "Fence",
    "Outstanding",
    "ParkedChain",
    "QueueFull",
    "RingConfig",
    "RingState",
    "make_device_ring",
    "make_driver_ring",
    "ring_areas",
]


def make_device_ring(
    config: RingConfig,
    memory: GuestMemory,
    *,
    log: DirtySink | None = None,
    log_used: bool = False,
    state: RingState | None = None,
    fence: Fence | None = None,
) -> DeviceRing:
    """The device's side of a queue; with ``state`` it goes on from there.

    ``log`` hears of payload writes, and of ring writes too with ``log_used``; both may be changed while the
    ring works. RingViolation if size, alignment or addresses are not legal; StreamError for a bad ``state``.
    """
    kind = PackedDeviceRing if config.features & F_RING_PACKED else SplitDeviceRing
    ring = kind(config, memory, log=log, log_used=log_used, fence=fence)
    if state is not None:
        ring.restore(state)
    return ring


def make_driver_ring(
    config: RingConfig,
    memory: GuestMemory,
    *,
    state: DriverRingState | None = None,
    fence: Fence | None = None,
) -> DriverRing:
    """The driver's side of a queue; with ``state`` it goes on from there.

    Nothing is written: before a new queue is enabled its areas must be zero, see DriverRing.initialise().
    RingViolation if size, alignment or addresses are not legal; StreamError for a bad ``state``.
    """
    kind = PackedDriverRing if config.features & F_RING_PACKED else SplitDriverRing
    ring = kind(config, memory, fence=fence)
    if state is not None:
        ring.restore(state)
    return ring
