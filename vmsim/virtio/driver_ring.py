"""The part of a driver-side ring that both formats share."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from vmsim.errors import RingViolation, StateError, StreamError, UsageError
from vmsim.virtio.constants import (
    DESC_BYTES,
    DESC_F_NEXT,
    DESC_F_WRITE,
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_NOTIFICATION_DATA,
)
from vmsim.virtio.ring_types import (
    DriverRingState,
    Fence,
    Outstanding,
    QueueFull,
    RingConfig,
    check_config,
    ring_areas,
)
from vmsim.virtio.violations import violation

if TYPE_CHECKING:
    from vmsim.memory import GuestMemory

Element = tuple[int, int]
"""Guest-physical address and bytes of one buffer element."""

DESC = struct.Struct("<QIHH")  # split: addr, len, flags, next; packed: addr, len, id, flags


class DriverRingBase:
    """Bookkeeping of one driver-side ring. Subclasses read and write the ring itself."""

    __slots__ = (
        "_batch",
        "_event_idx",
        "_fence",
        "_free",
        "_in_order",
        "_indirect",
        "_kind",
        "_memory",
        "_outstanding",
        "_tables",
        "broken",
        "config",
        "size",
    )

    def __init__(self, config: RingConfig, memory: GuestMemory, kind: str, *, fence: Fence | None) -> None:
        check_config(config, memory)
        self.config = config
        self.size = config.size
        self.broken: RingViolation | None = None
        self._memory = memory
        self._kind = kind
        self._fence = fence
        self._event_idx = bool(config.features & F_EVENT_IDX)
        self._in_order = bool(config.features & F_IN_ORDER)
        self._indirect = bool(config.features & F_INDIRECT_DESC)
        # Free descriptors (split) or buffer ids (packed), taken from the end. What comes back goes to the end
        # (recently used, warm), or to the front under IN_ORDER, which demands ring order (section 2.7.5).
        self._free = list(range(config.size - 1, -1, -1))
        self._outstanding: dict[int, tuple[Sequence[int], int]] = {}
        self._batch: tuple[int, int] | None = None
        self._tables: dict[int, struct.Struct] = {}  # layouts of indirect tables by length

    @property
    def outstanding(self) -> int:
        """Buffers that were added and not reaped."""
        return len(self._outstanding)

    def initialise(self) -> None:
        """Zero the three areas, as a driver does before it enables a queue (sections 2.7.10.1, 2.8.13)."""
        areas = ring_areas(self.size, self.config.features)
        for area, gpa in zip(areas, (self.config.desc, self.config.driver, self.config.device), strict=True):
            self._memory.write(gpa, bytes(area.size_bytes))

    def notification_data(self) -> int:
        """The 32-bit value to notify with (section 2.9); the bare queue index without NOTIFICATION_DATA."""
        if not self.config.features & F_NOTIFICATION_DATA:
            return self.config.index
        return self.config.index | self._next_offset() << 16

    def save(self) -> DriverRingState:
        """Everything about this ring that guest memory does not hold; StateError before publish()."""
        if self._unpublished():
            raise StateError("publish() the buffers before saving the ring")
        state = self._position()
        state.free = self._free[::-1]
        state.outstanding = [
            Outstanding(head, [slot % self.size for slot in slots], capacity)
            for head, (slots, capacity) in self._outstanding.items()
        ]
        state.batch = self._batch
        return state

    def restore(self, state: DriverRingState) -> None:
        """Go on from ``state``. StreamError names the field that is impossible."""
        self._check_state(state)
        self._seek(state)
        self._free = list(state.free)[::-1]
        self._outstanding = {item.id: (self._slots_of(item), item.capacity) for item in state.outstanding}
        self._batch = state.batch
        self.broken = None

    def _next_offset(self) -> int:
        raise NotImplementedError

    def _unpublished(self) -> bool:
        raise NotImplementedError

    def _position(self) -> DriverRingState:
        raise NotImplementedError

    def _seek(self, state: DriverRingState) -> None:
        raise NotImplementedError

    def _entries(self, item: Outstanding) -> list[int]:
        """The free entries that an outstanding buffer took: descriptors (split) or its id (packed)."""
        raise NotImplementedError

    def _slots_of(self, item: Outstanding) -> Sequence[int]:
        """``item.slots`` as this ring keeps them; StreamError if they are impossible."""
        raise NotImplementedError

    def _check_state(self, state: DriverRingState) -> None:
        """Free entries and those of outstanding buffers together are all entries, each once."""
        entries = list(state.free)
        for item in state.outstanding:
            entries += self._entries(item)
            if not item.slots or item.capacity < 0:
                raise StreamError(f"buffer {item.id} is impossible", field="outstanding")
        if sorted(entries) != list(range(self.size)):
            raise StreamError("free and outstanding entries do not add up to the queue", field="free")
        ids = {item.id for item in state.outstanding}
        if state.batch is not None and (not self._in_order or state.batch[0] not in ids):
            raise StreamError(f"the batch ends with {state.batch[0]}, not outstanding", field="batch")

    def _write_table(
        self, table: Element, readable: Sequence[Element], writable: Sequence[Element]
    ) -> Element:
        """Fill an indirect table, which nobody else looks at yet; its (gpa, bytes)."""
        gpa, room = table
        count = len(readable) + len(writable)
        if not self._indirect:
            raise UsageError("INDIRECT_DESC was not negotiated")
        if not count or count > self.size:
            raise UsageError(f"a buffer of {count} elements in a queue of {self.size}")
        if count * DESC_BYTES > room:
            raise UsageError(f"an indirect table of {count} descriptors in {room} bytes")
        packed = self._kind == "packed"
        fields: list[int] = []
        index = 0
        for elements, flags in ((readable, 0), (writable, DESC_F_WRITE)):
            for address, length in elements:
                index += 1
                if packed:
                    fields += (address, length, 0, flags)
                else:
                    fields += (address, length, flags | DESC_F_NEXT, index)
        if not packed:
            fields[-2] &= ~DESC_F_NEXT
            fields[-1] = 0
        rows = self._tables.get(count)
        if rows is None:
            rows = self._tables[count] = struct.Struct("<" + "QIHH" * count)
        self._memory.write(gpa, rows.pack(*fields))
        return gpa, rows.size

    def _refuse(self, count: int, free: int) -> NoReturn:
        if self.broken is not None:
            raise self.broken
        if not 1 <= count <= self.size:
            raise UsageError(f"a buffer of {count} elements in a queue of {self.size}")
        raise QueueFull(f"{count} descriptors wanted, {free} free", wanted=count, free=free)

    def _start_batch(self, last: int, written: int) -> None:
        """Remember an IN_ORDER used entry: it stands for all outstanding buffers up to ``last``."""
        if last not in self._outstanding:
            self._break(f"{self._kind}.used_id", id=last)
        capacity = self._outstanding[last][1]
        if written > capacity:
            self._break(f"{self._kind}.used_length", id=last, written=written, capacity=capacity)
        self._batch = (last, written)

    def _next_of_batch(self) -> tuple[int, int]:
        """The id and written bytes of the oldest buffer of the batch; skipped buffers count as filled."""
        assert self._batch is not None
        last, written = self._batch
        oldest = next(iter(self._outstanding))
        if oldest == last:
            self._batch = None
            return last, written
        return oldest, self._outstanding[oldest][1]

    def _break(self, key: str, **details: object) -> NoReturn:
        self.broken = violation(key, **details)
        raise self.broken
