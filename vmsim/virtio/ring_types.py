"""What every ring implementation shares: its configuration, its saved state, and the two protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

import msgspec

from vmsim.errors import Blame, VmsimError
from vmsim.limits import QUEUE_SIZE_MAX
from vmsim.virtio.chain import Chain, ParkedChain
from vmsim.virtio.constants import F_RING_PACKED
from vmsim.virtio.violations import violation

if TYPE_CHECKING:
    from vmsim.errors import RingViolation
    from vmsim.memory import DirtySink, GuestMemory

Fence = Callable[[], object]
"""Called where the other side must see our store before we load its answer (store-load fence).

Python has none. In one process nothing is needed; across processes pass something that enters the kernel or
executes a locked instruction (any eventfd call does), see virtio/README.md.
"""


class QueueFull(VmsimError):
    """The ring has too few free descriptors for a buffer now; reap used buffers and try again."""

    blame: ClassVar[Blame] = Blame.US


class RingConfig(msgspec.Struct, frozen=True):
    """One virtqueue as the driver set it up: entries, the three areas (gpa), the accepted feature bits.

    ``desc``/``driver``/``device`` are the descriptor, driver (available) and device (used) areas. ``policy``
    ``lenient`` tolerates what specification forbids to drivers but peers accept (rows of violations.py).
    ``index`` is the queue's number, which notifications carry.
    """

    size: int
    desc: int
    driver: int
    device: int
    features: int
    policy: Literal["strict", "lenient"] = "strict"
    index: int = 0


class RingState(msgspec.Struct):
    """A device-side ring between two lives, as plain data.

    Split: ``next_avail`` and ``next_used`` are free-running 16-bit indices and the wraps stay 1. Packed: ring
    offsets below the size, with their wrap counters. ``in_flight`` lists what was taken and not used, oldest
    first; ``completed`` (IN_ORDER) those of them that wait only for older ones: (head, bytes written).
    """

    next_avail: int = 0
    next_used: int = 0
    avail_wrap: int = 1
    used_wrap: int = 1
    in_flight: list[ParkedChain] = []
    completed: list[tuple[int, int]] = []

    def same_place(self, other: RingState) -> bool:
        """Whether both positions are those of ``other``."""
        return (self.next_avail, self.next_used, self.avail_wrap, self.used_wrap) == (
            other.next_avail, other.next_used, other.avail_wrap, other.used_wrap
        )  # fmt: skip


class Outstanding(msgspec.Struct, frozen=True):
    """A buffer that the driver made available, and its writable bytes.

    ``slots``: the descriptors (split, the head first) or ring slots (packed, in ring order) that it takes.
    """

    id: int
    slots: list[int]
    capacity: int


class DriverRingState(msgspec.Struct):
    """A driver-side ring between two lives, as plain data (it is part of the guest's RAM).

    ``free`` are the free descriptors (split) or buffer ids (packed) in the order in which they will be taken.
    ``kicked`` is the index up to which the device was notified (split) or the number of slots made available
    since (packed). ``batch`` is the (id, bytes) of an IN_ORDER used entry of which buffers remain to be
    reaped, or None.
    """

    next_avail: int
    next_used: int
    avail_wrap: int
    used_wrap: int
    free: list[int]
    free_slots: int
    kicked: int
    outstanding: list[Outstanding]
    batch: tuple[int, int] | None = None


class UsedWitness(Protocol):
    """Told of used buffers at the two moments between which a device may die (vhost: in-flight buffer)."""

    def giving(self, chains: list[Chain]) -> None:
        """These chains become visible to the driver as used next."""
        ...

    def given(self, chains: list[Chain]) -> None:
        """They are."""
        ...


class DeviceRing(Protocol):
    """The device's side of one virtqueue.

    A RingViolation leaves the ring broken: it raises the same again and writes nothing more until it is
    made anew, which is what a device or queue reset does.
    """

    size: int
    broken: RingViolation | None
    log: DirtySink | None
    log_used: bool
    witness: UsedWitness | None

    def pop(self) -> Chain | None:
        """The next available chain, or None. RingViolation on anything malformed."""
        ...

    def push(self, chain: Chain, written: int) -> None:
        """Return a chain whose first ``written`` writable bytes were written; marks them dirty."""
        ...

    def needs_call(self) -> bool:
        """After pushes: does the driver want a used buffer notification?"""
        ...

    def suppress_kicks(self) -> None:
        """Ask the driver for no notifications (advice only)."""
        ...

    def arm_kicks(self) -> bool:
        """Ask for notifications again. True: work arrived meanwhile, look before you wait."""
        ...

    @property
    def in_flight(self) -> list[Chain]:
        """What was popped and not pushed, oldest first."""
        ...

    def resubmit(self, parked: ParkedChain) -> Chain:
        """Take a parked chain up again as in flight; RingViolation if it does not fit this memory."""
        ...

    def position(self) -> RingState:
        """Where the ring stands, without what is in flight."""
        ...

    def save(self) -> RingState:
        """Everything about this ring that guest memory does not hold."""
        ...

    def restore(self, state: RingState) -> list[Chain]:
        """Go on from ``state``; returns the chains in flight. StreamError names the field that is wrong."""
        ...

    def base_word(self) -> int:
        """The position as vhost's GET_VRING_BASE reports it."""
        ...

    def set_base_word(self, word: int) -> None:
        """Start at a position given by SET_VRING_BASE; nothing is in flight."""
        ...


class DriverRing(Protocol):
    """The driver's side of one virtqueue."""

    size: int
    broken: RingViolation | None

    @property
    def free(self) -> int:
        """Free ring slots."""
        ...

    @property
    def outstanding(self) -> int:
        """Buffers that were added and not reaped."""
        ...

    def add(
        self,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]],
        indirect: tuple[int, int] | None = None,
    ) -> int:
        """Offer one buffer of (gpa, bytes) elements; its id. Invisible to the device until publish().

        ``indirect``: (gpa, bytes) of memory for an indirect table, kept until the buffer is reaped.
        QueueFull if the ring has no room now; UsageError if it never will.
        """
        ...

    def publish(self) -> None:
        """Make all added buffers available to the device."""
        ...

    def needs_kick(self) -> bool:
        """After publish(): does the device want an available buffer notification?"""
        ...

    def reap(self) -> tuple[int, int] | None:
        """The next used buffer: (id, bytes written), or None. DeviceRingViolation on anything malformed."""
        ...

    def notification_data(self) -> int:
        """The 32-bit value to notify with (section 2.9); the bare queue index without NOTIFICATION_DATA."""
        ...

    def suppress_interrupts(self) -> None:
        """Ask the device for no notifications (advice only)."""
        ...

    def arm_interrupts(self) -> bool:
        """Ask for notifications again. True: used buffers arrived meanwhile, look before you wait."""
        ...

    def initialise(self) -> None:
        """Zero the three areas, as a driver does before it enables a new queue."""
        ...

    def save(self) -> DriverRingState:
        """Everything about this ring that guest memory does not hold; publish() first."""
        ...

    def restore(self, state: DriverRingState) -> None:
        """Go on from ``state``. StreamError names the field that is impossible."""
        ...


class Area(NamedTuple):
    """One of the three parts of a virtqueue: what it is called, where it must be aligned, how long it is."""

    name: str
    align: int
    size_bytes: int


def ring_areas(size: int, features: int) -> tuple[Area, Area, Area]:
    """The descriptor, driver and device areas of a queue of ``size`` entries (sections 2.7 and 2.8.10.1)."""
    if features & F_RING_PACKED:
        return (
            Area("descriptor ring", 16, 16 * size),
            Area("driver event suppression", 4, 4),
            Area("device event suppression", 4, 4),
        )
    return (
        Area("descriptor table", 16, 16 * size),
        Area("available ring", 2, 6 + 2 * size),
        Area("used ring", 4, 6 + 8 * size),
    )


def check_config(config: RingConfig, memory: GuestMemory) -> None:
    """RingViolation unless the size is legal and each area is aligned and inside one memory region."""
    packed = bool(config.features & F_RING_PACKED)
    kind = "packed" if packed else "split"
    size = config.size
    if not 1 <= size <= QUEUE_SIZE_MAX or (not packed and size & (size - 1)):
        raise violation(f"{kind}.size", size=size)
    areas = ring_areas(size, config.features)
    for area, gpa in zip(areas, (config.desc, config.driver, config.device), strict=True):
        if gpa % area.align:
            raise violation(f"{kind}.align", part=area.name, gpa=gpa, align=area.align)
        if not memory.holds(gpa, area.size_bytes):
            raise violation(f"{kind}.memory", part=area.name, gpa=gpa, size_bytes=area.size_bytes)


def event_passed(event: int, slot: int, wrap: int, fresh: int, size: int) -> bool:
    """Whether the event that a packed ring's suppression structure names is among the last ``fresh`` slots.

    ``event`` is its offset and wrap word (section 2.8.14), ``slot`` and ``wrap`` the position after the last
    slot that was made available or used.
    """
    offset = event & 0x7FFF
    if offset >= size:
        return True  # names no slot: one notification too many is better than one too few
    behind = slot - 1 - offset + (size if wrap != event >> 15 else 0)
    return behind % (2 * size) < fresh
